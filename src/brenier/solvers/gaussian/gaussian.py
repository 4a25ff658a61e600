"""Gaussians: a mean and a covariance, which may be a matrix, or a factor and a diagonal."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._inputs import check_finite, float_tensor, is_real, same_place, weights_tensor
from ...errors import refuse
from ...geometry.pointcloud import read_cloud
from .matrices import moments, root

__all__ = ["DENSE_LIMIT", "Gaussian", "Shared", "shared"]

DENSE_LIMIT = 4096  # dimensions up to which a covariance may be formed
_ASYMMETRY = 1e-4  # of a covariance that is read, beside its largest entry; it is symmetrised
_NEGATIVE = 1e-5  # of its smallest eigenvalue, likewise


class Gaussian:
    r"""A normal distribution N(m, S), or a batch of them.

    S may have any rank, zero among them: a point. `Gaussian.low_rank` holds S = F F^T + diag(D) by its parts, for
    dimensions where S itself is too much.

    Args:
        mean: (*batch, d).
        covariance: (*batch, d, d), symmetric and positive semidefinite.

    Raises:
        InvalidInput: shapes that do not fit, NaN or infinity, a covariance that is not symmetric or not positive
            semidefinite beyond rounding.

    Example:
        >>> import torch
        >>> from brenier.solvers import Gaussian, gaussian_cost
        >>> p = Gaussian(torch.zeros(2), torch.eye(2))
        >>> q = Gaussian(torch.tensor([3.0, 0.0]), 4 * torch.eye(2))
        >>> float(gaussian_cost(p, q))  # 3^2 + 2 (2 - 1)^2
        11.0
    """

    mean: Tensor  # (*batch, d)
    factor: Tensor | None  # (*batch, d, r)
    diagonal: Tensor | None  # (*batch, d)

    def __init__(self, mean: Any, covariance: Any) -> None:
        mean, covariance = float_tensor(mean, "mean"), float_tensor(covariance, "covariance")
        same_place(mean, "mean", covariance, "covariance")
        d = mean.shape[-1] if mean.dim() else 0
        if d == 0 or covariance.dim() < 2 or covariance.shape[-2:] != (d, d):
            refuse(
                "mean and covariance",
                "shapes (*batch, d) and (*batch, d, d), d >= 1",
                f"{tuple(mean.shape)} and {tuple(covariance.shape)}",
            )
        for values, name in ((mean, "mean"), (covariance, "covariance")):
            check_finite(values, name, "finite numbers")
        with torch.no_grad():
            scale = covariance.abs().amax((-2, -1))
            if bool(((covariance - covariance.mT).abs().amax((-2, -1)) > _ASYMMETRY * scale).any()):
                refuse("covariance", "a symmetric matrix", "one that is not", "Take (S + S.mT) / 2.")
            least = torch.linalg.eigvalsh((covariance + covariance.mT) / 2)[..., 0]
            if bool((least < -_NEGATIVE * scale).any()):
                refuse("covariance", "a positive semidefinite matrix", f"an eigenvalue of {float(least.min()):.3g}")
        self._set(mean, (covariance + covariance.mT) / 2)

    def _set(
        self, mean: Tensor, covariance: Tensor | None, factor: Tensor | None = None, diagonal: Tensor | None = None
    ) -> None:
        parts = [t for t in (covariance, factor) if t is not None]
        lead = [t.shape[:-1] for t in (mean, diagonal) if t is not None] + [t.shape[:-2] for t in parts]
        try:
            batch = torch.broadcast_shapes(*lead)
        except RuntimeError:
            refuse("mean and covariance", "batch axes that broadcast", str([tuple(s) for s in lead]))
        self.mean = mean.expand(*batch, -1)
        self._covariance = None if covariance is None else covariance.expand(*batch, -1, -1)
        self.factor = None if factor is None else factor.expand(*batch, -1, -1)
        self.diagonal = None if diagonal is None else diagonal.expand(*batch, -1)

    @classmethod
    def of(cls, mean: Tensor, covariance: Tensor) -> Gaussian:
        """A Gaussian of tensors that are known to be sound, unchecked."""
        out = object.__new__(cls)
        out._set(mean, covariance)
        return out

    @classmethod
    def low_rank(cls, mean: Any, factor: Any, diagonal: Any = None) -> Gaussian:
        """N(m, F F^T + diag(D)), without the d x d matrix.

        Args:
            mean: (*batch, d).
            factor: F (*batch, d, r).
            diagonal: D (*batch, d), nonnegative, or one number for all; zero when None.

        Raises:
            InvalidInput: shapes that do not fit, NaN or infinity, a negative diagonal.

        Example:
            >>> import torch
            >>> from brenier.solvers import Gaussian, gaussian_cost
            >>> F = torch.randn(10000, 3, generator=torch.Generator().manual_seed(0))
            >>> p = Gaussian.low_rank(torch.zeros(10000), F, 1.0)
            >>> bool(gaussian_cost(p, p) < 1e-6)
            True
        """
        mean, factor = float_tensor(mean, "mean"), float_tensor(factor, "factor")
        same_place(mean, "mean", factor, "factor")
        d = mean.shape[-1] if mean.dim() else 0
        if d == 0 or factor.dim() < 2 or factor.shape[-2] != d:
            refuse(
                "mean and factor",
                "shapes (*batch, d) and (*batch, d, r), d >= 1",
                f"{tuple(mean.shape)} and {tuple(factor.shape)}",
            )
        if diagonal is None or is_real(diagonal):
            diagonal = mean.new_full((), 0 if diagonal is None else float(diagonal))
        diagonal = float_tensor(diagonal, "diagonal").to(mean)
        if diagonal.dim() == 0:
            diagonal = diagonal.expand(d)
        if diagonal.shape[-1] != d:
            refuse("diagonal", f"a number or shape (*batch, {d})", f"shape {tuple(diagonal.shape)}")
        for values, name in ((mean, "mean"), (factor, "factor"), (diagonal, "diagonal")):
            check_finite(values, name, "finite numbers")
        if bool((diagonal < 0).any()):
            refuse("diagonal", "nonnegative numbers", f"a minimum of {float(diagonal.min()):.3g}")
        out = object.__new__(cls)
        out._set(mean, None, factor, diagonal)
        return out

    @classmethod
    def fit(
        cls,
        x: Any,  # (*batch, n, d)
        a: Any = None,  # (*batch, n)
        *,
        shrinkage: float | str | None = None,
    ) -> Gaussian:
        r"""Take mean and covariance of a weighted cloud: S = (1 - s) sum_i a_i (x_i - m)(x_i - m)^T + s (tr / d) I.

        Args:
            x: points.
            a: masses, normalised here; uniform when None.
            shrinkage: s in [0, 1]; zero when None. "ledoit-wolf" and "oas" choose it, as scikit-learn does; for unequal
                masses the number of points in their formulas becomes 1 / sum a^2.

        Beyond 4096 dimensions the result is of the low-rank form, with n columns.

        Raises:
            InvalidInput: points, masses or a shrinkage that break a rule.

        Example:
            >>> import torch
            >>> from brenier.solvers import Gaussian
            >>> p = Gaussian.fit([[0.0, 0.0], [2.0, 0.0]])
            >>> p.mean.tolist(), p.covariance.tolist()
            ([1.0, 0.0], [[1.0, 0.0], [0.0, 0.0]])

        Source: Ledoit & Wolf (2004), A well-conditioned estimator for large-dimensional covariance matrices; Chen,
        Wiesel, Eldar & Hero (2010), Shrinkage algorithms for MMSE covariance estimation.
        """
        x = read_cloud(x, "x")
        check_finite(x, "x", "finite coordinates", "Drop or impute those rows.")
        n, d = x.shape[-2:]
        a = weights_tensor(a, n, "a", x)
        a = a / a.sum(-1, keepdim=True)
        mean = (a.unsqueeze(-2) @ x).squeeze(-2)
        rows = a.sqrt().unsqueeze(-1) * (x - mean.unsqueeze(-2))  # S = rows^T rows
        spread = rows.square().sum((-2, -1)) / d
        s = _shrinkage(shrinkage, rows, a, spread)
        if d > DENSE_LIMIT:
            diagonal = (s * spread).unsqueeze(-1).expand_as(mean)
            return cls.low_rank(mean, (1 - s).sqrt()[..., None, None] * rows.mT, diagonal)
        eye = torch.eye(d, dtype=x.dtype, device=x.device)
        covariance = (1 - s)[..., None, None] * moments(x, a)[1] + (s * spread)[..., None, None] * eye
        return cls.of(mean, covariance)

    @property
    def d(self) -> int:
        """The dimension."""
        return self.mean.shape[-1]

    @property
    def batch_shape(self) -> torch.Size:
        """The leading axes."""
        return self.mean.shape[:-1]

    @property
    def dtype(self) -> torch.dtype:
        """That of mean and covariance."""
        return self.mean.dtype

    @property
    def covariance(self) -> Tensor:
        """S, (*batch, d, d).

        Raises:
            InvalidInput: of the low-rank form beyond 4096 dimensions.
        """
        if self._covariance is not None:
            return self._covariance
        assert self.factor is not None
        assert self.diagonal is not None
        if self.d > DENSE_LIMIT:
            refuse(
                "covariance",
                f"at most {DENSE_LIMIT} dimensions for what needs a d x d matrix",
                f"d = {self.d}",
                "Costs take any low-rank form, maps one whose diagonal is one number, geodesics and barycentres one "
                "without a diagonal.",
            )
        return self.factor @ self.factor.mT + torch.diag_embed(self.diagonal)

    @property
    def plain(self) -> bool:
        """Whether the form is F F^T alone."""
        return self.diagonal is not None and not bool(self.diagonal.any())

    def apply(self, v: Tensor) -> Tensor:
        """S v for v (*batch, d, k), in O(d r k) for the low-rank form."""
        if self.factor is None:
            return self.covariance @ v
        assert self.diagonal is not None
        return self.factor @ (self.factor.mT @ v) + self.diagonal.unsqueeze(-1) * v

    def trace(self) -> Tensor:
        """The total variance, (*batch,)."""
        if self._covariance is not None:
            return self._covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
        assert self.factor is not None
        assert self.diagonal is not None
        return self.factor.square().sum((-2, -1)) + self.diagonal.sum(-1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points, (*batch, n, d); the random numbers are those of the CPU."""

        def normal(size: int) -> Tensor:
            return torch.randn(*self.batch_shape, n, size, generator=generator, dtype=self.dtype).to(self.mean.device)

        mean = self.mean.unsqueeze(-2)
        if self.factor is None:
            return mean + normal(self.d) @ root(self.covariance)
        assert self.diagonal is not None
        wide = normal(self.factor.shape[-1]) @ self.factor.mT
        return mean + wide + normal(self.d) * self.diagonal.sqrt().unsqueeze(-2)

    def expand(self, batch: torch.Size) -> Gaussian:
        """The same with these leading axes."""
        out = object.__new__(Gaussian)
        out._set(self.mean.expand(*batch, -1), self._covariance, self.factor, self.diagonal)
        return out

    def to(self, dtype: torch.dtype) -> Gaussian:
        """The same in another floating-point precision."""
        if dtype == self.dtype:
            return self
        out = object.__new__(Gaussian)
        parts = (self._covariance, self.factor, self.diagonal)
        out._set(self.mean.to(dtype), *(None if t is None else t.to(dtype) for t in parts))
        return out

    def item(self, index: Any) -> Gaussian:
        """Some of a batch, by any index into its axes."""
        out = object.__new__(Gaussian)
        parts = (self._covariance, self.factor, self.diagonal)
        out._set(self.mean[index], *(None if t is None else t[index] for t in parts))
        return out

    def __repr__(self) -> str:
        rank = "" if self.factor is None else f", rank={self.factor.shape[-1]}"
        return f"Gaussian(batch={tuple(self.batch_shape)}, d={self.d}{rank}, dtype={self.dtype})"


