"""Images in the GPU's memory, on the stand-ins for CUDA and TensorRT; see ``trt_cases.py``.

Their pixels are compared with what Pillow makes of the same images on the host.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_cuda
import numpy as np
import pytest
import torch
import trt_standin
from fake_cuda import in_thread
from numpy.typing import NDArray

from lgvit_edge.errors import BackendError, DataError, UsageError
from lgvit_edge.export import build_engines
from lgvit_edge.export.tensorrt import apart
from lgvit_edge.images import weights
from lgvit_edge.images.preprocess import load_rgb, network_input
from lgvit_edge.images.spec import INTERPOLATIONS, Preprocess
from lgvit_edge.runtime import Confidence, Session, TensorRTOptions
from lgvit_edge.runtime.cuda import driver
from lgvit_edge.runtime.cuda.api import Cuda
from lgvit_edge.runtime.cuda.bindings import open_cuda
from lgvit_edge.runtime.cuda.resize import Resizer

FAKE = fake_cuda.load()
sys.path.insert(0, os.environ["TRT_FOLDER"])
TRT = trt_standin.install(
    importlib.import_module(os.environ["TRT_BINDINGS"]),
    os.environ["TRT_MODULE"],
    os.environ["TRT_VERSION"],
)
BUNDLES = Path(os.environ["TRT_BUNDLES"])
PHOTOS = Path(os.environ.get("LGVIT_EDGE_DATA", ""), "data", "imagenet-1k-samples")
RNG = np.random.default_rng(0)


def pixels(session: Session, images: list[Any], **options: Any) -> NDArray[Any]:
    """What the first pass takes of prepared images."""
    return session.prepare(images, **options).of(0)


def with_engines(name: str, folder: Path) -> Path:
    shutil.copytree(BUNDLES / name / "out", folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apart, "python_starts_python", lambda: False)
        build_engines(folder / name, library="tensorrt")
    return folder / name


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for batches of 1 to 8, with engines."""
    return with_engines("fp32", tmp_path_factory.mktemp("compiled"))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    FAKE.fake_reset()
    TRT.refuse_execution = ""
    TRT.callbacks.clear()
    driver._retained.clear()
    FAKE.cuCtxSetCurrent(None)
    yield
    FAKE.fake_fail(b"", 0, 0)
    kept = {"contexts": len(driver._retained)}  # on purpose, until the process ends
    left = {name: count for name, count in fake_cuda.counts(FAKE).items() if count}
    assert left == {name: count for name, count in kept.items() if count}, f"leaked: {left}"


class Library:
    """A library that holds images on a GPU, and works on a stream of its own.

    What it was asked for happens when somebody waits for it.
    """

    def __init__(self, device: int = 0) -> None:
        self.cuda: Cuda = open_cuda("cuda-python", device)
        self.device = device
        self.kept: list[Any] = []

    def array(self, image: NDArray[Any], stream: int | None = None) -> NDArray[Any]:
        """Return the array as it lies in device memory: for its address, shape and strides."""
        base = image.base if isinstance(image.base, np.ndarray) else image
        memory = self.cuda.allocate(base.nbytes)
        source = self.cuda.pinned(base.shape, base.dtype)
        source[...] = base
        handle = ctypes.c_void_p(self.cuda.stream if stream is None else stream)
        self.cuda.make_current()
        to, size = ctypes.c_void_p(memory), ctypes.c_size_t(base.nbytes)
        code = FAKE.cuMemcpyHtoDAsync_v2(to, ctypes.c_void_p(source.ctypes.data), size, handle)
        assert code == 0
        offset = image.__array_interface__["data"][0] - base.__array_interface__["data"][0]
        whole = (ctypes.c_char * base.nbytes).from_address(memory)
        return np.ndarray(image.shape, image.dtype, whole, offset, image.strides)

    def interface(self, image: NDArray[Any], **changes: Any) -> Interface:
        there = self.array(image)
        told: dict[str, Any] = {
            "shape": there.shape,
            "typestr": there.dtype.str,
            "data": (there.__array_interface__["data"][0], True),
            "strides": there.strides,
            "version": 3,
            "stream": self.cuda.stream,
        }
        return Interface({k: v for k, v in (told | changes).items() if v != "left out"})

    def tensor(self, image: NDArray[Any], **options: Any) -> Tensor:
        return Tensor(self, self.array(image), **options)


