"""Swins of timm, as its older and newer versions name them (``equations.py``)."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import equations as eq
import foreign_states as foreign
import pytest
import torch
from torch import Tensor

from lgvit_edge.errors import CheckpointError
from lgvit_edge.model import load_backbone

State = dict[str, Tensor]

SWIN = dict[str, Any](image=64, patch=2, dim=16, depths=[2, 2, 6, 2], heads=[2, 2, 4, 4], window=4)
RENAMED = {
    "swin.embeddings.patch_embeddings.projection": "patch_embed.proj",
    "swin.embeddings.norm": "patch_embed.norm",
    "swin.encoder.": "",
    "attention.self.relative_position_bias_table": "attn.relative_position_bias_table",
    "attention.output.dense": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "swin.layernorm": "norm",
}


def timm_swin(state: State, *, new: bool) -> State:
    """A Hugging Face Swin as timm names it; ``new`` is since 0.9, else as Swin's authors do."""
    renamed: State = {}
    for name, tensor in state.items():
        text = name
        if "relative_position_index" in name or ".self.key." in name or ".self.value." in name:
            continue
        if ".self.query." in name:
            parts = [state[name.replace("query", part)] for part in ("query", "key", "value")]
            text, tensor = name.replace("attention.self.query", "attn.qkv"), torch.cat(parts)
        for theirs, timms in RENAMED.items():
            text = text.replace(theirs, timms)
        text = re.sub("^classifier", "head.fc" if new else "head", text)
        if new and (stage := re.match(r"layers\.(\d)\.downsample", text)):
            text = f"layers.{int(stage[1]) + 1}{text.removeprefix(stage[0][: -len('.downsample')])}"
        renamed[text] = tensor
    return renamed


def test_swin_names_are_timms() -> None:
    state = foreign.swin_state(**SWIN).state
    old, new = timm_swin(state, new=False), timm_swin(state, new=True)
    assert set(old) - set(new) == {
        *("head.weight", "head.bias"),
        *(f"layers.0.downsample.{n}" for n in ("norm.weight", "norm.bias", "reduction.weight")),
    }
    assert set(new) - set(old) == {
        *("head.fc.weight", "head.fc.bias"),
        *(f"layers.3.downsample.{n}" for n in ("norm.weight", "norm.bias", "reduction.weight")),
    }
    assert {n for n in old if n.startswith("layers.1.blocks.1.")} == {
        f"layers.1.blocks.1.{part}.{kind}"
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    } | {"layers.1.blocks.1.attn.relative_position_bias_table"}


def logits_of(state: State, pixels: Tensor, sizes: dict[str, Any]) -> Tensor:
    names = {key: sizes[key] for key in ("depths", "heads", "window")}
    last = eq.swin_states(state, pixels, **names, eps=1e-5)[-1]
    return eq.swin_linear(state, "swin", last, 1e-5, "classifier")


def buffers(state: State, sizes: dict[str, Any]) -> State:
    """Returns the tables that older files hold; only the size of the first mask is read."""
    tables: State = {}
    for s, depth in enumerate(sizes["depths"]):
        grid, window = sizes["image"] // sizes["patch"] >> s, sizes["window"]
        for b in range(depth):
            name = f"layers.{s}.blocks.{b}"
            index = torch.zeros(window**2, window**2, dtype=torch.int64)
            tables[f"{name}.attn.relative_position_index"] = index
            if b % 2 and grid > window:
                mask = torch.zeros((grid // window) ** 2, window**2, window**2)
                tables[f"{name}.attn_mask"] = mask
    return state | tables


@pytest.mark.parametrize("form", ["old", "old with buffers", "new", "published"])
def test_swin(tmp_path: Path, form: str) -> None:
    state, pixels = foreign.swin_state(**SWIN).state, foreign.random_pixels(64)
    saved = timm_swin(state, new=form == "new")
    path = tmp_path / "swin.pth"
    if form in ("old with buffers", "published"):
        saved = buffers(saved, SWIN)
    torch.save({"model": saved} if form == "published" else saved, path)
    model = load_backbone(path)
    assert model.config.family == "swin"
    assert (model.config.image_size, model.config.window_size) == (64, 4)
    assert model.config.preprocess.mean == (0.485, 0.456, 0.406)
    eq.assert_reproduced(model(pixels), logits_of(state, pixels, SWIN))


def test_swin_whose_mask_tells_the_image_size(tmp_path: Path) -> None:
    """Maps of 16, 8 and 4 and windows of 2: shapes alone would say 4 times 2 patches."""
    sizes = dict[str, Any](image=32, patch=2, dim=16, depths=[2, 2, 2], heads=[2, 2, 4], window=2)
    state, pixels = foreign.swin_state(**sizes).state, foreign.random_pixels(32)
    torch.save(buffers(timm_swin(state, new=False), sizes), tmp_path / "swin.pth")
    model = load_backbone(tmp_path / "swin.pth")
    assert (model.config.image_size, model.config.window_size) == (32, 2)
    eq.assert_reproduced(model(pixels), logits_of(state, pixels, sizes))


def test_swin_folder(tmp_path: Path) -> None:
    state, pixels = foreign.swin_state(**SWIN).state, foreign.random_pixels(64)
    cfg = {"mean": [0.1, 0.2, 0.3], "crop_pct": 0.9}
    config = {"architecture": "swin_tiny_patch4_window7_224", "pretrained_cfg": cfg}
    saved = timm_swin(state, new=True)
    folder = foreign.write_directory(tmp_path / "timm", config, saved, "model.safetensors")
    model = load_backbone(folder)
    assert (model.config.preprocess.resize, model.config.preprocess.mean) == (71, (0.1, 0.2, 0.3))
    eq.assert_reproduced(model(pixels), logits_of(state, pixels, SWIN))
    with pytest.raises(CheckpointError, match="a Swin tells its attention heads: leave --num-h"):
        load_backbone(folder, num_heads=2)


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "norm.weight",
        "patch_embed.norm.weight",
        "layers.2.blocks.5.mlp.fc2.bias",
        "layers.2.downsample.norm.weight",
        "layers.3.blocks.1.attn.relative_position_bias_table",
    ],
)
def test_swin_that_lacks_something(tmp_path: Path, name: str, new: bool) -> None:
    state = timm_swin(foreign.swin_state(**SWIN).state, new=new)
    del state[name]
    torch.save(state, tmp_path / "swin.pth")
    with pytest.raises(CheckpointError, match=f"missing {re.escape(name)}"):
        load_backbone(tmp_path / "swin.pth")


NONSENSE: list[tuple[int, ...]] = [(), (4,), (0,), (1, 0, 64), (0, 0, 0, 0), (10**9, 0)]
NAMES = ["patch_embed.proj.weight", "head.weight", "layers.0.blocks.0.mlp.fc1.weight"]
NAMES += ["layers.0.blocks.0.attn.qkv.weight"]
NAMES += [f"layers.{s}.blocks.0.attn.relative_position_bias_table" for s in (0, 1)]
MASKS = [("layers.0.blocks.1.attn_mask", NONSENSE[i]) for i in (0, 2, 5)]


@pytest.mark.parametrize(("name", "shape"), [*itertools.product(NAMES, NONSENSE), *MASKS])
def test_swin_shapes_that_make_no_sense(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    sizes = SWIN | {"depths": [2, 1], "heads": [2, 2], "image": 16}
    state = timm_swin(foreign.swin_state(**sizes).state, new=False)
    torch.save(state | {name: torch.zeros(shape)}, tmp_path / "swin.pth")
    with pytest.raises(CheckpointError):
        load_backbone(tmp_path / "swin.pth")
