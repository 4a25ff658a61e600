"""Read points and weights from the files people have."""

from __future__ import annotations

import csv
import zipfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple, NoReturn

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
        refuse(str(path), "a file", "a folder" if path.is_dir() else "nothing there")
    if kind not in _KINDS:
        refuse(str(path), "a file of kind " + " ".join(_KINDS), repr(kind or path.name))
    try:
        if kind in (".csv", ".tsv"):
            names, data = _read_text(path, "," if kind == ".csv" else "\t")
        elif kind == ".parquet":
            need("pyarrow", "tables", "Reading .parquet")
            frame = need("pandas", "tables", "Reading .parquet").read_parquet(path)
            names, data = [str(c) for c in frame.columns], [frame[c].to_numpy() for c in frame.columns]
        elif kind == ".h5ad":
            names, data = _read_anndata(path, columns, weights)
        else:
            names, data = _read_numpy(path, weights)
    except InvalidInput:
        raise
    except (OSError, ValueError, KeyError, EOFError, csv.Error, zipfile.BadZipFile) as error:
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
    header = _is_header(rows[0], rows[1:])
    names = [cell.strip() for cell in rows[0]] if header else [str(k) for k in range(width)]
    body = rows[1:] if header else rows
    return names, [np.array([row[k].strip() for row in body], dtype=object) for k in range(width)]


def _is_header(first: list[str], body: list[list[str]]) -> bool:
    """Whether a column of numbers begins with something else; text above text says nothing."""
    numeric = [any(_is_number(row[k]) for row in body) for k in range(len(first))]
    if not any(numeric):
        return not all(_is_number(cell) for cell in first)
    if any(cell.strip() and not _is_number(cell) for cell, is_numeric in zip(first, numeric) if is_numeric):
        return True
    # "0,1,label": the numbers that pandas gives to columns without names
    numbers = [cell.strip() for cell in first if _is_number(cell)]
    return len(numbers) < len(first) and numbers == [str(k) for k in range(len(numbers))]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_numpy(path: Path, weights: str | None) -> tuple[list[str], list[np.ndarray]]:
    extra: dict[str, np.ndarray] = {}
    with path.open("rb") as stream:
        loaded = np.load(stream, allow_pickle=False)
        arrays = None if isinstance(loaded, np.ndarray) else {k: loaded[k] for k in loaded.files}
    if arrays is not None:
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
        if adata.X is None:
            keys = ", ".join(adata.obsm) or "none"
            refuse(str(path), "a matrix X, or a key of obsm in --columns", f"no X; keys are {keys}")
        X = adata.X.toarray() if hasattr(adata.X, "toarray") else np.asarray(adata.X)
        names, data = [str(v) for v in adata.var_names], list(X.T)
    if columns:  # obsm keys stand for all their columns
        columns[:] = [n for key in columns for n in _columns_of(key, names)]
    if weights is not None and weights in adata.obs:
        names, data = [*names, weights], [*data, adata.obs[weights].to_numpy()]
    return names, data


def _columns_of(key: str, names: list[str]) -> list[str]:
    return [n for n in names if n == key or n.startswith(f"{key}:")] or [key]


def _choose(
    path: Path, names: list[str], data: list[np.ndarray], columns: list[str] | None, weights: str | None
) -> Points:
    mass = None if weights is None else _numbers(path, weights, data[_find(path, names, weights)])
    if columns is not None:
        chosen = [(name, data[_find(path, names, name)]) for name in columns]
    else:
        left_out = None if weights is None else _find(path, names, weights)
        chosen = [(name, data[k]) for k, name in enumerate(names) if k != left_out]
    ignored = []
    if columns is None:
        text = [_holds_no_number(values) for _, values in chosen]
        ignored = [name for (name, _), is_text in zip(chosen, text) if is_text]
        chosen = [c for c, is_text in zip(chosen, text) if not is_text]
        for name, count in Counter(name for name, _ in chosen).items():
            if count > 1:
                _refuse_twice(path, name)
    if not chosen:
        refuse(str(path), "at least one column of numbers", "only text in " + ", ".join(ignored) if ignored else "none")
    if not len(chosen[0][1]):
        refuse(str(path), "at least one row", "none")
    x = np.stack([_numbers(path, name, values) for name, values in chosen], 1)
    return Points(x, mass, [name for name, _ in chosen], ignored)


def _find(path: Path, names: list[str], wanted: str) -> int:
    """Position of a column, by its name or else by its number."""
    if names.count(wanted) > 1:
        _refuse_twice(path, wanted)
    if wanted in names:
        return names.index(wanted)
    if wanted.isdecimal() and int(wanted) < len(names):
        return int(wanted)
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    refuse(f"column {wanted!r} of {path}", f"one of {shown}", "no such column")


def _refuse_twice(path: Path, name: str) -> NoReturn:
    refuse(str(path), "columns of different names", f"{name!r} more than once", "Choose by number with --columns.")


def _holds_no_number(values: np.ndarray) -> bool:
    """Whether a column is text (or dates, or complex): gaps among numbers are an error, not text."""
    if values.dtype.kind in "OU":
        return len(values) > 0 and not any(_is_number(str(v)) and str(v).lower() != "nan" for v in values)
    return values.dtype.kind not in "fiub"


def _numbers(path: Path, name: str, values: np.ndarray) -> NDArray[np.float64]:
    column = f"column {name!r} of {path}"
    out = np.full(len(values), np.nan)
    if values.dtype.kind in "OU":
        for k, v in enumerate(values):
            if v is None or v == "":
                continue
            try:
                out[k] = float(v)
            except (TypeError, ValueError):
                refuse(column, "numbers", f"{str(v)!r} in data row {k + 1}", "Drop it, or choose with --columns.")
    elif values.dtype.kind in "fiub":
        out = values.astype(np.float64)
    else:
        refuse(column, "numbers", f"dtype {values.dtype}")
    if not np.isfinite(out).all():
        row = int(np.flatnonzero(~np.isfinite(out))[0])
        refuse(column, "finite numbers", f"a gap or infinity in data row {row + 1}", "Drop it.")
    return out