class Interface:
    """An array with ``__cuda_array_interface__``."""

    def __init__(self, told: Any) -> None:
        self.__cuda_array_interface__ = told


class DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_uint8 * 4),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class DLManaged(ctypes.Structure):
    _fields_ = (("tensor", DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class DLVersioned(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint32 * 2),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", DLTensor),
    )


new_capsule = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
)(("PyCapsule_New", ctypes.pythonapi))
name_of_capsule = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(
    ("PyCapsule_GetName", ctypes.pythonapi)
)


DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Tensor:
    """An array with ``__dlpack__``, which orders the streams itself, as the standard wants."""

    def __init__(
        self,
        library: Library,
        array: NDArray[Any],
        *,
        versions: tuple[int, int] | None = None,  # of the capsule; None: from before there were any
        packed: bool = False,  # tells no strides
        kind: int = 2,
        told: int = 2,  # by __dlpack_device__
        code: int = 1,
        deletes: bool = True,
        takes_version: bool = True,
        capsule: object = None,
        shape: tuple[int, ...] | None = None,  # told in the place of its own
    ) -> None:
        self.library, self.array, self.kind, self.told = library, array, kind, told
        self.versions, self.packed, self.code, self.deletes = versions, packed, code, deletes
        self.capsule, self.takes_version = capsule, takes_version
        self.shape = array.shape if shape is None else shape
        self.streams: list[int | None] = []
        self.alive = 0  # of the tensors that it gave away
        self.was_read: Callable[[], bool] | None = None
        self.deleted: list[bool] = []  # whether it had been read

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.told, self.library.device

    def __dlpack__(self, *, stream: int | None = None, **more: Any) -> object:
        if more and not self.takes_version:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        self.streams.append(stream)
        if stream is not None:
            event = ctypes.c_void_p()
            assert FAKE.cuEventCreate(ctypes.byref(event), 2) == 0
            own = ctypes.c_void_p(self.library.cuda.stream)
            assert FAKE.cuEventRecord(event, own) == 0
            assert FAKE.cuStreamWaitEvent(ctypes.c_void_p(stream), event, 0) == 0
            assert FAKE.cuEventDestroy_v2(event) == 0
        if self.capsule is not None:
            return self.capsule
        made = DLManaged() if self.versions is None else DLVersioned()
        tensor, array = made.tensor, self.array
        sizes = ctypes.c_int64 * array.ndim
        tensor.data = array.__array_interface__["data"][0] - 8
        tensor.byte_offset = 8
        tensor.device = (self.kind, self.library.device)
        tensor.ndim, tensor.dtype = array.ndim, (self.code, 8 * array.itemsize, 1, 0)
        shape = sizes(*self.shape)
        strides = sizes(*(step // array.itemsize for step in array.strides))
        tensor.shape = ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64))
        if not self.packed:
            tensor.strides = ctypes.cast(strides, ctypes.POINTER(ctypes.c_int64))
        if self.versions is not None:
            made.version = self.versions

        def delete(address: int) -> None:
            assert address == ctypes.addressof(made)
            self.alive -= 1
            if self.was_read is not None:
                self.deleted.append(self.was_read())
            array.fill(0)  # its next owner writes

        deleter = DELETER(delete)
        made.deleter = ctypes.cast(deleter, ctypes.c_void_p).value if self.deletes else None
        self.library.kept += [made, shape, strides, deleter]
        self.alive += 1
        name = b"dltensor" if self.versions is None else b"dltensor_versioned"
        self.capsule_given = new_capsule(ctypes.addressof(made), name, None)
        return self.capsule_given


@pytest.fixture
def library() -> Iterator[Library]:
    made = Library()
    yield made
    made.cuda.close()


@pytest.fixture
def session(compiled: Path) -> Iterator[Session]:
    with open_trt(compiled) as opened:
        yield opened


def open_trt(bundle: Path, device: str | None = None, **options: Any) -> Session:
    chosen = TensorRTOptions(binding="cuda-python", **options)
    return Session.open(bundle, backend="tensorrt", tensorrt=chosen, device=device)


def picture(*shape: int) -> NDArray[np.uint8]:
    return RNG.integers(0, 256, shape, np.uint8)


