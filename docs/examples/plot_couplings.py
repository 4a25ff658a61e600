"""
Pairs make flows straight
=========================

A flow learned from random pairs bends, since its paths must not cross where the pairs do. Pairs of an optimal plan do
not cross. Three ways to train the same network on the same noise and data: random pairs, :doc:`weights
</systems/w-cfm>`, and exact plans of pools that a thread couples in the background; see :doc:`/flows`.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import brenier
from brenier.flows import CouplingLoader, ExactCoupling, FlowMatching, GibbsWeights, path_energy, sample_ode


def gaussians(n, generator):
    """Eight of them on a circle."""
    angle = torch.randint(8, (n,), generator=generator) * (torch.pi / 4)
    return 5 * torch.stack([angle.cos(), angle.sin()], 1) + 0.3 * torch.randn(n, 2, generator=generator)


def moons(n, generator):
    """Two of them, interlocked."""
    angle = torch.pi * torch.rand(n, 1, generator=generator)
    upper = torch.rand(n, 1, generator=generator) < 0.5
    one = torch.cat([angle.cos(), angle.sin()], 1)
    other = torch.cat([1 - angle.cos(), 0.5 - angle.sin()], 1)
    return 3 * (torch.where(upper, one, other) + 0.1 * torch.randn(n, 2, generator=generator)) - 1


# %%
# One loop for all. The loader yields pairs, and their weights where there are any.


def trained(coupling, pool):
    """A flow from the Gaussians to the moons."""
    generator = torch.Generator().manual_seed(0)
    data = moons(256 * 400, generator)
    torch.manual_seed(0)
    layers = [nn.Linear(3, 64), nn.SELU(), nn.Linear(64, 64), nn.SELU(), nn.Linear(64, 64), nn.SELU(), nn.Linear(64, 2)]
    network, loss = nn.Sequential(*layers), FlowMatching(generator=generator)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    loader = CouplingLoader(data.split(256), coupling, source=gaussians, pool=pool, generator=generator)

    def model(z, t):
        return network(torch.cat([z, t[:, None]], 1))

    for x0, x1, extra in loader:
        value, _ = loss(model, x0, x1, log_weight=extra.log_weight)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return model


flows = {
    "random pairs": trained(brenier.flows.IndependentCoupling(), 1),
    "weights, epsilon 2": trained(GibbsWeights(2.0), 1),
    "exact plans of 2,048": trained(ExactCoupling(), 8),
}

# %%
# Energies against the squared distance of the laws, and what four Euler steps make. No flow that ends at the data costs
# less than that distance; one that seems to has not quite arrived.

generator = torch.Generator().manual_seed(1)
x0, fresh = gaussians(1000, generator), moons(1000, generator)
print(f"W2 squared {float(brenier.solve(x0, fresh).value):.2f}")
fig, axes = plt.subplots(2, 3, figsize=(10, 6.6), sharex=True, sharey=True, layout="constrained")
for (name, model), (above, below) in zip(flows.items(), axes.T):
    with torch.no_grad():
        way = sample_ode(model, x0, steps=50, return_trajectory=True)
        quick = sample_ode(model, x0, steps=4)
        energy = float(path_energy(model, x0, steps=50).mean())
    print(f"{name}: energy {energy:.2f}, cost to the data after 4 steps {float(brenier.solve(quick, fresh).value):.3f}")
    above.plot(way[:, :200, 0], way[:, :200, 1], color="0.6", linewidth=0.4)
    above.scatter(*way[0, :200].T, s=4, c="#2b6cb0")
    above.scatter(*way[-1, :200].T, s=4, c="#dd6b20")
    above.set(title=name, aspect="equal")
    below.scatter(*quick.T, s=3, c="#dd6b20")
    below.set(title="after 4 Euler steps", aspect="equal")
