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
from torch import Tensor, nn

from lgvit_edge.errors import CheckpointError
from lgvit_edge.model import load_backbone

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


CLASSES = 5
VIT = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48)
VIT |= dict(image_size=28, patch_size=4, num_labels=CLASSES, layer_norm_eps=1e-3)
DINOV2 = VIT | dict(mlp_ratio=3, patch_size=14)
del DINOV2["intermediate_size"]
SWIN = dict(image_size=64, patch_size=2, embed_dim=16, depths=[2, 2, 4, 2], window_size=4)
SWIN |= dict(num_heads=[2, 2, 4, 4], mlp_ratio=3.0, num_labels=CLASSES, layer_norm_eps=1e-3)
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


def make(kind: str) -> Any:
    """With random norms, positions, tokens and tables: fresh ones would hide mistakes."""
    config, model, sizes = KINDS[kind]
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
    dinov2 = model.config.model_type.startswith("dinov2")
    assert loaded.config.family == ("vit" if dinov2 else model.config.model_type)
    pixels = foreign.random_pixels(size or model.config.image_size)
    resized = loaded.resized(size) if size else loaded
    eq.assert_reproduced(resized(pixels), logits(model, pixels, **options))


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


@pytest.mark.parametrize("kind", ["vit", "deit with teacher"])
def test_labels(tmp_path: Path, kind: str) -> None:
    model = make(kind)
    model.config.id2label = {i: f"thing {i}" for i in range(CLASSES)}
    folder = save(model, tmp_path / "saved")
    assert load_backbone(folder).config.labels == tuple(f"thing {i}" for i in range(CLASSES))


@pytest.mark.parametrize("kind", ["vit", "deit with teacher"])
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
