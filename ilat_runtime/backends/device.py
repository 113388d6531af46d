"""What the engines' backend needs of a GPU; :mod:`ilat_runtime.backends.cuda` has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy.typing as npt


class Graph(Protocol):
    """A CUDA graph, ready to run on the stream that it was captured from."""

    def launch(self) -> None:
        """Queue it. Raises BackendError naming what failed."""
        ...

    def destroy(self) -> None:
        """Free it; it must not be launched any more."""
        ...


class Stream(Protocol):
    """What is queued here runs in its order, beside what is queued on other streams."""

    handle: int

    def clear(self, memory: Any, count: int) -> None:
        """Queue zeros."""
        ...

    def upload(self, memory: Any, array: npt.NDArray[Any]) -> None:
        """Queue a copy to the device; the array stays as it is until :meth:`wait`."""
        ...

    def download(self, array: npt.NDArray[Any], memory: Any) -> None:
        """Queue a copy to the host; valid after :meth:`wait`."""
        ...

    def wait(self) -> None:
        """Until everything queued is done."""
        ...

    def capture(self, work: Callable[[], None]) -> Graph:
        """What ``work`` queues here, as a graph; none of it runs.

        Raises:
            BackendError: ``work`` raised it, or the work cannot be captured: it names what failed. The stream can be
                used as before.
        """
        ...


class Device(Protocol):
    """A GPU. A context manager makes it current in this thread; all else, freeing too, happens while it is.

    Attributes:
        name: of the GPU.
        architecture: as ``sm86``.
        without_graphs: why nothing can be captured; None where it can.
    """

    name: str
    architecture: str
    without_graphs: str | None

    def __enter__(self) -> Any: ...

    def __exit__(self, *_: object) -> None: ...

    def allocate(self, count: int) -> Any:
        """Memory of ``count`` bytes; ``int()`` of it is the address. It is freed with the object."""
        ...

    def stream(self) -> Stream:
        """A new stream."""
        ...
