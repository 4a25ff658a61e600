"""
Domain adaptation
=================

Labels on one cloud, none on another that has moved: transport carries the labelled points over, and a classifier that
is trained where they land works on the other cloud.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from brenier.maps.linear import LinearMap
from brenier.maps.penalized import ClassMap, LaplacianMap
from brenier.maps.plain import EntropicMap, ExactMap

rng = np.random.default_rng(0)
centres = np.array([[0.0, 0.0], [4.0, 0.0], [2.0, 3.0]])
labels = np.repeat([0, 1, 2], 40)
source, target = (centres[labels] + rng.normal(scale=0.45, size=(120, 2)) for _ in range(2))
angle = np.deg2rad(35)
target = target @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) + 1


def accuracy(points):
    """Of the nearest labelled point, on the target."""
    return KNeighborsClassifier(1).fit(points, labels).score(target, labels)


models = {
    "not adapted": None,
    "linear": LinearMap(),
    "exact": ExactMap(),
    "entropic": EntropicMap(0.5),
    "classes": ClassMap(0.5, eta=1.0, norm="lp"),
    "neighbours": LaplacianMap(eta=0.5, tol=1e-2, max_iter=300),
}
fig, axes = plt.subplots(2, 3, figsize=(9, 5.4), layout="constrained", sharex=True, sharey=True)
for ax, (name, model) in zip(axes.flat, models.items()):
    if model is None:
        moved = source
    elif name == "linear":
        moved = model.fit(source, target).transform(source)
    else:
        moved = model.fit(source, labels, target).transform(source)
    ax.scatter(*target.T, c="0.8", s=14)
    ax.scatter(*moved.T, c=labels, s=10, cmap="viridis")
    ax.set(title=f"{name}: {accuracy(moved):.2f}", aspect="equal", xticks=[], yticks=[])

# %%
# New points follow too. The entropic map is defined everywhere; exact plans extend by the displacement of the nearest
# training point, which jumps from cell to cell. (The arrows are a quarter of the way.)

grid = np.stack(np.meshgrid(np.linspace(-1, 5, 25), np.linspace(-1.5, 4.5, 25)), -1).reshape(-1, 2)
fig, axes = plt.subplots(1, 2, figsize=(8, 4), layout="constrained", sharex=True, sharey=True)
for ax, name in zip(axes, ("exact", "entropic")):
    step = models[name].transform(grid) - grid
    ax.quiver(*grid.T, *step.T, angles="xy", scale_units="xy", scale=4, width=0.003, color="0.4")
    ax.scatter(*source.T, c=labels, s=8, cmap="viridis")
    ax.set(title=name, aspect="equal", xticks=[], yticks=[])
