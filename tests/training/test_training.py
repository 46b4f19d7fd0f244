"""Both stages on a tiny model: learning, stopping and going on, and bad input."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_states as foreign
import numpy as np
import pytest
import small
import torch
from PIL import Image
from pytest import MonkeyPatch
from rich.console import Console
from small import vit, write_stripes

from lgvit_edge.architecture.config import ExitConfig
from lgvit_edge.errors import ConfigError, DataError, TrainingError, UsageError
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.model import LGViT, load_checkpoint, save_checkpoint
from lgvit_edge.training import (
    ArrayDataset,
    ImageFolder,
    TrainingConfig,
    attach_exits,
    train,
    train_from_folder,
)
from lgvit_edge.training.data.batches import Batches
from lgvit_edge.training.data.datasets import random_crop_box, random_shift
from lgvit_edge.training.optimiser import adamw, learning_rate
from lgvit_edge.training.report import all_logits
from lgvit_edge.training.start import seeded

SPEC = Preprocess(resize=32)
EXITS = (ExitConfig(1, "lph", 3), ExitConfig(2, "lph"), ExitConfig(3, "gah", 2))
TINY = vit(num_blocks=4, exits=EXITS)
SETTINGS = TrainingConfig(
    epochs=(2, 2), lr=(3e-3, 3e-3), batch_size=8, warmup=0.1, workers=0, device="cpu"
)
FROZEN = SETTINGS.replace(order="frozen")


def stripes(count: int = 24) -> ArrayDataset:
    """Easy to learn."""
    return ArrayDataset(*small.stripes(count), shift=1)


def lively(model: LGViT) -> LGViT:
    """Larger weights: the usual ones are for larger models and would learn too slowly here."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                width = 4 if "embedding.p" in name and parameter.ndim == 3 else parameter[0].numel()
                parameter.mul_(width**-0.5 / 0.02)
    return model


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def begin(out: Path, console: Console | None = None, **given: Any) -> LGViT:
    """Both stages on stripes with ``SETTINGS``, unless told otherwise."""
    settings: dict[str, Any] = {"train_set": stripes(), "val_set": None, "config": SETTINGS}
    settings |= {"model": seeded(TINY, 0), "out": out, "console": console or quiet()}
    return train(**settings | given)


def same_weights(a: LGViT, b: LGViT) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


class Interrupting(ArrayDataset):
    """Raises as Ctrl-C does, at the given number of images."""

    def __init__(self, inner: ArrayDataset, after: int) -> None:
        super().__init__(inner.images, inner.labels, shift=1)
        self.after, self.seen = after, 0

    def image(self, index: int, rng: np.random.Generator | None) -> Any:
        self.seen += rng is not None  # evaluation does not count
        if self.seen == self.after:
            raise KeyboardInterrupt
        return super().image(index, rng)


def test_both_stages_learn_and_leave_a_checkpoint(tmp_path: Path) -> None:
    data, out, console = stripes(), tmp_path / "model.pt", quiet()
    start = lively(seeded(TINY, 0))
    before = {k: v.clone() for k, v in start.state_dict().items()}
    settings = SETTINGS.replace(epochs=(16, 10), lr=(5e-3, 1e-2))
    model = train(start, data, data, settings, out=out, console=console)
    accuracies = all_logits(model, data).accuracies
    assert len(accuracies) == 4 and min(accuracies) > 0.9
    assert all(torch.equal(before[k], v) for k, v in start.state_dict().items())
    assert not model.training and all(p.requires_grad for p in model.parameters())
    assert same_weights(model, load_checkpoint(out))
    assert not (tmp_path / "model.pt.resume").exists()
    assert "after stage 1, 24 validation images" in said(console)
    assert "after stage 2" in said(console)


def test_stage_two_keeps_the_backbone(tmp_path: Path) -> None:
    start = seeded(TINY, 0)
    model = begin(tmp_path / "m.pt", model=start, config=FROZEN)
    before, after = start.backbone.state_dict(), model.backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not same_weights(start, model)


@pytest.fixture(scope="module", params=[False, True], ids=["read", "cached"])
def undisturbed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainingConfig, LGViT]:
    """Settings, and the model of a training that nobody interrupts; do not change it."""
    settings = SETTINGS.replace(cache=request.param, cache_views=2 if request.param else 0)
    return settings, begin(tmp_path_factory.mktemp("whole") / "whole.pt", config=settings)