def layouts() -> dict[str, NDArray[np.uint8]]:
    """One picture of each shape, in every way that it may lie in memory."""
    pitched = picture(37, 64, 4)[:, :41]
    return {
        "rgb": picture(45, 61, 3),
        "rgba": picture(61, 45, 4),
        "grey": picture(33, 33),
        "grey with an axis": picture(32, 70, 1),
        "a decoder's pitch": pitched[..., :3],
        "a decoder's pitch, grey": picture(40, 64)[:, :50],
        "planes": picture(3, 50, 40).transpose(1, 2, 0),
        "mirrored": picture(40, 50, 3)[:, ::-1],
        "upside down": picture(40, 50, 3)[::-1],
        "channels reversed": picture(40, 50, 3)[..., ::-1],
        "every second": picture(80, 90, 3)[::2, ::2],
        "one row repeated": np.broadcast_to(picture(1, 50, 3), (40, 50, 3)),
        "the network's size": picture(32, 32, 3),
        "one pixel": picture(1, 1, 3),
        "a line": picture(1, 300, 3),
        "a column": picture(300, 1, 3),
    }


@pytest.mark.parametrize("name", layouts())
@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize("way", ["interface", "tensor"])
def test_a_picture_on_the_gpu_is_what_it_is_on_the_host(
    session: Session, library: Library, name: str, color: str, way: str
) -> None:
    image = layouts()[name]
    there = getattr(library, way)
    wanted = session.exit_logits([image], color=color)
    np.testing.assert_array_equal(session.exit_logits([there(image)], color=color), wanted)
    found = pixels(session, [there(image)], color=color)
    np.testing.assert_array_equal(found, pixels(session, [image], color=color))
    a, b = session.predict(there(image), color=color), session.predict(image, color=color)
    assert (a.class_index, a.exit, a.confidence) == (b.class_index, b.exit, b.confidence)


@pytest.mark.parametrize("zero_copy", [False, True])
@pytest.mark.parametrize("speculate", [False, True])
@pytest.mark.parametrize("graphs", [False, True])
def test_batches(
    compiled: Path, library: Library, zero_copy: bool, speculate: bool, graphs: bool
) -> None:
    """Of any number, of many sizes (more than are remembered), and mixed with the host's."""
    images = [picture(20 + n, 50 - n, 3) for n in range(12)]
    options = {"zero_copy": zero_copy, "speculate": speculate, "cuda_graphs": graphs}
    with open_trt(compiled, **options) as session:
        session.policy = "fixed:2"
        for some in (images, images[:3], images[::-1]):
            there = [library.interface(image) for image in some]
            wanted = session.exit_logits(some)
            np.testing.assert_array_equal(session.exit_logits(there), wanted)
            mixed = [h if n % 3 else t for n, (h, t) in enumerate(zip(some, there, strict=True))]
            np.testing.assert_array_equal(session.exit_logits(mixed), wanted)
            answers = [session.predict_batch(kind) for kind in (some, there, mixed)]
            confidences = [[r.confidence for r in results] for results in answers]
            assert confidences[0] == confidences[1] == confidences[2]


@pytest.mark.parametrize("zero_copy", [False, True])
@pytest.mark.parametrize("speculate", [False, True])
def test_each_pass_resizes_pictures_on_the_gpu(
    library: Library, tmp_path: Path, zero_copy: bool, speculate: bool
) -> None:
    """At its own size, when it begins, and only those that go on."""
    images = [picture(20 + n, 50 - n, 3) for n in range(12)]
    there = [library.interface(image) for image in images]
    with open_trt(
        with_engines("two", tmp_path), zero_copy=zero_copy, speculate=speculate
    ) as session:
        wanted = session.exit_logits(images)
        np.testing.assert_array_equal(session.exit_logits(there), wanted)
        mixed = [h if n % 3 else t for n, (h, t) in enumerate(zip(images, there, strict=True))]
        np.testing.assert_array_equal(session.exit_logits(mixed), wanted)
        for exit in (1, 5, 3, 4):
            session.policy = f"fixed:{exit}"
            a, b = session.predict(there[0]), session.predict(images[0])
            assert (a.exit, a.class_index, a.confidence) == (exit, b.class_index, b.confidence)
        scores = np.exp(wanted[:, :-1])
        middle = np.sort(scores.max(-1) / scores.sum(-1), axis=0)[7]
        session.policy = Confidence(tuple(map(float, middle)))
        answers = [session.predict_batch(kind) for kind in (images, there, mixed)]
        answers.append(list(session.stream(mixed)))
        assert {result.pass_number for result in answers[0]} == {1, 2}
        told = [[(r.exit, r.class_index) for r in results] for results in answers]
        assert told[0] == told[1] == told[2] == told[3]
        ready = session.prepare(there)
        np.testing.assert_array_equal(ready.of(1), session.prepare(images).of(1))
        base = session.timed_baseline(there[0])[0]
        np.testing.assert_array_equal(base, session.timed_baseline(images[0])[0])
        session.policy = "never"
        lent = library.tensor(images[0])  # until both passes have read it
        assert session.predict(lent).confidence == session.predict(images[0]).confidence
        assert lent.alive == 0


