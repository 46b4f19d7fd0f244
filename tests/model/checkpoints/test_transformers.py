"""Models that transformers itself makes and saves give transformers' own logits."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equations as eq
import foreign_states as foreign
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lgvit_edge.architecture.families import FAMILIES
from lgvit_edge.errors import CheckpointError
from lgvit_edge.model import baseline, load_backbone
from lgvit_edge.model.checkpoints.huggingface_images import CLIP, IMAGENET
from lgvit_edge.model.checkpoints.huggingface_vits import FORMS, completed

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


CLASSES = 5
VIT = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48)
VIT |= dict(image_size=28, patch_size=4, num_labels=CLASSES, layer_norm_eps=1e-3)
DINOV2 = VIT | dict(mlp_ratio=3, patch_size=14)
del DINOV2["intermediate_size"]
SWIN = dict(image_size=64, patch_size=2, embed_dim=16, depths=[2, 2, 4, 2], window_size=4)
SWIN |= dict(num_heads=[2, 2, 4, 4], mlp_ratio=3.0, num_labels=CLASSES, layer_norm_eps=1e-3)
TOWER = {name: size for name, size in VIT.items() if name != "num_labels"}
TEXT = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
TWO = dict(vision_config=TOWER, text_config=TEXT | {"vocab_size": 50}, num_labels=CLASSES)
BEIT = VIT | dict(use_relative_position_bias=True)
DINOV3 = TOWER | dict(num_register_tokens=2)
KINDS = {
    "vit": ("ViTConfig", "ViTForImageClassification", VIT),
    "vit without qkv bias": ("ViTConfig", "ViTForImageClassification", VIT | {"qkv_bias": False}),
    "deit": ("DeiTConfig", "DeiTForImageClassification", VIT),
    "deit with teacher": ("DeiTConfig", "DeiTForImageClassificationWithTeacher", VIT),
    "dinov2": ("Dinov2Config", "Dinov2ForImageClassification", DINOV2),
    "dinov2, SwiGLU": (
        "Dinov2Config",
        "Dinov2ForImageClassification",
        DINOV2 | {"use_swiglu_ffn": True},
    ),
    "dinov2 with registers": (
        "Dinov2WithRegistersConfig",
        "Dinov2WithRegistersForImageClassification",
        DINOV2 | {"num_register_tokens": 3},
    ),
    "clip": ("CLIPConfig", "CLIPForImageClassification", TWO),
    "siglip": ("SiglipConfig", "SiglipForImageClassification", TWO),
    "beit": ("BeitConfig", "BeitForImageClassification", BEIT),
    "beit that reads its token": (
        "BeitConfig",
        "BeitForImageClassification",
        BEIT | dict(use_mean_pooling=False, use_absolute_position_embeddings=True),
    ),
    "beit, one bias for all": (
        "BeitConfig",
        "BeitForImageClassification",
        BEIT | dict(use_shared_relative_position_bias=True, layer_scale_init_value=0.0),
    ),
    "data2vec": ("Data2VecVisionConfig", "Data2VecVisionForImageClassification", BEIT),
    "msn": ("ViTMSNConfig", "ViTMSNForImageClassification", VIT),
    "ijepa": ("IJepaConfig", "IJepaForImageClassification", VIT),
    "swin": ("SwinConfig", "SwinForImageClassification", SWIN),
    # Maps of 18, 9, 5 and 3 under windows of 3: padded to 6 in the third stage, odd when merged.
    "swin, padded": (
        "SwinConfig",
        "SwinForImageClassification",
        SWIN | {"image_size": 36, "window_size": 3, "qkv_bias": False},
    ),
    "swinv2": ("Swinv2Config", "Swinv2ForImageClassification", SWIN),
    # Maps of 20, 10 and 5 under windows of 4: padded to 12 and 8.
    "swinv2, padded": (
        "Swinv2Config",
        "Swinv2ForImageClassification",
        SWIN
        | {"image_size": 40, "depths": [2, 2, 4], "num_heads": [2, 2, 4], "qkv_bias": False}
        | {"pretrained_window_sizes": [3, 3, 2]},
    ),
}


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Warnings of transformers about itself are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def make(kind: str, kinds: dict[str, Any] | None = None) -> Any:
    """With random norms, positions, tokens and tables: fresh ones would hide mistakes."""
    config, model, sizes = (kinds or KINDS)[kind]
    torch.manual_seed(3)
    with unheard():
        network = getattr(transformers, model)(getattr(transformers, config)(**sizes))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1 and "table" not in name and "embeddings." not in name:
                parameter.normal_(0.0, float(parameter[0].numel()) ** -0.5)
            else:
                parameter.normal_(0.0, 0.5)
            if name.endswith("logit_scale"):
                parameter.uniform_(1.0, 6.0)  # some above the largest
        for module in network.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5)
    return network.eval()


def logits(model: Any, pixels: Tensor, **options: Any) -> Tensor:
    with torch.no_grad(), unheard():
        return model(pixel_values=pixels, **options).logits  # type: ignore[no-any-return]


def save(model: Any, folder: Path, **options: Any) -> Path:
    with unheard():
        model.save_pretrained(folder, **options)
    return folder


def check(folder: Path, model: Any, size: int | None = None, **options: Any) -> None:
    """Logits of the folder's model, at another image size if one is given, and of transformers'."""
    loaded = load_backbone(folder)
    named = model.config.model_type
    assert loaded.config.family == (named if named in FAMILIES else "vit")
    about = getattr(model.config, "vision_config", model.config)
    pixels = foreign.random_pixels(size or about.image_size)
    resized = loaded.resized(size) if size else loaded
    expected = logits(model, pixels, **options)
    eq.assert_reproduced(resized(pixels), expected)
    eq.assert_reproduced(baseline(resized, input="float32")(pixels), expected)


@pytest.mark.parametrize("form", ["as saved", "names in memory", "shards"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_save_pretrained(tmp_path: Path, kind: str, form: str) -> None:
    model = make(kind)
    options = {"max_shard_size": "20KB"} if form == "shards" else {}
    folder = save(model, tmp_path / "saved", **options)
    if form == "shards":
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert len(set(index["weight_map"].values())) > 2
    else:
        assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    if form == "names in memory":
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    check(folder, model)


# Models without a classifier, and what transformers calls the numbers that one would read.
HEADLESS = {
    "vit": ("ViTConfig", "ViTModel", VIT),
    "deit": ("DeiTConfig", "DeiTModel", VIT),
    "mae": ("ViTMAEConfig", "ViTMAEModel", TOWER | {"mask_ratio": 0.0}),
    "dinov3": ("DINOv3ViTConfig", "DINOv3ViTModel", DINOV3),
    "dinov3, SwiGLU": (
        "DINOv3ViTConfig",
        "DINOv3ViTModel",
        DINOV3 | dict(use_gated_mlp=True, mlp_bias=False, proj_bias=False, key_bias=True),
    ),
    "dinov2": ("Dinov2Config", "Dinov2Model", DINOV2),
    "clip": ("CLIPVisionConfig", "CLIPVisionModel", TOWER),
    "clip, both towers": ("CLIPConfig", "CLIPModel", TWO),
    "siglip": ("SiglipVisionConfig", "SiglipVisionModel", TOWER),
    "beit": ("BeitConfig", "BeitModel", BEIT),
    "swin": ("SwinConfig", "SwinModel", SWIN),
    "swinv2": ("Swinv2Config", "Swinv2Model", SWIN),
}


@pytest.mark.parametrize("kind", HEADLESS)
def test_a_model_without_a_classifier_gets_one(tmp_path: Path, kind: str) -> None:
    model = make(kind, HEADLESS)
    folder = save(model, tmp_path / "saved")
    with pytest.raises(CheckpointError, match="has no classifier: .* run: lgvit-edge train --back"):
        load_backbone(folder)
    notes: list[str] = []
    ours = load_backbone(folder, classes=3, note=notes.append)
    published = {"clip": CLIP, "dinov2": IMAGENET, "dinov3": IMAGENET, "mae": IMAGENET}
    expected = published.get(kind.split(",")[0])
    assert expected in (None, (ours.config.preprocess.mean, ours.config.preprocess.std))
    assert any("one of 3 classes starts from zeros, on the " in note for note in notes)
    assert ours.config.num_classes == 3 and not ours.config.labels
    linear = ours.backbone.final.classifier.linears[0]  # type: ignore[union-attr,index]
    assert not linear.weight.any()
    ours.backbone.final.classifier.linears[0] = nn.Identity()  # type: ignore
    about = getattr(model.config, "vision_config", model.config)
    pixels = foreign.random_pixels(about.image_size)
    with torch.no_grad(), unheard():
        tower = getattr(model, "vision_model", model)
        options = {"noise": torch.arange(49.0).expand(len(pixels), -1)} if kind == "mae" else {}
        expected = tower(pixel_values=pixels, **options)
    for form in (ours, baseline(ours, input="float32")):
        eq.assert_reproduced(form(pixels), read(kind, expected, tower))


def read(kind: str, output: Any, model: Any) -> Tensor:
    """What transformers' own classifier of this kind reads."""
    tokens: Tensor = output.last_hidden_state
    name = kind.split(",")[0]
    if name in ("clip", "siglip"):  # CLIP's without a norm
        return tokens[:, int(name == "clip") :].mean(dim=1)
    if name == "beit":
        return model.pooler.layernorm(tokens[:, 1:].mean(dim=1))  # type: ignore[no-any-return]
    if name in ("swin", "swinv2"):
        return output.pooler_output  # type: ignore[no-any-return]
    if name == "dinov2":
        return torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)
    return tokens[:, 0]


