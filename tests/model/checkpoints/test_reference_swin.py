"""Foreign Swins give the logits their authors' equations give, at every exit (``equations.py``)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import equations as eq
import foreign_states as foreign
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lgvit_edge.errors import CheckpointError
from lgvit_edge.model import load_backbone, load_checkpoint
from lgvit_edge.model.segments import baseline, cut

EPS = 1e-3
SHAPES: dict[str, dict[str, Any]] = {
    # Maps of 32, 16, 8 and 4: the last is one window.
    "whole": dict(image=64, patch=2, dim=16, depths=[2, 2, 6, 2], heads=[2, 2, 4, 4], window=4),
    # 9 (padded to 12), 5 (padded to 8), 3 and 2 (smaller than the window); two odd maps merge.
    "padded": dict(image=36, patch=4, dim=8, depths=[2, 3, 6, 2], heads=[1, 2, 4, 8], window=4),
    # 14, 7, 4 and 2, windows of 3 with a shift of 1.
    "odd": dict(image=28, patch=2, dim=8, depths=[3, 2, 6, 3], heads=[2, 4, 4, 2], window=3),
    # One window of 5, shifted by 2, twice a side, then a map of its size.
    "two stages": dict(image=30, patch=3, dim=8, depths=[4, 3], heads=[2, 2], window=5),
}
# The authors' LGViT, by stage.
LGVIT = {
    1: ["conv1_1"] * 4,
    2: ["conv1_1", "conv2_1", "conv2_1", "attention_r1", "attention_r1", "attention_r2"],
    3: ["attention_r2"],
}


def config_of(shape: dict[str, Any], **changes: Any) -> dict[str, Any]:
    theirs = dict(image="image_size", patch="patch_size", dim="embed_dim", depths="depths")
    theirs |= dict(heads="num_heads", window="window_size")
    return {
        **{theirs[name]: value for name, value in shape.items()},
        **dict(model_type="swin", mlp_ratio=3.0, hidden_act="gelu", layer_norm_eps=EPS),
        "hidden_size": shape["dim"] << (len(shape["depths"]) - 1),  # of the last stage, as saved
        "num_hidden_layers": len(shape["depths"]),
        "id2label": foreign.HF_CONFIG["id2label"],
        **changes,
    }


def states_of(state: dict[str, Tensor], pixels: Tensor, shape: dict[str, Any]) -> list[Tensor]:
    names = {key: shape[key] for key in ("depths", "heads", "window")}
    return eq.swin_states(state, pixels, **names, eps=EPS)


def logits_of(state: dict[str, Tensor], pixels: Tensor, shape: dict[str, Any]) -> Tensor:
    return eq.swin_linear(state, "swin", states_of(state, pixels, shape)[-1], EPS, "classifier")


def saved(root: Path, shape: dict[str, Any], state: dict[str, Tensor], **changes: Any) -> Path:
    return foreign.write_directory(root / "swin", config_of(shape, **changes), state)


def check_directory(
    folder: Path, shape: dict[str, Any], highway: str, stages: list[list[int]], third_stage: int = 0
) -> Any:
    """Write an authors' Swin, load it and compare every exit; ``third_stage`` counts its heads."""
    make = foreign.swin_state(**shape)
    dims = [shape["dim"] << s for s in range(len(stages))]
    make.norm("layernorm", dims[-1])  # the authors', at top level, read by nothing
    exits, before = [], 0
    for s, places in enumerate(stages):
        for k, place in enumerate(places):
            kind = LGVIT[s][k] if highway == "LGViT" else highway
            name = f"swin.encoder.layers.{s}.highway.{k}"
            foreign.add_swin_exit(make, name, kind, dims[s])
            exits.append((before + place, name, kind))
        before += shape["depths"][s]
    for k in range(len(stages[2]) if third_stage else 0, third_stage):
        name = f"swin.encoder.layers.2.highway.{k}"
        foreign.add_swin_exit(make, name, LGVIT[2][k], dims[2])
    config = config_of(
        shape,
        highway_type=highway,
        num_early_exits=str([len(places) for places in stages]),
        position_exits=str(stages),
    )
    state, pixels = make.state, foreign.random_pixels(shape["image"])
    states = states_of(state, pixels, shape)
    expected = [eq.swin_exit(state, name, kind, states[b], EPS) for b, name, kind in exits]
    expected.append(eq.swin_linear(state, "swin", states[-1], EPS, "classifier"))

    weights = "model.safetensors" if highway == "linear" else "pytorch_model.bin"
    model = load_checkpoint(foreign.write_directory(folder, config, state, weights))
    assert not model.training
    assert (model.config.family, model.config.prefix_tokens) == ("swin", 0)
    assert [exit.block for exit in model.config.exits] == [block for block, _, _ in exits]
    with torch.no_grad():
        trained = model.exit_logits(pixels)
        deployed = eq.chain(cut(model, input="float32"), pixels)
    assert trained.shape == (len(pixels), len(exits) + 1, foreign.CLASSES)
    for m, logits in enumerate(expected):
        eq.assert_reproduced(trained[:, m], logits)
        eq.assert_reproduced(deployed[:, m], logits)
    return model