@pytest.mark.parametrize("zero_copy", [False, True])
def test_exits_that_the_device_decides(library: Library, tmp_path: Path, zero_copy: bool) -> None:
    images = [picture(20 + n, 50 - n, 3) for n in range(6)]
    bundle = with_engines("fixed", tmp_path)  # for one image at a time
    with open_trt(bundle, device_exit=True, zero_copy=zero_copy) as session:
        session.policy = "confidence:0.3"
        assert session.describe()["device_exit"] is True
        for image in images:
            host, there = session.predict(image), session.predict(library.tensor(image))
            assert (host.exit, host.confidence) == (there.exit, there.confidence)
            logits = [session.exit_logits([kind]) for kind in (image, library.interface(image))]
            np.testing.assert_array_equal(*logits)


def test_nothing_of_the_picture_passes_through_the_host(session: Session, library: Library) -> None:
    image = picture(40, 50, 3)
    there = library.interface(image)
    session.predict(there)  # which brings the weights for this size there
    before = FAKE.fake_copies()
    session.predict(there)
    assert FAKE.fake_copies() == before
    session.predict(image)
    assert FAKE.fake_copies() == before + 1


def test_network_input_in_float(library: Library) -> None:
    spec = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resize=40)
    check_pixels(library, list(layouts().values()), spec, 32, "float32")


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_pillow_s_pixels_for_odd_sizes(library: Library, interpolation: str, squash: bool) -> None:
    spec = Preprocess(resize=29, interpolation=interpolation, squash=squash)
    sizes = [(1, 1), (2, 301), (299, 2), (23, 23), (29, 29), (97, 41), (41, 97), (640, 480)]
    check_pixels(library, [picture(*size, 3) for size in sizes], spec, 23, "uint8")


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs the photographs of LGVIT_EDGE_DATA")
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_pillow_s_pixels_of_photographs(library: Library, interpolation: str) -> None:
    spec = Preprocess(interpolation=interpolation, mean=(0.485, 0.456, 0.406))
    photos = [load_rgb(path) for path in sorted(PHOTOS.rglob("*.jpg"))[:3]]
    assert len(photos) == 3
    for dtype in ("uint8", "float32"):
        check_pixels(library, photos, spec, 224, dtype)


def check_pixels(
    library: Library, images: list[NDArray[np.uint8]], spec: Preprocess, size: int, dtype: str
) -> None:
    """Whether a resizer gives what images become on the host, bit for bit."""
    cuda = open_cuda("cuda-python")
    found = Resizer(cuda, 0, spec, size, dtype).to_host(list(map(library.interface, images)), "rgb")
    cuda.close()
    for image, pixels in zip(images, found, strict=True):
        wanted = network_input([image], spec, size, dtype)[0]
        np.testing.assert_array_equal(pixels, wanted, f"{image.shape}")
        assert pixels.dtype == wanted.dtype


# Streams


@pytest.mark.parametrize("stream", [1, 2])
def test_default_streams_are_waited_for(session: Session, library: Library, stream: int) -> None:
    image = picture(40, 50, 3)
    there = library.array(image, stream=stream)
    told = library.interface(image).__cuda_array_interface__
    told |= {"data": (there.__array_interface__["data"][0], False), "stream": stream}
    found = session.exit_logits([Interface(told)])
    np.testing.assert_array_equal(found, session.exit_logits([image]))


def test_without_a_stream_nothing_is_waited_for(session: Session, library: Library) -> None:
    """Then the caller has waited; and so what the library has not done yet is not there."""
    image = picture(40, 50, 3)
    for left in (None, "left out"):
        there = library.interface(image, stream=left)
        assert (pixels(session, [there]) == 0xCD).all()
        library.cuda.synchronize()
        np.testing.assert_array_equal(pixels(session, [there]), pixels(session, [image]))


