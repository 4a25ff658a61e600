"""Exact partial transport on the line between points of one mass: the best matching grows pair by pair."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..._inputs import float_tensor, is_real
from ...costs import Arc, Cost, Lp, Mahalanobis, SqEuclidean, as_cost
from ...errors import refuse
from ...geometry import LineCloud, PointCloud
from ...geometry.line import LineCost, ordered
from ...kernels.build import native, warn_without_native
from ...kernels.partial_path import partial_paths
from ...marginals import TV, Exact, Marginal, Partial, Side, Slack
from ...problem import Problem
from ...solution import Status
from ..base import Outcome, Solver
from .line import arc_on_line
from .monotone import LineState, outcome, unsorted

__all__ = ["PartialMonotone", "PartialPath", "partial_line_cost", "partial_line_path", "takes_part"]

_ROUNDING = 1e-12  # relative, by which a number of points is a whole one


@dataclass(frozen=True)
class PartialMonotone(Solver[Any]):
    r"""Partial and unbalanced transport on the line, between points that all have one mass.

    Solves min <P, C> + phi_a(P1) + phi_b(P^T 1) for the costs |x - y|^p with p >= 1. All weights, of both sides, are
    equal. Either both marginals set a price, `TV(rho)` on both sides or `Slack(delta)`, with one rho or delta for all
    points of a side; or one gives the mass, `Partial` or `Exact`, against another such, or a `Slack`.

    The best matching of k + 1 pairs has the points of the best one of k, and two more: neighbours among those left out.
    So the path of all k is as cheap as its end; a mass tells where to stop, and so does a price, by what the next
    pair would add. Between two numbers of pairs the plan is the mixture of both. Batched.

    O((n + m) log(n + m)) time at p = 1 (native engine), and for clouds that are mixed; O(n m) at worst, for clouds
    that lie side by side. O(n + m) memory. Potentials follow in O(n + m), and the certificate is that of `Monotone`.

    Args:
        engine: "native" (C++), "reference" (NumPy), or "auto".

    Example:
        >>> import torch, brenier
        >>> x, y = torch.tensor([0.0, 1.0, 9.0]), torch.tensor([1.5, 0.0, -4.0])
        >>> solution = brenier.solve(x, y, cost="euclidean", marginals=brenier.TV(2.0))
        >>> solution.stats["solver"], solution.plan.row_sums().gt(0).tolist(), float(solution.certificate.gap)
        ('partial-monotone', [True, True, False], 0.0)

    Reference:
        Chapel & Tavenard (2025), One for all and all for one: efficient computation of partial Wasserstein distances on
        the line; Bai, Schmitzer, Thorpe & Kolouri (2023), Sliced optimal partial transport.
    """

    name: ClassVar[str] = "partial-monotone"
    engine: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine not in ("auto", "native", "reference"):
            refuse("engine", "'auto', 'native' or 'reference'", repr(self.engine))

    def check(self, problem: Problem) -> None:
        if problem.epsilon is not None:
            refuse(self.name, "epsilon=None", f"epsilon={problem.epsilon.tolist()}", "Use solver='sinkhorn'.")
        found = _obstacle(problem)
        if found is not None:
            refuse(self.name, *found)

    def init(self, problem: Problem) -> Any:
        return None

    def step(self, problem: Problem, state: Any) -> LineState:
        grown = _grown(problem, self.engine)
        f, g = _potentials(grown)
        n = grown.x.shape[-1]
        cols, mass = [], []
        for k, share in grown.mixture():
            partners = _partners(_chain(grown, k), n)
            cols.append(partners)
            mass.append(grown.unit * share.unsqueeze(-1) * (partners >= 0))
        if len(mass) == 2:  # a pair of both matchings is one entry
            same = cols[0] == cols[1]
            mass = [mass[0] + torch.where(same, mass[1], 0), torch.where(same, 0, mass[1])]
        rows = torch.arange(n, device=f.device).expand_as(cols[0])
        line = LineState(torch.cat([rows] * len(mass), -1), torch.cat(cols, -1).clamp(min=0), torch.cat(mass, -1), f, g)
        line = unsorted(line, grown.order_x, grown.order_y)
        return LineState(*(t.reshape(*problem.batch_shape, -1) for t in line))

    def terminate(self, problem: Problem, state: LineState) -> tuple[Status, ...] | None:
        return (Status.OPTIMAL,) * max(1, problem.batch_shape.numel())

    def error(self, state: LineState) -> float:
        return float("nan")

    def finish(self, problem: Problem, state: LineState) -> Outcome:
        engine = "native" if self.engine != "reference" and native is not None else "reference"
        return outcome(problem, state, LineCloud)._replace(stats={"engine": engine})


# -- what is taken -----------------------------------------------------------------------------------------------


def takes_part(problem: Problem) -> bool:
    """Whether `PartialMonotone` takes a problem without epsilon."""
    return _obstacle(problem) is None


def _obstacle(problem: Problem) -> tuple[str, str, str] | None:
    """What was expected, what came, and the cure; None where nothing is in the way."""
    geometry, cure = problem.geometry, "Use solver='network-simplex'."
    if not isinstance(geometry, PointCloud) or geometry.x.shape[-1] != 1:
        return "points on a line (d = 1)", repr(geometry), cure
    if _power(geometry.ground) is None:
        return "the cost |x - y|^p with p >= 1", repr(geometry.ground), cure
    a, b = problem.a.detach(), problem.b.detach()
    if not (bool((a == a[..., :1]).all()) and bool((b == a[..., :1]).all())):
        least, most = min(float(a.min()), float(b.min())), max(float(a.max()), float(b.max()))
        got = f"masses from {least:.6g} to {most:.6g}"
        return "points of one mass, the same on both sides", got, "Give ones as a and b, or use solve(x, y, a=, b=)."
    if not _priced_alike(problem):
        expected = "Partial, or TV or Slack with one price for all points of a side"
        return expected, str(problem.marginals), cure
    return None


def _power(ground: Cost) -> tuple[float, float] | None:
    """The p and s of a cost that is |s (x - y)|^p on the line, with p >= 1; None for others."""
    if isinstance(ground, SqEuclidean):
        return 2.0, 1.0
    if isinstance(ground, Mahalanobis):
        return 2.0, float(ground.root.abs())
    if isinstance(ground, Lp) and ground.power >= 1:
        return float(ground.power), 1.0
    return None


def _priced_alike(problem: Problem) -> bool:
    """Whether what stays behind has one price on each side, and no mass is worth making."""
    left, right = problem.marginals
    if not all(isinstance(p, Exact | Partial | Slack | TV) for p in (left, right)):
        return False
    prices = [_price(p, side) for p, side in zip((left, right), _sides(problem))]
    if not all(p is None or bool(((p == p[..., :1]) & torch.isfinite(p)).all()) for p in prices):
        return False
    for marginal, own, other in ((left, prices[0], prices[1]), (right, prices[1], prices[0])):
        # mass made at a point, at its price, could serve what would otherwise stay on the other side
        if isinstance(marginal, TV) and (own is None or other is None or bool((own[..., 0] < other[..., 0]).any())):
            return False
    return True


def _sides(problem: Problem) -> tuple[Side, Side]:
    """The weights of both sides; without their logarithms, which nothing here needs."""
    return Side(problem.a, problem.a), Side(problem.b, problem.b)


def _price(marginal: Marginal, side: Side) -> Tensor | None:
    """What a unit that stays behind costs, (*batch, n); None where the mass that moves is given."""
    prices = marginal.prices(side)
    if marginal.total(side) is not None or prices is None or prices.short is None:
        return None
    return prices.short.detach().expand(side.weights.shape)


# -- the matching that grows -------------------------------------------------------------------------------------


class _Grown(NamedTuple):
    """Sorted problems, one after the other, and how far their matchings have grown."""

    h: LineCost
    x: Tensor  # (count, n)
    y: Tensor  # (count, m)
    order_x: Tensor
    order_y: Tensor
    unit: Tensor  # (count, 1) the mass of each point
    step_x: Tensor  # (count, n) with which pair a point came in
    step_y: Tensor  # (count, m)
    k: Tensor  # (count,) pairs that are matched in full
    rest: Tensor  # (count,) the share of the next one
    stay_x: Tensor  # (count, 1) the potentials of points that stay
    stay_y: Tensor

    def mixture(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Numbers of pairs (count,), and the share (count,) of their matching in the plan."""
        yield self.k, 1 - self.rest
        if bool((self.rest > 0).any()):
            yield self.k + (self.rest > 0), self.rest


