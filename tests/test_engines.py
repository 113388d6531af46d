"""Engines by the real TensorRT-RTX, without a GPU, and which of them are loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from exporting import said
from test_precision import samples

from ilat_export.cli import main
from ilat_export.engine import EngineError, parse, shapes
from ilat_export.half import to_half
from ilat_export.limits import Limits
from ilat_export.older_ops import older_ops
from ilat_export.precision import convert_bundle
from ilat_runtime import engines
from ilat_runtime.engines import Wanted, choose_profile, find
from ilat_runtime.errors import BackendError, BundleError
from ilat_runtime.manifest import Manifest, load_manifest

trt = pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra 'rtx'")
LAYERS = 2
"""Of the tiny transformer."""


@pytest.fixture(scope="module")
def half(pose_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines") / "half"
    convert_bundle(pose_bundle, folder, "fp16", samples(pose_bundle, 1))
    return folder


Build = tuple[Path, dict[str, Any]]


def files(folder: Path) -> list[Path]:
    """All that lies in it, temporary files too."""
    return sorted(folder.rglob("*"))


def failing(*_: object) -> None:
    raise EngineError("encoder.onnx: not built")


@pytest.fixture(scope="module")
def built(half: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A bundle with engines for two GPUs that are not here, and what the command said."""
    out = tmp_path_factory.mktemp("built") / "b"
    command = [str(half), "--engine", "tensorrt-rtx", "--compute-capability", "120", "86", "--out", str(out)]
    answers = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ilat_export.cli.emit", lambda _args, text, data: answers.append((text, data)))
        assert main([*command, "--quiet"]) == 0
    (text, data) = answers[0]
    return out, data | {"text": text}


def test_build(built: Build, half: Path) -> None:
    """Breaks when the cache is no longer updated in place or attention not fused, or when the record is not the key."""
    bundle, said = built
    manifest = load_manifest(bundle)
    folder = bundle / "engines" / f"tensorrt-rtx-{trt.__version__}-sm86-sm120"
    assert said["engines"] == str(folder)
    record = engines.read(folder / "engines.json")
    assert (record.flavour, record.version, record.precision) == ("tensorrt-rtx", trt.__version__, "float16")
    assert record.targets == ("sm86", "sm120")
    graphs = manifest.graphs.by_name
    assert set(record.engines) == set(graphs) == set(said["graphs"])
    for name, engine in record.engines.items():
        assert (folder / engine.file).stat().st_size == engine.bytes == said["graphs"][name]["bytes"] > 10_000
        assert engine.graph_sha256 == manifest.files[graphs[name].file].sha256
        assert said["graphs"][name]["device_bytes"] is None, "there is no GPU that could say"
    transformer = said["graphs"]["transformer"]
    assert (transformer["cache_layers"], transformer["attentions"]) == (2 * LAYERS, LAYERS)
    assert [profile.name for profile in record.engines["transformer"].profiles] == ["step", "verification", "prefill"]
    assert said["cache_bytes"] == 2 * LAYERS * 2 * manifest.cache_capacity * 16 * 2
    assert "cache updates" in said["text"]
    assert said["next"].endswith("--out edited.png --backend tensorrt-rtx")
    assert not (half / "engines").exists(), "another --out leaves the source as it is"


@pytest.mark.parametrize("architecture", ["sm86", "sm120"])
def test_what_fits_is_found(built: Build, architecture: str) -> None:
    bundle, said = built
    wanted = Wanted("tensorrt-rtx", trt.__version__, architecture)
    folder, record = find(bundle, load_manifest(bundle), wanted)
    assert str(folder) == said["engines"]
    assert record.engines["encoder"].file == "encoder.engine"


Change = Callable[[Path, dict[str, Any]], None]


