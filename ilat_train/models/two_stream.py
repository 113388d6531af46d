"""Two-stream convolution (Eq. 2 and 3): features at unmasked positions depend on unmasked pixels only."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .masks import MaskPyramid


class TwoStreamConv2d(nn.Conv2d):
    """A convolution whose second stream sees the feature with the masked positions set to zero.

    Eq. 2 and 3 replace the ring of positions that the mask leaks into by the masked stream's values; that equals taking
    the masked stream wherever the output is unmasked, and the full stream where it is masked. A position that neither
    stream's mask reaches has the same value in both.
    """

    def forward(self, x: Tensor, masks: MaskPyramid | None = None) -> Tensor:
        """(B, C, H, W) to (B, C', H', W'); ``masks`` None is the plain convolution."""
        if masks is None:
            return self._conv(x)
        unmasked = self._conv(x * masks.known(x.shape[-1]).to(x.dtype))
        if not masks.both_streams:
            return unmasked
        return torch.where(masks.masked(unmasked.shape[-1]), self._conv(x), unmasked)

    def _conv(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Downsample(nn.Module):
    """Halves the resolution by a two-stream convolution: kernel 3 (VQGAN) or 4 (the authors' face model)."""

    def __init__(self, channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        # Kernel 3 reads one pixel beyond the right and bottom edge, kernel 4 one beyond each edge.
        self.pad = (0, 1, 0, 1) if kernel == 3 else (1, 1, 1, 1)
        self.conv = _PaddedConv2d(channels, out_channels, kernel, stride=2)
        self.conv.pad = self.pad

    def forward(self, x: Tensor, masks: MaskPyramid | None = None) -> Tensor:
        """(B, C, H, W) to (B, C', H/2, W/2)."""
        return self.conv(x, masks)


class _PaddedConv2d(TwoStreamConv2d):
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)

    def _conv(self, x: Tensor) -> Tensor:
        return super()._conv(F.pad(x, self.pad))
