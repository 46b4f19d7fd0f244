"""Foreign checkpoints give the logits their authors' equations give.

The authors' own outputs for one small ViT are stored in ``data/vit_lgvit.npz``. Everything else is
compared with the functions below, written straight from the published equations, one line each,
on random weights under the foreign names. They share no code with the package.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from lgvit_edge.config import ExitConfig
from lgvit_edge.errors import CheckpointError
from lgvit_edge.model import load_backbone, load_checkpoint

REFERENCE = Path(__file__).parent / "data" / "vit_lgvit.npz"
State = dict[str, Tensor]


def assert_reproduced(found: Tensor, expected: Tensor) -> None:
    """Equal to 1e-4, relative where the expected value is larger than 1."""
    assert found.shape == expected.shape
    worst = ((found - expected).abs() / expected.abs().clamp(min=1.0)).max().item()
    assert worst <= 1e-4
    assert expected.std() > 0.1  # a reference that says nothing would pass too


def write_directory(folder: Path, config: dict[str, Any], state: State, weights: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if weights == "model.safetensors":
        save_file(state, folder / weights)
    else:
        torch.save(state, folder / weights)
    return folder


both_formats = pytest.mark.parametrize("weights", ["pytorch_model.bin", "model.safetensors"])


# The authors' file.


@both_formats
def test_authors_vit_is_reproduced_at_every_exit(tmp_path: Path, weights: str) -> None:
    with np.load(REFERENCE) as reference:
        state = {
            name.removeprefix("state/"): torch.from_numpy(reference[name])
            for name in reference.files
            if name.startswith("state/")
        }
        config = json.loads(bytes(reference["config"]))
        pixels = torch.from_numpy(reference["pixel_values"])
        exits = torch.from_numpy(reference["exit_logits"])
        final = torch.from_numpy(reference["final_logits"])
    model = load_checkpoint(write_directory(tmp_path / "authors", config, state, weights))

    assert not model.training
    assert [(e.block, e.head, e.kernel or e.window) for e in model.config.exits] == [
        *[(4, "lph", 3), (5, "lph", 3), (6, "lph", 0), (7, "lph", 0)],
        *[(8, "gah", 2), (9, "gah", 2), (10, "gah", 3), (11, "gah", 3)],
    ]
    with torch.no_grad():
        assert_reproduced(model.exit_logits(pixels), torch.cat([exits, final[:, None]], dim=1))
        assert_reproduced(model(pixels[:1]), final[:1])  # batch 1, as it was computed


def test_the_functions_below_reproduce_the_authors_file_too() -> None:
    with np.load(REFERENCE) as reference:
        state = {
            name.removeprefix("state/"): torch.from_numpy(reference[name])
            for name in reference.files
            if name.startswith("state/")
        }
        pixels = torch.from_numpy(reference["pixel_values"])
        expected = torch.from_numpy(reference["exit_logits"])
    kinds = [*["lph3"] * 2, *["lph0"] * 2, *["gah2"] * 2, *["gah3"] * 2]
    states = hidden_states(state, pixels, "deit", heads=4, depth=12, eps=1e-12)
    found = [exit_logits(state, k, kind, states[4 + k], tokens=1) for k, kind in enumerate(kinds)]
    assert_reproduced(torch.stack(found, dim=1), expected)


# Straight-line equations on foreign state dicts.


def linear(state: State, name: str, x: Tensor) -> Tensor:
    y = x @ state[f"{name}.weight"].T
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def layer_norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return normed * state[f"{name}.weight"] + state[f"{name}.bias"]


def batch_norm(state: State, name: str, x: Tensor) -> Tensor:
    """On channels-last ``[B, H, W, D]``."""
    normed = (x - state[f"{name}.running_mean"]) / (state[f"{name}.running_var"] + 1e-5).sqrt()
    return normed * state[f"{name}.weight"] + state[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """``[B, T, D]`` each; head after head, each on its own columns."""
    width = q.shape[-1] // heads
    mixed = []
    for h in range(heads):
        columns = slice(h * width, (h + 1) * width)
        scores = q[..., columns] @ k[..., columns].transpose(1, 2) * width**-0.5
        mixed.append(torch.softmax(scores, dim=-1) @ v[..., columns])
    return torch.cat(mixed, dim=-1)


def embed(
    state: State, pixels: Tensor, projection: str, position: str, tokens: list[str]
) -> Tensor:
    kernel = state[f"{projection}.weight"]
    patches = functional.conv2d(
        pixels, kernel, state[f"{projection}.bias"], stride=kernel.shape[-1]
    )
    rows = [state[name].expand(len(pixels), 1, -1) for name in tokens]
    return torch.cat([*rows, patches.flatten(2).transpose(1, 2)], dim=1) + state[position]


def hidden_states(
    state: State, pixels: Tensor, prefix: str, *, heads: int, depth: int, eps: float
) -> list[Tensor]:
    """Hugging Face names: the embedding, then the output of each block."""
    e = f"{prefix}.embeddings"
    names = [n for n in (f"{e}.cls_token", f"{e}.distillation_token") if n in state]
    x = embed(state, pixels, f"{e}.patch_embeddings.projection", f"{e}.position_embeddings", names)
    states = [x]
    for i in range(depth):
        b = f"{prefix}.encoder.layer.{i}"
        n = layer_norm(state, f"{b}.layernorm_before", x, eps)
        q, k, v = (
            linear(state, f"{b}.attention.attention.{part}", n)
            for part in ("query", "key", "value")
        )
        x = x + linear(state, f"{b}.attention.output.dense", attend(q, k, v, heads))
        n = layer_norm(state, f"{b}.layernorm_after", x, eps)
        m = gelu(linear(state, f"{b}.intermediate.dense", n))
        x = x + linear(state, f"{b}.output.dense", m)
        states.append(x)
    return states


def lph(state: State, mlp: str, p: Tensor) -> Tensor:
    """1x1 -> GELU -> BN -> dw3x3 -> GELU -> BN -> 1x1 -> BN, plus p; ``[B, H, W, D]``."""

    def point(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"][:, :, 0, 0].T + state[f"{name}.bias"]

    x = batch_norm(state, f"{mlp}.conv1.2", gelu(point(f"{mlp}.conv1.0", p)))
    if f"{mlp}.proj.weight" in state:
        kernel, bias = state[f"{mlp}.proj.weight"], state[f"{mlp}.proj.bias"]
        height, width = x.shape[1:3]
        padded = functional.pad(x, (0, 0, 1, 1, 1, 1))
        x = bias + sum(
            padded[:, i : i + height, j : j + width] * kernel[:, 0, i, j]
            for i in range(3)
            for j in range(3)
        )
        x = batch_norm(state, f"{mlp}.proj_bn", gelu(x))
    return batch_norm(state, f"{mlp}.conv2.1", point(f"{mlp}.conv2.0", x)) + p


def gah(state: State, mlp: str, p: Tensor, window: int) -> Tensor:
    """Subsample, 8-head self-attention without qkv bias, projection; ``[B, N', D]``."""
    x = p[:, ::window, ::window].flatten(1, 2)
    q, k, v = (x @ state[f"{mlp}.qkv.weight"].T).split(p.shape[-1], dim=-1)
    return linear(state, f"{mlp}.proj", attend(q, k, v, heads=8))


def exit_logits(state: State, k: int, kind: str, hidden: Tensor, *, tokens: int) -> Tensor:
    """One exit of the authors' LGViT; ``kind`` is lph or gah and its kernel or window."""
    name = f"deit.encoder.highway.{k}"
    side = round((hidden.shape[1] - tokens) ** 0.5)
    p = hidden[:, tokens:].unflatten(1, (side, side))
    body, size = kind[:3], int(kind[3:])
    r = lph(state, f"{name}.mlp", p) if body == "lph" else gah(state, f"{name}.mlp", p, size)
    mean = r.reshape(len(r), -1, r.shape[-1]).mean(1)
    if tokens == 1:
        return linear(state, f"{name}.classifier", mean + hidden[:, 0])
    a = linear(state, f"{name}.cls_classifier", mean + hidden[:, 0])
    b = linear(state, f"{name}.distillation_classifier", mean + hidden[:, 1])
    return (a + b) / 2


# Random state dicts under foreign names.


class Maker:
    """Fills a state dict with seeded random numbers, named as the caller says."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.state: State = {}

    def normal(self, name: str, *shape: int, std: float = 0.4, mean: float = 0.0) -> None:
        self.state[name] = mean + std * torch.randn(shape, generator=self.generator)

    def linear(self, name: str, out: int, *fan_in: int, bias: bool = True) -> None:
        self.normal(f"{name}.weight", out, *fan_in, std=float(np.prod(fan_in)) ** -0.5)
        if bias:
            self.normal(f"{name}.bias", out)

    def norm(self, name: str, dim: int) -> None:
        self.normal(f"{name}.weight", dim, mean=1.0, std=0.2)
        self.normal(f"{name}.bias", dim)

    def batch_norm(self, name: str, dim: int) -> None:
        self.norm(name, dim)
        self.normal(f"{name}.running_mean", dim)
        self.state[f"{name}.running_var"] = torch.rand(dim, generator=self.generator) + 0.5
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)


D, HEADS, DEPTH, MLP, PATCH, IMAGE, CLASSES = 32, 4, 6, 48, 4, 28, 5  # a grid of 7 x 7
EPS = 1e-12
HF_CONFIG = {
    "hidden_size": D,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": MLP,
    "image_size": IMAGE,
    "patch_size": PATCH,
    "hidden_act": "gelu",
    "layer_norm_eps": EPS,
    "qkv_bias": True,
    "id2label": {str(i): f"thing {i}" for i in range(CLASSES)},
}


def huggingface_state(prefix: str, *, tokens: int, classifiers: tuple[str, ...]) -> Maker:
    make = Maker(seed=tokens)
    e = f"{prefix}.embeddings"
    for token in ("cls_token", "distillation_token")[:tokens]:
        make.normal(f"{e}.{token}", 1, 1, D)
    make.normal(f"{e}.position_embeddings", 1, (IMAGE // PATCH) ** 2 + tokens, D)
    make.linear(f"{e}.patch_embeddings.projection", D, 3, PATCH, PATCH)
    for i in range(DEPTH):
        b = f"{prefix}.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            make.linear(f"{b}.attention.attention.{part}", D, D)
        make.linear(f"{b}.attention.output.dense", D, D)
        make.norm(f"{b}.layernorm_before", D)
        make.norm(f"{b}.layernorm_after", D)
        make.linear(f"{b}.intermediate.dense", MLP, D)
        make.linear(f"{b}.output.dense", D, MLP)
    make.norm(f"{prefix}.layernorm", D)
    for name in classifiers:
        make.linear(name, CLASSES, D)
    return make


def add_exit(make: Maker, k: int, kind: str, classifiers: tuple[str, ...]) -> None:
    name = f"deit.encoder.highway.{k}"
    if kind.startswith("lph"):
        make.linear(f"{name}.mlp.conv1.0", D, D, 1, 1)
        make.batch_norm(f"{name}.mlp.conv1.2", D)
        make.linear(f"{name}.mlp.conv2.0", D, D, 1, 1)
        make.batch_norm(f"{name}.mlp.conv2.1", D)
        if kind == "lph3":
            make.linear(f"{name}.mlp.proj", D, 1, 3, 3)
            make.batch_norm(f"{name}.mlp.proj_bn", D)
    else:
        make.linear(f"{name}.mlp.qkv", 3 * D, D, bias=False)
        make.linear(f"{name}.mlp.proj", D, D)
    for classifier in classifiers:
        make.linear(f"{name}.{classifier}", CLASSES, D)


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(2, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(5))


TWO = ("cls_classifier", "distillation_classifier")


@both_formats
def test_authors_deit_with_every_head(tmp_path: Path, pixels: Tensor, weights: str) -> None:
    kinds = ["lph3", "lph0", "gah2", "gah3"]
    make = huggingface_state("deit", tokens=2, classifiers=TWO)
    make.linear("deit.pooler.dense", D, D)  # present in the authors' files, read by nothing
    for k, kind in enumerate(kinds):
        add_exit(make, k, kind, TWO)
    config = HF_CONFIG | {
        "backbone": "DeiT",
        "model_type": "deit",
        "highway_type": "LGViT",
        "num_early_exits": 4,
        "position_exits": "[1,2,4,5]",
    }
    state = make.state
    states = hidden_states(state, pixels, "deit", heads=HEADS, depth=DEPTH, eps=EPS)
    expected = [
        exit_logits(state, k, kind, states[block], tokens=2)
        for k, (kind, block) in enumerate(zip(kinds, (1, 2, 4, 5), strict=True))
    ]
    normed = layer_norm(state, "deit.layernorm", states[-1], EPS)
    final = [linear(state, name, normed[:, i]) for i, name in enumerate(TWO)]
    expected.append((final[0] + final[1]) / 2)

    model = load_checkpoint(write_directory(tmp_path / "deit", config, state, weights))

    assert (model.config.family, model.config.prefix_tokens) == ("deit", 2)
    assert model.config.labels == tuple(f"thing {i}" for i in range(CLASSES))
    with torch.no_grad():
        assert_reproduced(model.exit_logits(pixels), torch.stack(expected, dim=1))


@pytest.mark.parametrize(
    ("highway", "kind", "exit"),
    [
        ("conv1_1", "lph3", ExitConfig(3, "lph", kernel=3)),
        ("conv2_1", "lph0", ExitConfig(3, "lph", kernel=0)),
        ("attention_r1", "gah1", ExitConfig(3, "gah", window=1)),
    ],
)
def test_authors_vit_with_one_kind_of_head_for_all_exits(
    tmp_path: Path, pixels: Tensor, highway: str, kind: str, exit: ExitConfig
) -> None:
    make = huggingface_state("deit", tokens=1, classifiers=("classifier",))
    add_exit(make, 0, kind, ("classifier",))
    config = HF_CONFIG | {"backbone": "ViT", "highway_type": highway, "position_exits": "[3]"}
    folder = write_directory(tmp_path / "vit", config, make.state, "pytorch_model.bin")
    model = load_checkpoint(folder)
    states = hidden_states(make.state, pixels, "deit", heads=HEADS, depth=DEPTH, eps=EPS)
    expected = exit_logits(make.state, 0, kind, states[3], tokens=1)
    assert model.config.exits == (exit,)
    with torch.no_grad():
        assert_reproduced(model.exit_logits(pixels)[:, 0], expected)


# Hugging Face backbones.


@both_formats
def test_huggingface_vit(tmp_path: Path, pixels: Tensor, weights: str) -> None:
    state = huggingface_state("vit", tokens=1, classifiers=("classifier",)).state
    config = HF_CONFIG | {"model_type": "vit"}
    model = load_backbone(write_directory(tmp_path / "vit", config, state, weights))
    last = hidden_states(state, pixels, "vit", heads=HEADS, depth=DEPTH, eps=EPS)[-1]
    normed = layer_norm(state, "vit.layernorm", last, EPS)
    assert (model.config.family, model.config.exits) == ("vit", ())
    with torch.no_grad():
        assert_reproduced(model(pixels), linear(state, "classifier", normed[:, 0]))


def test_huggingface_vit_without_qkv_bias(tmp_path: Path, pixels: Tensor) -> None:
    state = huggingface_state("vit", tokens=1, classifiers=("classifier",)).state
    for i in range(DEPTH):
        for part in ("query", "key", "value"):
            del state[f"vit.encoder.layer.{i}.attention.attention.{part}.bias"]
    config = HF_CONFIG | {"model_type": "vit", "qkv_bias": False}
    model = load_backbone(write_directory(tmp_path / "vit", config, state, "pytorch_model.bin"))
    last = hidden_states(state, pixels, "vit", heads=HEADS, depth=DEPTH, eps=EPS)[-1]
    normed = layer_norm(state, "vit.layernorm", last, EPS)
    with torch.no_grad():
        assert_reproduced(model(pixels), linear(state, "classifier", normed[:, 0]))


@pytest.mark.parametrize("names", [TWO, ("classifier",)], ids=["with teacher", "one classifier"])
def test_huggingface_deit(tmp_path: Path, pixels: Tensor, names: tuple[str, ...]) -> None:
    state = huggingface_state("deit", tokens=2, classifiers=names).state
    config = HF_CONFIG | {"model_type": "deit"}
    model = load_backbone(write_directory(tmp_path / "deit", config, state, "model.safetensors"))
    last = hidden_states(state, pixels, "deit", heads=HEADS, depth=DEPTH, eps=EPS)[-1]
    normed = layer_norm(state, "deit.layernorm", last, EPS)
    each = [linear(state, name, normed[:, i]) for i, name in enumerate(names)]
    assert (model.config.prefix_tokens, model.config.classifiers) == (2, len(names))
    with torch.no_grad():
        assert_reproduced(model(pixels), sum(each) / torch.tensor(len(each)))


# timm backbones: query, key and value stacked, LayerNorm eps 1e-6, 64 numbers per head.


def timm_state(dim: int, depth: int, *, distilled: bool, qkv_bias: bool = True) -> State:
    make = Maker(seed=9)
    make.normal("cls_token", 1, 1, dim)
    if distilled:
        make.normal("dist_token", 1, 1, dim)
    make.normal("pos_embed", 1, 9 + 1 + distilled, dim)
    make.linear("patch_embed.proj", dim, 3, 16, 16)
    for i in range(depth):
        make.norm(f"blocks.{i}.norm1", dim)
        make.linear(f"blocks.{i}.attn.qkv", 3 * dim, dim, bias=qkv_bias)
        make.linear(f"blocks.{i}.attn.proj", dim, dim)
        make.norm(f"blocks.{i}.norm2", dim)
        make.linear(f"blocks.{i}.mlp.fc1", 4 * dim, dim)
        make.linear(f"blocks.{i}.mlp.fc2", dim, 4 * dim)
    make.norm("norm", dim)
    make.linear("head", 7, dim)
    if distilled:
        make.linear("head_dist", 7, dim)
    return make.state


def timm_logits(state: State, pixels: Tensor, depth: int) -> Tensor:
    tokens = [name for name in ("cls_token", "dist_token") if name in state]
    x = embed(state, pixels, "patch_embed.proj", "pos_embed", tokens)
    dim = x.shape[-1]
    for i in range(depth):
        n = layer_norm(state, f"blocks.{i}.norm1", x, 1e-6)
        q, k, v = linear(state, f"blocks.{i}.attn.qkv", n).split(dim, dim=-1)
        x = x + linear(state, f"blocks.{i}.attn.proj", attend(q, k, v, heads=dim // 64))
        n = layer_norm(state, f"blocks.{i}.norm2", x, 1e-6)
        m = gelu(linear(state, f"blocks.{i}.mlp.fc1", n))
        x = x + linear(state, f"blocks.{i}.mlp.fc2", m)
    normed = layer_norm(state, "norm", x, 1e-6)
    if len(tokens) == 1:
        return linear(state, "head", normed[:, 0])
    return (linear(state, "head", normed[:, 0]) + linear(state, "head_dist", normed[:, 1])) / 2


@pytest.fixture
def square() -> Tensor:
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "under 'model'"])
def test_timm(tmp_path: Path, square: Tensor, distilled: bool, wrapped: bool) -> None:
    state = timm_state(128, 2, distilled=distilled)
    torch.save({"model": state, "epoch": 3} if wrapped else state, tmp_path / "timm.pth")
    model = load_backbone(tmp_path / "timm.pth")
    assert model.config.family == ("deit" if distilled else "vit")
    assert (model.config.num_heads, model.config.image_size, model.config.num_classes) == (2, 48, 7)
    with torch.no_grad():
        assert_reproduced(model(square), timm_logits(state, square, 2))


def test_timm_safetensors_without_qkv_bias(tmp_path: Path, square: Tensor) -> None:
    state = timm_state(64, 2, distilled=False, qkv_bias=False)
    save_file(state, tmp_path / "timm.safetensors")
    model = load_backbone(tmp_path / "timm.safetensors")
    assert not model.config.qkv_bias
    with torch.no_grad():
        assert_reproduced(model(square), timm_logits(state, square, 2))


def test_timm_by_architecture_takes_its_preprocessing(tmp_path: Path, square: Tensor) -> None:
    state = timm_state(192, 12, distilled=False)
    torch.save(state, tmp_path / "timm.pth")
    model = load_backbone(tmp_path / "timm.pth", arch="deit-tiny")
    assert (model.config.family, model.config.prefix_tokens) == ("deit", 1)
    assert model.config.preprocess.interpolation == "bicubic"
    assert model.config.preprocess.mean == (0.485, 0.456, 0.406)
    with torch.no_grad():
        assert_reproduced(model(square), timm_logits(state, square, 12))
    with pytest.raises(CheckpointError, match="vit-base has hidden size 768 and 12 blocks, the w"):
        load_backbone(tmp_path / "timm.pth", arch="vit-base")
    with pytest.raises(CheckpointError, match="unknown architecture 'resnet-50'; known: vit-tiny"):
        load_backbone(tmp_path / "timm.pth", arch="resnet-50")


def without(name: str) -> Callable[[State], State]:
    return lambda state: {k: v for k, v in state.items() if k != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("head.weight"), r"expected a timm ViT or DeiT .* head\.weight is missing"),
        (without("norm.bias"), r"missing norm\.bias"),
        (lambda s: s | {"fc_norm.weight": s["norm.weight"]}, r"unexpected fc_norm\.weight"),
        (
            lambda s: s | {"blocks.0.attn.qkv.weight": torch.zeros(100, 64)},
            r"qkv\.weight is \(100, 64\), expected \(64, 64\) \(a third each\)",
        ),
    ],
)
def test_timm_that_does_not_fit(
    tmp_path: Path, change: Callable[[State], State], message: str
) -> None:
    torch.save(change(timm_state(64, 1, distilled=False)), tmp_path / "timm.pth")
    with pytest.raises(CheckpointError, match=message):
        load_backbone(tmp_path / "timm.pth")


def test_timm_of_a_width_that_does_not_tell_its_heads(tmp_path: Path) -> None:
    torch.save(timm_state(96, 1, distilled=False), tmp_path / "timm.pth")
    with pytest.raises(CheckpointError, match="cannot be told from hidden size 96; name the arch"):
        load_backbone(tmp_path / "timm.pth")


# Real files.


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


def test_a_copy_of_the_reference_is_the_shared_one(data_root: Path, tmp_path: Path) -> None:
    shared = data_root / "reference" / "vit_lgvit.npz"
    if not shared.is_file():
        pytest.skip(f"{shared} is not there")
    copy = shutil.copy(shared, tmp_path)
    assert Path(copy).read_bytes() == REFERENCE.read_bytes()
