"""Odd and hostile images: each gives the right pixels, or is refused by a ``DataError``.

The images are made here. Expected pixels are computed without Pillow, or stand here as numbers.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, features

from lgvit_edge.errors import DataError
from lgvit_edge.images.pixels import FORMATS, MAX_BYTES, decode, of_pillow

Frame = NDArray[np.uint8]
# What a case expects: these pixels; to be refused with these words; or either, but nothing else.
Expected = Frame | str | None
Case = tuple[str, bytes, Expected]

# Pillow's, about metadata and sizes.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

COLOURS = np.array(
    [
        [(255, 0, 0), (0, 255, 0), (0, 0, 255)],
        [(255, 255, 255), (0, 0, 0), (128, 128, 128)],
        [(255, 255, 0), (0, 255, 255), (255, 0, 255)],
        [(10, 20, 30), (200, 100, 50), (90, 80, 70)],
    ],
    np.uint8,
)
# Smooth, for codecs that lose what is sharp, and unlike itself in every direction
SMOOTH = np.stack(np.broadcast_arrays(*np.ogrid[20:200:24j, 60:160:32j], 100), -1).astype(np.uint8)
TURN = Image.Exif()
TURN[0x0112] = 6
GREYS = np.array([[0, 1, 64], [128, 192, 255]], np.uint8)
LOSSLESS = {"PNG": {}, "BMP": {}, "PPM": {}, "TIFF": {}, "WEBP": {"lossless": True}, "GIF": {}}
LOSSY = {"JPEG": {"quality": 100, "subsampling": 0}, "AVIF": {"quality": 100}, "JPEG2000": {}}


def available(kind: str) -> bool:
    """Whether this Pillow has the codec of a kind; before 11.3 it does not know AVIF's name."""
    name = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}.get(kind)
    known = {*features.modules, *features.codecs, *features.features}
    return name is None or (name in known and bool(features.check(name)))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(values: NDArray[Any]) -> Frame:
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)


# Formats and modes


def modes() -> Iterator[Case]:
    rgb, l_image = Image.fromarray(COLOURS), Image.fromarray(GREYS)
    alpha = Image.fromarray(np.full((4, 3), 7, np.uint8))
    for kind, options in LOSSLESS.items():
        if kind != "GIF":  # which has palettes alone, and is below
            yield f"{kind} RGB", saved(rgb, kind, **options), COLOURS
        if kind != "WEBP":
            yield f"{kind} L", saved(l_image, kind), grey(GREYS)
            bits = Image.fromarray(GREYS > 100)
            yield f"{kind} 1", saved(bits, kind), grey(np.where(GREYS > 100, 255, 0))
        if kind in ("PNG", "WEBP", "TIFF"):
            both = rgb.copy()
            both.putalpha(alpha)
            if kind == "WEBP":
                options = {"lossless": True, "exact": True}
            yield f"{kind} RGBA", saved(both, kind, **options), COLOURS
    for kind, options in LOSSY.items():
        if available(kind):
            yield f"{kind} RGB", saved(Image.fromarray(SMOOTH), kind, **options), SMOOTH
            if kind != "AVIF":
                yield (
                    f"{kind} L",
                    saved(Image.fromarray(SMOOTH[..., 0]), kind),
                    grey(SMOOTH[..., 0]),
                )
    la = Image.merge("LA", [l_image, Image.new("L", l_image.size, 9)])
    for kind in ("PNG", "TIFF"):
        yield f"{kind} LA", saved(la, kind), grey(GREYS)
    # Palettes, with every way in which they can be transparent
    places = np.arange(12, dtype=np.uint8).reshape(4, 3)
    palette = Image.frombytes("P", (3, 4), places.tobytes())
    palette.putpalette(COLOURS.reshape(-1, 3).tobytes())
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        yield f"{kind} P", saved(palette, kind), COLOURS
    for kind in ("PNG", "GIF"):
        yield f"{kind} P, one transparent", saved(palette, kind, transparency=4), COLOURS
    several = saved(palette, "PNG", transparency=bytes(range(0, 240, 20)))
    yield "PNG P, several transparent", several, COLOURS
    yield "PNG RGB, one transparent", saved(rgb, "PNG", transparency=(255, 0, 0)), COLOURS
    yield "PNG L, one transparent", saved(l_image, "PNG", transparency=64), grey(GREYS)
    pa = Image.merge("PA", [palette, alpha])
    pa.putpalette(palette.getpalette() or [])
    yield "TIFF PA", saved(pa, "TIFF"), COLOURS
    # Colours in other spaces: ink, luma, CIE
    inks = np.array([[(0, 0, 0, 0), (255, 0, 0, 0)], [(0, 0, 0, 255), (0, 102, 255, 0)]], np.uint8)
    seen = np.array([[(255, 255, 255), (0, 255, 255)], [(0, 0, 0), (255, 153, 0)]], np.uint8)
    yield "TIFF CMYK", saved(Image.fromarray(inks, "CMYK"), "TIFF"), seen
    flat = Image.new("CMYK", (16, 16), (0, 102, 255, 0))
    yield (
        "JPEG CMYK",
        saved(flat, "JPEG", quality=100),
        np.full((16, 16, 3), (255, 153, 0), np.uint8),
    )
    luma = Image.new("YCbCr", (4, 4), (76, 85, 255))
    yield "TIFF YCbCr", saved(luma, "TIFF"), np.full((4, 4, 3), (254, 0, 0), np.uint8)
    # sRGB's red in CIE L*a*b* of D50: 54.3, 80.8, 69.9; L* in 0..255, a* and b* from 128
    lab = Image.new("LAB", (4, 4), (138, 128 + 81, 128 + 70))
    yield "TIFF LAB", saved(lab, "TIFF"), np.full((4, 4, 3), (255, 0, 0), np.uint8)


