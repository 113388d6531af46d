"""ONNX Runtime on the CPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BackendError, BundleError
from ..manifest import IN_PLACE_OPSET, Manifest, Tensor
from ..manifest import Graph as GraphRecord
from . import Tensors

try:
    import onnxruntime
except ImportError as error:  # broken installations fail here too, with the reason in the message
    raise BackendError(f"backend: onnxruntime cannot be imported ({error}); pip install onnxruntime") from None

_TYPES = {
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
}
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_SILENT = 4  # errors come as exceptions; the log would say them twice
_LEAST = (1, 25)
"""The first release with the in-place cache."""


class OnnxRuntime:
    """The backends ``onnxruntime``, CPU, any platform that has the package, and ``onnxruntime-cuda``.

    Raises:
        BackendError: ``cuda`` is asked for and the installed package has no CUDA provider.
    """

    def __init__(self, threads: int | None = None, cuda: bool = False) -> None:
        self.name, self.device = ("onnxruntime-cuda", "cuda") if cuda else ("onnxruntime", "cpu")
        self.description = f"onnxruntime {onnxruntime.__version__} ({'CUDA' if cuda else 'CPU'})"
        if cuda and _CUDA not in onnxruntime.get_available_providers():
            raise BackendError(
                f"backend: onnxruntime-cuda: this onnxruntime {onnxruntime.__version__} is a build without CUDA; "
                "pip uninstall onnxruntime, then pip install onnxruntime-gpu; it needs an NVIDIA driver and CUDA"
            )
        self._options = onnxruntime.SessionOptions()
        self._options.log_severity_level = _SILENT
        # Threads that wait by spinning take the time of others: with two threads on two busy cores a step of the
        # decoding took 11 ms with, 7 ms without.
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if threads is not None:
            self._options.intra_op_num_threads = threads

    def for_bundle(self, _bundle: Path, _manifest: Manifest) -> OnnxRuntime:
        """Itself: it needs nothing but the graphs."""
        return self

    def load(self, path: Path, record: GraphRecord) -> OnnxGraph:
        """Load a graph and check it against the manifest's record.

        Raises:
            BundleError: naming the file.
            BackendError: the package is too old for the graph.
        """
        found = onnxruntime.__version__
        if record.in_place and tuple(int(part) for part in found.split(".")[:2]) < _LEAST:
            raise BackendError(
                f"backend: onnxruntime {found} is too old, the in-place cache (opset {IN_PLACE_OPSET}) needs "
                f"{_LEAST[0]}.{_LEAST[1]} or newer, which needs Python 3.11 or newer; it runs the bundles that "
                "`ilat-export BUNDLE --kv-cache concat` writes"
            )
        try:
            providers = [_CPU] if self.device == "cpu" else [_CUDA, _CPU]
            session = onnxruntime.InferenceSession(path, self._options, providers=providers)
        except Exception as error:  # the package's errors have no common base class
            raise BundleError(f"{path}: {self.description} cannot load the graph: {_one_line(error)}") from None
        if session.get_providers()[0] != providers[0]:
            # Where CUDA's libraries cannot be loaded, the package runs on the CPU and says so in its log only.
            raise BackendError(
                f"backend: {self.name}: the CUDA provider does not start here; it needs a GPU, its driver, and the "
                "CUDA and cuDNN libraries that this onnxruntime-gpu was built for"
            )
        for kind, nodes, tensors in (
            ("input", session.get_inputs(), record.inputs),
            ("output", session.get_outputs(), record.outputs),
        ):
            problem = _difference({node.name: node for node in nodes}, tensors)
            if problem:
                raise BundleError(f"{path}: {kind} {problem}")
        return OnnxGraph(path, session, record, self.device)


class OnnxGraph:
    """A graph in a session of ONNX Runtime."""

    def __init__(
        self, path: Path, session: onnxruntime.InferenceSession, record: GraphRecord, device: str = "cpu"
    ) -> None:
        self.path, self.session, self.record, self.device = path, session, record, device

    def run(self, inputs: Tensors) -> dict[str, npt.NDArray[Any]]:
        """Outputs by name; see :class:`ilat_runtime.backends.Graph`."""
        names = list(self.record.outputs)
        try:
            return dict(zip(names, self.session.run(names, dict(inputs)), strict=True))
        except Exception as error:
            raise BundleError(f"{self.path}: the graph failed: {_one_line(error)}") from None

    def with_cache(self, batch: int) -> CachedGraph:
        """The graph with its cache bound in place; see :class:`ilat_runtime.backends.Graph`."""
        return CachedGraph(self, batch)


class CachedGraph:
    """A graph whose ``past_X`` and ``present_X`` are the same memory: appending to the cache copies nothing.

    A graph of an older opset writes the cache anew; then the two are different memory and change places in each call.
    """

    def __init__(self, graph: OnnxGraph, batch: int) -> None:
        self._graph, self._batch = graph, batch
        self._binding = graph.session.io_binding()
        # Bound by address: older releases of the package do not keep the arrays alive.
        self._arrays: list[npt.NDArray[Any]] = []
        self._caches: list[dict[str, Any]] = []
        for _ in range(1 if graph.record.in_place else 2):
            cache = {}
            for name, tensor in graph.record.inputs.items():
                if name.startswith("past_"):
                    shape = [batch, *(int(extent) for extent in tensor.shape[1:])]
                    self._arrays.append(np.zeros(shape, tensor.dtype))
                    cache[name] = onnxruntime.OrtValue.ortvalue_from_numpy(self._arrays[-1], graph.device, 0)
            self._caches.append(cache)
        self._bind_cache()
        self._cached = sum(name.startswith("present_") for name in graph.record.outputs)
        self._results = [name for name in graph.record.outputs if not name.startswith("present_")]

    def run(self, inputs: Tensors) -> dict[str, npt.NDArray[Any]]:
        """Outputs other than the cache, for inputs other than the cache."""
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        try:
            for name, array in arrays.items():
                self._binding.bind_cpu_input(name, array)
            for name in self._results:
                # Bound again each time: its shape differs from call to call, and a stale one is written past its end.
                self._binding.bind_output(name, "cpu")
            self._graph.session.run_with_iobinding(self._binding)
            # In the order in which they were bound first: the cache's, then these.
            values = self._binding.get_outputs()[self._cached :]
            if len(self._caches) > 1:
                self._caches.reverse()
                self._bind_cache()
        except Exception as error:
            raise BundleError(f"{self._graph.path}: the graph failed: {_one_line(error)}") from None
        return {name: value.numpy() for name, value in zip(self._results, values, strict=True)}

    def _bind_cache(self) -> None:
        for name in self._caches[0]:
            self._binding.bind_ortvalue_input(name, self._caches[0][name])
            self._binding.bind_ortvalue_output("present_" + name.removeprefix("past_"), self._caches[-1][name])

    def with_cache(self, batch: int) -> CachedGraph:
        """Another cache of the same graph."""
        return self._graph.with_cache(batch)


def _difference(nodes: dict[str, Any], tensors: dict[str, Tensor]) -> str | None:
    """What of a session's inputs or outputs contradicts the manifest; None when nothing does."""
    for name in sorted(nodes.keys() ^ tensors.keys()):
        return f"{name} is in the {'graph' if name in nodes else 'manifest'} only"
    for name, node in nodes.items():
        dtype, tensor = _TYPES.get(node.type, node.type), tensors[name]
        found = list(node.shape)
        # ONNX Runtime gives a dimension without a number as its name or None; an output's may be inferred less exactly.
        same = len(found) == len(tensor.shape) and all(
            a == b or not isinstance(a, int) for a, b in zip(found, tensor.shape, strict=True)
        )
        if dtype != tensor.dtype or not same:
            return f"{name} is {dtype} {found} in the graph, {tensor.dtype} {list(tensor.shape)} in the manifest"
    return None


def _one_line(error: Exception) -> str:
    """The message without the package's own prefix, as the library itself gives it."""
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", " ".join(str(error).split()))[:300]
