"""Passes: sizes, what they share, their teacher, calibration, stopping and going on, bad input."""

from __future__ import annotations

import functools
import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import training
from pytest import MonkeyPatch
from rich.console import Console
from small import swin, vit, write_stripes
from typer.testing import CliRunner

from lgvit_edge._support.files import locked
from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.cli.app import app
from lgvit_edge.errors import ConfigError, DataError, TrainingError, UsageError
from lgvit_edge.model import load_checkpoint, save_checkpoint
from lgvit_edge.policies import Confidence, Ensemble, from_json, parse
from lgvit_edge.policies.evaluate import ExitCosts, Images
from lgvit_edge.training import ImageFolder, TrainingConfig, pass_sizes, passes_from_folder
from lgvit_edge.training.passes import Passes, planned, tie
from lgvit_edge.training.points import calibrated, chained, fastest, shown
from lgvit_edge.training.report import exit_costs
from lgvit_edge.training.start import attach_exits, seeded

FINE = vit(num_blocks=3)
SETTINGS = TrainingConfig(
    epochs=(2, 2), lr=(3e-3, 3e-3), batch_size=4, warmup=0.1, workers=0, device="cpu", min_crop=0.5
)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return " ".join(console.file.getvalue().split())


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("112,224", (112, 224)),
        ("0.5,1", (112, 224)),
        ("80,112,224", (80, 112, 224)),
        ("0.5,224", (112, 224)),
    ],
)
def test_sizes_or_shares(text: str, sizes: tuple[int, ...]) -> None:
    assert pass_sizes(text, vit(image_size=224, patch_size=16)) == sizes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("100,224", "multiples of the patch of 16 pixels, found 100; take 96 or 112"),
        ("8,224", "found 8; take 16"),
        ("224,112", "sizes that grow, coarse first; found '224,112'"),
        ("112,112,224", "sizes that grow"),
        ("112,240", "backbone's 224 pixels, found 240; for another one add --image-size 240"),
        ("112,192", "backbone's 224 pixels, found 192"),
        ("224", "two or more image sizes such as 112,224"),
        ("0.3,1", r"two or more .* found '0.3,1' \(67.2, 224 pixels\)"),
        ("112.5,224", r"two or more .*112.5"),
        ("-112,224", "two or more"),
        ("nan,224", "two or more"),
        ("half,1", "two or more"),
        ("", "two or more"),
    ],
)
def test_sizes_that_do_not_fit(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"--passes: .*{message}"):
        pass_sizes(text, vit(image_size=224, patch_size=16))


def test_a_coarse_pass_begins_with_the_last_ones_weights() -> None:
    fine = seeded(FINE, 0)
    coarse, last = planned(fine, (16, 32), [()], 0)
    assert last is fine and coarse.config.image_size == 16
    assert coarse.config.preprocess.resize == 16
    for name, tensor in coarse.backbone.state_dict().items():
        if name != "embedding.position":
            assert torch.equal(tensor, fine.backbone.state_dict()[name]), name
    # By hand, of 4 x 4 positions 2 x 2: bicubic without antialiasing reads, between two samples,
    # -0.09375, 0.59375, 0.59375, -0.09375, and repeats the border.
    old = fine.backbone.embedding.position.detach()[0, 1:].unflatten(0, (4, 4))  # type: ignore
    weights = torch.zeros(2, 4)
    for place, corner in enumerate((0, 2)):
        for offset, weight in zip(
            (-1, 0, 1, 2), (-0.09375, 0.59375, 0.59375, -0.09375), strict=True
        ):
            weights[place, min(max(corner + offset, 0), 3)] += weight
    expected = torch.einsum("ai,bj,ijd->abd", weights, weights, old).flatten(0, 1)
    found = coarse.backbone.embedding.position.detach()[0]  # type: ignore
    torch.testing.assert_close(found[1:], expected, rtol=1e-5, atol=1e-6)
    token = fine.backbone.embedding.position.detach()[0, 0]  # type: ignore
    assert torch.equal(found[0], token)


