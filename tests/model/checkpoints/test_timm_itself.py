"""Against timm's own models, where timm is installed: every form of ViT that is supported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lgvit_edge.benchmarks.experiments import published
from lgvit_edge.benchmarks.experiments.published import filled
from lgvit_edge.errors import CheckpointError
from lgvit_edge.model import LGViT, baseline, load_backbone
from lgvit_edge.model.checkpoints.swinv2 import coordinates
from lgvit_edge.model.checkpoints.timm import Hints, tabled, timm_config
from lgvit_edge.model.checkpoints.timm_names import structure
from lgvit_edge.model.checkpoints.timm_weights import named_as_eva, plain
from lgvit_edge.model.macs import count_macs

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
        found, exported = ours(pixels), baseline(ours, input="float32")(pixels)
    assert expected.std() > 0.05  # images and classes differ
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(exported, expected, atol=1e-5, rtol=1e-5)


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
    *("vit_so400m_patch16_siglip_256", "swinv2_base_window12to24_192to384"),
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_architecture(timm: Any, tmp_path: Path, name: str) -> None:
    assert published.full_size(timm, name).num_classes in (1000, 512)
    assert published.difference(timm, name, tmp_path / "timm") < published.TOLERANCE


@pytest.mark.parametrize(
    ("name", "giga"),  # as timm publishes them, the products of attention included
    [
        ("deit3_small_patch16_384", 15.52),
        ("beit_base_patch16_224", 17.58),
        ("eva02_small_patch14_224", 6.14),
        ("eva02_tiny_patch14_336", 4.68),
        ("eva02_base_patch16_clip_224", 17.62),
        ("vit_base_patch16_siglip_224", 17.73),
        ("vit_base_patch16_siglip_gap_224", 17.49),
        ("vit_base_patch16_gap_224", 17.49),
        ("vit_base_patch32_clip_448", 17.93),
        ("vit_medium_patch16_reg4_gap_256", 10.76),
        ("swin_tiny_patch4_window7_224", 4.51),
        ("swinv2_tiny_window8_256", 5.96),
    ],
)
def test_published_macs(timm: Any, name: str, giga: float) -> None:
    config = published.full_size(timm, name)
    with torch.device("meta"):
        model = LGViT(config).eval()
    image = torch.zeros(1, 3, config.image_size, config.image_size, device="meta")
    assert count_macs(model, image) == pytest.approx(giga * 1e9, rel=0.01)


def test_positions_that_fit_two_maps_are_not_guessed(timm: Any, tmp_path: Path) -> None:
    arguments = SIZES | dict(reg_tokens=4, no_embed_class=True, img_size=24)
    theirs = timm.models.vision_transformer.VisionTransformer(**arguments)
    torch.save(theirs.state_dict(), tmp_path / "model.pth")
    message = "9 positions and 5 prefix tokens, which is a map of 2 or 3 patches a side: give the f"
    with pytest.raises(CheckpointError, match=message):
        load_backbone(tmp_path / "model.pth", num_heads=4)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("eva02_tiny_patch14_224", dict(ref_feat_shape=[7, 7])),
        ("eva02_tiny_patch14_224", dict(ref_feat_shape=7)),
        ("vit_small_patch16_dinov3", dict(use_rot_pos_emb=True)),
        ("vit_small_patch16_dinov3", dict(ref_feat_shape=[3, 3])),
    ],
)
def test_arguments_that_change_a_published_architecture(
    timm: Any, tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    arguments = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4) | changes
    theirs = filled(timm.create_model(name, num_classes=5, **arguments))
    agree(load_backbone(written(tmp_path / "timm", theirs, arguments, architecture=name)), theirs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(rope_temperature=50.0), "these rotary positions are not supported: .*50.0"),
        (dict(rope_rotate_half=True), "these rotary positions are not supported: .*True"),
        (dict(rope_grid_offset=0.5), "these rotary positions are not supported: .*0.5"),
        (dict(rope_type="mixed"), "these rotary positions are not supported: .*mixed"),
        (dict(ref_feat_shape=[7, 9]), r"ref_feat_shape must be square, found \[7, 9\]"),
        (dict(ref_feat_shape="x"), "config.json: ref_feat_shape must be a whole number or two, f"),
        (dict(num_heads="x"), "config.json: num_heads must be a whole number or two, found 'x'"),
        (dict(img_size=[]), r"config.json: img_size must be a whole number or two, found \[\]"),
        (dict(global_pool=["avg"]), r"config.json: global_pool must be text, found \['avg'\]"),
        (
            dict(depth=1),
            "config.json says depth 1, the weights have 2; give the config.json th",
        ),
        (dict(qk_norm=True), "config.json says qk_norm True, the weights have False"),
    ],
)
def test_arguments_that_are_not_read(
    timm: Any, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4)
    name = "eva02_tiny_patch14_224"
    theirs = timm.create_model(name, num_classes=5, **arguments)
    folder = written(tmp_path / "timm", theirs, arguments, architecture=name)
    about = json.loads((folder / "config.json").read_text())
    about["model_args"] |= changes
    (folder / "config.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match=message):
        load_backbone(folder)


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


SWINS: dict[str, dict[str, Any]] = {
    "plain": {},
    "windows it was trained with before": dict(pretrained_window_sizes=[3, 3, 2]),
    # Maps of 11, 6 and 3: shifted, then padded to 12 and 8.
    "padded": dict(img_size=44),
    "padded by two": dict(img_size=40, window_size=3),
    "no bias": dict(qkv_bias=False),
    "windows by stage": dict(window_size=[[4, 4], [4, 4], [5, 5]]),
}
SWIN_SIZES = dict(img_size=64, embed_dim=16, depths=[2, 2, 2], num_heads=[2, 2, 4], window_size=4)
V1, V2 = "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"


def made_swin(timm: Any, name: str, arguments: dict[str, Any]) -> torch.nn.Module:
    """Its scales reach above the largest, and its tables differ from place to place."""
    theirs = filled(timm.create_model(name, num_classes=5, **arguments))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter_name, parameter in theirs.named_parameters():
            if parameter_name.endswith("logit_scale"):
                parameter.uniform_(0.5, 6, generator=generator)
            if parameter_name.endswith("bias_table"):
                parameter.normal_(0, 1, generator=generator)
    return theirs


@pytest.mark.parametrize(
    ("name", "form"), [*((V2, form) for form in SWINS), (V1, "padded"), (V1, "padded by two")]
)
def test_a_swin_gives_timms_logits(timm: Any, tmp_path: Path, name: str, form: str) -> None:
    arguments = SWIN_SIZES | SWINS[form]
    theirs = made_swin(timm, name, arguments)
    folder = written(tmp_path / "timm", theirs, arguments, architecture=name)
    ours = load_backbone(folder)
    assert ours.config.family == name.partition("_")[0]
    agree(ours, theirs, arguments["img_size"])
    if "padded" in form:  # another order gives other answers
        before = ours.config.replace(shift_first=False)
        other = LGViT(before).eval()
        other.load_state_dict(ours.state_dict())
        pixels = torch.randn(2, 3, before.image_size, before.image_size)
        with torch.no_grad():
            assert float((other(pixels) - ours(pixels)).abs().max()) > 1e-3


def with_buffers(theirs: Any) -> dict[str, torch.Tensor]:
    """As the files of Swin V2's authors are: tables beside the weights, and merging told late."""
    state = {}
    for name, tensor in theirs.state_dict().items():
        stage = name.split(".")[1] if ".downsample." in name else ""
        name = name.replace(f"layers.{stage}.down", f"layers.{int(stage or 1) - 1}.down")
        state[name.replace("head.fc.", "head.")] = tensor
    for name, buffer in theirs.named_buffers():
        if name.endswith(("relative_coords_table", "relative_position_index", "attn_mask")):
            state[name] = buffer
    return state


