"""What a ``Cuda`` must do, on the stand-in for the driver; ``test_cuda.py`` starts this file."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_cuda
import numpy as np
import pytest
from fake_cuda import captured, counts, roundtrip
from numpy.typing import NDArray

from lgvit_edge.errors import BackendError
from lgvit_edge.machine.gpu import Gpu, find_gpus
from lgvit_edge.machine.jetson import detect
from lgvit_edge.policies.scores import ENTROPY, PROBABILITY, Measure
from lgvit_edge.runtime.backends import device_exit
from lgvit_edge.runtime.cuda.api import Cuda
from lgvit_edge.runtime.cuda.bindings import open_cuda

FAKE = fake_cuda.load()
BINDING = os.environ["CUDA_BINDING"]
OUT_OF_MEMORY, LAUNCH_FAILED, UNHEARD_OF = 2, 719, 12345


@pytest.fixture
def cuda() -> Iterator[Cuda]:
    FAKE.fake_reset()
    opened = open_cuda(BINDING)
    yield opened
    opened.close()
    assert not any(counts(FAKE).values()), "something leaked"


def fail(name: str, code: int, after: int = 0) -> None:
    FAKE.fake_fail(name.encode(), code, after)


def test_description(cuda: Cuda) -> None:
    assert cuda.name == BINDING
    assert cuda.device == Gpu("Fake Orin", 8, "8.7", "12.6", 8 * 2**30, False)
    assert [cuda.device] == find_gpus()
    assert isinstance(cuda.stream, int) and cuda.stream > 2**32


def test_a_jetson_in_a_container_is_known_by_its_driver(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its files are not there. Engines are compared by the driver's name, so they fit both."""
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert detect(tmp_path) is None  # a card in an ARM server
    FAKE.fake_set_integrated(1)
    board = detect(tmp_path)
    assert board is not None and board.model is None and board.jetpack is None
    assert find_gpus()[0].name == "Fake Orin" and find_gpus()[0].integrated
    FAKE.fake_set_device(b"NVIDIA GB10", 12, 1)
    assert detect(tmp_path) is None  # DGX Spark
    FAKE.fake_set_device(b"NVIDIA Thor", 11, 0)
    assert detect(tmp_path) is not None
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert detect(tmp_path) is None


def test_memory(cuda: Cuda) -> None:
    before = cuda.free_memory()
    addresses = [cuda.allocate(size) for size in (1, 1000, 0)]
    assert all(address % 256 == 0 for address in addresses)
    assert before - cuda.free_memory() == 256 + 1024 + 256
    array = cuda.pinned((2, 3), np.float16)
    assert (array.shape, array.dtype, array.any()) == ((2, 3), np.float16, False)
    assert array.flags.c_contiguous and array.flags.writeable
    assert cuda.pinned((0, 3), np.uint8).shape == (0, 3)
    assert counts(FAKE)["pinned"] == 2


def test_mapped_memory_has_an_address_on_the_device(cuda: Cuda) -> None:
    array, address = cuda.mapped((2, 3), np.float32)
    assert (array.shape, array.dtype, array.any()) == ((2, 3), np.float32, False)
    assert address not in (0, array.ctypes.data) and address % 256 == 0
    assert FAKE.fake_reaches(ctypes.c_void_p(address), array.nbytes)
    assert not FAKE.fake_reaches(ctypes.c_void_p(array.ctypes.data), array.nbytes)
    other = cuda.allocate(array.nbytes)
    array[:] = np.arange(6).reshape(2, 3)
    cuda.move(other, address, array.nbytes)
    cuda.synchronize()
    array[:] = 0
    cuda.move(address, other, array.nbytes)
    cuda.synchronize()
    np.testing.assert_array_equal(array, np.arange(6).reshape(2, 3))
    assert counts(FAKE)["pinned"] == 1
    fail("cuMemHostAlloc", OUT_OF_MEMORY)
    with pytest.raises(BackendError, match="cuMemHostAlloc failed: .*of page-locked memory"):
        cuda.mapped((2, 3), np.float32)


def test_copies_are_queued(cuda: Cuda) -> None:
    source, target, queue = roundtrip(cuda)
    source[:] = np.arange(6).reshape(2, 3)
    queue()
    assert not target.any()
    cuda.synchronize()
    np.testing.assert_array_equal(target, source)


