"""A stand-in for a GPU and for TensorRT: "device" memory on the host, engines that ONNX Runtime computes.

It shows that the backend calls the two as they want to be called (shapes, addresses, profiles, the cache in place).
That an engine computes the right thing on a GPU it cannot show.
"""

from __future__ import annotations

import ctypes
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from ilat_runtime import engines
from ilat_runtime.manifest import Graph, load_manifest

VERSION = "0.0.stand-in"
ARCHITECTURE = "sm86"


class HostMemory:
    """Bytes with an address; a write past their end is seen."""

    GUARD = 64

    def __init__(self, count: int) -> None:
        self.count = count
        self.array = np.full(count + self.GUARD, 0xA5, np.uint8)

    def __int__(self) -> int:
        return self.array.ctypes.data

    def check(self) -> None:
        assert (self.array[self.count :] == 0xA5).all(), "written past the end of a buffer"


class StandInDevice:
    """Counts what is allocated and copied; copies only happen while it is current."""

    name, architecture, stream = "stand-in, no GPU", ARCHITECTURE, 7

    def __init__(self) -> None:
        self.current = 0
        self.memory: list[HostMemory] = []
        self.uploaded: list[int] = []
        self.downloaded: list[int] = []

    def __enter__(self) -> StandInDevice:
        self.current += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.current -= 1

    def allocate(self, count: int) -> HostMemory:
        assert self.current
        self.memory.append(HostMemory(count))
        return self.memory[-1]

    def clear(self, memory: HostMemory, count: int) -> None:
        assert self.current
        ctypes.memset(int(memory), 0, count)

    def upload(self, memory: HostMemory, array: np.ndarray) -> None:
        assert self.current
        assert array.flags.c_contiguous
        assert array.nbytes <= memory.count
        ctypes.memmove(int(memory), array.ctypes.data, array.nbytes)
        self.uploaded.append(array.nbytes)

    def download(self, array: np.ndarray, memory: HostMemory) -> None:
        assert self.current
        assert array.nbytes <= memory.count
        ctypes.memmove(array.ctypes.data, int(memory), array.nbytes)
        self.downloaded.append(array.nbytes)

    def wait(self) -> None:
        for memory in self.memory:
            memory.check()


class TensorLocation(Enum):
    DEVICE = 0
    HOST = 1


class CudaGraphStrategy(Enum):
    """TensorRT-RTX's; the full TensorRT has none."""

    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class Context:
    """An execution context: computes when all shapes and addresses are set, in the profile that takes them."""

    def __init__(self, engine: StandInEngine, captured: bool) -> None:
        self.engine, self.captured = engine, captured
        self.profile = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream == StandInDevice.stream
        self.profile = index
        self.shapes.clear()
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        extents = self.engine.entry.profiles[self.profile].inputs[name]
        if name != "top_k":
            assert all(a <= b <= c for a, b, c in zip(extents.min, shape, extents.max, strict=True)), (name, shape)
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
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
        assert stream == StandInDevice.stream
        record = self.engine.record
        inputs = {
            name: view(self.addresses[name], self.shapes[name], tensor.dtype).copy()
            for name, tensor in record.inputs.items()
        }
        names = list(record.outputs)
        for name, array in zip(names, self.engine.session.run(names, inputs), strict=True):
            if record.opset >= 24 and name.startswith("present_"):
                assert self.addresses[name] == self.addresses["past_" + name.removeprefix("present_")], "not in place"
            view(self.addresses[name], array.shape, array.dtype)[...] = array
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

    def create_execution_context(self, config: SimpleNamespace | None = None) -> Context:
        captured = config is not None and config.cuda_graph_strategy is CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
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

    module = SimpleNamespace(Runtime=Runtime, Logger=Logger, TensorLocation=TensorLocation, __version__=VERSION)
    if captures:
        module.CudaGraphStrategy = CudaGraphStrategy
    return module
