"""What users hand in (tensors, NumPy, pandas, AnnData, lists) becomes tensors; answers go back in kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import InvalidInput, refuse

__all__ = [
    "Kind",
    "all_finite",
    "check_finite",
    "float_tensor",
    "is_count",
    "is_real",
    "kind_of",
    "matrix_kind",
    "plain",
    "same_columns",
    "same_place",
    "same_rows",
    "weights_tensor",
]


def is_real(value: Any) -> bool:
    """Whether a value is a real number, of Python or NumPy; True is not one."""
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_)


def is_count(value: Any) -> bool:
    """Whether a value is a positive integer."""
    return is_real(value) and isinstance(value, Integral) and int(value) >= 1


def _is_frame(obj: Any) -> bool:
    return type(obj).__module__.partition(".")[0] == "pandas"


def plain(obj: Any, name: str) -> Any:
    """Unwrap AnnData, pandas and sparse containers down to a tensor or a NumPy array."""
    if type(obj).__name__ == "AnnData":
        obj = obj.X
    if _is_frame(obj):
        # asked of each column, as pandas would read text, dates and truth values as numbers
        dtypes = list(obj.dtypes) if obj.ndim == 2 else [obj.dtype]
        other = sorted({str(t) for t in dtypes if getattr(t, "kind", "O") not in "fiu"})
        if other:
            refuse(
                name, "numeric columns", ", ".join(other), "Select columns, e.g. frame[['u', 'v']], or convert them."
            )
        return obj.to_numpy(dtype=np.float64, na_value=np.nan)
    if hasattr(obj, "toarray"):  # a SciPy sparse matrix
        return obj.toarray()
    return obj


def float_tensor(obj: Any, name: str) -> Tensor:
    """Read an array as a floating tensor: integers become float64, half precision is computed in float32.

    Raises:
        InvalidInput: complex, boolean, text or ragged input.
    """
    obj = plain(obj, name)
    if not isinstance(obj, Tensor):
        try:
            array = np.asarray(obj)
        except ValueError:
            refuse(name, "a rectangular array of numbers", "rows of different lengths")
        if array.dtype.kind not in "fiu":
            refuse(name, "an array of real numbers", f"dtype {array.dtype}")
        if not array.dtype.isnative or array.dtype.itemsize > 8:
            array = array.astype(np.float64)
        shareable = array.flags.writeable and all(s >= 0 for s in array.strides)
        obj = torch.from_numpy(array if shareable else array.copy())
    if obj.layout != torch.strided:
        refuse(name, "a dense tensor", f"layout {obj.layout}", "Call .to_dense() first.")
    if obj.is_complex() or obj.dtype == torch.bool:
        refuse(name, "an array of real numbers", f"dtype {obj.dtype}")
    if not obj.is_floating_point():
        return obj.double()
    return obj.float() if obj.dtype in (torch.float16, torch.bfloat16) else obj


def all_finite(t: Tensor) -> bool:
    """Whether there is neither NaN nor infinity; one pass, and no temporary."""
    return not t.numel() or all(bool(torch.isfinite(bound)) for bound in t.detach().aminmax())


def check_finite(t: Tensor, name: str, expected: str, cure: str = "") -> None:
    """Refuse NaN, infinity, and tensors on the meta device, which hold no values."""
    if t.is_meta:
        refuse(name, "a tensor with values", "one on the meta device")
    if not all_finite(t):
        refuse(name, expected, "NaN or infinity", cure)


def same_place(x: Tensor, x_name: str, y: Tensor, y_name: str) -> None:
    """Check that two tensors share device and dtype."""
    if x.device != y.device:
        refuse(
            f"{x_name} and {y_name}",
            "tensors on one device",
            f"{x.device} and {y.device}",
            f"Move one with .to('{x.device}').",
        )
    if x.dtype != y.dtype:
        refuse(
            f"{x_name} and {y_name}",
            "one dtype",
            f"{x.dtype} and {y.dtype}",
            "Cast one with .to(dtype); float64 is the safe choice.",
        )


def weights_tensor(weights: Any, size: int, name: str, like: Tensor) -> Tensor:
    """Read marginal weights (*batch, size); uniform with total mass 1 when None.

    Raises:
        InvalidInput: wrong shape or device, negative, NaN or infinite entries, or no mass at all.
    """
    if weights is None:
        return torch.full((), 1 / size, dtype=like.dtype, device=like.device).expand(size)
    out = float_tensor(weights, name)
    if out.dim() == 0 or out.shape[-1] != size:
        refuse(name, f"{size} weights, one for each point", f"shape {tuple(out.shape)}")
    if out.device != like.device:
        refuse(name, f"a tensor on {like.device}", str(out.device), f"Move it with .to('{like.device}').")
    out = out.to(like.dtype)
    values = out.detach()
    check_finite(values, name, "finite weights")
    check_finite(values.sum(-1), name, "a finite total mass", "Normalise: a / a.sum().")
    if (values < 0).any():
        refuse(name, "nonnegative weights", f"a minimum of {float(values.min()):.6g}")
    if (values.sum(-1) <= 0).any():
        refuse(name, "positive total mass", "weights that sum to zero")
    return out


@dataclass(frozen=True)
class Kind:
    """The container the user works in, and how to hand a tensor back in it.

    `rows_x`, `rows_y` and `columns` are the labels of pandas inputs.
    """

    name: str = "torch"  # "torch", "numpy" or "pandas"
    rows_x: Any = None
    rows_y: Any = None
    columns: Any = None

    def array(self, t: Tensor) -> Any:
        """A tensor as the user's array type; scalars of NumPy users become floats."""
        if self.name == "torch":
            return t
        array = t.detach().cpu().numpy()
        return array[()] if array.ndim == 0 else array

    def per_row(self, t: Tensor) -> Any:
        """Something with one entry for each source point."""
        return self._labelled(t, self.rows_x)

    def per_column(self, t: Tensor) -> Any:
        """Something with one entry for each target point."""
        return self._labelled(t, self.rows_y)

    def points(self, t: Tensor, index: Any = None) -> Any:
        """Points in the space of the inputs."""
        if self.name == "pandas" and t.dim() == 2:
            import pandas as pd

            columns = self.columns if self.columns is not None and len(self.columns) == t.shape[1] else None
            return pd.DataFrame(self.array_numpy(t), index=index, columns=columns)
        return self.array(t)

    def matrix(self, t: Tensor) -> Any:
        """Something n x m."""
        if self.name == "pandas" and t.dim() == 2:
            import pandas as pd

            return pd.DataFrame(self.array_numpy(t), index=self.rows_x, columns=self.rows_y)
        return self.array(t)

    def _labelled(self, t: Tensor, index: Any) -> Any:
        if self.name == "pandas" and t.dim() == 1:
            import pandas as pd

            return pd.Series(self.array_numpy(t), index=index)
        return self.array(t)

    @staticmethod
    def array_numpy(t: Tensor) -> np.ndarray:
        """A tensor as a NumPy array."""
        return t.detach().cpu().numpy()

    def swapped(self) -> Kind:
        """The kind of the transposed problem."""
        return Kind(self.name, self.rows_y, self.rows_x, self.columns)