@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "two stages"])
def test_lgvit_with_every_exit_it_can_have(tmp_path: Path, shape: str) -> None:
    stages = [[], [1, 2], [1, 2, 3, 4, 5, 6], [1]]
    model = check_directory(tmp_path / "swin", SHAPES[shape], "LGViT", stages, third_stage=6)
    heads = [(exit.head, exit.size) for exit in model.config.exits]
    local = [*[("lph", 3)] * 3, *[("lph", 0)] * 2]
    assert heads == [*local, *[("gah", 1)] * 2, *[("gah", 2)] * 2]


@pytest.mark.parametrize(
    "stages",
    [
        *([[], [2], [3, 6], [1]], [[], [], [2], []]),
        *([[], [1], [1, 2, 4, 5, 6], []], [[], [2], [], [1]]),
    ],
)
def test_lgvit_with_heads_that_no_exit_has(tmp_path: Path, stages: list[list[int]]) -> None:
    check_directory(tmp_path / "swin", SHAPES["padded"], "LGViT", stages, third_stage=6)


def test_the_authors_swin_small(tmp_path: Path) -> None:
    """Depths and exits of the published one, narrow."""
    shape = SHAPES["padded"] | {"depths": [2, 2, 18, 2]}
    stages = [[], [2], [3, 6, 9, 12, 15, 18], [1]]
    model = check_directory(tmp_path / "swin", shape, "LGViT", stages, third_stage=6)
    blocks = [exit.block for exit in model.config.exits]
    assert blocks == [4, 7, 10, 13, 16, 19, 22, 23]


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("highway", ["linear", "vit"])
def test_one_head_anywhere(tmp_path: Path, highway: str, shape: str) -> None:
    stages = [[1, 4], [1, 2]] if shape == "two stages" else [[1, 2], [2], [1, 4], [1]]
    check_directory(tmp_path / "swin", SHAPES[shape], highway, stages)


@pytest.mark.parametrize("widths", [(40, 24), (3072, 3072)])
def test_encoders_as_wide_as_their_weights(tmp_path: Path, widths: tuple[int, int]) -> None:
    shape = SHAPES["padded"]
    make, pixels = foreign.swin_state(**shape), foreign.random_pixels(36)
    for stage, width in zip((1, 2), widths, strict=True):
        name = f"swin.encoder.layers.{stage}.highway.0"
        foreign.add_swin_exit(make, name, "vit", 8 << stage, width)
    exits = dict(highway_type="vit", position_exits="[[],[1],[1],[]]")
    model = load_checkpoint(saved(tmp_path, shape, make.state, **exits))
    assert tuple(exit.size for exit in model.config.exits) == widths
    name, states = "swin.encoder.layers.1.highway.0", states_of(make.state, pixels, shape)
    expected = eq.swin_exit(make.state, name, "vit", states[3], EPS)
    eq.assert_reproduced(model.exit_logits(pixels)[:, 0], expected)


@pytest.mark.parametrize("shape", [(), (0,), (10**9, 0), (2, 40)])
def test_encoders_of_no_width(tmp_path: Path, shape: tuple[int, ...]) -> None:
    make = foreign.swin_state(**SHAPES["padded"])
    name = "swin.encoder.layers.2.highway.0"
    foreign.add_swin_exit(make, name, "vit", 32)
    make.state[f"{name}.layer.intermediate.dense.bias"] = torch.zeros(shape)
    exits = dict(highway_type="vit", position_exits="[[],[],[1],[]]")
    with pytest.raises(CheckpointError):
        load_checkpoint(saved(tmp_path, SHAPES["padded"], make.state, **exits))


