"""Small checkpoints with the released names, made by taking models of ours apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ilat_train.config import TokenizerConfig, TransformerConfig
from ilat_train.importing.formats import FORMATS
from ilat_train.importing.names import parts
from ilat_train.models import TSVQGAN, LocalTransformer

TOKENIZER: dict[str, Any] = {
    "image_size": 16, "channels": 32, "multipliers": (1, 2, 4), "res_blocks": 1,
    "latent_channels": 6, "codebook_size": 20, "codebook_channels": 5,
}  # fmt: skip
TRANSFORMER: dict[str, Any] = {
    "width": 64, "heads": 1, "layers": 2, "image_tokens": 16, "codebook_size": 20, "condition_vocabulary": 24,
}  # fmt: skip


def small(form: str, seed: int = 0, **values: Any) -> TSVQGAN | LocalTransformer:
    """A model of that format with random parameters, none of which is another's equal."""
    torch.manual_seed(seed)
    fixed = dict(FORMATS[form].values)
    if FORMATS[form].kind == "transformer":
        model: TSVQGAN | LocalTransformer = LocalTransformer(TransformerConfig(**{**fixed, **TRANSFORMER, **values}))
    else:
        kernel = 13 if form == "ilat-sketch" else 3
        model = TSVQGAN(TokenizerConfig(**{**fixed, **TOKENIZER, "first_kernel": kernel, **values}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
        if isinstance(model, LocalTransformer):
            # The landmarks' id has no row in a released table.
            model.embedding[model.pose] = 0
    return model.eval()


def released(model: TSVQGAN | LocalTransformer) -> dict[str, Tensor]:
    """Its parameters by their released names, the tables with two names under both."""
    result = {}
    state = model.state_dict()
    for ours, each in parts(model).items():
        for part, tensor in zip(each, state[ours].split([part.rows for part in each]), strict=True):
            if part.name is not None:
                result[part.name] = tensor.clone()
    if isinstance(model, LocalTransformer):
        result |= {"z_emb.weight": result["z_dec.weight"], "c_emb.weight": result["c_dec.weight"]}
        result["c_bias"] = torch.zeros(model.config.condition_vocabulary)
    return result
