"""
Slices
======

A cloud flows to another one by the gradient of the sliced transport cost, and the estimate of that cost says how sure
it is.
"""

import matplotlib.pyplot as plt
import torch

from brenier.losses import sliced_wasserstein

generator = torch.Generator().manual_seed(0)
angle = 2 * torch.pi * torch.rand(400, generator=generator, dtype=torch.float64)
y = torch.stack([angle.cos(), angle.sin()], -1) * 2 + 0.1 * torch.randn(
    400, 2, generator=generator, dtype=torch.float64
)
x = torch.randn(400, 2, generator=generator, dtype=torch.float64) * 0.5

# %%
# The mean over directions, from more and more of them: intervals of 95 per cent, by three ways to draw.

fig, ax = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
for k, sampler in enumerate(("gaussian", "orthogonal", "quasi")):
    for count in (32, 64, 128, 256, 512):
        estimate = sliced_wasserstein(x, y, directions=count, sampler=sampler, generator=generator)
        low, high = estimate.interval()
        ax.plot(
            [count * (0.94 + 0.06 * k)] * 2, [low, high], color=f"C{k}", lw=3, label=sampler if count == 32 else None
        )
ax.set(xscale="log", xlabel="directions", ylabel="sliced cost", title="95% intervals")
ax.legend(frameon=False)

# %%
# Descent: each point moves along minus the gradient, in 20 directions that are new in each step.

path = [x]
for _ in range(60):
    x = path[-1].clone().requires_grad_()
    sliced_wasserstein(x, y, directions=20, generator=generator).value.backward()
    path.append((x - 0.5 * len(x) * x.grad).detach())

fig, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
for ax, t in zip(axes, (0, 5, 60)):
    ax.scatter(*y.T, s=4, c="0.7")
    ax.scatter(*path[t].T, s=4)
    ax.set(title=f"step {t}", aspect="equal", xticks=[], yticks=[])
before, after = (float(sliced_wasserstein(z, y, generator=generator).value) for z in (path[0], path[-1]))
print(f"sliced cost {before:.3f} -> {after:.4f}")
assert after < 0.05 * before
