"""Other precisions of a bundle: what is rounded and what is not, what is measured, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from exporting import GRAPHS, graphs, models, reuse_graphs, said
from onnx import TensorProto, helper, numpy_helper
from test_export_cli import save_run

from ilat_export import precision as precision_module
from ilat_export.cli import main
from ilat_export.compare import Loss, compare
from ilat_export.half import KEPT, PARTS, plain_weights, rounded, to_half
from ilat_export.precision import FLOORS, convert_bundle
from ilat_export.sample import random_sample
from ilat_export.weight_only import quantize
from ilat_runtime import Editor
from ilat_runtime.backends import choose
from ilat_runtime.errors import InputError
from ilat_runtime.manifest import load_manifest, verify_files
from ilat_runtime.segments import decode_plan

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def samples(bundle: Path, count: int = 3) -> list[Any]:
    manifest = load_manifest(bundle)
    return [random_sample(manifest, np.random.default_rng(seed)) for seed in range(count)]


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Of every tensor, as ONNX Runtime infers them when it loads the graph: a contradiction is an error."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    # Each result as an output without a type: the session says which it has.
    known = {value.name for value in probe.graph.output}
    for node in probe.graph.node:
        probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output if name not in known)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    codes = {"tensor(float)": FLOAT, "tensor(float16)": HALF}
    result = {value.name: codes.get(value.type, 0) for value in (*session.get_inputs(), *session.get_outputs())}
    return result | {weight.name: weight.data_type for weight in model.graph.initializer}


# --- half precision ---


def chain() -> onnx.ModelProto:
    """x → product → sum of squares (kept) → product, with a weight and one too large for float16's integers."""
    weight = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
    nodes = [
        helper.make_node("MatMul", ["past_x", "w"], ["a"], name="first"),
        helper.make_node("Mul", ["a", "a"], ["b"], name="square"),
        helper.make_node("ReduceSum", ["b", "axis"], ["c"], name="sum", keepdims=1),
        helper.make_node("Sqrt", ["c"], ["d"], name="root"),
        helper.make_node("Div", ["a", "d"], ["e"], name="normalised"),
        helper.make_node("MatMul", ["e", "w"], ["y"], name="last"),
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("past_x", FLOAT, ["B", 8])],
        [helper.make_tensor_value_info("y", FLOAT, ["B", 8])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array([1], np.int64), "axis")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)


def test_what_is_rounded_by_hand() -> None:
    """Breaks when a float32 part is rounded on the way, or when something of float16 is not: the real graph's types
    and the twin's numbers, against NumPy's float16."""
    real = to_half(chain())
    kinds = types(real)
    assert (kinds["past_x"], kinds["y"]) == (HALF, FLOAT), "the cache becomes float16, other outputs stay"
    assert {name: kinds[name] for name in "acde"} == {"a": HALF, "c": FLOAT, "d": FLOAT, "e": HALF}
    assert kinds["b"] == FLOAT, "what only statistics read is computed in float32"

    def half(array: np.ndarray) -> np.ndarray:
        return array.astype(np.float16).astype(np.float32)

    x = half(np.random.default_rng(0).normal(0, 40, (3, 8)).astype(np.float32))
    weight = half(numpy_helper.to_array(chain().graph.initializer[0]))
    first = half(x @ weight)
    norm = np.sqrt((first**2).sum(1, keepdims=True))
    expected = half(half(first / half(norm)) @ weight)
    assert (half(first**2) != first**2).any(), "a sum of rounded squares would pass"
    session = onnxruntime.InferenceSession(rounded(chain()).SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"past_x": x})
    np.testing.assert_array_equal(found, expected)


def test_nothing_kept_is_all_float16() -> None:
    kinds = types(to_half(chain(), kept=()))
    assert {kinds[name] for name in "abcde"} == {HALF}


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_in_half_precision(pose_bundle: Path, name: str) -> None:
    """Breaks when the products are not float16, or what must be float32 is not; when an input or output changes."""
    before = onnx.load(pose_bundle / f"{name}.onnx")
    model = to_half(before)
    kinds = types(model)
    by_type: dict[str, Counter[int]] = {}
    for node in model.graph.node:
        floats = [kinds[tensor] for tensor in (*node.input, *node.output) if kinds.get(tensor) in (FLOAT, HALF)]
        by_type.setdefault(node.op_type, Counter()).update(floats[-1:])
    for operator in ("Conv", "Attention", "TensorScatter", "LayerNormalization", "GroupNormalization"):
        assert set(by_type.get(operator, {HALF: 1})) == {HALF}
    for operator in {operator for part in KEPT for operator in PARTS[part]}:
        assert set(by_type.get(operator, {FLOAT: 1})) <= {FLOAT}, operator
    assert by_type[{"encoder": "Conv", "transformer": "Attention", "decoder": "Conv"}[name]][HALF] > 1
    for old, new in zip(
        (*before.graph.input, *before.graph.output), (*model.graph.input, *model.graph.output), strict=True
    ):
        cached = new.name.startswith(("past_", "present_"))
        wanted = HALF if cached else old.type.tensor_type.elem_type
        assert (new.name, new.type.tensor_type.elem_type) == (old.name, wanted)
        assert new.type.tensor_type.shape == old.type.tensor_type.shape


