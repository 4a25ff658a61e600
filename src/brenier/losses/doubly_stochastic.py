"""Many small matrices made doubly stochastic by Sinkhorn scaling: a function and a layer."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import NotConvergedWarning, refuse
from ..kernels import tiny

__all__ = ["DoublyStochastic", "Scaled", "doubly_stochastic", "marginal_error"]

_ITERATIONS = 20
_MOST_ITERATIONS = 1000  # with a tolerance


class Scaled(NamedTuple):
    """A scaled matrix, and how good it is."""

    plan: Tensor  # (*batch, n, m)
    error: Tensor  # (*batch,) the largest |sum - mass| over rows and columns, before rounding to half precision
    n_iter: Tensor  # (*batch,) iterations taken


def doubly_stochastic(
    scores: Tensor,  # (*batch, n, m)
    epsilon: float | Tensor = 1.0,  # broadcasts to (*batch,)
    *,
    r: Tensor | None = None,  # broadcasts to (*batch, n)
    c: Tensor | None = None,  # broadcasts to (*batch, m)
    n_iter: int | None = None,
    tol: float | None = None,
    adjoint: str = "implicit",
) -> Scaled:
    r"""Scale many small matrices to given row and column sums.

    .. math:: P = \operatorname{diag}(u)\, e^{S/\varepsilon} \operatorname{diag}(v), \qquad P \mathbf 1 = r, \quad
        P^\top \mathbf 1 = c,

    which is the maximiser of :math:`\langle P, S\rangle + \varepsilon H(P)` with these sums. By default every row sums
    to 1 and every column to n/m: a square P is doubly stochastic. Each iteration fits the rows, then the columns, so
    after any number of them the columns are right and the rows nearly so; `error` says how nearly. Nothing
    overflows, however large the scores or small the epsilon.

    Args:
        scores: float32, float64, bfloat16 or float16; half precision is computed in float32. -inf forbids an entry.
            A row or column without any score but -inf is padding: it gets no mass, and the shares of the columns are
            taken among those that remain. A matrix with NaN or +inf comes back as NaN, and no other does.
        epsilon: positive; a tensor may want a gradient (a learned temperature).
        r, c: nonnegative masses of equal totals. If one is given, the other is the same total in equal parts.
        n_iter: iterations; with `tol` the most of them. 20, or 1000 with `tol`.
        tol: stop each matrix where its row sums are this close. Warns where `n_iter` did not suffice.
        adjoint: "implicit", the gradient of the fixed point, exact where `error` is zero and off by its order before;
            or "unrolled", the gradient of the iterations themselves, exact at any number of them (not with `tol`).
            Towards r and c the implicit gradient is fixed up to a constant, as totals must stay equal; the smallest
            is taken, zero for lines without mass.

    Returns:
        `Scaled`: the plan, in the dtype of the scores, its error and its number of iterations.

    Raises:
        InvalidInput: shapes that do not fit, epsilon or masses that are not positive, masses of different totals, an
            unknown adjoint. What tensors hold is not checked while torch.compile traces.

    Complexity: per matrix n_iter n m multiply-adds, and no more memory than the arguments and P. The implicit gradient
    adds a factorisation, n m min(n, m); the unrolled one costs 4 n_iter n m.

    Example:
        >>> import torch
        >>> S = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
        >>> P, error, n_iter = doubly_stochastic(S)
        >>> P  # the diagonal is sigmoid((2 + 0 - 0 - 0) / 2)
        tensor([[0.7311, 0.2689],
                [0.2689, 0.7311]])
        >>> bool(error < 1e-6)
        True

    Source: Sinkhorn & Knopp 1967; as a layer, Mena, Belanger, Linderman & Snoek 2018; the implicit gradient,
    Eisenberger, Toker, Leal-Taixé, Bernard & Cremers 2022.
    """
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        got = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        refuse("scores", "a tensor of real numbers", got)
    if scores.dim() < 2 or 0 in scores.shape[-2:]:
        refuse("scores", "matrices of at least one row and one column, (*batch, n, m)", f"shape {tuple(scores.shape)}")
    if adjoint not in tiny.ADJOINTS:
        refuse("adjoint", f"one of {tiny.ADJOINTS}", repr(adjoint))
    if n_iter is not None and (isinstance(n_iter, bool) or not isinstance(n_iter, int) or n_iter < 1):
        refuse("n_iter", "an integer >= 1", repr(n_iter))
    if tol is not None:
        if not 0 < tol < math.inf:
            refuse("tol", "a positive number", repr(tol))
        if adjoint == "unrolled":
            refuse("tol", "None with adjoint='unrolled'", repr(tol), "Give n_iter, or use adjoint='implicit'.")
    batch, (n, m) = scores.shape[:-2], scores.shape[-2:]
    wide = scores if scores.dtype in (torch.float32, torch.float64) else scores.float()
    epsilon = _epsilon(epsilon, wide)
    r, c = _mass("r", r, wide, n), _mass("c", c, wide, m)
    if c is None and r is not None:
        c = _shares(r, wide, -2)
    elif r is None and c is not None:
        r = _shares(c, wide, -1)
    if r is not None and c is not None and not torch.compiler.is_compiling():
        left, right = r.detach().sum(-1), c.detach().sum(-1)
        if not torch.allclose(left, right, rtol=1e-4, atol=0):
            refuse("r, c", "equal totals", f"totals that differ by {float((left - right).abs().max()):g}")
    most = n_iter or (_ITERATIONS if tol is None else _MOST_ITERATIONS)
    plan, error, taken = tiny.scale(wide, epsilon, r, c, n_iter=most, tol=tol or 0.0, adjoint=adjoint)
    if tol is not None and not torch.compiler.is_compiling():
        missed = (taken >= most) & (error > tol)
        if bool(missed.any()):
            warnings.warn(
                f"{int(missed.sum())} of {batch.numel()} matrices stopped after {most} iterations with a marginal "
                f"error up to {float(error[missed].max()):.3g}, above tol = {tol:g}. Raise n_iter, epsilon or tol.",
                NotConvergedWarning,
                stacklevel=2,
            )
    return Scaled(plan.to(scores.dtype), error, taken)


def marginal_error(
    P: Tensor,  # (*batch, n, m)
    *,
    r: Tensor | None = None,  # broadcasts to (*batch, n)
    c: Tensor | None = None,  # broadcasts to (*batch, m)
) -> Tensor:  # (*batch,)
    """How far a matrix is from its sums: the largest |sum - mass| over rows and columns, summed in float64.

    Args:
        P: any matrices.
        r, c: the sums that are wanted; by default 1 for rows and n/m for columns. Give them where P has padding.

    Example:
        >>> import torch
        >>> marginal_error(torch.eye(3)).item()
        0.0
    """
    n, m = P.shape[-2:]
    wide = P.double()
    rows = (wide.sum(-1) - (1 if r is None else r)).abs().amax(-1)
    cols = (wide.sum(-2) - (n / m if c is None else c)).abs().amax(-1)
    return torch.maximum(rows, cols)


class DoublyStochastic(nn.Module):
    r"""A layer that makes small matrices doubly stochastic: P = diag(u) exp(S / epsilon) diag(v).

    See `doubly_stochastic` for the formula, shapes and limits.

    Args:
        epsilon: the temperature, or its start.
        learn_epsilon: make it a parameter; its logarithm is learned, so that it stays positive.
        n_iter, tol, adjoint: as for `doubly_stochastic`.

    Example:
        >>> import torch
        >>> layer = DoublyStochastic(epsilon=0.5, tol=1e-5)
        >>> P = layer(torch.randn(1000, 8, 8, generator=torch.Generator().manual_seed(0)))
        >>> bool((layer.marginal_error(P) < 2e-5).all())
        True
    """

    def __init__(
        self,
        epsilon: float = 1.0,
        *,
        learn_epsilon: bool = False,
        n_iter: int | None = None,
        tol: float | None = None,
        adjoint: str = "implicit",
    ) -> None:
        super().__init__()
        if not 0 < epsilon < math.inf:
            refuse("epsilon", "a positive finite number", repr(epsilon))
        self.n_iter, self.tol, self.adjoint = n_iter, tol, adjoint
        self.log_epsilon = nn.Parameter(torch.tensor(math.log(epsilon))) if learn_epsilon else None
        self._epsilon = epsilon

    @property
    def epsilon(self) -> float | Tensor:
        """The temperature: a number, or a tensor where it is learned."""
        return self._epsilon if self.log_epsilon is None else self.log_epsilon.exp()

    def forward(
        self,
        scores: Tensor,  # (*batch, n, m)
        *,
        r: Tensor | None = None,  # broadcasts to (*batch, n)
        c: Tensor | None = None,  # broadcasts to (*batch, m)
    ) -> Tensor:  # (*batch, n, m)
        """The scaled matrices."""
        return self.scale(scores, r=r, c=c).plan

    def scale(self, scores: Tensor, *, r: Tensor | None = None, c: Tensor | None = None) -> Scaled:
        """The scaled matrices, with their errors and iterations."""
        return doubly_stochastic(scores, self.epsilon, r=r, c=c, n_iter=self.n_iter, tol=self.tol, adjoint=self.adjoint)

    @staticmethod
    def marginal_error(P: Tensor, *, r: Tensor | None = None, c: Tensor | None = None) -> Tensor:
        """See `brenier.losses.marginal_error`."""
        return marginal_error(P, r=r, c=c)

    def extra_repr(self) -> str:
        learned = self.log_epsilon is not None
        epsilon = f"{float(torch.as_tensor(self.epsilon).detach()):g}" + (" (learned)" if learned else "")
        return f"epsilon={epsilon}, n_iter={self.n_iter}, tol={self.tol}, adjoint={self.adjoint!r}"


def _epsilon(epsilon: float | Tensor, scores: Tensor) -> Tensor:
    out = torch.as_tensor(epsilon, dtype=scores.dtype, device=scores.device)
    _check_broadcast("epsilon", out, scores.shape[:-2])
    if not torch.compiler.is_compiling() and not bool(((out > 0) & torch.isfinite(out)).all()):
        refuse("epsilon", "positive finite numbers", "one that is not")
    return out


def _mass(name: str, mass: Tensor | None, scores: Tensor, size: int) -> Tensor | None:
    if mass is None:
        return None
    out = torch.as_tensor(mass, dtype=scores.dtype, device=scores.device)
    shape = (*scores.shape[:-2], size)
    _check_broadcast(name, out, torch.Size(shape))
    if not torch.compiler.is_compiling() and not bool(((out >= 0) & torch.isfinite(out)).all()):
        refuse(name, "nonnegative finite masses", "negative, infinite or NaN ones")
    return out.expand(shape)


def _shares(mass: Tensor, scores: Tensor, dim: int) -> Tensor:
    """The total of the masses in equal parts for the lines of the other side that have a score."""
    present = (~(scores.detach() == -torch.inf).all(dim)).to(mass)
    return mass.sum(-1, keepdim=True) * (present / present.sum(-1, keepdim=True).clamp(min=1))


def _check_broadcast(name: str, t: Tensor, shape: torch.Size) -> None:
    try:
        fits = torch.broadcast_shapes(t.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits:
        refuse(name, f"a shape that broadcasts to {tuple(shape)}", f"shape {tuple(t.shape)}")
