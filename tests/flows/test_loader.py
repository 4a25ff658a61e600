"""The loader of pairs: the same pairs in the background, nothing lost, errors where they belong."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from brenier import InvalidInput, NotConverged
from brenier.flows import (
    Coupled,
    Coupling,
    CouplingLoader,
    EntropicCoupling,
    ExactCoupling,
    GibbsWeights,
    SemidiscreteCoupling,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def data():
    return torch.randn(100, 3, generator=seeded(1)) + 2


@pytest.fixture
def labels():
    return torch.arange(100) % 4


def loaded(data, classes, **options):
    inner = DataLoader(TensorDataset(data, classes), batch_size=16, shuffle=True, generator=seeded(5))
    return CouplingLoader(inner, **{"generator": seeded(9), **options})


def everything(loader):
    return [torch.cat(parts) for parts in zip(*((x0, x1, *extra.rest) for x0, x1, extra in loader))]


@pytest.mark.parametrize("pool", [1, 3, 100])
@pytest.mark.parametrize("coupling", [ExactCoupling(), EntropicCoupling()], ids=["exact", "entropic"])
def test_the_background_changes_nothing(data, labels, coupling, pool):
    found = [
        everything(loaded(data, labels, coupling=coupling, pool=pool, background=background, ahead=ahead))
        for background, ahead in ((True, 1), (False, 1), (True, 3))
    ]
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_every_sample_once_with_its_label(data, labels):
    x0, x1, kept = everything(loaded(data, labels, coupling=ExactCoupling(), pool=4))
    assert len(x0) == 100
    index = (x1[:, None] == data).all(-1).nonzero()[:, 1]
    assert torch.equal(index.sort().values, torch.arange(100))
    assert torch.equal(kept, labels[index])
    assert abs(float(x0.mean())) < 0.2


def test_sizes_and_length(data, labels):
    loader = loaded(data, labels, pool=4)
    assert len(loader) == 7
    assert [len(x0) for x0, _, _ in loader] == [16] * 6 + [4]
    assert loader.stats.pools == 2
    assert loader.stats.seconds > 0


@pytest.mark.parametrize("background", [True, False])
def test_a_ramp_begins_with_one_batch_and_grows_to_the_pool(data, labels, background):
    class Watching(ExactCoupling):
        def __call__(self, x0, x1, **options):
            sizes.append(len(x0))
            return super().__call__(x0, x1, **options)

    sizes: list[int] = []
    seen = everything(loaded(data, labels, coupling=Watching(), pool=3, ramp=True, background=background))
    assert sizes == [16, 32, 48, 4]
    assert len(seen[0]) == 100
    again = everything(loaded(data, labels, coupling=ExactCoupling(), pool=3, ramp=True, background=not background))
    assert all(map(torch.equal, seen, again))


def test_pools_cost_less_than_batches(data, labels):
    costs = []
    for pool in (1, 7):
        x0, x1, _ = everything(loaded(data, labels, coupling=ExactCoupling(), pool=pool))
        costs.append(float((x1 - x0).square().sum(1).mean()))
    assert costs[1] < costs[0]


def test_epochs_differ_and_seeds_repeat(data, labels):
    loader = loaded(data, labels)
    first, second = everything(loader), everything(loader)
    assert not torch.equal(first[0], second[0])
    again = loaded(data, labels)
    assert torch.equal(first[0], everything(again)[0])
    assert torch.equal(second[0], everything(again)[0])
    torch.manual_seed(4)
    free = everything(loaded(data, labels, generator=None))
    torch.manual_seed(4)
    assert torch.equal(free[0], everything(loaded(data, labels, generator=None))[0])


def test_labels_are_respected(data, labels):
    class Watching(ExactCoupling):
        def __call__(self, x0, x1, **options):
            assert options["labels1"] is not None
            pairs = super().__call__(x0, x1, **options)
            assert torch.equal(options["labels1"][pairs.rows], options["labels1"][pairs.cols])
            return pairs

    _, x1, kept = everything(loaded(data, labels, coupling=Watching(), pool=4, labels=0))
    index = (x1[:, None] == data).all(-1).nonzero()[:, 1]
    assert torch.equal(kept, labels[index])


def test_weights_come_along(data, labels):
    for x0, x1, extra in loaded(data, labels, coupling=GibbsWeights(2.0), pool=2):
        assert torch.allclose(extra.log_weight, -(x1 - x0).norm(dim=1) / 2)
    for _, _, extra in loaded(data, labels):
        assert extra.log_weight is None


def test_lists_of_things_go_with_the_data(data):
    names = [f"sample {k}" for k in range(100)]
    batches = [[data[k : k + 20], names[k : k + 20]] for k in range(0, 100, 20)]
    for _, x1, extra in CouplingLoader(batches, ExactCoupling(), pool=2, generator=seeded()):
        for point, name in zip(x1, extra.rest[0]):
            assert torch.equal(point, data[int(name.split()[1])])


@pytest.mark.parametrize("kind", ["function", "images", "array", "distribution", "batches"])
def test_sources(data, kind):
    shape = (3,) if kind != "images" else (1, 3, 1)
    zeros = torch.zeros(100, 3)
    source = {
        "function": lambda n, generator: 5 + torch.rand(n, 3, generator=generator),
        "images": lambda n, generator: 5 + torch.rand(n, 1, 3, 1, generator=generator),
        "array": 5 + torch.rand(50, 3, generator=seeded()),
        "distribution": torch.distributions.Independent(torch.distributions.Uniform(5 + zeros[0], 6 + zeros[0]), 1),
        "batches": [5 + torch.rand(30, 3, generator=seeded()) for _ in range(2)],
    }[kind]
    batches = data.reshape(100, *shape).split(25)
    total = 0
    for x0, x1, _ in CouplingLoader(batches, ExactCoupling(), source=source, pool=2, generator=seeded()):
        assert x0.shape == x1.shape == (25, *shape)
        assert 5 <= float(x0.min()) <= float(x0.max()) <= 6
        total += len(x0)
    assert total == 100


def test_a_data_set_of_its_own(data, labels):
    coupling = SemidiscreteCoupling(data[:10], labels=labels[:10], tol=0.2, generator=seeded())
    loader = CouplingLoader(data.split(25), coupling, pool=2, generator=seeded())
    for _, x1, extra in loader:
        index = (x1[:, None] == data[:10]).all(-1).nonzero()[:, 1]
        assert torch.equal(extra.rest[0], labels[index])


# -- threads and errors --------------------------------------------------------------------------------------------


class Failing(Coupling):
    """Pairs as they come, but for one call."""

    def __init__(self, at):
        self.calls, self.at, self.threads = 0, at, set()

    def __call__(self, x0, x1, **options):
        self.threads.add(threading.current_thread().name)
        self.calls += 1
        if self.calls == self.at:
            raise RuntimeError("a coupling broke")
        return Coupled(x0, x1, torch.arange(len(x0)), torch.arange(len(x0)))


@pytest.mark.parametrize("background", [True, False])
def test_an_error_comes_out_at_its_pool(data, background):
    coupling = Failing(at=3)
    seen = []
    loader = CouplingLoader(data.split(10), coupling, pool=2, background=background, generator=seeded())
    with pytest.raises(RuntimeError, match="a coupling broke"):
        seen.extend(loader)
    assert len(seen) == 4  # two pools of two batches
    assert any("brenier-coupling" in name for name in coupling.threads) == background
    assert not [t for t in threading.enumerate() if "brenier-coupling" in t.name]


def test_a_solve_that_did_not_converge_is_an_error(data):
    loader = CouplingLoader(data.split(50), EntropicCoupling(1e-3, tol=1e-9, max_iter=2), generator=seeded())
    with pytest.raises(NotConverged):
        list(loader)


def test_leaving_early_leaves_no_thread(data):
    loader = CouplingLoader(data.split(10), ExactCoupling(), generator=seeded())
    for _ in loader:
        break
    iterator = iter(loader)
    next(iterator)
    iterator.close()
    assert not [t for t in threading.enumerate() if "brenier-coupling" in t.name]


def test_means_have_no_labels(data, labels):
    coupling = EntropicCoupling(barycentric=True)
    with pytest.raises(InvalidInput, match="batch: expected data alone"):
        list(loaded(data, labels, coupling=coupling))
    assert len(list(CouplingLoader(data.split(50), coupling, generator=seeded()))) == 2


def test_too_few_pairs_are_refused(data):
    class Half(Coupling):
        def __call__(self, x0, x1, **options):
            index = torch.arange(len(x0) // 2)
            return Coupled(x0[index], x1[index], index, index)

    with pytest.raises(InvalidInput, match="coupling: expected 50 pairs, got 25"):
        list(CouplingLoader(data.split(50), Half(), generator=seeded()))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([{"x": torch.zeros(2, 2)}], "batch: expected a floating tensor"),
        ([torch.zeros(3).long()], "batch: expected a floating tensor"),
        ([[torch.zeros(3, 2), torch.zeros(2)]], "batch: expected 3 entries"),
        ([[torch.zeros(3, 2), torch.zeros(3)], [torch.zeros(3, 2)]], "batch: expected as many things"),
    ],
)
def test_bad_batches(batches, message):
    with pytest.raises(InvalidInput, match=message):
        list(CouplingLoader(batches, pool=2, generator=seeded()))


def test_bad_arguments(data):
    for options, message in (
        ({"coupling": "exact"}, "coupling: expected a Coupling"),
        ({"pool": 0}, "pool: expected a positive number"),
        ({"ahead": 1.5}, "ahead: expected a positive number"),
        ({"labels": -1}, "labels: expected the place"),
        ({"generator": 3}, "generator: expected a torch.Generator"),
    ):
        with pytest.raises(InvalidInput, match=message):
            CouplingLoader(data.split(10), **options)
    with pytest.raises(InvalidInput, match="loader: expected batches"):
        CouplingLoader(3)
    with pytest.raises(InvalidInput, match="labels: expected a place among what comes with the data"):
        list(CouplingLoader(data.split(10), labels=0, generator=seeded()))
