from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ilat_runtime.crop import Crop, crop_around, mask_box, visible_box
from ilat_runtime.errors import InputError

sizes = st.integers(1, 60)
crops = st.builds(Crop, st.integers(-40, 60), st.integers(-40, 60), st.integers(1, 80))


@st.composite
def boxes_in_images(draw: st.DrawFn) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
    width, height = draw(st.integers(1, 3000)), draw(st.integers(1, 3000))
    x = sorted(draw(st.floats(0, width)) for _ in range(2))
    y = sorted(draw(st.floats(0, height)) for _ in range(2))
    return (x[0], y[0], x[1], y[1]), (width, height)


@given(boxes_in_images(), st.floats(1, 3), st.integers(1, 512))
def test_rule(case: tuple[tuple[float, float, float, float], tuple[int, int]], margin: float, least: int) -> None:
    (x0, y0, x1, y1), (width, height) = case
    crop = crop_around(case[0], case[1], margin, least)
    assert 1 <= crop.side <= max(width, height, least)
    wanted = max(round(margin * max(x1 - x0, y1 - y0)), min(least, width, height))
    assert crop.side == min(max(wanted, 1), max(width, height, least))
    for start, extent, low, high in ((crop.x, width, x0, x1), (crop.y, height, y0, y1)):
        if crop.side <= extent:  # it fits: it lies inside
            assert 0 <= start <= extent - crop.side
        else:  # it does not: centred
            assert abs(start + crop.side / 2 - extent / 2) <= 0.5
        # The box lies inside, but for the rounding to whole pixels.
        assert start - 1 <= low
        assert high <= start + crop.side + 1


@given(sizes, sizes, crops)
def test_take_repeats_the_edge(height: int, width: int, crop: Crop) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    patch = crop.take(image)
    assert patch.shape == (crop.side, crop.side, 3)
    for row, column in ((0, 0), (crop.side - 1, crop.side // 2), (crop.side // 3, crop.side - 1)):
        y, x = min(max(crop.y + row, 0), height - 1), min(max(crop.x + column, 0), width - 1)
        assert (patch[row, column] == image[y, x]).all()


@given(sizes, sizes, crops)
def test_put_changes_the_square_only(height: int, width: int, crop: Crop) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    patch = np.full((crop.side, crop.side, 3), 7, np.uint8)
    result = crop.put(image, patch)
    assert not image.any(), "the input was changed"
    inside = np.zeros((height, width), bool)
    inside[max(crop.y, 0) : max(crop.y + crop.side, 0), max(crop.x, 0) : max(crop.x + crop.side, 0)] = True
    assert ((result == 7).all(2) == inside).all()


@given(sizes, sizes, crops)
def test_put_of_take_is_the_image(height: int, width: int, crop: Crop) -> None:
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    assert (crop.put(image, crop.take(image)) == image).all()


def test_relative() -> None:
    pose = np.array([[10, 20, 1], [60, 45, 0]], np.float32)
    relative = Crop(10, -5, 50).relative(pose)
    assert relative.tolist() == [[0, 0.5, 1], [1, 1, 0]]
    assert pose[0, 0] == 10, "the input was changed"


def test_boxes() -> None:
    pose = np.array([[[10, 20, 1], [900, 900, 0]], [[-3, 25, 1], [0, 0, 0]]], np.float32)
    assert visible_box(pose) == (-3, 20, 10, 25)
    assert visible_box(pose * [1, 1, 0]) is None
    mask = np.zeros((5, 8), bool)
    assert mask_box(mask) is None
    mask[1:3, 4:8] = True
    assert mask_box(mask) == (4, 1, 8, 3)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(1, 50))
def test_points_far_outside_do_not_enlarge_the_crop_without_bound(start: float, extent: float, size: int) -> None:
    crop = crop_around((start, 0, start + extent, 1), (size, size), 1.3, 32)
    assert crop.side <= max(size, 32)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_infinite_box(bad: float) -> None:
    with pytest.raises(InputError, match="finite"):
        crop_around((0, 0, bad, 1), (10, 10), 1.3, 32)


def test_small_boxes_are_not_enlarged_without_need() -> None:
    assert crop_around((300, 300, 320, 380), (1088, 1920), 1.3, 256).side == 256
    assert crop_around((30, 30, 40, 40), (100, 200), 1.3, 256).side == 100
    assert crop_around((0, 0, 1, 1), (1, 1), 1.3, 256) == Crop(0, 0, 1)
