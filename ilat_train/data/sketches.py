"""Sketches of photographs: XDoG as a library call."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ilat_runtime.crop import crop_around

from ..models.xdog import XDoG

ByteArray = npt.NDArray[np.uint8]


def draw_sketch(image: ByteArray, size: int = 256) -> ByteArray:
    """The sketch of an image, as a bundle's editor draws it without a mask.

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
