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
    source="PyPI scanpy 1.11.5 (wheel), scanpy/datasets; from the 68k set of 10x Genomics",
    licence="BSD-3-Clause (scanpy)",
    size="2.1 MB fetched, 1.8 MB kept",
)
def pbmc68k_reduced() -> BloodCells:
    """700 blood cells of ten types, as 50 principal components and 765 standardised genes.

    A subsample of the 68,579 peripheral blood mononuclear cells of Zheng et al. Source: the wheel of `scanpy` 1.11.5
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
        "1.11.5",
        filename="scanpy-1.11.5-py3-none-any.whl",
        sha256="fcd383ddcf7acbf7c0ca232c25ad51b00aec9f8d2f7c8954b8c6ee0962257166",
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


_HSMM = "usr/lib/R/site-library/HSMMSingleCell/data/"


@dataset(
    "hsmm",
    source="Debian r-bioc-hsmmsinglecell",
    licence="Artistic-2.0",
    size="17 MB fetched and kept",
)
def hsmm() -> TimeCourse:
    """271 human myoblasts at 0, 24, 48 and 72 hours of differentiation, 47,192 genes each.

    Primary skeletal muscle myoblasts after a switch of the medium; expression in FPKM, nothing is scaled. Source: the
    Debian package `r-bioc-hsmmsinglecell` (Artistic-2.0), installed, or unpacked into the cache without root.

    Returns:
        expression (271, 47192), hours (271,), genes.

    Raises:
        DataUnavailable: when the package cannot be had.
        ImportError: when rdata is not installed.

    References:
        C. Trapnell et al. The dynamics and regulators of cell fate decisions are revealed by pseudotemporal ordering of
        single cells. Nature Biotechnology 32, 381-386, 2014.
    """
    rdata = need("rdata", "data", "Reading files of R")
    names = ("HSMM_expr_matrix", "HSMM_sample_sheet")
    paths = from_debian("r-bioc-hsmmsinglecell", [f"{_HSMM}{name}.rda" for name in names])
    matrix, sheet = (rdata.read_rda(paths[f"{_HSMM}{name}.rda"])[name] for name in names)
    cells = [str(name) for name in matrix.coords["dim_1"].values]
    hours = sheet["Hours"].loc[cells].astype(str).str.removeprefix("T")
    return TimeCourse(
        np.ascontiguousarray(matrix.values.T, dtype=np.float64),
        hours.astype(np.int64).to_numpy(),
        tuple(str(name) for name in matrix.coords["dim_0"].values),
    )
