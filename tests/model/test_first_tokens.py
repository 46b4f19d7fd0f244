"""A last block exported for the tokens that its classifier reads gives the same logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small import swin, vit
from torch import Tensor, nn

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.model import LGViT, baseline, count_macs, cut, example_input, model_costs
from lgvit_edge.model.backbones.block import Attention, Block
from lgvit_edge.model.backbones.classifier import TokenClassifier
from lgvit_edge.model.backbones.first_tokens import deployed_block, tokens_read
from lgvit_edge.model.backbones.positions import RelativeBias, Rotation
from lgvit_edge.model.randomised import randomised

# Tokens of patches, width, width of the MLP, attention heads of ``small.vit``.
N, D, MLP, A = 16, 16, 32, 2
FORMS: dict[str, dict[str, Any]] = {
    "ViT": {},
    "no bias": dict(qkv_bias=False),
    "DeiT, two classifiers": dict(family="deit", prefix_tokens=2, classifiers=2),
    "DeiT, one of two tokens": dict(family="deit", prefix_tokens=2),
    "registers": dict(prefix_tokens=5),
    "two classifiers and registers": dict(prefix_tokens=5, classifiers=2),
    "relative positions": dict(relative_positions=True),
    "a norm inside attention": dict(attention_norm=True),
    "a norm inside attention, no bias": dict(attention_norm=True, qkv_bias=False),
    "normed queries and keys": dict(qk_norm=True, prefix_tokens=2, classifiers=2),
    "DINOv3": dict(rotation="dinov3", prefix_tokens=5, qkv_bias=False),
    "EVA-02 of CLIP": dict(
        **dict(rotation="eva", rotation_side=2, gated=True, activation="silu", mlp_norm=True),
        **dict(attention_norm=True),
    ),
    "all at once": dict(
        **dict(rotation="eva", qk_norm=True, relative_positions=True, attention_norm=True),
        **dict(gated=True, mlp_norm=True),
    ),
}
WHOLE: dict[str, LGViTConfig] = {
    "mean": vit(pooling="mean"),
    "mean without prefix tokens": vit(pooling="mean", prefix_tokens=0),
    "token and mean": vit(pooling="both"),
    "attention pooling": vit(pooling="attention"),
    "Swin": swin(),
}
EXITS = (ExitConfig(1, "lph", 3), ExitConfig(3, "gah", 2))


def made(config: LGViTConfig) -> LGViT:
    """Random weights, with scores far apart and key biases that must cancel."""
    model = randomised(LGViT(config)).eval()
    with torch.no_grad():
        for block in model.backbone.blocks:
            block.attention.query.weight.mul_(3)  # type: ignore[union-attr, operator]
            if config.qkv_bias:
                block.attention.key.bias.mul_(20)  # type: ignore[union-attr, operator]
    return model


def images(config: LGViTConfig, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 3, config.image_size, config.image_size, generator=generator)


def last_output(model: LGViT) -> Tensor:
    """What the exported last block returns in the final segment."""
    *_, final = cut(model, input="float32")
    block = final.module.get_submodule(f"blocks.{model.config.num_blocks}")
    assert isinstance(block, nn.Module)
    hidden = torch.zeros(3, *model.config.hidden_shape(model.config.num_blocks - 1))
    with torch.no_grad():
        output: Tensor = block(hidden)
    return output


def same_logits(model: LGViT) -> None:
    """Baseline and chain give the model's logits, which differ from image to image."""
    pixels, given = images(model.config), images(model.config)
    with torch.no_grad():
        expected, chain = model.exit_logits(pixels), []
        for segment in cut(model, input="float32"):
            output = segment.module(given)
            given, logits = output if isinstance(output, tuple) else (given, output)
            chain.append(logits)
        assert expected[:, -1].std(dim=0).min() > 0.01
        found = baseline(model, input="float32")(pixels)
        torch.testing.assert_close(found, expected[:, -1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.stack(chain, dim=1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_the_last_block_is_computed_for_the_tokens_that_are_read(form: str) -> None:
    config = vit(**FORMS[form], exits=EXITS)
    model = made(config)
    assert last_output(model).shape == (3, config.classifiers, D)
    same_logits(model)


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_the_same_to_rounding(form: str) -> None:
    """In float64 nothing but a mistake is larger than 1e-6."""
    model = made(vit(**FORMS[form])).double()
    pixels = images(model.config).double()
    with torch.no_grad():
        gap = (baseline(model, input="float32")(pixels) - model(pixels)).abs().max()
    assert gap < 1e-6


@pytest.mark.parametrize("name", WHOLE)
def test_a_last_block_whose_tokens_are_all_read_stays_whole(name: str) -> None:
    config = WHOLE[name].replace(exits=EXITS)
    model = made(config)
    tokens, dim = config.hidden_shape(config.num_blocks)
    assert last_output(model).shape == (3, tokens, dim)
    same_logits(model)
    costs = model_costs(model)
    assert costs.baseline == costs.published


@pytest.mark.parametrize(("head", "size"), [("mlp", 0), ("encoder", 24)])
def test_the_block_before_an_exit_stays_whole_whatever_its_head_reads(head: str, size: int) -> None:
    """The hidden state goes on to the next segment, which reads all tokens."""
    model = made(vit(exits=(ExitConfig(4, head, size),)))
    first, _ = cut(model, input="float32")
    with torch.no_grad():
        hidden, _ = first.module(images(model.config))
    assert hidden.shape == (3, N + 1, D)
    same_logits(model)


class Neighbours(Block):
    """A block whose MLP mixes tokens, too."""

    def mlp(self, x: Tensor) -> Tensor:
        return super().mlp(x + x.mean(dim=1, keepdim=True))


class Sharp(Attention):
    def scores(self, x: Tensor) -> Tensor:
        return 2 * super().scores(x)


class Reversed(Rotation):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(-2))

    def deployed(self, first: int | None = None) -> nn.Module:
        return self


class Halved(RelativeBias):
    def forward(self) -> Tensor:
        return 0.5 * super().forward()

    def deployed(self) -> nn.Module:
        return self


class MeanToo(TokenClassifier):
    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden + hidden.mean(dim=1, keepdim=True))


@pytest.mark.parametrize("kind", [Neighbours, Sharp, Reversed, Halved, MeanToo])
def test_parts_of_other_classes_keep_the_block_whole(kind: type[nn.Module]) -> None:
    """Of a subclass nobody knows what it reads."""
    model = made(vit(rotation="eva", relative_positions=True, exits=EXITS))
    assert last_output(model).shape == (3, 1, D)
    block, final = model.backbone.blocks[-1], model.backbone.final
    attention = block.attention
    assert isinstance(attention, Attention)
    parts = (block, attention, attention.rotation, attention.relative_bias, final)
    (part,) = (part for part in parts if issubclass(kind, type(part)))
    with torch.no_grad():
        before = model(images(model.config))
        part.__class__ = kind  # type: ignore[union-attr]
        assert (model(images(model.config)) - before).abs().max() > 1e-3
    assert last_output(model).shape == (3, N + 1, D)
    same_logits(model)


def test_only_first_tokens_are_left_out_and_only_at_the_end() -> None:
    model = made(vit())
    assert tokens_read(model.backbone.final) == 1
    hidden = torch.randn(2, N + 1, D)
    with torch.no_grad():
        block = model.backbone.blocks[2]
        whole = block(hidden)
        for count in (1, 3, N + 1):
            torch.testing.assert_close(deployed_block(block, count)(hidden), whole[:, :count])
        assert deployed_block(block, 0)(hidden).shape == whole.shape
    one_graph = baseline(model, input="float32")
    shapes = []
    for number in range(1, 6):
        layer = one_graph.get_submodule(f"blocks.{number}")
        layer.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape)))
    one_graph(images(model.config))
    assert shapes == [(3, N + 1, D)] * 4 + [(3, 1, D)]


