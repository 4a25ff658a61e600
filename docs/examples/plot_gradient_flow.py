"""
Move points by the gradient
===========================

``solution.value`` is differentiable. For the exact squared Euclidean cost and uniform masses the envelope theorem
gives

.. math:: \\nabla_{x_i} = \\frac{2}{n} \\, (x_i - T(x_i)),

with T the barycentric map of the plan. A step of length n/2 would jump to T; shorter steps flow there.
"""

import matplotlib.pyplot as plt
import torch

import brenier

generator = torch.Generator().manual_seed(0)
n = 250
target_angle = torch.pi * torch.rand(n, generator=generator, dtype=torch.float64)
upper = torch.arange(n) % 2 == 0
moons = torch.stack([target_angle.cos(), target_angle.sin()], 1)
moons = torch.where(upper[:, None], moons, torch.tensor([1.0, 0.4], dtype=torch.float64) - moons)
moons = moons + 0.04 * torch.randn(n, 2, generator=generator, dtype=torch.float64)
x = 0.3 * torch.randn(n, 2, generator=generator, dtype=torch.float64) - 1

# %%
# Each step solves the problem anew and follows the gradient.

x.requires_grad_()
values, frames = [], []
for step in range(25):
    solution = brenier.solve(x, moons)
    (gradient,) = torch.autograd.grad(solution.value, x)
    values.append(float(solution.value.detach()))
    if step in (0, 5, 24):
        frames.append((step, x.detach().clone()))
    with torch.no_grad():
        x -= 0.2 * n / 2 * gradient
print(f"value {values[0]:.4f} -> {values[-1]:.6f}")

# %%
# The formula above, checked at the last step.

formula = 2 / n * (frames[-1][1] - solution.map().detach())
print("largest difference:", float((gradient - formula).abs().max()))

# %%

fig, axes = plt.subplots(1, 4, figsize=(12, 3), layout="constrained")
for ax, (step, points) in zip(axes, frames):
    ax.scatter(*moons.T, s=6, c="#dd6b20", label="target")
    ax.scatter(*points.T, s=6, c="#2b6cb0", label="moving")
    ax.set(title=f"step {step}", aspect="equal", xlim=(-2.2, 2.3), ylim=(-2, 1.4))
axes[0].legend(frameon=False, loc="upper right")
axes[3].semilogy(values)
axes[3].set(title="value", xlabel="step")
