"""The graphs of a bundle: thin wrappers around the unmodified models. Arithmetic lives here, control flow in the
runtime.

What is uint8 is converted first on the way in and last on the way out: TensorRT does nothing else with that type.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ilat_train.models import TSVQGAN, LocalTransformer
from ilat_train.models.resize import covered, resize
from ilat_train.models.skeleton_mask import skeleton_mask
from ilat_train.models.xdog import XDoG


class EncoderGraph(nn.Module):
    """Crop of an image to latent, tokens and masks, by the one stream that does not see masked pixels (Eq. 2 and 3)."""

    def __init__(self, tokenizer: TSVQGAN) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(
        self, image: Tensor, mask: Tensor, poses: Tensor | None = None, radius: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See docs/bundle.md, ``encoder``.

        Args:
            image: uint8 (B, h, w, 3) RGB.
            mask: uint8 (B, h, w), not 0 where the user masks.
            poses: float32 (B, P, 13, 3) crop-relative landmarks whose skeletons are masked too.
            radius: float32 (B,) of those skeletons, crop-relative.

        Returns:
            latent float32 (B, C, g, g); tokens int64 (B, n); token_mask bool (B, n); edit_mask uint8 (B, h, w).
        """
        size = self.tokenizer.config.image_size
        height, width = image.shape[1], image.shape[2]
        pixels = resize(image.float().permute(0, 3, 1, 2), (size, size)) / 127.5 - 1
        edited, drawn = mask.float()[:, None] > 0, None
        if poses is not None and radius is not None:
            drawn = skeleton_mask(poses, radius, size)
            # A little below one half, so that the ties of symmetric weights do not depend on rounding.
            edited = edited | (resize(drawn.float(), (height, width)) > 0.499)
        # Whatever reads a pixel that is edited counts as masked, so that none of them reaches a known latent.
        masked = covered(edited, (size, size))
        if drawn is not None:
            masked = masked | drawn
        latent = self.tokenizer.encode(pixels, masked, both_streams=False)
        tokens = self.tokenizer.quantizer.nearest(latent)
        return latent, tokens, self.tokenizer.token_mask(masked).flatten(1), edited[:, 0].float().to(torch.uint8)


