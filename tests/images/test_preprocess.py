"""Images become the network's input: decoding, resize and crop, normalisation."""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lgvit_edge.errors import DataError, UsageError
from lgvit_edge.images.preprocess import (
    as_rgb,
    load_rgb,
    network_input,
    resize_crop,
    several,
    to_float,
)
from lgvit_edge.images.spec import Preprocess

Frame = NDArray[np.uint8]


def scene(height: int, width: int) -> Frame:
    """Gradients, waves and noise, with room below 255 and above 0 for what bicubic overshoots.

    Pillow resizes one side after the other, whichever is cheaper first, and cuts off at 0 and 255
    in between. Where a saturated edge is cut off, the order shows; elsewhere it does not.
    """
    rng = np.random.default_rng(height * 1000 + width)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([255 * x / width, 255 * y / height, 127 + 100 * np.sin(x / 7 + y / 5)], axis=-1)
    base = 50 + 0.6 * base + rng.normal(0, 8, base.shape)
    return base.clip(0, 255).astype(np.uint8)


def resize_then_crop(frame: Frame, spec: Preprocess, size: int) -> Frame:
    """As torchvision and timm do it: the whole image first, then the centre."""
    height, width = frame.shape[:2]
    if height <= width:
        out_h, out_w = spec.resize, int(spec.resize * width / height)
    else:
        out_h, out_w = int(spec.resize * height / width), spec.resize
    resampling = Image.Resampling[spec.interpolation.upper()]
    resized = np.asarray(Image.fromarray(frame).resize((out_w, out_h), resampling))
    top, left = round((out_h - size) / 2), round((out_w - size) / 2)
    return resized[top : top + size, left : left + size]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width"),
    [
        *[(97, 131), (131, 97), (64, 64), (300, 301), (301, 300), (480, 640)],
        *[(40, 73), (73, 40), (13, 200), (200, 13)],  # smaller than the crop: enlarged
        *[(72, 72), (72, 95)],  # already at the resized size
    ],
)
@pytest.mark.parametrize(("resize", "size"), [(72, 64), (73, 64), (64, 64), (71, 63)])
def test_equals_resize_then_crop_to_one_grey_level(
    height: int, width: int, interpolation: str, resize: int, size: int
) -> None:
    frame = scene(height, width)
    spec = Preprocess(resize=resize, interpolation=interpolation)
    found = resize_crop(frame, spec, size)
    expected = resize_then_crop(frame, spec, size)
    assert (found.shape, found.dtype) == ((size, size, 3), np.uint8)
    difference = np.abs(found.astype(int) - expected)
    # Two roundings may meet: rarely, one value in a thousand at most.
    assert difference.max() <= 2
    assert (difference > 1).mean() < 0.001


def test_saturated_edges_differ_in_few_places() -> None:
    frame = scene(131, 97)
    frame[40:60, 20:50] = (255, 0, 255)
    spec = Preprocess(resize=72, interpolation="bicubic")
    found = resize_crop(frame, spec, 64)
    difference = np.abs(found.astype(int) - resize_then_crop(frame, spec, 64))
    assert (difference > 1).mean() < 0.02


def test_nearest_picks_pixels_of_the_image() -> None:
    frame = scene(97, 131)
    spec = Preprocess(resize=72, interpolation="nearest")
    found = resize_crop(frame, spec, 64)
    known = {tuple(p) for p in frame.reshape(-1, 3)}
    assert {tuple(p) for p in found.reshape(-1, 3)} <= known
    assert (found == resize_then_crop(frame, spec, 64)).all(axis=-1).mean() > 0.95


def test_the_crop_is_the_centre() -> None:
    frame = np.zeros((100, 300, 3), np.uint8)
    frame[:, 100:200] = 200
    found = resize_crop(frame, Preprocess(resize=100), 100)
    assert found[:, 2:-2].min() == 200
    tall = resize_crop(frame.transpose(1, 0, 2), Preprocess(resize=100), 100)
    assert (tall == found.transpose(1, 0, 2)).all()


