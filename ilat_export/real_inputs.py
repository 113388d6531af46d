"""Real inputs to verify a bundle's graphs on: held-out pairs of a data set, or a photograph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ilat_runtime.crop import crop_around, mask_box, visible_box
from ilat_runtime.errors import InputError
from ilat_runtime.image_file import read_image
from ilat_runtime.joints import JOINTS
from ilat_train.config import DataConfig
from ilat_train.data.dataset import PoseDataset
from ilat_train.data.image_folder import image_files

from .sample import Sample

Array = npt.NDArray[np.generic]

ASTRONAUT = {
    "head": (226, 118),
    "left_shoulder": (330, 262),
    "right_shoulder": (96, 262),
    "left_elbow": (356, 400),
    "right_elbow": (58, 420),
}
"""Pixels of the landmarks in scikit-image's photograph of an astronaut, 512x512; the others are out of sight."""


def held_out_samples(root: Path, margin: float, dilation: float, size: int, count: int) -> list[Sample]:
    """``count`` edits of held-out frames of a pose data set: the pose of another held-out frame of the same clip.

    Args:
        margin, dilation: the crop rule of the bundle.
        size: side of the model's images.

    Raises:
        InputError: the folder is no such data set.
    """
    data = PoseDataset(root, DataConfig(margin=margin, dilation=dilation), size)
    samples = []
    for pair in data.held_out_pairs(count):
        image = np.asarray(pair.crop.take(data.frame(pair.clip, pair.condition)), np.uint8)
        poses, nothing = pair.crop.relative(pair.poses), np.zeros(image.shape[:2], np.uint8)
        samples.append(Sample(image, nothing, poses, pair.radius / pair.crop.side))
    return samples


def masked_samples(root: Path, size: int, count: int) -> list[Sample]:
    """The last ``count`` images of a folder, those that training left out if any, with a box masked, for models
    without poses.

    Raises:
        InputError: the folder has no image.
    """
    return [_boxed(read_image(file), size) for file in image_files(root)[-count:]]


TURNS = (10, -10, 20, -20, 5, -5, 30, 15)
"""Degrees by which the astronaut is bent, one after the other."""


def photograph(margin: float, dilation: float, size: int, posed: bool, edits: int = 1) -> list[Sample]:
    """Edits of scikit-image's photograph of an astronaut: turned poses, or without poses one masked box."""
    from skimage.data import astronaut

    image = np.asarray(astronaut(), np.uint8)
    if not posed:
        return [_boxed(image, size)]
    pose = np.zeros((len(JOINTS), 3), np.float32)
    for name, point in ASTRONAUT.items():
        pose[JOINTS.index(name)] = (*point, 1)
    return [_turned(image, pose, angle, (margin, dilation), size) for angle in TURNS[:edits]]


def _turned(
    image: npt.NDArray[np.uint8], pose: npt.NDArray[np.float32], degrees: float, rule: tuple[float, float], size: int
) -> Sample:
    """Bent to one side about the hips, which lie below the picture."""
    turned, angle, hips = pose.copy(), np.deg2rad(degrees), np.array([213, 620], np.float32)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], np.float32)
    turned[:, :2] = (pose[:, :2] - hips) @ turn + hips
    poses = np.stack([pose, turned])
    box = visible_box(poses)
    if box is None:
        raise InputError("the photograph has no visible landmark")
    margin, dilation = rule
    crop = crop_around(box, (image.shape[1], image.shape[0]), margin, size)
    cut = np.asarray(crop.take(image), np.uint8)
    radius = dilation * max(box[2] - box[0], box[3] - box[1]) / crop.side
    return Sample(cut, np.zeros(cut.shape[:2], np.uint8), crop.relative(poses), radius)


def _boxed(image: npt.NDArray[np.uint8], size: int) -> Sample:
    """The middle of an image, with the middle third of it masked."""
    height, width = image.shape[:2]
    mask = np.zeros((height, width), bool)
    mask[height // 3 : max(2 * height // 3, 1), width // 3 : max(2 * width // 3, 1)] = True
    box = mask_box(mask)
    if box is None:
        raise InputError(f"an image of {width}x{height} pixels is too small to verify on")
    crop = crop_around(box, (width, height), 2.0, size)
    cut, masked = np.asarray(crop.take(image), np.uint8), np.asarray(crop.take(mask), np.uint8)
    return Sample(cut, masked, np.zeros((2, len(JOINTS), 3), np.float32), 0.0)