def test_version_2_tells_no_stream_so_all_are_waited_for(
    session: Session, library: Library
) -> None:
    image = picture(40, 50, 3)
    there = library.interface(image, version=2, stream="left out")
    np.testing.assert_array_equal(pixels(session, [there]), pixels(session, [image]))


def test_without_strides_an_array_has_no_gaps(session: Session, library: Library) -> None:
    image = picture(40, 50, 3)
    for strides in (None, "left out"):
        there = library.interface(image, strides=strides)
        np.testing.assert_array_equal(pixels(session, [there]), pixels(session, [image]))


# What is borrowed


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"versions": (1, 1)},
        {"takes_version": False},
        {"packed": True},
        {"told": 13, "kind": 13},
    ],
)
def test_tensors_are_given_back_when_they_were_read(
    session: Session, library: Library, options: dict[str, Any]
) -> None:
    image = picture(40, 50, 3)
    wanted = session.predict(image).confidence
    there = library.tensor(image, **options)
    assert session.predict(there).confidence == wanted
    assert there.alive == 0
    assert there.streams == [session.chain._cuda.stream]  # type: ignore[attr-defined]
    assert name_of_capsule(there.capsule_given).startswith(b"used_dltensor")
    tensors = [library.tensor(image, **options) for _ in range(3)]
    assert [r.confidence for r in session.predict_batch(tensors)] == [wanted] * 3
    assert [tensor.alive for tensor in tensors] == [0, 0, 0]
    pixels(session, [tensor := library.tensor(image)])
    assert tensor.alive == 0


def test_a_library_may_have_nothing_to_delete(session: Session, library: Library) -> None:
    session.predict(library.tensor(picture(40, 50, 3), deletes=False))


def test_a_tensor_is_given_back_whatever_fails(session: Session, library: Library) -> None:
    good, image = library.tensor(picture(40, 50, 3)), picture(3, 40, 50)
    with pytest.raises(DataError):
        session.predict_batch([good, bad := library.tensor(image)])
    assert (good.alive, bad.alive) == (0, 0)
    TRT.refuse_execution = "segment_0"
    with open_trt_plain(session) as other:
        chain: Any = other.chain
        good = library.tensor(picture(40, 50, 3))
        good.was_read = lambda: chain._cuda.done(chain._resizers[0]._read)
        with pytest.raises(BackendError, match="does not run"):
            other.predict(good)
    assert good.alive == 0 and good.deleted == [True]
    TRT.refuse_execution = ""
    FAKE.fake_fail(b"cuLaunchKernel", 719, 0)
    with pytest.raises(BackendError, match="cuLaunchKernel failed"):
        session.predict(good := library.tensor(picture(40, 50, 3)))
    assert good.alive == 0
    FAKE.fake_fail(b"", 0, 0)
    session.predict(good := library.tensor(picture(40, 50, 3)))
    assert good.alive == 0


def open_trt_plain(session: Session) -> Session:
    """Another session of the bundle, whose segments are not recorded."""
    failing, TRT.refuse_execution = TRT.refuse_execution, ""
    try:
        return open_trt(session._bundle.root, cuda_graphs=False)
    finally:
        TRT.refuse_execution = failing


# Streams of images, threads


def test_stream(session: Session, library: Library) -> None:
    """A source may use one array for all its images: it is read before the next is asked for."""
    images = [picture(40, 50, 3) for _ in range(12)]
    wanted = [r.confidence for r in session.predict_batch(images)]
    there = library.interface(images[0])
    address = there.__cuda_array_interface__["data"][0]
    source = library.cuda.pinned(images[0].shape, np.uint8)

    def frames() -> Iterator[Interface]:
        for image in images:
            library.cuda.synchronize()
            source[...] = image
            library.cuda.upload(address, source.ctypes.data, source.nbytes)
            yield there

    assert [r.confidence for r in session.stream(frames())] == wanted


