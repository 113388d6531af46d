"""``ilat-export``: a training run to a verified bundle."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ilat_runtime.cli.common import (
    DONE,
    Parser,
    add_output_options,
    emit,
    human_size,
    human_time,
    new_parser,
    run_parser,
    shows_progress,
    stop_on_terminate,
)
from ilat_runtime.errors import InputError
from ilat_train.config import SKETCH_TOKENIZER

if TYPE_CHECKING:
    from ilat_train.models import LocalTransformer

    from .facts import RunFacts
    from .verify import Sample, Verification

PARTS = ("tokenizer", "transformer")
HELD_OUT = 8
"""Held-out pairs that the graphs are verified on."""


def build_parser() -> Parser:
    """The command line's parser."""
    parser = new_parser(
        "ilat-export",
        "Write a trained model as a bundle: ONNX graphs and a manifest. Every graph is compared with PyTorch on random "
        "and real inputs; a bundle that misses its tolerance is not written.",
    )
    add = parser.add_argument
    add(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT_DIR",
        help="a run's folder, with tokenizer/ and transformer/, and sketch-tokenizer/ where the condition is a sketch",
    )
    add("--out", type=Path, required=True, metavar="BUNDLE", help="the bundle's folder")
    add("--name", metavar="TEXT", help="the model's name; default: that of --out")
    add(
        "--weights",
        choices=("float16", "float32"),
        default="float16",
        help="how weights are stored (%(default)s); the arithmetic is float32 either way",
    )
    add(
        "--data",
        type=Path,
        metavar="DIR",
        help="data set on whose held-out frames the graphs are verified; default: the one trained on where it is "
        "found, else a photograph",
    )
    add("--weights-licence", default="not stated", metavar="TEXT", help="terms of the weights, for the manifest")
    add("--data-licence", default="not stated", metavar="TEXT", help="terms of the training data, for the manifest")
    add("--force", action="store_true", help="replace a bundle that is there")
    add_output_options(parser)
    parser.set_defaults(run=export)
    return parser


