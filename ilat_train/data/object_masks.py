"""Masks in the shape of objects (Sec. 3.3: "COCO masks"): of a COCO annotation file, or a folder of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ilat_runtime.errors import InputError
from ilat_runtime.image_file import check_size, read_mask

from ..json_file import read_json
from .image_folder import image_files

BoolArray = npt.NDArray[np.bool_]

LEAST, MOST = 0.01, 0.8
"""Shares of the image that a mask of training covers; what is smaller or larger is drawn again."""
_TRIES = 100


class ObjectMasks:
    """Masks to draw from.

    Args:
        source: ``instances_*.json`` of COCO (every annotation is a mask of its image's size), or a folder of pictures
            that are white where masked.

    Raises:
        InputError: it is neither, or holds no mask.
    """

    def __init__(self, source: Path) -> None:
        self.source = source
        self._files = image_files(source) if source.is_dir() else []
        self._annotations = [] if source.is_dir() else _annotations(source)

    def __len__(self) -> int:
        return len(self._files) + len(self._annotations)

    def draw(self, size: int, random: np.random.Generator) -> BoolArray:
        """A random mask, bool (size, size), stretched to the square, mirrored half of the time.

        Raises:
            InputError: a file or an annotation is damaged, or hardly any mask covers between 1 % and 80 % of its image.
        """
        for _ in range(_TRIES):
            own = self._mask(int(random.integers(len(self)))).astype(np.uint8)
            mask = np.asarray(cv2.resize(own, (size, size), interpolation=cv2.INTER_NEAREST))
            if LEAST <= mask.mean() <= MOST:
                return np.asarray(mask[:, ::-1] if random.random() < 0.5 else mask, bool)
        raise InputError(f"{self.source}: of {_TRIES} masks none covers {LEAST:.0%} to {MOST:.0%} of its image")

    def _mask(self, index: int) -> BoolArray:
        if self._files:
            return read_mask(self._files[index])
        number, segmentation, height, width = self._annotations[index]
        try:
            return _decoded(segmentation, height, width)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            where = f"{self.source}: annotations[{number}].segmentation"
            raise InputError(f"{where}: {error}, expected polygons or a run-length encoding") from None


def _annotations(file: Path) -> list[tuple[int, Any, int, int]]:
    """(index in the file, segmentation, height, width) of the single objects."""
    content = read_json(file, "a folder of masks or a COCO annotation file (instances_*.json)")
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in ("images", "annotations")
    ):
        raise InputError(f"{file}: expected a COCO annotation file with the lists 'images' and 'annotations'")
    try:
        sizes = {image["id"]: (int(image["height"]), int(image["width"])) for image in content["images"]}
        found = [
            (index, annotation["segmentation"], *sizes[annotation["image_id"]])
            for index, annotation in enumerate(content["annotations"])
            if not annotation.get("iscrowd")
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{file}: images and annotations: not as COCO has them ({error!r})") from None
    for height, width in sizes.values():
        check_size(width, height, f"{file}: images")
    if not found:
        raise InputError(f"{file}: annotations: no object in it")
    return found


def _decoded(segmentation: Any, height: int, width: int) -> BoolArray:
    from pycocotools import mask as coco

    if isinstance(segmentation, list):
        for polygon in segmentation:
            points = np.asarray(polygon, np.float64)
            # What lies far outside would take the library any time and memory.
            if (
                points.ndim != 1
                or len(points) < 6
                or len(points) % 2
                or not (np.abs(points) <= 2 * (height + width)).all()
            ):
                raise ValueError("not a polygon in the image")
        encoded = coco.merge(coco.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), list):
        encoded = coco.frPyObjects({"counts": segmentation["counts"], "size": [height, width]}, height, width)
    else:
        encoded = {"counts": str(segmentation["counts"]).encode(), "size": [height, width]}
    return np.asarray(coco.decode(encoded), bool)
