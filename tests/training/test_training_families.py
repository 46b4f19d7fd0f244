"""``lgvit-edge train`` on a Swin, with other heads, and at another image size."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from rich.console import Console
from small import vit, write_stripes
from typer.main import get_command
from typer.testing import CliRunner

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.cli.app import app
from lgvit_edge.errors import ConfigError, UsageError
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.model import LGViT, load_checkpoint, save_checkpoint
from lgvit_edge.training import TrainingConfig, train_from_folder
from lgvit_edge.training.data.datasets import ImageFolder
from lgvit_edge.training.optimiser import adamw
from lgvit_edge.training.report import all_logits
from lgvit_edge.training.settings import settings
from lgvit_edge.training.start import seeded

SPEC = Preprocess(resize=32)
SWIN = vit(
    **dict(
        family="swin",
        patch_size=4,
        prefix_tokens=0,
        pooling="mean",
        depths=(2, 3),
        stage_heads=(2, 4),
    ),
    **dict(window_size=4, exits=(ExitConfig(2, "lph", 3), ExitConfig(3, "gah", 2))),
)
SWINV2 = SWIN.replace(family="swinv2")
VIT, DEIT = vit(), vit(family="deit", prefix_tokens=2, classifiers=2)
FAST = TrainingConfig(epochs=(1, 1), lr=(3e-3, 3e-3), batch_size=4, workers=0, device="cpu")
FROZEN = FAST.replace(order="frozen")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_stripes(tmp_path / "images")


Save = Callable[[LGViTConfig], Path]


@pytest.fixture
def saved(tmp_path: Path) -> Save:
    def save(config: LGViTConfig) -> Path:
        path = tmp_path / f"{config.family}.pt"
        save_checkpoint(seeded(config, 0).eval(), path)
        return path

    return save


def trained(folder: Path, backbone: Path, **given: Any) -> LGViT:
    options: dict[str, Any] = {"config": FAST, "console": Console(file=io.StringIO(), width=200)}
    return train_from_folder(
        folder, backbone=str(backbone), out=folder.parent / "out.pt", **(options | given)
    )


def changed(before: LGViT, after: LGViT) -> set[str]:
    """Parts of the model in which a parameter is another: ``backbone.blocks.0``, ``heads.1``..."""
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() == new.keys()
    names = {name for name in old if not torch.equal(old[name], new[name])}
    return {".".join(name.split(".")[: 3 if ".blocks." in name else 2]) for name in names}


def command(*arguments: object) -> Result:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_train_gives_a_swin_the_heads_asked_for(folder: Path, saved: Save, tmp_path: Path) -> None:
    done = command(
        *("train", "--data", folder, "--backbone", saved(SWIN), "--out", tmp_path / "model.pt"),
        *("--heads", "mlp", "--exits", "middle:2", "--epochs", "2,1", "--batch-size", 4),
        *("--lr", "1e-3,4e-3", "--workers", 0, "--val", "0.3"),
    )
    assert (tmp_path / "model.eval.json").exists()
    assert done.exit_code == 0 and "export --ckpt" in done.stdout
    with (tmp_path / "model.log.csv").open() as file:
        assert [row["stage"] for row in csv.DictReader(file)] == ["1", "1", "2"]
    model = load_checkpoint(tmp_path / "model.pt")
    assert model.config.exits == (ExitConfig(2, "mlp"), ExitConfig(3, "mlp"))
    assert model.config.labels == ("class0", "class1", "class2")
    assert model.config.replace(exits=SWIN.exits, labels=()) == SWIN
    # The windows' bias tables are trained, too.
    start = load_checkpoint(saved(SWIN)).backbone.state_dict()
    end = model.backbone.state_dict()
    assert all(not torch.equal(start[name], end[name]) for name in start if name.endswith(".table"))


@pytest.mark.parametrize("option", ["--epochs", "--lr"])
@pytest.mark.parametrize("text", ["few", "1,2,3", "1,", ""])
def test_values_that_are_no_pair(option: str, text: str, tmp_path: Path) -> None:
    message = f"{option}: expected a number, or .* as A,B; found '{text}'"
    with pytest.raises(UsageError, match=message):
        command("train", "--data", tmp_path, option, text)


def test_stage_two_changes_only_a_swins_heads(folder: Path, saved: Save) -> None:
    """Its exits' features differ in shape: heads of one kind in two stages, and of both kinds."""
    for cache in (False, True):
        backbone = saved(SWIN)
        model = trained(folder, backbone, config=FROZEN.replace(cache=cache))
        assert model.config.exits == SWIN.exits  # the checkpoint's own
        assert changed(load_checkpoint(backbone), model) == {"heads.0", "heads.1"}
    data = ImageFolder(folder, size=32, preprocess=SPEC)
    accuracies = all_logits(model, data).accuracies
    assert len(accuracies) == 3 and all(0 <= accuracy <= 1 for accuracy in accuracies)


