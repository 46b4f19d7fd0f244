"""Folders and lists answered into one file: the rows, the refusals, and runs that go on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from processes import lgvit_edge
from small import write_photos

from lgvit_edge import Session
from lgvit_edge.benchmarks.experiments.folders import count_lines
from lgvit_edge.errors import DataError, UsageError
from lgvit_edge.images.folders import find_files
from lgvit_edge.offline import answer_images

Command = Callable[..., str]
Rows = list[dict[str, Any]]
POLICY = "confidence:0.5"  # leaves at every exit


@pytest.fixture
def here(tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with 50 photos, one of which is broken, and a link to the bundle."""
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", "abcde", 10)
    (tmp_path / "photos" / "b" / "03.png").write_bytes(b"no image")
    (tmp_path / "photos" / "notes.txt").write_text("not an image")
    (tmp_path / "engines").symlink_to(bundle)
    return tmp_path


def read(path: str | Path) -> Rows:
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def answered(**options: Any) -> bytes:
    """What a run that nothing disturbs writes."""
    answer_images("engines", "photos", "undisturbed.jsonl", **options)
    return Path("undisturbed.jsonl").read_bytes()


def test_rows_are_what_the_session_answers(here: Path) -> None:
    told: list[str] = []
    outcome = answer_images(
        "engines", "photos", "answers.jsonl", policy=POLICY, batch=1, note=told.append
    )
    rows = read("answers.jsonl")
    paths = [path.relative_to("photos") for path in find_files(Path("photos")).images]
    assert [row["path"] for row in rows] == [str(p) for p in paths if str(p) != "b/03.png"]
    with Session.open("engines", policy=POLICY) as session:
        for row in rows:
            result = session.predict(f"photos/{row['path']}")
            expected = {k: v for k, v in result.to_json().items() if k in row}
            expected["confidence"] = round(result.confidence, 6)
            assert row == {"path": row["path"], **expected}
        exits = [sum(row["exit"] == exit for row in rows) for exit in (1, 2, 3, 4)]
    assert set(rows[0]) == {
        *("path", "class_index", "label", "confidence", "measure"),
        *("exit", "block", "pass_number", "stopped"),
    }
    assert (outcome.images, outcome.answered, outcome.unreadable) == (50, 49, 1)
    assert outcome.exits == tuple(exits) and min(exits) > 0
    (bad,) = read("answers.jsonl.unreadable.jsonl")
    assert bad["path"] == "b/03.png"
    assert bad["error"].startswith("b/03.png is not an image that can be decoded: expected JPEG")
    assert "notes.txt" in " ".join(told)
    left = {path.name for path in here.glob("*answers*")}
    assert left == {"answers.jsonl", "answers.jsonl.job.json", "answers.jsonl.unreadable.jsonl"}


def test_batches_are_those_of_the_bundle(here: Path) -> None:
    shutil.rmtree("photos/b")
    answer_images("engines", "photos", "answers.jsonl")
    paths = find_files(Path("photos")).images
    with Session.open("engines") as session:
        results = [r for i in range(0, 40, 2) for r in session.predict_batch(paths[i : i + 2])]
    assert [row["confidence"] for row in read("answers.jsonl")] == [
        round(result.confidence, 6) for result in results
    ]


def test_threads_change_nothing(here: Path) -> None:
    expected = answered(batch=4)
    for decoders in (1, 2, 7):
        out = Path(f"{decoders}.jsonl")
        answer_images("engines", "photos", out, batch=4, decoders=decoders)
        assert out.read_bytes() == expected


def test_all_passes_see_the_whole_image(passes_bundle: Path, here: Path) -> None:
    answer_images(passes_bundle, "photos", "answers.jsonl", batch=1, policy="confidence:0.4")
    with Session.open(passes_bundle, policy="confidence:0.4") as session:
        for row in read("answers.jsonl"):
            result = session.predict(f"photos/{row['path']}")
            assert (row["exit"], row["pass_number"]) == (result.exit, result.pass_number)
    assert {row["pass_number"] for row in read("answers.jsonl")} == {1, 2}


def test_times_are_there_if_asked_for(here: Path) -> None:
    answer_images("engines", "photos", "answers.jsonl", times=True)
    assert all(row["latency_ms"] >= row["network_ms"] > 0 for row in read("answers.jsonl"))