def test_a_graph_without_half_storage_is_the_same(pose_bundle: Path) -> None:
    """Weights stored as float16 with a cast, and float32 weights of the same value, become the same graph."""
    model = onnx.load(pose_bundle / "transformer.onnx")
    assert any(weight.data_type == HALF for weight in model.graph.initializer)
    plain = plain_weights(model)
    assert not any(weight.data_type == HALF for weight in plain.graph.initializer)
    assert to_half(plain) == to_half(model)


# --- comparison ---


class Wrong:
    """A graph whose output of that name is changed."""

    def __init__(self, graph: Any, name: str, change: Any) -> None:
        self.graph, self.name, self.change = graph, name, change

    def run(self, inputs: Any) -> dict[str, np.ndarray]:
        outputs = dict(self.graph.run(inputs))
        return outputs | {self.name: self.change(outputs[self.name])}

    def with_cache(self, batch: int) -> Wrong:
        return Wrong(self.graph.with_cache(batch), self.name, self.change)


def test_the_same_graphs_lose_nothing(pose_bundle: Path) -> None:
    manifest, loaded = graphs(pose_bundle)
    loss = compare(manifest, loaded, loaded, samples(pose_bundle))
    assert loss.masked_tokens > 5
    assert loss == Loss(3, 0.0, 1.0, 1.0, loss.masked_tokens, 0.0, None)


@pytest.mark.parametrize(
    ("graph", "output", "change", "attribute", "value"),
    [
        ("encoder", "latent", lambda array: array + 0.5, "latent_error", 0.5),
        ("encoder", "tokens", lambda array: array + 1, "encoder_tokens", 0.0),
        ("transformer", "next_token", lambda array: array + 1, "decoded_tokens", 0.0),
        ("transformer", "log_probability", lambda array: array - 0.25, "log_probability_error", 0.25),
        # One level everywhere, but for the pixels that overflow: 20 log10(255).
        ("decoder", "edited", lambda array: array ^ 1, "psnr", 48.13),
    ],
)
def test_every_loss_is_seen(
    pose_bundle: Path, graph: str, output: str, change: Any, attribute: str, value: float
) -> None:
    manifest, loaded = graphs(pose_bundle)
    others = loaded | {graph: Wrong(loaded[graph], output, change)}
    loss = compare(manifest, loaded, others, samples(pose_bundle, 2))
    assert getattr(loss, attribute) == pytest.approx(value, abs=1e-2)
    untouched = {"latent_error": 0, "encoder_tokens": 1, "decoded_tokens": 1, "log_probability_error": 0, "psnr": None}
    for name in untouched.keys() - {attribute, "log_probability_error", "psnr"}:
        assert getattr(loss, name) == untouched[name]


def test_teacher_forcing_is_step_by_step(pose_bundle: Path) -> None:
    """All rows in one call predict what decoding one by one generates, when the tokens before are the same."""
    manifest, loaded = graphs(pose_bundle)
    for numbering in ("local", "released", "vanilla"):
        for seed, sample in enumerate(samples(pose_bundle, 2)):
            mask = np.random.default_rng(seed).random(manifest.image_tokens) < 0.6
            plan = decode_plan(manifest.sequence, mask, numbering)
            tokens = np.random.default_rng(seed).integers(0, manifest.codebook_size, manifest.image_tokens)
            generated, finished = sample.generate(manifest, loaded["transformer"], plan, tokens, tokens)
            decoder = sample.decoder(manifest, loaded["transformer"], tokens)
            for _ in range(2):
                (found,) = decoder.predict([sample.target(manifest, plan, finished)])
                assert found.tokens.tolist() == generated.tokens.tolist()
                np.testing.assert_allclose(found.log_probability, generated.log_probability, atol=1e-4)
                assert found.calls == 1
            (other,) = decoder.predict([sample.target(manifest, plan, (finished + 1) % manifest.codebook_size)])
            assert other.tokens.tolist() != generated.tokens.tolist(), "the tokens before are not read"


# --- bundles ---