def test_exits_that_do_not_fit_a_coarse_pass_are_named() -> None:
    gah = ExitConfig(2, "gah", 4)
    assert len(planned(seeded(FINE, 0), (16, 32), [[ExitConfig(2, "mlp")]], 0)) == 2
    with pytest.raises(ConfigError, match="pass of 16 px: gah after block 2"):
        planned(seeded(FINE, 0), (16, 32), [[gah]], 0)


@pytest.mark.parametrize(
    ("config", "own"),
    [
        (FINE, {"embedding.position"}),
        (
            vit(num_blocks=1, relative_positions=True),
            {"embedding.position", "blocks.0.attention.relative_bias.table"},
        ),
        # Only the second stage's maps become smaller than its windows of 4.
        (swin(patch_size=4), {f"blocks.{b}.attention.table" for b in (2, 3)}),
        (swin(), set()),
    ],
)
def test_what_depends_on_the_size_is_not_shared(config: LGViTConfig, own: set[str]) -> None:
    exits = [] if config.num_blocks == 1 else [ExitConfig(1, "mlp")]
    models = planned(seeded(config, 0), (16, 32), [exits], 0)
    tie(models)
    first, second = (dict(model.named_parameters()) for model in models)
    apart = {name for name in first if first[name] is not second.get(name)}
    heads = {name for name in first if name.startswith("heads.")}
    assert apart == heads | {f"backbone.{name}" for name in own}
    assert bool(heads) == bool(exits)


Begin = Callable[..., Passes]


@pytest.fixture
def begin(tmp_path: Path) -> Begin:
    """Train passes of 16 and 32 pixels on stripes, to ``<name>-16.pt`` and ``<name>-32.pt``."""
    return beginning_in(tmp_path)


def beginning_in(place: Path) -> Begin:
    folder = write_stripes(place / "images")
    save_checkpoint(seeded(FINE, 0).eval(), place / "start.pt")

    def begin(name: str, console: Console | None = None, **given: Any) -> Passes:
        options = {"backbone": str(place / "start.pt"), "config": SETTINGS, "sizes": "16,32"}
        options |= {"out": place / f"{name}.pt", "console": console or quiet()}
        return passes_from_folder(folder, **options | given)

    return begin


def same(a: Any, b: Any) -> bool:
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def all_same(a: Passes, b: Passes) -> bool:
    return all(same(*pair) for pair in zip(a.models, b.models, strict=True))


def test_the_last_pass_stays_and_the_coarse_one_learns(begin: Begin, tmp_path: Path) -> None:
    console = quiet()
    frozen = SETTINGS.replace(order="frozen", epochs=(12, 1))
    passes = begin("m", console, config=frozen, val=tmp_path / "images")
    coarse, fine = passes.models
    start = load_checkpoint(tmp_path / "start.pt")
    assert same(fine, start) and not same(coarse.backbone.blocks, fine.backbone.blocks)
    assert [path.name for path in passes.files] == ["m-16.pt", "m-32.pt"]
    for model, path in zip(passes.models, passes.files, strict=True):
        assert same(model, load_checkpoint(path))
        assert load_checkpoint(path).config.labels == ("class0", "class1", "class2")
    assert "pass of 32 px, as it is" in said(console)
    left = {path.name for path in tmp_path.iterdir()} - {"images", "start.pt"}
    files = {f"m-{size}.{kind}" for size in (16, 32) for kind in ("pt", "eval.json", "eval.png")}
    assert left == files | {"m-16.log.csv", "m-16.log.png", "m.passes.json"}


def test_the_teacher_is_the_last_pass_and_can_be_left_out(begin: Begin) -> None:
    frozen = SETTINGS.replace(order="frozen")
    console = quiet()
    taught = begin("taught", console, config=frozen)
    assert "the teacher's answers to 12 images" in said(console)
    console = quiet()
    alone = begin("alone", console, config=frozen.replace(gamma=0.0))
    assert "the teacher's" not in said(console)
    assert not same(taught.models[0], alone.models[0])


