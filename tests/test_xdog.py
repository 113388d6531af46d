"""XDoG (Winnemöller et al. 2012) with the numbers of the authors' released code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from editing import photograph
from scipy.ndimage import gaussian_filter

from ilat_train.data.sketches import draw_sketch
from ilat_train.models.xdog import ENLARGED, XDoG

SIZE = 32
WORK = SIZE * ENLARGED


def drawn(image: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Float (H, W)."""
    return XDoG(size)(torch.from_numpy(image).permute(2, 0, 1)[None].float())[0, 0].numpy()


def test_it_is_the_formula() -> None:
    """Against SciPy's Gaussians in double precision, where nothing is resampled. Breaks when σ, k, γ, ε, φ, the luma
    weights, the edge rule or the direction (dark lines on white) differ."""
    image = photograph(WORK, WORK)
    image[30:60, 40:90] = 20
    grey = image.astype(np.float64) @ (0.299, 0.587, 0.114)
    # "mirror" is PyTorch's reflection.
    narrow, wide = (gaussian_filter(grey, sigma, mode="mirror", truncate=4.0) for sigma in (1.5, 1.5 * 2.5))
    expected = np.clip(1 + np.tanh(200 * (narrow - 0.97 * wide - 0.1)), 0, 1) * 255
    found = drawn(image)
    assert (expected < 128).any()
    assert (expected > 128).any()
    # The threshold is steep: where it is met, single precision shows.
    assert (np.abs(found - expected) < 0.5).mean() > 0.999


def test_a_dark_line_stays_dark_on_white() -> None:
    image = np.full((WORK, WORK, 3), 200, np.uint8)
    image[60:64] = 30
    lines = drawn(image)
    assert lines[61:63, 20:-20].max() < 1
    assert lines[:40].min() > 254


def test_lines_are_as_fine_at_every_size() -> None:
    """The same picture at twice the size gives the same lines: breaks when σ is in pixels of the input."""
    image = np.full((WORK, WORK, 3), 200, np.uint8)
    image[50:80, 30:90] = 30
    large = drawn(image.repeat(2, 0).repeat(2, 1))
    small = drawn(image).repeat(2, 0).repeat(2, 1)
    assert large.shape == (2 * WORK, 2 * WORK)
    assert np.abs(large - small).mean() < 6
    assert np.abs(large - 255 + 0 * small).mean() > 6


@pytest.mark.parametrize("shape", [(40, 40), (64, 40), (33, 90)])
def test_the_library_call_takes_any_shape(shape: tuple[int, int]) -> None:
    image = photograph(*shape)
    lines = draw_sketch(image, SIZE)
    assert lines.shape == shape
    assert lines.dtype == np.uint8
    if shape[0] == shape[1]:
        assert np.array_equal(lines, drawn(image).round().astype(np.uint8))
