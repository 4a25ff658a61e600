"""
Maps that do not cross
======================

Two clouds, and a network that sends one to the other. Fitting alone finds *a* map; with the
:doc:`Monge gap </systems/monge-gap>` it finds the one that moves points least. For the Euclidean distance, the paths
of such a map do not cross.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_moons

from brenier.maps.neural import MongeGapEstimator

rng = np.random.default_rng(0)
moon, _ = make_moons((600, 0), noise=0.05, random_state=0)
ring = rng.normal(size=(600, 2))
ring = ring / np.linalg.norm(ring, axis=1, keepdims=True) * 0.6 + 0.04 * rng.normal(size=(600, 2)) + [0.5, -1.6]

# %%
# The same network, steps and batches; only the weight of the gap differs.

fits = {}
for lam in (0.0, 2.0):
    estimator = MongeGapEstimator(
        cost="euclidean", lam=lam, hidden=(32, 32), residual=False, max_iter=200, batch_size=128, lr=4e-3
    )
    fits[lam] = estimator.fit(moon, ring)
    quality = estimator.evaluate(moon, ring)
    print(f"lam = {lam:g}:", {name: round(value, 4) for name, value in quality.items()})

# %%

fig, axes = plt.subplots(1, 2, figsize=(9, 4.5), sharex=True, sharey=True, layout="constrained")
for ax, (lam, estimator) in zip(axes, fits.items()):
    moved = estimator.transform(moon)
    for start, end in zip(moon[::5], moved[::5]):
        ax.plot(*zip(start, end), c="#a0aec0", lw=0.5)
    ax.scatter(*moon.T, s=5, c="#2b6cb0", label="source")
    ax.scatter(*ring.T, s=5, c="#dd6b20", label="target")
    ax.scatter(*moved.T, s=5, c="#2f855a", label="moved")
    ax.set(title="fit alone" if lam == 0 else "fit and Monge gap", aspect="equal")
axes[0].legend(frameon=False, loc="lower left")

# %%
# Both terms of the loss on the way. The gap that the training sees has an entropy, and so an offset; what `evaluate`
# printed above is exact.

fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
history = fits[2.0].history_
ax.plot(history["fit"], label="Sinkhorn divergence", lw=0.8)
ax.plot(history["gap"], label="Monge gap", lw=0.8)
ax.set(xlabel="iteration", ylim=(-0.1, 1))
ax.legend(frameon=False)
