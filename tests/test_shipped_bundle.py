"""The bundle in samples/bundles/pose-demo, as it is shipped: what it claims, and no leak on the demo's photograph."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from exporting import graphs

from ilat_runtime.backends import Graph
from ilat_runtime.crop import crop_around, visible_box
from ilat_runtime.image_file import read_image
from ilat_runtime.manifest import Manifest, verify_files
from ilat_runtime.pose_file import read_poses

SAMPLES = Path(__file__).parent.parent / "samples"
BUNDLE = SAMPLES / "bundles/pose-demo"

pytestmark = pytest.mark.skipif(not BUNDLE.is_dir(), reason=f"{BUNDLE} is not there")


@pytest.fixture(scope="module")
def shipped() -> tuple[Manifest, dict[str, Graph]]:
    return graphs(BUNDLE)


def test_what_it_claims(shipped: tuple[Manifest, dict[str, Graph]]) -> None:
    """Breaks when it was exported without the held-out frames, with a token that differs from PyTorch's, or without
    saying whose it is."""
    manifest, _ = shipped
    verify_files(BUNDLE, manifest)
    assert sum(file.stat().st_size for file in BUNDLE.iterdir()) < 25e6
    assert manifest.image_size >= 128
    assert manifest.leak_free
    assert manifest.verification["encoder_tokens"] == manifest.verification["decoded_tokens"] == 1
    assert isinstance(manifest.verification["real_inputs"], int)
    assert manifest.verification["real_inputs"] >= 8, "pairs of held-out frames"
    assert "not stated" not in (manifest.licence.weights, manifest.licence.data)
    assert manifest.provenance["recipe"] == "pose-demo"


@pytest.mark.parametrize("by", ["mask", "poses"])
def test_no_leak_on_the_photograph(shipped: tuple[Manifest, dict[str, Graph]], by: str) -> None:
    """Breaks when a pixel that will be edited changes a known latent by one bit."""
    manifest, loaded = shipped
    image, file = read_image(SAMPLES / "pose-demo/reference.jpg"), read_poses(SAMPLES / "pose-demo/target.json")
    assert file.reference is not None
    assert manifest.crop is not None
    poses = np.stack([file.reference, file.poses[0]])
    box = visible_box(poses)
    assert box is not None
    crop = crop_around(box, (image.shape[1], image.shape[0]), manifest.crop.margin, manifest.image_size)
    pixels = np.asarray(crop.take(image), np.uint8)
    mask = np.zeros(pixels.shape[:2], np.uint8)
    relative = crop.relative(poses)
    if by == "mask":
        x, y = (relative[1, 0, :2] * crop.side).astype(int).tolist()
        cv2.circle(mask, (x, y), crop.side // 6, 255, -1)
        relative[..., 2] = 0
    radius = np.array([manifest.crop.dilation * max(box[2] - box[0], box[3] - box[1]) / crop.side], np.float32)
    inputs = {"image": pixels[None], "mask": mask[None], "poses": relative[None], "radius": radius}
    before = loaded["encoder"].run(inputs)
    edited = before["edit_mask"][..., None] > 0
    after = loaded["encoder"].run(inputs | {"image": np.where(edited, 255 - pixels[None], pixels[None])})
    known = ~before["token_mask"][0]
    assert 0 < known.sum() < known.size
    latents = [result["latent"].reshape(-1, known.size)[:, known] for result in (before, after)]
    assert latents[0].tobytes() == latents[1].tobytes()
    assert np.array_equal(before["tokens"][0][known], after["tokens"][0][known])