@pytest.mark.parametrize("shared", [False, True])
def test_exits_of_their_own_in_each_pass(shared: bool, begin: Begin) -> None:
    passes = begin("m", exits="1/2", heads="mlp", shared=shared)
    assert [m.config.exits for m in passes.models] == [
        (ExitConfig(1, "mlp"),),
        (ExitConfig(2, "mlp"),),
    ]
    passes = begin("m", exits="1/none", heads="mlp", shared=shared)
    assert [m.config.num_exits for m in passes.models] == [1, 0]
    for text in ("1/2/2", "1/"):
        with pytest.raises((UsageError, ConfigError), match="exits"):
            begin("m", exits=text)


@pytest.mark.parametrize("order", ["frozen", "joint", "mixed"])
def test_one_set_of_weights_for_all(order: str, begin: Begin, tmp_path: Path) -> None:
    passes = begin(
        "m", config=SETTINGS.replace(order=order), shared=True, exits="1/none", heads="mlp"
    )
    coarse, fine = (model.backbone.state_dict() for model in passes.models)
    apart = (
        {name for name in coarse if not torch.equal(coarse[name], fine[name])}
        if False
        else {
            name
            for name in coarse
            if coarse[name].shape != fine[name].shape or not torch.equal(coarse[name], fine[name])
        }
    )
    assert apart == {"embedding.position"}
    start = load_checkpoint(tmp_path / "start.pt").backbone.state_dict()
    assert not torch.equal(fine["blocks.0.fc1.weight"], start["blocks.0.fc1.weight"])
    # Both sets of positions were trained, and so was the head.
    assert not torch.equal(fine["embedding.position"], start["embedding.position"])
    small = load_checkpoint(tmp_path / "start.pt").resized(16).backbone.state_dict()
    assert not torch.equal(coarse["embedding.position"], small["embedding.position"])
    fresh = attach_exits(passes.models[0], passes.models[0].config.exits, seed=SETTINGS.seed)
    assert not same(fresh.heads, passes.models[0].heads)
    left = {path.name for path in tmp_path.iterdir()} - {"images", "start.pt"}
    assert left == {"m-16.pt", "m-32.pt", "m.log.csv", "m.log.png"}


def test_three_passes(begin: Begin) -> None:
    for shared in (False, True):
        passes = begin("m", sizes="8,16,32", shared=shared, config=SETTINGS.replace(epochs=(1, 1)))
        assert [model.config.image_size for model in passes.models] == [8, 16, 32]


def interrupt(monkeypatch: MonkeyPatch, after: int) -> None:
    """Raise as Ctrl-C does when so many augmented images were read."""
    read, count = ImageFolder.image, 0

    def image(self: ImageFolder, index: int, rng: np.random.Generator | None) -> Any:
        nonlocal count
        count += rng is not None
        if count == after:
            raise KeyboardInterrupt
        return read(self, index, rng)

    monkeypatch.setattr(ImageFolder, "image", image)


OWN_EXITS: dict[str, Any] = {"exits": "1/none", "heads": "mlp"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Passes]:
    """What a training without an interruption ends with, ``shared`` or not; do not change it."""

    @functools.cache
    def trained(shared: bool) -> Passes:
        return beginning_in(tmp_path_factory.mktemp("whole"))("m", **OWN_EXITS, shared=shared)

    return trained


# Of the last pass: 24 images in two epochs; then 24 for the teacher's answers to both copies, and
# 24 of the coarse pass, or 48 of both in turns. With exits in the coarse pass (apart): 4 for scales
# before stage 1, 4 and 24 for stage 2.
@pytest.mark.parametrize(
    ("shared", "after"),
    [
        *((False, after) for after in (14, 30, 24 + 24 + 4 + 18, 24 + 24 + 4 + 24 + 4 + 18)),
        *((True, after) for after in (14, 30, 24 + 24 + 4 + 30)),
    ],
)
def test_interrupted_it_ends_as_undisturbed(
    shared: bool, after: int, begin: Begin, undisturbed: Callable[[bool], Passes], tmp_path: Path
) -> None:
    options = OWN_EXITS | {"shared": shared}
    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt(patched, after)
        begin("m", **options)
    assert not (tmp_path / "m-16.pt").exists()
    console = quiet()
    assert all_same(undisturbed(shared), begin("m", console, **options))
    assert "continuing after epoch" in said(console)
    left = {path.name for path in tmp_path.iterdir() if path.name.startswith(("m", "."))}
    logs = {"m"} if shared else {"m-16", "m-32"}
    kinds = ("log.csv", "log.png")
    assert left == {"m-16.pt", "m-32.pt", *(f"{log}.{kind}" for log in logs for kind in kinds)}


