"""The decoder D of TS-VQGAN: plain convolutions, since it runs after generation (Table 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import TokenizerConfig
from .blocks import AttentionBlock, ResidualBlock, normalization


class Upsample(nn.Module):
    """Doubles the resolution: nearest neighbour, then a convolution."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Decoder(nn.Module):
    """Features (B, latent_channels, g, g) to an image (B, in_channels, S, S), about [-1, 1]."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        channels = widths[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, channels, 3, padding=1)
        layers: list[nn.Module] = [ResidualBlock(config, channels, channels)]
        if config.attention:
            layers.append(AttentionBlock(config, channels))
        layers.append(ResidualBlock(config, channels, channels))
        top, before = len(widths) - 1, config.decoder_layout == "table-3"
        for level in reversed(range(len(widths))):
            blocks = config.res_blocks if before else config.res_blocks + 1
            for _ in range(blocks if config.blocks(level) else 0):
                layers.append(ResidualBlock(config, channels, widths[level]))
                channels = widths[level]
                if level == top and config.attention:
                    layers.append(AttentionBlock(config, channels))
            if level < top if before else level:
                narrower = widths[level - 1] if config.widening == "resampling" else channels
                layers.append(Upsample(channels, narrower))
                channels = narrower
        self.layers = nn.ModuleList(layers)
        self.norm_out = normalization(config, channels)
        self.conv_out = nn.Conv2d(channels, config.in_channels, 3, padding=1)
        self.tanh = config.tanh

    def forward(self, z: Tensor) -> Tensor:
        """(B, latent_channels, g, g) to (B, in_channels, S, S)."""
        h = self.conv_in(z)
        for layer in self.layers:
            h = layer(h)
        image = self.conv_out(F.silu(self.norm_out(h)))
        return torch.tanh(image) if self.tanh else image
