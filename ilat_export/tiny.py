"""A bundle of small random models: the same code as a real one, in seconds."""

from __future__ import annotations

from pathlib import Path

import torch

from ilat_train.config import TokenizerConfig, TransformerConfig
from ilat_train.models import TSVQGAN, LocalTransformer

from .bundle import Facts, Kind, export_bundle

_TOKENIZER = TokenizerConfig(
    image_size=32,
    channels=8,
    multipliers=(1, 1, 2, 2),
    res_blocks=1,
    norm_groups=4,
    latent_channels=8,
    codebook_size=24,
    codebook_channels=8,
)
_BLOCKS = {"pose": ("condition", "pose", "target"), "sketch": ("condition", "target"), "none": ("target",)}


def tiny_models(seed: int = 0, kind: Kind = "pose", numbering: str = "local") -> tuple[TSVQGAN, LocalTransformer]:
    """Random models of 32x32 images, 4x4 tokens."""
    torch.manual_seed(seed)
    transformer = TransformerConfig(
        width=32,
        heads=2,
        layers=2,
        image_tokens=16,
        pose_tokens=13 if kind == "pose" else 0,
        blocks=_BLOCKS[kind],
        codebook_size=24,
        condition_vocabulary={"pose": 24, "sketch": 20, "none": 0}[kind],
        numbering=numbering,
    )
    models = TSVQGAN(_TOKENIZER).eval(), LocalTransformer(transformer).eval()
    with torch.no_grad():
        # Wider than training starts from, so that tokens and likelihoods differ.
        models[0].quantizer.codebook.normal_(0, 0.5)
        for parameter in models[1].parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return models


def tiny_sketch_tokenizer(seed: int = 0) -> TSVQGAN:
    """A random tokenizer of sketches for the models of kind ``sketch``, with another codebook than the images'."""
    torch.manual_seed(seed + 1)
    model = TSVQGAN(_TOKENIZER.model_copy(update={"in_channels": 1, "codebook_size": 20})).eval()
    with torch.no_grad():
        model.quantizer.codebook.normal_(0, 0.5)
    return model


def tiny_bundle(path: Path, seed: int = 0, kind: Kind = "pose", numbering: str = "local") -> Path:
    """Writes such a bundle to ``path`` and returns it."""
    tokenizer, transformer = tiny_models(seed, kind, numbering)
    sketch_tokenizer = tiny_sketch_tokenizer(seed) if kind == "sketch" else None
    facts = Facts(name=f"tiny-{kind}", weights_licence="none, random numbers")
    export_bundle(tokenizer, transformer, path, facts, sketch_tokenizer=sketch_tokenizer)
    return path
