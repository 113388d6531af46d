"""One checked edit: what the arguments of an edit become before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .checks import checked_image, checked_mask, checked_number, checked_pose, checked_sketch
from .crop import Crop, FloatArray, crop_around, mask_box, visible_box
from .errors import InputError
from .image_file import BoolArray, ByteArray
from .joints import JOINTS
from .manifest import Manifest

MAX_CROP = 8192
"""The largest side of the square in which an edit happens, in pixels; the graphs take about 1 GB for it."""
DEFAULT_MARGIN = 1.3

NO_REFERENCE_POSE = "no reference pose was given: only the target's skeleton is masked"
POSE_OUTSIDE = "part of the target pose lies outside the session's crop and is not drawn"


@dataclass(frozen=True)
class Job:
    """One checked edit.

    Attributes:
        image: uint8 HWC RGB.
        crop: the square in which it happens.
        pose: float32 (13, 3) in pixels of the image, the pose to give the person.
        reference_pose: float32 (13, 3) in pixels of the image, the pose of the person in it.
        mask: bool HW, the pixels to edit; None where the skeletons say it.
        radius: of the skeletons' mask, in units of the crop's side.
        sketch: uint8 HW, dark lines on white, for bundles that take one; None where it is to be drawn from the image.
        notices: what the caller should know.
    """

    image: ByteArray
    crop: Crop
    pose: FloatArray | None = None
    reference_pose: FloatArray | None = None
    mask: BoolArray | None = None
    radius: float = 0.0
    sketch: ByteArray | None = None
    notices: tuple[str, ...] = ()

    def crop_mask(self) -> ByteArray:
        """The user's mask in the crop, uint8 (side, side); beyond the image's edge nothing is masked."""
        result = np.zeros((self.crop.side, self.crop.side), np.uint8)
        if self.mask is not None:
            crop, (height, width) = self.crop, self.mask.shape
            y0, y1 = max(crop.y, 0), min(crop.y + crop.side, height)
            x0, x1 = max(crop.x, 0), min(crop.x + crop.side, width)
            result[y0 - crop.y : y1 - crop.y, x0 - crop.x : x1 - crop.x] = self.mask[y0:y1, x0:x1]
        return result

    def drawn_poses(self) -> FloatArray:
        """The poses whose skeletons are masked, float32 (2, 13, 3), crop-relative; invisible where none is to be drawn.

        A mask from the user says exactly what to edit, so no skeleton is added to it.
        """
        result = np.zeros((2, len(JOINTS), 3), np.float32)
        if self.mask is None:
            for index, pose in enumerate((self.pose, self.reference_pose)):
                if pose is not None:
                    result[index] = self.crop.relative(pose)
        return result


def checked_job(
    manifest: Manifest,
    image: Any,
    pose: Any,
    mask: Any,
    reference_pose: Any,
    crop: Crop | None,
    margin: float | None,
    dilation: float | None,
    index: int | None = None,
    session: bool = False,
    sketch: Any = None,
) -> Job:
    """Check one edit; the arguments are those of :meth:`ilat_runtime.Editor.edit`.

    Args:
        index: its place in a batch, for error messages.
        session: whether the crop was chosen before the pose was known.

    Raises:
        InputError: an argument is not as described, or the bundle does not take it.
    """

    def name(argument: str) -> str:
        plural = "sketches" if argument == "sketch" else f"{argument}s"
        return argument if index is None else f"{plural}[{index}]"

    image = checked_image(image, name("image"))
    posed = manifest.kind == "pose"
    check_kind(manifest, {"pose": pose, "reference_pose": reference_pose, "sketch": sketch}, name)
    _check_missing(manifest, pose, mask, reference_pose, name)
    target = checked_pose(pose, image, name("pose")) if posed else None
    source = None if reference_pose is None else checked_pose(reference_pose, image, name("reference_pose"))
    mask = None if mask is None else checked_mask(mask, image, name("mask"))
    sketch = None if sketch is None else checked_sketch(sketch, image, name("sketch"))
    poses = [pose for pose in (target, source) if pose is not None]
    square = (
        find_crop(manifest, image, poses, mask, margin) if crop is None else checked_crop(crop, image, name("crop"))
    )
    if mask is not None:
        _check_inside(mask, square, name("mask"))
    notices = []
    radius = 0.0
    if mask is None:
        radius = _radius(manifest, poses, square, dilation)
        if source is None:
            notices.append(NO_REFERENCE_POSE)
    if target is not None and session:
        inside = square.relative(target[target[:, 2] > 0.5])[:, :2]
        if ((inside < 0) | (inside > 1)).any():
            notices.append(POSE_OUTSIDE)
    return Job(image, square, target, source, mask, radius, sketch, tuple(notices))


def find_crop(
    manifest: Manifest, image: ByteArray, poses: Sequence[FloatArray], mask: BoolArray | None, margin: float | None
) -> Crop:
    """The square in which an edit with these checked poses and this mask happens, by the rule of the model's training.

    Without poses and mask it is the one that holds the whole image. Models of kind ``sketch`` see whole portraits: for
    them it is, unless a margin is asked for, the largest square in the image, around the mask as far as it fits.

    Raises:
        InputError: ``margin`` is out of range, or the square is larger than :data:`MAX_CROP`.
    """
    height, width = image.shape[:2]
    trained = manifest.crop.margin if manifest.crop else DEFAULT_MARGIN
    least = manifest.image_size
    if manifest.kind == "sketch" and margin is None:
        trained, least = 1.0, min(width, height)
    factor = trained if margin is None else checked_number(margin, "margin", 1, 100)
    corners: list[tuple[float, float, float, float]] = []
    if poses and (box := visible_box(np.stack(poses))):
        corners.append(box)
    if mask is not None and (box := mask_box(mask)):
        corners.append(box)
    if corners:
        boxes = np.array(corners)
        (x0, y0), (x1, y1) = boxes[:, :2].min(0), boxes[:, 2:].max(0)
        crop = crop_around((float(x0), float(y0), float(x1), float(y1)), (width, height), factor, least)
    else:
        crop = crop_around((0, 0, width, height), (width, height), 1, 1)
    return checked_crop(crop, image, "image")


def checked_crop(crop: Any, image: ByteArray, name: str) -> Crop:
    """``crop`` if an edit of ``image`` can happen in it; raises InputError otherwise."""
    height, width = image.shape[:2]
    if not isinstance(crop, Crop) or not all(isinstance(v, (int, np.integer)) for v in (crop.x, crop.y, crop.side)):
        raise InputError(f"{name}: {crop!r}, expected a Crop of whole numbers")
    if not 1 <= crop.side <= MAX_CROP:
        raise InputError(
            f"{name}: the edit needs a square of {crop.side} pixels, expected 1 to {MAX_CROP}; reduce the image"
        )
    if crop.x >= width or crop.y >= height or crop.x + crop.side <= 0 or crop.y + crop.side <= 0:
        raise InputError(f"{name}: {crop} lies outside the image of {width}x{height} pixels")
    return crop


def wanted(manifest: Manifest) -> str:
    """The bundle and the condition that its kind wants, for messages."""
    takes = {"pose": "wants a target pose", "sketch": "wants a mask and takes a sketch", "none": "wants only a mask"}
    return f"the bundle {manifest.name!r} (kind {manifest.kind!r}) {takes[manifest.kind]}"


def check_kind(manifest: Manifest, conditions: Mapping[str, Any], name: Callable[[str], str] = str) -> None:
    """Raises InputError when one of the conditions (pose, reference_pose, sketch) is given that the kind has not."""
    own = {"pose": ("pose", "reference_pose"), "sketch": ("sketch",), "none": ()}[manifest.kind]
    for key, value in conditions.items():
        if value is not None and key not in own:
            raise InputError(f"{name(key)}: {wanted(manifest)}, it takes no {key.replace('_', ' ')}")


def _check_missing(manifest: Manifest, pose: Any, mask: Any, reference_pose: Any, name: Callable[[str], str]) -> None:
    """What this kind of bundle cannot do without."""
    bundle = f"the bundle {manifest.name!r} (kind {manifest.kind!r})"
    if manifest.kind == "pose":
        if pose is None:
            raise InputError(f"{name('pose')}: missing, {bundle} needs a target pose: float32 ({len(JOINTS)}, 3)")
        if reference_pose is None and "source_pose" in manifest.layout:
            raise InputError(f"{name('reference_pose')}: missing, {bundle} needs the pose of the person in the image")
        return
    if mask is None:
        raise InputError(f"{name('mask')}: missing, {bundle} needs a mask: bool HW of what to edit")


def _radius(manifest: Manifest, poses: Sequence[FloatArray], crop: Crop, dilation: float | None) -> float:
    """The skeleton mask's radius in units of the crop's side; of this edit's own poses, as in training."""
    trained = manifest.crop.dilation if manifest.crop else 0.0
    factor = trained if dilation is None else checked_number(dilation, "dilation", 0, 1)
    x0, y0, x1, y1 = visible_box(np.stack(poses)) or (0, 0, 0, 0)
    return factor * max(x1 - x0, y1 - y0) / crop.side


def _check_inside(mask: BoolArray, crop: Crop, name: str) -> None:
    inside = mask[max(crop.y, 0) : crop.y + crop.side, max(crop.x, 0) : crop.x + crop.side]
    outside = int(mask.sum()) - int(inside.sum())
    if outside:
        raise InputError(f"{name}: {outside} masked pixels lie outside the crop {crop}")