@pytest.mark.parametrize(
    "model_type",
    [
        name
        for name in FORMS
        if name not in ("clip", "siglip")  # those of their vision towers
    ],
)
def test_what_config_json_leaves_out_is_transformers_default(model_type: str) -> None:
    theirs = transformers.AutoConfig.for_model(model_type).to_dict()
    ours = completed({"model_type": model_type})
    differing = {name: value for name, value in ours.items() if theirs.get(name, value) != value}
    assert not differing


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_theta": 50.0}, "config.json: rope_theta 50.0 is not supported: expected 100"),
        ({"num_register_tokens": "4"}, "num_register_tokens must be a whole number in 0"),
        ({"num_register_tokens": 17}, "a vit has at most 16 prefix_tokens, found 18"),
        ({"hidden_act": "mish"}, "hidden_act must be one of gelu, .* found 'mish'"),
        ({"patch_size": [4, 7]}, "patch_size must be square, found 4 x 7"),
        ({"num_hidden_layers": 4}, "missing dinov3_vit.encoder.layer.3.attention.attention.query"),
    ],
)
def test_a_folder_that_contradicts_itself(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = save(make("dinov3", HEADLESS), tmp_path / "saved")
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | changes))
    with pytest.raises(CheckpointError, match=message):
        load_backbone(folder, classes=3)


