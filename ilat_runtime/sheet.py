"""Pictures for people: images side by side under headings, a pose drawn, a mask shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from .crop import Crop
from .image_file import BoolArray, ByteArray
from .joints import JOINTS, LIMBS

if TYPE_CHECKING:
    from .pipeline import Result

CELL = 384
"""Longest side of a picture in a comparison, in pixels."""
_GAP, _HEADING = 6, 26
_LEFT, _RIGHT, _MIDDLE = (255, 160, 0), (0, 170, 255), (235, 235, 235)
_MASKED = np.array((255, 0, 90), np.float32)


def grid(rows: Sequence[Sequence[ByteArray]], labels: Sequence[str], cell: int = CELL) -> ByteArray:
    """Rows of uint8 HWC RGB images, scaled to fit squares of ``cell`` pixels, with a label above each column."""
    rows = [[_fitted(image, cell) for image in row] for row in rows]
    widths = [max(row[column].shape[1] for row in rows) for column in range(len(labels))]
    heights = [max(image.shape[0] for image in row) for row in rows]
    size = (_HEADING + sum(heights) + _GAP * len(rows), sum(widths) + _GAP * (len(widths) + 1))
    sheet = np.full((*size, 3), 255, np.uint8)
    left = _GAP
    for column, (label, width) in enumerate(zip(labels, widths, strict=True)):
        scale = min(0.55, 0.55 * width / max(1, cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, 0.55, 1)[0][0]))
        cv2.putText(sheet, label, (left, _HEADING - 9), cv2.FONT_HERSHEY_SIMPLEX, scale, (30, 30, 30), 1, cv2.LINE_AA)
        top = _HEADING
        for row, height in zip(rows, heights, strict=True):
            image = row[column]
            sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
            top += height + _GAP
        left += width + _GAP
    return sheet


def with_pose(image: ByteArray, pose: npt.NDArray[np.float32]) -> ByteArray:
    """The image, darkened, with the skeleton of ``pose`` (13, 3) drawn on it: left orange, right blue."""
    canvas = np.ascontiguousarray(image * np.float32(0.6)).astype(np.uint8)
    thickness = max(2, round(max(image.shape[:2]) / 110))
    points = [(round(float(x)), round(float(y))) for x, y in np.clip(pose[:, :2], -32000, 32000)]
    for a, b in LIMBS:
        diagonal = {JOINTS[a].split("_")[-1], JOINTS[b].split("_")[-1]} == {"shoulder", "hip"} and _side(a) != _side(b)
        if pose[a, 2] > 0.5 and pose[b, 2] > 0.5 and not diagonal:
            cv2.line(canvas, points[a], points[b], _colour(a, b), thickness, cv2.LINE_AA)
    for joint, point in enumerate(points):
        if pose[joint, 2] > 0.5:
            cv2.circle(canvas, point, thickness, _colour(joint, joint), -1, cv2.LINE_AA)
    return canvas


def with_mask(image: ByteArray, mask: BoolArray) -> ByteArray:
    """The image with the masked pixels tinted."""
    result = image.copy()
    result[mask] = (0.35 * image[mask] + 0.65 * _MASKED).astype(np.uint8)
    return result


def comparison(
    image: ByteArray, results: Sequence[Result], poses: Sequence[npt.NDArray[np.float32] | None], cell: int = CELL
) -> ByteArray:
    """Reference, target pose or sketch (where there is one), mask and result side by side, a row for each result.

    Shown is the crop in which the edits happened, as far as it lies inside the image (uint8 HWC RGB).
    """
    posed = all(pose is not None for pose in poses)
    sketched = all(result.sketch is not None for result in results)
    labels = ["reference", *(["target pose"] if posed else ["sketch"] if sketched else []), "mask", "result"]
    rows = []
    for result, pose in zip(results, poses, strict=True):
        pictures = [image, with_mask(image, result.mask), result.image]
        if pose is not None:
            pictures.insert(1, with_pose(image, pose))
        elif result.sketch is not None:
            pictures.insert(1, np.repeat(result.sketch[..., None], 3, 2))
        rows.append([_visible(picture, result.crop) for picture in pictures])
    return grid(rows, labels, cell)


def _visible(image: ByteArray, crop: Crop) -> ByteArray:
    rows, columns = slice(max(crop.y, 0), crop.y + crop.side), slice(max(crop.x, 0), crop.x + crop.side)
    return image[rows, columns]


def _side(joint: int) -> str:
    return JOINTS[joint].split("_")[0]


def _colour(a: int, b: int) -> tuple[int, int, int]:
    sides = {_side(a), _side(b)} - {"head"}
    return {"left": _LEFT, "right": _RIGHT}.get(sides.pop(), _MIDDLE) if len(sides) == 1 else _MIDDLE


def _fitted(image: ByteArray, cell: int) -> ByteArray:
    """Scaled so that the longer side is ``cell``."""
    scale = cell / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=method), np.uint8)
