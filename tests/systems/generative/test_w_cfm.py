"""W-CFM: where weights are the entropic plan, tilts, calibration, the loss, and its experiment."""

from __future__ import annotations

import math

import pytest
import torch

from brenier import InvalidInput, solve
from brenier.costs import Lp
from brenier.experiments import start
from brenier.flows import FlowMatching
from brenier.systems.generative.w_cfm import Calibration, WeightedCFM, gibbs_log_weight, marginal_tilt


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def circle(n, turn=0.0):
    angle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n + turn
    return torch.stack([angle.cos(), angle.sin()], 1)


def field(z, t):
    return -z


# -- the weights and the plan --------------------------------------------------------------------------------------


def weights(x, y, p, epsilon):
    log_weight = -Lp(2, p).block(x, y) / epsilon
    return log_weight.flatten().softmax(0).reshape(len(x), len(y))


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("epsilon", [0.1, 0.5, 2.0])
def test_on_a_circle_the_weights_are_the_entropic_plan(p, epsilon):
    """Acceptance A: 400 + 400 points, to 1e-6."""
    x, y = circle(400), circle(400, 0.2)
    plan = solve(x, y, cost=Lp(2, p), epsilon=epsilon, tol=1e-11).plan.dense()
    assert float((weights(x, y, p, epsilon) / plan - 1).abs().max()) < 1e-6


@pytest.mark.parametrize("p", [1, 2])
def test_between_unequal_gaussians_they_are_not(p):
    x, y = torch.randn(2, 200, 2, generator=seeded(), dtype=torch.float64)
    y = 2 * y + 1
    plan = solve(x, y, cost=Lp(2, p), epsilon=0.5, tol=1e-9).plan.dense()
    assert float((weights(x, y, p, 0.5) - plan).abs().sum() / 2) > 0.05


@pytest.mark.parametrize("cost", ["euclidean", "sqeuclidean"])
def test_weighted_pairs_are_the_entropic_plan_between_their_own_marginals(cost):
    x, y = torch.randn(2, 30, 2, generator=seeded(), dtype=torch.float64)
    tilts = [marginal_tilt(u, v, 0.7, cost=cost) for u, v in ((x, y), (y, x))]
    a, b = (tilt / tilt.sum() for tilt in tilts)
    p = 1 if cost == "euclidean" else 2
    P = weights(x, y, p, 0.7)
    assert torch.allclose(P.sum(1), a)
    assert torch.allclose(P.sum(0), b)
    plan = solve(x, y, a=a, b=b, cost=cost, epsilon=0.7, tol=1e-12).plan.dense()
    assert torch.allclose(P, plan, atol=1e-12, rtol=1e-8)


# -- tilts ---------------------------------------------------------------------------------------------------------


def test_tilts_are_mean_weights(dtype):
    x, y = (torch.randn(n, 1, 2, 2, generator=seeded(n), dtype=dtype) for n in (20, 15))
    pairs = torch.stack([gibbs_log_weight(x, y[j].expand_as(x), 1.5) for j in range(15)], 1)
    tilt = marginal_tilt(x, y, 1.5)
    assert tilt.dtype == dtype
    assert torch.allclose(tilt, pairs.exp().mean(1), rtol=1e-4)
    assert torch.allclose(marginal_tilt(x, y, 1.5, log=True), tilt.log(), atol=1e-5)


def test_log_tilts_do_not_underflow():
    x, y = torch.zeros(3, 4), torch.full((5, 4), 500.0)
    assert torch.equal(marginal_tilt(x, y, 0.1), torch.zeros(3))
    assert torch.allclose(marginal_tilt(x, y, 0.1, log=True), torch.full((3,), -10_000.0))


# -- calibration ---------------------------------------------------------------------------------------------------


def laws(n=300, d=4):
    generator = seeded(3)
    return (torch.randn(n, d, generator=generator), 0.5 * torch.randn(n, d, generator=generator) + 1)


def test_calibration_is_the_first_below_the_threshold():
    x, y = laws()
    loss = WeightedCFM()
    assert loss.epsilon is None
    found = loss.calibrate(x, y)
    assert isinstance(found, Calibration)
    assert loss.epsilon == found.epsilon == pytest.approx(2 * found.kappa)
    worst = found.relative_variance.max(1).values
    chosen = int((found.kappas - found.kappa).abs().argmin())
    assert (worst[chosen:] <= 0.05).all()
    assert worst[chosen - 1] > 0.05
    assert (found.ess.diff() > -1e-9).all()
    assert 0 < float(found.ess[0]) < 0.1 < 0.99 < float(found.ess[-1]) <= 1
    tilt = marginal_tilt(x, y, found.epsilon)
    assert float(tilt.var() / tilt.mean() ** 2) == pytest.approx(float(found.relative_variance[chosen, 0]), rel=1e-3)
    looser = WeightedCFM().calibrate(x, y, max_relative_variance=0.3)
    assert looser.kappa < found.kappa
    assert "of pairs count" in repr(found)


def test_calibration_scales_with_the_data():
    x, y = laws()
    small, large = (WeightedCFM().calibrate(s * x, s * y).kappa for s in (1.0, 10.0))
    assert large == pytest.approx(10 * small)


def test_flat_tilts_take_the_least_kappa():
    found = WeightedCFM().calibrate(circle(50), circle(50), kappas=(0.3, 1.0))
    assert found.kappa == pytest.approx(0.3)


def test_the_kink():
    x, y = laws()
    found = WeightedCFM().calibrate(x, y, rule="kink")
    assert 0.01 < found.kappa < 10
    assert found.rule == "kink"