# Stage 1 reads a batch of 8 for its scales; then come epochs of 24.
@pytest.mark.parametrize("after", [8 + 24 + 5, 8 + 2 * 24 + 3, 8 + 3 * 24 + 9])
def test_resumed_is_bit_identical(
    tmp_path: Path, after: int, undisturbed: tuple[TrainingConfig, LGViT]
) -> None:
    settings, whole = undisturbed
    out, console = tmp_path / "m.pt", quiet()
    with pytest.raises(KeyboardInterrupt):
        begin(out, console, train_set=Interrupting(stripes(), after), config=settings)
    assert "Run the same command again to continue" in " ".join(said(console).split())
    assert not out.exists() and (tmp_path / "m.pt.resume").exists()
    torch.rand(7)  # whatever happened in between
    console = quiet()
    resumed = begin(out, console, config=settings)
    assert "continuing after epoch" in said(console)
    assert same_weights(whole, resumed)
    assert not (tmp_path / "m.pt.resume").exists()


def test_interrupted_in_the_first_epoch_leaves_nothing(tmp_path: Path) -> None:
    console = quiet()
    with pytest.raises(KeyboardInterrupt):
        begin(tmp_path / "m.pt", console, train_set=Interrupting(stripes(), 5))
    assert "nothing to continue from" in said(console)
    assert not list(tmp_path.iterdir())


