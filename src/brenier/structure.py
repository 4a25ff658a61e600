"""What is to be solved between two spaces of their own: the structure inside each, and what a plan does to pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from ._inputs import is_real
from .errors import refuse
from .geometry import CostMatrix, Factored, Geometry, PointCloud
from .kernels.device import products_in_full
from .marginals import KL, Exact, Marginal
from .plan import FactoredPlan, Plan, SparsePlan
from .problem import Problem, Relative

__all__ = ["Form", "Linear", "Moments", "Quadratic", "along", "matrices", "quadratic_kl"]

# Entries of the largest matrices of structures that are formed unasked: 10,000 x 10,000, 0.8 GB.
_DENSE_LIMIT = 10_000**2
LOSSES = ("square", "kl")
_WIDE = 1 << 14  # entries of a plan from which on products in float32 save time
_ROUNDING = 64  # units of the last digit by which entries may miss their mirror images


@dataclass(frozen=True)
class Quadratic(Problem):
    r"""A problem with a term that is quadratic in the plan, the Gromov-Wasserstein term.

        (1 - alpha) <P, M> + alpha sum_ii'jj' L(C_ii', D_jj') P_ij P_i'j' + eps KL(P | a ⊗ b) + phi_a(P1) + phi_b(P^T 1)

    with L(u, v) = (u - v)^2 ("square") or u log(u / v) - u + v ("kl"). `KL(rho)` marginals are quadratic too, as is
    the entropy beside them: rho KL(P1 ⊗ P1 | a ⊗ a), eps KL(P ⊗ P | (a ⊗ b) ⊗ (a ⊗ b)), so that the whole scales with
    the square of the mass. Build it with `Quadratic.between`, which checks.

    Attributes:
        geometry: the cost M between features, n x m; zero where there are none.
        x, y: the structures C, n x n, and D, m x m; batch axes broadcast to those of the masses.
        alpha: the weight of structure against features, in [0, 1].
        loss: "square" or "kl".

    Reference:
        Mémoli (2011), Gromov-Wasserstein distances and the metric approach to object matching; Peyré, Cuturi & Solomon
        (2016), Gromov-Wasserstein averaging of kernel and distance matrices; Vayer et al. (2019), Optimal transport for
        structured data (the features); Séjourné, Vialard & Peyré (2021), The unbalanced Gromov Wasserstein distance.
    """

    x: Geometry = field(kw_only=True)
    y: Geometry = field(kw_only=True)
    alpha: float = field(kw_only=True)
    loss: str = field(kw_only=True)

    @classmethod
    def between(
        cls,
        x: Geometry,
        y: Geometry,
        a: Any = None,
        b: Any = None,
        *,
        features: Geometry | None = None,
        alpha: float | None = None,
        loss: str = "square",
        marginals: Marginal | tuple[Marginal, Marginal] = (Exact(), Exact()),
        epsilon: float | Relative | Tensor | None = None,
    ) -> Quadratic:
        """Check the parts and put them together.

        Args:
            x, y: structures, (*batch, n, n) and (*batch, m, m); batch axes broadcast.
            a, b: masses; uniform with total 1 when None.
            features: a cost (*batch, n, m).
            alpha: 1/2 with features and 1 without, when None.
            loss: "square" or "kl".
            marginals: as for `Problem`.
            epsilon: in units of the loss; `Relative(t)` is t times the objective of the plan a ⊗ b, of each item.

        Raises:
            InvalidInput: structures that are not square, features of another shape, batch axes that do not broadcast,
                alpha outside [0, 1], an unknown loss, entries the loss cannot take; and what `Problem.make` refuses.
        """
        for name, side in (("x", x), ("y", y)):
            if side.shape[0] != side.shape[1]:
                refuse(name, "a square matrix: the points of one space among themselves", f"shape {side.shape}")
        if loss not in LOSSES:
            refuse("loss", "one of " + ", ".join(map(repr, LOSSES)), repr(loss))
        if alpha is None:
            alpha = 1.0 if features is None else 0.5
        if not (is_real(alpha) and 0 <= alpha <= 1):
            refuse("alpha", "a number in [0, 1]", repr(alpha))
        n, m = x.shape[0], y.shape[0]
        if features is None:
            if alpha != 1:
                refuse("alpha", "1 where there are no features", f"{alpha:g}", "Give features=...")
            zero = x.tensors[0].detach().new_zeros(())
            features = Factored(zero.expand(n), zero.expand(m), zero.expand(n, 1), zero.expand(m, 1))
        if features.shape != (n, m):
            refuse("features", f"a cost of shape {(n, m)}", f"shape {(*features.batch_shape, *features.shape)}")
        a, b = x.masses(a, None)[0], y.masses(None, b)[1]  # which know their own padding
        parts = [tuple(s) for s in (x.batch_shape, y.batch_shape, features.batch_shape, a.shape[:-1], b.shape[:-1])]
        try:
            batch = torch.broadcast_shapes(*parts)
        except RuntimeError:
            refuse("x, y, features, a and b", "batch axes that broadcast", ", ".join(map(str, parts)))
        a, b = a.expand(*batch, n), b.expand(*batch, m)
        linear = Problem.make(features, a, b, marginals=marginals)
        out = cls(features, linear.a, linear.b, linear.marginals, x=x, y=y, alpha=float(alpha), loss=loss)
        if loss == "kl":
            _check_positive(out)
        if out.soft and alpha != 1:
            cure = "Use TV(rho), Partial(mass) or Free(), or leave the features out."
            refuse("marginals", "none of KL(rho) beside features, as it is quadratic in the mass", str(marginals), cure)
        if out.soft and not all(isinstance(p, KL | Exact) for p in out.marginals):
            refuse("marginals", "KL(rho) beside KL(rho) or Exact() only", str(marginals))
        if isinstance(epsilon, Relative):
            form = out.detach().form
            mean = form.energy(*form.independent()) / (form.a.sum(-1) * form.b.sum(-1))
            if not bool(((mean > 0) & (mean < math.inf)).all()):
                cure = "Give epsilon as a number."
                got = f"{float(mean.min()):.6g}"
                refuse("epsilon=Relative(...)", "a positive finite objective at a ⊗ b", got, cure)
            epsilon = epsilon.fraction * mean
        strength = Problem.make(features, linear.a, linear.b, marginals=linear.marginals, epsilon=epsilon).epsilon
        return replace(out, epsilon=strength)

    @property
    def soft(self) -> bool:
        """Whether a marginal is `KL(rho)`, which is quadratic here."""
        return any(isinstance(p, KL) for p in self.marginals)

    @property
    def T(self) -> Quadratic:
        if self.loss != "square":
            refuse("the transposed problem", "a symmetric loss", repr(self.loss))
        linear = super().T
        return replace(self, geometry=linear.geometry, a=self.b, b=self.a, marginals=linear.marginals,
                       x=self.y, y=self.x)  # fmt: skip

    def select(self, index: Tensor) -> Quadratic:
        linear = super().select(index)
        return replace(self, geometry=linear.geometry, a=linear.a, b=linear.b, marginals=linear.marginals,
                       epsilon=linear.epsilon, x=self.x.select(index), y=self.y.select(index))  # fmt: skip

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*super().tensors, *self.x.tensors, *self.y.tensors)

    def with_tensors(self, *tensors: Tensor) -> Self:
        own = len(self.x.tensors) + len(self.y.tensors)
        out = super().with_tensors(*tensors[:-own])
        rest = iter(tensors[-own:])
        x, y = (side.with_tensors(*(next(rest) for _ in side.tensors)) for side in (self.x, self.y))
        return replace(out, x=x, y=y)

    def detach(self) -> Self:
        return super().detach() if any(t.requires_grad for t in self.tensors) else self  # and keep its form

    @cached_property
    def form(self) -> Form:
        """The objective in float64, made once; with gradient history where the problem has any."""
        return Form(self)

    @property
    def live(self) -> tuple[Tensor, Tensor]:
        """Which points of each side can have mass, (*batch, n) and (*batch, m); the others are no part of it."""
        left, right = (
            (weights.detach() > 0) | (not marginal.dead_without_weight)
            for weights, marginal in zip((self.a, self.b), self.marginals)
        )
        return left, right


def along(weight: Tensor, like: Tensor) -> Tensor:
    """A number for each item, (*batch,), as a factor of something (*batch, ...)."""
    return weight.reshape(*weight.shape, *[1] * (like.dim() - weight.dim()))


def _scaled(t: Tensor, weight: float | Tensor) -> Tensor:
    return t * along(weight, t) if isinstance(weight, Tensor) else t * weight


def _sum(s: Tensor, t: Tensor, own: float | Tensor, weight: float | Tensor) -> Tensor:
    """Own x s + weight x t."""
    s = s if isinstance(own, int) and own == 1 else _scaled(s, own)
    return s + _scaled(t, weight) if isinstance(weight, Tensor) else torch.add(s, t, alpha=weight)


class Linear(NamedTuple):
    """A cost in the form of a problem: row_i + col_j - core_ij, or row_i + col_j - <phi_i, core psi_j>."""

    row: Tensor  # (*batch, n)
    col: Tensor  # (*batch, m)
    core: Tensor  # (*batch, n, m), or (r, s) in factors

    def times(self, weight: float | Tensor) -> Linear:
        """Weight x this, for a number or one for each item."""
        return Linear(*(_scaled(t, weight) for t in self))

    def plus(self, other: Linear, weight: float | Tensor, own: float | Tensor = 1) -> Linear:
        """Own x this + weight x other."""
        return Linear(*(_sum(s, t, own, weight) for s, t in zip(self, other)))

    def lerp(self, other: Linear, t: Tensor) -> Linear:
        """(1 - t) this + t other, for a number for each item; exact at zero and at one."""
        return Linear(*(torch.lerp(u, v, along(t, v)) for u, v in zip(self, other)))


class Moments(NamedTuple):
    """What a quadratic form sees of a plan: its marginals, and the plan itself, or phi^T P psi in factors."""

    p: Tensor  # (*batch, n)
    q: Tensor  # (*batch, m)
    body: Tensor  # (*batch, n, m), or (r, s)

    def times(self, weight: float | Tensor) -> Moments:
        """Weight x these, for a number or one for each item."""
        return Moments(*(_scaled(t, weight) for t in self))

    def plus(self, other: Moments, weight: float | Tensor, own: float | Tensor = 1) -> Moments:
        """Own x these + weight x others."""
        return Moments(*(_sum(s, t, own, weight) for s, t in zip(self, other)))

    def lerp(self, other: Moments, t: Tensor) -> Moments:
        """(1 - t) these + t others, for a number for each item; exact at zero and at one."""
        return Moments(*(torch.lerp(u, v, along(t, v)) for u, v in zip(self, other)))


class Form:
    r"""The objective of a `Quadratic` in float64: moments of plans, linear costs, values.

    With L(u, v) = f1(u) + f2(v) - h1(u) h2(v), the structure term is <half(P), P>,

        half(P) = f1(C) P1 ⊕ f2(D) P^T 1 - h1(C) P h2(D)^T,

    symmetrised where C or D is not symmetric, so that its gradient is 2 half(P). Where both structures are clouds with
    an inner-product cost, h1(C) = phi A phi^T with r = d + 2 columns in phi, and likewise psi and B: then half(P)
    needs no more of P than phi^T P psi, and nothing n x m is formed. Otherwise, and for a batch, whose problems are
    small, phi and psi stand for the identity.

    O((n + m) (r + s)^2) time in factors, O(n m (n + m)) without, for each item.

    Attributes:
        a, b: masses in float64, (*batch, n) and (*batch, m).
        phi, psi: (n, r) and (m, s), or None.
        features: the cost M as `Linear`; None where alpha = 1.

    Reference:
        Peyré, Cuturi & Solomon (2016), Gromov-Wasserstein averaging of kernel and distance matrices; Scetbon, Peyré &
        Cuturi (2022), Linear-time Gromov Wasserstein distances using low rank couplings and costs (the factors).
    """

    def __init__(self, problem: Quadratic) -> None:
        self.alpha, self.square = problem.alpha, problem.loss == "square"
        a, b = problem.a.double(), problem.b.double()
        if problem.balanced:
            b = b * (a.detach().sum(-1, keepdim=True) / b.detach().sum(-1, keepdim=True))
        self.a, self.b = a, b
        alone = not problem.batch_shape
        left, right = (_factors(g) if self.square and alone else None for g in (problem.x, problem.y))
        linear = _linear_factors(problem.geometry) if self.alpha != 1 and alone else ()
        self.phi: Tensor | None = None
        self.psi: Tensor | None = None
        self.features: Linear | None = None
        n, m = problem.shape
        if left is not None and right is not None and linear is not None and left[0].shape[1] * 2 <= n + m:
            (self.phi, self.A), (self.psi, B) = left, right
            self.B = 2 * B
            if linear:
                h, k, u, v = linear
                (r, s), t = (len(self.A), len(self.B)), u.shape[1]
                self.phi, self.psi = torch.cat([self.phi, u], 1), torch.cat([self.psi, v], 1)
                self.A, self.B = (torch.block_diag(S, S.new_zeros(t, t)) for S in (self.A, self.B))
                core = torch.block_diag(u.new_zeros(r, s), torch.eye(t, dtype=u.dtype, device=u.device))
                self.features = Linear(h, k, core)
        else:
            for name, side in (("x", problem.x), ("y", problem.y)):
                items = side.batch_shape.numel()
                if items * side.shape[0] ** 2 > _DENSE_LIMIT and not isinstance(side, CostMatrix):
                    refuse(name, f"at most {math.isqrt(_DENSE_LIMIT // items):,} points for a matrix that must be "
                           "formed" + (f" for each of {items:,} items" if side.batch_shape else ""),
                           f"{side.shape[0]:,}",
                           "Solve the batch in parts." if side.batch_shape else
                           "Use cost='sqeuclidean' for points.")  # fmt: skip
            self._C, self._D = _evened(problem, *matrices(problem))
            self.A = self._C
            self.B = 2 * self._D if self.square else self._D.log()
            if self.alpha != 1:
                M = problem.geometry.to(torch.float64).tile()
                self.features = Linear(M.new_zeros(n), M.new_zeros(m), -M)
        self.symmetric = bool(torch.equal(self.A, self.A.mT)) and bool(torch.equal(self.B, self.B.mT))
        left_fixed, right_fixed = (isinstance(p, Exact) for p in problem.marginals)
        with torch.no_grad():
            self._row_a = self._rows(self.a) if left_fixed else None
            self._col_b = self._cols(self.b) if right_fixed else None

    @property
    def factored(self) -> bool:
        """Whether nothing n x m is formed."""
        return self.phi is not None

    def independent(self) -> tuple[Moments, Linear]:
        """The moments of a ⊗ b, scaled to the mass of a, and half of it, of which a factor is known on either side."""
        moments, (u, v) = self.product(self.a, self.b), self._ends(self.a, self.b)
        core = _outer(_applied(self.A, u), _applied(self.B, v))
        if not self.symmetric:
            core = (core + _outer(_applied(self.A.mT, u), _applied(self.B.mT, v))) / 2
        return moments, Linear(*self._lines(moments), core)

    @cached_property
    def scale(self) -> Tensor:
        """The size of the objective at a ⊗ b, (*batch,), for tolerances."""
        return self.energy(*self.independent()).abs()

    # -- plans --------------------------------------------------------------------------------------------------

    def moments(self, plan: Plan) -> Moments:
        """Those of a plan, one pass over its pairs."""
        if self.phi is None or self.psi is None:
            body = dense(plan)
            return Moments(body.sum(-1), body.sum(-2), body)
        ones = self.psi.new_ones(len(self.psi), 1)
        right = plan._matmul(torch.cat([self.psi.detach(), ones], 1))
        q = plan.col_sums().to(right)
        return Moments(right[:, -1], q, self.phi.detach().mT @ right[:, :-1])

    def product(self, p: Tensor, q: Tensor) -> Moments:
        """Those of the plan p q^T / sum(q), of the mass of p."""
        share = q / q.sum(-1, keepdim=True)
        return Moments(p, share * p.sum(-1, keepdim=True), _outer(*self._ends(p, q)))

    def _ends(self, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of the body of a plan p q^T / sum(q)."""
        share = q / q.sum(-1, keepdim=True)
        return (p, share) if self.phi is None or self.psi is None else (self.phi.mT @ p, self.psi.mT @ share)

    # -- costs --------------------------------------------------------------------------------------------------

    def half(self, moments: Moments, exact: bool = False) -> Linear:
        """The linear cost with <half(P), P> the structure term.

        With `exact`, by the marginals of P itself also where those of the problem are exact.
        """
        return Linear(*self._lines(moments, exact), self._core(moments.body))

    def _lines(self, moments: Moments, exact: bool = False) -> tuple[Tensor, Tensor]:
        row = self._row_a if self._row_a is not None and not exact else self._rows(moments.p)
        col = self._col_b if self._col_b is not None and not exact else self._cols(moments.q)
        return row, col

    def half_of(self, plan: SparsePlan, moments: Moments) -> Linear:
        """The same for a sparse plan without factors, by one matrix product and one that knows the few entries."""
        if self.factored or not self.symmetric:
            return self.half(moments)
        (n, m), count = plan.shape, plan.batch_shape.numel()
        item = torch.arange(count, device=plan.rows.device).reshape(*plan.batch_shape, 1)
        index = torch.stack([(plan.rows + n * item).flatten(), (plan.cols + m * item).flatten()])
        mass, size = plan.mass.flatten().to(self.B), (count * n, count * m)
        entries = torch.sparse_coo_tensor(index, mass, size, check_invariants=False)
        right = (entries @ self.B.expand(*plan.batch_shape, m, m).reshape(-1, m)).reshape(*plan.batch_shape, n, m)
        return Linear(*self._lines(moments), self.A @ right)

    def half_after(self, moments: Moments, last: Moments, half: Linear) -> Linear:
        """Half of a plan from that of one close to it: the product of the structures with their difference, in float32.

        The error is about 1e-7 of the largest entries for a plan that moves all its mass, and falls with what moves.
        """
        (A, left), (B, right) = self._narrow
        body = moments.body - last.body
        size = body.abs().amax((-2, -1), keepdim=True)
        moved = A @ (body / size.clamp(min=torch.finfo(body.dtype).tiny)).float() @ B.mT
        return Linear(*self._lines(moments), torch.addcmul(half.core, moved.double(), left * right * size))

    def narrow(self, moved: Tensor, error: Tensor, of: Tensor) -> bool:
        """Whether `half_after` saves time, and errs by less than this in the items that count, (*batch,).

        Args:
            moved: the mass that has moved since half was made in float64.
            error: of the gradient.
            of: the items.
        """
        if self.factored or not self.symmetric or self.A.shape[-1] * self.B.shape[-1] < _WIDE:
            return False
        if not products_in_full(self.A):
            return False
        (_, left), (_, right) = self._narrow
        bound = torch.finfo(torch.float32).eps * 2 * self.alpha * moved * (left * right).squeeze(-1).squeeze(-1)
        return bool((bound <= error)[of].all())

    @cached_property
    def _narrow(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Both structures in float32 with entries up to one, and their sizes."""
        sizes = (S.abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(S.dtype).tiny) for S in (self.A, self.B))
        left, right = (((S / size).float(), size) for S, size in zip((self.A, self.B), sizes))
        return left, right

    def _core(self, body: Tensor) -> Tensor:
        core = self.A @ body @ self.B.mT
        return core if self.symmetric else (core + self.A.mT @ body @ self.B) / 2

    def _rows(self, p: Tensor) -> Tensor:
        """f1(C) p, symmetrised."""
        if self.phi is not None:
            return _squared(self.phi, self.A, p)
        return self._times(self._C.square() if self.square else torch.special.xlogy(self._C, self._C) - self._C, p)

    def _cols(self, q: Tensor) -> Tensor:
        """f2(D) q, symmetrised."""
        if self.psi is not None:
            return _squared(self.psi, self.B / 2, q)
        return self._times(self._D.square() if self.square else self._D, q)

    def _times(self, matrix: Tensor, p: Tensor) -> Tensor:
        return _applied(matrix, p) if self.symmetric else (_applied(matrix, p) + _applied(matrix.mT, p)) / 2

    def gradient(self, half: Linear) -> Linear:
        """(1 - alpha) M + 2 alpha half(P), the gradient of the objective without entropy and penalties."""
        if self.features is None:
            return half.times(2 * self.alpha)
        return half.plus(self.features, 1 - self.alpha, own=2 * self.alpha)

    def energy(self, moments: Moments, half: Linear) -> Tensor:
        """(1 - alpha) <P, M> + alpha <half(P), P>, (*batch,)."""
        value = self.alpha * inner(half, moments)
        return value if self.features is None else value + (1 - self.alpha) * inner(self.features, moments)

    def geometry(self, cost: Linear) -> Geometry:
        """A linear cost as a geometry."""
        if self.phi is None or self.psi is None:
            return CostMatrix((cost.row.unsqueeze(-1) + cost.col.unsqueeze(-2)).sub_(cost.core))
        return Factored(cost.row, cost.col, (self.phi @ cost.core).detach(), self.psi.detach())


def matrices(problem: Quadratic) -> tuple[Tensor, Tensor]:
    """The structures in float64, (*batch, n, n) and (*batch, m, m).

    Where the loss takes logarithms, entries of points that cannot have mass are one: they count for nothing, whatever
    they are.
    """
    C, D = (side.to(torch.float64).tile() for side in (problem.x, problem.y))
    if problem.loss == "square":
        return C, D
    C, D = (S if bool(live.all()) else torch.where(_both(live), S, 1) for S, live in zip((C, D), problem.live))
    return C, D


def _evened(problem: Quadratic, C: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    """Both structures, made symmetric where they are but for rounding, as shortest paths are: half the work."""
    for S, side in ((C, problem.x), (D, problem.y)):
        rounding = _ROUNDING * torch.finfo(side.dtype).eps
        if not (torch.equal(S, S.mT) or bool(((S - S.mT).abs() <= rounding * S.abs()).all())):
            return C, D
    C, D = (S if torch.equal(S, S.mT) else (S + S.mT) / 2 for S in (C, D))
    return C, D


def _both(live: Tensor) -> Tensor:
    """The pairs of points that can both have mass."""
    return live.unsqueeze(-1) & live.unsqueeze(-2)


def _applied(matrix: Tensor, p: Tensor) -> Tensor:
    return (matrix @ p.unsqueeze(-1)).squeeze(-1)


def _outer(u: Tensor, v: Tensor) -> Tensor:
    return u.unsqueeze(-1) * v.unsqueeze(-2)


def inner(cost: Linear, moments: Moments) -> Tensor:
    """The linear cost of a plan, <P, cost>, (*batch,)."""
    lines = (cost.row * moments.p).sum(-1) + (cost.col * moments.q).sum(-1)
    size = torch.broadcast_shapes(cost.core.shape, moments.body.shape)
    core, body = (t.expand(size).flatten(-2) for t in (cost.core, moments.body))
    return lines - (core.unsqueeze(-2) @ body.unsqueeze(-1)).squeeze((-2, -1))  # without a matrix in between


def dense(plan: Plan) -> Tensor:
    """A plan in full, (*batch, n, m) float64, without its container."""
    geometry = plan.geometry
    if isinstance(plan, SparsePlan):
        n, m = plan.shape
        flat = plan.mass.new_zeros((*plan.batch_shape, n * m), dtype=torch.float64)
        flat.scatter_add_(-1, plan.rows * m + plan.cols, plan.mass.double())
        return flat.reshape(*plan.batch_shape, n, m)
    if isinstance(plan, FactoredPlan):
        return (plan._left @ plan.R.mT).double()
    F, G, epsilon = plan.F.double(), plan.G.double(), plan.epsilon.double()  # type: ignore[attr-defined]
    exact = getattr(plan, "_exact", geometry)
    reduced = F.unsqueeze(-1) + G.unsqueeze(-2) - exact.tile()
    return (reduced / along(epsilon, reduced)).exp()


def quadratic_kl(p: Tensor, reference: Tensor) -> Tensor:
    """KL(p ⊗ p | r ⊗ r) = 2 m(p) sum p log(p / r) - m(p)^2 + m(r)^2, (*batch,)."""
    mass, whole = p.sum(-1), reference.sum(-1)
    return 2 * mass * logarithmic(p, reference) - mass.square() + whole.square()


def logarithmic(p: Tensor, reference: Tensor) -> Tensor:
    """Sum p log(p / r), with 0 log 0 = 0, (*batch,)."""
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, reference)).sum(-1)


def _squared(phi: Tensor, A: Tensor, p: Tensor) -> Tensor:
    """(C * C) p for C = phi A phi^T."""
    left = phi @ A
    return ((left @ (phi.mT @ (p.unsqueeze(1) * phi))) * left).sum(1)


def _factors(side: Geometry) -> tuple[Tensor, Tensor] | None:
    """Phi (n, r) and A (r, r) with C = phi A phi^T, in float64; None for what is not a cloud against itself."""
    if not isinstance(side, PointCloud) or not (side.x is side.y or torch.equal(side.x, side.y)):
        return None
    parts = side.to(torch.float64).factors()
    if parts is None:
        return None
    h, k, u, v = parts
    scale = float((u.detach() * v.detach()).sum() / v.detach().square().sum().clamp(min=1e-300))
    if not torch.allclose(u.detach(), scale * v.detach(), rtol=1e-12, atol=1e-12 * float(v.detach().abs().max())):
        return None
    r = u.shape[1] + 2
    A = torch.diag(torch.cat([u.new_zeros(2), u.new_full((r - 2,), -scale)]))
    A[0, 1] = A[1, 0] = 1
    return torch.cat([torch.ones_like(h).unsqueeze(1), ((h + k) / 2).unsqueeze(1), v], 1), A


def _linear_factors(features: Geometry) -> tuple[Tensor, ...] | None:
    """h, k, u, v of the cost between features, in float64; None where it has no such form."""
    if isinstance(features, Factored):
        return features.to(torch.float64).tensors
    return features.to(torch.float64).factors() if isinstance(features, PointCloud) else None


def _check_positive(problem: Quadratic) -> None:
    for name, side, live, bound in zip("xy", (problem.x, problem.y), problem.live, (">= 0", "> 0")):
        least = float(torch.where(_both(live), side.detach().tile(), torch.inf).min())
        if least < 0 or (name == "y" and least == 0):
            refuse(f"{name} with loss='kl'", f"entries {bound}", f"{least:g}",
                   "Use similarities such as exp(-distance), or loss='square'.")  # fmt: skip