def test_a_frame_of_the_right_size_is_not_touched() -> None:
    frame = scene(32, 32)
    assert resize_crop(frame, Preprocess(resize=32), 32) is frame
    # Of the right size, but to be enlarged first.
    assert resize_crop(frame, Preprocess(resize=36), 32) is not frame


def test_views_of_a_frame_are_read_as_they_look() -> None:
    frame = scene(90, 70)
    spec = Preprocess(resize=40)
    view = frame[::-1, ::2, ::-1]
    assert (resize_crop(view, spec, 32) == resize_crop(view.copy(), spec, 32)).all()


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 5000, 3), (5000, 1, 3), (2, 3, 3)])
def test_extreme_shapes(shape: tuple[int, int, int]) -> None:
    found = resize_crop(np.full(shape, 77, np.uint8), Preprocess(resize=36), 32)
    assert found.shape == (32, 32, 3)
    assert (found == 77).all()


def test_every_small_size_stays_inside_the_frame() -> None:
    """The box mapped back must never leave the image, however the sides are rounded."""
    spec = Preprocess(resize=19)
    for height in range(1, 40):
        for width in range(1, 40):
            frame = np.full((height, width, 3), 9, np.uint8)
            assert (resize_crop(frame, spec, 17) == 9).all()


def test_to_float_normalises_each_channel() -> None:
    images = np.zeros((2, 4, 5, 3), np.uint8)
    images[1] = 255
    images[0, 1, 2] = (51, 102, 204)
    spec = Preprocess(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    found = to_float(images, spec)
    assert (found.shape, found.dtype) == ((2, 3, 4, 5), np.float32)
    assert found.flags.c_contiguous
    expected = [(0.2 - 0.1) / 0.5, (0.4 - 0.2) / 0.25, (0.8 - 0.3) / 2.0]
    np.testing.assert_allclose(found[0, :, 1, 2], expected, rtol=1e-5)
    np.testing.assert_allclose(found[1, :, 0, 0], [1.8, 3.2, 0.35], rtol=1e-5)
    np.testing.assert_allclose(found[0, :, 0, 0], [-0.2, -0.8, -0.15], rtol=1e-5)


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_colours_come_back(tmp_path: Path) -> None:
    frame = scene(20, 31)
    for suffix in ("png", "bmp", "ppm", "tiff"):
        found = load_rgb(saved(tmp_path / f"a.{suffix}", Image.fromarray(frame)))
        assert found.dtype == np.uint8
        assert (found == frame).all()
    found = load_rgb(str(saved(tmp_path / "a.jpg", Image.fromarray(frame[:, :, :1].repeat(3, 2)))))
    assert found.shape == frame.shape


def test_images_of_other_modes(tmp_path: Path) -> None:
    frame = scene(20, 31)
    grey = frame[:, :, 0]
    rgb = Image.fromarray(frame)
    cases = {
        "grey": (Image.fromarray(grey), grey[..., None].repeat(3, axis=2)),
        "bits": (Image.fromarray(grey > 127), np.where(grey > 127, 255, 0)[..., None]),
        "alpha": (Image.fromarray(np.dstack([frame, grey])), frame),
        "grey_alpha": (Image.merge("LA", [Image.fromarray(grey)] * 2), grey[..., None]),
    }
    for name, (image, expected) in cases.items():
        found = load_rgb(saved(tmp_path / f"{name}.png", image))
        assert found.shape == (20, 31, 3)
        assert (found == expected).all(), name
    palette = rgb.quantize(16)
    found = load_rgb(saved(tmp_path / "palette.png", palette))
    assert (found == np.asarray(palette.convert("RGB"))).all()
    found = load_rgb(saved(tmp_path / "cmyk.jpg", rgb.convert("CMYK"), quality=95))
    assert found.shape == (20, 31, 3)
    assert abs(float(found.mean()) - float(frame.mean())) < 4


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
def test_a_palette_with_transparency(tmp_path: Path) -> None:
    palette = Image.fromarray(scene(20, 31)).quantize(16)
    path = saved(tmp_path / "palette.png", palette, transparency=bytes(range(0, 256, 16)))
    assert (load_rgb(path) == np.asarray(palette.convert("RGB"))).all()


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path: Path, suffix: str) -> None:
    grey = np.linspace(0, 65535, 20 * 31).reshape(20, 31).astype(np.uint16)
    found = load_rgb(saved(tmp_path / f"deep.{suffix}", Image.fromarray(grey)))
    assert found.shape == (20, 31, 3)
    assert np.abs(found[..., 0].astype(int) - grey // 256).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    frame = scene(20, 31)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "turned.png", Image.fromarray(frame), exif=exif)
    flipped = frame.transpose(1, 0, 2)
    plain = [frame, frame[:, ::-1], frame[::-1, ::-1], frame[::-1]]
    turned = [flipped, np.rot90(frame, -1), flipped[::-1, ::-1], np.rot90(frame, 1)]
    upright = [*plain, *turned][orientation - 1]
    assert load_rgb(path).tolist() == upright.tolist()
    with Image.open(path) as image:
        assert as_rgb(image).tolist() == upright.tolist()


def test_files_that_are_no_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such image: .*missing\.png"):
        load_rgb(tmp_path / "missing.png")
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>"
    contents = {"text.png": b"not an image", "empty.png": b"", "zeros.jpg": bytes(1000)}
    for name, content in (contents | {"code.svg": svg}).items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name} is not an image that can be decoded"):
            load_rgb(tmp_path / name)
    with pytest.raises(DataError, match="is not an image that can be decoded"):
        load_rgb(tmp_path)


