"""Training data: pairs of frames of one clip with their landmarks (Sec. 4, Penn Action protocol).

Sampling has no state: a batch is a function of (seed, step, rank), so a resumed run sees what it would have seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from ilat_runtime.crop import Crop, crop_around, visible_box
from ilat_runtime.errors import InputError
from ilat_runtime.joints import FLIP, JOINTS
from ilat_runtime.pose_file import read_poses

from ..config import DataConfig
from ..json_file import read_json
from ..models.resize import resize
from ..models.skeleton_mask import skeleton_mask
from .masks import blob_mask, box_mask, free_form_mask
from .pose_video import FORMAT, VERSION, Clip

if TYPE_CHECKING:
    from .object_masks import ObjectMasks

Split = Literal["train", "test"]
References = Literal["any", "held-out"]

_SHAPES: dict[str, Callable[[int, int, np.random.Generator], npt.NDArray[np.bool_]]] = {
    "free-form": free_form_mask,
    "box": box_mask,
    "blob": blob_mask,
}

MAX_KEPT = 2 * 2**30
"""Bytes of decoded frames kept in memory; further ones are decoded whenever they are needed."""
FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]


@dataclass
class Batch:
    """Pairs for training.

    Attributes:
        condition, target: float (B, 3, S, S) in [-1, 1], RGB; a condition that is a sketch has one channel.
        poses: float (B, 2, 13, 3) crop-relative landmarks of condition and target; all invisible without landmarks.
        radius: float (B,) crop-relative radius of the skeleton mask.
    """

    condition: Tensor
    target: Tensor
    poses: Tensor
    radius: Tensor

    def skeleton_mask(self) -> Tensor:
        """Bool (B, 1, S, S): the union of both poses' dilated skeletons."""
        return skeleton_mask(self.poses, self.radius, self.target.shape[-1])


class TrainingData(Protocol):
    """What the training loops draw from."""

    def batch(self, seed: int, step: int, rank: int, size: int, pairs: bool = True) -> Batch:
        """The batch of one step on one process; without ``pairs`` the condition is the target itself."""
        ...


def generator(*key: int) -> np.random.Generator:
    """The random numbers of one step: the same for the same key, whatever came before."""
    return np.random.default_rng([abs(part) for part in key])


