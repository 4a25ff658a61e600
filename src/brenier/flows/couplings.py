"""Couplings: which source sample meets which data sample when a flow is trained."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .._inputs import check_finite, is_count, is_real, same_place, weights_tensor
from ..api import assign, solve
from ..costs import Cost, as_cost
from ..errors import refuse
from ..geometry import CostMatrix, Geometry, PointCloud
from ..plan import Entries, SparsePlan
from ..problem import Relative
from ..solvers import SemidiscreteSolution, Solver, semidiscrete_transport

__all__ = [
    "Coupled",
    "Coupling",
    "EntropicCoupling",
    "ExactCoupling",
    "GibbsWeights",
    "IndependentCoupling",
    "SemidiscreteCoupling",
    "gibbs_log_weight",
]

Ground = str | Cost | Callable[[Tensor, Tensor], Tensor]
"""A cost between points, as for `solve`."""

_WIDE, _MATRIX = 64, 2**26  # coordinates from which, and pairs up to which a matrix of costs is kept
_SMALL = 1024  # points up to which one call of `assign` is done before a solve has checked its input
_TILE = 1 << 22  # entries of a plan that are formed at once to draw from


class Coupled(NamedTuple):
    """Pairs to train on."""

    x0: Tensor  # (k, *shape) source samples
    x1: Tensor  # (k, *shape) their partners
    rows: Tensor  # (k,) which source samples these are, ascending
    cols: Tensor | None  # (k,) which data samples; None where partners are means of several
    log_weight: Tensor | None = None  # (k,) logarithms of the weights of the pairs, up to a constant; None for 0


class Coupling(ABC):
    """A way to pair samples of a source with samples of data.

    A coupling has no state that calls change: the same samples and the same random numbers give the same pairs.
    """

    own_data: ClassVar[bool] = False  # whether partners come from a data set of its own

    @abstractmethod
    def __call__(
        self,
        x0: Tensor,  # (n, *shape)
        x1: Tensor,  # (m, *shape)
        *,
        labels0: Tensor | None = None,  # (n,)
        labels1: Tensor | None = None,  # (m,)
        a: Any = None,  # (n,)
        b: Any = None,  # (m,)
        generator: torch.Generator | None = None,
    ) -> Coupled:
        """Pair n source samples with data: n pairs, each source sample in one if the masses a are uniform.

        Args:
            x0: source samples.
            x1: data.
            labels1: classes of the data, which pairs respect: see `mismatch` where there is one, otherwise partners
                are of one class.
            labels0: classes of the source; None for a source without classes (noise), whose i-th sample then is to
                have the class of the i-th data sample, so that the source has the same law in every class.
            a, b: masses; uniform when None.
            generator: of what is drawn; that of torch when None.

        Raises:
            InvalidInput: samples that do not fit together, NaN or infinity, masses or labels that break a rule.
        """


class _Minibatch(Coupling):
    """Couplings of the samples at hand: checks, and classes, which are blocks or a part of the cost."""

    mismatch: float = math.inf

    def __call__(
        self,
        x0: Tensor,
        x1: Tensor,
        *,
        labels0: Tensor | None = None,
        labels1: Tensor | None = None,
        a: Any = None,
        b: Any = None,
        generator: torch.Generator | None = None,
    ) -> Coupled:
        """Pair samples; see `Coupling`."""
        x, y = _read(x0, "x0"), _read(x1, "x1")
        same_place(x, "x0", y, "x1")
        if x0.shape[1:] != x1.shape[1:]:
            refuse("x0 and x1", "samples of one shape", f"{tuple(x0.shape[1:])} and {tuple(x1.shape[1:])}")
        a = None if a is None else weights_tensor(a, len(x), "a", x).detach()
        b = None if b is None else weights_tensor(b, len(y), "b", y).detach()
        labels = _read_labels(labels0, labels1, len(x), len(y), x.device)
        with torch.no_grad():
            if labels is None:
                rows, cols, mean = self._pair(x, y, a, b, None, generator)
            elif self.mismatch < math.inf:
                rows, cols, mean = self._pair(x, y, a, b, labels, generator)
            else:
                rows, cols, mean = self._blocks(x, y, a, b, labels, generator)
        x0 = x0[rows]
        if mean is not None:
            return Coupled(x0, mean.to(x1.dtype).reshape(len(rows), *x1.shape[1:]), rows, None)
        assert cols is not None
        x1 = x1[cols]
        return Coupled(x0, x1, rows, cols, self._log_weight(x0, x1))

    @abstractmethod
    def _pair(
        self,
        x: Tensor,  # (n, d)
        y: Tensor,  # (m, d)
        a: Tensor | None,
        b: Tensor | None,
        labels: tuple[Tensor, Tensor] | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Rows (n,), ascending, with columns (n,) or partners (n, d); labels if the cost shall know them."""

    def _log_weight(self, x0: Tensor, x1: Tensor) -> Tensor | None:
        return None

    def _blocks(
        self,
        x: Tensor,
        y: Tensor,
        a: Tensor | None,
        b: Tensor | None,
        labels: tuple[Tensor, Tensor],
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Each class by itself."""
        found: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
        for label in labels[0].unique().tolist():
            r, c = ((side == label).nonzero().squeeze(-1) for side in labels)
            u, v = (None if w is None else w[index] for w, index in ((a, r), (b, c)))
            rows, cols, mean = self._pair(x[r], y[c], u, v, None, generator)
            found.append((r[rows], None if cols is None else c[cols], mean))
        parts = [torch.cat([t for t in part if t is not None]) if part[0] is not None else None for part in zip(*found)]
        assert parts[0] is not None
        order = parts[0].argsort(stable=True)
        first, second, third = (None if part is None else part[order] for part in parts)
        assert first is not None
        return first, second, third


@dataclass(frozen=True)
class IndependentCoupling(_Minibatch):
    """Pair source and data at random: as they come, one to one, which is the coupling of plain flow matching.

    With masses, or unequal numbers, data are drawn for each source sample.

    Example:
        >>> import torch
        >>> x0, x1 = torch.zeros(3, 2), torch.arange(6.0).reshape(3, 2)
        >>> IndependentCoupling()(x0, x1).cols.tolist()
        [0, 1, 2]
    """

    def _pair(
        self,
        x: Tensor,
        y: Tensor,
        a: Tensor | None,
        b: Tensor | None,
        labels: tuple[Tensor, Tensor] | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        rows = _rows(len(x), a, x.device, generator)
        if b is None and len(x) == len(y):
            return rows, torch.arange(len(y), device=y.device), None
        cols = _stratified(y.new_ones(len(y)) if b is None else b, len(x), generator)
        shuffled = _uniform(len(cols), y.device, generator).argsort()
        return rows, cols[shuffled], None


@dataclass(frozen=True)
class GibbsWeights(IndependentCoupling):
    r"""Pair at random and weigh the pairs, with no solver at all: the coupling of W-CFM.

    .. math:: \log w(x_0, x_1) = -c(x_0, x_1) / \varepsilon

    Weighted pairs are those of the law proportional to w times the product of the two, which is the entropic plan
    between its own marginals; see `brenier.systems.generative.w_cfm`.

    Args:
        epsilon: in cost units, > 0.
        cost: as for `solve`; W-CFM takes the distance, not its square.

    Raises:
        InvalidInput: an epsilon that is not positive and finite.

    Example:
        >>> import torch
        >>> weighted = GibbsWeights(epsilon=2.0)(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
        >>> weighted.log_weight.tolist()
        [-2.5]

    Source: Calvo-Ordoñez, Meunier, Cartea, Reisinger, Gal & Hernández-Lobato (2025), Weighted conditional flow
    matching.
    """

    epsilon: float
    cost: Ground = "euclidean"

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)
        as_cost(self.cost)

    def _log_weight(self, x0: Tensor, x1: Tensor) -> Tensor | None:
        return gibbs_log_weight(x0, x1, self.epsilon, cost=self.cost)


@dataclass(frozen=True)
class ExactCoupling(_Minibatch):
    r"""Pair along an exact optimal plan between the samples at hand.

    .. math:: \min_P \langle P, C\rangle \quad\text{over}\quad P \ge 0,\ P \mathbf 1 = a,\ P^\top \mathbf 1 = b

    As many samples on both sides, without masses, are matched one to one. Otherwise each source sample draws its
    partner from its row of the plan.

    Small minibatches leave a bias: their plans are not parts of the plan between the laws. Couple many samples at once
    and train on parts of them: `CouplingLoader(pool=...)`.

    Args:
        cost: as for `solve`.
        mismatch: of labels: the price of a pair whose labels differ, in cost units; infinite keeps classes apart.
        solver: as for `solve`, one whose plan is sparse; "hierarchical" matches 100,000 samples approximately.

    Raises:
        InvalidInput: a price that is negative or no number; a solver whose plan is not sparse.
        NotConverged: from the solver.

    Complexity: that of `assign` and `solve`. Up to 1,024 samples, and up to 8,192 of more than 64 coordinates, have a
    matrix of costs, in their own dtype.

    Example:
        >>> import torch
        >>> x0, x1 = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[2.1], [0.1], [1.1]])
        >>> ExactCoupling()(x0, x1).cols.tolist()
        [1, 2, 0]
        >>> ExactCoupling()(x0, x1, labels1=torch.tensor([0, 1, 1])).cols.tolist()  # noise, then of classes 0, 1, 1
        [0, 1, 2]

    Source: Tong, Fatras, Malkin, Huguet, Zhang, Rector-Brooks, Wolf & Bengio (2024), Improving and generalizing
    flow-based generative models with minibatch optimal transport; Pooladian, Ben-Hamu, Domingo-Enrich, Amos, Lipman &
    Chen (2023), Multisample flow matching. On classes: Cheng & Schwing (2025), The curse of conditions.
    """

    cost: Ground = "sqeuclidean"
    mismatch: float = math.inf
    solver: str | Solver[Any] = "auto"

    def __post_init__(self) -> None:
        as_cost(self.cost)
        _check_mismatch(self.mismatch)

    def _pair(
        self,
        x: Tensor,
        y: Tensor,
        a: Tensor | None,
        b: Tensor | None,
        labels: tuple[Tensor, Tensor] | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        x, y, ground = _with_labels(x, y, as_cost(self.cost), labels, self.mismatch)
        one_to_one = a is None and b is None and len(x) == len(y)
        if one_to_one and len(x) <= _SMALL and self.solver == "auto":
            cost = CostMatrix(PointCloud(x, y, ground).tile())
            return torch.arange(len(x), device=x.device), assign(cost).columns, None
        a, b = (None if w is None else w / w.sum() for w in (a, b))
        costs = _costs(x, y, ground) if self.solver == "auto" else PointCloud(x, y, ground)
        solution = solve(costs, a=a, b=b, solver=self.solver, throw=True, generator=generator)
        plan = solution.plan
        if not isinstance(plan, SparsePlan):
            refuse(
                "ExactCoupling solver", "one whose plan is sparse", solution.stats["solver"], "Use EntropicCoupling."
            )
        if one_to_one:
            return torch.arange(len(x), device=x.device), plan.argmax(), None
        rows = _rows(len(x), a, x.device, generator)
        return rows, _partners(rows, plan.entries(), len(x), generator), None


@dataclass(frozen=True)
class EntropicCoupling(_Minibatch):
    r"""Pair along an entropic plan: each source sample draws its partner, or goes to the mean of its partners.

    .. math:: P(j \mid x) = \frac{b_j\, e^{(g_j - c(x, y_j)) / \varepsilon}}
        {\sum_k b_k\, e^{(g_k - c(x, y_k)) / \varepsilon}}

    The rule holds for source samples that the solve has not seen. So with `anchors` the potentials come from some of
    the samples, and all others follow: g at new data is the soft c-transform of f. The data are then met approximately,
    as well as the anchors tell.

    Args:
        epsilon: in cost units, or `Relative(0.05)` for 0.05 x mean cost.
        cost: as for `solve`.
        mismatch: of labels: the price of a pair whose labels differ, in cost units; infinite keeps classes apart.
        barycentric: partners are the means of y under P(j | x) in the place of a draw. These have less variance than
            the data: a flow trained on them ends at their law.
        anchors: samples of each side to solve for, at most; all when None.
        tol: relative marginal error of the solve.
        max_iter: of iterations; that of the solver when None.

    Raises:
        InvalidInput: an epsilon, price or number that breaks a rule.
        NotConverged: the tolerance was not met.

    Complexity: that of `solve` with an epsilon on the anchors, and O(n m d) time once; O(n + m) memory beside a tile.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> x0, x1 = torch.randn(2, 300, 2, generator=generator)
        >>> pairs = EntropicCoupling(epsilon=0.1)(x0, x1 + 3, generator=generator)
        >>> bool(((pairs.x1 - pairs.x0).mean(0) - 3).abs().max() < 0.3)
        True

    Source: Pooladian & Niles-Weed (2021), Entropic estimation of optimal transport maps (the rule at new points); Tong
    et al. (2024), Improving and generalizing flow-based generative models with minibatch optimal transport.
    """

    epsilon: float | Relative = Relative(0.05)
    cost: Ground = "sqeuclidean"
    mismatch: float = math.inf
    barycentric: bool = False
    anchors: int | None = None
    tol: float = 1e-3
    max_iter: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.epsilon, Relative):
            _check_epsilon(self.epsilon)
        as_cost(self.cost)
        _check_mismatch(self.mismatch)
        if self.anchors is not None and not is_count(self.anchors):
            refuse("anchors", "a positive number of samples, or None for all", repr(self.anchors))

    def _pair(
        self,
        x: Tensor,
        y: Tensor,
        a: Tensor | None,
        b: Tensor | None,
        labels: tuple[Tensor, Tensor] | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        data = y
        x, y, ground = _with_labels(x, y, as_cost(self.cost), labels, self.mismatch)
        a, b = (None if w is None else w / w.sum() for w in (a, b))
        picked0, picked1 = (_picked(len(t), self.anchors, w, generator) for t, w in ((x, a), (y, b)))
        every = picked0 is None and picked1 is None
        some_x, some_y = x if picked0 is None else x[picked0], y if picked1 is None else y[picked1]
        costs = _costs(x, y, ground) if every else PointCloud(some_x, some_y, ground)
        solution = solve(
            costs,
            # anchors are drawn by their masses, and count alike
            a=a if picked0 is None else None,
            b=b if picked1 is None else None,
            epsilon=self.epsilon,
            tol=self.tol,
            max_iter=self.max_iter,
            throw=True,
        )
        epsilon = float(solution.stats["epsilon"])
        g = solution.g if picked1 is None else solution.potentials.target(y)
        h = g.to(y) if b is None else g.to(y) + epsilon * b.log()
        rows = _rows(len(x), a, x.device, generator)
        if a is not None or not every:
            costs = PointCloud(x[rows], y, ground)
        if self.barycentric:
            return rows, None, costs.apply(costs.softmin(h, epsilon), h, epsilon, data)
        return rows, _soft_partners(costs, h, epsilon, generator), None


class SemidiscreteCoupling(Coupling):
    r"""Pair each source sample with the data sample whose cell it falls into, by potentials that are solved for once.

    .. math:: x_0 \mapsto \arg\min_j \bigl(c(x_0, y_j) - g_j\bigr)

    The plan is that between the law of the source and the whole data set: no minibatch, so no bias of one. Its partners
    come from the data set that it was made with; data handed to a call are not looked at.

    Args:
        data: (N, *shape), kept.
        source: as for `semidiscrete_transport`, of points (n, d), d being the coordinates of a sample; standard normal
            when None.
        labels: (N,), what else is known of the data; `CouplingLoader` hands those of the partners on.
        b: masses of the data (N,); uniform when None.
        cost, tol, max_iter, timeout: as for `semidiscrete_transport`.
        generator: of the solve.

    Attributes:
        solution: the `SemidiscreteSolution`; its `certificate.marginal_error` says how evenly the data are used.

    Raises:
        InvalidInput: data or labels that break a rule.
        NotConverged: the tolerance was not met within max_iter or the timeout.

    Complexity: that of `semidiscrete_transport` once; O(N d) time for each sample.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> data = torch.tensor([[-1.0], [1.0]])
        >>> coupling = SemidiscreteCoupling(data, generator=generator)
        >>> coupling(torch.tensor([[-0.5], [2.0], [-3.0]])).cols.tolist()
        [0, 1, 0]

    Source: Genevay, Cuturi, Peyré & Bach (2016), Stochastic optimization for large-scale optimal transport.
    """

    own_data: ClassVar[bool] = True

    def __init__(
        self,
        data: Tensor,  # (N, *shape)
        source: Any = None,
        *,
        labels: Tensor | None = None,  # (N,)
        b: Any = None,  # (N,)
        cost: Ground = "sqeuclidean",
        tol: float = 0.1,
        max_iter: int | None = None,
        timeout: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        y = _read(data, "data")
        if labels is not None and (not isinstance(labels, Tensor) or labels.shape[:1] != data.shape[:1]):
            refuse("labels", f"a tensor with one entry for each of {len(data)} samples", _shape(labels))
        self.data, self.labels = data, labels
        self.solution: SemidiscreteSolution = semidiscrete_transport(
            _standard_normal(y.shape[1]) if source is None else source,
            y,
            b=b,
            cost=cost,
            tol=tol,
            max_iter=max_iter,
            timeout=timeout,
            throw=True,
            generator=generator,
        )

    def __call__(
        self,
        x0: Tensor,
        x1: Tensor | None = None,
        *,
        labels0: Tensor | None = None,
        labels1: Tensor | None = None,
        a: Any = None,
        b: Any = None,
        generator: torch.Generator | None = None,
    ) -> Coupled:
        """Find the partners of source samples (n, *shape); x1 and the generator are not looked at."""
        if labels0 is not None or labels1 is not None:
            refuse(
                "labels", "none, as the cells know no classes", "some", "Make one SemidiscreteCoupling for each class."
            )
        if a is not None or b is not None:
            refuse("a and b", "none", "some", "Give b to SemidiscreteCoupling; draw the source by its masses.")
        x = _read(x0, "x0")
        if x0.shape[1:] != self.data.shape[1:]:
            refuse("x0", f"samples of shape {tuple(self.data.shape[1:])}, like the data", f"{tuple(x0.shape[1:])}")
        cols = self.solution.assign(x)
        return Coupled(x0, self.data[cols], torch.arange(len(x), device=x.device), cols)

    def __repr__(self) -> str:
        return f"SemidiscreteCoupling(data of shape {tuple(self.data.shape)}, {self.solution!r})"


def gibbs_log_weight(
    x0: Tensor,  # (B, *shape)
    x1: Tensor,  # (B, *shape)
    epsilon: float,
    *,
    cost: Ground = "euclidean",
) -> Tensor:  # (B,)
    r"""Compute the logarithms of the Gibbs weights of pairs, :math:`-c(x_0, x_1) / \varepsilon`.

    Always logarithms: the weights themselves underflow on images. All axes but the first are one point; half precision
    is computed in float32.

    Args:
        x0, x1: pairs.
        epsilon: in cost units, > 0.
        cost: as for `solve`.

    Raises:
        InvalidInput: pairs of different shapes, NaN or infinity, an epsilon that is not positive and finite.

    Example:
        >>> import torch
        >>> gibbs_log_weight(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), 0.5).tolist()  # of distance 2
        [-4.0]

    Source: Calvo-Ordoñez et al. (2025), Weighted conditional flow matching.
    """
    _check_epsilon(epsilon)
    x, y = _read(x0, "x0"), _read(x1, "x1")
    same_place(x, "x0", y, "x1")
    if x0.shape != x1.shape:
        refuse("x0 and x1", "pairs of one shape", f"{tuple(x0.shape)} and {tuple(x1.shape)}")
    ground = as_cost(cost)
    ground.check(x.shape[1])
    return -ground(x, y) / epsilon


@dataclass(frozen=True)
class _Mismatch(Cost):
    """A cost between points whose last coordinate is a label, and a price for labels that differ."""

    ground: Cost
    price: float

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        differ = (x[..., -1] != y[..., -1]).to(x.dtype)
        return self.ground(x[..., :-1], y[..., :-1]) + self.price * differ

    def block(self, x: Tensor, y: Tensor) -> Tensor:
        differ = (x[..., :, None, -1] != y[..., None, :, -1]).to(x.dtype)
        return self.ground.block(x[..., :-1], y[..., :-1]) + self.price * differ

    def check(self, dim: int) -> None:
        self.ground.check(dim - 1)


def _with_labels(
    x: Tensor, y: Tensor, ground: Cost, labels: tuple[Tensor, Tensor] | None, price: float
) -> tuple[Tensor, Tensor, Cost]:
    """Points with their labels as a last coordinate, and the cost that reads them; unchanged without labels."""
    if labels is None:
        return x, y, ground
    x, y = (torch.cat([t, side.to(t.dtype).unsqueeze(1)], 1) for t, side in zip((x, y), labels))
    return x, y, _Mismatch(ground, price)


def _read(samples: Any, name: str) -> Tensor:
    """Samples (n, *shape) as points (n, d), detached; half precision as float32."""
    if not isinstance(samples, Tensor) or not samples.is_floating_point():
        refuse(name, "a floating tensor of samples (n, *shape)", str(getattr(samples, "dtype", type(samples).__name__)))
    if samples.dim() < 1 or not samples.numel():
        refuse(name, "at least one sample (n, *shape)", _shape(samples))
    flat = samples.detach().reshape(len(samples), -1)
    check_finite(flat, name, "finite samples")
    return flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat


def _read_labels(
    labels0: Tensor | None, labels1: Tensor | None, n: int, m: int, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """Labels of both sides as numbers 0, 1, ..."""
    if labels1 is None:
        if labels0 is not None:
            refuse("labels1", "labels of the data beside those of the source", "None")
        return None
    if labels0 is None:
        if n != m:
            refuse("labels0", "labels of the source, as there are not as many source samples as data", "None")
        labels0 = labels1
    for labels, size, name in ((labels1, m, "labels1"), (labels0, n, "labels0")):
        if not isinstance(labels, Tensor) or tuple(labels.shape) != (size,):
            refuse(name, f"a tensor of shape ({size},)", _shape(labels))
    classes, index = torch.cat([labels0, labels1.to(labels0)]).to(device).unique(return_inverse=True)
    sides = index[:n], index[n:]
    seen = [torch.bincount(side, minlength=len(classes)) > 0 for side in sides]
    if not torch.equal(*seen):
        alone = classes[seen[0] != seen[1]].tolist()
        refuse("labels", "the same classes on both sides", f"{alone} on one only")
    return sides


def _shape(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _check_epsilon(epsilon: Any) -> None:
    if not (is_real(epsilon) and 0 < epsilon < math.inf):
        refuse("epsilon", "a positive finite number in cost units", repr(epsilon))


def _check_mismatch(price: Any) -> None:
    if not (is_real(price) and price >= 0):
        refuse("mismatch", "a price >= 0, or infinity", repr(price))


def _uniform(k: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers (k,), drawn where the generator lives."""
    home = torch.device("cpu") if generator is None else generator.device
    return torch.rand(k, generator=generator, dtype=torch.float64, device=home).to(device)


