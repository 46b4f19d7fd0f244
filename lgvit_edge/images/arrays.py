"""Arrays of other libraries: where their memory lies, and how NumPy sees what lies on the host.

They are known by what they offer: ``__dlpack__`` (the Python array API standard; PyTorch, CuPy and
JAX) or ``__cuda_array_interface__`` (Numba's documentation). No such library is imported.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.errors import DataError, in_one_line

# Kinds of memory, of dlpack.h
CUDA, CUDA_MANAGED = 2, 13
_ON_HOST = (1, 3, 11)  # ordinary, and page-locked for CUDA and ROCm


class DLPackArray(Protocol):
    """An array that others may view, such as a tensor of PyTorch."""

    def __dlpack__(self, *, stream: Any = ...) -> Any: ...

    def __dlpack_device__(self) -> tuple[Any, int]: ...


class CudaArray(Protocol):
    """An array on an NVIDIA GPU that others may view, such as one of Numba."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


def is_array(image: object) -> bool:
    """Return whether an object is an array of NumPy or of another library."""
    return isinstance(image, np.ndarray) or hasattr(image, "__dlpack_device__") or on_gpu(image)


def on_gpu(image: object) -> bool:
    """Return whether an object is an array in the memory of an NVIDIA GPU.

    Raises:
        DataError: it fails to tell.
    """
    if type(image) is np.ndarray or type(image) is str:  # the usual images first
        return False
    try:
        if not hasattr(image, "__dlpack_device__"):
            return hasattr(image, "__cuda_array_interface__")
    except Exception as error:  # whatever the other library raises
        raise _silent(image, error) from None
    return dlpack_device(image)[0] in (CUDA, CUDA_MANAGED)


def dlpack_device(image: Any) -> tuple[int, int]:
    """Return the kind of memory that an array lies in (``DLDeviceType``), and the device's index.

    Raises:
        DataError: the array fails to tell.
    """
    try:
        kind, index = image.__dlpack_device__()
        return int(kind), int(index)
    except Exception as error:
        raise _silent(image, error) from None


def _silent(image: object, error: Exception) -> DataError:
    return DataError(f"{name_of(image)} does not tell where it is: {in_one_line(error)}")


def host_array(image: Any) -> NDArray[Any]:
    """Return NumPy's view of an array with ``__dlpack__``; nothing is copied.

    Raises:
        DataError: it is not on the host, or cannot be viewed.
    """
    kind, _ = dlpack_device(image)
    if kind not in _ON_HOST:
        raise elsewhere(image)
    try:
        return np.from_dlpack(image)
    except Exception as error:
        raise DataError(
            f"{name_of(image)} cannot be viewed by NumPy: {in_one_line(error)}; expected an array "
            "of uint8 on the host: convert it, or copy it with np.array"
        ) from None


def elsewhere(image: object) -> DataError:
    """Return the error to raise for an array that is on a device, and wanted on the host."""
    return DataError(
        f"{name_of(image)} lies on a device, and is wanted on the host here: copy it with .cpu() "
        "(PyTorch), .get() (CuPy) or .copy_to_host() (Numba); the tensorrt backend takes images in "
        "the memory of its GPU as they are"
    )


def name_of(image: object) -> str:
    """Return what messages call an array: the name of its type."""
    kind = type(image)
    return f"{kind.__module__}.{kind.__name__}"
