"""Multiply-accumulates and parameters: hand formulas, the paper's, and published counts."""

from __future__ import annotations

import functools
import math

import pytest
import small
import torch
from torch import Tensor, nn

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.architecture.heads import head_choices
from lgvit_edge.architecture.placement import default_heads
from lgvit_edge.architecture.published import architecture, architectures
from lgvit_edge.model import (
    LGViT,
    baseline,
    block_macs,
    count_macs,
    count_parameters,
    cut,
    example_input,
)
from lgvit_edge.model.backbones import swin, vit
from lgvit_edge.model.heads import ExitHead, exit_head

# ViT-Tiny at 224: tokens, width, width of the MLP, attention heads; patch tokens, classes.
T, D, MLP, A = 197, 192, 768, 3
N, C = 196, 1000


@functools.cache
def backbone(name: str) -> LGViT:
    """At 224, without numbers."""
    with torch.device("meta"):
        return LGViT(architecture(name))


@functools.cache
def counted(name: str, *, attention: bool = True) -> int:
    """MACs of the baseline as published, with every block whole."""
    twin = f"vit-{name.removeprefix('deit-')}"
    if name.startswith("deit") and twin in architectures():  # the same layers, trained otherwise
        same = architecture(name).replace(family="vit")
        assert same == architecture(twin).replace(preprocess=same.preprocess)
        return counted(twin, attention=attention)
    image = example_input(architecture(name), None, input="float32").to("meta")
    return count_macs(backbone(name).backbone, image, attention=attention)


# GFLOPS of torchvision's table of classification weights ("_ops" in its source).
TORCHVISION = {"vit-base": 17.56, "vit-large": 61.55}
TORCHVISION |= {"swin-tiny": 4.49, "swin-small": 8.74, "swin-base": 15.43}
# infer_gmacs of timm's results/benchmark-infer-amp-nchw-pt110-cu113-rtx3090.csv.
TIMM = {"swin-large": 34.53, "vit-tiny": 1.26, "vit-small": 4.61}
TIMM |= {"deit-tiny": 1.26, "deit-small": 4.61, "deit-base": 17.58}
TIMM |= {f"deit-{n}-distilled": g for n, g in (("tiny", 1.27), ("small", 4.63), ("base", 17.68))}


@pytest.mark.parametrize(("name", "giga"), [*TORCHVISION.items(), *TIMM.items()])
def test_macs_of_published_backbones(name: str, giga: float) -> None:
    assert counted(name) / 1e9 == pytest.approx(giga, rel=0.01)


# GFLOPs of Swin V2's authors, for images of 256 and windows of 8. What their MLPs make of positions
# is counted there (0.3 % in the smallest) and is a table here.
SWINV2 = {"swinv2-tiny": 5.9, "swinv2-small": 11.5, "swinv2-base": 20.3}


@pytest.mark.parametrize(("name", "giga"), [*SWINV2.items()])
def test_macs_of_published_swins_of_the_second_version(name: str, giga: float) -> None:
    config = architecture(name, image_size=256)
    with torch.device("meta"):
        model = LGViT(config)
    image = example_input(config, None, input="float32").to("meta")
    assert config.window_size == 8
    found = count_macs(baseline(model, input="float32"), image)
    assert found / 1e9 == pytest.approx(giga, rel=0.01)
    if name == "swinv2-tiny":  # timm's, whose MLPs have 89,088 parameters, for 225 places a head
        heads = sum(block.num_heads for block in config.blocks)
        assert count_parameters(model) == 28_347_154 - 89_088 + 225 * heads


# Table 1 of the paper; timm's tables since it fuses attention, whose products are then missed.
PAPER = {"vit-base": 16.93, "deit-base-distilled": 16.93, "swin-base": 15.13}
FUSED = {"vit-large": 59.7, "vit-tiny": 1.08}


@pytest.mark.parametrize(("name", "giga"), [*PAPER.items(), *FUSED.items()])
def test_published_macs_that_leave_out_attentions_products(name: str, giga: float) -> None:
    assert counted(name, attention=False) / 1e9 == pytest.approx(giga, rel=0.01)


@pytest.mark.parametrize("name", architectures()[::3])
def test_a_backbone_is_its_embedding_its_blocks_and_its_classifier(name: str) -> None:
    config = architecture(name)
    embedding = config.grid**2 * 3 * config.patch_size**2 * config.hidden_size
    classifier = config.classifiers * config.blocks[-1].dim * config.num_classes
    assert counted(name) == embedding + sum(block_macs(config)) + classifier


