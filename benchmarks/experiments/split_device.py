"""The device of ``split``: answers images one after the other, and prints what each took.

Reads its options as JSON from standard input. Prints one line for each image, and at last the bytes
that passed its network device.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lgvit_edge.benchmarks.experiments.frame import run_command
from lgvit_edge.runtime import Result, Session
from lgvit_edge.serving import SplitSession, Upstream

_COUNTERS = Path("/sys/class/net/lgve-there/statistics")


def main() -> None:
    """Answers the images that standard input names, for split."""
    given = json.load(sys.stdin)
    images = np.load(given["images"])
    with Session.open(
        given["engines"],
        backend="onnxruntime",
        threads=1,
        policy=given["policy"],
        warm_up=True,
    ) as session:
        if given["send"] is None:
            predict: Callable[[Any], Result] = session.predict
        else:
            upstream = Upstream(given["url"], timeout_ms=given["timeout_ms"])
            after, send = given["after"], given["send"]
            split = SplitSession(
                session, upstream, after=after, send=send, quality=given["quality"]
            )
            predict = split.predict
        predict(images[0])  # the connection
        before = _passed()
        sent = 0 if given["send"] is None else split.stats.sent_bytes
        for image in images:
            result = predict(image)
            row = [result.class_index, result.exit, result.latency_ms, result.upstream]
            print(json.dumps(row), flush=True)
        passed = [now - then for now, then in zip(_passed(), before, strict=True)]
        sent = 0 if given["send"] is None else split.stats.sent_bytes - sent
        print(json.dumps({"sent": sent, "passed": passed}), flush=True)


def _passed() -> list[int]:
    """Returns bytes to the server, and from it, headers included."""
    return [int((_COUNTERS / f"{way}_bytes").read_text()) for way in ("tx", "rx")]


if __name__ == "__main__":
    run_command(main)
