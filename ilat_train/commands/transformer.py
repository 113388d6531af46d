"""``ilat-train transformer``: a data set and a trained tokenizer → the local autoregressive transformer."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from ilat_runtime.cli.common import DONE, UsageError
from ilat_runtime.errors import InputError

from ..config import SKETCH_TOKENIZER
from .training import (
    add_run_options,
    chosen_recipe,
    first_process,
    keep_recipe,
    object_masks,
    report,
    run_options,
    training_data,
)


def add_parser(subparsers: Any) -> None:
    """Register ``transformer``."""
    parser = subparsers.add_parser(
        "transformer",
        help="train the transformer",
        description="Train the local autoregressive transformer on tokens of RUN/tokenizer; writes RUN/transformer.",
        epilog="example: ilat-train transformer --data data/me --out runs/me",
    )
    parser.add_argument(
        "--tokenizer", type=Path, metavar="CHECKPOINT", help="use this tokenizer, copied to RUN (RUN/tokenizer)"
    )
    parser.add_argument(
        "--sketch-tokenizer",
        type=Path,
        metavar="CHECKPOINT",
        help=f"of the sketches that are the condition (recipe face), copied to RUN (RUN/{SKETCH_TOKENIZER})",
    )
    add_run_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    source = args.tokenizer or args.out / "tokenizer"
    sketch_source = args.sketch_tokenizer or args.out / SKETCH_TOKENIZER
    recipe = chosen_recipe(args, args.out, source.parent)
    if recipe.task == "sketches":
        raise InputError(f"recipe {recipe.name!r}: it has a tokenizer only; use the recipe of the images, such as face")
    sketched = recipe.task == "images" and "condition" in recipe.transformer.blocks
    if args.sketch_tokenizer is not None and not sketched:
        raise UsageError(f"--sketch-tokenizer: the condition of recipe {recipe.name!r} is no sketch")

    from .. import checkpoint
    from ..run import check_folder
    from ..train_transformer import train_transformer

    begun = time.perf_counter()
    options = run_options(args, "transformer")
    check_folder(options)
    if args.tokenizer is None and not source.is_dir():
        raise InputError(f"{source}: missing; train it with: ilat-train tokenizer --out {args.out}")
    if sketched and args.sketch_tokenizer is None and not sketch_source.is_dir():
        raise InputError(
            f"{sketch_source}: missing; train it with: ilat-train tokenizer --recipe face-sketch, then pass it as "
            "--sketch-tokenizer"
        )
    tokenizer = checkpoint.load_tokenizer(source)
    sketch_tokenizer = checkpoint.load_tokenizer(sketch_source) if sketched else None
    objects = object_masks(args, recipe.transformer_training.masks, "transformer_training.masks")
    data = training_data(args, recipe)
    keep_recipe(args, recipe)
    for folder, model, name in ((source, tokenizer, "tokenizer"), (sketch_source, sketch_tokenizer, SKETCH_TOKENIZER)):
        if first_process() and model is not None and folder.resolve() != (args.out / name).resolve():
            checkpoint.save(args.out / name, model, checkpoint.read_config(folder)["facts"])
    transformer = train_transformer(recipe, tokenizer, data, options, data.facts(), sketch_tokenizer, objects)
    report(
        args,
        "transformer",
        recipe.transformer_training.steps,
        sum(parameter.numel() for parameter in transformer.parameters()),
        time.perf_counter() - begun,
        ["ilat-export", args.out, "--out", Path("bundles") / args.out.name],
    )
    return DONE
