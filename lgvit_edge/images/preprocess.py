"""Preprocessing: turns an image file or a camera frame into the network's input."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence, Sized
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard, Union

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.errors import DataError, UsageError
from lgvit_edge.images import pixels
from lgvit_edge.images.arrays import (
    CudaArray,
    DLPackArray,
    elsewhere,
    host_array,
    is_array,
    on_gpu,
)
from lgvit_edge.images.spec import Preprocess

if TYPE_CHECKING:
    from PIL.Image import Image

# What a session takes: an array of NumPy or another library, the path of a file, a Pillow image.
# On the GPU, arrays are for the tensorrt backend; ``as_rgb`` takes the others.
ImageLike: TypeAlias = Union[
    "NDArray[np.uint8]", str, "os.PathLike[str]", "Image", DLPackArray, CudaArray
]

COLORS = ("rgb", "bgr")
_EXPECTED = (
    "an image must be a uint8 array [H, W, 3], [H, W, 4], [H, W] or [H, W, 1], the path of a file, "
    "or a Pillow image"
)


def load_rgb(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Decode an image file to ``[H, W, 3] uint8`` RGB, turned upright; transparency is dropped.

    docs/images.md says which files are read, and as what.

    Raises:
        DataError: the file is missing, not an image, or damaged, or the range of its pixels is
            unknown.
    """
    return pixels.decode(path)


def as_rgb(image: ImageLike, color: str = "rgb") -> NDArray[np.uint8]:
    """Convert an array, an image file or a Pillow image to ``[H, W, 3] uint8`` RGB.

    Returns ``image`` itself if it is RGB already; a view of it if its channels are picked.

    Args:
        image: ``uint8`` array ``[H, W, 3]``, ``[H, W, 4]`` (transparency is dropped, as of files),
            ``[H, W]`` or ``[H, W, 1]`` (grey, repeated), of NumPy or, with ``__dlpack__``, of
            another library, on the host; the path of a file; or a Pillow image, which is read as
            its file would be.
        color: order of an array's channels: ``rgb``, or ``bgr`` as in OpenCV.

    Raises:
        DataError: ``image`` is none of these.
        UsageError: ``color`` is neither order.
    """
    check_color(color)
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.size:
            channels = channels_of(image.shape)
            if channels == 3:
                return image if color == "rgb" else image[..., ::-1]
            if channels == 4:
                return image[..., :3] if color == "rgb" else image[..., 2::-1]
            if channels == 1:
                return np.broadcast_to(image.reshape(*image.shape[:2], 1), (*image.shape[:2], 3))
        raise refusal(str(image.dtype), image.shape)
    if isinstance(image, (str, os.PathLike)):
        return load_rgb(image)
    if _is_pillow(image):
        return pixels.of_pillow(image)
    if on_gpu(image):
        raise elsewhere(image)
    if is_array(image):
        return as_rgb(host_array(image), color)
    raise DataError(f"{_EXPECTED}; found {type(image).__name__}")


def channels_of(shape: Sequence[int]) -> int:
    """Return how many channels an image of this shape has; 0 if it is none."""
    channels = shape[2] if len(shape) == 3 else 1 if len(shape) == 2 else 0
    return channels if channels in (1, 3, 4) else 0


def refusal(dtype: str, shape: Sequence[int]) -> DataError:
    """Return the error to raise for an array that is no image."""
    found = f"{dtype} {list(shape)}"
    if dtype != "uint8":
        found += (
            "; scale its values to 0..255, then convert it with .astype(np.uint8), in PyTorch "
            ".to(torch.uint8)"
        )
    elif len(shape) == 3 and shape[0] in (1, 3, 4) and 0 not in shape:
        found += (
            "; move its channels to the end with .transpose(1, 2, 0), in PyTorch .permute(1, 2, 0)"
        )
    return DataError(f"{_EXPECTED}; found {found}")


def check_color(color: str) -> None:
    """Refuse an order of channels that is none.

    Raises:
        UsageError: lists the orders.
    """
    if color not in COLORS:
        raise UsageError(f"color must be one of {', '.join(COLORS)}, found {color!r}")


def _is_pillow(image: object) -> TypeGuard[Image]:
    """Return whether this is a Pillow image; without Pillow imported, there can be none."""
    # Another thread may be at importing it: then the module is there, and not yet its classes.
    kind = getattr(sys.modules.get("PIL.Image"), "Image", None)
    return kind is not None and isinstance(image, kind)


