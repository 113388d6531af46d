"""Inputs for the tests of the export: the tiny bundles' own models, and an export that does not trace them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest

from ilat_export import bundle as bundle_module
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
