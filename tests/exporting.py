"""Inputs for the tests of the export: the tiny bundles' own models, and an export that does not trace them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest

from ilat_export import bundle as bundle_module
from ilat_export.cli import main
from ilat_export.tiny import tiny_models, tiny_sketch_tokenizer
from ilat_export.to_onnx import round_to_half
from ilat_runtime.backends import Graph, choose
from ilat_runtime.manifest import Manifest, load_manifest
from ilat_train.models import TSVQGAN, LocalTransformer

GRAPHS = ("encoder", "transformer", "decoder")
MODULES = {
    "EncoderGraph": "encoder",
    "SketchEncoderGraph": "encoder",
    "TransformerGraph": "transformer",
    "DecoderGraph": "decoder",
    "SketchGraph": "sketch",
}


def models(
    kind: Literal["pose", "sketch", "none"] = "pose", numbering: str = "local"
) -> tuple[TSVQGAN, LocalTransformer]:
    """What the tiny bundle of that kind was exported from, with the same rounded weights."""
    result = tiny_models(0, kind, numbering)
    for model in result:
        round_to_half(model)
    return result


def sketch_tokenizer() -> TSVQGAN:
    """The tiny sketch bundle's tokenizer of sketches, with the same rounded weights."""
    model = tiny_sketch_tokenizer(0)
    round_to_half(model)
    return model


def graphs(folder: Path) -> tuple[Manifest, dict[str, Graph]]:
    """A bundle's manifest and its graphs on ONNX Runtime."""
    manifest, backend = load_manifest(folder), choose("onnxruntime", threads=1).backend
    records = manifest.graphs.by_name
    return manifest, {name: backend.load(folder / record.file, record) for name, record in records.items()}


def reuse_graphs(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Lets ``export_bundle`` take the graphs of a bundle instead of tracing the models for a minute."""

    def taken(module: Any, *_: Any) -> onnx.ModelProto:
        return onnx.load(folder / f"{MODULES[type(module).__name__]}.onnx")

    monkeypatch.setattr(bundle_module, "to_onnx", taken)


def disturb(model: onnx.ModelProto, name: str, amount: float) -> onnx.ModelProto:
    """Adds ``amount`` to the weight ``name`` (the part of it that one index reaches)."""
    (weight,) = (item for item in model.graph.initializer if item.name == name)
    array = onnx.numpy_helper.to_array(weight).copy()
    array.flat[0] += np.asarray(amount, array.dtype)
    weight.CopyFrom(onnx.numpy_helper.from_array(array, name))
    return model


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """The exit code of ``ilat-export`` and the last line of what it says to people."""
    capsys.readouterr()
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, capsys.readouterr().err.splitlines()[-1]


def transformer_call(
    manifest: Manifest, random: np.random.Generator, slot_segment: np.ndarray, write_index: np.ndarray, rows: int
) -> dict[str, np.ndarray]:
    """Random inputs of a call that appends ``rows`` to each cache of a batch, the caches among them.

    Args:
        slot_segment: int32 (B, T).
        write_index: int64 (B,).
    """
    batch = len(write_index)
    inputs = {
        "tokens": random.integers(0, manifest.vocabulary.pose + 1, (batch, rows)),
        "positions": random.integers(0, manifest.sequence.length, (batch, rows)),
        "query_segment": np.arange(batch * rows, dtype=np.int32).reshape(batch, rows),
        "slot_segment": slot_segment,
        "write_index": write_index,
        "top_k": np.array([5]),
        "temperature": np.array([0.5, 1.0, 3.0], np.float32)[:batch],
        "uniform": random.uniform(0.001, 0.999, (batch, rows, manifest.codebook_size)).astype(np.float32),
        "landmarks": random.random((batch, rows, 3), np.float32),
    }
    for name, tensor in manifest.graphs.transformer.inputs.items():
        if name.startswith("past_"):
            inputs[name] = random.normal(size=(batch, *tensor.shape[1:])).astype(np.float32)
    return inputs
