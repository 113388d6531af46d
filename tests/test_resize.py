"""Resampling as two matrix products, as every backend computes it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ilat_train.models.resize import _weights, covered, resize

SIZES = st.integers(1, 70)


@given(source=SIZES, target=SIZES)
@settings(max_examples=100, deadline=None)
def test_rows_sum_to_one(source: int, target: int) -> None:
    """Breaks when a row is empty or not normalised: brightness would change, at the edges above all."""
    weights = _weights(source, target, torch.zeros(1))
    assert weights.shape == (target, source)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(target))


@given(size=SIZES, other=SIZES)
@settings(max_examples=20, deadline=None)
def test_same_size_is_the_identity(size: int, other: int) -> None:
    """Breaks when a crop of the model's own size is blurred."""
    image = torch.rand(2, 3, size, other)
    assert torch.equal(resize(image, (size, other)), image)


@given(source=SIZES, target=SIZES, seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_covered_is_conservative(source: int, target: int, seed: int) -> None:
    """Breaks when an output pixel that reads a masked one counts as known: the exported encoder would leak."""
    torch.manual_seed(seed)
    image, mask = torch.rand(1, 1, source, source), torch.rand(1, 1, source, source) < 0.1
    hidden = covered(mask, (target, target))
    wild = torch.where(mask, torch.full_like(image, 1e30), image)  # so large that the least weight shows
    before, after = resize(image, (target, target)), resize(wild, (target, target))
    assert torch.equal(before[~hidden], after[~hidden])
    # No larger than need be: whatever is covered does read a masked pixel.
    assert (after[hidden] > before[hidden]).all()


def test_enlarging_is_bilinear() -> None:
    """Breaks when pixels' centres are not aligned as every image library aligns them."""
    image = torch.rand(9, 7)
    expected = cv2.resize(image.numpy(), (21, 30), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(resize(image, (30, 21)).numpy(), expected, atol=1e-5)
    smooth = torch.nn.functional.interpolate(image[None, None], (30, 21), mode="bilinear", antialias=True)[0, 0]
    torch.testing.assert_close(resize(image, (30, 21)), smooth, rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", [(8, 6), (5, 11), (1, 1)])
def test_shrinking_is_antialiased(target: tuple[int, int]) -> None:
    """Breaks when pixels are skipped; PyTorch's antialiased resampling has the same filter."""
    image = torch.rand(1, 3, 32, 24)
    expected = torch.nn.functional.interpolate(image, target, mode="bilinear", antialias=True)
    torch.testing.assert_close(resize(image, target), expected, rtol=0, atol=1e-5)
