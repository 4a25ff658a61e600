"""The answer: potentials, cells, values, a map out of sample, and how good it is."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._inputs import Kind, check_finite, float_tensor
from ..._once import walled
from ...certificate import Certificate
from ...errors import need, refuse
from ...solution import Status
from .problem import SemidiscreteProblem

__all__ = ["Estimate", "Outcome", "SampledCertificate", "SemidiscreteSolution"]

_RASTER = 400  # pixels a side of a picture of cells that have no polygons
_COLOURS = 20


class Estimate(NamedTuple):
    """A mean over random points, and its standard error."""

    mean: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.mean:.8g} ± {self.standard_error:.2g}"


class SampledCertificate(NamedTuple):
    r"""What held-out points say of potentials: estimates with standard errors, no proof.

    The points are fresh: the potentials were chosen without them. So `dual` is an unbiased estimate of the dual value,
    which is a lower bound of the minimum, and `linear` one of the cost of the map (of the plan, with an epsilon),
    which is optimal onto masses m_j that differ from b_j. `chi2` is an unbiased estimate of sum_j (m_j - b_j)^2 / b_j,
    and may come out negative; its root bounds the marginal error sum_j |m_j - b_j|.
    """

    dual: Estimate
    linear: Estimate
    chi2: Estimate
    n: int  # held-out points

    @property
    def marginal_error(self) -> float:
        """The root of chi^2: an estimate of a bound on sum_j |m_j - b_j|."""
        return math.sqrt(max(self.chi2.mean, 0.0))

    @property
    def marginal_bound(self) -> float:
        """The same with two standard errors on top."""
        return math.sqrt(max(self.chi2.mean + 2 * self.chi2.standard_error, 0.0))

    def __str__(self) -> str:
        return (
            f"lower bound {self.dual}, cost of the map {self.linear}, marginal error about {self.marginal_error:.2g}, "
            f"at most {self.marginal_bound:.2g} within two standard errors, from {self.n} held-out points"
        )


class Outcome(NamedTuple):
    """What a method hands over, of the atoms with mass, each point once."""

    g: Tensor  # (k,)
    masses: Tensor  # (k,)
    gradient: Tensor | None  # of the dual in y, (k, d)
    value: float
    linear_value: float
    certificate: Certificate | SampledCertificate
    stats: dict[str, Any]
    state: dict[str, Any] | None  # to resume from
    polygons: list[Any] | None


class _Envelope(torch.autograd.Function):
    """A value whose gradients are known; first derivatives only."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, y: Tensor, b: Tensor, dy: Tensor, db: Tensor) -> Tensor:
        ctx.save_for_backward(y, b, dy, db)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        y, b, dy, db = ctx.saved_tensors
        return None, *walled((grad * dy, grad * db), (grad, y, b), "a semi-discrete value"), None, None


