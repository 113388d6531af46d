"""Inputs for the tests of the editor and of ilat-edit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ilat_runtime.joints import JOINTS
from ilat_runtime.manifest import file_record

HEIGHT, WIDTH = 150, 110


def photograph(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    """uint8 (height, width, 3): smooth colours."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 5, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def standing(x: float = 55, y: float = 75, size: float = 100, lean: float = 0.0) -> np.ndarray:
    """float32 (13, 3): a person ``size`` pixels high, centred on (x, y)."""
    plan = {
        "head": (0, -0.5),
        "shoulder": (0.1, -0.3),
        "elbow": (0.15, -0.15),
        "wrist": (0.17, 0.0),
        "hip": (0.07, 0.02),
        "knee": (0.08, 0.26),
        "ankle": (0.08, 0.5),
    }
    points = []
    for name in JOINTS:
        side, _, part = name.rpartition("_")
        dx, dy = plan[part]
        points.append((x + size * ((-dx if side == "right" else dx) + lean * dy), y + size * dy, 1))
    return np.array(points, np.float32)


def box_mask(top: int, left: int, height: int, width: int, image: np.ndarray) -> np.ndarray:
    """bool HW with one rectangle."""
    mask = np.zeros(image.shape[:2], bool)
    mask[top : top + height, left : left + width] = True
    return mask


def changed_copy(bundle: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a bundle whose manifest was changed."""
    shutil.copytree(bundle, folder, dirs_exist_ok=True)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    return folder


def with_graph(bundle: Path, folder: Path, name: str, data: bytes) -> Path:
    """A copy of a bundle with other bytes for a graph, and a manifest that lists them."""

    def change(manifest: dict[str, Any]) -> None:
        file = manifest["graphs"][name]["file"]
        (folder / file).write_bytes(data)
        manifest["files"][file] = file_record(folder / file).model_dump()

    return changed_copy(bundle, folder, change)
