"""Steps of the full TensorRT as CUDA graphs: on a stand-in device, which replays what was captured, stale or not."""

from __future__ import annotations

import gc
import importlib
import logging
import shutil
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stand_in_device import VERSION, StandInDevice, stand_in_library
from test_tensorrt_backend import add_engines, edits

from ilat_export.limits import Limits
from ilat_export.precision import convert_bundle
from ilat_runtime import Editor
from ilat_runtime import backends as backends_module
from ilat_runtime.backends import choose, cuda_graph, replay
from ilat_runtime.backends import tensorrt as backend_module
from ilat_runtime.backends.tensorrt import TensorRt
from ilat_runtime.errors import BackendError
from ilat_runtime.manifest import Manifest, load_manifest
from ilat_runtime.segments import UNFILLED

Step = tuple[int, int] | tuple[int, int, bool]
"""Rows of a call, its top_k, and whether it has noise, which does not change the other inputs' shapes."""
ALL = 24
"""Of the tiny bundle's codebook."""


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> StandInDevice:
    return use(monkeypatch, StandInDevice())


def use(monkeypatch: pytest.MonkeyPatch, device: StandInDevice) -> StandInDevice:
    """The full TensorRT on this device."""
    monkeypatch.setattr(backend_module, "library", lambda _flavour: stand_in_library(captures=False))
    made: Any = lambda _threads: TensorRt("tensorrt", lambda: device)
    monkeypatch.setitem(backends_module.BACKENDS, "tensorrt", made)
    return device