def test_calibration_refusals():
    x, y = laws(20)
    loss = WeightedCFM()
    for arguments, options, message in (
        ((x, y, (1.0, 0.5)), {}, "kappas: expected positive finite numbers that rise"),
        ((x, y, (-1.0, 0.5)), {}, "kappas: expected positive"),
        ((x, y, (0.01, 0.02)), {}, "max_relative_variance: expected a threshold that the largest kappa meets"),
        ((x, y), {"max_relative_variance": 0}, "max_relative_variance: expected a positive"),
        ((x, y), {"rule": "elbow"}, "rule: expected 'threshold' or 'kink'"),
        ((x, y, (0.1, 1.0)), {"rule": "kink"}, "kappas: expected at least three"),
        ((x, y[:, :3]), {}, "x and y: expected samples of one shape"),
        ((x[:1], y), {}, "samples: expected at least two of each side"),
    ):
        with pytest.raises(InvalidInput, match=message):
            loss.calibrate(*arguments, **options)
    assert loss.epsilon is None


# -- the loss ------------------------------------------------------------------------------------------------------


def test_the_literal_loss():
    x0, x1 = laws(16)
    t = torch.rand(16, generator=seeded(1))
    value, info = WeightedCFM(2.0, normalize="none").loss(field, x0, x1, t)
    z = (1 - t)[:, None] * x0 + t[:, None] * x1
    w = (-(x1 - x0).norm(dim=1) / 2).exp()
    assert torch.allclose(value, (w * (field(z, t) - (x1 - x0)).square().mean(1)).mean())
    assert info["displacement"] < info["unweighted_displacement"]


def test_large_epsilon_is_plain_flow_matching():
    x0, x1 = laws(16)
    t = torch.rand(16, generator=seeded(1))
    plain, _ = FlowMatching()(field, x0, x1, t)
    assert torch.allclose(WeightedCFM(1e7)(field, x0, x1, t)[0], plain, rtol=1e-5)


def test_the_square_is_another_cost():
    x0, x1 = laws(16)
    loss = WeightedCFM(2.0, cost="sqeuclidean")
    _, info = loss(field, x0, x1)
    _, other = WeightedCFM(2.0)(field, x0, x1)
    assert info["ess"] < other["ess"]
    assert "epsilon=2.0" in repr(loss)


def test_kappa_waits_for_the_dimension():
    x0, x1 = (t.reshape(300, 1, 2, 2) for t in laws())
    loss = WeightedCFM(kappa=0.5)
    assert loss.epsilon is None
    loss(field, x0, x1)
    assert loss.epsilon == pytest.approx(1.0)


def test_images_do_not_underflow():
    x0, x1 = torch.randn(2, 8, 3, 32, 32, generator=seeded())
    value, info = WeightedCFM(0.09 * math.sqrt(3072)).loss(field, x0, x1)
    assert value.isfinite()
    assert float(info["ess"]) > 0.1
    assert float(gibbs_log_weight(x0, x1, 5.0).max()) < -12


def test_refusals():
    x0, x1 = laws(16)
    with pytest.raises(InvalidInput, match=r"epsilon: expected a number, got 'auto'.*Call calibrate"):
        WeightedCFM()(field, x0, x1)
    for options, message in (
        ({"epsilon": 0.0}, "epsilon: expected a positive finite number"),
        ({"epsilon": "large"}, "epsilon: expected a positive finite number in cost units, or 'auto'"),
        ({"kappa": -1.0}, "kappa: expected a positive finite number"),
        ({"epsilon": 1.0, "kappa": 1.0}, "kappa: expected None beside an epsilon"),
    ):
        with pytest.raises(InvalidInput, match=message):
            WeightedCFM(**options)
    with pytest.raises(InvalidInput, match="x0: expected finite samples"):
        WeightedCFM(1.0)(field, x0 * math.nan, x1)
    with pytest.raises(InvalidInput, match="epsilon: expected a positive finite number"):
        marginal_tilt(x0, x1, -1.0)
    with pytest.raises(InvalidInput, match="expected pairs of one shape"):
        gibbs_log_weight(x0, x1[:3], 1.0)


# -- the experiment ------------------------------------------------------------------------------------------------

CLAIMS = [
    ("(A) a circle", 1e-6),
    ("(A) two unequal Gaussians", 0.05),
    ("(B) 8 Gaussians to two moons, epsilon 2: NPE over that of I-CFM", 0.25),
    ("(B) 8 Gaussians to two moons, epsilon 2: W2 after 4 steps over that of I-CFM", 0.6),
    ("(B) 8 Gaussians to two moons, epsilon 2: W2 after 100 steps over that of I-CFM", 1.25),
    ("(B) 8 Gaussians to two moons, epsilon 2: W2 after 4 steps over that of OT-CFM with batch 16", 0.8),
    ("(B) 8 Gaussians to two moons, epsilon 2: seconds of training over those of I-CFM", 1.3),
    ("(B) W2 after 100 steps with epsilon 0.5", 1.0),
    ("(C) Fréchet distance after 8 steps over that of I-CFM", 1.05),
    ("(C) path energy over that of I-CFM", 1.0),
    ("(D) Fréchet distance after 8 steps", 1.05),
]


@pytest.mark.slow
def test_smoke_measures_every_claim():
    report = start("w-cfm", "smoke")
    assert [c.threshold for c in report.claims] == [threshold for _, threshold in CLAIMS]
    for claim, (beginning, _) in zip(report.claims, CLAIMS):
        assert claim.sentence.startswith(beginning)
    assert all(claim.held for claim in report.claims[:2])
    assert {t.title[:3] for t in report.tables} == {"(A)", "(B)", "(C)", "(D)"}
