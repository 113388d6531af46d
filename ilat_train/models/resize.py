"""Antialiased linear resampling as two matrix products: arithmetic that every backend has, with dynamic sizes."""

from __future__ import annotations

import torch
from torch import Tensor


def _weights(source: int, target: int, like: Tensor) -> Tensor:
    """(target, source): row i holds the triangle filter around output pixel i's centre; rows sum to 1."""
    position = torch.arange(source, device=like.device, dtype=torch.float32)
    index = torch.arange(target, device=like.device, dtype=torch.float32)
    # The sizes as tensors, so that a graph exported with dynamic sizes computes this too.
    ratio = (position[-1:] + 1) / (index[-1:] + 1)
    width = ratio.clamp(min=1)
    centre = (index + 0.5) * ratio - 0.5
    weights = (1 - (position[None, :] - centre[:, None]).abs() / width).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Float (..., H, W) to (..., *size). Shrinking averages over the pixels covered, enlarging is bilinear."""
    rows = _weights(image.shape[-2], size[0], image)
    columns = _weights(image.shape[-1], size[1], image)
    return rows @ image @ columns.T


def covered(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Bool (..., H, W) to bool (..., *size): True where :func:`resize` would read any pixel that is True."""
    return resize(mask.float(), size) > 0
