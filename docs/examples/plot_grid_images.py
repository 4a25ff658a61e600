"""
Transport between two images
============================

On a regular grid the cost \\|x - y\\|^2 is a sum over the axes, so that every operation works on one axis at a
time: O(N (N_1 + N_2)) instead of O(N^2) for N = N_1 N_2 pixels.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

import brenier

size = 32
axis = torch.linspace(-1, 1, size, dtype=torch.float64)
row, col = torch.meshgrid(axis, axis, indexing="ij")
ring = torch.exp(-(((row**2 + col**2).sqrt() - 0.6) ** 2) / 0.01)
cross = torch.exp(-((row.abs().minimum(col.abs())) ** 2) / 0.01) * (row.abs().maximum(col.abs()) < 0.8)
a, b = (image.flatten() / image.sum() for image in (ring, cross))

# %%
# ``Grid`` holds both sides; images enter as weights. Pixels without mass are allowed.

grid = brenier.Grid(axis, axis)
solution = brenier.solve(grid, a=a, b=b, epsilon=2e-3)
print(solution, "in", solution.stats["n_iter"], "iterations")
print(solution.certificate)

# %%
# A picture between the two: every entry (i, j) of the plan puts its mass at (1 - t) x_i + t x_j.

rows, cols, mass = solution.plan.entries(threshold=1e-8)
points = grid.points


def between(t):
    at = (1 - t) * points[rows] + t * points[cols]
    image, _, _ = np.histogram2d(*at.T.numpy(), bins=size, range=[[-1, 1]] * 2, weights=mass.numpy())
    return image


fig, axes = plt.subplots(1, 5, figsize=(11, 2.5), layout="constrained")
pictures = [a.reshape(size, size), *(between(t) for t in (0.25, 0.5, 0.75)), b.reshape(size, size)]
for ax, picture, t in zip(axes, pictures, (0, 0.25, 0.5, 0.75, 1)):
    ax.imshow(picture, cmap="magma")
    ax.set(title=f"t = {t}", xticks=[], yticks=[])
