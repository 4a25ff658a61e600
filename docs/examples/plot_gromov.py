"""
Matching shapes by their distances
==================================

A spiral in the plane and the same spiral rolled up in space share no coordinates, but distances along the curve are the
same. Gromov-Wasserstein transport compares distances inside each, and finds which point is which.
"""

import matplotlib.pyplot as plt
import networkx as nx
import torch

import brenier

generator = torch.Generator().manual_seed(0)
t = torch.linspace(0, 1, 60, dtype=torch.float64) ** 1.2  # denser at one end, so that the ends differ
plane = torch.stack([t * torch.cos(9 * t), t * torch.sin(9 * t)], 1)
order = torch.randperm(60, generator=generator)
space = torch.stack([torch.cos(7 * t), torch.sin(7 * t), 2 * t], 1)[order]


def path(points):
    """A graph that joins neighbours on the curve; distances in it are lengths along the curve."""
    distance = torch.cdist(points, points)
    near = distance.topk(3, largest=False).indices[:, 1:]
    graph = nx.Graph()
    graph.add_nodes_from(range(len(points)))  # in this order
    for i, row in enumerate(near.tolist()):
        graph.add_weighted_edges_from((i, j, float(distance[i, j])) for j in row)
    return graph


# %%
# One call takes both graphs. The lower bound tells how good the answer may be called.

solution = brenier.gromov_wasserstein(path(plane), path(space), starts=6, generator=generator)
print(solution)
print(solution.certificate)
right = (order[torch.as_tensor(solution.plan.argmax())] == torch.arange(60)).double().mean()
print(f"{float(right):.0%} of the points are matched to their own; values of the starts: {solution.stats['values']}")

# %%
# Matched points in matching colours.

place = torch.as_tensor(solution.plan.argmax())
fig = plt.figure(figsize=(8, 3.5))
ax = fig.add_subplot(1, 2, 1)
ax.scatter(*plane.T, c=torch.arange(60), cmap="viridis")
ax.set_title("in the plane")
ax = fig.add_subplot(1, 2, 2, projection="3d")
ax.scatter(*space[place].T, c=torch.arange(60), cmap="viridis")
ax.set_title("in space, coloured by the plan")
plt.show()
