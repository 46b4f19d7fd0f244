"""Measures whether ``TargetRate`` keeps its rate when a competing program starts and ends.

``python -m lgvit_edge.benchmarks.experiments.rates --engines out/ --data DIR --plot rate.png``
plays a camera with a fixed frame rate; the middle third of the frames has a competing load.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from lgvit_edge._support.optional import require
from lgvit_edge._support.outputs import replacing
from lgvit_edge._support.terminal import console, progress_bar
from lgvit_edge.benchmarks.experiments.competitor import competing
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, choose_images, run_command
from lgvit_edge.cli.options import Backend, Engines, check_outputs
from lgvit_edge.images.preprocess import load_rgb
from lgvit_edge.runtime import Session, TargetRate

_SETTLED = 30  # frames after a change of load that the level may take to settle


def main(
    engines: Engines,
    data: Annotated[Path, typer.Option(help="Images: a sub-folder per class.")],
    fps: Annotated[float, typer.Option(min=0.1, help="Frames per second.")],
    frames: Annotated[int, typer.Option(min=180, help="Frames; a third are under load.")] = 600,
    load: Annotated[int, typer.Option(min=1, help="Number of competing processes.")] = 2,
    backend: Backend = "auto",
    plot: Annotated[Path | None, typer.Option(help="Picture to write (.png).")] = None,
    json_file: JsonFile = None,
) -> None:
    """Steps the load up and down under a fixed frame rate."""
    check_outputs({"--plot": plot})
    record = Record(json_file)
    with Session.open(engines, backend=backend, warm_up=True) as session:
        session.warm_up(50)
        rate = TargetRate(fps)
        session.policy = rate
        rows = _play(session, data, fps, frames, load)
        record.env |= {"runtime": session.describe()}
    steps = (frames // 3, 2 * frames // 3)
    parts = summarise(rows, steps, 1e3 / fps)
    for name, part in parts.items():
        console.print(
            f"{name}: {part['mean_ms']:.1f} ms a frame of {1e3 / fps:.1f}, "
            f"{part['changes']} changes of level, the last at frame {part['last_change']} of it; "
            f"levels {part['levels']}; accuracy {part['accuracy']:.1%}",
            highlight=False,
        )
    if plot is not None:
        with replacing(plot) as partial:
            _draw(rows, steps, fps, rate.budget_ms, partial)
    record.write(fps=fps, load=load, parts=parts, raw=rows)


def _play(session: Session, data: Path, fps: float, frames: int, load: int) -> dict[str, list[Any]]:
    images = choose_images(data, session.manifest, frames)
    images = [images[i] for i in np.random.default_rng(0).permutation(len(images))]
    rows: dict[str, list[Any]] = defaultdict(list)
    with contextlib.ExitStack() as stack, progress_bar("playing") as progress:
        due = time.perf_counter()
        for number in range(frames):
            if number == frames // 3:
                stack.enter_context(competing(load))
            if number == 2 * frames // 3:
                stack.close()
            image = images[number % len(images)]
            frame = load_rgb(image.path)
            time.sleep(max(0.0, due - time.perf_counter()))
            # A camera drops frames that are not fetched.
            due = max(due, time.perf_counter()) + 1 / fps
            result = session.predict(frame)
            assert result.pace is not None
            rows["latency_ms"].append(round(result.latency_ms, 3))
            rows["level"].append(result.pace.level)
            rows["point"].append(result.pace.point)
            rows["expected_ms"].append(round(result.pace.expected_ms, 3))
            rows["correct"].append(result.class_index == image.class_index)
            if number % 20 == 0:
                progress(number, frames)
    return rows


def summarise(
    rows: dict[str, list[Any]], steps: tuple[int, int], frame_ms: float
) -> dict[str, dict[str, Any]]:
    """Returns each third's mean time once settled, and how often and when the level changed."""
    ends = [0, *steps, len(rows["level"])]
    parts = {}
    for name, first, last in zip(("calm", "loaded", "calm again"), ends, ends[1:], strict=False):
        levels = rows["level"][first:last]
        changes = [i for i in range(1, len(levels)) if levels[i] != levels[i - 1]]
        settled = np.array(rows["latency_ms"][first + _SETTLED : last])
        parts[name] = {
            "mean_ms": float(settled.mean()),
            "share_within_frame": float((settled <= frame_ms).mean()),
            "changes": len(changes),
            "last_change": changes[-1] if changes else 0,
            "levels": sorted(set(levels[_SETTLED:])),
            "accuracy": float(np.mean(rows["correct"][first:last])),
        }
    return parts


def _draw(
    rows: dict[str, list[Any]], steps: tuple[int, int], fps: float, budget: float, path: Path
) -> None:
    figures = require("matplotlib.figure", extra="report")
    figure = figures.Figure(figsize=(8, 5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    latency = np.array(rows["latency_ms"])
    mean = np.convolve(latency, np.ones(15) / 15, mode="valid")
    top.plot(latency, ".", color="0.75", markersize=3, label="a frame")
    top.plot(np.arange(len(mean)) + 14, mean, color="C0", label="mean of 15 frames")
    top.axhline(1e3 / fps, color="C3", linewidth=1, label=f"time between frames at {fps:g} fps")
    top.axhline(budget, color="C3", linewidth=1, linestyle=":", label="budget")
    top.set(ylabel="latency (ms)", ylim=(0, max(2e3 / fps, float(np.percentile(latency, 99)))))
    top.legend(loc="upper right", fontsize=8)
    names = dict(sorted(set(zip(rows["level"], rows["point"], strict=True))))
    bottom.step(range(len(latency)), rows["level"], color="C2", where="post")
    bottom.set(xlabel="frame", ylabel="operating point")
    bottom.set_yticks(list(names), names.values())
    bottom.invert_yaxis()
    for axis in (top, bottom):
        axis.axvspan(*steps, color="C1", alpha=0.12)
    top.text(np.mean(steps), 0, "competing load", ha="center", va="bottom", fontsize=8)
    figure.savefig(path, format="png", dpi=110)


if __name__ == "__main__":
    run_command(main)