def _grown(problem: Problem, engine: str = "auto") -> _Grown:
    if engine == "auto":
        warn_without_native()
    problem = problem.detach().double()
    assert isinstance(problem.geometry, PointCloud)
    h, p, x, y = _lines(problem.geometry, problem.batch_shape)
    (x, order_x), (y, order_y) = ordered(x), ordered(y)
    (n, m), unit = problem.shape, problem.a[..., :1].reshape(-1, 1)
    demands = list(zip(problem.marginals, _sides(problem)))
    totals = [marginal.total(side) for marginal, side in demands]
    prices = (_price(marginal, side) for marginal, side in demands)
    left, right = (None if t is None else t[..., :1].reshape(-1, 1) for t in prices)
    total = totals[0] if totals[0] is not None else totals[1]
    if total is None:
        assert left is not None
        assert right is not None
        step_x, step_y, rises = _path(h, p, x, y, price=(left + right).squeeze(-1), engine=engine)
        k = torch.isfinite(rises).sum(-1)
        rest = torch.zeros_like(unit.squeeze(-1))
    else:
        pairs = (total.reshape(-1) / unit.squeeze(-1)).clamp(max=min(n, m))
        whole = pairs.round()
        pairs = torch.where((pairs - whole).abs() <= _ROUNDING * whole, whole, pairs)
        k = pairs.floor().long()
        rest = pairs - k
        # one more, for its price
        step_x, step_y, rises = _path(h, p, x, y, pairs=(k + 1).clamp(max=min(n, m)), engine=engine)
    stay_x, stay_y = _levels(rises, k, rest, left, right, n == m)
    return _Grown(h, x, y, order_x, order_y, unit, step_x, step_y, k, rest, stay_x, stay_y)


