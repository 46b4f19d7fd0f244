"""Borrows images that other libraries hold in the GPU's memory.

An array may offer one of two protocols, or both; ``__dlpack__`` is preferred. With it, the array's
library makes our stream wait for the library's stream, and keeps the memory until we give it back
(https://dmlc.github.io/dlpack/latest/python_spec.html). The CUDA Array Interface only names a
stream, from version 3 on, and our stream waits for that; the caller keeps the memory
(https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html).
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lgvit_edge.errors import DataError, in_one_line
from lgvit_edge.images.arrays import CUDA, CUDA_MANAGED, dlpack_device, name_of
from lgvit_edge.images.preprocess import channels_of, check_color, refusal
from lgvit_edge.runtime.cuda.api import Cuda
from lgvit_edge.runtime.cuda.driver import Refused


@dataclass(frozen=True)
class GpuImage:
    """Describes an image that kernels can read until ``give_back``, to be called exactly once.

    Attributes:
        address: of its first pixel, for kernels.
        height, width: in pixels.
        row, column: bytes from one row, or column, to the next.
        channels: bytes from a pixel's start to its red, green and blue.
        give_back: lets its library free it.
    """

    address: int
    height: int
    width: int
    row: int
    column: int
    channels: tuple[int, int, int]
    give_back: Callable[[], None]


@dataclass
class _View:
    """Holds what an array says of itself; strides are in bytes."""

    address: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    give_back: Callable[[], None]


def borrow(cuda: Cuda, gpu: int, image: Any, color: str) -> GpuImage:
    """Borrow a ``uint8`` image ``[H, W, 3]``, ``[H, W, 4]``, ``[H, W, 1]`` or ``[H, W]``.

    Strides may be any. Work that is queued on ``cuda`` after this call runs after the work that the
    image's library has queued to write it.

    Args:
        cuda: the device, and the stream that will read the image.
        gpu: index of the device.
        image: an array for which ``images.arrays.on_gpu`` is true.
        color: order of the channels: ``rgb``, or ``bgr``.

    Raises:
        DataError: it is no such image, not on this GPU, or describes itself wrongly.
        UsageError: ``color`` is neither order.
    """
    check_color(color)
    take = _by_dlpack if hasattr(image, "__dlpack_device__") else _by_interface
    view = take(cuda, gpu, image)
    try:
        return _image(cuda, gpu, name_of(image), view, color)
    except BaseException:
        view.give_back()
        raise


def _image(cuda: Cuda, gpu: int, name: str, view: _View, color: str) -> GpuImage:
    channels = channels_of(view.shape)
    if view.dtype != "uint8" or not channels or min(view.shape) < 1:
        raise refusal(view.dtype, view.shape)
    ends = [(n - 1) * step for n, step in zip(view.shape, view.strides, strict=True)]
    first = view.address + sum(min(end, 0) for end in ends)
    last = view.address + sum(max(end, 0) for end in ends)
    for address in (first, last):
        try:
            home = cuda.home(address)
        except Refused as error:
            raise DataError(
                f"{name} says that it lies at {address:#x}, which is no memory of CUDA's "
                f"({error}): it was freed, is smaller than it says, or is ordinary memory of the "
                "host; pass an array that is alive, or a NumPy array"
            ) from None
        if home is not None and home != gpu:
            raise _other_gpu(name, home, gpu)
    try:
        reached = cuda.reach(view.address)
    except Refused as error:
        raise DataError(
            f"{name} lies in page-locked memory of the host that cuda:{gpu} does not reach "
            f"({error}); pass a NumPy array, or allocate it mapped (cudaHostAllocMapped)"
        ) from None
    step = view.strides[2] if channels > 1 else 0
    order = (0, step, 2 * step) if color == "rgb" else (2 * step, step, 0)
    (height, width), (row, column) = view.shape[:2], view.strides[:2]
    return GpuImage(reached, height, width, row, column, order, view.give_back)


def _other_gpu(name: str, found: int, gpu: int) -> DataError:
    return DataError(
        f"{name} is on cuda:{found}, and the session on cuda:{gpu}: copy it with "
        f".to('cuda:{gpu}') (PyTorch), or open the session with device='cuda:{found}'"
    )


def _packed(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Return the strides of an array without gaps, rows first."""
    return tuple(math.prod(shape[axis + 1 :]) * itemsize for axis in range(len(shape)))


# CUDA Array Interface


