"""What a marginal of the plan must do: be met exactly, softly, in part, or not at all."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from ._inputs import is_real
from .errors import refuse
from .kernels.elementwise import exp, log

__all__ = [
    "FLOOR",
    "KL",
    "ROUNDING",
    "TV",
    "Exact",
    "Free",
    "Marginal",
    "Partial",
    "Prices",
    "Side",
    "Slack",
    "log_weights",
    "translation",
]

# Stands for -inf in potentials where derivatives are taken, as eps x -inf has none; float32 holds FLOOR / epsilon^2.
FLOOR = -1e20


class Side(NamedTuple):
    """One side of a problem, as a marginal sees it.

    Entropy is measured against a reference; what is left of the product reference on this side is `reference`:
    the weights themselves, or ones for the counting measure.
    """

    weights: Tensor  # (*batch, n), the masses a
    reference: Tensor  # (*batch, n)
    epsilon: Tensor | None = None  # of shape (*batch, 1) or (); None without entropy
    log: Tensor | None = None  # of the reference, where that is known and finite

    @property
    def counting(self) -> bool:
        """Whether the reference is not the weights."""
        return self.reference is not self.weights

    def rise(self) -> Tensor:
        """Eps log(a / reference), by which the potential of an exact marginal exceeds the soft c-transform."""
        assert self.epsilon is not None
        if not self.counting:
            return torch.zeros_like(self.weights)
        positive = self.weights > 0  # outside of the product, as eps x -inf has no derivative
        ratio = log(torch.where(positive, self.weights, 1)) - log(self.reference)
        return torch.where(positive, self.epsilon * ratio, -torch.inf)

    def absorbed(self) -> Tensor:
        """Eps log reference, which turns a potential into that of the plan: P = exp((F + G - C) / eps)."""
        assert self.epsilon is not None
        if self.log is not None:
            return self.epsilon * self.log
        positive = self.reference > 0  # outside of the product, as eps x -inf has no derivative
        return torch.where(positive, self.epsilon * log(torch.where(positive, self.reference, 1)), -torch.inf)

    def log_reference(self) -> Tensor:
        """Log reference, with -inf and a zero gradient where it is 0."""
        return log_weights(self.reference) if self.log is None else self.log

    def entropy(self, p: Tensor) -> Tensor:
        """Eps KL(p | reference) for each entry; eps p (log p - 1) for the counting measure."""
        assert self.epsilon is not None
        body = torch.special.xlogy(p, p) - torch.special.xlogy(p, self.reference) - p
        return self.epsilon * (body if self.counting else body + self.reference)


class Prices(NamedTuple):
    """What a unit of mass costs that the marginal r lacks, and that it has too much, against the weights a.

    Each broadcasts to (*batch, n); None where r may not differ in that direction.
    """

    short: Tensor | None = None
    over: Tensor | None = None


class Marginal(ABC):
    r"""A convex penalty phi(r | a) of the marginal r = P1, seen through a few operations.

    With the product reference the plan has r_i = a_i exp((f_i - s_i) / eps), where s is the soft c-transform of the
    other potential; with another reference, s stands for that transform plus eps log(a / reference) throughout.
    """

    dead_without_weight = True  # whether a_i = 0 forbids mass at i

    @abstractmethod
    def prox(self, s: Tensor, side: Side) -> Tensor:
        """The potential that maximises the dual: argmax_f dual(f) - eps sum_i a_i exp((f_i - s_i) / eps)."""

    @abstractmethod
    def penalty(self, r: Tensor, side: Side) -> Tensor:
        """phi(r | a) in the primal value, (*batch,), for a marginal that does not break it."""

    @abstractmethod
    def dual(self, f: Tensor, side: Side) -> Tensor:
        """inf_r phi(r | a) + <f, r>, the term of f in the dual value, (*batch,)."""

    def clip(self, f: Tensor) -> Tensor:
        """The potential within its bounds, written with the parameters that bound it, for gradients in these."""
        return f

    def trimmed(self, f: Tensor, side: Side) -> Tensor:
        """The smallest potential with the dual value of f, without entropy: more only hurts the other side."""
        return f

    def violation(self, r: Tensor, side: Side) -> Tensor:
        """How far r is from the domain of phi, in mass, (*batch,)."""
        return torch.zeros_like(r.sum(-1))

    def least(self, side: Side) -> Tensor | None:
        """The smallest potential with a finite dual, (*batch, n) or broadcastable; None where there is none."""
        return None

    def total(self, side: Side) -> Tensor | None:
        """The mass that the plan must have, (*batch,); None where this marginal leaves it open."""
        return None

    def hard(self, side: Side) -> Tensor:
        """Where r = a must hold, bool (*batch, n)."""
        return torch.zeros_like(side.weights, dtype=torch.bool)

    def capped(self, side: Side) -> Tensor:
        """Where r <= a must hold, bool (*batch, n)."""
        return self.hard(side)

    def masses(self, side: Side) -> tuple[Tensor, Tensor]:
        """The smallest and the largest total that this marginal can take, each (*batch,)."""
        total = self.total(side)
        if total is not None:
            return total, total
        a = side.weights
        return torch.where(self.hard(side), a, 0).sum(-1), torch.where(self.capped(side), a, torch.inf).sum(-1)

    def prices(self, side: Side) -> Prices | None:
        """The prices of phi where it is piecewise linear, apart from a `total`; None where it is not."""
        return None

    def law(self, f: Tensor, side: Side) -> _Fixed | _Decay | _Bin | None:
        """How the mass that this marginal asks for changes with a shift of f, for `translation`."""
        total = self.total(side)
        return None if total is None else _Fixed(total.unsqueeze(-1))

    def check(self, side: Side, name: str) -> None:
        """Raise `InvalidInput` if the parameters do not fit weights called `name`."""
        for field, value in self._tensors().items():
            try:
                fits = torch.broadcast_shapes(value.shape, side.weights.shape) == side.weights.shape
            except RuntimeError:
                fits = False
            if not fits:
                expected = f"a number or a tensor that broadcasts to {name}, shape {tuple(side.weights.shape)}"
                refuse(f"{type(self).__name__} {field}", expected, f"shape {tuple(value.shape)}")

    @property
    def extends(self) -> bool:
        """Whether `prox` is the same function of s at every point, those out of sample among them."""
        return all(t.dim() == 0 for t in self._tensors().values())

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same marginal with a function applied to its tensors."""
        tensors = self._tensors()
        return replace(self, **{k: function(t) for k, t in tensors.items()}) if tensors else self  # type: ignore[type-var]

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The tensors among the parameters; gradients flow to them."""
        return tuple(self._tensors().values())

    def select(self, index: Tensor) -> Self:
        """The same marginal for the items (k,) of a batch of one axis."""
        return self.map(lambda t: t[index] if t.dim() == 2 and t.shape[0] > 1 else t)

    def _tensors(self) -> dict[str, Tensor]:
        named = ((f.name, getattr(self, f.name)) for f in fields(self))  # type: ignore[arg-type]
        return {name: value for name, value in named if isinstance(value, Tensor)}


def _check_price(name: str, value: Any, cure: str = "") -> None:
    """Refuse what is not a positive number, or a tensor of such; a tensor may hold inf."""
    if isinstance(value, Tensor):
        if not value.is_floating_point() or not bool((value > 0).all()):
            refuse(name, "positive numbers in cost units", f"a tensor of {value.dtype} with others", cure)
    elif not (is_real(value) and 0 < value < math.inf):
        refuse(name, "a positive finite number in cost units", repr(value), cure)


def _like(value: float | Tensor, f: Tensor) -> Tensor:
    return value.to(f) if isinstance(value, Tensor) else f.new_full((), value)  # no copy from the host


def _finite(f: Tensor, where: Tensor) -> Tensor:
    """F where a condition holds, zero elsewhere: keeps 0 x inf out of values and gradients."""
    return torch.where(where, f, 0)


@dataclass(frozen=True)
class Exact(Marginal):
    """The marginal is met exactly: P1 = a."""

    def prox(self, s: Tensor, side: Side) -> Tensor:
        return s

    def penalty(self, r: Tensor, side: Side) -> Tensor:
        return torch.zeros_like(side.weights.sum(-1))

    def dual(self, f: Tensor, side: Side) -> Tensor:
        return (side.weights * _finite(f, side.weights > 0)).sum(-1)

    def violation(self, r: Tensor, side: Side) -> Tensor:
        return (r - side.weights).abs().sum(-1)

    def total(self, side: Side) -> Tensor:
        return side.weights.sum(-1)

    def hard(self, side: Side) -> Tensor:
        return torch.ones_like(side.weights, dtype=torch.bool)

    def prices(self, side: Side) -> Prices:
        return Prices()


@dataclass(frozen=True)
class KL(Marginal):
    """A soft marginal: sum_i rho_i KL(r_i | a_i), with KL(r | a) = r log(r / a) - r + a.

    Args:
        rho: > 0, in cost units; large means nearly exact. A number, or a tensor that broadcasts to the weights, where
            inf marks the entries that must be met exactly.

    Reference:
        Chizat, Peyré, Schmitzer & Vialard (2018), Scaling algorithms for unbalanced optimal transport problems.
    """

    rho: float | Tensor

    def __post_init__(self) -> None:
        _check_price("KL rho", self.rho, "Use Exact() for a hard one.")

    def prox(self, s: Tensor, side: Side) -> Tensor:
        assert side.epsilon is not None
        return s / (1 + side.epsilon / self.rho)

    def penalty(self, r: Tensor, side: Side) -> Tensor:
        a, hard = side.weights, self.hard(side)
        r = torch.where(hard, a, r)
        return (self._soft() * (torch.special.xlogy(r, r) - torch.special.xlogy(r, a) - r + a)).sum(-1)

    def dual(self, f: Tensor, side: Side) -> Tensor:
        a = side.weights
        f = _finite(f, a > 0)
        rho = self._soft()
        return torch.where(self.hard(side), a * f, -rho * a * torch.expm1(-f / rho)).sum(-1)

    def violation(self, r: Tensor, side: Side) -> Tensor:
        return torch.where(self.hard(side), (r - side.weights).abs(), 0).sum(-1)

    def hard(self, side: Side) -> Tensor:
        rho = self.rho if isinstance(self.rho, Tensor) else torch.tensor(self.rho)
        return torch.isinf(rho).to(side.weights.device).expand(side.weights.shape)

    def law(self, f: Tensor, side: Side) -> _Decay | None:
        if not self.extends:
            return None
        a = side.weights
        return _Decay(torch.logsumexp(log_weights(a) - _finite(f, a > 0) / self.rho, -1, keepdim=True), self.rho)

    def _soft(self) -> Any:
        """Rho, and one where it is infinite."""
        return torch.where(torch.isinf(self.rho), 1, self.rho) if isinstance(self.rho, Tensor) else self.rho


@dataclass(frozen=True)
class TV(Marginal):
    """A soft marginal: sum_i rho_i |r_i - a_i|, total variation. Most entries are met, outliers are given up whole.

    Without an epsilon the solve is exact, for finite rho.

    Args:
        rho: > 0, in cost units: the price of a unit of mass that appears or vanishes. No mass moves where the cost
            exceeds the sum of both sides' rho. A number, or a tensor that broadcasts to the weights.

    Reference:
        Chizat, Peyré, Schmitzer & Vialard (2018), Scaling algorithms for unbalanced optimal transport problems.
    """

    rho: float | Tensor
    dead_without_weight = False

    def __post_init__(self) -> None:
        _check_price("TV rho", self.rho)

    def prox(self, s: Tensor, side: Side) -> Tensor:
        return self.clip(s)

    def clip(self, f: Tensor) -> Tensor:
        rho = _like(self.rho, f)
        return torch.where(f >= rho, rho, torch.where(f <= -rho, -rho, f))

    def trimmed(self, f: Tensor, side: Side) -> Tensor:
        return torch.minimum(f, _like(self.rho, f))

    def penalty(self, r: Tensor, side: Side) -> Tensor:
        return (self.rho * (r - side.weights).abs()).sum(-1)

    def dual(self, f: Tensor, side: Side) -> Tensor:
        rho = _like(self.rho, f)
        value = (side.weights * torch.where(f >= rho, rho, f)).sum(-1)
        return torch.where((f < -rho).any(-1), -torch.inf, value)

    def least(self, side: Side) -> Tensor:
        return -_like(self.rho, side.weights)

    def prices(self, side: Side) -> Prices:
        rho = _like(self.rho, side.weights)
        return Prices(rho, rho)


@dataclass(frozen=True)
class Free(Marginal):
    """No constraint and no penalty: the marginal is what it becomes. With an exact other side, semi-relaxed transport.

    The weights of this side still shape the product reference of the entropy; nothing else depends on them.
    """

    dead_without_weight = False

    def prox(self, s: Tensor, side: Side) -> Tensor:
        return torch.zeros_like(s)

    def trimmed(self, f: Tensor, side: Side) -> Tensor:
        return f.clamp(max=0)

    def penalty(self, r: Tensor, side: Side) -> Tensor:
        return torch.zeros_like(side.weights.sum(-1))

    def dual(self, f: Tensor, side: Side) -> Tensor:
        return torch.where((f < 0).any(-1), -torch.inf, torch.zeros_like(side.weights.sum(-1)))

    def least(self, side: Side) -> Tensor:
        return side.weights.new_zeros(())

    def prices(self, side: Side) -> Prices:
        zero = side.weights.new_zeros(())
        return Prices(zero, zero)


@dataclass(frozen=True)
class Partial(Marginal):
    r"""Only part of the mass is transported, and which part is up to the plan: r <= a and sum r = mass, both exactly.

    With `entropic=True` what stays behind, p = a - r, carries entropy too: eps KL(p | reference) joins the value.
    That is the problem with a virtual column of zero cost and mass sum a - mass, solved without the column.

        f = min(s, t),     or f = -eps log(exp(-s / eps) + (reference / a) exp(-t / eps)) with entropy,

    with the number t that makes sum r = mass: found by sorting, or by Newton's method.

    Args:
        mass: of the plan, (*batch,) or a number, at most the total of the weights.
        entropic: whether the mass that stays behind carries entropy.

    Reference:
        Caffarelli & McCann (2010), Free boundaries in optimal transport; Benamou et al. (2015), Iterative Bregman
        projections; Zhang, Ren & He (2024), P2OT: progressive partial optimal transport (the virtual column).
    """

    mass: float | Tensor
    entropic: bool = False

    def __post_init__(self) -> None:
        value = self.mass
        good = is_real(value) if not isinstance(value, Tensor) else value.is_floating_point()
        if not (good and bool(torch.as_tensor((value > 0) & (value < math.inf)).all())):
            refuse("Partial mass", "a positive finite mass", repr(value))
        if not isinstance(self.entropic, bool):
            refuse("Partial entropic", "True or False", repr(self.entropic))

    def check(self, side: Side, name: str) -> None:
        mass, most = self.total(side), side.weights.sum(-1)
        if mass.shape != most.shape:
            refuse(
                "Partial mass",
                f"a number or shape {tuple(most.shape)}",
                f"shape {tuple(torch.as_tensor(self.mass).shape)}",
            )
        if bool((mass > most * (1 + ROUNDING[most.dtype])).any()):
            worst = int((mass - most).argmax())
            got = f"{float(mass.flatten()[worst]):.9g}"
            refuse("Partial mass", f"at most the total of {name}, {float(most.flatten()[worst]):.9g}", got)

    @property
    def extends(self) -> bool:
        return False  # the level t is that of all points together

    def select(self, index: Tensor) -> Self:
        return self.map(lambda t: t[index] if t.dim() else t)  # one mass for each problem

    def total(self, side: Side) -> Tensor:
        most = side.weights.sum(-1)
        mass = _like(self.mass, most)
        mass = mass.expand(most.shape) if mass.dim() == 0 else mass
        return mass

    def capped(self, side: Side) -> Tensor:
        return torch.ones_like(side.weights, dtype=torch.bool)

    def prices(self, side: Side) -> Prices:
        return Prices(short=side.weights.new_zeros(()))

    def violation(self, r: Tensor, side: Side) -> Tensor:
        over = (r - side.weights).clamp(min=0).sum(-1)
        return over + (r.sum(-1) - self.total(side)).abs()

    def prox(self, s: Tensor, side: Side) -> Tensor:
        assert side.epsilon is not None
        if self.entropic:
            t = self._entropic_level(s, side) + side.rise().clamp(min=FLOOR)
            return -side.epsilon * torch.logaddexp(-s / side.epsilon, -t / side.epsilon)
        return torch.minimum(s, self._level(s, side))

    def trimmed(self, f: Tensor, side: Side) -> Tensor:
        ordered, r = self._cheapest(f, side)
        return torch.minimum(f, torch.where(r > 0, ordered, -torch.inf).amax(-1, keepdim=True))

    def _cheapest(self, f: Tensor, side: Side) -> tuple[Tensor, Tensor]:
        """The potentials in ascending order, and the r that fills the capacities from the first of them up."""
        ordered, order = torch.where(side.weights > 0, f, torch.inf).sort(-1)
        a = side.weights.gather(-1, order)
        before = a.cumsum(-1) - a
        return ordered, torch.minimum((self.total(side).unsqueeze(-1) - before).clamp(min=0), a)

    def _level(self, s: Tensor, side: Side) -> Tensor:
        """The t with sum_i a_i min(1, exp((t - s_i) / eps)) = mass, (*batch, 1)."""
        epsilon = side.epsilon
        assert epsilon is not None
        ordered, order = s.sort(-1)
        a = side.weights.gather(-1, order)
        # the k entries of smallest s are met in full; the rest shares what is left
        met = torch.cat([torch.zeros_like(a[..., :1]), a.cumsum(-1)[..., :-1]], -1)
        tail = (log_weights(a) - ordered / epsilon).flip(-1).logcumsumexp(-1).flip(-1)
        left = self.total(side).unsqueeze(-1) - met
        t = torch.where(left > 0, epsilon * (log(left.clamp(min=torch.finfo(a.dtype).tiny)) - tail), -torch.inf)
        # the first k whose t does not exceed the next s; all are met when there is none
        good = t <= ordered
        first = good.to(torch.uint8).argmax(-1, keepdim=True)
        return torch.where(good.any(-1, keepdim=True), t.gather(-1, first), torch.inf)

    def _entropic_level(self, s: Tensor, side: Side) -> Tensor:
        """The t with sum_i a_i sigmoid((t + rise_i - s_i) / eps) = mass, (*batch, 1), by Newton between bounds."""
        epsilon = side.epsilon
        assert epsilon is not None
        a, mass = side.weights, self.total(side).unsqueeze(-1)
        offset = torch.where(a > 0, s - side.rise(), 0)

        def excess(t: Tensor) -> tuple[Tensor, Tensor]:
            share = torch.sigmoid((t - offset) / epsilon)
            value = (a * share).sum(-1, keepdim=True) - mass
            return value, (a * share * (1 - share)).sum(-1, keepdim=True) / epsilon

        with torch.no_grad():
            logit = torch.special.logit((mass / a.sum(-1, keepdim=True)).clamp(max=1))  # inf: nothing stays behind
            alive = torch.where(a > 0, offset, torch.inf)
            low = alive.amin(-1, keepdim=True) + epsilon * logit
            high = torch.where(a > 0, offset, -torch.inf).amax(-1, keepdim=True) + epsilon * logit
            t = (low + high) / 2
            for _ in range(100):
                value, slope = excess(t)
                low, high = torch.where(value < 0, t, low), torch.where(value > 0, t, high)
                newton = t - value / slope
                inside = (newton > low) & (newton < high)
                new = torch.where(inside, newton, (low + high) / 2)
                done = ((new - t).abs() <= 4 * torch.finfo(a.dtype).eps * t.abs().clamp(min=float(epsilon.min()))) | (
                    value == 0
                )
                t = torch.where(value == 0, t, new)
                if bool((done | ~torch.isfinite(t)).all()):
                    break
        t = torch.where(torch.isnan(t), torch.inf, t)
        if not torch.is_grad_enabled():
            return t
        value, slope = excess(t)  # one step more, for the derivative of an implicit function
        return torch.where(torch.isfinite(t), t - value / slope.detach(), t)

    def penalty(self, r: Tensor, side: Side) -> Tensor:
        behind = (side.weights - r).clamp(min=0)
        if side.epsilon is None or not self.entropic:
            return torch.zeros_like(behind.sum(-1))
        return side.entropy(behind).sum(-1)

    def dual(self, f: Tensor, side: Side) -> Tensor:
        a, mass = side.weights, self.total(side)
        if side.epsilon is None or not self.entropic:
            ordered, r = self._cheapest(f, side)
            return (r * _finite(ordered, r > 0)).sum(-1)
        f = _finite(f, a > 0)
        epsilon = side.epsilon.squeeze(-1) if side.epsilon.dim() else side.epsilon
        behind = a.sum(-1) - mass
        level = torch.logsumexp(torch.where(a > 0, side.log_reference() + f / side.epsilon, -torch.inf), -1)
        some = behind > 0
        level = epsilon * (level - log(torch.where(some, behind, 1)))
        entropy = torch.where(some, -(level + epsilon) * behind, 0)
        if not side.counting:
            entropy = entropy + epsilon * a.sum(-1)
        return (a * f).sum(-1) + entropy


@dataclass(frozen=True)
class Slack(Marginal):
    r"""A dustbin: r <= a, and each unit of mass that stays behind costs delta.

    phi(r | a) = sum_i delta_i p_i with p = a - r >= 0; under an epsilon p carries entropy like any entry of the plan,
    eps KL(p | reference), so that

        f = -eps log(exp(-s / eps) + (reference / a) exp(-delta / eps)),

    the soft minimum of the c-transform and the price of the dustbin. Against a free other side with the counting
    reference, the plan is one softmax with an outlier bin for each row.

    Args:
        delta: price of a unit of unmatched mass, in cost units, of any sign. No pair is matched whose cost exceeds
            the sum of both sides' delta. A number, or a tensor that broadcasts to the weights.

    Reference:
        Sarlin et al. (2020), SuperGlue (dustbins); Myronenko & Song (2010), Point set registration (outlier bin).
    """

    delta: float | Tensor

    def __post_init__(self) -> None:
        value = self.delta
        good = value.is_floating_point() if isinstance(value, Tensor) else is_real(value)
        if not (good and bool(torch.isfinite(torch.as_tensor(value)).all())):
            refuse("Slack delta", "a finite number in cost units", repr(value))

    def prox(self, s: Tensor, side: Side) -> Tensor:
        assert side.epsilon is not None
        price = self.delta + side.rise().clamp(min=FLOOR)
        return -side.epsilon * torch.logaddexp(-s / side.epsilon, (-price / side.epsilon).expand(s.shape))

    def clip(self, f: Tensor) -> Tensor:
        delta = _like(self.delta, f)
        return torch.where(f >= delta, delta, f)

    def trimmed(self, f: Tensor, side: Side) -> Tensor:
        return torch.minimum(f, _like(self.delta, f))

    def prices(self, side: Side) -> Prices:
        return Prices(short=_like(self.delta, side.weights))

    def capped(self, side: Side) -> Tensor:
        return torch.ones_like(side.weights, dtype=torch.bool)

    def violation(self, r: Tensor, side: Side) -> Tensor:
        return (r - side.weights).clamp(min=0).sum(-1)

    def law(self, f: Tensor, side: Side) -> _Bin | None:
        if side.epsilon is None:
            return None
        a = side.weights
        content = side.log_reference() + (torch.where(a > 0, f, -torch.inf) - self.delta) / side.epsilon
        return _Bin(a.sum(-1, keepdim=True), torch.logsumexp(content, -1, keepdim=True), side.epsilon)

    def penalty(self, r: Tensor, side: Side) -> Tensor:
        behind = (side.weights - r).clamp(min=0)
        each = self.delta * behind
        return (each if side.epsilon is None else each + side.entropy(behind)).sum(-1)

    def dual(self, f: Tensor, side: Side) -> Tensor:
        a = side.weights
        if side.epsilon is None:
            delta = _like(self.delta, f)
            return (a * torch.where(f >= delta, delta, _finite(f, a > 0))).sum(-1)
        some = a > 0
        f = _finite(f, some)
        behind = _finite(side.reference * exp((f - self.delta) / side.epsilon), some)
        each = a * f - side.epsilon * behind
        return (each if side.counting else each + side.epsilon * side.reference).sum(-1)


# Masses that differ by rounding only count as equal.
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-9}


def log_weights(a: Tensor) -> Tensor:
    """Log a, with -inf and a zero gradient where a = 0."""
    positive = a > 0
    return torch.where(positive, log(torch.where(positive, a, 1)), -torch.inf)


def translation(marginals: tuple[Marginal, Marginal], sides: tuple[Side, Side], f: Tensor, g: Tensor) -> Tensor | None:
    """The t, (*batch, 1), for which f + t and g - t have the largest dual value; None where no closed form is known.

    The plan does not change, but alternating updates find t slowly where its curvature is small: at a large rho, or
    with a dustbin that is nearly empty. At the best t both sides ask for the same mass.
    """
    left, right = (p.law(h, side) for p, side, h in zip(marginals, sides, (f, g)))
    if isinstance(left, _Fixed) and isinstance(right, _Decay | _Bin):
        return -_settled(right.reach(left.mass))
    if isinstance(right, _Fixed) and isinstance(left, _Decay | _Bin):
        return _settled(left.reach(right.mass))
    if isinstance(left, _Decay) and isinstance(right, _Decay):
        return (left.log_mass - right.log_mass) / (1 / left.rho + 1 / right.rho)
    if isinstance(left, _Bin) and isinstance(right, _Bin):
        middle = (left.log_content + right.log_content) / 2
        skew = torch.asinh((left.capacity - right.capacity) / (2 * exp(middle)))
        return _settled(left.epsilon * ((right.log_content - left.log_content) / 2 + skew))
    return None


def _settled(t: Tensor) -> Tensor:
    """No translation where the best one is out of reach: a dustbin that must stay empty."""
    return torch.where(torch.isfinite(t), t, 0)


class _Fixed(NamedTuple):
    """The mass that a marginal asks for does not depend on its potential."""

    mass: Tensor  # (*batch, 1)


class _Decay(NamedTuple):
    """It is exp(log_mass - t / rho) at f + t."""

    log_mass: Tensor  # (*batch, 1)
    rho: float | Tensor

    def reach(self, mass: Tensor) -> Tensor:
        return self.rho * (self.log_mass - log(mass))


class _Bin(NamedTuple):
    """It is capacity - exp(log_content + t / epsilon) at f + t."""

    capacity: Tensor  # (*batch, 1)
    log_content: Tensor
    epsilon: Tensor

    def reach(self, mass: Tensor) -> Tensor:
        left = self.capacity - mass
        empty = left <= ROUNDING[left.dtype] * self.capacity
        return torch.where(empty, torch.inf, self.epsilon * (log(left.clamp(min=0)) - self.log_content))
