"""The pose task's mask (Sec. 3.3, A.2) against distances computed pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ilat_runtime.joints import JOINTS, LIMBS
from ilat_train.models.skeleton_mask import skeleton_mask

SIZE = 24


def by_hand(poses: np.ndarray, radius: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each pixel's centre to the nearest visible joint or limb of any pose, and whether there is one."""
    best = np.full((size, size), np.inf)
    for row in range(size):
        for column in range(size):
            point = np.array([column + 0.5, row + 0.5]) / size
            for pose in poses.astype(np.float64):
                for joint in pose[pose[:, 2] > 0.5]:
                    best[row, column] = min(best[row, column], np.hypot(*(point - joint[:2])))
                for first, second in LIMBS:
                    if pose[first, 2] > 0.5 and pose[second, 2] > 0.5:
                        start, end = pose[first, :2], pose[second, :2]
                        along = np.dot(point - start, end - start) / max(np.dot(end - start, end - start), 1e-12)
                        nearest = start + np.clip(along, 0, 1) * (end - start)
                        best[row, column] = min(best[row, column], np.hypot(*(point - nearest)))
    return best <= radius, np.abs(best - radius) < 1e-5


@given(seed=st.integers(0, 10**6), visible=st.sampled_from([0.0, 0.2, 0.6, 1.0]), radius=st.floats(0.01, 0.2))
@settings(max_examples=12, deadline=None)
def test_every_pixel(seed: int, visible: float, radius: float) -> None:
    """Breaks when a limb is forgotten, drawn to a landmark that is not visible, or measured from pixels' corners."""
    random = np.random.default_rng(seed)
    poses = random.uniform(-0.2, 1.2, (2, len(JOINTS), 3)).astype(np.float32)
    poses[..., 2] = random.random((2, len(JOINTS))) < visible
    found = skeleton_mask(torch.from_numpy(poses)[None], torch.tensor([radius]), SIZE)
    assert found.shape == (1, 1, SIZE, SIZE)
    assert found.dtype == torch.bool
    expected, on_the_edge = by_hand(poses, radius, SIZE)
    assert (found[0, 0].numpy() == expected)[~on_the_edge].all()


def test_each_image_its_own_radius_and_poses() -> None:
    """Breaks when a radius or a pose of one image of a batch is used for another."""
    random = np.random.default_rng(0)
    poses = torch.from_numpy(random.random((3, 2, len(JOINTS), 3), np.float32)).round(decimals=3)
    radius = torch.tensor([0.01, 0.1, 0.3])
    together = skeleton_mask(poses, radius, SIZE)
    for row in range(3):
        assert torch.equal(together[row : row + 1], skeleton_mask(poses[row : row + 1], radius[row : row + 1], SIZE))
    assert together.flatten(1).sum(1).diff().gt(0).all()


def test_one_joint_is_a_disc() -> None:
    pose = torch.zeros(1, 1, len(JOINTS), 3)
    pose[0, 0, 3] = torch.tensor([0.5, 0.5, 1.0])
    area = skeleton_mask(pose, torch.tensor([0.25]), 256).float().mean().item()
    assert area == pytest.approx(np.pi / 16, rel=0.01)


def test_every_joint_ends_a_limb() -> None:
    """A joint without a limb would never be drawn."""
    assert {joint for limb in LIMBS for joint in limb} == set(range(len(JOINTS)))
