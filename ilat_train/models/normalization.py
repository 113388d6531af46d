"""Normalisation that does not leak: the statistics of unmasked features come from unmasked positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .masks import MaskPyramid


class Normalization(nn.Module):
    """GroupNorm, or InstanceNorm as one group a channel.

    With a mask, unmasked positions are normalised by the mean and variance of the unmasked positions, masked ones by
    those of all positions. A mask of all ones or all zeros is therefore the plain normalisation.

    Args:
        groups: number of groups; equal to ``channels`` for instance normalisation.
        affine: learn a gain and a bias a channel.
        leaky: the plain normalisation, whatever the mask.
    """

    def __init__(self, channels: int, groups: int, affine: bool = True, eps: float = 1e-6, leaky: bool = False) -> None:
        super().__init__()
        self.groups, self.eps, self.leaky = groups, eps, leaky
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, x: Tensor, masks: MaskPyramid | None = None) -> Tensor:
        """(B, C, H, W) to the same."""
        if masks is None or self.leaky:
            return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        known = masks.known(x.shape[-1])
        gain, offset = self._gain_and_offset(x, known)
        result = x * gain + offset
        if masks.both_streams:
            gain, offset = self._gain_and_offset(x, torch.ones_like(known))
            result = torch.where(masks.masked(x.shape[-1]), x * gain + offset, result)
        return result

    def _gain_and_offset(self, x: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """The normalisation by statistics of the counted positions as x * gain + offset, each (B, C, 1, 1)."""
        batch, channels, height, width = x.shape
        with torch.autocast(x.device.type, enabled=False):
            flat = (x.float() * counted).reshape(batch, self.groups, -1)
            count = counted.reshape(batch, 1, -1).sum(2, keepdim=True) * (channels // self.groups)
            count = count.clamp(min=1)
            mean = flat.sum(2, keepdim=True) / count
            weights = counted.expand(batch, channels, height, width).reshape(batch, self.groups, -1)
            variance = (((flat - mean) * weights) ** 2).sum(2, keepdim=True) / count
            scale = torch.rsqrt(variance + self.eps)
            repeated = (batch, self.groups, channels // self.groups)
            gain = scale.expand(repeated).reshape(batch, channels, 1, 1)
            offset = (-mean * scale).expand(repeated).reshape(batch, channels, 1, 1)
            if self.weight is not None and self.bias is not None:
                weight = self.weight[:, None, None]
                gain, offset = gain * weight, offset * weight + self.bias[:, None, None]
        return gain.to(x.dtype), offset.to(x.dtype)


class PositionNormalization(nn.LayerNorm):
    """Each position by the mean and variance of its own channels: no other position, masked or not, can matter."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor, masks: MaskPyramid | None = None) -> Tensor:
        """(B, C, H, W) to the same."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
