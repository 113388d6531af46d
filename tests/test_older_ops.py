"""Graphs in operators of opset 20: the same results, on ONNX Runtime, with a cache that is written anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from editing import standing
from exporting import GRAPHS, graphs, transformer_call
from test_precision import samples

from ilat_export.cli import main
from ilat_export.compare import compare
from ilat_export.half import replace, to_half
from ilat_export.older_ops import older_ops
from ilat_export.precision import convert_bundle
from ilat_runtime import Editor
from ilat_runtime.backends import choose
from ilat_runtime.errors import BackendError, InputError
from ilat_runtime.manifest import load_manifest


@pytest.fixture(scope="module")
def older(pose_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("older") / "bundle"
    assert main([str(pose_bundle), "--kv-cache", "concat", "--out", str(folder), "--quiet"]) == 0
    return folder


@pytest.mark.parametrize("name", GRAPHS)
def test_operators(pose_bundle: Path, name: str) -> None:
    """Breaks when an operator or an attribute of a later opset is left, in float32 or in half precision."""
    model = older_ops(onnx.load(pose_bundle / f"{name}.onnx"))
    for graph in (model, to_half(model)):
        assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 20)]
        assert graph.ir_version <= 9
        onnx.checker.check_model(graph)
        for node in graph.graph.node:
            assert onnx.defs.get_schema(node.op_type, 20).since_version <= 20
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"TensorScatter", "Attention", "GroupNormalization"}


def test_the_same_results(pose_bundle: Path, older: Path) -> None:
    manifest, before = graphs(pose_bundle)
    _, after = graphs(older)
    loss = compare(manifest, before, after, samples(pose_bundle))
    assert (loss.encoder_tokens, loss.decoded_tokens) == (1, 1)
    assert loss.log_probability_error < 1e-4
    assert loss.latent_error < 1e-4
    assert loss.psnr is None or loss.psnr > 50


def test_a_call_writes_what_the_other_writes(pose_bundle: Path, older: Path) -> None:
    """Breaks when rows land in other slots, when a batch shares an index, or when a slot outside is touched."""
    manifest, before = graphs(pose_bundle)
    _, after = graphs(older)
    random, batch, rows = np.random.default_rng(0), 3, 4
    slots = manifest.cache_capacity
    inputs = transformer_call(
        manifest, random, np.zeros((batch, slots), np.int32), np.array([0, 10, slots - rows]), rows
    )
    found, expected = after["transformer"].run(inputs), before["transformer"].run(inputs)
    assert found["next_token"].tolist() == expected["next_token"].tolist()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=1e-4)
    first = found["present_key_0"]
    assert np.array_equal(first[1, :, :10], inputs["past_key_0"][1, :, :10])
    assert not np.array_equal(first[1, :, 10:14], inputs["past_key_0"][1, :, 10:14])


def test_editing(pose_bundle: Path, older: Path) -> None:
    """Breaks when the cache that a call reads is not the one that the call before wrote: sessions, batches, noise."""
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    pose = standing(30, 25, 30)
    masks = [np.zeros((50, 60), bool) for _ in range(2)]
    masks[0][10:40, 15:45] = True
    masks[1][20:30, 20:30] = True
    answers = []
    for bundle in (pose_bundle, older):
        editor = Editor(bundle, threads=1)
        found = editor.edit_batch([image, image], [pose, pose], masks, seed=3, top_k=5)
        with editor.reference(image, pose) as session:
            found += [session.edit(pose, mask) for mask in (*masks, masks[0])]
        answers.append(found)
    for before, after in zip(*answers, strict=True):
        assert before.tokens.tolist() == after.tokens.tolist()
        assert np.abs(before.image.astype(int) - after.image).max() <= 1
    assert len(set(answers[0][0].tokens.tolist())) > 1


def test_an_old_onnxruntime(pose_bundle: Path, older: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs these bundles, and says so where it cannot run another."""
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "__version__", "1.22.1")
    with pytest.raises(BackendError, match=r"onnxruntime 1.22.1 is too old.*--kv-cache concat"):
        Editor(pose_bundle)
    assert Editor(older).manifest.graphs.transformer.opset == 20


def test_conversions_of_conversions(older: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"opset: 20, expected graphs of today's operators"):
        convert_bundle(older, tmp_path / "b", "fp16", [])


def test_the_manifest(older: Path, pose_bundle: Path) -> None:
    manifest = load_manifest(older)
    assert {graph.opset for graph in manifest.graphs.by_name.values()} == {20}
    assert manifest.precision == load_manifest(pose_bundle).precision
    record = manifest.verification["against_float32"]
    assert isinstance(record, dict)
    assert (record["precision"], record["below_floor"]) == ("fp32", False)
    assert choose("onnxruntime").backend.load(older / "transformer.onnx", manifest.graphs.transformer)


@pytest.mark.parametrize("scale", [None, 0.3])
def test_the_scale_of_the_attention(pose_bundle: Path, tmp_path: Path, scale: float | None) -> None:
    """Breaks when the operator's own scale is lost, given or left to its rule of one over the root of d."""
    model = onnx.load(pose_bundle / "transformer.onnx")
    for node in model.graph.node:
        if node.op_type == "Attention":
            kept = [attribute for attribute in node.attribute if attribute.name != "scale"]
            replace(node.attribute, kept)
            if scale is not None:
                node.attribute.append(onnx.helper.make_attribute("scale", scale))
    manifest = load_manifest(pose_bundle)
    slots = manifest.cache_capacity
    inputs = transformer_call(
        manifest, np.random.default_rng(0), np.zeros((1, slots), np.int32), np.array([slots - 4]), 4
    )
    results = []
    for name, graph in (("before", model), ("after", older_ops(model))):
        onnx.save(graph, tmp_path / name)
        session = onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"])
        results.append(session.run(["log_probability"], dict(inputs))[0])
    np.testing.assert_allclose(*results, atol=1e-5)
