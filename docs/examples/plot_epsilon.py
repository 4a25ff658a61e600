"""
What epsilon does
=================

The entropic problem is

.. math:: \\min_P \\; \\langle P, C \\rangle + \\varepsilon \\, \\mathrm{KL}(P \\,|\\, a \\otimes b).

A large epsilon blurs the plan and is fast; a small one is sharp and slow. The certificate tells how much is lost.
"""

import matplotlib.pyplot as plt
import torch

import brenier

generator = torch.Generator().manual_seed(0)
x = torch.randn(150, 2, generator=generator, dtype=torch.float64)
y = 0.6 * torch.randn(150, 2, generator=generator, dtype=torch.float64) + torch.tensor([2.0, 1.0], dtype=torch.float64)
exact = brenier.solve(x, y)

# %%
# ``Relative(r)`` is r times the mean cost under a ⊗ b, so the same numbers suit any data.

fractions = [1.0, 0.3, 0.1, 0.03, 0.01, 0.005]
rows = []
for r in fractions:
    s = brenier.solve(x, y, epsilon=brenier.Relative(r), max_iter=20_000)
    # how far the mass of one source is spread, in units of distance
    spread = (s.plan @ y.square().sum(1, keepdim=True) * 150).squeeze(1) - s.map().square().sum(1)
    blur = float(spread.clamp(min=0).mean().sqrt())
    c = s.certificate
    rows.append((float(s.value), float(s.linear_value), float(c.primal), float(c.dual), blur, float(c.relative_gap)))
    print(f"{r:6.3f} x mean cost: {s.stats['n_iter']:5d} iterations, blur {blur:.3f}, certified gap {rows[-1][5]:.2%}")

value, linear, primal, dual, blur, gap = map(list, zip(*rows))

# %%
# The transport cost ``linear_value`` falls to the optimum as epsilon falls. ``value`` holds the entropy term too, and
# lies above it. The two bounds of the certificate close in on the optimum from both sides.

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
left.axhline(float(exact.value), color="k", lw=1, ls="--", label="optimum (exact)")
left.fill_between(fractions, dual, primal, alpha=0.2, label="certified interval")
left.plot(fractions, linear, "o-", label="linear_value")
left.plot(fractions, value, "s-", label="value")
left.set(xscale="log", xlabel="epsilon / mean cost", title="Values")
left.legend(frameon=False)
right.loglog(fractions, gap, "o-", label="certified relative gap")
right.loglog(fractions, blur, "s-", label="blur (distance)")
right.set(xlabel="epsilon / mean cost", title="Loss and blur")
right.legend(frameon=False)

# %%
# If the blur is what you want (smooth maps, smooth gradients), choose epsilon by the blur. If it is only a means to
# speed, choose it by the gap; for a few thousand points, the exact solver is the better choice.
