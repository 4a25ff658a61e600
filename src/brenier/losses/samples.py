"""The arguments of GeomLoss' `SamplesLoss`, and what they are called here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._inputs import is_real
from ..adjoint import Adjoint, Envelope
from ..costs import Cost, Euclidean, SqEuclidean
from ..errors import refuse
from ..marginals import KL, Exact
from .clouds import Ground
from .divergence import sinkhorn_divergence
from .mmd import energy_distance, mmd

__all__ = ["SamplesLoss"]

_LOSSES = ("sinkhorn", "energy", "gaussian", "laplacian")


class _Blocks(Cost):
    """A function of whole clouds, x (B, N, D) and y (B, M, D) to (B, N, M)."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function = function

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self.block(x.unsqueeze(-2), y.unsqueeze(-2))[..., 0, 0]

    def block(self, x: Tensor, y: Tensor) -> Tensor:
        lead = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        whole = (t.expand(*lead, *t.shape[-2:]).reshape(-1, *t.shape[-2:]) for t in (x, y))
        return self.function(*whole).reshape(*lead, x.shape[-2], y.shape[-2])


class SamplesLoss(nn.Module):
    r"""The losses of GeomLoss, called as there: `SamplesLoss("sinkhorn", p=2, blur=0.05)(x, y)` or `(a, x, b, y)`.

    What the arguments mean in the words of this package:

        loss="sinkhorn"    `sinkhorn_divergence` with the cost ||x - y||^p / p
        blur               epsilon = blur^p
        reach              marginals = KL(reach^p)
        loss="gaussian"    `mmd(bandwidth=blur) / 2`
        loss="laplacian"   `mmd(kernel="laplacian", bandwidth=blur) / 2`
        loss="energy"      `energy_distance / 2`

    For p = 2 the cost has the factor 1/2 that "sqeuclidean" lacks: the value is half of that for "sqeuclidean" with
    epsilon = 2 blur^2 and rho = 2 reach^2. GeomLoss stops after a descent of epsilon whose length `scaling` sets; this
    one stops at a tolerance, so `scaling` and `diameter` change nothing, nor do `truncate`, `cluster_scale`, `verbose`
    and `backend`. Without debiasing, values of unbalanced problems agree for masses of total 1 only.

    Args:
        loss: "sinkhorn", "energy", "gaussian" or "laplacian".
        p: 1 or 2.
        blur: a length > 0.
        reach: a length > 0, or None for exact marginals.
        cost: in the place of ||x - y||^p / p: a function of x (B, N, D) and y (B, M, D) with values (B, N, M), or a
            cost of this package.
        debias: subtract the transport of each side to itself.
        potentials: return the debiased potentials at x and at y in the place of the value, without gradients.
        kernel: None; another is refused.
        diameter, scaling, truncate, cluster_scale, verbose, backend: accepted, without effect.
        adjoint: as for `sinkhorn_divergence`; second derivatives need `Implicit()`.

    Raises:
        InvalidInput: another loss or p, lengths that are not positive, cluster labels (six arguments), a KeOps formula.

    Example:
        >>> import torch
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> round(float(SamplesLoss("sinkhorn", p=2, blur=0.1)(x, x + 2)), 3)  # ||t||^2 / 2
        6.0

    Source: Feydy, Séjourné, Vialard, Amari, Trouvé & Peyré (2019), Interpolating between optimal transport and MMD
    using Sinkhorn divergences (and the library GeomLoss).
    """

    def __init__(
        self,
        loss: str = "sinkhorn",
        p: int = 2,
        blur: float = 0.05,
        reach: float | None = None,
        diameter: float | None = None,
        scaling: float = 0.5,
        truncate: float | None = 5,
        cost: Any = None,
        kernel: Any = None,
        cluster_scale: float | None = None,
        debias: bool = True,
        potentials: bool = False,
        verbose: bool = False,
        backend: str = "auto",
        adjoint: Adjoint = Envelope(),
    ) -> None:
        super().__init__()
        if loss not in _LOSSES:
            refuse("loss", "one of " + ", ".join(map(repr, _LOSSES)), repr(loss))
        if p not in (1, 2):
            refuse("p", "1 or 2", repr(p), "For other powers: SinkhornDivergence(cost=Lp(2, p), epsilon=...).")
        for name, value in (("blur", blur), ("reach", 1.0 if reach is None else reach)):
            if not (is_real(value) and 0 < value < float("inf")):
                refuse(name, "a positive finite length", repr(value))
        if kernel is not None:
            refuse("kernel", "None", type(kernel).__name__, "Use loss='gaussian', 'laplacian' or 'energy'.")
        if isinstance(cost, str) and not cost.isidentifier():
            refuse("cost", "a function or a cost of this package", repr(cost), "It has no use for KeOps formulas.")
        if potentials and loss != "sinkhorn":
            refuse("potentials", "False for a kernel norm", "True")
        self.loss, self.p, self.blur, self.reach = loss, p, float(blur), reach
        self.cost, self.debias, self.potentials, self.adjoint = cost, debias, potentials, adjoint

    def forward(self, *measures: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The value of (x, y) or (a, x, b, y), (B,) or (); or the potentials, shaped as the masses.

        Args:
            *measures: points (N, D) or (B, N, D), with masses (N,), (N, 1) or (B, N) before each.
        """
        if len(measures) == 2:
            (x, y), a, b = measures, None, None
        elif len(measures) == 4:
            a, x, b, y = measures
            a, b = (w.squeeze(-1) if w.dim() == t.dim() else w for w, t in ((a, x), (b, y)))  # of (N, 1)
        else:
            got = f"{len(measures)} arguments"
            refuse("SamplesLoss", "(x, y) or (a, x, b, y)", got, "Clusters are found by the solver itself.")
        if self.loss == "energy":
            return energy_distance(x, y, a, b) / 2
        if self.loss != "sinkhorn":
            return mmd(x, y, a, b, kernel=self.loss, bandwidth=self.blur) / 2
        cost, scale = self._ground()
        found = sinkhorn_divergence(
            x,
            y,
            a,
            b,
            cost=cost,
            epsilon=scale * self.blur**self.p,
            marginals=Exact() if self.reach is None else KL(scale * self.reach**self.p),
            debiased=self.debias,
            adjoint=self.adjoint,
        )
        if self.potentials:
            f, g = found.potentials
            return f / scale, g / scale
        return found.value / scale

    def _ground(self) -> tuple[Ground, float]:
        """The cost, and how many times it is that of GeomLoss."""
        if self.cost is None:
            return (Euclidean(), 1.0) if self.p == 1 else (SqEuclidean(), 2.0)
        known = isinstance(self.cost, str | Cost)
        return (self.cost if known else _Blocks(self.cost)), 1.0

    def extra_repr(self) -> str:
        return f"{self.loss!r}, p={self.p}, blur={self.blur:g}, reach={self.reach}, debias={self.debias}"
