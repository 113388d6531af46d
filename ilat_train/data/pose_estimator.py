"""13 body landmarks of the person in a video, by BlazePose (MediaPipe, Apache-2.0) on LiteRT.

A detector finds the person once; after that each frame's landmarks say where to look in the next one. The largest
person is followed, so a bystander is ignored. Follows "BlazePose: On-device Real-time Body Pose tracking"
(Bazarevsky et al., 2020) and the settings of MediaPipe's graphs ``pose_detection`` and ``pose_landmark``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ilat_runtime.errors import IlatError, InputError

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]

PENN13 = (0, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)
"""Where each of ``ilat_runtime.joints.JOINTS`` lies in BlazePose's 33 landmarks; for the head the nose, then moved."""

DETECTOR_SIZE, LANDMARK_SIZE, HEATMAP_SIZE = 224, 256, 64
ENLARGE = 1.25
"""The region looked at, relative to the circle around the body."""
LEAST_SCORE = 0.5
"""For the detector, for the presence of a person and for a landmark's visibility alike."""
NOSE, HIP_CENTRE, CIRCLE_POINT = 0, 33, 34
"""The last two are auxiliary: the middle of the hips, and a point on the circle around the body, above the head."""
REFINE_WINDOW = 7
"""Cells of the heat map around a landmark that refine it."""
LOOKS = (
    (1.0, 0.0, False),
    (1.0, 0.0, True),
    (1.0, -0.3, False),
    (1.0, 0.3, False),
    (0.85, 0.0, True),
    (1.2, 0.0, False),
)
"""Region enlarged by, turned by (radians), mirrored."""
MIRRORED = (
    0,
    4,
    5,
    6,
    1,
    2,
    3,
    8,
    7,
    10,
    9,
    *(i + 1 if i % 2 else i - 1 for i in range(11, 33)),
    33,
    34,
    35,
    36,
    37,
    38,
)
"""The landmark of a mirrored person for each of the 39 outputs."""


@dataclass(frozen=True)
class Region:
    """A rotated square: centre and side in pixels, angle in radians (0: the person stands upright)."""

    x: float
    y: float
    side: float
    angle: float

    @staticmethod
    def around(centre: npt.NDArray[np.floating[Any]], rim: npt.NDArray[np.floating[Any]]) -> Region:
        """From the middle of the hips and a point on the body's circle, towards the head."""
        dx, dy = float(rim[0] - centre[0]), float(rim[1] - centre[1])
        return Region(
            float(centre[0]), float(centre[1]), 2 * ENLARGE * float(np.hypot(dx, dy)), float(np.arctan2(dx, -dy))
        )

    def to_image(self, size: int) -> npt.NDArray[np.float64]:
        """Affine (2, 3) from a ``size`` × ``size`` patch's continuous coordinates to the image's."""
        scale = self.side / size
        cos, sin = scale * np.cos(self.angle), scale * np.sin(self.angle)
        half = size / 2
        return np.array([[cos, -sin, self.x - (cos - sin) * half], [sin, cos, self.y - (sin + cos) * half]])


def _sample(image: ByteArray, to_image: npt.NDArray[np.float64], size: int) -> FloatArray:
    """float32 (1, size, size, 3) in 0..255 of the patch; black outside the image."""
    # OpenCV's coordinates name pixel centres, ours their corners.
    linear = to_image[:, :2]
    shift = to_image[:, 2] + linear @ np.array([0.5, 0.5]) - 0.5
    matrix = np.concatenate([linear, shift[:, None]], axis=1)
    shrink = np.sqrt(abs(np.linalg.det(linear)))
    if shrink > 1.5:  # WARP_INVERSE_MAP samples single pixels: blur first, or thin limbs alias
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), 0.35 * shrink), np.uint8)
    patch = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return patch[None].astype(np.float32)


def _sigmoid(value: FloatArray) -> FloatArray:
    return np.asarray(1 / (1 + np.exp(-np.clip(value, -60, 60))), np.float32)


def detector_anchors() -> FloatArray:
    """Centres (2254, 2) of the detector's anchors in 0..1, two a cell at stride 8 and 16, six at stride 32."""
    levels = []
    for stride, repeats in ((8, 2), (16, 2), (32, 6)):
        cells = DETECTOR_SIZE // stride
        rows, columns = np.divmod(np.arange(cells * cells), cells)
        levels.append(np.repeat(np.stack([columns, rows], 1) + 0.5, repeats, axis=0) / cells)
    return np.concatenate(levels).astype(np.float32)


class _Model:
    """One tflite file; outputs are found by their shape, which is what tells them apart."""

    def __init__(self, path: Path, threads: int) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise IlatError(f"the pose estimator needs ai-edge-litert: pip install 'ilat[train]' ({error})") from error
        try:
            self._interpreter = Interpreter(str(path), num_threads=threads)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError, OSError) as error:
            raise IlatError(f"{path}: cannot be loaded as a tflite model: {error}") from error
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._outputs = {tuple(detail["shape"]): detail["index"] for detail in self._interpreter.get_output_details()}

    def __call__(self, patch: FloatArray, *shapes: tuple[int, ...]) -> list[FloatArray]:
        self._interpreter.set_tensor(self._input, np.ascontiguousarray(patch, np.float32))
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(self._outputs[shape])[0] for shape in shapes]


