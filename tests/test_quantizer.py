"""The codebook: Eq. 1 and the straight-through gradient (Sec. 3.1)."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ilat_train.models.quantizer import Quantizer


def quantizer(size: int = 40, channels: int = 6, seed: int = 0) -> Quantizer:
    torch.manual_seed(seed)
    result = Quantizer(size, channels)
    with torch.no_grad():
        result.codebook.normal_()
    return result


@given(seed=st.integers(0, 10**6), size=st.integers(2, 50), channels=st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_equation_1(seed: int, size: int, channels: int) -> None:
    """Breaks when the index is not that of the nearest vector, or the order of positions is not raster."""
    codes = quantizer(size, channels, seed)
    latent = torch.randn(2, channels, 3, 3)
    found = codes.nearest(latent)
    assert found.dtype == torch.int64
    assert found.shape == (2, 9)
    for image in range(2):
        for token in range(9):
            vector = latent[image, :, token // 3, token % 3]
            distances = ((codes.codebook.detach() - vector) ** 2).sum(1)
            # Distances that differ by rounding only may be ordered either way.
            assert distances[found[image, token]] <= distances.min() * (1 + 1e-5) + 1e-6


def test_codebook_vectors_are_their_own_nearest() -> None:
    codes = quantizer(9)
    tokens = torch.randperm(9)[None]
    assert torch.equal(codes.nearest(codes.lookup(tokens, 3)), tokens)


def test_large_codebook_in_autocast() -> None:
    """Breaks when the distances are computed in bfloat16, whose argmin is another."""
    codes, latent = quantizer(2000, 32), torch.randn(1, 32, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = codes.nearest(latent)
    assert torch.equal(found, codes.nearest(latent))


def test_straight_through() -> None:
    """The gradient passes the quantization as if it were not there; the value is the codebook's."""
    codes = quantizer()
    latent = torch.randn(2, 6, 3, 3, requires_grad=True)
    quantized, tokens, _, _ = codes(latent)
    torch.testing.assert_close(quantized, codes.lookup(tokens, 3))
    weight = torch.randn_like(latent)
    (quantized * weight).sum().backward()
    assert latent.grad is not None
    assert torch.equal(latent.grad, weight)
    assert codes.codebook.grad is None, "reconstruction must not move the codebook past the straight-through"


def test_the_two_losses_move_one_side_each() -> None:
    """Breaks when a stop-gradient of the VQ loss is on the wrong side, or missing."""
    codes = quantizer()
    latent = torch.randn(2, 6, 3, 3, requires_grad=True)
    _, tokens, codebook_loss, commitment = codes(latent)
    assert codebook_loss.shape == commitment.shape == (2, 1, 3, 3)
    torch.testing.assert_close(codebook_loss, commitment)
    distance = ((codes.lookup(tokens, 3) - latent) ** 2).mean(1, keepdim=True)
    torch.testing.assert_close(commitment, distance)
    assert torch.autograd.grad(codebook_loss.sum(), latent, retain_graph=True, allow_unused=True)[0] is None
    assert torch.autograd.grad(commitment.sum(), codes.codebook, retain_graph=True, allow_unused=True)[0] is None
    (moved,) = torch.autograd.grad(codebook_loss.sum(), codes.codebook)
    unused = sorted(set(range(40)) - set(tokens.flatten().tolist()))
    assert moved.abs().sum() > 0
    assert moved[unused].abs().sum() == 0
