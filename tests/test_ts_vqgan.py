"""TS-VQGAN: Eq. 4, and the two presets against Table 3 and VQGAN's published architecture."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ilat_train.config import Recipe, TokenizerConfig
from ilat_train.models import TSVQGAN
from ilat_train.models.blocks import AttentionBlock
from ilat_train.models.normalization import Normalization
from ilat_train.models.two_stream import TwoStreamConv2d
from ilat_train.recipes import RECIPES

SMALL = TokenizerConfig(
    image_size=32, channels=8, multipliers=(1, 2, 2), res_blocks=1, norm_groups=4,
    latent_channels=8, codebook_size=16, codebook_channels=6,
)  # fmt: skip


@pytest.fixture(scope="module")
def small() -> TSVQGAN:
    torch.manual_seed(0)
    return TSVQGAN(SMALL).eval()


# --- Eq. 4 ---


def test_equation_4(small: TSVQGAN) -> None:
    """Breaks when a known latent is quantized, or a masked one is not."""
    latent, tokens = torch.randn(2, 6, 8, 8), torch.randint(16, (2, 64))
    mask = torch.rand(2, 1, 8, 8) < 0.4
    with torch.inference_mode():
        mixed = torch.empty_like(latent)
        for image in range(2):
            for token in range(64):
                row, column = divmod(token, 8)
                code = small.quantizer.codebook[tokens[image, token]]
                mixed[image, :, row, column] = code if mask[image, 0, row, column] else latent[image, :, row, column]
        torch.testing.assert_close(small.decode_mixed(latent, tokens, mask), small.decode(mixed))
        # What stands at masked latents and at unmasked tokens is not read.
        other = torch.where(mask, torch.full_like(latent, 1e6), latent)
        ignored = torch.where(mask.flatten(1), tokens, (tokens + 1) % 16)
        torch.testing.assert_close(small.decode_mixed(other, ignored, mask), small.decode(mixed))


def test_training_pass(small: TSVQGAN) -> None:
    """Without a mask all latents are quantized, with one the masked only, before quantization starts none."""
    image, mask = torch.rand(2, 3, 32, 32) * 2 - 1, torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    mask[..., 3:17, 5:9] = True
    with torch.inference_mode():
        latent = small.encode(image)
        tokens = small.quantizer.nearest(latent)
        torch.testing.assert_close(small(image).image, small.decode(small.quantizer.lookup(tokens, 8)))
        torch.testing.assert_close(small(image, quantize=False).image, small.decode(latent))
        masked = small.encode(image, mask)
        tokens = small.quantizer.nearest(masked)
        expected = small.decode_mixed(masked, tokens, small.token_mask(mask))
        torch.testing.assert_close(small(image, mask).image, expected)
        assert torch.equal(small(image, mask).tokens, tokens)


def test_token_mask(small: TSVQGAN) -> None:
    """A token is masked as soon as one pixel of its cell is."""
    mask = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    mask[0, 0, 7, 31] = mask[0, 0, 8, 0] = True
    found = torch.nonzero(small.token_mask(mask)[0, 0]).tolist()
    assert found == [[1, 7], [2, 0]]


# --- the presets ---

Convolutions = Counter[tuple[int, int, int]]


def convolutions(module: nn.Module) -> Convolutions:
    """(kernel, channels in, channels out) of every convolution."""
    found = Counter()
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            found[layer.kernel_size[0], layer.in_channels, layer.out_channels] += 1
    return found


def residual(before: int, after: int) -> Convolutions:
    """Of one residual block."""
    found = Counter({(3, before, after): 1})
    found[3, after, after] += 1
    if before != after:
        found[1, before, after] += 1
    return found


def total(parts: list[Convolutions]) -> Convolutions:
    return sum(parts, Counter())


def attention(width: int) -> Convolutions:
    """Query, key, value and projection."""
    return Counter({(1, width, width): 4})


def test_face_is_table_3() -> None:
    """Breaks when a width, a kernel or the number of blocks departs from Table 3 of the paper, line by line."""
    model = TSVQGAN(RECIPES["face"].tokenizer)
    downs = [Counter({(4, width, width): 1}) for width in (64, 128, 256, 384)]
    encoder = [
        Counter({(3, 3, 64): 1}),
        residual(64, 64), residual(64, 64), downs[0],
        residual(64, 128), residual(128, 128), downs[1],
        residual(128, 256), residual(256, 256), downs[2],
        residual(256, 384), residual(384, 384), downs[3],
        residual(384, 512), residual(512, 512), residual(512, 512), residual(512, 512),
        Counter({(3, 512, 256): 1}),
    ]  # fmt: skip
    ups = [Counter({(3, width, width): 1}) for width in (384, 256, 128, 64)]
    decoder = [
        Counter({(3, 256, 512): 1}),
        residual(512, 512), residual(512, 512), residual(512, 512), residual(512, 512),
        residual(512, 384), residual(384, 384), ups[0],
        residual(384, 256), residual(256, 256), ups[1],
        residual(256, 128), residual(128, 128), ups[2],
        residual(128, 64), residual(64, 64), ups[3],
        Counter({(3, 64, 3): 1}),
    ]  # fmt: skip
    assert convolutions(model.encoder) == total(encoder)
    assert convolutions(model.decoder) == total(decoder)
    assert model.quantizer.codebook.shape == (2048, 256)
    assert model.config.tanh
    for part in (model.encoder, model.decoder):
        norms = [layer for layer in part.modules() if isinstance(layer, Normalization)]
        assert all(norm.groups % 64 == 0 and norm.weight is None for norm in norms), "one group a channel: InstanceNorm"
        assert not any(isinstance(layer, AttentionBlock) for layer in part.modules())
    with torch.inference_mode():
        narrow = TSVQGAN(model.config.model_copy(update={"channels": 4, "codebook_size": 8})).eval()
        image = narrow.decode(narrow.encode(torch.zeros(1, 3, 256, 256)))
    assert image.shape == (1, 3, 256, 256)


def test_pose_is_vqgan_f16() -> None:
    """Breaks when the architecture departs from VQGAN f16, whose pre-trained weights would then not fit."""
    model = TSVQGAN(RECIPES["pose"].tokenizer)
    encoder = [Counter({(3, 3, 128): 1}), Counter({(3, 512, 256): 1})]
    before = 128
    for level, width in enumerate((128, 128, 256, 256, 512)):
        encoder += [residual(before, width), residual(width, width)]
        encoder += [attention(width)] * 2 if level == 4 else [Counter({(3, width, width): 1})]
        before = width
    middle = [residual(512, 512), attention(512), residual(512, 512)]
    decoder = [Counter({(3, 256, 512): 1}), Counter({(3, 128, 3): 1}), *middle]
    before = 512
    for level, width in reversed(list(enumerate((128, 128, 256, 256, 512)))):
        decoder += [residual(before, width), residual(width, width), residual(width, width)]
        decoder += [attention(width)] * 3 if level == 4 else []
        decoder += [Counter({(3, width, width): 1})] if level else []
        before = width
    assert convolutions(model.encoder) == total([*encoder, *middle])
    assert convolutions(model.decoder) == total(decoder)
    assert model.quantizer.codebook.shape == (16384, 256)
    assert {layer.groups for layer in model.modules() if isinstance(layer, Normalization)} == {32}
    # The published sizes, in millions: encoder, decoder.
    millions = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (model.encoder, model.decoder)]
    assert [round(million, 1) for million in millions] == [29.3, 42.4]


def test_every_convolution_of_the_encoder_is_two_stream() -> None:
    """Breaks when one that is wider than 1x1 and so leaks is a plain convolution (Sec. 3.1)."""
    for name in ("pose", "face"):
        model = TSVQGAN(RECIPES[name].tokenizer.model_copy(update={"codebook_size": 8}))
        wide = [m for m in model.encoder.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
        assert wide
        assert all(isinstance(layer, TwoStreamConv2d) for layer in wide)


# --- configurations that make no model ---


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 250}, "image_size 250 must be a multiple of the factor 16"),
        ({"image_size": 257}, "must be a multiple"),
        ({"image_size": 0}, "greater than or equal to 1"),
        ({"channels": 100}, "norm_groups 32 must divide channels 100"),
        ({"multipliers": ()}, "at least 1"),
        ({"norm": "batch"}, "'group', 'instance' or 'position'"),
        ({"downsample_kernel": 5}, "3 or 4"),
        ({"codebook_size": 1}, "greater than or equal to 2"),
        ({"chanels": 3}, "chanels"),
    ],
)
def test_impossible_configurations(values: dict[str, object], message: str) -> None:
    """Breaks when a configuration that cannot work is found out by an error deep inside PyTorch."""
    with pytest.raises(ValidationError, match=message):
        TokenizerConfig.model_validate(values)


def test_tokenizer_and_transformer_must_agree() -> None:
    with pytest.raises(ValidationError, match="image_tokens 256 must be the tokenizer's 8²"):
        Recipe(name="x", tokenizer=TokenizerConfig(image_size=128))
    with pytest.raises(ValidationError, match="codebook_size must equal"):
        Recipe(name="x", tokenizer=TokenizerConfig(codebook_size=64))


def test_sizes_in_between() -> None:
    """Any size that the factor divides, whatever the preset: attention, normalisation and decoder follow."""
    for size, multipliers, kernel, layout in ((48, (1, 2, 2), 4, "table-3"), (24, (1, 1), 3, "vqgan")):
        config = SMALL.model_copy(
            update={
                "image_size": size, "multipliers": multipliers, "downsample_kernel": kernel, "decoder_layout": layout,
            }
        )  # fmt: skip
        model = TSVQGAN(config).eval()
        with torch.inference_mode():
            latent = model.encode(torch.zeros(1, 3, size, size))
            assert latent.shape == (1, 6, config.grid, config.grid)
            assert model.decode(latent).shape == (1, 3, size, size)
