"""The TensorRT backend on a stand-in device (no GPU), and what each backend says where it cannot run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from editing import standing
from stand_in_device import ARCHITECTURE, VERSION, StandInDevice, stand_in_library

from ilat_export.engine import shapes
from ilat_export.limits import Limits
from ilat_export.precision import convert_bundle
from ilat_runtime import Editor, engines
from ilat_runtime import backends as backends_module
from ilat_runtime.backends import choose
from ilat_runtime.backends import tensorrt as backend_module
from ilat_runtime.backends.tensorrt import CachedEngine, TensorRt
from ilat_runtime.errors import BackendError
from ilat_runtime.manifest import file_record, load_manifest


def add_engines(
    bundle: Path, limits: Limits, architecture: str = ARCHITECTURE, flavour: engines.Flavour = "tensorrt-rtx"
) -> Path:
    """Stand-in engines beside the graphs, with a true record."""
    manifest = load_manifest(bundle)
    folder = bundle / "engines" / "stand-in"
    folder.mkdir(parents=True)
    entries = {}
    for name, graph in manifest.graphs.by_name.items():
        path = folder / f"{name}.engine"
        path.write_text(f"{bundle}\n{name}")
        entries[name] = engines.Engine(
            file=path.name,
            graph_sha256=manifest.files[graph.file].sha256,
            profiles=shapes(manifest, name, limits),
            **file_record(path).model_dump(),
        )
    engines.write(
        folder,
        engines.Engines(
            flavour=flavour, version=VERSION, targets=(architecture,), precision=manifest.precision.compute,
            engines=entries,
        ),
    )  # fmt: skip
    return folder


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> StandInDevice:
    result = StandInDevice()
    monkeypatch.setattr(backend_module, "library", lambda _flavour: stand_in_library())
    made: Any = lambda _threads: TensorRt("tensorrt-rtx", lambda: result)
    monkeypatch.setitem(backends_module.BACKENDS, "tensorrt-rtx", made)
    return result


@pytest.fixture(params=["in-place", "concat"])
def bundle(request: pytest.FixtureRequest, pose_bundle: Path, tmp_path: Path) -> Path:
    """The tiny bundle, and the one of older operators."""
    folder = tmp_path / "b"
    if request.param == "concat":
        convert_bundle(pose_bundle, folder, "fp32", [], older=True)
    else:
        shutil.copytree(pose_bundle, folder)
    add_engines(folder, Limits(batch=2, crop=128, rows=4))
    return folder


def edits(editor: Editor) -> list[Any]:
    """A batch with noise, and a session with two edits of different masks."""
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    pose = standing(30, 25, 30)
    masks = [np.zeros((50, 60), bool) for _ in range(2)]
    masks[0][10:40, 15:45] = True
    masks[1][20:30, 20:30] = True
    found = editor.edit_batch([image, image], [pose, pose], masks, seed=3, top_k=5)
    with editor.reference(image, pose) as session:
        found += [session.edit(pose, mask) for mask in (*masks, masks[0])]
    return found


def test_editing_on_a_stand_in_device(bundle: Path, device: StandInDevice) -> None:
    """Breaks when a shape, an address, a profile or the cache's place is wrong: every token equals the CPU's."""
    editor = Editor(bundle, "tensorrt-rtx")
    assert editor.backend == f"tensorrt-rtx {VERSION} (stand-in, no GPU)"
    for found, expected in zip(edits(editor), edits(Editor(bundle, "onnxruntime", threads=1)), strict=True):
        assert found.tokens.tolist() == expected.tokens.tolist()
        assert np.array_equal(found.image, expected.image)
    assert device.current == 0


def test_a_step_copies_the_small_things_only(bundle: Path, device: StandInDevice) -> None:
    """Breaks when the cache is copied, or when memory is allocated anew for each step."""
    manifest = load_manifest(bundle)
    backend = choose("tensorrt-rtx", bundle=(bundle, manifest)).backend
    graph = backend.load(bundle / manifest.graphs.transformer.file, manifest.graphs.transformer).with_cache(1)
    slots = np.zeros((1, manifest.cache_capacity), np.int32)
    step = {
        "tokens": np.zeros((1, 1), np.int64), "positions": np.zeros((1, 1), np.int64),
        "query_segment": np.zeros((1, 1), np.int32), "slot_segment": slots, "write_index": np.zeros(1, np.int64),
        "top_k": np.ones(1, np.int64), "temperature": np.ones(1, np.float32),
        "uniform": np.full((1, 1, 1), 0.5, np.float32), "landmarks": np.zeros((1, 1, 3), np.float32),
    }  # fmt: skip
    graph.run(step)
    allocated = len(device.arrays)
    device.uploaded.clear()
    device.downloaded.clear()
    graph.run(step)
    assert len(device.arrays) == allocated
    assert sum(device.downloaded) == 8 + 4, "a token and its log-probability"
    assert sum(device.uploaded) == sum(array.nbytes for name, array in step.items() if name != "top_k")


@pytest.mark.parametrize("captures", [True, False])
def test_steps_are_captured_where_the_library_does_it(
    pose_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, captures: bool
) -> None:
    """A stand-in shows what is asked for, not that a captured step runs: the transformer with a cache, nothing else."""
    monkeypatch.setattr(backend_module, "library", lambda _flavour: stand_in_library(captures))
    bundle = tmp_path / "b"
    shutil.copytree(pose_bundle, bundle)
    add_engines(bundle, Limits(batch=2, crop=128, rows=4))
    manifest = load_manifest(bundle)
    backend = TensorRt("tensorrt-rtx", StandInDevice).for_bundle(bundle, manifest)
    record = manifest.graphs.transformer
    graph = backend.load(bundle / record.file, record)
    graph.with_cache(1)
    CachedEngine(graph, 0)
    assert [context.captured for context in graph.engine.contexts] == [captures, False]


def test_the_real_library_takes_what_is_asked_for() -> None:
    """Breaks when TensorRT-RTX renames what the stand-in has."""
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra 'rtx'")
    assert trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE != trt.CudaGraphStrategy.DISABLED
    assert isinstance(trt.IRuntimeConfig.cuda_graph_strategy, property)
    assert callable(trt.ICudaEngine.create_runtime_config)


def test_larger_than_the_engines(bundle: Path, device: StandInDevice) -> None:
    image = np.zeros((200, 200, 3), np.uint8)
    mask = np.ones((200, 200), bool)
    editor = Editor(bundle, "tensorrt-rtx")
    message = r"encoder.engine: takes image up to \[2, 128, 128, 3\], this call has \[1, 260, 260, 3\]; .*--max-crop"
    with pytest.raises(BackendError, match=message.replace("260", r"\d+")):
        editor.edit(image, standing(100, 100, 100), mask)


def test_engines_that_do_not_fit(pose_bundle: Path, tmp_path: Path, device: StandInDevice) -> None:
    """An explicit backend is an error, auto goes on and says why."""
    bundle = tmp_path / "b"
    shutil.copytree(pose_bundle, bundle)
    with pytest.raises(BackendError, match=r"holds no engines of it; build them with `ilat-export .* 86 --out"):
        Editor(bundle, "tensorrt-rtx")
    folder = add_engines(bundle, Limits(), "sm89")
    with pytest.raises(BackendError, match="built for sm89, this GPU is sm86"):
        Editor(bundle, "tensorrt-rtx")
    editor = Editor(bundle)
    assert editor.backend.startswith("onnxruntime ")
    assert "built for sm89, this GPU is sm86" in editor.backend_reason
    shutil.rmtree(folder)
    folder = add_engines(bundle, Limits())
    assert Editor(bundle).backend.startswith("tensorrt-rtx ")
    (folder / "encoder.engine").write_text(f"{bundle}\nunloadable")
    with pytest.raises(Exception, match=r"encoder.engine: has \d+ bytes, expected"):
        Editor(bundle, "tensorrt-rtx")


def test_a_bundle_of_a_precision_without_engines(pose_bundle: Path, tmp_path: Path, device: StandInDevice) -> None:
    """Breaks when the hint is a command that must fail."""
    bundle = tmp_path / "b"
    convert_bundle(pose_bundle, bundle, "int8", [])
    with pytest.raises(BackendError, match=r"precision.weights: int8 is for ONNX Runtime on CPUs .* --fp16") as error:
        Editor(bundle, "tensorrt-rtx")
    assert "\n" not in str(error.value)
    editor = Editor(bundle)
    assert editor.backend.startswith("onnxruntime ")
    assert "int8 is for ONNX Runtime on CPUs" in editor.backend_reason


def test_what_is_missing(pose_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each backend that cannot run says in one line what is missing and how to get it."""
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    for name, hint in (
        ("tensorrt", r"tensorrt: cannot be imported .* pip install 'ilat\[tensorrt\]'"),
        ("tensorrt-rtx", r"tensorrt-rtx: cannot be imported .* pip install 'ilat\[rtx\]'"),
    ):
        with pytest.raises(BackendError, match=hint) as error:
            Editor(pose_bundle, name)
        assert "\n" not in str(error.value)
    monkeypatch.setattr(backend_module, "library", lambda _flavour: stand_in_library())
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(BackendError, match=r"pycuda cannot be imported .*; pip install 'ilat\[cuda\]'"):
        Editor(pose_bundle, "tensorrt-rtx")


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider'")
def test_onnxruntime_without_cuda(pose_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendError, match=r"is a build without CUDA; .* pip install onnxruntime-gpu"):
        Editor(pose_bundle, "onnxruntime-cuda")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(BackendError, match="the CUDA provider does not start here; it needs a GPU"):
        Editor(pose_bundle, "onnxruntime-cuda")
