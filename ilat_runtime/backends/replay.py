"""Calls of an engine, and CUDA graphs of those that come again.

A CUDA graph repeats what it was captured from: shapes, addresses, and what tensors in host memory held then. So a
:class:`Call` is all that an engine is told, and a graph is launched for an equal call only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import BackendError
from .device import Graph, Stream

KEPT = 4
"""Graphs of a session, that used longest ago goes: one and two rows, for both directions where two caches swap."""


@dataclass(frozen=True)
class Call:
    """All that an engine is told before it runs, by tensor.

    Attributes:
        profile: index of the optimization profile; it follows from the shapes.
        inputs: shapes.
        outputs: shapes of those other than the cache; they follow from the inputs'.
        addresses: of inputs and outputs in device memory.
        values: bytes of inputs in host memory (``top_k``).
    """

    profile: int
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, tuple[int, ...]], ...]
    addresses: tuple[tuple[str, int], ...]
    values: tuple[tuple[str, bytes], ...]


class Context:
    """An execution context on a stream; ``where`` names the engine in messages."""

    def __init__(self, context: Any, stream: Stream, where: str) -> None:
        if context is None:
            raise BackendError(f"{where}: the GPU's memory does not suffice for it")
        self._context, self._stream, self._where = context, stream, where
        self._profile: int | None = None

    def bind(self, call: Call) -> None:
        """Tells it a call. Raises BackendError when the engine does not take it."""
        context = self._context
        if call.profile != self._profile:
            if not context.set_optimization_profile_async(call.profile, self._stream.handle):
                raise BackendError(f"{self._where}: the profile {call.profile} cannot be used")
            self._profile = call.profile
        for name, shape in call.inputs:
            context.set_input_shape(name, shape)
        # Of this context alone: the engine reads them when it runs.
        self._values = {name: np.frombuffer(value, np.uint8).copy() for name, value in call.values}
        for name, array in self._values.items():
            context.set_tensor_address(name, array.ctypes.data)
        for name, address in call.addresses:
            context.set_tensor_address(name, address)
        for name, shape in call.outputs:
            if (found := tuple(context.get_tensor_shape(name))) != shape:
                raise BackendError(f"{self._where}: gives {name} the shape {list(found)}, expected {list(shape)}")

    def execute(self) -> None:
        """Queues what it was told. Raises BackendError."""
        if not self._context.execute_async_v3(self._stream.handle):
            raise BackendError(f"{self._where}: the engine failed")


class Replays:
    """The CUDA graphs of a session.

    A call that comes for the second time among the last few is captured, so one that never comes again costs nothing.
    Each graph has a context of its own, which is told nothing after the capture: TensorRT's graphs depend on the state
    of theirs. That context runs once before, for what TensorRT puts off until then is not to be captured.

    Args:
        create: makes a context.
        refused: called with the reason when a call could not be captured.
    """

    def __init__(self, stream: Stream, create: Callable[[], Context], refused: Callable[[BackendError], None]) -> None:
        self._stream, self._create, self._refused = stream, create, refused
        self._seen: OrderedDict[Call, None] = OrderedDict()
        self._graphs: OrderedDict[Call, tuple[Context, Graph]] = OrderedDict()

    def run(self, call: Call) -> bool:
        """Queues the call as a graph, or captures it; False when it is still to be queued."""
        known = self._graphs.get(call)
        if known is not None:
            self._graphs.move_to_end(call)
            known[1].launch()
            return True
        if call not in self._seen:
            self._seen[call] = None
            if len(self._seen) > KEPT:
                self._seen.popitem(last=False)
            return False
        del self._seen[call]
        try:
            context = self._create()
        except BackendError as error:
            self._refused(error)
            return False
        context.bind(call)
        context.execute()
        try:
            graph = self._stream.capture(context.execute)
        except BackendError as error:
            self._refused(error)
            return True
        self._graphs[call] = context, graph
        if len(self._graphs) > KEPT:
            self._graphs.popitem(last=False)[1][1].destroy()
        return True

    def close(self) -> None:
        """Frees the graphs."""
        while self._graphs:
            self._graphs.popitem()[1][1].destroy()