def test_threads(session: Session, library: Library) -> None:
    images = [picture(40, 50, 3) for _ in range(6)]
    wanted = [session.predict(image).confidence for image in images]
    there = [library.interface(image) for image in images]
    library.cuda.synchronize()
    found: list[list[float]] = []
    threads = [
        threading.Thread(
            target=lambda: found.append([session.predict(i).confidence for i in there])
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 3
    assert in_thread(lambda: session.predict(there[0])).confidence == wanted[0]


def test_a_closed_session_says_so(compiled: Path, library: Library) -> None:
    session = open_trt(compiled)
    session.close()
    there = library.tensor(picture(40, 50, 3))
    for use in (session.predict, lambda image: pixels(session, [image])):
        with pytest.raises(BackendError, match="the session is closed"):
            use(there)
    assert there.alive == 0 and there.streams == []


def test_memory_does_not_grow(session: Session, library: Library) -> None:
    images = [library.tensor(picture(20 + n, 30, 3)) for n in range(30)]
    for image in images:
        session.predict(image)
    before = fake_cuda.counts(FAKE)
    for image in images:
        session.predict(image)
    assert fake_cuda.counts(FAKE) == before


# What is refused


def told(**changes: Any) -> Callable[[Library], Interface]:
    return lambda library: library.interface(picture(40, 50, 3), **changes)


def made(image: NDArray[Any], **options: Any) -> Callable[[Library], Any]:
    return lambda library: library.tensor(image, **options)


def freed(library: Library) -> Interface:
    there = library.interface(picture(40, 50, 3))
    there.__cuda_array_interface__["stream"] = None
    library.cuda.close()
    return there


def of_the_host(library: Library) -> Interface:
    image = picture(40, 50, 3)
    library.kept.append(image)
    return library.interface(image, data=(image.ctypes.data, False))


def page_locked(library: Library) -> Interface:
    array = library.cuda.pinned((40, 50, 3), np.uint8)
    return library.interface(array.copy(), data=(array.ctypes.data, False))


def raising(library: Library) -> Any:
    class Broken:
        @property
        def __cuda_array_interface__(self) -> Any:
            raise RuntimeError("the storage is gone")

    return Broken()


FAR = 2**40  # beyond whatever else there is
REFUSED = {
    "floats": (
        made(picture(40, 50, 3).astype(np.float32), code=2),
        r"float32 \[40, 50, 3\]; scale",
    ),
    "booleans": (made(picture(40, 50, 3), code=6), r"bool8 \[40, 50, 3\]; scale"),
    "signed": (told(typestr="|i1"), r"found \|i1 \[40, 50, 3\]; scale"),
    "planes": (made(picture(3, 40, 50)), r"\[3, 40, 50\]; move its .*\.permute\(1, 2, 0\)"),
    "two channels": (made(picture(40, 50, 2)), r"found uint8 \[40, 50, 2\]$"),
    "several": (made(picture(2, 40, 50, 3)), r"found uint8 \[2, 40, 50, 3\]$"),
    "empty": (told(shape=(0, 50, 3), data=(0, False)), r"found uint8 \[0, 50, 3\]"),
    "freed": (freed, "no memory of CUDA's .*: it was freed.* or a NumPy array"),
    "of the host": (of_the_host, "no memory of CUDA's .*ordinary memory of the host"),
    "page-locked": (page_locked, "page-locked memory .*; pass a NumPy array, or"),
    "too large": (
        told(shape=(FAR, 50, 3), strides=None),
        "no memory of CUDA's .*smaller than it says",
    ),
    "before its start": (told(strides=(-FAR, 3, 1)), "no memory of CUDA's"),
    "nowhere": (told(data=(0, False)), "lies at 0x0, which is no memory"),
    "closed": (told(data=None), "cannot be read: TypeError"),
    "stream 0": (told(stream=0), "the stream 0 .* 0 is ambiguous"),
    "no stream": (told(stream="main"), "the stream 'main' .*or a handle"),
    "old": (told(version=1), "has version 1 .* expected 2 or 3"),
    "new": (told(version=4), "has version 4 .* expected 2 or 3"),
    "masked": (told(mask=1), "is masked, expected an image without holes"),
    "strides": (told(strides=(3, 1)), r"cannot be read: ValueError: shape \[40, 50, 3\]"),
    "negative": (told(shape=(-1, 50, 3)), "cannot be read: ValueError"),
    "negative, by DLPack": (
        made(picture(40, 50, 3), shape=(-1, 50, 3)),
        r"found uint8 \[-1, 50, 3\]$",
    ),
    "incomplete": (told(shape="left out"), "cannot be read: KeyError: 'shape'"),
    "no dict": (lambda library: Interface(3), "cannot be read: TypeError"),
    "taken before": (made(picture(40, 50, 3), capsule=3), "gave no DLPack tensor"),
    "of another time": (made(picture(40, 50, 3), versions=(2, 0)), "gave DLPack 2.0, expected 1"),
    "of another kind": (made(picture(40, 50, 3), kind=1), "of another kind than it said"),
    "raising": (raising, "the storage is gone"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(session: Session, library: Library, case: str) -> None:
    """Once, with the cure; nothing is kept, and the next image is answered."""
    image, message = REFUSED[case]
    there = image(library)
    with pytest.raises(DataError, match=message):
        session.predict(there)
    assert getattr(there, "alive", 0) == 0
    session.predict(picture(40, 50, 3))
    if case != "freed":
        session.predict(library.interface(picture(40, 50, 3)))


def test_order_of_channels_is_checked(session: Session, library: Library) -> None:
    there = library.tensor(picture(40, 50, 3))
    with pytest.raises(UsageError, match="color must be one of rgb, bgr"):
        session.predict(there, color="gbr")
    assert there.streams == []


def test_a_destroyed_stream(session: Session, library: Library) -> None:
    other = open_cuda("cuda-python")
    there = library.interface(picture(40, 50, 3), stream=other.stream)
    other.close()
    with pytest.raises(DataError, match="cannot be waited for .*: it was destroyed"):
        session.predict(there)


@pytest.mark.parametrize("way", ["interface", "tensor"])
def test_another_gpu(compiled: Path, library: Library, way: str) -> None:
    FAKE.fake_set_driver(12060, 2)
    image = picture(40, 50, 3)
    there = getattr(library, way)(image)
    with open_trt(compiled, device="cuda:1") as session:
        message = (
            r"on cuda:0, and the session on cuda:1: copy it with \.to\('cuda:1'\).*device='cuda:0'"
        )
        with pytest.raises(DataError, match=message):
            session.predict(there if way == "tensor" else told(stream=None)(library))
        assert getattr(there, "streams", []) == []
        second = Library(1)
        found = pixels(session, [getattr(second, way)(image)])
        np.testing.assert_array_equal(found, pixels(session, [image]))
        second.cuda.close()


def test_mapped_memory_of_the_host_is_taken(session: Session, library: Library) -> None:
    """As of NVIDIA's jetson-utils, by either of its addresses."""
    image = picture(40, 50, 3)
    array, address = library.cuda.mapped(image.shape, np.uint8)
    array[...] = image
    for place in (address, array.ctypes.data):
        there = library.interface(image, data=(place, False))
        np.testing.assert_array_equal(pixels(session, [there]), pixels(session, [image]))


def test_an_older_gpu_says_what_it_lacks(compiled: Path, library: Library) -> None:
    with open_trt(compiled) as session:
        FAKE.fake_set_device(b"Fake Xavier", 7, 2)
        with pytest.raises(BackendError, match=r"cannot resize images .*since Turing .*\.cpu\(\)"):
            session.predict(there := library.tensor(picture(40, 50, 3)))
        assert there.alive == 0


def test_a_pillow_that_resizes_otherwise(
    session: Session, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its release after the last that we know, say: then pixels would differ, and no one knew."""
    weights._rows_first.cache_clear()
    monkeypatch.setattr(weights, "_RULES", (lambda height, width, size: height < width,))
    try:
        with pytest.raises(DataError, match="resizes in a way that is not known here"):
            session.predict(library.interface(picture(40, 50, 3)))
    finally:
        weights._rows_first.cache_clear()


def test_tensors_on_the_host(session: Session) -> None:
    """Beside those on the GPU; see ``test_foreign_arrays.py``."""
    image = picture(40, 50, 3)
    np.testing.assert_array_equal(
        pixels(session, [torch.from_numpy(image)]), pixels(session, [image])
    )


def test_images_on_the_gpu_of_another_machine(compiled: Path, library: Library) -> None:
    """A backend that reads the host's memory says what to do."""
    with Session.open(compiled, backend="onnxruntime") as session:
        for there in (library.tensor(picture(40, 50, 3)), library.interface(picture(40, 50, 3))):
            with pytest.raises(DataError, match=r"wanted on the host here: .*\.cpu\(\).*tensorrt"):
                session.predict(there)  # type: ignore[arg-type]
