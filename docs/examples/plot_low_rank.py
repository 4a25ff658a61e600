"""
From clusters to a bijection
============================

A plan of low rank moves mass from cluster to cluster; its cost falls with the rank, and its gap says how much is left.
At the other end every point gets a partner of its own.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

import brenier
from brenier.solvers import LowRank

generator = torch.Generator().manual_seed(0)
n = 1500
angle = 2 * torch.pi * torch.rand(n, generator=generator, dtype=torch.float64)
radius = 1 + 0.1 * torch.randn(n, generator=generator, dtype=torch.float64)
x = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
y = 1.5 * torch.rand(n, 2, generator=generator, dtype=torch.float64) + torch.tensor([1.8, -0.75])

# %%
# Rank 8: each side in eight clusters, drawn as the means of what moves together.

solution = brenier.solve(x, y, solver=LowRank(rank=8))
plan = solution.plan
print(plan.rank, "columns,", f"upper bound {float(solution.value):.4f}")
starts, ends = plan.Q.T @ x / plan.g[:, None], plan.R.T @ y / plan.g[:, None]

fig, ax = plt.subplots()
ax.scatter(*x.T, c=plan.Q.argmax(1), cmap="tab10", s=4)
ax.scatter(*y.T, c=plan.R.argmax(1), cmap="tab10", s=4)
ax.quiver(*starts.T, *(ends - starts).T, angles="xy", scale_units="xy", scale=1, width=0.004)
ax.set_aspect("equal")
ax.set_title("A plan of rank 8")

# %%
# What a rank costs. The lower bound is proved over all plans, from the potentials of a sample.

ranks = [1, 2, 4, 8, 16, 32]
values = [float(brenier.solve(x, y, solver=LowRank(rank=r)).value) for r in ranks]
exact = brenier.solve(x, y)

fig, ax = plt.subplots()
ax.loglog(ranks, np.array(values) / float(exact.value) - 1, marker="o")
ax.set_xlabel("rank")
ax.set_ylabel("cost over the optimum, minus one")
print("lower bound over optimum:", float(solution.certificate.dual) / float(exact.value))

# %%
# Each point with a partner of its own, by matched halves and sweeps. The callback sees the cost of each sweep.

costs = []
matched = brenier.solve(x, y, solver="hierarchical", callback=lambda _, state: costs.append(state.value))
print(f"over the optimum by {float(matched.value) / float(exact.value) - 1:.1e}; {matched.certificate}")

fig, ax = plt.subplots()
ax.semilogy(np.array(costs) / float(exact.value) - 1, marker="o")
ax.set_xlabel("sweep")
ax.set_ylabel("cost over the optimum, minus one")
plt.show()
