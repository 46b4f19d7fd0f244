"""Folders become the classes of the checkpoint: whatever their order, and never by guessing."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from lgvit_edge.architecture.config import ExitConfig
from lgvit_edge.errors import DataError
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.model import LGViT, load_checkpoint, save_checkpoint
from lgvit_edge.training import (
    ArrayDataset,
    ImageFolder,
    TrainingConfig,
    train,
    train_from_folder,
)
from lgvit_edge.training.data.batches import Batches
from lgvit_edge.training.report import all_logits
from lgvit_edge.training.start import seeded

NAMES = ("wolf", "ant", "fox")  # not in sorted order
TINY = small.vit(num_blocks=2, exits=(ExitConfig(1, "lph"),))
SPEC = Preprocess(resize=32)
# Rates at which weights stay as they are
STILL = TrainingConfig(
    epochs=(1, 1), lr=(1e-9, 1e-9), batch_size=6, workers=0, device="cpu", prediction_exits="all"
)
FROZEN = STILL.replace(order="frozen")
Trained = Callable[..., tuple[LGViT, str]]


def folders(root: Path, names: tuple[str, ...]) -> Path:
    """Images of three classes, in folders that are called so."""
    for i, (image, label) in enumerate(zip(*small.stripes(12), strict=True)):
        folder = root / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def right() -> LGViT:
    """A model whose final classifier is right on every image, solved for and not trained."""
    model, data = seeded(TINY, 0).eval(), ArrayDataset(*small.stripes(12))
    linear = model.backbone.final.classifier.linears[0]  # type: ignore[union-attr, index]
    assert isinstance(linear, nn.Linear)
    features: list[torch.Tensor] = []
    hook = linear.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    batches = Batches(data, SPEC, batch_size=12)
    with torch.no_grad():
        model.exit_logits(next(batches.ordered()).images)
        hook.remove()
        known = torch.cat([features[0], torch.ones(12, 1)], dim=1)
        wanted = 10 * nn.functional.one_hot(torch.from_numpy(data.labels), 3).float()
        solved = torch.linalg.lstsq(known, wanted, driver="gelsd").solution
        linear.weight.copy_(solved[:-1].T)
        linear.bias.copy_(solved[-1])
    assert all_logits(model, data).baseline_accuracy == 1
    return model


@pytest.fixture
def trained(tmp_path: Path, right: LGViT) -> Trained:
    """Train on folders ``names``, from ``right`` with ``labels``; the model and what was said."""

    def trained(names: tuple[str, ...], labels: tuple[str, ...], **given: Any) -> tuple[LGViT, str]:
        data = folders(tmp_path / "data", names)
        right.config = right.config.replace(labels=labels)
        save_checkpoint(right, tmp_path / "start.pt")
        console = Console(file=io.StringIO(), width=200)
        out = tmp_path / "m.pt"
        options = {"backbone": tmp_path / "start.pt", "out": out, "config": FROZEN}
        options |= {"val": data, "console": console}
        options["backbone"] = str(options["backbone"])
        model = train_from_folder(data, **options | given)
        assert load_checkpoint(out).config.labels == model.config.labels
        assert isinstance(console.file, io.StringIO)
        return model, console.file.getvalue()

    return trained


def accuracy(root: Path) -> float:
    """Of the final classifier, on the validation folder."""
    return float(json.loads((root / "m.eval.json").read_text())["accuracy"][-1])


@pytest.mark.parametrize(
    ("names", "labels", "said"),
    [
        (NAMES, NAMES, "classes stand in the checkpoint's order: class 0 = wolf, class 1 = ant, "),
        (("a", "b", "c"), ("a", "b", "c"), ""),
        (("a", "b", "c"), (), "in sorted order (class 0 = a, class 1 = b, class 2 = c)"),
        (("0", "1", "2"), (), "folders are classes by their numbers (class 0 = 0, class 1 = 1, "),
        (("10", "9", "8"), ("10", "9", "8"), "classes stand in the checkpoint's order"),
    ],
)
def test_stage_two_keeps_a_model_right(
    trained: Trained, tmp_path: Path, names: tuple[str, ...], labels: tuple[str, ...], said: str
) -> None:
    """By construction it is right: a class in another's place would show."""
    model, told = trained(names, labels)
    assert accuracy(tmp_path) == 1
    assert model.config.labels == names
    assert said in told and ("class 0" in told) == bool(said)


def test_stage_two_asks_where_names_do_not_agree(trained: Trained, tmp_path: Path) -> None:
    wordnet = ("n3", "n1", "n2")
    with pytest.raises(
        DataError, match=r"3 of 3 folders are none .*\(wolf, ant, fox\).*--classes FILE.*--order"
    ):
        trained(wordnet, NAMES)
    (tmp_path / "order.txt").write_text("\n".join(wordnet))
    model, told = trained(wordnet, NAMES, classes=tmp_path / "order.txt")
    assert accuracy(tmp_path) == 1
    assert model.config.labels == NAMES
    assert "n3" in told
    trained(wordnet, NAMES, classes="sorted")
    assert accuracy(tmp_path) == 0  # as the user said, which here is wrong
    (tmp_path / "order.txt").write_text("n1\nn2\nn4")
    with pytest.raises(DataError, match="order.txt: 1 of 3 folders .* such as 'n3'"):
        trained(wordnet, NAMES, classes=tmp_path / "order.txt")