def resize_crop(frame: NDArray[np.uint8], spec: Preprocess, size: int) -> NDArray[np.uint8]:
    """Resize an image ``[H, W, 3] uint8`` as ``spec`` says and cut out its centre.

    The short side, or with ``spec.squash`` both sides, become ``spec.resize``. Only the crop is
    computed: its box is mapped back into the frame and resized straight to ``size``. Nearly all
    pixels are within one grey level of resize-then-crop; bicubic overshoot is clipped only once.
    Returns ``[size, size, 3] uint8``; ``frame`` itself if it already has these sizes.
    """
    height, width = frame.shape[:2]
    if (height, width) == (size, size) == (spec.resize, spec.resize):
        return frame
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(frame))
    resampling = Image.Resampling[spec.interpolation.upper()]
    box = crop_box(height, width, spec, size)
    return np.asarray(image.resize((size, size), resampling, box=box))


def crop_box(
    height: int, width: int, spec: Preprocess, size: int
) -> tuple[float, float, float, float]:
    """Return what of an image becomes the crop: left, top, right and bottom, in its pixels."""
    short = min(height, width)
    # Both sides become whole pixels, as in torchvision and timm.
    out_h, out_w = spec.resize * height // short, spec.resize * width // short
    if spec.squash:
        out_h = out_w = spec.resize
    top, left = round((out_h - size) / 2), round((out_w - size) / 2)
    return (
        left * width / out_w,
        top * height / out_h,
        (left + size) * width / out_w,
        (top + size) * height / out_h,
    )


def network_input(
    images: Sequence[ImageLike], spec: Preprocess, size: int, dtype: str, color: str = "rgb"
) -> NDArray[Any]:
    """Convert images of any size, each as ``as_rgb`` takes it, to the input of segment 0.

    One array ``[B, H, W, C]`` will do. Returns ``[B, size, size, 3] uint8``, or normalised
    ``[B, 3, size, size] float32``, as ``dtype`` says. It is a view of the image where there is one,
    of this size already, and the dtype is uint8.

    Raises:
        DataError: an image has another type or shape, or ``images`` is no sequence or empty.
    """
    images = several(images)
    if not len(images):
        raise DataError("expected at least one image, found none")
    resized = [resize_crop(as_rgb(image, color), spec, size) for image in images]
    ready = resized[0][None] if len(resized) == 1 else np.stack(resized)
    return ready if dtype == "uint8" else to_float(ready, spec)


def several(images: object) -> Sequence[ImageLike]:
    """Return images as a sequence that can be sliced.

    Raises:
        DataError: there is no telling how many they are, or ``images`` is a single image.
    """
    if isinstance(images, (list, tuple)):  # the usual case comes first, for every frame passes here
        return images
    check_several(images)
    if isinstance(images, np.ndarray):
        return images  # type: ignore[return-value]
    if isinstance(images, Sized):
        return list(images)  # type: ignore[call-overload, no-any-return]
    raise DataError(
        f"expected several images, such as [image], found {type(images).__name__}, which tells "
        "them one by one; give that to Session.stream"
    )


def check_several(images: object) -> None:
    """Refuse what is not images, such as one image: its rows, or a path's letters, would pass.

    Raises:
        DataError: ``images`` is a single image, a dict, or nothing that could be read one by one.
    """
    single = isinstance(images, (str, bytes, os.PathLike, Mapping)) or _is_pillow(images)
    shape = getattr(images, "shape", None) if is_array(images) else None
    if shape is not None:
        single = len(shape) != 4
    if single or not (isinstance(images, Iterable) or hasattr(images, "__getitem__")):
        kind = repr(images) if shape is None else f"an array {list(shape)}"
        raise DataError(f"expected several images, such as [image], found {kind:.100}")


def to_float(images: NDArray[np.uint8], spec: Preprocess) -> NDArray[np.float32]:
    """Normalise ``[B, H, W, 3] uint8`` to ``[B, 3, H, W] float32``, for bundles with that input."""
    scale, shift = _scale_shift(spec)
    scaled = images.astype(np.float32) * scale + shift
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def to_pixels(images: NDArray[np.float32], spec: Preprocess) -> NDArray[np.uint8]:
    """Undo ``to_float``: return ``[B, H, W, 3] uint8``."""
    scale, shift = _scale_shift(spec)
    pixels: NDArray[np.float32] = (images.transpose(0, 2, 3, 1) - shift) / scale
    return np.rint(pixels).clip(0, 255).astype(np.uint8)


@lru_cache(maxsize=8)
def _scale_shift(spec: Preprocess) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    mean, std = np.array(spec.mean, np.float64), np.array(spec.std, np.float64)
    return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)
