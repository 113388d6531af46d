"""The choice of the perceptual loss, and what stands in for LPIPS where its weights are not at hand."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ilat_runtime.errors import IlatError, InputError

from .lpips import load_lpips

PerceptualKind = Literal["alex", "vgg", "gradient", "auto"]


class GradientLoss(nn.Module):
    """Mean absolute difference of the images' gradients at several scales. Not a learned distance: it asks for sharp
    edges in the right places and knows nothing of what they show.
    """

    def __init__(self, scales: int = 4) -> None:
        super().__init__()
        self.scales = scales

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of each pair: float (N, C, H, W) images in [-1, 1] -> float32 (N,)."""
        difference = a.float() - b.float()
        total = torch.zeros(len(a), device=a.device)
        count = 0
        for scale in range(self.scales):
            if scale:
                difference = F.avg_pool2d(difference, 2)
            if min(difference.shape[-2:]) < 2:
                break
            total = (
                total + difference.diff(dim=-1).abs().mean((1, 2, 3)) + difference.diff(dim=-2).abs().mean((1, 2, 3))
            )
            count += 1
        return total / max(count, 1)


def perceptual_loss(kind: PerceptualKind = "auto", device: torch.device | str = "cpu") -> tuple[nn.Module, str]:
    """The module that maps two float (N, 3, H, W) batches in [-1, 1] to (N,) distances, and one line that says which
    it is and why.

    ``auto`` is LPIPS over VGG16 where its weights were fetched, else :class:`GradientLoss`; only ``auto`` falls back.

    Raises:
        IlatError: ``alex`` or ``vgg`` was asked for and its weights are missing or damaged.
        InputError: ``kind`` is none of the four.
    """
    if kind == "gradient":
        return GradientLoss().to(device), "multi-scale gradient loss, as asked"
    if kind in ("alex", "vgg"):
        return load_lpips(kind, device), f"LPIPS ({kind}), as asked"
    if kind != "auto":
        raise InputError(f"perceptual loss: {kind!r} is none of alex, vgg, gradient, auto")
    try:
        return load_lpips("vgg", device), "LPIPS (vgg), its weights are available"
    except IlatError as error:
        return GradientLoss().to(device), f"multi-scale gradient loss instead of LPIPS: {error}"