class PoseEstimator:
    """Follows one person through the frames of a video.

    Args:
        detector: path of ``pose_detection.tflite``.
        landmarks: path of ``pose_landmark_full.tflite``.
        threads: CPU threads.

    Raises:
        IlatError: ai-edge-litert is missing, or a model cannot be loaded.
    """

    def __init__(self, detector: Path, landmarks: Path, threads: int = 1) -> None:
        self._detector = _Model(detector, threads)
        self._landmarks = _Model(landmarks, threads)
        self._anchors = detector_anchors()
        self._region: Region | None = None

    def reset(self) -> None:
        """Forget the person: the next frame belongs to another video."""
        self._region = None

    def __call__(self, image: ByteArray) -> FloatArray:
        """Guesses at the followed person's landmarks in the next frame, by looking in slightly different ways.

        No single look is right in every frame; :func:`ilat_train.data.pose_track.choose` picks those that make a steady
        motion.

        Args:
            image: uint8 HWC RGB.

        Returns:
            float32 (M, 13, 3): x, y in pixels (origin top left), probability of being visible; M is 0 when no person is
            found.

        Raises:
            InputError: the image's type or shape is wrong.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(f"frame: {image.dtype} {image.shape}, expected uint8 (height, width, 3)")
        looks = self._looks(image, self._region) if self._region is not None else []
        if not looks:
            region = self._detect(image)
            looks = self._looks(image, region) if region is not None else []
            if looks:
                # The detector's region is rough: look again from where these landmarks say.
                looks = self._looks(image, _region_of(looks)) or looks
        self._region = _region_of(looks) if looks else None
        return np.stack([_penn13(look) for look in looks]) if looks else np.zeros((0, len(PENN13), 3), np.float32)

    def _looks(self, image: ByteArray, region: Region) -> list[FloatArray]:
        found = []
        for enlarge, turn, mirror in LOOKS:
            look = self._look(image, replace(region, side=region.side * enlarge, angle=region.angle + turn), mirror)
            if look is not None:
                found.append(look)
        return found

    def _detect(self, image: ByteArray) -> Region | None:
        """Where the largest person is."""
        height, width = image.shape[:2]
        extent = float(max(height, width))
        to_image = Region(width / 2, height / 2, extent, 0.0).to_image(DETECTOR_SIZE)
        patch = _sample(image, to_image, DETECTOR_SIZE) / np.float32(127.5) - np.float32(1)
        count = len(self._anchors)
        boxes, scores = self._detector(patch, (1, count, 12), (1, count, 1))
        likely = _sigmoid(scores[:, 0]) >= LEAST_SCORE
        if not likely.any():
            return None
        # Numbers 4 to 7 are the middle of the hips and the point on the body's circle, relative to the anchor.
        points = boxes[likely, 4:8].reshape(-1, 2, 2) + self._anchors[likely, None] * DETECTOR_SIZE
        radius = np.linalg.norm(points[:, 1] - points[:, 0], axis=1)
        best = points[int(np.argmax(radius))]
        centre, rim = best @ to_image[:, :2].T + to_image[:, 2]
        return Region.around(centre, rim)

    def _look(self, image: ByteArray, region: Region, mirror: bool) -> FloatArray | None:
        """float32 (39, 3): x, y in the image's pixels, probability of being visible; None when nobody is there."""
        if not 1 < region.side < 16 * max(image.shape[:2]):
            return None
        to_image = region.to_image(LANDMARK_SIZE)
        patch = _sample(image, to_image, LANDMARK_SIZE) / np.float32(255)
        if mirror:
            patch = np.ascontiguousarray(patch[:, :, ::-1])
        flat, presence, heatmap = self._landmarks(patch, (1, 195), (1, 1), (1, HEATMAP_SIZE, HEATMAP_SIZE, 39))
        if not float(presence[0]) > LEAST_SCORE:
            return None
        raw = flat.reshape(39, 5)
        points = np.empty((39, 3), np.float32)
        inside = _refined(raw[:, :2], heatmap)
        if mirror:
            inside[:, 0] = LANDMARK_SIZE - inside[:, 0]
        points[:, :2] = inside @ to_image[:, :2].T + to_image[:, 2]
        points[:, 2] = _sigmoid(raw[:, 3])
        return points[list(MIRRORED)] if mirror else points


def _penn13(points: FloatArray) -> FloatArray:
    pose = points[list(PENN13)]
    # Half way to the body's circle is the middle of the head: a disc around the nose leaves the hair out of a mask.
    pose[0, :2] = (points[NOSE, :2] + points[CIRCLE_POINT, :2]) / 2
    return pose


def _region_of(looks: list[FloatArray]) -> Region:
    """Where to look in the next frame; the median does not follow a single wrong look."""
    middle = np.median(np.stack(looks), axis=0)
    return Region.around(middle[HIP_CENTRE, :2], middle[CIRCLE_POINT, :2])


def _refined(points: FloatArray, heatmap: FloatArray) -> FloatArray:
    """Landmarks (39, 2) in patch pixels, moved to the centre of mass of their heat map (64, 64, 39) near them."""
    refined = points.copy()
    scale, reach = LANDMARK_SIZE / HEATMAP_SIZE, REFINE_WINDOW // 2
    for index, (x, y) in enumerate(points / scale):
        column, row = int(x), int(y)
        if not (0 <= column < HEATMAP_SIZE and 0 <= row < HEATMAP_SIZE):
            continue
        top, left = max(row - reach, 0), max(column - reach, 0)
        window = _sigmoid(heatmap[top : row + reach + 1, left : column + reach + 1, index])
        if window.max() < LEAST_SCORE:
            continue
        rows, columns = np.indices(window.shape)
        weight = window / window.sum()
        refined[index] = scale * (left + (columns * weight).sum()), scale * (top + (rows * weight).sum())
    return refined
