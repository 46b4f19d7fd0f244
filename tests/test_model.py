"""The model, its deployed forms, and what they cost."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lgvit_edge.architectures import architecture
from lgvit_edge.config import ExitConfig, LGViTConfig
from lgvit_edge.errors import ConfigError
from lgvit_edge.image_spec import Preprocess
from lgvit_edge.model import (
    LGViT,
    baseline,
    block_macs,
    count_macs,
    count_parameters,
    cut,
    example_input,
    vit,
)
from lgvit_edge.model.heads import ExitHead, exit_head
from lgvit_edge.model.heads.gah import GlobalAggregation
from lgvit_edge.placement import default_heads
from lgvit_edge.preprocess import to_float

EVERY_HEAD = (
    ExitConfig(1, "lph", kernel=0),
    ExitConfig(2, "lph", kernel=3),
    ExitConfig(4, "lph", kernel=5),
    ExitConfig(5, "gah", window=1),
    ExitConfig(6, "gah", window=2),
    ExitConfig(7, "gah", window=3),
)
# 5 x 5 tokens: no window but 1 divides the grid.
EVERY = LGViTConfig(
    family="vit",
    image_size=20,
    patch_size=4,
    hidden_size=16,
    num_blocks=8,
    num_heads=2,
    intermediate_size=24,
    num_classes=5,
    exits=EVERY_HEAD,
    preprocess=Preprocess(resize=22, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
)


def randomised(config: LGViTConfig, seed: int = 20) -> LGViT:
    """Every number random, BatchNorm statistics too: fresh norms are identities and hide errors."""
    generator = torch.Generator().manual_seed(seed)
    model = LGViT(config)

    def normal(tensor: Tensor | None, mean: float, std: float) -> None:
        if tensor is not None:
            tensor.copy_(mean + std * torch.randn(tensor.shape, generator=generator))

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                normal(module.weight, 0.0, module.weight[0].numel() ** -0.5)
                normal(module.bias, 0.0, 0.3)
            elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
                normal(module.weight, 1.0, 0.2)
                normal(module.bias, 0.0, 0.3)
            if isinstance(module, nn.BatchNorm2d):
                normal(module.running_mean, 0.0, 0.5)
                assert module.running_var is not None
                module.running_var.copy_(
                    0.5 + 1.5 * torch.rand(module.running_var.shape, generator=generator)
                )
        normal(model.backbone.embedding.prefix, 0.0, 0.5)
        normal(model.backbone.embedding.position, 0.0, 0.5)
    return model.eval()


def frames(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, side, side, 3), np.uint8)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# Segments and baseline compute what the model computes.


def chained(model: LGViT, image: Tensor, input: str) -> Tensor:
    """All exits' logits, one segment after the other: ``[B, M + 1, C]``."""
    *segments, last = cut(model, input=input)
    x, logits = image, []
    for segment in segments:
        x, each = segment.module(x)
        logits.append(each)
    return torch.stack([*logits, last.module(x)], dim=1)


@pytest.mark.parametrize(
    ("family", "lph_residual", "gah_average"),
    list(itertools.product(["vit", "deit"], [True, False], [True, False])),
)
def test_chained_segments_equal_exit_logits(
    family: str, lph_residual: bool, gah_average: bool
) -> None:
    tokens = 2 if family == "deit" else 1
    config = EVERY.replace(
        family=family,
        prefix_tokens=tokens,
        classifiers=tokens,
        lph_residual=lph_residual,
        gah_average=gah_average,
    )
    model = randomised(config)
    images = frames(3, config.image_size)
    normalised = torch.from_numpy(to_float(images, config.preprocess))
    with torch.no_grad():
        expected = model.exit_logits(normalised)
        assert expected.shape == (3, 7, 5)
        assert (expected[:, 1:] - expected[:, :-1]).abs().amax(dim=(0, 2)).min() > 0.1
        close(chained(model, torch.from_numpy(images), "uint8"), expected)
        close(chained(model, normalised, "float32"), expected)
        close(baseline(model)(torch.from_numpy(images)), expected[:, -1])
        close(baseline(model, input="float32")(normalised), expected[:, -1])
        close(model(normalised), expected[:, -1])


@pytest.mark.parametrize("grid", [4, 6, 7])
def test_chained_segments_equal_exit_logits_on_other_grids(grid: int) -> None:
    config = EVERY.replace(image_size=4 * grid, preprocess=Preprocess(resize=40))
    model = randomised(config)
    images = frames(2, config.image_size)
    with torch.no_grad():
        expected = model.exit_logits(torch.from_numpy(to_float(images, config.preprocess)))
        close(chained(model, torch.from_numpy(images), "uint8"), expected)


