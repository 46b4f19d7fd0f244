"""Answers a long list of images into a file, killed on the way, and compares with a plain loop.

``python -m lgvit_edge.benchmarks.experiments.folders --engines out/ --data DIR --images 50000``
repeats the images of a folder in a list, with a broken one now and then. It answers the list once
undisturbed, and once while ``kill -9`` ends the process at random places; both files must be
equal. With ``--rate`` it measures images per second beside a loop over ``Session.predict``, in
turn. With ``--ray`` the second run is that of a Ray cluster on this machine, whose workers are
killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from lgvit_edge._support.terminal import console, note, progress_bar, say, table
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, run_command
from lgvit_edge.cli.options import Backend, Engines
from lgvit_edge.errors import DataError
from lgvit_edge.images.labelled import unlabelled_images
from lgvit_edge.offline import answer_images
from lgvit_edge.offline.job import read_job
from lgvit_edge.runtime import Session

_BROKEN_EVERY = 997  # images


def main(
    engines: Engines,
    data: Annotated[Path, typer.Option(help="Folder of images that the list repeats.")],
    images: Annotated[int, typer.Option(min=10, help="Images in the list.")] = 50_000,
    kills: Annotated[int, typer.Option(min=0, help="Times that the process is killed.")] = 10,
    rate: Annotated[
        int, typer.Option(min=0, help="Images of the list to measure the speed on. 0: none.")
    ] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each way is measured.")] = 3,
    parquet: Annotated[
        bool, typer.Option("--parquet", help="Write Parquet instead of JSON lines.")
    ] = False,
    ray: Annotated[
        bool, typer.Option("--ray", help="Kill workers of a Ray cluster, not the whole run.")
    ] = False,
    batch: Annotated[int | None, typer.Option(min=1, help="Images that run together.")] = None,
    backend: Backend = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Random seed of list and moments.")] = 0,
    json_file: JsonFile = None,
) -> None:
    """Kills a run over a long list of images, and compares its file with an undisturbed run's."""
    record = Record(json_file)
    rng, out = random.Random(seed), "answers.parquet" if parquet else "answers.jsonl"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_list(folder, unlabelled_images(data, note), images, rng)
        line = ["--engines", str(engines.absolute()), "--data", "list.txt", "--backend", backend]
        line += [] if batch is None else ["--batch", str(batch)]
        values: dict[str, Any] = {}
        if rate:
            values["speed"] = measure(engines, folder, rate, rounds, backend, batch)
            print_speed(values["speed"])
        if kills:
            undisturbed = folder / f"undisturbed-{out}"
            run(folder, [*line, "--out", undisturbed.name])
            disturb = killed_workers if ray else killed_runs
            goals = sorted(rng.randrange(images * 19 // 20) for _ in range(kills))
            killed = disturb(folder, [*line, "--out", out], folder / out, goals, rng)
            same = all(
                (folder / f"{out}{end}").read_bytes()
                == (folder / f"{undisturbed.name}{end}").read_bytes()
                for end in ("", ".unreadable.jsonl")
            )
            values |= {"kills": killed, "same": same}
            print_kills(values, images)
            if not same:
                raise DataError("the files differ")
        record.write(images=images, **values)


def write_list(folder: Path, paths: list[Path], count: int, rng: random.Random) -> None:
    """Writes ``list.txt``: the images in random order, again and again, and broken ones."""
    (folder / "broken.jpg").write_bytes(paths[0].read_bytes()[:1000])
    lines: list[str] = []
    while len(lines) < count:
        lines += map(str, rng.sample([path.absolute() for path in paths], len(paths)))
    lines[::_BROKEN_EVERY] = ["broken.jpg"] * len(lines[::_BROKEN_EVERY])
    (folder / "list.txt").write_text("\n".join(lines[:count]) + "\n")


def command(line: list[str]) -> list[str]:
    """Returns ``lgvit-edge predict`` with these arguments."""
    return [sys.executable, "-m", "lgvit_edge", "predict", *line, "--json"]


def run(folder: Path, line: list[str]) -> dict[str, Any]:
    """Runs the command to its end, and returns what it says of itself."""
    done = subprocess.run(command(line), cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise DataError(f"predict failed: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout))


def killed_runs(
    folder: Path, line: list[str], out: Path, goals: list[int], rng: random.Random
) -> list[dict[str, Any]]:
    """Kills the command a moment after it has done so many images, for each goal; then lets it end.

    Returns for each kill the whole lines that were there, and at the end how many the last run
    found.
    """
    trials: list[dict[str, Any]] = []
    with progress_bar("killing") as update:
        for goal in goals:
            process = subprocess.Popen(
                command(line), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            while process.poll() is None and count_lines(out) < goal:
                time.sleep(0.05)
            time.sleep(rng.uniform(0, 0.2))
            process.kill()
            if process.wait() != -signal.SIGKILL:
                raise DataError(f"predict ended before it was killed at {goal} images")
            trials.append({"goal": goal, "lines": count_lines(out)})
            update(len(trials), len(goals))
        last = run(folder, line)
    return [*trials, {"found": last["earlier"]}]


def killed_workers(
    folder: Path, line: list[str], out: Path, goals: list[int], rng: random.Random
) -> list[dict[str, Any]]:
    """Runs the command on a Ray cluster of its own, and at each goal kills a worker in a shard."""
    process = subprocess.Popen(
        [*command(line), "--ray", "local"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    trials: list[dict[str, Any]] = []
    try:
        with progress_bar("killing") as update:
            for goal in goals:
                while process.poll() is None and (
                    count_lines(out) < goal or not (busy := workers(process.pid))
                ):
                    time.sleep(0.05)
                if process.poll() is not None:
                    break
                os.kill(rng.choice(busy), signal.SIGKILL)
                trials.append({"goal": goal, "lines": count_lines(out)})
                update(len(trials), len(goals))
        if process.wait():
            raise DataError("predict --ray failed")
    finally:
        process.kill()
    return trials


def workers(driver: int) -> list[int]:
    """Returns the processes below ``driver`` in which Ray answers a shard right now."""
    parents, busy = {}, []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            stat = (entry / "stat").read_text()
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
            if b"ray::_answer" in (entry / "cmdline").read_bytes():
                busy.append(int(entry.name))

    def is_below(process: int) -> bool:
        while process not in (0, driver):
            process = parents.get(process, 0)
        return process == driver

    return [process for process in busy if is_below(process)]


def count_lines(out: Path) -> int:
    """Returns how many whole lines the parts of a job have."""
    job = read_job(out.with_name(f"{out.name}.job.json"))
    if job is None:
        return 0
    parts = out.with_name(f"{out.name}.parts")
    count = len(list(parts.glob("*.jsonl"))) * job.shard
    for path in parts.glob("*.part"):
        with contextlib.suppress(FileNotFoundError):  # it has become whole
            count += path.read_bytes().count(b"\n")
    return min(count, job.images)


def measure(
    engines: Path, folder: Path, count: int, rounds: int, backend: str, batch: int | None
) -> list[dict[str, float]]:
    """Measures images per second in turn: a plain loop, and the job; with opening and writing."""
    lines = (folder / "list.txt").read_text().splitlines()[:count]
    (folder / "some.txt").write_text("\n".join(lines))

    def loop() -> None:
        with (
            Session.open(engines, backend=backend) as session,
            (folder / "loop.jsonl").open("w") as file,
        ):
            for path in lines:
                try:
                    row = {"path": path, **session.predict(folder / path).to_json()}
                except DataError as error:
                    row = {"path": path, "error": str(error)}
                file.write(json.dumps(row) + "\n")

    def job() -> None:
        answer_images(
            engines,
            folder / "some.txt",
            folder / "job.jsonl",
            options={"backend": backend},
            batch=batch,
            restart=True,
        )

    measured = []
    with Session.open(engines, backend=backend) as session:
        session.predict(folder / lines[1])  # files in memory, and a backend chosen, for both
    for _ in range(rounds):
        row = {}
        for name, way in (("loop", loop), ("job", job)):
            start = time.perf_counter()
            way()
            row[name] = count / (time.perf_counter() - start)
        measured.append(row)
    return measured


def print_speed(speed: list[dict[str, float]]) -> None:
    """Prints the medians of both ways."""
    rows = table("way", numbers=("images/s", "of the loop's"))
    loop = statistics.median(row["loop"] for row in speed)
    for name in ("loop", "job"):
        rate = statistics.median(row[name] for row in speed)
        rows.add_row(name, f"{rate:.1f}", f"{rate / loop:.2f}x")
    console.print(rows)


def print_kills(values: dict[str, Any], images: int) -> None:
    """Prints what the kills left."""
    kills = [trial for trial in values["kills"] if "goal" in trial]
    lines = ", ".join(f"{trial['lines']:,}" for trial in kills)
    say(f"{images:,} images; {len(kills)} kills, when so many were done: {lines}")
    for trial in values["kills"][len(kills) :]:
        say(f"the run after the last kill found {trial['found']:,} done")
    say(
        "both files, answers and unreadable images, are equal byte for byte"
        if values["same"]
        else "THE FILES DIFFER"
    )


if __name__ == "__main__":
    run_command(main)
