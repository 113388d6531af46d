"""TS-VQGAN (Sec. 3.1): two-stream encoder, codebook and a decoder of mixed latents (Eq. 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import TokenizerConfig
from .decoder import Decoder
from .encoder import Encoder
from .masks import MaskPyramid
from .quantizer import Quantizer


@dataclass
class Reconstruction:
    """What training needs of one pass: the image, its tokens and the loss maps of the codebook, each (B, 1, g, g)."""

    image: Tensor
    tokens: Tensor
    codebook_loss: Tensor
    commitment: Tensor


class TSVQGAN(nn.Module):
    """Images float (B, in_channels, S, S) in [-1, 1], RGB or grey; pixel masks bool (B, 1, S, S), True where masked."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.to_codebook = nn.Conv2d(config.latent_channels, config.codebook_channels, 1)
        self.quantizer = Quantizer(config.codebook_size, config.codebook_channels)
        self.from_codebook = nn.Conv2d(config.codebook_channels, config.latent_channels, 1)
        self.decoder = Decoder(config)

    def encode(self, image: Tensor, mask: Tensor | None = None, both_streams: bool = True) -> Tensor:
        """The latent ẑ (B, codebook_channels, g, g).

        Unmasked positions do not depend on masked pixels at all, unless the model is leaky. ``both_streams`` False
        leaves the masked positions meaningless at half the cost; a leaky model needs both streams always.
        """
        both_streams = both_streams or self.config.leaky
        masks = MaskPyramid(mask, both_streams) if mask is not None and self.config.two_stream else None
        return self.to_codebook(self.encoder(image, masks)).float()

    def tokens(self, image: Tensor) -> Tensor:
        """Tokens int64 (B, g*g) of whole images, nothing masked."""
        return self.quantizer.nearest(self.encode(image))

    def token_mask(self, mask: Tensor) -> Tensor:
        """M_q: pixel mask (B, 1, S, S) to bool (B, 1, g, g), True where any pixel of the token's cell is masked."""
        return MaskPyramid(mask).masked(self.config.grid)

    def decode(self, latent: Tensor) -> Tensor:
        """D: (B, codebook_channels, g, g) to an image (B, in_channels, S, S), about [-1, 1]."""
        return self.decoder(self.from_codebook(latent))

    def decode_mixed(self, latent: Tensor, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Eq. 4: codebook vectors of ``tokens`` (B, g*g) where masked, the latent itself elsewhere, decoded."""
        quantized = self.quantizer.lookup(tokens, latent.shape[-2])
        return self.decode(torch.where(token_mask, quantized, latent))

    def forward(
        self, image: Tensor, mask: Tensor | None = None, quantize: bool = True, decoder_only: bool = False
    ) -> Reconstruction:
        """One training pass; without a mask every latent is quantized, with one only the masked (Eq. 4).

        ``decoder_only`` gives no gradient to the encoder and the codebook.
        """
        trained = torch.is_grad_enabled() and not decoder_only
        with torch.set_grad_enabled(trained):
            latent = self.encode(image, mask)
        if not quantize:
            zero = latent.new_zeros(latent.shape[0], 1, *latent.shape[2:])
            return Reconstruction(self.decode(latent), self.quantizer.nearest(latent.detach()), zero, zero)
        with torch.set_grad_enabled(trained):
            quantized, tokens, codebook_loss, commitment = self.quantizer(latent)
        if mask is not None:
            quantized = torch.where(self.token_mask(mask), quantized, latent)
        return Reconstruction(self.decode(quantized), tokens, codebook_loss, commitment)
