"""TensorRT and TensorRT-RTX: one Python API in two libraries."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .errors import BackendError

MODULES = {"tensorrt": ("tensorrt",), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
"""Modules that may hold each flavour, the usual one first."""
INSTALL = {
    "tensorrt": "install JetPack's TensorRT on a Jetson, elsewhere: pip install 'ilat[tensorrt]'",
    "tensorrt-rtx": "pip install 'ilat[rtx]'",
}


def library(flavour: str) -> Any:
    """The module of a flavour. Raises BackendError that says how to get it."""
    reasons = []
    for name in MODULES[flavour]:
        try:
            return import_module(name)
        except (ImportError, OSError) as error:  # a library that it loads may be missing
            reasons.append(str(error))
    raise BackendError(f"{flavour}: cannot be imported ({'; '.join(reasons)}); {INSTALL[flavour]}")