def test_validation_images_go_by_the_same_order(trained: Trained, tmp_path: Path) -> None:
    val = folders(tmp_path / "val", ("0", "1", "2"))
    for image in (val / "0").iterdir():  # no images of one class
        image.unlink()
    (val / "0").rmdir()
    trained(("00", "01", "02"), (), val=val)
    assert accuracy(tmp_path) == 1


@pytest.mark.parametrize("order", ["whole", "joint"])
def test_other_classes_start_afresh_and_the_same_stay(
    trained: Trained, tmp_path: Path, right: LGViT, order: str
) -> None:
    config = STILL.replace(order=order)
    model, told = trained(NAMES, NAMES, config=config)
    assert accuracy(tmp_path) == 1 and model.config.labels == NAMES
    model, told = trained(NAMES, ("cat", "dog", "eel"), config=config, resume=False)
    assert model.config.labels == tuple(sorted(NAMES))
    assert "(class 0 = cat, class 1 = dog, class 2 = eel) are called otherwise" in told
    assert "the classifiers start afresh" in told
    old, new = (
        m.backbone.state_dict()["final.classifier.linears.0.weight"] for m in (right, model)
    )
    assert not torch.allclose(old, new, atol=1e-3)
    # The user knows that they are the same.
    (tmp_path / "order.txt").write_text("\n".join(NAMES))
    options = {"config": config, "classes": tmp_path / "order.txt", "resume": False}
    model, told = trained(NAMES, ("cat", "dog", "eel"), **options)
    assert accuracy(tmp_path) == 1 and model.config.labels == ("cat", "dog", "eel")
    assert "afresh" not in told


def test_fresh_classes_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    data = folders(tmp_path / "data", ("10", "9", "1"))
    save_checkpoint(seeded(TINY.replace(num_classes=5), 0), tmp_path / "start.pt")
    console = Console(file=io.StringIO())
    options: dict[str, Any] = {
        "out": tmp_path / "m.pt",
        "config": STILL.replace(order="whole"),
        "console": console,
    }
    model = train_from_folder(data, backbone=str(tmp_path / "start.pt"), **options)
    assert model.config.labels == ("1", "9", "10")


def test_folders_without_classes(tmp_path: Path) -> None:
    data = folders(tmp_path / "data", NAMES)
    for backbone in ("vit-tiny", str(tmp_path / "gone.pt")):
        with pytest.raises(
            DataError, match="expected one sub-folder .* 4 images and no sub-folder"
        ):
            train_from_folder(data / "ant", backbone=backbone, out=tmp_path / "m.pt")
    with pytest.raises(DataError, match="expected one sub-folder .* 4 images and no sub-folder"):
        ImageFolder(data / "ant", size=32, preprocess=SPEC, classes=NAMES)


def test_other_orders_are_refused_in_python(tmp_path: Path, right: LGViT) -> None:
    data = folders(tmp_path / "data", NAMES)
    right.config = right.config.replace(labels=NAMES)
    images = ImageFolder(data, size=32, preprocess=SPEC)
    for sets in ((images, None), (ArrayDataset(*small.stripes(12)), images)):
        with pytest.raises(DataError, match=r"another order: .*classes=model\.config\.labels"):
            train(right, *sets, STILL, out=tmp_path / "m.pt")
    images = ImageFolder(data, size=32, preprocess=SPEC, classes=right.config.labels)
    assert all_logits(right, images).baseline_accuracy == 1


def test_what_is_left_out_is_told(trained: Trained, tmp_path: Path) -> None:
    data = folders(tmp_path / "data", NAMES)
    (data / "ant" / "IMG_1.HEIC").touch()
    (data / "ant" / "deep").mkdir()
    (data / "ant" / "1.png").rename(data / "ant" / "deep" / "1.JPEG")
    (data / "top.png").touch()
    (data / "fox" / "broken.png").write_bytes(b"broken")
    _, told = trained(NAMES, NAMES)
    assert told.count("of a kind that is read are left out: 1 (.heic: 1)") == 2
    assert told.count("images beside the class folders are left out: 1") == 2
    assert "skipped 1 of " in told and "images that cannot be read, such as:" in told
    assert told.count("broken.png is not an image that can be decoded") == 2  # when measuring too


@pytest.mark.parametrize("name", [":dog: [x", "[red]a", "[nothing]", "back\\", "\x1b[2Jcat"])
def test_names_are_shown_as_they_are(trained: Trained, name: str) -> None:
    _, told = trained(("zebra", name, "yak"), ("zebra", name, "yak"))
    shown = name.replace("\x1b", "\\x1b")
    assert f"class 1 = {shown}" in told
    assert "\x1b" not in told


def test_files_may_have_names_that_are_not_utf_8(trained: Trained, tmp_path: Path) -> None:
    data = folders(tmp_path / "data", NAMES)
    odd = data / "ant" / os.fsdecode(b"caf\xe9.png")
    try:
        odd.write_bytes(b"broken")
    except OSError:
        pytest.skip("this file system takes no such name")
    _, told = trained(NAMES, NAMES)
    assert "caf\\udce9.png is not an image" in told
    assert np.all(ImageFolder(data, size=32, preprocess=SPEC).labels >= 0)