def test_a_list_names_images_in_any_place_and_repeatedly(here: Path) -> None:
    far = here / "elsewhere" / "x y.png"
    far.parent.mkdir()
    shutil.copy("photos/a/00.png", far)
    named = ["../photos/a/01.png", "../photos/a/00.png", str(far), ".././photos/b/../a/00.png"]
    lines = [named[0], "", *named[1:], named[1], "../gone.png", "  ", "/dev/zero", "", ""]
    Path("lists").mkdir()
    Path("lists/all.txt").write_bytes("\r\n".join(lines).encode("utf-16"))
    outcome = answer_images("engines", "lists/all.txt", "answers.jsonl", batch=1)
    rows = read("answers.jsonl")
    assert [row["path"] for row in rows] == [*named, named[1]]
    assert len({row["confidence"] for row in rows[1:]}) == 1
    assert outcome.unreadable == 2
    errors = {row["path"]: row["error"] for row in read("answers.jsonl.unreadable.jsonl")}
    assert errors["../gone.png"] == "no such image: ../gone.png"
    assert "it is a pipe or a device" in errors["/dev/zero"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "names no images; expected the path of one in each line"),
        (b"\n  \n", "names no images"),
        (b"a\xff.png\n", "cannot read the list .*; expected text in UTF-8"),
        (b"x" * (1 << 21), "a line is longer than 1048576 characters"),
    ],
)
def test_a_list_that_is_none_is_refused(content: bytes, why: str, here: Path) -> None:
    Path("list.txt").write_bytes(content)
    with pytest.raises(DataError, match=why):
        answer_images("engines", "list.txt", "answers.jsonl")
    assert not list(here.glob("*answers*"))


def test_names_that_are_no_text_are_told_apart(here: Path) -> None:
    odd = b"photos/a/\xff\xfe.png"
    shutil.copy("photos/a/00.png", odd)
    shutil.copy("photos/a/01.png", "photos/a/\u20ac\u2028\n.png")
    answer_images("engines", "photos", "answers.jsonl")
    names = [row["path"] for row in read("answers.jsonl")]
    assert "a/\\xff\\xfe.png" in names and "a/\u20ac\u2028\n.png" in names


def test_no_image_at_all_is_an_error(here: Path, command: Command) -> None:
    for path in find_files(Path("photos")).images:
        path.write_bytes(b"no image")
    line = "predict --engines engines --data photos --out answers.jsonl"
    said = command(*line.split(), status=1)
    assert "none of 50 images can be read, such as: e/09.png is not an image" in said
    assert not Path("answers.jsonl").exists()
    Path("empty").mkdir()
    said = command(*line.replace("photos", "empty").split(), status=1)
    assert "empty holds no images" in said
    said = command(*line.replace("photos", "none").split(), status=1)
    assert "no such folder or list of images: none" in said


def test_storage_that_went_away_is_no_list_of_bad_images(here: Path) -> None:
    from lgvit_edge.offline.batches import answer_batches
    from lgvit_edge.offline.listing import Listed

    images = [Listed("x.png", "photos/a/00.png"), Listed("y.png", "photos/b/03.png")]
    with Session.open("engines") as session:
        (lines,) = answer_batches(session, [images], decoders=1, readable="photos/a/gone.png")
        assert len(lines) == 2  # one that is read now says that all is well
        with pytest.raises(DataError, match="a/gone.png could be read before and cannot any more"):
            list(answer_batches(session, [images[1:]], decoders=1, readable="photos/a/gone.png"))


# Runs that go on


def test_what_is_answered_is_not_answered_again(here: Path) -> None:
    first = answer_images("engines", "photos", "answers.jsonl")
    before = Path("answers.jsonl").stat()
    # Nothing is opened: this backend cannot run here.
    again = answer_images("engines", "photos", "answers.jsonl", options={"backend": "tensorrt"})
    assert (again.earlier, again.exits, again.answered) == (50, first.exits, 49)
    assert again.images_per_second is None
    assert Path("answers.jsonl").stat().st_mtime_ns == before.st_mtime_ns


