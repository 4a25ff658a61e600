"""
Gaussians
=========

The shortest path between two Gaussians, the same with soft marginals, and mixtures.
"""

import matplotlib.pyplot as plt
import torch

from brenier.solvers import (
    Gaussian,
    GaussianMixture,
    gaussian_geodesic,
    gaussian_transport,
    mixture_geodesic,
    mixture_transport,
)

D = torch.float64
circle = torch.linspace(0, 2 * torch.pi, 100, dtype=D)
circle = torch.stack([circle.cos(), circle.sin()])


def draw(ax, gaussian, **style):
    """The ellipse of one standard deviation."""
    values, vectors = torch.linalg.eigh(gaussian.covariance)
    ax.plot(*(gaussian.mean[:, None] + (vectors * values.clamp(min=0).sqrt()) @ circle), **style)


p = Gaussian(torch.tensor([0.0, 0.0], dtype=D), torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=D))
q = Gaussian(torch.tensor([6.0, 2.0], dtype=D), torch.tensor([[0.2, 0.0], [0.0, 3.0]], dtype=D))

fig, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
for t in torch.linspace(0, 1, 6).tolist():
    draw(ax, gaussian_geodesic(p, q, t), color=plt.get_cmap("viridis")(t))
ax.set(aspect="equal", title="the shortest path")

# %%
# With soft marginals, the price of moving far is that less is moved, and from nearer.

fig, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
draw(ax, p, color="0.6")
draw(ax, q, color="0.6")
for k, rho in enumerate((100.0, 30.0, 10.0)):
    plan = gaussian_transport(p, q, epsilon=0.1, rho=rho)
    draw(ax, plan.source, color=f"C{k}", label=f"rho = {rho:g}, mass {float(plan.mass):.2f}")
    draw(ax, plan.target, color=f"C{k}")
ax.legend(frameon=False)
ax.set(aspect="equal", title="what is moved")

# %%
# Mixtures: components are coupled by an exact plan, and travel along geodesics.

eye = torch.eye(2, dtype=D)
left = GaussianMixture(
    [0.6, 0.4], Gaussian(torch.tensor([[0.0, 0.0], [0.0, 4.0]], dtype=D), torch.stack([eye, eye / 4]))
)
right = GaussianMixture(
    [0.3, 0.7], Gaussian(torch.tensor([[9.0, 0.0], [9.0, 4.0]], dtype=D), torch.stack([eye / 4, eye]))
)
fig, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
for t in (0.0, 0.25, 0.5, 0.75, 1.0):
    middle = mixture_geodesic(left, right, t)
    for k, share in enumerate(middle.a.tolist()):
        draw(ax, middle.gaussians.item(k), color=plt.get_cmap("viridis")(t), lw=5 * share)
ax.set(aspect="equal", title=f"MW2 squared {float(mixture_transport(left, right).value):.2f}")
