"""Images and masks from files, bounded before they are decoded; images to files, atomically."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from .errors import InputError, OutputError
from .image_header import image_size
from .output_file import check_output, write_bytes

ByteArray = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]

MAX_PIXELS = 128 * 2**20
"""The largest image that is read or edited, in pixels; 134 million take 400 MB in memory."""
MAX_SIDE = 32768
"""The longest side of such an image."""
_MAX_BYTES = 2**30

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_OPTIONS = {".jpg": [cv2.IMWRITE_JPEG_QUALITY, 95], ".jpeg": [cv2.IMWRITE_JPEG_QUALITY, 95]}


def check_size(width: int, height: int, name: str) -> None:
    """Raise an InputError that names ``name`` when an image of this size is not accepted."""
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise InputError(
            f"{name}: {width}x{height} pixels are too many, at most {MAX_PIXELS // 10**6} million "
            f"and {MAX_SIDE} along a side are accepted"
        )


def _decoded(path: Path, flags: int) -> npt.NDArray[np.generic]:
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not path.is_file():
        raise InputError(f"{path}: not a file")
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > _MAX_BYTES:
        raise InputError(f"{path}: the file is larger than {_MAX_BYTES >> 30} GB")
    try:
        width, height = image_size(data)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    check_size(width, height, str(path))
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None or image.shape[0] * image.shape[1] != width * height:
        raise InputError(f"{path}: cannot be decoded, the file is damaged")
    return image


def read_image(path: str | os.PathLike[str]) -> ByteArray:
    """Read a PNG, JPEG, WebP or BMP file as uint8 HWC RGB, turned as its EXIF orientation says.

    Grey becomes RGB; 16 bits become 8 (the upper ones); transparency is dropped, which leaves the stored colours as
    they are; an animation gives its first frame.

    Raises:
        InputError: missing, unreadable, another format, truncated or damaged, or larger than :data:`MAX_PIXELS`; the
            size is checked before anything is decoded.
    """
    image = _decoded(Path(path), cv2.IMREAD_COLOR)
    return np.ascontiguousarray(cv2.cvtColor(image.astype(np.uint8, copy=False), cv2.COLOR_BGR2RGB), np.uint8)


def read_mask(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> BoolArray:
    """Read a mask as bool HW: True (to be edited) where the picture is brighter than 127 of 255.

    Args:
        size: (width, height) in pixels of the image that the mask belongs to.

    Raises:
        InputError: as :func:`read_image`; the size is not ``size``; or nothing is brighter than 127 although the
            picture is not black, as in a mask of zeros and ones.
    """
    grey = _decoded(Path(path), cv2.IMREAD_GRAYSCALE).astype(np.uint8, copy=False)
    if size is not None and (grey.shape[1], grey.shape[0]) != tuple(size):
        raise InputError(
            f"{path}: the mask is {grey.shape[1]}x{grey.shape[0]} pixels, expected {size[0]}x{size[1]} as the image"
        )
    mask = grey > 127
    if grey.any() and not mask.any():
        raise InputError(
            f"{path}: the mask's brightest value is {grey.max()}, expected 255 where the image is to be edited"
        )
    return mask


def read_sketch(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> ByteArray:
    """Read a line drawing as uint8 HW: dark lines (0) on white (255).

    Args:
        size: (width, height) in pixels of the image that the sketch belongs to.

    Raises:
        InputError: as :func:`read_image`; the size is not ``size``.
    """
    grey = _decoded(Path(path), cv2.IMREAD_GRAYSCALE).astype(np.uint8, copy=False)
    if size is not None and (grey.shape[1], grey.shape[0]) != tuple(size):
        raise InputError(
            f"{path}: the sketch is {grey.shape[1]}x{grey.shape[0]} pixels, expected {size[0]}x{size[1]} as the image"
        )
    return np.ascontiguousarray(grey)


def encoded(image: ByteArray, suffix: str) -> bytes:
    """uint8 HWC RGB as the bytes of an image file. Raises OutputError when the format cannot hold it."""
    try:
        done, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), _OPTIONS.get(suffix, []))
    except cv2.error:
        done = False
    if not done:
        raise OutputError(f"{suffix}: cannot hold an image of {image.shape[1]}x{image.shape[0]} pixels")
    return data.tobytes()


def write_image(path: str | os.PathLike[str], image: ByteArray, force: bool = False) -> int:
    """Write uint8 HWC RGB as the suffix says (.png, .bmp, .webp lossless, .jpg quality 95); returns the bytes written.

    The file appears whole or not at all.

    Raises:
        OutputError: unknown suffix, missing or unwritable folder, full disk; or the file exists and ``force`` is false.
    """
    path = check_output(path, IMAGE_SUFFIXES, force)
    data = encoded(image, path.suffix.lower())
    write_bytes(path, data)
    return len(data)
