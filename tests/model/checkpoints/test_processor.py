"""``preprocessor_config.json``: what it says is what images go through, or it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import foreign_states as foreign
import numpy as np
import pytest
import torch
from PIL import Image

from lgvit_edge.errors import CheckpointError
from lgvit_edge.images.preprocess import network_input, resize_crop
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.model import load_backbone, load_checkpoint

SIDE = 224
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF, NONE = ((0.5,) * 3, (0.5,) * 3), ((0.0,) * 3, (1.0,) * 3)


def zeros(prefix: str) -> dict[str, torch.Tensor]:
    """One narrow block for images of 224: only the configuration is looked at."""
    make = foreign.Maker(seed=0)
    e, dim, tokens = f"{prefix}.embeddings", 8, {"vit": 1, "deit": 2}[prefix]
    for token in ("cls_token", "distillation_token")[:tokens]:
        make.normal(f"{e}.{token}", 1, 1, dim)
    make.normal(f"{e}.position_embeddings", 1, 49 + tokens, dim)
    make.linear(f"{e}.patch_embeddings.projection", dim, 3, 32, 32)
    make.block(f"{prefix}.encoder.layer.0", "attention", dim, 8)
    make.norm(f"{prefix}.layernorm", dim)
    make.linear("classifier", 2, dim)
    return make.state


CONFIG = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
CONFIG |= dict(image_size=SIDE, patch_size=32, num_labels=2)


def preprocess(root: Path, raw: object, family: str = "vit") -> Preprocess:
    config = CONFIG | {"model_type": family}
    folder = foreign.write_directory(root / "hf", config, zeros(family), "model.safetensors")
    if raw is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(raw))
    notes: list[str] = []
    spec = load_backbone(folder, note=notes.append).config.preprocess
    # What had to be assumed is said, with its values.
    expected = [f"{folder} has no preprocessor_config.json; assumed: {spec.described(224)}"]
    assert notes == ([] if raw else expected)
    return spec


VIT: dict[str, Any] = {
    **dict(do_normalize=True, do_rescale=True, do_resize=True, rescale_factor=0.00392156862745098),
    **dict(image_processor_type="ViTImageProcessor", resample=2),
    **dict(image_mean=[0.5] * 3, image_std=[0.5] * 3, size={"height": 224, "width": 224}),
}
DEIT = VIT | {
    **dict(image_processor_type="DeiTImageProcessor", do_center_crop=True, resample=3),
    **dict(size={"height": 256, "width": 256}, crop_size={"height": 224, "width": 224}),
    **dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]),
}
OLD = {
    **dict(do_normalize=True, do_resize=True, feature_extractor_type="ViTFeatureExtractor"),
    **dict(image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=2, size=224),
}
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
# As OpenAI's folder says it: one number is the shorter side, here alone.
OLD_CLIP = {
    **dict(crop_size=224, do_center_crop=True, do_normalize=True, do_resize=True, resample=3),
    **dict(feature_extractor_type="CLIPFeatureExtractor", size=224),
    **dict(image_mean=CLIP[0], image_std=CLIP[1]),
}
OLD_DEIT = DEIT | {"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224}


CROPPED: dict[str, Any] = dict(do_center_crop=True, crop_size=224)
BEIT = Preprocess(224, "bicubic", *HALF, squash=True)


@pytest.mark.parametrize(
    ("raw", "family", "expected"),
    [
        (VIT, "vit", Preprocess(224, "bilinear", *HALF, squash=True)),
        (OLD, "vit", Preprocess(224, "bilinear", *HALF, squash=True)),
        (DEIT, "deit", Preprocess(256, "bicubic", *IMAGENET, squash=True)),
        (OLD_DEIT, "deit", Preprocess(256, "bicubic", *IMAGENET, squash=True)),
        (VIT | {"resample": 1}, "vit", Preprocess(224, "lanczos", *HALF, squash=True)),
        (VIT | {"resample": 0}, "vit", Preprocess(224, "nearest", *HALF, squash=True)),
        (VIT | {"do_normalize": False}, "vit", Preprocess(224, "bilinear", *NONE, squash=True)),
        (
            CROPPED | {"size": {"shortest_edge": 256}, "image_mean": [0.1, 0.2, 0.3]},
            "vit",
            Preprocess(256, "bilinear", (0.1, 0.2, 0.3), HALF[1]),
        ),
        (DEIT | {"size": {"shortest_edge": 248}}, "deit", Preprocess(248, "bicubic", *IMAGENET)),
        (VIT | {"image_mean": [0, 0, 0]}, "vit", Preprocess(224, mean=(0, 0, 0), squash=True)),
        (VIT | {"do_rescale": True, "something": "new"}, "vit", Preprocess(224, squash=True)),
        (VIT | {"do_center_crop": False, "crop_size": 99}, "vit", Preprocess(224, squash=True)),
        (OLD_CLIP, "vit", Preprocess(224, "bicubic", *CLIP)),
        # What a class of transformers assumes where the file is silent.
        (
            {"image_processor_type": "CLIPImageProcessorFast", "size": 256, "crop_size": 224},
            "vit",
            Preprocess(256, "bicubic", *CLIP),
        ),
        ({"feature_extractor_type": "BeitFeatureExtractor", "size": 224}, "vit", BEIT),
        ({"image_processor_type": "ViTImageProcessor"}, "vit", Preprocess(224, squash=True)),
        (
            {"image_processor_type": "DeiTImageProcessor"},
            "vit",
            Preprocess(256, "bicubic", *HALF, squash=True),
        ),
        (None, "vit", Preprocess(256, "bilinear", *HALF)),
        (None, "deit", Preprocess(256, "bicubic", *IMAGENET)),
        ({}, "deit", Preprocess(256, "bicubic", *IMAGENET)),
    ],
    ids=str,
)
def test_saved_forms(tmp_path: Path, raw: object, family: str, expected: Preprocess) -> None:
    assert preprocess(tmp_path, raw, family) == expected


@pytest.mark.parametrize(("backbone", "tokens"), [("ViT", 1), ("DeiT", 2)])
@pytest.mark.parametrize("given", [True, False])
def test_authors_directories(tmp_path: Path, backbone: str, tokens: int, given: bool) -> None:
    """As their backbone: without a file, what its published weights were trained with."""
    names = {1: foreign.ONE, 2: foreign.TWO}[tokens]
    make = foreign.huggingface_state("deit", tokens=tokens, classifiers=names, depth=2)
    foreign.add_exit(make, 0, "linear", names)
    config = foreign.HF_CONFIG | {"backbone": backbone, "model_type": "deit"}
    config |= {"num_hidden_layers": 2, "highway_type": "linear", "position_exits": "[1]"}
    folder = foreign.write_directory(tmp_path / "a", config, make.state)
    expected = Preprocess(32, "bicubic", *IMAGENET) if tokens == 2 else Preprocess(32)
    if given:
        raw = {
            "size": 28,
            "do_center_crop": False,
            "resample": 3,
            "image_mean": [0.1, 0.2, 0.3],
            "image_std": [1, 2, 3],
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(raw))
        expected = Preprocess(28, "bicubic", (0.1, 0.2, 0.3), (1.0, 2.0, 3.0), squash=True)
    assert load_checkpoint(folder).config.preprocess == expected


SCALED = r"pixels must be scaled by 1/255"
WRONG_SCALES = [1 / 127.5, 0, -1 / 255, 10**400]
WRONG_SCALES += ["1/255", [1 / 255], {"a": 1}, None]  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            VIT | {"size": {"shortest_edge": 224, "longest_edge": 224}},
            "size must be one number, a shortest_edge, or height and width alike; found {'short",
        ),
        (VIT | {"size": {"shortest_edge": 224}}, "makes images of several shapes: expected do_cen"),
        (VIT | {"do_resize": False}, "do_resize must be true, as all images must be squares"),
        (VIT | {"do_pad": True}, "do_pad must be false, as all images must be squares"),
        (
            VIT | {"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.9},
            "image_processor_type 'ConvNextImageProcessor' is not supported: expected that of ViT,",
        ),
        (VIT | {"size": {"height": 224, "width": 192}}, "size must be .*'width': 192"),
        (VIT | {"size": {"longest_edge": 224}}, "size must be .* found {'longest_edge': 224}"),
        (VIT | {"size": "224"}, "size must be .* found '224'"),
        (VIT | {"size": None}, "size must be .* found None"),
        (VIT | {"size": True}, "size must be .* found True"),
        (VIT | {"size": 224.0}, r"size must be .* found 224\.0"),
        (VIT | {"size": [224, 224]}, r"size must be .* found \[224, 224\]"),
        (VIT | {"size": {"height": [224], "width": [224]}}, r"size must be .*\[224\]"),
        (VIT | {"size": {}}, "size must be .* found {}"),
        (VIT | {"size": 256}, "makes images of 256 x 256, the model takes 224"),
        (VIT | {"size": -224}, "224"),
        (VIT | {"size": 0}, "0"),
        (DEIT | {"size": {"shortest_edge": 10**9}}, "resize must be .* found 1000000000"),
        (VIT | {"size": {"shortest_edge": 200}}, "200"),
        (DEIT | {"crop_size": {"height": 192, "width": 192}}, "192 x 192, the model takes 224"),
        (DEIT | {"crop_size": {"height": 224, "width": 192}}, "crop_size must be .* 192"),
        (DEIT | {"crop_size": "224"}, "crop_size must be .* found '224'"),
        *[(VIT | {"rescale_factor": factor}, SCALED) for factor in WRONG_SCALES],
        (VIT | {"do_rescale": False}, SCALED),
        (VIT | {"image_mean": "grey"}, r"preprocessor_config\.json\.mean: expected a list"),
        *[(VIT | {"image_mean": value}, "mean: expected") for value in (0.5, None)],
        (VIT | {"image_mean": [0.5]}, "mean: expected a list of 3"),
        (VIT | {"image_mean": [0.5, "a", 0.5]}, r"mean\[1\]: expected a number, found 'a'"),
        (VIT | {"image_mean": [0.5, True, 0.5]}, r"mean\[1\]: expected a number, found True"),
        (VIT | {"image_mean": [0.5, float("nan"), 0.5]}, "expected finite numbers, found NaN"),
        (VIT | {"rescale_factor": float("inf")}, "expected finite numbers, found Infinity"),
        (VIT | {"image_std": [0.5, 0, 0.5]}, "std must be positive"),
        (VIT | {"image_std": {"a": 1}}, "std: expected"),
        (VIT | {"resample": 6}, "resample must be 0 .* found '6'"),
        *[(VIT | {"resample": value}, "resample") for value in ([2], "bicubic")],
        *[(raw, "expected a JSON object, found") for raw in ([], 3)],
    ],
    ids=lambda value: str(value)[-60:],
)
def test_what_is_refused(tmp_path: Path, raw: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        preprocess(tmp_path, raw)


@pytest.mark.parametrize("text", ["{", "", "[" * 100_000])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    preprocess(tmp_path, None)
    (tmp_path / "hf" / "preprocessor_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json cannot be read"):
        load_backbone(tmp_path / "hf")


def picture(height: int, width: int) -> np.ndarray:
    """Smooth in three directions with something sharp in the middle."""
    rows, columns = np.mgrid[0:height, 0:width]
    image = np.stack([rows * 255 / height, columns * 255 / width, 40 + (rows + columns) % 90], -1)
    image[height // 3 : height // 2, width // 4 : width // 2] = 250, 10, 130
    return image.astype(np.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (33, 33), (12, 200)])
def test_squash_is_a_resize_of_the_whole_image(shape: tuple[int, int], interpolation: str) -> None:
    frame, spec = picture(*shape), Preprocess(28, interpolation, squash=True)
    resampling = Image.Resampling[interpolation.upper()]
    expected = np.asarray(Image.fromarray(frame).resize((28, 28), resampling))
    squashed = resize_crop(frame, spec, 28)
    assert squashed.shape == (28, 28, 3)
    assert np.abs(squashed.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (33, 33)])
def test_squash_and_crop_is_the_middle_of_that(shape: tuple[int, int]) -> None:
    frame, spec = picture(*shape), Preprocess(32, "bilinear", squash=True)
    resized = Image.fromarray(frame).resize((32, 32), Image.Resampling.BILINEAR)
    expected = np.asarray(resized.crop((2, 2, 30, 30)))
    squashed = resize_crop(frame, spec, 28)
    assert np.abs(squashed.astype(int) - expected).max() <= 1
    cropped = resize_crop(frame, Preprocess(32, "bilinear"), 28)
    assert (np.abs(squashed.astype(int) - cropped).max() > 20) == (shape[0] != shape[1])


def test_without_normalisation_pixels_are_shares_of_white(tmp_path: Path) -> None:
    spec = preprocess(tmp_path, VIT | {"do_normalize": False})
    frame = picture(224, 224)
    expected = frame.transpose(2, 0, 1)[None].astype(np.float32) / 255
    assert np.allclose(network_input([frame], spec, 224, "float32"), expected, atol=1e-6)
