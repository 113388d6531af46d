"""Engines by the real TensorRT-RTX, without a GPU, of the shipped bundle and of a model of the paper's size.

Nothing is compared here (tests/test_precision.py does that): what would break these tests is a graph that the library
does not take or cannot build for a GPU, or one in which the cache is no longer updated in place.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch

from ilat_export import bundle as bundle_module
from ilat_export import precision
from ilat_export.bundle import Facts, export_bundle
from ilat_export.compare import Loss
from ilat_export.engine import Built, build_engines, parse
from ilat_export.verify import Verification
from ilat_runtime import engines
from ilat_runtime.manifest import Manifest, load_manifest
from ilat_train.models import TSVQGAN, LocalTransformer
from ilat_train.recipes import POSE

trt: Any = pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra 'rtx'")
BUNDLE = Path(__file__).parent.parent / "samples/bundles/pose-demo"
GPUS = (86, 89, 120)
NOTHING_LOST = Loss(0, 0, 1, 1, 0, 0, None)
NOT_MEASURED = Verification(0, 0, 0, 0, 0, 1, 1)


@pytest.fixture(autouse=True)
def _no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights say nothing of accuracy, and minutes would go by: the graphs are not even loaded."""
    unloaded = SimpleNamespace(backend=SimpleNamespace(load=lambda *_: None))
    monkeypatch.setattr(precision, "choose", lambda _: unloaded)
    monkeypatch.setattr(bundle_module, "verify", lambda *_: NOT_MEASURED)
    monkeypatch.setattr(precision, "compare", lambda *_: NOTHING_LOST)
    monkeypatch.setattr(precision, "_rounding_loss", lambda *_: NOTHING_LOST)


def check_engines(source: Path, work: Path) -> Manifest:
    """Half precision of a bundle, and its engines for three GPUs."""
    half = work / "half"
    precision.convert_bundle(source, half, "fp16", [])
    manifest = load_manifest(half)
    folder, record, built = build_engines(half, "tensorrt-rtx", GPUS)
    assert folder.name == f"tensorrt-rtx-{trt.__version__}-sm86-sm89-sm120"
    assert (record.targets, record.precision) == (("sm86", "sm89", "sm120"), "float16")
    assert set(built) == {"encoder", "transformer", "decoder"}
    transformer: Built = built["transformer"]
    assert transformer.cache_layers == 2 * manifest.layers, "keys and values of every layer, updated in place"
    assert transformer.attentions == manifest.layers, "fused"
    for target in record.targets:
        wanted = engines.Wanted("tensorrt-rtx", trt.__version__, target)
        assert engines.find(half, manifest, wanted) == (folder, record)
    for name, part in built.items():
        assert part.bytes > 0.9 * (half / f"{name}.onnx").stat().st_size, "with the weights"
    return manifest


@pytest.mark.skipif(not BUNDLE.is_dir(), reason=f"{BUNDLE} is not there")
def test_the_shipped_bundle(tmp_path: Path) -> None:
    check_engines(BUNDLE, tmp_path)


@pytest.mark.skipif(not BUNDLE.is_dir(), reason=f"{BUNDLE} is not there")
def test_older_operators_of_the_shipped_bundle(tmp_path: Path) -> None:
    """``--kv-cache concat`` in half precision, for JetPack 6.2; of a model of the paper's size it is the same code."""
    older = tmp_path / "older"
    precision.convert_bundle(BUNDLE, older, "fp16", [], older=True)
    for name, graph in load_manifest(older).graphs.by_name.items():
        assert onnx.load(older / graph.file).opset_import[0].version == 20
        _, network = parse(trt, older / graph.file, trt.Logger(trt.Logger.ERROR))
        kinds = {str(network.get_layer(index).type) for index in range(network.num_layers)}
        assert not any("KV_CACHE" in kind or "ATTENTION" in kind for kind in kinds), name


def test_the_size_of_the_paper(tmp_path: Path) -> None:
    """The recipe ``pose`` with random weights: 12 layers x 768, K = 16384, 256x256 pixels in 16x16 tokens."""
    torch.manual_seed(0)
    models = TSVQGAN(POSE.tokenizer), LocalTransformer(POSE.transformer)
    export_bundle(*models, tmp_path / "bundle", Facts(name="full-size", weights_licence="none, random numbers"))
    del models
    manifest = check_engines(tmp_path / "bundle", tmp_path)
    assert (manifest.layers, manifest.heads * manifest.head_size) == (12, 768)
    assert (manifest.codebook_size, manifest.image_size, manifest.factor) == (16384, 256, 16)
