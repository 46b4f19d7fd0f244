"""A process that forks while a session lives: the child is told what to do, and nothing hangs."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
from processes import python

from lgvit_edge.runtime.backends import ort_pool

PROGRAM = """
import os, signal, sys, threading
import numpy as np
from lgvit_edge.errors import BackendError
from lgvit_edge.runtime import Session

backend, busy = sys.argv[2], sys.argv[3] == "busy"
image = np.zeros((32, 32, 3), np.uint8)
session = Session.open(sys.argv[1], backend=backend, threads=2, warm_up=True)
ready = session.prepare([image])
stream = session.stream((image for _ in range(10**9)), batch=1)
next(stream)
stop, begun = threading.Event(), threading.Event()

def camera():
    while not stop.is_set():
        session.predict(image)
        begun.set()

thread = threading.Thread(target=camera)
if busy:
    thread.start()
    begun.wait()

def reopen():
    with Session.open(sys.argv[1], backend=backend, threads=2) as own:
        print("opened", own.predict(image).exit > 0)

calls = {
    "predict": lambda: session.predict(image),
    "batch": lambda: session.predict_batch([image]),
    "stream": lambda: list(session.stream([image])),
    "running stream": lambda: next(stream),
    "policy": lambda: setattr(session, "policy", "never"),
    "stats": lambda: session.stats,
    "logits": lambda: session.exit_logits([image]),
    "baseline": lambda: session.baseline_logits(ready),
    "times": lambda: session.timed_exits(ready),
    "warm_up": session.warm_up,
    "describe": session.describe,
    "parity": session.check_parity,
    "close": session.close,
    "reopen": reopen,
}
child = os.fork()
if not child:
    signal.alarm(60)
    for name, call in calls.items():
        try:
            call()
        except BackendError as error:
            print(f"{name}: {error}")
    sys.stdout.flush()
    os._exit(0)
print("child ended:", os.waitpid(child, 0)[1])
stop.set()
if busy:
    thread.join()
stream.close()
print("parent goes on:", session.predict(image).exit > 0)
session.close()
"""


@pytest.mark.parametrize("busy", ["busy", "idle"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_forked_process_is_told_to_open_its_own_session(
    bundle: Path, backend: str, busy: str
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    said = python(PROGRAM, bundle, backend, busy).splitlines()
    assert said[-2:] == ["child ended: 0", "parent goes on: True"], said
    told = dict(line.split(": ", 1) for line in said[:-2] if ": " in line)
    refused = {name: text for name, text in told.items() if name != "reopen"}
    assert list(refused) == [
        *("predict", "batch", "stream", "running stream", "policy", "stats", "logits"),
        *("baseline", "times", "warm_up", "describe", "parity"),
    ]
    for text in refused.values():
        assert text.startswith("this session was opened before this process was forked")
        assert "open sessions after the fork" in text and "get_context('spawn')" in text
    threads = {
        "onnxruntime": "the threads of ONNX Runtime's pool",
        "openvino": "OpenVINO's threads",
    }
    if backend == "onnxruntime" and not ort_pool.can_share(onnxruntime):
        assert "opened True" in said  # with a pool of its own
        return
    assert f"{threads[backend]} stayed in the other one; open sessions after" in told["reopen"]


def test_sessions_opened_after_the_fork_work(bundle: Path) -> None:
    program = """
import os, sys
import numpy as np
from lgvit_edge.runtime import Session

child = os.fork()
with Session.open(sys.argv[1], backend="onnxruntime", threads=2) as session:
    assert session.predict(np.zeros((32, 32, 3), np.uint8)).exit > 0
if child:
    print("child ended:", os.waitpid(child, 0)[1])
"""
    assert python(program, bundle) == "child ended: 0\n"
