"""
Transport in time
=================

The geodesic between two images, and the same where mass may grow and shrink.
"""

import matplotlib.pyplot as plt
import torch

from brenier.solvers import dynamic_transport, tangent_velocity

x = torch.arange(40, dtype=torch.float64)


def blob(u, v, s):
    """A Gaussian of mass one."""
    along = [torch.softmax(-(((x - c) / s) ** 2) / 2, 0) for c in (u, v)]
    return torch.outer(*along)


a = blob(10, 10, 2.5)
b = 0.5 * blob(12, 28, 2.5) + 0.5 * blob(30, 16, 2.5)
shown = (0, 2, 4, 6, 8)
rows = {"transport": None, "with growth, delta = 4": 4.0}
fig, axes = plt.subplots(2, len(shown), figsize=(9, 4), layout="constrained")
for line, (name, delta) in zip(axes, rows.items()):
    path = dynamic_transport(a, b, steps=8, delta=delta, tol=2e-3)
    for ax, k in zip(line, shown):
        ax.imshow(path.density[k].clamp(min=0) ** 0.5, cmap="magma")
        ax.set(xticks=[], yticks=[], title=f"t = {k / 8:g}")
    line[0].set_ylabel(f"{name}\nvalue {float(path.value):.0f}")

# %%
# The velocity of a density that is known to change: a blob that spreads.

rho = blob(20, 20, 6) + 1e-4
wider = blob(20, 20, 6.3) + 1e-4
rate = wider - rho
found = tangent_velocity(rho, rate - rate.mean())
fig, ax = plt.subplots(figsize=(4, 4), layout="constrained")
ax.imshow(rho, cmap="Greys")
each = slice(2, -2, 4)
down, right = found.velocity[:, each, each]
ax.quiver(x[each], x[each], right, down, angles="xy", scale_units="xy", scale=0.15, color="C3")
ax.set(xticks=[], yticks=[])