def _lines(geometry: PointCloud, batch: torch.Size) -> tuple[LineCost, float, Tensor, Tensor]:
    """The cost |x - y|^p, its power, and the positions (count, n) and (count, m) that it is of; differentiable."""
    power = _power(geometry.ground)
    assert power is not None
    p, scale = power
    x, y = (t.squeeze(-1).expand(*batch, -1).reshape(-1, t.shape[-2]) * scale for t in (geometry.x, geometry.y))
    return arc_on_line(Arc(power=p)), p, x, y


def _path(
    h: LineCost,
    p: float,
    x: Tensor,  # (count, n), ascending
    y: Tensor,  # (count, m), ascending
    *,
    pairs: Tensor | None = None,  # (count,) at which to stop
    price: Tensor | None = None,  # (count,)
    engine: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """What `partial_paths` finds, as tensors.

    Raises:
        InvalidInput: points so far apart that their costs overflow.
    """
    count, n, m = *x.shape, y.shape[-1]
    first, last = torch.minimum(x[:, 0], y[:, 0]), torch.maximum(x[:, -1], y[:, -1])
    if not bool(torch.isfinite((n + m) * h(first, last)).all()):
        refuse("cost", "finite values between all pairs", "NaN or infinity", "Rescale the points, or mend the cost.")
    pairs = torch.full((count,), min(n, m)) if pairs is None else pairs.cpu()
    price = torch.full((count,), torch.inf, dtype=torch.float64) if price is None else price.cpu()
    u, v = (t.cpu().contiguous().numpy() for t in (x, y))
    found = partial_paths(u, v, p, pairs=pairs.numpy(), price=price.contiguous().numpy(), engine=engine)
    step_x, step_y, rises = (torch.from_numpy(t).to(x.device) for t in found)
    return step_x, step_y, rises


def _levels(
    rises: Tensor,  # (count, min(n, m))
    k: Tensor,
    rest: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    square: bool,
) -> tuple[Tensor, Tensor]:
    """Potentials of the points that stay, (count, 1) each: their sum lies between the last price and the next one."""
    most = rises.shape[-1]
    last = rises.gather(-1, (k.unsqueeze(-1) - 1).clamp(min=0))
    if left is not None and right is not None:
        # where nothing stays they are free: no larger than they must be, so as not to swamp the others
        full = (k == most).unsqueeze(-1) & square
        over = torch.where(full, (left + right - torch.where(full, last, 0)) / 2, 0)
        return left - over, right - over
    following = torch.nn.functional.pad(rises, (0, 1), value=torch.inf).gather(-1, k.unsqueeze(-1))
    level = torch.minimum((last + following) / 2, 2 * last)  # not too large, either
    level = torch.where(rest.unsqueeze(-1) > 0, following, level)
    if left is not None:
        return left, level - left
    if right is not None:
        return level - right, right
    return level / 2, level / 2


class _Chain(NamedTuple):
    """The pairs of a matching from left to right, by rank."""

    rows: Tensor  # (count, k)
    cols: Tensor  # (count, k)
    inside: Tensor  # (count, k) false for padding


def _chain(grown: _Grown, k: Tensor) -> _Chain:
    """The first k (count,) pairs that came in, matched anew."""
    width = max(1, int(k.max()))
    inside = torch.arange(width, device=k.device) < k.unsqueeze(-1)
    rows, cols = (_ranks(step <= k.unsqueeze(-1))[..., :width] for step in (grown.step_x, grown.step_y))
    return _Chain(rows, cols, inside)


def _ranks(chosen: Tensor) -> Tensor:
    """The ranks of the chosen ones (count, n) of each line, from the left; the rest is zero."""
    n = chosen.shape[-1]
    place = torch.where(chosen, chosen.cumsum(-1) - 1, n)
    ranks = torch.arange(n, device=chosen.device).expand_as(place)
    return place.new_zeros((*place.shape[:-1], n + 1)).scatter(-1, place, ranks)[..., :n]


def _placed(values: Tensor, at: Tensor, inside: Tensor, elsewhere: Tensor) -> Tensor:
    """What is elsewhere, (count, n), with the values (count, k) at their ranks, of those inside."""
    n = elsewhere.shape[-1]
    padded = torch.nn.functional.pad(elsewhere, (0, 1))
    return padded.scatter(-1, torch.where(inside, at, n), values)[..., :n]


def _partners(chain: _Chain, n: int) -> Tensor:
    """The column of each row, (count, n), -1 where it has none."""
    rows, cols, inside = chain
    return _placed(cols, rows, inside, cols.new_full((len(cols), n), -1))


def _potentials(grown: _Grown) -> tuple[Tensor, Tensor]:
    """Potentials of the sorted points, (count, n) and (count, m): the greatest f that neighbours allow.

    A point that stays has the potential of those that stay. For a pair (x, y) and the next one (x', y'),
    f' <= f + c(x', y) - c(x, y) and f <= f' + c(x, y') - c(x', y'), and f <= c(x, z) - stay_y for the nearest z that
    stays. The cost is Monge and grows with the distance, so all other bounds follow from these. The greatest f is a
    shortest path along the pairs: once from the left, once from the right.
    """
    h, x, y = grown.h, grown.x, grown.y
    rows, cols, inside = _chain(grown, grown.k)
    u, v = x.gather(-1, rows), y.gather(-1, cols)
    cost, level = h(u, v), grown.stay_x + grown.stay_y
    # a difference beyond the level binds nothing, and would only be a large number among small ones
    ahead = torch.minimum(h(u[:, 1:], v[:, :-1]) - cost[:, :-1], level)
    back = torch.minimum(h(u[:, :-1], v[:, 1:]) - cost[:, 1:], level)
    ahead, back = (torch.nn.functional.pad(torch.where(inside[:, 1:], t, 0).cumsum(-1), (1, 0)) for t in (ahead, back))
    near = _nearest(u, y, grown.step_y > grown.k.unsqueeze(-1))
    f = torch.minimum(h(near, torch.zeros_like(near)) - grown.stay_y, grown.stay_x)
    f = torch.where(inside, f, torch.inf)  # padding holds nothing down
    f = ahead + (f - ahead).cummin(-1).values
    f = torch.where(inside, f, torch.inf)
    f = (f + back).flip(-1).cummin(-1).values.flip(-1) - back
    f = torch.minimum(torch.maximum(f, cost - grown.stay_y), grown.stay_x)  # but for rounding it is so
    g = torch.minimum(cost - f, grown.stay_y)
    stay_x, stay_y = grown.stay_x.expand_as(x), grown.stay_y.expand_as(y)
    return _placed(f, rows, inside, stay_x), _placed(g, cols, inside, stay_y)


def _nearest(u: Tensor, y: Tensor, stays: Tensor) -> Tensor:
    """How far from u (count, k) the nearest of the sorted y (count, m) is that stays; infinite where there is none."""
    pad, inf = torch.nn.functional.pad, torch.inf
    below = pad(torch.where(stays, y, -inf).cummax(-1).values, (1, 0), value=-inf)
    above = pad(torch.where(stays, y, inf).flip(-1).cummin(-1).values.flip(-1), (0, 1), value=inf)
    at = torch.searchsorted(y.contiguous(), u.contiguous())
    return torch.minimum(u - below.gather(-1, at), above.gather(-1, at) - u)


# -- costs as functions ------------------------------------------------------------------------------------------


class PartialPath(NamedTuple):
    """The best matchings of 1, 2, ..., min(n, m) pairs of points; constants."""

    costs: Tensor  # (*batch, min(n, m)) the sum over the pairs
    prices: Tensor  # (*batch, min(n, m)) what each pair adds to it, ascending
    step_x: Tensor  # (*batch, n) the points of the matching of k pairs are those of step <= k
    step_y: Tensor  # (*batch, m)


def partial_line_path(
    x: Any,  # (*batch, n)
    y: Any,  # (*batch, m)
    *,
    cost: float | Cost = 2.0,
) -> PartialPath:
    r"""Match every number of points on the line at least cost, all numbers at once.

    .. math:: \text{costs}_k = \min_{|I| = |J| = k}\; \min_{\sigma: I \to J} \sum_{i \in I} |x_i - y_{\sigma(i)}|^p,
        \qquad k = 1, \dots, \min(n, m)

    The path tells how much there is to match before the prices rise: choose a number of pairs, or a price, by it. The
    matching of k pairs sends its points from left to right.

    Args:
        x, y: positions; batch axes broadcast. Every point is one unit.
        cost: a power p >= 1, or a `Cost` that is one on the line: `SqEuclidean`, `Euclidean`, `Lp`, `Mahalanobis`.

    Raises:
        InvalidInput: NaN or infinite positions, another cost.

    Complexity: O((n + m) log(n + m)) time for p = 1 and for clouds that are mixed, O(n m) at worst; O(n + m) memory.

    Example:
        >>> import torch
        >>> x, y = torch.tensor([0.0, 1.0, 9.0]), torch.tensor([1.5, 0.0, -4.0])
        >>> path = partial_line_path(x, y, cost=1)
        >>> path.prices.tolist(), path.step_x.tolist(), path.step_y.tolist()
        ([0.0, 0.5, 12.0], [1, 2, 3], [2, 1, 3])

    Source: Chapel & Tavenard (2025), One for all and all for one: efficient computation of partial Wasserstein
    distances on the line.
    """
    geometry = _on_line(x, y, cost)
    if _power(geometry.ground) is None:
        refuse("cost", "a power >= 1, or a Cost that is one on the line", repr(geometry.ground))
    batch, dtype = geometry.batch_shape, geometry.dtype
    with torch.no_grad():
        h, p, x, y = _lines(geometry.detach().to(torch.float64), batch)
        (x, order_x), (y, order_y) = ordered(x), ordered(y)
        step_x, step_y, prices = _path(h, p, x, y)
        step_x, step_y = (torch.empty_like(s).scatter(-1, o, s) for s, o in ((step_x, order_x), (step_y, order_y)))
        found = (prices.cumsum(-1).to(dtype), prices.to(dtype), step_x, step_y)
        return PartialPath(*(t.reshape(*batch, -1) for t in found))


def partial_line_cost(
    x: Any,  # (*batch, n)
    y: Any,  # (*batch, m)
    a: Any = None,  # (*batch, n)
    b: Any = None,  # (*batch, m)
    *,
    cost: float | Cost = 2.0,
    marginals: Marginal | tuple[Marginal, Marginal],
) -> Tensor:  # (*batch)
    r"""Partial or unbalanced transport costs of many pairs of samples on the line, differentiable in positions.

    .. math:: \min_{P \ge 0}\; \sum_{ij} P_{ij}\, |x_i - y_j|^p + \phi_a(P \mathbf 1) + \phi_b(P^\top \mathbf 1)

    Nothing but the number is computed; `solve` gives plan, potentials and certificate. Gradients in positions, rho and
    delta hold the plan fixed. There are none in masses.

    Args:
        x, y: positions; batch axes broadcast.
        a, b: masses, all equal and the same on both sides; uniform with total 1 when None. For n != m give ones.
        cost: a power p >= 1, or a `Cost` that is one on the line: `SqEuclidean`, `Euclidean`, `Lp`, `Mahalanobis`.
        marginals: `Partial(mass)`, `TV(rho)`, `Slack(delta)`, or a pair, as `PartialMonotone` takes them.

    Raises:
        InvalidInput: NaN or infinite positions, masses that differ, another cost or marginal.

    Complexity: that of `PartialMonotone`, for each item.

    Example:
        >>> import torch, brenier
        >>> x, y = torch.tensor([0.0, 1.0, 9.0]), torch.tensor([1.5, 0.0, -4.0])
        >>> one = torch.ones(3)
        >>> float(partial_line_cost(x, y, one, one, cost=1, marginals=brenier.Partial(2.0)))
        0.5
        >>> float(partial_line_cost(x, y, one, one, cost=1, marginals=brenier.TV(2.0)))  # 9 and -4 stay, for 2 each
        4.5

    Source: Chapel & Tavenard (2025), One for all and all for one: efficient computation of partial Wasserstein
    distances on the line; Bai, Schmitzer, Thorpe & Kolouri (2023), Sliced optimal partial transport.
    """
    problem = Problem.make(_on_line(x, y, cost), a, b, marginals=marginals)
    PartialMonotone().check(problem)
    problem = replace(problem, a=problem.a.detach(), b=problem.b.detach())
    geometry, batch = problem.geometry, problem.batch_shape
    assert isinstance(geometry, PointCloud)
    with torch.no_grad():
        grown = _grown(problem)
    h, _, x, y = _lines(geometry, batch)
    value, moved_x, moved_y = x.new_zeros(len(x)), torch.zeros_like(grown.x), torch.zeros_like(grown.y)
    for k, share in grown.mixture():
        mass = grown.unit * share.unsqueeze(-1)
        rows, cols, inside = _chain(grown, k)
        u, v = x.gather(-1, grown.order_x.gather(-1, rows)), y.gather(-1, grown.order_y.gather(-1, cols))
        value = value + ((mass * inside).to(x) * h(u, v)).sum(-1)
        moved_x = moved_x + mass * (grown.step_x <= k.unsqueeze(-1))
        moved_y = moved_y + mass * (grown.step_y <= k.unsqueeze(-1))
    value = value.reshape(batch)
    for marginal, side, moved in zip(problem.marginals, _sides(problem), (moved_x, moved_y)):
        # by rank, which is all the same where all points of a side are alike
        value = value + marginal.penalty(moved.to(x).reshape(*batch, -1), side)
    return value


def _on_line(x: Any, y: Any, cost: float | Cost) -> PointCloud:
    """Positions (*batch, n) and (*batch, m) as a cloud."""
    x, y = float_tensor(x, "x"), float_tensor(y, "y")
    for t, name in ((x, "x"), (y, "y")):
        if t.dim() == 0 or not t.numel():
            refuse(name, "positions of shape (*batch, n)", f"shape {tuple(t.shape)}")
    ground = Lp(power=float(cost)) if is_real(cost) else as_cost(cost)  # type: ignore[arg-type]
    return PointCloud(x.unsqueeze(-1), y.unsqueeze(-1), ground)
