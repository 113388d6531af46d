"""Frames to an mp4 file, which appears when it is complete."""

from __future__ import annotations

import math
import os
import struct
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from .errors import InputError, OutputError
from .image_file import ByteArray
from .output_file import check_output, replacing

VIDEO_SUFFIXES = (".mp4",)


class VideoWriter:
    """Writes uint8 HWC RGB frames of one size as MPEG-4; a context manager.

    An odd width or height is made even by repeating the last column or row, as the format asks for. On an error and on
    Ctrl-C nothing is left behind.

    Raises:
        OutputError: wrong suffix, missing or unwritable folder, full disk; or the file exists and ``force`` is false.
        InputError: the frame rate is not a positive number; frames of different sizes.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float, force: bool = False) -> None:
        self.path = check_output(path, VIDEO_SUFFIXES, force)
        if not (math.isfinite(fps) and 0 < fps <= 1000):
            raise InputError(f"fps: {fps!r}, expected frames per second from just above 0 to 1000")
        self.frames = 0
        self._fps = float(fps)
        self._writer: cv2.VideoWriter | None = None
        self._shape: tuple[int, ...] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> VideoWriter:
        self._temporary = self._stack.enter_context(replacing(self.path))
        return self

    def write(self, frame: ByteArray) -> None:
        """Append a frame, uint8 HWC RGB."""
        if self._writer is None:
            self._shape = frame.shape
            size = (frame.shape[1] + frame.shape[1] % 2, frame.shape[0] + frame.shape[0] % 2)
            # H.264 would play in more places, but OpenCV's wheels cannot encode it.
            self._writer = cv2.VideoWriter(str(self._temporary), cv2.VideoWriter.fourcc(*"mp4v"), self._fps, size)
            if not self._writer.isOpened():
                raise OutputError(f"{self.path}: the video cannot be started (disk full, or OpenCV without FFmpeg?)")
        if frame.shape != self._shape:
            raise InputError(f"{self.path}: a frame of shape {frame.shape} among frames of shape {self._shape}")
        even = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), "edge")
        self._writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))
        self.frames += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.release()
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            if not self.frames:
                raise InputError(f"{self.path}: a video needs at least one frame")
            if not _complete(self._temporary, self.frames):
                raise OutputError(f"{self.path}: the video could not be written completely; is the disk full?")


def _complete(path: Path, frames: int) -> bool:
    """Whether an mp4 has all its top-level boxes and frames: OpenCV does not report failed writes."""
    try:
        data_end = path.stat().st_size
        position, kinds = 0, set()
        with path.open("rb") as file:
            while position < data_end:
                file.seek(position)
                length, kind = struct.unpack(">I4s", file.read(8))
                if length == 1:
                    (length,) = struct.unpack(">Q", file.read(8))
                if length < 8:
                    return False
                kinds.add(kind)
                position += length
    except (OSError, struct.error):
        return False
    if position != data_end or not {b"ftyp", b"mdat", b"moov"} <= kinds:
        return False
    reader = cv2.VideoCapture(str(path))
    count = int(reader.get(cv2.CAP_PROP_FRAME_COUNT)) if reader.isOpened() else -1
    reader.release()
    return count == frames
