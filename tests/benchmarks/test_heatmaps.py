"""Heatmaps of probes as a picture: which networks a panel shows, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lgvit_edge.benchmarks.experiments.heatmaps import main
from lgvit_edge.errors import UsageError


@pytest.fixture
def record(tmp_path: Path) -> str:
    """Two networks of three and two stages; the first's are alike, the second's undefined."""
    stages = [{"model": 0, "name": f"block {n}"} for n in range(3)]
    stages += [{"model": 1, "name": "exit 1"}, {"model": 1, "name": "final"}]
    matrix = [[1.0 if max(a, b) < 3 else None for a in range(5)] for b in range(5)]
    models = [{"name": "a.pt"}, {"name": "b.pt"}]
    text = json.dumps({"models": models, "cka": {"stages": stages, "matrix": matrix}})
    (tmp_path / "probe.json").write_text(text)
    return str(tmp_path / "probe.json")


def test_a_panel_shows_the_networks_asked_for(record: str, tmp_path: Path) -> None:
    shares = []
    for panel in (record, f"{record}:0,0"):
        main([panel], out=tmp_path / "cka.png", name=["a.pt=mlp"])
        pixels = np.asarray(Image.open(tmp_path / "cka.png").convert("RGB")).astype(int)
        # where stages are alike it is yellow, where CKA is not defined nothing is painted
        yellow = (pixels[..., 0] > 200) & (pixels[..., 2] < 80)
        shares.append(yellow.mean())
    assert shares[0] < 0.01 < 0.3 < shares[1]


def test_networks_are_called_as_asked(record: str, tmp_path: Path) -> None:
    pictures = []
    for name in ([], ["a.pt=a $x_$ b"], ["a.pt=\N{CJK UNIFIED IDEOGRAPH-6A21}"]):
        main([record], out=tmp_path / "cka.png", name=name)
        pictures.append((tmp_path / "cka.png").read_bytes())
    assert len(set(pictures)) == 3
    for name in ("nonsense", "c.pt=c", "a.pt="):
        with pytest.raises(UsageError, match="--name: expected NETWORK=NAME of a.pt, b.pt"):
            main([record], out=tmp_path / "cka.png", name=[name])


@pytest.mark.parametrize("pair", ["0,2", "-1,0", "0", "a,b"])
def test_networks_that_are_not_there_are_refused(record: str, tmp_path: Path, pair: str) -> None:
    with pytest.raises(UsageError, match="expected numbers of networks from 0 to 1|FILE:A,B"):
        main([f"{record}:{pair}"], out=tmp_path / "cka.png")
    assert not (tmp_path / "cka.png").exists()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", json.dumps({"models": [{"name": "a"}], "cka": None})]
)
def test_a_record_without_cka_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "probe.json").write_text(text)
    with pytest.raises(UsageError, match="the record of a probe with CKA"):
        main([str(tmp_path / "probe.json")], out=tmp_path / "cka.png")
