"""``info --check``: the original in its own library, and the labels of images, judge a model."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from small import vit, write_photos

from lgvit_edge.architecture.config import ExitConfig
from lgvit_edge.cli.checked import print_check
from lgvit_edge.images.labelled import LabelledImage, find_images
from lgvit_edge.model import LGViT, load_model, save_checkpoint
from lgvit_edge.model.checking import check_model
from lgvit_edge.model.checkpoints.loading import read_stored
from lgvit_edge.model.checkpoints.timm_names import published_accuracy
from lgvit_edge.model.originals import NotRun, original
from lgvit_edge.model.randomised import randomised

Command = Callable[..., str]
CLASSES = tuple("abcde")
PROCESSOR = dict(image_processor_type="ViTImageProcessor", size=dict(height=32, width=32))
PROCESSOR |= dict(image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=2)
CROPPED = dict(image_processor_type="BitImageProcessor", size=dict(shortest_edge=32), resample=3)
CROPPED |= dict(crop_size=dict(height=32, width=32), do_center_crop=True)
CROPPED |= dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of each class."""
    return write_photos(tmp_path_factory.mktemp("photos") / "data", CLASSES, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ViT as transformers saves it, with its processor."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32)
    sizes |= dict(intermediate_size=32, patch_size=8, id2label=dict(enumerate(CLASSES)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes))
        model.load_state_dict(filled(model))
        model.save_pretrained(tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return tmp_path / "vit"


def filled(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Random weights with which images differ."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(tensor.shape, generator=generator) * 0.3 if tensor.ndim else tensor
        for name, tensor in model.state_dict().items()
    }


def checked(path: Path, images: list[LabelledImage], model: LGViT | None = None) -> dict[str, Any]:
    return check_model(model or load_model(path), read_stored(path), images)


def unlabelled(photos: Path) -> list[LabelledImage]:
    return [LabelledImage(path, None) for path in sorted(photos.rglob("*.png"))[:5]]


def test_a_model_of_transformers_agrees(folder: Path, photos: Path, command: Command) -> None:
    said = command("info", folder, "--check", photos)
    assert "checked on 20 images, 20 of them with labels" in said
    assert "on equal pixels: 20 of 20 answers agree, logits differ by" in said
    assert "with its own preprocessing: 20 of 20 answers agree, pixels differ by" in said
    assert "agrees: transformers 5" in said
    own = command("info", folder, "--check", photos, "--json", "--samples", 6)
    record = json.loads(own[own.index("{") : own.rindex("}") + 1])["check"]
    assert (record["images"], record["agrees"], record["differs"]) == (6, True, [])
    assert 0 < record["same_pixels"]["largest_difference"] < 1e-5
    assert record["accuracy"] == [record["own_preprocessing"]["accuracy"]]


@pytest.mark.parametrize(
    ("option", "value"),
    [("--mean", "0.4,0.5,0.5"), ("--std", "0.4,0.4,0.4"), ("--interpolation", "nearest")],
)
def test_wrong_preprocessing_differs(
    folder: Path, photos: Path, command: Command, option: str, value: str
) -> None:
    said = command("info", folder, "--check", photos, option, value, status=1)
    assert "differs: transformers 5" in said and "20 of 20 answers agree, logits" in said
    assert "expected at most 1: the preprocessing is another; here it is: both sides to 32" in said


def test_a_processor_of_other_images_differs(folder: Path, photos: Path) -> None:
    model = load_model(folder)
    processor = PROCESSOR | dict(size=dict(height=40, width=40))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    record = checked(folder, unlabelled(photos), model)
    assert "makes images [3, 40, 40] of some, expected [3, 32, 32]" in record["differs"][0]


@pytest.mark.parametrize("fault", [0.01, float("nan")])
def test_another_computation_differs(folder: Path, photos: Path, fault: float) -> None:
    model = load_model(folder)
    with torch.no_grad():
        model.backbone.final.classifier.linears[0].bias[0] += fault  # type: ignore[union-attr,index,operator]
    record = checked(folder, unlabelled(photos), model)
    assert record["agrees"] is False
    assert "the model is computed otherwise; look at its activation (gelu)" in record["differs"][0]


def test_a_crop_one_pixel_beside_is_told_but_no_fault(folder: Path, tmp_path: Path) -> None:
    """32 x 35 pixels cannot leave as many on both sides of 32 x 32."""
    (folder / "preprocessor_config.json").write_text(json.dumps(CROPPED))
    smooth = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    Image.fromarray(smooth).resize((44, 40)).save(tmp_path / "x.png")
    record = checked(folder, [LabelledImage(tmp_path / "x.png", None)])
    assert record["agrees"] is True
    assert record["own_preprocessing"]["a_pixel_beside"] == 1


def test_without_a_processor_only_the_model_is_compared(
    folder: Path, photos: Path, command: Command
) -> None:
    (folder / "preprocessor_config.json").unlink()
    said = command("info", folder, "--check", photos)
    assert "its preprocessing is not compared: it has no preprocessor_config.json" in said
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    model = load_model(folder)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "Unheard"}')
    record = checked(folder, unlabelled(photos), model)
    assert record["not_prepared"].startswith("transformers 5") and record["agrees"]


def test_labels_of_other_classes_are_left_out(
    folder: Path, tmp_path: Path, command: Command
) -> None:
    """Answers can be compared without them; with ``--classes`` they are meant."""
    data = write_photos(tmp_path / "data", ("cat", "dog"), 3)
    said = command("info", folder, "--check", data)
    assert "checked on 6 images, 0 of them with labels" in said
    assert "labels are not used: " in said and "2 of 2 folders are none of its 5 cl" in said
    command("info", folder, "--check", data, "--classes", "sorted", status=1)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "transformers is not installed; run: pip install transformers"),
        ("import nowhere", "transformers cannot be imported (ModuleNotFoundError: No module named"),
        ("raise RuntimeError('no nms')", "transformers cannot be imported (RuntimeError: no nms)"),
        (
            "raise ImportError('x') from OSError('y')",
            "transformers cannot be imported (OSError: y)",
        ),
        ("raise SystemError", "transformers cannot be imported (SystemError)"),
        ("", "transformers does not read it (AttributeError: "),
    ],
)
def test_without_the_library_labels_tell(
    folder: Path,
    photos: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    source: str | None,
    message: str,
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, name)
    if source is None:
        monkeypatch.setitem(sys.modules, "transformers", None)
    else:
        (tmp_path / "fakes").mkdir()
        (tmp_path / "fakes" / "transformers.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path / "fakes")
    said = command("info", folder, "--check", photos)
    assert f"not compared with another library: {message}" in said and "final" in said
    flat = tmp_path / "flat"
    flat.mkdir()
    shutil.copy(photos / "a" / "00.png", flat)
    said = command("info", folder, "--check", flat, status=1)
    assert f"nothing to check answers with: {message}" in said


def test_weights_that_the_library_lacks(folder: Path) -> None:
    stored, config = read_stored(folder), load_model(folder).config
    state = load_file(folder / "model.safetensors")
    del state["classifier.bias"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(NotRun, match="finds no fitting weights for classifier.bias"):
        original(stored, config)
    with pytest.raises(NotRun, match="transformers does not read a moving average"):
        original(stored, config, use_ema=True)


SIZES = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4)


def timm_folder(timm: Any, root: Path, **changes: Any) -> Path:
    """As timm saves it."""
    config = dict(architecture="vit_base_patch16_224", num_classes=5, model_args=SIZES)
    config |= dict(pretrained_cfg=dict(input_size=[3, 32, 32], num_classes=5, crop_pct=1.0))
    root.mkdir()
    model = timm.create_model("vit_base_patch16_224", num_classes=5, **SIZES)
    save_file(filled(model), root / "model.safetensors")
    (root / "config.json").write_text(json.dumps(config | changes))
    return root


def test_a_model_of_timm_agrees(timm: Any, photos: Path, tmp_path: Path, command: Command) -> None:
    said = command("info", timm_folder(timm, tmp_path / "timm"), "--check", photos)
    assert "timm 1.0.31 on equal pixels: 20 of 20 answers agree" in said
    assert "agrees: timm 1.0.31 and lgvit-edge" in said


def test_what_timm_does_not_take(timm: Any, photos: Path, tmp_path: Path) -> None:
    folder = timm_folder(timm, tmp_path / "timm")
    stored, config = read_stored(folder), load_model(folder).config
    (folder / "config.json").write_text('{"architecture": "vit_unheard_of"}')
    with pytest.raises(NotRun, match=r"timm 1.0.31 does not read it \(RuntimeError: Unknown mod"):
        original(stored, config)
    torch.save(stored.content, tmp_path / "model.pth")
    with pytest.raises(NotRun, match="the file does not tell timm's name of its architecture"):
        original(read_stored(tmp_path / "model.pth"), config)


def test_weights_of_an_older_timm(timm: Any, photos: Path, tmp_path: Path) -> None:
    """Its Swins merged at the end of a stage; timm renames them, as we do."""
    name = "swin_tiny_patch4_window7_224"
    model = timm.create_model(name, num_classes=5)
    state = {n: t for n, t in model.state_dict().items()}
    for stage in (1, 2, 3):
        for old in [n for n in state if n.startswith(f"layers.{stage}.downsample.")]:
            state[old.replace(f"layers.{stage}.", f"layers.{stage - 1}.")] = state.pop(old)
    for old in [n for n in state if n.startswith("head.fc.")]:
        state[old.replace("head.fc.", "head.")] = state.pop(old)
    torch.save({"model": state}, tmp_path / f"{name}.pth")
    path = tmp_path / f"{name}.pth"
    assert checked(path, unlabelled(photos)[:1])["agrees"] is True


def test_a_model_with_exits_is_judged_by_labels(
    photos: Path, tmp_path: Path, command: Command
) -> None:
    config = vit(num_classes=5, labels=CLASSES, exits=(ExitConfig(2, "mlp"),))
    save_checkpoint(randomised(LGViT(config)), tmp_path / "model.pt")
    record = checked(tmp_path / "model.pt", find_images(photos, num_classes=5, names=CLASSES))
    assert len(record["accuracy"]) == 2
    assert (record["library"], record["agrees"], record["chance"]) == (None, None, True)
    said = command("info", tmp_path / "model.pt", "--check", photos)
    assert "not compared with another library: a model with exits has no other library" in said
    assert "warning: right no more often than a guess may be" in said
    data = write_photos(tmp_path / "data", ("cat", "dog"), 1)
    said = command("info", tmp_path / "model.pt", "--check", data, status=1)
    assert "the labels do not match the model's" in said and "give --classes FILE" in said


def test_a_model_that_is_right_is_not_warned_of(photos: Path, tmp_path: Path) -> None:
    model = randomised(LGViT(vit(num_classes=5, labels=CLASSES)))
    save_checkpoint(model, tmp_path / "model.pt")
    images = find_images(photos, num_classes=5, names=CLASSES)
    with torch.no_grad():
        linear = model.backbone.final.classifier.linears[0]
        linear.weight.zero_()  # type: ignore[operator,union-attr]
        linear.bias.copy_(torch.eye(5)[2])  # type: ignore[operator,union-attr]
    right = [LabelledImage(image.path, 2) for image in images]
    record = checked(tmp_path / "model.pt", right, model)
    assert record["accuracy"] == [1.0] and not record["chance"]


@pytest.mark.parametrize("right", [False, True])
def test_a_published_accuracy_is_told_and_one_far_below_it(
    timm: Any, photos: Path, tmp_path: Path, right: bool
) -> None:
    path = tmp_path / "deit_tiny_patch16_224-a1.pth"
    torch.save(timm.create_model("deit_tiny_patch16_224").state_dict(), path)
    model = load_model(path)
    with torch.no_grad():
        linear = model.backbone.final.classifier.linears[0]
        linear.weight.zero_()  # type: ignore[operator,union-attr]
        linear.bias.copy_(torch.eye(1000)[2])  # type: ignore[operator,union-attr]
    images = [LabelledImage(p, 2 if right else 3) for p in sorted(photos.rglob("*.png"))[:16]]
    record = checked(path, images, model)
    assert (record["published"], record["below"]) == (0.72172, not right)
    console = Console(width=300, record=True)
    print_check(record, console)
    text = console.export_text()
    assert "timm publishes 72.17% on ImageNet-1k for weights of this name" in text
    assert ("warning: that is far more than was reached" in text) is not right


@pytest.mark.parametrize(
    ("name", "accuracy"),
    [
        ("deit3_base_patch16_224.fb_in1k-1a2b", 0.83786),
        ("deit3_base_patch16_224", 0.83786),  # the least of two
        ("deit3_base_patch16_224.fb_in22k_ft_in1k", 0.857),
        ("vit_base_patch14_dinov2", None),
        ("model", None),
    ],
)
def test_which_published_accuracy_a_name_means(name: str, accuracy: float | None) -> None:
    assert published_accuracy(name) == accuracy


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--check", "nowhere"), 1, "--check: no such folder: nowhere"),
        (("--check", "."), 1, "holds no images"),
        (("--samples", "3"), 2, "--samples, --labels and --classes need --check"),
        (("--classes", "sorted"), 2, "--samples, --labels and --classes need --check"),
    ],
)
def test_wrong_use(
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    status: int,
    message: str,
) -> None:
    save_checkpoint(LGViT(vit(exits=(ExitConfig(2, "mlp"),))), tmp_path / "model.pt")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert message in command("info", tmp_path / "model.pt", *arguments, status=status)


def test_a_bundle_is_measured_by_bench(photos: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "manifest.json").touch()
    said = command("info", tmp_path, "--check", photos, status=2)
    assert f"run: lgvit-edge bench --engines {tmp_path} --data {photos}" in said


def test_weights_without_a_classifier(
    timm: Any, photos: Path, tmp_path: Path, command: Command
) -> None:
    """Described as if they had one, but a fresh one only guesses."""
    folder = timm_folder(timm, tmp_path / "timm")
    state = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in state.items() if "head" not in n}, folder / "model.safetensors")
    command("info", folder)
    assert "no classifier" in command("info", folder, "--check", photos, status=1)


@pytest.mark.slow
def test_real_weights_on_real_images(timm: Any, data_root: Path, command: Command) -> None:
    weights = data_root / "weights" / "deit_tiny_patch16_224_in1k_fp32.pth"
    images = data_root / "data" / "imagenet-1k-samples"
    said = command("info", weights, "--check", images, "--samples", 24)
    assert "timm 1.0.31 on equal pixels: 24 of 24 answers agree" in said
