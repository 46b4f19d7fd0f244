"""JSON without NaN and Infinity: refused when read, ``null`` when written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lgvit_edge._support.finite_json import dumps, loads
from lgvit_edge._support.outputs import write_json
from lgvit_edge.benchmarks.compare import compare_records
from lgvit_edge.bundle.builds import read_build
from lgvit_edge.cli.options import show
from lgvit_edge.errors import BundleError, CheckpointError, DataError, UsageError
from lgvit_edge.model.checkpoints.weights import read_json
from lgvit_edge.policies import from_json
from lgvit_edge.policies.text import parse

NUMBERS = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999")


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_that_are_not_finite_are_refused(number: str, tmp_path: Path) -> None:
    text = f'{{"a": [1, {{"b": {number}}}]}}'
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"expected finite numbers, found {number}"):
        loads(text)
    with pytest.raises(CheckpointError, match=f"expected finite numbers, found {number}"):
        read_json(path)  # config.json, preprocessor_config.json, indices of shards
    with pytest.raises(DataError, match=f"expected finite numbers, found {number}"):
        compare_records([path, path])
    path.rename(tmp_path / "build.json")
    with pytest.raises(BundleError, match=f"expected finite numbers, found {number}"):
        read_build(tmp_path)


@pytest.mark.parametrize("number", NUMBERS)
def test_policies_have_finite_parameters(number: str) -> None:
    for name in ("confidence", "entropy", "confidence:0.5", "ensemble:0.5"):
        with pytest.raises(UsageError, match="must be in"):
            parse(f"{name}:{number}")
    with pytest.raises(UsageError, match="must be in"):
        from_json({"name": "entropy", "threshold": float(number)})


def test_finite_numbers_are_read_as_ever() -> None:
    text = "[0.1, -2e3, 7, 1e308, true, null]"
    assert loads(text) == loads(text.encode()) == json.loads(text)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_records_say_null(
    number: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"a": (1.5, {"b": number}), "c": number}
    plain = {"a": [1.5, {"b": None}], "c": None}
    assert json.loads(dumps(record)) == plain
    write_json(tmp_path / "record.json", record)
    assert loads((tmp_path / "record.json").read_text()) == plain
    show(record, True, lambda *_: None)
    assert loads(capsys.readouterr().out) == plain


def test_what_strings_say_is_written_as_it_is(tmp_path: Path) -> None:
    record = {"file": "x[ 1 ].png", "names": ["a  b", "[ 2 ]", "c\n d"], "numbers": [1, 2.5, None]}
    write_json(tmp_path / "record.json", record)
    text = (tmp_path / "record.json").read_text()
    assert json.loads(text) == record
    assert "[1, 2.5, null]" in text
