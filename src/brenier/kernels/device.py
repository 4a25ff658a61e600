"""What a loop on a GPU needs: where a look at a number would wait, and steps that are replayed as a CUDA graph.

And what PyTorch was told about products of float32, wherever they are made.

A look at a number on a GPU (`bool`, `item`, a copy) waits for all that was asked of the device before. On a CPU it is
free, and spares work: loops ask `waits`, and take the way without a look where the answer is yes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ..errors import PerformanceWarning

__all__ = ["Replayed", "products_in_full", "waits"]

State = TypeVar("State")


def waits(t: Tensor) -> bool:
    """Whether a look at a number of this tensor waits for a device."""
    return t.device.type != "cpu"


def products_in_full(t: Tensor) -> bool:
    """Whether products of matrices in float32 have the precision of float32 on the device of this tensor."""
    backend = torch.backends.cuda if t.is_cuda else torch.backends.mkldnn
    told = getattr(getattr(backend, "matmul", None), "fp32_precision", None)  # PyTorch 2.9 on; then the other may raise
    return (told or torch.get_float32_matmul_precision()) in ("none", "ieee", "highest")


class Replayed(Generic[State]):
    """A function from a state to the next, captured as a CUDA graph and replayed where it can be.

    A state is a named tuple of tensors, numbers and further such tuples. The first call runs the function, which
    compiles kernels and fills caches; if the next state has the same shapes and numbers, the second call captures what
    the function launches, and this and later ones replay it. States elsewhere than on a GPU, or with gradients, are
    never captured. Where capture fails, a `PerformanceWarning` says so, and the function is run as it is from then on.

    The function must not look at its tensors, and nothing that it keeps may be made while it is captured.
    """

    def __init__(self, function: Callable[[State], State]) -> None:
        self._function = function
        self._held: State | None = None  # what the graph reads
        self._form: Any = None  # of the states that it takes
        self._replay: Callable[[], State] | None = None
        self._failed = False

    def __call__(self, state: State) -> State:
        if self._failed or not _capturable(_tensors(state)):
            return self._function(state)
        form = _form(state)
        if self._held is None or form != self._form:
            held: State = _map(torch.clone, state)
            out = self._function(held)
            self._held, self._form, self._replay = (held if _form(out) == form else None), form, None
            return out
        for own, new in zip(_tensors(self._held), _tensors(state)):
            own.copy_(new)
        if self._replay is None:
            function, held = self._function, self._held
            try:
                self._replay = _captured(lambda: function(held), _tensors(held)[0].device)
            except RuntimeError as error:
                self._failed, self._held = True, None
                warnings.warn(f"a CUDA graph could not be captured, so each kernel is launched: {error}",
                              PerformanceWarning, stacklevel=2)  # fmt: skip
                return self._function(state)
        return _map(torch.clone, self._replay())  # which the next replay writes over


def _capturable(tensors: list[Tensor]) -> bool:
    return (
        bool(tensors)
        and all(t.is_cuda and t.device == tensors[0].device for t in tensors)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
        and not torch.cuda.is_current_stream_capturing()
    )


def _captured(function: Callable[[], State], device: torch.device) -> Callable[[], State]:
    """Record what a function launches, without running it. What that returns runs it, into one place each time."""
    with torch.cuda.device(device):
        graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        # not `torch.cuda.graph`, which empties the cache of the allocator, and keeps its stream where capture fails
        with torch.cuda.stream(aside):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                out = function()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(aside)

    def replay() -> State:
        graph.replay()
        return out

    return replay


def _leaves(state: Any) -> Iterator[Any]:
    if isinstance(state, tuple):
        for part in state:
            yield from _leaves(part)
    else:
        yield state


def _tensors(state: Any) -> list[Tensor]:
    return [leaf for leaf in _leaves(state) if isinstance(leaf, Tensor)]


def _form(state: Any) -> list[Any]:
    """All that a replay cannot change: numbers, shapes and dtypes."""
    return [(t.shape, t.dtype) if isinstance(t, Tensor) else t for t in _leaves(state)]


def _map(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """The state with a function applied to its tensors."""
    if isinstance(state, tuple):
        return type(state)(*(_map(function, part) for part in state))  # type: ignore[call-arg]
    return function(state) if isinstance(state, Tensor) else state
