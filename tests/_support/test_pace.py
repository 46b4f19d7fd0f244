"""How long is left: told only from what was measured."""

from __future__ import annotations

import pytest

from lgvit_edge._support import pace
from lgvit_edge._support.pace import Pace, in_words, paced


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The present time, to be set."""
    now = [100.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_rests_on_the_work_that_ended_last(clock: list[float]) -> None:
    works = Pace(60)
    works.begin(10)
    clock[0] += 5
    assert str(works) == ""  # nothing has ended yet
    clock[0] += 25
    works.begin(20)  # 10 took 30 s
    assert str(works) == "about 3 min left"  # 150 s
    clock[0] += 30
    works.begin(30)  # 20 took 30 s
    assert str(works) == "about 50 s left"
    clock[0] += 20
    assert str(works) == "about 30 s left"


def test_a_work_that_takes_longer_than_expected_makes_the_rest_longer(clock: list[float]) -> None:
    works = Pace(30)
    works.learn(10, 10)
    assert str(works) == "about 30 s left"
    works.begin(10)
    clock[0] += 60
    assert str(works) == "about 2 min left"  # the other 20 take as long for their size
    works.begin(20)
    clock[0] += 500
    assert str(works) == ""  # it should have ended


def test_works_are_told_every_ten_seconds(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    for work in paced("compiled", "abcdef", [1.0] * 6):
        seen.append(work)
        clock[0] += 6
    assert seen == list("abcdef")
    said = capsys.readouterr().err.splitlines()
    assert said == ["compiled 2 of 6, about 30 s left", "compiled 4 of 6, about 20 s left"]


def test_short_works_are_not_told(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in paced("compiled", "abc", [1.0] * 3):
        clock[0] += 3
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.2, "1 s"), (7.1, "8 s"), (41, "50 s"), (90, "90 s"), (91, "2 min")),
        *((3540, "59 min"), (3541, "1 h"), (4700, "1 h 20 min"), (7200, "2 h")),
    ],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert in_words(seconds) == text
