"""Layers of every segment: what a record says, what is printed and drawn, and what goes wrong."""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest import MonkeyPatch
from small import write_photos

from lgvit_edge.benchmarks import measure_layers, profiling
from lgvit_edge.bundle.directory import Bundle, open_bundle
from lgvit_edge.errors import BackendError, UsageError
from lgvit_edge.runtime.backends import ort, ort_profile, registry
from lgvit_edge.runtime.backends.base import Backend, ChainOptions, LayerTime

Command = Callable[..., str]
Layers = list[LayerTime]


class Scripted:
    """ONNX Runtime's chain, with layers that take what ``times`` says in each run."""

    def __init__(self, bundle: Bundle, names: list[str], options: ChainOptions) -> None:
        self.inner: Any = registry.chain_opener(bundle, "onnxruntime", ChainOptions())(names)
        self.runs: list[int] = [0] * len(names)
        self.first = list(self.runs)
        self.next, self.names = 0, names
        self.max_batch = self.inner.max_batch
        self.keep, self.close = self.inner.keep, self.inner.close

    def start(self, images: NDArray[Any], segment: int = 0) -> None:
        self.next = 0
        self.inner.start(images)

    def step(self) -> NDArray[np.float32]:
        self.runs[self.next] += 1
        self.next += 1
        logits: NDArray[np.float32] = self.inner.step()
        return logits

    def describe(self) -> dict[str, Any]:
        return dict(backend="scripted", version="1", device="abacus", threads=1, profiler="a clock")

    def forget(self) -> None:
        self.first = list(self.runs)

    times: Callable[[str, int], Layers]

    def layer_times(self) -> list[list[Layers]]:
        return [
            [type(self).times(name, run) for run in range(first, runs)]
            for name, first, runs in zip(self.names, self.first, self.runs, strict=True)
        ]


def layers(name: str, run: int) -> Layers:
    """A product and a norm; while warming up, and in every third run, something disturbs."""
    ms = 1000.0 if run < profiling._WARM_UP or run % 3 == 0 else 2.0
    place = "blocks.3.fc1/MatMul" if name != "baseline" else "blocks.11/x"
    return [
        LayerTime(place, "MatMul", ms),
        LayerTime("blocks.2.norm1/a + blocks.3/b", "Norm", 1.0 if name == "segment_1" else 0.5),
        LayerTime("fused", "MatMul", 0.25, how="tactic", origin="[ONNX Layer: tail.x/y]"),
        LayerTime("cocktail", "Copy", 0.0),
    ]


@pytest.fixture
def scripted(monkeypatch: MonkeyPatch) -> type[Scripted]:
    """A backend of that name, for this test alone."""
    monkeypatch.setattr(registry, "_BACKENDS", dict(registry._BACKENDS))
    kind: type[Scripted] = type("Own", (Scripted,), {"times": staticmethod(layers)})
    registry.register_backend(
        Backend("scripted", "a backend from outside", kind, open_profiled=kind)
    )
    return kind


@pytest.fixture
def record(bundle: Path, scripted: type[Scripted]) -> dict[str, Any]:
    return measure_layers(bundle, backend="scripted", runs=9)


def test_times_are_medians_of_the_runs_after_the_warm_up(record: dict[str, Any]) -> None:
    assert record["runs"] == 9 and record["images"] is None
    assert [row["segment"] for row in record["segments"]] == [0, 1, 2, 3]
    for row in (*record["segments"], record["baseline"]):
        assert row["layers"][0]["ms"] == 2.0 and row["layers"][0]["p90"] == 1000.0
        assert {k["kind"]: (k["calls"], k["ms"]) for k in row["kinds"]}["MatMul"] == (2, 2.25)
        assert row["ms"] == pytest.approx(np.median(row["raw"]["ms"]), abs=1e-4)
        assert len(row["raw"]["ms"]) == 9
    chain = record["chain"]
    assert {k["kind"]: (k["calls"], k["ms"]) for k in chain["kinds"]} == {
        "MatMul": (8, 9.0),
        "Norm": (4, 2.5),
        "Copy": (4, 0.0),
    }
    assert sum(row["macs_share"] for row in record["segments"]) == pytest.approx(1)
    assert sum(row["time_share"] for row in record["segments"]) == pytest.approx(1)


