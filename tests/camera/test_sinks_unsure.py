"""Keeping hard pictures: which, how many, and that training reads them once labelled."""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from shots import START, answer, picture, shot

from lgvit_edge.camera.sinks.names import IN_FILES, as_name
from lgvit_edge.camera.sinks.unsure import KeepUnsure, class_folder_names
from lgvit_edge.errors import SinkError, UsageError
from lgvit_edge.images.labelled import find_images
from lgvit_edge.images.preprocess import load_rgb
from lgvit_edge.policies.scores import ENTROPY

pytest.importorskip("cv2")


@pytest.fixture
def keeping(tmp_path: Path) -> Iterator[Callable[..., KeepUnsure]]:
    made: list[KeepUnsure] = []

    def make(**options: Any) -> KeepUnsure:
        made.append(sink := KeepUnsure(tmp_path / "kept", **{"every": 0, **options}))
        sink.open()
        return sink

    yield make
    for sink in made:
        sink.close()


Keeping = Callable[..., KeepUnsure]


def kept(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.glob("kept/to-label/*/*"))


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "kept" / "answers.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_what_no_exit_was_sure_of_and_what_is_unsure_is_kept(
    tmp_path: Path, keeping: Keeping
) -> None:
    sink = keeping()
    sink.take(shot(frame=0, image=picture()))
    sink.take(shot(frame=1, image=picture(), stopped="deadline"))
    sink.take(shot(frame=2, image=picture(), stopped="final", guess="cat"))
    sink.take(shot("a/b", 3, image=picture(), label=None, guess="dog"))
    assert kept(tmp_path) == [
        "kept/to-label/cat/gate-20270115T080000.200Z-2.jpg",
        "kept/to-label/dog/a%2Fb-20270115T080000.300Z-3.jpg",
    ]
    said = lines(tmp_path)
    assert [(line["file"], line["guess"]) for line in said] == [
        ("to-label/cat/gate-20270115T080000.200Z-2.jpg", "cat"),
        ("to-label/dog/a%2Fb-20270115T080000.300Z-3.jpg", "dog"),
    ]
    assert said[1]["camera"] == "a/b" and said[1]["unsure"]


def test_exits_and_confidences_that_count_as_hard(tmp_path: Path, keeping: Keeping) -> None:
    sink = keeping(from_exit=3, below=0.5)
    said = [(2, 0.9, "final"), (3, 0.9, "policy"), (4, 0.9, "policy"), (1, 0.49, "policy")]
    for frame, (exit, confidence, stopped) in enumerate(said):
        image = picture()
        sink.take(shot(frame=frame, image=image, exit=exit, confidence=confidence, stopped=stopped))
    assert [line["frame"] for line in lines(tmp_path)] == [1, 2, 3]
    sink.close()
    sink = keeping(below=1.0)
    for frame, entropy in ((10, 0.9), (11, 1.1)):  # of entropy, less is surer
        sink.take(shot(frame=frame, image=picture(), confidence=entropy, measure=ENTROPY))
    assert [line["frame"] for line in lines(tmp_path)][3:] == [11]


def test_of_a_region_what_was_classified_is_kept(tmp_path: Path, keeping: Keeping) -> None:
    image = picture(64, 48)
    left = answer(region="left", box=(0, 0, 20, 10), label=None)
    right = answer(region="r/1", box=(30, 20, 34, 28), label=None)
    keeping(png=True).take(shot("gate", 0, left, right, image=image))
    first, second = kept(tmp_path)
    assert first.endswith("gate-20270115T080000.000Z-0-left.png")
    assert second.endswith("gate-20270115T080000.000Z-0-r%2F1.png")
    assert (load_rgb(tmp_path / first) == image[:10, :20]).all()
    assert (load_rgb(tmp_path / second) == image[20:, 30:]).all()


def test_colours_survive_jpeg(tmp_path: Path, keeping: Keeping) -> None:
    image = picture(200, 100)
    keeping().take(shot(image=image, label=None, box=(0, 0, 200, 100)))
    stored = np.asarray(Image.open(tmp_path / kept(tmp_path)[0])).astype(int)
    assert np.abs(stored - image).mean() < 12