def test_two_prefix_tokens_with_one_classifier() -> None:
    """Hugging Face's plain DeiT: the distillation token attends but is not classified."""
    config = EVERY.replace(family="deit", prefix_tokens=2, classifiers=1)
    model = randomised(config)
    images = frames(2, config.image_size)
    with torch.no_grad():
        expected = model.exit_logits(torch.from_numpy(to_float(images, config.preprocess)))
        close(chained(model, torch.from_numpy(images), "uint8"), expected)


def test_the_flags_change_what_they_name_and_nothing_else() -> None:
    model = randomised(EVERY)
    pixels = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    paper = LGViT(EVERY.replace(lph_residual=False, gah_average=True)).eval()
    paper.load_state_dict(model.state_dict())
    with torch.no_grad():
        ours, theirs = model.exit_logits(pixels), paper.exit_logits(pixels)
    changed = (ours - theirs).abs().amax(dim=(0, 2)) > 1e-3
    # A window of 1 averages nothing; the final classifier has no head.
    assert changed.tolist() == [True, True, True, False, True, True, False]


def test_fewer_exits_answer_as_before(tiny_model: LGViT) -> None:
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    fewer = tiny_model.with_exits([1, 3])
    with torch.no_grad():
        close(fewer.exit_logits(pixels), tiny_model.exit_logits(pixels)[:, [0, 2, 3]])
    assert [exit.block for exit in fewer.config.exits] == [1, 3]
    with pytest.raises(ConfigError, match=r"after blocks \[1, 2, 3\], found \[1, 9\]"):
        tiny_model.with_exits([1, 9])


