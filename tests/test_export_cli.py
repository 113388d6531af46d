"""``ilat-export``: what it prints and writes, and what it says to wrong input."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from exporting import models, reuse_graphs
from training import make_dataset

from ilat_export import bundle as bundle_module
from ilat_export.cli import main
from ilat_export.verify import Verification, VerificationError
from ilat_runtime import Editor
from ilat_runtime.manifest import load_manifest
from ilat_train import checkpoint
from ilat_train.models import TSVQGAN

CLIPS = [{"name": "me", "source": "me.mp4", "sha256": "0" * 64, "frames": 20, "test_from": 16}]
DATA = {"margin": 1.4, "dilation": 0.11, "clips": CLIPS}


def save_run(folder: Path, kind: Any = "pose", **facts: Any) -> Path:
    tokenizer, transformer = models(kind)
    checkpoint.save(folder / "tokenizer", tokenizer, {"recipe": "tiny", "steps": 7, "seed": 1, "perceptual": "none"})
    known = {"recipe": "tiny", "steps": 9, "seed": 1} | facts
    checkpoint.save(folder / "transformer", transformer, known)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "me", data=DATA)


@pytest.fixture(autouse=True)
def _reused(monkeypatch: pytest.MonkeyPatch, pose_bundle: Path) -> None:
    reuse_graphs(monkeypatch, pose_bundle)


def test_export(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when the result is not a bundle that the runtime takes, or when the table leaves something out."""
    out = tmp_path / "my bundle"
    assert main([str(run), "--out", str(out), "--weights-licence", "CC BY 4.0", "--data-licence", "mine"]) == 0
    text, notes = capsys.readouterr()
    assert re.search(r"^graph +size +largest error +equal tokens$", text, re.MULTILINE)
    assert re.search(r"^encoder +\d+ kB +\d\S* \(latents\) +100 %$", text, re.MULTILINE)
    assert re.search(r"^transformer +\d+ kB +\d\S* \(log-probabilities\) +100 %$", text, re.MULTILINE)
    assert re.search(r"^decoder +\d+ kB +[01] \(levels of 255\)$", text, re.MULTILINE)
    assert re.search(rf"^{out}: \d+ kB, in ", text, re.MULTILINE)
    assert f"next: ilat-edit photo.jpg --bundle '{out}' --pose pose.json --out edited.png" in text
    assert "verified on a photograph (scikit-image's astronaut), besides random inputs" in notes
    assert len(notes.splitlines()) == 1, "no progress bar where stderr is no terminal, no warnings of PyTorch"
    manifest = load_manifest(out)
    assert manifest.name == "my bundle"
    assert manifest.crop is not None
    assert (manifest.crop.margin, manifest.crop.dilation) == (1.4, 0.11)
    assert (manifest.licence.weights, manifest.licence.data) == ("CC BY 4.0", "mine")
    assert manifest.provenance == {
        "recipe": "tiny", "tokenizer_steps": 7, "transformer_steps": 9, "seed": 1, "data": {"clips": CLIPS},
    }  # fmt: skip
    assert manifest.verification["real_inputs"] == 1
    Editor(out, threads=1)


