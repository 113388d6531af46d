"""The pose task's mask: the union of the dilated skeletons of both poses (Sec. 3.3, A.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from ilat_runtime.joints import LIMBS


def skeleton_mask(poses: Tensor, radius: Tensor, size: int) -> Tensor:
    """Every pixel within ``radius`` of a visible limb of any of the poses.

    Args:
        poses: float (B, P, 13, 3), x and y in [0, 1] of the square image, visibility.
        radius: float (B,), in the same unit.
        size: side of the mask in pixels.

    Returns:
        bool (B, 1, size, size).
    """
    first = poses[:, :, [a for a, _ in LIMBS]]
    second = poses[:, :, [b for _, b in LIMBS]]
    # A limb with one end in sight shrinks to a disc around that end.
    first = torch.where(first[..., 2:] > 0.5, first, second)
    second = torch.where(second[..., 2:] > 0.5, second, first)
    drawn = first[..., 2] > 0.5
    axis = (torch.arange(size, device=poses.device, dtype=torch.float32) + 0.5) / size
    # (B, P, limbs, row, column): the nearest point of each limb to each pixel's centre.
    x0, y0 = first[..., 0, None, None], first[..., 1, None, None]
    dx, dy = second[..., 0, None, None] - x0, second[..., 1, None, None] - y0
    px, py = axis[None, :] - x0, axis[:, None] - y0
    along = ((px * dx + py * dy) / (dx * dx + dy * dy).clamp(min=1e-12)).clamp(0, 1)
    distance = (px - along * dx) ** 2 + (py - along * dy) ** 2
    near = (distance <= radius[:, None, None, None, None] ** 2) & drawn[..., None, None]
    return near.flatten(1, 2).any(1, keepdim=True)