@pytest.mark.parametrize("name", architectures()[::3])
def test_a_baseline_is_exported_with_less_of_its_last_block(name: str) -> None:
    config = architecture(name)
    image = example_input(config, None, input="float32").to("meta")
    shipped = count_macs(baseline(backbone(name), input="float32"), image)
    if config.pooling == "mean":  # all tokens are read
        assert shipped == counted(name)
        return
    read, last = config.classifiers, config.blocks[-1]
    tokens, dim = config.hidden_shape(config.num_blocks)
    # Queries, outputs, and what keys and values become, then two passes over all tokens per head.
    attention = 4 * read * dim**2 + 2 * last.num_heads * read * dim * tokens
    kept = attention + 2 * read * dim * last.intermediate_size
    assert shipped == counted(name) - block_macs(config)[-1] + kept


# timm's and torchvision's tables agree on these.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        *[("deit-tiny", 5_717_416), ("vit-base", 86_567_656), ("swin-tiny", 28_288_354)],
        *[("swin-small", 49_606_258), ("swin-base", 87_768_224)],
    ],
)
def test_parameters_of_published_backbones(name: str, parameters: int) -> None:
    assert count_parameters(backbone(name)) == parameters


def test_macs_of_a_block_are_the_hand_formula() -> None:
    config = architecture("vit-tiny")
    by_hand = (
        3 * T * D * D  # query, key, value
        + 2 * T * T * D  # the two products of attention
        + T * D * D  # output
        + 2 * T * D * MLP
    )
    assert count_macs(vit.block(config.blocks[0], config), torch.zeros(1, T, D)) == by_hand
    assert block_macs(config) == [by_hand] * 12


def test_macs_of_swin_blocks_are_the_hand_formula() -> None:
    """On 10 x 10 tokens windows of 4 are padded to 12 x 12; the padding is multiplied, too."""
    config = small.swin(image_size=20, intermediate_size=64)

    def by_hand(grid: int, dim: int) -> int:
        padded = (math.ceil(grid / 4) * 4) ** 2
        return padded * (4 * dim**2 + 2 * 16 * dim) + 8 * grid**2 * dim**2

    merging = 5 * 5 * 64 * 32
    first, second = by_hand(10, 16), by_hand(5, 32)
    assert block_macs(config) == [first, first, merging + second, second]
    # What is exported looks its windows up in constants, which multiplies nothing.
    block = swin.block(config.blocks[1], config)
    hidden = torch.zeros(1, 100, 16)
    assert config.blocks[1].shift == 2
    assert count_macs(block.deployed(), hidden) == count_macs(block, hidden) == first
    products = 144 * 2 * 16 * 16
    assert count_macs(block, hidden, attention=False) == first - products


class Features(nn.Module):
    """The paper's form of a head's body."""

    def __init__(self, head: ExitHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: Tensor) -> Tensor:
        return self.head.features(hidden)


def both_forms(config: LGViTConfig, exit: ExitConfig) -> tuple[int, int]:
    """MACs of a head's features as the paper computes them, and of the head as it is shipped."""
    head, hidden = exit_head(config, exit).eval(), torch.zeros(1, *config.hidden_shape(exit.block))
    return count_macs(Features(head), hidden), count_macs(head.deployed(), hidden)


@pytest.mark.parametrize("kernel", [0, 3, 5])
def test_macs_of_lph(kernel: int) -> None:
    paper, shipped = both_forms(architecture("vit-tiny"), ExitConfig(4, "lph", kernel))
    assert paper == 2 * N * D**2 + N * D * kernel**2  # Eq. 7
    # Deployed, the first projection sees the prefix too, the second one vector, and means are
    # products with a row: of the patches, and without a kernel of what they became.
    means = T * D if kernel else 2 * T * D  # the first also picks the class token
    assert shipped == T * D**2 + N * D * kernel**2 + means + D**2 + D * C


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("average", [False, True])
def test_macs_of_gah(window: int, average: bool) -> None:
    config = architecture("vit-tiny").replace(gah_average=average)
    paper, shipped = both_forms(config, ExitConfig(9, "gah", window))
    side = 14 // window if average else math.ceil(14 / window)
    tokens = side**2
    assert paper == 4 * tokens * D**2 + 2 * tokens**2 * D  # Eq. 7
    # Deployed, the tokens are weighed per head before the value projection, which sees one row
    # per head; the projection sees one row, and the class token is picked by a product.
    by_hand = 2 * tokens * D**2 + tokens**2 * D + 8 * tokens * D + D**2 + D**2 + D * C + T * D
    assert shipped == by_hand