@pytest.mark.slow
@pytest.mark.parametrize("options", ["", "--shared"])
def test_kill_9_in_a_coarse_pass(options: str, folder: Path, trained: Callable[[str], str]) -> None:
    given = f"--passes 8,16 --exits none --order whole --epochs 4 --batch-size 8 {options}"
    trained(f"{given} --out whole.pt")
    process = training(folder, f"{given} --workers 1 --out m.pt")
    log = folder / ("m.log.csv" if options else "m-8.log.csv")
    while process.poll() is None and not log.exists():
        time.sleep(0.01)
    process.kill()
    told, _ = process.communicate(timeout=300)
    assert process.returncode == -9, told
    assert "continuing after epoch" in trained(f"{given} --out m.pt")
    for size in (8, 16):
        assert same(*(load_checkpoint(folder / f"{name}-{size}.pt") for name in ("whole", "m")))
    records = [json.loads((folder / f"{name}.passes.json").read_text()) for name in ("whole", "m")]
    assert records[0]["points"] == records[1]["points"]
    assert not [path.name for path in folder.iterdir() if path.suffix in (".resume", ".passes")]


def test_other_settings_are_not_continued(begin: Begin) -> None:
    for shared in (False, True):
        with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
            interrupt(patched, 24 + 24 + 18 if not shared else 24 + 24 + 30)
            begin("m", shared=shared)
        with pytest.raises(TrainingError, match=r"gamma \(then 0.3, now 0.4\)"):
            begin("m", shared=shared, config=SETTINGS.replace(gamma=0.4))
        begin("m", shared=shared, config=SETTINGS.replace(gamma=0.4), resume=False)


def test_answers_are_kept_where_asked(begin: Begin, tmp_path: Path) -> None:
    options: dict[str, Any] = {"features": tmp_path / "kept", "exits": "1", "heads": "mlp"}
    options["config"] = SETTINGS.replace(order="frozen", cache_views=1)
    first = begin("a", **options)
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"teacher", "16", "32"}
    console = quiet()
    # Exits of the last pass are trained from the same features, its answers are read again.
    again = begin("b", console, **options)
    assert said(console).count("all were stored before") == 3
    assert all_same(first, again)


# Calibration, on answers made by hand: two passes without exits, four classes.


def answers(rows: list[tuple[int, float]]) -> np.ndarray[Any, Any]:
    """Logits ``[n, 1, 4]``: the class, and by how much its logit is above the others."""
    logits = np.zeros((len(rows), 1, 4), np.float32)
    for row, (label, gap) in zip(logits[:, 0], rows, strict=True):
        row[label] = gap
    return logits


LABELS = np.zeros(8, np.int64)
# The coarse pass is sure and right of half the images, unsure and wrong of the others.
COARSE = answers([(0, 6.0), (0, 5.0), (1, 0.5), (1, 0.4)] * 2)
LAST = answers([(0, 4.0)] * 8)


def test_one_chain_through_all_passes() -> None:
    models = planned(seeded(FINE, 0), (16, 32), [[ExitConfig(2, "mlp")]], 0)
    logits = np.concatenate([COARSE, COARSE], axis=1)
    images, costs = chained(models, [Images(logits, LABELS), Images(LAST, LABELS)])
    assert images.logits.shape == (8, 3, 4) and images.exits == 2
    own = [exit_costs(model) for model in models]
    total = own[0].macs[-1]
    assert costs.macs == (*own[0].macs, total + own[1].macs[0])
    assert costs.baseline_macs == own[1].baseline_macs < costs.macs[-1]
    with pytest.raises(DataError, match="same images in every pass, found 8, 7"):
        chained(models, [Images(logits, LABELS), Images(LAST[1:], LABELS[1:])])


