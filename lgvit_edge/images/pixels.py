"""Decodes images with Pillow: the formats that are read, and how their pixels become 8-bit RGB."""

from __future__ import annotations

import contextlib
import io
import os
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.files import reading
from lgvit_edge.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

# Formats of photographs and cameras. Pillow knows more; some of them start other programs.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "JPEG2000", "AVIF")
# Of any kind: a small file can hold many, and 100 million take a second or three and 1 GB.
_MAX_PIXELS = 100_000_000
# Of a JPEG, which is decoded at half its width and height above _MAX_PIXELS: cameras of telephones
# have up to 16384 x 12288. Half of that is still many times what any network sees.
_MAX_JPEG_PIXELS = 210_000_000
MAX_BYTES = 1 << 30  # of a file: more than _MAX_PIXELS of 16 bits take without compression

_ORIENTATION = 0x0112  # EXIF's tag, and what turns an image upright
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
# Tags of TIFF
_SUBFILE, _BITS, _PHOTOMETRIC, _MAX_SAMPLE, _COLOURS = 254, 258, 262, 281, 320
_SAMPLE_FORMAT, _LOWEST, _HIGHEST = 339, 340, 341
_WHITE_IS_ZERO, _UNSIGNED, _THUMBNAIL = 0, 1, 1
_CONVERT = "convert it to 8 bits"


