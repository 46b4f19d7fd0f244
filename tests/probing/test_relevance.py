"""Relevance maps against a second implementation with dense matrices, and what they promise."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from small import swin, vit
from torch import Tensor, nn

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.errors import ConfigError, DataError, UsageError
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.model import LGViT
from lgvit_edge.model.backbones.block import Attention, Block
from lgvit_edge.model.backbones.swinv2 import PostNormBlock
from lgvit_edge.model.randomised import randomised
from lgvit_edge.probing import ways
from lgvit_edge.probing.attention import recording
from lgvit_edge.probing.relevance import METHODS, relevance, usual_method
from lgvit_edge.probing.ways import logits_at

EVERY_HEAD = (
    ExitConfig(1, "lph", 3),
    ExitConfig(2, "conv"),
    ExitConfig(3, "gah", 2),
    ExitConfig(4, "attention"),
    ExitConfig(5, "encoder"),
    ExitConfig(6, "mlp"),
)
VIT = vit(num_blocks=7, exits=EVERY_HEAD)
DEIT = vit(family="deit", prefix_tokens=2, classifiers=2, num_blocks=7, exits=EVERY_HEAD)
# 14 x 14 tokens do not fill windows of 4, nor 7 x 7 the merging.
SWIN = swin(
    image_size=28,
    num_blocks=7,
    depths=(2, 2, 3),
    stage_heads=(2, 4, 8),
    hidden_size=8,
    exits=EVERY_HEAD,
)
SWINV2 = SWIN.replace(family="swinv2")  # cosine attention, norms behind what they norm


def model_of(config: LGViTConfig) -> LGViT:
    return randomised(LGViT(config), seed=2)


def images_of(config: LGViTConfig, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, config.image_size, config.image_size, generator=generator)


# The second implementation: one image, whole matrices, attention written out by hand.


class Dense:
    """Attention of all tokens to all, from a module's weights; padding and windows included."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []  # [heads, Q, K] of every attention, in order

    def __call__(self, attention: Attention, x: Tensor) -> Tensor:
        heads, (tokens, dim) = attention.heads, x.shape
        padded, places, added = self.windows(attention, x)
        q, k, v = (
            layer(padded).reshape(len(padded), heads, dim // heads).transpose(0, 1)
            for layer in (attention.query, attention.key, attention.value)
        )
        if hasattr(attention, "scale"):  # V2: scaled cosines; padding has length 0
            q, k = (
                vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12) for vectors in (q, k)
            )
            scores = attention.scale[:, None, None] * (q @ k.mT)
        else:
            scores = q @ k.mT / (dim // heads) ** 0.5
        weights = (scores + added).softmax(-1)
        weights = weights[:, places]  # only real tokens ask
        weights.retain_grad()
        self.kept.append(weights)
        return attention.proj((weights @ v).transpose(0, 1).reshape(tokens, dim))

    def windows(self, attention: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The padded tokens, where the real ones are, and what is added to scores."""
        sizes = getattr(attention, "sizes", None)
        if sizes is None:
            return x, torch.arange(len(x)), torch.zeros(())
        grid, window, shift = sizes.grid, sizes.window, sizes.shift
        side = -(-grid // window) * window
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        places = (rows * side + columns)[:grid, :grid].flatten()
        padded = torch.zeros(side**2, x.shape[1]).index_copy(0, places, x)
        y, z = ((axis.flatten() - shift) % side for axis in (rows, columns))  # after the roll
        near = [a[:, None] // window == a // window for a in (y, z)]
        if shift:  # what the roll brings together stays apart
            near += [(a[:, None] >= side - shift) == (a >= side - shift) for a in (y, z)]
        apart = ~torch.stack(near).all(0)
        down, right = ((a[:, None] - a + window - 1).clamp(0, 2 * window - 2) for a in (y, z))
        bias = attention.table[down * (2 * window - 1) + right].permute(2, 0, 1)
        return padded, places, bias.masked_fill(apart, -1e4)


def merged(block: Block, x: Tensor) -> tuple[Tensor, Tensor]:
    """The merged tokens, and which tokens each was made of, ``[N', N]``."""
    grid = block.merge.grid
    half = -(-grid // 2)
    square = torch.zeros(2 * half, 2 * half, x.shape[1])
    square = torch.cat([x.reshape(grid, grid, -1), square[grid:, :grid]], 0)
    square = torch.cat([square, torch.zeros(2 * half, 2 * half - grid, x.shape[1])], 1)
    quads = [square[i::2, j::2] for j in (0, 1) for i in (0, 1)]
    tokens, late = torch.cat(quads, -1), type(block) is PostNormBlock
    norm, reduction = block.merge.norm, block.merge.reduction
    tokens = norm(reduction(tokens)) if late else reduction(norm(tokens))
    sources = torch.zeros(half**2, grid**2)
    for row in range(grid):
        for column in range(grid):
            sources[(row // 2) * half + column // 2, row * grid + column] = 1
    return tokens.reshape(half**2, -1), sources


@dataclass
class Read:
    """What a head makes of a block's output ``[T, D]``, worked out by hand."""

    logits: Tensor  # [C]
    tokens: Tensor  # [T]: 1 for each that is read
    given: Tensor  # [N]: what patches give to the logit by being averaged; not negative
    asked: Tensor | None = None  # [heads, N', N'], the head's own attention
    kept: Tensor | None = None  # [N', N]: which patches that attention sees


def read(head: nn.Module, kind: str, x: Tensor, prefix: int, label: int) -> Read:
    own, kept, count = Dense(), torch.eye(len(x) - prefix), 0
    module = head if hasattr(head, "classifier") else head.readout
    linears = module.classifier.linears
    weight = torch.stack([linear.weight[label] for linear in linears]).mean(0)
    features = x[prefix:]
    if kind in ("lph", "conv"):  # two of the same: a batch of one has PyTorch's wrong gradient
        features = head.body.features(torch.stack([features] * 2))[0]
    if kind == "gah":  # every second patch along each side
        side = round(len(features) ** 0.5)
        kept = kept[torch.arange(side**2).reshape(side, side)[::2, ::2].flatten()]
    if kind in ("gah", "attention"):
        features = own(head.body, kept @ features)
    if not prefix:
        averaged = module.norm(features)
        logits, averages = linears[0](averaged.mean(0)), True
    else:
        count, averages = len(linears), kind in ("lph", "conv", "gah", "attention")
        averaged, tokens = features, x[:count]
        if averages:
            tokens = tokens + features.mean(0)
        elif hasattr(head, "pooler"):
            tokens = torch.tanh(head.pooler(tokens))
        else:
            tokens = module.norm(tokens)
        pairs = zip(linears, tokens, strict=True)
        logits = torch.stack([linear(token) for linear, token in pairs]).mean(0)
    # Nothing but a linear layer follows the mean, so no gradient is needed.
    given = ((averaged @ weight) / len(averaged)).clamp_min(0).detach() * averages
    ones = torch.cat([torch.arange(prefix) < count, kept.sum(0) * averages])
    asked = own.kept[0] if own.kept else None
    return Read(logits, ones, kept.T @ given if len(given) == len(kept) else given, asked, kept)


def second(model: LGViT, image: Tensor, exit: int, label: int, method: str) -> Tensor:
    """The relevance of patches as matrices: R = R + P R, read at the rows that the head reads."""
    config, dense = model.config, Dense()
    prefix, final = config.prefix_tokens, exit > len(model.heads)
    kind = "final" if final else config.exits[exit - 1].head
    head = model.backbone.final if final else model.heads[exit - 1]
    blocks = list(model.backbone.blocks[: None if final else config.exits[exit - 1].block])
    if kind == "encoder":
        blocks, head = [*blocks, head.block], head.readout
    x = model.backbone.embedding(image[None])[0]
    steps: list[Tensor] = []  # what each block was merged from
    for block in blocks:
        sources = torch.eye(len(x))
        if block.merge is not None:
            x, sources = merged(block, x)
        steps.append(sources)
        mlp = nn.Sequential(block.fc1, block.activation, block.fc2)
        if type(block) is PostNormBlock:
            x = x + block.norm1(dense(block.attention, x))
            x = x + block.norm2(mlp(x))
        else:
            x = x + dense(block.attention, block.norm1(x))
            x = x + mlp(block.norm2(x))
    by = read(head, kind, x, prefix, label)
    torch.testing.assert_close(by.logits, logits_at(model, image[None], exit)[0])
    by.logits[label].backward()
    if method == "gradcam":
        return by.given

    def pairs(weights: Tensor) -> Tensor:
        grad = torch.zeros_like(weights) if weights.grad is None else weights.grad
        return (weights * grad).clamp_min(0).mean(0) if method == "gradient" else weights.mean(0)

    tokens, patches = by.tokens, by.given
    if method == "rollout":
        patches = tokens[prefix:] / tokens[prefix:].sum().clamp_min(1)
    if by.asked is not None:
        of_keys = pairs(by.asked).sum(0) if method == "gradient" else pairs(by.asked).mean(0)
        patches = of_keys @ by.kept
    if method == "rollout":
        classified = tokens[:prefix] / tokens[:prefix].sum().clamp_min(1)
        line = torch.cat([classified, patches])
        line = line / line.sum()
    # All ways from here to the tokens of a block: with merging, tokens are copied or divided.
    copies = divided = torch.eye(len(x))
    ways = torch.eye(len(x))
    for block, weights, sources in zip(
        *(reversed(a) for a in (blocks, dense.kept, steps)), strict=True
    ):
        places = dense.windows(block.attention, torch.zeros(weights.shape[1], 1))[1]
        step = pairs(weights)[:, places]
        shares = sources / sources.sum(1, keepdim=True)
        if method == "rollout":
            line = line @ (torch.eye(len(step)) + step) / 2 @ shares
            continue
        ways = ways + ways @ step
        ways = copies @ sources + (ways - copies) @ shares
        copies, divided = copies @ sources, divided @ shares
    if method == "rollout":
        return line[prefix:].detach()
    direct = torch.cat([torch.zeros(prefix), patches]) @ divided
    return (tokens @ (ways - copies) + direct)[prefix:].detach()


def cases() -> list[Any]:
    names = {"vit": VIT, "deit": DEIT, "swin": SWIN, "swinv2": SWINV2}
    found = []
    for name, config in names.items():
        for exit in range(1, 8):
            kind = "final" if exit == 7 else config.exits[exit - 1].head
            for method in METHODS:
                tokens_alone = config.prefix_tokens and kind in ("encoder", "mlp", "final")
                if method != "gradcam" or not tokens_alone:
                    found.append(pytest.param(config, exit, method, id=f"{name}-{kind}-{method}"))
    return found


@pytest.mark.parametrize(("config", "exit", "method"), cases())
def test_a_second_implementation_agrees(config: LGViTConfig, exit: int, method: str) -> None:
    model, images = model_of(config), images_of(config)
    labels = logits_at(model, images, exit).argmax(-1).tolist()
    maps = relevance(model, images, exit=exit, classes=labels, method=method)
    assert maps.shape == (2, config.grid, config.grid) and maps.dtype == torch.float32
    assert maps.sum() > 0
    expected = second(model, images[1], exit, labels[1], method)
    side = round(len(expected) ** 0.5)
    square = expected.reshape(1, 1, side, side)
    grown = nn.functional.interpolate(square, size=maps[1].shape, mode="nearest-exact")[0, 0]
    torch.testing.assert_close(maps[1], grown, rtol=1e-3, atol=1e-5 * float(expected.max()))


# What the methods promise.


@pytest.mark.parametrize("exit", range(1, 8))
def test_all_of_a_rollout_adds_up_to_one(exit: int) -> None:
    config = SWIN.replace(image_size=32, preprocess=Preprocess(resize=32))  # no padding
    maps = relevance(model_of(config), images_of(config), exit=exit, method="rollout")
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(2))


def test_a_rollout_is_the_same_for_every_class() -> None:
    model, images = model_of(VIT), images_of(VIT)
    first, other = (
        relevance(model, images, exit=4, classes=labels, method="rollout")
        for labels in ([0, 0], [1, 2])
    )
    torch.testing.assert_close(first, other)


@pytest.mark.parametrize("config", [VIT, DEIT, SWIN], ids=["vit", "deit", "swin"])
@pytest.mark.parametrize("exit", [1, 2, 4])
def test_grad_cam_adds_up_to_the_logit(config: LGViTConfig, exit: int) -> None:
    """As the map less that of the negated classifier; biases and class tokens add the rest."""
    model, images = model_of(config), images_of(config)
    linears = [m for m in model.heads[exit - 1].modules() if isinstance(m, nn.Linear)]
    linears = [linear for linear in linears if linear.out_features == config.num_classes]
    positive, logit = (
        relevance(model, images, exit=exit, classes=[1, 1], method="gradcam"),
        logits_at(model, images, exit)[:, 1],
    )
    rest = sum(linear.bias[1].item() for linear in linears) / len(linears)
    with torch.no_grad():
        hidden = model.hidden_states(images)[exit][:, : config.prefix_tokens]
        for place, linear in enumerate(linears if config.prefix_tokens else []):
            rest = rest + hidden[:, place] @ linear.weight[1] / len(linears)
        for linear in linears:
            linear.weight.neg_()
    negative = relevance(model, images, exit=exit, classes=[1, 1], method="gradcam")
    side = config.grid // model.config.blocks[exit - 1].grid  # of a Swin's maps, each shown larger
    total = (positive - negative).sum((1, 2)) / side**2
    torch.testing.assert_close(total, logit - rest, rtol=1e-3, atol=1e-3)


def test_classes_differ_and_the_answer_is_the_default() -> None:
    model, images = model_of(VIT), images_of(VIT)
    for exit in range(1, 8):
        maps = [relevance(model, images, exit=exit, classes=[c, c]) for c in range(3)]
        assert not torch.allclose(maps[0], maps[1], rtol=0.05)
        answers = logits_at(model, images, exit).argmax(-1)
        expected = torch.stack([maps[int(c)][i] for i, c in enumerate(answers)])
        torch.testing.assert_close(relevance(model, images, exit=exit), expected)


# What stays as it is.


@pytest.mark.parametrize("config", [VIT, DEIT, SWIN], ids=["vit", "deit", "swin"])
def test_recording_changes_no_answer_and_leaves_nothing(config: LGViTConfig) -> None:
    model, images = model_of(config), images_of(config)
    with torch.no_grad():
        plain = model.exit_logits(images)
        with recording([model]) as weights:
            assert torch.equal(model.exit_logits(images), plain)
    attentions = [part for part in model.modules() if isinstance(part, Attention)]
    assert set(weights) == set(attentions)
    for attention in weights.values():
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))
    model.heads[0].train()
    relevance(model, images, exit=2)
    assert model.heads[0].training and not model.heads[1].training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert images.grad is None and not images.requires_grad


def test_logits_of_one_exit_are_those_of_the_model() -> None:
    for config in (VIT, DEIT, SWIN):
        model, images = model_of(config).train(), images_of(config)
        single = torch.stack([logits_at(model, images, exit) for exit in range(1, 8)], dim=1)
        assert model.training
        with torch.no_grad():
            torch.testing.assert_close(single, model.eval().exit_logits(images))


def without_gradients(model: LGViT, images: Tensor, exit: int) -> Tensor:
    with torch.no_grad():
        return relevance(model, images, exit=exit)


def in_inference_mode(model: LGViT, images: Tensor, exit: int) -> Tensor:
    with torch.inference_mode():
        return relevance(model, images.clone(), exit=exit)


def frozen(model: LGViT, images: Tensor, exit: int) -> Tensor:
    return relevance(copy.deepcopy(model).requires_grad_(False), images, exit=exit)


def one_at_a_time(model: LGViT, images: Tensor, exit: int) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ways, "_AT_ONCE", 1)
        return relevance(model, images, exit=exit)


@pytest.mark.parametrize("how", [without_gradients, in_inference_mode, frozen, one_at_a_time])
def test_it_is_the_same_however_it_is_called(how: Callable[[LGViT, Tensor, int], Tensor]) -> None:
    model, images = model_of(VIT), images_of(VIT, 3)
    for exit in range(1, 8):
        expected = relevance(model, images, exit=exit)
        torch.testing.assert_close(how(model, images, exit), expected, rtol=1e-4, atol=1e-7)


def test_batches_are_as_large_as_memory_allows() -> None:
    small, large = model_of(vit()), model_of(vit(image_size=256))
    sizes = [ways.batch_size(model, ways.way_to(model, 1)) for model in (small, large)]
    assert sizes[0] > 1000 * sizes[1]


def test_other_poolings_have_maps_too() -> None:
    for changes in (
        dict(pooling="mean", prefix_tokens=0),
        dict(pooling="mean", final_norm="pooled"),
        dict(pooling="both"),
        dict(pooling="attention"),
    ):
        config = vit(exits=(ExitConfig(2, "mlp"),), **changes)
        model, images = model_of(config), images_of(config)
        for exit in (1, 2):
            maps = relevance(model, images, exit=exit)
            assert maps.amax((1, 2)).gt(0).all() and usual_method(model, exit) == "gradient"


def test_no_images_give_no_maps() -> None:
    assert relevance(model_of(VIT), images_of(VIT, 0), exit=1).shape == (0, 4, 4)


def test_heads_of_convolutions_are_shown_by_grad_cam() -> None:
    methods = [usual_method(model_of(VIT), exit) for exit in range(1, 8)]
    assert methods == ["gradcam"] * 2 + ["gradient"] * 5


# Refusals.


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(exit=0), r"exit must be 1\.\.7 \(7 is the final classifier\), found 0"),
        (dict(exit=8), "found 8"),
        (dict(exit=True), "found True"),
        (dict(method="lime"), "method must be one of gradient, rollout, gradcam, found 'lime'"),
        (dict(classes=[0]), r"one class for each of 2 images, found \[1\] int64"),
        (dict(classes=[0.0, 1.0]), r"found \[2\] float32"),
        (dict(classes=[True, False]), r"found \[2\] bool"),
        (dict(classes=[0, 3]), r"classes must be 0\.\.2, found 3"),
        (dict(classes=[0, -1]), "found -1"),
        (dict(images=torch.zeros(2, 3, 16, 16)), r"\[B, 3, 32, 32\] float32, found \[2, 3, 16"),
        (dict(images=torch.zeros(2, 3, 32, 32, dtype=torch.uint8)), "found .* uint8"),
        (dict(images=torch.zeros(3, 32, 32)), "found"),
    ],
)
def test_what_means_nothing_is_refused(changes: dict[str, Any], said: str) -> None:
    arguments: dict[str, Any] = dict(images=images_of(VIT), exit=3) | changes
    with pytest.raises(UsageError, match=said):
        relevance(model_of(VIT), **arguments)


