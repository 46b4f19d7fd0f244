"""A slow device and a server behind a slow link: what it gains to leave unsure images to it.

``python -m lgvit_edge.benchmarks.experiments.split --engines out/ --data DIR --after 2`` runs the
device in a network namespace of its own, held to a share of one core, and a real Triton outside
(``link``, ``triton_server``). It needs root, for the link. The device answers the same images by
itself, by the server alone, by a split chain, and with a server that is killed half-way.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any
from xml.sax.saxutils import escape

import numpy as np
import typer

from lgvit_edge._support.outputs import write
from lgvit_edge._support.terminal import console, progress_bar
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, choose_images, run_command
from lgvit_edge.benchmarks.experiments.link import HERE, Link
from lgvit_edge.benchmarks.experiments.triton_server import TritonServer, missing
from lgvit_edge.benchmarks.report.terminal import table_of
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.cli.options import Engines, check_outputs
from lgvit_edge.errors import BackendError, UsageError
from lgvit_edge.images.preprocess import load_rgb, resize_crop
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.serving.options import RunParameters
from lgvit_edge.serving.repository import ServingOptions, write_repository

_MODEL = "lgvit"
_DEVICE = "lgvit_edge.benchmarks.experiments.split_device"
_PERIOD_US = 10_000
_CGROUP = Path("/sys/fs/cgroup/cpu")
_SIDE = 320  # of the camera's frames, in pixels
_WIDTH, _LEFT, _TOP, _ROW = 880, 250, 74, 34


def main(
    engines: Engines,
    data: Annotated[Path, typer.Option(help="Labelled images: a folder for each class.")],
    after: Annotated[
        int | None, typer.Option(help="Last exit of the device; needed where there is one pass.")
    ] = None,
    policy: Annotated[str, typer.Option(help="Policy, as for bench.")] = "confidence:0.8",
    samples: Annotated[int, typer.Option(min=20, help="Number of images, spread evenly.")] = 400,
    speed: Annotated[
        float, typer.Option(min=0.1, max=1, help="The device's share of a core.")
    ] = 0.1,
    delay_ms: Annotated[float, typer.Option(help="Delay of the link, one way.")] = 20.0,
    loss: Annotated[float, typer.Option(help="Share of packets lost, each way.")] = 0.01,
    mbit: Annotated[float, typer.Option(help="Mbit/s of the link, each way.")] = 5.0,
    timeout_ms: Annotated[float, typer.Option(help="Time for a request.")] = 1000.0,
    quality: Annotated[int, typer.Option(help="Of JPEGs.")] = 90,
    json_file: JsonFile = None,
    picture: Annotated[Path | None, typer.Option(help="Picture to write (.svg).")] = None,
) -> None:
    """Measures accuracy, latency and bytes of a chain split between a device and a server."""
    check_outputs({"--picture": picture})
    record = Record(json_file)
    if (why := missing()) is not None:
        raise UsageError(why)
    manifest = open_bundle(engines).manifest
    passes = len(manifest.passes) > 1
    if after is None and not passes:
        raise UsageError("expected --after, the last exit that the device reads")
    chosen = choose_images(data, manifest, samples)
    labels = np.array([image.class_index for image in chosen])
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, _held(speed) as group:
        frames, images = _frames([image.path for image in chosen]), Path(folder) / "images.npy"
        np.save(images, frames)
        run = RunParameters(backend="onnxruntime", threads=1)
        write_repository(engines, Path(folder) / "models", ServingOptions(_MODEL, run=run))
        given = {
            "engines": str(engines.absolute()),
            "images": str(images),
            "policy": policy,
            "timeout_ms": timeout_ms,
            "quality": quality,
        }
        ways: list[tuple[str, str | None, int | None, bool]] = [
            ("device alone", None, None, False),
            ("server alone, JPEG", "jpeg", 0, False),
            ("split, JPEG", "jpeg", after, False),
            ("split, hidden state", "hidden", after, False),
            ("split, JPEG, server killed half-way", "jpeg", after, True),
        ]
        if passes:  # what the server needs to see lies before its pass
            del ways[3], ways[1]
        with (
            Link(delay_ms, loss, mbit * 1e6) as link,
            TritonServer(
                Path(folder) / "models", Path(folder) / "log", f"--grpc-address={HERE}"
            ) as server,
            progress_bar("images") as progress,
        ):
            given["url"] = f"triton://{HERE}:{server.ports['grpc']}/{_MODEL}"
            for number, (name, send, at, kill) in enumerate(ways):
                options = given | {"send": send, "after": at}
                command = [*group, *link.there([sys.executable, "-m", _DEVICE])]
                answers, sums = [], {}
                with subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                ) as device:
                    assert device.stdin is not None and device.stdout is not None
                    device.stdin.write(json.dumps(options))
                    device.stdin.close()
                    for line in device.stdout:
                        found = json.loads(line)
                        if isinstance(found, dict):
                            sums = found
                            continue
                        answers.append(found)
                        progress(number * samples + len(answers), len(ways) * samples)
                        if kill and len(answers) == samples // 2:
                            server.kill()
                if device.returncode:
                    raise BackendError("the device ended early; its error stands above")
                rows.append(_row(name, answers, sums, labels))
    whole = rows[0]["classes"]
    for row in rows:
        row["same"] = float(np.mean(np.equal(row.pop("classes"), whole)))
    cells = (
        "{name} | {accuracy:.1%} | {p50:.0f} | {p99:.0f} | {sent:,.0f} | {wire:,.0f} | "
        "{server:.0%} | {same:.1%}"
    )
    numbers = ("right", "p50 ms", "p99 ms", "payload B", "wire B", "by server", "as alone")
    console.print(table_of(rows, cells, "way", numbers=numbers))
    for row in rows:
        if row["alone"]:
            console.print(f"{row['name']}: {json.dumps(row['alone'])}")
    link_text = f"{delay_ms:g} ms each way, {loss:.0%} loss, {mbit:g} Mbit/s"
    record.write(rows=rows, link=link_text, speed=speed, after=after, policy=policy)
    if picture is not None:
        write(
            picture,
            draw(
                rows,
                f"a device of {speed:g} of a core of an {record.env['cpu']}, a link of {link_text}",
            ),
        )


def _frames(paths: Sequence[Path]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Returns the images as a camera would give them, ``[B, 320, 320, 3] uint8``."""
    spec = Preprocess(resize=_SIDE)
    return np.stack([resize_crop(load_rgb(path), spec, _SIDE) for path in paths])