def record_of(change: Callable[[dict[str, Any]], None]) -> Change:
    def changed(folder: Path, record: dict[str, Any]) -> None:
        change(record)
        (folder / "engines.json").write_text(json.dumps(record))

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (record_of(lambda r: r.update(targets=["sm89"])), "built for sm89, this GPU is sm86"),
        (record_of(lambda r: r.update(version="1.6.0.1")), "built with tensorrt-rtx 1.6.0.1, installed is 1.7"),
        (record_of(lambda r: r.update(precision="float32")), "built in float32, the bundle computes in float16"),
        (
            record_of(lambda r: r["engines"]["decoder"].update(graph_sha256="0" * 64)),
            "the engine of decoder was built from another decoder.onnx",
        ),
        (record_of(lambda r: r["engines"].pop("encoder")), "there is no engine of the graph encoder"),
        (
            record_of(lambda r: r["engines"]["encoder"]["profiles"][0]["inputs"].pop("mask")),
            "the shapes of encoder's engine are those of other inputs",
        ),
        (lambda folder, _: shutil.rmtree(folder), "holds no engines of it"),
    ],
)
def test_a_stale_engine_is_not_loaded(built: Build, tmp_path: Path, change: Change, message: str) -> None:
    """Each part of the key: the message names it and the command that builds what is wanted."""
    bundle, folder = copied(built, tmp_path)
    change(folder, json.loads((folder / "engines.json").read_text()))
    with pytest.raises(BackendError) as error:
        find(bundle, load_manifest(bundle), Wanted("tensorrt-rtx", trt.__version__, "sm86"))
    assert message in str(error.value)
    rebuild = f"ilat-export {bundle} --engine tensorrt-rtx --compute-capability 86 --out {bundle} --force"
    assert f"build them with `{rebuild}`" in str(error.value)
    assert "\n" not in str(error.value)


def copied(built: Build, tmp_path: Path) -> tuple[Path, Path]:
    bundle = tmp_path / "b"
    shutil.copytree(built[0], bundle)
    return bundle, bundle / "engines" / Path(built[1]["engines"]).name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "encoder.engine").write_bytes((f / "encoder.engine").read_bytes()[:999]), "has 999 bytes"),
        (lambda f: flip(f / "transformer.engine"), "transformer.engine: its contents have changed"),
        (lambda f: (f / "decoder.engine").unlink(), "decoder.engine: cannot be read"),
        (lambda f: (f / "engines.json").write_text("{"), "engines.json: cannot be read"),
        (lambda f: (f / "engines.json").write_text("[]"), "engines.json: format: not a record of engines"),
        (lambda f: rewrite(f, extra=1), "engines.json: extra: unknown key"),
        (lambda f: rewrite(f, flavour="tensorrt-max"), "engines.json: flavour: "),
    ],
)
def test_damaged_engines(built: Build, tmp_path: Path, change: Callable[[Path], None], message: str) -> None:
    bundle, folder = copied(built, tmp_path)
    change(folder)
    with pytest.raises(BundleError) as error:
        find(bundle, load_manifest(bundle), Wanted("tensorrt-rtx", trt.__version__, "sm86"))
    assert message in str(error.value)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)


def rewrite(folder: Path, **values: object) -> None:
    path = folder / "engines.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_portable_engines(built: Build) -> None:
    """Without targets: any GPU from Ampere on, of TensorRT-RTX only."""
    bundle, said = built
    manifest = load_manifest(bundle)
    record = engines.read(Path(said["engines"]) / "engines.json").model_copy(update={"targets": ()})
    wanted = [Wanted("tensorrt-rtx", trt.__version__, name) for name in ("sm80", "sm90", "sm75")]
    found = [engines.difference(record, manifest, item) for item in wanted]
    assert found == [None, None, "built for GPUs from sm80 on, this GPU is sm75"]
    assert engines.folder_name("tensorrt-rtx", "1.7", ()) == "tensorrt-rtx-1.7-portable"


def test_profiles(half: Path) -> None:
    """Every call that decoding makes has a profile, the smallest that takes it first among step and verification."""
    manifest = load_manifest(half)
    graph = manifest.graphs.transformer
    engine = engines.Engine(
        file="t.engine", sha256="0" * 64, bytes=1, graph_sha256="0" * 64,
        profiles=shapes(manifest, "transformer", Limits(batch=2, rows=8)),
    )  # fmt: skip

    def profile(batch: int, rows: int, noise: bool = False) -> str | None:
        sizes = {"B": batch, "q": rows, "u": rows if noise else 1, "v": manifest.codebook_size if noise else 1}
        found = choose_profile(
            engine,
            {
                name: tuple(sizes[e] if isinstance(e, str) else e for e in tensor.shape)
                for name, tensor in graph.inputs.items()
                if name != "top_k"
            },
        )
        return None if found is None else engine.profiles[found].name

    assert [profile(1, 1), profile(2, 2, True), profile(1, 5), profile(2, 8)] == [
        "step", "step", "verification", "verification",
    ]  # fmt: skip
    assert profile(2, manifest.cache_capacity, True) == "prefill"
    assert profile(3, 1) is None
    assert profile(1, manifest.cache_capacity + 1) is None