def decode(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Decode an image file to ``[H, W, 3] uint8`` RGB, turned upright.

    Raises:
        DataError: the file is missing, of another format, or damaged, or its range is unknown.
    """
    with _decoding(path), reading(path, MAX_BYTES) as file:
        return _read(file, path)


def decode_bytes(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode what an image file holds, as ``decode`` does; ``name`` is what errors call it."""
    with _decoding(name):
        return _read(io.BytesIO(data), name)


def of_pillow(image: Image) -> NDArray[np.uint8]:
    """Convert a Pillow image as the file that it may come from would be; raises likewise."""
    with _decoding("this Pillow image"):
        return _pixels(image, "this Pillow image")


def _read(file: IO[bytes], name: str | os.PathLike[str]) -> NDArray[np.uint8]:
    with _opened(file) as image:
        if _MAX_PIXELS < image.width * image.height <= _MAX_JPEG_PIXELS:
            image.draft(None, (image.width // 2, image.height // 2))  # JPEG alone heeds it
        return _pixels(image, name)


@lru_cache
def _formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that this Pillow knows: it has JPEG 2000 and AVIF if built so."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _opened(file: IO[bytes]) -> Image:
    """Open an image of one of the formats as ``PIL.Image.open`` does, with no limit of its own.

    Its limits are settings of the process, which are not ours to change, and it warns of half.
    """
    from PIL import Image, UnidentifiedImageError

    head = file.read(16)
    for name in _formats():
        factory, accept = Image.OPEN[name]
        # What Pillow's parsers raise of files that are of another format after all
        with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):
            taken = accept is None or accept(head)
            if isinstance(taken, str):
                raise OSError(taken)  # the format is right, but this Pillow is built without it
            if taken:
                file.seek(0)
                return factory(file, "")
    raise UnidentifiedImageError


@contextlib.contextmanager
def _decoding(name: str | os.PathLike[str]) -> Iterator[None]:
    from PIL import UnidentifiedImageError

    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"no such image: {name}") from None
    except Exception as error:  # damaged files make Pillow raise whatever its parsers stumble over
        if isinstance(error, UnidentifiedImageError):
            reason = f"expected {', '.join(_formats())}"
        elif isinstance(error, (OSError, ValueError, SyntaxError)):
            reason = getattr(error, "strerror", None) or str(error)
        else:
            reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{name} is not an image that can be decoded: {reason}") from None


def _pixels(image: Image, name: str | os.PathLike[str]) -> NDArray[np.uint8]:
    if (count := image.width * image.height) == 0:
        raise DataError(f"{name}: {image.width} x {image.height} pixels are no image")
    if count > _MAX_PIXELS:
        raise DataError(
            f"{name}: {image.width} x {image.height} pixels are too many: expected at most "
            f"{_MAX_PIXELS // 1_000_000} million, {_MAX_JPEG_PIXELS // 1_000_000} million in a "
            "JPEG file; make it smaller"
        )
    tags: dict[int, Any] = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    if fault := _fault(image, tags):
        raise DataError(f"{name} {fault}")
    image.load()
    limits = _limits(image, tags) if image.mode[0] in "IF" else None  # I, I;16, I;16B, F
    orientation = image.getexif().get(_ORIENTATION)  # of a TIFF, load() saw to it
    if orientation is None and _is_orientation_hidden(image.info.get("exif")):
        raise DataError(
            f"{name}: its EXIF block is damaged, so this Pillow cannot tell which side is up; "
            "save the image anew, or install Pillow 13 (for Python 3.11 and newer)"
        )
    method = _UPRIGHT.get(orientation or 1)
    if method is not None:
        from PIL.Image import Transpose

        image = image.transpose(Transpose[method])
    if limits is not None:
        return _grey(_scaled(np.asarray(image), *limits, name))
    if image.mode[0] in "IF":
        raise DataError(f"{name} has {image.mode} pixels, whose range nothing tells; {_CONVERT}")
    if image.mode in ("L", "LA"):
        return _grey(np.asarray(image).reshape(image.height, image.width, -1)[..., 0])
    # By way of these: from palettes, transparency would be in the way; the others are multiplied.
    if (way := {"P": "RGBA", "PA": "RGBA", "RGBa": "RGBA", "La": "LA"}.get(image.mode)) is not None:
        image = image.convert(way)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _is_orientation_hidden(block: bytes | None) -> bool:
    """Say whether EXIF lists an orientation, which Pillow does not see after a damaged entry.

    Before Pillow 13 such an entry hides all that follow it.
    """
    block = (block or b"").removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return False
    try:
        (start,) = struct.unpack_from(f"{order}L", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        entries = range(start + 2, start + 2 + 12 * count, 12)
        return any(struct.unpack_from(f"{order}H", block, at)[0] == _ORIENTATION for at in entries)
    except struct.error:  # cut off
        return False


def _grey(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(values[..., None], 3, axis=2)


def _fault(image: Image, tags: dict[int, Any]) -> str | None:
    """Tell why the pixels that Pillow gives of a TIFF are not those that were meant."""
    if (tags.get(_SUBFILE) or 0) & _THUMBNAIL:
        return "begins with a thumbnail, as raw files of cameras do; convert it to JPEG or PNG"
    if image.mode[0] in "IF":
        return None
    if any(kind != _UNSIGNED for kind in _values(tags, _SAMPLE_FORMAT)):
        return f"has signed pixels, whose range nothing tells; {_CONVERT}"
    # Of colours with 16 bits, Pillow keeps the upper 8, in which nothing is left of these.
    most = _declared(tags)
    if most is not None and most < (1 << max(_values(tags, _BITS), default=8)) - 1:
        return f"has colours up to {most} in 16 bits; {_CONVERT}"
    if image.mode[0] == "P" and 0 < max(_values(tags, _COLOURS), default=0) < 256:
        return f"has a palette of 8 bits, expected 16; {_CONVERT}"
    return None


def _declared(tags: dict[int, Any]) -> int | None:
    """The largest value that 8 to 16 bits can have, if the file says that it is the largest.

    Other values say what the largest pixel of this image is, not what white is.
    """
    most = max(_values(tags, _MAX_SAMPLE), default=0)
    return most if most >= 255 and not most & (most + 1) else None


def _limits(image: Image, tags: dict[int, Any]) -> tuple[float, float] | None:
    """Return the values of black and white in a grey image of more than 8 bits; None: unknown."""
    told = [float(value) for tag in (_LOWEST, _HIGHEST) for value in _values(tags, tag)]
    if image.mode.startswith("I;16"):
        bits = max(_values(tags, _BITS), default=16)
        limits = (0.0, float(_declared(tags) or (1 << bits) - 1))
    elif image.mode == "I" and image.format in ("PNG", "PPM"):
        limits = (0.0, 65535.0)  # as Pillow scales them
    elif len(told) == 2 and told[0] < told[1]:
        limits = (told[0], told[1])
    else:
        return None
    return (limits[1], limits[0]) if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else limits


def _values(tags: dict[int, Any], tag: int) -> tuple[Any, ...]:
    value = tags.get(tag, ())
    return value if isinstance(value, tuple) else (value,)


def _scaled(
    values: NDArray[Any], black: float, white: float, name: str | os.PathLike[str]
) -> NDArray[np.uint8]:
    scaled = (values.astype(np.float32) - np.float32(black)) * np.float32(255 / (white - black))
    if not np.isfinite(scaled).all():
        raise DataError(f"{name} has pixels that are no numbers; {_CONVERT}")
    return scaled.round().clip(0, 255).astype(np.uint8)