def _by_interface(cuda: Cuda, gpu: int, image: Any) -> _View:
    name = name_of(image)
    try:
        told = dict(image.__cuda_array_interface__)
        version, typestr = int(told["version"]), str(told["typestr"])
        shape = tuple(map(int, told["shape"]))
        address = int(told["data"][0] or 0)
        given = told.get("strides")
        strides = _packed(shape, 1) if given is None else tuple(map(int, given))
        if len(strides) != len(shape) or min(shape, default=0) < 0:
            raise ValueError(f"shape {list(shape)}, strides {list(strides)}")
    except Exception as error:  # whatever an object of somebody else raises
        raise DataError(
            f"the __cuda_array_interface__ of {name} cannot be read: {in_one_line(error)}; "
            "expected version 2 or 3 of it"
        ) from None
    if version not in (2, 3):
        raise DataError(
            f"{name} has version {version} of __cuda_array_interface__, expected 2 or 3; pass an "
            "array of PyTorch, CuPy or Numba"
        )
    if told.get("mask") is not None:
        raise DataError(f"{name} is masked, expected an image without holes; fill them first")
    dtype = {"|u1": "uint8", "<u1": "uint8"}.get(typestr, typestr)
    _follow(cuda, name, version, told.get("stream"))
    return _View(address, dtype, shape, strides, lambda: None)


def _follow(cuda: Cuda, name: str, version: int, stream: object) -> None:
    if version == 2:
        # "Prior versions of the CUDA Array Interface made no statement about synchronization": the
        # stream that writes it is unknown.
        cuda.wait_for_all()
    elif stream is not None:
        if not isinstance(stream, int) or stream < 1:
            raise DataError(
                f"{name} names the stream {stream!r} in its __cuda_array_interface__, expected "
                "None, 1 (the legacy default stream), 2 (the thread's own) or a handle; 0 is "
                "ambiguous, and not allowed there"
            )
        try:
            cuda.follow(stream)
        except Refused as error:
            raise DataError(
                f"{name} names the stream {stream:#x} in its __cuda_array_interface__, which "
                f"cannot be waited for ({error}): it was destroyed, or is of another GPU"
            ) from None


# DLPack: structures of dlpack.h


class _Tensor(ctypes.Structure):
    _fields_ = (
        *(("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device", ctypes.c_int32)),
        *(("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8)),
        *(("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64))),
        *(("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64)),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class _Versioned(ctypes.Structure):
    _fields_ = (
        *(("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("context", ctypes.c_void_p)),
        *(("deleter", ctypes.c_void_p), ("flags", ctypes.c_uint64), ("tensor", _Tensor)),
    )


# A capsule's name before and after it is taken. They live here because CPython does not copy them.
_KINDS = (
    (b"dltensor_versioned", b"used_dltensor_versioned", _Versioned),
    (b"dltensor", b"used_dltensor", _Managed),
)
_TYPES = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}
_DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_SetName", ctypes.pythonapi)
)


def _by_dlpack(cuda: Cuda, gpu: int, image: Any) -> _View:
    name = name_of(image)
    kind, device = dlpack_device(image)
    if kind == CUDA and device != gpu:  # before it is told of a stream of another GPU
        raise _other_gpu(name, device, gpu)
    cuda.make_current()
    try:
        try:
            capsule = image.__dlpack__(stream=cuda.stream, max_version=(1, 0))
        except TypeError:  # a library from before DLPack 1.0
            capsule = image.__dlpack__(stream=cuda.stream)
    except Exception as error:
        raise DataError(f"{name} does not give its memory away: {in_one_line(error)}") from None
    for unused, used, structure in _KINDS:
        if _is_valid(capsule, unused):
            address = _pointer_of(capsule, unused)
            managed = structure.from_address(address)
            _rename(capsule, used)  # from here on it is ours to delete
            break
    else:
        raise DataError(f"__dlpack__ of {name} gave no DLPack tensor, or one that was taken before")
    deleter = managed.deleter

    def give_back() -> None:
        if deleter:  # a library may have nothing to do
            _DELETER(deleter)(address)

    try:
        if isinstance(managed, _Versioned) and managed.major != 1:
            raise DataError(f"{name} gave DLPack {managed.major}.{managed.minor}, expected 1")
        return _view(name, managed.tensor, give_back)
    except BaseException:
        give_back()
        raise


def _view(name: str, tensor: _Tensor, give_back: Callable[[], None]) -> _View:
    if tensor.device_type not in (CUDA, CUDA_MANAGED):
        raise DataError(
            f"{name} gave memory of another kind than it said (DLPack's {tensor.device_type})"
        )
    bits = tensor.bits * tensor.lanes
    dtype = f"{_TYPES.get(tensor.code, 'type')}{bits}"
    shape = tuple(tensor.shape[: tensor.ndim])
    if tensor.strides:
        strides = tuple(step * bits // 8 for step in tensor.strides[: tensor.ndim])
    else:
        strides = _packed(shape, bits // 8)
    address = (tensor.data or 0) + tensor.byte_offset
    return _View(address, dtype, shape, strides, give_back)
