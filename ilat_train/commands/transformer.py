"""``ilat-train transformer``: a data set and a trained tokenizer → the local autoregressive transformer."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from ilat_runtime.cli.common import DONE
from ilat_runtime.errors import InputError

from .training import add_run_options, chosen_recipe, first_process, keep_recipe, report, run_options, training_data


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
    add_run_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    source = args.tokenizer or args.out / "tokenizer"
    recipe = chosen_recipe(args, args.out, source.parent)
    if recipe.task != "pose":
        raise InputError(
            f"recipe {recipe.name!r}: the transformer of task 'images' needs sketches, which this version cannot make"
        )

    from .. import checkpoint
    from ..data.dataset import PoseDataset
    from ..run import check_folder
    from ..train_transformer import train_transformer

    begun = time.perf_counter()
    options = run_options(args, "transformer")
    check_folder(options)
    if args.tokenizer is None and not source.is_dir():
        raise InputError(f"{source}: missing; train it with: ilat-train tokenizer --out {args.out}")
    tokenizer = checkpoint.load_tokenizer(source)
    data = training_data(recipe, args.data)
    keep_recipe(args, recipe)
    if first_process() and source.resolve() != (args.out / "tokenizer").resolve():
        checkpoint.save(args.out / "tokenizer", tokenizer, checkpoint.read_config(source)["facts"])
    facts = data.facts() if isinstance(data, PoseDataset) else None
    model = train_transformer(recipe, tokenizer, data, options, facts)
    report(
        args,
        "transformer",
        recipe.transformer_training.steps,
        sum(parameter.numel() for parameter in model.parameters()),
        time.perf_counter() - begun,
        ["ilat-export", args.out, "--out", Path("bundles") / args.out.name],
    )
    return DONE