@pytest.mark.parametrize("way", ["spin", "block", "hybrid"])
def test_waiting_for_an_event(cuda: Cuda, way: str) -> None:
    source, target, queue = roundtrip(cuda)
    event = cuda.event(blocking=way == "block")
    assert cuda.done(event)  # never recorded
    for value in (7, 8):
        source[:] = value
        queue()
        cuda.record(event)
        later = cuda.pinned((1,), np.uint8)
        cuda.download(later.ctypes.data, cuda.allocate(1), 1)
        assert way == "block" or not cuda.done(event)
        assert (target != value).all()
        if way == "spin":
            while not cuda.done(event):
                pass
        else:
            cuda.wait(event)
        assert (target == value).all() and cuda.done(event)
        assert later[0] == 0  # it waits for no more than what came before
    cuda.synchronize()
    assert later[0] == 0xCD


def test_events_are_told_apart(cuda: Cuda) -> None:
    first, second = cuda.event(blocking=False), cuda.event(blocking=True)
    cuda.record(first)
    cuda.wait(first)
    cuda.record(second)
    assert cuda.done(first) and not cuda.done(second)


def test_graph(cuda: Cuda) -> None:
    source, target, queue = roundtrip(cuda)
    graph = captured(cuda, queue)
    cuda.synchronize()
    assert not target.any()  # captured, not run
    for value in (1, 2):
        source[:] = value
        cuda.launch(graph)
        assert (target != value).all()
        cuda.synchronize()
        assert (target == value).all()
    assert counts(FAKE)["graphs"] == 0
    assert FAKE.fake_late_uploads() == 0  # it was on the device before it was launched


def test_failed_capture_leaves_the_stream_usable(cuda: Cuda) -> None:
    source, target, queue = roundtrip(cuda)
    cuda.begin_capture()
    queue()
    with pytest.raises(BackendError, match=r"cuStreamSynchronize failed: .*not permitted"):
        cuda.synchronize()
    with pytest.raises(BackendError, match="cuStreamEndCapture failed: .*CAPTURE_INVALIDATED"):
        cuda.end_capture()
    with pytest.raises(BackendError, match="cuStreamEndCapture failed: CUDA_ERROR_ILLEGAL_STATE"):
        cuda.end_capture()
    source[:] = 3
    queue()
    cuda.synchronize()
    assert (target == 3).all()
    source[:] = 4
    cuda.launch(captured(cuda, queue))
    cuda.synchronize()
    assert (target == 4).all()


def test_graph_that_cannot_be_instantiated(cuda: Cuda) -> None:
    fail("cuGraphInstantiate", UNHEARD_OF)
    with pytest.raises(BackendError, match="CUDA: cuGraphInstantiate failed: .*12345"):
        captured(cuda, lambda: None)
    assert counts(FAKE)["graphs"] == 0
    cuda.synchronize()


def test_out_of_memory(cuda: Cuda) -> None:
    FAKE.fake_set_memory(5 * 2**20)
    cuda.allocate(2 * 2**20)
    with pytest.raises(BackendError) as caught:
        cuda.allocate(4 * 2**20)
    text = str(caught.value)
    assert text.startswith("CUDA: cuMemAlloc failed: CUDA_ERROR_OUT_OF_MEMORY (out of memory")
    assert "expected 4.0 MB, free on the device 3.0 MB" in text
    assert "close other programs or use a smaller --batch" in text
    fail("cuMemHostAlloc", OUT_OF_MEMORY)
    with pytest.raises(BackendError, match="cuMemHostAlloc failed: .*1.0 MB of page-locked memory"):
        cuda.pinned((2**20,), np.uint8)
    cuda.allocate(2**20)  # it goes on


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("cuMemAlloc", lambda cuda: cuda.allocate(1)),
        ("cuMemHostAlloc", lambda cuda: cuda.pinned((1,), np.uint8)),
        ("cuMemHostGetDevicePointer", lambda cuda: cuda.mapped((1,), np.uint8)),
        ("cuGraphUpload", lambda cuda: captured(cuda, lambda: None)),
        ("cuMemcpyHtoDAsync", lambda cuda: roundtrip(cuda)[2]()),
        ("cuMemcpyDtoDAsync", lambda cuda: roundtrip(cuda)[2]()),
        ("cuMemcpyDtoHAsync", lambda cuda: roundtrip(cuda)[2]()),
        ("cuEventCreate", lambda cuda: cuda.event(blocking=False)),
        ("cuEventRecord", lambda cuda: cuda.record(cuda.event(blocking=False))),
        ("cuEventQuery", lambda cuda: cuda.done(cuda.event(blocking=False))),
        ("cuEventSynchronize", lambda cuda: cuda.wait(cuda.event(blocking=False))),
        ("cuStreamSynchronize", lambda cuda: cuda.synchronize()),
        ("cuStreamBeginCapture", lambda cuda: cuda.begin_capture()),
        ("cuGraphLaunch", lambda cuda: cuda.launch(captured(cuda, lambda: None))),
        ("cuMemGetInfo", lambda cuda: cuda.free_memory()),
        ("cuCtxSetCurrent", lambda cuda: cuda.synchronize()),
        ("cuCtxSynchronize", lambda cuda: cuda.wait_for_all()),
        ("cuStreamWaitEvent", lambda cuda: cuda.follow(1)),
    ],
)
def test_refusal_names_the_call(cuda: Cuda, name: str, use: Callable[[Cuda], Any]) -> None:
    fail(name, LAUNCH_FAILED)
    with pytest.raises(BackendError, match=f"CUDA: {name} failed: .+") as caught:
        use(cuda)
    assert "--batch" not in str(caught.value)
    fail("", 0)


