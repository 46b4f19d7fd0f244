"""Foreign ViT and DeiT give the logits their authors' equations give, at every exit.

The authors' own outputs for one small ViT are stored in ``data/vit_lgvit.npz``. Everything else is
compared with ``equations.py``, straight from the published equations, on random weights under the
foreign names.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import equations as eq
import foreign_states as foreign
import numpy as np
import pytest
import torch
from torch import Tensor

from lgvit_edge.architecture.config import ExitConfig
from lgvit_edge.model import load_backbone, load_checkpoint
from lgvit_edge.model.segments import cut

REFERENCE = Path(__file__).parents[2] / "data" / "vit_lgvit.npz"

HEADS, DEPTH, EPS, ONE, TWO = foreign.HEADS, foreign.DEPTH, foreign.EPS, foreign.ONE, foreign.TWO
both_formats = pytest.mark.parametrize("weights", ["pytorch_model.bin", "model.safetensors"])


@pytest.fixture(scope="module")
def authors() -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Configuration, weights, and what else the file holds."""
    with np.load(REFERENCE) as file:
        config = json.loads(bytes(file["config"]))
        arrays = {name: torch.from_numpy(file[name]) for name in file.files if name != "config"}
    prefix = "state/"
    state = {n.removeprefix(prefix): t for n, t in arrays.items() if n.startswith(prefix)}
    return config, state, arrays


@both_formats
def test_authors_vit_is_reproduced_at_all_exits(tmp_path: Path, weights: str, authors: Any) -> None:
    config, state, given = authors
    model = load_checkpoint(foreign.write_directory(tmp_path / "authors", config, state, weights))
    assert not model.training
    assert [(e.block, e.head, e.size) for e in model.config.exits] == [
        *[(4, "lph", 3), (5, "lph", 3), (6, "lph", 0), (7, "lph", 0)],
        *[(8, "gah", 2), (9, "gah", 2), (10, "gah", 3), (11, "gah", 3)],
    ]
    pixels, final = given["pixel_values"], given["final_logits"]
    expected = torch.cat([given["exit_logits"], final[:, None]], dim=1)
    eq.assert_reproduced(model.exit_logits(pixels), expected)
    eq.assert_reproduced(model(pixels[:1]), final[:1])  # batch 1, as it was computed


def test_the_equations_reproduce_the_authors_file_too(authors: Any) -> None:
    _, state, given = authors
    kinds = [*["conv1_1"] * 2, *["conv2_1"] * 2, *["attention_r2"] * 2, *["attention_r3"] * 2]
    states = eq.hidden_states(state, given["pixel_values"], "deit", heads=4, depth=12, eps=1e-12)
    logits = [
        eq.exit_logits(state, k, kind, states[4 + k], tokens=1, heads=4, eps=1e-12)
        for k, kind in enumerate(kinds)
    ]
    eq.assert_reproduced(torch.stack(logits, dim=1), given["exit_logits"])


LGVIT = {
    2: ["conv1_1", "attention_r2"],
    4: ["conv1_1", "conv2_1", "attention_r2", "attention_r3"],
    6: ["conv1_1", "conv2_1", *["attention_r2"] * 2, *["attention_r3"] * 2],
    8: [*["conv1_1"] * 2, *["conv2_1"] * 2, *["attention_r2"] * 2, *["attention_r3"] * 2],
}
# What we call their heads.
OURS: dict[str, tuple[Any, ...]] = {"linear": ("mlp",), "vit": ("encoder",)}
OURS |= {"conv_normal": ("conv",), "self_attention": ("attention",)}
OURS |= {"conv1_1": ("lph", 3), "conv2_1": ("lph", 0)}
OURS |= {f"attention_r{window}": ("gah", window) for window in (1, 2, 3)}
BLOCKS = {2: [3, 6], 4: [1, 2, 5, 7], 6: [1, 2, 3, 5, 7, 8], 8: [1, 2, 3, 4, 5, 6, 7, 8]}
DEEP = 9


