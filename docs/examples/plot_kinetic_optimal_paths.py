"""
The cheapest schedule for a flow
================================

:doc:`KO paths </systems/kinetic-optimal-paths>` find the noise schedule that moves given data at the least kinetic
energy. Here along the exact velocity of a checkerboard, so that no network stands between the schedule and the samples.
"""

import matplotlib.pyplot as plt
import torch

from brenier.flows import CondOT, sample_ode
from brenier.systems.generative.kinetic_optimal_paths import (
    DataSeparation,
    empirical_velocity,
    kinetic_energy,
    kinetic_optimal_path,
)

generator = torch.Generator().manual_seed(0)
column = torch.randint(0, 4, (2000,), generator=generator)
row = 2 * torch.randint(0, 2, (2000,), generator=generator) + column % 2
data = torch.stack([column, row], 1) + torch.rand(2000, 2, generator=generator)

# %%
# Gamma says what a turn from noise to data costs at each noise level: nothing where the data look Gaussian, one where
# they are told apart. The schedule hurries through the cheap part.

separation = DataSeparation.estimate(data, n_theta=33, n_queries=500, generator=generator)
path = kinetic_optimal_path(separation)
print(f"energy {kinetic_energy(path, separation):.3f}, straight {kinetic_energy(CondOT(), separation):.3f}")

t = torch.linspace(0, 1, 200)
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.plot(separation.theta, separation.lam, label="lambda")
left.plot(separation.theta, separation.gamma, label="gamma")
left.set(xlabel="angle, arctan(a / m)", title="Separation of a checkerboard")
left.legend(frameon=False)
right.plot(t, path.a(t), label="a")
right.plot(t, path.m(t), label="m")
right.plot(t, t, "k:", label="straight")
right.plot(t, 1 - t, "k:")
right.set(xlabel="t", title="Shares of data and noise")
right.legend(frameon=False)

# %%
# Few Euler steps, the same noise for both.

x1 = path.scaling.normalize(data)
x0 = torch.randn(1500, 2, generator=generator)
fig, axes = plt.subplots(2, 4, figsize=(10, 5.2), layout="constrained")
for line, (name, schedule) in zip(axes, {"straight": CondOT(), "KO": path}.items()):

    def velocity(z, t, schedule=schedule):
        """The exact field of the data."""
        return empirical_velocity(z, t, x1, schedule)

    for ax, steps in zip(line, (2, 4, 6, 10)):
        times = torch.linspace(*schedule.span, steps + 1)
        samples = path.scaling.denormalize(sample_ode(velocity, x0, times=times))
        ax.scatter(*samples.T, s=2)
        ax.set(title=f"{name}, {steps} steps", xlim=(-0.5, 4.5), ylim=(-0.5, 4.5), xticks=[], yticks=[], aspect="equal")
