"""Resizes images on the GPU into the network's input, bit for bit as Pillow does on the host."""

from __future__ import annotations

import contextlib
import ctypes
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.errors import BackendError
from lgvit_edge.images.preprocess import to_float
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.images.weights import resize_weights
from lgvit_edge.runtime.cuda.api import Cuda
from lgvit_edge.runtime.cuda.arrays import GpuImage, borrow

_SIZES = 8  # of images whose weights are kept
_THREADS = (32, 8, 1)


class _Axis(ctypes.Structure):
    _fields_ = (("weights", ctypes.c_void_p), ("step", ctypes.c_longlong))


class _Resize(ctypes.Structure):
    """The parameter of ``kernels/resize.cu``."""

    _fields_ = (
        *(("source", ctypes.c_void_p), ("target", ctypes.c_void_p), ("values", ctypes.c_void_p)),
        *(("first", _Axis), ("second", _Axis)),
        *((color, ctypes.c_longlong) for color in ("red", "green", "blue")),
        *(("size", ctypes.c_int), ("rows_first", ctypes.c_int)),
    )


class _Place(NamedTuple):
    """Device memory for weights, ``size`` bytes."""

    address: int
    size: int


class _Weights(NamedTuple):
    """Weights on the device, for images of one size."""

    place: _Place
    rows: int  # bytes from the place's start to the rows' weights
    rows_first: bool


class Resizer:
    """Resizes images in the memory of a GPU; nothing is allocated or compiled before the first."""

    def __init__(self, cuda: Cuda, gpu: int, spec: Preprocess, size: int, dtype: str) -> None:
        """Resize on device ``gpu``, as ``network_input`` does on the host, given the same."""
        self._cuda, self._gpu = cuda, gpu
        self._spec, self._size, self._dtype = spec, size, np.dtype(dtype)
        self._shape = (size, size, 3) if dtype == "uint8" else (3, size, size)
        self._ready = False
        self._weights: OrderedDict[tuple[int, int], _Weights] = OrderedDict()
        self._staging = np.zeros(0, np.uint8)
        self._held: list[GpuImage] = []

    def start(self, images: Sequence[Any], color: str, target: int) -> None:
        """Queue a kernel for each image; results lie one after the other from address ``target``.

        Images must not be changed or freed before ``give_back``.

        Raises:
            DataError: one of them is no image of this GPU.
            BackendError: the driver refuses, or memory is out.
        """
        self._prepare()
        try:
            for image in images:
                self._held.append(borrow(self._cuda, self._gpu, image, color))
                self._launch(self._held[-1], target)
                target += self._bytes
        finally:
            self._cuda.record(self._read)

    def give_back(self) -> None:
        """Wait until the images have been read, and give them back; never raises.

        Without the wait, a library could give the memory to its next array, or the caller could
        overwrite it, while our kernel still reads. Usually there is nothing left to wait for: the
        host has waited for an exit, which is behind the kernels on the stream.
        """
        if not self._held:
            return
        # If that fails the device is lost, and reads nothing any more.
        with contextlib.suppress(BackendError):
            self._cuda.wait(self._read)
        held, self._held = self._held, []
        for image in held:
            image.give_back()

    def to_host(self, images: Sequence[Any], color: str) -> NDArray[Any]:
        """Resize images and return the network's input, in memory of its own.

        Raises what ``start`` raises.
        """
        self._prepare()
        results = np.empty((len(images), *self._shape), self._dtype)
        for result, image in zip(results, images, strict=True):
            try:
                self.start([image], color, self._output_address)
                self._cuda.synchronize()
            finally:
                self.give_back()
            result[...] = self._output
        return results

    def _prepare(self) -> None:
        if self._ready:
            return
        cuda = self._cuda
        try:
            self._kernel = cuda.kernel("resize", "resize_image")
        except BackendError as error:
            raise BackendError(
                f"{cuda.device.name} cannot resize images ({error}), expected a GPU since Turing "
                "(RTX 20, Orin); copy them to the host with .cpu() (PyTorch) or .get() (CuPy)"
            ) from error
        self._read = cuda.event(blocking=False)
        self._output, self._output_address = cuda.mapped(self._shape, self._dtype)
        self._bytes = self._output.nbytes
        self._values = None
        if self._dtype != np.uint8:
            # What each of the 256 levels becomes. The kernel looks it up: its own arithmetic might
            # round otherwise than NumPy's.
            every = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, 1, 256, 3)
            values = to_float(every, self._spec)
            self._values = cuda.allocate(values.nbytes)
            self._send(values, self._values)
        self._ready = True

    def _launch(self, image: GpuImage, target: int) -> None:
        weights = self._weights_for(image.height, image.width)
        rows = _Axis(weights.place.address + weights.rows, image.row)
        axes = (_Axis(weights.place.address, image.column), rows)
        first, second = axes[::-1] if weights.rows_first else axes
        argument = _Resize(
            *(image.address, target, self._values, first, second, *image.channels),
            *(self._size, weights.rows_first),
        )
        blocks = [-(-self._size // threads) for threads in _THREADS[:2]]
        self._cuda.run(self._kernel, (blocks[0], blocks[1], 1), _THREADS, argument)

    def _weights_for(self, height: int, width: int) -> _Weights:
        """Return the weights for a size; new ones replace those not used for longest."""
        known = self._weights.get((height, width))
        if known is not None:
            self._weights.move_to_end((height, width))
            return known
        columns, rows, rows_first = resize_weights(height, width, self._spec, self._size)
        size = columns.nbytes + rows.nbytes
        place = None
        if len(self._weights) == _SIZES:
            place = self._weights.popitem(last=False)[1].place
        if place is None or place.size < size:
            # The smaller place stays allocated until the session is closed. Powers of two keep the
            # sum of such places below the size of the new one.
            room = 1 << (size - 1).bit_length()
            place = _Place(self._cuda.allocate(room), room)
        self._send(np.concatenate([columns, rows]), place.address)
        known = _Weights(place, columns.nbytes, rows_first)
        self._weights[height, width] = known
        return known

    def _send(self, values: NDArray[Any], address: int) -> None:
        """Queue a copy of values to the device; kernels queued before it still see the old ones."""
        cuda, size = self._cuda, values.nbytes
        cuda.synchronize()  # an earlier copy may still read the staging memory
        if self._staging.nbytes < size:
            self._staging = cuda.pinned((1 << (size - 1).bit_length(),), np.uint8)
        self._staging[:size] = values.ravel().view(np.uint8)
        cuda.upload(address, self._staging.ctypes.data, size)
