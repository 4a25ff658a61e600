"""Damped Newton on the dual, with exact cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...certificate import Certificate
from ...costs import SqEuclidean
from ...errors import refuse
from ...solution import Status
from ..base import check_count, check_number, time_is_up
from .cells import Diagram, PowerCells
from .densities import UniformBox
from .problem import SemidiscreteProblem, centred
from .solution import Outcome
from .starts import density_start, quantile_start

__all__ = ["DampedNewton"]

Array = NDArray[np.float64]

_HALVINGS = 40  # of a step
_BLENDS = 30  # halvings of the share of the uniform density, where the density itself leaves cells empty
_ROUGH = 0.25  # of the least mass: how well a blended problem is solved
_RIDGE = 1e-13  # relative, on the diagonal of the Laplacian, where cells do not hang together
_ROUNDING = 1e-14  # by which the dual value may seem to fall


class _State(NamedTuple):
    g: Array  # (k,)
    diagram: Diagram
    floor: float  # below which no cell may fall
    error: float  # sum_j |m_j - b_j|
    values: tuple[float, ...]  # of the dual
    steps: tuple[float, ...]
    stalled: bool


@dataclass(frozen=True)
class DampedNewton:
    r"""Maximise the dual of semi-discrete transport by Newton's method, with exact cells; squared Euclidean, d <= 3.

    .. math:: L\,\delta = b - m(g), \qquad g \leftarrow g + 2^{-l}\,\delta

    m_j(g) is the mass of the power cell of y_j, and L the Laplacian of the graph of cells that meet, with weights (mass
    on the facet) / (2 |y_j - y_k|). l is the least that keeps all cells above half of the least mass (of b, or at the
    start), that takes the share 2^(-l) / 2 off |m - b|, and that does not lower the dual. Steps are full ones from some
    point on, and converge quadratically. The start sends the atoms into the domain by the linear map of their moments;
    on the line it is the answer. Where a density with holes leaves cells empty, the start comes from the same problem
    with a share of the uniform density, halved until none is.

    Args:
        tol: marginal error sum_j |m_j - b_j| to stop at.
        max_iter: steps.
        g: potentials to start from, (m,); they are used if no cell is empty.

    Complexity: for n atoms O(n log n) time a step in the plane and one sparse factorisation; about O(n^2) at worst in
    space.

    Source: Kitagawa, Mérigot & Thibert (2019), Convergence of a Newton algorithm for semi-discrete optimal transport;
    Mérigot (2011), A multiscale approach to optimal transport.
    """

    name: ClassVar[str] = "damped-newton"
    tol: float = 1e-8
    max_iter: int = 200
    g: Tensor | None = None

    def __post_init__(self) -> None:
        check_number("tol", self.tol)
        check_count("max_iter", self.max_iter)

    @staticmethod
    def takes(problem: SemidiscreteProblem) -> bool:
        """Whether the source has a density with cells that are known exactly."""
        density = problem.source.density
        if density is None or problem.epsilon is not None or not isinstance(problem.cost, SqEuclidean):
            return False
        return density.d <= 2 or (density.d == 3 and isinstance(density, UniformBox))

    def check(self, problem: SemidiscreteProblem) -> None:
        """Refuse what has no exact cells."""
        if problem.epsilon is not None:
            refuse("epsilon", "none for method='newton'", repr(problem.epsilon), "Use method='sgd'.")
        if not isinstance(problem.cost, SqEuclidean):
            refuse("cost", "'sqeuclidean' for method='newton'", repr(problem.cost), "Use method='sgd'.")
        if not self.takes(problem):
            refuse(
                "source",
                "a density on the line, in the plane, or UniformBox in space, for method='newton'",
                "another law" if problem.source.density is None else repr(problem.source.density),
                "Use method='sgd'.",
            )

    def init(self, problem: SemidiscreteProblem, generator: torch.Generator | None) -> _State:
        density = problem.source.density
        assert density is not None
        cells = _cells(problem)
        b = problem.atoms.b.cpu().numpy()
        if self.g is not None:
            g = problem.atoms.gathered(self.g.detach().double().cpu()).numpy()
            diagram = cells(g)
            if np.isfinite(g).all() and diagram.masses.min() > 0:
                return _state(cells, b, g, diagram)
        g = (quantile_start if density.d == 1 else density_start)(problem, density).numpy()
        diagram = cells(g)
        if density.d > 1 and not diagram.masses.min() > 0:
            g, diagram = _filled(cells, b, g)
        return _state(cells, b, g, diagram)

    def step(self, problem: SemidiscreteProblem, state: _State, generator: torch.Generator | None) -> _State:
        return _step(_cells(problem), problem.atoms.b.cpu().numpy(), state)

    def terminate(self, problem: SemidiscreteProblem, state: _State) -> Status | None:
        if state.error <= self.tol:
            return Status.CONVERGED
        return Status.STAGNATED if state.stalled else None

    def error(self, state: _State) -> float:
        return state.error

    def finish(self, problem: SemidiscreteProblem, state: _State, generator: torch.Generator | None) -> Outcome:
        cells, diagram, atoms = _cells(problem), state.diagram, problem.atoms
        b, like = atoms.b.cpu().numpy(), atoms.y
        costs = cells.costs(diagram)
        g = centred(torch.from_numpy(state.g), atoms.b.cpu())
        pull = 2 * (diagram.masses[:, None] * cells.y - diagram.first)  # the envelope's gradient in y
        masses, gradient = (torch.from_numpy(t).to(like.device) for t in (diagram.masses, pull))
        polygons = None
        if diagram.polygons is not None:
            vertices, _, count = diagram.polygons
            polygons = [v[:k] + cells.centre for v, k in zip(vertices, count)]
        stats = {
            "marginal_error": state.error,
            "dual_values": list(state.values),
            "step_sizes": list(state.steps),
        }
        return Outcome(
            g=g.to(like.device),
            masses=masses,
            gradient=gradient,
            value=_dual(cells, b, state.g, diagram),
            linear_value=float(costs.sum()),
            certificate=_certified(cells, b, state.g, diagram, costs),
            stats=stats,
            state=None,
            polygons=polygons,
        )


def _cells(problem: SemidiscreteProblem) -> PowerCells:
    density = problem.source.density
    assert density is not None
    return PowerCells(density.pieces(), problem.atoms.y.double().cpu().numpy())


def _dual(cells: PowerCells, b: Array, g: Array, diagram: Diagram) -> float:
    """<b, g> + the integral of min_j |x - y_j|^2 - g_j, unchanged by a constant added to g."""
    return float(cells.costs(diagram).sum() + (b - diagram.masses) @ (g - g.mean()))


def _state(cells: PowerCells, b: Array, g: Array, diagram: Diagram) -> _State:
    floor = float(min(diagram.masses.min(), b.min()) / 2)
    value = _dual(cells, b, g, diagram)
    return _State(g, diagram, floor, float(np.abs(diagram.masses - b).sum()), (value,), (), False)


def _step(cells: PowerCells, b: Array, state: _State) -> _State:
    """One damped step; the same state, stalled, where no step is any good."""
    residual = b - state.diagram.masses
    direction = _newton(state.diagram, residual)
    norm = float(np.linalg.norm(residual))
    slack = _ROUNDING * (float(np.abs(b * state.g).sum()) + cells.size)
    t = 1.0
    for _ in range(_HALVINGS):
        g = state.g + t * direction
        diagram = cells(g)
        left = diagram.masses - b
        if diagram.masses.min() >= state.floor and np.linalg.norm(left) <= (1 - t / 2) * norm:
            value = _dual(cells, b, g, diagram)
            if value >= state.values[-1] - slack:
                error = float(np.abs(left).sum())
                values, steps = (*state.values, value), (*state.steps, t)
                return _State(g, diagram, state.floor, error, values, steps, False)
        if time_is_up():
            break
        t /= 2
    return state._replace(stalled=True)


def _newton(diagram: Diagram, residual: Array) -> Array:
    """Solve L x = residual for the Laplacian of cells that meet."""
    from scipy.sparse import csc_array, diags_array
    from scipy.sparse.linalg import splu

    n = len(residual)
    edges = csc_array((diagram.weights, (diagram.rows, diagram.cols)), shape=(n, n))
    edges = (edges + edges.T) / 2  # either side of a facet measures it once
    degrees = edges.sum(0)
    degrees = degrees + _RIDGE * max(float(degrees.max()), 1e-300)
    laplacian = (diags_array(degrees) - edges).tocsc()
    keep = np.arange(n) != degrees.argmax()  # known up to a constant: zero at one atom
    kept = laplacian[keep][:, keep].tocsc()
    out = np.zeros(n)
    if n > 1:
        factor: Any = splu(kept, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
        out[keep] = factor.solve(residual[keep])
    return out


def _filled(cells: PowerCells, b: Array, g: Array) -> tuple[Array, Diagram]:
    """Potentials under which no cell is empty, from problems with less and less of the uniform density.

    With a share t the cells of the solution hold at least (b_j - t) / (1 - t) of the density itself, so that some t
    will do.
    """
    t = 1.0
    for _ in range(_BLENDS):
        blended = cells.blended(t)
        state = _state(blended, b, g, blended(g))
        while np.abs(state.diagram.masses - b).max() > _ROUGH * b.min() and not state.stalled and not time_is_up():
            state = _step(blended, b, state)
        g = state.g
        diagram = cells(g)
        if diagram.masses.min() > 0 or time_is_up():
            break
        t /= 2
    return g, diagram


def _certified(cells: PowerCells, b: Array, g: Array, diagram: Diagram, costs: Array) -> Certificate:
    """The dual value below; above, the cost of the map made feasible.

    A cell with too much mass keeps the share b_j / m_j everywhere in it, and what it gives away goes to all the atoms
    that lack mass, in proportion to what they lack.
    """
    m = diagram.masses
    keep = np.divide(b, m, out=np.ones_like(b), where=m > b)
    lack = (b - m).clip(min=0)
    missing = lack.sum()
    primal = float(keep @ costs)
    if missing > 0:
        q = lack / missing
        away = 1 - keep
        mean, square = q @ cells.y, q @ np.square(cells.y).sum(1)
        primal += float(away @ (diagram.second - 2 * diagram.first @ mean + square * m))
    dual = _dual(cells, b, g, diagram)
    scale = float(costs.sum() + np.abs((b - m) * (g - g.mean())).sum())
    found = torch.tensor([primal, dual, float(np.abs(m - b).sum()), scale], dtype=torch.float64)
    upper, lower, error, size = found
    return Certificate(upper, lower, (torch.zeros_like(error), error), size)
