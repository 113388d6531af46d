"""A stand-in for a GPU and for TensorRT: "device" memory on the host, engines that ONNX Runtime computes.

It shows that the backend calls the two as they want to be called (shapes, addresses, profiles, the cache in place).
That an engine computes the right thing on a GPU it cannot show.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from enum import Enum
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import numpy as np
import onnxruntime

from ilat_runtime import engines
from ilat_runtime.errors import BackendError
from ilat_runtime.manifest import Graph, load_manifest

VERSION = "0.0.stand-in"
ARCHITECTURE = "sm86"


class HostMemory:
    """Bytes with an address; a write past their end is seen. A stale address still holds what it held."""

    GUARD = 64

    def __init__(self, device: StandInDevice, count: int) -> None:
        self.device, self.count = device, count
        self.array = np.full(count + self.GUARD, 0xA5, np.uint8)
        device.arrays.append(self.array)

    def __int__(self) -> int:
        return self.array.ctypes.data

    def __del__(self) -> None:
        self.device.freed.append(self.device.current)


class StandInGraph:
    """A CUDA graph: what was captured, as it was told then."""

    def __init__(self, stream: StandInStream, work: list[Callable[[], bool]]) -> None:
        self.stream, self.work, self.destroyed = stream, work, False

    def launch(self) -> None:
        assert self.stream.device.current
        assert not self.destroyed
        self.stream.device.launched += 1
        assert all(run() for run in self.work)

    def destroy(self) -> None:
        assert self.stream.device.current
        assert not self.destroyed
        self.destroyed = True


class StandInStream:
    """Does at once what is queued, or records it while it captures: then no copies and no waiting."""

    known: ClassVar[WeakValueDictionary[int, StandInStream]] = WeakValueDictionary()
    handles = itertools.count(7)

    def __init__(self, device: StandInDevice) -> None:
        assert device.current
        self.device, self.handle = device, next(self.handles)
        self.recorded: list[Callable[[], bool]] | None = None
        self.known[self.handle] = self

    def clear(self, memory: HostMemory, count: int) -> None:
        assert self.device.current
        assert self.recorded is None
        ctypes.memset(int(memory), 0, count)

    def upload(self, memory: HostMemory, array: np.ndarray) -> None:
        assert self.device.current
        assert self.recorded is None
        assert array.flags.c_contiguous
        assert array.nbytes <= memory.count
        ctypes.memmove(int(memory), array.ctypes.data, array.nbytes)
        self.device.uploaded.append(array.nbytes)

    def download(self, array: np.ndarray, memory: HostMemory) -> None:
        assert self.device.current
        assert self.recorded is None
        assert array.nbytes <= memory.count
        ctypes.memmove(array.ctypes.data, int(memory), array.nbytes)
        self.device.downloaded.append(array.nbytes)

    def wait(self) -> None:
        assert self.recorded is None
        for array in self.device.arrays:
            assert (array[-HostMemory.GUARD :] == 0xA5).all(), "written past the end of a buffer"

    def capture(self, work: Callable[[], None]) -> StandInGraph:
        assert self.device.current
        self.recorded = recorded = []
        try:
            work()
        finally:
            self.recorded = None
        if self.device.refusal:
            raise BackendError(self.device.refusal)
        self.device.graphs.append(StandInGraph(self, recorded))
        return self.device.graphs[-1]


class StandInDevice:
    """Counts what is allocated, copied and captured; that only happens while it is current.

    Attributes:
        freed: for each memory that was freed, how often the device was current then.
        refusal: why a capture fails; empty where it does not.
    """

    name, architecture = "stand-in, no GPU", ARCHITECTURE

    def __init__(self, without_graphs: str | None = None, refusal: str = "") -> None:
        self.without_graphs, self.refusal = without_graphs, refusal
        self.current = 0
        self.arrays: list[np.ndarray] = []
        self.freed: list[int] = []
        self.uploaded: list[int] = []
        self.downloaded: list[int] = []
        self.graphs: list[StandInGraph] = []
        self.launched = 0

    def __enter__(self) -> StandInDevice:
        self.current += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.current -= 1

    def allocate(self, count: int) -> HostMemory:
        assert self.current
        return HostMemory(self, count)

    def stream(self) -> StandInStream:
        return StandInStream(self)


class TensorLocation(Enum):
    DEVICE = 0
    HOST = 1


class CudaGraphStrategy(Enum):
    """TensorRT-RTX's; the full TensorRT has none."""

    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class ExecutionContextAllocationStrategy(Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1


class Context:
    """An execution context: computes when all shapes and addresses are set, in the profile that takes them.

    As TensorRT's, it puts off until it runs what it is told, which must not be captured, and a graph is of no use when
    its context has been told something since. It runs on one stream.
    """

    def __init__(self, engine: StandInEngine, captured: bool) -> None:
        self.engine, self.captured = engine, captured
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.told = 0
        self.ran_when_told = -1
        self.stream: int | None = None
        self.executions: list[int] = []

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._on(stream)
        self.profile = index
        self.shapes.clear()
        self.told += 1
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None
        extents = self.engine.entry.profiles[self.profile].inputs[name]
        if name != "top_k":
            assert all(a <= b <= c for a, b, c in zip(extents.min, shape, extents.max, strict=True)), (name, shape)
        self.shapes[name] = tuple(shape)
        self.told += 1
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        self.told += 1
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        record = self.engine.record
        sizes = {
            extent: given
            for key, tensor in record.inputs.items()
            for extent, given in zip(tensor.shape, self.shapes[key], strict=True)
            if isinstance(extent, str)
        }
        return tuple(sizes[extent] if isinstance(extent, str) else extent for extent in record.outputs[name].shape)

    def execute_async_v3(self, stream: int) -> bool:
        self._on(stream)
        recorded = StandInStream.known[stream].recorded
        # What a tensor in host memory holds is read now, what lies on the device when it runs.
        top_k = {
            name: view(address, self.shapes[name], np.int64).copy()
            for name, address in self.addresses.items()
            if name == "top_k"
        }
        run = partial(self._compute, dict(self.shapes), dict(self.addresses), top_k)
        if recorded is None:
            self.ran_when_told = self.told
            self.executions.append(self.profile)
            return run()
        assert self.ran_when_told == self.told, "captured what was put off"
        recorded.append(partial(self._as_captured, self.told, run))
        return True

    def _on(self, stream: int) -> None:
        assert self.stream in (None, stream), "another stream"
        self.stream = stream

    def _as_captured(self, told: int, run: Callable[[], bool]) -> bool:
        assert self.told == told, "the context of a graph has been told something"
        return run()

    def _compute(
        self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int], on_host: dict[str, np.ndarray]
    ) -> bool:
        record = self.engine.record
        inputs = {
            name: on_host[name] if name in on_host else view(addresses[name], shapes[name], tensor.dtype).copy()
            for name, tensor in record.inputs.items()
        }
        names = list(record.outputs)
        for name, array in zip(names, self.engine.session.run(names, inputs), strict=True):
            if record.opset >= 24 and name.startswith("present_"):
                assert addresses[name] == addresses["past_" + name.removeprefix("present_")], "not in place"
            view(addresses[name], array.shape, array.dtype)[...] = array
        return True


