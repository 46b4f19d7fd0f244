"""The parts of a job on the disk, cut off at every byte; and the files that they are joined to."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from small import write_photos

from lgvit_edge.errors import DataError, MissingDependency
from lgvit_edge.offline import answer_images, formats
from lgvit_edge.offline.job import Job
from lgvit_edge.offline.listing import Listing
from lgvit_edge.offline.parts import Parts

BATCH = 4


def listing(count: int) -> Listing:
    return Listing(Path("/images"), (b"%04d.jpg" % i for i in range(count)))


def job(images: Listing) -> Job:
    return Job(1, "bundle", "labels", {}, len(images), images.sha256, BATCH, times=False)


def lines(images: Listing, places: range) -> list[bytes]:
    """Answers, of which every seventh is none."""
    rows = [
        {"path": images[i].name, **({"error": "why"} if i % 7 == 0 else {"exit": i % 3})}
        for i in places
    ]
    return [json.dumps(row).encode() + b"\n" for row in rows]


def fill(parts: Parts, images: Listing, shard: int) -> None:
    for places in parts.batches(shard):
        parts.append(shard, lines(images, places))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_shard_that_was_cut_off_anywhere_loses_less_than_a_batch(tmp_path: Path) -> None:
    images = listing(10)  # one shard of 4, another, and one of 2
    with Parts(tmp_path / "whole", job(images), images) as parts:
        for shard in parts.missing():
            fill(parts, images, shard)
        assert len(parts) == 10 and not parts.missing()
    expected = contents(tmp_path / "whole")
    assert list(expected) and all(name.endswith(".jsonl") for name in expected)
    for shard in range(3):
        whole = expected[f"{shard:06}.jsonl"]
        for end in range(len(whole) + 1):
            folder = tmp_path / f"{shard}-{end}"
            folder.mkdir()
            (folder / f"{shard:06}.jsonl.part").write_bytes(whole[:end])
            with Parts(folder, job(images), images) as parts:
                there = whole[:end].count(b"\n")
                assert there - BATCH < len(parts) <= there
                assert (shard in parts.missing()) == (end < len(whole))
                for each in parts.missing():
                    fill(parts, images, each)
            assert contents(folder) == expected


@pytest.mark.parametrize("damage", [b"\0" * 40, b'{"path": "0009.jpg"}\n', b"[]\n", b"\xff\n"])
def test_what_a_power_cut_leaves_is_cut_off(damage: bytes, tmp_path: Path) -> None:
    images = listing(1024)  # in shards of 16
    part = tmp_path / "000000.jsonl.part"
    part.write_bytes(b"".join(lines(images, range(5))) + damage)
    with Parts(tmp_path, job(images), images) as parts:
        assert len(parts) == 4 and part.read_bytes() == b"".join(lines(images, range(4)))
        assert next(parts.batches(0)) == range(4, 8)
        assert parts.readable() == "/images/0001.jpg"  # the first has no answer


def test_a_whole_shard_takes_the_place_of_a_begun_one(tmp_path: Path) -> None:
    images = listing(1024)
    with Parts(tmp_path, job(images), images) as parts:
        parts.append(3, lines(images, range(48, 52)))
    with Parts(tmp_path, job(images), images) as parts:
        parts.put(3, lines(images, range(48, 64)))
        assert len(parts) == 16 and 3 not in parts.missing()
    assert [path.name for path in tmp_path.iterdir()] == ["000003.jsonl"]


@pytest.mark.parametrize(
    "change",
    [lambda whole: whole[:-1], lambda whole: whole + whole[:40], lambda whole: whole[40:]],
)
def test_a_whole_shard_that_was_changed_is_refused(change: Any, tmp_path: Path) -> None:
    images = listing(10)
    with Parts(tmp_path, job(images), images) as parts:
        for shard in parts.missing():
            fill(parts, images, shard)
        assert len(list(parts.lines())) == 10
        changed = tmp_path / "000001.jsonl"
        changed.write_bytes(change(changed.read_bytes()))
        with pytest.raises(DataError, match="000001.jsonl is not what was written: .*; remove the"):
            list(parts.lines())


def test_shards_are_whole_batches_and_no_more_than_a_thousand_images() -> None:
    for count, batch in ((1, 1), (10, 4), (5000, 1), (50_000, 8), (10**6, 32), (10**6, 3000)):
        shard = Job(1, "", "", {}, count, "", batch, times=False).shard
        assert shard % batch == 0 and batch <= shard <= max(1024, batch)
        assert shard == batch or count / shard > 60


# Parquet


@pytest.fixture
def here(tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", "abcde", 3)
    (tmp_path / "photos" / "b" / "01.png").write_bytes(b"no image")
    (tmp_path / "engines").symlink_to(bundle)
    return tmp_path


@pytest.mark.parametrize("times", [False, True])
def test_parquet_has_the_same_rows(
    times: bool, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(formats, "_ROWS", 5)
    answer_images("engines", "photos", "answers.parquet", policy="confidence:0.5", times=times)
    answer_images("engines", "photos", "answers.jsonl", policy="confidence:0.5", times=times)
    rows = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    with parquet.ParquetFile("answers.parquet") as file:
        table, groups = file.read(), file.metadata.num_row_groups
    found = table.to_pylist()
    for row in [*rows, *found]:
        assert (row.pop("latency_ms", None) is None) is not times
        assert (row.pop("network_ms", None) is None) is not times
    assert found == rows and groups == 3
    types = {field.name: str(field.type) for field in table.schema}
    assert types["path"] == "string" and types["exit"] == "int32"
    assert types["confidence"] == "double"
    about = json.loads(table.schema.metadata[b"lgvit_edge"])
    assert about["policy"] == {"name": "confidence", "threshold": 0.5, "temperature": 1.0}
    assert about["images"] == 15 and about["ran"]["backend"] == "onnxruntime"
    assert Path("answers.parquet.unreadable.jsonl").read_bytes() == (
        Path("answers.jsonl.unreadable.jsonl").read_bytes()
    )


def test_parquet_without_pyarrow_is_told_before_any_work(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependency, match=r"pip install 'lgvit-edge\[parquet\]'"):
        answer_images("engines", "photos", "answers.parquet")
    assert not list(here.glob("answers*"))
