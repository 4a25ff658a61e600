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
from .problem import SemidiscreteProblem, centred
from .solution import Estimate, Outcome, SampledCertificate
from .starts import sampled_start

__all__ = ["AveragedSGD"]

_CHUNKS = 32  # of a held-out sample, for standard errors
_FEWEST = 4  # of these, when time runs out
_ROWS = 16384  # of a sample that are held at once
_PILOT = 512  # points from which the scale of a step is read
_SETTLE = 100.0  # iterations until steps fall
_RECENT = 3.0  # the average weighs iteration k as k^_RECENT
_STEP = 0.5  # of the scale at which masses react to potentials: stable, see AveragedSGD


class _State(NamedTuple):
    g: Tensor  # (k,)
    velocity: Tensor  # (k,)
    average: Tensor  # (k,)
    scale: float  # of a step, in cost units
    iteration: int  # counted on by a solve that resumes
    checked: int  # the iteration of the last look at held-out points
    error: float  # what that look found
    met: bool
    errors: tuple[tuple[int, float], ...]  # (iteration, error) of each look


@dataclass(frozen=True)
class AveragedSGD:
    r"""Maximise the dual of semi-discrete transport on fresh minibatches of the source, and average what it visits.

    .. math:: g_j \leftarrow g_j + \tau_k v_j, \qquad v \leftarrow \mu v + \frac{b_j - \hat m_j}{\max(b_j, 1 / B)}

    with the shares m^ of a minibatch of size B that fall into each cell (softly with an epsilon). tau_k = s / (2 sqrt(1 + k / 100)),
    where s is the mean difference of the two least c(x, y_j) - g_j, in cost units (plus epsilon): the masses of cells change
    by about b_j / s when g_j does, so that steps are stable at every scale. s is read from the iterates at k = 0, 1, 2, 4,
    8, ... The answer is the average of the g_k with weights k^3. Under the squared Euclidean cost it starts from the
    linear map between the moments of source and atoms.

    The error is estimated on held-out points, now and then during the solve and at its end:
    chi^2 = sum_j (m_j - b_j)^2 / b_j, without bias, from products of independent parts of the sample. Its root bounds
    the marginal error sum_j |m_j - b_j|.

    Args:
        tol: marginal error to stop at: chi^2 and twice its standard error must fall to tol^2.
        max_iter: minibatches, counted from the first solve where one resumes.
        batch_size: B; four for each atom, between 1024 and 16384, when None.
        momentum: mu in [0, 1).
        held_out: points for each estimate; 4 sqrt(2 m) / tol^2, at least 20000, when None.

    Complexity: O(B m d) time a step, O(B + m) memory; held-out points cost as much as those of training at most, and once
    more at the end.

    Source: Genevay, Cuturi, Peyré & Bach (2016), Stochastic optimization for large-scale optimal transport; Polyak &
    Juditsky (1992), Acceleration of stochastic approximation by averaging; Shamir & Zhang (2013), Stochastic gradient
    descent for non-smooth optimization.
    """

    name: ClassVar[str] = "averaged-sgd"
    tol: float = 0.02
    max_iter: int = 1000
    batch_size: int | None = None
    momentum: float = 0.9
    held_out: int | None = None

    def __post_init__(self) -> None:
        check_number("tol", self.tol)
        check_count("max_iter", self.max_iter)
        for name, value in (("batch_size", self.batch_size), ("held_out", self.held_out)):
            if value is not None:
                check_count(name, value)
        if not 0 <= self.momentum < 1:
            refuse("momentum", "a number in [0, 1)", repr(self.momentum))
        if self.held_out is not None and self.held_out < 2 * _CHUNKS:
            refuse("held_out", f"at least {2 * _CHUNKS} points", repr(self.held_out))

    def check(self, problem: SemidiscreteProblem) -> None:
        """Any problem will do."""

    def _batch(self, problem: SemidiscreteProblem) -> int:
        return self.batch_size or min(max(1024, 4 * len(problem.atoms.b)), 16384)

    def _held_out(self, problem: SemidiscreteProblem) -> int:
        wanted = 4 * math.sqrt(2 * len(problem.atoms.b)) / self.tol**2
        return self.held_out or max(20000, math.ceil(wanted))

    def init(self, problem: SemidiscreteProblem, generator: torch.Generator | None) -> _State:
        g = sampled_start(problem, problem.source.sample(self._batch(problem), generator))
        return self.at(g)

    @staticmethod
    def at(g: Tensor) -> _State:
        """The state that begins at given potentials."""
        return _State(g, torch.zeros_like(g), g, 0.0, 0, -1, math.nan, False, ())

    def resumed(self, problem: SemidiscreteProblem, saved: dict[str, Any]) -> _State:
        """The state that an earlier solve ended in."""
        k = len(problem.atoms.b)
        g, velocity, average = (saved[name].double().to(problem.atoms.y.device) for name in ("g", "velocity", "average"))
        if not len(g) == len(velocity) == len(average) == k:
            refuse("start", f"a state of {k} atoms", f"one of {len(g)}")
        return self.at(g)._replace(
            velocity=velocity,
            average=average,
            scale=float(saved["scale"]),
            iteration=int(saved["iteration"]),
            checked=int(saved["checked"]),
        )

    def step(self, problem: SemidiscreteProblem, state: _State, generator: torch.Generator | None) -> _State:
        if len(state.g) == 1:  # all goes there
            return state._replace(iteration=state.iteration + 1, met=True, error=0.0)
        batch, b, k = self._batch(problem), problem.atoms.b, state.iteration
        x = problem.source.sample(batch, generator)
        scale = state.scale
        if k & (k - 1) == 0:  # 0 and the powers of two
            scale = _scale(problem, x[:_PILOT], state.g)
        masses = _shares(problem, x, state.g)[0]
        velocity = self.momentum * state.velocity + (b - masses) / b.clamp(min=1 / batch)
        g = state.g + _STEP * scale / math.sqrt(1 + k / _SETTLE) * velocity
        g = centred(g, b)
        average = state.average + (_RECENT + 1) / (k + 1 + _RECENT) * (g - state.average)
        state = state._replace(g=g, velocity=velocity, average=average, scale=scale, iteration=k + 1)
        return self._looked(problem, state, generator) if self._due(problem, state) else state

    def _due(self, problem: SemidiscreteProblem, state: _State) -> bool:
        """Whether training has used as many points since the last look as all looks take together."""
        first = math.ceil(self._held_out(problem) / self._batch(problem))
        return state.iteration >= (first if state.checked < 0 else 2 * state.checked)

    def _looked(
        self, problem: SemidiscreteProblem, state: _State, generator: torch.Generator | None
    ) -> _State:
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
            "velocity": state.velocity,
            "average": state.average,
            "scale": state.scale,
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


