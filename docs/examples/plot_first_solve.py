"""
A first solve
=============

Two clouds, the cheapest way to move one onto the other, and a proof that it is the cheapest.
"""

import torch

import brenier

generator = torch.Generator().manual_seed(0)
x = torch.randn(80, 2, generator=generator, dtype=torch.float64)
angle = 2 * torch.pi * torch.rand(120, generator=generator, dtype=torch.float64)
y = torch.stack([4 + 2 * angle.cos(), 2 * angle.sin()], 1)

# %%
# The clouds have different sizes, so masses 1/80 are split over masses 1/120. Without ``epsilon`` the answer is
# exact.

solution = brenier.solve(x, y)
print(solution)

# %%
# The certificate holds a feasible plan above and feasible potentials below. The optimum lies between the two.

print(solution.certificate)

# %%
# The plan is an operator. ``plan.topk`` and ``plan.entries`` list its entries; ``plan @ v`` applies it; the n x m
# matrix appears only when ``plan.dense()`` is called.

rows, cols, mass = solution.plan.entries()
print(f"{len(mass)} entries out of {80 * 120}; an exact plan needs at most 80 + 120 - 1")
print("sums of rows:", (solution.plan @ torch.ones(120, dtype=torch.float64))[:3])

# %%
# The picture draws the strongest entries as lines.

ax = solution.plot()
ax.set_title("The optimal plan")

# %%
# With ``epsilon`` the plan is blurred and the solver is Sinkhorn's. The certificate still speaks of the
# *unregularised* optimum, so its gap shows what the blur costs.

blurred = brenier.solve(x, y, epsilon=brenier.Relative(0.02))
print(blurred)
print(blurred.certificate)
