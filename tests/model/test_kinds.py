"""Heads and families from outside the package: one registration each, and everything takes them."""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from rich.console import Console
from small import vit, write_photos
from typer.testing import CliRunner

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.architecture.families import FAMILIES, Family, family_named, register_family
from lgvit_edge.architecture.heads import HEAD_KINDS, HeadKind, head_choices, register_head
from lgvit_edge.architecture.placement import default_heads
from lgvit_edge.architecture.published import architecture, architectures
from lgvit_edge.benchmarks.experiments.coverage import randomised
from lgvit_edge.benchmarks.report.page import _title
from lgvit_edge.cli.app import app
from lgvit_edge.errors import ConfigError
from lgvit_edge.export import ExportOptions, export_bundle
from lgvit_edge.export.checks import sample_images
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.model import LGViT, load_checkpoint, model_costs, save_checkpoint
from lgvit_edge.runtime import Session
from lgvit_edge.training import TrainingConfig, train_from_folder

VIT = vit(image_size=20, patch_size=4, num_blocks=3)


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The toy kinds, registered while a test runs; their file is found as any package is."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    module = importlib.import_module("toys")
    with mock.patch.dict(HEAD_KINDS), mock.patch.dict(FAMILIES):
        register_head(module.SPARSE)
        register_family(module.MIXER)
        yield module


