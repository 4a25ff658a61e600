"""Where a cost lives, and the few operations that every solver is written in."""

from .base import Geometry
from .blocksparse import BlockSparse, ClusteredCloud
from .grid import Grid
from .matrix import CostMatrix
from .pointcloud import PointCloud
from .ragged import Ragged

__all__ = ["BlockSparse", "ClusteredCloud", "CostMatrix", "Geometry", "Grid", "PointCloud", "Ragged"]
