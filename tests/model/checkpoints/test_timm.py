"""Files of timm: names, sizes read off shapes, preprocessing (``equations.py``)."""

from __future__ import annotations

from pathlib import Path

import equations as eq
import foreign_states as foreign
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lgvit_edge.errors import CheckpointError
from lgvit_edge.model import load_backbone

State = dict[str, Tensor]

# ViT and DeiT: query, key and value stacked, LayerNorm eps 1e-6, 64 numbers per head.


def timm_state(dim: int, depth: int, *, distilled: bool, qkv_bias: bool = True) -> State:
    make = foreign.Maker(seed=9)
    make.normal("cls_token", 1, 1, dim)
    if distilled:
        make.normal("dist_token", 1, 1, dim)
    make.normal("pos_embed", 1, 9 + 1 + distilled, dim)
    make.linear("patch_embed.proj", dim, 3, 16, 16)
    for i in range(depth):
        make.norm(f"blocks.{i}.norm1", dim)
        make.linear(f"blocks.{i}.attn.qkv", 3 * dim, dim, bias=qkv_bias)
        make.linear(f"blocks.{i}.attn.proj", dim, dim)
        make.norm(f"blocks.{i}.norm2", dim)
        make.linear(f"blocks.{i}.mlp.fc1", 4 * dim, dim)
        make.linear(f"blocks.{i}.mlp.fc2", dim, 4 * dim)
    make.norm("norm", dim)
    make.linear("head", 7, dim)
    if distilled:
        make.linear("head_dist", 7, dim)
    return make.state


def timm_logits(state: State, pixels: Tensor, depth: int) -> Tensor:
    tokens = [name for name in ("cls_token", "dist_token") if name in state]
    x = eq.embed(state, pixels, "patch_embed.proj", "pos_embed", tokens)
    dim = x.shape[-1]
    for i in range(depth):
        n = eq.layer_norm(state, f"blocks.{i}.norm1", x, 1e-6)
        q, k, v = eq.linear(state, f"blocks.{i}.attn.qkv", n).split(dim, dim=-1)
        x = x + eq.linear(state, f"blocks.{i}.attn.proj", eq.attend(q, k, v, heads=dim // 64))
        n = eq.layer_norm(state, f"blocks.{i}.norm2", x, 1e-6)
        m = eq.gelu(eq.linear(state, f"blocks.{i}.mlp.fc1", n))
        x = x + eq.linear(state, f"blocks.{i}.mlp.fc2", m)
    normed = eq.layer_norm(state, "norm", x, 1e-6)
    logits = [
        eq.linear(state, name, normed[:, i])
        for i, name in enumerate(("head", "head_dist"))
        if f"{name}.weight" in state
    ]
    return sum(logits) / torch.tensor(len(logits))


@pytest.fixture
def square() -> Tensor:
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "under 'model'"])
def test_timm(tmp_path: Path, square: Tensor, distilled: bool, wrapped: bool) -> None:
    state = timm_state(128, 2, distilled=distilled)
    torch.save({"model": state, "epoch": 3} if wrapped else state, tmp_path / "timm.pth")
    model = load_backbone(tmp_path / "timm.pth", num_heads=2)
    assert model.config.family == ("deit" if distilled else "vit")
    assert (model.config.num_heads, model.config.image_size, model.config.num_classes) == (2, 48, 7)
    eq.assert_reproduced(model(square), timm_logits(state, square, 2))


def test_timm_safetensors_without_qkv_bias(tmp_path: Path, square: Tensor) -> None:
    state = timm_state(64, 2, distilled=False, qkv_bias=False)
    save_file(state, tmp_path / "timm.safetensors")
    model = load_backbone(tmp_path / "timm.safetensors", num_heads=1)
    assert not model.config.qkv_bias
    eq.assert_reproduced(model(square), timm_logits(state, square, 2))


def test_timm_by_architecture_takes_its_preprocessing(tmp_path: Path, square: Tensor) -> None:
    state = timm_state(192, 12, distilled=False)
    torch.save(state, tmp_path / "timm.pth")
    model = load_backbone(tmp_path / "timm.pth", arch="deit-tiny")
    assert (model.config.family, model.config.prefix_tokens) == ("deit", 1)
    assert model.config.preprocess.interpolation == "bicubic"
    assert model.config.preprocess.mean == (0.485, 0.456, 0.406)
    eq.assert_reproduced(model(square), timm_logits(state, square, 12))
    with pytest.raises(CheckpointError, match="vit-base has hidden size 768 and 12 blocks, the w"):
        load_backbone(tmp_path / "timm.pth", arch="vit-base")
    with pytest.raises(CheckpointError, match="unknown architecture 'resnet-50'; known: vit-tiny"):
        load_backbone(tmp_path / "timm.pth", arch="resnet-50")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("head.weight", "the weights have no classifier"),
        ("cls_token", "10 positions and 0 prefix tokens, which is no square map of patches"),
        ("pos_embed", "pos_embed is missing; weights do not tell rotary positions"),
        ("norm.bias", r"missing norm\.bias"),
        ({"fc_norm.weight": torch.ones(64)}, r"missing fc_norm\.bias\n .*unexpected norm\.bias"),
        (
            {"blocks.0.attn.qkv.weight": torch.zeros(100, 64)},
            r"qkv\.weight is \(100, 64\), expected \(64, 64\) \(a third each\)",
        ),
    ],
)
def test_timm_that_does_not_fit(tmp_path: Path, change: str | State, message: str) -> None:
    state = timm_state(64, 1, distilled=False)
    if isinstance(change, str):
        del state[change]
    else:
        state |= change
    torch.save(state, tmp_path / "timm.pth")
    with pytest.raises(CheckpointError, match=message):
        load_backbone(tmp_path / "timm.pth", num_heads=1)


