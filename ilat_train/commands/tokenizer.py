"""``ilat-train tokenizer``: a data set → TS-VQGAN."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from ilat_runtime.cli.common import DONE, UsageError

from .training import add_run_options, chosen_recipe, keep_recipe, object_masks, report, run_options, training_data


def add_parser(subparsers: Any) -> None:
    """Register ``tokenizer``."""
    parser = subparsers.add_parser(
        "tokenizer",
        help="train the tokenizer",
        description="Train TS-VQGAN, which turns images into tokens and back; writes RUN/tokenizer.",
        epilog="example: ilat-train tokenizer --recipe pose-demo --data data/me --out runs/me",
    )
    parser.add_argument("--init", type=Path, metavar="CHECKPOINT", help="a tokenizer to start from")
    add_run_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.init is not None and args.resume:
        raise UsageError("--init: does not go with --resume, which has its own weights")
    recipe = chosen_recipe(args, args.out)

    from ..checkpoint import load_tokenizer
    from ..run import check_folder
    from ..train_tokenizer import train_tokenizer

    begun = time.perf_counter()
    options = run_options(args, "tokenizer")
    check_folder(options)
    initial = None if args.init is None else load_tokenizer(args.init)
    training = recipe.tokenizer_training
    masked = training.masked_steps or training.decoder_steps
    objects = object_masks(args, training.masks if masked else (), "tokenizer_training.masks")
    data = training_data(args, recipe)
    keep_recipe(args, recipe)
    model = train_tokenizer(recipe, data, options, initial, objects)
    report(
        args,
        "tokenizer",
        recipe.tokenizer_training.steps,
        sum(parameter.numel() for parameter in model.parameters()),
        time.perf_counter() - begun,
        ["ilat-train", "transformer", "--data", args.data, "--out", args.out],
    )
    return DONE
