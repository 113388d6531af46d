"""What ``ilat-train tokenizer`` and ``ilat-train transformer`` share: options, the recipe of a run, the report."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ilat_runtime.cli.common import UsageError, add_output_options, emit, human_size, human_time
from ilat_runtime.errors import InputError
from ilat_runtime.output_file import write_bytes

from ..config import Recipe, load_json, override
from ..recipes import RECIPES, recipe

if TYPE_CHECKING:
    from ..data.dataset import PoseDataset
    from ..data.image_folder import ImageFolder
    from ..data.object_masks import ObjectMasks
    from ..run import RunOptions

RECIPE_FILE = "recipe.json"
"""In the folder of a run: the recipe it was begun with, ``--set`` included."""


def whole(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    return _at_least(text, 1)


def natural(text: str) -> int:
    """A whole number of at least 0, for argparse."""
    return _at_least(text, 0)


def _at_least(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number of at least {least}")
    return number


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options of a training."""
    parser.add_argument(
        "--recipe", choices=list(RECIPES), help="model, data, steps and rates; by default those that RUN has already"
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="a data set, or a folder of images (FFHQ, CelebA-HQ, yours)",
    )
    parser.add_argument(
        "--sketches",
        type=Path,
        metavar="DIR",
        help="sketches of those images, as `ilat-train data sketch` writes them; default: drawn as they are needed",
    )
    parser.add_argument(
        "--masks",
        type=Path,
        metavar="PATH",
        help="objects to mask, for recipes that do: COCO's instances_*.json, or a folder of masks, white on black",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="the run's folder")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="assignments",
        metavar="KEY=VALUE",
        help="change the recipe, as in tokenizer_training.batch_size=8; may be repeated",
    )
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="of weights and batches (%(default)s)")
    parser.add_argument("--devices", type=whole, default=1, metavar="N", help="GPUs, or processes on a CPU")
    parser.add_argument(
        "--accelerator", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute (%(default)s)"
    )
    parser.add_argument("--threads", type=whole, metavar="N", help="CPU threads of each process")
    parser.add_argument("--stop-at", type=natural, metavar="STEP", help="stop there; --resume goes on later")
    parser.add_argument("--save-every", type=whole, default=500, metavar="STEPS", help="between saves (%(default)s)")
    parser.add_argument(
        "--sample-every", type=whole, default=500, metavar="STEPS", help="between sample sheets (%(default)s)"
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on where the run in RUN was saved")
    again.add_argument("--force", action="store_true", help="start anew, replacing what RUN holds")
    add_output_options(parser)


def chosen_recipe(args: argparse.Namespace, *runs: Path) -> Recipe:
    """``--recipe``, else that of the first of the runs' folders that has one; ``--set`` applied.

    Raises:
        UsageError: there is no recipe, or an assignment is wrong.
        InputError: a run's recipe.json is damaged.
    """
    files = [folder / RECIPE_FILE for folder in runs if (folder / RECIPE_FILE).is_file()]
    if args.recipe is not None:
        result = recipe(args.recipe)
    elif files:
        result = load_json(Recipe, files[0])
    else:
        raise UsageError(f"--recipe: missing, and {args.out / RECIPE_FILE} is not there; one of {', '.join(RECIPES)}")
    try:
        return override(result, args.assignments)
    except InputError as error:
        raise UsageError(str(error)) from None


def keep_recipe(args: argparse.Namespace, recipe: Recipe) -> None:
    """Write the recipe of a run that begins; one that goes on has it."""
    if first_process() and not args.resume:
        args.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(recipe.model_dump(mode="json"), indent=2) + "\n"
        write_bytes(args.out / RECIPE_FILE, text.encode())


def run_options(args: argparse.Namespace, part: str) -> RunOptions:
    """The options of training ``part`` of a run."""
    from ..run import RunOptions

    return RunOptions(
        args.out / part,
        seed=args.seed,
        resume=args.resume,
        force=args.force,
        devices=args.devices,
        accelerator=args.accelerator,
        threads=args.threads,
        stop_at=args.stop_at,
        save_every=args.save_every,
        sample_every=args.sample_every,
        progress=not args.quiet,
    )


def training_data(args: argparse.Namespace, recipe: Recipe) -> PoseDataset | ImageFolder:
    """The data that the recipe's task trains on.

    Raises:
        UsageError: sketches for a task without.
        InputError: the folder is not of the kind that the task takes.
    """
    from ..data.dataset import PoseDataset
    from ..data.image_folder import ImageFolder, SketchFolder

    size = recipe.tokenizer.image_size
    if recipe.task == "pose":
        if args.sketches is not None:
            raise UsageError(f"--sketches: recipe {recipe.name!r} trains on poses")
        return PoseDataset(args.data, recipe.data, size)
    if recipe.task == "sketches":
        return SketchFolder(args.data, recipe.data, size, sketches=args.sketches)
    return ImageFolder(args.data, recipe.data, size, "condition" in recipe.transformer.blocks, args.sketches)


def object_masks(args: argparse.Namespace, kinds: Sequence[str], key: str) -> ObjectMasks | None:
    """What masks of kind ``object`` are drawn from, if ``kinds``, the recipe's value of ``key``, has it.

    Raises:
        UsageError: ``--masks`` is missing, or of no use.
        InputError: it holds no masks.
    """
    if "object" not in kinds:
        if args.masks is not None:
            raise UsageError(f"--masks: the recipe draws no masks of objects ({key}: {', '.join(kinds)})")
        return None
    if args.masks is None:
        others = json.dumps(["blob" if kind == "object" else kind for kind in kinds])
        raise UsageError(
            "--masks: missing, the recipe masks objects (COCO's instances_*.json, or a folder of masks); or mask "
            f"random blobs, which are not the paper's: --set '{key}={others}'"
        )
    from ..data.object_masks import ObjectMasks

    return ObjectMasks(args.masks)


def first_process() -> bool:
    """Whether this is the process that the user started: with several devices the others run the command again."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def report(
    args: argparse.Namespace, part: str, total: int, parameters: int, seconds: float, then: Sequence[object]
) -> None:
    """What was written, its size, the time it took and the next command.

    Args:
        total: steps of the recipe; a run that stopped before is to be resumed.
        then: the words of the command that comes after the last step.
    """
    if not first_process():
        return
    from ..checkpoint import read_config

    folder = args.out / part
    steps: Any = read_config(folder)["facts"]["steps"]
    size = (folder / "model.safetensors").stat().st_size
    if steps < total:
        then = ["ilat-train", part, "--data", args.data, "--out", args.out, "--resume"]
        then += ["--seed", args.seed] if args.seed else []
        then += ["--devices", args.devices] if args.devices > 1 else []
    following = shlex.join(str(word) for word in then)
    text = [
        f"{folder}: {steps} of {total} steps, {parameters / 1e6:.1f} million parameters, {human_size(size)}, "
        f"in {human_time(seconds)}",
        f"samples: {folder / 'samples'}; curves: tensorboard --logdir {args.out}",
        f"next: {following}",
    ]
    data = {
        "out": str(folder),
        "steps": steps,
        "total_steps": total,
        "parameters": parameters,
        "bytes": size,
        "seconds": round(seconds, 3),
        "next": following,
    }
    emit(args, "\n".join(text), data)