def to_model(image: ByteArray, size: int) -> Tensor:
    """uint8 HWC RGB to float (3, size, size) in [-1, 1], by the resampling of the exported encoder."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float()
    return resize(pixels, (size, size)) / 127.5 - 1


def to_bytes(image: Tensor) -> ByteArray:
    """Float (3, H, W), or (1, H, W), in [-1, 1] to uint8 HWC RGB."""
    image = image.expand(3, -1, -1)
    scaled = ((image.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255)
    result: ByteArray = scaled.permute(1, 2, 0).to(torch.uint8).numpy()
    return result


@dataclass(frozen=True)
class Pair:
    """Two frames of one clip, in the same crop of the stored frames.

    Attributes:
        poses: float32 (2, 13, 3) in pixels of the stored frames: condition, target.
        radius: of the skeleton mask, in the same pixels.
    """

    clip: str
    condition: int
    target: int
    poses: FloatArray
    crop: Crop
    radius: float


class PoseDataset:
    """A data set folder as ``ilat-train data pose-video`` writes it. Decoded frames are kept in memory, up to a limit.

    Args:
        size: side of the model's images in pixels.

    Raises:
        InputError: the folder or its index is not what it should be.
    """

    def __init__(self, root: Path, config: DataConfig, size: int) -> None:
        self.root, self.config, self.size = root, config, size
        self.clips = {clip.name: clip for clip in _read_index(root / "dataset.json")}
        self.poses: dict[str, FloatArray] = {}
        for clip in self.clips.values():
            file = root / clip.name / "poses.json"
            poses = read_poses(file).poses
            if len(poses) != clip.frames:
                raise InputError(f"{file}: {len(poses)} poses, but dataset.json says {clip.frames} frames")
            self.poses[clip.name] = poses
        self._frames: dict[tuple[str, int], ByteArray] = {}
        self._kept = 0
        # Frames in which nobody was found make pairs only with others.
        self._trained = [name for name in self.clips if self._visible(name, "train")]

    def _visible(self, clip: str, split: Split) -> list[int]:
        """Frames of a split with a visible landmark."""
        return [index for index in self.indices(clip, split) if visible_box(self.poses[clip][index]) is not None]

    def facts(self) -> dict[str, Any]:
        """What a checkpoint and a bundle say of their data: the crop rule's numbers and where the clips are from."""
        own = [clip.dilation for clip in self.clips.values()]
        return {
            "margin": self.config.margin,
            "dilation": round(float(np.mean(own)), 6) if self.config.dilation is None else self.config.dilation,
            "clips": [
                {key: getattr(clip, key) for key in ("name", "source", "sha256", "frames", "test_from")}
                for clip in self.clips.values()
            ],
        }

    def frame(self, clip: str, index: int) -> ByteArray:
        """A stored frame, uint8 HWC RGB."""
        if (clip, index) in self._frames:
            return self._frames[clip, index]
        file = self.root / clip / f"{index:06d}.jpg"
        image = cv2.imread(str(file), cv2.IMREAD_COLOR)
        if image is None:
            raise InputError(f"{file}: missing or not an image")
        frame = np.ascontiguousarray(image[..., ::-1], dtype=np.uint8)
        if self._kept + frame.nbytes <= MAX_KEPT:
            self._frames[clip, index] = frame
            self._kept += frame.nbytes
        return frame

    def indices(self, clip: str, split: Split) -> range:
        """Frame numbers of a split: training before ``test_from``, held out from there."""
        entry = self.clips[clip]
        return range(entry.test_from) if split == "train" else range(entry.test_from, entry.frames)

    def pair(self, clip: str, condition: int, target: int, jitter: np.random.Generator | None = None) -> Pair:
        """Two frames in the crop that an edit of the first into the pose of the second would use; with ``jitter``,
        shifted and scaled at random.

        Raises:
            InputError: neither frame shows a landmark.
        """
        entry, frame = self.clips[clip], self.frame(clip, condition)
        poses = np.stack([self.poses[clip][condition], self.poses[clip][target]])
        box = visible_box(poses)
        if box is None:
            raise InputError(f"{self.root}: no landmark in frames {condition} and {target} of {clip}")
        margin, extent = self.config.margin, max(box[2] - box[0], box[3] - box[1])
        if jitter is not None:
            margin *= float(jitter.uniform(*self.config.scale))
            dx, dy = jitter.uniform(-self.config.shift, self.config.shift, 2) * extent
            box = (box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy)
        crop = crop_around(box, (frame.shape[1], frame.shape[0]), margin, self.size)
        dilation = entry.dilation if self.config.dilation is None else self.config.dilation
        return Pair(clip, condition, target, poses, crop, dilation * extent)

    def load(self, pairs: list[Pair], mirrored: list[bool] | None = None, conditions: bool = True) -> Batch:
        """Cuts and resamples pairs into one batch; without ``conditions`` their place is taken by the targets."""
        size = self.size

        def images(number: int) -> Tensor:
            frames = [self.frame(pair.clip, (pair.condition, pair.target)[number]) for pair in pairs]
            cut = [pair.crop.take(frame) for pair, frame in zip(pairs, frames, strict=True)]
            return torch.stack([to_model(np.asarray(image, np.uint8), size) for image in cut])

        target = images(1)
        batch = Batch(
            images(0) if conditions else target.clone(),
            target,
            torch.from_numpy(np.stack([pair.crop.relative(pair.poses) for pair in pairs])),
            torch.tensor([pair.radius / pair.crop.side for pair in pairs]),
        )
        for row, mirror in enumerate(mirrored or []):
            if mirror:
                batch.condition[row] = batch.condition[row].flip(-1)
                batch.target[row] = batch.target[row].flip(-1)
                batch.poses[row] = batch.poses[row][:, list(FLIP)]
                batch.poses[row, ..., 0] = 1 - batch.poses[row, ..., 0]
        return batch

    def batch(self, seed: int, step: int, rank: int, size: int, pairs: bool = True) -> Batch:
        """Pairs of random training frames of random clips.

        Raises:
            InputError: no training frame shows a landmark.
        """
        random, names = generator(seed, step, rank), self._trained
        if not names:
            raise InputError(f"{self.root}: no training frame shows a landmark")
        chosen: list[Pair] = []
        while len(chosen) < size:
            clip = names[random.integers(len(names))]
            condition, target = random.choice(self.indices(clip, "train"), 2)
            if visible_box(self.poses[clip][[condition, target]]) is not None:
                chosen.append(self.pair(clip, int(condition), int(target), random))
        return self.load(chosen, list(random.random(size) < self.config.flip), pairs)

    def held_out_pairs(self, count: int, seed: int = 0, references: References = "held-out") -> list[Pair]:
        """``count`` pairs whose targets are held-out frames, spread evenly, each with another frame of its clip.

        Frames without a visible landmark are left out.

        Args:
            references: which frames to choose the other from. Held-out frames follow closely upon each other, so among
                themselves their poses differ little; in training any two frames of a clip are a pair.

        Raises:
            InputError: a clip with fewer than two held-out frames.
        """
        random = generator(seed, 20210611)
        pairs = []
        for number in range(count):
            clip = list(self.clips)[number % len(self.clips)]
            frames = self._visible(clip, "test")
            if len(frames) < 2:
                raise InputError(f"{self.root}: clip {clip} has fewer than two held-out frames with a landmark")
            target = frames[int((number // len(self.clips)) * len(frames) * len(self.clips) / count) % len(frames)]
            others = frames if references == "held-out" else [*self._visible(clip, "train"), *frames]
            condition = int(random.choice([index for index in others if index != target]))
            pairs.append(self.pair(clip, condition, target))
        return pairs


def random_masks(
    kinds: tuple[str, ...], batch: Batch, random: np.random.Generator, objects: ObjectMasks | None = None
) -> Tensor:
    """Bool (B, 1, S, S), one mask of a random kind an image.

    Args:
        kinds: ``skeleton``, ``free-form``, ``box``, ``blob`` or ``object``, the last drawn from ``objects``.

    Raises:
        InputError: an unknown kind, or ``object`` without ``objects``.
    """
    size = batch.target.shape[-1]
    masks = batch.skeleton_mask()
    for row in range(len(masks)):
        kind = kinds[random.integers(len(kinds))]
        if kind in _SHAPES:
            masks[row, 0] = torch.from_numpy(_SHAPES[kind](size, size, random))
        elif kind == "object":
            if objects is None:
                raise InputError("masks: 'object' needs masks of objects: a folder, or a COCO annotation file")
            masks[row, 0] = torch.from_numpy(objects.draw(size, random).copy())
        elif kind != "skeleton":
            raise InputError(f"masks: {kind!r}, expected skeleton, free-form, box, blob or object")
    return masks


def _read_index(file: Path) -> list[Clip]:
    index = read_json(file, "a folder made by `ilat-train data pose-video`")
    if not isinstance(index, dict) or index.get("format") != FORMAT or index.get("version") != VERSION:
        raise InputError(f"{file}: format, version: expected {FORMAT!r}, {VERSION}")
    if index.get("joints") != list(JOINTS):
        raise InputError(f"{file}: joints: expected {', '.join(JOINTS)}")
    try:
        clips = TypeAdapter(list[Clip]).validate_python(index.get("clips"))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{file}: clips.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    for clip in clips:
        if not clip.name or Path(clip.name).name != clip.name or clip.name in (".", ".."):
            raise InputError(f"{file}: clips.name: {clip.name!r} is not the name of a folder")
        if not 0 <= clip.test_from <= clip.frames:
            raise InputError(f"{file}: clips: {clip.name}: test_from {clip.test_from}, expected 0 to {clip.frames}")
    if not clips:
        raise InputError(f"{file}: clips: expected at least one")
    return clips
