"""The loss: the formula, weights and their normalisation, couplings and conditions, what it refuses."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from brenier import InvalidInput
from brenier.flows import (
    CondOT,
    EntropicCoupling,
    ExactCoupling,
    FlowMatching,
    GibbsWeights,
    SemidiscreteCoupling,
    Trigonometric,
    effective_fraction,
    sample_ode,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def field(z, t):
    return torch.sin(z) * t.reshape(-1, *[1] * (z.dim() - 1))


@pytest.fixture
def batch():
    x0, x1 = torch.randn(2, 32, 3, generator=seeded(), dtype=torch.float64)
    return x0, x1 + 1, torch.rand(32, generator=seeded(1), dtype=torch.float64)


@pytest.mark.parametrize("path", [CondOT(), Trigonometric()])
def test_the_formula(batch, path):
    x0, x1, t = batch
    value, info = FlowMatching(path)(field, x0, x1, t)
    x_t, u_t = path.sample(x0, x1, t)
    errors = (field(x_t, t) - u_t).square().mean(1)
    assert torch.allclose(value, errors.mean())
    assert torch.allclose(info["mse"], errors.mean())
    assert float(info["ess"]) == 1
    assert torch.allclose(info["displacement"], (x1 - x0).square().sum(1).mean())


@pytest.mark.parametrize("normalize", ["batch", "none"])
def test_weights(batch, normalize):
    x0, x1, t = batch
    log_weight = torch.randn(32, generator=seeded(2), dtype=torch.float64)
    value, info = FlowMatching(normalize=normalize)(field, x0, x1, t, log_weight=log_weight)
    w = log_weight.exp()
    errors = (field(CondOT().sample(x0, x1, t)[0], t) - (x1 - x0)).square().mean(1)
    expected = (w * errors).mean() / (w.mean() if normalize == "batch" else 1)
    assert torch.allclose(value, expected)
    assert torch.allclose(info["ess"], w.sum() ** 2 / (32 * w.square().sum()))
    far = (x1 - x0).square().sum(1)
    assert torch.allclose(info["displacement"], (w * far).sum() / w.sum())
    assert torch.allclose(info["unweighted_displacement"], far.mean())


def test_equal_weights_are_none(batch):
    x0, x1, t = batch
    plain, _ = FlowMatching()(field, x0, x1, t)
    for normalize in ("batch", "running"):
        value, info = FlowMatching(normalize=normalize)(field, x0, x1, t, log_weight=torch.full((32,), -500.0))
        assert torch.allclose(value, plain)
        assert float(info["ess"]) == pytest.approx(1)


def test_the_running_mean(batch):
    x0, x1, t = batch
    loss = FlowMatching(normalize="running", momentum=0.9)
    first, second = (torch.randn(32, generator=seeded(k), dtype=torch.float64) - 300 for k in (3, 4))
    loss(field, x0, x1, t, log_weight=first)
    value, _ = loss(field, x0, x1, t, log_weight=second)
    mean = 0.9 * (first + 300).exp().mean() + 0.1 * (second + 300).exp().mean()
    errors = (field(CondOT().sample(x0, x1, t)[0], t) - (x1 - x0)).square().mean(1)
    assert torch.allclose(value, ((second + 300).exp() * errors).mean() / mean)
    restored = FlowMatching(normalize="running", momentum=0.9)
    restored.load_state_dict(loss.state_dict())
    loss.eval()
    restored.eval()
    same = [part(field, x0, x1, t, log_weight=first)[0] for part in (loss, restored, loss)]
    assert same[0] == same[1] == same[2]  # evaluation does not move the mean


def test_one_pair(batch):
    x0, x1, t = (part[:1] for part in batch)
    weight = torch.tensor([-3.0])
    with pytest.raises(InvalidInput, match="batch: expected at least two pairs with normalize='batch'"):
        FlowMatching()(field, x0, x1, t, log_weight=weight)
    for normalize in ("running", "none"):
        assert FlowMatching(normalize=normalize)(field, x0, x1, t, log_weight=weight)[0].isfinite()
    assert FlowMatching()(field, x0, x1, t)[0].isfinite()


def test_effective_fraction():
    assert float(effective_fraction(torch.zeros(7))) == pytest.approx(1)
    assert float(effective_fraction(torch.tensor([0.0, -2000.0, -2000.0, -2000.0]))) == pytest.approx(0.25)
    w = torch.rand(50, generator=seeded(), dtype=torch.float64)
    assert torch.allclose(effective_fraction(w.log() - 800), w.sum() ** 2 / (50 * w.square().sum()))


def test_collapse_warns_once(batch):
    x0, x1, t = batch
    loss = FlowMatching()
    weight = torch.zeros(32)
    weight[0] = 100
    with pytest.warns(UserWarning, match="Weights have collapsed: 3.1% of the batch count"):
        loss(field, x0, x1, t, log_weight=weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(field, x0, x1, t, log_weight=weight)


def test_a_coupling_moves_conditions_and_weights(batch):
    x0, x1, t = batch
    cols = ExactCoupling()(x0, x1).cols
    seen = {}

    def model(z, t, y=None, scale=1.0):
        seen.update(y=y, scale=scale)
        return torch.zeros_like(z)

    y = torch.arange(32)
    weight = -torch.arange(32, dtype=torch.float64) / 32
    value, info = FlowMatching(coupling=ExactCoupling())(model, x0, x1, t, log_weight=weight, y=y, scale=2.0)
    assert torch.equal(seen["y"], y[cols])
    assert seen["scale"] == 2.0
    expected, _ = FlowMatching()(model, x0, x1[cols], t, log_weight=weight[cols])
    assert torch.allclose(value, expected)
    assert info["unweighted_displacement"] < (x1 - x0).square().sum(1).mean()


def test_labels_of_a_coupling(batch):
    x0, x1, t = batch
    y = torch.arange(32) % 2
    cols = ExactCoupling()(x0, x1, labels1=y).cols
    value, _ = FlowMatching(coupling=ExactCoupling(), labels="y")(lambda z, t, y: torch.zeros_like(z), x0, x1, t, y=y)
    assert torch.allclose(value, (x1[cols] - x0).square().mean())
    with pytest.raises(InvalidInput, match="labels: expected a condition 'y', got none"):
        FlowMatching(coupling=ExactCoupling(), labels="y")(field, x0, x1, t)


def test_weights_multiply(batch):
    x0, x1, t = batch
    weight = torch.randn(32, generator=seeded(8), dtype=torch.float64)
    value, _ = FlowMatching(coupling=GibbsWeights(2.0))(field, x0, x1, t, log_weight=weight)
    own = -(x1 - x0).norm(dim=1) / 2
    assert torch.allclose(value, FlowMatching()(field, x0, x1, t, log_weight=weight + own)[0])


@pytest.mark.parametrize("kind", ["means", "own"])
def test_partners_that_are_no_samples_have_no_conditions(batch, kind):
    x0, x1, _ = (part.float() for part in batch)
    coupling = (
        EntropicCoupling(barycentric=True)
        if kind == "means"
        else SemidiscreteCoupling(x1[:3], tol=0.5, generator=seeded())
    )
    loss = FlowMatching(coupling=coupling, generator=seeded())
    assert loss(field, x0, x1)[0].isfinite()
    with pytest.raises(InvalidInput, match=r"conditions: expected none with a coupling .* got y"):
        loss(lambda z, t, y: z, x0, x1, y=torch.zeros(32))


def test_times_noise_and_seeds(batch):
    x0, x1, _ = batch
    times = []

    def model(z, t):
        times.append(t)
        return z

    values = [FlowMatching(sigma=0.1, generator=seeded(k))(model, x0, x1)[0] for k in (1, 1, 2)]
    assert values[0] == values[1] != values[2]
    assert all(0 <= float(t.min()) <= float(t.max()) <= 1 and t.dtype == torch.float64 for t in times)
    torch.manual_seed(3)
    free = FlowMatching()(model, x0, x1)[0]
    torch.manual_seed(3)
    assert free == FlowMatching()(model, x0, x1)[0]


def test_noise_on_the_path():
    seen = []
    zero = torch.zeros(20_000, 2)
    FlowMatching(sigma=0.3, generator=seeded())(lambda z, t: seen.append(z) or z, zero, zero)
    assert float(seen[0].std()) == pytest.approx(0.3, rel=0.02)


def test_images_and_dtypes(dtype):
    x0, x1 = torch.randn(2, 6, 1, 4, 4, generator=seeded(), dtype=dtype)
    value, info = FlowMatching(coupling=GibbsWeights(5.0), generator=seeded())(field, x0, x1)
    assert value.dtype == info["ess"].dtype == info["displacement"].dtype == dtype
    assert value.dim() == 0


def test_training_moves_a_law():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)

    def velocity(z, t):
        return model(torch.cat([z, t.unsqueeze(1)], 1))

    loss = FlowMatching(coupling=ExactCoupling(), generator=seeded())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    generator = seeded(4)
    for _ in range(200):
        x0 = torch.randn(64, 2, generator=generator)
        x1 = 0.5 * torch.randn(64, 2, generator=generator) + 2
        value, _ = loss(velocity, x0, x1)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    with torch.no_grad():
        end = sample_ode(velocity, torch.randn(2000, 2, generator=generator), steps=20)
    assert torch.allclose(end.mean(0), torch.full((2,), 2.0), atol=0.2)
    assert float(end.std()) == pytest.approx(0.5, abs=0.15)


def test_bad_arguments(batch):
    x0, x1, t = batch
    for options, message in (
        ({"path": "straight"}, "path: expected a GaussianPath"),
        ({"coupling": "exact"}, "coupling: expected a Coupling"),
        ({"labels": "y"}, "labels: expected the name of a condition"),
        ({"sigma": -1}, "sigma: expected a finite number"),
        ({"normalize": "sum"}, "normalize: expected 'batch', 'running' or 'none'"),
        ({"momentum": 1.0}, "momentum: expected a number"),
        ({"generator": 0}, "generator: expected a torch.Generator"),
    ):
        with pytest.raises(InvalidInput, match=message):
            FlowMatching(**options)
    loss = FlowMatching()
    for arguments, options, message in (
        ((x0, x1[:3], t), {}, "x0 and x1: expected samples of one shape"),
        ((x0, x1.float(), t), {}, "x0 and x1: expected samples of one shape"),
        ((x0.long(), x1, t), {}, "x0: expected a floating tensor"),
        ((x0, x1, t[:3]), {}, r"t: expected times of shape \(32,\)"),
        ((x0, x1, 0.5), {}, r"t: expected times of shape \(32,\), got 0.5"),
        ((x0, x1, t), {"log_weight": t[:3]}, r"log_weight: expected a tensor of shape \(32,\)"),
        ((x0, x1, t), {"log_weight": t + math.inf}, "log_weight: expected finite logarithms"),
    ):
        with pytest.raises(InvalidInput, match=message):
            loss(field, *arguments, **options)
    with pytest.raises(InvalidInput, match=r"model: expected velocities of shape \(32, 3\)"):
        loss(lambda z, t: z[:, :2], x0, x1, t)
