"""What a condition looks like to the map: doses, drugs by their structure, drugs by their effect."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ...._inputs import float_tensor, is_count, is_real
from ....api import solve
from ....errors import need, refuse

__all__ = ["dose_context", "moa_embedding", "rdkit_descriptors"]

Array = NDArray[np.float64]

_PAIRS = 64  # problems of transport in one batch
_CONSTANT = 0.01  # descriptors whose standard deviation is at most that are left out


def dose_context(dose: float, drug: ArrayLike = ()) -> Array:
    """Make a context of a dose, and of what is known of the drug: its numbers, then log10 of the dose.

    Args:
        dose: positive, in the unit of all others. Controls have none, and are never a condition.
        drug: numbers of the drug, (c,).

    Returns:
        (c + 1,).

    Raises:
        InvalidInput: a dose that is not positive, or numbers that are not one row.

    Example:
        >>> dose_context(100.0, [0.5, -1.0]).tolist()
        [0.5, -1.0, 2.0]
    """
    if not (is_real(dose) and 0 < dose < math.inf):
        refuse("dose", "a positive number", repr(dose), "Controls have no context: pass them as the source.")
    numbers = np.asarray(drug, dtype=np.float64)
    if numbers.ndim != 1:
        refuse("drug", "one row of numbers", f"shape {numbers.shape}")
    return np.append(numbers, math.log10(dose))


def moa_embedding(
    samples: Mapping[Any, Any],
    dim: int = 10,
    *,
    epsilon: float = 0.1,
    batch_size: int = 256,
    batches: int = 4,
    seed: int = 0,
) -> dict[Any, Array]:
    r"""Embed conditions by their effect ("mode of action"): those whose cells are near get contexts that are near.

    The distance between two conditions is the mean distance along the entropic plan between a batch of cells of each,
    averaged over several batches; metric scaling (SMACOF) finds points with these distances, which are then scaled to
    [0, 1], all coordinates together.

    It needs cells of every condition: giving it those of a held-out one leaks the effect that is to be predicted.

    Args:
        samples: cells (n_k, d) of each condition; at least two conditions.
        dim: of the embedding.
        epsilon: in units of the distance.
        batch_size: cells of either side; those of the smallest condition, where it has fewer.
        batches: how many are averaged. One is noisy.
        seed: of the batches and of the scaling.

    Returns:
        condition to (dim,).

    Raises:
        InvalidInput: fewer than two conditions, clouds of different dimensions, or numbers that break a rule.

    Complexity: batches K^2 / 2 entropic problems of batch_size points, in batches of 64.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> cells = {shift: rng.normal(size=(60, 3)) + shift for shift in (0.0, 0.5, 6.0)}
        >>> found = moa_embedding(cells, dim=2)
        >>> near, far = (float(np.linalg.norm(found[0.0] - found[k])) for k in (0.5, 6.0))
        >>> near < far
        True

    Source: Driessen, Harsanyi, Rapsomaniki & Born (2025); de Leeuw (1977), Applications of convex analysis to
    multidimensional scaling.
    """
    manifold = need("sklearn.manifold", "cells", "The embedding of effects")
    for name, value in (("dim", dim), ("batch_size", batch_size), ("batches", batches)):
        if not is_count(value):
            refuse(name, "a positive integer", repr(value))
    if not isinstance(samples, Mapping) or len(samples) < 2:
        refuse("samples", "a mapping of at least two conditions to their cells", repr(type(samples).__name__))
    clouds = [float_tensor(cloud, f"samples[{key!r}]").double() for key, cloud in samples.items()]
    shapes = {tuple(cloud.shape[1:]) for cloud in clouds}
    if len(shapes) != 1 or clouds[0].dim() != 2:
        refuse("samples", "clouds (n, d) of one dimension", f"{sorted(shapes)}")
    size = min(batch_size, *map(len, clouds))
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.tensor(list(combinations(range(len(clouds)), 2)))
    distances = torch.zeros(len(pairs), dtype=torch.float64)
    for _ in range(batches):
        drawn = torch.stack([cloud[torch.randperm(len(cloud), generator=generator)[:size]] for cloud in clouds])
        parts = [
            solve(drawn[i], drawn[j], cost="euclidean", epsilon=epsilon).linear_value
            for i, j in (block.unbind(1) for block in pairs.split(_PAIRS))
        ]
        distances += torch.cat([part.detach() for part in parts]) / batches
    full = np.zeros((len(clouds), len(clouds)))
    rows, cols = pairs.T.numpy()
    full[rows, cols] = full[cols, rows] = distances.numpy()
    if not full.any():
        return {key: np.zeros(dim) for key in samples}
    points, _ = manifold.smacof(full, n_components=dim, n_init=4, random_state=seed, normalized_stress=False)
    low, high = points.min(), points.max()
    return dict(zip(samples, (points - low) / (high - low)))


def rdkit_descriptors(smiles: Mapping[Hashable, str]) -> dict[Any, Array]:
    """Describe drugs by some two hundred numbers of their structure, standardised over the library.

    Descriptors that are all but constant over the library (standard deviation up to 0.01) are left out, and what is
    not a number becomes 0. The structure of a drug tells nothing that was measured, so that held-out ones belong into
    the library.

    Args:
        smiles: the structure of each drug; at least two.

    Returns:
        drug to numbers (c,).

    Raises:
        InvalidInput: fewer than two drugs, or a structure that cannot be read.
        MissingExtra: RDKit is not installed.

    Complexity: linear in the number of drugs, some milliseconds each.

    Source: Driessen, Harsanyi, Rapsomaniki & Born (2025), for the choice.
    """
    chem = need("rdkit.Chem", "chemistry", "Describing drugs by their structure")
    descriptors = need("rdkit.Chem.Descriptors", "chemistry", "Describing drugs by their structure")
    if not isinstance(smiles, Mapping) or len(smiles) < 2:
        refuse("smiles", "a mapping of at least two drugs to their structures", repr(smiles))
    rows = []
    for name, text in smiles.items():
        molecule = chem.MolFromSmiles(text) if isinstance(text, str) and text else None
        if molecule is None:
            refuse(f"smiles[{name!r}]", "a structure in SMILES", repr(text), "Correct it, or leave the drug out.")
        rows.append(list(descriptors.CalcMolDescriptors(molecule).values()))
    table = np.asarray(rows, dtype=np.float64)
    table[~np.isfinite(table) | (np.abs(table) > 1e10)] = 0.0  # some overflow for charged molecules
    table = table[:, table.std(0) > _CONSTANT]
    table = (table - table.mean(0)) / table.std(0)
    return dict(zip(smiles, table))
