"""Weights in shards: read as one, and every way an index can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import equations as eq
import foreign_states as foreign
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lgvit_edge.errors import CheckpointError
from lgvit_edge.model import load_backbone, load_checkpoint

State = dict[str, Tensor]
HEADS, EPS = foreign.HEADS, foreign.EPS

BIN, SAFE = "pytorch_model.bin", "model.safetensors"
both_formats = pytest.mark.parametrize("weights", [BIN, SAFE])


@pytest.fixture(scope="module")
def state() -> State:
    return foreign.huggingface_state("vit", tokens=1, classifiers=foreign.ONE, depth=2).state


def write_shards(folder: Path, state: State, weights: str, count: int = 3) -> dict[str, Any]:
    """Every third tensor in the same shard; returns the index."""
    folder.mkdir(exist_ok=True)
    config = foreign.HF_CONFIG | {"model_type": "vit", "num_hidden_layers": 2}
    (folder / "config.json").write_text(json.dumps(config))
    stem, suffix = weights.rsplit(".", 1)
    places = {
        name: f"{stem}-{i % count + 1:05}-of-{count:05}.{suffix}" for i, name in enumerate(state)
    }
    for file in sorted(set(places.values())):
        part = {name: state[name] for name in state if places[name] == file}
        (torch.save if weights == BIN else save_file)(part, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{weights}.index.json").write_text(json.dumps(index))
    return index


@both_formats
def test_shards_are_one_model(tmp_path: Path, state: State, weights: str) -> None:
    write_shards(tmp_path / "vit", state, weights)
    model, pixels = load_backbone(tmp_path / "vit"), foreign.random_pixels(foreign.IMAGE)
    last = eq.hidden_states(state, pixels, "vit", heads=HEADS, depth=2, eps=EPS)[-1]
    eq.assert_reproduced(model(pixels), eq.final_logits(state, "vit", last, EPS))


def test_an_authors_directory_may_be_in_shards(tmp_path: Path) -> None:
    make = foreign.huggingface_state("deit", tokens=1, classifiers=foreign.ONE, depth=2)
    foreign.add_exit(make, 0, "linear", foreign.ONE)
    write_shards(tmp_path / "authors", make.state, BIN)
    config = foreign.HF_CONFIG | {"num_hidden_layers": 2, "model_type": "deit", "backbone": "ViT"}
    config |= {"highway_type": "linear", "position_exits": "[1]", "num_early_exits": 1}
    (tmp_path / "authors" / "config.json").write_text(json.dumps(config))
    model, pixels = load_checkpoint(tmp_path / "authors"), foreign.random_pixels(foreign.IMAGE)
    states = eq.hidden_states(make.state, pixels, "deit", heads=HEADS, depth=2, eps=EPS)
    expected = eq.exit_logits(make.state, 0, "linear", states[1], tokens=1, heads=HEADS, eps=EPS)
    eq.assert_reproduced(model.exit_logits(pixels)[:, 0], expected)


@both_formats
@pytest.mark.parametrize("damage", [None, 300])
def test_a_shard_that_is_missing_or_cut_off_is_named(
    tmp_path: Path, state: State, weights: str, damage: int | None
) -> None:
    index = write_shards(tmp_path / "vit", state, weights)
    file = tmp_path / "vit" / sorted(set(index["weight_map"].values()))[1]
    content = file.read_bytes()
    file.unlink()
    if damage:
        file.write_bytes(content[:damage])
    message = file.name if damage else f"no such checkpoint: .*{file.name}"
    with pytest.raises(CheckpointError, match=message):
        load_backbone(tmp_path / "vit")


def refused(
    folder: Path, state: State, message: str | None, changes: dict[str, str], weights: str = BIN
) -> None:
    """Load shards whose index has other places for some tensors."""
    index = write_shards(folder, state, weights)
    index["weight_map"] |= changes
    (folder / f"{weights}.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        load_backbone(folder)


@both_formats
def test_a_tensor_in_no_shard_is_named(tmp_path: Path, state: State, weights: str) -> None:
    first = weights.replace(".", "-00001-of-00003.")
    message = r"index\.json: expected vit\.lost in its shards, found in none"
    refused(tmp_path / "vit", state, message, {"vit.lost": first}, weights)


def test_a_tensor_the_index_forgets_is_no_secret(tmp_path: Path, state: State) -> None:
    index = write_shards(tmp_path / "vit", state | {"vit.extra": torch.zeros(1)}, BIN)
    del index["weight_map"]["vit.extra"]
    (tmp_path / "vit" / f"{BIN}.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"unexpected vit\.extra"):
        load_backbone(tmp_path / "vit")


@pytest.mark.parametrize("name", ["../evil", "../evil.bin", "sub/evil.bin", "/evil.bin", "..", "."])
def test_shards_lie_beside_their_index(tmp_path: Path, state: State, name: str) -> None:
    (tmp_path / "vit" / "sub").mkdir(parents=True)
    for place in ("evil", "evil.bin", "vit/sub/evil.bin"):
        torch.save(state, tmp_path / place)
    message = rf"expected names of files beside it, found {name!r}"
    refused(tmp_path / "vit", state, message, dict.fromkeys(state, name))


@pytest.mark.parametrize("name", ["", "nul\0byte.bin", "config.json", "x" * 5000, "missing.bin"])
def test_shards_that_are_no_weights(tmp_path: Path, state: State, name: str) -> None:
    refused(tmp_path / "vit", state, None, {"classifier.bias": name})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "expected a JSON object, found a list"),
        ("{}", "expected a weight_map of file names"),
        ('{"weight_map": []}', "expected a weight_map of file names"),
        ('{"weight_map": {"a": 3}}', "expected a weight_map of file names"),
        ('{"weight_map": {"a": ["b.bin"]}}', "expected a weight_map of file names"),
        ('{"weight_map": {"a": null}}', "expected a weight_map of file names"),
        ('{"weight_map": {}}', "expected a state dict of tensors .*, found nothing"),
    ],
)
@both_formats
def test_an_index_of_another_form(
    tmp_path: Path, state: State, weights: str, text: str, message: str
) -> None:
    write_shards(tmp_path / "vit", state, weights)
    (tmp_path / "vit" / f"{weights}.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_backbone(tmp_path / "vit")