def test_macs_of_convolution_and_attention_heads() -> None:
    paper, shipped = both_forms(architecture("vit-tiny"), ExitConfig(4, "conv"))
    assert paper == 9 * N * D**2  # Eq. 5 with k = 3
    assert shipped == paper + T * D + D * C
    paper, shipped = both_forms(architecture("vit-tiny"), ExitConfig(4, "attention"))
    assert paper == 4 * N * D**2 + 2 * N**2 * D  # Eq. 6
    # As in a GAH that keeps every token, with the backbone's own number of attention heads.
    assert shipped == 2 * N * D**2 + N**2 * D + A * N * D + 2 * D**2 + T * D + D * C


@pytest.mark.parametrize("width", [0, 100])
@pytest.mark.parametrize(("name", "prefix"), [("vit-tiny", 1), ("deit-tiny-distilled", 2)])
def test_macs_of_an_encoder_head(name: str, prefix: int, width: int) -> None:
    paper, shipped = both_forms(architecture(name), ExitConfig(4, "encoder", width))
    tokens, inner = N + prefix, width or MLP
    assert paper == tokens * D * (4 * D + 2 * inner) + 2 * tokens**2 * D
    # Deployed, only the prefix tokens ask, and each pass over all tokens is per head.
    query_keys_values_output = 4 * prefix * D**2
    over_all_tokens = 2 * A * prefix * D * tokens
    classifier = D**2 + D * C if name == "vit-tiny" else 2 * D * C  # with a ViT's pooler
    by_hand = query_keys_values_output + over_all_tokens + prefix * 2 * D * inner + classifier
    assert shipped == by_hand


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("vit-tiny", D**2 + D * C),  # the pooler and the classifier
        ("deit-tiny", D * C),
        ("deit-tiny-distilled", 2 * D * C),
        ("swin-tiny", 192 * C),
    ],
)
def test_macs_of_an_mlp_head(name: str, by_hand: int) -> None:
    config = architecture(name)
    head = exit_head(config, ExitConfig(4, "mlp")).eval()
    hidden = torch.zeros(1, *config.hidden_shape(4))
    assert count_macs(head, hidden) == count_macs(head.deployed(), hidden) == by_hand
    assert count_macs(Features(head), hidden) == 0  # what multiplies nothing costs nothing


@pytest.mark.parametrize("name", ["vit-tiny", "deit-tiny-distilled", "swin-tiny"])
@pytest.mark.parametrize("heads", head_choices())
def test_deployed_heads_cost_no_more_than_the_papers(name: str, heads: str) -> None:
    config = architecture(name)
    for exit in default_heads([4, 6, 8, 10], heads=heads, family=config.family):
        head, tokens = exit_head(config, exit).eval(), config.hidden_shape(exit.block)
        hidden = torch.zeros(1, *tokens)
        rows = 0  # means taken as products with a row, one per classified token and one inside
        if config.prefix_tokens and exit.head not in ("mlp", "encoder"):
            rows = (config.classifiers + 1) * math.prod(tokens)
        assert count_macs(head.deployed(), hidden) <= count_macs(head, hidden) + rows


def test_macs_scale_with_the_batch_and_normalising_costs_none(tiny_model: LGViT) -> None:
    config = tiny_model.config
    uint8, float32, four = (
        count_macs(baseline(tiny_model, input=i), example_input(config, None, input=i, batch=b))
        for i, b in (("uint8", 1), ("float32", 1), ("uint8", 4))
    )
    assert uint8 == float32 and four == 4 * uint8


def test_macs_of_segments_add_up(tiny_model: LGViT) -> None:
    config = tiny_model.config
    whole = count_macs(baseline(tiny_model), example_input(config, None))
    segments = [count_macs(s.module, example_input(config, s.index)) for s in cut(tiny_model)]
    hidden = torch.zeros(1, 17, 32)
    heads = [count_macs(head.deployed(), hidden) for head in tiny_model.heads]
    assert sum(segments) == whole + sum(heads)


@pytest.mark.parametrize("input", ["uint8", "float32"])
def test_parameters_of_segments_add_up(tiny_model: LGViT, input: str) -> None:
    counts = [segment.parameters for segment in cut(tiny_model, input=input)]
    assert sum(counts) == count_parameters(tiny_model)


def test_parameters_of_the_default_heads() -> None:
    config = architecture("vit-tiny").replace(exits=default_heads([4, 6, 8, 10]))
    with torch.device("meta"):
        heads = [count_parameters(head) for head in LGViT(config).heads]
    classifier, norm, point = D * C + C, 2 * D, D**2 + D
    lph3 = 2 * point + 9 * D + D + 3 * norm + classifier
    lph0 = 2 * point + 2 * norm + classifier
    gah = 3 * D**2 + point + classifier
    assert heads == [lph3, lph0, gah, gah]
