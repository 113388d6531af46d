"""Tiny bundles with random weights, exported once for a whole run."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Literal

import pytest


@pytest.fixture(scope="session")
def pose_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of kind ``pose``."""
    return _made(tmp_path_factory, "pose")


@pytest.fixture(scope="session")
def mask_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of kind ``none``: it takes a mask only."""
    return _made(tmp_path_factory, "none")


@pytest.fixture(scope="session")
def sketch_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of kind ``sketch``."""
    return _made(tmp_path_factory, "sketch")


def _made(factory: pytest.TempPathFactory, kind: Literal["pose", "sketch", "none"]) -> Path:
    """Export takes most of a minute: the first of several workers does it, the others wait for the result."""
    from ilat_export.tiny import tiny_bundle

    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, claim, failed = base / f"bundle-{kind}", base / f"claim-{kind}", base / f"failed-{kind}"
    try:
        claim.mkdir()
    except FileExistsError:
        deadline = time.monotonic() + 900
        while not (folder / "manifest.json").exists() and not failed.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert (folder / "manifest.json").exists(), f"another worker could not export the {kind} bundle"
        return folder
    try:
        return tiny_bundle(folder, seed=0, kind=kind)
    except BaseException:
        failed.touch()
        raise