def test_each_region_of_each_camera_has_its_own_pace(
    tmp_path: Path, keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    sink = keeping(every=10)
    for frame in range(50):  # one a second
        for camera in ("gate", "yard"):
            two = [answer(camera, frame, None, region=region) for region in ("a", "b")]
            sink.take(shot(camera, frame, *two, image=picture()))
        now += 1
    found = [(line["camera"], line["region"], line["frame"]) for line in lines(tmp_path)]
    assert len(found) == len(set(found)) == 20
    assert {frame for _, _, frame in found} == {0, 10, 20, 30, 40}


def test_the_oldest_give_way_also_those_of_earlier_runs(tmp_path: Path, keeping: Keeping) -> None:
    sink = keeping(max_mb=0.1)
    mine = tmp_path / "kept" / "to-label" / "a" / "mine.jpg"
    labelled = tmp_path / "kept" / "labelled" / "a"
    labelled.mkdir(parents=True)
    for run in range(2):
        for frame in range(40):
            sink.take(shot(frame=40 * run + frame, image=picture(), label=None))
            newest = max(mine.parent.iterdir(), key=os.path.getmtime)
            os.utime(newest, (START, START + 40 * run + frame))
            if (run, frame) == (0, 0):
                shutil.copy(newest, mine)
                os.utime(mine, (1, 1))
                newest.rename(labelled / newest.name)
        sink.close()
        sink = keeping(max_mb=0.1)
    ours = [path for path in mine.parent.iterdir() if path != mine]
    assert sum(path.stat().st_size for path in ours) <= 100_000
    frames = sorted(int(path.stem.rpartition("-")[2]) for path in ours)
    assert frames == list(range(80 - len(frames), 80)) and 5 < len(frames) < 80
    assert mine.exists() and len(list(labelled.iterdir())) == 1


def test_a_picture_larger_than_all_space_is_refused(tmp_path: Path, keeping: Keeping) -> None:
    sink = keeping(max_mb=0.001)
    with pytest.raises(SinkError, match="more than max_mb allows") as raised:
        sink.take(shot(image=picture(), label=None))
    assert raised.value.final
    with pytest.raises(SinkError, match="cannot be encoded: it is empty") as raised:
        sink.take(shot("gate", 0, answer(box=(0, 0, 0, 5), label=None), image=picture()))
    assert raised.value.final


def test_a_full_disk_leaves_no_part_of_a_picture(tmp_path: Path, keeping: Keeping) -> None:
    sink = keeping()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            sink.take(shot(image=picture(), label=None))
        assert kept(tmp_path) == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    sink.take(shot(image=picture(), label=None))
    assert len(kept(tmp_path)) == len(lines(tmp_path)) == 1


def test_what_killed_processes_left_is_removed(tmp_path: Path, keeping: Keeping) -> None:
    keeping().close()
    folder = tmp_path / "kept" / "to-label" / "a"
    folder.mkdir()
    for name, age in ((".x.jpg.1.partial", 3600), (".y.jpg.1.partial", 0)):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age,) * 2)
    keeping()
    assert os.listdir(folder) == [".y.jpg.1.partial"]


LABELS = ("cat", "猫", "a/b", "crane", "crane", "lost+found", ".hidden", " c ", "100%", "x" * 300)


def test_training_reads_the_folder_once_it_is_labelled(tmp_path: Path, keeping: Keeping) -> None:
    sink = keeping(labels=LABELS)
    for index, label in enumerate(LABELS):
        guessed = answer("gate", index, None, guess=label)
        object.__setattr__(guessed, "class_index", index)
        sink.take(shot("gate", index, guessed, image=picture()))
    folders = (tmp_path / "kept" / "classes.txt").read_text().splitlines()
    assert folders == list(class_folder_names(LABELS)) and len(set(folders)) == len(LABELS)
    # A person moves every picture into the folder of its class.
    for index, folder in enumerate(folders):
        (target := tmp_path / "kept" / "labelled" / folder).mkdir(parents=True)
        (found,) = (tmp_path / "kept" / "to-label" / folder).iterdir()
        assert f"-{index}." in found.name
        found.rename(target / found.name)
    images = find_images(
        tmp_path / "kept" / "labelled",
        num_classes=len(LABELS),
        names=LABELS,
        classes=tmp_path / "kept" / "classes.txt",
    )
    assert sorted((int(i.path.stem.rpartition("-")[2]), i.class_index) for i in images) == [
        (index, index) for index in range(len(LABELS))
    ]
    assert all(load_rgb(image.path).shape == (48, 64, 3) for image in images)


def test_folders_are_called_like_their_classes_wherever_they_can_be() -> None:
    plain = ("tench, Tinca tinca", "猫", "C++", 'a "b": c?', "0")
    assert class_folder_names(plain) == plain
    names = class_folder_names(LABELS[:9])
    assert names == ("cat", "猫", "a%2Fb", "crane%~3", "crane%~4", *names[5:])
    assert names[5:] == ("%6Cost+found", "%2Ehidden", "%20c%20", "100%25")
    for label, name in zip((*LABELS[:3], *LABELS[5:9]), (*names[:3], *names[5:9]), strict=True):
        assert unquote(name) == label
    assert len(class_folder_names([str(i) for i in range(30_000)])) == 30_000  # at once


def test_different_names_stay_different_and_fit_everywhere() -> None:
    names = [
        "",
        "%",
        "a/b",
        "a%2Fb",
        "a\\b",
        "a:b",
        ".",
        "..",
        " a",
        "a ",
        "\0",
        "\udc80",
        "\uffff",
    ]
    names += ["x" * 500, "x" * 501, "猫" * 200, "\n", "a\u202eb", "a"]
    made = [as_name(name, IN_FILES) for name in names]
    assert len(set(made)) == len(names)
    assert all(len(name.encode()) <= 200 and "/" not in name for name in made)
    assert not any(set(name) & set(IN_FILES) or name.startswith((".", " ")) for name in made)
    for name, text in zip(made[1:13], names[1:13], strict=True):
        assert unquote(name, errors="surrogatepass") == text


def test_settings_and_places_that_are_none(tmp_path: Path, keeping: Keeping) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"below": float("nan")}, "below must be a number"),
        ({"below": "x"}, "below must be a number"),
        ({"every": -1}, "every must be at least 0 seconds"),
        ({"max_mb": 0}, "max_mb must be a number of at least 0.001"),
        ({"from_exit": 0}, "from_exit must be a whole number of at least 1"),
        ({"png": "yes"}, "png must be true or false"),
    ]
    for options, error in wrong:
        with pytest.raises(UsageError, match=error):
            KeepUnsure(tmp_path, **options)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write to .*file: .*; name another folder"):
        KeepUnsure(tmp_path / "file").open()
    keeping()
    with pytest.raises(UsageError, match="another process writes .*answers.jsonl"):
        keeping()