@pytest.mark.parametrize("shape", [(), (4,), (0,), (1, 0, 64), (0, 0, 0, 0), (10**9, 0)])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        *[(f"blocks.0.attn.{n}", True) for n in ("qkv.weight", "qkv.bias", "proj.weight")],
        *[(n, False) for n in ("cls_token", "pos_embed", "patch_embed.proj.weight")],
        *[(n, False) for n in ("head.weight", "blocks.0.mlp.fc1.weight")],
    ],
)
def test_timm_shapes_that_make_no_sense(
    tmp_path: Path, name: str, said: bool, shape: tuple[int, ...]
) -> None:
    state = timm_state(64, 1, distilled=False) | {name: torch.zeros(shape)}
    torch.save(state, tmp_path / "timm.pth")
    with pytest.raises(CheckpointError, match=name if said else None):
        load_backbone(tmp_path / "timm.pth", num_heads=1)


@pytest.mark.parametrize(
    ("dim", "depth", "known"),
    [
        (96, 1, "none is published"),
        (96, 12, "none is published"),  # that is a Swin-T's
        (384, 12, "have 6 or 12"),
    ],
)
def test_timm_of_sizes_that_do_not_tell_their_heads(
    tmp_path: Path, dim: int, depth: int, known: str
) -> None:
    torch.save(timm_state(dim, depth, distilled=False), tmp_path / "timm.pth")
    with pytest.raises(CheckpointError, match=f"cannot be told from .* width {dim} .*{known}"):
        load_backbone(tmp_path / "timm.pth")


CFG = dict(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], interpolation="bicubic", crop_pct=0.9)
CFG |= dict(input_size=[3, 48, 48])


def timm_folder(root: Path, config: object, state: State | None = None) -> Path:
    state = timm_state(64, 1, distilled=False) if state is None else state
    if isinstance(config, dict):
        config = {"model_args": {"num_heads": len(state["cls_token"][0, 0]) // 64}} | config
    return foreign.write_directory(root / "timm", config, state, "model.safetensors")


@pytest.mark.parametrize(
    ("name", "distilled", "family"),
    [
        ("deit_tiny_patch16_224", False, "deit"),
        ("deit_tiny_distilled_patch16_224", True, "deit"),
        ("vit_tiny_patch16_224", False, "vit"),
    ],
)
def test_folder(tmp_path: Path, square: Tensor, name: str, distilled: bool, family: str) -> None:
    state = timm_state(128, 2, distilled=distilled)
    config = {"architecture": name, "num_classes": 7, "pretrained_cfg": CFG}
    model = load_backbone(timm_folder(tmp_path, config, state))
    assert (model.config.family, model.config.prefix_tokens) == (family, 1 + distilled)
    spec = model.config.preprocess
    assert (spec.resize, spec.interpolation, spec.squash) == (53, "bicubic", False)  # 48 / 0.9
    assert (spec.mean, spec.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    eq.assert_reproduced(model(square), timm_logits(state, square, 2))


def test_folder_without_preprocessing_has_the_familys(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path, {"architecture": "deit_tiny_patch16_224"})
    assert load_backbone(folder).config.preprocess.mean == (0.485, 0.456, 0.406)
    (folder / "config.json").write_text('{"architecture": "vit_tiny_patch16_224"}')
    assert load_backbone(folder, num_heads=1).config.preprocess.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ([], "pretrained_cfg must be an object, found list"),
        (CFG | {"mean": "grey"}, r"mean: expected a list.* found 'grey'"),
        (CFG | {"mean": [0.5]}, r"mean: expected a list of 3"),
        (CFG | {"std": [1, 0, 1]}, r"std must be positive, found \(1\.0, 0\.0, 1\.0\)"),
        (CFG | {"std": None}, "std: expected a list"),
        (CFG | {"interpolation": "random"}, "interpolation must be one of .* found 'random'"),
        (CFG | {"crop_mode": "border"}, "crop_mode 'border' is not supported: expected center, sq"),
        (CFG | {"crop_pct": 0.01}, r"crop_pct must be 0\.1\.\.1, found '0\.01'"),
        (CFG | {"interpolation": 3}, "interpolation: expected a string, found 3"),
    ],
)
def test_folder_with_wrong_preprocessing(tmp_path: Path, cfg: object, message: str) -> None:
    config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": cfg}
    with pytest.raises(CheckpointError, match=message):
        load_backbone(timm_folder(tmp_path, config))


def test_what_a_config_of_an_unknown_architecture_leaves_open_is_said(tmp_path: Path) -> None:
    notes: list[str] = []
    load_backbone(timm_folder(tmp_path, {"architecture": "my_vit"}), note=notes.append)
    said = "\n".join(notes)
    assert "config.json names my_vit, of which nothing is known" in said
    assert "the activation is assumed to be gelu" in said
    assert "nothing says how images were prepared for these weights; assumed: short" in said


@pytest.mark.parametrize("architecture", [3, None, ["deit_tiny"], {"a": 1}])
def test_folder_whose_architecture_is_no_name(tmp_path: Path, architecture: object) -> None:
    folder = timm_folder(tmp_path, {"architecture": architecture})
    assert load_backbone(folder).config.family == "vit"