def test_a_layers_block_is_what_its_names_tell(record: dict[str, Any]) -> None:
    assert [layer["block"] for layer in record["segments"][0]["layers"]] == [
        "3",
        "2-3",
        "head",
        None,
    ]
    assert record["baseline"]["layers"][0]["block"] == "11"


def test_operators_are_held_against_the_baselines_for_as_many_macs(record: dict[str, Any]) -> None:
    row, baseline = record["segments"][1], record["baseline"]
    beyond = {kind["kind"]: kind["beyond_ms"] for kind in row["kinds"]}
    scale = row["macs"] / baseline["macs"]
    assert beyond["Norm"] == pytest.approx(1.0 - 0.5 * scale)
    for name in ("profiled", "outside"):
        gap = row[f"{name}_ms"] - scale * baseline[f"{name}_ms"]
        assert row[f"{name}_beyond_ms"] == pytest.approx(gap)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_backends_own_layers(bundle: Path, backend: str) -> None:
    pytest.importorskip(backend)
    before = set(Path(tempfile.gettempdir()).glob("lgvit-edge-profile-*"))
    record = measure_layers(bundle, backend=backend, runs=2)
    every: set[str] = set()
    for row in (*record["segments"], record["baseline"]):
        kinds = {layer["kind"] for layer in row["layers"]}
        assert kinds & {"MatMul", "Gemm", "FullyConnected"}
        every |= kinds
        for layer in row["layers"]:
            low, high = layer["p10"], layer["p90"]
            assert low is high is None or low <= layer["ms"] <= high
        inside = sum(kind["ms"] for kind in row["kinds"]) + row["outside_ms"]
        assert inside == pytest.approx(row["profiled_ms"], rel=0.5)
    blocks = [{layer["block"] for layer in row["layers"]} for row in record["segments"]]
    assert all(str(number) in found for number, found in enumerate(blocks, 1))  # each has one
    # OpenVINO tells whole microseconds, and on a quick processor a small layer may take none.
    assert any("head" in found for found in blocks)
    assert every & {"Conv", "Softmax", "MVN"}
    assert {f"{n}" for n in range(1, 5)} <= {x["block"] for x in record["baseline"]["layers"]}
    assert record["env"]["runtime"]["backend"] == backend
    assert "unstable" in record and record["bundle"]["passes"][0]["blocks"] == 4
    # Names are those of the graph's nodes, or made from them.
    assert any(layer["name"].startswith("blocks.2.") for layer in row_of(record, 1))
    assert set(Path(tempfile.gettempdir()).glob("lgvit-edge-profile-*")) <= before