def changed(folder: Path, **weights: Tensor | None) -> None:
    """With other weights; None takes one away."""
    state = load_file(folder / "model.safetensors") | weights
    save_file({n: t for n, t in state.items() if t is not None}, folder / "model.safetensors")


LAYER = "encoder.layer.0."


@pytest.mark.parametrize(
    ("kind", "changes", "weights", "message"),
    [
        (
            "vit",
            {},
            {f"{LAYER}attention.attention.query.weight": (32, 32)},
            "query.weight tw",
        ),
        ("vit", {}, {"layernorm.weight": (32,)}, "holds vit.layernorm.weight twice, once as"),
        ("vit", {}, {f"vit.{LAYER}layer_scale1.lambda1": (32,)}, "unexpected vit.*layer_scale1"),
        ("vit", {"problem_type": "multi_label_classification"}, {}, "expected one class an image"),
        ("vit", {"id2label": {"0": "a", "2": "b"}}, {}, "from 0 on, found {'0': 'a', '2': 'b'}"),
        ("vit", {"id2label": {"0": None}}, {}, "id2label must map class numbers to names"),
        ("beit", {"layer_scale_init_value": 0.0}, {}, "unexpected beit.*layer_scale1"),
        ("beit", {"use_mean_pooling": False}, {}, "missing beit.layernorm.weight"),
        ("beit", {"use_relative_position_bias": False}, {}, "unexpected beit.*position_bias_table"),
        (
            "beit, one bias for all",
            {"use_shared_relative_position_bias": False},
            {},
            "unexpected beit.relative_position_bias.relative_position_bias_table",
        ),
        (
            "beit that reads its token",
            {"use_absolute_position_embeddings": False},
            {},
            "position_embeddings is in the weights, but config.json has no such positions",
        ),
        (
            "clip",
            {},
            {"vision_model.embeddings.patch_embedding.bias": (32,)},
            "patch_embeddings.projection.bias is in the weights, but CLIP has none",
        ),
    ],
)
def test_weights_that_config_json_contradicts(
    tmp_path: Path,
    kind: str,
    changes: dict[str, Any],
    weights: dict[str, tuple[int, ...]],
    message: str,
) -> None:
    """Transformers would leave them out, or start others afresh."""
    folder = save(make(kind), tmp_path / "saved")
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | changes))
    changed(folder, **{name: torch.ones(shape) for name, shape in weights.items()})
    with pytest.raises(CheckpointError, match=message):
        load_backbone(folder)


