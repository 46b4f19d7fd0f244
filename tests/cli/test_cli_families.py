"""The command line on every family: what ``info`` says, and how ``export`` chooses a model."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

import lgvit_edge.export
from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.cli.app import app
from lgvit_edge.errors import CheckpointError, ConfigError, ParityError, UsageError
from lgvit_edge.export import ExportOptions
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.model import LGViT, block_macs, save_checkpoint

foreign = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).parents[1] / "model/checkpoints/foreign_states.py"))
)

SIZES: dict[str, Any] = {
    "image_size": 64,
    "hidden_size": 64,
    "num_blocks": 5,
    "num_heads": 2,
    "intermediate_size": 256,
    "num_classes": 3,
    "preprocess": Preprocess(resize=64),
}
HEADS = (ExitConfig(2, "lph", 3), ExitConfig(3, "gah", 2))
CONFIGS = {
    "vit": LGViTConfig(family="vit", patch_size=8, exits=HEADS, **SIZES),
    "deit": LGViTConfig(
        family="deit",
        patch_size=8,
        prefix_tokens=2,
        classifiers=2,
        exits=(ExitConfig(1, "encoder", 24), ExitConfig(4, "conv")),
        **SIZES,
    ),
    "swin": LGViTConfig(
        family="swin",
        patch_size=4,
        prefix_tokens=0,
        pooling="mean",
        depths=(2, 3),
        stage_heads=(2, 4),
        window_size=4,
        exits=HEADS,
        **SIZES,
    ),
}


def command(*arguments: object) -> Result:
    done = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "120"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[str], Path]:
    def save(family: str) -> Path:
        path = tmp_path / f"{family}.pt"
        torch.manual_seed(0)
        save_checkpoint(LGViT(CONFIGS[family]).eval(), path)
        return path

    return save


# info


@pytest.fixture(scope="module", params=CONFIGS)
def shown(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LGViTConfig, str, dict[str, Any]]:
    """A family's configuration, what ``info`` prints of it, and its JSON."""
    path = tmp_path_factory.mktemp("info") / "model.pt"
    save_checkpoint(LGViT(CONFIGS[request.param]).eval(), path)
    found = json.loads(command("info", path, "--json").stdout)
    return CONFIGS[request.param], command("info", path).stdout, found


Shown = tuple[LGViTConfig, str, dict[str, Any]]
NAMES = {
    "vit": ["lph kernel=3", "gah window=2"],
    "deit": ["encoder width=24", "conv"],
    "swin": ["lph kernel=3", "gah window=2"],
}


def test_info_says_what_its_family_is_made_of(shown: Shown) -> None:
    config, text, found = shown
    said, base = " ".join(text.split()), found["baseline"]
    assert f": {config.family}, 5 blocks, 2 exits, 3 classes, images of 64 x 64" in said
    sizes = "8 x 8 pixels, 64 wide, 2 attention heads"
    if config.family == "swin":
        sizes = "4 x 4 pixels, stages of 2, 3 blocks, 64 to 128 wide, windows of 4 x 4 tokens"
    assert (
        f"patches of {sizes}; {base['published_macs'] / 1e9:.2f} G MACs without exits as p" in said
    )
    without = base["published_macs_without_attention_products"] / 1e9
    assert f"{without:.2f} G if attention's two products are left out, as the paper does" in said
    assert f"; {base['macs'] / 1e9:.2f} G as exported" in said


def test_info_tells_heads_from_what_lies_between_exits(shown: Shown) -> None:
    config, text, found = shown
    *exits, final = found["segments"]
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    for number, (segment, head) in enumerate(zip(exits, NAMES[config.family], strict=True), 1):
        blocks, rest = lines[str(number)].split(head)
        assert blocks.split()[1] == f"{segment['first_block']}-{segment['last_block']}"
        cost, total = segment["head_macs"], segment["cumulative_macs"]
        costs = [segment["macs"] - cost, cost, total]
        assert rest.split()[:3] == [f"{macs / 1e6:,.1f}" for macs in costs]
        assert rest.split()[3] == f"{found['baseline']['macs'] / total:.2f}x"
    costs = [final["macs"], final["cumulative_macs"]]  # the final classifier is no head
    assert lines["final"].split()[2:4] == [f"{macs / 1e6:,.1f}" for macs in costs]
    assert lines["exit"].split()[3:7] == ["MACs", "(M)", "+", "head"]