def test_no_exits(tmp_path: Path) -> None:
    check_directory(tmp_path / "swin", SHAPES["padded"], "linear", [[], [], [], []])


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_huggingface_swin(tmp_path: Path, shape: str, qkv_bias: bool) -> None:
    sizes, pixels = SHAPES[shape], foreign.random_pixels(SHAPES[shape]["image"])
    state = foreign.swin_state(**sizes).state
    if not qkv_bias:
        state = {n: t for n, t in state.items() if not re.search(r"(query|key|value)\.bias$", n)}
    config = config_of(sizes, num_labels=foreign.CLASSES, qkv_bias=qkv_bias)
    folder = foreign.write_directory(tmp_path / "swin", config, state, "model.safetensors")
    model = load_backbone(folder)
    assert model.config.depths == tuple(sizes["depths"])
    assert model.config.stage_heads == tuple(sizes["heads"])
    eq.assert_reproduced(model(pixels), logits_of(state, pixels, sizes))


def test_frames_of_bytes(tmp_path: Path) -> None:
    """Normalisation and patch embedding are one in what is exported."""
    sizes = SHAPES["padded"]
    state = foreign.swin_state(**sizes).state
    model = load_backbone(saved(tmp_path, sizes, state))
    generator = torch.Generator().manual_seed(4)
    frames = torch.randint(0, 256, (2, 36, 36, 3), generator=generator, dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((frames / 255 - mean) / std).permute(0, 3, 1, 2)
    eq.assert_reproduced(baseline(model)(frames), logits_of(state, pixels, sizes))


@pytest.mark.parametrize("size", [40, 56, 76, 128])
def test_resized(tmp_path: Path, size: int) -> None:
    sizes = SHAPES["whole"]
    state, pixels = foreign.swin_state(**sizes).state, foreign.random_pixels(size)
    model = load_backbone(saved(tmp_path, sizes, state)).resized(size)
    for name, table in state.items():
        grid = -(-(size // 2) // (1 << int(name.split(".")[3]))) if ".layers." in name else 0
        if name.endswith("bias_table") and grid < 4:  # the middle of what there was
            middle = slice(4 - grid, 3 + grid)
            state[name] = table.unflatten(0, (7, 7))[middle, middle].flatten(0, 1)
    eq.assert_reproduced(model(pixels), logits_of(state, pixels, sizes))


def test_tables_of_windows_that_grow_are_interpolated(tmp_path: Path) -> None:
    sizes = SHAPES["padded"]
    state = foreign.swin_state(**sizes).state
    model = load_backbone(saved(tmp_path, sizes, state))
    larger = model.resized(128)
    grown = [
        (old.attention.table, new.attention.table, block.window)
        for old, new, block in zip(
            model.backbone.blocks, larger.backbone.blocks, larger.config.blocks, strict=True
        )
        if len(old.attention.table) < len(new.attention.table)
    ]
    assert grown
    for old, new, window in grown:
        side = round(len(old) ** 0.5)
        square = old.T.reshape(1, -1, side, side)
        wanted = functional.interpolate(square, size=(2 * window - 1,) * 2, mode="bicubic")
        assert torch.equal(new, wanted.reshape(wanted.shape[1], -1).T)


@pytest.mark.parametrize(
    "name",
    [
        *("swin.layernorm.weight", "swin.embeddings.norm.bias"),
        "swin.encoder.layers.1.downsample.reduction.weight",
        "swin.encoder.layers.2.blocks.5.attention.self.relative_position_bias_table",
    ],
)
def test_missing_weights_are_named(tmp_path: Path, name: str) -> None:
    state = foreign.swin_state(**SHAPES["padded"]).state
    del state[name]
    with pytest.raises(CheckpointError, match=f"missing {re.escape(name)}"):
        load_backbone(saved(tmp_path, SHAPES["padded"], state))


def test_an_exit_that_the_configuration_forgets_is_not_overlooked(tmp_path: Path) -> None:
    shape = SHAPES["padded"]
    make = foreign.swin_state(**shape)
    for s in (1, 3):
        name = f"swin.encoder.layers.{s}.highway.0"
        foreign.add_swin_exit(make, name, LGVIT[s][0], shape["dim"] << s)
    exits = dict(highway_type="LGViT", position_exits="[[],[2],[],[]]")
    folder = saved(tmp_path, shape, make.state, **exits)
    with pytest.raises(CheckpointError, match=r"unexpected swin\.encoder\.layers\.3\.highway\.0"):
        load_checkpoint(folder)
