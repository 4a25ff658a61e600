"""Flow cytometry: each well is a cloud of cells."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import need
from ._fetch import from_pypi
from ._registry import dataset


class DoseResponse(NamedTuple):
    """One cloud of cells a dose, from the highest dose to the lowest."""

    wells: tuple[str, ...]  # 21 names, "B1" to "C9"
    doses: NDArray[np.float64]  # (21,), in the units of the source, decreasing
    channels: tuple[str, ...]  # d names
    clouds: list[NDArray[np.float64]]  # 21 arrays (n_i, d)


class Wells(NamedTuple):
    """One cloud of cells a well."""

    wells: tuple[str, ...]  # names of the wells
    channels: tuple[str, ...]  # d names
    clouds: list[NDArray[np.float64]]  # arrays (n_i, d)


def read_fcs(path: str | PathLike[str]) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Read an FCS file with flowio: events in the scale the file declares, and the channels' short names.

    Returns:
        events (n, d) and d names. No compensation is applied.

    Raises:
        ImportError: when flowio is not installed.
    """
    flow = need("flowio", "data", "Reading cytometry files").FlowData(Path(path))
    return np.asarray(flow.as_array(preprocess=True), dtype=np.float64), tuple(flow.pnn_labels)


def preprocess_cytometry(
    clouds: Sequence[NDArray[np.float64]],
    *,
    cofactor: float = 150.0,
    quantiles: tuple[float, float] = (0.005, 0.995),
    fit_on: Sequence[int] | None = None,
) -> list[NDArray[np.float64]]:
    """Put cytometry clouds on a common, roughly Gaussian scale: z((arcsinh(x / cofactor)) gated).

    Three steps: arcsinh; drop the cells that leave the pooled quantiles in any channel; subtract the mean and
    divide by the standard deviation of the cells that are left.

    Args:
        clouds: arrays (n_i, d).
        cofactor: where arcsinh turns from linear to logarithmic, in the unit of the data.
        quantiles: lower and upper quantile of the gate, a channel.
        fit_on: indices of the clouds whose cells set gate, mean and standard deviation (all clouds unless
            given). Leave held-out clouds out of it, or they leak into the training data.

    Returns:
        arrays (m_i, d) with m_i <= n_i; a channel that is constant becomes 0.

    Raises:
        ValueError: when `fit_on` is empty.
    """
    chosen = range(len(clouds)) if fit_on is None else fit_on
    if not len(chosen):
        raise ValueError("expected at least one cloud to fit the scale on, got none")
    bent = [np.arcsinh(cloud / cofactor) for cloud in clouds]
    low, high = np.quantile(np.concatenate([bent[i] for i in chosen]), quantiles, axis=0)
    kept = [cloud[((cloud >= low) & (cloud <= high)).all(axis=1)] for cloud in bent]
    pooled = np.concatenate([kept[i] for i in chosen])
    mean, std = pooled.mean(axis=0), pooled.std(axis=0)
    std[np.ptp(pooled, axis=0) == 0] = 1.0  # constant channels become zero (their computed std is not exactly 0)
    return [(cloud - mean) / std for cloud in kept]


_DOSES = {
    **{"B1": 5.0, "B2": 3.75, "B3": 2.8125, "B4": 2.109, "B5": 1.582, "B6": 1.1865, "B7": 0.8899},
    **{"B8": 0.6674, "B9": 0.5, "B10": 0.3754, "B11": 0.2816, "B12": 0.2112, "C1": 0.1584, "C2": 0.1188},
    **{"C3": 0.0892, "C4": 0.0668, "C5": 0.05, "C6": 0.0376, "C7": 0.0282, "C8": 0.0211, "C9": 0.0159},
}


def _yeast_member(well: str) -> str:
    return f"docs/examples-basic/data/Yeast_{well}_{well[0]}{int(well[1:]):02d}.fcs"


