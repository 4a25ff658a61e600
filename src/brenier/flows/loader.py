"""A loader of pairs: any loader of data, a source, and a coupling that works in the background."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._inputs import is_count
from ..errors import refuse
from ..solvers.semidiscrete.problem import Source, read_source
from .couplings import Coupled, Coupling, IndependentCoupling

__all__ = ["CouplingLoader", "Extra", "LoaderStats"]

_SEEDS = 1 << 62


class Extra(NamedTuple):
    """What belongs to the pairs of a batch beside the samples."""

    rest: tuple[Any, ...]  # what came with the data: labels and so on, those of the partners
    log_weight: Tensor | None  # (B,) of the pairs, for losses; None where all weigh alike


@dataclass
class LoaderStats:
    """What couplings took in the last pass over a `CouplingLoader`.

    Attributes:
        pools: how many pools were coupled.
        seconds: wall time of the couplings, wherever they ran.
        waited: of these, how long the training loop stood still.
    """

    pools: int = 0
    seconds: float = 0.0
    waited: float = 0.0


@dataclass
class _Pool:
    """Batches that are coupled together."""

    x0: Tensor
    x1: Tensor
    rest: tuple[Any, ...]
    sizes: list[int]
    seed: int


class CouplingLoader:
    r"""Go through a loader of data, and yield pairs (x0, x1) of source and data to train a flow on.

    `pool` batches are read and coupled at a time, and handed out in parts of the sizes that the batches had. With
    `pool=1` that is minibatch transport. With larger pools the plan is that of thousands of samples or more, whose bias
    is small, and a batch is a random part of it. While the training loop works on one pool a thread couples the next;
    the solvers leave Python's lock meanwhile.

    Data are read and source samples drawn where the loop runs, and every pool has seeds of its own: the pairs are the
    same with and without the background. An error of a coupling is raised in the loop, at the pool that it belongs to;
    pairs are never replaced by others.

    Args:
        loader: batches of data: tensors (B, *shape), or lists and tuples of such a tensor and what belongs to it, with
            B entries each (tensors or lists). A `DataLoader`, a list, whatever can be gone through again.
        coupling: of source and data.
        source: where x0 come from: as for `semidiscrete_transport`, of points (n, d), d being the coordinates of a
            sample, or a function (n, generator) of samples (n, *shape). Standard normal when None.
        pool: batches to couple at once.
        ahead: pools that are coupled before they are needed.
        background: couple in a thread.
        ramp: begin each pass with a pool of one batch, and let pools grow by a half until `pool` is reached: the loop
            then need not stand still for a large first pool.
        labels: which of the things beside the data are labels that the coupling shall respect: 0 for the first; None
            for none.
        generator: of seeds, on the CPU; that of torch when None.

    Attributes:
        stats: a `LoaderStats` of the last pass.

    Raises:
        InvalidInput: arguments that break a rule; while it runs, batches that do.

    Complexity: the coupling's, for each pool; memory for `ahead + 2` pools.

    Example:
        >>> import torch
        >>> data = torch.randn(512, 2, generator=torch.Generator().manual_seed(0)) + 3
        >>> loader = CouplingLoader(data.split(64), pool=4, generator=torch.Generator().manual_seed(1))
        >>> [tuple(x1.shape) for x0, x1, extra in loader] == [(64, 2)] * 8
        True
        >>> loader.stats.pools
        2

    Source: Pooladian et al. (2023), Multisample flow matching; Tong et al. (2024), Improving and generalizing
    flow-based generative models with minibatch optimal transport (pairs from batches).
    """

    def __init__(
        self,
        loader: Iterable[Any],
        coupling: Coupling = IndependentCoupling(),
        *,
        source: Any = None,
        pool: int = 1,
        ahead: int = 1,
        background: bool = True,
        ramp: bool = False,
        labels: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(loader, Iterable):
            refuse("loader", "batches of data", type(loader).__name__)
        if not isinstance(coupling, Coupling):
            refuse("coupling", "a Coupling, such as ExactCoupling()", repr(coupling))
        for name, value in (("pool", pool), ("ahead", ahead)):
            if not is_count(value):
                refuse(name, "a positive number", repr(value))
        if labels is not None and (isinstance(labels, bool) or not isinstance(labels, int) or labels < 0):
            refuse("labels", "the place of the labels beside the data, 0 for the first, or None", repr(labels))
        if labels is not None and coupling.own_data:
            refuse("labels", f"None with {type(coupling).__name__}", repr(labels))
        if generator is not None and not isinstance(generator, torch.Generator):
            refuse("generator", "a torch.Generator or None", type(generator).__name__)
        self.loader, self.coupling, self.source = loader, coupling, source
        self.pool, self.ahead, self.background, self.labels = pool, ahead, background, labels
        self.ramp, self.generator = ramp, generator
        self.stats = LoaderStats()
        self._reader: Source | None = None

    def __len__(self) -> int:
        """Batches of a pass, where the loader knows."""
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Extra]]:
        """Yield x0 (B, *shape), x1 (B, *shape) and their `Extra`."""
        self.stats = stats = LoaderStats()
        if not self.background:
            for pool in self._pools():
                begin = time.perf_counter()
                coupled = self._coupled(pool, stats)
                stats.waited += time.perf_counter() - begin
                yield from self._parts(pool, coupled)
            return
        executor = ThreadPoolExecutor(1, thread_name_prefix="brenier-coupling")
        waiting: deque[tuple[_Pool, Future[Coupled]]] = deque()
        try:
            for pool in self._pools():
                waiting.append((pool, executor.submit(self._coupled, pool, stats)))
                if len(waiting) > self.ahead:
                    yield from self._arrived(*waiting.popleft(), stats)
            while waiting:
                yield from self._arrived(*waiting.popleft(), stats)
        finally:
            executor.shutdown(cancel_futures=True)

    def _pools(self) -> Iterator[_Pool]:
        seed = int(torch.randint(_SEEDS, (), generator=self.generator))
        batches: list[tuple[Tensor, tuple[Any, ...]]] = []
        size = 1 if self.ramp else self.pool
        for batch in self.loader:
            batches.append(_read_batch(batch))
            if len(batches) == size:
                yield self._gathered(batches, seed)
                batches, seed, size = [], seed + 2, min(size + (size + 1) // 2, self.pool)
        if batches:
            yield self._gathered(batches, seed)

    def _gathered(self, batches: list[tuple[Tensor, tuple[Any, ...]]], seed: int) -> _Pool:
        x1 = torch.cat([x for x, _ in batches])
        kinds = {len(rest) for _, rest in batches}
        if len(kinds) > 1:
            refuse("batch", "as many things beside the data as in other batches", f"{sorted(kinds)}")
        rest = tuple(_joined(parts) for parts in zip(*(rest for _, rest in batches)))
        x0 = self._drawn(x1, torch.Generator().manual_seed(seed))
        return _Pool(x0, x1, rest, [len(x) for x, _ in batches], seed + 1)

    def _drawn(self, x1: Tensor, generator: torch.Generator) -> Tensor:
        if self.source is None:
            return torch.randn(x1.shape, generator=generator, dtype=x1.dtype).to(x1.device)
        flat = x1.reshape(len(x1), -1)
        if self._reader is None:
            self._reader = read_source(_flat(self.source), flat)
        return self._reader.sample(len(x1), generator).reshape(x1.shape)

    def _coupled(self, pool: _Pool, stats: LoaderStats) -> Coupled:
        """Couple a pool, in whatever thread."""
        begin = time.perf_counter()
        labels: Any = None
        if self.labels is not None:
            if self.labels >= len(pool.rest):
                got = f"{len(pool.rest)} things beside the data"
                refuse("labels", "a place among what comes with the data", f"{self.labels}, with {got}")
            labels = torch.as_tensor(pool.rest[self.labels])
        generator = torch.Generator().manual_seed(pool.seed)
        with torch.no_grad():
            coupled = self.coupling(pool.x0, pool.x1, labels1=labels, generator=generator)
        if len(coupled.rows) != len(pool.x0):
            refuse("coupling", f"{len(pool.x0)} pairs", f"{len(coupled.rows)}")
        stats.pools += 1
        stats.seconds += time.perf_counter() - begin
        return coupled

    def _arrived(
        self, pool: _Pool, future: Future[Coupled], stats: LoaderStats
    ) -> Iterator[tuple[Tensor, Tensor, Extra]]:
        begin = time.perf_counter()
        coupled = future.result()
        stats.waited += time.perf_counter() - begin
        yield from self._parts(pool, coupled)

    def _parts(self, pool: _Pool, coupled: Coupled) -> Iterator[tuple[Tensor, Tensor, Extra]]:
        rest = self._of_partners(pool, coupled)
        start = 0
        for size in pool.sizes:
            part = slice(start, start + size)
            weight = None if coupled.log_weight is None else coupled.log_weight[part]
            yield coupled.x0[part], coupled.x1[part], Extra(tuple(t[part] for t in rest), weight)
            start += size

    def _of_partners(self, pool: _Pool, coupled: Coupled) -> tuple[Any, ...]:
        if self.coupling.own_data:
            labels = getattr(self.coupling, "labels", None)
            return () if labels is None else (labels[coupled.cols],)
        if not pool.rest:
            return ()
        if coupled.cols is None:
            cure = "Draw partners (barycentric=False), or hand in the data alone."
            refuse("batch", "data alone, as means of several have no labels", f"{len(pool.rest)} more", cure)
        return tuple(_taken(t, coupled.cols) for t in pool.rest)


def _read_batch(batch: Any) -> tuple[Tensor, tuple[Any, ...]]:
    """The data of a batch, and what came with them."""
    first, rest = (batch[0], tuple(batch[1:])) if isinstance(batch, list | tuple) and batch else (batch, ())
    if not isinstance(first, Tensor) or not first.is_floating_point() or first.dim() < 1 or not len(first):
        got = f"{first.dtype}, shape {tuple(first.shape)}" if isinstance(first, Tensor) else type(first).__name__
        refuse("batch", "a floating tensor (B, *shape), or a list that begins with one", got)
    for part in rest:
        size = len(part) if hasattr(part, "__len__") and not (isinstance(part, Tensor) and not part.dim()) else math.nan
        if size != len(first):
            refuse("batch", f"{len(first)} entries in everything that comes with the data", f"{size:g}")
    return first, rest


def _joined(parts: tuple[Any, ...]) -> Any:
    return torch.cat(parts) if isinstance(parts[0], Tensor) else [entry for part in parts for entry in part]


def _taken(values: Any, cols: Tensor) -> Any:
    return values[cols.to(values.device)] if isinstance(values, Tensor) else [values[j] for j in cols.tolist()]


def _flat(source: Any) -> Any:
    """A function of samples (n, *shape) as one of points (n, d); anything else as it is."""
    known = isinstance(source, torch.distributions.Distribution) or hasattr(source, "sample")
    if known or not callable(source) or hasattr(source, "to_numpy"):
        return source

    def points(n: int, generator: torch.Generator | None) -> Any:
        samples = source(n, generator)
        return samples.reshape(len(samples), -1) if isinstance(samples, Tensor) else samples

    return points
