"""The approximate inverse of the Schur complement of the Hessian, against the dense one."""

from __future__ import annotations

import torch

import brenier
from brenier.schur import largest_entries, support_inverse
from problems import assert_close, cloud, weights


def parts(
    fraction: float, n: int = 40
) -> tuple[brenier.Geometry, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    x, y, a = cloud(n, 2, 1), cloud(n + 5, 2, 2), weights(n, 3, zeros=1)
    s = brenier.solve(x, y, a=a, epsilon=brenier.Relative(fraction), tol=1e-10)
    assert s.problem.epsilon is not None
    return s.problem.geometry, s.plan.F.clamp(min=-1e20), s.plan.G, s.problem.epsilon, s.plan.dense()


def test_inverse_of_the_whole() -> None:
    geometry, F, G, epsilon, P = parts(0.02)
    r, c = P.sum(1), P.sum(0)
    inverse = support_inverse(geometry, F, G, epsilon, r, c)
    assert inverse is not None
    z = torch.where(r > 0, cloud(40, 1, 5).squeeze(-1), 0)
    z = z - torch.where(r > 0, (r * z).sum() / r.sum(), 0)
    out = inverse.solve(r * z - P @ (P.T @ z / c))
    out = out - torch.where(r > 0, (r * out).sum() / r.sum(), 0)
    assert_close(out, z, 1e-6)


def test_parts_that_exchange_nothing() -> None:
    """Two pairs of clouds far apart: two parts, each with its own shift."""
    x = torch.cat([cloud(10, 2, 1), cloud(10, 2, 2) + 1000])
    s = brenier.solve(x, x + 0.1, epsilon=0.5, tol=1e-10)
    P = s.plan.dense()
    inverse = support_inverse(s.problem.geometry, s.plan.F, s.plan.G, s.problem.epsilon, P.sum(1), P.sum(0))
    assert inverse is not None
    assert inverse.parts is not None
    assert len(inverse.parts[:10].unique()) == len(inverse.parts[10:].unique()) == 1
    assert inverse.parts[0] != inverse.parts[10]


def test_largest_entries() -> None:
    geometry, F, G, epsilon, P = parts(0.2)
    some = torch.from_numpy(largest_entries(geometry, F, G, epsilon, 50).toarray())
    least = P.flatten().topk(50).values.min()
    assert_close(some, torch.where(least <= P, P, 0), 1e-12)
