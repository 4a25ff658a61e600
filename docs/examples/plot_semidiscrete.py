"""
Power cells
===========

From a density to atoms: each atom gets the cell of points that are sent to it. The cells are polygons, known exactly.
"""

import matplotlib.pyplot as plt
import torch

from brenier.solvers import Gaussian, PixelDensity, UniformBox, semidiscrete_transport

D = torch.float64
generator = torch.Generator().manual_seed(0)

# %%
# Crowded atoms, a uniform source: all cells have the same area, and need not hold their atoms.

y = 0.5 + 0.12 * torch.randn(150, 2, generator=generator, dtype=D)
square = UniformBox([0.0, 0.0], [1.0, 1.0])
found = semidiscrete_transport(square, y)
ax = found.plot()
ax.set_title(f"{len(y)} cells of one area, after {found.stats['n_iter']} Newton steps")
print(found.certificate)

# %%
# Newton's steps are damped at first, and full ones at the end, where each squares the error.

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.plot(found.stats["dual_values"], marker="o")
left.set(title="the dual value never falls", xlabel="step")
right.step(range(len(found.stats["step_sizes"])), found.stats["step_sizes"], where="mid")
right.set(title="step sizes", xlabel="step", ylim=(0, 1.1))

# %%
# A density of pixels: dark where there is more mass, and smaller cells there.

u = torch.linspace(-1, 1, 60, dtype=D)
image = torch.exp(-8 * (torch.hypot(u[:, None], u) - 0.6) ** 2)
ring = PixelDensity(image)
atoms = torch.rand(200, 2, generator=generator, dtype=D)
ax = semidiscrete_transport(ring, atoms).plot()
ax.imshow(image.mT, extent=(0, 1, 0, 1), origin="lower", cmap="Greys", alpha=0.4)

# %%
# A source that can only be sampled, by stochastic gradients: a Gaussian, onto eight modes. No mass lands between the
# modes, as the map jumps from cell to cell.

angle = torch.arange(8, dtype=D) * torch.pi / 4
modes = 4 * torch.stack([angle.cos(), angle.sin()], 1)
white = Gaussian(torch.zeros(2, dtype=D), torch.eye(2, dtype=D))
found = semidiscrete_transport(white, modes, generator=generator)
print(found.certificate)
ax = found.plot()
x = white.sample(400, generator)
ax.scatter(x[:, 0], x[:, 1], s=4, c="black", alpha=0.5)
ax.set_title("where each point of the Gaussian goes")