def test_deployed_heads_equal_the_mean_of_their_features() -> None:
    model = randomised(EVERY.replace(family="deit", prefix_tokens=2, classifiers=2))
    hidden = torch.randn(3, 27, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for head in model.heads:
            assert isinstance(head, ExitHead)
            features = head.features(hidden)
            expected = head.classify(hidden, features)
            close(head.deployed()(hidden), expected)
            close(head(hidden), expected)
            residual = hidden[:, 2:].mean(dim=1) if head.body.residual else 0
            close(head.body.pooled(2)(hidden)[:, 0] + residual, features.mean(dim=1))


def test_convergence_averages_or_subsamples_windows() -> None:
    patches = torch.arange(25.0).reshape(1, 25, 1).expand(1, 25, 16)
    for average, window, expected in [
        (False, 2, [0.0, 2, 4, 10, 12, 14, 20, 22, 24]),
        (False, 3, [0.0, 3, 15, 18]),
        (True, 2, [3.0, 5, 13, 15]),  # rows and columns 0..3; what is left over falls away
        (True, 3, [6.0]),
        (True, 1, list(range(25))),
    ]:
        body = GlobalAggregation(16, 5, window, average=average)
        assert body.converge(patches)[0, :, 0].tolist() == expected


def test_segments_say_which_blocks_and_head_they_hold(tiny_model: LGViT) -> None:
    segments = cut(tiny_model)
    assert [(s.index, s.first_block, s.last_block, s.head) for s in segments] == [
        (0, 1, 1, "lph"),
        (1, 2, 2, "lph"),
        (2, 3, 3, "gah"),
        (3, 4, 4, "final"),
    ]
    assert [s.exit for s in segments] == [*tiny_model.config.exits, None]
    assert not any(s.module.training for s in segments)


def test_a_model_without_exits_is_one_segment(tiny_model: LGViT) -> None:
    plain = randomised(tiny_model.config.replace(exits=()))
    (only,) = cut(plain)
    images = torch.from_numpy(frames(1, 32))
    assert (only.first_block, only.last_block, only.head) == (1, 4, "final")
    with torch.no_grad():
        close(only.module(images), baseline(plain)(images))


def test_segments_borrow_the_trained_blocks(tiny_model: LGViT) -> None:
    with torch.no_grad():
        tiny_model.backbone.blocks[1].fc2.bias.add_(1.0)
    shared = {p.data_ptr() for s in cut(tiny_model) for p in s.module.parameters()}
    assert {p.data_ptr() for p in tiny_model.backbone.blocks.parameters()} <= shared


@pytest.mark.parametrize("what", [cut, baseline])
def test_unknown_input_is_refused(tiny_model: LGViT, what: object) -> None:
    with pytest.raises(ConfigError, match="input must be one of uint8, float32, found 'int8'"):
        what(tiny_model, input="int8")  # type: ignore[operator]


def test_example_inputs_have_the_shapes_the_segments_take(tiny_config: LGViTConfig) -> None:
    shapes = [
        (example_input(tiny_config, None), [1, 32, 32, 3], torch.uint8),
        (example_input(tiny_config, 0, batch=2), [2, 32, 32, 3], torch.uint8),
        (example_input(tiny_config, 0, input="float32"), [1, 3, 32, 32], torch.float32),
        (example_input(tiny_config, 1, batch=4), [4, 17, 32], torch.float32),
    ]
    for tensor, shape, dtype in shapes:
        assert (list(tensor.shape), tensor.dtype) == (shape, dtype)


def test_hidden_states_are_the_embedding_and_each_block(tiny_model: LGViT) -> None:
    with torch.no_grad():
        states = tiny_model.hidden_states(torch.zeros(2, 3, 32, 32))
        assert [tuple(s.shape) for s in states] == [(2, 17, 32)] * 5
        close(tiny_model.backbone.blocks[2](states[2]), states[3])


# Multiply-accumulates.

T, D, MLP = 197, 192, 768


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


@pytest.mark.parametrize(
    ("name", "giga"), [("vit-base", 17.56), ("vit-tiny", 1.25), ("deit-tiny", 1.25)]
)
def test_macs_of_published_backbones(name: str, giga: float) -> None:
    config = architecture(name)
    with torch.device("meta"):
        module = baseline(LGViT(config), input="float32")
    found = count_macs(module, example_input(config, None, input="float32").to("meta"))
    width = config.hidden_size
    assert found == 196 * 768 * width + sum(block_macs(config)) + width * 1000
    assert round(found / 1e9, 2) == giga


def test_normalising_inside_the_network_costs_no_macs(tiny_model: LGViT) -> None:
    config = tiny_model.config
    uint8, float32 = (
        count_macs(baseline(tiny_model, input=i), example_input(config, None, input=i))
        for i in ("uint8", "float32")
    )
    assert uint8 == float32


class Features(nn.Module):
    """The paper's form of a head's body."""

    def __init__(self, head: ExitHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: Tensor) -> Tensor:
        return self.head.features(hidden)


N, C = 196, 1000


@pytest.mark.parametrize("kernel", [0, 3, 5])
def test_macs_of_lph(kernel: int) -> None:
    head = exit_head(architecture("vit-tiny"), ExitConfig(4, "lph", kernel=kernel)).eval()
    hidden = torch.zeros(1, T, D)
    # Paper Eq. 7.
    assert count_macs(Features(head), hidden) == 2 * N * D**2 + N * D * kernel**2
    # Deployed, the first projection sees the prefix too, the second one vector, and means are
    # products with a row: of the patches, and without a kernel of what they became.
    means = T * D if kernel else 2 * T * D  # the first also picks the class token
    deployed = T * D**2 + N * D * kernel**2 + means + D**2 + D * C
    assert count_macs(head.deployed(), hidden) == deployed


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("average", [False, True])
def test_macs_of_gah(window: int, average: bool) -> None:
    config = architecture("vit-tiny").replace(gah_average=average)
    head = exit_head(config, ExitConfig(9, "gah", window=window)).eval()
    side = 14 // window if average else math.ceil(14 / window)
    kept = side**2
    hidden = torch.zeros(1, T, D)
    # Paper Eq. 7.
    assert count_macs(Features(head), hidden) == 4 * kept * D**2 + 2 * kept**2 * D
    # Deployed, the tokens are weighed per head before the value projection, which sees one row
    # per head; the projection sees one row, and the class token is picked by a product.
    deployed = 2 * kept * D**2 + kept**2 * D + 8 * kept * D + D**2 + D**2 + D * C + T * D
    assert count_macs(head.deployed(), hidden) == deployed


def test_macs_of_segments_add_up(tiny_model: LGViT) -> None:
    config = tiny_model.config
    whole = count_macs(baseline(tiny_model), example_input(config, None))
    segments = [count_macs(s.module, example_input(config, s.index)) for s in cut(tiny_model)]
    hidden = torch.zeros(1, 17, 32)
    heads = [count_macs(head.deployed(), hidden) for head in tiny_model.heads]
    assert sum(segments) == whole + sum(heads)


def test_macs_scale_with_the_batch(tiny_model: LGViT) -> None:
    one, four = (
        count_macs(baseline(tiny_model), example_input(tiny_model.config, None, batch=b))
        for b in (1, 4)
    )
    assert four == 4 * one


# Parameters.


@pytest.mark.parametrize(
    ("name", "parameters"), [("deit-tiny", 5_717_416), ("vit-base", 86_567_656)]
)
def test_parameters_of_published_backbones(name: str, parameters: int) -> None:
    with torch.device("meta"):
        assert count_parameters(LGViT(architecture(name))) == parameters


@pytest.mark.parametrize("input", ["uint8", "float32"])
def test_parameters_of_segments_add_up(input: str) -> None:
    model = randomised(EVERY)
    assert sum(s.parameters for s in cut(model, input=input)) == count_parameters(model)


def test_parameters_of_the_default_heads() -> None:
    config = architecture("vit-tiny").replace(exits=default_heads([4, 6, 8, 10]))
    with torch.device("meta"):
        heads = [count_parameters(head) for head in LGViT(config).heads]
    classifier, norm, point = D * C + C, 2 * D, D**2 + D
    lph3 = 2 * point + 9 * D + D + 3 * norm + classifier
    lph0 = 2 * point + 2 * norm + classifier
    gah = 3 * D**2 + point + classifier
    assert heads == [lph3, lph0, gah, gah]