@pytest.fixture(scope="module")
def converted(pose_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny bundle in each precision; its random weights are below the floors of 8 and 4 bits."""
    folder = tmp_path_factory.mktemp("precisions")
    for name in FLOORS:
        convert_bundle(pose_bundle, folder / name, name, samples(pose_bundle), force=True)
    return {name: folder / name for name in FLOORS}


@pytest.mark.parametrize("name", FLOORS)
def test_bundles_of_each_precision(converted: dict[str, Path], pose_bundle: Path, name: Any) -> None:
    """Each is a sound bundle that an editor runs, and says what it is."""
    bundle = converted[name]
    manifest, source = load_manifest(bundle), load_manifest(pose_bundle)
    verify_files(bundle, manifest)
    wanted = {
        "fp32": (source.precision.compute, source.precision.weights),
        "fp16": ("float16", "float16"),
        "int8": ("float32", "int8"),
        "int4": ("float32", "int4"),
    }[name]
    assert (manifest.precision.compute, manifest.precision.weights) == wanted
    cache = manifest.graphs.transformer.inputs["past_key_0"]
    assert cache.dtype == wanted[0]
    record = manifest.verification["against_float32"]
    assert isinstance(record, dict)
    assert record["precision"] == name
    stated = {"fp32": (0.999, 0.999, 50), "fp16": (0.99, 0.99, 40), "int8": (0.99, 0.97, 40), "int4": (0.99, 0.80, 40)}
    assert record["floor"] == dict(zip(("encoder_tokens", "decoded_tokens", "psnr"), stated[name], strict=True))
    assert ("kept_float32" in record) == (name == "fp16")
    assert {
        key: value for key, value in manifest.verification.items() if key != "against_float32"
    } == source.verification
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    mask = np.zeros((40, 40), bool)
    mask[10:30, 12:28] = True
    pose = np.tile(np.array([20, 20, 1], np.float32), (13, 1))
    result = Editor(bundle, threads=1).edit(image, pose=pose, mask=mask)
    assert result.masked_tokens > 0
    assert np.array_equal(result.image[~result.mask], image[~result.mask])


def test_half_precision_stores_a_weight_once(converted: dict[str, Path], pose_bundle: Path) -> None:
    """Breaks when the table of embeddings, of which the logits' factor is a float32 part, is in the file twice."""
    for name in GRAPHS:
        model = onnx.load(converted["fp16"] / f"{name}.onnx")
        large = [weight for weight in model.graph.initializer if np.prod(weight.dims) >= 1024]
        contents = [(tuple(weight.dims), numpy_helper.to_array(weight).tobytes()) for weight in large]
        assert len(contents) == len(set(contents)) > 0
        before, after = ((path / f"{name}.onnx").stat().st_size for path in (pose_bundle, converted["fp16"]))
        assert after < before * 1.05


def test_half_precision_keeps_its_floor(converted: dict[str, Path]) -> None:
    record = load_manifest(converted["fp16"]).verification["against_float32"]
    assert isinstance(record, dict)
    assert record["below_floor"] is False
    assert 0 < record["latent_error"] < 0.05
    assert record["psnr"] > 40


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_products(pose_bundle: Path, bits: int) -> None:
    """Every product after the PointMLP has the bits asked for, the logits 8, and is near the float32 product."""
    model = quantize(onnx.load(pose_bundle / "transformer.onnx"), bits)
    found = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    manifest = load_manifest(pose_bundle)
    assert len(found) == 4 * manifest.layers + 2
    widths = [next(a.i for a in node.attribute if a.name == "bits") for node in found]
    assert widths == [bits] * (len(found) - 1) + [8]
    blocks = [next(a.i for a in node.attribute if a.name == "block_size") for node in found]
    assert blocks == [32, 32, 32, 128 if bits == 8 else 16] * manifest.layers + [32, 32]
    assert sum(node.op_type == "MatMul" for node in model.graph.node) == 3
    manifest, loaded = graphs(pose_bundle)
    path = pose_bundle.parent / f"quantized-{bits}.onnx"
    onnx.save(model, path)
    record = manifest.graphs.transformer
    others = loaded | {"transformer": choose("onnxruntime", threads=1).backend.load(path, record)}
    loss = compare(manifest, loaded, others, samples(pose_bundle))
    assert 0 < loss.log_probability_error < (0.5 if bits == 8 else 4)
    assert loss.decoded_tokens > (0.85 if bits == 8 else 0.4)


@pytest.mark.parametrize(("bits", "expected"), [(8, [128, 64, 32]), (4, [32, 32, 32])])
def test_blocks_fit_the_columns(bits: int, expected: list[int]) -> None:
    """Breaks when a column is filled up to a block that does not divide it, which costs size and time."""
    widths = [256, 192, 96, 8]
    shapes = list(pairwise(widths))
    graph = helper.make_graph(
        [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"], name=f"n{i}") for i in range(3)],
        "products",
        [helper.make_tensor_value_info("x0", FLOAT, [2, 256])],
        [helper.make_tensor_value_info("x3", FLOAT, [2, 8])],
        [numpy_helper.from_array(np.ones(shape, np.float32), f"w{i}") for i, shape in enumerate(shapes)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    found = [node for node in quantize(model, bits).graph.node if node.op_type == "MatMulNBits"]
    blocks = {node.name: next(a.i for a in node.attribute if a.name == "block_size") for node in found}
    assert [blocks[name] for name in sorted(blocks)] == expected


# --- the command ---


def test_convert_a_bundle(pose_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "half"
    assert main([str(pose_bundle), "--fp16", "--out", str(out)]) == 0
    text, notes = capsys.readouterr()
    assert "compared with float32 on 8 edits of a photograph" in notes
    lines = text.splitlines()
    assert lines[0].split() == ["against", "float32", "found", "floor"]
    assert lines[1].startswith("equal tokens, encoder")
    assert f"{out}: fp16, " in text
    assert lines[-1] == f"next: ilat-edit photo.jpg --bundle {out} --pose pose.json --out edited.png"
    assert load_manifest(out).name == "half"


def test_convert_a_run(
    pose_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a checkpoint at once: one verification against PyTorch, one against float32, and nothing left behind."""
    reuse_graphs(monkeypatch, pose_bundle)
    run = save_run(tmp_path / "run")
    out = tmp_path / "half"
    assert main([str(run), "--fp16", "--out", str(out), "--json", "--quiet"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["precision"], data["below_floor"], data["out"]) == ("fp16", False, str(out))
    manifest = load_manifest(out)
    assert (manifest.name, manifest.precision.compute) == ("half", "float16")
    assert {"real_inputs", "decoded_tokens", "against_float32"} <= set(manifest.verification)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half", "run"]


def test_below_the_floor(
    pose_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused with the number that misses; with --force written, said aloud and recorded."""
    poor = Loss(1, 0.1, 1.0, 0.5, 10, 0.1, 30.0)
    monkeypatch.setattr(precision_module, "compare", lambda *_: poor)
    out = tmp_path / "b"
    command = [str(pose_bundle), "--int8", "--out", str(out)]
    assert main(command) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        "ilat-export: error: int8: share of equal tokens of the transformer is 0.5, the floor is 0.97; no bundle was "
        "written (--force writes it all the same)"
    )
    assert not out.exists()
    assert main([*command, "--force"]) == 0
    assert "below the floor: share of equal tokens of the transformer is 0.5" in capsys.readouterr().err
    record = load_manifest(out).verification["against_float32"]
    assert isinstance(record, dict)
    assert record["below_floor"] is True


@pytest.mark.parametrize(
    ("loss", "part"),
    [
        (Loss(1, 0, 0.98, 1, 9, 0, None), "of the encoder is 0.98, the floor is 0.99"),
        (Loss(1, 0, 1, 0.96, 9, 0, None), "of the transformer is 0.96, the floor is 0.97"),
        (Loss(1, 0, 1, 1, 9, 0, 39.0), "PSNR between decoded images is 39 dB, the floor is 40 dB"),
        (Loss(1, 9, 0.99, 0.97, 9, 9, 40.0), None),
    ],
)
def test_floors(loss: Loss, part: str | None) -> None:
    missed = FLOORS["int8"].missed(loss)
    assert (missed is None) if part is None else (missed is not None and missed.endswith(part))


def test_wrong_use(
    pose_bundle: Path, converted: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "b"
    code, line = said(capsys, pose_bundle, "--out", out)
    assert (code, "say what to make of it: --fp16, --int8, --int4, --kv-cache concat or" in line) == (2, True)
    code, line = said(capsys, pose_bundle, "--fp16", "--int8", "--out", out)
    assert (code, "not allowed with" in line) == (2, True)
    code, line = said(capsys, pose_bundle, "--fp16", "--weights", "float32", "--out", out)
    assert (code, "--weights: only for a run" in line) == (2, True)
    code, line = said(capsys, converted["int8"], "--fp16", "--out", out)
    assert code == 1
    assert "computes in float32 with int8 weights; expected a float32 bundle" in line
    code, line = said(capsys, pose_bundle, "--fp16", "--out", converted["int8"])
    assert (code, "exists already; replace it with --force" in line) == (1, True)
    with pytest.raises(InputError, match="computes in float16"):
        convert_bundle(converted["fp16"], out, "int8", [])
    changed = tmp_path / "changed"
    shutil.copytree(pose_bundle, changed)
    (changed / "encoder.onnx").write_bytes(b"x")
    code, line = said(capsys, changed, "--fp16", "--out", out)
    assert (code, "encoder.onnx: has 1 bytes" in line) == (1, True)
    assert not out.exists()


def test_models_of_the_tests_are_not_all_alike() -> None:
    """The comparison would see nothing of a model that always says the same."""
    assert models()[1].embedding.std() > 0.05
