"""Networks timed at several image sizes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lgvit_edge.architecture.published import architecture
from lgvit_edge.benchmarks.experiments import sizes
from lgvit_edge.benchmarks.experiments.sizes import BACKENDS, compare, main
from lgvit_edge.errors import UsageError
from lgvit_edge.machine.cpu import available_cores


def test_shares_are_of_the_same_round() -> None:
    """The machine was twice as slow in the second round, which changes no share."""
    row = compare(30, np.array([1.0, 2.0, 1.0]), 120, np.array([4.0, 8.0, 2.0]))
    assert (row["macs_share"], row["time_share"], row["ms"]) == (0.25, 0.25, 1.0)
    assert (row["time_share_p25"], row["time_share_p75"]) == (0.25, 0.375)
    assert row["gmacs"] == pytest.approx(30e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_size_is_timed_beside_the_last(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(backend)
    monkeypatch.setattr(
        sizes, "architecture", lambda *a, **k: architecture(*a, **k).replace(num_blocks=2)
    )
    file, threads = tmp_path / "sizes.json", available_cores()
    main("vit-tiny", sizes="32,64", backend=backend, threads=threads, rounds=4, json_file=file)
    small, whole = json.loads(file.read_text())["rows"]
    assert [(row["size"], row["tokens"]) for row in (small, whole)] == [(32, 5), (64, 17)]
    assert 0 < small["macs_share"] < whole["macs_share"] == whole["time_share"] == 1.0
    assert len(small["raw_ms"]) == 4 and all(ms > 0 for ms in small["raw_ms"])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"backend": "tensorrt"}, "--backend must be one of onnxruntime, openvino, found 'tens"),
        ({"sizes": "112;224"}, "--sizes must be numbers such as 112,224, found '112;224'"),
    ],
)
def test_wrong_options_are_refused(option: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        main("vit-tiny", **option)  # type: ignore[arg-type]
