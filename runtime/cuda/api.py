"""CUDA as the chain needs it: one device, one stream, a dozen calls.

Two implementations, chosen by ``bindings.open_cuda``: pycuda, and NVIDIA's cuda-python. Both use
the device's primary context, so that other libraries of the process (PyTorch, OpenCV) share it.
"""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import DTypeLike, NDArray

from lgvit_edge.machine.gpu import Gpu

WAITS = ("hybrid", "spin", "block")


class Cuda(Protocol):
    """One CUDA device and one stream of its own (never the default stream).

    Addresses are plain integers. Copies are queued on the stream and return at once. Every method
    raises ``BackendError`` when the driver refuses, with the driver's words.

    Any thread may call, one at a time. As in CUDA's own runtime, each method makes the device's
    primary context current in the calling thread and leaves it so: TensorRT then finds it there.
    """

    name: str  # "pycuda" or "cuda-python"
    device: Gpu
    stream: int  # handle of the stream, for TensorRT

    def allocate(self, size: int) -> int:
        """Device memory of ``size`` bytes, aligned to 256; freed by ``close``."""

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """A zeroed page-locked array on the host; must not be touched after ``close``."""

    def upload(self, target: int, source: int, size: int) -> None:
        """Queue a copy from page-locked host memory to the device."""

    def download(self, target: int, source: int, size: int) -> None:
        """Queue a copy from the device to page-locked host memory."""

    def move(self, target: int, source: int, size: int) -> None:
        """Queue a copy within the device."""

    def event(self, *, blocking: bool) -> Any:
        """An event without timing; ``blocking`` lets ``wait`` sleep instead of spin."""

    def record(self, event: Any) -> None:
        """Queue the event behind everything on the stream."""

    def done(self, event: Any) -> bool:
        """Whether everything before the event has run."""

    def wait(self, event: Any) -> None:
        """Wait until everything before the event has run."""

    def synchronize(self) -> None:
        """Wait for the whole stream."""

    def begin_capture(self) -> None:
        """Record what is queued from now on instead of running it (thread-local mode)."""

    def end_capture(self) -> Any:
        """Stop recording; a graph that ``launch`` runs.

        A capture that went wrong ends here with ``BackendError``, and the stream works again.
        Call it from the thread that began.
        """

    def launch(self, graph: Any) -> None:
        """Queue a graph on the stream."""

    def free_memory(self) -> int:
        """Bytes free on the device."""

    def close(self) -> None:
        """Wait for the stream, then free graphs, events, memory, the stream and the context.

        Never raises: what cannot be freed is left to the end of the process. The calling thread
        gets back the context that was current when the device was opened.
        """