def row_of(record: dict[str, Any], index: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = record["segments"][index]["layers"]
    return found


def test_openvino_means_leave_the_warm_up_out(bundle: Path, monkeypatch: MonkeyPatch) -> None:
    """Its counters tell means since the model was compiled, in whole microseconds."""
    pytest.importorskip("openvino")
    from lgvit_edge.runtime.backends import openvino_profile as ov

    opened = open_bundle(bundle)
    chain = ov.open_profiled(opened, ["baseline"], ChainOptions())
    try:
        image = np.zeros((1, 32, 32, 3), np.uint8)
        slow = iter([1000.0] * 4 + [10.0] * 5)
        total = runs = 0.0

        class Info:
            node_name, node_type, exec_type = "x", "MatMul", "jit"

            @property
            def real_time(self) -> timedelta:
                return timedelta(microseconds=total // runs)

        class Idle(Info):
            real_time = timedelta(0)  # type: ignore[assignment]

        class Request:
            profiling_info = (Info(), Idle())

            def infer(self, **_: Any) -> None:
                nonlocal total, runs
                total, runs = total + next(slow), runs + 1

        chain._requests = [SimpleNamespace(infer_request=Request(), batch=1)]
        for run in range(9):
            if run == 4:
                chain.forget()
            chain.start(image)
            chain.step()
        ((layers,),) = chain.layer_times()
        assert [layer.name for layer in layers] == ["x"]
        assert layers[0].ms == pytest.approx(0.010, abs=0.002)
    finally:
        chain.close()


# What goes wrong.


def failing(name: str, run: int) -> Layers:
    return layers(name, run)[: 3 if run % 2 else 4]


@pytest.mark.parametrize(
    ("times", "text"),
    [
        (failing, "segment_0: expected times of the same layers in every run, found 3 and 4 la"),
        (lambda name, run: [], "segment_0: expected times of the same layers .* found 0 layers"),
    ],
)
def test_layers_that_are_not_the_same_in_every_run(
    times: Callable[[str, int], Layers], text: str, bundle: Path, scripted: type[Scripted]
) -> None:
    scripted.times = staticmethod(times)  # type: ignore[assignment]
    with pytest.raises(BackendError, match=text):
        measure_layers(bundle, backend="scripted", runs=2)


def test_a_backend_that_cannot_time_layers(bundle: Path, scripted: type[Scripted]) -> None:
    registry.register_backend(Backend("blind", "a backend from outside", scripted))
    with pytest.raises(
        UsageError, match="the blind backend cannot time its layers; use backend 'tensorrt' or 'on"
    ):
        measure_layers(bundle, backend="blind")


def test_onnx_runtime_is_not_profiled_on_cuda(bundle: Path, monkeypatch: MonkeyPatch) -> None:
    """There its profiler would give the times of launches for those of kernels."""
    described = ort.OrtChain.describe
    monkeypatch.setattr(ort.OrtChain, "describe", lambda self: described(self) | {"device": "cuda"})
    with pytest.raises(UsageError, match="times how long operators take to start.*device 'cpu'"):
        measure_layers(bundle, backend="onnxruntime")


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda text: text[: len(text) // 2], "cannot be read .*: free space in .*TMPDIR"),
        (lambda text: b"{}", "expected 11 runs in ONNX Runtime's profile, found 0: .* fewer --run"),
        (lambda text: text.replace(b"model_run", b"run", 1), "expected 11 runs .* found 10"),
        (lambda text: b"[3]", "cannot be read"),
    ],
)
def test_a_profile_of_onnx_runtime_that_is_not_whole(
    spoil: Callable[[bytes], bytes], text: str, bundle: Path, monkeypatch: MonkeyPatch
) -> None:
    read = Path.read_bytes
    monkeypatch.setattr(
        ort_profile.Path,
        "read_bytes",
        lambda path: spoil(read(path)) if "profile" in str(path) else read(path),
    )
    with pytest.raises(BackendError, match=text):
        measure_layers(bundle, backend="onnxruntime", runs=1)


# The command.


def test_the_command_shows_segments_operators_and_layers(
    bundle: Path, scripted: type[Scripted], command: Command, tmp_path: Path
) -> None:
    line = ("profile", "--engines", bundle, "--backend", "scripted", "--runs", 3)
    said = command(*line, "--top", 2, "--json", tmp_path / "x.json", "--plot", tmp_path / "x.png")
    assert "medians of 3 runs, random images, scripted 1 on abacus, 1 threads, fp32" in said
    assert re.search(
        r"segment blocks head MACs \(M\) of MACs of time ms profiled GMAC/s 0 1-1", said
    )
    assert re.search(
        r"with a clock the chain takes [\d.]+ ms, without [\d.]+ ms \([+-]\d+%\)", said
    )
    assert re.search(r"MatMul 8 .* 2 .* Norm 4 2\.500 .* \(between layers\)", said)
    assert said.count("blocks.3.fc1/MatMul") == 2
    assert json.loads((tmp_path / "x.json").read_text())["chain"]["kinds"][0]["kind"] == "MatMul"
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    one = command(*line, "--segment", 1)
    assert "of segment 1" in one and re.search(r"1 head 0\.250 \S+ MatMul fused tactic", one)
    assert "of baseline" in command(*line, "--segment", "baseline")


def test_a_segment_that_takes_more_than_its_macs_is_named(record: dict[str, Any]) -> None:
    from io import StringIO

    from rich.console import Console

    from lgvit_edge.benchmarks.report.layers import print_layers

    record = copy.deepcopy(record)
    record["segments"][0]["layers"][0]["name"] = "long" * 1000
    record["segments"][1] |= {"macs_share": 0.09, "time_share": 0.14}
    record["segments"][1] |= {"profiled_ms": 3.0, "profiled_beyond_ms": 1.0}
    record["segments"][1]["outside_beyond_ms"] = 0.002
    for row in (*record["segments"][:1], *record["segments"][2:]):
        row |= {"macs_share": 0.3, "time_share": 0.28, "profiled_beyond_ms": -1.0}
    out = StringIO()
    print_layers(record, Console(file=out, width=80))
    said = " ".join(out.getvalue().split())
    assert "segment 1 has 9.0% of the MACs and takes 14.0% of the time" in said
    more = (
        r"segment 1: 1\.00 ms more than the baseline for as many MACs: (\w+ [\d.]+, )?Norm 0\.\d+"
    )
    assert re.search(more, said)
    assert said.count("more than the baseline") <= 2  # perhaps the chain too
    assert said.count("of the MACs and takes") == 1
    assert "\u2026" in said and said.count("long") < 50


def test_images_are_taken_in_turn_and_bad_ones_named(
    bundle: Path, scripted: type[Scripted], command: Command, tmp_path: Path
) -> None:
    photos = write_photos(tmp_path / "photos", "ab", 2)
    (photos / "a" / "00.png").write_bytes(b"no image")
    line = ("profile", "--engines", bundle, "--backend", "scripted", "--runs", 5)
    said = command(*line, "--data", photos)
    assert "3 images" in said and "images that cannot be read were skipped: 1, such as" in said
    for bad in photos.rglob("*.png"):
        bad.write_bytes(b"no image")
    assert "none of 4 images could be decoded" in command(*line, "--data", photos, status=1)


@pytest.mark.parametrize(
    ("options", "status", "text"),
    [
        ("--engines none", 1, "none"),
        ("--engines {} --segment 4", 2, "--segment must be 0..3 or baseline, found '4'"),
        ("--engines {} --segment -1", 2, "--segment must be 0..3 or baseline, found '-1'"),
        ("--engines {} --plot x.gif", 2, "--plot must end in .png, .svg or .pdf, found 'x.gif'"),
        ("--engines {} --backend abacus", 2, "backend must be one of auto, tensorrt, onnxruntime"),
        (
            "--engines {} --backend openvino --device cuda",
            2,
            "device must be one of cpu, gpu, gpu:N, npu",
        ),
        ("--engines {} --backend onnxruntime --precision bf16", 2, "takes no precision"),
        ("--engines {} --threads 0", 2, "threads must be"),
        ("--engines {} --data none", 1, "none"),
    ],
)
def test_wrong_use_is_told(
    options: str,
    status: int,
    text: str,
    bundle: Path,
    command: Command,
    monkeypatch: MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert text in command("profile", *options.format(bundle).split(), status=status)


def test_a_backend_that_is_not_installed(
    bundle: Path, command: Command, monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    said = command("profile", "--engines", bundle, "--backend", "openvino", status=1)
    assert "pip install 'lgvit-edge[openvino]'" in said


def test_an_interrupted_profile_leaves_nothing(
    bundle_copy: Path,
    interrupt: Callable[[list[str], str], str],
    tmp_path: Path,
    monkeypatch: MonkeyPatch,
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    line = "profile --engines bundle --backend onnxruntime --runs 1000 --json x.json --plot x.png"
    interrupt(line.split(), "lgvit-edge-profile-*/*.json")
    left = {path.name for path in tmp_path.iterdir()} - {".ses"}  # OpenVINO's telemetry
    assert left == {"bundle"}


def test_the_place_of_a_layer_is_not_read_out_of_other_words() -> None:
    for names in ("myblocks.3.x", "blocks.x", "details/y", "blocks.12a", "x.tail", ""):
        assert profiling._place(names) is None
    assert profiling._place("blocks.12.fc2/a blocks.11/b tail.norm/c") == "11-12+head"
    assert profiling._place("segment.blocks.3.fc1/MatMul_9") == "3"  # half precision
    assert profiling._place("[ONNX Layer: segment.tail.blocks.0.fc1/x]") == "head"


def test_every_backend_of_ours_can_time_layers() -> None:
    assert all(registry.backend_of(name).open_profiled for name in registry._SHIPPED)
