"""The codebook (Eq. 1) with the straight-through gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Quantizer(nn.Module):
    """Replaces each latent vector by the nearest of K codebook vectors."""

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.empty(size, channels).uniform_(-1 / size, 1 / size))

    def nearest(self, latent: Tensor) -> Tensor:
        """Eq. 1: latent (B, C, g, g) to indices int64 (B, g*g) of the nearest codebook vectors, in float32."""
        with torch.autocast(latent.device.type, enabled=False):
            flat = latent.float().flatten(2).transpose(1, 2)
            codebook = self.codebook.float()
            # |z|² is the same for every candidate.
            distance = (codebook**2).sum(1) - 2 * flat @ codebook.T
            return distance.argmin(2)

    def lookup(self, tokens: Tensor, rows: int) -> Tensor:
        """Indices (B, rows * columns) to codebook vectors (B, C, rows, columns)."""
        return self.codebook[tokens].transpose(1, 2).unflatten(2, (rows, tokens.shape[1] // rows))

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latent (B, C, g, g) to (quantized with straight-through gradient, tokens (B, g*g), and two losses).

        The losses, the codebook's and the commitment, are maps (B, 1, g, g), so that positions can be weighted.
        """
        latent = latent.float()
        tokens = self.nearest(latent)
        quantized = self.lookup(tokens, latent.shape[-2])
        codebook_loss = ((quantized - latent.detach()) ** 2).mean(1, keepdim=True)
        commitment = ((quantized.detach() - latent) ** 2).mean(1, keepdim=True)
        return latent + (quantized - latent).detach(), tokens, codebook_loss, commitment