def _shrinkage(shrinkage: float | str | None, rows: Tensor, a: Tensor, spread: Tensor) -> Tensor:
    """S in [0, 1], (*batch,)."""
    if shrinkage is None:
        return torch.zeros_like(spread)
    if not isinstance(shrinkage, str):
        if not (is_real(shrinkage) and 0 <= shrinkage <= 1):
            refuse("shrinkage", "a number in [0, 1], 'ledoit-wolf', 'oas' or None", repr(shrinkage))
        return torch.full_like(spread, float(shrinkage))
    if shrinkage not in ("ledoit-wolf", "oas"):
        refuse("shrinkage", "a number in [0, 1], 'ledoit-wolf', 'oas' or None", repr(shrinkage))
    with torch.no_grad():
        n, d = rows.shape[-2:]
        gram = rows @ rows.mT if n < d else rows.mT @ rows
        square = gram.square().sum((-2, -1))  # ||S||^2
        size = 1 / a.square().sum(-1)
        apart = square / d - spread.square()
        if shrinkage == "oas":
            wanted, most = square / d**2 + spread.square(), (size + 1) * (square / d**2 - spread.square() / d)
        else:
            fourth = torch.where(a > 0, rows.square().sum(-1).square() / torch.where(a > 0, a, 1), 0).sum(-1)
            wanted, most = (fourth - square) / (size * d), apart
        out = torch.where(most > 0, wanted / torch.where(most > 0, most, 1), 1)
        return out.clamp(0, 1)


