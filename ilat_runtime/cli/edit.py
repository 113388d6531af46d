"""``ilat-edit``: edit a photograph, or make a video of it in a sequence of poses."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from ..checks import checked_pose
from ..editor import Editor, Result
from ..errors import InputError
from ..image_file import IMAGE_SUFFIXES, BoolArray, ByteArray, read_image, read_mask, read_sketch, write_image
from ..jobs import wanted
from ..manifest import Manifest, load_manifest
from ..output_file import check_output
from ..pose_file import PoseFile, read_poses
from ..video_file import VIDEO_SUFFIXES, VideoWriter
from .common import (
    DONE,
    Parser,
    UsageError,
    add_output_options,
    emit,
    human_size,
    human_time,
    new_parser,
    run_parser,
    shows_progress,
    stop_on_terminate,
)

DEFAULT_FPS = 25.0
SHEET_ROWS = 5
"""Frames of a sequence that a comparison shows."""

FloatArray = npt.NDArray[np.float32]


def build_parser() -> Parser:
    """The command line's parser."""
    parser = new_parser(
        "ilat-edit",
        "Edit a photograph with a bundle: only what is masked is generated.",
        "examples: ilat-edit photo.jpg --bundle bundles/me --pose target.json --out edited.png; "
        "ilat-edit face.png --bundle bundles/face --mask mask.png --sketch sketch.png --out edited.png",
    )
    add = parser.add_argument
    add("image", metavar="IMAGE", help="PNG, JPEG, WebP or BMP")
    add("--bundle", required=True, metavar="DIR", help="the model: a folder that ilat-export wrote")
    poses = parser.add_mutually_exclusive_group()
    poses.add_argument("--pose", metavar="FILE", help="pose file with the target pose, in pixels of IMAGE")
    poses.add_argument(
        "--poses", metavar="FILE", help="pose file with a sequence of target poses; --out is then a video"
    )
    add("--reference-pose", metavar="FILE", help="pose of the person in IMAGE; default: 'reference' of the pose file")
    add(
        "--mask",
        metavar="FILE",
        help="white where IMAGE is to be edited; default, with poses only: the skeletons of both poses",
    )
    add(
        "--sketch",
        metavar="FILE",
        help="what the result is to look like, as dark lines on white, of IMAGE's size; for bundles of kind 'sketch', "
        "which by default draw it from IMAGE",
    )
    add(
        "--save-sketch", metavar="FILE", help="also write the sketch that was followed: draw on it, pass it as --sketch"
    )
    add("--out", required=True, metavar="FILE", help=f"{', '.join(IMAGE_SUFFIXES)}; with --poses .mp4")
    add("--compare", metavar="FILE", help="also write reference, target pose or sketch, mask and result side by side")
    add("--fps", type=float, metavar="N", help="with --poses: frames per second; default: the pose file's, else 25")
    add("--seed", type=int, metavar="N", help="of the random choice among --top-k candidates (default 0)")
    add("--top-k", type=int, default=1, metavar="K", help="candidates for each token; 1 (default) takes the likeliest")
    add("--temperature", type=float, metavar="T", help="of the random choice: larger is more varied (default 1)")
    add("--dilation", type=float, metavar="D", help="thickness of the skeletons' mask; default: as in training")
    add(
        "--margin",
        type=float,
        metavar="M",
        help="size of the crop around poses and mask; default: as in training, for bundles of kind 'sketch' the "
        "largest square of IMAGE",
    )
    add(
        "--blend",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="blend across the mask's border, so that pixels just outside the mask change too (default for bundles of "
        "kind 'sketch' only)",
    )
    add("--backend", default="auto", help="what runs the model (default auto; ilat-doctor lists what there is)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: the physical cores)")
    add("--force", action="store_true", help="overwrite existing files")
    add_output_options(parser)
    parser.set_defaults(run=edit)
    return parser


