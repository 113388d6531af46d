"""Trained models to a bundle: verified graphs and the manifest."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from torch import nn

from ilat_runtime import __version__, manifest
from ilat_runtime.errors import InputError
from ilat_runtime.joints import JOINTS
from ilat_train.config import TokenizerConfig, TransformerConfig
from ilat_train.models import TSVQGAN, LocalTransformer

from .destination import check_destination, replacing_folder
from .graphs import DecoderGraph, EncoderGraph, SketchEncoderGraph, SketchGraph, TransformerGraph
from .sample import Sample, random_sample
from .to_onnx import OPSET, round_to_half, save, store_half, to_onnx
from .verify import Tolerance, Verification, verify

EXAMPLE = {"B": 2, "h": 48, "w": 40, "P": 3, "q": 5, "u": 5}
"""Sizes of the named dimensions during export, distinct so that none is taken for another; u and v, the noise's, are
broadcast to q and K.
"""
SPARE_SLOTS = 8
"""Of the cache, beyond the sequence: rows of padding in a batch need a slot too."""

Kind = Literal["pose", "sketch", "none"]

Progress = Callable[[str, int], None]
"""Called with the stage that begins and the number of stages that are done; at the end with ``"done"``."""


def kind_of(config: TransformerConfig) -> Kind:
    """What conditions the edits of a transformer besides the image."""
    if "pose" in config.blocks:
        return "pose"
    return "sketch" if "condition" in config.blocks else "none"


def stages(sketched: bool) -> tuple[str, ...]:
    """What an export does, in order; ``sketched`` for bundles of kind ``sketch``."""
    return ("encoder", "transformer", "decoder", *(("sketch",) if sketched else ()), "verification")


@dataclass(frozen=True)
class Facts:
    """What a bundle says of itself and the models do not know."""

    name: str
    weights_licence: str = "not stated"
    data_licence: str = "not stated"
    margin: float = 1.3
    dilation: float = 0.09
    provenance: dict[str, Any] = field(default_factory=dict)


def describe(
    tokenizer: TSVQGAN,
    transformer: LocalTransformer,
    facts: Facts,
    weights: str,
    sketch_tokenizer: TSVQGAN | None = None,
) -> manifest.Manifest:
    """The manifest but for what is measured: its files' sizes and sha256 and its verification.

    Raises:
        InputError: the models do not belong together.
        BundleError: they are of a kind that no runtime edits with, or the facts are not what a manifest takes.
    """
    image, sequence = tokenizer.config, transformer.config
    if sequence.image_tokens != image.grid**2 or sequence.codebook_size != image.codebook_size:
        raise InputError(
            f"transformer: {sequence.image_tokens} tokens of {sequence.codebook_size} values, but the tokenizer makes "
            f"{image.grid**2} of {image.codebook_size}"
        )
    kind = kind_of(sequence)
    _check_sketches(kind, image, sequence, sketch_tokenizer)
    graph = manifest.Graph(file="-", opset=OPSET, inputs={}, outputs={})
    description = manifest.Manifest.model_construct(
        format="ilat-bundle",
        format_version=1,
        name=facts.name,
        kind=kind,
        created_with=f"ilat {__version__}",
        image_size=image.image_size,
        factor=image.factor,
        codebook_size=image.codebook_size,
        condition_vocabulary=sequence.condition_vocabulary,
        latent_channels=image.codebook_channels,
        joints=JOINTS if kind == "pose" else None,
        numbering=sequence.numbering,
        layout=cast("tuple[manifest.Block, ...]", sequence.blocks),
        cache_capacity=sequence.layout.length + SPARE_SLOTS,
        layers=sequence.layers,
        heads=sequence.heads,
        head_size=sequence.head_size,
        vocabulary=manifest.Vocabulary(
            target_offset=transformer.target_offset,
            start_condition=transformer.start_condition,
            start_target=transformer.start_target,
            pose=transformer.pose,
        ),
        crop=manifest.CropRule.model_construct(margin=facts.margin, dilation=facts.dilation)
        if kind == "pose"
        else None,
        precision=manifest.Precision.model_validate({"compute": "float32", "weights": weights}),
        leak_free=image.two_stream and not image.leaky,
        graphs=manifest.Graphs(encoder=graph, transformer=graph, decoder=graph),
        files={},
        verification={},
        licence=manifest.Licence.model_construct(weights=facts.weights_licence, data=facts.data_licence),
        provenance=facts.provenance,
    )
    graphs = {
        name: manifest.Graph(file=f"{name}.onnx", opset=OPSET, inputs=inputs, outputs=outputs)
        for name, (inputs, outputs) in manifest.signatures(description).items()
    }
    unmeasured = manifest.FileRecord(sha256="0" * 64, bytes=0)
    files = {graph.file: unmeasured for graph in graphs.values()}
    description = description.model_copy(update={"graphs": manifest.Graphs(**graphs), "files": files})
    return manifest.parse_manifest(description.model_dump_json(), "the bundle's manifest")


def _check_sketches(
    kind: str, image: TokenizerConfig, sequence: TransformerConfig, sketch_tokenizer: TSVQGAN | None
) -> None:
    """Raises InputError unless there is a tokenizer of sketches just where the transformer wants its tokens."""
    if kind != "sketch":
        if sketch_tokenizer is not None:
            raise InputError(f"sketch tokenizer: a transformer of kind {kind!r} takes no sketch")
        return
    if sketch_tokenizer is None:
        raise InputError("sketch tokenizer: missing, the transformer's condition is a sketch")
    lines = sketch_tokenizer.config
    if lines.in_channels != 1:
        raise InputError(f"sketch tokenizer: in_channels {lines.in_channels}, expected 1: grey lines")
    if lines.grid != image.grid or lines.codebook_size != sequence.condition_vocabulary:
        raise InputError(
            f"sketch tokenizer: {lines.grid**2} tokens of {lines.codebook_size} values, but the transformer takes "
            f"{image.grid**2} of {sequence.condition_vocabulary}"
        )


def export_bundle(
    tokenizer: TSVQGAN,
    transformer: LocalTransformer,
    out: Path,
    facts: Facts,
    *,
    sketch_tokenizer: TSVQGAN | None = None,
    weights: Literal["float16", "float32"] = "float16",
    samples: list[Sample] | None = None,
    tolerance: Tolerance | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Writes the bundle folder ``out``, complete and verified or not at all.

    Args:
        sketch_tokenizer: of the condition, where that is a sketch.
        weights: how weights are stored; the arithmetic is float32 either way. ``float16`` halves the files.
        samples: real inputs to verify the graphs on, besides random ones.
        progress: called as each of :func:`stages` begins.

    Raises:
        InputError: the models do not belong together.
        BundleError: as :func:`describe`.
        OutputError: ``out`` exists and ``force`` is false, or it cannot be written.
        VerificationError: a graph differs from PyTorch by more than the tolerance; nothing is written.
    """

    def report(stage: str, done: int) -> None:
        if progress is not None:
            progress(stage, done)

    check_destination(out, force)
    tokenizer, transformer = copy.deepcopy(tokenizer).eval(), copy.deepcopy(transformer).eval()
    sketch_tokenizer = copy.deepcopy(sketch_tokenizer)
    if weights == "float16":
        for model in (tokenizer, transformer, sketch_tokenizer):
            if model is not None:
                round_to_half(model)
    description = describe(tokenizer, transformer, facts, weights, sketch_tokenizer)
    modules: dict[str, nn.Module] = {
        "encoder": EncoderGraph(tokenizer),
        "transformer": TransformerGraph(transformer),
        "decoder": DecoderGraph(tokenizer),
    }
    if sketch_tokenizer is not None:
        modules["encoder"] = SketchEncoderGraph(tokenizer, sketch_tokenizer.eval())
        modules["sketch"] = SketchGraph(description.image_size)
    with replacing_folder(out) as folder:
        files = {}
        for done, (name, module) in enumerate(modules.items()):
            report(name, done)
            graph: manifest.Graph = getattr(description.graphs, name)
            graph_model = to_onnx(module, graph.inputs, graph.outputs, EXAMPLE | {"v": description.codebook_size})
            save(store_half(graph_model) if weights == "float16" else graph_model, folder / graph.file)
            files[graph.file] = manifest.file_record(folder / graph.file)
        report("verification", len(modules))
        complete = description.model_copy(update={"files": files})
        random = [random_sample(complete, np.random.default_rng(seed)) for seed in range(2)]
        found = verify(folder, complete, modules, random, samples or [], tolerance or Tolerance())
        complete = complete.model_copy(update={"verification": found.record()})
        manifest.write_manifest(folder, complete)
    report("done", len(modules) + 1)
    return found
