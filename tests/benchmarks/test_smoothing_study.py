"""The study of answers over time: its films, its replays, and what it compares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import write_photos

from lgvit_edge.benchmarks.experiments import smoothing
from lgvit_edge.benchmarks.experiments.scenes import SIDE, film
from lgvit_edge.errors import DataError, LGViTEdgeError, UsageError
from lgvit_edge.images.labelled import LabelledImage
from lgvit_edge.policies import Confidence


def test_a_film_looks_at_one_picture_and_never_quite_alike() -> None:
    picture = np.zeros((64, 80, 3), np.uint8)
    picture[:, 40:] = 200
    frames = list(film(picture, 30, np.random.default_rng(3)))
    assert {(f.shape, f.dtype.name) for f in frames} == {((SIDE, SIDE, 3), "uint8")}
    edges = [int(np.abs(np.diff(f.mean((0, 2)))).argmax()) for f in frames]
    assert len(set(edges)) > 5, "it moves"
    again = list(film(picture, 30, np.random.default_rng(3)))
    assert all((a == b).all() for a, b in zip(frames, again, strict=True))


def test_no_scene_is_followed_by_one_of_its_class() -> None:
    images = [LabelledImage(Path(f"{i}.png"), i % 3) for i in range(60)]
    order = smoothing.cast(images)
    assert sorted(i.path.name for i in order) == sorted(i.path.name for i in images)
    assert all(a.class_index != b.class_index for a, b in zip(order, order[1:], strict=False))


@pytest.fixture
def study(tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(smoothing, "CAMERAS", 4)
    monkeypatch.setattr(smoothing, "SPEED_UPS", (1.05, 9.0))
    photos = write_photos(tmp_path / "photos", "abcde", 4)
    about: dict[str, Any] = dict(engines=bundle, data=photos, logits=tmp_path / "logits.npz")
    about |= dict(scenes=8, frames=7, thresholds="0.3,0.5,0.9", backend="onnxruntime")
    return about | dict(smoothings="majority:4,average:4", json_file=tmp_path / "record.json")


def test_it_runs_and_a_session_answers_alike(
    study: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    smoothing.main(**study, plot=study["logits"].with_suffix(".png"))
    record = json.loads(study["json_file"].read_text())
    single, votes, average = record["rows"].values()
    assert [len(rows) for rows in record["rows"].values()] == [4, 4, 4]
    for mine, theirs in zip(votes, single, strict=True):
        assert mine["macs"] == theirs["macs"] and mine["shares"] == theirs["shares"]
        assert mine["macs_error"] == 0 and "macs_change" not in theirs
    assert average[-1]["macs"] == single[-1]["macs"] == 1.0, "Never runs the model without exits"
    assert [a["macs"] for a in average] != [s["macs"] for s in single]
    assert {line["name"] for line in record["equal"]} == {"majority:4", "average:4"}
    assert all(line["single"] is None for line in record["equal"] if line["speed_up"] == 9.0)
    told = capsys.readouterr().out
    assert "2 scenes were run by a session, alike" in told
    smoothing.main(**study)  # the logits are there
    with pytest.raises(UsageError, match="is of other scenes; name another file"):
        smoothing.main(**study | {"frames": 8})


def test_answers_that_differ_are_told(study: dict[str, Any]) -> None:
    smoothing.main(**study)
    with np.load(study["logits"]) as arrays:
        changed = dict(arrays)
    changed["logits"] = changed["logits"][..., ::-1]
    np.savez(study["logits"], **changed)
    with pytest.raises(LGViTEdgeError, match="scene 0, frame 0: expected exit, class and conf"):
        smoothing.main(**study)


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"scenes": 10}, UsageError, "--scenes: expected a multiple of 4, found 10"),
        ({"scenes": 12}, DataError, "--data: expected at least 24 images"),
        ({"smoothings": "mean:4"}, UsageError, "must be majority:N or average:N"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    wrong: dict[str, Any], kind: type[Exception], message: str, study: dict[str, Any]
) -> None:
    with pytest.raises(kind, match=message):
        smoothing.main(**study | wrong)


def test_gains_at_equal_speed_are_between_thresholds() -> None:
    """Twice as many MACs for every point of accuracy, and ten points more of it when smoothed."""

    def answers(level: int, more: float) -> smoothing.Answers:
        right = np.zeros((800, 10), np.bool_)
        right[:, : round(10 * (0.2 + 0.2 * level + more))] = True
        shape = right.shape
        macs = np.full(shape, 0.3 + 0.3 * level)
        ones = np.ones(shape, np.int64)
        return smoothing.Answers(Confidence(0.5), ones, ones, macs, right[:, ::-1], macs)

    single, ours = ([answers(level, more) for level in range(4)] for more in (0.0, 0.1))
    first, *_ = smoothing.at_equal_speed(ours, single)
    # At 1 / 1.25 = 0.8 of the MACs, single frames reach 0.2 + 0.2 * (0.5 / 0.3).
    assert first["single"] == pytest.approx(0.5333, abs=1e-3)
    assert first["gain"] == pytest.approx(0.1) and first["gain_error"] == pytest.approx(0, abs=1e-9)
    assert first["as_accurate_at"] == pytest.approx(1 / 0.65)