# More than 8 bits


def tiff(pixels: NDArray[Any], tags: dict[int, tuple[str, Any]], order: str = "<") -> bytes:
    """A TIFF of one strip; ``tags`` by number, as (format of ``struct``, value or values)."""
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    height, width = pixels.shape[:2]
    samples = pixels.shape[2] if pixels.ndim == 3 else 1
    bits = [8 * pixels.dtype.itemsize] * samples
    every: dict[int, tuple[str, Any]] = {256: ("I", width), 257: ("I", height), 258: ("H", bits)}
    every |= {259: ("H", 1), 262: ("H", 1 if samples == 1 else 2), 277: ("H", samples)}
    every |= {273: ("I", 8), 278: ("I", height), 279: ("I", len(data))} | tags
    kinds = {"B": 1, "s": 2, "H": 3, "I": 4, "f": 11, "d": 12, "i": 9, "h": 8, "b": 6}
    start = 8 + len(data)
    entries, extra = b"", b""
    for tag, (kind, value) in sorted(every.items()):
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        packed = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(packed) > 4:
            place = start + 2 + 12 * len(every) + 4 + len(extra)
            extra += packed
            packed = struct.pack(f"{order}I", place)
        entries += struct.pack(f"{order}HHI", tag, kinds[kind], len(values)) + packed.ljust(
            4, b"\0"
        )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    return head + data + struct.pack(f"{order}H", len(every)) + entries + bytes(4) + extra