def test_the_files_of_swin_v2s_authors_tell_windows_and_positions(
    timm: Any, tmp_path: Path
) -> None:
    theirs = made_swin(timm, V2, SWIN_SIZES | dict(pretrained_window_sizes=[3, 3, 2]))
    path = tmp_path / "swinv2_tiny_patch4_window8_256.pth"
    torch.save({"model": with_buffers(theirs)}, path)
    ours = load_backbone(path)
    assert (ours.config.image_size, ours.config.window_size) == (64, 4)
    agree(ours, theirs, 64)
    wrong = with_buffers(theirs)
    wrong["layers.1.blocks.0.attn.relative_coords_table"] = torch.zeros(1, 5, 5, 2)
    torch.save(wrong, path)
    with pytest.raises(CheckpointError, match=r"table is \(1, 5, 5, 2\), expected windows of 4"):
        load_backbone(path)


@pytest.mark.parametrize("name", [V2, "swinv2_base_window12to16_192to256"])
def test_windows_of_a_bare_swin_v2_come_from_its_name(timm: Any, tmp_path: Path, name: str) -> None:
    """So do those in which it was trained before; our name of its sizes needs timm's beside it."""
    state, config = {}, None
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=5)
    for key, tensor in theirs.state_dict().items():
        state[key] = torch.zeros(tensor.shape)
    generator = torch.Generator().manual_seed(0)
    for key in [key for key in state if "cpb_mlp" in key]:
        state[key] = torch.randn(state[key].shape, generator=generator) * 0.1
    hints = Hints(arch=name)
    config = timm_config(plain(state), hints)
    window = 8 if name == V2 else 16
    assert (config.family, config.image_size, config.window_size) == ("swinv2", 256, window)
    for stage, block in ((0, 0), (3, -1)):
        attention = theirs.layers[stage].blocks[0].attn
        pretrained = attention.pretrained_window_size[0]
        at = f"layers.{stage}.blocks.0.attn"
        weights = [state[f"{at}.cpb_mlp.{part}"] for part in ("0.weight", "0.bias", "2.weight")]
        places = coordinates(attention.window_size[0], pretrained)
        expected = 16 * ((places @ weights[0].T + weights[1]).relu() @ weights[2].T).sigmoid()
        table = tabled(state, config, hints)[f"{at}.relative_position_bias_table"]
        torch.testing.assert_close(table, expected)
        assert config.blocks[block].window == attention.window_size[0]
    ours = "swinv2-tiny" if name == V2 else "swinv2-base"
    beside = Hints(arch=ours, stem=f"{name}-1a2b")
    named = timm_config(plain(state), beside)
    assert (named.family, named.window_size) == ("swinv2", window)
    with pytest.raises(CheckpointError, match="do not tell the size of windows; give timm's name"):
        timm_config(plain(state), Hints(arch=ours))


