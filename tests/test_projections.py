"""Simplex projections against brute force, their gradients, and what they refuse."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from brenier.errors import InvalidInput
from brenier.projections import project_descending, simplex_projection, topk_simplex_projection


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force(v: Tensor, k: int, z: float) -> Tensor:
    """The nearest point over all supports of at most k entries; interior faces need no inequality."""
    best, nearest = torch.inf, v
    for size in range(1, k + 1):
        for support in itertools.combinations(range(len(v)), size):
            s = list(support)
            p = torch.zeros_like(v)
            p[s] = v[s] - (v[s].sum() - z) / size
            distance = float((p - v).square().sum())
            if (p >= 0).all() and distance < best:
                best, nearest = distance, p
    return nearest


@pytest.mark.parametrize("k", [1, 2, 3, 5, 6, 9])
@pytest.mark.parametrize("z", [1.0, 0.1, 7.0])
def test_nearest_point(k: int, z: float) -> None:
    for seed in range(5):
        v = rand(6, seed=seed)
        torch.testing.assert_close(topk_simplex_projection(v, k, z), brute_force(v, min(k, 6), z))


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("k", [1, 3, 100])
def test_any_axis_any_masses(dim: int, k: int) -> None:
    V = rand(4, 5, 6)
    shape = list(V.shape)
    del shape[dim]
    z = rand(*shape, seed=1).abs()
    p = topk_simplex_projection(V, k, z, dim)
    assert p.shape == V.shape
    assert (p >= 0).all()
    assert int((p > 0).sum(dim).max()) <= k
    torch.testing.assert_close(p.sum(dim), z, rtol=0, atol=1e-14)
    torch.testing.assert_close(p.movedim(dim, 0), topk_simplex_projection(V.movedim(dim, 0), k, z, 0))
    if k == 100:
        torch.testing.assert_close(p, simplex_projection(V, z, dim), rtol=0, atol=0)


def test_zero_mass_gives_zeros() -> None:
    V = rand(3, 4)
    p = topk_simplex_projection(V, 2, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    assert (p[[0, 2]] == 0).all()
    assert not torch.isnan(p).any()
    assert project_descending(V.sort(descending=True).values, torch.zeros((), dtype=V.dtype)).threshold.equal(
        V.amax(-1)
    )


def test_far_from_the_origin_masses_stay_exact() -> None:
    p = topk_simplex_projection(1e8 + rand(50, 40), 7, 1e-3)
    torch.testing.assert_close(p.sum(-1), torch.full((50,), 1e-3, dtype=p.dtype), rtol=1e-9, atol=0)


def test_ties_keep_the_bound() -> None:
    p = topk_simplex_projection(torch.ones(3, 5), 2)
    assert ((p > 0).sum(-1) == 2).all()
    assert (p.sum(-1) == 1).all()


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_gradients(k: int) -> None:
    V, z = rand(2, 4, 3).requires_grad_(), rand(2, 3, seed=1).abs().requires_grad_()

    def f(V: Tensor, z: Tensor) -> Tensor:
        return topk_simplex_projection(V, k, z, dim=1)

    assert torch.autograd.gradcheck(f, (V, z))
    assert torch.autograd.gradgradcheck(f, (V, z))


def test_dtype_and_half_precision_stay() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert simplex_projection(rand(4).to(dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3), 0), "k: expected an integer >= 1, the non-zeros allowed in each vector, got 0."),
        ((torch.ones(3), 1.5), "k: expected an integer >= 1, the non-zeros allowed in each vector, got 1.5."),
        ((torch.ones(3), True), "k: expected an integer >= 1, the non-zeros allowed in each vector, got True."),
        ((torch.ones(3, dtype=torch.long), 1), "V: expected a tensor of real numbers, got torch.int64."),
        (([1.0], 1), "V: expected a tensor of real numbers, got list."),
        ((torch.tensor([1.0, torch.nan]), 1), "V: expected finite entries, got NaN or infinity."),
        ((torch.ones(2, 0), 1), r"V: expected at least one entry along dim, got shape (2, 0)."),
        ((torch.ones(3), 1, -1.0), "z: expected nonnegative finite masses, got a minimum of -1."),
        (
            (torch.ones(2, 3), 1, torch.ones(3)),
            "z: expected one mass, or masses that broadcast to (2,), got shape (3,).",
        ),
        ((torch.ones(3), 1, 1.0, 1), "dim: expected an axis of V, which has 1, got 1."),
    ],
)
def test_bad_input(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        topk_simplex_projection(*arguments)  # type: ignore[arg-type]
    assert str(caught.value) == message
