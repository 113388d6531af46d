"""Sketches of photographs: XDoG as a library call."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ilat_runtime.crop import crop_around
from ilat_runtime.image_file import read_image, write_image

from ..models.resize import resize
from ..models.xdog import XDoG

ByteArray = npt.NDArray[np.uint8]


def middle_square(image: ByteArray) -> ByteArray:
    """The largest square in the middle of an image (HW or HWC)."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return np.ascontiguousarray(image[top : top + side, left : left + side])


def draw_sketch(image: ByteArray, size: int = 256) -> ByteArray:
    """The sketch of an image, as the editor of a bundle draws it without a mask.

    Args:
        image: uint8 HWC RGB; one that is not square is drawn in the square that holds it.
        size: side of the model's images in pixels, which says how fine the lines are.

    Returns:
        uint8 HW, the image's size: dark lines (0) on white (255).
    """
    height, width = image.shape[:2]
    crop = crop_around((0, 0, width, height), (width, height), 1, 1)
    pixels = torch.from_numpy(np.asarray(crop.take(image), np.uint8)).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        lines = XDoG(size)(pixels)[0].round().to(torch.uint8)
    return crop.put(np.zeros((height, width, 1), np.uint8), lines.permute(1, 2, 0).numpy())[..., 0]


def write_sketch(image: Path, path: Path, size: int = 256, square: bool = False) -> int:
    """Writes the sketch of a picture, replacing what is there; returns the bytes written.

    Args:
        size: as of :func:`draw_sketch`.
        square: only of the middle square, ``size`` pixels wide, as training reads it.

    Raises:
        InputError: the picture cannot be read.
        OutputError: the sketch cannot be written.
    """
    pixels = read_image(image)
    lines = draw_sketch(middle_square(pixels) if square else pixels, size)
    if square:
        lines = resize(torch.from_numpy(lines).float(), (size, size)).round().to(torch.uint8).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_image(path, np.repeat(lines[..., None], 3, 2), force=True)