@pytest.mark.parametrize("read", [1, 2])
def test_macs_of_a_last_block_are_the_hand_formula(read: int) -> None:
    tokens = N + 2
    plain = dict(prefix_tokens=2, classifiers=read)
    query_output_mlp = read * (2 * D**2 + 2 * D * MLP)
    over_tokens = 2 * A * read * tokens * D  # scores and their mix of the tokens, per head
    expected = {
        "plain": (vit(**plain), 2 * read * D**2 + over_tokens),
        # Keys of all tokens are projected, and each head's scores are as wide as the head.
        "normed keys": (
            vit(**plain, qk_norm=True),
            tokens * D**2 + read * tokens * D + A * read * tokens * D + read * D**2,
        ),
    }
    for config, keys_and_values in expected.values():
        block = deployed_block(made(config).backbone.blocks[-1], read)
        found = count_macs(block, torch.zeros(1, tokens, D))
        assert found == query_output_mlp + keys_and_values


def test_both_counts_are_kept_apart() -> None:
    model = made(vit(exits=EXITS))
    costs, whole = model_costs(model), model.backbone.blocks[-1]
    hidden = torch.zeros(1, N + 1, D)
    saved = count_macs(whole, hidden) - count_macs(deployed_block(whole, 1), hidden)
    assert costs.published - costs.baseline == saved > 0
    assert sum(costs.segments) == costs.baseline + sum(costs.heads)
    image = example_input(model.config, None, input="float32")
    assert costs.published == count_macs(model, image)
    products = 2 * 5 * (N + 1) ** 2 * D
    assert costs.published - costs.published_without_products == products
