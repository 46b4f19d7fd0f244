"""Stage 1: rates by layer, scaled updates of heads, a teacher, and the orders of stages."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_states as foreign
import numpy as np
import pytest
import torch
from rich.console import Console
from small import vit, write_stripes
from torch import Tensor, nn

from lgvit_edge.architecture.config import ExitConfig
from lgvit_edge.errors import CheckpointError, DataError, TrainingError, UsageError
from lgvit_edge.model import LGViT, save_checkpoint
from lgvit_edge.training import ImageFolder, Teacher, TrainingConfig, train, train_from_folder
from lgvit_edge.training.data.batches import Batch, Batches
from lgvit_edge.training.features import FeatureStore, hidden_states
from lgvit_edge.training.optimiser import adamw, layer_peaks
from lgvit_edge.training.schemes import SCHEMES
from lgvit_edge.training.stages import StageOne, StageTwo
from lgvit_edge.training.start import seeded
from lgvit_edge.training.teacher import answering

EXITS = (ExitConfig(1, "lph", 3), ExitConfig(2, "mlp"))
TINY = vit(num_blocks=3, exits=EXITS)
SETTINGS = TrainingConfig(
    epochs=(2, 2), lr=(1e-3, 3e-3), batch_size=4, warmup=0.1, workers=0, device="cpu", min_crop=0.3
)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return " ".join(console.file.getvalue().split())


@pytest.fixture
def images(tmp_path: Path) -> ImageFolder:
    folder = write_stripes(tmp_path / "images")
    return ImageFolder(folder, size=32, preprocess=TINY.preprocess, min_crop=0.3)


def stage_of(model: LGViT, config: TrainingConfig, images: ImageFolder | None = None) -> StageOne:
    batches = images and Batches(images, model.config.preprocess, batch_size=config.batch_size)
    stage = StageOne(model, config, batches)  # type: ignore[arg-type]
    stage.start()
    return stage


def test_rates_fall_by_layer_towards_the_input() -> None:
    model = seeded(TINY, 0)
    peaks = layer_peaks(model, lr=0.1, head_lr=0.7, decay=0.5)
    names = {parameter: name for name, parameter in model.named_parameters()}
    # Three blocks: final 1, block 3 1/2, block 2 1/4, block 1 1/8, embedding 1/16.
    parts = {"embedding": 1 / 16, "blocks.0": 1 / 8, "blocks.1": 1 / 4, "blocks.2": 1 / 2}
    for parameter, name in names.items():
        if name.startswith("heads."):
            expected = 0.7
        else:
            part = next((p for p in parts if name.startswith(f"backbone.{p}.")), None)
            expected = 0.1 * (1.0 if part is None else parts[part])
            assert (part is None) == name.startswith("backbone.final.")
        assert peaks[parameter] == pytest.approx(expected, rel=1e-12), name
    assert len(peaks) == len(names)


def test_a_step_is_as_long_as_the_layers_rate() -> None:
    model = seeded(TINY, 0)
    stage = stage_of(model, SETTINGS.replace(layer_decay=0.5, lr=(0.1, 0.2)))
    optimizer = adamw(stage.parameters(), weight_decay=0.0, peaks=stage.peaks())
    for group in optimizer.param_groups:
        group["lr"] = group["peak"]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    # AdamW's first step is the rate, whatever the gradient.
    for name, rate in (
        ("backbone.embedding.position", 0.1 / 16),
        ("backbone.blocks.0.norm2.bias", 0.1 / 8),
        ("backbone.blocks.2.norm2.bias", 0.1 / 2),
        ("backbone.final.norm.bias", 0.1),
        ("heads.0.classifier.linears.0.bias", 0.2),  # stage 2's, where none is given
    ):
        after = dict(model.named_parameters())[name].detach()
        torch.testing.assert_close(
            before[name] - after, torch.full_like(after, rate), rtol=1e-4, atol=1e-6
        )
    given = stage_of(model, SETTINGS.replace(head_lr=0.3)).peaks()
    assert {given[p] for p in model.heads.parameters()} == {0.3}


def test_heads_have_scaled_updates_and_a_backbone_has_none(images: ImageFolder) -> None:
    model = seeded(TINY, 0)
    stage = stage_of(model, SETTINGS, images)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scales = stage.scales(lambda values: values)
    assert all(torch.equal(start[name], t) for name, t in model.state_dict().items())
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert {names[weight].split(".")[0] for weight in scales} == {"heads"}
    # By hand: the root mean square of what the first LPH reads of the first batch's patches.
    batch = next(stage.batches.shuffled((SETTINGS.seed, 1, 0)))
    hidden = hidden_states(model, batch, SETTINGS).exits[0][:, 1:]
    expected = hidden.square().mean(dim=(0, 1)).sqrt()
    found = scales[model.heads[0].body.expand.weight]  # type: ignore[union-attr, index]
    torch.testing.assert_close(found.flatten(), expected, rtol=1e-5, atol=1e-6)
    # Without exits no image is read for it.
    assert stage_of(seeded(vit(num_blocks=3), 0), SETTINGS).scales(lambda values: values) == {}


# One image of class 0 with logits so far apart; a teacher with another gap; T = 2, gamma = 0.3.
def kd(gap: float, teacher: float) -> float:
    p, q = (1 / (1 + math.exp(-x / 2)) for x in (teacher, gap))
    kl = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    return 0.7 * math.log(1 + math.exp(-gap)) + 0.3 * 4 * kl


def logits(gap: float) -> Tensor:
    return torch.tensor([[gap, 0.0]])


@pytest.mark.parametrize(
    ("scheme", "weights"),
    [("lgvit", (1, 3, 4)), ("normal", (1, 1, 1)), ("distillation", (1, 1, 1))],
)
def test_with_a_teacher_every_classifier_learns_by_eq_14(
    scheme: str, weights: tuple[int, ...]
) -> None:
    losses = [kd(0.0, 3.0), kd(1.0, 3.0), kd(2.0, 3.0)]
    expected = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    loss = SCHEMES[scheme].loss(
        *([logits(0.0), logits(1.0)], logits(2.0), torch.tensor([0]), [1, 3, 4]),
        **{"joint": True, "gamma": 0.3, "temperature": 2.0, "kl": "image"},
        teacher=logits(3.0),
    )
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_the_final_loss_alone_has_the_teacher_too() -> None:
    model = seeded(TINY.replace(num_classes=2, exits=()), 0)
    stage = stage_of(model, SETTINGS)
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = Batch(pixels, torch.tensor([0, 1, 0]), torch.arange(3))
    teacher = torch.tensor([[3.0, 0.0]] * 3)
    with torch.no_grad():
        step = stage.step(batch, with_exits=True, teacher=teacher)
        gaps = [float(row[0] - row[1]) for row in model(pixels)]
    # Of an image of class 1 the roles of the two logits are exchanged.
    each = [kd(gaps[0], 3.0), kd(-gaps[1], -3.0), kd(gaps[2], 3.0)]
    assert float(step.loss) == pytest.approx(sum(each) / 3, rel=1e-4)


def teacher_of(images: ImageFolder, size: int = 48, seed: int = 9) -> Teacher:
    model = seeded(vit(num_blocks=2, image_size=size), seed)
    with torch.no_grad():
        model.backbone.final.classifier.linears[0].weight.mul_(50)  # type: ignore[union-attr, operator]
    return Teacher(model.eval(), images.at(size, model.config.preprocess))


@pytest.mark.parametrize("views", [0, 2])
def test_the_teacher_answers_the_pupils_own_crops(
    views: int, images: ImageFolder, tmp_path: Path
) -> None:
    """At its own size: the crops are those of the pupil, and every copy is answered once."""
    config = SETTINGS.replace(views=views, epochs=(3, 1))
    teacher = teacher_of(images)
    batches = Batches(teacher.images, teacher.model.config.preprocess, batch_size=4)
    store = FeatureStore(tmp_path / "t", teacher.model, batches, answering(config), hidden=False)
    store.fill()
    assert len(store.keys) == (views or 3)
    names = {path.name for path in (tmp_path / "t").iterdir()}
    assert names == {"features.json", "teacher", "valid"}
    pupil = seeded(TINY, 0)
    own = Batches(images, TINY.preprocess, batch_size=4)
    stage = StageOne(pupil, config.replace(views=views or 3), own, store)
    seen: list[tuple[Batch, Any]] = []
    stage.step = lambda batch, *, with_exits, teacher: seen.append((batch, teacher))  # type: ignore
    list(stage.steps(4, 0))
    assert sorted(torch.cat([batch.indices for batch, _ in seen]).tolist()) == list(range(12))
    # Those of its own first epochs, and not those that stage 2 would cache.
    key = (config.seed, 1, 4 % len(store.keys))
    for batch, answers in seen:
        at_size = next(batches.ordered(key, batch.indices.numpy()))
        with torch.no_grad():
            torch.testing.assert_close(answers, teacher.model(at_size.images), rtol=1e-4, atol=1e-4)
        again = next(own.ordered(key, batch.indices.numpy()))
        assert torch.equal(again.images, batch.images)
    # The same part of each image, at both sizes: averages of squares of it agree nearly.
    for index in range(3):
        small, large = (
            part.image(index, np.random.default_rng((*key, index))).astype(float)
            for part in (images, teacher.images)
        )
        coarse, fine = (
            x.reshape(8, len(x) // 8, 8, len(x) // 8, 3).mean((1, 3)) for x in (small, large)
        )
        assert np.abs(coarse - fine).mean() < 8


def interrupted(images: ImageFolder, after: int) -> ImageFolder:
    """Raises as Ctrl-C does at the given number of augmented images."""

    class Interrupting(ImageFolder):
        count = 0

        def image(self, index: int, rng: np.random.Generator | None) -> Any:
            Interrupting.count += rng is not None
            if Interrupting.count == after:
                raise KeyboardInterrupt
            return super().image(index, rng)

    other = images.at(images.size, images.preprocess)
    other.__class__ = Interrupting
    return other


Begin = Callable[..., LGViT]


@pytest.fixture
def begin(tmp_path: Path, images: ImageFolder) -> Begin:
    """Train from the same weights, to ``<name>.pt``."""

    def begin(name: str, console: Console | None = None, **given: Any) -> LGViT:
        options: dict[str, Any] = {"train_set": images, "config": SETTINGS}
        options |= {"model": seeded(TINY, 0), "val_set": None, "console": console or quiet()}
        return train(**options | {"out": tmp_path / f"{name}.pt"} | given)

    return begin


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


def test_interrupted_with_a_teacher_it_ends_as_undisturbed(
    begin: Begin, images: ImageFolder, tmp_path: Path
) -> None:
    # The teacher's own images do not count.
    teacher, config = teacher_of(images), SETTINGS.replace(order="whole", epochs=(3, 1))
    whole = begin("whole", config=config, teacher=teacher)
    assert not same(whole, begin("plain", config=config))
    with pytest.raises(KeyboardInterrupt):
        begin("m", config=config, teacher=teacher, train_set=interrupted(images, 4 + 12 + 5))
    assert (tmp_path / "m.pt.teacher" / "features.json").exists()
    console = quiet()
    assert same(whole, begin("m", console, config=config, teacher=teacher))
    assert "all were stored before" in said(console) and "continuing after epoch" in said(console)
    left = {path.name for path in tmp_path.iterdir() if path.name.startswith(("m.", "."))}
    assert left == {"m.pt", "m.log.csv", "m.log.png"}
    with pytest.raises(KeyboardInterrupt):
        begin("m", config=config, teacher=teacher, train_set=interrupted(images, 4 + 12 + 5))
    with pytest.raises(TrainingError, match=r"other settings: teacher \(other contents\)"):
        begin("m", config=config, teacher=teacher_of(images, seed=8))


@pytest.mark.parametrize("after", [4 + 12 + 5, 4 + 24 + 4 + 5, 4 + 24 + 4 + 24 + 4 + 12 + 5])
def test_heads_everything_heads(
    after: int, begin: Begin, images: ImageFolder, tmp_path: Path
) -> None:
    config = SETTINGS.replace(order="mixed")
    whole = begin("whole", config=config)
    with (tmp_path / "whole.log.csv").open() as file:
        rows = [(row["stage"], row["epoch"]) for row in csv.DictReader(file)]
    # The epochs of stage 2 count on: its second run sees other crops.
    assert rows == [("2", "1"), ("2", "2"), ("1", "1"), ("1", "2"), ("2", "3"), ("2", "4")]
    with pytest.raises(KeyboardInterrupt):
        begin("m", config=config, train_set=interrupted(images, after))
    console = quiet()
    assert same(whole, begin("m", console, config=config))
    assert "continuing after" in said(console)
    # The first run of stage 2 moves the heads alone, so that stage 1 begins with trained ones.
    cached = begin("cached", config=config.replace(cache=True))
    assert not same(cached.backbone, seeded(TINY, 0).backbone)


def test_each_order_trains_what_it_says(begin: Begin) -> None:
    start = seeded(TINY, 0)
    for order, backbone, heads in (
        ("frozen", False, True),
        ("joint", True, True),
        ("whole", True, True),  # every other step trains exits as well
    ):
        model = begin(order, config=SETTINGS.replace(order=order))
        assert same(model.backbone, start.backbone) != backbone
        assert same(model.heads, start.heads) != heads


def test_teachers_that_cannot_teach(begin: Begin, images: ImageFolder, tmp_path: Path) -> None:
    teacher, other = teacher_of(images), seeded(vit(num_classes=4), 0)
    named = seeded(vit(labels=("class1", "class0", "class2")), 0)
    two = Teacher(seeded(vit(), 0), interrupted(images, 0))
    two.images.labels = two.images.labels[::-1].copy()
    ours = seeded(TINY.replace(labels=images.classes), 0)
    for given, error, message in (
        (
            {"config": SETTINGS.replace(order="frozen")},
            UsageError,
            "teaches stage 1.*--order joint",
        ),
        ({"config": SETTINGS.replace(gamma=0.0)}, UsageError, "--gamma: expected above 0"),
        ({"teacher": Teacher(other, images)}, DataError, "teacher of 3 classes .* found one of 4"),
        (
            {"teacher": Teacher(named, images), "model": ours},
            DataError,
            "another order: expected c",
        ),
        ({"teacher": two}, DataError, "in the same order, found others"),
    ):
        with pytest.raises(error, match=message):
            begin("m", **{"teacher": teacher, **given})
    assert not list(tmp_path.glob("m*"))


def test_a_checkpoint_teaches_or_the_model_itself(images: ImageFolder, tmp_path: Path) -> None:
    save_checkpoint(seeded(TINY, 0).eval(), tmp_path / "start.pt")
    save_checkpoint(teacher_of(images).model, tmp_path / "teacher.pt")
    config = SETTINGS.replace(order="whole", epochs=(1, 1))
    models = []
    for teacher in (None, "start", tmp_path / "teacher.pt"):
        console = quiet()
        given = {"backbone": str(tmp_path / "start.pt"), "out": tmp_path / "m.pt"}
        models.append(
            train_from_folder(
                images.folder, config=config, console=console, teacher=teacher, **given
            )
        )
        # The model itself is told the names of the folders.
        assert ("the teacher has no class names" in said(console)) == isinstance(teacher, Path)
    assert not any(same(models[0], model) for model in models[1:]) and not same(*models[1:])
    torch.save(foreign.timm_state(1), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"--teacher: .* teacher=Teacher\(load_model"):
        train_from_folder(images.folder, teacher=tmp_path / "weights.pth", config=config, **given)
    with pytest.raises(UsageError, match="--teacher start: the classifier starts afresh"):
        train_from_folder(images.folder, teacher="start", **{**given, "backbone": "vit-tiny"})


def test_both_stages_learn_at_their_own_rates(begin: Begin, images: ImageFolder) -> None:
    """A head rate of almost nothing leaves the heads where they were, stage 1's moves the rest."""
    config = SETTINGS.replace(order="whole", head_lr=1e-12, weight_decay=0.0)
    model, start = begin("m", config=config), seeded(TINY, 0)
    pairs = zip(model.heads.parameters(), start.heads.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)
    assert not same(model.backbone, start.backbone)
    stage = StageTwo(start, SETTINGS, None)  # type: ignore[arg-type]
    assert set(stage.peaks().values()) == {3e-3}
