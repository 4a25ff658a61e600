"""Where a cost lives, and the few operations that every solver is written in."""

from .base import Geometry
from .grid import Grid
from .matrix import CostMatrix
from .pointcloud import PointCloud
from .ragged import Ragged

__all__ = ["CostMatrix", "Geometry", "Grid", "PointCloud", "Ragged"]
