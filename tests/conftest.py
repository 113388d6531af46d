"""Tiny bundles with random weights, made once for each worker."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def pose_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of kind ``pose``."""
    return _made(tmp_path_factory, "pose")


@pytest.fixture(scope="session")
def mask_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of kind ``none``: it takes a mask only."""
    return _made(tmp_path_factory, "none")


def _made(factory: pytest.TempPathFactory, kind: str) -> Path:
    from ilat_export.tiny import tiny_bundle

    folder = factory.mktemp("bundles") / kind
    tiny_bundle(folder, seed=0, kind=kind)
    return folder
