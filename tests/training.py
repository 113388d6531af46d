"""A small data set cut from a real clip, and recipes small enough to train on it in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from editing import standing

from ilat_train.config import Recipe, override
from ilat_train.data.pose_video import build_dataset
from ilat_train.models import TSVQGAN

CLIP = Path(__file__).parent / "data" / "person.mp4"
SIZE = 32

TINY = Recipe.model_validate(
    {
        "name": "tiny",
        "tokenizer": {
            "image_size": SIZE,
            "channels": 8,
            "multipliers": (1, 1, 2, 2),
            "res_blocks": 1,
            "norm_groups": 4,
            "latent_channels": 8,
            "codebook_size": 24,
            "codebook_channels": 8,
        },
        "transformer": {
            "width": 16,
            "heads": 2,
            "layers": 1,
            "image_tokens": 16,
            "codebook_size": 24,
            "condition_vocabulary": 24,
        },
        # Every kind of step within eight: plain, quantized, adversarial, masked, restarted.
        "tokenizer_training": {
            "plain_steps": 5,
            "masked_steps": 3,
            "batch_size": 2,
            "rate": 1e-3,
            "halve_every": 4,
            "perceptual": "gradient",
            "codebook_start": 2,
            "restart_every": 3,
            "adversarial_start": 4,
            "discriminator_channels": 4,
        },
        "transformer_training": {"steps": 6, "batch_size": 2, "rate": 1e-3, "warmup": 2},
    }
)


def tiny(*assignments: str) -> Recipe:
    """The recipe with assignments as ``--set`` takes them."""
    return override(TINY, list(assignments))


class Walker:
    """Stands in for the pose model: a person who walks to the right; nobody in the frames ``empty``."""

    def __init__(self, empty: tuple[int, ...] = ()) -> None:
        self.empty, self.frame = empty, -1

    def reset(self) -> None:
        self.frame = -1

    def __call__(self, image: np.ndarray) -> np.ndarray:
        self.frame += 1
        height, width = image.shape[:2]
        pose = standing(width * (0.4 + 0.01 * self.frame), height * 0.5, height * 0.45, lean=0.01 * self.frame)
        return np.zeros((0, 13, 3), np.float32) if self.frame in self.empty else pose[None]


def make_dataset(folder: Path, empty: tuple[int, ...] = (), **options: Any) -> Path:
    """Two clips of 20 frames, of which 16 are for training."""
    options = {"max_side": 96, "dilation": 0.09, **options}
    build_dataset([CLIP, CLIP], folder, Walker(empty), progress=False, **options)
    return folder


def tiny_tokenizer(seed: int = 0) -> TSVQGAN:
    torch.manual_seed(seed)
    model = TSVQGAN(TINY.tokenizer).eval()
    with torch.no_grad():
        model.quantizer.codebook.normal_(0, 0.5)
    return model