@pytest.mark.parametrize("way", ["handle", "legacy default", "thread's default", "all"])
def test_following_another_stream(cuda: Cuda, way: str) -> None:
    """What it was asked for before is there; what it is asked for later is not waited for."""
    other = open_cuda(BINDING)
    stream = {"legacy default": 1, "thread's default": 2}.get(way, other.stream)
    source, target = cuda.pinned((1,), np.uint8), cuda.pinned((1,), np.uint8)
    memory = cuda.allocate(1)

    def send(value: int) -> None:
        source[0] = value
        addresses = ctypes.c_void_p(memory), ctypes.c_void_p(source.ctypes.data)
        code = FAKE.cuMemcpyHtoDAsync_v2(*addresses, ctypes.c_size_t(1), ctypes.c_void_p(stream))
        assert code == 0

    for value in (1, 2):
        send(value)
        if way == "all":
            cuda.wait_for_all()
        else:
            cuda.follow(stream)
        cuda.download(target.ctypes.data, memory, 1)
        cuda.synchronize()
        assert target[0] == value
    send(3)
    cuda.download(target.ctypes.data, memory, 1)
    cuda.synchronize()
    assert target[0] == 2
    other.close()


def test_whose_memory_an_address_is(cuda: Cuda) -> None:
    FAKE.fake_set_driver(12060, 2)
    memory, second = cuda.allocate(16), open_cuda(BINDING, 1)
    theirs = second.allocate(16)
    array, address = cuda.mapped((16,), np.uint8)
    plain = cuda.pinned((16,), np.uint8).ctypes.data
    assert [cuda.home(a) for a in (memory, memory + 15, theirs)] == [0, 0, 1]
    assert [cuda.home(a) for a in (address, array.ctypes.data, plain)] == [None] * 3
    assert cuda.reach(memory + 3) == memory + 3
    assert cuda.reach(array.ctypes.data + 3) == cuda.reach(address + 3) == address + 3
    for use, wrong in ((cuda.reach, theirs), (cuda.reach, plain), (cuda.home, id(cuda))):
        with pytest.raises(BackendError, match="cuPointerGetAttribute failed: .*invalid argument"):
            use(wrong)
    second.close()


def test_copy_from_memory_that_is_not_page_locked(cuda: Cuda) -> None:
    address = cuda.allocate(16)
    with pytest.raises(BackendError, match=r"cuMemcpyHtoDAsync failed: .*invalid argument"):
        cuda.upload(address, np.zeros(16, np.uint8).ctypes.data, 16)


# Kernels, and graphs with conditions.


