"""Where a cost lives, and the few operations that every solver is written in."""

from .base import Geometry
from .blocksparse import BlockSparse, ClusteredCloud
from .factored import Factored
from .grid import Grid
from .line import CircleCloud, LineCloud
from .matrix import CostMatrix
from .pointcloud import PointCloud
from .ragged import Ragged

__all__ = [
    "BlockSparse",
    "CircleCloud",
    "ClusteredCloud",
    "CostMatrix",
    "Factored",
    "Geometry",
    "Grid",
    "LineCloud",
    "PointCloud",
    "Ragged",
]