@pytest.mark.parametrize("name", ["encoder", "transformer", "decoder"])
def test_older_operators_are_parsed(pose_bundle: Path, tmp_path: Path, name: str) -> None:
    """Breaks when a graph for JetPack 6.2 uses what TensorRT's parser does not know."""
    model = older_ops(onnx.load(pose_bundle / f"{name}.onnx"))
    for number, graph in enumerate((model, to_half(model))):
        path = tmp_path / f"{number}.onnx"
        onnx.save(graph, path)
        _, network = parse(trt, path, trt.Logger(trt.Logger.ERROR))
        kinds = {str(network.get_layer(index).type) for index in range(network.num_layers)}
        assert not any("KV_CACHE" in kind or "ATTENTION" in kind for kind in kinds)
        assert "LayerType.MATRIX_MULTIPLY" in kinds


def test_wrong_use(half: Path, built: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "b"
    engine = [half, "--engine", "tensorrt-rtx", "--out", out]
    code, line = said(capsys, *engine, "--compute-capability", 87)
    assert (code, "--compute-capability 87: TensorRT-RTX" in line) == (1, True)
    assert line.endswith("builds for 75, 80, 86, 89, 120, 121")
    code, line = said(capsys, *engine, "--max-batch", 0)
    assert (code, "--max-batch: 0, expected a number from 1" in line) == (2, True)
    code, line = said(capsys, half, "--max-crop", 100, "--fp16", "--out", out)
    assert (code, "--max-crop: only with --engine" in line) == (2, True)
    code, line = said(capsys, half, "--int8", "--engine", "tensorrt-rtx", "--out", out)
    assert (code, "--int8: for ONNX Runtime on CPUs" in line) == (2, True)
    code, line = said(capsys, half, "--engine", "tensorrtx", "--out", out)
    assert (code, "invalid choice" in line) == (2, True)
    bundle, text = built
    command = [bundle, "--engine", "tensorrt-rtx", "--compute-capability", 86, 120, "--out", bundle]
    code, line = said(capsys, *command)
    assert (code, f"{text['engines']}: exists already; replace these engines with --force" in line) == (1, True)
    assert not out.exists()
    code, line = said(capsys, half, "--engine", "tensorrt", "--out", out)
    assert (code, out.exists()) == (1, False)
    assert "tensorrt: cannot be imported" in line
    assert "install JetPack's TensorRT on a Jetson, elsewhere: pip install 'ilat[tensorrt]'" in line


def test_engines_of_quantized_bundles(pose_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MatMulNBits is ONNX Runtime's own operator."""
    bundle = tmp_path / "int8"
    convert_bundle(pose_bundle, bundle, "int8", [])
    before = files(bundle)
    for out in ([], ["--out", bundle], ["--out", tmp_path / "new"]):
        code, line = said(capsys, bundle, "--engine", "tensorrt-rtx", *out)
        assert (code, "precision.weights: int8 is for ONNX Runtime on CPUs" in line) == (1, True)
    assert files(tmp_path) == [bundle, *before]


def test_engines_of_the_bundle_itself(half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when engines need --out, or when a failed build replaces a bundle by a copy without engines."""
    bundle, other = tmp_path / "b", tmp_path / "other"
    for folder in (bundle, other):
        shutil.copytree(half, folder)
    (other / "mark").touch()
    before = files(other)
    command = [str(bundle), "--engine", "tensorrt-rtx", "--quiet", "--max-batch", "1", "--max-crop", "128"]
    with monkeypatch.context() as patch:
        patch.setattr("ilat_export.engine._build", failing)
        assert main([*command, "--out", str(other), "--force"]) == 1
    assert files(other) == before
    assert not list((bundle / "engines").iterdir() if (bundle / "engines").is_dir() else [])
    assert main(command) == 0
    assert len(list(bundle.glob("engines/*/transformer.engine"))) == 1
    assert main([*command, "--out", str(other), "--force"]) == 0
    assert len(list(other.glob("engines/*/transformer.engine"))) == 1
    assert not (other / "mark").exists()


def test_a_graph_that_is_not_understood(half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The library's reason in one line, and nothing left."""
    from ilat_runtime.manifest import file_record, write_manifest

    bundle = tmp_path / "b"
    shutil.copytree(half, bundle)
    model = onnx.load(bundle / "encoder.onnx")
    model.graph.node[0].op_type = "Undreamt"
    onnx.save(model, bundle / "encoder.onnx")
    manifest: Manifest = load_manifest(bundle)
    files = manifest.files | {"encoder.onnx": file_record(bundle / "encoder.onnx")}
    write_manifest(bundle, manifest.model_copy(update={"files": files}))
    code, line = said(capsys, bundle, "--engine", "tensorrt-rtx", "--out", bundle)
    assert code == 1
    assert "encoder.onnx: tensorrt_rtx_bindings" in line
    assert not list((bundle / "engines").iterdir())
