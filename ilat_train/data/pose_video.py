"""Videos of a person → a data set folder: frames and 13 landmarks a frame, split by time into training and test.

DIR/dataset.json lists the clips; DIR/CLIP/000000.jpg … are the frames and DIR/CLIP/poses.json their poses, in pixels of
the stored frames.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from ilat_runtime.errors import InputError
from ilat_runtime.joints import JOINTS
from ilat_runtime.pose_file import PoseFile, write_poses

from .pose_track import choose

FORMAT, VERSION = "ilat-pose-dataset", 1
JPEG_QUALITY = 95

ByteArray = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]


class Estimator(Protocol):
    """What :class:`ilat_train.data.pose_estimator.PoseEstimator` offers."""

    def reset(self) -> None:
        """Forget the person: the next frame belongs to another video."""

    def __call__(self, image: ByteArray) -> FloatArray:
        """Guesses float32 (M, 13, 3) at the person's pose in the next frame, uint8 HWC RGB."""
        ...


@dataclass(frozen=True)
class Clip:
    """One entry of ``clips`` in dataset.json.

    Attributes:
        source: file name of the video; sha256: of that file.
        width, height: of the stored frames in pixels.
        dilation: radius of the skeleton mask relative to the larger side of the poses' box.
        test_from: index of the first held-out frame.
    """

    name: str
    source: str
    sha256: str
    fps: float
    frames: int
    width: int
    height: int
    dilation: float
    test_from: int


@dataclass(frozen=True)
class Summary:
    """What :func:`build_dataset` wrote: the clips, and how many frames lack a person or a visible landmark."""

    out: Path
    clips: tuple[Clip, ...]
    empty_frames: int
    partial_frames: int


def build_dataset(
    videos: Sequence[Path],
    out: Path,
    estimator: Estimator,
    *,
    max_side: int = 960,
    dilation: float = 0.09,
    test_share: float = 0.2,
    least_visible: float = 0.1,
    force: bool = False,
    progress: bool = True,
) -> Summary:
    """Write the data set folder ``out`` from ``videos``; it appears complete or not at all.

    Args:
        estimator: reads the landmarks; see :class:`ilat_train.data.pose_estimator.PoseEstimator`.
        max_side: larger frames are reduced to this many pixels on the longer side.
        dilation: radius of the skeleton mask relative to the larger side of the poses' box.
        test_share: share of each clip's frames, the last by time, that training never sees.
        least_visible: probability from which on a landmark counts as visible.
        force: replace a data set that is there.

    Raises:
        InputError: a video cannot be read or shows no person, an option is out of range, or ``out`` exists.
    """
    if not videos:
        raise InputError("no video given")
    for name, value, low, high in (
        ("max_side", max_side, 16, 16384),
        ("dilation", dilation, 0.001, 1),
        ("test_share", test_share, 0, 0.9),
        ("least_visible", least_visible, 0, 1),
    ):
        if not low <= value <= high:
            raise InputError(f"{name}: {value}, expected {low} to {high}")
    for video in videos:
        if not video.is_file():
            raise InputError(f"{video}: no such video file")
    names = _clip_names(videos)
    with _complete_folder(out, force) as folder:
        clips, empty, partial = [], 0, 0
        for video, name in zip(videos, names, strict=True):
            estimator.reset()
            clip, poses = _write_clip(
                video, folder / name, estimator, max_side, dilation, test_share, least_visible, progress
            )
            clips.append(clip)
            visible = poses[..., 2].sum(1)
            empty += int((visible == 0).sum())
            partial += int((visible < len(JOINTS)).sum())
        index = {
            "format": FORMAT,
            "version": VERSION,
            "joints": list(JOINTS),
            "clips": [asdict(clip) for clip in clips],
        }
        (folder / "dataset.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return Summary(out, tuple(clips), empty, partial)


def _clip_names(videos: Sequence[Path]) -> list[str]:
    names: list[str] = []
    for video in videos:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", video.stem).strip("_") or "clip"
        name, count = stem, 2
        while name in names:
            name, count = f"{stem}_{count}", count + 1
        names.append(name)
    return names


@contextmanager
def _complete_folder(out: Path, force: bool) -> Iterator[Path]:
    """A temporary folder beside ``out`` that becomes ``out`` when the block succeeds and vanishes when it does not."""
    if out.exists():
        if not force:
            raise InputError(f"{out}: exists already; choose another folder or pass --force to replace the data set")
        if not (out / "dataset.json").is_file():
            raise InputError(f"{out}: holds no dataset.json, so it is not replaced; choose another folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise InputError(f"{out}: cannot be created: {error.strerror}") from error
    replaced = folder.with_name(folder.name + ".replaced")
    try:
        yield folder
        folder.chmod(0o755)
        if out.exists():
            os.replace(out, replaced)
        os.replace(folder, out)
    except OSError as error:
        if replaced.exists() and not out.exists():
            os.replace(replaced, out)
        raise InputError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _write_clip(
    video: Path,
    folder: Path,
    estimator: Estimator,
    max_side: int,
    dilation: float,
    test_share: float,
    least_visible: float,
    progress: bool,
) -> tuple[Clip, FloatArray]:
    folder.mkdir()
    capture = cv2.VideoCapture(str(video))
    try:
        if not capture.isOpened():
            raise InputError(f"{video}: cannot be read as a video")
        fps = capture.get(cv2.CAP_PROP_FPS)
        expected = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        guesses: list[FloatArray] = []
        size = (0, 0)
        bar = tqdm(total=expected if expected > 0 else None, desc=video.name, unit="frame", disable=not progress)
        with bar:
            while True:
                read, frame = capture.read()
                if not read:
                    break
                frame = _reduced(np.asarray(frame, np.uint8), max_side)
                size = (frame.shape[1], frame.shape[0])
                _write_jpeg(folder / f"{len(guesses):06d}.jpg", frame)
                guesses.append(estimator(np.ascontiguousarray(frame[:, :, ::-1])))
                bar.update()
    finally:
        capture.release()
    if not guesses:
        raise InputError(f"{video}: cannot be read as a video: no frame in it")
    poses = choose(guesses, least_visible)
    if not poses[..., 2].any():
        raise InputError(f"{video}: no person found in any of its {len(guesses)} frames")
    fps = float(fps) if np.isfinite(fps) and fps > 0 else 30.0
    write_poses(folder / "poses.json", PoseFile(poses, size, None, fps))
    clip = Clip(
        name=folder.name,
        source=video.name,
        sha256=_sha256(video),
        fps=fps,
        frames=len(guesses),
        width=size[0],
        height=size[1],
        dilation=dilation,
        test_from=len(guesses) - round(test_share * len(guesses)),
    )
    return clip, poses


def _reduced(frame: ByteArray, max_side: int) -> ByteArray:
    height, width = frame.shape[:2]
    scale = max_side / max(height, width)
    if scale >= 1:
        return frame
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)


def _write_jpeg(path: Path, frame: ByteArray) -> None:
    # imencode, not imwrite: imwrite takes no path that is not ASCII on some systems and hides why it failed.
    done, data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise InputError(f"{path}: the frame cannot be encoded as JPEG")
    path.write_bytes(data.tobytes())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
