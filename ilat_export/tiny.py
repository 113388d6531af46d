"""A bundle of small random models: the same code as a real one, in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from ilat_train.config import TokenizerConfig, TransformerConfig
from ilat_train.models import TSVQGAN, LocalTransformer

from .bundle import Facts, export_bundle


def tiny_models(
    seed: int = 0, kind: Literal["pose", "none"] = "pose", numbering: str = "local"
) -> tuple[TSVQGAN, LocalTransformer]:
    """Random models of 32x32 images, 4x4 tokens."""
    torch.manual_seed(seed)
    tokenizer = TokenizerConfig(
        image_size=32,
        channels=8,
        multipliers=(1, 1, 2, 2),
        res_blocks=1,
        norm_groups=4,
        latent_channels=8,
        codebook_size=24,
        codebook_channels=8,
    )
    transformer = TransformerConfig(
        width=32,
        heads=2,
        layers=2,
        image_tokens=16,
        pose_tokens=13 if kind == "pose" else 0,
        blocks=("condition", "pose", "target") if kind == "pose" else ("target",),
        codebook_size=24,
        condition_vocabulary=24 if kind == "pose" else 0,
        numbering=numbering,
    )
    models = TSVQGAN(tokenizer).eval(), LocalTransformer(transformer).eval()
    with torch.no_grad():
        # Wider than training starts from, so that tokens and likelihoods differ.
        models[0].quantizer.codebook.normal_(0, 0.5)
        for parameter in models[1].parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return models


def tiny_bundle(path: Path, seed: int = 0, kind: Literal["pose", "none"] = "pose", numbering: str = "local") -> Path:
    """Writes such a bundle to ``path`` and returns it."""
    tokenizer, transformer = tiny_models(seed, kind, numbering)
    export_bundle(tokenizer, transformer, path, Facts(name=f"tiny-{kind}", weights_licence="none, random numbers"))
    return path
