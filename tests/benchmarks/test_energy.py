"""Energy of chain and baseline: what is measured, in which order, and when there is no figure."""

from __future__ import annotations

import copy
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pytest import MonkeyPatch
from rich.console import Console
from small import write_photos
from typer.testing import CliRunner

from lgvit_edge.benchmarks import energy, measure, measure_exits, print_report
from lgvit_edge.benchmarks.compare import compare_records, print_comparison
from lgvit_edge.benchmarks.energy import EnergyRun, Span
from lgvit_edge.cli.app import app
from lgvit_edge.errors import DataError
from lgvit_edge.images.labelled import LabelledImage, find_images
from lgvit_edge.machine.power import Meter
from lgvit_edge.policies import FixedExit
from lgvit_edge.runtime import Session

RAIL = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
ZONE = "sys/class/powercap/intel-rapl:0"


class Board:
    """A session, and below ``root`` the files of a board that tells what it spends.

    An image costs 10 mJ for every exit that it passes, and 60 mJ in the baseline; it is 10 W in
    the chain and 20 W in the baseline on the rail, and 5 W before.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.spent, self.order = root, 29_000_000, ""
        self.manifest = SimpleNamespace(segments=[None] * 4, passes=[SimpleNamespace(image_size=8)])
        self.policy: Any = FixedExit(2)
        self.point, self.notes = None, True
        for name, text in {
            f"{RAIL}/in1_label": "VDD_IN",
            f"{RAIL}/in1_input": "5000",
            f"{ZONE}/name": "package-0",
            f"{ZONE}/max_energy_range_uj": "30000000",
        }.items():
            self.write(name, text)
        self.spend(0, 1000)

    def write(self, name: str, text: str) -> None:
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".new").write_text(text)
        file.with_suffix(".new").replace(file)  # never half written

    def spend(self, microjoules: int, milliamperes: int) -> None:
        self.spent += microjoules
        self.write(f"{ZONE}/energy_uj", str(self.spent % 30_000_000))  # it wraps at once
        self.write(f"{RAIL}/curr1_input", str(milliamperes))
        time.sleep(1e-3)

    def describe(self) -> dict[str, str]:
        return {"device": "cpu"}

    def predict(self, frame: Any) -> Any:
        self.spend(10000 * self.policy.exit, 2000)
        self.order += "c" * (not self.order.endswith("c"))
        return SimpleNamespace(exit=self.policy.exit)

    def timed_baseline(self, frame: Any) -> Any:
        self.spend(60000, 4000)
        self.order += "b" * (not self.order.endswith("b"))
        return np.zeros(3), 2.0, 1.0

    def run(self, seconds: float = 0.2) -> EnergyRun:
        session: Any = self
        return EnergyRun(session, root=self.root, seconds=seconds)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: MonkeyPatch) -> Board:
    monkeypatch.setattr(energy, "SHORTEST", 0.05)
    monkeypatch.setattr(energy, "FEWEST", 3)
    monkeypatch.setattr(energy, "_PASS", 10)
    monkeypatch.setattr(energy, "_EVERY", 0.005)
    return Board(tmp_path)


@pytest.fixture
def photos(tmp_path: Path) -> list[LabelledImage]:
    return find_images(write_photos(tmp_path / "photos", "abcde", 3), num_classes=5)


def by_name(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {meter["name"]: meter for meter in told["meters"]}


def test_energy_of_exits_in_turn(board: Board) -> None:
    told = board.run().of_exits([0.5, 0.3, 0.2, 0.0])
    assert board.order == "cbcbcb"
    assert [turn["part"] for turn in told["turns"]] == ["chain", "baseline", "baseline"] + [
        *("chain", "chain", "baseline", "baseline", "chain", "chain", "baseline")
    ]
    package = by_name(told)["package-0"]
    assert package["baseline"]["mj_per_image"] == pytest.approx(60)
    assert package["chain"]["mj_per_image"] == pytest.approx(10 * (0.5 + 0.6 + 0.6))
    assert package["ratio"] == pytest.approx(60 / 17)
    assert package["source"] == "RAPL" and "neither memory nor board" in package["covers"]
    assert package["idle_watts"] is None  # its counter stood still
    assert told["shares"] == [0.5, 0.3, 0.2, 0.0] and board.policy == FixedExit(2)
    assert all(turn["images"] % 10 == 0 and turn["seconds"] >= 0.2 for turn in told["turns"])
    rail = by_name(told)["VDD_IN"]
    assert rail["idle_watts"] == pytest.approx(5)
    # The first sample of a turn may be of the turn before.
    assert rail["chain"]["watts"] == pytest.approx(10, rel=0.15)
    assert rail["baseline"]["watts"] == pytest.approx(20, rel=0.15)
    chain = [turn for turn in told["turns"] if turn["part"] == "chain"]
    each = sorted(1e3 * turn["joules"][0] / turn["images"] for turn in chain)
    assert rail["chain"]["mj_per_image"] == pytest.approx(each[2])
    json.dumps(told, allow_nan=False)


def test_energy_of_images_by_the_sessions_policy(board: Board, photos: list[LabelledImage]) -> None:
    told = board.run(0.06).of_images(photos)
    assert by_name(told)["package-0"]["chain"]["mj_per_image"] == pytest.approx(20)
    assert told["images_per_pass"] == 10 and told["shares"] == [0, 1, 0, 0]


def test_images_that_cannot_be_decoded_give_no_figure(board: Board, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no")
    told = board.run(0.06).of_images([LabelledImage(tmp_path / "bad.png", 0)])
    assert told == {"meters": [], "notes": ["none of the images chosen could be decoded"]}


def test_what_is_too_short_gives_no_figure(board: Board, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "SHORTEST", 1.0)
    told = board.run(0.01).of_exits([1, 0, 0, 0])
    assert all(m["chain"] is m["baseline"] is m["ratio"] is None for m in told["meters"])
    assert "VDD_IN (INA3221) told too little for a figure" in told["notes"]
    assert printed({"energy": told}) == ""


def test_a_sensor_with_few_samples_and_a_counter_at_rest_give_no_figure(board: Board) -> None:
    answers: Iterator[float | None] = iter([1.0, 2.0])
    meters = [
        Meter("a", "INA3221", "a", watts=lambda: next(answers, None)),
        Meter("b", "RAPL", "b", joules=lambda: 7.0),
        Meter("c", "INA3221", "c", watts=lambda: 0.0),
    ]
    with Span(meters) as span:
        time.sleep(0.1)
    assert span.joules == [None, None, 0.0]


def test_a_counter_that_wraps_again_and_again_is_followed(
    board: Board, monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "COUNT_EVERY", 0.05)
    start = time.perf_counter()
    meter = Meter(
        "a", "RAPL", "a", joules=lambda: 2 * (time.perf_counter() - start) % 1, wraps_at=1.0
    )
    with Span([meter]) as span:
        time.sleep(1.2)
    assert span.joules == pytest.approx([2 * span.seconds], rel=0.05)


def test_a_rail_that_reads_less_than_nothing_has_no_ratio(board: Board) -> None:
    board.write(f"{RAIL}/in1_input", "-5000")
    told = board.run(0.06).of_exits([1, 0, 0, 0])
    rail = by_name(told)["VDD_IN"]
    assert rail["chain"]["watts"] < 0 and rail["ratio"] is None
    assert "VDD_IN" in printed({"energy": told})


def test_the_end_of_the_work_is_the_end_of_sampling(board: Board) -> None:
    meter = Meter("a", "INA3221", "a", watts=lambda: 1.0)
    with pytest.raises(DataError), Span([meter]) as span:
        raise DataError("the work failed")
    assert not span._thread.is_alive()


def test_where_nothing_is_told_nothing_is_run(tmp_path: Path, bundle: Path) -> None:
    with Session.open(bundle) as session:
        run = EnergyRun(session, root=tmp_path, seconds=1000)
        told = run.of_exits([1, 0, 0, 0])
        assert told == run.of_images([]) == {"meters": [], "notes": ["this machine tells no power"]}


def test_turns_that_differ_and_throttling_are_named(board: Board) -> None:
    real = board.spend
    costs = iter(range(10**6))

    def spend(microjoules: int, milliamperes: int) -> None:
        real(microjoules, 2000 + 20 * next(costs))
        board.write("sys/class/hwmon/hwmon3/oc3_event_cnt", str(next(costs)))

    board.write("sys/class/hwmon/hwmon3/oc3_event_cnt", "0")
    board.spend = spend  # type: ignore[method-assign]
    reasons = board.run(0.06).of_exits([1, 0, 0, 0])["unstable"]
    assert any("energy of the chain was" in reason and "VDD_IN" in reason for reason in reasons)
    assert any("throttled while energy was measured" in reason for reason in reasons)


def figures(mj: float, base: float, **other: Any) -> dict[str, Any]:
    meter = {"name": "VDD_IN", "source": "INA3221", "covers": "the whole module"}
    meter |= {"idle_watts": 4.5, "ratio": base / (mj or 1)}
    meter |= {"chain": {"watts": 9.0, "mj_per_image": mj}}
    meter |= {"baseline": {"watts": 11.0, "mj_per_image": base}}
    other_meter = dict.fromkeys(("idle_watts", "ratio", "chain", "baseline"))
    rows = [meter | other, other_meter | {"name": "silent", "source": "RAPL", "covers": "it"}]
    return {"meters": rows, "notes": [], "turns": [{}] * 10, "images_per_pass": 50, "unstable": []}


@pytest.fixture(scope="module")
def record(bundle: Path) -> dict[str, Any]:
    with Session.open(bundle) as session:
        measured: dict[str, Any] = json.loads(json.dumps(measure_exits(session, rounds=2)))
    return measured


def printed(told: dict[str, Any]) -> str:
    from lgvit_edge.benchmarks.report import terminal

    said = io.StringIO()
    terminal._energy(told["energy"], Console(file=said, width=80))
    return said.getvalue()


def test_the_table_says_what_was_measured(record: dict[str, Any]) -> None:
    said = io.StringIO()
    print_report(record | {"energy": figures(38.1, 62.0)}, Console(file=said, width=80))
    (row,) = [line for line in said.getvalue().splitlines() if line.startswith("VDD_IN")]
    assert row.split() == ["VDD_IN", "62.00", "38.10", "1.63", "4.50", "11.00", "9.00"]
    assert len(row) <= 80 and "silent" not in said.getvalue()
    assert "Energy of VDD_IN (INA3221): the whole module. Idle power is included" in said.getvalue()
    without = io.StringIO()
    print_report(record | {"energy": {"meters": [], "notes": ["x"]}}, Console(file=without))
    assert "mJ" not in without.getvalue() and "x" * 10 not in without.getvalue()


def test_the_page_says_what_was_measured(
    record: dict[str, Any], bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    from lgvit_edge.benchmarks.report.page import write_page
    from lgvit_edge.benchmarks.report.survey import survey

    with Session.open(bundle) as session:
        full = record | {"survey": survey(session, None, record)}
        state = {"cpu_mhz": [800, 1510], "temperature_c": {"tj-thermal": 47.5}}
        full |= {"clocks": {"before": state, "after": {}}}
        told = figures(38.1, 62.0, covers="the whole <module>") | {"unstable": ["it shook"]}
        write_page(tmp_path / "r.html", full | {"energy": told}, session.manifest, None)
        write_page(tmp_path / "without.html", full, session.manifest, None)
    page = (tmp_path / "r.html").read_text()
    assert "<td>VDD_IN</td><td>62.00</td><td>38.10</td><td>1.63</td><td>4.50</td>" in page
    assert "the whole &lt;module&gt;" in page and "it shook" in page
    assert "38.10 mJ" in page and "silent" not in page
    assert "cpu mhz [800, 1510], temperature c (tj-thermal 47.5)" in page and "not told" in page
    assert "mJ" not in (tmp_path / "without.html").read_text()


def compared(tmp_path: Path, record: dict[str, Any], *told: Any) -> str:
    paths = []
    for i, energy_told in enumerate(told):
        changed = copy.deepcopy(record) | {"energy": energy_told}
        paths.append(tmp_path / f"{i}.json")
        paths[-1].write_text(json.dumps(changed))
    said = io.StringIO()
    print_comparison(compare_records(paths), Console(file=said, width=120))
    return said.getvalue()


def test_records_are_compared_by_a_meter_that_all_have(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    said = compared(tmp_path, record, figures(40, 60), figures(30, 63))
    assert "1  63.00  30.00  2.10x  0.750".split() in [line.split() for line in said.splitlines()]
    assert "energy at VDD_IN (INA3221), idle power included" in said
    for other in (None, {"meters": [], "notes": []}, figures(30, 63, source="NVML")):
        assert "mJ" not in compared(tmp_path, record, figures(40, 60), other)


@pytest.mark.parametrize(
    "told", [7, [], {"meters": [1]}, figures(0, 9), figures(-3, 9), {"meters": {"a": 1}}]
)
def test_energy_that_cannot_be_is_refused(
    tmp_path: Path, record: dict[str, Any], told: Any
) -> None:
    with pytest.raises(DataError, match="is no record of lgvit-edge bench --json"):
        compared(tmp_path, record, figures(40, 60), told)


def test_throttling_makes_a_record_unstable(bundle: Path, monkeypatch: MonkeyPatch) -> None:
    counts = iter((3, 9))
    monkeypatch.setattr(
        measure,
        "clock_state",
        lambda gpu: {"throttle_events": {"processor package": next(counts)}},
    )
    with Session.open(bundle) as session:
        record = measure_exits(session, rounds=2)
    assert record["clocks"]["before"] == {"throttle_events": {"processor package": 3}}
    (reason,) = [reason for reason in record["unstable"] if "throttled" in reason]
    assert "processor package 6 times" in reason and "cool down" in reason


def test_bench_measures_prints_and_keeps_energy(
    bundle: Path, board: Board, tmp_path: Path, monkeypatch: MonkeyPatch, photos: object
) -> None:
    here = energy.find_meters
    monkeypatch.setattr(energy, "find_meters", lambda root, gpu: here(board.root, gpu=None))
    defaults: Any = EnergyRun.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "seconds", 0.06)
    path = tmp_path / "record.json"
    told = []
    for more in ((), ("--data", str(tmp_path / "photos")), ("--no-energy",)):
        arguments = ["bench", "--engines", str(bundle), "--rounds", "2", "--json", str(path)]
        done = CliRunner().invoke(app, [*arguments, *more])
        assert done.exit_code == 0, done.output
        record = json.loads(path.read_text())
        assert {"before", "after"} == set(record["clocks"])
        assert ("mJ per image" in done.output) == ("energy" in record)
        told.append(record.get("energy"))
    for each in told[:2]:
        rail = by_name(each)["VDD_IN"]
        assert rail["chain"]["watts"] == rail["idle_watts"] == pytest.approx(5)
        assert by_name(each)["package-0"]["chain"] is None  # it stood still
    assert told[0]["shares"] == [0.3, 0.3, 0.2, 0.2] and told[2] is None
