"""A sheet of samples: rows of images side by side, under a heading for each column."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from ilat_runtime.errors import InputError

Image = npt.NDArray[np.uint8]

GAP = 4
HEADING = 22
FONT = cv2.FONT_HERSHEY_SIMPLEX
BACKGROUND, INK = 255, (32, 32, 32)


def sample_sheet(rows: Sequence[Sequence[Image]], labels: Sequence[str], cell: int | None = None) -> Image:
    """One image with ``rows`` as a grid.

    Args:
        rows: images uint8 (H, W, 3) RGB; each row has as many as there are labels. Images are scaled to fit their cell,
            keeping their proportions.
        labels: a heading for each column.
        cell: side of the square cells in pixels; by default the longest side of any image.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        InputError: no rows or labels, a row of another length, or an image of another kind.
    """
    if not rows or not labels:
        raise InputError("sample sheet: expected at least one row and one label")
    for number, row in enumerate(rows):
        if len(row) != len(labels):
            raise InputError(f"sample sheet: row {number} has {len(row)} images, expected {len(labels)}")
        for image in row:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                raise InputError(f"sample sheet: {image.dtype} {image.shape} in row {number}, expected uint8 (H, W, 3)")
    side = cell or max(max(image.shape[:2]) for row in rows for image in row)
    step = side + GAP
    height, width = HEADING + len(rows) * step + GAP, len(labels) * step + GAP
    sheet = np.full((height, width, 3), BACKGROUND, np.uint8)
    for column, label in enumerate(labels):
        _write(sheet, label, GAP + column * step, side)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            fitted = _fit(image, side)
            top = HEADING + GAP + y * step + (side - fitted.shape[0]) // 2
            left = GAP + x * step + (side - fitted.shape[1]) // 2
            sheet[top : top + fitted.shape[0], left : left + fitted.shape[1]] = fitted
    return sheet


def _fit(image: Image, side: int) -> Image:
    """Scaled so that the longer side is ``side``."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale == 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=method), np.uint8)


def _write(sheet: Image, label: str, left: int, width: int) -> None:
    """The heading, smaller where it would not fit its column."""
    (length, _), _ = cv2.getTextSize(label, FONT, 0.5, 1)
    size = 0.5 * min(1.0, width / max(length, 1))
    cv2.putText(sheet, label, (left, HEADING - 6), FONT, size, INK, 1, cv2.LINE_AA)
