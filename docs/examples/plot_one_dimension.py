"""
Transport on the line
=====================

In one dimension, and for a cost that is convex in x - y, sorting is optimal: the point at quantile t goes to the
point at quantile t. `solve` sees this and sorts, in O((n + m) log(n + m)).
"""

import matplotlib.pyplot as plt
import torch

import brenier

generator = torch.Generator().manual_seed(1)
x = torch.randn(400, generator=generator, dtype=torch.float64)
y = torch.rand(300, generator=generator, dtype=torch.float64).square() * 6 - 1

solution = brenier.solve(x, y)
print(solution.stats["solver"], "-", solution.stats["reason"])
print(solution.certificate)

# %%
# The barycentric map is increasing, and follows the quantiles of both clouds.

order = x.argsort()
moved = solution.map()[:, 0]
assert bool((moved[order].diff() >= -1e-12).all())

# %%
# The potentials f and g satisfy f(x) + g(y) <= c(x, y), with equality where mass moves. For c = (x - y)^2 the slope
# of f is 2 (x - T(x)): it is negative where points move to the right.

f, g = solution.potentials
sum_of_duals = f.mean() + g.mean()
print(f"dual value {float(sum_of_duals):.12f}, value {float(solution.value):.12f}")

fig, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
left.hist(x, bins=30, density=True, alpha=0.6, label="source")
left.hist(y, bins=30, density=True, alpha=0.6, label="target")
left.set(title="Two samples", xlabel="x")
left.legend(frameon=False)
t = torch.linspace(0.005, 0.995, 200, dtype=torch.float64)
middle.plot(x[order], moved[order], lw=2, label="map")
middle.plot(torch.quantile(x, t), torch.quantile(y, t), "k--", lw=1, label="quantiles")
middle.set(title="The monotone map", xlabel="x", ylabel="T(x)")
middle.legend(frameon=False)
right.plot(x[order], f[order], label="f")
right.plot(y.sort().values, g[y.argsort()], label="g")
right.set(title="Potentials", xlabel="position")
right.legend(frameon=False)