def same_on_onnxruntime(model: LGViT, out: Path) -> None:
    """Export a model and hold every exit's logits against PyTorch's."""
    export_bundle(model, out, ExportOptions(target="cpu"))
    frames, pixels = sample_images(model.config, "uint8")
    with torch.no_grad():
        expected = model.exit_logits(pixels).numpy()
    assert np.ptp(expected, axis=0).min() > 0.01, "a head that reads nothing would pass too"
    with Session.open(out, backend="onnxruntime", device="cpu") as session:
        actual = session.exit_logits(list(frames))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def info(path: Path, *options: str) -> str:
    done = CliRunner().invoke(app, ["info", str(path), *options], env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_head_from_outside_is_exported_and_shown(toys: Any, tmp_path: Path) -> None:
    assert list(head_choices())[-1] == "sparse"
    exits = default_heads([1, 2], heads="sparse")
    assert exits == (ExitConfig(1, "sparse", 2), ExitConfig(2, "sparse", 2))
    config = VIT.replace(exits=(exits[0], ExitConfig(2, "sparse", 3)))
    assert LGViTConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    with pytest.raises(ConfigError, match=r"sparse after block 1: its stride must be 1\.\.5, not"):
        config.replace(exits=(ExitConfig(1, "sparse", 6),))
    model = randomised(LGViT(config))
    same_on_onnxruntime(model, tmp_path / "out")
    save_checkpoint(model, tmp_path / "model.pt")
    assert load_checkpoint(tmp_path / "model.pt").config == config
    first, second, _ = json.loads(info(tmp_path / "model.pt", "--json"))["segments"]
    assert (first["head"], first["size"], second["size"]) == ("sparse", 2, 3)
    # 9 tokens of 25 through a layer of 16 x 16, and a classifier of three classes.
    assert first["head_macs"] == model_costs(model).heads[0] == 9 * 16 * 16 + 16 * 3
    assert "sparse stride=2" in info(tmp_path / "model.pt")
    assert "sparse" in info(tmp_path / "out")


def test_a_head_from_outside_is_trained_and_distilled(toys: Any, tmp_path: Path) -> None:
    save_checkpoint(LGViT(VIT), tmp_path / "start.pt")
    model = train_from_folder(
        write_photos(tmp_path / "images", "abc", 4),
        backbone=str(tmp_path / "start.pt"),
        out=tmp_path / "model.pt",
        exits="1,2",
        heads="sparse",
        config=TrainingConfig(epochs=(1, 1), batch_size=4, workers=0, device="cpu"),
        console=Console(file=io.StringIO()),
    )
    assert [exit.head for exit in model.config.exits] == ["sparse", "sparse"]
    fresh = load_checkpoint(tmp_path / "model.pt").heads
    assert all(torch.isfinite(weight).all() for weight in fresh.parameters())


def test_distillation_asks_a_head_for_its_role_and_tokens(toys: Any) -> None:
    from lgvit_edge.training import losses
    from lgvit_edge.training.losses import Align
    from lgvit_edge.training.stages import StageTwo

    config = VIT.replace(exits=(ExitConfig(1, "sparse", 2), ExitConfig(2, "sparse", 3)))
    assert losses.first_and_last_of_each(config.exits) == [0, 1]
    assert losses.last_of_each(config.exits) == [1]
    hidden = torch.randn(2, *config.hidden_shape(3))
    for exit, head in zip(config.exits, LGViT(config).heads, strict=True):
        aligned = Align(config, exit)(hidden[:, 1:])
        assert aligned.shape == head.features(hidden).shape  # type: ignore[operator]
    # Where blocks differ in shape, features are not compared.
    mixer = architecture("mixer-nano", num_classes=3, image_size=32).replace(exits=config.exits)
    for given, count in ((config, 2), (mixer, 0)):
        stage = StageTwo(LGViT(given), TrainingConfig(), batches=None)  # type: ignore[arg-type]
        assert len(stage.aligners) == count


def test_a_family_from_outside_takes_every_kind_of_head(toys: Any, tmp_path: Path) -> None:
    assert "mixer-nano" in architectures() and family_named("mixer") is toys.MIXER
    plain = architecture("mixer-nano", num_classes=3, image_size=32)
    assert plain.preprocess == Preprocess(36) and not plain.one_shape
    assert [plain.hidden_shape(block) for block in (0, 4, 5)] == [(64, 16), (64, 16), (16, 16)]
    assert [exit.size for exit in default_heads([1, 2, 3, 4], family="mixer")] == [3, 0, 1, 1]
    kinds = (("sparse", 2), ("mlp",), ("lph", 3), ("encoder",), ("gah", 2))
    exits = tuple(ExitConfig(block, *kind) for block, kind in enumerate(kinds, 1))
    # Frames of the network's own size, so that the session sees what PyTorch does.
    config = plain.replace(exits=exits, preprocess=Preprocess(resize=32))
    model = randomised(LGViT(config))
    encoder = model.heads[3].block.attention  # type: ignore[union-attr]
    assert encoder.heads == 4  # type: ignore[union-attr]
    same_on_onnxruntime(model, tmp_path / "out")
    costs = model_costs(model)
    assert sum(costs.segments) == costs.baseline + sum(costs.heads)
    said = info(tmp_path / "out")
    assert "mixer, 6 blocks, 5 exits" in said
    exported, published = costs.baseline / 1e6, costs.published / 1e6
    assert f"baseline: {exported:,.1f} M MACs as exported, {published:,.1f} M as published" in said
    with pytest.raises(ConfigError, match="a mixer takes images of 32 only, found 64"):
        model.resized(64)


def test_a_report_of_any_family_has_a_title(toys: Any, bundle: Path) -> None:
    from lgvit_edge.bundle.directory import open_bundle

    manifest = open_bundle(bundle).manifest
    for family, label in (("deit", "DeiT"), ("mixer", "Mixer"), ("of another machine",) * 2):
        passes = (dataclasses.replace(manifest.passes[0], family=family),)
        assert _title(dataclasses.replace(manifest, passes=passes)).startswith(f"{label} 32 with")


def test_what_a_registry_refuses(toys: Any) -> None:
    for kind, message in (
        (lambda: register_head(HeadKind("lph", "", "toys:sparse")), "kind of head 'lph' already"),
        (lambda: HeadKind("lgvit", "", ""), "not lgvit or final, found 'lgvit'"),
        (lambda: HeadKind("two words", "", ""), "a name of one word .* found 'two words'"),
        (lambda: HeadKind("a", "", "", role="middle"), "local or global, found 'middle'"),
        (lambda: HeadKind("a", "", "", default=3), "a has no size, found the default 3"),
        (lambda: register_family(Family("swin", "", "")), "family swin has the name 'swin'"),
        (
            lambda: register_family(Family("a", "", "", {"vit-tiny": toys.nano})),
            "the family vit has the name 'vit-tiny' already",
        ),
        (lambda: default_heads([1], family="resnet"), "family must be one of .*, found 'resnet'"),
    ):
        with pytest.raises(ConfigError, match=message):
            kind()


def test_code_that_is_not_where_a_kind_says_is_named(toys: Any) -> None:
    for place in ("nowhere:head", "toys:nothing"):
        HEAD_KINDS["lost"] = HeadKind("lost", "", place)
        with pytest.raises(ConfigError, match=f"nothing can be imported from {place}"):
            LGViT(VIT.replace(exits=(ExitConfig(1, "lost"),)))


def test_the_help_of_heads_names_every_kind() -> None:
    help_text = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "300"}).stdout
    assert all(f"{name} ({what})" in help_text for name, what in head_choices().items())