def test_json(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "b"
    assert main([str(run), "--out", str(out), "--name", "mine", "--json", "--quiet"]) == 0
    text, notes = capsys.readouterr()
    assert notes == ""
    data = json.loads(text)
    assert set(data) == {"out", "bytes", "seconds", "graphs", "verification", "verified_on", "next"}
    assert data["out"] == str(out)
    assert data["bytes"] == sum(file.stat().st_size for file in out.iterdir())
    assert set(data["graphs"]) == {"encoder", "transformer", "decoder"}
    for name, graph in data["graphs"].items():
        assert graph["bytes"] == (out / f"{name}.onnx").stat().st_size
        assert graph["largest_error"] >= 0
    assert data["verification"]["decoded_tokens"] == 1
    assert load_manifest(out).name == "mine"
    assert load_manifest(out).precision.weights == "float16"


def test_quiet(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--out", str(tmp_path / "b"), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_held_out_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --data, and without it where the checkpoint names a data set that is there; its path stays private."""
    data = make_dataset(tmp_path / "secret" / "clips")
    own = save_run(tmp_path / "own", data=DATA | {"source": str(data)})
    gone = save_run(tmp_path / "gone", data=DATA | {"source": str(tmp_path / "moved")})
    for folder, flags in ((own, []), (gone, ["--data", str(data)])):
        out = tmp_path / f"{folder.name}-bundle"
        assert main([str(folder), "--out", str(out), *flags]) == 0
        assert f"verified on 8 pairs of held-out frames of {data}" in capsys.readouterr().err
        manifest = load_manifest(out)
        assert manifest.verification["real_inputs"] == 8
        assert manifest.verification["decoded_tokens"] == 1
        assert str(tmp_path) not in (out / "manifest.json").read_text()
    assert manifest.provenance["data"] == {"folder": "moved", "clips": CLIPS}


def test_facts_that_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Documented defaults, said aloud."""
    run = save_run(tmp_path / "run")
    assert main([str(run), "--out", str(tmp_path / "b")]) == 0
    notes = capsys.readouterr().err
    assert "transformer: facts.data.margin is missing, 1.3 is assumed" in notes
    assert "transformer: facts.data.dilation is missing, 0.09 is assumed" in notes
    manifest = load_manifest(tmp_path / "b")
    assert manifest.crop is not None
    assert (manifest.crop.margin, manifest.crop.dilation) == (1.3, 0.09)


def test_without_poses(
    monkeypatch: pytest.MonkeyPatch, mask_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that takes a mask only: no word of poses; images of a folder to verify on."""
    reuse_graphs(monkeypatch, mask_bundle)
    run = save_run(tmp_path / "run", "none")
    assert main([str(run), "--out", str(tmp_path / "b")]) == 0
    text, notes = capsys.readouterr()
    assert "--mask mask.png" in text
    assert "assumed" not in notes
    assert load_manifest(tmp_path / "b").crop is None
    images = Path(__file__).parent.parent / "samples/pose-demo"
    assert main([str(run), "--out", str(tmp_path / "c"), "--data", str(images)]) == 0
    assert f"verified on 1 images of {images}" in capsys.readouterr().err


# --- wrong input ---


def fails(arguments: list[object], capsys: pytest.CaptureFixture[str], code: int = 1) -> str:
    """The one line on stderr."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == code
    text, notes = capsys.readouterr()
    assert text == ""
    lines = [line for line in notes.splitlines() if "verified on" not in line and "assumed" not in line]
    assert len(lines) == 1, notes
    assert lines[0].startswith("ilat-export: error: ")
    return lines[0]


def test_wrong_checkpoints(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "b"
    assert "nowhere: no such folder, expected a run" in fails([tmp_path / "nowhere", "--out", out], capsys)
    assert "expected the folder around it" in fails([run / "tokenizer", "--out", out], capsys)
    half = tmp_path / "half"
    shutil.copytree(run / "tokenizer", half / "tokenizer")
    assert "half/transformer: missing; train it with `ilat-train transformer`" in fails([half, "--out", out], capsys)
    swapped = tmp_path / "swapped"
    shutil.copytree(run / "tokenizer", swapped / "transformer")
    shutil.copytree(run / "transformer", swapped / "tokenizer")
    assert "kind: a transformer, expected a tokenizer" in fails([swapped, "--out", out], capsys)
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    model = damaged / "transformer/model.safetensors"
    model.write_bytes(model.read_bytes()[:-100])
    assert "model.safetensors: not a safetensors file" in fails([damaged, "--out", out], capsys)
    (damaged / "transformer/config.json").write_text("{")
    assert "config.json: not a JSON file" in fails([damaged, "--out", out], capsys)
    assert not out.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"margin": "wide"}, r"facts.data.margin: 'wide', expected a number of at least 1"),
        ({"margin": 0.5}, r"facts.data.margin: 0.5, expected a number of at least 1"),
        ({"dilation": 0}, r"facts.data.dilation: 0, expected a number"),
        ({"dilation": True}, r"facts.data.dilation: True, expected a number"),
        ({"source": 3}, r"facts.data.source: 3, expected the path"),
        ([1], r"facts.data: \[1\], expected an object"),
    ],
)
def test_wrong_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str], data: Any, message: str) -> None:
    run = save_run(tmp_path / "run", data=data)
    assert re.search(message, fails([run, "--out", tmp_path / "b"], capsys))


def test_models_that_do_not_belong_together(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    other = TSVQGAN(models()[0].config.model_copy(update={"codebook_size": 30}))
    checkpoint.save(folder / "tokenizer", other, {})
    assert "16 tokens of 24 values, but the tokenizer makes 16 of 30" in fails(
        [folder, "--out", tmp_path / "b"], capsys
    )


def test_wrong_destinations(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "b"
    assert main([str(run), "--out", str(out)]) == 0
    assert "exists already; replace it with --force" in fails([run, "--out", out], capsys)
    assert main([str(run), "--out", str(out), "--force", "--name", "again"]) == 0
    assert load_manifest(out).name == "again"
    line = fails([run, "--out", out / "manifest.json" / "deeper"], capsys)
    assert "manifest.json is not a writable folder" in line
    assert "it is no bundle" in fails([run, "--out", tmp_path, "--force"], capsys)
    if Path("/proc/self").exists():
        assert "/proc/bundle: cannot be written" in fails([run, "--out", "/proc/bundle"], capsys)


def test_wrong_data(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = fails([run, "--out", tmp_path / "b", "--data", tmp_path / "nothing"], capsys)
    assert "nothing/dataset.json: no such file" in line


def test_a_tolerance_that_is_missed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def miss(*_: Any) -> Verification:
        raise VerificationError("encoder: latent error is 1, the tolerance is 0.001; no bundle was written")

    monkeypatch.setattr(bundle_module, "verify", miss)
    assert "no bundle was written" in fails([run, "--out", tmp_path / "b"], capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["run", "--out", "b", "--weights", "int8"], ["run", "--ot", "b"]])
def test_wrong_use(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "usage: ilat-export" in capsys.readouterr().err
