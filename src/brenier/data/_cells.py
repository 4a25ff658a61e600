"""Single cells: expression of genes, with what is known of each cell."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import need
from ._fetch import from_debian, from_pypi
from ._registry import dataset


class BloodCells(NamedTuple):
    """Blood cells in principal components, with their types."""

    components: NDArray[np.float64]  # (700, 50)
    types: NDArray[np.str_]  # (700,), ten types
    expression: NDArray[np.float64]  # (700, 765), standardised
    genes: tuple[str, ...]  # 765 names


class TimeCourse(NamedTuple):
    """Cells that were taken at several times."""

    expression: NDArray[np.float64]  # (271, genes), FPKM
    hours: NDArray[np.int64]  # (271,), 0, 24, 48 or 72
    genes: tuple[str, ...]  # names


@dataset(
    "pbmc68k-reduced",
    source="PyPI scanpy 1.12.4 (wheel), scanpy/datasets; from the 68k set of 10x Genomics",
    licence="BSD-3-Clause (scanpy)",
    size="2 MB fetched, 0.6 MB kept",
)
def pbmc68k_reduced() -> BloodCells:
    """700 blood cells of ten types, as 50 principal components and 765 standardised genes.

    A subsample of the 68,579 peripheral blood mononuclear cells of Zheng et al. Source: the wheel of `scanpy` 1.12.4
    (BSD-3-Clause), which ships it.

    Returns:
        components (700, 50), types (700,), expression (700, 765), genes.

    Raises:
        DataUnavailable: when the wheel cannot be had.
        ImportError: when anndata is not installed.

    References:
        G. X. Y. Zheng et al. Massively parallel digital transcriptional profiling of single cells. Nature
        Communications 8, 14049, 2017.
    """
    anndata = need("anndata", "data", "Reading annotated cells")
    member = "scanpy/datasets/10x_pbmc68k_reduced.h5ad"
    paths = from_pypi(
        "scanpy",
        "1.12.4",
        filename="scanpy-1.12.4-py3-none-any.whl",
        sha256="",
        members=[member],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file is of an old format
        cells = anndata.read_h5ad(paths[member])
    return BloodCells(
        np.asarray(cells.obsm["X_pca"], dtype=np.float64),
        np.asarray(cells.obs["bulk_labels"].astype(str), dtype=np.str_),
        np.asarray(cells.X, dtype=np.float64),
        tuple(map(str, cells.var_names)),
    )
