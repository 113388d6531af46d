"""Backends: each runs a bundle's graphs on some hardware. The editor knows none of them by name."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from ..errors import BackendError
from ..manifest import Graph as GraphRecord
from ..manifest import Manifest

Tensors = Mapping[str, npt.NDArray[Any]]

logger = logging.getLogger("ilat_runtime")


class Graph(Protocol):
    """A loaded graph: arrays in, arrays out. Safe to run from several threads, unless it came from ``with_cache``."""

    def run(self, inputs: Tensors) -> dict[str, npt.NDArray[Any]]:
        """Outputs by name for inputs by name, with the dtypes and shapes of the manifest."""
        ...

    def with_cache(self, batch: int) -> Graph:
        """The same graph with buffers of its own for a batch of this size, for one thread at a time.

        Each pair ``past_X``/``present_X`` becomes one buffer, zero at first and updated in place by every run; ``run``
        neither takes nor returns it.
        """
        ...


class Backend(Protocol):
    """What runs graphs. ``description`` names it with its version and device, as results and the doctor show it."""

    name: str
    description: str

    def for_bundle(self, bundle: Path, manifest: Manifest) -> Backend:
        """This backend with what it needs of a bundle besides the graphs, such as engines.

        Raises:
            BackendError: the bundle lacks it: the message says what and how to get it.
        """
        ...

    def load(self, path: Path, record: GraphRecord) -> Graph:
        """Load a graph and check it against the manifest's record of it. Raises BundleError naming the file."""
        ...


def _onnxruntime(threads: int | None) -> Backend:
    from .onnxruntime import OnnxRuntime

    return OnnxRuntime(threads)


def _onnxruntime_cuda(threads: int | None) -> Backend:
    from .onnxruntime import OnnxRuntime

    return OnnxRuntime(threads, cuda=True)


def _tensorrt(flavour: str) -> Callable[[int | None], Backend]:
    def make(_threads: int | None) -> Backend:
        from .tensorrt import TensorRt

        return TensorRt(flavour)

    return make


BACKENDS: dict[str, Callable[[int | None], Backend]] = {
    "tensorrt": _tensorrt("tensorrt"),
    "tensorrt-rtx": _tensorrt("tensorrt-rtx"),
    "onnxruntime-cuda": _onnxruntime_cuda,
    "onnxruntime": _onnxruntime,
}
"""What exists, the first choice of ``auto`` first."""


@dataclass(frozen=True)
class Choice:
    """A backend and why it runs: a sentence for people."""

    backend: Backend
    reason: str


_told: set[str] = set()


def choose(name: str = "auto", threads: int | None = None, bundle: tuple[Path, Manifest] | None = None) -> Choice:
    """The backend called ``name``; ``auto`` takes the first of :data:`BACKENDS` that works here and logs which and why.

    Args:
        bundle: folder and manifest of what is to run: the backend comes with its engines, where it needs any.
        threads: number of CPU threads; None leaves it to the backend (one for each physical core).

    Raises:
        BackendError: no such backend, or it does not work here. A backend that was asked for is never replaced.
    """
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise BackendError(f"threads: {threads!r}, expected a whole number from 1")

    def made(make: Callable[[int | None], Backend]) -> Backend:
        backend = make(threads)
        return backend if bundle is None else backend.for_bundle(*bundle)

    if name == "auto":
        failures = []
        for make in BACKENDS.values():
            try:
                choice = Choice(made(make), f"auto takes the first that works here of: {', '.join(BACKENDS)}")
            except BackendError as error:
                failures.append(str(error))
                continue
            if failures:
                choice = Choice(choice.backend, f"{choice.reason} ({'; '.join(failures)})")
            if choice.reason not in _told:
                _told.add(choice.reason)
                logger.info("backend %s (%s)", choice.backend.description, choice.reason)
            return choice
        raise BackendError("backend: none works here: " + "; ".join(failures))
    if name in BACKENDS:
        return Choice(made(BACKENDS[name]), f"{name} was asked for")
    existing = ", ".join(["auto", *BACKENDS])
    near = difflib.get_close_matches(name, [*BACKENDS, "auto"], 1)
    raise BackendError(
        f"backend: {name!r} does not exist{f', did you mean {near[0]}?' if near else ''}; there is {existing}"
    )
