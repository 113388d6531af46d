"""Imported models compute what the authors' code does, and the comparison would show it if they did not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'train'")

from importing import released, small

from ilat_runtime.errors import InputError
from ilat_runtime.segments import segments
from ilat_train.cli import main
from ilat_train.importing.fixture import imported, read_fixture, stand_in
from ilat_train.models import TSVQGAN, LocalTransformer
from ilat_train.parity import TOLERANCE, Comparison, Sequences, TorchNetwork, compare, near, ties

FIXTURES = Path(__file__).parent / "fixtures"
ARRAYS = {
    "taming_vqgan_f16_16384": {"latent", "indices", "quantized", "reconstruction", "decoded_latent"},
    "ilat_face_image_vqgan": {"latent_masked", "indices_masked", "latent_unmasked", "decoded_latent"},
    "ilat_face_sketch_vqgan": {"indices", "quantized", "decoded"},
    "ilat_face_transformer": {"attention_mask", "target_logits"},
    "ilat_pose_transformer": {"attention_mask", "target_logits"},
}


def run(fixture: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the JSON line."""
    code = main(["parity", str(fixture), "--threads", "1", *flags])
    (line,) = capsys.readouterr().out.splitlines()
    return code, json.loads(line)


@pytest.mark.parametrize("runtime", ["pytorch", "onnxruntime"])
@pytest.mark.parametrize("name", list(ARRAYS))
def test_the_authors_numbers(name: str, runtime: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when a parameter goes to the wrong place, or any arithmetic differs from the authors'."""
    if runtime == "onnxruntime":
        pytest.importorskip("onnxscript", reason="needs the extra 'export'")
    code, found = run(FIXTURES / f"{name}.json", capsys, *(["--onnx"] if runtime == "onnxruntime" else []))
    cached = {"decoded_tokens"} if runtime == "onnxruntime" and "transformer" in name else set()
    assert found["arrays"].keys() == ARRAYS[name] | cached
    assert (code, found["pass"], found["unchecked"], found["runtime"]) == (0, True, [], runtime)
    for array in found["arrays"].values():
        assert array.get("equal", 1.0) == 1.0
        # Far below the tolerance: what is left is the order of additions.
        assert array.get("max_abs_error", 0.0) < 1e-4


def make_fixture(folder: Path, form: str, landmarks: int = 13) -> Path:
    """A fixture of a small model whose outputs are this project's own: it tests the comparison, not the model."""
    model = small(form, **({"pose_tokens": landmarks} if form == "ilat-pose" else {}))
    shapes = {name: list(tensor.shape) for name, tensor in released(model).items()}
    file = folder / "small.json"
    file.write_text(json.dumps({"config": {"n_head": 1}, "parameters": shapes}))
    random = np.random.default_rng(0)
    inputs = _image(model, random) if isinstance(model, TSVQGAN) else _sequences(model, random)
    np.savez(file.with_suffix(".npz"), **inputs)
    fitted = imported(read_fixture(file))
    outputs = _decoded(fitted, inputs) if isinstance(fitted, TSVQGAN) else _logits(fitted, inputs)
    rewrite(file, **outputs)
    return file


def _image(model: TSVQGAN, random: np.random.Generator) -> dict[str, Any]:
    """Three images of 24x16 pixels; a mask for the model that was trained with masks."""
    channels = model.config.in_channels
    inputs = {"image" if channels == 3 else "sketch": random.random((3, channels, 24, 16), np.float32)}
    if model.config.norm == "instance" and model.config.two_stream:
        inputs["mask"] = (random.random((3, 1, 24, 16)) < 0.3).astype(np.float32)
    return inputs


def _decoded(model: TSVQGAN, inputs: dict[str, Any]) -> dict[str, Any]:
    network, image = TorchNetwork(model), inputs.get("image", inputs.get("sketch"))
    latent, indices = network.encode(image, None)
    outputs = {"latent": latent, "indices": indices, "quantized": network.lookup(indices, 6)}
    if "mask" in inputs:
        masked, masked_indices = network.encode(image, inputs["mask"] > 0.5)
        outputs = {"latent_masked": masked, "indices_masked": masked_indices, "latent_unmasked": latent}
        latent, indices = masked, masked_indices
    decoded = network.decode(network.lookup(indices, 6))
    return outputs | {"decoded": decoded, "decoded_latent": network.decode(latent)}


def _sequences(model: LocalTransformer, random: np.random.Generator) -> dict[str, Any]:
    """Three sequences with masks of their own."""
    inputs = {
        "target_tokens": random.integers(0, 20, (3, 16)),
        "condition_tokens": random.integers(0, 24, (3, 16)),
        "token_mask": (random.random((3, 1, 4, 4)) < 0.4).astype(np.float32),
        "logit_rows": np.array([0, 3, 16]),
    }
    if model.config.pose_tokens:
        shape = (3, model.config.pose_tokens, 3)
        inputs |= {name: random.random(shape, np.float32) for name in ("source_pose", "target_pose")}
    return inputs


def _logits(model: LocalTransformer, inputs: dict[str, Any]) -> dict[str, Any]:
    mask = inputs["token_mask"].reshape(3, 16) > 0.5
    numbers = np.stack([segments(model.config.layout, row, "released") for row in mask])
    poses = {name: inputs.get(name) for name in ("source_pose", "target_pose")}
    sequences = Sequences(inputs["condition_tokens"], inputs["target_tokens"], mask, numbers, **poses)
    return {
        "attention_mask": (numbers[0][:, None] >= numbers[0]).astype(np.uint8),
        "target_logits": TorchNetwork(model).target_logits(sequences, inputs["logit_rows"]),
    }


def rewrite(file: Path, **arrays: Any) -> None:
    """Replaces arrays of a fixture; None deletes."""
    with np.load(file.with_suffix(".npz")) as old:
        content = dict(old) | arrays
    np.savez(file.with_suffix(".npz"), **{name: array for name, array in content.items() if array is not None})


@pytest.mark.parametrize("form", ["ilat-face", "ilat-pose"])
def test_other_sizes(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A batch of three, images that are not square, another number of landmarks: PyTorch and ONNX Runtime agree."""
    pytest.importorskip("onnxscript", reason="needs the extra 'export'")
    code, found = run(make_fixture(tmp_path, form, landmarks=18), capsys, "--onnx")
    assert (code, found["format"], found["unchecked"]) == (0, form, [])
    assert ("decoded_tokens" in found["arrays"]) == (form == "ilat-pose")


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("taming-vqgan", "latent"), ("taming-vqgan", "indices"), ("taming-vqgan", "quantized"),
        ("taming-vqgan", "decoded"), ("taming-vqgan", "decoded_latent"), ("ilat-face", "latent_masked"),
        ("ilat-transformer", "attention_mask"), ("ilat-transformer", "target_logits"),
    ],
)  # fmt: skip
def test_a_difference_fails(form: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One value of one array is off by twice the tolerance, or is another index: that array fails, and the command."""
    file = make_fixture(tmp_path, form)
    array = read_fixture(file).arrays[name].copy()
    if array.dtype.kind == "f":
        array[..., -1] += 2 * TOLERANCE
    else:
        array.flat[-1] = 1 - array.flat[-1] if name == "attention_mask" else (array.flat[-1] + 1) % 20
    rewrite(file, **{name: array})
    code, found = run(file, capsys)
    assert (code, found["pass"], found["arrays"][name]["pass"]) == (1, False, False)
    # What is decoded from an array differs with it; nothing else does.
    failed = {each for each, result in found["arrays"].items() if not result["pass"]}
    assert failed <= {name, "decoded", "decoded_latent"}


def test_the_cache_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """Breaks when the tokens that the cache generates are not looked at: here one of them is changed on the way."""
    pytest.importorskip("onnxscript", reason="needs the extra 'export'")
    from ilat_runtime.decoding import Decoder, Generated

    right = Decoder.generate

    def wrong(self: Decoder, *arguments: Any) -> list[Generated]:
        results = right(self, *arguments)
        results[1].tokens[-1] = (results[1].tokens[-1] + 1) % 20
        return results

    monkeypatch.setattr(Decoder, "generate", wrong)
    code, found = run(make_fixture(tmp_path, "ilat-transformer"), capsys, "--onnx")
    assert (code, found["arrays"]["decoded_tokens"]["pass"]) == (1, False)
    assert found["arrays"]["target_logits"]["pass"]


def test_ties_and_what_is_no_number() -> None:
    same, gap = np.array([True, False, False]), np.array([0.0, TOLERANCE / 2, TOLERANCE / 2])
    assert ties(same, gap) == Comparison(True, equal=1 / 3, ties=2)
    assert not ties(same, gap * 4).passed
    assert not near(np.full(2, np.nan, np.float32), np.zeros(2, np.float32)).passed
    assert near(np.zeros((1, 2)), np.zeros(2)).record() == {"max_abs_error": None, "pass": False}


def test_unknown_arrays_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = make_fixture(tmp_path, "ilat-sketch")
    rewrite(file, latnet=np.zeros(1))
    code, found = run(file, capsys)
    assert (code, found["unchecked"]) == (0, ["latnet"])


def test_nothing_to_compare_is_no_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = make_fixture(tmp_path, "taming-vqgan")
    rewrite(file, latent=None, indices=None, quantized=None, decoded=None, decoded_latent=None)
    assert run(file, capsys)[0] == 1


@pytest.mark.parametrize(
    ("form", "arrays", "message"),
    [
        ("taming-vqgan", {"image": None}, "small.npz: image: missing"),
        ("taming-vqgan", {"image": np.zeros((1, 1, 8, 8), np.float32)}, r"expected \(any, 3, any, any\)"),
        ("taming-vqgan", {"image": np.zeros((3, 3, 10, 16), np.float32)}, "10×16, expected multiples of 4"),
        ("ilat-face", {"mask": None}, "mask: missing"),
        ("ilat-transformer", {"target_tokens": np.full((3, 16), 20)}, "expected whole numbers from 0 to 19"),
        ("ilat-transformer", {"token_mask": np.zeros((3, 1, 4, 5))}, "token_mask: shape"),
        ("ilat-pose", {"source_pose": None}, "source_pose: missing"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit(form: str, arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = make_fixture(tmp_path, form)
    rewrite(file, **arrays)
    fixture = read_fixture(file)
    model = imported(fixture)
    with pytest.raises(InputError, match=message):
        compare(fixture, model, TorchNetwork(model))


def test_files_that_are_no_fixture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line each, exit code 1; an array of objects, which is a pickle, is not read."""
    file = make_fixture(tmp_path, "taming-vqgan")
    numbers = file.with_suffix(".npz")
    whole = numbers.read_bytes()
    for damage, message in (
        (lambda: numbers.write_bytes(whole[:-40]), "small.npz: not an archive of arrays"),
        (lambda: np.savez(numbers, image=np.array([print], object)), "small.npz: not an archive of arrays"),
        (lambda: numbers.unlink(), "small.npz: no such file; it belongs to small.json"),
        (lambda: file.write_text('{"config": {}}'), "expected the objects 'config' and 'parameters'"),
        (lambda: file.write_text('{"config": {}, "parameters": {"a": [0]}}'), r"parameters.a: [0], expected"),
        (lambda: file.unlink(), "small.json: no such file"),
    ):
        damage()
        assert main(["parity", str(file)]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.splitlines()) == 1
        assert message in captured.err


def test_stand_in_weights() -> None:
    """The rule's three cases, by their standard deviation and mean."""
    matrix, table = stand_in("a.weight", (400, 100)), stand_in("z_emb.weight", (400, 100))
    gain, offset = stand_in("norm.weight", (4000,)), stand_in("norm.bias", (4000,))
    assert [float(each.std()) for each in (matrix, table, gain, offset)] == pytest.approx(
        [0.1, 0.5, 0.1, 0.1], rel=0.05
    )
    assert [float(each.mean()) for each in (gain, offset)] == pytest.approx([1, 0], abs=0.01)
    assert torch.equal(matrix, stand_in("a.weight", (400, 100)))
    assert not torch.equal(matrix, stand_in("b.weight", (400, 100)))
