"""Read points and weights from the files people have."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput, need, refuse

__all__ = ["Points", "read_points"]

_KINDS = (".npy", ".npz", ".csv", ".tsv", ".parquet", ".h5ad")


class Points(NamedTuple):
    """What a file holds."""

    x: NDArray[np.float64]  # (n, d)
    weights: NDArray[np.float64] | None  # (n,)
    names: list[str]  # of the d columns
    ignored: list[str]  # columns that hold no numbers


def read_points(path: Path, columns: list[str] | None, weights: str | None) -> Points:
    """Read a cloud of points from .npy, .npz, .csv, .tsv, .parquet or .h5ad.

    Args:
        path: the file. A .npz holds an array "x" (or a single array) and perhaps one named by `weights`.
        columns: columns to use, by name or by number from 0; all numeric ones when None. For .h5ad also a key of
            obsm, such as X_pca.
        weights: column of masses; it is not a coordinate.

    Raises:
        InvalidInput: no such file, another kind of file, a missing column, text where numbers belong.
    """
    kind = path.suffix.lower()
    if not path.is_file():
        refuse(str(path), "a file", "nothing there")
    if kind not in _KINDS:
        refuse(str(path), "a file of kind " + " ".join(_KINDS), repr(kind or path.name))
    try:
        if kind in (".csv", ".tsv"):
            names, data = _read_text(path, "," if kind == ".csv" else "\t")
        elif kind == ".parquet":
            frame = need("pandas", "tables", "Reading .parquet").read_parquet(path)
            names, data = [str(c) for c in frame.columns], [frame[c].to_numpy() for c in frame.columns]
        elif kind == ".h5ad":
            names, data = _read_anndata(path, columns, weights)
        else:
            names, data = _read_numpy(path, weights)
    except InvalidInput:
        raise
    except (OSError, ValueError, KeyError, UnicodeDecodeError) as error:
        refuse(str(path), f"a readable {kind} file", " ".join(str(error).split())[:200])
    return _choose(path, names, data, columns, weights)


def _read_text(path: Path, delimiter: str) -> tuple[list[str], list[np.ndarray]]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        rows = [row for row in csv.reader(stream, delimiter=delimiter) if row and any(cell.strip() for cell in row)]
    if not rows:
        refuse(str(path), "at least one row", "an empty file")
    width = len(rows[0])
    for number, row in enumerate(rows, start=1):
        if len(row) != width:
            refuse(f"{path}, row {number}", f"{width} cells, as in the first row", len(row))
    header = not all(_is_number(cell) for cell in rows[0])
    names = [cell.strip() for cell in rows[0]] if header else [str(k) for k in range(width)]
    body = rows[1:] if header else rows
    return names, [np.array([row[k].strip() for row in body], dtype=object) for k in range(width)]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_numpy(path: Path, weights: str | None) -> tuple[list[str], list[np.ndarray]]:
    loaded = np.load(path, allow_pickle=False)
    extra: dict[str, np.ndarray] = {}
    if isinstance(loaded, np.lib.npyio.NpzFile):
        with loaded:
            arrays = {k: loaded[k] for k in loaded.files}
        key = "x" if "x" in arrays else next((k for k in arrays if k != weights), "")
        if not key or (len([k for k in arrays if k != weights]) > 1 and key != "x"):
            refuse(str(path), "an array named 'x', or a single array", ", ".join(arrays) or "none")
        x = arrays[key]
        if weights in arrays:
            extra[str(weights)] = arrays[str(weights)]
    else:
        x = loaded
    if x.ndim == 1:
        x = x[:, None]
    if x.ndim != 2:
        refuse(str(path), "an array of shape (n, d)", f"shape {x.shape}")
    return [*(str(k) for k in range(x.shape[1])), *extra], [*x.T, *extra.values()]


def _read_anndata(path: Path, columns: list[str] | None, weights: str | None) -> tuple[list[str], list[np.ndarray]]:
    adata = need("anndata", "cells", "Reading .h5ad").read_h5ad(path)
    names: list[str] = []
    data: list[np.ndarray] = []
    for key in list(columns or []):
        if key in adata.obsm:
            block = np.asarray(adata.obsm[key])
            names += [key] if block.shape[1] == 1 else [f"{key}:{k}" for k in range(block.shape[1])]
            data += list(block.T)
    if not names:
        X = adata.X.toarray() if hasattr(adata.X, "toarray") else np.asarray(adata.X)
        names, data = [str(v) for v in adata.var_names], list(X.T)
    if columns:  # obsm keys stand for all their columns
        columns[:] = [n for key in columns for n in names if n == key or n.startswith(f"{key}:")] or columns
    if weights is not None and weights in adata.obs:
        names, data = [*names, weights], [*data, adata.obs[weights].to_numpy()]
    return names, data


def _choose(
    path: Path, names: list[str], data: list[np.ndarray], columns: list[str] | None, weights: str | None
) -> Points:
    table = dict(zip(names, data))
    for wanted in [*(columns or []), *([weights] if weights else [])]:
        if wanted not in table:
            shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
            refuse(f"column {wanted!r} of {path}", f"one of {shown}", "no such column")
    mass = _numbers(path, str(weights), table[weights]) if weights else None
    chosen, ignored = [], []
    for name in columns if columns is not None else [n for n in names if n != weights]:
        try:
            chosen.append((name, _numbers(path, name, table[name])))
        except InvalidInput:
            if columns is not None:
                raise
            ignored.append(name)
    if not chosen:
        refuse(str(path), "at least one column of numbers", "only text in " + ", ".join(ignored))
    if not len(chosen[0][1]):
        refuse(str(path), "at least one row", "none")
    return Points(np.stack([v for _, v in chosen], 1), mass, [n for n, _ in chosen], ignored)


def _numbers(path: Path, name: str, values: np.ndarray) -> NDArray[np.float64]:
    try:
        out = np.asarray([v if v != "" else "nan" for v in values] if values.dtype == object else values)
        out = out.astype(np.float64)
    except (TypeError, ValueError):
        refuse(f"column {name!r} of {path}", "numbers", f"text such as {str(values[0])!r}")
    if not np.isfinite(out).all():
        row = int(np.flatnonzero(~np.isfinite(out))[0])
        refuse(f"column {name!r} of {path}", "finite numbers", f"a gap or infinity in data row {row + 1}", "Drop it.")
    return out
