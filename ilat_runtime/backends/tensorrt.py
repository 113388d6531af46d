"""TensorRT and TensorRT-RTX: engines from the bundle, buffers allocated once, the cache in place on the device.

Knows nothing of images or tokens: an engine runs on device buffers. Between two steps only the small inputs and the
token itself are copied.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engines import Engine, Engines, Wanted, choose_profile, find
from ..errors import BackendError
from ..manifest import Graph as GraphRecord
from ..manifest import Manifest
from ..tensorrt_library import library
from . import Tensors, logger
from .device import Device, Stream
from .replay import Call, Context, Replays


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
        self._captures = False
        if _own_graphs(self._trt) is None:
            self._captures = self.device.without_graphs is None
            self.description += "" if self._captures else f", without CUDA graphs: {self.device.without_graphs}"
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
        return EngineGraph(self._trt, self.device, engine, entry, record, f"{folder / entry.file}", self._captures)


class EngineGraph:
    """An engine; each thread's calls take turns, sessions have buffers and a stream of their own.

    Attributes:
        captures: whether sessions capture their steps, and no step has been refused yet.
    """

    def __init__(
        self, trt: Any, device: Device, engine: Any, entry: Engine, record: GraphRecord, where: str, captures: bool
    ) -> None:
        self.trt, self.device, self.engine, self.entry, self.record, self.where, self.captures = (
            trt, device, engine, entry, record, where, captures,
        )  # fmt: skip
        host = trt.TensorLocation.HOST
        self.on_host = tuple(name for name in record.inputs if engine.get_tensor_location(name) == host)
        self._lock = threading.RLock()
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

    def context(self, stream: Stream, cached: bool) -> Context:
        """An execution context for all profiles. Raises BackendError where memory does not suffice.

        Args:
            cached: for calls with a cache, which TensorRT-RTX is asked to repeat as CUDA graphs by itself.
        """
        strategies = _own_graphs(self.trt)
        if not cached or strategies is None:
            return Context(self.engine.create_execution_context(), stream, self.where)
        config = self.engine.create_runtime_config()
        config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE
        return Context(self.engine.create_execution_context(config), stream, self.where)

    def step_context(self, stream: Stream) -> Context:
        """An execution context with memory for the profile that it is told, to capture a step of."""
        strategy = self.trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        return Context(self.engine.create_execution_context(strategy), stream, self.where)

    def refused(self, reason: BackendError) -> None:
        """From now on nothing is captured; says so once."""
        with self._lock:
            said, self.captures = not self.captures, False
        if not said:
            logger.warning("%s: runs without CUDA graphs: %s", self.where, reason)


def _own_graphs(trt: Any) -> Any:
    """TensorRT-RTX's strategies of capturing by itself; None with the full TensorRT, which leaves it to its user."""
    return getattr(trt, "CudaGraphStrategy", None)


@dataclass
class _Held:
    """All that a session has on the device; ``caches`` and ``buffers`` by tensor, the latter with their sizes."""

    stream: Stream
    context: Context
    replays: Replays
    caches: list[dict[str, Any]]
    buffers: dict[str, tuple[Any, int]]


def _let_go(device: Device, held: _Held) -> None:
    """Frees it with the device current, for pycuda frees from any thread only then."""
    with device:
        held.replays.close()
        vars(held).clear()


class CachedEngine:
    """An execution context with its buffers and stream; a ``batch`` of 0 is one without a cache."""

    def __init__(self, graph: EngineGraph, batch: int) -> None:
        self._graph, self._device = graph, graph.device
        self._shapes: dict[str, tuple[int, ...]] = {}
        record = graph.record
        with self._device:
            stream = self._device.stream()
            replays = Replays(stream, partial(graph.step_context, stream), graph.refused)
            held = self._held = _Held(stream, graph.context(stream, cached=batch > 0), replays, [], {})
            weakref.finalize(self, _let_go, self._device, held)
            past = {name: tensor for name, tensor in record.inputs.items() if batch and name.startswith("past_")}
            for _ in range(1 if record.in_place else 2):
                cache = {}
                for name, tensor in past.items():
                    self._shapes[name] = (batch, *(int(extent) for extent in tensor.shape[1:]))
                    count = int(np.prod(self._shapes[name])) * np.dtype(tensor.dtype).itemsize
                    cache[name] = self._device.allocate(count)
                    stream.clear(cache[name], count)
                held.caches.append(cache)
            stream.wait()

    def run(self, inputs: Tensors) -> dict[str, npt.NDArray[Any]]:
        """Outputs other than the cache, for inputs other than the cache."""
        graph, held = self._graph, self._held
        arrays = {
            name: np.ascontiguousarray(inputs[name], tensor.dtype)
            for name, tensor in graph.record.inputs.items()
            if name not in self._shapes
        }
        results = self._results(arrays)
        with self._device:
            call = self._call(arrays, results)
            for name, array in arrays.items():
                if name not in graph.on_host:
                    held.stream.upload(held.buffers[name][0], array)
            # Only steps come again and again, each of many small kernels; a prefill's shapes are seldom seen twice.
            step = graph.entry.profiles[call.profile].name == "step"
            if not (step and graph.captures and held.replays.run(call)):
                held.context.bind(call)
                held.context.execute()
            for name, array in results.items():
                held.stream.download(array, held.buffers[name][0])
            held.stream.wait()
        held.caches.reverse()
        return results

    def with_cache(self, batch: int) -> CachedEngine:
        """Another cache of the same engine."""
        return self._graph.with_cache(batch)

    def _results(self, arrays: Tensors) -> dict[str, npt.NDArray[Any]]:
        """Arrays for the outputs other than the cache, of the shapes that the manifest gives them for these inputs."""
        record = self._graph.record
        sizes = {
            extent: size
            for name, array in arrays.items()
            for extent, size in zip(record.inputs[name].shape, array.shape, strict=True)
            if isinstance(extent, str)
        }
        return {
            name: np.empty([sizes[size] if isinstance(size, str) else size for size in tensor.shape], tensor.dtype)
            for name, tensor in record.outputs.items()
            if "past_" + name.removeprefix("present_") not in self._shapes
        }

    def _call(self, arrays: Tensors, results: Tensors) -> Call:
        """What the engine is told, with memory for all of it."""
        on_host, caches = self._graph.on_host, self._held.caches
        shapes = {name: array.shape for name, array in arrays.items()} | self._shapes
        profile = self._profile(shapes)
        memory = {
            name: self._buffer(name, array.nbytes)
            for name, array in (*arrays.items(), *results.items())
            if name not in on_host
        }
        memory |= caches[0]
        memory |= {"present_" + name.removeprefix("past_"): cache for name, cache in caches[-1].items()}
        return Call(
            profile=profile,
            inputs=tuple(shapes.items()),
            outputs=tuple((name, array.shape) for name, array in results.items()),
            addresses=tuple((name, int(place)) for name, place in memory.items()),
            values=tuple((name, arrays[name].tobytes()) for name in on_host),
        )

    def _profile(self, shapes: dict[str, tuple[int, ...]]) -> int:
        """The first profile that takes these shapes."""
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
        return profile

    def _buffer(self, name: str, count: int) -> Any:
        """Device memory for a tensor, kept from call to call and grown where a call needs more."""
        memory, size = self._held.buffers.get(name, (None, -1))
        if size < count:
            memory = self._device.allocate(count)
            self._held.buffers[name] = (memory, count)
        return memory
