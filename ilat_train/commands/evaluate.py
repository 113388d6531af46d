"""``ilat-train eval``: bundles against held-out frames."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ilat_runtime.cli.common import DONE, UsageError, add_output_options, emit, human_time, shows_progress
from ilat_runtime.output_file import check_output, write_bytes

from .training import whole

if TYPE_CHECKING:
    from ..evaluation.evaluate import Method

TABLE, NUMBERS, SHEET = "results-table.md", "results.json", "results-sheet.jpg"


def add_parser(subparsers: Any) -> None:
    """Register ``eval``."""
    parser = subparsers.add_parser(
        "eval",
        help="measure bundles on held-out frames",
        description="Re-pose held-out frames with bundles and compare the results with the true frames: PSNR, SSIM, "
        "MAE and LPIPS inside the mask and over the whole crop, beside copying the reference and OpenCV's inpainting.",
        epilog="example: ilat-train eval --data data/me --bundle ours=bundles/me --out results",
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="a data set with held-out frames")
    parser.add_argument(
        "--bundle", action="append", required=True, dest="bundles", metavar="NAME=DIR", help="may be repeated"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="RUN",
        help="also decode the true tokens with RUN's tokenizer: the bound above",
    )
    parser.add_argument("--pairs", type=whole, default=40, metavar="N", help="pairs of frames (%(default)s)")
    parser.add_argument(
        "--references",
        choices=("any", "held-out"),
        default="any",
        help="where the photograph to edit comes from: any other frame of the target's clip, or a held-out one, whose "
        "pose differs less (%(default)s)",
    )
    parser.add_argument(
        "--lpips", choices=("vgg", "alex", "none"), default="vgg", help="backbone of LPIPS (%(default)s)"
    )
    parser.add_argument("--threads", type=whole, metavar="N", help="CPU threads")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"write {TABLE}, {NUMBERS} and {SHEET} there")
    parser.add_argument("--force", action="store_true", help="replace such files")
    add_output_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    folders = _bundles(args.bundles)
    files = _outputs(args)

    import torch

    from ilat_runtime import Editor
    from ilat_runtime.errors import InputError
    from ilat_runtime.image_file import write_image

    from ..checkpoint import load_tokenizer
    from ..config import DataConfig
    from ..data.dataset import PoseDataset
    from ..evaluation import evaluate as work
    from ..losses.lpips import load_lpips

    begun = time.perf_counter()
    if args.threads:
        torch.set_num_threads(args.threads)
    editors = {name: Editor(folder, threads=args.threads) for name, folder in folders.items()}
    size, margin, dilation = work.common_rule(editors)
    methods: dict[str, Method] = {work.COPY: work.copy_reference, work.TELEA: work.inpaint}
    methods |= {name: work.bundle_method(editor) for name, editor in editors.items()}
    if args.checkpoint is not None:
        folder = args.checkpoint / "tokenizer"
        tokenizer = load_tokenizer(folder if folder.is_dir() else args.checkpoint)
        if tokenizer.config.image_size != size:
            raise InputError(
                f"{folder}: images of {tokenizer.config.image_size} pixels, but the bundles' are of {size}"
            )
        methods[work.TRUE_TOKENS] = work.true_tokens_method(tokenizer)
    if len(methods) < len(folders) + 2 + (args.checkpoint is not None):
        raise UsageError(f"--bundle: {work.COPY!r}, {work.TELEA!r} and {work.TRUE_TOKENS!r} are names of other rows")
    perceptual = None if args.lpips == "none" else load_lpips(args.lpips)
    config = DataConfig(dilation=dilation) if margin is None else DataConfig(margin=margin, dilation=dilation)
    data = PoseDataset(args.data, config, size)
    chosen = work.examples(data, data.held_out_pairs(args.pairs, references=args.references))
    found = work.evaluate(chosen, methods, perceptual, shows_progress(args))
    seconds = time.perf_counter() - begun
    text = [found.table()]
    if files:
        write_bytes(files[TABLE], found.table().encode())
        write_bytes(files[NUMBERS], (json.dumps(found.record(), indent=1, allow_nan=False) + "\n").encode())
        write_image(files[SHEET], found.sheet(), force=True)
        text += [f"{file}: {file.stat().st_size:,} bytes" for file in files.values()]
    text.append(f"measured in {human_time(seconds)}")
    written = {name: str(file) for name, file in files.items()}
    emit(args, "\n".join(text), found.record() | {"files": written, "seconds": round(seconds, 3)})
    return DONE


def _bundles(texts: list[str]) -> dict[str, Path]:
    result: dict[str, Path] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not equals or not name or not folder:
            raise UsageError(f"--bundle {text}: expected NAME=DIR")
        if name in result:
            raise UsageError(f"--bundle {text}: the name {name!r} is given twice")
        result[name] = Path(folder)
    return result


def _outputs(args: argparse.Namespace) -> dict[str, Path]:
    """The files to write, checked before the work is done."""
    if args.out is None:
        return {}
    args.out.mkdir(parents=True, exist_ok=True)
    return {name: check_output(args.out / name, [Path(name).suffix], args.force) for name in (TABLE, NUMBERS, SHEET)}
