"""A sheet of samples: rows of images side by side, under a heading for each column."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ilat_runtime.errors import InputError
from ilat_runtime.sheet import grid

Image = npt.NDArray[np.uint8]


def sample_sheet(rows: Sequence[Sequence[Image]], labels: Sequence[str], cell: int | None = None) -> Image:
    """One image with ``rows`` as a grid.

    Args:
        rows: images uint8 (H, W, 3) RGB; each row has as many as there are labels. Images are scaled to ``cell``,
            keeping their proportions.
        labels: a heading for each column.
        cell: longest side of each image in the sheet, in pixels; by default that of the largest image.

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
    return grid(rows, labels, cell or max(max(image.shape[:2]) for row in rows for image in row))
