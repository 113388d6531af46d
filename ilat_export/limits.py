"""The shapes that engines are built for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The largest that engines take: images in a batch, pixels of a crop's side, rows of a verification."""

    batch: int = 4
    crop: int = 2048
    rows: int = 32