def depths() -> Iterator[Case]:
    deep = np.array([[0, 257, 12850], [32896, 51400, 65535]], np.uint16)  # 257 * 0, 1, 50, ...
    shown = grey(deep // 257)
    yield "PNG 16 bits", saved(Image.fromarray(deep), "PNG"), shown
    if available("JPEG2000"):
        yield "JPEG2000 16 bits", saved(Image.fromarray(deep), "JPEG2000"), shown
    for order in "<>":
        yield f"TIFF 16 bits {order}", tiff(deep, {}, order), shown
    yield "TIFF 16 bits, white is 0", tiff(deep, {262: ("H", 0)}), 255 - shown
    twelve = np.array([[0, 16, 1000], [2048, 3000, 4095]], np.uint16)
    scaled = grey(np.round(twelve * (255 / 4095)))
    yield "TIFF 12 bits in 16", tiff(twelve, {281: ("H", 4095)}), scaled
    yield "TIFF 12 bits in 16 >", tiff(twelve, {281: ("H", 4095)}, ">"), scaled
    eight = (GREYS.astype(np.uint16), {281: ("H", 255)})
    yield "TIFF 8 bits in 16", tiff(*eight), grey(GREYS)
    # The brightest pixel of an image says nothing about white.
    yield (
        "TIFF 16 bits, dark",
        tiff(deep // 20, {281: ("H", 3276)}),
        grey(np.round(deep // 20 / 257)),
    )
    packed = np.array([[0x00, 0x0F, 0xFF, 0x80, 0x00, 0x00]], np.uint8)  # 000 FFF 800 000
    bits = {256: ("I", 4), 258: ("H", 12), 279: ("I", 6)}
    yield "TIFF 12 bits packed", tiff(packed, bits), grey(np.array([[0, 255, 128, 0]]))
    for most in (255, 1023, 4095, 65535):
        values = np.array([[0, most // 2, most]])
        body = values.astype(">u2" if most > 255 else "u1").tobytes()
        expected = grey(np.round(values * (255 / most)))
        yield f"PGM up to {most}", b"P5 3 1 %d\n" % most + body, expected
        text = " ".join(map(str, values[0])).encode()
        yield f"PGM in text up to {most}", b"P2 3 1 %d\n%s\n" % (most, text), expected
    wide = np.broadcast_to(np.array([0, 1023, 512]), (2, 3, 3))
    yield "PPM up to 1023", b"P6 3 2 1023\n" + wide.astype(">u2").tobytes(), wide * 255 // 1023
    colours = COLOURS.astype(np.uint16) * 257
    yield "TIFF RGB 16 bits", tiff(colours, {}), COLOURS
    yield "TIFF RGB 16 bits >", tiff(colours, {}, ">"), COLOURS
    limited = tiff(colours // 16, {281: ("H", [4095] * 3)})
    yield "TIFF RGB 12 bits in 16", limited, "has colours up to 4095 in 16 bits; convert it"
    yield "PNG RGB 16 bits", png16(colours), COLOURS
    share = np.array([[0, 0.25, 0.5], [0.75, 1, 2]], np.float32)
    said = {339: ("H", 3), 340: ("f", 0.0), 341: ("f", 1.0)}
    yield (
        "TIFF float, range told",
        tiff(share, said),
        grey(np.array([[0, 64, 128], [191, 255, 255]])),
    )
    unknown = "pixels, whose range nothing tells; convert it to 8 bits"
    yield "TIFF float", tiff(share, {339: ("H", 3)}), unknown
    yield "TIFF float, range upside down", tiff(share, said | {341: ("f", -1.0)}), unknown
    yield (
        "TIFF float, no numbers",
        tiff(np.full_like(share, np.nan), said),
        "pixels that are no numbers",
    )
    yield (
        "TIFF float, infinite",
        tiff(np.full_like(share, np.inf), said),
        "pixels that are no numbers",
    )
    yield "TIFF int32", tiff(deep.astype(np.int32), {339: ("H", 2)}), unknown
    yield "TIFF uint32", tiff(deep.astype(np.uint32), {}), unknown
    yield "TIFF int16", tiff(deep.astype(np.int16), {339: ("H", 2)}), unknown
    told = {339: ("H", 2), 340: ("h", -100), 341: ("h", 100)}
    signed = np.array([[-100, 0, 100]], np.int16)
    yield "TIFF int16, range told", tiff(signed, told), grey(np.array([[0, 128, 255]]))
    yield "TIFF int8", tiff(GREYS.astype(np.int8), {339: ("H", 2)}), "signed pixels, whose range"
    yield "PFM", b"Pf 3 2 -1.0\n" + share.tobytes(), unknown
    places, ramp = np.arange(4, dtype=np.uint8).reshape(2, 2), np.arange(256) * 257
    maps = {262: ("H", 3), 320: ("H", [*ramp, *ramp[::-1], *ramp])}
    expected = np.stack([places, 255 - places, places], -1)
    yield "TIFF palette", tiff(places, maps), expected
    small = maps | {320: ("H", [int(v) // 257 for v in maps[320][1]])}
    yield "TIFF palette of 8 bits", tiff(places, small), "has a palette of 8 bits, expected 16"
    yield "TIFF thumbnail", tiff(COLOURS, {254: ("I", 1)}), "begins with a thumbnail"
    yield (
        "TIFF, two pages",
        saved(
            Image.fromarray(COLOURS),
            "TIFF",
            save_all=True,
            append_images=[Image.new("RGB", (9, 9))],
        ),
        COLOURS,
    )
    for compression in ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "zstd", "jpeg"):
        try:
            smooth = saved(Image.fromarray(SMOOTH), "TIFF", compression=compression)
        except OSError:
            if compression == "zstd":  # Pillow's libtiff of 10.3 is built without it
                continue
            raise
        yield f"TIFF {compression}", smooth, SMOOTH
        if compression != "jpeg":
            squeezed = saved(Image.fromarray(deep), "TIFF", compression=compression)
            yield f"TIFF 16 bits {compression}", squeezed, shown
    for compression in ("group3", "group4"):
        faxed = saved(Image.fromarray(GREYS > 100), "TIFF", compression=compression)
        yield f"TIFF {compression}", faxed, grey(np.where(GREYS > 100, 255, 0))
    red, blue = (Image.new("RGB", (5, 4), colour) for colour in ((255, 0, 0), (0, 0, 255)))
    for kind in ("GIF", "PNG", "WEBP"):
        moving = saved(red, kind, save_all=True, append_images=[blue], **LOSSLESS[kind])
        yield f"{kind}, two frames", moving, np.asarray(red)
    pair = saved(red, "MPO", save_all=True, append_images=[blue], quality=100)
    yield "MPO", pair, np.asarray(red)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, colour: int, bits: int, rows: bytes, *more: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + body + chunk(b"IEND", b"")


def png16(pixels: NDArray[np.uint16]) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return png(pixels.shape[1], pixels.shape[0], 2, 16, rows)


# EXIF

BYTE, ASCII, SHORT, LONG, RATIONAL, SLONG, SRATIONAL, FLOAT, DOUBLE = 1, 2, 3, 4, 5, 9, 10, 11, 12
ORIENTATION = 0x0112


def block(*entries: tuple[int, int, int, bytes], order: str = "<", following: int = 0) -> bytes:
    """An EXIF block of these entries (tag, type, count, value), with values behind them."""
    fields, extra, base = b"", b"", 8 + 2 + 12 * len(entries) + 4
    for tag, kind, count, value in entries:
        if len(value) > 4:
            extra, value = extra + value, struct.pack(f"{order}I", base + len(extra))
        fields += struct.pack(f"{order}HHI", tag, kind, count) + value.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    end = struct.pack(f"{order}I", following)
    return head + struct.pack(f"{order}H", len(entries)) + fields + end + extra


def turn(value: int, order: str = "<") -> tuple[int, int, int, bytes]:
    return ORIENTATION, SHORT, 1, struct.pack(f"{order}H", value)


# What should not matter, beside an orientation that can be read
ODD = {
    "a signed rational over 0": (0x011A, SRATIONAL, 1, struct.pack("<ii", -1, 0)),
    "a rational over 0": (0x011A, RATIONAL, 1, struct.pack("<II", 1, 0)),
    "a negative long": (0x0100, SLONG, 1, struct.pack("<i", -7)),
    "a double for a short": (0x0128, DOUBLE, 1, struct.pack("<d", 1e300)),
    "a float that is no number": (0x0128, FLOAT, 1, struct.pack("<f", float("nan"))),
    "text for a number": (0x0128, ASCII, 4, b"two\0"),
    "text that is not UTF-8": (0x010F, ASCII, 4, b"\xff\xfe\xfd\0"),
    "a number for text": (0x010F, LONG, 1, struct.pack("<I", 1 << 31)),
    "no values": (0x0128, SHORT, 0, b""),
    "an unknown type": (0x0128, 99, 1, b"\1\2\3\4"),
    "type 0": (0x0128, 0, 1, b"\1\2\3\4"),
    "a value beyond the end": (0x010F, ASCII, 400, struct.pack("<I", 1 << 30)),
    "more values than the file": (0x010F, LONG, 1 << 30, struct.pack("<I", 8)),
    "an EXIF folder at itself": (0x8769, LONG, 1, struct.pack("<I", 8)),
    "an EXIF folder beyond the end": (0x8769, LONG, 1, struct.pack("<I", 1 << 30)),
    "an EXIF folder that is text": (0x8769, ASCII, 4, b"abc\0"),
    "GPS at a negative place": (0x8825, SLONG, 1, struct.pack("<i", -1)),
    "many resolutions": (0x011A, RATIONAL, 3, struct.pack("<6I", 1, 2, 3, 4, 5, 0)),
}


def exif() -> Iterator[tuple[str, bytes, int | None]]:
    """Blocks, and how they turn the image; None: they may be refused."""
    for value in range(1, 9):
        for order in "<>":
            yield f"orientation {value} {order}", block(turn(value, order), order=order), value
    for name, entry in ODD.items():
        yield name, block(*sorted([turn(6), entry])), 6
        yield f"{name}, upright", block(entry), 1
    for value in (0, 9, 255, 65535):
        yield f"orientation {value}", block(turn(value)), 1
    yield "orientation as long", block((ORIENTATION, LONG, 1, struct.pack("<I", 6))), 6
    yield "orientation as byte", block((ORIENTATION, BYTE, 1, b"\6")), None
    yield "orientation as text", block((ORIENTATION, ASCII, 2, b"6\0")), 1
    yield "orientation as rational", block((ORIENTATION, RATIONAL, 1, struct.pack("<II", 6, 0))), 1
    yield "orientation as double", block((ORIENTATION, DOUBLE, 1, struct.pack("<d", -6.5))), 1
    yield "several orientations", block((ORIENTATION, SHORT, 2, struct.pack("<HH", 6, 3))), None
    yield "orientation without value", block((ORIENTATION, SHORT, 0, b"")), None
    yield "orientation beyond the end", block((ORIENTATION, LONG, 9, b"\xff\xff\xff\x7f")), None
    whole = block(turn(6), (0x010F, ASCII, 8, b"camera.\0"))
    for keep in (0, 1, 4, 8, 9, 10, 15, 20):
        yield f"cut after {keep}", whole[:keep], None
    yield "no TIFF", b"hello, world" * 4, None
    yield "next folder is itself", block(turn(6), following=8), 6
    yield "next folder beyond the end", block(turn(6), following=1 << 30), 6
    yield "zeros", bytes(64), None


TURNED: dict[int, Callable[[Frame], Frame]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def with_exif() -> Iterator[Case]:
    rows = b"".join(b"\0" + row.tobytes() for row in COLOURS)
    jpeg = saved(Image.fromarray(SMOOTH), "JPEG", **LOSSY["JPEG"])
    for name, data, value in exif():
        expected = None if value is None else TURNED[value](COLOURS)
        yield f"PNG, EXIF: {name}", png(3, 4, 2, 8, rows, chunk(b"eXIf", data)), expected
        segment = b"Exif\0\0" + data
        marked = b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
        expected = None if value is None else TURNED[value](SMOOTH)
        yield f"JPEG, EXIF: {name}", jpeg[:2] + marked + jpeg[2:], expected


def turned_in_other_formats() -> Iterator[Case]:
    for kind, options in (LOSSLESS | LOSSY).items():
        if kind in ("WEBP", "TIFF", "AVIF") and available(kind):
            for value in range(1, 9):
                image = Image.Exif()
                image[ORIENTATION] = value
                data = saved(Image.fromarray(SMOOTH), kind, exif=image, **options)
                yield f"{kind}, orientation {value}", data, TURNED[value](SMOOTH)


# Damaged files, and files of other kinds


def damaged() -> Iterator[Case]:
    image = Image.fromarray(SMOOTH)
    for kind, options in (LOSSLESS | LOSSY).items():
        if available(kind):
            data = saved(image.quantize() if kind == "GIF" else image, kind, **options)
            for keep in (1, 4, 12, 33, len(data) // 2, len(data) * 3 // 4):
                yield f"{kind}, cut after {keep}", data[:keep], "not an image that can be decoded"
    body = saved(image, "BMP")
    for name, data in {
        "BMP": body[:18] + struct.pack("<ii", 60_000, 60_000) + body[26:],
        "BMP, negative": body[:18] + struct.pack("<ii", -5, 1 << 30) + body[26:],
        "PNG": png(1 << 30, 1 << 30, 2, 8, b""),
        "PPM": b"P6 99999 99999 255\n",
        "GIF": b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2L\1\0;",
        "TIFF": tiff(COLOURS, {256: ("I", 1 << 20), 257: ("I", 1 << 20)}),
        "JPEG": saved(image, "JPEG").replace(struct.pack(">HH", 24, 32), b"\xff\xff\xff\xff", 1),
    }.items():
        yield f"{name} of huge size", data, "pixels are too many|not an image that can be decoded"
    for name, data in {"PPM": b"P6 0 0 255\n", "PNG": png(0, 0, 2, 8, b"")}.items():
        yield f"{name} of no size", data, "pixels are no image|not an image that can be decoded"


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
OTHERS = {
    "empty": b"",
    "a zero": b"\0",
    "text": b"hello, world\n" * 9,
    "HTML": b"<!DOCTYPE html><html><body>404</body></html>",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'></svg>",
    "PostScript": POSTSCRIPT,
    "PDF": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n%%EOF\n",
    "XBM": b"#define x_width 8\n#define x_height 1\nstatic char x_bits[] = {0xff};\n",
    "ZIP": b"PK\3\4" + bytes(60),
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(60),
    "AppleDouble": b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(80),
    "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "ICO": saved(Image.new("RGB", (16, 16)), "ICO"),
    "TGA": saved(Image.new("RGB", (16, 16)), "TGA"),
    "PCX": saved(Image.new("RGB", (16, 16)), "PCX"),
    "SGI": saved(Image.new("RGB", (16, 16)), "SGI"),
}


def others() -> Iterator[Case]:
    for name, data in OTHERS.items():
        yield name, data, r"not an image that can be decoded: expected JPEG, PNG"


CASES = [
    case
    for group in (modes, depths, with_exif, turned_in_other_formats, damaged, others)
    for case in group()
]


# Read rightly since Pillow 13.
PILLOW = int(PIL.__version__.split(".")[0])
REFUSED_BEFORE_13 = {"TIFF YCbCr"} | {
    f"{kind}, EXIF: {damage}"
    for kind in ("PNG", "JPEG")
    for damage in ("a value beyond the end", "more values than the file")
}


@pytest.mark.parametrize(
    ("name", "data", "expected"), [pytest.param(*case, id=case[0]) for case in CASES]
)
def test_an_image_is_right_or_refused(
    tmp_path: Path, name: str, data: bytes, expected: Expected
) -> None:
    path = tmp_path / "image.jpg"  # mostly a wrong suffix
    path.write_bytes(data)
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            decode(path)
        return
    try:
        found = decode(path)
    except DataError:
        assert expected is None or (PILLOW < 13 and name in REFUSED_BEFORE_13)
        return
    assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
    if expected is not None:
        assert found.shape == expected.shape
        # Codecs round, and 16 bits are cut to 8 or rounded; nothing else may differ.
        assert np.abs(found.astype(int) - expected).max() <= 6


def test_no_program_is_started_for_postscript(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr("subprocess.Popen", lambda *given, **_: started.append(str(given)))
    monkeypatch.setattr("subprocess.check_call", lambda *given, **_: started.append(str(given)))
    for suffix in ("eps", "ps", "jpg"):
        (tmp_path / f"a.{suffix}").write_bytes(POSTSCRIPT)
        with pytest.raises(DataError, match="expected JPEG, PNG"):
            decode(tmp_path / f"a.{suffix}")
    assert started == []


def test_what_is_no_file(tmp_path: Path) -> None:
    """A pipe that nobody writes to would be waited for, for ever."""
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path, Path("/dev/zero")):
        with pytest.raises(DataError, match="expected a file"):
            decode(path)
    with (tmp_path / "long.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(DataError, match=f"expected at most {MAX_BYTES} bytes, found"):
        decode(tmp_path / "long.png")
    with pytest.raises(DataError, match="no such image: .*none.png"):
        decode(tmp_path / "none.png")
    with pytest.raises(DataError, match="null byte"):
        decode("a\0.png")


def test_pixels_are_counted_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever Pillow's own limits are, and without its warnings."""
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 100)
    (tmp_path / "a.png").write_bytes(saved(Image.fromarray(SMOOTH), "PNG"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(tmp_path / "a.png").shape == SMOOTH.shape
    (tmp_path / "a.png").write_bytes(png(20_000, 20_000, 0, 1, b""))
    with pytest.raises(DataError, match="20000 x 20000 .* too many: expected at most 100 million"):
        decode(tmp_path / "a.png")


def test_a_photograph_of_more_pixels_is_decoded_at_half_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lgvit_edge.images.pixels._MAX_PIXELS", SMOOTH.size // 3 - 1)
    path = tmp_path / "a.jpg"
    for kind, more in (
        ("JPEG", {}),
        ("MPO", {"save_all": True, "append_images": [Image.new("RGB", (32, 24))]}),
    ):
        path.write_bytes(saved(Image.fromarray(SMOOTH), kind, quality=100, exif=TURN, **more))
        half = SMOOTH.reshape(12, 2, 16, 2, 3).mean((1, 3))
        found = decode(path)
        assert found.shape == (16, 12, 3)
        assert np.abs(found - np.rot90(half, -1)).max() <= 6
    path.write_bytes(saved(Image.fromarray(SMOOTH), "PNG"))
    with pytest.raises(DataError, match="32 x 24 pixels are too many"):
        decode(path)
    big = saved(Image.fromarray(SMOOTH), "JPEG")
    path.write_bytes(big.replace(struct.pack(">HH", 24, 32), struct.pack(">HH", 15000, 15000), 1))
    with pytest.raises(DataError, match="15000 x 15000 .* many: .*, 210 million in a JPEG file"):
        decode(path)


def test_whatever_pillow_raises_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    for error in (struct.error("odd"), KeyError(274), MemoryError(), AssertionError("x")):

        def fail(*_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
        kind = type(error).__name__
        with pytest.raises(DataError, match=f"a.png is not an image .* decoded: {kind}"):
            decode(tmp_path / "a.png")


def test_pillow_images_that_never_were_files() -> None:
    """Modes that no file gives; what multiplies colours by transparency is undone."""
    rgba = np.dstack([COLOURS, np.full((4, 3), 128, np.uint8)])
    image = Image.fromarray(rgba)
    for mode in ("RGBA", "RGBX", "RGBa"):
        assert np.abs(of_pillow(image.convert(mode)).astype(int) - COLOURS).max() <= 2, mode
    la = Image.merge("LA", [Image.fromarray(GREYS), Image.new("L", (3, 2), 128)])
    assert np.abs(of_pillow(la.convert("La")).astype(int) - grey(GREYS)).max() <= 2
    saturated = Image.fromarray(COLOURS[:3]).convert("HSV")
    assert np.abs(of_pillow(saturated).astype(int) - COLOURS[:3]).max() <= 3
    muted = COLOURS[3:]  # of saturated colours, 8 bits of L*a*b* keep less
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    transform = ImageCms.buildTransform(srgb, lab, "RGB", "LAB")
    lab_image = transform.apply(Image.fromarray(muted))
    assert np.abs(of_pillow(lab_image).astype(int) - muted).max() <= 2
    for mode in ("I", "F"):
        with pytest.raises(DataError, match=f"has {mode} pixels, whose range nothing tells"):
            of_pillow(Image.new(mode, (4, 5)))
    with pytest.raises(DataError, match="0 x 5 pixels are no image"):
        of_pillow(Image.new("RGB", (0, 5)))


def test_formats_that_pillow_lacks_are_not_asked_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lgvit_edge.images import pixels

    pixels._formats.cache_clear()
    monkeypatch.setattr(pixels, "FORMATS", (*FORMATS, "NEWEST"))
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="expected JPEG, PNG"):
        decode(tmp_path / "a.png")
    pixels._formats.cache_clear()