def view(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    kind = np.dtype(dtype)
    count = int(np.prod(shape)) * kind.itemsize
    return np.frombuffer((ctypes.c_uint8 * count).from_address(address), kind).reshape(shape)


class StandInEngine:
    """What deserialising gives: a graph on ONNX Runtime."""

    def __init__(self, graph: Path, record: Graph, entry: engines.Engine) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.record, self.entry = record, entry
        self.contexts: list[Context] = []

    def create_runtime_config(self) -> SimpleNamespace:
        return SimpleNamespace(cuda_graph_strategy=CudaGraphStrategy.DISABLED)

    def create_execution_context(
        self, config: SimpleNamespace | ExecutionContextAllocationStrategy | None = None
    ) -> Context:
        strategy = getattr(config, "cuda_graph_strategy", CudaGraphStrategy.DISABLED)
        captured = strategy is CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self.contexts.append(Context(self, captured))
        return self.contexts[-1]

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name == "top_k" else TensorLocation.DEVICE


def stand_in_library(captures: bool = True) -> Any:
    """The part of TensorRT's module that the backend uses.

    Args:
        captures: that of TensorRT-RTX, which replays CUDA graphs by itself.
    """

    class Runtime:
        def __init__(self, _logger: object) -> None: ...

        def deserialize_cuda_engine(self, data: bytes) -> StandInEngine | None:
            folder, _, name = data.decode().partition("\n")
            if name == "unloadable":
                return None
            manifest = load_manifest(folder)
            record = manifest.graphs.by_name[name]
            found = engines.read(next(Path(folder).glob("engines/*/engines.json")))
            return StandInEngine(Path(folder) / record.file, record, found.engines[name])

    class Logger:
        ERROR = 1

        def __init__(self, _level: int) -> None: ...

    module = SimpleNamespace(
        Runtime=Runtime,
        Logger=Logger,
        TensorLocation=TensorLocation,
        ExecutionContextAllocationStrategy=ExecutionContextAllocationStrategy,
        __version__=VERSION,
    )
    if captures:
        module.CudaGraphStrategy = CudaGraphStrategy
    return module