KILLED = """
import sys
from lgvit_edge.offline import answer_images
answer_images("engines", "photos", sys.argv[1], policy="confidence:0.5", batch=4)
"""


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_killed_at_any_moment_the_file_is_the_same(suffix: str, here: Path) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    for i in range(12):  # 600 images, in shards of 12
        shutil.copytree("photos/a", f"photos/more{i}")
        shutil.copytree("photos/b", f"photos/{i}")
    answer_images("engines", "photos", f"undisturbed.{suffix}", policy=POLICY, batch=4)
    out, parts = Path(f"answers.{suffix}"), Path(f"answers.{suffix}.parts")

    for goal in (30, 130, 200):
        process = subprocess.Popen([sys.executable, "-c", KILLED, out], stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while count_lines(out) < goal and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not out.exists()
    before = count_lines(out)
    outcome = answer_images("engines", "photos", out, policy=POLICY, batch=4)
    assert before - 4 <= outcome.earlier <= before and outcome.earlier >= 200
    assert out.read_bytes() == Path(f"undisturbed.{suffix}").read_bytes()
    assert not parts.exists()


def test_ctrl_c_says_how_to_go_on(here: Path, interrupt: Callable[[list[str], str], str]) -> None:
    expected = answered()
    for i in range(40):
        shutil.copytree("photos/a", f"photos/{i}")
    line = "predict --engines engines --data photos --out answers.jsonl --restart"
    said = interrupt(line.split(), "answers.jsonl.parts/*.part")
    assert (
        "images are done and kept; to go on, run the same command again without --restart" in said
    )
    for i in range(40):
        shutil.rmtree(f"photos/{i}")
    answer_images("engines", "photos", "answers.jsonl", restart=True)
    assert Path("answers.jsonl").read_bytes() == expected


def test_a_full_disk_keeps_what_is_answered(here: Path) -> None:
    import resource

    expected = answered()

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))

    line = "predict --engines engines --data photos --out answers.jsonl"
    done = lgvit_edge(*line.split(), cwd=here, before=full)
    assert done.returncode == 1
    assert "File too large; what is answered is kept in" in done.stderr
    assert "make room, then run the same command again" in done.stderr
    assert not Path("answers.jsonl").exists()
    assert not list(here.glob(".answers*"))
    outcome = answer_images("engines", "photos", "answers.jsonl")
    assert outcome.earlier > 0
    assert Path("answers.jsonl").read_bytes() == expected


# What an output was begun with


def begin(**options: Any) -> None:
    """A job that is not over: all its shards but the last are there."""
    answer_images("engines", "photos", "answers.jsonl", **options)
    record = json.loads(Path("answers.jsonl.job.json").read_text())
    record["finished"] = None
    Path("answers.jsonl.job.json").write_text(json.dumps(record))
    Path("answers.jsonl").unlink()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (
            dict(policy="confidence:0.7"),
            "policy: expected confidence 0.8 1.0, found confidence 0.7",
        ),
        (dict(batch=4), "--batch: expected 2, found 4"),
        (dict(times=True), "--times: expected false, found true"),
        (dict(data="photos/a"), "number of images: expected 50, found 10"),
        (dict(data="renamed"), "list of images: expected .*, found "),
        (dict(engines="other"), "bundle: expected .*, found "),
        (dict(engines="renamed_classes"), "class names: expected .*, found "),
    ],
)
def test_a_job_does_not_go_on_with_something_else(
    changes: dict[str, Any], what: str, here: Path, bundle: Path, passes_bundle: Path
) -> None:
    begin()
    shutil.copytree("photos", "renamed")
    Path("renamed/a/00.png").rename("renamed/a/000.png")
    Path("other").symlink_to(passes_bundle)
    shutil.copytree(bundle, "renamed_classes")
    manifest = Path("renamed_classes/manifest.json")
    record = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**record, "labels": list("vwxyz")}))
    arguments = {"engines": "engines", "data": "photos", "out": "answers.jsonl"} | changes
    with pytest.raises(UsageError, match=what) as refused:
        answer_images(**arguments)
    assert "name another --out, or begin anew with --restart" in str(refused.value)
    answer_images(**arguments, restart=True)
    assert read("answers.jsonl")


def test_a_job_does_not_go_on_with_another_backend(here: Path) -> None:
    pytest.importorskip("openvino")
    begin()
    options = {"backend": "openvino", "precision": "fp32"}
    with pytest.raises(UsageError, match="add --backend onnxruntime, name another --out, or"):
        answer_images("engines", "photos", "answers.jsonl", options=options)


def test_two_runs_into_one_output_are_refused(
    here: Path, lock_elsewhere: Callable[[Path], AbstractContextManager[object]]
) -> None:
    with (
        lock_elsewhere(here / ".answers.jsonl.lock"),
        pytest.raises(UsageError, match="answers.jsonl is being written by .*; wait for it, or"),
    ):
        answer_images("engines", "photos", "answers.jsonl")
    answer_images("engines", "photos", "answers.jsonl")
    assert not Path(".answers.jsonl.lock").exists()


