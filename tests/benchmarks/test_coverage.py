"""Every family with every kind of head on every backend, and the command that makes a table of it.

The matrix exports all of a model's segments as one graph, which is what takes the time; the
command does it segment by segment.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from small import vit
from torch import Tensor, nn

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.architecture.heads import HEAD_KINDS
from lgvit_edge.architecture.placement import default_heads
from lgvit_edge.benchmarks.experiments import coverage
from lgvit_edge.bundle.graphs import check_graph
from lgvit_edge.bundle.manifest import FileSpec, GraphSpec, TensorSpec
from lgvit_edge.errors import BuildError, DataError, MissingDependency
from lgvit_edge.export import BuilderOptions, ExportOptions
from lgvit_edge.export.checks import TOLERANCE, graph_runner, sample_images
from lgvit_edge.export.graph import Part, WeightStore, save, trace
from lgvit_edge.export.half import halve
from lgvit_edge.export.tensorrt.builder import BuildTask, EngineBuilder
from lgvit_edge.machine.openvino import shared_core
from lgvit_edge.machine.tensorrt import TensorRT
from lgvit_edge.model import LGViT, cut
from lgvit_edge.model.heads.attention import MeanAttention
from lgvit_edge.policies.scores import difference

pytestmark = pytest.mark.slow
RTX = importlib.util.find_spec("tensorrt_rtx") is not None
FORMS: dict[str, dict[str, Any]] = {
    "vit": {"family": "vit"},
    "deit": {"family": "deit", "prefix_tokens": 2, "classifiers": 2},
    # All options of today's ViTs, in three models.
    "rotary": {
        **{"family": "vit", "prefix_tokens": 3, "rotation": "dinov3", "qk_norm": True},
        **{"gated": True, "activation": "silu", "pooling": "both"},
    },
    "pooled": {
        **{"family": "vit", "prefix_tokens": 0, "pooling": "mean", "final_norm": "pooled"},
        **{"embedding_norm": True, "activation": "gelu_tanh", "mlp_norm": True},
    },
    "eva": {
        **{"family": "vit", "rotation": "eva", "rotation_side": 16, "activation": "quick_gelu"},
        **{"pooling": "mean", "gated": True, "mlp_norm": True, "attention_norm": True},
    },
    "relative": {
        **{"family": "vit", "relative_positions": True, "pooling": "mean", "final_norm": ""},
    },
    "gathered": {"family": "vit", "prefix_tokens": 0, "pooling": "attention"},
    # Windows of 2 on maps of 5 and 3 are padded, and in the last block shifted.
    "swin": {
        **{"family": "swin", "prefix_tokens": 0, "pooling": "mean", "window_size": 2},
        **{"depths": (1, 2), "stage_heads": (2, 2)},
    },
    "swinv2": {
        **{"family": "swinv2", "prefix_tokens": 0, "pooling": "mean", "window_size": 2},
        **{"depths": (1, 2), "stage_heads": (2, 2), "shift_first": True},
    },
}
# Each pair has a model to itself; its backbone is that of the others.
PAIRS = (
    (ExitConfig(1, "lph", 3), ExitConfig(2, "gah", 2)),
    (ExitConfig(1, "conv"), ExitConfig(2, "mlp")),
    (ExitConfig(1, "attention"), ExitConfig(2, "encoder", 24)),
)


def tiny(form: str, exits: tuple[ExitConfig, ...]) -> LGViTConfig:
    """In the Swin the first exit reads tokens before a patch merging."""
    sizes = dict(image_size=20, patch_size=4, hidden_size=8, num_blocks=3, intermediate_size=16)
    return vit(**FORMS[form], **sizes, exits=exits)


class WholeChain(nn.Module):
    """Segments with the heads of all models: ``image -> logits of every head and the last``."""

    def __init__(self, models: list[LGViT]) -> None:
        super().__init__()
        chains = [cut(model, cast_first=True) for model in models]
        self.segments = nn.ModuleList(segment.module for segment in chains[0])
        self.heads = nn.ModuleList(
            nn.ModuleList(chain[i].module.tail for chain in chains[1:]) for i in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        *segments, last = self.segments
        logits = []
        for segment, heads in zip(segments, self.heads, strict=True):
            x, each = segment(x)
            logits += [each, *(head(x) for head in heads)]
        return torch.cat([*logits, last(x)], dim=1)


def all_heads(form: str) -> list[LGViT]:
    """Models of one backbone with different heads."""
    models = [coverage.randomised(LGViT(tiny(form, exits))) for exits in PAIRS]
    for model in models[1:]:
        model.backbone = models[0].backbone
    return models


@pytest.mark.parametrize(
    ("form", "precision"),
    [
        *[("vit", "fp32"), ("deit", "fp16"), ("swin", "fp32"), ("swin", "fp16")],
        *[("rotary", "fp32"), ("pooled", "fp16"), ("eva", "fp16")],
        *[("swinv2", "fp32"), ("swinv2", "fp16")],
    ],
)
def test_all_families_and_heads_on_every_backend(form: str, precision: str, tmp_path: Path) -> None:
    assert {exit.head for exits in PAIRS for exit in exits} == set(HEAD_KINDS)
    models = all_heads(form)
    images, pixels = sample_images(models[0].config, "uint8")
    with torch.no_grad():
        logits = torch.stack([model.exit_logits(pixels) for model in models], dim=2)
        # Exit by exit, and the final classifier once.
        expected = torch.cat([logits[:, :2].flatten(1), logits[:, 2, 0]], dim=1).numpy()
    module: nn.Module = WholeChain(models)
    if precision == "fp16":
        module = halve(module)
    path = tmp_path / "whole.onnx"
    part = Part(path.name, module, torch.from_numpy(images[:1]), "image", ("logits",))
    save(trace([part], opset=18, batch=(1, 1))[1], path, WeightStore(tmp_path / "weights.bin"))
    onnx.checker.check_model(path, full_check=True)
    taken = TensorSpec("image", "uint8", (1, 20, 20, 3))
    given = TensorSpec("logits", "float32", (1, expected.shape[1]))
    spec = GraphSpec(FileSpec("whole.onnx", "0" * 64, 9), (taken,), (given,), macs=1, parameters=1)
    weights = {"weights.bin": (tmp_path / "weights.bin").stat().st_size}
    check_graph(path.read_bytes(), spec, 18, weights)  # else it would not be run
    (answer,) = graph_runner(path, spec)(images)
    assert difference(answer, expected) <= TOLERANCE[precision] / (10 if precision == "fp32" else 1)
    if importlib.util.find_spec("openvino") is not None and precision == "fp32":
        hint = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = shared_core().compile_model(path, "CPU", hint)
        answers = np.concatenate([compiled([image[None]])[0] for image in images])
        assert difference(answers, expected) <= TOLERANCE["fp32"] / 10
    if RTX:
        dtype = "float32" if precision == "fp32" else "float16"
        task = BuildTask(path, spec, dtype, quantized=False, batch=(1, 1, 1))
        plan = EngineBuilder(TensorRT("tensorrt-rtx"), BuilderOptions()).build(task)
        assert plan.startswith(b"vtrt")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """``main`` on these configurations instead of the published ones; returns the .md it wrote."""

    def run(*configs: LGViTConfig) -> str:
        labelled = [(config.family, config) for config in configs]
        monkeypatch.setattr(coverage, "configurations", lambda forms: labelled)
        try:
            coverage.main(out=tmp_path / "table.md", json_file=tmp_path / "rows.json")
        finally:
            written = (tmp_path / "table.md").read_text(encoding="utf-8")
        return written

    return run


def test_the_table_is_green(run: Callable[..., str], tmp_path: Path) -> None:
    written = run(tiny("swin", (ExitConfig(1, "lph", 3),)))
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (row["family"], row["heads"], row["failed"]) == ("swin", "lph", [])
    cells = row["cells"]
    assert tuple(cells) == coverage.COLUMNS
    assert 0 < cells["PyTorch"] < 1e-5 and 0 < cells["ONNX Runtime"] < 1e-5
    assert cells["ONNX Runtime"] < cells["ONNX Runtime fp16"] < TOLERANCE["fp16"]
    assert cells["RTX fp32"] == cells["RTX fp16"] == ("3 built" if RTX else coverage.ABSENT)
    assert cells["OpenVINO"] == coverage.ABSENT or cells["OpenVINO"] < 1e-5
    header, rule, line = written.splitlines()
    assert header.startswith("| family | heads | PyTorch | ONNX Runtime | OpenVINO | RTX fp32 |")
    assert header.count("|") == rule.count("|") == line.count("|")
    assert line.startswith("| swin | lph | ") and "failed" not in written


def test_a_deployed_form_that_is_off_fails_its_row(
    run: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    right = MeanAttention.forward
    monkeypatch.setattr(MeanAttention, "forward", lambda self, x: right(self, x) + 0.1)
    with pytest.raises(SystemExit) as stopped:
        run(tiny("vit", (ExitConfig(1, "gah", 2),)))
    assert stopped.value.code == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "failed: vit gah: PyTorch; vit gah: ONNX Runtime; " in said
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert set(row["failed"]) >= {"PyTorch", "ONNX Runtime", "ONNX Runtime fp16"}
    assert 0.01 < row["cells"]["PyTorch"] < 1
    assert "failed: the chain up to segment 0 diverges" in row["cells"]["ONNX Runtime"]
    assert " **failed** |" in (tmp_path / "table.md").read_text()


def test_a_tolerance_exceeded_and_a_graph_that_does_not_compile_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = coverage.export_bundle

    def quick(model: LGViT, out: Path, options: ExportOptions) -> Any:
        """Only half precision is exported, and stops at its first segment."""
        if options.precision == "fp16":
            return real(model, out, options)
        return SimpleNamespace(parity=SimpleNamespace(max_difference=(1e-6, 2e-6)))

    def refuse(out: Path) -> None:
        raise BuildError("segment_1: its parser refuses the graph")

    monkeypatch.setattr(coverage, "export_bundle", quick)
    monkeypatch.setattr(coverage, "build_engines", refuse)
    monkeypatch.setattr(coverage, "_openvino", lambda out: 1e-6)
    monkeypatch.setitem(TOLERANCE, "fp16", 1e-9)
    (row,) = coverage.cover([("deit", tiny("deit", (ExitConfig(2, "mlp"),)))], tmp_path)
    assert row.failed == ("RTX fp32", "ONNX Runtime fp16", "RTX fp16")
    assert row.cells["ONNX Runtime"] == 2e-6
    assert row.cells["RTX fp32"] == "failed: segment_1: its parser refuses the graph"
    assert "segment 0 diverges" in str(row.cells["ONNX Runtime fp16"])
    assert "tolerance 1e-09" in str(row.cells["ONNX Runtime fp16"])


@pytest.mark.parametrize(
    ("column", "cell", "good"),
    [
        *[("PyTorch", 9e-5, True), ("PyTorch", 2e-4, False), ("OpenVINO", coverage.ABSENT, True)],
        *[("OpenVINO", float("inf"), False), ("OpenVINO", float("nan"), False)],
        *[("ONNX Runtime fp16", 0.04, True), ("ONNX Runtime fp16", 0.06, False)],
        ("RTX fp32", "4 built", True),
        ("RTX fp16", "failed: it cannot compile the graph", False),
        ("ONNX Runtime", "4 built", False),
    ],
)
def test_what_counts_as_good(column: str, cell: float | str, good: bool) -> None:
    assert coverage._good(column, cell) is good


def test_the_published_table_covers_every_family_and_kind_of_head() -> None:
    configs = coverage.configurations(["vit", "deit", "swin", "swinv2"])
    assert len(configs) == 20
    for family in ("vit", "deit", "swin", "swinv2"):
        of_it = [config for label, config in configs if label == family]
        assert {exit.head for config in of_it for exit in config.exits} == set(HEAD_KINDS)
    swin = configs[-1][1]
    # The first exit reads the tokens before a patch merging.
    assert swin.blocks[4].merges and swin.exits == default_heads([4, 9], heads="encoder")


def test_forms_of_vit_are_those_of_timm() -> None:
    try:
        configs = coverage.configurations(["DINOv2", "BEiT"])
    except MissingDependency as error:
        pytest.skip(str(error))
    assert [label for label, _ in configs[::5]] == ["DINOv2", "BEiT"]
    assert configs[0][1].prefix_tokens == 5 and configs[0][1].image_size == 224
    assert configs[5][1].relative_positions and configs[5][1].hidden_size == 192


def test_the_list_of_names_is_written_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "models.md"
    page.write_text(f"before\n{coverage.BEGIN}\nold\n{coverage.END}\nafter\n")
    coverage.write_names(page, ["deit_a", "vit_a", "vit_b"])
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert "`deit_a`\n\n`vit_a`, `vit_b`" in text and "old" not in text
    page.write_text("nothing")
    with pytest.raises(DataError, match="expected the lines <!-- names -->"):
        coverage.write_names(page, [])
    assert page.read_text() == "nothing"