@pytest.mark.parametrize("heads", ["lgvit", "conv", "attention", "encoder"])
@pytest.mark.parametrize("config", [VIT, DEIT, SWIN, SWINV2], ids=lambda config: config.family)
def test_every_family_trains_every_kind_of_head(
    config: LGViTConfig, heads: str, folder: Path, saved: Save
) -> None:
    exits = "1,2,3,4" if heads == "lgvit" else "2,3"
    model = trained(folder, saved(config.replace(exits=())), exits=exits, heads=heads)
    kinds = {"lph", "gah"} if heads == "lgvit" else {heads}
    assert {exit.head for exit in model.config.exits} == kinds
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert changed(model, load_checkpoint(folder.parent / "out.pt")) == set()


def test_no_decay_on_a_swins_bias_tables_and_scales() -> None:
    model = seeded(SWINV2, 0)
    decayed, plain = adamw(model.named_parameters(), weight_decay=0.1).param_groups
    attentions = [block.attention for block in model.backbone.blocks]
    tables = {id(p) for a in attentions for p in (a.table, a.scale)}
    assert tables <= {id(p) for p in plain["params"]}
    assert not tables & {id(p) for p in decayed["params"]}


def test_other_heads_stand_where_the_checkpoint_has_its_exits(folder: Path, saved: Save) -> None:
    model = trained(folder, saved(SWIN), heads="conv", config=FROZEN)
    assert model.config.exits == (ExitConfig(2, "conv"), ExitConfig(3, "conv"))


def test_another_image_size_moves_the_positions(folder: Path, saved: Save) -> None:
    model = trained(
        folder, saved(VIT), exits="middle:2", image_size=48, config=FAST.replace(order="whole")
    )
    assert [exit.block for exit in model.config.exits] == [2, 3]
    assert (model.config.image_size, model.config.preprocess.resize) == (48, 48)
    assert model.backbone.embedding.position.shape == (1, 1 + 6 * 6, 16)  # type: ignore
    assert load_checkpoint(folder.parent / "out.pt").config == model.config


def test_another_image_size_keeps_a_swins_windows(folder: Path, saved: Save) -> None:
    model = trained(folder, saved(SWIN), image_size=48, config=FROZEN)
    assert [(b.grid, b.window) for b in model.config.blocks[1:3]] == [(12, 4), (6, 4)]
    assert changed(load_checkpoint(saved(SWIN)), model) == {"heads.0", "heads.1"}


def test_a_size_or_heads_that_do_not_fit_are_refused(folder: Path, saved: Save) -> None:
    with pytest.raises(ConfigError, match="image_size 50 is not a multiple of patch_size 8"):
        trained(folder, saved(VIT), image_size=50)
    with pytest.raises(ConfigError, match="heads must be one of lgvit, mlp, .*, found 'linear'"):
        trained(folder, saved(VIT), exits="2,3", heads="linear")
    assert not (folder.parent / "out.pt").exists()


def test_every_setting_is_an_option_with_its_own_default_and_bounds() -> None:
    options = {p.name: p for p in get_command(app).commands["train"].params}  # type: ignore[attr-defined]
    for name, about, default in settings():
        option = options[name]
        pair = isinstance(default, tuple)
        assert option.default == (f"{default[0]:g}" if pair else default), name
        assert about.help in option.help and about.bounds in option.help
        for word, does in ({} if about.choices is None else about.choices()).items():
            assert f"{word} ({does})" in option.help
