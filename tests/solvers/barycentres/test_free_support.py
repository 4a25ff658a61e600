"""Barycentres whose points move: translates, Diracs, other costs, monotone descent, POT."""

from __future__ import annotations

from typing import Any

import numpy as np
import ot
import pytest
import torch

import brenier
from brenier import InvalidInput
from brenier.errors import NotConvergedWarning
from problems import assert_close, cloud, weights

D = torch.float64


def test_translates() -> None:
    x = cloud(40, 3, 0)
    shifts = [torch.tensor(s, dtype=D) for s in ([0.0, 0, 0], [3, 0, 0], [0, 3, 3])]
    found = brenier.barycentre([x + s for s in shifts], [0.5, 0.25, 0.25], start=x)
    middle = 0.25 * shifts[1] + 0.25 * shifts[2]
    assert_close(found.points, x + middle, 1e-10)
    w = [0.5, 0.25, 0.25]
    assert float(found.value) == pytest.approx(float(sum(v * (s - middle).square().sum() for v, s in zip(w, shifts))))


def test_one_weight_gives_back_that_measure() -> None:
    x, y = cloud(30, 2, 0), cloud(30, 2, 1)
    found = brenier.barycentre([x, y], [0.0, 1.0], start=x)
    assert float(brenier.solve(found.points, y).value) < 1e-12


def cubic(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x - y).abs().pow(3).sum(-1)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", cubic])
def test_diracs(cost: Any) -> None:
    """The mean, the geometric median, and a mean in between."""
    points = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 1.0]], dtype=D)
    found = brenier.barycentre(list(points.unsqueeze(1)), n=1, cost=cost, generator=torch.Generator().manual_seed(0))
    total = lambda z: float(brenier.costs.as_cost(cost)(z, points).mean())  # noqa: E731
    best = found.points
    assert total(best) == pytest.approx(float(found.value), rel=1e-9)
    for shift in ((1e-2, 0), (-1e-2, 0), (0, 1e-2), (0, -1e-2)):
        assert total(best + torch.tensor(shift, dtype=D)) >= total(best) - 1e-9
    if cost == "sqeuclidean":
        assert_close(best[0], torch.tensor([1.0, 1 / 3], dtype=D), 1e-9)


@pytest.mark.parametrize("options", [{}, {"epsilon": 0.2}, {"cost": "euclidean"}, {"cost": "euclidean", "epsilon": 0.2},
                                     {"epsilon": 0.2, "rho": 2.0}], ids=str)  # fmt: skip
@pytest.mark.parametrize("sizes", [(10, 10, 10), (8, 10, 12)])
def test_the_objective_never_rises(options: dict[str, Any], sizes: tuple[int, ...]) -> None:
    clouds = [cloud(n, 2, k) + k for k, n in enumerate(sizes)]
    found = brenier.barycentre(clouds, n=10, tol=1e-3, generator=torch.Generator().manual_seed(0), **options)
    values = np.array(found.stats["values"])
    assert bool((np.diff(values) <= 0).all())
    assert values[-1] < values[0]
    assert found.status.ok
    assert found.stats["residual"] <= 1e-3
    # the value is that of transports to the points that were found
    again = [
        brenier.solve(
            y, found.points, epsilon=options.get("epsilon"), cost=options.get("cost", "sqeuclidean"),
            marginals=brenier.KL(2.0) if "rho" in options else brenier.Exact(),
        ).value
        for y in clouds
    ]  # fmt: skip
    assert float(found.value) == pytest.approx(float(sum(again)) / 3, rel=1e-5)


def test_as_pot() -> None:
    clouds, a = [cloud(n, 2, k) + k for k, n in enumerate((15, 20, 25))], [weights(n, n) for n in (15, 20, 25)]
    a = [t / t.sum() for t in a]
    start, w = cloud(10, 2, 9), torch.tensor([0.2, 0.3, 0.5], dtype=D)
    theirs = ot.lp.free_support_barycenter(clouds, a, start, weights=w, numItermax=500, stopThr=1e-14)
    ours = brenier.barycentre(clouds, w, a=a, start=start, tol=1e-9)
    assert_close(ours.points, theirs, 1e-6)


def test_masses_kinds_and_starts(dtype: torch.dtype) -> None:
    clouds = [cloud(12, 2, k).to(dtype) for k in range(3)]
    found = brenier.barycentre(torch.stack(clouds), n=5, b=[0.1, 0.2, 0.3, 0.2, 0.2], max_iter=300, tol=1e-4)
    assert found.points.shape == (5, 2)
    assert found.points.dtype == dtype
    assert_close(found.b, torch.tensor([0.1, 0.2, 0.3, 0.2, 0.2]).to(dtype), 1e-6)
    array = brenier.barycentre([c.numpy() for c in clouds], start=clouds[0].numpy(), tol=1e-4)
    assert isinstance(array.points, np.ndarray)
    one, two = (brenier.barycentre(clouds, generator=torch.Generator().manual_seed(3), tol=1e-3) for _ in range(2))
    assert torch.equal(one.points, two.points)


def test_what_did_not_end() -> None:
    clouds = [cloud(20, 2, k) for k in range(3)]
    with pytest.warns(NotConvergedWarning):
        brenier.barycentre(clouds, max_iter=1, tol=1e-12)


def test_refusals() -> None:
    x = cloud(5, 2, 0)
    for arguments, options in (
        (([x, cloud(5, 3, 0)],), {}),
        (([x, x.float()],), {}),
        (([x, x],), {"a": [torch.ones(5)]}),
        (([x, x],), {"start": torch.ones(3, 3)}),
        (([x, x],), {"n": 0}),
        (([x, x],), {"rho": 1.0}),
        (([x, x],), {"epsilon": -1.0}),
        (([x, x * torch.nan],), {}),
    ):
        with pytest.raises(InvalidInput):
            brenier.barycentre(*arguments, **options)