@dataset(
    "yeast-dose-response",
    source="PyPI cytoflow 1.2 (source archive), docs/examples-basic/data",
    licence="GPL-2.0-or-later (fetched at run time, never shipped)",
    size="14.7 MB fetched, 0.8 MB kept",
)
def yeast_dose_response(preprocess: bool = True, *, fit_on: Sequence[str] | None = None) -> DoseResponse:
    """Yeast with a GFP reporter after 12 hours of an inducer at 21 doses: 1,000 cells a dose.

    Inducer: isopentenyladenine, doses 5.0 down to 0.0159 in the units of the source. Channels, in order:
    FSC-A, FSC-H, FSC-W, SSC-A, SSC-H, SSC-W, FITC-A (GFP), PerCP-Cy5-5-A, Time. The three wells of the plate
    that carry no dose are left out. Source: the source archive of `cytoflow` 1.2 (GPL-2.0-or-later), 14.7 MB
    fetched, 0.8 MB kept.

    Args:
        preprocess: keep the first 8 channels and apply `preprocess_cytometry`: arcsinh(x / 150), cells
            outside the pooled 0.5 % to 99.5 % quantiles dropped, z-scored. Else the raw values, all 9
            channels.
        fit_on: wells whose cells set the gate and the z-score (all wells unless given). Leave held-out wells
            out.

    Returns:
        wells, doses (21,), channels and 21 clouds: (1000, 9) raw, (n_i, 8) preprocessed.

    Raises:
        DataUnavailable: when the archive cannot be had.
        ImportError: when flowio is not installed.
        ValueError: when `fit_on` names no such well, or is given without `preprocess`.

    References:
        M.-T. Chen, R. Weiss. Artificial cell-cell communication in yeast Saccharomyces cerevisiae using
        signaling elements from Arabidopsis thaliana. Nature Biotechnology 23, 1551-1555, 2005.
    """
    wells = tuple(_DOSES)
    if fit_on is not None and not preprocess:
        raise ValueError("fit_on sets the scale of the preprocessing, but preprocess is False")
    if unknown := set(fit_on or ()) - set(wells):
        raise ValueError(f"expected wells among {', '.join(wells)}, got {', '.join(sorted(unknown))}")
    need("flowio", "data", "Reading cytometry files")
    paths = from_pypi(
        "cytoflow",
        "1.2",
        filename="cytoflow-1.2.tar.gz",
        sha256="2e48ba0665c224812a558847f312abf33e816ebc4c47cefb30a993eef2e78fd5",
        members=[_yeast_member(well) for well in wells],
    )
    clouds, channels = _read_plate([paths[_yeast_member(well)] for well in wells])
    if preprocess:
        rows = None if fit_on is None else [wells.index(well) for well in fit_on]
        clouds = preprocess_cytometry([cloud[:, :8] for cloud in clouds], fit_on=rows)
        channels = channels[:8]
    return DoseResponse(wells, np.array(list(_DOSES.values())), channels, clouds)


_PLATES = {
    "CFP-A4": "Plate01/CFP_Well_A4.fcs",
    "CFP-B4": "Plate01/CFP_Well_B4.fcs",
    "RFP-A3": "Plate01/RFP_Well_A3.fcs",
    "RFP-A6": "Plate01/RFP_Well_A6.fcs",
    "RFP-B3": "Plate01/RFP_Well_B3.fcs",
    "YFP-A7": "Plate01/YFP_Well_A7.fcs",
    "YFP-C7": "Plate01/YFP_Well_C7.fcs",
    "mixed-H1": "Plate02/Mixed_Well_H1.001.fcs",
    "mixed-H3": "Plate02/Mixed_Well_H3.001.fcs",
    "mixed-H7": "Plate02/Mixed_Well_H7.001.fcs",
    "mixed-H12": "Plate02/Mixed_Well_H12.001.fcs",
}


@dataset(
    "flow-cytometry-wells",
    source="PyPI FlowCytometryTools 0.5.1 (wheel), tests/data",
    licence="MIT",
    size="7.1 MB fetched, 7.1 MB kept",
)
def flow_cytometry_wells() -> Wells:
    """Eleven wells of cells with fluorescent proteins, 10,000 cells each, 16 channels, raw values.

    Seven wells hold one strain (cyan, red or yellow fluorescence: names begin with `CFP`, `RFP`, `YFP`), four
    hold mixtures. Channels: HDR-T (time), then area, height and width of FSC, SSC, V2, Y2 and B1. The package
    ships a twelfth file from another instrument with other channels, which is left out. Areas can be
    negative, widths reach -4e8: transform and gate (`preprocess_cytometry`) before any squared distance.
    Source: the wheel of `FlowCytometryTools` 0.5.1 (MIT), 7.1 MB fetched, 7.1 MB kept.

    Returns:
        11 names, 16 channels, 11 clouds (10000, 16).

    Raises:
        DataUnavailable: when the wheel cannot be had.
        ImportError: when flowio is not installed.
    """
    need("flowio", "data", "Reading cytometry files")
    members = {well: f"FlowCytometryTools/tests/data/{path}" for well, path in _PLATES.items()}
    paths = from_pypi(
        "FlowCytometryTools",
        "0.5.1",
        filename="FlowCytometryTools-0.5.1-py3-none-any.whl",
        sha256="9380ffb968469e3f0a97113add1c10e82cab6131462cf47b6826d36d1679e354",
        members=list(members.values()),
    )
    clouds, channels = _read_plate([paths[member] for member in members.values()])
    return Wells(tuple(members), channels, clouds)


def _read_plate(paths: Sequence[Path]) -> tuple[list[NDArray[np.float64]], tuple[str, ...]]:
    """Read files that share their channels."""
    clouds: list[NDArray[np.float64]] = []
    names: set[tuple[str, ...]] = set()
    for path in paths:
        cloud, channels = read_fcs(path)
        clouds.append(cloud)
        names.add(channels)
    if len(names) != 1:
        raise ValueError(f"expected the same channels in every well, got {sorted(names)}")
    return clouds, names.pop()
