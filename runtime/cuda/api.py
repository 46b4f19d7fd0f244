"""The interface to CUDA that the TensorRT chain uses: one device, one stream, a dozen calls.

It has two implementations, chosen by ``bindings.open_cuda``: pycuda, and NVIDIA's cuda-python. Both
use the device's primary context, which other libraries of the process (PyTorch, OpenCV) share.
"""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import DTypeLike, NDArray

from lgvit_edge.machine.gpu import Gpu

WAITS = ("hybrid", "spin", "block")


class Cuda(Protocol):
    """Allocates memory, copies and runs graphs on one CUDA device and a stream of its own.

    Addresses are plain integers. Copies are queued on the stream and return at once. Every method
    raises ``BackendError`` with the driver's message when a call fails.

    Any thread may call, one at a time. As in CUDA's own runtime, each method makes the device's
    primary context current in the calling thread and leaves it so, because TensorRT needs that.
    """

    name: str  # "pycuda" or "cuda-python"
    device: Gpu
    stream: int  # handle of the stream, for TensorRT

    def allocate(self, size: int) -> int:
        """Allocate device memory of ``size`` bytes, aligned to 256; freed by ``close``."""

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Allocate a zeroed page-locked host array; must not be used after ``close``."""

    def upload(self, target: int, source: int, size: int) -> None:
        """Queue a copy from page-locked host memory to the device."""

    def download(self, target: int, source: int, size: int) -> None:
        """Queue a copy from the device to page-locked host memory."""

    def move(self, target: int, source: int, size: int) -> None:
        """Queue a copy within the device."""

    def event(self, *, blocking: bool) -> Any:
        """Make an event without timing; ``blocking`` lets ``wait`` sleep instead of spin."""

    def record(self, event: Any) -> None:
        """Queue the event behind everything on the stream."""

    def done(self, event: Any) -> bool:
        """Return whether everything before the event has run."""

    def wait(self, event: Any) -> None:
        """Wait until everything before the event has run."""

    def synchronize(self) -> None:
        """Wait for the whole stream."""

    def begin_capture(self) -> None:
        """Record what is queued from now on instead of running it (thread-local mode)."""

    def end_capture(self) -> Any:
        """Stop recording and return the graph, for ``launch``.

        A failed capture raises ``BackendError`` here, and the stream works again. Call it from the
        thread that called ``begin_capture``.
        """

    def launch(self, graph: Any) -> None:
        """Queue a graph on the stream."""

    def free_memory(self) -> int:
        """Return the number of bytes free on the device."""

    def close(self) -> None:
        """Wait for the stream, then free graphs, events, memory, the stream and the context.

        Never raises: what cannot be freed stays until the process ends. The context that was
        current when the device was opened becomes current again.
        """