def test_infos_numbers_fit_together(shown: Shown) -> None:
    config, _, found = shown
    assert found["depths"] == list(config.depths) and found["window_size"] == config.window_size
    assert (found["patch_size"], found["hidden_size"]) == (config.patch_size, 64)
    *exits, final = found["segments"]
    base = found["baseline"]
    assert "head_macs" not in final
    heads = sum(segment["head_macs"] for segment in exits)
    assert final["cumulative_macs"] == base["macs"] + heads
    assert all(0 < segment["head_macs"] < segment["macs"] for segment in exits)
    for segment, exit in zip(exits, config.exits, strict=True):
        assert segment["head"] == exit.head
        sized = exit.head in ("lph", "gah", "encoder")
        assert segment.get("size") == (exit.size if sized else None)
    embedding = config.grid**2 * 3 * config.patch_size**2 * config.hidden_size
    classifier = config.classifiers * config.blocks[-1].dim * config.num_classes
    published = embedding + sum(block_macs(config)) + classifier
    assert base["published_macs"] == published
    assert base["published_macs_without_attention_products"] < published
    if config.family == "swin":  # its classifier reads all tokens
        assert base["macs"] == published
    else:  # nearly all of the last block is left out
        assert 0.9 * published < base["macs"] + block_macs(config)[-1] < 1.1 * published


def published(tmp_path: Path) -> Path:
    """A plain ViT as Hugging Face saves it."""
    state = foreign.huggingface_state("vit", tokens=1, classifiers=foreign.ONE, depth=2).state
    config = {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": foreign.D,
        "num_hidden_layers": 2,
        "num_attention_heads": foreign.HEADS,
        "intermediate_size": foreign.MLP,
        "image_size": foreign.IMAGE,
        "patch_size": foreign.PATCH,
        "num_labels": foreign.CLASSES,
    }
    return Path(foreign.write_directory(tmp_path / "hf", config, state, "model.safetensors"))


def test_info_of_backbones_that_others_published(tmp_path: Path) -> None:
    """They have no exits yet: one segment, the final classifier."""
    folder = published(tmp_path)
    make = foreign.Maker(seed=9)
    make.normal("cls_token", 1, 1, 64)
    make.normal("pos_embed", 1, 10, 64)
    make.linear("patch_embed.proj", 64, 3, 16, 16)
    make.norm("blocks.0.norm1", 64)
    make.linear("blocks.0.attn.qkv", 192, 64)
    make.linear("blocks.0.attn.proj", 64, 64)
    make.norm("blocks.0.norm2", 64)
    make.linear("blocks.0.mlp.fc1", 256, 64)
    make.linear("blocks.0.mlp.fc2", 64, 256)
    make.norm("norm", 64)
    make.linear("head", 7, 64)
    torch.save(make.state, tmp_path / "timm.pth")
    for path, blocks, classes in ((folder, 2, foreign.CLASSES), (tmp_path / "timm.pth", 1, 7)):
        heads = () if path == folder else ("--num-heads", 1)
        if not heads:
            with pytest.raises(CheckpointError, match="tells its attention heads: leave --num-h"):
                command("info", path, "--num-heads", 1)
        said = " ".join(command("info", path, *heads).stdout.split())
        assert f"vit, {blocks} blocks, 0 exits, {classes} classes" in said
        found = json.loads(command("info", path, "--json", *heads).stdout)
        (only,) = found["segments"]
        assert (only["head"], only["first_block"], only["last_block"]) == ("final", 1, blocks)
        assert only["macs"] == found["baseline"]["macs"] and only["macs_speedup"] == 1.0