def test_grad_cam_of_a_class_token_is_refused() -> None:
    with pytest.raises(ConfigError, match="exit 6, which reads prefix tokens alone; use .* gradie"):
        relevance(model_of(VIT), images_of(VIT), exit=6, method="gradcam")


def test_weights_that_are_not_numbers_are_refused() -> None:
    model = model_of(VIT)
    with torch.no_grad():
        model.backbone.blocks[0].fc1.weight[0, 0] = torch.nan
    with pytest.raises(DataError, match="relevance at exit 3 is not finite"):
        relevance(model, images_of(VIT), exit=3)


class Turned(Block):
    """A block that mixes tokens outside its attention."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(1))


@pytest.mark.parametrize("method", ["gradient", "rollout"])
def test_blocks_that_mix_tokens_elsewhere_are_refused(method: str) -> None:
    model = model_of(VIT)
    model.backbone.blocks[1].__class__ = Turned
    with pytest.raises(ConfigError, match="found Turned as block 2; use the method gradcam"):
        relevance(model, images_of(VIT), exit=3, method=method)
    assert relevance(model, images_of(VIT), exit=2, method="gradcam").any()


def test_heads_with_attention_of_an_unknown_kind_are_refused() -> None:
    model = model_of(VIT)
    model.heads[3].body.residual = True
    with pytest.raises(ConfigError, match="exit 4, _TokenHead, has attention of a kind that is"):
        relevance(model, images_of(VIT), exit=4)
    assert relevance(model, images_of(VIT), exit=4, method="gradcam").any()


def test_features_that_are_no_square_map_are_refused() -> None:
    model = model_of(VIT)
    body = model.heads[1].body
    body.features = lambda patches: patches[:, :7]
    with pytest.raises(ConfigError, match="features of a square map, found 7"):
        relevance(model, images_of(VIT), exit=2, method="gradcam")


def test_numbers_are_the_same_every_time() -> None:
    runs = [relevance(model_of(DEIT), images_of(DEIT), exit=5).numpy() for _ in range(2)]
    np.testing.assert_array_equal(*runs)
