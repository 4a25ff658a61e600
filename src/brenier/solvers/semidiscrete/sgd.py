"""Averaged stochastic gradients on the dual, for any source that can be sampled and any cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...errors import refuse
from ...solution import Status
from ..base import check_count, check_number, time_is_up
from .metric import Metric, absorbed, sampled_metric
from .problem import SemidiscreteProblem, centred
from .solution import Estimate, Outcome, SampledCertificate
from .starts import sampled_start

__all__ = ["AveragedSGD"]

_CHUNKS = 32  # of a held-out sample, for standard errors
_FEWEST = 4  # of these, when time runs out
_ROWS = 16384  # of a sample that are held at once
_PILOT = 4  # minibatches from which the metric is read
_FORGOTTEN = 4  # iterations from which metrics are averaged: those before are of other cells
_SETTLE = 30.0  # iterations until steps fall
_RECENT = 3.0  # the average weighs iteration k as k^_RECENT
_EMPTY = 0.01  # of its mass: what an empty cell has
_STEP = 0.3  # of what would be Newton's step


class _State(NamedTuple):
    g: Tensor  # (k,)
    average: Tensor  # (k,)
    metric: Metric | None
    iteration: int  # counted on by a solve that resumes
    checked: int  # the iteration of the last look at held-out points
    error: float  # what that look found
    met: bool
    errors: tuple[tuple[int, float], ...]  # (iteration, error) of each look


@dataclass(frozen=True)
class AveragedSGD:
    r"""Maximise the dual of semi-discrete transport on fresh minibatches of the source, and average what it visits.

    .. math:: g \leftarrow g + \tau_k H_k^{-1} (b - \hat m), \qquad \tau_k = 0.3 / \sqrt{1 + k / 30}

    with the shares m^ of a minibatch that fall into each cell (softly with an epsilon). H is the Laplacian of a graph
    of cells: points join their two best atoms, with a weight that falls with the difference of the two costs, over its
    mean. It estimates the dual's Hessian, so that steps need no scale and groups of atoms that are far from each other
    converge as fast as single ones. It is read from four minibatches at k = 0, 1, 2, 4, 8, ..., and averaged with the
    one before; potentials of cells that these find empty are raised until they touch one of the points. The answer is
    the average of the g_k with weights k^3. Under the squared Euclidean cost it starts from the linear map between the
    moments of source and atoms.

    The error is estimated on held-out points, now and then during the solve and at its end:
    chi^2 = sum_j (m_j - b_j)^2 / b_j, without bias, from products of independent parts of the sample. Its root bounds
    the marginal error sum_j |m_j - b_j|.

    Args:
        tol: marginal error to stop at: chi^2 and twice its standard error must fall to tol^2.
        max_iter: minibatches, counted from the first solve where one resumes.
        batch_size: points of a minibatch; four for each atom, between 1024 and 16384, when None.
        held_out: points for each estimate; 8 sqrt(2 m) / tol^2, at least 20000, when None.

    Complexity: O(B m d) time a step for minibatches of B points, and conjugate gradients on O(B) edges; O((B + m) d)
    memory. Held-out points cost as much as those of training at most, and once more at the end.

    Source: Genevay, Cuturi, Peyré & Bach (2016), Stochastic optimization for large-scale optimal transport; Polyak &
    Juditsky (1992), Acceleration of stochastic approximation by averaging; Shamir & Zhang (2013), Stochastic gradient
    descent for non-smooth optimization. On Hessians in stochastic semi-discrete transport: Bercu, Bigot, Gadat &
    Siviero (2023), A stochastic Gauss-Newton algorithm for regularized semi-discrete optimal transport.
    """

    name: ClassVar[str] = "averaged-sgd"
    tol: float = 0.02
    max_iter: int = 1000
    batch_size: int | None = None
    held_out: int | None = None

    def __post_init__(self) -> None:
        check_number("tol", self.tol)
        check_count("max_iter", self.max_iter)
        for name, value in (("batch_size", self.batch_size), ("held_out", self.held_out)):
            if value is not None:
                check_count(name, value)
        if self.held_out is not None and self.held_out < 2 * _CHUNKS:
            refuse("held_out", f"at least {2 * _CHUNKS} points", repr(self.held_out))

    def check(self, problem: SemidiscreteProblem) -> None:
        """Any problem will do."""

    def _batch(self, problem: SemidiscreteProblem) -> int:
        return self.batch_size or min(max(1024, 4 * len(problem.atoms.b)), 16384)

    def _held_out(self, problem: SemidiscreteProblem) -> int:
        wanted = 8 * math.sqrt(2 * len(problem.atoms.b)) / self.tol**2
        return self.held_out or max(20000, math.ceil(wanted))

    def init(self, problem: SemidiscreteProblem, generator: torch.Generator | None) -> _State:
        return self.at(sampled_start(problem, problem.source.sample(self._batch(problem), generator)))

    @staticmethod
    def at(g: Tensor) -> _State:
        """The state that begins at given potentials."""
        return _State(g, g, None, 0, -1, math.nan, False, ())

    def resumed(self, problem: SemidiscreteProblem, saved: dict[str, Any]) -> _State:
        """The state that an earlier solve ended in."""
        b = problem.atoms.b
        g, average = (saved[name].double().to(b.device) for name in ("g", "average"))
        if not len(g) == len(average) == len(b):
            refuse("start", f"a state of {len(b)} atoms", f"one of {len(g)}")
        metric = None if saved["metric"] is None else Metric.loaded(b, saved["metric"])
        iteration, checked = int(saved["iteration"]), int(saved["checked"])
        return _State(g, average, metric, iteration, checked, math.nan, False, ())

    def step(self, problem: SemidiscreteProblem, state: _State, generator: torch.Generator | None) -> _State:
        if len(state.g) == 1:  # all goes there
            return state._replace(iteration=state.iteration + 1, met=True, error=0.0)
        batch, b, k = self._batch(problem), problem.atoms.b, state.iteration
        metric, g = state.metric, state.g
        if metric is None or k & (k - 1) == 0:  # 0 and the powers of two
            x = problem.source.sample(_PILOT * batch, generator)
            g = _lifted(problem, x, g)
            fresh = sampled_metric(problem, x, g)
            metric = fresh if metric is None or k < _FORGOTTEN else metric.blended(b, fresh)
        masses = _shares(problem, problem.source.sample(batch, generator), g)[0]
        g = g + _STEP / math.sqrt(1 + k / _SETTLE) * metric.direction(b - masses)
        g = centred(g, b)
        average = state.average + (_RECENT + 1) / (k + 1 + _RECENT) * (g - state.average)
        state = state._replace(g=g, average=average, metric=metric, iteration=k + 1)
        return self._looked(problem, state, generator) if self._due(problem, state) else state

    def _due(self, problem: SemidiscreteProblem, state: _State) -> bool:
        """Whether training has used as many points since the last look as all looks take together."""
        first = math.ceil(self._held_out(problem) / self._batch(problem))
        return state.iteration >= (first if state.checked < 0 else 2 * state.checked)

    def _looked(self, problem: SemidiscreteProblem, state: _State, generator: torch.Generator | None) -> _State:
        chi2 = _estimate(problem, state.average, self._held_out(problem), generator).chi2
        error = math.sqrt(max(chi2.mean, 0.0))
        met = chi2.mean + 2 * chi2.standard_error <= self.tol**2
        errors = (*state.errors, (state.iteration, error))
        return state._replace(checked=state.iteration, error=error, met=met, errors=errors)

    def terminate(self, problem: SemidiscreteProblem, state: _State) -> Status | None:
        if state.met:
            return Status.CONVERGED
        return Status.MAX_ITER if state.iteration >= self.max_iter else None

    def error(self, state: _State) -> float:
        return state.error

    def finish(self, problem: SemidiscreteProblem, state: _State, generator: torch.Generator | None) -> Outcome:
        b = problem.atoms.b
        random = None if generator is None else generator.get_state()  # as it was before the points of the estimate
        g = centred(state.average, b)
        held = _estimate(problem, g, self._held_out(problem), generator, problem.y.requires_grad)
        dual = Estimate(held.dual.mean + float(b @ g), held.dual.standard_error)
        saved = {
            "g": state.g,
            "average": state.average,
            "metric": None if state.metric is None else state.metric.saved(),
            "iteration": state.iteration,
            "checked": state.checked,
            "generator": random,
        }
        certificate = SampledCertificate(dual, held.linear, held.chi2, held.n)
        return Outcome(
            g=g,
            masses=held.masses,
            gradient=held.gradient,
            value=dual.mean,
            linear_value=held.linear.mean,
            certificate=certificate,
            stats={"marginal_error": certificate.marginal_error, "errors": list(state.errors)},
            state=saved,
            polygons=None,
        )


class _HeldOut(NamedTuple):
    masses: Tensor  # (k,)
    dual: Estimate  # of E min_j c(x, y_j) - g_j, soft with an epsilon
    linear: Estimate  # of the cost of the map or plan
    chi2: Estimate
    gradient: Tensor | None  # of the dual in y, (k, d)
    n: int


def _shares(problem: SemidiscreteProblem, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The share of points in each cell (k,), the transform of g (n,), and the cost of each point's move (n,)."""
    cloud, epsilon = problem.cloud(x), problem.epsilon
    h = absorbed(problem, g).to(x)
    if epsilon is None:
        f, index = cloud.cmin(h)
        return torch.bincount(index, minlength=len(h)).double() / len(x), f, f + h[index]
    f = cloud.softmin(h, epsilon)
    masses = cloud.apply(f, h, epsilon, torch.ones_like(f), dim=0)
    return masses.double() / len(x), f, cloud.moments(f, h, epsilon)[1]


