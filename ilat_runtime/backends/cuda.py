"""A CUDA device through pycuda: memory, copies and a stream, and nothing of models."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BackendError


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
    """The first GPU, its primary context, and a stream of its own.

    Attributes:
        name: of the GPU.
        architecture: as ``sm86``.
        stream: handle of the stream on which everything here is queued.
    """

    def __init__(self) -> None:
        self._driver = _driver()
        device = self._driver.Device(0)
        self.name, self.architecture = device.name(), architecture()
        self._context = device.retain_primary_context()
        with self:
            self._stream = self._driver.Stream()
            self.stream = int(self._stream.handle)

    def __enter__(self) -> Cuda:
        """Makes the context current in this thread."""
        self._context.push()
        return self

    def __exit__(self, *_: object) -> None:
        self._context.pop()

    def allocate(self, count: int) -> Any:
        """Device memory of ``count`` bytes, freed with the object; ``int()`` of it is the address."""
        return self._driver.mem_alloc(max(count, 1))

    def clear(self, memory: Any, count: int) -> None:
        """Zeros."""
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