def test_older_files_of_clip(tmp_path: Path) -> None:
    """They hold a buffer of numbers, and settings that count before the others."""
    model = make("clip")
    folder = save(model, tmp_path / "saved")
    changed(folder, **{"vision_model.embeddings.position_ids": torch.arange(50)[None]})
    about = json.loads((folder / "config.json").read_text())
    about["vision_config_dict"] = about["vision_config"] | {"hidden_act": "gelu"}
    (folder / "config.json").write_text(json.dumps(about))
    assert load_backbone(folder).config.activation == "gelu"
    del about["vision_config"], about["vision_config_dict"]["hidden_act"]
    (folder / "config.json").write_text(json.dumps(about))
    check(folder, model)


def test_a_beit_without_its_pooler(tmp_path: Path) -> None:
    """As a backbone for other tasks is saved: the norm of its classifier starts afresh."""
    folder = save(make("beit", HEADLESS), tmp_path / "saved")
    changed(folder, **{"pooler.layernorm.weight": None, "pooler.layernorm.bias": None})
    norm = load_backbone(folder, classes=3).backbone.final.norm
    assert torch.equal(norm.weight, torch.ones(32))  # type: ignore[union-attr]


def test_settings_in_processor_config_json_come_first(tmp_path: Path) -> None:
    folder = save(make("clip"), tmp_path / "saved")
    about = {"size": {"shortest_edge": 28}, "crop_size": 28, "image_mean": [0.1, 0.2, 0.3]}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": about}))
    assert load_backbone(folder).config.preprocess.mean == (0.1, 0.2, 0.3)
    (folder / "preprocessor_config.json").write_text(json.dumps(about | {"image_mean": [0] * 3}))
    assert load_backbone(folder).config.preprocess.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("kind", ["dinov2", "dinov2 with registers"])
