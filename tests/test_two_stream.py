"""No leak in training's models: Eq. 2 and 3, and whole encoders of both presets (Sec. 3.1)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from ilat_train.config import TokenizerConfig
from ilat_train.data.masks import box_mask, free_form_mask
from ilat_train.models import TSVQGAN
from ilat_train.models.blocks import AttentionBlock
from ilat_train.models.masks import MaskPyramid
from ilat_train.models.normalization import Normalization, PositionNormalization
from ilat_train.models.two_stream import Downsample, TwoStreamConv2d
from ilat_train.recipes import RECIPES

# (kernel, stride, padding left, right, top, bottom): every shape of convolution that an encoder has.
SHAPES = [(3, 1, (1, 1, 1, 1)), (3, 2, (0, 1, 0, 1)), (4, 2, (1, 1, 1, 1)), (1, 1, (0, 0, 0, 0)), (1, 2, (0, 0, 0, 0))]


def literal(x: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: tuple[int, ...]) -> Tensor:
    """Eq. 2 and 3 as printed: mask max-pooled to the feature's size, leaked ring by an all-one kernel, replaced."""

    def conv(feature: Tensor, kernel: Tensor, offset: Tensor | None = None) -> Tensor:
        return F.conv2d(F.pad(feature, padding), kernel, offset, stride)

    pixels = mask.float()
    before = F.max_pool2d(pixels, mask.shape[-1] // x.shape[-1])
    masked_feature = x * (1 - before)
    after = F.max_pool2d(pixels, mask.shape[-1] // (x.shape[-1] // stride))
    leaked = conv(before, torch.ones(1, 1, *weight.shape[2:])).clip(0, 1) - after
    leaked[leaked > 0] = 1
    return conv(x, weight, bias) * (1 - leaked) + conv(masked_feature, weight, bias) * leaked


@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.0, 0.02, 0.3, 0.9, 1.0]), shape=st.sampled_from(SHAPES))
@settings(max_examples=60, deadline=None)
def test_equations_2_and_3(seed: int, share: float, shape: tuple[int, int, tuple[int, ...]]) -> None:
    """Breaks when the stream of a position is chosen by another mask than the max-pooled one, or the ring is missed."""
    kernel, stride, padding = shape
    torch.manual_seed(seed)
    # The feature has half the image's resolution, so that the mask is pooled before the convolution too.
    mask, x = torch.rand(2, 1, 32, 32) < share, torch.randn(2, 3, 16, 16)
    if kernel == 1 or stride == 1:
        layer: torch.nn.Module = TwoStreamConv2d(3, 5, kernel, stride, padding[0])
        convolution = layer
    else:
        layer = Downsample(3, 3, kernel)
        convolution = layer.conv
    expected = literal(x, mask, convolution.weight, convolution.bias, stride, padding)
    found = layer(x, MaskPyramid(mask))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    # Without a mask it is the plain convolution.
    plain = F.conv2d(F.pad(x, padding), convolution.weight, convolution.bias, stride)
    torch.testing.assert_close(layer(x), plain, rtol=0, atol=1e-5)


# --- whole encoders ---

PRESETS = {
    # Every structural trait of the preset, narrow and on small images.
    "pose": RECIPES["pose"].tokenizer.model_copy(update={"image_size": 64, "channels": 32, "codebook_size": 64}),
    "face": RECIPES["face"].tokenizer.model_copy(update={"image_size": 64, "channels": 8, "codebook_size": 64}),
    "pose-demo": RECIPES["pose-demo"].tokenizer.model_copy(update={"image_size": 64}),
}


def test_presets_keep_their_traits() -> None:
    """Breaks when the leak test no longer tests what the presets are made of."""
    assert (PRESETS["pose"].norm, PRESETS["pose"].norm_groups, PRESETS["pose"].attention) == ("group", 32, True)
    assert (PRESETS["face"].norm, PRESETS["face"].attention, PRESETS["face"].downsample_kernel) == (
        "instance",
        False,
        4,
    )
    assert PRESETS["pose"].multipliers == (1, 1, 2, 2, 4)
    assert PRESETS["face"].multipliers == (1, 2, 4, 6, 8)
    assert PRESETS["pose-demo"].norm == "position"
    assert all(preset.two_stream for preset in PRESETS.values())


def model(config: TokenizerConfig, seed: int = 0) -> TSVQGAN:
    """Random weights, gains and biases other than the 1 and 0 that training starts from."""
    torch.manual_seed(seed)
    result = TSVQGAN(config).eval()
    with torch.no_grad():
        for module in result.modules():
            if isinstance(module, Normalization) and module.weight is not None and module.bias is not None:
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.5)
    return result