# export


class Chosen(Exception):
    """Instead of an export: the models that would have been exported."""


@pytest.fixture
def chosen(several: Callable[..., list[LGViT]]) -> Callable[..., LGViT]:
    def choose(*arguments: object) -> LGViT:
        (model,) = several(*arguments)
        return model

    return choose


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[LGViT]]:
    def choose(*arguments: object) -> list[LGViT]:
        def stop(models: list[LGViT], out: Path, options: ExportOptions, **_: Any) -> None:
            raise Chosen(models)

        monkeypatch.setattr(lgvit_edge.export, "export_bundle", stop)
        with pytest.raises(Chosen) as caught:
            command("export", *arguments)
        models: list[LGViT] = caught.value.args[0]
        assert all(isinstance(m, LGViT) and not m.training for m in models)
        return models

    return choose


@pytest.mark.parametrize(
    ("arguments", "exits"),
    [
        (
            ("--arch", "vit-tiny", "--exits", "deep:2", "--heads", "conv"),
            [ExitConfig(10, "conv"), ExitConfig(11, "conv")],
        ),
        (
            ("--arch", "swin-tiny", "--exits", "shallow:2", "--heads", "encoder"),
            [ExitConfig(2, "encoder"), ExitConfig(3, "encoder")],
        ),
        (
            ("--arch", "swin-tiny", "--exits", "4,9"),
            [ExitConfig(4, "lph", 3), ExitConfig(9, "gah", 1)],
        ),
    ],
)
def test_export_of_an_architecture_takes_exits_heads_and_size(
    arguments: tuple[str, ...], exits: list[ExitConfig], chosen: Callable[..., LGViT]
) -> None:
    model = chosen(*arguments, "--image-size", 32)
    config = model.config
    assert (config.image_size, list(config.exits)) == (32, exits)
    if config.family == "swin":  # its windows shrink with the map, as in Swins for other sizes
        assert config.window_size == 1 and config.hidden_shape(12) == (1, 768)
    else:
        assert config.hidden_shape(12) == (1 + 2 * 2, 192)
    assert model.exit_logits(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 1000)


def test_export_of_a_checkpoint_at_another_size(
    chosen: Callable[..., LGViT], saved: Callable[[str], Path]
) -> None:
    for family in ("vit", "swin"):
        model = chosen("--ckpt", saved(family), "--image-size", 32, "--exits", 3)
        assert (model.config.image_size, model.config.preprocess.resize) == (32, 32)
        assert model.config.exits == (HEADS[1],)
        assert model.exit_logits(torch.zeros(1, 3, 32, 32)).shape == (1, 2, 3)
    same = chosen("--ckpt", saved("deit"), "--image-size", 64)
    assert same.config == CONFIGS["deit"]


def test_export_of_passes_takes_exits_and_sizes_of_each(
    several: Callable[..., list[LGViT]], saved: Callable[[str], Path]
) -> None:
    """The same checkpoint at two sizes, without exits and with one of its own."""
    passes = (*("--ckpt", saved("vit")) * 2, "--image-size", 32, "--image-size", 64)
    coarse, fine = several(*passes, "--exits", "none", "--exits", 3)
    assert [m.config.image_size for m in (coarse, fine)] == [32, 64]
    assert (coarse.config.exits, fine.config.exits) == ((), (HEADS[1],))
    assert torch.equal(coarse.backbone.blocks[0].fc1.weight, fine.backbone.blocks[0].fc1.weight)  # type: ignore[union-attr]
    whole = several("--ckpt", saved("vit"), "--ckpt", saved("deit"))
    assert [len(model.config.exits) for model in whole] == [2, 2]
    timed = several(*("--arch", "vit-tiny") * 2, *("--image-size", 64, "--image-size", 128))
    assert [m.config.image_size for m in timed] == [64, 128] and timed[0].config.num_exits == 8


