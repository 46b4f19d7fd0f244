"""Every family with every kind of head: what is exported computes what was trained."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from small import vit
from torch import Tensor, nn

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.architecture.heads import HEAD_KINDS
from lgvit_edge.export.checks import sample_images
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.model import LGViT, baseline, cut
from lgvit_edge.model.heads import ExitHead
from lgvit_edge.model.heads.encoder import EncoderHead
from lgvit_edge.model.heads.gah import GlobalAggregation
from lgvit_edge.model.randomised import randomised

Flags = dict[str, Any]
FORMS: dict[str, Flags] = {
    "vit": {"family": "vit"},
    "deit": {"family": "deit"},
    "deit-distilled": {"family": "deit", "prefix_tokens": 2, "classifiers": 2},
    # Hugging Face's plain DeiT: the distillation token attends but is not classified.
    "deit-one-of-two": {"family": "deit", "prefix_tokens": 2},
    "swin": {
        **{"family": "swin", "prefix_tokens": 0, "pooling": "mean", "window_size": 3},
        **{"depths": (4, 4, 4), "stage_heads": (2, 4, 8)},
    },
}
# Every kind and size of head, for blocks 1 to 11; what needs a large map comes first.
SIZED: tuple[tuple[Any, ...], ...] = (
    *(("gah", 3), ("lph", 5), ("conv",), ("encoder", 24), ("gah", 2), ("lph", 3)),
    *(("attention",), ("mlp",), ("lph", 0), ("encoder",), ("gah", 1)),
)
EVERY_HEAD = tuple(ExitConfig(block, *head) for block, head in enumerate(SIZED, 1))
PAPER = {"lph_residual": False, "gah_average": True}


def every(form: str, grid: int = 5, **changes: Any) -> LGViTConfig:
    """12 blocks with all heads on ``grid x grid`` tokens."""
    side = 4 * grid
    spec = Preprocess(side + 2, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    sizes = dict(patch_size=4, num_blocks=12, intermediate_size=24, num_classes=5)
    config = vit(**FORMS[form], image_size=side, **sizes, exits=EVERY_HEAD, preprocess=spec)
    return config.replace(**changes)


def hidden_states(config: LGViTConfig, block: int, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(block)
    return torch.randn(count, *config.hidden_shape(block), generator=generator)


close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)


def test_every_kind_of_head_is_here() -> None:
    assert {exit.head for exit in EVERY_HEAD} == set(HEAD_KINDS)


@pytest.mark.parametrize("grid", [4, 5])
@pytest.mark.parametrize("flags", [{}, PAPER], ids=["authors", "paper"])
@pytest.mark.parametrize("form", FORMS)
def test_deployed_heads_compute_what_was_trained(form: str, flags: Flags, grid: int) -> None:
    """All on the large map of the first block, so that odd sides and windows meet every head."""
    config = every(form, grid, exits=(), **flags)
    for head in SIZED:
        model = randomised(LGViT(config.replace(exits=(ExitConfig(1, *head),))))
        (trained,) = model.heads
        hidden = hidden_states(config, 1)
        with torch.no_grad():
            expected = trained(hidden)
            actual = trained.deployed()(hidden)  # type: ignore[operator]
        assert expected.shape == (3, 5)
        assert expected.std(dim=0).min() > 0.01, "a head that reads nothing would pass too"
        close(actual, expected)


@pytest.mark.parametrize("form", FORMS)
def test_deployed_heads_know_the_stage_they_stand_in(form: str) -> None:
    config = every(form)
    model = randomised(LGViT(config))
    for head, exit in zip(model.heads, config.exits, strict=True):
        hidden = hidden_states(config, exit.block)
        with torch.no_grad():
            close(head.deployed()(hidden), head(hidden))  # type: ignore[operator]


@pytest.mark.parametrize("form", ["vit", "deit-distilled", "deit-one-of-two"])
def test_pooled_bodies_are_the_mean_of_their_features(form: str) -> None:
    config = every(form)
    prefix = config.prefix_tokens
    for head, exit in zip(randomised(LGViT(config)).heads, config.exits, strict=True):
        assert isinstance(head, ExitHead)
        if exit.head in ("mlp", "encoder"):
            continue  # they read prefix tokens, not a mean
        hidden = hidden_states(config, exit.block)
        with torch.no_grad():
            features = head.features(hidden)
            residual = hidden[:, prefix:].mean(dim=1) if head.body.residual else 0  # type: ignore
            pooled = head.body.pooled(prefix)  # type: ignore[union-attr, operator]
            close(pooled(hidden)[:, 0] + residual, features.mean(dim=1))
            close(head.classify(hidden, features), head(hidden))


def test_folded_bodies_are_their_features() -> None:
    config = every("swin")
    for head, exit in zip(randomised(LGViT(config)).heads, config.exits, strict=True):
        if exit.head not in ("mlp", "encoder"):
            hidden = hidden_states(config, exit.block)
            with torch.no_grad():
                close(head.body.folded()(hidden), head.features(hidden))  # type: ignore


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("form", ["vit", "deit-distilled", "deit-one-of-two"])
def test_encoder_heads_are_evaluated_at_the_prefix_only(form: str, qkv_bias: bool) -> None:
    config = every(form, exits=(ExitConfig(4, "encoder"),), qkv_bias=qkv_bias)
    (head,) = randomised(LGViT(config)).heads
    assert isinstance(head, EncoderHead)
    with torch.no_grad():
        # Scores far apart, and a key bias that must cancel: it is not in the deployed form.
        head.block.attention.query.weight.mul_(4)  # type: ignore[union-attr, operator]
        if qkv_bias:
            head.block.attention.key.bias.mul_(20)  # type: ignore[union-attr, operator]
        deployed = head.deployed()
        assert isinstance(deployed, nn.Sequential)
        hidden = hidden_states(config, 4)
        full = head.block(hidden)
        assert full.shape == hidden.shape
        close(deployed[0](hidden), full[:, : config.classifiers])


def test_encoder_heads_have_a_width_of_their_own() -> None:
    wide, usual = (
        LGViT(every("swin", exits=(ExitConfig(5, "encoder", width),))).heads[0] for width in (20, 0)
    )
    assert isinstance(wide, EncoderHead) and isinstance(usual, EncoderHead)
    assert (wide.block.fc1.out_features, usual.block.fc1.out_features) == (20, 48)
    # In a Swin it is a plain block of 8 heads that sees the whole map, as the authors have it.
    assert usual.block.attention.heads == 8 and usual.block.norm1.eps == 1e-12
    (own,) = LGViT(every("vit", exits=(ExitConfig(5, "encoder"),))).heads
    assert own.block.attention.heads == 2  # type: ignore[union-attr]


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


def chained(model: LGViT, image: Tensor, input: str) -> Tensor:
    """All exits' logits, one segment after the other: ``[B, M + 1, C]``."""
    *segments, last = cut(model, input=input)
    x, logits = image, []
    for segment in segments:
        assert segment.exit is not None
        x, exit_logits = segment.module(x)
        assert x.shape[1:] == model.config.hidden_shape(segment.exit.block)
        logits.append(exit_logits)
    return torch.stack([*logits, last.module(x)], dim=1)