@pytest.mark.parametrize(
    ("name", "arguments", "changes", "message"),
    [
        (V2, {}, dict(architecture="vit_base_patch16_224"), "do not tell pretrained_window_sizes"),
        (V2, dict(window_size=8), dict(window_size=[4, 8]), "must be the side of square windows"),
        (V2, {}, dict(window_size=[4, 2, 2]), r"windows of several sizes .* found \[4, 2, 2\]"),
        (V2, {}, dict(pretrained_window_sizes=[3]), "one for each of 3 stages; found .3."),
        (
            V2,
            {},
            dict(always_partition=True),
            "config.json sets always_partition of the",
        ),
        (V2, {}, dict(global_pool="max"), "global_pool 'max' is not supported in a Swin"),
        (V1, {}, dict(global_pool="max"), "global_pool 'max' is not supported in a Swin"),
        (
            V1,
            {},
            dict(always_partition=True),
            "config.json sets always_partition of the",
        ),
        (V2, {}, dict(img_size=None), "the size of images cannot be told from weights of Swin V2"),
    ],
)
def test_what_is_not_supported_of_swins_is_named(
    timm: Any,
    tmp_path: Path,
    name: str,
    arguments: dict[str, Any],
    changes: dict[str, Any],
    message: str,
) -> None:
    theirs = made_swin(timm, name, SWIN_SIZES | arguments)
    said = SWIN_SIZES | changes
    architecture = said.pop("architecture", name)
    folder = written(tmp_path / "timm", theirs, said, architecture=architecture)
    with pytest.raises(CheckpointError, match=message):
        load_backbone(folder)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        (None, "do not tell the size of windows; give timm's name"),
        ("swin_tiny_patch4_window7_224", "not those of swin_tiny_.*: it has other parts"),
        ("swin-tiny", "are no swin-tiny: they are those of a Swin V2"),
        ("swinv2-tiny", "do not tell the size of windows; give timm's name"),
        ("swinv2_tiny_window16_256", "expected windows of 8, .* found 16 in swinv2_tiny_window16"),
        ("swinv2_cr_tiny_224", "unknown architecture 'swinv2_cr_tiny_224'"),
    ],
)
def test_a_wrong_name_of_a_swin_v2(timm: Any, arch: str | None, message: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(V2, num_classes=5)
    state = theirs.state_dict()
    coordinates = theirs.layers[0].blocks[0].attn.relative_coords_table
    if arch is not None and arch.endswith(("16_256", "swin-tiny")):
        state["layers.0.blocks.0.attn.relative_coords_table"] = coordinates
        state["layers.0.blocks.1.attn_mask"] = theirs.layers[0].blocks[1].attn_mask
    with pytest.raises(CheckpointError, match=message):
        timm_config(plain(state), Hints(arch=arch))


def test_timms_own_variant_of_swin_v2_is_refused_by_name(timm: Any) -> None:
    with torch.device("meta"):
        state = timm.create_model("swinv2_cr_tiny_ns_224", num_classes=5).state_dict()
    for arch in (None, "swinv2_cr_tiny_ns_224", "swinv2-tiny"):
        with pytest.raises(
            CheckpointError, match="are of swinv2_cr, timm's own variant .* not sup"
        ):
            timm_config(plain(state), Hints(arch=arch))


@pytest.mark.parametrize(
    ("part", "tensor", "message"),
    [
        ("cpb_mlp.0.bias", None, "missing layers.1.blocks.0.attn.cpb_mlp.0.bias"),
        ("logit_scale", None, "missing layers.1.blocks.0.attn.logit_scale"),
        ("logit_scale", torch.full((2, 1, 1), torch.inf), "logit_scale holds NaN or inf"),
        ("logit_scale", torch.ones(2, 2), r"logit_scale is \(4,\), expected \(2,\)"),
        (
            "cpb_mlp.2.weight",
            torch.ones(2, 512, dtype=torch.int64),
            "2.weight is torch.int64, expected float32",
        ),
        ("cpb_mlp.2.weight", torch.ones(2, 7), r"expected \(n, 2\), \(n,\), \(heads, n\)"),
        ("q_bias", None, "missing layers.1.blocks.0.attn.qkv.bias"),
        ("v_bias", None, "missing layers.1.blocks.0.attn.v_bias"),
        ("q_bias", torch.tensor(1.0), r"qkv.bias is \(34,\), expected \(32,\)"),
        ("v_bias", torch.ones(32).to(torch.float8_e4m3fn), "v_bias is torch.float8_e4m3fn, expect"),
    ],
)
def test_a_swin_v2_that_lacks_something(
    timm: Any, tmp_path: Path, part: str, tensor: torch.Tensor | None, message: str
) -> None:
    folder = written(
        tmp_path / "timm", made_swin(timm, V2, SWIN_SIZES), SWIN_SIZES, architecture=V2
    )
    state = load_file(folder / "model.safetensors")
    state[f"layers.1.blocks.0.attn.{part}"] = torch.zeros(1) if tensor is None else tensor
    if tensor is None:
        del state[f"layers.1.blocks.0.attn.{part}"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_backbone(folder)


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
    with pytest.raises(CheckpointError, match="no classifier, .* run: lgvit-edge train --order j"):
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