class SemidiscreteSolution:
    """What `semidiscrete_transport` returns.

    Attributes:
        problem: what was solved.
        status: how it ended.
        stats: how: method, n_iter, seconds, marginal_error; of Newton's method also `dual_values` and `step_sizes`, of
            stochastic gradients `errors`, pairs of an iteration and the error that was found there.
        certificate: exact cells: a `Certificate`, whose bounds hold to rounding. Otherwise a `SampledCertificate`:
            estimates and their standard errors.
        state: of stochastic gradients, tensors and numbers to resume from (`start=`), which `torch.save` takes.

    Outputs are of the kind of y: torch in, torch out; NumPy in, NumPy out; pandas in, pandas out.
    """

    def __init__(
        self, problem: SemidiscreteProblem, outcome: Outcome, status: Status, stats: dict[str, Any], kind: Kind
    ) -> None:
        self.problem, self.status, self.stats, self.kind = problem, status, stats, kind
        self.certificate, self.state = outcome.certificate, outcome.state
        self._outcome = outcome
        self._grad = torch.is_grad_enabled()

    @cached_property
    def g(self) -> Any:
        """The potential of the atoms, (m,), with sum_j b_j g_j = 0; -inf where b_j = 0."""
        return self.kind.per_row(self._g)

    @property
    def _g(self) -> Tensor:
        return self.problem.atoms.spread(self._outcome.g, -torch.inf).to(self.problem.y.dtype)

    @cached_property
    def masses(self) -> Any:
        """The source's mass in the cell of each atom, (m,); equal atoms share one in proportion to b."""
        return self.kind.per_row(self.problem.atoms.shared(self._outcome.masses).to(self.problem.y.dtype))

    @cached_property
    def value(self) -> Any:
        """The dual value at g, a lower bound of the minimum; see `certificate` for how sure it is.

        Differentiable in y and b, by the envelope theorem: first derivatives, that in b up to one constant for all
        atoms, and NaN where b_j = 0.
        """
        y, b, atoms = self.problem.y, self.problem.b, self.problem.atoms
        value = y.new_tensor(self._outcome.value)
        if self._grad and self._outcome.gradient is not None and (y.requires_grad or b.requires_grad):
            dy = atoms.shared(self._outcome.gradient).to(y.dtype)
            db = torch.where(torch.isfinite(self._g), self._g, torch.nan)
            with torch.enable_grad():
                value = _Envelope.apply(value, y, b, dy, db)
        return self.kind.array(value)

    @cached_property
    def linear_value(self) -> Any:
        """The mean of c(x, map(x)), the transport cost of the map; with an epsilon that of the plan."""
        return self.kind.array(self.problem.y.new_tensor(self._outcome.linear_value))

    # -- out of sample ---------------------------------------------------------------------------------------

    def assign(self, x: Any, k: int = 1) -> Any:
        """The atom whose cell each point lies in, argmin_j c(x, y_j) - g_j; with an epsilon the likeliest.

        Args:
            x: (n, d).
            k: the k best instead, best first.

        Returns:
            (n,) indices, or (n, k) for k > 1; of equal atoms the first.
        """
        atoms, count = self.problem.atoms, len(self._outcome.g)
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= count:
            refuse("k", f"an integer from 1 to {count}", repr(k))
        points = self._read(x)
        cloud, h = self.problem.cloud(points), self._h
        if k == 1:
            return self.kind.array(atoms.given(cloud.cmin(h)[1]))
        near = cloud.support(points.new_zeros(len(points)), h, math.inf, k)
        values, cols = near.reduced.reshape(-1, k), near.cols.reshape(-1, k)
        return self.kind.array(atoms.given(cols.gather(1, values.sort(dim=1, stable=True).indices)))

    def map(self, x: Any) -> Any:
        """Send points (n, d) to their atoms; with an epsilon to the mean of the atoms under the plan, (n, d)."""
        points, atoms, epsilon = self._read(x), self.problem.atoms, self.problem.epsilon
        cloud, h = self.problem.cloud(points), self._h
        if epsilon is None:
            moved = atoms.y[cloud.cmin(h)[1]]
        else:
            moved = cloud.apply(cloud.softmin(h, epsilon), h, epsilon, atoms.y)
        labels = getattr(x, "index", None)
        return self.kind.points(moved, None if callable(labels) else labels)

    def potential(self, x: Any) -> Any:
        """The potential of the source at points (n, d): min_j c(x, y_j) - g_j, softly with an epsilon, (n,)."""
        cloud, epsilon = self.problem.cloud(self._read(x)), self.problem.epsilon
        return self.kind.array(cloud.cmin(self._h)[0] if epsilon is None else cloud.softmin(self._h, epsilon))

    @property
    def _h(self) -> Tensor:
        """Potentials of the atoms, with their masses absorbed where there is an epsilon."""
        g, epsilon, atoms = self._outcome.g, self.problem.epsilon, self.problem.atoms
        return (g if epsilon is None else g + epsilon * atoms.b.log()).to(atoms.y)

    def _read(self, x: Any) -> Tensor:
        names, columns = self.kind.columns, getattr(x, "columns", None)
        if names is not None and columns is not None:  # frames are matched by column name, not by position
            x = x[list(names)]
        points = float_tensor(x, "x").detach().to(self.problem.atoms.y)
        d = self.problem.y.shape[1]
        if points.dim() == 1 and d == 1:
            points = points.unsqueeze(-1)
        if points.dim() != 2 or points.shape[1] != d:
            refuse("x", f"points of shape (n, {d})", f"shape {tuple(points.shape)}")
        check_finite(points, "x", "finite coordinates")
        return points

    # -- for people ------------------------------------------------------------------------------------------

    @property
    def polygons(self) -> list[Any] | None:
        """The cells as vertices (k_j, 2), counter-clockwise, one for each atom; None where these are not known."""
        cells, atoms = self._outcome.polygons, self.problem.atoms
        if cells is None:
            return None
        nothing = torch.zeros(0, 2, dtype=torch.float64).numpy()
        which = atoms.spread(torch.arange(len(cells), device=atoms.y.device), -1).tolist()
        return [nothing if j < 0 else cells[j] for j in which]

    def plot(self, ax: Any = None) -> Any:
        """Draw the cells and the atoms, in the plane.

        Args:
            ax: a matplotlib axes; a new one when None.

        Returns:
            The axes.
        """
        plt = need("matplotlib.pyplot", "plot", "SemidiscreteSolution.plot")
        collections = need("matplotlib.collections", "plot", "SemidiscreteSolution.plot")
        if self.problem.y.shape[1] != 2:
            refuse("plot", "atoms in the plane", f"dimension {self.problem.y.shape[1]}")
        ax = plt.subplots(figsize=(6, 6))[1] if ax is None else ax
        y = self.problem.atoms.y.double().cpu()
        colours = plt.get_cmap("tab20")
        cells = self._outcome.polygons
        if cells is not None:
            faces = [colours(j % _COLOURS) for j in range(len(cells))]
            ax.add_collection(
                collections.PolyCollection(cells, facecolors=faces, edgecolors="white", linewidths=0.6, alpha=0.6)
            )
            ax.autoscale_view()
        else:
            low, high = y.amin(0), y.amax(0)
            edge = 0.15 * (high - low).max()
            low, high = low - edge, high + edge
            axes = [torch.linspace(float(a), float(c), _RASTER, dtype=y.dtype) for a, c in zip(low, high)]
            index = self.problem.cloud(torch.cartesian_prod(*axes).to(self.problem.atoms.y)).cmin(self._h)[1]
            image = colours((index.reshape(_RASTER, _RASTER).mT.cpu() % _COLOURS).numpy())
            ax.imshow(image, origin="lower", extent=torch.stack([low, high], 1).flatten().tolist(), alpha=0.6)
        ax.scatter(y[:, 0], y[:, 1], s=max(2.0, min(20.0, 2000 / len(y))), c="black", linewidths=0)
        ax.set_xlabel("coordinate 1")
        ax.set_ylabel("coordinate 2")
        ax.set_aspect("equal", adjustable="datalim")
        return ax

    def __repr__(self) -> str:
        return (
            f"SemidiscreteSolution(value={self._outcome.value:.8g}, atoms={len(self.problem.y)}, "
            f"method={self.stats.get('method')!r}, status={self.status.name})"
        )
