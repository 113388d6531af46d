"""Training of image Local Autoregressive Transformers: models, data, losses, evaluation.

>>> import ilat_train
>>> tokenizer = ilat_train.load("runs/me/tokenizer")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import load as load
    from .data.sketches import draw_sketch as draw_sketch

# Loaded when first used: PyTorch takes seconds, and --help needs none of it.
_HOME = {"load": "checkpoint", "draw_sketch": "data.sketches"}

__all__ = ["draw_sketch", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