def test_the_fastest_that_loses_little_enough() -> None:
    logits = np.concatenate([COARSE, LAST], axis=1)
    images, costs = (
        Images(logits, LABELS),
        ExitCosts((3, 6), 3, macs=(25, 125), baseline_macs=100),
    )
    policies = [Confidence(0.0), Confidence(0.9), Confidence(0.999)]
    # The first answers all at once and half of them wrongly, the last one nothing.
    assert fastest(policies, images, costs, drop=0.0) == Confidence(0.9)
    assert fastest(policies, images, costs, drop=0.5) == Confidence(0.0)
    assert fastest(policies[:1], images, costs, drop=0.4) is None


def test_temperatures_and_thresholds() -> None:
    models = planned(seeded(vit(num_blocks=3, num_classes=4), 0), (16, 32), [()], 0)
    measured = [Images(COARSE, LABELS), Images(LAST, LABELS)]
    record = calibrated(models, measured, [Path("m-16.pt"), Path("m-32.pt")])
    assert record["images"] == {"choosing": 4, "reporting": 4}
    assert record["baseline"]["accuracy"] == 1.0
    assert [one["accuracy"] for one in record["passes"]] == [[0.5], [1.0]]
    assert [one["last_exit"] for one in record["passes"]] == [1, 2]
    (temperature,) = record["temperature"]
    # Of the reporting images half are right at a gap of 5, half wrong at 0.4, in bins of their own.
    sure, unsure = (float(np.exp(gap) / (np.exp(gap) + 3)) for gap in (5.0, 0.4))
    (before,) = record["calibration_error"]["before"]
    assert before == pytest.approx(0.5 * (1 - sure) + 0.5 * unsure, rel=1e-5)

    def loss(t: float) -> float:  # of the choosing images: gaps of 6 right, of 0.5 wrong
        right, wrong = 6.0 / t, 0.5 / t
        return float(np.log(np.exp(right) + 3) - right + np.log(np.exp(wrong) + 3))

    assert temperature == pytest.approx(min(np.arange(0.06, 19, 0.001), key=loss), abs=2e-3)
    none = record["points"][0]
    assert none["drop"] == 0 and none["reporting"]["accuracy"] == 1.0
    assert none["reporting"]["shares"] == [0.5, 0.5]
    # Half the images need the coarse pass alone, the others both.
    coarse, fine = (exit_costs(model).macs[0] for model in models)
    expected = exit_costs(models[1]).baseline_macs / (coarse + fine / 2)
    assert none["reporting"]["macs_speedup"] == pytest.approx(expected, rel=1e-9)
    # As typed for ``export``, and as the record has it.
    policy = from_json(none["policy"])
    assert isinstance(policy, Confidence) and policy.temperature == (temperature,)
    assert parse(none["typed"]) == Confidence(policy.threshold, temperature)


def test_the_answers_of_passes_are_added_where_that_saves_more() -> None:
    """Added answers mend what the last pass gets wrong, so that more may leave before it."""
    coarse = answers([(0, 6.0), (2, 1.0), (1, 3.0), (1, 0.2)] * 4)
    last = answers([(0, 4.0), (1, 0.3), (0, 4.0), (0, 4.0)] * 4)
    coarse[1::4, 0, 0], last[1::4, 0, 0] = 0.9, 0.25  # right is the second choice of both
    order = [place for place in range(16) for _ in range(2)]  # both halves see the same
    labels = np.zeros(32, np.int64)
    models = planned(seeded(vit(num_blocks=3, num_classes=4), 0), (16, 32), [()], 0)
    measured = [Images(coarse[order], labels), Images(last[order], labels)]
    record = calibrated(models, measured, [Path("m-16.pt"), Path("m-32.pt")])
    none = record["points"][0]
    policy = from_json(none["policy"])
    assert isinstance(policy, Ensemble)
    assert parse(none["typed"]).to_json()["threshold"] == policy.threshold
    assert none["reporting"]["accuracy"] == record["baseline"]["accuracy"] == 0.75
    assert none["reporting"]["shares"] == [0.5, 0.5]


