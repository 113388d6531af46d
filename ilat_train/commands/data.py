"""``ilat-train data pose-video``: a person's own videos → a data set."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ilat_runtime.cli.common import DONE, Parser, add_output_options, emit, human_size, human_time, shows_progress
from ilat_runtime.joints import JOINTS


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