def check_directory(
    folder: Path, backbone: str, highway: str, kinds: list[str], weights: str, **changes: Any
) -> Any:
    """Write an authors' directory, load it and compare every exit; returns the model."""
    tokens, names = (1, ONE) if backbone == "ViT" else (2, TWO)
    make = foreign.huggingface_state("deit", tokens=tokens, classifiers=names, depth=DEEP)
    make.linear("deit.pooler.dense", foreign.D, foreign.D)  # in the authors' files, read by nothing
    for k, kind in enumerate(kinds):
        foreign.add_exit(make, k, kind, names)
    state, blocks = make.state, BLOCKS[len(kinds)]
    config = foreign.HF_CONFIG | dict(backbone=backbone, model_type="deit", highway_type=highway)
    config |= dict(num_hidden_layers=DEEP, num_early_exits=len(kinds), position_exits=str(blocks))
    config |= changes
    eps, pixels = config["layer_norm_eps"], foreign.random_pixels(foreign.IMAGE)
    states = eq.hidden_states(state, pixels, "deit", heads=HEADS, depth=DEEP, eps=eps)
    expected = [
        eq.exit_logits(state, k, kind, states[block], tokens=tokens, heads=HEADS, eps=eps)
        for k, (kind, block) in enumerate(zip(kinds, blocks, strict=True))
    ]
    expected.append(eq.final_logits(state, "deit", states[-1], eps))

    model = load_checkpoint(foreign.write_directory(folder, config, state, weights))

    assert not model.training
    assert [exit.block for exit in model.config.exits] == blocks
    with torch.no_grad():
        trained = model.exit_logits(pixels)
        deployed = eq.chain(cut(model, input="float32"), pixels)
    assert trained.shape[1] == len(kinds) + 1
    for m, logits in enumerate(expected):
        eq.assert_reproduced(trained[:, m], logits)
        eq.assert_reproduced(deployed[:, m], logits)
    return model


@pytest.mark.parametrize("eps", [1e-12, 1e-2])
@pytest.mark.parametrize("count", list(LGVIT))
@pytest.mark.parametrize("backbone", ["ViT", "DeiT"])
def test_authors_lgvit(tmp_path: Path, backbone: str, count: int, eps: float) -> None:
    kinds, weights = LGVIT[count], "pytorch_model.bin" if count < 8 else "model.safetensors"
    folder = tmp_path / "authors"
    model = check_directory(folder, backbone, "LGViT", kinds, weights, layer_norm_eps=eps)
    tokens = {"ViT": 1, "DeiT": 2}[backbone]
    assert (model.config.family, model.config.prefix_tokens) == (backbone.lower(), tokens)
    assert model.config.labels == tuple(f"thing {i}" for i in range(foreign.CLASSES))


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("backbone", ["ViT", "DeiT"])
def test_authors_model_with_one_kind_of_head(tmp_path: Path, backbone: str, kind: str) -> None:
    # The large eps shows which norms take it from the configuration.
    folder, weights = tmp_path / "authors", "model.safetensors"
    model = check_directory(folder, backbone, kind, [kind] * 4, weights, layer_norm_eps=1e-2)
    assert model.config.exits[0] == ExitConfig(1, *OURS[kind])


@pytest.mark.parametrize("backbone", ["ViT", "DeiT"])
def test_positions_may_be_a_list_and_their_number_absent(tmp_path: Path, backbone: str) -> None:
    changes = {"position_exits": [1, 2, 5, 7], "num_labels": foreign.CLASSES}
    check_directory(tmp_path / "a", backbone, "LGViT", LGVIT[4], "pytorch_model.bin", **changes)


@both_formats
@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize(
    ("family", "names"),
    [("vit", ONE), ("deit", TWO), ("deit", ONE)],
    ids=["vit", "deit with teacher", "deit with one classifier"],
)
def test_huggingface(
    tmp_path: Path, family: str, names: tuple[str, ...], qkv_bias: bool, weights: str
) -> None:
    tokens = {"vit": 1, "deit": 2}[family]
    state = foreign.huggingface_state(family, tokens=tokens, classifiers=names).state
    if not qkv_bias:
        state = {n: t for n, t in state.items() if not re.search(r"(query|key|value)\.bias$", n)}
    config = foreign.HF_CONFIG | {"model_type": family, "qkv_bias": qkv_bias}
    model = load_backbone(foreign.write_directory(tmp_path / "hf", config, state, weights))
    assert (model.config.family, model.config.exits) == (family, ())
    assert (model.config.prefix_tokens, model.config.classifiers) == (tokens, len(names))
    pixels = foreign.random_pixels(foreign.IMAGE)
    states = eq.hidden_states(state, pixels, family, heads=HEADS, depth=DEPTH, eps=EPS)
    eq.assert_reproduced(model(pixels), eq.final_logits(state, family, states[-1], EPS))


@pytest.mark.parametrize(
    ("file", "arch", "classes", "parameters"),
    [
        ("deit_tiny_patch16_224_in1k_fp32.pth", "deit-tiny", 1000, 5_717_416),
        ("vit_tiny_patch16_224_tinyimagenet200_fp32.pth", "vit-tiny", 200, 5_563_016),
    ],
)
def test_published_weights_load(
    data_root: Path, file: str, arch: str, classes: int, parameters: int
) -> None:
    path = data_root / "weights" / file
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    model = load_backbone(path, arch=arch)
    assert model.config.num_classes == classes
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_copy_of_the_reference_is_the_shared_one(data_root: Path) -> None:
    shared = data_root / "reference" / "vit_lgvit.npz"
    if not shared.is_file():
        pytest.skip(f"{shared} is not there")
    assert shared.read_bytes() == REFERENCE.read_bytes()
