"""Training of image Local Autoregressive Transformers: models, data, losses, evaluation.

>>> import ilat_train
>>> tokenizer = ilat_train.load("runs/me/tokenizer")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import load as load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # Loaded when first used: PyTorch takes seconds, and --help needs none of it.
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .checkpoint import load

    return load


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
