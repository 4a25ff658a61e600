"""How the Triton kernels cut up their work: a few configurations for each, one chosen for each kind of call.

The first configuration serves unless a call is made inside `tuned`: then the first call of each bucket of shapes times
them all on the device, and later calls, inside or outside, take the fastest. Nothing is compiled before it is called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar
from typing import NamedTuple

import torch

__all__ = ["MOST", "Config", "candidates", "chosen", "tuned"]

MOST = 512
"""The number of buckets that are remembered; beyond it the oldest is forgotten."""

_tuning: ContextVar[bool] = ContextVar("brenier_triton_tuning", default=False)
_known: dict[Hashable, Config] = {}


class Config(NamedTuple):
    """A tile of rows x cols pairs, `depth` coordinates of a matrix product at a time."""

    rows: int
    cols: int
    depth: int = 32
    warps: int = 4
    stages: int = 2


# In the order of what they need: 64 x 64 pairs in 4 warps fill the registers of an H100, matrix products spill.
_OUTER: tuple[Config, ...] = (Config(32, 64), Config(64, 64, warps=8), Config(16, 128), Config(64, 64))
_PRODUCTS: tuple[Config, ...] = (
    Config(32, 64),
    Config(64, 64, warps=8),
    Config(64, 32, stages=3),
    Config(128, 64, warps=8),
)
_DOUBLE: tuple[Config, ...] = (Config(32, 32, 16), Config(64, 32, 16), Config(32, 64, 16), Config(64, 64, 16, warps=8))
_LISTS: tuple[Config, ...] = (Config(16, 64), Config(32, 64))


@contextlib.contextmanager
def tuned() -> Iterator[None]:
    """Time the configurations of each call on a GPU that has not been timed yet, inside a `with` block."""
    token = _tuning.set(True)
    try:
        yield
    finally:
        _tuning.reset(token)


def candidates(name: str, products: bool, dtype: torch.dtype, width: int | None = None) -> tuple[Config, ...]:
    """The configurations of a kernel, at most four.

    Args:
        products: costs are matrix products.
        width: mean size of the column blocks; tiles are not wider than that needs.
    """
    if name in ("minima", "entries"):
        out = _LISTS
    elif dtype == torch.float64:
        out = _DOUBLE
    else:
        out = _PRODUCTS if products else _OUTER
    if width is None:
        return out
    widest = max(16, 1 << (max(width, 1) - 1).bit_length())
    return tuple(dict.fromkeys(c._replace(cols=min(c.cols, widest)) for c in out))


def chosen(
    bucket: Hashable,
    configs: tuple[Config, ...],
    once: Callable[[Config], None],
    device: torch.device,
    clock: Callable[[Callable[[], None]], float] | None = None,
) -> Config:
    """The configuration for this call. `once(config)` runs the kernel, and may be run again.

    Args:
        bucket: calls that share a configuration.
        clock: seconds, or another measure, of a function; by default the least of some runs on the GPU.
    """
    if bucket in _known:
        return _known[bucket]
    if not _tuning.get() or (clock is None and device.type != "cuda") or len(configs) == 1:
        return configs[0]
    measure = clock or _milliseconds
    best = min(configs, key=lambda config: measure(lambda: once(config)))
    if len(_known) >= MOST:
        del _known[next(iter(_known))]
    _known[bucket] = best
    return best


def _milliseconds(function: Callable[[], None]) -> float:
    function()  # compiles
    times = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return min(times)
