"""
The bias of entropy, and a loss without it
==========================================

The entropic transport cost is least not where two clouds are equal, but where one of them has shrunk: its points gather
where the blurred plan sends them. The Sinkhorn divergence subtracts what each cloud costs against itself,

.. math:: S(\\alpha, \\beta) = \\mathrm{OT}(\\alpha, \\beta) - \\tfrac12 \\mathrm{OT}(\\alpha, \\alpha)
    - \\tfrac12 \\mathrm{OT}(\\beta, \\beta),

and its gradient flow ends at the other cloud.
"""

import matplotlib.pyplot as plt
import torch

from brenier.losses import SinkhornDivergence, energy_distance

generator = torch.Generator().manual_seed(0)
angle = torch.linspace(0, 2 * torch.pi, 201, dtype=torch.float64)[:-1]
y = torch.stack([angle.sin(), angle.sin() * angle.cos()], 1)  # a figure eight
y = y + 0.03 * torch.randn(200, 2, generator=generator, dtype=torch.float64)
start = 0.2 * torch.randn(200, 2, generator=generator, dtype=torch.float64) + torch.tensor([0.0, 0.8])

# %%
# Gradient flows of three losses from the same start. Points move by the gradient times n/2: for exact transport, a
# step of one would take each of them to where the plan sends it. Warm starts suit a flow, whose points move a little
# each time.


def flow(loss, step, count=60):
    x = start.clone().requires_grad_()
    for _ in range(count):
        (gradient,) = torch.autograd.grad(loss(x), x)
        with torch.no_grad():
            x -= step * len(x) / 2 * gradient
    return x.detach()


epsilon = 0.2
biased = SinkhornDivergence(epsilon=epsilon, debiased=False, warm_start=True)
unbiased = SinkhornDivergence(epsilon=epsilon, warm_start=True)
ends = {
    "entropic cost": flow(lambda x: biased(x, y), 0.3),
    "Sinkhorn divergence": flow(lambda x: unbiased(x, y), 0.6),
    "energy distance": flow(lambda x: energy_distance(x, y), 0.1),
}

fig, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
for ax, (name, x) in zip(axes, ends.items()):
    ax.scatter(*y.T, s=4, c="0.75")
    ax.scatter(*start.T, s=3, c="C1", alpha=0.3)
    ax.scatter(*x.T, s=5, c="C0")
    ax.set(title=name, aspect="equal", xticks=[], yticks=[])
distances = {name: float(SinkhornDivergence(epsilon=0.01)(x, y)) for name, x in ends.items()}
print({name: f"{value:.1e}" for name, value in distances.items()})
assert distances["Sinkhorn divergence"] < 0.1 * distances["entropic cost"]

# %%
# The values along a translation of one cloud: only the divergence is least, and zero, at the other.

shifts = torch.linspace(-0.5, 0.5, 41, dtype=torch.float64)
moved = y + shifts[:, None, None] * torch.tensor([1.0, 0.0])
scaled = y * (1 + shifts[:, None, None])
fig, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained", sharey=True)
for ax, clouds, title in zip(axes, (moved, scaled), ("shifted by t", "scaled by 1 + t")):
    for name, loss in (("entropic cost", biased), ("Sinkhorn divergence", unbiased)):
        ax.plot(shifts, SinkhornDivergence(epsilon=epsilon, debiased=loss.debiased)(clouds, y), label=name)
    ax.axhline(0, c="0.8", lw=0.8)
    ax.set(xlabel="t", title=title)
axes[0].legend(frameon=False)
