"""A start for training: the first layer copies the condition's token at the place that is to be predicted.

Not in the paper. Where nothing moved, that token is the answer. A transformer finds this out by itself after long
training on many scenes; on a few short clips it learns the clips by heart instead. These are values to start from:
training changes all of them, and the model is the same.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ilat_runtime.errors import InputError

if TYPE_CHECKING:
    from .transformer import LocalTransformer

SHARPNESS = 1.25
"""Gain of the copying heads' queries and keys: the right place gets nearly all of the attention."""
PREFERENCE = 10.0
"""Of the copying heads for the condition over all other tokens."""


def grid_positions(tokens: int, width: int, deviation: float) -> Tensor:
    """Sines and cosines of row and column, (tokens, width), with a standard deviation.

    Raises:
        InputError: the tokens are no square grid.
    """
    side = math.isqrt(tokens)
    if side * side != tokens or width % 4:
        raise InputError(f"start 'copy': {tokens} tokens × {width}, expected a square × a multiple of 4")
    frequency = math.pi / side * torch.logspace(0, math.log2(side), width // 4, base=2)
    angle = (torch.arange(side) + 0.5)[:, None] * frequency
    wave = torch.cat([angle.sin(), angle.cos()], 1) * (deviation * 2**0.5)
    rows, columns = wave.repeat_interleave(side, 0), wave.repeat(side, 1)
    return torch.cat([rows, columns], 1)


@torch.no_grad()
def start_by_copying(model: LocalTransformer, deviation: float) -> None:
    """Sets positions, the first layer's attention and the head. Condition and target must share a vocabulary.

    Half of the first layer's heads compare positions, prefer the condition, and pass on the token found there, which
    the head, starting from the identity, reads off.

    Args:
        deviation: standard deviation of the tables.

    Raises:
        InputError: the tokens are no square grid, or a head is too small to tell their places apart.
    """
    config = model.config
    width, size, copying = config.width, config.head_size, max(1, config.heads // 2)
    grid = grid_positions(config.image_tokens, width, deviation)
    condition, target = (config.layout.slice(block) for block in ("condition", "target"))
    model.position[condition][1:] = grid
    # The row of token m - 1 predicts token m.
    model.position[target][:-1] = grid
    directions = torch.linalg.svd(grid, full_matrices=True)[2]
    rank = int(torch.linalg.matrix_rank(grid))
    if rank + 1 > min(size, width - 1):
        raise InputError(f"start 'copy': heads of {size} channels, expected at least {rank + 1}")
    places, marker = directions[:rank], directions[rank]
    model.position[condition] += marker * (deviation * width**0.5)

    blocks: list[Any] = list(model.blocks)
    first = blocks[0].attention
    weight, bias = first.qkv.weight.view(3, config.heads, size, width), first.qkv.bias.view(3, config.heads, size)
    mixed = torch.linalg.qr(torch.randn(width, width))[0]
    for head in range(copying):
        weight[:, head] = 0
        weight[:2, head, :rank] = SHARPNESS * places
        weight[1, head, rank] = SHARPNESS * marker
        bias[0, head, rank] = PREFERENCE
        channels = slice(head * size, (head + 1) * size)
        weight[2, head] = mixed[channels]
        first.project.weight[:, channels] = mixed[channels].T
    # What the other layers add at first must not drown what was copied.
    for layer, block in enumerate(blocks):
        scale = (2 * config.layers) ** -0.5
        if layer:
            block.attention.project.weight *= scale
        block.feed_forward[-1].weight *= scale
    torch.nn.init.eye_(model.dense.weight)
