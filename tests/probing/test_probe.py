"""The ``probe`` command: every kind of model and of images gives a result or one clear error."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import foreign_states as foreign
import numpy as np
import pytest
import torch
from pages import Seen, in_browser
from small import swin, vit, write_photos

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.errors import UsageError
from lgvit_edge.images.preprocess import load_rgb, network_input
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.model import LGViT, load_checkpoint, save_checkpoint
from lgvit_edge.model.backbones.block import Block
from lgvit_edge.model.randomised import randomised
from lgvit_edge.policies import Confidence, Never, Policy
from lgvit_edge.probing.analysis import Answers
from lgvit_edge.probing.collect import Subject, collect
from lgvit_edge.probing.concentration import MEASURES
from lgvit_edge.probing.page import write_page
from lgvit_edge.probing.probe import probe
from lgvit_edge.probing.relevance import relevance
from lgvit_edge.probing.show import notes
from lgvit_edge.probing.views import view

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

HOSTILE = ("<script>alert(1)</script>", "$b_", "{{ 7 * 7 }}", "d" * 80, "e")
CONVNET = """
import torch
from torch import nn
from lgvit_edge.images.spec import Preprocess


def small():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 16, 3, 2), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 7),
    )
    net.image_size, net.preprocess = 24, Preprocess(resize=24)
    return net


def wrong():
    return nn.Linear(5, 5)


def large():
    net = nn.Flatten()
    net.image_size, net.preprocess = 48, Preprocess(resize=40)
    return net
"""
VIT = vit(
    hidden_size=32,
    num_blocks=4,
    num_classes=5,
    labels=tuple("abcde"),
    exits=(ExitConfig(1, "lph", 3), ExitConfig(2, "lph", 0), ExitConfig(3, "gah", 2)),
)
DEIT = vit(
    family="deit",
    hidden_size=32,
    prefix_tokens=2,
    classifiers=2,
    num_classes=5,
    exits=(ExitConfig(2, "attention"), ExitConfig(4, "encoder")),
)
CONFIGS: dict[str, LGViTConfig] = {
    "vit": VIT,
    "swin": swin(exits=(ExitConfig(1, "lph", 3), ExitConfig(3, "gah", 2)), hidden_size=16),
    "deit": DEIT,
    "one": VIT.replace(exits=(ExitConfig(2, "conv"),)),
    "none": VIT.replace(exits=()),
    "mlp": VIT.replace(exits=(ExitConfig(1, "mlp"), ExitConfig(3, "mlp")), labels=HOSTILE),
    "two": VIT.replace(num_classes=2, labels=("a", "b")),
}
CONFIDENT = Confidence(0.5)
Command = Callable[..., str]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, photos of five classes of which one is damaged, a flat folder, a ConvNet."""
    root = tmp_path_factory.mktemp("desk")
    for seed, (name, config) in enumerate(CONFIGS.items()):
        save_checkpoint(randomised(LGViT(config), seed), root / f"{name}.pt")
    photos = write_photos(root / "photos", "abcde", 4)
    (photos / "c" / "02.png").write_bytes(b"no image")
    (root / "flat").mkdir()
    for place, path in enumerate(sorted(photos.glob("*/0[01].png"))):
        shutil.copy(path, root / "flat" / f"{place}.png")
    write_photos(root / "pair", "ab", 3)
    (root / "own_convnet.py").write_text(CONVNET)
    return root