def check_chain(config: LGViTConfig) -> None:
    model = randomised(LGViT(config))
    frames, normalised = sample_images(config, "uint8")
    with torch.no_grad():
        expected = model.exit_logits(normalised)
        assert expected.shape == (5, len(EVERY_HEAD) + 1, 5)
        assert (expected[:, 1:] - expected[:, :-1]).abs().amax(dim=(0, 2)).min() > 0.1
        assert (expected[1:] - expected[:-1]).abs().amax(dim=(0, 2)).min() > 0.01
        # Swin V2's scaled cosines enlarge what rounding makes of the folded normalisation.
        rounding = 1e-4 if config.family == "swinv2" else 1e-5
        for input, image in (("uint8", torch.from_numpy(frames)), ("float32", normalised)):
            close(chained(model, image, input), expected, atol=rounding)
            close(baseline(model, input=input)(image), expected[:, -1], atol=rounding)
        close(model(normalised), expected[:, -1])


@pytest.mark.parametrize("flags", [{}, PAPER], ids=["authors", "paper"])
@pytest.mark.parametrize("grid", [4, 7])
@pytest.mark.parametrize("form", [form for form in FORMS if form != "swin"])
def test_chained_segments_equal_exit_logits(form: str, grid: int, flags: Flags) -> None:
    check_chain(every(form, grid, **flags))


@pytest.mark.parametrize(
    ("grid", "window", "maps"),
    [
        (8, 4, [(8, 4), (4, 4), (2, 2)]),  # windows divide the map, and then are the map
        (7, 3, [(7, 3), (4, 3), (2, 2)]),  # an odd map, and windows that divide none
        (10, 4, [(10, 4), (5, 4), (3, 3)]),  # the odd map is merged, too
        (5, 2, [(5, 2), (3, 2), (2, 2)]),
    ],
)
@pytest.mark.parametrize(
    "flags",
    [{}, PAPER, {"family": "swinv2"}, {"shift_first": True}],
    ids=lambda f: min(f, default=""),
)
def test_chained_segments_of_a_swin(
    grid: int, window: int, maps: list[tuple[int, int]], flags: Flags
) -> None:
    config = every("swin", grid, window_size=window, **flags)
    assert [(b.grid, b.window) for b in config.blocks[::4]] == maps
    shifts = [block.shift for block in config.blocks[:4]]
    assert shifts == [0, window // 2, 0, window // 2]
    # Exits after blocks 4 and 8 read the tokens before a patch merging.
    assert config.hidden_shape(4) == (grid**2, 16) and config.hidden_shape(8)[1] == 32
    assert [block.merges for block in config.blocks[3:6]] == [0, grid, 0]
    check_chain(config)


@pytest.mark.parametrize("form", ["vit", "swin"])
def test_the_flags_change_what_they_name_and_nothing_else(form: str) -> None:
    config = every(form, 8, window_size=4 if form == "swin" else 0)
    model = randomised(LGViT(config))
    paper = LGViT(config.replace(**PAPER)).eval()
    paper.load_state_dict(model.state_dict())
    _, pixels = sample_images(config, "uint8")
    with torch.no_grad():
        changed = (model.exit_logits(pixels) - paper.exit_logits(pixels)).abs().amax(dim=(0, 2))
    wanted = [
        exit.head == "lph" or (exit.head == "gah" and exit.size > 1)  # 1 averages nothing
        for exit in EVERY_HEAD
    ]
    assert (changed > 1e-3).tolist() == [*wanted, False]
