"""TensorRT and TensorRT-RTX: engines from the bundle, buffers allocated once, the cache in place on the device.

Knows nothing of images or tokens: an engine runs on device buffers. Between two steps only the small inputs and the
token itself are copied.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..engines import Engine, Engines, Wanted, choose_profile, find
from ..errors import BackendError
from ..manifest import Graph as GraphRecord
from ..manifest import Manifest
from ..tensorrt_library import library
from . import Tensors


class Device(Protocol):
    """What this needs of a GPU; :class:`ilat_runtime.backends.cuda.Cuda` is one. A context manager makes it current."""

    name: str
    architecture: str
    stream: int

    def __enter__(self) -> Any: ...

    def __exit__(self, *_: object) -> None: ...

    def allocate(self, count: int) -> Any:
        """Memory of ``count`` bytes; ``int()`` of it is the address."""
        ...

    def clear(self, memory: Any, count: int) -> None:
        """Queue zeros."""
        ...

    def upload(self, memory: Any, array: npt.NDArray[Any]) -> None:
        """Queue a copy to the device; the array stays as it is until :meth:`wait`."""
        ...

    def download(self, array: npt.NDArray[Any], memory: Any) -> None:
        """Queue a copy to the host."""
        ...

    def wait(self) -> None:
        """Until everything queued is done."""
        ...


def _cuda() -> Device:
    from .cuda import Cuda

    return Cuda()


class TensorRt:
    """The backends ``tensorrt`` and ``tensorrt-rtx``; :meth:`for_bundle` finds the engines.

    Raises:
        BackendError: the library, pycuda, the driver or a GPU is missing: it says which, and how to get it.
    """

    def __init__(self, flavour: Any, device: Callable[[], Device] = _cuda) -> None:
        try:
            self._trt = library(flavour)
        except BackendError as error:
            raise BackendError(f"backend: {error}") from None
        self.device = device()
        self.name = flavour
        self.wanted = Wanted(flavour, self._trt.__version__, self.device.architecture)
        self.description = f"{flavour} {self._trt.__version__} ({self.device.name})"
        self._engines: tuple[Path, Engines, Manifest] | None = None

    def for_bundle(self, bundle: Path, manifest: Manifest) -> TensorRt:
        """This backend with the engines of a bundle. Raises BackendError when none may be loaded here, and why."""
        folder, engines = find(bundle, manifest, self.wanted)
        result = object.__new__(type(self))
        result.__dict__ = self.__dict__ | {"_engines": (folder, engines, manifest)}
        return result

    def load(self, path: Path, record: GraphRecord) -> EngineGraph:
        """The engine of a graph."""
        if self._engines is None:
            raise BackendError(f"backend: {self.name}: runs engines of a bundle, not {path}")
        folder, engines, manifest = self._engines
        name = next(key for key, graph in manifest.graphs.by_name.items() if graph.file == record.file)
        entry = engines.engines[name]
        with self.device:
            runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.ERROR))
            engine = runtime.deserialize_cuda_engine((folder / entry.file).read_bytes())
        if engine is None:
            raise BackendError(f"backend: {self.description} does not load {folder / entry.file}")
        return EngineGraph(self._trt, self.device, engine, entry, record, f"{folder / entry.file}")


class EngineGraph:
    """An engine; each thread's calls take turns, sessions have buffers of their own."""

    def __init__(self, trt: Any, device: Device, engine: Any, entry: Engine, record: GraphRecord, where: str) -> None:
        self.trt, self.device, self.engine, self.entry, self.record, self.where = (
            trt, device, engine, entry, record, where,
        )  # fmt: skip
        self._lock = threading.Lock()
        self._plain: CachedEngine | None = None

    def run(self, inputs: Tensors) -> dict[str, npt.NDArray[Any]]:
        """Outputs by name; see :class:`ilat_runtime.backends.Graph`."""
        with self._lock:
            if self._plain is None:
                self._plain = CachedEngine(self, 0)
            return self._plain.run(inputs)

    def with_cache(self, batch: int) -> CachedEngine:
        """The engine with a cache and buffers of its own; see :class:`ilat_runtime.backends.Graph`."""
        return CachedEngine(self, batch)


def _context(trt: Any, engine: Any, captured: bool) -> Any:
    """An execution context; None where memory does not suffice.

    Args:
        captured: the library may replay calls of a shape as a CUDA graph. TensorRT-RTX does that by itself, where the
            full TensorRT leaves it to its user; docs/bundle.md says why that is not done here.
    """
    strategies = getattr(trt, "CudaGraphStrategy", None)
    if not captured or strategies is None:
        return engine.create_execution_context()
    config = engine.create_runtime_config()
    config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE
    return engine.create_execution_context(config)