def test_the_preprocessing_tells_the_size_of_a_dinov2(tmp_path: Path, kind: str) -> None:
    """Its positions are those of another size; transformers interpolates them in each pass."""
    model = make(kind)
    folder = save(model, tmp_path / "saved")
    about = {"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}}
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    notes: list[str] = []
    ours = load_backbone(folder, note=notes.append)
    assert (ours.config.image_size, ours.config.preprocess.resize) == (56, 64)
    assert "positions for 28 pixels are interpolated to 56" in notes[0]
    pixels = foreign.random_pixels(56)
    eq.assert_reproduced(ours(pixels), logits(model, pixels))


@pytest.mark.parametrize("kind", ["vit", "deit with teacher"])
def test_labels(tmp_path: Path, kind: str) -> None:
    model = make(kind)
    model.config.id2label = {i: f"thing {i}" for i in range(CLASSES)}
    folder = save(model, tmp_path / "saved")
    assert load_backbone(folder).config.labels == tuple(f"thing {i}" for i in range(CLASSES))


@pytest.mark.parametrize("kind", ["vit", "deit with teacher", "beit"])
@pytest.mark.parametrize("size", [20, 36, 56])
def test_positions_are_interpolated(tmp_path: Path, kind: str, size: int) -> None:
    model = make(kind)
    check(save(model, tmp_path / "saved"), model, size, interpolate_pos_encoding=True)


@pytest.mark.parametrize("kind", ["swin", "swin, padded"])
@pytest.mark.parametrize("size", [68, 84, 96, 128])
def test_windows_keep_their_size(tmp_path: Path, kind: str, size: int) -> None:
    model = make(kind)
    check(save(model, tmp_path / "saved"), model, size)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # transformers itself takes 36 / 2 / 4 for 4, where the map has 5 rows.
        ({"image_size": 36}, "image_size 36 makes maps of odd sides .* a multiple of 16"),
        ({"pretrained_window_sizes": [3]}, "one for each of 4 stages; found .3."),
        (
            {"pretrained_window_sizes": [3, 3, [3, 2], 3]},
            r"one for each of 4 stages; found .3, 3, .3, 2",
        ),
        ({"pretrained_window_sizes": "3333"}, "the side of square windows, .* found 3333"),
        ({"use_absolute_embeddings": True}, "use_absolute_embeddings is not supported"),
    ],
)
def test_a_swin_v2_that_is_not_supported(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = save(make("swinv2"), tmp_path / "saved")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(CheckpointError, match=message):
        load_backbone(folder)


@pytest.mark.parametrize(
    ("processor", "options"),
    [
        ("ViTImageProcessor", {"size": {"height": 28, "width": 28}}),
        ("ViTImageProcessor", {"size": {"height": 28, "width": 28}, "do_normalize": False}),
        (
            "DeiTImageProcessor",
            {"size": {"height": 32, "width": 32}, "crop_size": {"height": 28, "width": 28}},
        ),
        ("CLIPImageProcessor", {"size": {"shortest_edge": 40}, "crop_size": 28}),
        ("BitImageProcessor", {"size": {"shortest_edge": 40}, "crop_size": 28}),
        ("SiglipImageProcessor", {"size": {"height": 28, "width": 28}}),
        (
            "BeitImageProcessor",
            {"size": {"height": 28, "width": 28}, "crop_size": {"height": 28, "width": 28}},
        ),
    ],
)
def test_processors(tmp_path: Path, processor: str, options: dict[str, Any]) -> None:
    np = pytest.importorskip("numpy")
    from lgvit_edge.images.preprocess import network_input

    folder = save(make("vit"), tmp_path / "saved")
    try:
        with unheard():
            theirs = getattr(transformers, processor)(**options)
            theirs.save_pretrained(folder)
    except ImportError as error:
        pytest.skip(f"transformers' processors need more: {error}")
    model = load_backbone(folder)
    rows, columns = np.mgrid[0:50, 0:90]
    frame = np.stack([rows * 5, columns * 2, (rows + columns) * 1.5], -1).astype(np.uint8)
    with unheard():
        expected = theirs(frame, return_tensors="np")["pixel_values"]
    actual = network_input([frame], model.config.preprocess, 28, "float32")
    grey = max(abs(1 / (255 * s)) for s in model.config.preprocess.std)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= 1.01 * grey
