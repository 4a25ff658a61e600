"""
Learn a permutation
===================

A network sees n numbers and has to put them in order. What it answers is a matrix of scores; `DoublyStochastic` makes a
soft permutation P of it,

.. math:: P = \\operatorname{diag}(u)\\, e^{S/\\varepsilon} \\operatorname{diag}(v), \\qquad P \\mathbf 1 = \\mathbf 1,
    \\quad P^\\top \\mathbf 1 = \\mathbf 1,

and the loss compares P\u1d40x with the sorted numbers. At the end the scores are rounded to a permutation. This is the
experiment of Mena et al. (2018) in small: it shows that a permutation can be learned through the layer. Nobody should
sort this way.
"""

import matplotlib.pyplot as plt
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from brenier.losses import DoublyStochastic

n = 8
torch.manual_seed(0)

# %%
# Each number gets its row of scores from the same small network, so the network has to learn where among n uniform
# numbers a value belongs. Gumbel noise on the scores keeps it from settling too early.

network = nn.Sequential(nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, n))
layer = DoublyStochastic(epsilon=0.3, n_iter=30)
optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
losses = []
for _ in range(600):
    x = torch.rand(256, n)
    scores = network(x.unsqueeze(-1))
    gumbel = -torch.empty_like(scores).exponential_().log()
    P = layer(scores + 0.1 * gumbel)
    loss = ((P.mT @ x.unsqueeze(-1)).squeeze(-1) - x.sort().values).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(float(loss.detach()))
print(f"loss {losses[0]:.4f} -> {losses[-1]:.6f}")

# %%
# New numbers, without noise. The layer says how doubly stochastic P is, and here it has to be asked: training made
# the scores sharp against epsilon, and 30 iterations leave rows that are well off 1. Rounding repairs that.

with torch.no_grad():
    x = torch.rand(2000, n)
    solved = layer.scale(network(x.unsqueeze(-1)))
print(f"marginal error: median {float(solved.error.median()):.1e}, worst {float(solved.error.max()):.1e}")
place = torch.stack([torch.as_tensor(linear_sum_assignment(-p.numpy())[1]) for p in solved.plan])
truth = x.argsort(-1).argsort(-1)
right = place == truth
print(f"numbers in their place: {float(right.float().mean()):.1%}")
print(f"lists sorted: {float(right.all(-1).float().mean()):.1%} of {len(x)}")

# %%
# One list, as it came and with its rows in order.

fig, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
axes[0].semilogy(losses)
axes[0].set(title="loss", xlabel="step")
axes[1].imshow(solved.plan[0], vmin=0, vmax=1, cmap="Blues")
axes[1].set(title="P of one list", xlabel="place", ylabel="number")
order = x[0].argsort()
axes[2].imshow(solved.plan[0][order], vmin=0, vmax=1, cmap="Blues")
axes[2].set(title="its rows in order", xlabel="place", ylabel="rank")
