"""Folders of single images, such as FFHQ and CelebA-HQ, and the sketches of them (Sec. 3.3 and 4)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ilat_runtime.errors import InputError
from ilat_runtime.image_file import IMAGE_SUFFIXES, read_image, read_sketch
from ilat_runtime.joints import JOINTS

from ..config import DataConfig
from ..models.resize import resize
from .dataset import Batch, generator, to_model
from .sketches import draw_sketch, middle_square

LAYOUTS = ("images1024x1024", "CelebA-HQ-img")
"""Folders in which FFHQ and CelebAMask-HQ keep their images, beside thumbnails and annotations."""


def image_files(root: Path) -> list[Path]:
    """The images of a folder and the folders in it, by number: ``2.jpg`` before ``10.jpg``.

    Of FFHQ (``images1024x1024/00000/00000.png``) and CelebAMask-HQ (``CelebA-HQ-img/0.jpg``) only the photographs.

    Raises:
        InputError: there is none.
    """
    inner = next((root / name for name in LAYOUTS if (root / name).is_dir()), root)
    files = [file for file in inner.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise InputError(f"{root}: no image in this folder, expected {', '.join(IMAGE_SUFFIXES)}")

    def by_number(file: Path) -> list[int | str]:
        parts = re.split(r"(\d+)", file.relative_to(inner).as_posix())
        return [int(part) if index % 2 else part for index, part in enumerate(parts)]

    return sorted(files, key=by_number)


class ImageFolder:
    """Single images, without landmarks. Condition and target are the same image, or its sketch and the image.

    Args:
        size: side of the model's images in pixels.
        sketched: the condition is the sketch.
        sketches: folder of sketches drawn before (``ilat-train data sketch``); None draws each as it is needed.

    Raises:
        InputError: the folder has no image, or a sketch is missing.
    """

    def __init__(
        self, root: Path, config: DataConfig, size: int, sketched: bool = False, sketches: Path | None = None
    ) -> None:
        self.root, self.config, self.size, self.sketched = root, config, size, sketched
        self.files = image_files(root)
        self.training = len(self.files) if config.train_images is None else min(config.train_images, len(self.files))
        self.sketches = None if sketches is None else [sketch_path(sketches, file, root) for file in self.files]
        for file in self.sketches or ():
            if not file.is_file():
                raise InputError(
                    f"{file}: no such sketch; draw them with: ilat-train data sketch {root} --out {sketches}"
                )

    def facts(self) -> dict[str, Any]:
        """What a checkpoint and a bundle say of their data."""
        return {"source": str(self.root.absolute()), "images": self.training}

    def image(self, index: int) -> Tensor:
        """The middle square of an image, float (3, S, S) in [-1, 1]."""
        return to_model(middle_square(read_image(self.files[index])), self.size)

    def sketch(self, index: int) -> Tensor:
        """The sketch of the same square, float (1, S, S): -1 on a line, 1 elsewhere."""
        if self.sketches is not None:
            lines = middle_square(read_sketch(self.sketches[index]))
        else:
            lines = draw_sketch(middle_square(read_image(self.files[index])), self.size)
        return resize(torch.from_numpy(lines)[None].float(), (self.size, self.size)) / 127.5 - 1

    def batch(self, seed: int, step: int, rank: int, size: int, pairs: bool = True) -> Batch:
        """Random images of the training part, each mirrored with the configured probability."""
        random = generator(seed, step, rank)
        indices = [int(index) for index in random.integers(self.training, size=size)]
        mirrored = torch.from_numpy(random.random(size) < self.config.flip)[:, None, None, None]
        target = self._targets(indices)
        target = torch.where(mirrored, target.flip(-1), target)
        condition = target
        if self.sketched and pairs:
            lines = torch.stack([self.sketch(index) for index in indices])
            condition = torch.where(mirrored, lines.flip(-1), lines)
        return Batch(condition, target, torch.zeros(size, 2, len(JOINTS), 3), torch.zeros(size))

    def _targets(self, indices: list[int]) -> Tensor:
        return torch.stack([self.image(index) for index in indices])


class SketchFolder(ImageFolder):
    """The sketches of a folder's images alone, float (B, 1, S, S): what a tokenizer of sketches is trained on."""

    def _targets(self, indices: list[int]) -> Tensor:
        return torch.stack([self.sketch(index) for index in indices])


def sketch_path(folder: Path, image: Path, root: Path) -> Path:
    """Where the sketch of an image of ``root`` is kept: the same path below ``folder``, as PNG."""
    return (folder / image.relative_to(root)).with_suffix(".png")
