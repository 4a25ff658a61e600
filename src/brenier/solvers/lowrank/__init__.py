"""Plans of low rank, in linear time: soft clusters on both sides, and the best transport between them."""

from .clusters import Clusters, check_sides, coupled, descended, features, k_means, sharpened, softened
from .solver import LowRank, LowRankState

__all__ = [
    "Clusters",
    "LowRank",
    "LowRankState",
    "check_sides",
    "coupled",
    "descended",
    "features",
    "k_means",
    "sharpened",
    "softened",
]