def test_another_training_is_not_continued(tmp_path: Path) -> None:
    out, smaller = tmp_path / "m.pt", SETTINGS.replace(batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        begin(out, train_set=Interrupting(stripes(), 38))
    for given, message in (
        ({"config": smaller}, r"batch_size \(then 8, now 4\).*rm '"),
        ({"train_set": stripes(27)}, "training images"),
        ({"model": seeded(TINY, 1)}, "starting weights"),
        ({"config": SETTINGS.replace(order="whole")}, r"order \(then 'joint', now 'whole'\)"),
    ):
        with pytest.raises(TrainingError, match=message):
            begin(out, **given)
    assert not out.exists()
    begin(out, config=smaller, resume=False)
    assert out.exists()


def test_a_damaged_resume_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.pt.resume").write_bytes(b"PK broken")
    with pytest.raises(TrainingError, match="cannot be read.*delete it"):
        begin(tmp_path / "m.pt")
    torch.save({"format": "other"}, tmp_path / "m.pt.resume")
    with pytest.raises(TrainingError, match="found another file"):
        begin(tmp_path / "m.pt")


def test_a_loss_that_is_no_number_stops(tmp_path: Path) -> None:
    model = seeded(TINY, 0)
    with torch.no_grad():
        model.backbone.final.classifier.linears[0].bias.fill_(float("nan"))  # type: ignore[union-attr, operator]
    with pytest.raises(TrainingError, match="loss of stage 1 became nan.*--lr"):
        begin(tmp_path / "m.pt", model=model)
    assert not list(tmp_path.iterdir())


def test_workers_change_nothing() -> None:
    data = stripes(6)
    here = list(Batches(data, SPEC, batch_size=4).shuffled((1, 2, 3)))
    with warnings.catch_warnings():
        # Python 3.12 warns about forking beside threads, as every DataLoader with workers does.
        warnings.simplefilter("ignore", DeprecationWarning)
        there = list(Batches(data, SPEC, batch_size=4, workers=2).shuffled((1, 2, 3)))
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
    other = next(Batches(data, SPEC, batch_size=4).shuffled((1, 2, 4)))
    assert not torch.equal(other.images, here[0].images)


def test_no_last_batch_of_one_image() -> None:
    sizes = [len(b.labels) for b in Batches(stripes(9), SPEC, batch_size=4).ordered()]
    assert sizes == [4, 5]


def test_images_are_normalised_as_the_runtime_does() -> None:
    from lgvit_edge.images.preprocess import to_float

    data = stripes(3)
    spec = Preprocess(32, "bilinear", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    batch = next(Batches(data, spec, batch_size=3).ordered())
    np.testing.assert_allclose(batch.images.numpy(), to_float(data.images, spec), atol=1e-6)


def test_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(s, 100, peak=1.0, warmup=0.1) for s in range(100)]
    assert rates[10] == max(rates) == 1.0
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[0] < 0.1 and 0 < rates[-1] < 0.01


def test_no_decay_on_norms_biases_and_embeddings() -> None:
    model = LGViT(TINY)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, plain = adamw(model.named_parameters(), weight_decay=0.1).param_groups
    assert decayed["weight_decay"] == 0.1 and plain["weight_decay"] == 0
    assert all(names[id(p)].endswith("weight") for p in decayed["params"])
    undecayed = {names[id(p)] for p in plain["params"]}
    assert {"backbone.embedding.position", "backbone.blocks.0.norm1.weight"} <= undecayed


def test_augmentation_stays_inside() -> None:
    rng = np.random.default_rng(0)
    for height, width in ((20, 30), (5, 400), (1, 1)):
        for _ in range(50):
            x0, y0, x1, y1 = random_crop_box(height, width, rng, min_share=0.1)
            assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    frame = np.full((8, 8, 3), 9, np.uint8)
    moved = [random_shift(frame, rng, pixels=2) for _ in range(20)]
    assert all(m.shape == frame.shape and m.sum() >= 9 * 36 * 3 for m in moved)


def test_settings_report_every_fault_at_once() -> None:
    with pytest.raises(UsageError, match="epochs.*batch_size.*gamma.*prediction_exits"):
        TrainingConfig(epochs=(0, 1), batch_size=1, gamma=2.0, prediction_exits="some")


def test_model_and_data_must_agree(tmp_path: Path) -> None:
    blank, four = np.zeros((3, 32, 32, 3), np.uint8), seeded(TINY.replace(num_classes=4), 0)
    small_set = ArrayDataset(blank[:, :16, :16], np.arange(3))
    for given, error, message in (
        ({"model": four}, DataError, "expected 4 classes as the model has, found 3"),
        ({"train_set": small_set}, DataError, r"images \[32, 32, 3\], found \[16, 16, 3\]"),
        ({"model": seeded(vit(), 0)}, UsageError, "expected exits, found none"),
        (
            {"config": SETTINGS.replace(order="mixed"), "features": tmp_path},
            UsageError,
            "use --cache",
        ),
    ):
        with pytest.raises(error, match=message):
            begin(tmp_path / "m.pt", **given)
    with pytest.raises(DataError, match="whole-numbered labels"):
        ArrayDataset(blank, np.zeros(2, np.int64))
    with pytest.raises(DataError, match=r"labels in 0\.\.1, found 0\.\.2"):
        ArrayDataset(blank, np.arange(3), classes=("a", "b"))


def test_exits_that_would_learn_no_answers_are_refused(tmp_path: Path) -> None:
    mlp = TINY.replace(exits=(ExitConfig(1, "mlp"), ExitConfig(2, "mlp")))
    out, paper = tmp_path / "m.pt", SETTINGS.replace(prediction_exits="paper")
    with pytest.raises(UsageError, match=r"have neither \(mlp\).*--prediction-exits all"):
        begin(out, model=seeded(mlp, 0), config=paper)
    assert not list(tmp_path.iterdir())
    # Other schemes do not ask for Eq. 13, nor does stage 1.
    for given in ({"scheme": "normal", "order": "frozen"}, {"order": "whole"}):
        begin(out, model=seeded(mlp, 0), config=paper.replace(**given))


@pytest.mark.parametrize("name", ["draw", "draw_log"])
def test_a_picture_that_cannot_be_drawn_costs_no_model(
    name: str, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ValueError("a broken font")

    monkeypatch.setattr(f"lgvit_edge.training.report.{name}", fails)
    out, console = tmp_path / "m.pt", quiet()
    model = begin(out, console, val_set=stripes())
    assert same_weights(model, load_checkpoint(out))
    assert "no picture: a broken font" in said(console)
    assert not (tmp_path / "m.pt.resume").exists()


@pytest.mark.parametrize("name", ["draw", "draw_log"])
def test_ctrl_c_while_drawing_costs_no_model(
    name: str, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    given, out = {"val_set": stripes(), "config": FROZEN}, tmp_path / "m.pt"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(f"lgvit_edge.training.report.{name}", interrupted)
        begin(out, **given)
    written = load_checkpoint(out)
    # The same command measures what is left, and trains nothing again.
    console = quiet()
    model = begin(out, console, **given)
    assert same_weights(model, written)
    assert "continuing after epoch 2/2 of stage 2" in said(console)
    assert (tmp_path / "m.log.png").exists() and not (tmp_path / "m.pt.resume").exists()


def test_unwritable_targets_are_found_first(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    (tmp_path / "folder.pt").mkdir()
    os.mkfifo(tmp_path / "pipe.pt")
    for name, error, message in (
        ("missing/m.pt", TrainingError, "no such folder: .*missing; run: mkdir -p .*missing"),
        ("m.onnx", UsageError, r"--out must end in \.pt or \.safetensors"),
        ("folder.pt", TrainingError, "expected a file, found a folder"),
        ("pipe.pt", TrainingError, "expected a file, found a pipe or a device"),
    ):
        with pytest.raises(error, match=message):
            begin(tmp_path / name)
    with monkeypatch.context() as full:
        full.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1_000_000}))
        with pytest.raises(TrainingError, match="of free disk, found 1 MB"):
            begin(tmp_path / "m.pt")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_stripes(tmp_path / "images")


FAST = SETTINGS.replace(epochs=(1, 1))
Start = Callable[..., LGViT]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Train from images and a checkpoint beside them, to ``m.pt``."""
    save_checkpoint(seeded(TINY, 0), tmp_path / "start.pt")

    def start(folder: Path, console: Console | None = None, **given: Any) -> LGViT:
        options = {"backbone": str(tmp_path / "start.pt"), "out": tmp_path / "m.pt"}
        options |= {"config": FAST, "console": console or quiet()}
        return train_from_folder(folder, **options | given)

    return start


def test_a_folder_end_to_end(folder: Path, start: Start) -> None:
    console = quiet()
    (folder / "class1" / "broken.png").write_bytes(b"not an image")
    (folder / "class1" / "notes.txt").write_text("ignored")
    model = start(folder, console, val=folder)
    assert model.config.labels == ("class0", "class1", "class2")
    assert model.config.exits == EXITS
    assert said(console).count("skipped 1 of 13 images that cannot be read") == 1
    assert "broken.png" in said(console)


def test_new_classes_and_exits(folder: Path, start: Start, tmp_path: Path) -> None:
    Image.new("RGB", (40, 32)).save(_new(folder / "class9") / "a.jpg")
    nested = _new(tmp_path / "data")
    folder.rename(nested / "train")
    console, slow = quiet(), FAST.replace(batch_size=4, lr=(1e-3, 1e-3), seed=3)
    model = start(nested, console, exits="1,3", out=tmp_path / "m.safetensors", config=slow)
    assert model.config.num_classes == 4 and [e.block for e in model.config.exits] == [1, 3]
    assert "has 3 classes, the images 4" in said(console)


def test_a_share_of_the_images_is_set_aside(folder: Path, start: Start, tmp_path: Path) -> None:
    whole = ImageFolder(folder, size=32, preprocess=SPEC)
    rest, aside = whole.split(0.25, seed=1)
    assert len(rest) + len(aside) == len(whole) and len(aside) == 3
    assert sorted([*rest.paths, *aside.paths]) == sorted(whole.paths)
    assert set(aside.labels) == set(rest.labels) == {0, 1, 2}
    again, other = (whole.split(0.25, seed)[1].paths for seed in (1, 2))
    assert again == aside.paths != other
    assert [len(part) for part in whole.split(0.999, 1)] == [3, 9]
    console = quiet()
    start(folder, console, val=0.25)
    assert "3 images set aside for validation, 9 to train" in said(console)
    assert json.loads((tmp_path / "m.eval.json").read_text())["images"] == 3
    for share in (0.0, 1.0, -1.0, 2.0):
        with pytest.raises(UsageError, match="--val: expected a folder or a share between 0 and 1"):
            start(folder, val=share)
    for image in list((folder / "class1").iterdir())[1:]:
        image.unlink()
    with pytest.raises(DataError, match="at least two images of each class .* one of 'class1'"):
        start(folder, val=0.5)


def test_stage_two_needs_the_same_classes_and_a_backbone(
    folder: Path, start: Start, tmp_path: Path
) -> None:
    Image.new("RGB", (32, 32)).save(_new(folder / "class9") / "a.jpg")
    deit: dict[str, Any] = {"backbone": "deit-tiny", "weights": tmp_path / "start.pt"}
    for given, message in (
        ({"config": FROZEN}, "of 3 classes, but the images have 4.*--order joint"),
        ({"config": FROZEN, "backbone": "vit-tiny"}, "stage 2 freezes the backbone.*--weights"),
        (
            {"config": SETTINGS.replace(order="mixed"), "backbone": "vit-tiny"},
            "stage 2 freezes the backbone.*--order joint",
        ),
        ({"exits": ""}, "exits must be .* found ''"),
        ({"backbone": "vit-teeny"}, "expected a checkpoint's path, hf:.*one of vit-tiny"),
        (deit, "is no deit-tiny: expected hidden_size 192, found 16"),
    ):
        with pytest.raises((UsageError, ConfigError), match=message):
            start(folder, **given)


def test_of_a_checkpoint_with_an_average_one_is_trained(
    folder: Path, start: Start, tmp_path: Path
) -> None:
    states = [foreign.timm_state(seed) for seed in (1, 2)]
    torch.save({"model": states[0], "model_ema": states[1]}, tmp_path / "timm.pth")
    given: dict[str, Any] = {"backbone": str(tmp_path / "timm.pth"), "exits": "1"}
    given |= {"config": FROZEN, "num_heads": 1}
    for i, use_ema in enumerate((False, True)):
        console = quiet()
        model = start(folder, console, use_ema=use_ema, **given, resume=False)
        assert torch.equal(model.state_dict()["backbone.final.norm.bias"], states[i]["norm.bias"])
        assert ("took the moving average" if use_ema else "not the moving average") in said(console)
    with pytest.raises(UsageError, match="--use-ema chooses .* found none: add --weights"):
        start(folder, backbone="vit-tiny", use_ema=True)
    with pytest.raises(UsageError, match="--num-heads is for weights .* found none: add --weights"):
        start(folder, backbone="vit-tiny", num_heads=4)


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_folders_that_hold_no_classes(folder: Path, tmp_path: Path) -> None:
    def refused(path: Path, message: str, **given: Any) -> None:
        with pytest.raises(DataError, match=message):
            ImageFolder(path, size=32, preprocess=SPEC, **given)

    refused(tmp_path / "missing", "no such folder: .*missing")
    empty = _new(tmp_path / "empty")
    refused(empty, "expected one sub-folder .* found no sub-folder")
    refused(folder / "class0", "found 4 images and no sub-folder")
    two = ("class0", "class1")
    refused(folder, "only classes of the training images, found class2", classes=two)
    _new(folder / "hollow")
    refused(folder, "in every class folder, found none in hollow")
    _new(empty / "one")
    refused(empty, "at least two classes.*found only 'one'")


def test_no_image_can_be_read(folder: Path, tmp_path: Path) -> None:
    for path in folder.rglob("*.png"):
        path.write_bytes(b"broken")
    data = ImageFolder(folder, size=32, preprocess=SPEC)
    with pytest.raises(DataError, match="found none of 12 that can be read"):
        begin(tmp_path / "m.pt", train_set=data)
    with pytest.raises(DataError, match="none that can be read"):
        all_logits(seeded(TINY, 0), data)


def test_attach_exits_keeps_the_backbone() -> None:
    plain = seeded(TINY.replace(exits=(), labels=("a", "b", "c")), 1)
    model = attach_exits(plain, EXITS)
    assert model.config.labels == ("a", "b", "c") and len(model.heads) == 3
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(x), plain(x))
    assert same_weights(model, attach_exits(plain, EXITS))
    other = attach_exits(plain, EXITS, num_classes=5)
    assert other(x).shape == (2, 5) and other.config.labels == ()
    assert torch.equal(other.backbone.embedding(x), plain.backbone.embedding(x))


def test_digits_are_always_the_same() -> None:
    pytest.importorskip("sklearn", reason="the demo's data come with scikit-learn")
    from lgvit_edge.training.data.digits import digits_config, digits_model, digits_sets

    first, second = digits_sets(), digits_sets()
    assert [len(s) for s in first] == [1437, 360]
    assert all(np.array_equal(a.images, b.images) for a, b in zip(first, second, strict=True))
    config = digits_config()
    assert config.num_blocks >= 12 and config.grid**2 >= 64 and config.num_exits == 4
    assert same_weights(digits_model(), digits_model())
