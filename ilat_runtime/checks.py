"""What the editor accepts: arrays checked before anything is computed, with errors that say what was expected."""

from __future__ import annotations

from typing import Any

import numpy as np

from .crop import FloatArray
from .errors import InputError
from .image_file import BoolArray, ByteArray, check_size
from .joints import JOINTS


def _found(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return type(value).__name__


def checked_image(image: Any, name: str = "image") -> ByteArray:
    """``image`` if it is uint8 HWC RGB of an accepted size; raises InputError otherwise."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"{name}: {_found(image)}, expected uint8 HWC RGB: a numpy array of shape (height, width, 3)")
    if not image.size:
        raise InputError(f"{name}: shape {image.shape} has no pixels")
    check_size(image.shape[1], image.shape[0], name)
    return image


def checked_mask(mask: Any, image: ByteArray, name: str = "mask") -> BoolArray:
    """``mask`` if it is bool HW of the image's size; raises InputError otherwise."""
    expected = image.shape[:2]
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.ndim != 2:
        hint = " (for an array of 0 and 255: mask > 127)" if isinstance(mask, np.ndarray) else ""
        raise InputError(f"{name}: {_found(mask)}, expected bool HW: a numpy array of shape {expected}{hint}")
    if mask.shape != expected:
        raise InputError(f"{name}: height and width {mask.shape}, expected {expected} as the image")
    return mask


def checked_sketch(sketch: Any, image: ByteArray, name: str = "sketch") -> ByteArray:
    """``sketch`` if it is uint8 HW of the image's size; raises InputError otherwise."""
    expected = image.shape[:2]
    if not isinstance(sketch, np.ndarray) or sketch.dtype != np.uint8 or sketch.ndim != 2:
        raise InputError(
            f"{name}: {_found(sketch)}, expected uint8 HW: a numpy array of shape {expected}, 0 where there is a line, "
            "255 elsewhere"
        )
    if sketch.shape != expected:
        raise InputError(f"{name}: height and width {sketch.shape}, expected {expected} as the image")
    return sketch


def checked_pose(pose: Any, image: ByteArray, name: str = "pose") -> FloatArray:
    """``pose`` as float32 (13, 3): x, y in pixels of the image and visibility 0 or 1.

    Landmarks may lie outside the image, by its longer side at most.

    Raises:
        InputError: shape, type, NaN, visibility, a landmark far outside, or no visible landmark inside the image.
    """
    expected = f"float32 ({len(JOINTS)}, 3): x, y in pixels and visibility of {len(JOINTS)} landmarks"
    if not isinstance(pose, np.ndarray) or pose.dtype.kind not in "fiu":
        raise InputError(f"{name}: {_found(pose)}, expected {expected}")
    if pose.shape != (len(JOINTS), 3):
        raise InputError(f"{name}: shape {pose.shape}, expected {expected}")
    wrong = np.flatnonzero(~np.isfinite(pose).all(1))
    if len(wrong):
        raise InputError(f"{name}: {JOINTS[wrong[0]]} is not finite, expected {expected}")
    pose = pose.astype(np.float32)
    wrong = np.flatnonzero((pose[:, 2] != 0) & (pose[:, 2] != 1))
    if len(wrong):
        raise InputError(f"{name}: the visibility of {JOINTS[wrong[0]]} is {pose[wrong[0], 2]:g}, expected 0 or 1")
    size, visible = np.array(image.shape[1::-1], np.float32), pose[:, 2] == 1
    outside = np.maximum(-pose[:, :2], pose[:, :2] - size).max(1)
    far = np.flatnonzero(visible & (outside > size.max()))
    where = f"the image of {image.shape[1]}x{image.shape[0]} pixels"
    if len(far):
        x, y = pose[far[0], :2]
        raise InputError(f"{name}: {JOINTS[far[0]]} at ({x:g}, {y:g}) is too far outside {where}")
    if not (visible & (outside <= 0)).any():
        raise InputError(f"{name}: no visible landmark lies inside {where}")
    return pose


def checked_number(value: Any, name: str, least: float, most: float) -> float:
    """``value`` as a float if it is a number from ``least`` to ``most``; raises InputError otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise InputError(f"{name}: {value!r}, expected a number from {least:g} to {most:g}")
    if not least <= value <= most:
        raise InputError(f"{name}: {value:g}, expected a number from {least:g} to {most:g}")
    return float(value)


def same_length(items: Any, count: int, name: str) -> list[Any]:
    """``items`` as a list of ``count``; None gives as many Nones. Raises InputError otherwise."""
    if items is None:
        return [None] * count
    result = list(items)
    if len(result) != count:
        raise InputError(f"{name}: {len(result)} given, expected {count}, one for each image")
    return result
