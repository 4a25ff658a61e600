"""CMonge: how cells answer any drug, dose or time, as one map that is told the condition.

One treatment at a time, a map says nothing of the next one. Here one network takes a cell and a context (a drug's
descriptors, a dose, a time, a set of drugs), and is trained on all conditions together, with the loss of the Monge gap
for each. Conditions that were never measured are then a question of their context only.

`estimator` has the estimator `CMonge` and readers of AnnData, `networks` the map, `contexts` what drugs and doses look
like to it, `metrics` how predictions are measured, and `autoencoder` a reducer for raw expression.

Reference: Driessen, Harsanyi, Rapsomaniki & Born (2025), Towards generalizable single-cell perturbation modeling via
the conditional Monge gap, arXiv 2504.08328.
"""

from .autoencoder import Autoencoder
from .contexts import dose_context, moa_embedding, rdkit_descriptors
from .estimator import CMonge, Populations, populations
from .metrics import mmd_floor, response_metrics
from .networks import ConditionalMongeMap, ConditionEncoder

__all__ = [
    "Autoencoder",
    "CMonge",
    "ConditionEncoder",
    "ConditionalMongeMap",
    "Populations",
    "dose_context",
    "mmd_floor",
    "moa_embedding",
    "populations",
    "rdkit_descriptors",
    "response_metrics",
]