def _soft(problem: SemidiscreteProblem, g: Tensor) -> Tensor:
    """Potentials with the masses of atoms absorbed, where there is an epsilon."""
    return g if problem.epsilon is None else g + problem.epsilon * problem.atoms.b.log()


def _scale(problem: SemidiscreteProblem, x: Tensor, g: Tensor) -> float:
    """The mean difference of the two least costs c(x, y_j) - g_j, plus epsilon."""
    zero = x.new_zeros(len(x))
    values = problem.cloud(x).support(zero, g.to(x), math.inf, min(2, len(g))).values.reshape(-1, 2)
    apart = float((values[:, 0] - values[:, 1]).abs().double().mean())
    return apart + (problem.epsilon or 0.0)


def _shares(problem: SemidiscreteProblem, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The share of points in each cell (k,), the transform of g (n,), and the cost of each point's move (n,)."""
    cloud, epsilon = problem.cloud(x), problem.epsilon
    h = _soft(problem, g).to(x)
    if epsilon is None:
        f, index = cloud.cmin(h)
        return torch.bincount(index, minlength=len(h)).double() / len(x), f, f + h[index]
    f = cloud.softmin(h, epsilon)
    masses = cloud.apply(f, h, epsilon, torch.ones_like(f), dim=0)
    return masses.double() / len(x), f, cloud.moments(f, h, epsilon)[1]


def _pull(problem: SemidiscreteProblem, x: Tensor, g: Tensor) -> Tensor:
    """The sum over points of the gradient in y of the transform of g, (k, d)."""
    with torch.enable_grad():
        y = problem.atoms.y.clone().requires_grad_()
        cloud, h = problem.cloud(x, y), _soft(problem, g).to(x)
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
    """Sum_j (m_j - b_j)^2 / b_j without bias, from the products of different rows of masses (r, k), and its jackknife."""
    apart = (masses - b) / b.sqrt()
    gram = apart @ apart.mT
    gram.fill_diagonal_(0)
    r = len(gram)
    total = float(gram.sum())
    without = (total - 2 * gram.sum(1)) / ((r - 1) * (r - 2))
    spread = float((without - without.mean()).square().sum())
    return Estimate(total / (r * (r - 1)), math.sqrt((r - 1) / r * spread))