class CachedEngine:
    """An execution context with its buffers; a ``batch`` of 0 is one without a cache."""

    def __init__(self, graph: EngineGraph, batch: int) -> None:
        self._graph, self._device = graph, graph.device
        self._buffers: dict[str, tuple[Any, int]] = {}
        self._profile: int | None = None
        self._caches: list[dict[str, Any]] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        record = graph.record
        with self._device:
            self._context = _context(graph.trt, graph.engine, captured=batch > 0)
            if self._context is None:
                raise BackendError(f"{graph.where}: the GPU's memory does not suffice for it")
            past = {name: tensor for name, tensor in record.inputs.items() if batch and name.startswith("past_")}
            for _ in range(1 if record.in_place else 2):
                cache = {}
                for name, tensor in past.items():
                    self._shapes[name] = (batch, *(int(extent) for extent in tensor.shape[1:]))
                    count = int(np.prod(self._shapes[name])) * np.dtype(tensor.dtype).itemsize
                    cache[name] = self._device.allocate(count)
                    self._device.clear(cache[name], count)
                self._caches.append(cache)
            self._device.wait()

    def run(self, inputs: Tensors) -> dict[str, npt.NDArray[Any]]:
        """Outputs other than the cache, for inputs other than the cache."""
        graph, device, context = self._graph, self._device, self._context
        arrays = {
            name: np.ascontiguousarray(inputs[name], tensor.dtype)
            for name, tensor in graph.record.inputs.items()
            if name not in self._shapes
        }
        with device:
            self._select({name: array.shape for name, array in arrays.items()} | self._shapes)
            for name, array in arrays.items():
                self._bind_input(name, array)
            for name, memory in self._caches[0].items():
                context.set_input_shape(name, self._shapes[name])
                context.set_tensor_address(name, int(memory))
            results = {}
            for name, tensor in graph.record.outputs.items():
                past = "past_" + name.removeprefix("present_")
                if past in self._caches[-1]:
                    context.set_tensor_address(name, int(self._caches[-1][past]))
                    continue
                results[name] = np.empty(tuple(context.get_tensor_shape(name)), tensor.dtype)
                context.set_tensor_address(name, int(self._buffer(name, results[name].nbytes)))
            if not context.execute_async_v3(device.stream):
                raise BackendError(f"{graph.where}: the engine failed")
            for name, array in results.items():
                device.download(array, self._buffers[name][0])
            device.wait()
        self._caches.reverse()
        return results

    def with_cache(self, batch: int) -> CachedEngine:
        """Another cache of the same engine."""
        return self._graph.with_cache(batch)

    def _select(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Switches to the first profile that takes these shapes."""
        graph = self._graph
        looked_at = {name: shape for name, shape in shapes.items() if name != "top_k"}
        profile = choose_profile(graph.entry, looked_at)
        if profile is None:
            widest = graph.entry.profiles[-1].inputs
            name = next(
                name
                for name, shape in looked_at.items()
                if not all(a <= b <= c for a, b, c in zip(widest[name].min, shape, widest[name].max, strict=True))
            )
            raise BackendError(
                f"{graph.where}: takes {name} up to {list(widest[name].max)}, this call has {list(shapes[name])}; "
                "build engines with a larger --max-batch or --max-crop"
            )
        if profile != self._profile:
            if not self._context.set_optimization_profile_async(profile, self._device.stream):
                raise BackendError(f"{graph.where}: the profile {graph.entry.profiles[profile].name} cannot be used")
            self._profile = profile

    def _bind_input(self, name: str, array: npt.NDArray[Any]) -> None:
        """Shape tensors stay in host memory, the rest is copied."""
        self._context.set_input_shape(name, array.shape)
        if self._graph.engine.get_tensor_location(name) == self._graph.trt.TensorLocation.HOST:
            self._context.set_tensor_address(name, array.ctypes.data)
            return
        memory = self._buffer(name, array.nbytes)
        self._device.upload(memory, array)
        self._context.set_tensor_address(name, int(memory))

    def _buffer(self, name: str, count: int) -> Any:
        """Device memory for a tensor, kept from call to call and grown where a call needs more."""
        memory, size = self._buffers.get(name, (None, -1))
        if size < count:
            memory = self._device.allocate(count)
            self._buffers[name] = (memory, count)
        return memory
