"""How near an edited image is to the true one: PSNR, SSIM, MAE and LPIPS, over the whole image or inside a mask.

Images are uint8 (H, W, 3) RGB, masks bool (H, W), True where to look. All functions raise InputError for other shapes
or types, and for a mask without a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from skimage.metrics import structural_similarity

from ilat_runtime.errors import InputError

from ..losses.lpips import Lpips

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

SSIM_SIGMA = 1.5
SSIM_WINDOW = 11
LPIPS_LEAST_SIDE = 32


def psnr(image: Image, reference: Image, mask: Mask | None = None) -> float:
    """Peak signal-to-noise ratio in dB: 10 log10(255² / mean squared error of all channels). Equal images: inf."""
    _check(image, reference, mask)
    squared = (image.astype(np.float64) - reference.astype(np.float64)) ** 2
    error = _mean(squared, mask)
    return math.inf if error == 0 else 10 * math.log10(255.0**2 / error)


def mae(image: Image, reference: Image, mask: Mask | None = None) -> float:
    """Mean absolute error of all channels, with black 0 and white 1."""
    _check(image, reference, mask)
    return _mean(np.abs(image.astype(np.float64) - reference.astype(np.float64)), mask) / 255.0


def ssim(image: Image, reference: Image, mask: Mask | None = None) -> float:
    """Structural similarity (Wang et al., 2004), mean of the channels; Gaussian window of σ = 1.5; equal images: 1.

    With a mask the map of local similarities is averaged inside it. The windows of pixels at its border reach 5 pixels
    beyond it. Without one the map is averaged over all pixels (scikit-image's own mean leaves out a 5-pixel border).
    """
    _check(image, reference, mask)
    if min(image.shape[:2]) < SSIM_WINDOW:
        raise InputError(f"ssim: image of {image.shape[:2]} pixels, expected at least {SSIM_WINDOW} on a side")
    _, local = structural_similarity(
        image,
        reference,
        channel_axis=2,
        data_range=255,
        gaussian_weights=True,
        sigma=SSIM_SIGMA,
        use_sample_covariance=False,
        full=True,
    )
    return _mean(local, mask)


def lpips(image: Image, reference: Image, module: Lpips, mask: Mask | None = None) -> float:
    """Learned perceptual distance (Zhang et al., 2018) with ``module``'s backbone; equal images: 0.

    Without a mask this is the published number. With one, the spatial map (each layer's distances brought to the
    image's size) is averaged inside the mask; what lies just outside it still counts through the features' fields of
    view.
    """
    _check(image, reference, mask)
    ((whole, local),) = _lpips_maps([image], reference, module)
    return whole if mask is None else _mean(local, mask)


def measure(image: Image, reference: Image, mask: Mask | None = None, module: Lpips | None = None) -> dict[str, float]:
    """All measures of one pair: ``psnr``, ``ssim``, ``mae`` and, given ``module``, ``lpips`` of the whole image; with a
    mask, the same names with ``_mask`` appended for the inside of it.
    """
    return measure_all([image], reference, mask, module)[0]


def measure_all(
    images: Sequence[Image], reference: Image, mask: Mask | None = None, module: Lpips | None = None
) -> list[dict[str, float]]:
    """As :func:`measure` for several images against one reference, whose features are computed once."""
    regions = {"": None} if mask is None else {"": None, "_mask": mask}
    results: list[dict[str, float]] = []
    for image in images:
        row = {}
        for suffix, region in regions.items():
            row["psnr" + suffix] = psnr(image, reference, region)
            row["ssim" + suffix] = ssim(image, reference, region)
            row["mae" + suffix] = mae(image, reference, region)
        results.append(row)
    if module is not None and images:
        for row, (whole, local) in zip(results, _lpips_maps(images, reference, module), strict=True):
            row["lpips"] = whole
            if mask is not None:
                row["lpips_mask"] = _mean(local, mask)
    return results


def _lpips_maps(
    images: Sequence[Image], reference: Image, module: Lpips
) -> list[tuple[float, npt.NDArray[np.float64]]]:
    """The distance of each image, and its spatial map (H, W)."""
    if min(reference.shape[:2]) < LPIPS_LEAST_SIDE:
        found = reference.shape[:2]
        raise InputError(f"lpips: image of {found} pixels, expected at least {LPIPS_LEAST_SIDE} on a side")
    a = torch.cat([_tensor(image) for image in images]).to(module.shift.device)
    with torch.inference_mode():
        whole, local = module.forward_both(a, _tensor(reference).to(a.device))
    return list(zip(whole.tolist(), local[:, 0].double().cpu().numpy(), strict=True))


def _check(image: Image, reference: Image, mask: Mask | None) -> None:
    for name, value in (("image", image), ("reference", reference)):
        if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3:
            raise InputError(f"{name}: {value.dtype} {value.shape}, expected uint8 (H, W, 3)")
    if image.shape != reference.shape:
        raise InputError(f"image is {image.shape} and reference {reference.shape}, expected the same size")
    if mask is None:
        return
    if mask.dtype != np.bool_ or mask.shape != image.shape[:2]:
        raise InputError(f"mask: {mask.dtype} {mask.shape}, expected bool {image.shape[:2]}")
    if not mask.any():
        raise InputError("mask: no pixel is set, expected at least one")


def _mean(values: npt.NDArray[np.floating], mask: Mask | None) -> float:
    """Mean of (H, W) or (H, W, C) values, of those inside the mask if there is one."""
    return float(values.mean() if mask is None else values[mask].mean())


def _tensor(image: Image) -> torch.Tensor:
    """uint8 (H, W, 3) -> float32 (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