def kind_of(x: Any, y: Any = None) -> Kind:
    """The kind to answer in: pandas if x is a frame, NumPy for arrays, lists and AnnData, else torch."""
    first = y if x is None else x
    if _is_frame(first):
        rows: Callable[[Any], Any] = lambda obj: obj.index if _is_frame(obj) else None  # noqa: E731
        return Kind("pandas", rows(x), rows(y), getattr(first, "columns", None))
    return Kind("torch" if isinstance(first, Tensor) or first is None else "numpy")


def matrix_kind(cost: Any) -> Kind:
    """The kind to answer in for a cost matrix; a frame's labels are those of the two sides."""
    if _is_frame(cost):
        return Kind("pandas", cost.index, getattr(cost, "columns", None))
    return kind_of(cost)


def same_columns(x: Any, y: Any) -> tuple[Any, Any]:
    """Frames (and AnnData) are matched by the names of their columns (variables), not by position."""
    annotated = hasattr(x, "var_names") and hasattr(y, "var_names")
    names_x, names_y = (getattr(t, "var_names" if annotated else "columns", None) for t in (x, y))
    if names_x is None or names_y is None or list(names_x) == list(names_y):
        return x, y
    if set(names_x) != set(names_y) or len(names_x) != len(names_y):
        odd = sorted(map(str, set(names_x) ^ set(names_y)))
        raise InvalidInput(
            f"x and y: expected frames with the same columns, got {', '.join(odd)} in one of them only. "
            "Select the shared columns of both."
        )
    return x, y[:, list(names_x)] if annotated else y[list(names_x)]


def same_rows(weights: Any, points: Any, name: str, points_name: str) -> Any:
    """A Series of weights is matched to its points by label, not by position."""
    labels, rows = getattr(weights, "index", None), getattr(points, "obs_names", getattr(points, "index", None))
    if labels is None or rows is None or callable(labels) or callable(rows) or list(labels) == list(rows):
        return weights
    if len(labels) != len(rows) or not (labels.is_unique and set(labels) == set(rows)):
        raise InvalidInput(
            f"{name}: expected a Series with the index of {points_name}, got one with other labels. "
            f"Use {name}.to_numpy() to go by position."
        )
    return weights.reindex(rows)
