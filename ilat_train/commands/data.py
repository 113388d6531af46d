"""``ilat-train data``: a person's own videos → a data set; photographs → their sketches."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ilat_runtime.cli.common import (
    DONE,
    Parser,
    UsageError,
    add_output_options,
    emit,
    human_size,
    human_time,
    shows_progress,
)
from ilat_runtime.errors import OutputError
from ilat_runtime.joints import JOINTS

from .training import whole


def add_parser(subparsers: Any) -> None:
    """Register ``data`` and its kinds."""
    parser = subparsers.add_parser("data", help="make a data set", description="Make a data set.")
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True, parser_class=Parser)
    video = kinds.add_parser(
        "pose-video",
        help="from videos of a person",
        description="Turn videos of one person into frames and body landmarks, split by time into training and test.",
    )
    video.add_argument("videos", nargs="+", type=Path, metavar="VIDEO")
    video.add_argument("--out", type=Path, required=True, metavar="DIR", help="the data set's folder")
    video.add_argument(
        "--max-side", type=int, default=960, help="longer side of the stored frames, pixels (%(default)s)"
    )
    video.add_argument(
        "--dilation", type=float, default=0.09, help="radius of the skeleton mask, relative to the body (%(default)s)"
    )
    video.add_argument("--test-share", type=float, default=0.2, help="last share of each clip held out (%(default)s)")
    video.add_argument(
        "--least-visible",
        type=float,
        default=0.1,
        help="probability from which on a landmark counts as visible (%(default)s); low, so that masks cover the body",
    )
    video.add_argument("--threads", type=int, default=1, help="CPU threads of the pose model (%(default)s)")
    video.add_argument("--force", action="store_true", help="replace a data set that is there")
    add_output_options(video)
    video.set_defaults(run=_run)
    _add_sketch(kinds)


def _add_sketch(kinds: Any) -> None:
    sketch = kinds.add_parser(
        "sketch",
        help="sketches of photographs",
        description="Draw sketches of photographs by XDoG: dark lines on white, as the face models are conditioned on.",
        epilog="examples: ilat-train data sketch face.png --out sketches; "
        "ilat-train data sketch data/ffhq --out data/ffhq-sketches --square",
    )
    sketch.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="a picture, or a folder of pictures")
    sketch.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="sketches, as PNG, by the pictures' names and folders"
    )
    sketch.add_argument(
        "--size",
        type=whole,
        default=256,
        metavar="S",
        help="side of the model's images, which says how fine the lines are (%(default)s)",
    )
    sketch.add_argument(
        "--square",
        action="store_true",
        help="the middle square of each picture, S pixels wide: all that training reads; default: the picture's size, "
        "to draw on",
    )
    sketch.add_argument("--threads", type=whole, metavar="N", help="CPU threads")
    sketch.add_argument("--force", action="store_true", help="replace sketches that are there")
    add_output_options(sketch)
    sketch.set_defaults(run=_run_sketch)


def _run_sketch(args: argparse.Namespace) -> int:
    import torch

    from ..data.image_folder import image_files, sketch_path
    from ..data.sketches import write_sketch

    begun = time.perf_counter()
    if args.threads:
        torch.set_num_threads(args.threads)
    sources: dict[Path, Path] = {}
    for source in args.images:
        root = source if source.is_dir() else source.parent
        for file in image_files(source) if source.is_dir() else [source]:
            path = sketch_path(args.out, file, root)
            if path in sources:
                raise UsageError(f"{file}: its sketch {path} would also be that of {sources[path]}")
            sources[path] = file
    present = None if args.force else next((path for path in sources if path.exists()), None)
    if present is not None:
        raise OutputError(f"{present}: exists already; replace it with --force")
    size = 0
    for path, file in tqdm(sources.items(), "sketches", unit="image", disable=None if shows_progress(args) else True):
        size += write_sketch(file, path, args.size, args.square)
    seconds = time.perf_counter() - begun
    written = next(iter(sources)) if len(sources) == 1 else args.out
    following = (
        f"ilat-train tokenizer --recipe face-sketch --data {args.images[0]} --sketches {args.out} --out runs/sketch"
        if args.square
        else f"ilat-edit {args.images[0]} --bundle BUNDLE --mask mask.png --sketch {written} --out edited.png"
    )
    text = f"{written}: {len(sources)} sketches, {human_size(size)}, in {human_time(seconds)}\nnext: {following}"
    data = {"out": str(args.out), "sketches": len(sources), "bytes": size, "seconds": round(seconds, 3)}
    emit(args, text, data)
    return DONE


def _run(args: argparse.Namespace) -> int:
    from ..assets import asset
    from ..data.pose_estimator import PoseEstimator
    from ..data.pose_video import build_dataset

    begun = time.perf_counter()
    model = asset("pose-model")
    estimator = PoseEstimator(model["pose_detection.tflite"], model["pose_landmark_full.tflite"], args.threads)
    summary = build_dataset(
        args.videos,
        args.out,
        estimator,
        max_side=args.max_side,
        dilation=args.dilation,
        test_share=args.test_share,
        least_visible=args.least_visible,
        force=args.force,
        progress=shows_progress(args),
    )
    seconds = time.perf_counter() - begun
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    frames = sum(clip.frames for clip in summary.clips)
    text = [
        f"{args.out}: {len(summary.clips)} clips, {frames} frames, {human_size(size)}, in {human_time(seconds)}",
        f"frames without a person: {summary.empty_frames}; "
        f"with fewer than {len(JOINTS)} landmarks visible: {summary.partial_frames}",
        f"next: ilat-train tokenizer --recipe pose-demo --data {args.out} --out runs/{args.out.name}",
    ]
    data = {
        "out": str(args.out),
        "clips": [asdict(clip) for clip in summary.clips],
        "frames": frames,
        "empty_frames": summary.empty_frames,
        "partial_frames": summary.partial_frames,
        "bytes": size,
        "seconds": round(seconds, 3),
    }
    emit(args, "\n".join(text), data)
    return DONE
