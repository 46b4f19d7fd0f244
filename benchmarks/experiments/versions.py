"""Compares two installations of lgvit-edge in turn: opening a bundle, and predicting with it.

``python -m lgvit_edge.benchmarks.experiments.versions OLD/python:OLD_BUNDLE NEW/python:NEW_BUNDLE``
starts processes of both alternately. Each has a bundle of its own, because formats differ between
versions: export both from one checkpoint, or with ``--arch``.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from typing import Annotated

import typer

from lgvit_edge._support.terminal import say
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, run_command
from lgvit_edge.errors import UsageError

_PROGRAM = """
import json, sys, time, numpy as np
from lgvit_edge.runtime import FixedExit, Session

frame = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
start = time.perf_counter()
session = Session.open(sys.argv[1], backend="onnxruntime", policy=FixedExit(1))
opened = time.perf_counter()
size = session.manifest.passes[0].image_size
frame = np.ascontiguousarray(frame[:size, :size])  # little to resize
session.warm_up()
whole = []
for _ in range(int(sys.argv[2])):
    begin = time.perf_counter()
    session.predict(frame)
    whole.append(time.perf_counter() - begin)
logits = session.exit_logits([frame])[:, 0]


class Ready:  # a chain that takes no time: what is left is a prediction's cost around it
    def start(self, images):
        pass

    def step(self):
        return logits


walk = session._walk
kept, walk.chain = walk.chain, Ready()
around = []
for _ in range(3000):
    begin = time.perf_counter()
    session.predict(frame)
    around.append(time.perf_counter() - begin)
walk.chain = kept
print(json.dumps([opened - start, np.median(whole).item(), np.median(around[500:]).item()]))
"""


def main(
    installations: Annotated[
        list[str], typer.Argument(help="PYTHON:BUNDLE, twice; the first is compared with.")
    ],
    turns: Annotated[int, typer.Option(min=1, help="Processes of each.")] = 20,
    predictions: Annotated[int, typer.Option(min=1, help="Predictions per process.")] = 100,
    json_file: JsonFile = None,
) -> None:
    """Prints medians of opening and of predicting to exit 1, and how much the second differs.

    The last figure is of a prediction whose network takes no time.
    """
    pairs = [text.rpartition(":")[::2] for text in installations]
    if len(pairs) != 2 or not all(python and bundle for python, bundle in pairs):
        raise UsageError("expected PYTHON:BUNDLE twice")
    record = Record(json_file)
    times: list[list[list[float]]] = [[], []]
    for turn in range(turns):
        for which in (0, 1) if turn % 2 else (1, 0):
            python, bundle = pairs[which]
            # Elsewhere: Python would import the package of the working directory.
            command = [os.path.abspath(python), "-c", _PROGRAM, os.path.abspath(bundle)]
            done = subprocess.run(
                [*command, str(predictions)], cwd="/", capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise UsageError(f"{python} cannot use {bundle}: {done.stderr.strip()[-300:]}")
            times[which].append(json.loads(done.stdout))
    for place, (what, unit, factor) in enumerate(
        (("opening", "ms", 1e3), ("predicting", "us", 1e6), ("around the network", "us", 1e6))
    ):
        old, new = ([row[place] for row in rows] for rows in times)
        before, after = statistics.median(old), statistics.median(new)
        # Neighbours in time are compared, which leaves out what slows the machine for a while.
        ratio = statistics.median(b / a for a, b in zip(old, new, strict=True))
        change = statistics.median(b - a for a, b in zip(old, new, strict=True))
        say(
            f"{what}: {before * factor:.1f} -> {after * factor:.1f} {unit}, "
            f"ratio of neighbours {ratio:.3f}, difference {change * factor:+.1f} {unit} (medians)"
        )
    record.write(first=times[0], second=times[1], columns=["open_s", "predict_s", "around_s"])


if __name__ == "__main__":
    run_command(main)
