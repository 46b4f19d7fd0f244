"""Against timm's own models, where timm is installed: every form of ViT that is supported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lgvit_edge.benchmarks.experiments import published
from lgvit_edge.benchmarks.experiments.published import filled, import_timm
from lgvit_edge.errors import CheckpointError, MissingDependency
from lgvit_edge.model import LGViT, load_backbone
from lgvit_edge.model.checkpoints.timm import Hints, named_as_eva, plain, timm_config
from lgvit_edge.model.checkpoints.timm_names import structure


@pytest.fixture(scope="module")
def timm() -> Any:
    try:
        return import_timm()
    except MissingDependency as error:
        pytest.skip(str(error))


SIZES = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=5)


def written(root: Path, model: torch.nn.Module, arguments: dict[str, Any], **config: Any) -> Path:
    """A folder as timm saves it."""
    said = {name: value for name, value in arguments.items() if isinstance(value, (int, str, list))}
    about = {"architecture": "vit_base_patch16_224", "model_args": said, **config}
    root.mkdir()
    (root / "config.json").write_text(json.dumps(about))
    save_file(
        {n: t.contiguous() for n, t in model.state_dict().items()}, root / "model.safetensors"
    )
    return root


def agree(ours: LGViT, theirs: torch.nn.Module, size: int = 32) -> None:
    pixels = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs.eval()(pixels)
        found = ours(pixels)
    assert expected.std() > 0.05  # images and classes differ
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "three heads of odd width": dict(embed_dim=36, num_heads=3),
    "mean, then norm": dict(global_pool="avg"),
    "norm, then mean": dict(global_pool="avg", fc_norm=False),
    "no class token": dict(global_pool="avg", class_token=False),
    "registers": dict(reg_tokens=4),
    "registers without positions": dict(reg_tokens=4, no_embed_class=True),
    # 9 positions may be those of 3 x 3 patches, or of 5 tokens and 2 x 2 patches.
    "as many positions as with a smaller map": dict(reg_tokens=4, no_embed_class=True, img_size=24),
    "class token without position": dict(no_embed_class=True),
    "registers and mean": dict(reg_tokens=1, global_pool="avg", no_embed_class=True),
    "LayerScale": dict(init_values=0.1),
    "norm before the blocks": dict(pre_norm=True, act_layer="quick_gelu"),
    "normed queries and keys": dict(qk_norm=True),
    "relu": dict(act_layer="relu"),
    "GELU by tanh": dict(act_layer="gelu_tanh"),
    "SiLU": dict(act_layer="silu"),
    "no bias": dict(qkv_bias=False),
    "patches of 14": dict(img_size=42, patch_size=14),
    "attention pooling": dict(global_pool="map", class_token=False, act_layer="gelu_tanh"),
    "attention pooling with a class token": dict(global_pool="map", mlp_ratio=3),
    "a norm inside attention": dict(scale_attn_norm=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_vit_gives_timms_logits(timm: Any, tmp_path: Path, form: str) -> None:
    arguments = SIZES | FORMS[form]
    theirs = filled(timm.models.vision_transformer.VisionTransformer(**arguments))
    ours = load_backbone(written(tmp_path / "timm", theirs, arguments))
    agree(ours, theirs, arguments["img_size"])


# One of each kind of block, attention, MLP, pooling and size.
PUBLISHED = (
    *("beit_base_patch16_384", "beitv2_large_patch16_224", "deit3_small_patch16_384"),
    *("deit_small_distilled_patch16_224", "eva02_base_patch16_clip_224", "eva_large_patch14_336"),
    *("swin_tiny_patch4_window7_224", "vit_base_patch16_siglip_512", "vit_small_patch16_dinov3"),
    *("vit_small_patch14_reg4_dinov2", "vit_base_patch32_clip_448"),
    *("vit_base_patch16_clip_quickgelu_224", "vit_medium_patch16_reg4_gap_256"),
    *("vit_so400m_patch16_siglip_256",),
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_architecture(timm: Any, tmp_path: Path, name: str) -> None:
    assert published.full_size(timm, name).num_classes in (1000, 512)
    assert published.difference(timm, name, tmp_path / "timm") < published.TOLERANCE


def test_positions_that_fit_two_maps_are_not_guessed(timm: Any, tmp_path: Path) -> None:
    arguments = SIZES | dict(reg_tokens=4, no_embed_class=True, img_size=24)
    theirs = timm.models.vision_transformer.VisionTransformer(**arguments)
    torch.save(theirs.state_dict(), tmp_path / "model.pth")
    message = "9 positions and 5 prefix tokens, which is a map of 2 or 3 patches a side: give the f"
    with pytest.raises(CheckpointError, match=message):
        load_backbone(tmp_path / "model.pth", num_heads=4)


def test_a_packed_swiglu(timm: Any, tmp_path: Path) -> None:
    arguments = SIZES | dict(act_layer="silu", mlp_layer=timm.layers.SwiGLUPacked, init_values=0.1)
    theirs = filled(timm.models.vision_transformer.VisionTransformer(**arguments))
    ours = load_backbone(written(tmp_path / "timm", theirs, arguments))
    assert ours.config.gated
    agree(ours, theirs)


EVA: dict[str, dict[str, Any]] = {
    "EVA-02": dict(
        **dict(swiglu_mlp=True, use_rot_pos_emb=True, ref_feat_shape=[16, 16], mlp_ratio=8 / 3),
        **dict(global_pool="avg"),
    ),
    "EVA-02, a norm in its MLP": dict(
        **dict(swiglu_mlp=True, scale_mlp=True, use_rot_pos_emb=True, qkv_fused=False),
        **dict(global_pool="avg"),
    ),
    "EVA-02 of CLIP": dict(
        **dict(swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True, qkv_fused=False),
        **dict(use_rot_pos_emb=True, ref_feat_shape=[16, 16], global_pool="token"),
    ),
    "EVA": dict(global_pool="avg", use_rot_pos_emb=False, init_values=0.1),
    "DINOv3": dict(
        **dict(qkv_bias=False, init_values=0.1, use_rot_pos_emb=True, use_abs_pos_emb=False),
        **dict(rope_type="dinov3", rope_temperature=100, rope_rotate_half=True),
        **dict(num_reg_tokens=4, use_fc_norm=False, global_pool="avg"),
    ),
    "DINOv3 that reads its token": dict(
        **dict(qkv_bias=False, use_rot_pos_emb=True, use_abs_pos_emb=False, swiglu_mlp=True),
        **dict(rope_type="dinov3", rope_temperature=100, rope_rotate_half=True),
        **dict(num_reg_tokens=4, use_fc_norm=False, global_pool="token", dynamic_img_size=True),
    ),
}


@pytest.mark.parametrize("form", EVA)
def test_rotary_positions(timm: Any, tmp_path: Path, form: str) -> None:
    arguments = SIZES | EVA[form]
    theirs = filled(timm.models.eva.Eva(**arguments))
    ours = load_backbone(written(tmp_path / "timm", theirs, arguments))
    agree(ours, theirs)
    torch.save(theirs.state_dict(), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="do not tell rotary positions; give timm's name"):
        load_backbone(tmp_path / "model.pth", num_heads=4)


BEIT: dict[str, dict[str, Any]] = {
    "each block its own": dict(use_rel_pos_bias=True, init_values=0.1),
    "one for all": dict(use_shared_rel_pos_bias=True),
    "positions as well": dict(use_rel_pos_bias=True, use_abs_pos_emb=True, global_pool="token"),
    "both": dict(use_rel_pos_bias=True, use_shared_rel_pos_bias=True, swiglu_mlp=True),
}


@pytest.mark.parametrize("form", BEIT)
def test_relative_positions(timm: Any, tmp_path: Path, form: str) -> None:
    arguments = SIZES | dict(qkv_bias=True, use_abs_pos_emb=False) | BEIT[form]
    theirs = filled(timm.models.beit.Beit(**arguments))
    arguments.pop("num_heads")  # the tables tell them
    about = arguments | dict(global_pool=arguments.get("global_pool", "avg"))
    ours = load_backbone(written(tmp_path / "timm", theirs, about, architecture="beit"))
    assert ours.config.num_heads == 4
    agree(ours, theirs)


def test_a_distilled_deit(timm: Any, tmp_path: Path) -> None:
    theirs = filled(timm.models.deit.VisionTransformerDistilled(**SIZES))
    name = "deit_tiny_distilled_patch16_224"
    ours = load_backbone(written(tmp_path / "timm", theirs, SIZES, architecture=name))
    assert (ours.config.family, ours.config.classifiers) == ("deit", 2)
    agree(ours, theirs)


@pytest.mark.parametrize(
    "name", ["deit_tiny_patch16_224", "vit_xsmall_patch16_clip_224", "vit_wee_patch16_reg1_gap_256"]
)
def test_a_bare_file_named_after_its_architecture(timm: Any, tmp_path: Path, name: str) -> None:
    """Heads, activation, pooling and eps come from the name alone."""
    theirs = filled(timm.create_model(name, num_classes=5))
    torch.save(theirs.state_dict(), tmp_path / f"{name}-5c1a2b.pth")
    notes: list[str] = []
    ours = load_backbone(tmp_path / f"{name}-5c1a2b.pth", note=notes.append)
    agree(ours, theirs, ours.config.image_size)
    assert "nothing says how images were prepared for these weights; assumed: short" in notes[0]
    (tmp_path / f"{name}-5c1a2b.pth").rename(tmp_path / "model.pth")
    by_name = load_backbone(tmp_path / "model.pth", arch=name)
    assert by_name.config.replace(preprocess=ours.config.preprocess) == ours.config


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_base_patch16_224", None),
        ("vit_small_patch16_224", "width 384 .published ones have 6 or 12.: give it with --num-h"),
        ("vit_base_patch16_gap_224", "these could be those of vit_base_patch16_gap_224"),
        ("vit_tiny_patch16_224", None),
        ("vit_base_patch16_clip_quickgelu_224", "these could be those of vit_base_patch16_clip_22"),
        ("vit_so400m_patch16_siglip_gap_256", "these could be those of vit_so400m_patch14_siglip"),
        ("vit_base_patch16_rope_ape_224", "do not tell rotary positions"),
        ("vit_base_patch16_rpn_224", "is built of timm's ResPostBlock, which is not supported"),
        ("eva02_base_patch14_224", "do not tell rotary positions"),
        ("vit_small_patch16_dinov3", "do not tell rotary positions"),
    ],
)
def test_nameless_weights_are_read_only_if_all_alike_are_computed_alike(
    timm: Any, name: str, message: str | None
) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=5)
    state = theirs.state_dict()
    hints = Hints(structure=structure(state), eva=named_as_eva(state))
    if message is None:
        config, block = timm_config(plain(state), hints), theirs.blocks[0]
        assert config.num_heads == block.attn.num_heads
        gelu = {"GELU": "gelu", "GELUTanh": "gelu_tanh"}[type(block.mlp.act).__name__]
        assert config.activation == gelu
    else:
        with pytest.raises(CheckpointError, match=message):
            timm_config(plain(state), hints)


@pytest.mark.parametrize("pooling", ["token", "avg"])
def test_weights_without_a_classifier_get_one(timm: Any, tmp_path: Path, pooling: str) -> None:
    arguments = SIZES | dict(num_classes=0, global_pool=pooling)
    theirs = filled(timm.models.vision_transformer.VisionTransformer(**arguments))
    folder = written(tmp_path / "timm", theirs, arguments)
    with pytest.raises(CheckpointError, match="no classifier, .* run: lgvit-edge train --stage b"):
        load_backbone(folder)
    notes: list[str] = []
    ours = load_backbone(folder, classes=3, note=notes.append)
    assert "one of 3 classes starts from zeros" in notes[0]
    ours.backbone.final.classifier.linears[0] = torch.nn.Identity()  # type: ignore
    agree(ours, theirs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(global_pool="max"), "global_pool 'max' is not supported: expected token, avg, map"),
        (dict(act_layer="mish"), "activation 'mish' is not supported: expected gelu, "),
        (dict(img_size=[32, 64]), r"only square images are supported, found \[32, 64\]"),
        (
            dict(pool_include_prefix=True),
            "config.json sets pool_include_prefix of the model to 'True",
        ),
        (dict(img_size=48, wrong_size=32), "config.json says images of 32 x 32, but .* 48 x 48"),
        (dict(img_size=[16, 64]), r"only square images are supported, found \[16, 64\]"),
    ],
)
def test_what_is_not_supported_is_named(
    timm: Any, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    arguments = SIZES | arguments
    wrong = arguments.pop("wrong_size", arguments["img_size"])
    theirs = timm.models.vision_transformer.VisionTransformer(**arguments)
    arguments["img_size"] = wrong
    with pytest.raises(CheckpointError, match=message):
        load_backbone(written(tmp_path / "timm", theirs, arguments))