def test_passes_may_be_plain_backbones(
    several: Callable[..., list[LGViT]], saved: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = published(tmp_path)
    plain, ours = several("--ckpt", folder, "--ckpt", saved("vit"))
    assert plain.config.exits == () and ours.config.exits == HEADS
    with pytest.raises(CheckpointError, match="is not an LGViT checkpoint.*lgvit-edge train"):
        command("export", "--ckpt", folder)  # alone it has no exits


def test_names_given_for_all_passes_are_those_of_each(
    several: Callable[..., list[LGViT]], saved: Callable[[str], Path], tmp_path: Path
) -> None:
    passes = ("--ckpt", saved("vit"), "--ckpt", saved("deit"))
    (tmp_path / "names.txt").write_text("oak\nelm\nash\n")
    for model in several(*passes, "--labels", tmp_path / "names.txt"):
        assert model.config.labels == ("oak", "elm", "ash")


def test_export_refuses_what_cannot_be_meant(saved: Callable[[str], Path], tmp_path: Path) -> None:
    out, plain = tmp_path / "out", tmp_path / "plain.pt"
    save_checkpoint(LGViT(CONFIGS["vit"].replace(exits=())).eval(), plain)
    for arguments, error, message in (
        (
            ("--ckpt", saved("swin"), "--heads", "mlp"),
            UsageError,
            "--heads is for --arch: a checkpoint has its heads",
        ),
        (
            ("--ckpt", saved("vit"), "--image-size", 60),
            ConfigError,
            "image_size 60 is not a multiple of patch_size 8",
        ),
        (
            ("--arch", "swin-tiny", "--image-size", 30),
            ConfigError,
            "image_size 30 is not a multiple of patch_size 4",
        ),
        (
            ("--ckpt", saved("swin"), "--image-size", 8),
            ConfigError,
            r"gah after block 3: its window must be 1\.\.1 on 1 x 1 tokens, not 2",
        ),
        (
            ("--arch", "vit-tiny", "--heads", "linear", "--exits", "4,8"),
            ConfigError,
            "heads must be one of lgvit, mlp, conv, attention, encoder, found 'linear'",
        ),
        (
            (*("--ckpt", saved("vit")) * 2, "--image-size", 32),
            UsageError,
            "expected --image-size once for each --ckpt, 2 in all, found 1",
        ),
        (
            (*("--ckpt", saved("vit")) * 2, *("--exits", "2") * 3),
            UsageError,
            "expected --exits once for each --ckpt, 2 in all, found 3",
        ),
        (
            (*("--arch", "vit-tiny") * 2, *("--image-size", 64, "--image-size", 60)),
            ConfigError,
            "image_size 60 is not a multiple of patch_size 16",
        ),
        (
            ("--ckpt", plain),
            UsageError,
            "plain.pt has no exits; run: lgvit-edge train .* as a plain model .*: --exits none",
        ),
        (
            ("--ckpt", saved("vit"), "--arch", "vit-tiny"),
            UsageError,
            "expected --ckpt MODEL, or --arch NAME",
        ),
        (
            ("--arch", "vit-tiny", "--exits", "everywhere"),
            ConfigError,
            "exits must be uniform:M, shallow:M, middle:M, deep:M or a list of blocks",
        ),
    ):
        with pytest.raises(error, match=message):
            command("export", *arguments, "--out", out)
    assert not out.exists()


def test_a_difference_that_somebody_accepts(quick_model: LGViT, tmp_path: Path) -> None:
    """It is kept, so that a device is held against the same."""
    save_checkpoint(quick_model, tmp_path / "model.pt")
    out = tmp_path / "out"
    with pytest.raises(ParityError, match="nothing was written.*--tolerance"):
        command("export", "--ckpt", tmp_path / "model.pt", "--out", out, "--tolerance", 1e-12)
    assert not out.exists()
    command("export", "--ckpt", tmp_path / "model.pt", "--out", out, "--tolerance", 0.02)
    assert open_bundle(out).manifest.parity.tolerance == 0.02
