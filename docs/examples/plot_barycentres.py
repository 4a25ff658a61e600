"""
Barycentres
===========

Between two images, with and without the blur of the entropy, and between three clouds.
"""

import matplotlib.pyplot as plt
import torch

import brenier

# %%
# A ring and a cross on a grid: masses on a given support.

k = 40
axis = torch.linspace(-1, 1, k, dtype=torch.float64)
u, v = torch.meshgrid(axis, axis, indexing="ij")
ring = ((u.square() + v.square()).sqrt() - 0.6).abs() < 0.12
cross = ((u - v).abs() < 0.15) | ((u + v).abs() < 0.15)
images = torch.stack([ring, cross & (u.abs() < 0.8)]).double().flatten(1) + 1e-6
images = images / images.sum(-1, keepdim=True)
grid = brenier.Grid(axis, axis)

fig, axes = plt.subplots(2, 5, figsize=(9, 3.8), layout="constrained")
for row, debiased in zip(axes, (False, True)):
    for ax, t in zip(row, (0.0, 0.25, 0.5, 0.75, 1.0)):
        found = brenier.barycentre(grid, [1 - t, t], a=images, epsilon=4e-3, debiased=debiased, tol=1e-3)
        ax.imshow(found.b.reshape(k, k), cmap="magma")
        ax.set(xticks=[], yticks=[])
    row[0].set_ylabel("debiased" if debiased else "entropic")

# %%
# Three clouds: points that move. The objective never rises.

generator = torch.Generator().manual_seed(0)
angle = 2 * torch.pi * torch.rand(150, generator=generator, dtype=torch.float64)
noise = torch.randn(3, 150, 2, generator=generator, dtype=torch.float64)
clouds = [
    torch.stack([angle.cos(), angle.sin()], -1) * 2 + 0.1 * noise[0],
    torch.stack([angle.cos() * 3, angle.sin() / 3], -1) + 0.1 * noise[1] + torch.tensor([8.0, 0.0]),
    0.7 * noise[2] + torch.tensor([4.0, 6.0]),
]
found = brenier.barycentre(clouds, start=clouds[0], tol=1e-4)
fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", width_ratios=(2, 1))
for cloud in clouds:
    axes[0].scatter(*cloud.T, s=4, c="0.7")
axes[0].scatter(*found.points.T, s=6)
axes[0].set(aspect="equal", title="the barycentre of three clouds")
axes[1].plot(found.stats["values"], "o-")
axes[1].set(xlabel="iteration", ylabel="mean cost", title="the objective")