def export(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    stop_on_terminate()
    _check_run(args.checkpoint)
    begun = time.perf_counter()
    from ilat_train.checkpoint import load_tokenizer, load_transformer

    from .bundle import Facts, check_destination, export_bundle, kind_of, stages
    from .facts import read_facts

    check_destination(args.out, args.force)
    facts = read_facts(args.checkpoint / PARTS[0], args.checkpoint / PARTS[1])
    tokenizer = load_tokenizer(args.checkpoint / PARTS[0])
    transformer = load_transformer(args.checkpoint / PARTS[1])
    kind = kind_of(transformer.config)
    sketch_tokenizer = None
    if kind == "sketch":
        if not (args.checkpoint / SKETCH_TOKENIZER / "config.json").is_file():
            raise InputError(
                f"{args.checkpoint / SKETCH_TOKENIZER}: missing, the transformer's condition is a sketch; "
                "`ilat-train transformer --sketch-tokenizer` puts it there"
            )
        sketch_tokenizer = load_tokenizer(args.checkpoint / SKETCH_TOKENIZER)
    posed = kind == "pose"
    if posed:
        for key in facts.assumed:
            _say(args, f"{args.checkpoint / PARTS[1]}: facts.data.{key} is missing, {getattr(facts, key):g} is assumed")
    samples, source = _real_inputs(args, facts, transformer, tokenizer.config.image_size)
    _say(args, f"verified on {source}, besides random inputs")
    described = Facts(
        name=args.name or args.out.resolve().name,
        weights_licence=args.weights_licence,
        data_licence=args.data_licence,
        margin=facts.margin,
        dilation=facts.dilation,
        provenance=facts.provenance,
    )
    total = len(stages(kind == "sketch"))
    with tqdm(total=total, unit="stage", disable=None if shows_progress(args) else True, leave=False) as bar:

        def progress(stage: str, done: int) -> None:
            bar.set_description(stage)
            bar.update(done - bar.n)

        found = export_bundle(
            tokenizer,
            transformer,
            args.out,
            described,
            sketch_tokenizer=sketch_tokenizer,
            weights=args.weights,
            samples=samples,
            force=args.force,
            progress=progress,
        )
    _report(args, found, source, posed, time.perf_counter() - begun)
    return DONE


def _check_run(folder: Path) -> None:
    """Raises InputError when ``folder`` is no run with both checkpoints."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, expected a run of `ilat-train`")
    if (folder / "config.json").is_file() and folder.name in PARTS:
        raise InputError(f"{folder}: a part of a run, expected the folder around it: {folder.parent}")
    for part in PARTS:
        if not (folder / part / "config.json").is_file():
            raise InputError(f"{folder / part}: missing; train it with `ilat-train {part}`")


def _real_inputs(
    args: argparse.Namespace, facts: RunFacts, transformer: LocalTransformer, size: int
) -> tuple[list[Sample], str]:
    """Real inputs and a description of them."""
    from .real_inputs import held_out_samples, masked_samples, photograph

    posed = "pose" in transformer.config.blocks
    folder = args.data
    if folder is None and facts.source is not None and facts.source.is_dir():
        folder = facts.source
    if folder is None:
        return photograph(facts.margin, facts.dilation, size, posed), "a photograph (scikit-image's astronaut)"
    if posed:
        samples = held_out_samples(folder, facts.margin, facts.dilation, size, HELD_OUT)
        return samples, f"{len(samples)} pairs of held-out frames of {folder}"
    samples = masked_samples(folder, size, HELD_OUT)
    return samples, f"{len(samples)} images of {folder}"


def _say(args: argparse.Namespace, line: str) -> None:
    if not args.quiet:
        print(f"ilat-export: {line}", file=sys.stderr, flush=True)


def _report(args: argparse.Namespace, found: Verification, source: str, posed: bool, seconds: float) -> None:
    from .bundle import size

    graphs: dict[str, dict[str, Any]] = {
        "encoder": {"largest_error": found.latent_error, "of": "latents", "equal_tokens": found.encoder_tokens},
        "transformer": {
            "largest_error": found.log_probability_error,
            "of": "log-probabilities",
            "equal_tokens": found.decoded_tokens,
        },
        "decoder": {"largest_error": found.image_error, "of": "levels of 255", "equal_tokens": None},
    }
    if found.sketch_pixels is not None:
        graphs["sketch"] = {"largest_error": 1 - found.sketch_pixels, "of": "pixels", "equal_tokens": None}
    for name, row in graphs.items():
        row["bytes"] = (args.out / f"{name}.onnx").stat().st_size
    total = size(args.out)
    out = shlex.quote(str(args.out))
    words = "--pose pose.json" if posed else "--mask mask.png"
    if found.sketch_pixels is not None:
        words += " --sketch sketch.png"
    edit = f"ilat-edit photo.jpg --bundle {out} {words} --out edited.png"
    rows = [("graph", "size", "largest error", "equal tokens")]
    for name, row in graphs.items():
        equal = "" if row["equal_tokens"] is None else _percent(row["equal_tokens"])
        rows.append((name, human_size(row["bytes"]), f"{row['largest_error']:.2g} ({row['of']})", equal))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    text = [*table, f"{args.out}: {human_size(total)}, in {human_time(seconds)}", f"next: {edit}"]
    data = {
        "out": str(args.out),
        "bytes": total,
        "seconds": round(seconds, 3),
        "graphs": graphs,
        "verification": found.record(),
        "verified_on": source,
        "next": edit,
    }
    emit(args, "\n".join(text), data)


def _percent(share: float) -> str:
    """All equal and nearly all equal must not look the same."""
    return "100 %" if share == 1 else f"{min(share * 100, 99.99):.2f} %"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``ilat-export``; returns the exit code."""
    return run_parser(build_parser(), arguments)


if __name__ == "__main__":
    raise SystemExit(main())