@pytest.fixture(scope="module", params=["in-place", "concat"])
def bundle(request: pytest.FixtureRequest, pose_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle, and the one of older operators, whose two caches swap."""
    folder = tmp_path_factory.mktemp("engines") / "b"
    if request.param == "concat":
        convert_bundle(pose_bundle, folder, "fp32", [], older=True)
    else:
        shutil.copytree(pose_bundle, folder)
    add_engines(folder, Limits(batch=2, crop=128, rows=4), flavour="tensorrt")
    return folder


class Both:
    """A session on the stand-in beside one of ONNX Runtime: each call goes to both, and must give the same."""

    def __init__(self, bundle: Path, graph: Any, batch: int = 1) -> None:
        self.manifest = load_manifest(bundle)
        assert self.manifest.codebook_size == ALL
        record = self.manifest.graphs.transformer
        self.batch, self.session = batch, graph.with_cache(batch)
        self.expected = choose("onnxruntime", 1).backend.load(bundle / record.file, record).with_cache(batch)
        self.slots = np.full((batch, self.manifest.cache_capacity), UNFILLED, np.int32)
        self.filled = 0
        self.random = np.random.default_rng(0)

    def step(self, rows: int, top_k: int = 1, noise: bool = True) -> None:
        shape, random = (self.batch, rows), self.random
        if self.filled + rows > self.slots.shape[1]:
            self.slots[:], self.filled = UNFILLED, 0
        self.slots[:, self.filled : self.filled + rows] = 0
        inputs = {
            "tokens": random.integers(0, self.manifest.codebook_size, shape),
            "positions": random.integers(0, self.manifest.sequence.length, shape),
            "query_segment": np.zeros(shape, np.int32),
            "slot_segment": self.slots,
            "write_index": np.full(self.batch, self.filled),
            "top_k": np.array([top_k]),
            "temperature": np.full(self.batch, 1000, np.float32),
            # With this temperature it alone chooses among the likeliest.
            "uniform": random.uniform(0.01, 0.99, (*shape, ALL) if noise else (self.batch, 1, 1)).astype(np.float32),
            "landmarks": random.uniform(0, 1, (*shape, 3)).astype(np.float32),
        }
        self.filled += rows
        found, expected = self.session.run(inputs), self.expected.run(inputs)
        assert found["next_token"].tolist() == expected["next_token"].tolist()
        assert np.array_equal(found["log_probability"], expected["log_probability"])


def loaded(bundle: Path) -> Any:
    manifest = load_manifest(bundle)
    record = manifest.graphs.transformer
    return choose("tensorrt", bundle=(bundle, manifest)).backend.load(bundle / record.file, record)


def swapped(manifest: Manifest) -> int:
    """Calls until the caches are where they were."""
    return 1 if manifest.graphs.transformer.in_place else 2


def test_editing_with_replayed_steps(bundle: Path, device: StandInDevice) -> None:
    """Breaks when a graph is launched for another call than it was captured from, or steps are not captured."""
    editor = Editor(bundle, "tensorrt")
    assert editor.backend == f"tensorrt {VERSION} (stand-in, no GPU)"
    for found, expected in zip(edits(editor), edits(Editor(bundle, "onnxruntime", threads=1)), strict=True):
        assert found.tokens.tolist() == expected.tokens.tolist()
        assert np.array_equal(found.image, expected.image)
    graphs = editor._pipeline
    steps = [index for context in graphs.transformer.engine.contexts for index in context.executions].count(0)
    assert device.launched > 2 * steps, "most steps are launches"
    assert all(len(graph.engine.contexts) == 1 for graph in (graphs.encoder, graphs.decoder)), "never captured"
    del graphs
    del editor
    gc.collect()
    assert device.graphs
    assert all(graph.destroyed for graph in device.graphs)
    assert device.current == 0


def test_a_step_that_comes_again_is_replayed(bundle: Path, device: StandInDevice) -> None:
    both = Both(bundle, loaded(bundle))
    swap = swapped(both.manifest)
    for _ in range(2 * swap):
        both.step(1)
    assert (len(device.graphs), device.launched) == (swap, 0), "the second time it is captured"
    allocated = len(device.arrays)
    for _ in range(6):
        both.step(1)
    assert (len(device.graphs), device.launched) == (swap, 6)
    assert len(device.arrays) == allocated


def test_only_steps_are_captured(bundle: Path, device: StandInDevice) -> None:
    both = Both(bundle, loaded(bundle))
    for _ in range(6):
        both.step(3)
    assert not device.graphs


@pytest.mark.parametrize(
    "steps",
    [
        # Breaks when the key lacks the value of top_k, which a graph repeats: 1 takes the likeliest, ALL any.
        [(1, 1)] * 6 + [(1, ALL)] * 6 + [(1, 1)],
        # Breaks when the key lacks the shapes: the buffers are those of two rows from the beginning.
        [(2, ALL)] + [(1, ALL)] * 6 + [(2, ALL)] * 6 + [(1, ALL)],
        # The same, where the outputs' shapes stay.
        [(1, ALL)] * 6 + [(1, ALL, False)] * 6 + [(1, ALL)],
        # Breaks when the key lacks the addresses: the buffers grow.
        [(1, ALL)] * 6 + [(8, ALL)] + [(1, ALL)] * 6,
    ],
    ids=["top_k", "shapes", "shapes of inputs", "addresses"],
)
def test_a_stale_graph_is_not_replayed(bundle: Path, device: StandInDevice, steps: list[Step]) -> None:
    both = Both(bundle, loaded(bundle))
    for step in steps:
        both.step(*step)
    assert device.launched


@given(
    steps=st.lists(st.sampled_from([(1, 1), (1, ALL), (1, ALL, False), (2, ALL), (5, ALL)]), min_size=10, max_size=40)
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_calls_in_any_order(bundle: Path, device: StandInDevice, steps: list[Step]) -> None:
    """Breaks when any call gets another's graph, or more graphs are kept than the bound."""
    both = Both(bundle, loaded(bundle))
    before = len(device.graphs)
    for step in steps:
        both.step(*step)
        assert sum(not graph.destroyed for graph in device.graphs[before:]) <= replay.KEPT
    del both
    assert all(graph.destroyed for graph in device.graphs)


def test_the_graph_used_longest_ago_goes(bundle: Path, device: StandInDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both(bundle, loaded(bundle))
    swap = swapped(both.manifest)
    monkeypatch.setattr(replay, "KEPT", 2 * swap)
    both.step(2)
    for step in ((1, 1), (1, 2), (1, 1), (1, 3), (1, 1)):
        for _ in range(3 * swap):
            both.step(*step)
    assert [graph.destroyed for graph in device.graphs] == [False] * swap + [True] * swap + [False] * swap


def test_sessions_have_a_stream_and_graphs_of_their_own(bundle: Path, device: StandInDevice) -> None:
    """Two sessions in turn, of different batches, then closed in another thread."""
    graph = loaded(bundle)
    one, two = Both(bundle, graph), Both(bundle, graph, batch=2)
    for step in [(1, ALL)] * 7 + [(2, ALL)]:
        one.step(*step)
        two.step(*step)
    assert device.launched
    assert len({context.stream for context in graph.engine.contexts}) == 2
    swap = swapped(one.manifest)
    for session, count in ((one, swap), (two, 2 * swap)):
        closing = threading.Thread(target=session.__dict__.clear)
        closing.start()
        closing.join()
        assert sum(item.destroyed for item in device.graphs) == count, "those of the other are kept"
    assert device.freed
    assert all(device.freed), "memory is freed while the device is current"


def test_without_cuda_python(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The description says so, and the tokens are the same."""
    monkeypatch.setitem(sys.modules, "cuda", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    reason = cuda_graph.missing()
    assert reason is not None
    assert reason.startswith("cuda-python cannot be imported (")
    device = use(monkeypatch, StandInDevice(without_graphs=reason))
    said = choose("tensorrt").backend.description
    assert said == f"tensorrt {VERSION} (stand-in, no GPU), without CUDA graphs: {reason}"
    both = Both(bundle, loaded(bundle))
    for _ in range(6):
        both.step(1)
    assert not device.graphs
    monkeypatch.setattr(backend_module, "library", lambda _flavour: stand_in_library(captures=True))
    assert "CUDA graphs" not in choose("tensorrt").backend.description, "TensorRT-RTX needs no cuda-python"


@pytest.mark.parametrize("part", ["capture", "memory"])
def test_a_capture_that_fails(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    """It is said once for all sessions of the engine, which run without graphs."""
    device = use(monkeypatch, StandInDevice(refusal="cuStreamEndCapture failed with X" if part == "capture" else ""))
    graph = loaded(bundle)
    reason = "cuStreamEndCapture failed with X"
    if part == "memory":
        create = graph.engine.create_execution_context
        monkeypatch.setattr(graph.engine, "create_execution_context", lambda *given: None if given else create())
        reason = "the GPU's memory does not suffice for it"
    with caplog.at_level(logging.WARNING, "ilat_runtime"):
        for both in (Both(bundle, graph), Both(bundle, graph)):
            for _ in range(6):
                both.step(1, ALL)
    (message,) = caplog.messages
    assert message.startswith(f"{graph.where}: runs without CUDA graphs: ")
    assert message.endswith(reason)
    assert not device.launched
    assert sum(len(context.executions) for context in graph.engine.contexts) == 12, "each call ran once"


class Driver(SimpleNamespace):
    """cuda-python's driver module: what is called, with the arguments it takes; ``failing`` fails."""

    def __init__(self, failing: str = "") -> None:
        success, unsupported = SimpleNamespace(name="CUDA_SUCCESS"), SimpleNamespace(name="CUDA_ERROR_UNSUPPORTED")
        self.calls: list[str] = []

        def function(name: str, count: int, *result: Any) -> Any:
            def call(*arguments: Any) -> Any:
                assert len(arguments) == count
                self.calls.append(name)
                return (unsupported, *(None for _ in result)) if name == failing else (success, *result)

            return call

        super().__init__(
            CUresult=SimpleNamespace(CUDA_SUCCESS=success),
            CUstreamCaptureMode=SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1),
            **{name: function(name, *rest) for name, rest in FUNCTIONS.items()},
        )


FUNCTIONS: dict[str, tuple[int, ...]] = {
    "cuStreamBeginCapture": (2,), "cuStreamEndCapture": (1, 5), "cuGraphInstantiate": (2, 6), "cuGraphLaunch": (2,),
    "cuGraphExecDestroy": (1,), "cuGraphDestroy": (1,),
}  # fmt: skip
"""Arguments of each, and what it gives besides its status."""


def driver(monkeypatch: pytest.MonkeyPatch, failing: str = "") -> Driver:
    made, package, bindings = Driver(failing), ModuleType("cuda"), ModuleType("cuda.bindings")
    bindings.driver = made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", package)
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    return made


def test_the_calls_of_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    made = driver(monkeypatch)
    assert cuda_graph.missing() is None
    graph = cuda_graph.capture(7, lambda: made.calls.append("work"))
    graph.launch()
    graph.destroy()
    assert made.calls == [
        "cuStreamBeginCapture", "work", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphDestroy", "cuGraphLaunch",
        "cuGraphExecDestroy",
    ]  # fmt: skip


@pytest.mark.parametrize("failing", ["work", "cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"])
def test_a_failed_capture_leaves_nothing(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """Breaks when a stream is left capturing, or a graph is not freed."""
    made = driver(monkeypatch, failing)

    def work() -> None:
        if failing == "work":
            raise BackendError("work failed with CUDA_ERROR_UNSUPPORTED")

    with pytest.raises(BackendError, match=f"^{failing} failed with CUDA_ERROR_UNSUPPORTED$"):
        cuda_graph.capture(7, work)
    assert ("cuStreamEndCapture" in made.calls) == (failing != "cuStreamBeginCapture")
    assert ("cuGraphDestroy" in made.calls) == (failing in ("work", "cuGraphInstantiate"))


@pytest.mark.skipif(sys.platform == "darwin", reason="there is no cuda-python for macOS")
def test_the_real_cuda_python_takes_these_calls() -> None:
    """Breaks when cuda-python renames a function or changes its arguments."""
    real = importlib.import_module("cuda.bindings.driver")
    for name, (count, *_) in FUNCTIONS.items():
        first = getattr(real, name).__doc__.partition("\n")[0]
        assert first.startswith(f"{name}("), first
        assert first.count(",") + 1 == count
    assert real.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL.value == 1
    assert real.CUresult.CUDA_SUCCESS.name == "CUDA_SUCCESS"
