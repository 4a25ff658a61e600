"""What training asks of every loss: torch.compile, float32, other devices, and several processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from brenier import KL
from brenier.losses import (
    SamplesLoss,
    SinkhornDivergence,
    energy_distance,
    exact_wasserstein,
    gaussian_wasserstein,
    gromov_loss,
    labelled_wasserstein,
    mmd,
    order_preserving_wasserstein,
    partial_wasserstein,
)
from problems import cloud

LABELS = torch.arange(6) % 2
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sinkhorn": SinkhornDivergence(epsilon=0.5),
    "sinkhorn, KL": SinkhornDivergence(epsilon=0.5, marginals=KL(1.0)),
    "samples": SamplesLoss(blur=0.5),
    "exact": exact_wasserstein,
    "partial": lambda x, y: partial_wasserstein(x, y, mass=0.5),
    "gaussian": gaussian_wasserstein,
    "gromov": gromov_loss,
    "mmd": mmd,
    "energy": energy_distance,
    "sequence": lambda x, y: order_preserving_wasserstein(x, y, epsilon=0.5, order=1.0),
    "labels": lambda x, y: torch.stack([labelled_wasserstein(u, LABELS, v, LABELS) for u, v in zip(x, y)]),
}


# torch's own, where it goes on after a break with a tensor that is no leaf
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("name", LOSSES)
def test_compiled_losses_are_the_losses(name: str) -> None:
    model, loss = nn.Linear(3, 2).double(), LOSSES[name]
    x, y = cloud(6, 3, 1, 2), cloud(6, 2, 2, 2)

    def whole(x: Tensor) -> Tensor:
        return 2 * loss(model(x).tanh(), y).sum()

    torch.compiler.reset()
    found = [torch.autograd.grad(f(x), list(model.parameters()))
             for f in (torch.compile(whole, backend="aot_eager"), whole)]  # fmt: skip
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_results_keep_the_dtype(name: str) -> None:
    x, y = (cloud(6, 2, k, 2).float().requires_grad_() for k in (1, 2))
    value = LOSSES[name](x, y)
    assert value.dtype == torch.float32
    assert value.shape == (2,)
    gradient = torch.autograd.grad(value.sum(), x)[0]
    assert gradient.dtype == torch.float32
    wide = [t.detach().double().requires_grad_() for t in (x, y)]
    expected = torch.autograd.grad(LOSSES[name](*wide).sum(), wide[0])[0]
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", LOSSES)
def test_losses_on_a_device(name: str) -> None:
    x, y = cloud(6, 2, 1, 2), cloud(6, 2, 2, 2)
    near, far = x.clone().requires_grad_(), x.cuda().requires_grad_()
    values = LOSSES[name](near, y), LOSSES[name](far, y.cuda())
    torch.testing.assert_close(values[1].cpu(), values[0], rtol=1e-6, atol=1e-9)
    gradients = [torch.autograd.grad(v.sum(), t)[0].cpu() for v, t in zip(values, (near, far))]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def _gradients(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    SinkhornDivergence(epsilon=0.3, tol=1e-10)(model(x), y).mean().backward()
    return [p.grad.clone() for p in model.parameters()]  # type: ignore[union-attr]


def _worker(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    x, y = (cloud(8, 2, k, 4)[2 * rank : 2 * rank + 2] for k in (1, 2))
    gradients = _gradients(DistributedDataParallel(_network()), x, y)
    torch.save(gradients, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
def test_two_processes_give_the_gradient_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_worker, args=(str(tmp_path),), nprocs=2)
    expected = _gradients(_network(), *(cloud(8, 2, k, 4) for k in (1, 2)))
    for rank in range(2):
        found: Any = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)