def _lifted(problem: SemidiscreteProblem, x: Tensor, g: Tensor) -> Tensor:
    """Potentials of empty cells raised until they touch one of the points: the dual of the sample rises too."""
    b, cloud = problem.atoms.b, problem.cloud(x)
    masses, f, _ = _shares(problem, x, g)
    touching = cloud.cmin(f, dim=0)[0].double() - absorbed(problem, torch.zeros_like(g))
    return torch.where(masses < _EMPTY * b, torch.maximum(g, touching), g)


def _pull(problem: SemidiscreteProblem, x: Tensor, g: Tensor) -> Tensor:
    """The sum over points of the gradient in y of the transform of g, (k, d)."""
    with torch.enable_grad():
        y = problem.atoms.y.clone().requires_grad_()
        cloud, h = problem.cloud(x, y), absorbed(problem, g).to(x)
        if problem.epsilon is None:
            index = problem.cloud(x).cmin(h)[1]
            total = cloud.cost_at(torch.arange(len(x), device=x.device), index).sum()
        else:
            total = cloud.softmin(h, problem.epsilon).sum()
        return torch.autograd.grad(total, y)[0].double()


def _estimate(
    problem: SemidiscreteProblem, g: Tensor, n: int, generator: torch.Generator | None, gradient: bool = False
) -> _HeldOut:
    """Masses, values and chi^2 on n fresh points; on fewer when time is up."""
    b = problem.atoms.b
    size = math.ceil(n / _CHUNKS)
    shares, sums = [], []
    pull = torch.zeros_like(problem.atoms.y, dtype=torch.float64) if gradient else None
    for chunk in range(_CHUNKS):
        total, terms = torch.zeros_like(b), b.new_zeros(2)
        for start in range(0, size, _ROWS):
            rows = min(_ROWS, size - start)
            x = problem.source.sample(rows, generator)
            masses, f, costs = _shares(problem, x, g)
            total += rows * masses
            terms += torch.stack([f.double().sum(), costs.double().sum()])
            if pull is not None:
                pull += _pull(problem, x, g)
        shares.append(total / size)
        sums.append(terms / size)
        if chunk + 1 >= _FEWEST and time_is_up():
            break
    masses, means = torch.stack(shares), torch.stack(sums)  # (chunks, k), (chunks, 2)
    count = len(masses)
    errors = means.std(0) / math.sqrt(count)
    dual, linear = (Estimate(float(means[:, i].mean()), float(errors[i])) for i in (0, 1))
    return _HeldOut(
        masses.mean(0),
        dual,
        linear,
        _chi2(masses, b),
        None if pull is None else pull / (count * size),
        count * size,
    )


def _chi2(masses: Tensor, b: Tensor) -> Estimate:
    """Sum_j (m_j - b_j)^2 / b_j without bias, from the products of different rows of masses (r, k).

    The standard error is that of the jackknife: too large by the root of two where m = b, and else about right.
    """
    apart = (masses - b) / b.sqrt()
    gram = apart @ apart.mT
    gram.fill_diagonal_(0)
    r = len(gram)
    total = float(gram.sum())
    without = (total - 2 * gram.sum(1)) / ((r - 1) * (r - 2))
    spread = float((without - without.mean()).square().sum())
    return Estimate(total / (r * (r - 1)), math.sqrt((r - 1) / r * spread))
