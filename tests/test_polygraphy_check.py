"""``ilat-export --verify`` with the real Polygraphy; engines run on a stand-in device (no GPU)."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from test_tensorrt_backend import add_engines, device

from ilat_export import polygraphy_check
from ilat_export.cli import main
from ilat_export.limits import Limits
from ilat_export.polygraphy_check import Linted, check_bundle, lint
from ilat_export.real_inputs import photograph
from ilat_runtime.manifest import file_record, load_manifest, write_manifest

__all__ = ["device"]

GRAPHS = {"encoder", "transformer", "decoder"}
LAYERS = 2
"""Of the tiny transformer."""
CLEAN = Linted(opset=24, nodes=1, passed=1, errors=[], warnings=[], inspection="")


@pytest.fixture
def unlinted(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what else is checked: linting takes seconds."""
    monkeypatch.setattr(polygraphy_check, "lint", lambda *_: CLEAN)


@pytest.fixture
def with_engines(pose_bundle: Path, tmp_path: Path) -> Path:
    """The tiny bundle with stand-in engines."""
    bundle = tmp_path / "b"
    shutil.copytree(pose_bundle, bundle)
    add_engines(bundle, Limits(batch=1, crop=1024, rows=4))
    return bundle


def verify(capsys: pytest.CaptureFixture[str], bundle: Path, *flags: str) -> tuple[int, str, list[str]]:
    """Exit code, what was printed, and the lines on stderr."""
    capsys.readouterr()
    code = main([str(bundle), "--verify", *flags])
    out, err = capsys.readouterr()
    return code, out, err.splitlines()


