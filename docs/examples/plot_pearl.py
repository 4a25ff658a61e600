"""
Preferences for a task that nobody labelled
===========================================

:doc:`PEARL </systems/pearl>` carries comparisons of trajectories from one task to another. Here a point in the plane
fetches another one; the second task is the same under a rotation, with more coordinates. Experts are disturbed to four
degrees, and people have compared the trajectories of the first task only.
"""

import matplotlib.pyplot as plt
import numpy as np

from brenier.data import point_mass_episodes
from brenier.systems.control.pearl import (
    CrossTaskPreferenceAlignment,
    preference_accuracy,
    preferences,
    trajectory_distance,
)

source = point_mass_episodes(24, world=0)
target = point_mass_episodes(32, world=1, obs_dim=8, seed=1)
fig, axes = plt.subplots(1, 4, figsize=(11, 3), sharex=True, sharey=True, layout="constrained")
for ax, level in zip(axes, np.unique(source.levels)):
    for episode in source.observations[source.levels == level]:
        ax.plot(episode[:, 0], episode[:, 1], linewidth=1)
    ax.set(title=f"disturbed to {level:.0%}", aspect="equal")

# %%
# The two tasks share no axes, but distances among their trajectories have the same shape: experts are alike, the lost
# ones differ in many ways. In the order of their returns:

order_x, order_y = np.argsort(-source.returns), np.argsort(-target.returns)
C = trajectory_distance(source.observations[order_x], stride=4)
D = trajectory_distance(target.observations[order_y], stride=4)

aligned = CrossTaskPreferenceAlignment(stride=4).fit(source.observations[order_x], target.observations[order_y])
carried = aligned.transfer(preferences(source.returns[order_x]))

fig, axes = plt.subplots(1, 4, figsize=(12, 3), layout="constrained")
for ax, matrix, title in zip(
    axes,
    (C, D, aligned.plan_, carried),
    ("distances, source", "distances, target", "plan", "carried labels"),
):
    ax.imshow(matrix, cmap="viridis")
    ax.set(title=title, xticks=[], yticks=[])

# %%
# No label of the target was seen. How many of its pairs are right, and are the sure ones right more often?

accuracy = preference_accuracy(carried, target.returns[order_y])
pairs = np.stack(np.triu_indices(len(carried), 1), 1)
sure = aligned.confidence()[pairs[:, 0], pairs[:, 1]]
half = np.argsort(-sure)[: len(pairs) // 2]
print(f"right: {accuracy:.0%} of all pairs")
print(f"right: {preference_accuracy(carried, target.returns[order_y], pairs[half]):.0%} of the surer half")
