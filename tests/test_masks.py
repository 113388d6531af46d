"""Random masks for the tokenizer's masked stage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ilat_runtime.errors import InputError
from ilat_train.data.masks import Strokes, box_mask, free_form_mask, random_mask

sides = st.integers(1, 96)
seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from([box_mask, free_form_mask, random_mask])


@given(kinds, sides, sides, seeds)
def test_shape_type_and_never_empty(kind, height, width, seed):
    mask = kind(height, width, np.random.default_rng(seed))
    assert mask.shape == (height, width)
    assert mask.dtype == bool
    assert mask.any()


@given(kinds, seeds)
def test_the_seed_fixes_the_mask(kind, seed):
    first, second = (kind(64, 48, np.random.default_rng(seed)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@given(sides, sides, seeds)
def test_a_box_is_a_box_of_the_size_asked(height, width, seed):
    mask = box_mask(height, width, np.random.default_rng(seed), extent=(0.25, 0.5))
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert mask.sum() == len(rows) * len(columns)
    for found, size in ((rows, height), (columns, width)):
        assert found[-1] - found[0] + 1 == len(found)
        assert max(1, round(0.25 * size)) <= len(found) <= max(1, round(0.5 * size))


def test_shares_are_those_of_inpainting():
    generator = np.random.default_rng(0)
    shares = [random_mask(128, 128, generator).mean() for _ in range(300)]
    assert 0.1 < np.mean(shares) < 0.35
    assert max(shares) < 0.9


def test_a_wider_pen_masks_more():
    thin, thick = (
        free_form_mask(128, 128, np.random.default_rng(3), Strokes(width=(w, w))).mean() for w in (0.02, 0.2)
    )
    assert thick > 2 * thin


@pytest.mark.parametrize("kind", [box_mask, free_form_mask])
def test_no_pixels(kind):
    with pytest.raises(InputError, match="at least 1"):
        kind(0, 5, np.random.default_rng(0))