def test_a_bundle_without_engines(pose_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when a node of a graph does not run on its own inputs, or when it is not said what was not done."""
    code, out, notes = verify(capsys, pose_bundle)
    assert code == 0
    assert notes == ["ilat-export: checked with an edit of a photograph (scikit-image's astronaut)"]
    rows = {words[0]: words[1:] for line in out.splitlines() if (words := line.split()) and words[0] in GRAPHS}
    for name in GRAPHS:
        nodes = str(len(onnx.load(pose_bundle / f"{name}.onnx").graph.node))
        assert rows[name] == ["24", nodes, nodes, "0", "0"], "all nodes ran, no errors and no warnings"
    assert f"{pose_bundle}: holds no engines, so its graphs only were checked; --engine builds some" in out
    assert f"{pose_bundle}: nothing wrong, Polygraphy" in out


def small(path: Path, width: int) -> Path:
    """A product with a (4, 5) matrix, and what reads it."""
    weight = onnx.numpy_helper.from_array(np.ones((4, 5), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product"), helper.make_node("Neg", ["y"], ["z"], "after")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, width])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 5])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10), path)
    return path


def test_a_faulty_node_is_named(tmp_path: Path) -> None:
    good = lint(small(tmp_path / "good.onnx", 4), {"x": np.ones((2, 4), np.float32)})
    assert (good.nodes, good.passed, good.errors, good.warnings) == (2, 2, [], [])
    assert "z [dtype=float32, shape=(2, 5)]" in good.inspection
    bad = lint(small(tmp_path / "bad.onnx", 3), {"x": np.ones((2, 3), np.float32)})
    assert (bad.nodes, bad.passed) == (2, 0)
    assert len(bad.errors) == 1
    assert bad.errors[0].startswith("product: ")


@pytest.mark.usefixtures("unlinted")
def test_faults_are_problems(pose_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    faulty = replace(CLEAN, errors=["node_7: wrong shape"])
    monkeypatch.setattr(polygraphy_check, "lint", lambda path, _: faulty if path.name == "decoder.onnx" else CLEAN)
    code, out, notes = verify(capsys, pose_bundle, "--quiet")
    assert (code, out, notes) == (1, "", ["ilat-export: error: decoder.onnx: node_7: wrong shape"])


@pytest.mark.usefixtures("unlinted")
def test_engines_that_do_not_run_here(with_engines: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when it is not said that nothing was compared, or the real library no longer makes the cache in place."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra 'rtx'")
    code, out, _ = verify(capsys, with_engines, "--json")
    (found,) = json.loads(out)["engines"]
    assert code == 0
    assert found["reason"], "no GPU, or one of which the library's version is another"
    assert found["compared"] == {}
    assert set(found["parsed"]) == GRAPHS
    assert found["parsed"]["transformer"]["cache_layers"] == 2 * LAYERS
    assert found["parsed"]["transformer"]["attentions"] == LAYERS
    code, out, _ = verify(capsys, with_engines)
    assert f"{with_engines / 'engines/stand-in'}: not run beside ONNX Runtime: {found['reason']}" in out


@pytest.mark.usefixtures("unlinted", "device")
def test_engines_on_a_stand_in_device(with_engines: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when an engine gets other calls than ONNX Runtime, or its cache is not carried from call to call."""
    code, out, _ = verify(capsys, with_engines, "--json")
    (found,) = json.loads(out)["engines"]
    assert (code, found["reason"], found["parsed"]) == (0, None, {})
    parts = found["compared"]
    assert parts["encoder"] == {"calls": 2, "equal_tokens": 1, "largest_error": 0, "psnr": None}
    assert parts["decoder"] == {"calls": 1, "equal_tokens": None, "largest_error": None, "psnr": None}
    assert parts["transformer"].pop("calls") > 4, "prefills and steps"
    assert parts["transformer"] == {"equal_tokens": 1, "largest_error": 0, "psnr": None}
    code, out, _ = verify(capsys, with_engines)
    assert "engine against ONNX Runtime" in out
    assert "identical" in out


@pytest.mark.usefixtures("unlinted", "device")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("encoder", "encoder.engine: share of tokens equal to ONNX Runtime's is "),
        ("transformer", "transformer.engine: share of tokens equal to ONNX Runtime's is "),
        ("decoder", "decoder.engine: PSNR to ONNX Runtime's is "),
    ],
)
def test_an_engine_that_computes_something_else(
    with_engines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    """Breaks when a comparison passes whatever is compared."""
    other = tmp_path / "other"
    shutil.copytree(with_engines, other)
    model = onnx.load(other / f"{name}.onnx")
    for weight in model.graph.initializer:
        array = onnx.numpy_helper.to_array(weight)
        if array.dtype.kind == "f" and array.ndim > 1:
            weight.CopyFrom(onnx.numpy_helper.from_array(array[::-1].copy(), weight.name))
    onnx.save(model, other / f"{name}.onnx")
    manifest = load_manifest(other)
    files = manifest.files | {f"{name}.onnx": file_record(other / f"{name}.onnx")}
    write_manifest(other, manifest.model_copy(update={"files": files}))
    folder = with_engines / "engines/stand-in"
    (folder / f"{name}.engine").write_text(f"{other}\n{name}")
    record = json.loads((folder / "engines.json").read_text())
    record["engines"][name].update(file_record(folder / f"{name}.engine").model_dump())
    (folder / "engines.json").write_text(json.dumps(record))
    code, _, notes = verify(capsys, with_engines, "--quiet")
    assert code == 1
    assert len(notes) == 1
    assert message in notes[0]
    assert "the floor is" in notes[0]


@pytest.mark.usefixtures("unlinted", "device")
def test_unsound_engines(with_engines: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A truncated file and an engine of another graph: a line each, and none is run."""
    folder = with_engines / "engines/stand-in"
    (folder / "encoder.engine").write_bytes((folder / "encoder.engine").read_bytes()[:9])
    record = json.loads((folder / "engines.json").read_text())
    record["engines"]["decoder"]["graph_sha256"] = "0" * 64
    (folder / "engines.json").write_text(json.dumps(record))
    code, out, notes = verify(capsys, with_engines)
    assert code == 1
    assert "not run beside ONNX Runtime: they are not sound" in out
    assert [line for line in notes if "error" in line] == [
        f"ilat-export: error: {folder}: the engine of decoder was built from another decoder.onnx",
        f"ilat-export: error: {folder / 'encoder.engine'}: has 9 bytes, expected "
        f"{record['engines']['encoder']['bytes']}; build it again with --engine and --force",
    ]
    assert f"{with_engines}: 2 problems" in out


@pytest.mark.usefixtures("unlinted", "device")
def test_engines_of_another_gpu(with_engines: Path) -> None:
    """They are neither wrong nor run, and those beside them that fit are."""
    shutil.copytree(with_engines / "engines/stand-in", with_engines / "engines/other")
    record = json.loads((with_engines / "engines/other/engines.json").read_text())
    record["targets"] = ["sm75"]
    (with_engines / "engines/other/engines.json").write_text(json.dumps(record))
    found = check_bundle(with_engines, photograph(1.3, 0.1, 32, True)[0])
    assert found.problems == []
    assert [item.reason for item in found.engines] == ["built for sm75, this GPU is sm86", None]


@pytest.mark.usefixtures("unlinted")
def test_after_a_conversion(pose_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is made is what is verified, in the same report."""
    out = tmp_path / "older"
    assert main([str(pose_bundle), "--kv-cache", "concat", "--out", str(out), "--verify", "--json", "--quiet"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["precision"] == "fp32"
    assert data["verify"]["bundle"] == str(out)
    assert set(data["verify"]["graphs"]) == GRAPHS


@pytest.mark.parametrize("package", ["polygraphy", "onnx_graphsurgeon"])
def test_polygraphy_is_missing(pose_bundle: Path, capsys: Any, monkeypatch: Any, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    code, out, notes = verify(capsys, pose_bundle)
    assert (code, out, len(notes)) == (1, "", 1)
    assert notes[0].startswith(f"ilat-export: error: --verify: {package} cannot be imported (")
    assert notes[0].endswith("); pip install 'ilat[export]'")


def test_wrong_use(pose_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, notes = verify(capsys, pose_bundle, "--out", str(tmp_path / "b"))
    assert (code, len(notes)) == (2, 1)
    assert "--out: --verify alone writes nothing" in notes[0]
    for command in ([str(pose_bundle), "--fp16"], ["run"], ["run", "--verify"]):
        assert main(command) == 2
        assert "--out: missing, the folder of the bundle to write" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