def _stratified(mass: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
    """Indices (k,), ascending, by their masses (n,): one from each k-th of the total."""
    total = mass.double().cumsum(0)
    places = (torch.arange(k, device=mass.device) + _uniform(k, mass.device, generator)) / k * total[-1]
    last = int((mass > 0).nonzero()[-1])
    return torch.searchsorted(total, places, right=True).clamp(max=last)


def _rows(n: int, a: Tensor | None, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """The source samples of n pairs."""
    return torch.arange(n, device=device) if a is None else _stratified(a, n, generator)


def _picked(n: int, most: int | None, mass: Tensor | None, generator: torch.Generator | None) -> Tensor | None:
    """Some of n samples, by their masses; None for all."""
    if most is None or n <= most:
        return None
    if mass is not None:
        return _stratified(mass, most, generator)
    return _uniform(n, torch.device("cpu"), generator).argsort()[:most].sort().values


def _partners(rows: Tensor, entries: Entries, n: int, generator: torch.Generator | None) -> Tensor:
    """A column for each row (k,), drawn from the entries of a plan, which come row by row."""
    counts = torch.bincount(entries.rows, minlength=n)
    last = counts.cumsum(0) - 1
    first = (last - counts + 1)[rows]
    last = last[rows]
    mass = entries.mass.double()
    total = mass.cumsum(0)
    low = (total - mass)[first]
    places = low + _uniform(len(rows), rows.device, generator) * (total[last] - low)
    index = torch.searchsorted(total, places, right=True)
    found: Tensor = entries.cols[torch.minimum(torch.maximum(index, first), last)]
    return found


def _costs(x: Tensor, y: Tensor, ground: Cost) -> Geometry:
    """The costs of all pairs: as a matrix where each pass over them would be a product in many dimensions."""
    cloud = PointCloud(x, y, ground)
    return CostMatrix(cloud.tile()) if x.shape[-1] > _WIDE and len(x) * len(y) <= _MATRIX else cloud


def _soft_partners(costs: Geometry, h: Tensor, epsilon: float, generator: torch.Generator | None) -> Tensor:
    """A column for each row, with probabilities proportional to exp((h_j - c_ij) / epsilon): (n,)."""
    n, m = costs.shape
    parts = []
    for rows in torch.arange(n, device=costs.device).split(max(1, _TILE // m)):
        total = ((h - costs.tile(rows)) / epsilon).softmax(-1).double().cumsum(-1)
        places = _uniform(len(rows), costs.device, generator).unsqueeze(-1) * total[:, -1:]
        parts.append(torch.searchsorted(total, places, right=True).squeeze(-1))
    return torch.cat(parts).clamp(max=m - 1)


def _standard_normal(d: int) -> Callable[[int, torch.Generator | None], Tensor]:
    def sample(n: int, generator: torch.Generator | None) -> Tensor:
        return torch.randn(n, d, generator=generator)

    return sample
