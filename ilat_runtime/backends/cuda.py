"""A CUDA device through pycuda: memory, copies and streams, and nothing of models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BackendError
from . import cuda_graph

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING, which pycuda does not name. Work that others queue on CUDA's default stream neither waits for
such a stream nor ends a capture on it.
"""


def _driver() -> Any:
    """Pycuda's driver module, initialised. Raises BackendError that says what is missing."""
    try:
        import pycuda.driver as driver
    except ImportError as error:
        raise BackendError(
            f"backend: pycuda cannot be imported ({error}); pip install 'ilat[cuda]', which needs the CUDA toolkit"
        ) from None
    try:
        driver.init()
        count = driver.Device.count()
    except driver.Error as error:
        raise BackendError(f"backend: no usable NVIDIA driver ({error}); install the driver of your GPU") from None
    if not count:
        raise BackendError("backend: no NVIDIA GPU")
    return driver


def architecture() -> str:
    """Of the first GPU, as ``sm86``. Raises BackendError when there is none."""
    major, minor = _driver().Device(0).compute_capability()
    return f"sm{major}{minor}"


class Cuda:
    """The first GPU and its primary context; see :class:`ilat_runtime.backends.device.Device`."""

    def __init__(self) -> None:
        self._driver = _driver()
        device = self._driver.Device(0)
        self.name, self.architecture = device.name(), architecture()
        self.without_graphs = cuda_graph.missing()
        self._context = device.retain_primary_context()

    def __enter__(self) -> Cuda:
        """Makes the context current in this thread."""
        self._context.push()
        return self

    def __exit__(self, *_: object) -> None:
        self._context.pop()

    def allocate(self, count: int) -> Any:
        """Device memory of ``count`` bytes; ``int()`` of it is the address. The object is let go with this current."""
        return self._driver.mem_alloc(max(count, 1))

    def stream(self) -> CudaStream:
        """A stream of its own."""
        return CudaStream(self._driver)


class CudaStream:
    """A stream of the current context; see :class:`ilat_runtime.backends.device.Stream`."""

    def __init__(self, driver: Any) -> None:
        self._driver, self._stream = driver, driver.Stream(NON_BLOCKING)
        self.handle = int(self._stream.handle)

    def clear(self, memory: Any, count: int) -> None:
        """Queues zeros."""
        self._driver.memset_d8_async(int(memory), 0, count, self._stream)

    def upload(self, memory: Any, array: npt.NDArray[Any]) -> None:
        """Queues a copy to the device; the array must stay as it is until :meth:`wait`."""
        self._driver.memcpy_htod_async(int(memory), np.ascontiguousarray(array), self._stream)

    def download(self, array: npt.NDArray[Any], memory: Any) -> None:
        """Queues a copy to the host; valid after :meth:`wait`."""
        self._driver.memcpy_dtoh_async(array, int(memory), self._stream)

    def wait(self) -> None:
        """Until everything queued is done."""
        self._stream.synchronize()

    def capture(self, work: Callable[[], None]) -> cuda_graph.CudaGraph:
        """What ``work`` queues here, as a graph. Raises BackendError where that cannot be captured."""
        return cuda_graph.capture(self.handle, work)
