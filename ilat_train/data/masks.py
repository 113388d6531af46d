"""Random masks for training: free-form strokes, boxes and blobs.

Free-form strokes follow "Free-Form Image Inpainting with Gated Convolution" (Yu et al., 2019, algorithm 1): a pen that
zigzags along a course. All lengths are relative to the mask's shorter side. The same generator state
gives the same mask. The skeleton mask of a pose is in :mod:`ilat_train.models.skeleton_mask`.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from ilat_runtime.errors import InputError

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Strokes:
    """How free-form strokes are drawn; pairs are the least and the most.

    Attributes:
        strokes: how many, per mask.
        corners: how many each stroke has.
        length: of a stroke's straight parts, relative to the shorter side.
        width: of the pen, relative to the shorter side.
        turn: mean angle between a part and the stroke's course, radians; jitter: how far it varies.
    """

    strokes: tuple[int, int] = (1, 4)
    corners: tuple[int, int] = (4, 12)
    length: tuple[float, float] = (0.1, 0.35)
    width: tuple[float, float] = (0.05, 0.15)
    turn: float = 2 * np.pi / 5
    jitter: float = np.pi / 7.5


DEFAULT_STROKES = Strokes()


def free_form_mask(
    height: int, width: int, generator: np.random.Generator, strokes: Strokes = DEFAULT_STROKES
) -> BoolArray:
    """Zigzag strokes of a round pen.

    Returns:
        bool (height, width), True under a stroke; at least one pixel is.

    Raises:
        InputError: height or width is below 1.
    """
    _check(height, width)
    unit = min(height, width)
    mask = np.zeros((height, width), np.uint8)
    for _ in range(generator.integers(*strokes.strokes, endpoint=True)):
        point = generator.uniform((0, 0), (width, height))
        course = generator.uniform(0, 2 * np.pi)
        pen = max(1, round(float(generator.uniform(*strokes.width)) * unit))
        for corner in range(generator.integers(*strokes.corners, endpoint=True)):
            angle = strokes.turn + generator.uniform(-strokes.jitter, strokes.jitter)
            heading = course + (angle if corner % 2 else -angle)
            reach = generator.uniform(*strokes.length) * unit
            onward = point + reach * np.array([np.cos(heading), np.sin(heading)])
            onward = np.clip(onward, 0, (width - 1, height - 1))
            _draw(mask, point, onward, pen)
            point = onward
    return mask > 0


def box_mask(
    height: int, width: int, generator: np.random.Generator, extent: tuple[float, float] = (0.15, 0.6)
) -> BoolArray:
    """A box anywhere inside the image.

    Args:
        extent: least and most of the box's sides, relative to the image's.

    Returns:
        bool (height, width), True inside the box; at least one pixel is.

    Raises:
        InputError: height or width is below 1.
    """
    _check(height, width)
    mask = np.zeros((height, width), bool)
    spans = []
    for size in (height, width):
        length = min(size, max(1, round(float(generator.uniform(*extent)) * size)))
        start = int(generator.integers(0, size - length, endpoint=True))
        spans.append(slice(start, start + length))
    mask[tuple(spans)] = True
    return mask


def blob_mask(
    height: int, width: int, generator: np.random.Generator, extent: tuple[float, float] = (0.1, 0.35)
) -> BoolArray:
    """A closed smooth outline anywhere inside the image: a stand-in for objects' shapes where there are none to draw
    from, not their distribution.

    Args:
        extent: least and most of the mean radius, relative to the shorter side.

    Returns:
        bool (height, width), True inside the outline; at least one pixel is.

    Raises:
        InputError: height or width is below 1.
    """
    _check(height, width)
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    radius = np.ones_like(angle)
    for wave in range(2, 6):
        radius += generator.uniform(0, 0.5) / wave * np.cos(wave * angle + generator.uniform(0, 2 * np.pi))
    radius *= generator.uniform(*extent) * min(height, width)
    stretch, turn = generator.uniform(0.6, 1.0), generator.uniform(0, 2 * np.pi)
    x, y = radius * np.cos(angle), stretch * radius * np.sin(angle)
    centre = generator.uniform(0.15, 0.85, 2) * (width, height)
    outline = np.stack([np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y], 1) + centre
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 1)
    return mask > 0


def random_mask(height: int, width: int, generator: np.random.Generator, box_share: float = 0.3) -> BoolArray:
    """Bool (height, width): a box with probability ``box_share``, else free-form strokes."""
    if generator.random() < box_share:
        return box_mask(height, width, generator)
    return free_form_mask(height, width, generator)


def _check(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise InputError(f"mask: height {height} and width {width} must be at least 1")


def _draw(mask: npt.NDArray[np.uint8], start: npt.NDArray[np.float64], end: npt.NDArray[np.float64], pen: int) -> None:
    ends = [(int(x), int(y)) for x, y in (start, end)]
    cv2.line(mask, ends[0], ends[1], 255, pen)
    for point in ends:  # a line's own ends are not round
        cv2.circle(mask, point, pen // 2, 255, -1)
