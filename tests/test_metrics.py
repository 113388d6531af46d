"""The measures against their definitions, and the sample sheet."""

from __future__ import annotations

import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ilat_runtime.errors import InputError

pytest.importorskip("torch", reason="needs the extra 'train'")

from ilat_train.evaluation import metrics
from ilat_train.evaluation.sheet import sample_sheet
from ilat_train.losses.lpips import Lpips

SIZE = 64


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    reference = random.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    noise = random.integers(-20, 21, reference.shape)
    return np.clip(reference + noise, 0, 255).astype(np.uint8), reference


@pytest.fixture
def mask() -> np.ndarray:
    inside = np.zeros((SIZE, SIZE), bool)
    inside[10:40, 20:50] = True
    return inside


def test_equal_images(pair: tuple[np.ndarray, np.ndarray], mask: np.ndarray) -> None:
    _, image = pair
    result = metrics.measure(image, image, mask, Lpips("alex"))
    assert result["psnr"] == result["psnr_mask"] == math.inf
    assert result["ssim"] == pytest.approx(1)
    assert result["ssim_mask"] == pytest.approx(1)
    assert result["mae"] == result["mae_mask"] == 0
    assert result["lpips"] == result["lpips_mask"] == 0


def test_whole_image_agrees_with_scikit_image(pair: tuple[np.ndarray, np.ndarray]) -> None:
    image, reference = pair
    assert metrics.psnr(image, reference) == pytest.approx(peak_signal_noise_ratio(reference, image))
    inner = np.zeros((SIZE, SIZE), bool)
    inner[5:-5, 5:-5] = True  # what scikit-image averages with this window
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = structural_similarity(image, reference, channel_axis=2, data_range=255, **options)
    assert metrics.ssim(image, reference, inner) == pytest.approx(expected)


def test_known_values(mask: np.ndarray) -> None:
    black = np.zeros((SIZE, SIZE, 3), np.uint8)
    changed = black.copy()
    changed[mask] = 51
    assert metrics.mae(changed, black, mask) == pytest.approx(0.2)
    assert metrics.mae(changed, black) == pytest.approx(0.2 * mask.mean())
    assert metrics.psnr(changed, black, mask) == pytest.approx(20 * math.log10(5))


def test_outside_the_mask_does_not_count(pair: tuple[np.ndarray, np.ndarray], mask: np.ndarray) -> None:
    image, reference = pair
    image = np.where(mask[..., None], image, 255 - reference).astype(np.uint8)
    for measure in (metrics.psnr, metrics.mae):
        assert measure(image, reference, mask) == measure(np.where(mask[..., None], image, reference), reference, mask)


def test_full_mask_is_the_whole_image(pair: tuple[np.ndarray, np.ndarray]) -> None:
    everything = np.ones((SIZE, SIZE), bool)
    for measure in (metrics.psnr, metrics.mae, metrics.ssim):
        assert measure(*pair, everything) == pytest.approx(measure(*pair))


def test_more_noise_is_worse(pair: tuple[np.ndarray, np.ndarray], mask: np.ndarray) -> None:
    image, reference = pair
    worse = np.clip(2.0 * image - reference, 0, 255).astype(np.uint8)
    little, much = (metrics.measure(x, reference, mask) for x in (image, worse))
    for suffix in ("", "_mask"):
        assert little["psnr" + suffix] > much["psnr" + suffix]
        assert little["ssim" + suffix] > much["ssim" + suffix]
        assert little["mae" + suffix] < much["mae" + suffix]


@pytest.mark.parametrize(
    ("image", "reference", "mask", "names"),
    [
        (np.zeros((SIZE, SIZE, 3), np.float32), np.zeros((SIZE, SIZE, 3), np.uint8), None, "image"),
        (np.zeros((SIZE, SIZE), np.uint8), np.zeros((SIZE, SIZE), np.uint8), None, "image"),
        (np.zeros((SIZE, 32, 3), np.uint8), np.zeros((SIZE, SIZE, 3), np.uint8), None, "same size"),
        (np.zeros((SIZE, SIZE, 3), np.uint8),) * 2 + (np.zeros((SIZE, SIZE), bool), "no pixel"),
        (np.zeros((SIZE, SIZE, 3), np.uint8),) * 2 + (np.ones((SIZE, SIZE), np.uint8), "mask"),
        (np.zeros((SIZE, SIZE, 3), np.uint8),) * 2 + (np.ones((SIZE, 8), bool), "mask"),
        (np.zeros((8, 8, 3), np.uint8),) * 2 + (None, "at least"),
    ],
)
def test_wrong_input(image: np.ndarray, reference: np.ndarray, mask: np.ndarray | None, names: str) -> None:
    with pytest.raises(InputError, match=names):
        metrics.measure(image, reference, mask)


def test_sheet_holds_every_image() -> None:
    colours = [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (9, 9, 9)], [(1, 2, 3), (200, 100, 50)]]
    rows = [[np.full((40, 40, 3), colour, np.uint8) for colour in row] for row in colours]
    rows[2][0] = np.full((80, 20, 3), colours[2][0], np.uint8)  # another shape: fitted into its cell
    sheet = sample_sheet(rows, ["input", "a heading that is too long for its column"], cell=40)
    assert sheet.dtype == np.uint8
    for row in colours:
        for colour in row:
            assert (sheet == colour).all(-1).sum() >= 40 * 10


def test_sheet_refuses_ragged_rows() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(InputError, match="row 1"):
        sample_sheet([[image], [image, image]], ["one"])
    with pytest.raises(InputError, match="at least one row"):
        sample_sheet([], ["one"])
    with pytest.raises(InputError, match="float32"):
        sample_sheet([[image.astype(np.float32)]], ["one"])