class SketchEncoderGraph(EncoderGraph):
    """The encoder of kind ``sketch``: also the sketch's tokens, the condition (Sec. 3.3)."""

    def __init__(self, tokenizer: TSVQGAN, sketch_tokenizer: TSVQGAN) -> None:
        super().__init__(tokenizer)
        self.sketch_tokenizer = sketch_tokenizer

    def forward(self, image: Tensor, mask: Tensor, sketch: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """See docs/bundle.md, ``encoder``.

        Args:
            image, mask: as of :class:`EncoderGraph`.
            sketch: uint8 (B, h, w), dark lines on white.

        Returns:
            As :class:`EncoderGraph`, and the sketch's tokens int64 (B, n).
        """
        size = self.sketch_tokenizer.config.image_size
        lines = resize(sketch.float()[:, None], (size, size)) / 127.5 - 1
        return *super().forward(image, mask), self.sketch_tokenizer.tokens(lines)


class SketchGraph(nn.Module):
    """A sketch from the crop of an image, by XDoG."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.xdog = XDoG(size)

    def forward(self, image: Tensor) -> Tensor:
        """uint8 (B, h, w, 3) RGB to uint8 (B, h, w), dark lines on white; see docs/bundle.md, ``sketch``."""
        return self.xdog(image.float().permute(0, 3, 1, 2))[:, 0].round().to(torch.uint8)


class DecoderGraph(nn.Module):
    """Latents and generated tokens to pixels (Eq. 4), combined with the input."""

    def __init__(self, tokenizer: TSVQGAN) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(
        self, latent: Tensor, tokens: Tensor, token_mask: Tensor, image: Tensor, edit_mask: Tensor, blend: Tensor
    ) -> Tensor:
        """See docs/bundle.md, ``decoder``.

        Args:
            latent, tokens, token_mask: as the encoder gives them, with the generated tokens where masked.
            image, edit_mask: uint8 (B, h, w, 3) RGB and uint8 (B, h, w), not 0 where edited.
            blend: bool (1,): mix across the mask's border as in A.3, rather than leave all other pixels as they are.

        Returns:
            uint8 (B, h, w, 3) RGB.
        """
        config = self.tokenizer.config
        height, width = image.shape[1], image.shape[2]
        grid_mask = token_mask.reshape(-1, 1, config.grid, config.grid)
        decoded = self.tokenizer.decode_mixed(latent, tokens, grid_mask).float()
        generated = resize((decoded.clamp(-1, 1) + 1) * 127.5, (height, width))
        edited = (edit_mask.float()[:, None] > 0).float()
        # A.3: the mask goes through half the model's size, which gives it a soft edge.
        half = config.image_size // 2
        smooth = resize(resize(resize(edited, (config.image_size,) * 2), (half, half)), (height, width))
        share = torch.where(blend, smooth, edited)
        pixels = image.float().permute(0, 3, 1, 2)
        mixed = pixels * (1 - share) + generated * share
        return mixed.round().clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)


@torch.library.custom_op("ilat::append", mutates_args=())
def append(cache: Tensor, update: Tensor, write_index: Tensor) -> Tensor:
    """Writes ``update`` (B, heads, q, d) into ``cache`` (B, heads, T, d) from slot ``write_index`` int64 (B,) on."""
    result = cache.clone()
    for row, index in enumerate(write_index.tolist()):
        result[row, :, index : index + update.shape[2]] = update[row]
    return result


@append.register_fake
def _append_shape(cache: Tensor, update: Tensor, write_index: Tensor) -> Tensor:
    return torch.empty_like(cache)


@torch.library.custom_op("ilat::kth_largest", mutates_args=())
def kth_largest(values: Tensor, k: Tensor) -> Tensor:
    """The ``k``-th largest (int64 (1,)) of the last axis, kept as an axis of length 1."""
    return torch.topk(values, int(k), dim=-1).values[..., -1:].clone()


@kth_largest.register_fake
def _kth_largest_shape(values: Tensor, k: Tensor) -> Tensor:
    return values.new_empty(*values.shape[:-1], 1)


class _BoundCache:
    """Keys and values of fixed capacity, appended to in place by the runtime's binding of inputs and outputs."""

    def __init__(self, past: tuple[Tensor, ...], write_index: Tensor) -> None:
        self.past, self.write_index = past, write_index
        self.present: list[Tensor] = []

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        for past, update in zip(self.past[2 * layer : 2 * layer + 2], (key, value), strict=True):
            self.present.append(append(past, update, self.write_index))
        return self.present[-2], self.present[-1]


def sample(logits: Tensor, top_k: Tensor, temperature: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The next token of every row, by Gumbel-max among the ``top_k`` likeliest, and its log-probability.

    Args:
        logits: float (B, q, K).
        top_k: int64 (1,); 1 is greedy, whatever the noise.
        temperature: float (B,).
        uniform: float (B, q or 1, K or 1) in (0, 1).

    Returns:
        int64 (B, q); float32 (B, q), under the softmax of the logits themselves.
    """
    logits = logits.float()
    noise = -torch.log(-torch.log(uniform))
    perturbed = logits / temperature[:, None, None] + noise
    perturbed = torch.where(logits >= kth_largest(logits, top_k), perturbed, -torch.inf)
    token = perturbed.argmax(-1)
    chosen = logits.gather(-1, token[..., None])[..., 0]
    return token, chosen - torch.logsumexp(logits, -1)


class TransformerGraph(nn.Module):
    """Appends q tokens to the cache and samples after every one: prefill, a step, or a check of guesses.

    Args:
        with_logits: give the logits too, after the cache, to compare models by; no bundle's graph does.
    """

    def __init__(self, transformer: LocalTransformer, with_logits: bool = False) -> None:
        super().__init__()
        self.transformer, self.with_logits = transformer, with_logits

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        query_segment: Tensor,
        slot_segment: Tensor,
        write_index: Tensor,
        top_k: Tensor,
        temperature: Tensor,
        uniform: Tensor,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        """See docs/bundle.md, ``transformer``; the rule of attention is ``slot_segment <= query_segment`` (Eq. 7).

        Args:
            rest: landmarks float32 (B, q, 3), for models that take them; then past keys and values, layer by layer.

        Returns:
            next_token int64 (B, q), log_probability float32 (B, q), then keys and values, layer by layer.
        """
        landmarks, past = (rest[0], rest[1:]) if self.transformer.point_mlp is not None else (None, rest)
        # Straight to four axes: by way of three, TensorRT-RTX 1.7 fails to compile the comparison.
        allowed = slot_segment[:, None, None, :] <= query_segment[:, None, :, None]
        cache = _BoundCache(past, write_index)
        hidden = self.transformer(tokens, landmarks, positions, allowed, cache)
        logits = self.transformer.logits(hidden)
        token, log_probability = sample(logits, top_k, temperature, uniform)
        return token, log_probability, *cache.present, *((logits,) if self.with_logits else ())


__all__ = ["DecoderGraph", "EncoderGraph", "SketchEncoderGraph", "SketchGraph", "TransformerGraph", "sample"]
