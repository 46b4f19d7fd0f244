"""All sinks that write files, on one disk that fills up and is freed again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("av")
pytest.importorskip("cv2")

FULL = """
import json, os, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy as np
from shots import shot, until
from lgvit_edge.camera.sinks import base
from lgvit_edge.camera.sinks.base import Outlet
from lgvit_edge.camera.sinks.jsonl import JsonLines
from lgvit_edge.camera.sinks.unsure import KeepUnsure
from lgvit_edge.camera.sinks.video import VideoFiles

base._PAUSES = (0.02,)
disk = Path(sys.argv[2])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "none", disk], check=True)
ballast = disk / "ballast"
sinks = [
    JsonLines(disk / "answers.jsonl"),
    KeepUnsure(disk / "kept", every=0, max_mb=1000),
    VideoFiles(disk / "videos"),
]
told = []
outlets = [Outlet(sink, told.append) for sink in sinks]
for sink, outlet in zip(sinks, outlets):
    sink.open()
    outlet.start()
rng = np.random.default_rng(0)
frame = 0

def put():
    global frame
    image = rng.integers(0, 255, (48, 64, 3), np.uint8)
    for outlet in outlets:
        outlet.put(shot(frame=frame, image=image, label=None))
    frame += 1
    until(lambda: all(o.counts.waiting == 0 or o.counts.error for o in outlets))

for _ in range(20):
    put()
number = os.open(ballast, os.O_WRONLY | os.O_CREAT)
try:
    while True:
        os.write(number, bytes(4096))
except OSError:
    os.close(number)
until(lambda: put() or all(o.counts.error for o in outlets), seconds=60)
assert all("No space left on device" in o.counts.error for o in outlets)
ballast.unlink()
until(lambda: put() or not any(o.counts.error for o in outlets), seconds=60)
for _ in range(10):
    put()
counts = [outlet.close() for outlet in outlets]
print(json.dumps({"frames": frame, "counts": [vars(c) for c in counts]}))
subprocess.run(["cp", "-r", disk, sys.argv[3]], check=True)
"""


def test_a_disk_that_fills_up_and_is_freed(tmp_path: Path) -> None:
    import av
    from PIL import Image

    if not (tool := shutil.which("unshare")):
        pytest.skip("needs unshare")
    alone = [tool, "--map-root-user", "--mount"]
    mounted = [*alone, "mount", "-t", "tmpfs", "none", "/mnt"]
    if subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    (tmp_path / "disk").mkdir()
    fakes, copy = Path(__file__).parents[1] / "fakes", tmp_path / "copy"
    done = subprocess.run(
        [*alone, sys.executable, "-c", FULL, fakes, tmp_path / "disk", copy],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    for counts in said["counts"]:
        assert counts["taken"] + counts["lost"] == said["frames"] and not counts["refused"]
        assert counts["error"] == ""
    lines, kept, video = said["counts"]
    assert lines["lost"] == 0  # thousands have room: nothing is lost
    text = (copy / "answers.jsonl").read_text()
    assert [json.loads(line)["frame"] for line in text.splitlines()] == list(range(said["frames"]))
    pictures = list((copy / "kept" / "to-label").rglob("*.jpg"))
    assert len(pictures) == kept["taken"]
    for path in pictures:
        Image.open(path).load()
    assert not list(copy.rglob("*.partial"))
    frames = 0
    for path in (copy / "videos").iterdir():
        with av.open(str(path)) as file:
            frames += len(list(file.decode(video=0)))
    # A full disk costs the last second, ten frames, that was not yet written.
    assert video["taken"] - 12 <= frames <= video["taken"]