@pytest.mark.parametrize("place", ["answers.jsonl", "answers.jsonl.parts"])
def test_files_of_others_are_left_alone(place: str, here: Path) -> None:
    Path(place).mkdir() if place.endswith("parts") else Path(place).write_text("mine")
    with pytest.raises(UsageError, match=f"{place} exists, and no .*job.json beside it says"):
        answer_images("engines", "photos", "answers.jsonl")
    answer_images("engines", "photos", "answers.jsonl", restart=True)
    assert len(read("answers.jsonl")) == 49


def test_a_finished_output_that_was_changed_is_refused(here: Path) -> None:
    answer_images("engines", "photos", "answers.jsonl")
    size = Path("answers.jsonl").stat().st_size
    os.truncate("answers.jsonl", size - 1)
    with pytest.raises(UsageError, match=f"expected {size} bytes, found {size - 1}; name another"):
        answer_images("engines", "photos", "answers.jsonl")
    Path("answers.jsonl").unlink()
    with pytest.raises(UsageError, match=f"expected {size} bytes, no such file; name another"):
        answer_images("engines", "photos", "answers.jsonl")


@pytest.mark.parametrize("text", ["", "{}", '{"schema_version": 2}', '{"schema_version": 1}'])
def test_a_damaged_record_is_refused(text: str, here: Path) -> None:
    Path("answers.jsonl.job.json").write_text(text)
    with pytest.raises(UsageError, match=r"answers.jsonl.job.json"):
        answer_images("engines", "photos", "answers.jsonl")


# The command


@pytest.mark.parametrize(
    ("line", "cure"),
    [
        ("", "expected images to show, or --data and --out; run: lgvit-edge predict --engines en"),
        ("x.jpg --data photos", "--data is for a folder .* --data x.jpg --out answers.jsonl"),
        ("x.jpg --batch 4", "--batch is for a folder or list given as --data; images that are nam"),
        ("--data photos", "--data needs --out FILE; run: .* --data photos --out answers.jsonl"),
        ("--out a.parquet", "--out needs --data DIR or a list; run: .* --out a.parquet"),
        ("--restart", "--restart needs --data DIR or a list; run"),
        ("--data photos --out a.csv", "--out must end in .jsonl or .parquet, found 'a.csv'"),
        ("--data photos --out a.jsonl --batch 9", "takes at most 4 images .* --batch 1:9:9"),
        ("--data photos --out a.jsonl --policy confidence:2", "a threshold must be in 0..1"),
        ("--data photos --out a.jsonl --point fast", "no operating point 'fast'"),
        ("--data photos --out /dev/stdout", "--out: expected a file, found a pipe or a device"),
    ],
)
def test_wrong_use_is_told_with_the_right_line(
    line: str, cure: str, here: Path, command: Command
) -> None:
    said = command(*f"predict --engines engines {line}".split(), status=2)
    assert re.search(cure, said), said
    assert not list(here.glob("*a*.jsonl*")) and not list(here.glob(".*"))


def test_the_command_shows_what_came_of_it(
    here: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "predict --engines engines --data photos --out answers.jsonl".split()
    said = command(*line)
    assert "49 answers: answers.jsonl" in said
    assert "1 of 50 images cannot be read: " in said and "answers.jsonl.unreadable.jsonl" in said
    assert "50 images in " in said and " a second" in said
    # The log, where there is no terminal
    assert "answering images: " in said and "(50/50)" in said
    record, _ = json.JSONDecoder().raw_decode(command(*line, "--json"))
    assert record["earlier"] == record["images"] == 50 and sum(record["exits"]) == 49
    assert record["images_per_second"] is None
    assert "all were answered before; nothing was run" in command(*line)


def test_images_in_a_large_folder_take_little_memory() -> None:
    from lgvit_edge.offline.listing import Listing

    listing = Listing(Path("/x"), (b"folder/%07d.jpg" % i for i in range(100_000)))
    assert len(listing._text) + listing._ends.itemsize * len(listing._ends) < 27 * 100_000
    assert listing[99_999] == ("folder/0099999.jpg", "/x/folder/0099999.jpg")
    assert listing[0].name == "folder/0000000.jpg"


def test_arrays_of_one_image(here: Path) -> None:
    """A folder of one image: one shard, one batch."""
    Path("one").mkdir()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save("one/a.png")
    assert answer_images("engines", "one", "answers.jsonl").answered == 1
