"""The model: its segments, its exits, and other image sizes."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from small import swin
from torch import Tensor

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.errors import ConfigError
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.model import LGViT, baseline, cut, example_input
from lgvit_edge.model.randomised import randomised


def frames(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, side, side, 3), np.uint8)


close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)


def test_fewer_exits_answer_as_before(tiny_model: LGViT) -> None:
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    fewer = tiny_model.with_exits([1, 3])
    with torch.no_grad():
        close(fewer.exit_logits(pixels), tiny_model.exit_logits(pixels)[:, [0, 2, 3]])
    assert [exit.block for exit in fewer.config.exits] == [1, 3]
    with pytest.raises(ConfigError, match=r"after blocks \[1, 2, 3\], found \[1, 9\]"):
        tiny_model.with_exits([1, 9])


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
    plain = randomised(LGViT(tiny_model.config.replace(exits=())))
    (only,) = cut(plain)
    images = torch.from_numpy(frames(1, 32))
    assert (only.first_block, only.last_block, only.head) == (1, 4, "final")
    with torch.no_grad():
        close(only.module(images), baseline(plain)(images))


def test_segments_borrow_the_trained_blocks(tiny_model: LGViT) -> None:
    with torch.no_grad():
        tiny_model.backbone.blocks[1].fc2.bias.add_(1.0)
    shared = {p.data_ptr() for s in cut(tiny_model) for p in s.module.parameters()}
    names = dict(tiny_model.backbone.blocks.named_parameters())
    copied = {name for name, tensor in names.items() if tensor.data_ptr() not in shared}
    # The last one is read at its first token: its attention is computed in another order.
    last = {"key.bias", "value.weight", "value.bias", "proj.bias"}
    assert copied == {f"3.attention.{name}" for name in last}


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


EXITS = (ExitConfig(2, "lph", 3), ExitConfig(3, "gah", 2))
SWIN = swin(exits=EXITS, preprocess=Preprocess(resize=36))


def positions(model: LGViT) -> Tensor:
    return model.backbone.embedding.position  # type: ignore[return-value]


def test_positions_are_interpolated_and_prefix_tokens_keep_theirs(tiny_model: LGViT) -> None:
    with torch.no_grad():
        ramp = torch.arange(4.0).repeat_interleave(4)  # one value per row of patches
        positions(tiny_model)[0, 1:] = ramp[:, None]
        positions(tiny_model)[0, 0] = 7.0
    larger = tiny_model.resized(64)
    grown = positions(larger)[0]
    assert grown.shape == (1 + 8 * 8, 32) and (grown[0] == 7).all()
    rows = grown[1:, 0].reshape(8, 8)
    assert torch.allclose(rows, rows[:, :1].expand(8, 8), atol=1e-5)
    assert (rows[1:, 0] > rows[:-1, 0]).all() and -0.5 < rows.min() and rows.max() < 3.5
    assert (larger.config.image_size, larger.config.preprocess.resize) == (64, 64)
    assert larger.exit_logits(torch.zeros(1, 3, 64, 64)).shape == (1, 4, 5)


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_what_does_not_depend_on_the_size_is_shared(tiny_model: LGViT, family: str) -> None:
    model = tiny_model if family == "vit" else randomised(LGViT(SWIN))
    larger, differing = model.resized(64).state_dict(), set()
    for name, tensor in model.state_dict().items():
        if larger[name].data_ptr() != tensor.data_ptr():
            differing.add(name)
    assert differing == ({"backbone.embedding.position"} if family == "vit" else set())
    assert not model.resized(64).training and model.train().resized(64).training


@pytest.mark.parametrize("family", ["swin", "swinv2"])
def test_a_swin_of_another_size_keeps_its_windows(family: str) -> None:
    """On a map of four times the area the first rows see what they saw: windows of 4 x 4."""
    model = randomised(LGViT(SWIN.replace(family=family)))
    larger = model.resized(64)
    assert {block.window for block in larger.config.blocks} == {4}
    assert larger.config.preprocess.resize == 72
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tiled = pixels.repeat(1, 1, 2, 2)
    with torch.no_grad():
        # The first block has no shift, so that its windows never look across a seam.
        small, large = model.hidden_states(pixels)[1], larger.hidden_states(tiled)[1]
        corner = large.reshape(1, 32, 32, 16)[:, :16, :16].flatten(1, 2)
        close(corner, small)
        close(larger.resized(32).exit_logits(pixels), model.exit_logits(pixels))


def test_a_swin_on_a_map_smaller_than_its_windows_keeps_the_middle_of_their_tables() -> None:
    model = randomised(LGViT(SWIN))
    small = model.resized(12)  # maps of 6 and 3
    assert [block.window for block in small.config.blocks] == [4, 4, 3, 3]
    table, cut_out = (m.backbone.blocks[3].attention.table for m in (model, small))
    assert table.shape == (49, 4) and cut_out.shape == (25, 4)
    assert torch.equal(cut_out.reshape(5, 5, 4), table.reshape(7, 7, 4)[1:6, 1:6])
    assert small.exit_logits(torch.zeros(2, 3, 12, 12)).shape == (2, 3, 5)


def test_tables_of_windows_that_were_cut_grow_again() -> None:
    small = randomised(LGViT(SWIN)).resized(12)
    with torch.no_grad():
        # Downwards one step a row, the same for all columns.
        ramp = torch.arange(5.0).repeat_interleave(5)
        small.backbone.blocks[3].attention.table[:] = ramp[:, None]  # type: ignore
    large = small.resized(32)
    assert [block.window for block in large.config.blocks] == [4] * 4
    grown = large.backbone.blocks[3].attention.table  # type: ignore[union-attr]
    assert grown.shape == (49, 4)
    rows = grown.detach().reshape(7, 7, 4)[:, :, 0]
    assert torch.allclose(rows, rows[:, :1].expand(7, 7), atol=1e-5)
    assert (rows[1:, 0] > rows[:-1, 0]).all() and float(rows[3, 0]) == pytest.approx(2.0)
    assert large.exit_logits(torch.zeros(2, 3, 32, 32)).shape == (2, 3, 5)


@pytest.mark.parametrize(
    ("config", "size", "message"),
    [
        ({}, 33, "image_size 33 is not a multiple of patch_size 2"),
        ({}, 4, r"gah after block 3: its window must be 1\.\.1 on 1 x 1 "),
        ({"exits": (ExitConfig(1, "lph", 5),)}, 4, "at most 4 on 2 x 2 tokens, not 5"),
    ],
)
def test_sizes_that_do_not_fit(config: dict[str, Any], size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LGViT(SWIN.replace(**config)).resized(size)
