"""Residual and attention blocks of the encoder and the decoder (Table 3 and VQGAN)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import TokenizerConfig
from .masks import MaskPyramid
from .normalization import Normalization, PositionNormalization
from .two_stream import TwoStreamConv2d


def normalization(config: TokenizerConfig, channels: int) -> Normalization | PositionNormalization:
    """The configured normalisation; instance normalisation has no gain and bias (the authors' face model)."""
    if config.norm == "position":
        return PositionNormalization(channels)
    if config.norm == "instance":
        return Normalization(channels, channels, affine=False, eps=1e-5, leaky=config.leaky)
    return Normalization(channels, config.norm_groups, leaky=config.leaky)


class ResidualBlock(nn.Module):
    """Norm, swish, convolution, twice, added to the input (through a 1x1 convolution where the width changes)."""

    def __init__(self, config: TokenizerConfig, channels: int, out_channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.norm1 = normalization(config, channels)
        self.conv1 = TwoStreamConv2d(channels, out_channels, kernel, padding=kernel // 2)
        self.norm2 = normalization(config, out_channels)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = TwoStreamConv2d(out_channels, out_channels, kernel, padding=kernel // 2)
        self.shortcut = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, masks: MaskPyramid | None = None) -> Tensor:
        """(B, C, H, W) to (B, C', H, W)."""
        h = self.conv1(F.silu(self.norm1(x, masks)), masks)
        h = self.conv2(self.dropout(F.silu(self.norm2(h, masks))), masks)
        return self.shortcut(x) + h


class AttentionBlock(nn.Module):
    """Single-head self-attention over positions; unmasked ones attend to unmasked ones only, unless it is leaky."""

    def __init__(self, config: TokenizerConfig, channels: int) -> None:
        super().__init__()
        self.leaky = config.leaky
        self.norm = normalization(config, channels)
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, masks: MaskPyramid | None = None) -> Tensor:
        """(B, C, H, W) to the same."""
        h = self.norm(x, masks)
        query, key, value = (layer(h).flatten(2) for layer in (self.query, self.key, self.value))
        scores = query.transpose(1, 2) @ key * x.shape[1] ** -0.5
        if masks is not None and not self.leaky:
            masked = masks.masked(x.shape[-1]).flatten(2)
            hidden = masked
            if masks.both_streams:
                hidden = hidden & ~masked.transpose(1, 2)
            # Finite, so that a row with nothing to attend to (all masked, one stream) is no NaN; exp() of it is 0.
            scores = scores + hidden.to(scores.dtype) * -1e9
        attended = value @ torch.softmax(scores, 2).transpose(1, 2)
        return x + self.project(attended.reshape(x.shape))
