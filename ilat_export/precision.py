"""A float32 bundle in another precision or in older operators, compared with it on real inputs before it is written."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import onnx

from ilat_runtime import manifest
from ilat_runtime.backends import Backend, choose
from ilat_runtime.errors import InputError
from ilat_runtime.manifest import Manifest

from . import older_ops
from .compare import Loss, compare
from .destination import check_destination, replacing_folder
from .half import KEPT, rounded, to_half
from .sample import Graphs, Sample
from .to_onnx import save, store_half
from .verify import VerificationError
from .weight_only import quantize

Precision = Literal["fp32", "fp16", "int8", "int4"]
Progress = Callable[[str, int], None]
"""Called with the stage that begins and the number of stages that are done; at the end with ``"done"``."""

STAGES = ("conversion", "comparison")
BITS = {"int8": 8, "int4": 4}


@dataclass(frozen=True)
class Floor:
    """The least that a bundle must keep of float32: shares of equal tokens, and dB between decoded images."""

    encoder_tokens: float
    decoded_tokens: float
    psnr: float

    def missed(self, loss: Loss) -> str | None:
        """What is below the floor, for people; None when nothing is."""
        for name, value, least, unit in (
            ("share of equal image tokens of the encoder", loss.encoder_tokens, self.encoder_tokens, ""),
            ("share of equal tokens of the transformer", loss.decoded_tokens, self.decoded_tokens, ""),
            ("PSNR between decoded images", loss.psnr, self.psnr, " dB"),
        ):
            if value is not None and value < least:
                return f"{name} is {value:.4g}{unit}, the floor is {least:g}{unit}"
        return None


FLOORS: dict[Precision, Floor] = {
    "fp32": Floor(0.999, 0.999, 50),
    "fp16": Floor(0.99, 0.99, 40),
    "int8": Floor(0.99, 0.97, 40),
    "int4": Floor(0.99, 0.80, 40),
}


def convert_bundle(
    source: Path,
    out: Path,
    precision: Precision,
    samples: Sequence[Sample],
    *,
    older: bool = False,
    name: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> tuple[Loss, str | None]:
    """Writes the bundle ``out``: that of ``source`` in another precision, in older operators, or both.

    Args:
        source: a bundle that computes in float32, with graphs that :mod:`ilat_export.bundle` made.
        samples: real inputs to compare the two on.
        older: write graphs in operators of opset 20, see :mod:`ilat_export.older_ops`.
        name: the model's name; None: that of the source.
        force: replace a bundle that is there, and write one that is below its floor.
        progress: called as each of :data:`STAGES` begins.

    Returns:
        What was lost, and what of it is below the floor, if anything (only with ``force``).

    Raises:
        BundleError: the source is no sound bundle.
        InputError: the source is not float32.
        OutputError: ``out`` exists and ``force`` is false, or it cannot be written.
        VerificationError: the floor is missed and ``force`` is false; nothing is written.
    """

    def report(stage: str, done: int) -> None:
        if progress is not None:
            progress(stage, done)

    check_destination(out, force)
    known = manifest.load_manifest(source)
    manifest.verify_files(source, known)
    if known.precision.compute != "float32" or known.precision.weights not in ("float32", "float16"):
        raise InputError(
            f"{source}: precision: computes in {known.precision.compute} with {known.precision.weights} weights; "
            "expected a float32 bundle, as ilat-export writes without --fp16, --int8 or --int4"
        )
    if known.graphs.transformer.opset == older_ops.OPSET:
        raise InputError(f"{source}: graphs.transformer.opset: {older_ops.OPSET}, expected graphs of today's operators")
    backend = choose("onnxruntime").backend
    graphs = {key: backend.load(source / record.file, record) for key, record in known.graphs.by_name.items()}
    with replacing_folder(out) as folder:
        report(STAGES[0], 0)
        changed = _converted(source, folder, known, precision, older)
        report(STAGES[1], 1)
        others = {key: backend.load(folder / r.file, r) for key, r in changed.graphs.by_name.items()}
        loss = compare(known, graphs, others, samples)
        if precision == "fp16":
            loss = loss.worst(_rounding_loss(source, known, backend, graphs, samples, older))
        floor = FLOORS[precision]
        missed = floor.missed(loss)
        if missed and not force:
            raise VerificationError(f"{precision}: {missed}; no bundle was written (--force writes it all the same)")
        record = {"precision": precision, **loss.record(), "floor": asdict(floor), "below_floor": missed is not None}
        if precision == "fp16":
            record["kept_float32"] = list(KEPT)
        changed = changed.model_copy(
            update={"name": name or known.name, "verification": {**known.verification, "against_float32": record}}
        )
        manifest.write_manifest(folder, changed)
    report("done", len(STAGES))
    return loss, missed


def _converted(source: Path, folder: Path, known: Manifest, precision: Precision, older: bool) -> Manifest:
    """Writes the graphs to ``folder``; returns the manifest that goes with them."""
    converted = known.precision.model_dump()
    if precision == "fp16":
        converted = {"compute": "float16", "weights": "float16"}
    elif precision in BITS:
        converted["weights"] = precision
    changed = known.model_copy(update={"precision": manifest.Precision.model_validate(converted)})
    records, files = {}, {}
    for name, (inputs, outputs) in manifest.signatures(changed).items():
        opset = older_ops.OPSET if older else known.graphs.by_name[name].opset
        model = _loaded(source, known, name, older)
        # The sketch's threshold is steep, and it is drawn once for an edit: it stays float32.
        if precision == "fp16" and name != "sketch":
            model = to_half(model)
        elif precision in BITS and name == "transformer":
            model = quantize(model, BITS[precision])
        file = f"{name}.onnx"
        save(store_half(model) if converted["weights"] != "float32" else model, folder / file)
        files[file] = manifest.file_record(folder / file)
        records[name] = manifest.Graph(file=file, opset=opset, inputs=inputs, outputs=outputs)
    return changed.model_copy(update={"graphs": manifest.Graphs(**records), "files": files})


def _loaded(source: Path, known: Manifest, name: str, older: bool) -> onnx.ModelProto:
    model = onnx.load(source / known.graphs.by_name[name].file)
    return older_ops.older_ops(model) if older else model


def _rounding_loss(
    source: Path, known: Manifest, backend: Backend, graphs: Graphs, samples: Sequence[Sample], older: bool
) -> Loss:
    """Of the float16 graphs where each result is rounded; the CPU's kernels round less, see :func:`half.rounded`."""
    with tempfile.TemporaryDirectory() as folder:
        others = dict(graphs)
        for name, record in known.graphs.by_name.items():
            if name != "sketch":
                path = Path(folder) / f"{name}.onnx"
                save(rounded(_loaded(source, known, name, older)), path)
                others[name] = backend.load(path, record.model_copy(update={"opset": older_ops.OPSET} if older else {}))
        return compare(known, graphs, others, samples)