class Shared(NamedTuple):
    """Several covariances as Q C_i Q^T + r_i (I - Q Q^T); Q is the identity where it is None."""

    basis: Tensor | None  # (*batch, d, k), orthonormal, without a gradient
    cores: list[Tensor]  # (*batch, k, k)
    rest: list[Tensor]  # (*batch,)
    missing: int  # d - k

    def spread(self, core: Tensor, rest: Tensor, v: Tensor) -> Tensor:
        """(Q C Q^T + r (I - Q Q^T)) v for v (*batch, d, n)."""
        if self.basis is None:
            return core @ v
        inside = self.basis.mT @ v
        return self.basis @ (core @ inside - rest[..., None, None] * inside) + rest[..., None, None] * v


def shared(*gaussians: Gaussian) -> Shared:
    """Covariances in a common form: small matrices where all are of low rank plus a multiple of the identity."""
    low = all(p.factor is not None and _isotropic(p) for p in gaussians)
    if low and sum(p.factor.shape[-1] for p in gaussians if p.factor is not None) < gaussians[0].d:
        batch = torch.broadcast_shapes(*(p.batch_shape for p in gaussians))
        factors = [p.factor.expand(*batch, -1, -1) for p in gaussians if p.factor is not None]
        # gradients with respect to the factors stay in their span, so that the basis may be a constant
        basis = torch.linalg.qr(torch.cat([F.detach() for F in factors], -1))[0]
        rest = [p.diagonal[..., 0].expand(batch) for p in gaussians if p.diagonal is not None]
        eye = torch.eye(basis.shape[-1], dtype=basis.dtype, device=basis.device)
        small = [basis.mT @ F for F in factors]
        cores = [F @ F.mT + r[..., None, None] * eye for F, r in zip(small, rest)]
        return Shared(basis, cores, rest, basis.shape[-2] - basis.shape[-1])
    cores = [p.covariance for p in gaussians]
    batch = torch.broadcast_shapes(*(S.shape[:-2] for S in cores))
    cores = [S.expand(*batch, -1, -1) for S in cores]
    return Shared(None, cores, [torch.zeros_like(S[..., 0, 0]) for S in cores], 0)


def _isotropic(p: Gaussian) -> bool:
    assert p.diagonal is not None
    return bool((p.diagonal == p.diagonal[..., :1]).all())
