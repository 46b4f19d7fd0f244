"""Opening, closing and threads, on the stand-in for the driver; ``test_cuda.py`` starts this."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

import fake_cuda
import numpy as np
import pytest
from fake_cuda import captured, counts, current_context, in_thread, roundtrip

from lgvit_edge.errors import BackendError
from lgvit_edge.runtime.cuda.api import Cuda
from lgvit_edge.runtime.cuda.bindings import open_cuda

FAKE = fake_cuda.load()
BINDING = os.environ["CUDA_BINDING"]
OUT_OF_MEMORY, LAUNCH_FAILED = 2, 719


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    FAKE.fake_reset()
    yield
    FAKE.cuCtxSetCurrent(None)
    assert not any(counts(FAKE).values()), "something leaked"


@pytest.fixture
def cuda() -> Iterator[Cuda]:
    opened = open_cuda(BINDING)
    yield opened
    opened.close()


def test_other_device() -> None:
    FAKE.fake_set_device(b"Fake RTX", 12, 0)
    FAKE.fake_set_driver(13010, 2)
    cuda = open_cuda(BINDING, 1)
    assert (cuda.device.compute_capability, cuda.device.driver) == ("12.0", "13.1")
    second = current_context(FAKE)
    cuda.close()
    cuda = open_cuda(BINDING)
    assert current_context(FAKE) != second
    cuda.close()


def test_second_thread(cuda: Cuda) -> None:
    source, target, queue = roundtrip(cuda)
    event = cuda.event(blocking=False)

    def work() -> int | None:
        source[:] = 5
        queue()
        cuda.record(event)
        cuda.wait(event)
        cuda.allocate(1)
        cuda.pinned((1,), np.uint8)
        cuda.launch(captured(cuda, queue))
        cuda.record(cuda.event(blocking=True))
        return current_context(FAKE)

    assert in_thread(work) == current_context(FAKE) is not None
    cuda.synchronize()
    assert (target == 5).all()


def test_another_context_does_not_disturb(cuda: Cuda) -> None:
    ours = current_context(FAKE)
    _, _, queue = roundtrip(cuda)
    FAKE.cuCtxSetCurrent(ctypes.c_void_p(0xABC0))
    queue()
    assert current_context(FAKE) == ours


@pytest.mark.skipif(BINDING != "pycuda", reason="pycuda alone keeps a stack of contexts")
def test_contexts_on_the_stack_of_pycuda() -> None:
    FAKE.fake_set_driver(12060, 2)
    pycuda = pytest.importorskip("pycuda.driver")
    pycuda.init()
    theirs = pycuda.Device(1).retain_primary_context()
    theirs.push()
    cuda = open_cuda(BINDING)
    ours = current_context(FAKE)
    assert ours != theirs.handle
    source, target, queue = roundtrip(cuda)
    source[:] = 2
    assert current_context(FAKE) == ours
    queue()
    cuda.wait(cuda.event(blocking=False))
    cuda.synchronize()
    assert (target == 2).all()
    cuda.close()
    assert current_context(FAKE) == theirs.handle
    memory = pycuda.mem_alloc(1)
    memory.free()
    theirs.pop()
    assert current_context(FAKE) is None
    theirs.detach()
    FAKE.cuCtxSetCurrent(None)


def test_close_in_a_second_thread() -> None:
    cuda = open_cuda(BINDING)
    cuda.event(blocking=False)
    captured(cuda, roundtrip(cuda)[2])
    in_thread(cuda.close)


def test_close_waits_frees_and_gives_the_thread_back() -> None:
    FAKE.cuInit(0)
    FAKE.cuCtxSetCurrent(ctypes.c_void_p(0xABC0))
    cuda = open_cuda(BINDING)
    ran: list[float] = []
    source, target, queue = roundtrip(cuda)
    look = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: ran.append(float(target[0, 0])))
    source[:] = 6
    queue()
    events = [cuda.event(blocking=blocking) for blocking in (False, True)]
    graph = captured(cuda, queue)
    assert FAKE.cuLaunchHostFunc(ctypes.c_void_p(cuda.stream), look, None) == 0
    alive = {"memory": 2, "pinned": 2, "streams": 1, "events": 2}
    alive |= {"runnable graphs": 1, "contexts": 1}
    assert {name: count for name, count in counts(FAKE).items() if count} == alive
    cuda.close()
    assert ran == [6]  # before the memory went
    assert not any(counts(FAKE).values())
    assert current_context(FAKE) == 0xABC0
    cuda.close()
    FAKE.cuCtxSetCurrent(None)
    for use in (lambda: cuda.launch(graph), lambda: cuda.wait(events[0]), cuda.synchronize):
        with pytest.raises(BackendError, match="this device was closed"):
            use()
    assert source.base is not None  # still there, and not to be touched


def test_close_frees_after_a_fault() -> None:
    cuda = open_cuda(BINDING)
    roundtrip(cuda)
    cuda.event(blocking=False)
    FAKE.fake_fail(b"cuStreamSynchronize", LAUNCH_FAILED, 0)
    cuda.close()


def test_close_after_a_fault_that_stays() -> None:
    cuda = open_cuda(BINDING)
    address, array = cuda.allocate(16), cuda.pinned((16,), np.uint8)
    cuda.upload(address, array.ctypes.data, 16)
    assert FAKE.cuMemFree_v2(ctypes.c_uint64(address)) == 0  # too early
    for _ in range(2):
        with pytest.raises(BackendError, match="an illegal memory access"):
            cuda.synchronize()
    cuda.close()
    assert counts(FAKE)["contexts"] == 0
    FAKE.fake_reset()  # what the fault kept from being freed


def test_close_in_the_middle_of_a_capture() -> None:
    cuda = open_cuda(BINDING)
    queue = roundtrip(cuda)[2]
    cuda.begin_capture()
    queue()
    cuda.close()


def test_opening_that_fails_frees_the_context() -> None:
    FAKE.fake_fail(b"cuStreamCreate", OUT_OF_MEMORY, 0)
    with pytest.raises(BackendError, match="cuStreamCreate failed: CUDA_ERROR_OUT_OF_MEMORY"):
        open_cuda(BINDING)


@pytest.mark.parametrize("index", [-1, 1])
def test_no_such_device(index: int) -> None:
    with pytest.raises(
        BackendError, match=rf"cuda:{index} was asked for, found cuda:0 \(Fake Orin\); name one"
    ):
        open_cuda(BINDING, index)