def decision(
    cuda: Cuda, values: NDArray[np.float32], rule: tuple[float, float, int]
) -> tuple[bool, NDArray[np.float32]]:
    """What ``decide_exit`` does with these logits: whether its branch ran, and its copy of them."""
    source, target, queue = roundtrip(cuda)
    source[:], target[:] = 1, 0
    logits, address = cuda.mapped((len(values),), np.float32)
    logits[:] = values
    copy, copy_address = cuda.mapped((len(values),), np.float32)
    rules, rule_address = cuda.mapped((1,), device_exit._RULE)
    rules[0] = (*rule, 0)
    answer, answer_address = cuda.mapped((1,), device_exit._ANSWER)
    state = cuda.pinned((2,), np.uint32)
    state_address = cuda.allocate(8)
    cuda.upload(state_address, state.ctypes.data, 8)
    exit = device_exit._Exit(
        **{"logits": address, "copy": copy_address, "rule": rule_address, "state": state_address},
        **{"answer": answer_address, "classes": len(values), "first": 1},
    )
    parts = cuda.graph_in_parts()
    exit.next = parts.condition()
    cuda.begin_capture()
    queue()
    branch = cuda.end_capture()
    parts.add_kernel(cuda.kernel("exit", "decide_exit"), (1, 1, 1), (128, 1, 1), exit)
    parts.add_if(exit.next, branch)
    cuda.discard(branch)
    graph = cuda.runnable(parts.graph)
    for launch in (1, 2):
        target[:] = 0
        cuda.launch(graph)
        assert answer["launch"][0] == launch - 1  # not yet
        cuda.synchronize()
        assert answer["launch"][0] == launch
        assert bool(target.all()) is bool(answer["goes_on"][0])
    return bool(target.all()), copy


@pytest.mark.parametrize("classes", [1, 2, 127, 128, 129, 1000])
@pytest.mark.parametrize("measure", [PROBABILITY, ENTROPY], ids=lambda measure: measure.name)
def test_the_kernel_measures_as_the_host_does(cuda: Cuda, classes: int, measure: Measure) -> None:
    values = np.random.default_rng(classes).normal(0, 4, classes).astype(np.float32)
    for scale in (1.0, 0.25):
        number = float(measure.of(values[None] * np.float32(scale))[0])
        for aside in (-1e-5, 1e-5):
            rule = (number + aside, scale, int(measure.low_is_sure))
            goes_on, copy = decision(cuda, values, rule)
            assert goes_on is ((aside > 0) is not measure.low_is_sure)
            assert np.array_equal(copy, values)


def test_logits_far_apart_give_no_nan(cuda: Cuda) -> None:
    values = np.array([1e4, -1e4, 0, 9e3], np.float32)
    assert decision(cuda, values, (0.99, 1.0, 0))[0] is False
    assert decision(cuda, values, (1e-6, 1.0, 1))[0] is False


def test_a_kernel_the_driver_does_not_take(cuda: Cuda) -> None:
    FAKE.fake_set_device(b"Fake Pascal", 6, 1)
    with pytest.raises(BackendError, match="cuModuleLoadData failed: .*NO_BINARY_FOR_GPU"):
        cuda.kernel("exit", "decide_exit")
    FAKE.fake_set_device(b"Fake Ada", 8, 9)
    FAKE.fake_set_driver(11070, 1)
    with pytest.raises(BackendError, match="cuModuleLoadData failed: .*UNSUPPORTED_PTX_VERSION"):
        cuda.kernel("exit", "decide_exit")
    FAKE.fake_set_driver(12060, 1)
    with pytest.raises(BackendError, match="cuModuleGetFunction failed: .*NOT_FOUND"):
        cuda.kernel("exit", "decide")


def test_a_kernel_sees_no_memory_that_is_the_hosts(cuda: Cuda) -> None:
    logits = cuda.pinned((4,), np.float32)
    exit = device_exit._Exit(logits=logits.ctypes.data, classes=4)
    cuda.run(cuda.kernel("exit", "decide_exit"), (1, 1, 1), (128, 1, 1), exit)
    with pytest.raises(BackendError, match="ILLEGAL_ADDRESS"):
        cuda.synchronize()
    FAKE.fake_reset()  # after such a fault nothing can be freed


def test_a_branch_may_hold_graphs_of_what_it_may_hold(cuda: Cuda) -> None:
    source, target, queue = roundtrip(cuda)
    inner = cuda.graph_in_parts()
    cuda.begin_capture()
    queue()
    copies = cuda.end_capture()
    inner.add_graph(copies)
    outer = cuda.graph_in_parts()
    outer.add_if(outer.condition(), inner.graph)
    event = cuda.event(blocking=False)
    cuda.begin_capture()
    cuda.record(event)
    with_event = cuda.end_capture()
    inner.add_graph(with_event)
    with pytest.raises(BackendError, match="may hold kernel, copy.*, found event record"):
        outer.add_if(outer.condition(), inner.graph)
    for graph in (copies, with_event, inner.graph, outer.graph):
        cuda.discard(graph)
