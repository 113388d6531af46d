"""Pose files: one documented JSON of our own, and readers for COCO-17 and OpenPose.

Our format, version 1 (``reference``, ``fps`` and ``image_size`` are optional)::

    {"format": "ilat-pose", "version": 1, "joints": [13 names], "image_size": [width, height],
     "poses": [[[x, y, visibility], ... 13 times], ... one for each frame],
     "reference": [[x, y, visibility], ... 13 times], "fps": 30.0}

x and y are pixels of the image the poses belong to (origin top left), visibility is 0 or 1. ``joints`` may come in any
order. ``reference`` is the pose of the photograph that is edited.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .joints import JOINTS

FORMAT, VERSION = "ilat-pose", 1
LARGEST_FILE = 256 * 2**20
"""Bytes; a pose file of a million frames is smaller."""

FloatArray = npt.NDArray[np.float32]
PathLike = str | os.PathLike[str]

_KEYS = {"format", "version", "joints", "image_size", "poses", "reference", "fps"}

# Where each of JOINTS lies in the other formats; the nose stands for the head.
_COCO17 = (0, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16)
_OPENPOSE18 = (0, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10)
_OPENPOSE25 = (0, 5, 2, 6, 3, 7, 4, 12, 9, 13, 10, 14, 11)


@dataclass(frozen=True)
class PoseFile:
    """The poses of one image or one clip.

    Attributes:
        poses: float32 (N, 13, 3), x and y in pixels (origin top left), visibility 0 or 1, in the order of ``JOINTS``.
        image_size: (width, height) in pixels of the image the poses belong to; None when the file does not say.
        reference: float32 (13, 3), the pose of the photograph that is edited, or None.
        fps: frames a second of the sequence, or None.
    """

    poses: FloatArray
    image_size: tuple[int, int] | None = None
    reference: FloatArray | None = None
    fps: float | None = None


def read_poses(path: PathLike) -> PoseFile:
    """Read a pose file: ours, COCO-17 keypoints (annotations or results) or OpenPose with 18 or 25 landmarks.

    COCO and OpenPose files must hold one person for each image. A landmark is visible where its confidence is above 0.

    Raises:
        InputError: the file cannot be read or is not such a file; the message names the file and the key.
    """
    path = Path(path)
    data = _load(path)
    if isinstance(data, dict) and "format" in data:
        return _read_own(path, data)
    if isinstance(data, dict) and "people" in data:
        return _read_openpose(path, data)
    if isinstance(data, list) or (isinstance(data, dict) and ("annotations" in data or "keypoints" in data)):
        return _read_coco(path, data)
    raise InputError(
        f'{path}: not a pose file: expected {{"format": "ilat-pose", …}}, COCO keypoints or an OpenPose "people" object'
    )


def write_poses(path: PathLike, poses: PoseFile) -> None:
    """Write our format; an existing file is replaced in one step, never left half-written.

    Raises:
        InputError: the poses are not what the format holds, or the file cannot be written.
    """
    path = Path(path)
    data: dict[str, Any] = {"format": FORMAT, "version": VERSION, "joints": list(JOINTS)}
    if poses.image_size is not None:
        data["image_size"] = [int(extent) for extent in poses.image_size]
    data["poses"] = _numbers(poses.poses)
    if poses.reference is not None:
        data["reference"] = _numbers(poses.reference)
    if poses.fps is not None:
        data["fps"] = float(poses.fps)
    _read_own(path, data)  # what is written can be read
    text = json.dumps(data, allow_nan=False) + "\n"
    temporary = None
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            file.write(text)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _fail(path: Path, message: str) -> NoReturn:
    raise InputError(f"{path}: {message}")


def _load(path: Path) -> Any:
    def constant(name: str) -> NoReturn:
        _fail(path, f"holds {name}; every number must be finite")

    try:
        if path.stat().st_size > LARGEST_FILE:
            _fail(path, f"larger than {LARGEST_FILE} bytes, not a pose file")
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=constant)
    except OSError as error:
        _fail(path, f"cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        _fail(path, "not JSON: not UTF-8 text")
    except (ValueError, RecursionError) as error:
        _fail(path, f"not JSON: {error}")


def _read_own(path: Path, data: dict[str, Any]) -> PoseFile:
    if data["format"] != FORMAT:
        _fail(path, f"format: {data['format']!r}, expected {FORMAT!r}")
    version = data.get("version")
    if isinstance(version, int) and not isinstance(version, bool) and version > VERSION:
        _fail(path, f"version: {version} is newer than {VERSION}, the newest this program reads; update ilat")
    if version != VERSION or isinstance(version, bool):
        _fail(path, f"version: {version!r}, expected {VERSION}")
    for key in data:
        if key not in _KEYS:
            _fail(path, f"unknown key {key!r}, expected one of {', '.join(sorted(_KEYS))}")
    order = _order(path, data.get("joints"))
    poses = data.get("poses")
    if not isinstance(poses, list) or not poses:
        _fail(path, "poses: expected a list of one pose or more")
    stacked = np.stack([_pose(path, f"poses[{index}]", pose, order) for index, pose in enumerate(poses)])
    reference = data.get("reference")
    fps = data.get("fps")
    if fps is not None and (not _is_number(fps) or not fps > 0):
        _fail(path, f"fps: {fps!r}, expected a number above 0")
    return PoseFile(
        poses=stacked,
        image_size=_image_size(path, data["image_size"]) if data.get("image_size") is not None else None,
        reference=_pose(path, "reference", reference, order) if reference is not None else None,
        fps=None if fps is None else float(fps),
    )


def _order(path: Path, joints: object) -> list[int]:
    if not isinstance(joints, list) or not all(isinstance(name, str) for name in joints):
        _fail(path, f"joints: expected a list of the {len(JOINTS)} landmark names")
    unknown = [name for name in joints if name not in JOINTS]
    if unknown:
        _fail(path, f"joints: unknown landmark {unknown[0]!r}, expected {', '.join(JOINTS)}")
    if len(joints) != len(JOINTS) or len(set(joints)) != len(JOINTS):
        _fail(
            path, f"joints: {len(joints)} names, {len(set(joints))} distinct; expected each of {', '.join(JOINTS)} once"
        )
    return [joints.index(name) for name in JOINTS]


def _pose(path: Path, key: str, pose: object, order: Sequence[int]) -> FloatArray:
    if not isinstance(pose, list) or len(pose) != len(JOINTS):
        found = f"{len(pose)} landmarks" if isinstance(pose, list) else repr(pose)[:40]
        _fail(path, f"{key}: {found}, expected {len(JOINTS)} landmarks [x, y, visibility]")
    for index, point in enumerate(pose):
        if not isinstance(point, list) or len(point) != 3 or not all(_is_number(value) for value in point):
            _fail(path, f"{key}[{index}]: {repr(point)[:60]}, expected three finite numbers [x, y, visibility]")
        if point[2] not in (0, 1):
            _fail(path, f"{key}[{index}]: visibility {point[2]!r}, expected 0 or 1")
    return np.array(pose, np.float32)[list(order)]


def _is_number(value: object) -> bool:
    # Beyond this a float32 pixel position means nothing (and larger ones overflow).
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 1e9


def _image_size(path: Path, value: object, key: str = "image_size") -> tuple[int, int]:
    if (
        not isinstance(value, (list, tuple))
        or len(value) != 2
        or not all(isinstance(extent, int) and not isinstance(extent, bool) and extent > 0 for extent in value)
    ):
        _fail(path, f"{key}: {repr(value)[:60]}, expected [width, height] in pixels")
    return int(value[0]), int(value[1])


def _keypoints(path: Path, key: str, values: object, picks: dict[int, Sequence[int]]) -> FloatArray:
    """A flat list x, y, confidence, … as a pose; ``picks`` maps its number of landmarks to where ours are in it."""
    expected = " or ".join(str(3 * count) for count in picks)
    if not isinstance(values, list) or len(values) not in {3 * count for count in picks}:
        found = f"{len(values)} numbers" if isinstance(values, list) else repr(values)[:40]
        _fail(path, f"{key}: {found}, expected {expected} (x, y, confidence of each landmark)")
    for index, value in enumerate(values):
        if not _is_number(value):
            _fail(path, f"{key}[{index}]: {value!r}, expected a finite number")
    pose = np.array(values, np.float32).reshape(-1, 3)[list(picks[len(values) // 3])]
    pose[:, 2] = pose[:, 2] > 0
    return pose


def _read_coco(path: Path, data: Any) -> PoseFile:
    annotations: Any
    if isinstance(data, list):
        annotations, prefix = data, ""
    elif "annotations" in data:
        annotations, prefix = data["annotations"], "annotations"
    else:
        annotations, prefix = [data], ""
    if not isinstance(annotations, list) or not annotations:
        _fail(path, f"{prefix or 'annotations'}: expected a list of one annotation or more")
    poses: list[FloatArray] = []
    seen: set[str] = set()
    for index, annotation in enumerate(annotations):
        key = f"{prefix}[{index}]"
        if not isinstance(annotation, dict) or "keypoints" not in annotation:
            _fail(path, f"{key}: no 'keypoints', expected 51 numbers of COCO-17")
        image = repr(annotation.get("image_id", index))
        if image in seen:
            _fail(path, f"{key}.image_id: {image} has a second person, expected one for each image")
        seen.add(image)
        poses.append(_keypoints(path, f"{key}.keypoints", annotation["keypoints"], {17: _COCO17}))
    return PoseFile(np.stack(poses), _coco_image_size(path, data, seen))


def _coco_image_size(path: Path, data: Any, used: set[str]) -> tuple[int, int] | None:
    images = data.get("images") if isinstance(data, dict) else None
    if not isinstance(images, list):
        return None
    sizes = {
        _image_size(path, (image.get("width"), image.get("height")), "images[].width, height")
        for image in images
        if isinstance(image, dict) and repr(image.get("id")) in used
    }
    if len(sizes) > 1:
        _fail(path, f"images: {len(sizes)} different sizes, expected one size for a sequence")
    return sizes.pop() if sizes else None


def _read_openpose(path: Path, data: dict[str, Any]) -> PoseFile:
    people = data["people"]
    if not isinstance(people, list) or len(people) != 1 or not isinstance(people[0], dict):
        count = len(people) if isinstance(people, list) else repr(people)[:40]
        _fail(path, f"people: {count}, expected exactly one person")
    key = "people[0].pose_keypoints_2d"
    values = people[0].get("pose_keypoints_2d")
    return PoseFile(_keypoints(path, key, values, {18: _OPENPOSE18, 25: _OPENPOSE25})[None])


def _numbers(pose: npt.ArrayLike) -> Any:
    """Nested lists with the shortest decimals that read back as the same float32."""
    array = np.asarray(pose, np.float32)
    shortest = [float(str(value)) for value in array.ravel()]
    return np.array(shortest, np.float64).reshape(array.shape).tolist()
