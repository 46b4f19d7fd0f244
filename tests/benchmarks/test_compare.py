"""``lgvit-edge compare``: records and bundles side by side, unlike ones refused."""

from __future__ import annotations

import copy
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small import point
from typer.testing import CliRunner

from lgvit_edge.benchmarks import measure_exits
from lgvit_edge.benchmarks.compare import compare_records, parse_share, print_comparison
from lgvit_edge.bundle.directory import add_to_manifest, open_bundle
from lgvit_edge.cli.app import app
from lgvit_edge.errors import DataError, UsageError
from lgvit_edge.runtime import Session

Record = dict[str, Any]


@pytest.fixture(scope="module")
def record(bundle: Path) -> Record:
    with Session.open(bundle) as session:
        measured: Record = json.loads(json.dumps(measure_exits(session, rounds=2)))
    return measured


def write(path: Path, record: Record, time: float = 1.0, pace: float = 1.0, **other: Any) -> Path:
    """The record with other latencies: the chain's ``time``, both ``pace`` as long."""
    changed = copy.deepcopy(record)
    for name in changed["latency_ms"]:
        changed["latency_ms"][name] *= time * pace
        changed["baseline"]["latency_ms"][name] *= pace
    changed["speedup"]["wall_clock"] /= time
    path.write_text(json.dumps(changed | other))
    return path


def test_rows_are_held_against_the_first(tmp_path: Path, record: Record) -> None:
    given: dict[str, dict[str, float]] = {"a": {}, "b": {"time": 1.1}, "c": {"pace": 2.0}}
    paths = [write(tmp_path / f"{name}.json", record, **how) for name, how in given.items()]
    rows = compare_records(paths)["rows"]
    assert [row["name"] for row in rows] == ["a", "b", "c"]
    assert [row["time"] for row in rows] == pytest.approx([1.0, 1.1, 2.0])
    assert [row["time_paced"] for row in rows] == pytest.approx([1.0, 1.1, 1.0])
    assert rows[0]["latency_ms"] == pytest.approx(record["latency_ms"]["mean"])
    said = io.StringIO()
    print_comparison(compare_records(paths), Console(file=said, width=120))
    assert "1.100" in said.getvalue() and "efficiency" in said.getvalue()


@pytest.mark.parametrize(
    ("keys", "value", "named"),
    [
        (("env", "cpu"), "another", r"processor \(.* and another\)"),
        (("env", "runtime", "threads"), 7, r"threads \(\d+ and 7\)"),
        (("env", "runtime", "backend"), "tensorrt", r"backend \(onnxruntime and tensorrt\)"),
        (("env", "jetson"), {"mode": "15W"}, r"Jetson \(unknown and \{'mode': '15W'\}\)"),
        (("bundle", "precision"), "fp16", r"precision \(fp32 and fp16\)"),
        (("env", "runtime", "precision"), "bf16", r"computed in \(unknown and bf16\)"),
        (("samples",), 99, r"samples \(8 and 99\)"),
        (("mix",), [0.5] * 40, r"shares assumed \(\[0\.25, .* and \[0\.5, .*\.\.\.\)"),
    ],
)
def test_unlike_conditions_are_named_and_refused(
    tmp_path: Path, record: Record, keys: tuple[str, ...], value: Any, named: str
) -> None:
    other = copy.deepcopy(record)
    at = other
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    paths = [write(tmp_path / "a.json", record), write(tmp_path / "b.json", other)]
    with pytest.raises(UsageError, match=f"unlike conditions: {named}; .* with --force"):
        compare_records(paths)
    forced = compare_records(paths, force=True)
    assert len(forced["rows"]) == 2 and len(forced["unlike"]) == 1


def test_operating_points_of_bundles(tmp_path: Path, bundle: Path, record: Record) -> None:
    plain = Path(shutil.copytree(bundle, tmp_path / "plain"))
    with pytest.raises(DataError, match="has no operating points; run: lgvit-edge tune"):
        compare_records([plain])
    points = {
        name: point(latency_ms=ms, baseline_latency_ms=6.0)
        for name, ms in (("fast", 2.0), ("slow", 3.0))
    }
    add_to_manifest(plain, open_bundle(plain).manifest.identity, points)
    rows = compare_records([plain])["rows"]
    assert [row["name"] for row in rows] == ["plain:fast", "plain:slow"]
    assert [row["time"] for row in rows] == [1.0, 1.5]
    assert [row["wall_clock"] for row in rows] == [3.0, 2.0]
    with pytest.raises(UsageError, match="kind"):
        compare_records([plain, write(tmp_path / "a.json", record)])


def test_what_is_no_record_is_refused(tmp_path: Path, record: Record) -> None:
    good = write(tmp_path / "good.json", record)
    with pytest.raises(DataError, match="no such record or bundle: .*nowhere"):
        compare_records([good, tmp_path / "nowhere"])
    whole = good.read_text()
    texts = {"cut": whole[:500], "zero": whole.replace('"mean": ', '"mean": -')}
    texts |= {"other": '{"epochs": 3}', "list": "[1, 2]", "deep": "[" * 100_000}
    for name, text in (texts | {"binary": "\udcff\udcfe"}).items():
        name += ".json"
        (tmp_path / name).write_text(text, errors="surrogateescape")
        with pytest.raises(DataError, match=f"{name} is no record of lgvit-edge bench --json"):
            compare_records([good, tmp_path / name])
    with pytest.raises(UsageError, match="expected at least two"):
        compare_records([good])


@pytest.mark.parametrize(("text", "value"), [("5%", 0.05), ("0.05", 0.05), ("0", 0.0)])
def test_shares(text: str, value: float) -> None:
    assert parse_share(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "five", "-5%", "nan", "5%%%x"])
def test_shares_that_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="must be like 5% or 0.05"):
        parse_share(text)


def test_the_command_fails_when_one_is_slower(tmp_path: Path, record: Record) -> None:
    a = write(tmp_path / "a.json", record)
    b = write(tmp_path / "b.json", record, time=1.04)

    def run(*more: str) -> Any:
        return CliRunner().invoke(app, ["compare", str(a), str(b), *more])

    assert run().exit_code == 0 and run("--fail-if-slower", "5%").exit_code == 0
    failed = run("--fail-if-slower", "3%")
    assert isinstance(failed.exception, DataError)
    assert "b takes 1.040 of the time of a, allowed: 1.030" in str(failed.exception)
    rows = json.loads(run("--json").stdout)["rows"]
    assert [row["name"] for row in rows] == ["a", "b"]