@contextlib.contextmanager
def _held(speed: float) -> Iterator[list[str]]:
    """Returns what a command begins with, to be held to this share of one core."""
    if speed == 1:
        yield []
        return
    group = _CGROUP / f"lgvit-edge-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        raise UsageError(f"--speed needs root and a cgroup of version 1: {error}") from None
    try:
        (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(int(_PERIOD_US * speed)))
        yield ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs")]
    finally:
        group.rmdir()


def _row(
    name: str, answers: list[Any], sums: dict[str, Any], labels: np.ndarray[Any, Any]
) -> dict[str, Any]:
    classes, exits, times, upstream = zip(*answers, strict=True)
    why = Counter(text.split(":")[0] for text in upstream if text not in ("", "answered"))
    return {
        "name": name,
        "classes": classes,
        "accuracy": float((np.array(classes) == labels).mean()),
        "p50": float(np.percentile(times, 50)),
        "p99": float(np.percentile(times, 99)),
        "mean": float(np.mean(times)),
        "sent": sums["sent"] / len(answers),
        "wire": sum(sums["passed"]) / len(answers),
        "server": upstream.count("answered") / len(answers),
        "alone": dict(why),
        "mean_exit": float(np.mean(exits)),
        "times_ms": times,
    }


def draw(rows: Sequence[dict[str, Any]], about: str) -> str:
    """Returns latency, accuracy and bytes of each way as an SVG."""
    longest = max(row["p99"] for row in rows)
    height = _TOP + _ROW * len(rows) + 16
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="14" role="img" '
        'aria-label="Latency, accuracy and bytes of each way to share a chain with a server">',
        f'<rect x="1" y="1" width="{_WIDTH - 2}" height="{height - 2}" rx="10" '
        'fill="#ffffff" stroke="#b0bec5"/>',
        '<text x="24" y="32" font-weight="bold" fill="#102027">Milliseconds per image: half are '
        "faster than the bar, 99 % than the line</text>",
        f'<text x="24" y="54" font-size="12" fill="#607d8b">{escape(about)}</text>',
    ]
    for number, row in enumerate(rows):
        y, scale = _TOP + _ROW * number, (_WIDTH - _LEFT - 280) / longest
        bar, line = row["p50"] * scale, row["p99"] * scale
        said = (
            f"{row['p50']:.0f}, {row['p99']:.0f} ms · {row['accuracy']:.1%} right · "
            f"{row['wire'] / 1e3:.1f} kB"
        )
        lines += [
            f'<text x="{_LEFT - 12}" y="{y + 17}" text-anchor="end" fill="#102027">'
            f"{escape(row['name'])}</text>",
            f'<rect x="{_LEFT}" y="{y}" width="{bar:.1f}" height="24" rx="3" fill="#2e7d32"/>',
            f'<rect x="{_LEFT}" y="{y + 11}" width="{line:.1f}" height="2" fill="#546e7a"/>',
            f'<text x="{_LEFT + line + 8:.1f}" y="{y + 17}" fill="#102027">{said}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    run_command(main)
