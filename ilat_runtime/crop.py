"""The square of an image in which an edit happens: one rule for training and editing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import InputError

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]


def visible_box(poses: npt.ArrayLike) -> tuple[float, float, float, float] | None:
    """Bounding box (x0, y0, x1, y1) in pixels of the visible landmarks of poses (..., 3); None when none is visible."""
    points = np.asarray(poses, np.float32).reshape(-1, 3)
    points = points[points[:, 2] > 0.5]
    if not len(points):
        return None
    (x0, y0), (x1, y1) = points[:, :2].min(0), points[:, :2].max(0)
    return float(x0), float(y0), float(x1), float(y1)


def mask_box(mask: npt.NDArray[np.bool_]) -> tuple[float, float, float, float] | None:
    """Bounding box (x0, y0, x1, y1) in pixels of a bool HW mask, the far edge exclusive; None when it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


@dataclass(frozen=True)
class Crop:
    """A square of ``side`` pixels with its top left corner at (x, y); it may reach beyond the image."""

    x: int
    y: int
    side: int

    def take(self, image: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """The square's pixels, (side, side, ...); what lies outside the image repeats the image's edge."""
        if 0 <= self.x <= image.shape[1] - self.side and 0 <= self.y <= image.shape[0] - self.side:
            return np.ascontiguousarray(image[self.y : self.y + self.side, self.x : self.x + self.side])
        rows = np.clip(np.arange(self.y, self.y + self.side), 0, image.shape[0] - 1)
        columns = np.clip(np.arange(self.x, self.x + self.side), 0, image.shape[1] - 1)
        return np.ascontiguousarray(image[rows[:, None], columns[None, :]])

    def put(self, image: ByteArray, patch: ByteArray) -> ByteArray:
        """A copy of ``image`` (HWC) with ``patch`` (side, side, C) written over the square's part inside it."""
        result = image.copy()
        y0, y1 = max(self.y, 0), min(self.y + self.side, image.shape[0])
        x0, x1 = max(self.x, 0), min(self.x + self.side, image.shape[1])
        if y0 < y1 and x0 < x1:
            result[y0:y1, x0:x1] = patch[y0 - self.y : y1 - self.y, x0 - self.x : x1 - self.x]
        return result

    def relative(self, poses: npt.ArrayLike) -> FloatArray:
        """Poses (..., 3) from image pixels to the square: x and y in [0, 1] inside it, visibility unchanged."""
        result = np.array(poses, np.float32)
        result[..., 0] = (result[..., 0] - self.x) / self.side
        result[..., 1] = (result[..., 1] - self.y) / self.side
        return result


def crop_around(box: tuple[float, float, float, float], image_size: tuple[int, int], margin: float, least: int) -> Crop:
    """The square around ``box`` (x0, y0, x1, y1 in pixels) of an image of ``image_size`` (width, height).

    Its side is ``margin`` times the box's larger side, but at least ``least`` pixels where the image has them (the
    model's size: nothing is enlarged without need). It is shifted to lie inside the image along each axis where it
    fits.

    Raises:
        InputError: the box is not finite.
    """
    if not np.isfinite(box).all():
        raise InputError("crop: the box of the landmarks and the mask must be finite")
    width, height = image_size
    x0, y0, x1, y1 = box
    side = max(round(margin * max(x1 - x0, y1 - y0)), min(least, min(width, height)), 1)
    # More than the image's longer side would only add repeated edges.
    side = min(side, max(width, height, least))

    def start(centre: float, extent: int) -> int:
        if side >= extent:
            return -((side - extent) // 2)
        return int(np.clip(round(centre - side / 2), 0, extent - side))

    return Crop(start((x0 + x1) / 2, width), start((y0 + y1) / 2, height), side)
