"""CUDA graphs through cuda-python: pycuda, which does the rest, cannot capture a stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import BackendError


def _driver() -> Any:
    """cuda-python's driver module. Raises ImportError."""
    from cuda.bindings import driver

    return driver


def missing() -> str | None:
    """Why there are no CUDA graphs here; None where there are."""
    try:
        _driver()
    except ImportError as error:
        return f"cuda-python cannot be imported ({error})"
    return None


def _call(name: str, *arguments: Any) -> Any:
    """What a function of the driver returns besides its status. Raises BackendError that names it."""
    driver = _driver()
    try:
        status, *result = getattr(driver, name)(*arguments)
    except RuntimeError as error:  # the driver is too old to have it
        raise BackendError(f"{name}: {error}") from None
    if status != driver.CUresult.CUDA_SUCCESS:
        raise BackendError(f"{name} failed with {status.name}")
    return result[0] if result else None


def capture(stream: int, work: Callable[[], None]) -> CudaGraph:
    """What ``work`` queues on a stream (its handle) of the current context, as a graph; none of it runs.

    Raises:
        BackendError: ``work`` raised it, or a call failed, which is named. The stream is no longer capturing then.
    """
    # Of this thread alone: sessions of others may allocate memory meanwhile.
    mode = _driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    _call("cuStreamBeginCapture", stream, mode)
    try:
        work()
    except BaseException:
        _, *unfinished = _driver().cuStreamEndCapture(stream)
        for graph in unfinished:
            if graph is not None and int(graph):
                _driver().cuGraphDestroy(graph)
        raise
    graph = _call("cuStreamEndCapture", stream)
    try:
        return CudaGraph(_call("cuGraphInstantiate", graph, 0), stream)
    finally:
        _call("cuGraphDestroy", graph)


class CudaGraph:
    """An executable graph and the stream that it runs on; see :class:`ilat_runtime.backends.device.Graph`."""

    def __init__(self, executable: Any, stream: int) -> None:
        self._executable, self._stream = executable, stream

    def launch(self) -> None:
        """Queues it."""
        _call("cuGraphLaunch", self._executable, self._stream)

    def destroy(self) -> None:
        """Frees it."""
        _call("cuGraphExecDestroy", self._executable)
