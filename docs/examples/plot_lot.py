"""
A cohort of clouds as vectors
=============================

:doc:`LOT </systems/lot>` transports one reference onto every cloud of a cohort. Each cloud becomes one vector, on
which principal components, averages and linear classifiers work, and vectors decode to clouds again.

Here the clouds are handwritten digits: one point a pixel, weighted by its intensity.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import PCA

from brenier import data
from brenier.systems.cells.lot import LOTEmbedding, lot_barycenter

digits = data.digit_clouds()
chosen = [i for i in range(400) if digits.labels[i] in (0, 3, 7)]
clouds = [digits.points[i] for i in chosen]
weights = [digits.weights[i] for i in chosen]
labels = digits.labels[chosen]

# %%
# The reference starts as a Gaussian sample and is replaced once by the mean of all its images, a step towards the
# Wasserstein barycentre of the cohort.

embedding = LOTEmbedding(n_reference=60, reference="barycenter")
Z = embedding.fit_transform(clouds, weights=weights)
print(f"{len(clouds)} clouds of {min(map(len, clouds))} to {max(map(len, clouds))} points -> vectors {Z.shape}")

# %%
# Two principal components, and the average of each class, decoded. An average of vectors is (nearly) a Wasserstein
# barycentre of clouds: it moves strokes instead of fading them.

pca = PCA(2).fit(Z)
plane = pca.transform(Z)
fig, axes = plt.subplots(1, 4, figsize=(12, 3), width_ratios=[1.4, 1, 1, 1], layout="constrained")
for k in (0, 3, 7):
    axes[0].scatter(*plane[labels == k].T, s=10, label=str(k))
axes[0].set(title="Two principal components")
axes[0].legend(frameon=False)
for ax, k in zip(axes[1:], (0, 3, 7)):
    members = Z[labels == k]
    average = lot_barycenter(members, np.full(len(members), 1 / len(members)))
    ax.scatter(*embedding.inverse_transform(average[None])[0].T, s=14)
    ax.set(title=f"average {k}", aspect="equal", xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[])

# %%
# The first component is a movement of points. Walking along it decodes to a path of clouds.

reach = plane[:, 0].std()
fig, axes = plt.subplots(1, 5, figsize=(11, 2.4), layout="constrained")
for ax, t in zip(axes, (-2, -1, 0, 1, 2)):
    z = Z.mean(0) + t * reach * pca.components_[0]
    ax.scatter(*embedding.inverse_transform(z[None])[0].T, s=10, c="#2b6cb0")
    ax.set(title=f"{t:+d} s.d." if t else "mean", aspect="equal", xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[])
