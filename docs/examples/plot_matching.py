"""
Matching detections across frames
=================================

A detector sees moving cells in each frame of a film: some enter, some leave, some are missed. Which detection in one
frame is which in the next? `assign` matches them one to one at least cost, and a price leaves those unmatched whose
best partner is too far away.
"""

import matplotlib.pyplot as plt
import torch

import brenier

generator = torch.Generator().manual_seed(0)
frames, cells = 40, 30
start = torch.rand(cells, 2, generator=generator, dtype=torch.float64)
speed = 0.012 * torch.randn(cells, 2, generator=generator, dtype=torch.float64)
truth = start + torch.arange(frames).reshape(-1, 1, 1) * speed
truth = truth + 0.002 * torch.randn(truth.shape, generator=generator, dtype=torch.float64)

# %%
# A detection is missed one time in twenty, or when its cell is outside. Frames hold different numbers of detections
# then, so each frame is padded to the largest: pairs with padding cost infinity, which forbids them.

seen = (torch.rand(frames, cells, generator=generator) > 0.05) & ((truth > 0) & (truth < 1)).all(-1)
real = seen.sort(dim=1, descending=True, stable=True)
points = truth.gather(1, real.indices.unsqueeze(-1).expand(-1, -1, 2))
cost = torch.cdist(points[:-1], points[1:]).square()
cost = cost.masked_fill(~(real.values[:-1].unsqueeze(2) & real.values[1:].unsqueeze(1)), torch.inf)

# %%
# One call for all pairs of consecutive frames. The price is a squared distance: no cell jumps further than 0.05.

matching = brenier.assign(cost, price=0.05**2)
print(matching)
print("matched from frame to frame:", matching.matched.sum(1)[:10].tolist())

# %%
# The potentials prove that no other matching is cheaper; the gap is what the proof leaves open.

print("largest gap:", float(matching.gap.abs().max()))

# %%
# How many of the pairs are of one and the same cell?

partner = real.indices[1:].gather(1, matching.columns.clamp(min=0))
right = (partner == real.indices[:-1])[matching.matched]
print(f"{int(right.sum())} of {len(right)} pairs join two sights of the same cell")

# %%
# Pairs drawn one after the other are the tracks.

fig, ax = plt.subplots()
for k in range(frames - 1):
    rows = matching.matched[k].nonzero().squeeze(1)
    ends = torch.stack([points[k, rows], points[k + 1, matching.columns[k, rows]]])
    ax.plot(*ends.permute(2, 0, 1), color=plt.get_cmap("viridis")(k / frames), linewidth=1)
ax.set_title("Tracks, from dark to light")
ax.set_aspect("equal")
plt.show()