@pytest.fixture
def here(desk: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(desk)
    yield desk
    sys.modules.pop("own_convnet", None)


def probed(command: Command, out: Path, *line: str, data: str = "photos") -> dict[str, Any]:
    command("probe", *line, "--data", data, "--out", out, "--batch", "8", "--device", "cpu")
    record: dict[str, Any] = json.loads((out / "probe.json").read_text())
    assert sorted(p.name for p in out.iterdir()) == ["probe.html", "probe.json"]
    return record


def recorded(
    *names: str, data: str = "photos", policy: Policy = CONFIDENT, seed: int = 0
) -> dict[str, Any]:
    """The record without a page; damaged files are left out."""
    paths = [p for p in sorted(Path(data).rglob("*.png")) if p.stat().st_size > 100]
    labels = np.array(["abcde".index(p.parent.name) for p in paths])
    models = {name: randomised(LGViT(CONFIGS[name])) for name in names}
    subjects = [
        Subject(name, model, model.config.preprocess, model.config.image_size, labels)
        for name, model in models.items()
    ]
    how = {"data": Path(data), "batch_size": 8, "seed": seed, "device": "cpu"}
    return probe(subjects, paths, policy, **how)[0]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def compared(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that a comparison with a ConvNet of the user's wrote, and what it said."""
    out = tmp_path_factory.mktemp("compared") / "out"
    line = ["probe", "one.pt", "own_convnet:small", "--data", "photos", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "lgvit_edge", *line, "--batch", "8"],
        cwd=desk,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return out, " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize(
    ("name", "heads", "methods"),
    [
        ("vit", ["lph", "lph", "gah", "final"], ["gradcam"] * 2 + ["gradient"] * 2),
        ("swin", ["lph", "gah", "final"], ["gradcam", "gradient", "gradient"]),
        ("deit", ["attention", "encoder", "final"], ["gradient"] * 3),
        ("one", ["conv", "final"], ["gradcam", "gradient"]),
        ("none", ["final"], ["gradient"]),
    ],
)
def test_every_kind_of_model_is_probed(
    name: str, heads: list[str], methods: list[str], here: Path, command: Command, tmp_path: Path
) -> None:
    record = probed(command, tmp_path / "out", f"{name}.pt")
    (model,) = record["models"]
    assert [row["head"] for row in model["exits"]] == heads
    assert record["images"] == {
        "given": 20,
        "read": 19,
        "unreadable": 1,
        "such_as": record["images"]["such_as"],
    }
    assert "02.png is not an image" in record["images"]["such_as"][0]
    matrix = np.array(record["cka"]["matrix"], float)
    assert np.allclose(np.diag(matrix), 1) and np.allclose(matrix, matrix.T)
    assert len(matrix) == len(record["cka"]["stages"]) and record["cka"]["images"] == 16
    assert sum(row["images"] for row in model["classes"]) == 19
    assert sum(row["share"] for row in model["exits"]) == pytest.approx(1)
    looked = model["relevance"]
    assert [(row["head"], row["method"]) for row in looked["exits"]] == list(
        zip(heads, methods, strict=True)
    )
    assert len(looked["images"]) == 4 and looked["left_out"] == []
    seen = Seen((tmp_path / "out" / "probe.html").read_text())
    assert len(seen.all("img")) == 19 + 4 * (1 + len(heads))
    assert all(image["alt"] for image in seen.all("img"))
    # CKA, accuracies and calibration; one exit has nothing to agree with
    assert len(seen.all("figure")) == (3 if name == "none" else 4)


def test_the_figures_are_those_of_the_logits(here: Path) -> None:
    model = randomised(LGViT(VIT))
    paths = [p for p in sorted(Path("photos").glob("*/*.png")) if p.stat().st_size > 100]
    with torch.no_grad():
        pixels = network_input([load_rgb(p) for p in paths], VIT.preprocess, 32, "float32")
        logits = model.exit_logits(torch.from_numpy(pixels)).numpy()
    labels = np.array(["abcde".index(p.parent.name) for p in paths])
    right = logits.argmax(-1) == labels[:, None]
    exits, answers = CONFIDENT.replay(logits)
    (found,) = recorded("vit")["models"]
    assert [row["accuracy"] for row in found["exits"]] == pytest.approx(right.mean(0).tolist())
    shares = np.bincount(exits - 1, minlength=4) / len(paths)
    assert [row["share"] for row in found["exits"]] == pytest.approx(shares.tolist())
    assert found["policy"]["accuracy"] == pytest.approx(float((answers == labels).mean()))
    hard = found["hardest"][0]
    assert hard["file"] == str(paths[hard["row"]].relative_to("photos"))
    assert hard["exits_right"] == int(right[hard["row"]].sum())


def test_a_model_is_compared_with_a_convnet_of_the_users(compared: tuple[Path, str]) -> None:
    out, said = compared
    record = json.loads((out / "probe.json").read_text())
    assert [m["name"] for m in record["models"]] == ["one.pt", "own_convnet:small"]
    assert "centre crop of 24" in record["models"][1]["sees"]
    names = [s["name"] for s in record["cka"]["stages"] if s["model"] == 1]
    assert names == ["0", "1", "2", "3", "4", "5", "6", "7"]
    rows = record["cka"]["against"]
    own = [s["name"] for s in record["cka"]["stages"] if s["model"] == 0]
    assert [row["stage"] for row in rows] == own and "head 1: conv" in own
    place = own.index("head 1: conv")
    cross = np.array(record["cka"]["matrix"], float)[place, len(own) :]
    row = rows[place]
    assert row["closest"] == names[int(cross.argmax())]
    assert row["lower_half"] == pytest.approx(cross[:4].mean(), abs=1e-4)
    assert row["upper_half"] == pytest.approx(cross[4:].mean(), abs=1e-4)
    page = Seen((out / "probe.html").read_text())
    assert len(page.all("figure")) == 6 and "What each stage resembles" in page.text
    for words in (
        "one.pt, 19 images",
        "exit block head accuracy confidence ECE AUROC as the final share",
        "under confidence",
        "an oracle of exits would be right on",
        "what each stage resembles in own_convnet:small",
        "1 of 20 images cannot be read",
        "CKA is of 16 images: 3 fill no minibatch",
    ):
        assert words in said


def test_two_models_are_compared_and_both_analysed(
    here: Path, command: Command, tmp_path: Path
) -> None:
    # Its class names are others, so its images have no labels.
    record = probed(command, tmp_path / "out", "vit.pt", "mlp.pt")
    first, second = record["models"]
    assert first["labelled"] and not second["labelled"] and second["classes"] is None
    assert any("mlp.pt: labels are not used" in text for text in record["notes"])
    text = (tmp_path / "out" / "probe.html").read_text()
    assert "<script" not in text and "{{ 7 * 7 }}" in Seen(text).text


@pytest.mark.parametrize("given", ["--classes", "--labels"])
def test_a_second_model_has_its_own_order_of_classes(
    given: str, here: Path, command: Command, tmp_path: Path
) -> None:
    # The same network, its classes without names, and its classifiers' rows with names, turned.
    turned = randomised(LGViT(CONFIGS["two"]), 0)
    unnamed = turned.config.replace(labels=())
    plain = LGViT(unnamed)
    plain.load_state_dict(turned.state_dict())
    save_checkpoint(plain, tmp_path / "plain.pt")
    with torch.no_grad():
        for module in turned.modules():
            if isinstance(module, torch.nn.Linear) and module.out_features == 2:
                module.weight.copy_(module.weight.flip(0))
                module.bias.copy_(module.bias.flip(0))
    other = LGViT(turned.config.replace(labels=("b", "a")))
    other.load_state_dict(turned.state_dict())
    save_checkpoint(other, tmp_path / "turned.pt")
    (tmp_path / "order.txt").write_text("a\nb\n")
    lines = [
        f"{path.parent.name}/{path.name} {'ab'.index(path.parent.name)}"
        for path in sorted(Path("pair").rglob("*.png"))
    ]
    (tmp_path / "labels.txt").write_text("\n".join(lines))
    file = tmp_path / ("order.txt" if given == "--classes" else "labels.txt")
    models = (str(tmp_path / "plain.pt"), str(tmp_path / "turned.pt"))
    record = probed(command, tmp_path / "out", *models, given, str(file), data="pair")
    first, second = record["models"]
    assert first["labelled"]
    if given == "--labels":  # its numbers are of the first model's classes
        assert not second["labelled"]
        assert any("these are others or in another order" in text for text in record["notes"])
    else:
        accuracies = [[row["accuracy"] for row in model["exits"]] for model in (first, second)]
        assert accuracies[0] == accuracies[1]


def test_a_second_checkpoint_keeps_its_own_preprocessing(
    here: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the first one is told, and however the second one is named."""
    other = VIT.replace(preprocess=Preprocess(resize=32, mean=(0.1, 0.1, 0.1)))
    save_checkpoint(randomised(LGViT(other), 1), tmp_path / "other.pt")
    (tmp_path / "own_lgvit.py").write_text(
        "from lgvit_edge import load_checkpoint\n"
        f"def made(): return load_checkpoint({str(tmp_path / 'other.pt')!r})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    alone = probed(command, tmp_path / "alone", str(tmp_path / "other.pt"))["models"][0]
    for name, line in {
        "told": [str(tmp_path / "other.pt")],
        "function": ["own_lgvit:made"],
    }.items():
        record = probed(command, tmp_path / name, "vit.pt", *line, "--mean", "0.5,0.5,0.5")
        first, second = record["models"]
        assert "0.5" in first["sees"] and second["sees"] == alone["sees"] != first["sees"]
        assert second["exits"] == alone["exits"]


def test_a_second_model_that_does_not_tell_its_heads_comes_from_a_function(
    here: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(foreign.timm_state(1), tmp_path / "weights.pth")
    line = ("probe", "vit.pt", tmp_path / "weights.pth", "--data", "photos")
    said = command(*line, "--out", tmp_path / "out", status=1)
    assert "which returns lgvit_edge.model.load_model(PATH, num_heads=N)" in said
    (tmp_path / "own_heads.py").write_text(
        "from lgvit_edge.model import load_model\n"
        f"def made(): return load_model({str(tmp_path / 'weights.pth')!r}, num_heads=4)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    record = probed(command, tmp_path / "out", "vit.pt", "own_heads:made")
    assert record["models"][1]["classes_in_all"] == 3


def test_a_model_in_training_is_probed_as_it_answers(here: Path) -> None:
    paths = sorted(Path("pair").rglob("*.png"))
    model = randomised(LGViT(VIT))
    how = {"data": Path("pair"), "batch_size": 4, "device": "cpu"}
    subject = Subject("vit", model, VIT.preprocess, 32)
    expected = probe([subject], paths, CONFIDENT, **how)[0]  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = probe([Subject("vit", model.train(), VIT.preprocess, 32)], paths, CONFIDENT, **how)[0]  # type: ignore[arg-type]
    assert found["models"] == expected["models"] and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_how_classes_were_matched_is_in_the_record(
    here: Path, command: Command, tmp_path: Path
) -> None:
    record = probed(command, tmp_path / "out", "deit.pt", "vit.pt")
    (told,) = [text for text in record["notes"] if "sorted order" in text]
    assert told.startswith("deit.pt: the model has no class names")
    assert (
        "folders are classes in sorted order"
        in Seen((tmp_path / "out" / "probe.html").read_text()).text
    )
    record = probed(command, tmp_path / "second", "vit.pt", "deit.pt")
    assert any(text.startswith("deit.pt: the model has no") for text in record["notes"])
    (Path("photos") / "a" / "notes.txt").write_text("no image")  # of the images, so told once
    record = probed(command, tmp_path / "third", "vit.pt", "deit.pt")
    (Path("photos") / "a" / "notes.txt").unlink()
    assert sum("notes.txt" in text for text in record["notes"]) == 1


def test_few_images_are_told_where_cka_is_shown(
    here: Path, command: Command, tmp_path: Path
) -> None:
    said = command("probe", "vit.pt", "--data", "photos", "--out", tmp_path, "--batch", "8")
    assert "below 100, stages that have nothing in common can look alike" in said


def test_classes_of_one_name_are_told_apart(here: Path, command: Command, tmp_path: Path) -> None:
    model = randomised(LGViT(CONFIGS["two"].replace(labels=("crane", "crane"))), 0)
    save_checkpoint(model, tmp_path / "cranes.pt")
    paths = sorted(Path("pair").rglob("*.png"))
    (tmp_path / "labels.txt").write_text(
        "\n".join(f"{path.parent.name}/{path.name} 0" for path in paths)
    )
    listed = (str(tmp_path / "cranes.pt"), "--labels", str(tmp_path / "labels.txt"))
    (about,) = probed(command, tmp_path / "out", *listed, data="pair")["models"]
    shown = [*about["easiest"], *about["hardest"]]
    assert all(row["truth"] == row["answer"] == "crane" for row in shown)
    share = sum(row["right"] for row in shown) / len(shown)
    assert share == pytest.approx(about["exits"][-1]["accuracy"])
    text = (tmp_path / "out" / "probe.html").read_text()
    gallery = text[text.index("Easiest images") :]
    assert gallery.count("✗") == sum(not row["right"] for row in shown)


def test_a_model_is_all_alike_with_a_copy_of_itself(here: Path) -> None:
    paths = sorted(Path("pair").rglob("*.png"))
    model = randomised(LGViT(VIT))
    twins = [Subject(name, model, VIT.preprocess, 32) for name in ("a", "b")]
    how = {"data": Path("pair"), "batch_size": 4, "device": "cpu"}
    record = probe(twins, paths, CONFIDENT, **how)[0]  # type: ignore[arg-type]
    matrix = np.array(record["cka"]["matrix"], float)
    half = len(matrix) // 2
    assert np.allclose(np.diag(matrix[:half, half:]), 1, atol=1e-4)
    assert record["models"][0]["exits"] == record["models"][1]["exits"]


def test_images_without_labels_leave_out_what_needs_them(
    here: Path, command: Command, tmp_path: Path
) -> None:
    said = command("probe", "vit.pt", "--data", "flat", "--out", tmp_path)
    (model,) = json.loads((tmp_path / "probe.json").read_text())["models"]
    assert not model["labelled"] and model["overthinking"] is model["classes"] is None
    assert model["exits"][0]["accuracy"] is model["exits"][0]["auroc"] is None
    assert len(model["agreement"]) == 4 and model["hardest"][0]["truth"] is None
    assert "vit.pt: images have no labels, so that accuracy, calibration" in said
    page = Seen((tmp_path / "probe.html").read_text())
    assert "images have no labels" in page.text and len(page.all("figure")) == 2
    # Without labels the maps are of what the final classifier answers.
    answers = {row["file"]: row["answer"] for name in ("easiest", "hardest") for row in model[name]}
    shown = model["relevance"]["images"]
    assert [row["class"] for row in shown] == [answers[row["file"]] for row in shown]
    assert "the class that the final classifier answers" in page.text


def test_two_classes_and_labels_in_a_file(here: Path, command: Command, tmp_path: Path) -> None:
    lines = [f"{place}.png {'ab'[place % 2]}" for place in range(10)]
    (tmp_path / "labels.txt").write_text("\n".join(lines))
    listed = ("two.pt", "--labels", str(tmp_path / "labels.txt"))
    record = probed(command, tmp_path / "out", *listed, data="flat")
    (model,) = record["models"]
    rows = model["classes"]
    assert [(row["name"], row["images"]) for row in rows] == [("a", 5), ("b", 5)]
    assert {row["class"] for row in model["relevance"]["images"]} <= {"a", "b"}


def test_one_image_is_analysed_without_cka(here: Path, command: Command, tmp_path: Path) -> None:
    record = probed(command, tmp_path / "out", "vit.pt", "--samples", "1")
    assert record["cka"] is None and record["images"]["read"] == 1
    (row, *_) = record["models"][0]["exits"]
    assert row["accuracy"] in (0, 1) and row["auroc"] is None
    assert len(record["models"][0]["easiest"]) == 1 and record["models"][0]["hardest"] == []
    page = Seen((tmp_path / "out" / "probe.html").read_text())
    assert "CKA is left out: it needs at least 4 images" in page.text
    assert len(record["models"][0]["relevance"]["images"]) == 1 and "Means of 1 image." in page.text


def test_maps_are_of_the_class_of_the_image(here: Path, command: Command, tmp_path: Path) -> None:
    record = probed(command, tmp_path / "out", "vit.pt", "--relevance", "3")
    (model,) = record["models"]
    looked = model["relevance"]
    images = looked["images"]
    files = [row["file"] for row in images]
    assert files[0] == model["easiest"][0]["file"] and files[-1] == model["hardest"][0]["file"]
    assert [row["class"] for row in images] == [Path(file).parent.name for file in files]
    lgvit = load_checkpoint("vit.pt")
    frames = [load_rgb(Path("photos") / file) for file in files]
    pixels = torch.from_numpy(network_input(frames, VIT.preprocess, 32, "float32"))
    classes = torch.tensor(["abcde".index(row["class"]) for row in images])
    page = Seen((tmp_path / "out" / "probe.html").read_text())
    for row in looked["exits"]:
        how = {"classes": classes, "method": row["method"]}
        maps = relevance(lgvit, pixels, exit=row["exit"], **how)  # type: ignore[arg-type]
        for name, measure in MEASURES.items():
            found = np.array(row[name]["values"], float)
            np.testing.assert_allclose(found, measure(maps), rtol=1e-3)
            assert row[name]["mean"] == pytest.approx(np.nanmean(found))
        assert -1 <= row["random_weights"]["mean"] <= 1
        assert row["empty"] == sum(not map.any() for map in maps)
    alts = " ".join(str(image["alt"]) for image in page.all("img"))
    assert alts.count("of the relevance for ") + alts.count("no patch is relevant") == 3 * 4
    assert "from violet to yellow" in page.text and "Means of 3 images." in page.text


def test_maps_can_be_left_out(here: Path, command: Command, tmp_path: Path) -> None:
    record = probed(command, tmp_path / "out", "none.pt", "--relevance", "0")
    assert record["models"][0]["relevance"] is None
    page = Seen((tmp_path / "out" / "probe.html").read_text())
    assert "Where exits look" not in page.text and len(page.all("img")) == 19


class Turned(Block):
    """A block that may do anything with its tokens."""


def test_what_no_method_suits_is_told_and_the_rest_is_shown(here: Path) -> None:
    """Blocks of which attention tells nothing leave Grad-CAM, where patches are read."""
    model = randomised(LGViT(VIT))
    model.backbone.blocks[1].__class__ = Turned
    subject = Subject("odd", model, VIT.preprocess, 32)
    files = sorted(Path("pair").rglob("*.png"))
    record, _, (seen,) = probe(
        [subject], files, CONFIDENT, data=Path("pair"), device="cpu", relevance=2
    )
    looked = record["models"][0]["relevance"]
    assert [row["method"] for row in looked["exits"]] == ["gradcam"] * 3  # two LPHs and the GAH
    (reason,) = looked["left_out"]
    assert reason.startswith("final: expected blocks that mix tokens in their attention, found Tur")
    assert any(f"odd, where exits look: {reason}" in text for text in notes(record))
    assert seen is not None and len(seen.columns) == 3
    write_page(here / "odd.html", record, files, [seen])
    assert "where exits look: final" in Seen((here / "odd.html").read_text()).text


def test_an_image_removed_since_is_left_out(here: Path, tmp_path: Path) -> None:
    model = randomised(LGViT(VIT))
    subject = Subject("vit", model, VIT.preprocess, 32, np.array([0, 1]))
    classes, sure = np.zeros((2, 4), np.int64), np.full((2, 4), 0.5, np.float32)
    leaving = np.ones(2, np.int64)
    answers = Answers(classes, sure, leaving, classes[:, 0], (1, 2, 3, 4), subject.labels)
    files = [tmp_path / "gone.png", next(Path("pair").rglob("*.png"))]
    seen = view(subject, answers, files, [0, 1], seed=0)
    assert seen is not None and seen.rows == [1] and seen.asked == [1]
    assert view(subject, answers, files, [0], seed=0) is None


def test_too_many_maps_are_refused(here: Path) -> None:
    with pytest.raises(UsageError, match=r"--relevance must be 0\.\.64, found 65"):
        probe([], [], CONFIDENT, data=Path("pair"), relevance=65)


def test_the_seed_decides_minibatches_and_nothing_else(here: Path) -> None:
    runs = [recorded("vit", seed=seed) for seed in (0, 0, 1)]
    assert runs[0]["cka"] == runs[1]["cka"] != runs[2]["cka"]
    assert runs[0]["models"] == runs[1]["models"]
    for a, b in zip(runs[0]["models"][0]["exits"], runs[2]["models"][0]["exits"], strict=True):
        assert a["accuracy"] == b["accuracy"] and a["confidence"] == pytest.approx(b["confidence"])


def test_json_is_all_there_is_on_standard_output(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from lgvit_edge.cli.app import main

    line = ["probe", "none.pt", "--data", "photos", "--out", str(tmp_path / "new" / "out")]
    monkeypatch.setattr(sys, "argv", ["lgvit-edge", *line, "--json"])
    with pytest.raises(SystemExit):
        main()
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads((tmp_path / "new" / "out" / "probe.json").read_text())
    assert "wrote" in err


@pytest.mark.parametrize(
    ("line", "status", "told"),
    [
        ("gone.pt --data photos", 1, "gone.pt"),
        ("vit.pt --data gone", 1, "no such folder: gone"),
        ("vit.pt --data empty", 1, "empty holds no images"),
        ("vit.pt --data damaged", 1, "none of 1 images can be read"),
        ("vit.pt gone.pt --data photos", 1, "gone.pt"),
        ("vit.pt own_convnet:gone --data photos", 2, "own_convnet:gone makes no network"),
        ("vit.pt own_convnet:wrong --data photos", 2, "Linear cannot run images"),
        ("vit.pt own_convnet:large --data photos", 2, "with resize=48 or more"),
        ("vit.pt --data photos --labels vit.pt", 1, "vit.pt"),
        ("vit.pt --data photos --policy fly:1", 2, "fly"),
        ("vit.pt --data photos --policy confidence:0.1,0.2", 2, "expected one threshold or 3"),
        ("vit.pt --data photos --batch 3", 2, "batch"),
        ("vit.pt --data photos --relevance 65", 2, "relevance"),
        ("vit.pt --data photos --device cuda", 2, "finds no GPU"),
        ("vit.pt --data photos --device moon", 2, "--device must be auto, cpu or cuda"),
        ("vit.pt --data photos --num-heads 3", 1, "tells its attention heads"),
        (f"vit.pt --data photos --seed {2**63}", 2, "seed"),
        ("out.bundle --data photos", 1, "is a bundle, expected the checkpoint"),
    ],
)
def test_what_cannot_be_probed_is_told_in_one_line(
    line: str, status: int, told: str, here: Path, command: Command, tmp_path: Path
) -> None:
    (here / "empty").mkdir(exist_ok=True)
    (here / "damaged").mkdir(exist_ok=True)
    (here / "damaged" / "x.png").write_bytes(b"x")
    (here / "out.bundle").mkdir(exist_ok=True)
    (here / "out.bundle" / "manifest.json").write_text("{}")
    said = command("probe", *line.split(), "--out", tmp_path / "out", status=status)
    assert told in said, said
    assert not (tmp_path / "out").exists()


def test_an_interrupted_write_leaves_the_old_files(
    here: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("probe.html", "probe.json"):
        (tmp_path / name).write_text("old")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    line = ("probe", "none.pt", "--data", "flat", "--out", tmp_path)
    assert "No space left on device" in command(*line, status=1)
    left = {p.name: p.read_text() for p in tmp_path.iterdir()}
    assert left == {"probe.html": "old", "probe.json": "old"}


def test_a_folder_in_place_of_a_file_is_told_before_any_work(
    here: Path, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "probe.json").mkdir()
    said = command("probe", "none.pt", "--data", "flat", "--out", tmp_path, status=2)
    assert "--out: expected a file, found a folder" in said and "probing" not in said


def test_numbers_that_are_not_finite_are_refused(
    here: Path, command: Command, tmp_path: Path
) -> None:
    model = randomised(LGViT(CONFIGS["none"]))
    with torch.no_grad():
        model.backbone.final.classifier.linears[0].weight.fill_(3e38)  # type: ignore[union-attr, index, operator]
    save_checkpoint(model, tmp_path / "huge.pt")
    line = ("probe", tmp_path / "huge.pt", "--data", "photos", "--out", tmp_path / "out")
    assert "answers with numbers that are not finite" in command(*line, status=1)


def test_memory_is_that_of_a_minibatch(here: Path, tmp_path: Path) -> None:
    """Nothing is kept of pixels, logits or features once a minibatch was run."""
    model = randomised(LGViT(VIT))
    subject = Subject("vit", model, model.config.preprocess, model.config.image_size)
    paths = [p for p in sorted(Path("photos").glob("*/*.png")) if p.stat().st_size > 100]
    seen: list[tuple[int, int]] = []

    def count(done: int, total: int, detail: str = "") -> None:
        if done % 8 == 0:
            gc.collect()
            # Other tests leave tensors of their own types, which have no size.
            held = [o for o in gc.get_objects() if type(o) is torch.Tensor]
            pixels = tracemalloc.get_traced_memory()[0]  # numpy's, which the collector lacks
            seen.append((sum(tensor.nbytes for tensor in held), pixels))

    tracemalloc.start()
    try:
        found = collect(
            [subject],
            paths * 10,
            Never(),
            batch_size=8,
            seed=0,
            device=torch.device("cpu"),
            progress=count,
        )
    finally:
        tracemalloc.stop()
    assert found.cka is not None and found.cka.images == 184 + 8 - 2
    tensors, arrays = zip(*seen[2:], strict=True)
    assert max(tensors) == min(tensors)
    crops = 3 * subject.size**2 * (len(paths) * 10 - 24)
    assert arrays[-1] - arrays[0] < crops / 4  # a few numbers of each image stay


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_a_browser_clips_nothing_and_reports_no_error(
    width: int, scheme: str, compared: tuple[Path, str], tmp_path: Path
) -> None:
    look = in_browser(compared[0] / "probe.html", tmp_path, width, scheme)
    assert look["pictures"] == 6 and look["texts"] > 100
    assert look["page"][0] <= look["page"][1]
    assert (look["overflow"], look["clipped"], look["overlaps"]) == ([], [], [])