def masks(size: int, seed: int) -> dict[str, Tensor]:
    random = np.random.default_rng(seed)
    return {
        "free-form": torch.from_numpy(free_form_mask(size, size, random))[None, None],
        "box": torch.from_numpy(box_mask(size, size, random))[None, None],
        "single pixels": torch.from_numpy(random.random((1, 1, size, size)) < 4 / size**2),
        "left half": (torch.arange(size) < size // 2).expand(1, 1, size, size),
    }


def bits(latent: Tensor) -> Tensor:
    return latent.contiguous().view(torch.int32)


@pytest.fixture(scope="module", params=list(PRESETS))
def tokenizer(request: pytest.FixtureRequest) -> TSVQGAN:
    return model(PRESETS[request.param])


@pytest.mark.parametrize("both_streams", [True, False], ids=["two streams", "one stream"])
@pytest.mark.parametrize("seed", range(3))
def test_no_leak(tokenizer: TSVQGAN, seed: int, both_streams: bool) -> None:
    """Breaks when any layer of the encoder, convolution, normalisation or attention, reads a masked position."""
    size = tokenizer.config.image_size
    torch.manual_seed(seed)
    image = torch.rand(1, 3, size, size) * 2 - 1
    with torch.inference_mode():
        for name, mask in masks(size, seed).items():
            wild = torch.where(mask, torch.randn_like(image) * 1000, image)
            found = tokenizer.encode(image, mask, both_streams)
            changed = tokenizer.encode(wild, mask, both_streams)
            known = (~tokenizer.token_mask(mask)).expand_as(found)
            assert known.any(), name
            assert torch.equal(bits(found)[known], bits(changed)[known]), name
            if both_streams:
                assert not torch.equal(found[~known], changed[~known]), f"{name}: masked latents are the labels"


@pytest.mark.parametrize("name", list(PRESETS))
def test_no_leak_at_full_size(name: str) -> None:
    """The presets as they are: breaks on what only the real sizes bring about, such as other kernels."""
    tokenizer = model(RECIPES[name].tokenizer)
    size = tokenizer.config.image_size
    torch.manual_seed(1)
    image, mask = torch.rand(1, 3, size, size) * 2 - 1, masks(size, 5)["box"]
    with torch.inference_mode():
        wild = torch.where(mask, torch.randn_like(image) * 1000, image)
        known = (~tokenizer.token_mask(mask)).expand(1, tokenizer.config.codebook_channels, -1, -1)
        found, changed = (tokenizer.encode(pixels, mask, both_streams=False) for pixels in (image, wild))
    assert known.any()
    assert torch.equal(bits(found)[known], bits(changed)[known])


def test_the_ablation_leaks(tokenizer: TSVQGAN) -> None:
    """iLAT* (two_stream=False) leaks: if it did not, the leak test would show nothing."""
    leaky = TSVQGAN(tokenizer.config.model_copy(update={"two_stream": False})).eval()
    leaky.load_state_dict(tokenizer.state_dict())
    torch.manual_seed(0)
    image, mask = torch.rand(1, 3, 64, 64) * 2 - 1, masks(64, 0)["box"]
    with torch.inference_mode():
        found = leaky.encode(image, mask)
        changed = leaky.encode(torch.where(mask, -image, image), mask)
        plain = leaky.encode(image)
    known = (~leaky.token_mask(mask)).expand_as(found)
    assert (found - changed)[known].abs().max() > 1e-3
    assert torch.equal(found, plain), "without two streams the mask has no part in encoding"


def test_empty_and_full_masks_are_the_plain_encoder(tokenizer: TSVQGAN) -> None:
    """Breaks when masked statistics or attention differ from the plain ones where nothing, or everything, is masked."""
    torch.manual_seed(0)
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        plain = tokenizer.encode(image)
        for value in (False, True):
            masked = tokenizer.encode(image, torch.full((2, 1, 64, 64), value))
            torch.testing.assert_close(masked, plain, rtol=1e-3, atol=1e-4)


def test_one_stream_is_enough(tokenizer: TSVQGAN) -> None:
    """Breaks when an unmasked feature depends on the full stream, which the exported encoder does not compute."""
    torch.manual_seed(0)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        for name, mask in masks(64, 1).items():
            two, one = tokenizer.encode(image, mask), tokenizer.encode(image, mask, both_streams=False)
            known = (~tokenizer.token_mask(mask)).expand_as(two)
            assert torch.equal(bits(two)[known], bits(one)[known]), name


def test_a_mask_concerns_its_own_image_only(tokenizer: TSVQGAN) -> None:
    """Breaks when statistics or attention mix the images of a batch."""
    torch.manual_seed(0)
    image = torch.rand(3, 3, 64, 64) * 2 - 1
    mask = torch.cat(list(masks(64, 2).values())[:3])
    with torch.inference_mode():
        together = tokenizer.encode(image, mask)
        for row in range(3):
            alone = tokenizer.encode(image[row : row + 1], mask[row : row + 1])
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-3, atol=1e-4)


