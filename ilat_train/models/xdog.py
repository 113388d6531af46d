"""XDoG: a line drawing from a photograph (Winnemöller et al. 2012, the paper's [46]), with the authors' numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .resize import resize

SIGMA, RATIO = 1.5, 2.5
"""Standard deviation of the narrower Gaussian in pixels of the square that is drawn, and the wider one's over it."""
SHARE, THRESHOLD, SLOPE = 0.97, 0.1, 200.0
"""γ, ε and φ of XDoG, of brightness in levels of 255."""
ENLARGED = 4
"""Pixels drawn along a pixel of the model: the authors drew FFHQ's images of 1024x1024 for a model of 256x256."""
_LUMA = (0.299, 0.587, 0.114)


class XDoG(nn.Module):
    """Dark lines on white: white where G(σ) exceeds γ·G(kσ) by ε, dark (1 + tanh φ(…)) where it does not.

    A square of any size is brought to one fixed size first, so that lines are as fine as those that the model was
    trained with. The released code rounds both Gaussians down to whole levels; here they stay as they are.

    Args:
        size: side of the model's images in pixels.
    """

    kernels: Tensor
    luma: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = ENLARGED * size
        self.radius = math.ceil(4 * SIGMA * RATIO)
        kernels = [_gaussian(sigma, self.radius) for sigma in (SIGMA, SIGMA * RATIO)]
        self.register_buffer("kernels", torch.stack(kernels))
        self.register_buffer("luma", torch.tensor(_LUMA).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Float (B, 3, H, W) RGB, 0 to 255, to lines float (B, 1, H, W), 0 (dark) to 255."""
        height, width = image.shape[-2:]
        grey = resize((image * self.luma).sum(1, keepdim=True), (self.size, self.size))
        blurred = self._blur(grey)
        difference = blurred[:, :1] - SHARE * blurred[:, 1:]
        lines = (1 + torch.tanh(SLOPE * (difference - THRESHOLD))).clamp(0, 1) * 255
        return resize(lines, (height, width))

    def _blur(self, grey: Tensor) -> Tensor:
        """Both Gaussians, (B, 2, H, W)."""
        pad = self.radius
        padded = F.pad(grey, (pad, pad, pad, pad), mode="reflect")
        rows = F.conv2d(padded, self.kernels[:, None, :, None])
        return F.conv2d(rows, self.kernels[:, None, None, :], groups=2)


def _gaussian(sigma: float, radius: int) -> Tensor:
    """(2·radius + 1,), cut at four standard deviations, of sum 1."""
    offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-(offset**2) / (2 * sigma**2)) * (offset.abs() <= math.ceil(4 * sigma))
    return (weights / weights.sum()).float()
