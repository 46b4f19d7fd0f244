"""A process lives through signals, whatever native library came and went in which order.

Python's signal handlers run on the thread's alternate signal stack where it has one. A library that
leaves one behind that is unmapped kills the process with the next signal.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from processes import python

ROOT = Path(__file__).resolve().parents[2]

# Runs before each script, in a process of its own, because what goes wrong ends the process.
PRELUDE = """
import ctypes, gc, os, signal, sys, threading

class Stack(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

def check_stack():
    "This thread has no alternate stack, or one that is mapped."
    stack = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    if not stack.start:
        return
    with open("/proc/self/maps") as maps:
        ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps]
    at = stack.start
    for start, end in ranges:  # in order; neighbours may be one stack's
        if start <= at < end:
            at = end
    assert at >= stack.start + stack.size, "the alternate signal stack is unmapped"

came = []
numbers = [signal.SIGTERM, signal.SIGCHLD, signal.SIGINT]
for number in numbers:
    signal.signal(number, lambda number, frame: came.append(number))

def strike():
    "This thread gets each signal; that the process lives is the test."
    check_stack()
    for number in numbers:
        signal.pthread_kill(threading.get_ident(), number)

def elsewhere(work):
    "In a thread that ends, struck before and after."
    failed = []
    def run():
        try:
            strike()
            work()
            gc.collect()
            strike()
        except BaseException as error:
            failed.append(error)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]

def drop(*names):
    "Let go of them in this order."
    for name in names:
        made = globals().pop(name)
        getattr(made, "close", lambda: None)()
        del made
        gc.collect()

def keep(name, make):
    globals()[name] = make()
"""
EPILOGUE = """
gc.collect()
strike()
os.kill(os.getpid(), signal.SIGTERM)
assert set(came) == set(numbers) and came[-1] == signal.SIGTERM
print("alive")
"""

# Of two things that `make` makes: every order, and every thread.
ORDERS = {
    "in_the_order_made": "a = make(); b = make(); drop('a', 'b')",
    "in_reverse": "a = make(); b = make(); drop('b', 'a')",
    "in_another_thread": "a = make(); b = make(); elsewhere(lambda: drop('a', 'b'))",
    "one_in_another_thread": "a = make(); b = make(); elsewhere(lambda: drop('a')); drop('b')",
    "made_in_a_thread_that_ends": "elsewhere(lambda: keep('a', make)); strike(); drop('a')",
    "made_here_and_there": (
        "elsewhere(lambda: keep('a', make)); b = make(); drop('a'); strike(); drop('b')"
    ),
    "made_and_dropped_there": (
        "a = make(); elsewhere(lambda: (keep('b', make), drop('a'), strike(), drop('b')))"
    ),
    "one_after_the_other": "a = make(); drop('a'); strike(); b = make(); drop('b')",
}
OPEN = """
from lgvit_edge.runtime import Session
import numpy as np
def make():
    session = Session.open(sys.argv[1], backend={backend!r})
    session.predict(np.zeros((32, 32, 3), np.uint8))
    return session
"""
# How each library is made to do its work.
LIBRARIES = {
    "openvino": OPEN.format(backend="openvino"),
    "onnxruntime": OPEN.format(backend="onnxruntime"),
    "torch": """
import torch
def make():
    layer = torch.nn.Conv2d(3, 64, 3)
    layer(torch.zeros(4, 3, 64, 64)).sum().backward()
    return layer
""",
    "tensorrt_rtx": """
import tensorrt_rtx
def make():
    logger = tensorrt_rtx.Logger()
    return logger, tensorrt_rtx.Builder(logger)
""",
    "cv2": """
import cv2, numpy as np
def make():
    return cv2.resize(np.zeros((900, 900, 3), np.uint8), (300, 300))
""",
}


def lives(script: str, *arguments: object) -> None:
    said = python("\n".join([PRELUDE, script, EPILOGUE]), *arguments)
    assert said.splitlines()[-1:] == ["alive"]


@pytest.mark.parametrize("order", ORDERS)
def test_openvino_sessions_come_and_go(bundle: Path, order: str) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    # Counted too: not every processor's plugin has such a stack.
    count = """
import openvino
class Counted(openvino.Core):
    made = 0
    def __init__(self, *rest):
        Counted.made += 1
        super().__init__(*rest)
openvino.Core = Counted
"""
    script = [count, LIBRARIES["openvino"], ORDERS[order], "assert Counted.made == 1, Counted.made"]
    lives("\n".join(script), bundle)


@pytest.mark.parametrize("library", [*LIBRARIES, "all in turn"])
def test_every_library_comes_and_goes(bundle: Path, library: str) -> None:
    if library in LIBRARIES:
        pytest.importorskip(library, reason=f"{library} is not installed")
    names = [library] if library in LIBRARIES else list(LIBRARIES)
    codes = [LIBRARIES[name] for name in names if importlib.util.find_spec(name)]
    # An order makes two things: a second round, begun one later, brings other neighbours together.
    script = f"""
import itertools
makers = []
for code in {codes!r}:
    exec(code)
    makers.append(make)
def make():
    return next(turn)()
for start in range(min(2, len(makers))):
    turn = itertools.cycle(makers[start:] + makers[:start])
    for order in {list(ORDERS.values())!r}:
        exec(order)
        gc.collect()
        strike()
"""
    lives(script, bundle)


def test_precisions_and_devices_asked_beside_a_session(bundle: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    script = """
from lgvit_edge.runtime.backends.checks import openvino_checks
from lgvit_edge.runtime.backends.openvino import available_precisions
elsewhere(available_precisions)
a = make()
available_precisions(), openvino_checks()
strike()
drop('a')
elsewhere(lambda: (available_precisions(), openvino_checks()))
"""
    lives(LIBRARIES["openvino"] + script, bundle)


def test_threads_that_come_at_once_make_one_core() -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    script = """
import time, openvino
from lgvit_edge.machine.openvino import shared_core
real, made = openvino.Core, []
def slow():
    time.sleep(0.1)
    made.append(real())
    return made[-1]
openvino.Core = slow
threads = [threading.Thread(target=shared_core) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(made) == 1 and shared_core() is made[0]
"""
    lives(script)


def test_a_forked_child_makes_its_own_core() -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    script = """
from lgvit_edge.machine.openvino import shared_core
parents = shared_core()
parents.available_devices
child = os.fork()
if not child:
    assert shared_core() is not parents and shared_core() is shared_core()
    shared_core().available_devices
else:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert shared_core() is parents
"""
    lives(script)


def test_nothing_makes_a_core_of_its_own() -> None:
    places = [ROOT / name for name in ("lgvit_edge", "export", "runtime", "benchmarks")]
    files = (path for place in places for path in place.rglob("*.py"))
    assert {file.name for file in files if ".Core(" in file.read_text("utf-8")} == {"openvino.py"}