def edit(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    stop_on_terminate()
    _check_usage(args)
    out = check_output(args.out, VIDEO_SUFFIXES if args.poses else IMAGE_SUFFIXES, args.force)
    if args.compare:
        check_output(args.compare, IMAGE_SUFFIXES, args.force)
    if args.save_sketch:
        check_output(args.save_sketch, IMAGE_SUFFIXES, args.force)
    _check_kind(args, load_manifest(args.bundle))
    image = read_image(args.image)
    size = (image.shape[1], image.shape[0])
    mask = read_mask(args.mask, size) if args.mask else None
    sketch = read_sketch(args.sketch, size) if args.sketch else None
    file, poses, reference = _read_poses(args, image)
    editor = Editor(args.bundle, args.backend, args.threads)
    if args.poses:
        fps = args.fps or (file.fps if file else None) or DEFAULT_FPS
        return _sequence(args, out, editor, image, mask, poses, reference, fps)
    return _single(args, out, editor, image, mask, poses[0] if len(poses) else None, reference, sketch)


def _check_kind(args: argparse.Namespace, manifest: Manifest) -> None:
    """The flags that give a condition against what the bundle wants."""
    kinds = {"pose": "--pose" if args.pose else "--poses" if args.poses else None}
    kinds["sketch"] = "--sketch" if args.sketch else "--save-sketch" if args.save_sketch else None
    for kind, flag in kinds.items():
        if flag and kind != manifest.kind:
            raise UsageError(f"{flag}: {wanted(manifest)}, it takes no {kind}")
    if manifest.kind == "pose" and not kinds["pose"]:
        raise UsageError(f"--pose or --poses is missing: {wanted(manifest)}")
    if manifest.kind != "pose" and not args.mask:
        raise UsageError(f"--mask is missing: {wanted(manifest)}")


def _check_usage(args: argparse.Namespace) -> None:
    suffix = Path(args.out).suffix.lower()
    if args.poses and suffix not in VIDEO_SUFFIXES:
        raise UsageError(f"--out {args.out}: --poses makes a video, expected a name that ends in {VIDEO_SUFFIXES[0]}")
    if not args.poses and suffix in VIDEO_SUFFIXES:
        raise UsageError(f"--out {args.out}: a video needs --poses, a pose file with a sequence")
    if args.reference_pose and not (args.pose or args.poses):
        raise UsageError("--reference-pose: only with --pose or --poses")
    if args.fps is not None and not args.poses:
        raise UsageError("--fps: only with --poses")
    written: dict[Path, str] = {}
    for flag, path in (("--out", args.out), ("--compare", args.compare), ("--save-sketch", args.save_sketch)):
        if path and (other := written.setdefault(Path(path).absolute(), flag)) != flag:
            raise UsageError(f"{flag}: {path} is also {other}")


def _read_poses(
    args: argparse.Namespace, image: ByteArray
) -> tuple[PoseFile | None, list[FloatArray], FloatArray | None]:
    """The pose file, its poses and the reference's pose, checked against the image."""
    path = args.poses or args.pose
    if path is None:
        return None, [], None
    file = _matching(path, image)
    if args.pose and len(file.poses) != 1:
        raise InputError(f"{path}: holds {len(file.poses)} poses, --pose takes one; use --poses for a sequence")
    poses = [checked_pose(pose, image, f"{path}: poses[{index}]") for index, pose in enumerate(file.poses)]
    reference = file.reference
    source = f"{path}: reference"
    if args.reference_pose:
        other = _matching(args.reference_pose, image)
        if len(other.poses) != 1:
            raise InputError(f"{args.reference_pose}: holds {len(other.poses)} poses, --reference-pose takes one")
        reference, source = other.poses[0], f"{args.reference_pose}: poses[0]"
    return file, poses, None if reference is None else checked_pose(reference, image, source)


def _matching(path: str, image: ByteArray) -> PoseFile:
    """A pose file whose image has the size of ``image``."""
    file, size = read_poses(path), (image.shape[1], image.shape[0])
    if file.image_size is not None and file.image_size != size:
        raise InputError(
            f"{path}: image_size: the poses belong to an image of {file.image_size[0]}x{file.image_size[1]} pixels, "
            f"this one has {size[0]}x{size[1]}"
        )
    return file


def _options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "seed": args.seed or 0,
        "temperature": 1.0 if args.temperature is None else args.temperature,
        "top_k": args.top_k,
        "dilation": args.dilation,
        "blend": args.blend,
    }


def _notice(args: argparse.Namespace, notices: Sequence[str | None]) -> str | None:
    """The distinct notices of the results, and what the flags themselves call for."""
    found = [part for notice in notices if notice for part in notice.split("; ")]
    if args.top_k == 1 and (args.seed is not None or args.temperature is not None):
        found.append("--seed and --temperature have no effect with --top-k 1")
    return "; ".join(dict.fromkeys(found)) or None