def test_the_command(begin: Begin, tmp_path: Path) -> None:
    arguments = (
        *("train", "--data", tmp_path / "images", "--backbone", tmp_path / "start.pt"),
        *("--out", tmp_path / "my m.pt", "--epochs", 1, "--batch-size", 4, "--workers", 0),
        *("--val", tmp_path / "images", "--passes", "0.5,1", "--order", "frozen"),
    )
    done = CliRunner().invoke(
        app, [str(argument) for argument in arguments], env={"COLUMNS": "300"}
    )
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "my m.passes.json").read_text())
    typed = record["points"][0]["typed"]
    files = " ".join(f"--ckpt '{tmp_path}/my m-{size}.pt'" for size in (16, 32))
    assert f"next: lgvit-edge export {files} --policy {typed} --target cpu" in done.output
    assert "by 16 px" in done.output and "thresholds chosen on 6 images" in done.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shared",), "--shared is for several passes: add --passes"),
        (
            ("--passes", "16,32", "--teacher", "start"),
            "--teacher is for a training without --passes",
        ),
    ],
)
def test_options_that_contradict_each_other(
    options: tuple[str, ...], message: str, begin: Begin, tmp_path: Path
) -> None:
    done = CliRunner().invoke(app, ["train", "--data", str(tmp_path / "images"), *options])
    assert isinstance(done.exception, UsageError) and message in str(done.exception)


def test_bad_input_is_found_before_anything_is_written(begin: Begin, tmp_path: Path) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    for given, error, message in (
        ({"sizes": "12,32"}, UsageError, "patch of 8 pixels, found 12; take 8 or 16"),
        ({"exits": "5/none"}, ConfigError, "pass of 16 px: exits must be sorted blocks in 1..2"),
        ({"exits": "1/none/none"}, UsageError, "of 2 passes with / between them"),
        ({"out": tmp_path / "m.onnx"}, UsageError, "--out must end in .pt"),
        ({"out": tmp_path / "no" / "m.pt"}, TrainingError, "no"),
    ):
        with pytest.raises(error, match=message):
            begin("m", **given)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_passes_that_do_not_pay_are_told() -> None:
    coarse = answers([(1, 9.0)] * 8)  # sure and wrong
    models = planned(seeded(vit(num_blocks=3, num_classes=4), 0), (16, 32), [()], 0)
    for first, pays in ((coarse, False), (COARSE, True)):
        measured = [Images(first, LABELS), Images(LAST, LABELS)]
        console = quiet()
        shown(calibrated(models, measured, [Path("m-16.pt"), Path("m-32.pt")]), console)
        assert ("these passes do not pay" in said(console)) != pays


@pytest.mark.parametrize("passes", [(), ("--passes", "0.5,1")], ids=["one", "passes"])
def test_two_trainings_do_not_write_the_same_file(
    passes: tuple[str, ...], begin: Begin, tmp_path: Path
) -> None:
    out = tmp_path / "m.pt"
    arguments = (
        *("train", "--data", tmp_path / "images", "--backbone", tmp_path / "start.pt"),
        *("--out", out, "--epochs", 1, "--batch-size", 4, "--workers", 0, "--order", "whole"),
    )
    before = set(tmp_path.iterdir())
    with locked(tmp_path / ".m.pt.lock"):
        done = CliRunner().invoke(app, [*map(str, arguments), *passes])
        assert done.exit_code == 1
        error = str(done.exception or done.output)
        assert re.search(r"another training \(process \d+.*writes .*m\.pt: wait for it", error)
    assert set(tmp_path.iterdir()) == before