def encoded(kind: str, *shape: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(scene(*shape)).save(buffer, kind)
    return buffer.getvalue()


formats = pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "tiff", "webp", "ppm"])


@formats
@pytest.mark.filterwarnings("ignore")  # Pillow's, about metadata it cannot read
def test_truncated_images(tmp_path: Path, kind: str) -> None:
    data, path = encoded(kind, 40, 51), tmp_path / f"cut.{kind}"
    for keep in (1, 10, 30, len(data) // 2):
        path.write_bytes(data[:keep])
        with pytest.raises(DataError, match=rf"cut\.{kind} is not an image that can be decoded"):
            load_rgb(path)


@formats
@pytest.mark.filterwarnings("ignore")  # Pillow's, about metadata it cannot read
def test_damaged_images_decode_or_are_refused(tmp_path: Path, kind: str) -> None:
    data = np.frombuffer(encoded(kind, 20, 31), np.uint8)
    rng, path = np.random.default_rng(0), tmp_path / f"damaged.{kind}"
    for _ in range(150):
        damaged = data.copy()
        where = rng.integers(0, min(len(data), 400), 3)
        damaged[where] = rng.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        try:
            found = load_rgb(path)
        except DataError:
            continue
        assert found.dtype == np.uint8 and found.ndim == 3


def bmp_header(width: int, height: int) -> bytes:
    """A BMP of this size with no pixels: what a decompression bomb looks like from outside."""
    info = struct.pack("<IIIHH24x", 40, width, height, 1, 24)
    return b"BM" + struct.pack("<I4xI", 54 + len(info), 54) + info


@pytest.mark.parametrize("side", [9_800, 10_001, 13_000, 60_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_images_far_too_large_are_refused_before_decoding(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.bmp").write_bytes(bmp_header(side, side))
    with pytest.raises(DataError, match="pixels are too many|not an image that can be decoded"):
        load_rgb(tmp_path / "bomb.bmp")


def test_more_pixels_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lgvit_edge.images.pixels._MAX_PIXELS", 100)
    load_rgb(saved(tmp_path / "a.png", Image.new("RGB", (10, 10))))
    with pytest.raises(DataError, match=r"b\.png: 10 x 11 pixels are too many"):
        load_rgb(saved(tmp_path / "b.png", Image.new("RGB", (10, 11))))


def test_what_people_have_becomes_rgb(tmp_path: Path) -> None:
    """The same answer whether an image comes as a file, a Pillow image or an array."""
    frame = scene(20, 31)
    assert as_rgb(frame) is frame and as_rgb(frame[:, ::-1]).shape == (20, 31, 3)
    grey, alpha = frame[:, :, 0], frame[:, :, 1]
    see_through = np.dstack([frame, alpha])
    for array, expected in (
        (grey, grey[..., None].repeat(3, axis=2)),
        (grey[..., None], grey[..., None].repeat(3, axis=2)),
        (see_through, frame),
        (frame, frame),
    ):
        assert as_rgb(array).tolist() == expected.tolist()
        pillow = Image.fromarray(array.squeeze())
        path = saved(tmp_path / "image.png", pillow)
        for other in (pillow, path, str(path), Image.open(path)):
            assert as_rgb(other).tolist() == expected.tolist()


def test_arrays_are_read_while_another_thread_imports_pillow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then the module is there, and has nothing in it yet."""
    monkeypatch.setitem(sys.modules, "PIL.Image", ModuleType("PIL.Image"))
    assert len(several(np.zeros((2, 4, 5, 3), np.uint8))) == 2
    with pytest.raises(DataError, match="found object"):
        as_rgb(object())  # type: ignore[arg-type]


def test_frames_of_opencv_are_bgr() -> None:
    frame = scene(6, 7)
    bgr = np.ascontiguousarray(frame[..., ::-1])
    assert as_rgb(bgr, "bgr").tolist() == frame.tolist()
    alpha = np.dstack([bgr, frame[..., 0]])
    assert as_rgb(alpha, "bgr").tolist() == frame.tolist()
    assert as_rgb(frame[..., 0], "bgr").tolist() == as_rgb(frame[..., 0]).tolist()
    # Files and Pillow images say themselves what their channels are.
    assert as_rgb(Image.fromarray(frame), "bgr").tolist() == frame.tolist()
    spec = Preprocess(resize=8)
    found = network_input([bgr], spec, 8, "uint8", "bgr")
    assert found.tolist() == network_input([frame], spec, 8, "uint8").tolist()
    with pytest.raises(UsageError, match="color must be one of rgb, bgr, found 'BGR'"):
        as_rgb(frame, "BGR")


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (None, "NoneType"),
        *[([[[1, 2, 3]]], "list"), (b"cat.jpg", "bytes")],
        *[
            (np.zeros(shape, dtype), rf"{dtype} \[{', '.join(map(str, shape))}\]")
            for dtype, shapes in (
                *(("float32", [(4, 5, 3)]), ("int8", [(4, 5, 3)]), ("uint16", [(4, 5)])),
                ("uint8", [(4, 5, 2), (3, 4, 5), (1, 4, 5, 3), (0, 5, 3), (4, 0), (4,)]),
            )
            for shape in shapes
        ],
    ],
)
def test_images_that_are_refused(image: Any, found: str) -> None:
    accepted = r"uint8 array \[H, W, 3\], .*the path of a file, or a Pillow image"
    with pytest.raises(DataError, match=f"an image must be a {accepted}; found {found}"):
        as_rgb(image)


@pytest.mark.parametrize("dtype", ["float32", "uint16", "int64", "bool"])
def test_arrays_of_other_types_are_told_what_to_do(dtype: str) -> None:
    cure = r"scale its values to 0\.\.255, then convert it with \.astype\(np\.uint8\)"
    with pytest.raises(DataError, match=rf"found {dtype} \[4, 5, 3\]; {cure}"):
        network_input([np.zeros((4, 5, 3), dtype)], Preprocess(resize=8), 8, "uint8")


@pytest.mark.parametrize("images", ["cat.jpg", Path("cat.jpg"), scene(8, 8), scene(8, 8)[..., 0]])
def test_one_image_is_not_several(images: Any) -> None:
    """Its rows would pass for grey images."""
    with pytest.raises(DataError, match=r"expected several images, such as \[image\], found"):
        network_input(images, Preprocess(resize=8), 8, "uint8")
    with pytest.raises(DataError, match="expected several images"):
        network_input(Image.new("RGB", (8, 8)), Preprocess(resize=8), 8, "uint8")  # type: ignore[arg-type]