def _single(
    args: argparse.Namespace,
    out: Path,
    editor: Editor,
    image: ByteArray,
    mask: BoolArray | None,
    pose: FloatArray | None,
    reference: FloatArray | None,
    sketch: ByteArray | None,
) -> int:
    with tqdm(desc="tokens", unit="token", disable=_hidden(args), leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        result = editor.edit(
            image,
            pose,
            mask,
            reference_pose=reference,
            sketch=sketch,
            margin=args.margin,
            progress=progress,
            **_options(args),
        )
    size = write_image(out, result.image, args.force)
    _write_sheet(args, image, [result], [pose])
    if args.save_sketch and result.sketch is not None:
        write_image(args.save_sketch, np.repeat(result.sketch[..., None], 3, 2), args.force)
    data = {
        "out": str(out),
        "tokens": result.tokens.tolist(),
        "masked_tokens": result.masked_tokens,
        "transformer_calls": result.transformer_calls,
        "timings_ms": _milliseconds(result.timings),
        "backend": result.backend,
        "bytes": size,
        "notice": _notice(args, [result.notice]),
    }
    text = f"{out}: {human_size(size)}, {result.masked_tokens} of {result.token_mask.size} tokens generated in "
    emit(args, text + _told(args, human_time(result.timings["total"]), data, editor.manifest.kind), data)
    return DONE


def _sequence(
    args: argparse.Namespace,
    out: Path,
    editor: Editor,
    image: ByteArray,
    mask: BoolArray | None,
    poses: Sequence[FloatArray],
    reference: FloatArray | None,
    fps: float,
) -> int:
    started = time.perf_counter()
    crop = editor.crop_for(image, [*poses, *([] if reference is None else [reference])], mask, args.margin)
    shown = set(np.linspace(0, len(poses) - 1, min(SHEET_ROWS, len(poses))).round().astype(int).tolist())
    kept: dict[int, Result] = {}
    tokens: list[list[int]] = []
    notices: list[str | None] = []
    calls = 0
    with VideoWriter(out, fps, args.force) as video, editor.reference(image, reference, crop) as session:
        timings = dict(session.timings)
        for index, pose in enumerate(tqdm(poses, desc="frames", unit="frame", disable=_hidden(args), leave=False)):
            result = session.edit(pose, mask, **_options(args))
            video.write(result.image)
            tokens.append(result.tokens.tolist())
            notices.append(result.notice)
            calls += result.transformer_calls
            for key, seconds in result.timings.items():
                timings[key] += seconds
            if args.compare and index in shown:
                kept[index] = result
    timings["total"] = time.perf_counter() - started
    size = out.stat().st_size
    _write_sheet(args, image, list(kept.values()), [poses[index] for index in kept])
    masked = sum(map(len, tokens))
    data = {
        "out": str(out),
        "tokens": tokens,
        "masked_tokens": masked,
        "transformer_calls": calls,
        "timings_ms": _milliseconds(timings),
        "backend": editor.backend,
        "frames": len(poses),
        "bytes": size,
        "notice": _notice(args, notices),
    }
    text = f"{out}: {human_size(size)}, {len(poses)} frames at {fps:g} a second, {masked} tokens generated in "
    emit(args, text + _told(args, human_time(timings["total"]), data, editor.manifest.kind), data)
    return DONE


def _hidden(args: argparse.Namespace) -> bool | None:
    """For tqdm: hidden, or (None) hidden unless stderr is a terminal."""
    return None if shows_progress(args) else True


def _write_sheet(
    args: argparse.Namespace, image: ByteArray, results: Sequence[Result], poses: Sequence[FloatArray | None]
) -> None:
    if args.compare:
        from ..sheet import comparison

        write_image(args.compare, comparison(image, results, poses), args.force)


def _milliseconds(timings: dict[str, float]) -> dict[str, float]:
    return {key: round(seconds * 1000, 3) for key, seconds in timings.items()}


def _told(args: argparse.Namespace, duration: str, data: dict[str, Any], kind: str) -> str:
    """The end of the message: duration, backend, the sheet and the notice."""
    text = f"{duration} on {data['backend']}"
    if args.compare:
        condition = {"pose": "target pose, ", "sketch": "sketch, ", "none": ""}[kind]
        text += f"\n{args.compare}: reference, {condition}mask and result"
    if args.save_sketch:
        text += f"\n{args.save_sketch}: the sketch; draw on it and pass it as --sketch"
    return text + (f"\nnote: {data['notice']}" if data["notice"] else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``ilat-edit``; returns the exit code."""
    return run_parser(build_parser(), arguments)


if __name__ == "__main__":
    raise SystemExit(main())
