"""The encoder E of TS-VQGAN: every convolution is two-stream (Table 3)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ..config import TokenizerConfig
from .blocks import AttentionBlock, ResidualBlock, normalization
from .masks import MaskPyramid
from .two_stream import Downsample, TwoStreamConv2d


class Encoder(nn.Module):
    """Image (B, in_channels, S, S) in [-1, 1] to features (B, latent_channels, g, g)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        first, kernel = config.first_kernel, config.last_kernel
        self.conv_in = TwoStreamConv2d(
            config.in_channels,
            widths[0],
            first,
            padding=first // 2,
            padding_mode="reflect" if first > 3 else "zeros",
        )
        layers: list[nn.Module] = []
        channels = widths[0]
        for level, width in enumerate(widths):
            last = level == len(widths) - 1
            for _ in range(config.res_blocks if config.blocks(level) else 0):
                layers.append(ResidualBlock(config, channels, width, kernel if last else 3))
                channels = width
                if last and config.attention:
                    layers.append(AttentionBlock(config, channels))
            if not last:
                wider = widths[level + 1] if config.widening == "resampling" else channels
                layers.append(Downsample(channels, wider, config.downsample_kernel))
                channels = wider
        layers.append(ResidualBlock(config, channels, channels, kernel))
        if config.attention:
            layers.append(AttentionBlock(config, channels))
        layers.append(ResidualBlock(config, channels, channels, kernel))
        self.layers = nn.ModuleList(layers)
        self.norm_out = normalization(config, channels)
        self.conv_out = TwoStreamConv2d(channels, config.latent_channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor, masks: MaskPyramid | None = None) -> Tensor:
        """(B, in_channels, S, S) to (B, latent_channels, g, g)."""
        h = self.conv_in(x, masks)
        for layer in self.layers:
            h = layer(h, masks)
        return self.conv_out(F.silu(self.norm_out(h, masks)), masks)