def test_the_demo_s_tokens_are_local() -> None:
    """Breaks when anything in the demo's encoder (a norm, attention, a wide kernel) reaches beyond three tokens."""
    tokenizer = model(PRESETS["pose-demo"].model_copy(update={"image_size": 128}))
    torch.manual_seed(2)
    image = torch.rand(1, 3, 128, 128) * 2 - 1
    changed = image.clone()
    changed[..., 64:] = torch.randn(1, 3, 128, 64) * 100
    with torch.inference_mode():
        found, other = tokenizer.encode(image), tokenizer.encode(changed)
    assert torch.equal(bits(found[..., :5]), bits(other[..., :5]))
    assert not torch.equal(found[..., 7], other[..., 7])


# --- the parts that leak by statistics ---


@pytest.mark.parametrize("groups", [2, 6], ids=["group", "instance"])
def test_normalization_by_hand(groups: int) -> None:
    """Breaks when statistics count the wrong positions, or masked zeros count towards mean or variance."""
    torch.manual_seed(0)
    layer = Normalization(6, groups)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 1.5)
        layer.bias.normal_()
    x, mask = torch.randn(2, 6, 8, 8) * 3 + 1, torch.rand(2, 1, 8, 8) < 0.4
    found = layer(x, MaskPyramid(mask)).detach().numpy()
    values, hidden, width = x.numpy(), mask.numpy(), 6 // groups
    for b in range(2):
        for group in range(groups):
            part = values[b, group * width : (group + 1) * width]
            known = part[:, ~hidden[b, 0]]
            for statistics, where in ((known, ~hidden[b, 0]), (part, hidden[b, 0])):
                normalised = (part - statistics.mean()) / np.sqrt(statistics.var() + layer.eps)
                for offset in range(width):
                    channel = group * width + offset
                    expected = normalised[offset] * layer.weight[channel].item() + layer.bias[channel].item()
                    np.testing.assert_allclose(found[b, channel][where], expected[where], atol=1e-4)


def test_position_normalization_by_hand() -> None:
    """Breaks when another position has any part in the statistics, or a mask changes anything."""
    torch.manual_seed(0)
    layer = PositionNormalization(6)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 1.5)
        layer.bias.normal_()
    x, mask = torch.randn(2, 6, 8, 8) * 3 + 1, torch.rand(2, 1, 8, 8) < 0.4
    found = layer(x, MaskPyramid(mask))
    values = x.numpy()
    normalised = (values - values.mean(1, keepdims=True)) / np.sqrt(values.var(1, keepdims=True) + layer.eps)
    expected = normalised * layer.weight.detach().numpy()[:, None, None] + layer.bias.detach().numpy()[:, None, None]
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5)
    assert torch.equal(found, layer(x))


def test_attention_of_unmasked_positions_ends_at_the_mask() -> None:
    """Breaks when an unmasked query has any weight on a masked key; masked queries see everything."""
    config = PRESETS["pose"]
    torch.manual_seed(0)
    block = AttentionBlock(config, 32).eval()
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[..., 1:3, 1:3] = True
    x = torch.randn(1, 32, 4, 4)
    with torch.inference_mode():
        a, b = block(x, MaskPyramid(mask)), block(torch.where(mask, x + 5, x), MaskPyramid(mask))
    known = (~mask).expand_as(a)
    assert torch.equal(a[known], b[known])
    assert not torch.equal(a[~known], b[~known])
    # By hand: the unmasked positions alone, as a sequence.
    keys = torch.nonzero(~mask.flatten()).flatten()
    with torch.inference_mode():
        rows = block(x.flatten(2)[..., keys][:, :, None], None)
    torch.testing.assert_close(a.flatten(2)[..., keys], rows[:, :, 0], rtol=0, atol=1e-5)
