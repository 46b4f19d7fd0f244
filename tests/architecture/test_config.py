"""Configurations: exits by MACs, head sizes, JSON both ways, and JSON nobody should trust."""

from __future__ import annotations

import copy
import functools
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from small import swin

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.architecture.placement import default_heads
from lgvit_edge.architecture.published import architecture, architectures
from lgvit_edge.errors import ConfigError
from lgvit_edge.images.spec import Preprocess


@pytest.mark.parametrize(
    ("exit", "message"),
    [
        (lambda: ExitConfig(4, "lgvit"), "head must be one of lph, gah, mlp, .*, found 'lgvit'"),
        (lambda: ExitConfig(4, "mlp", 2), "mlp has no size, found 2"),
        (lambda: ExitConfig(4, "encoder", -1), "encoder width must be 0..65536, found -1"),
        (lambda: ExitConfig(4, "lph", -3), "lph kernel must be 0..65536, found -3"),
        (lambda: Preprocess(resize=0), r"resize must be 1\.\.65536, found 0"),
        (lambda: Preprocess(interpolation="area"), "bilinear, bicubic, .* found 'area'"),
        (lambda: Preprocess(std=(1.0, 0.0, 1.0)), r"std must be positive, found \(1\.0, 0\.0"),
        (lambda: Preprocess(std=(float("nan"),) * 3), "std must be positive"),
    ],
)
def test_parts_that_are_refused(exit: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        exit()


LPH = ExitConfig(1, "lph")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "resnet"}, "family must be one of vit, deit, swin, swinv2, found 'resnet'"),
        ({"image_size": 0}, r"image_size must be 1\.\.65536, found 0"),
        ({"hidden_size": -32}, r"hidden_size must be 1\.\.65536, found -32"),
        ({"num_classes": 10**9}, r"num_classes must be 1\.\.65536, found 1000000000"),
        ({"num_blocks": 10**6}, r"num_blocks must be 1\.\.65536, found 1000000"),
        ({"num_blocks": 60_000}, r"num_blocks must be 1\.\.1000, found 60000"),
        ({"image_size": 30}, "image_size 30 is not a multiple of patch_size 8"),
        ({"num_heads": 3}, "hidden_size 32 is not a multiple of num_heads 3"),
        (
            {"classifiers": 2},
            "one classifier, or two that read a prefix token each, found 2 with 1 prefix_tokens",
        ),
        ({"prefix_tokens": 17}, "a vit has at most 16 prefix_tokens, found 17"),
        ({"classifiers": 0}, "one classifier, .* found 0 with 1"),
        (
            {"prefix_tokens": 0},
            "pooling must be mean or attention without prefix_tokens, found token",
        ),
        ({"pooling": "max"}, "pooling must be one of token, mean, both, attention, found 'max'"),
        ({"activation": "mish"}, "activation must be one of gelu, .* found 'mish'"),
        ({"final_norm": "pooled"}, "final_norm must be tokens unless pooling is mean, found .pool"),
        ({"final_norm": "batch"}, "final_norm must be one of tokens, pooled, found 'batch'"),
        (
            {"relative_positions": True, "prefix_tokens": 2},
            "relative_positions need one prefix token, found 2",
        ),
        ({"layer_norm_eps": 0.0}, r"layer_norm_eps must be in 0..1, found 0\.0"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be in 0..1, found nan"),
        *[
            ({"exits": tuple(ExitConfig(block, "lph") for block in blocks)}, message)
            for blocks, message in (
                ([2, 1], r"exits must be sorted, each after a block of its own, found \[2, 1\]"),
                ([1, 1], r"each after a block of its own, found \[1, 1\]"),
                ([0], r"must lie after blocks 1\.\.3 .* found \[0\]"),
                ([4], r"\(the final classifier follows block 4\), found \[4\]"),
            )
        ],
        (
            {"hidden_size": 36, "exits": (ExitConfig(1, "gah", 1),)},
            "gah after block 1: it has 8 attention heads, and width 36 is no multiple of 8",
        ),
        (
            {"exits": (ExitConfig(1, "gah", 5),)},
            r"gah after block 1: its window must be 1\.\.4 on 4 x 4 tokens, not 5",
        ),
        ({"exits": (ExitConfig(1, "gah"),)}, r"its window must be 1\.\.4 on 4 x 4 tokens, not 0"),
        ({"exits": (ExitConfig(1, "lph", 2),)}, "lph after block 1: its kernel must be 0 or odd"),
        ({"exits": (ExitConfig(1, "lph", 9),)}, "and at most 8 on 4 x 4 tokens, not 9"),
        ({"labels": ("a", "b")}, "expected 5 labels, found 2"),
        ({"preprocess": Preprocess(resize=31)}, "the crop of 32 is larger than resize 31"),
    ],
)
def test_contradictions_are_refused(
    tiny_config: LGViTConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config.replace(**changes)


SWIN = swin(image_size=40, patch_size=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefix_tokens": 1}, "a swin has at most 0 prefix_tokens, found 1"),
        ({"classifiers": 2}, "one classifier, .* found 2 with 0 prefix_tokens and pooling mean"),
        ({"gated": True}, "a swin has no gated"),
        ({"qk_norm": True}, "a swin has no qk_norm"),
        ({"depths": ()}, r"1 to 8 stages of at least one block, 4 in all, found depths \[\]"),
        ({"depths": (2, 3)}, r"4 in all, found depths \[2, 3\]"),
        ({"depths": (4, 0)}, r"stages of at least one block, 4 in all, found depths \[4, 0\]"),
        ({"stage_heads": (2,)}, r"stage_heads per stage, 2 in the first, found \[2\]"),
        ({"stage_heads": (4, 8)}, r"2 in the first, found \[4, 8\]"),
        ({"stage_heads": (2, 5)}, r"widths \[16, 32\] are not multiples of stage_heads \[2, 5\]"),
        ({"stage_heads": (2, 0)}, r"are not multiples of stage_heads \[2, 0\]"),
        ({"window_size": 0}, r"window_size must be 1\.\.256, found 0"),
        ({"window_mask": 10**5}, r"window_mask must be 1\.\.10000, found 100000"),
        ({"family": "swinv2", "gated": True}, "a swinv2 has no gated"),
        (
            dict(family="vit", depths=(), stage_heads=(), window_size=0, shift_first=True),
            "a vit has no shift_first and window_mask",
        ),
        (
            dict(family="vit", depths=(), stage_heads=(), window_size=0, window_mask=200),
            "a vit has no shift_first and window_mask",
        ),
        (
            {"family": "vit", "prefix_tokens": 1},
            r"a vit has no depths, .* found \[2, 2\], \[2, 4\] and 4",
        ),
        (
            {"exits": (ExitConfig(3, "gah", 6),)},
            r"gah after block 3: its window must be 1\.\.5 on 5 x 5 tokens, not 6",
        ),
        (
            dict(hidden_size=12, exits=(ExitConfig(2, "encoder"), ExitConfig(3, "gah", 1))),
            "encoder after block 2: it has 8 attention heads, and width 12 is no multiple",
        ),
    ],
)
def test_contradictions_of_a_swin_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SWIN.replace(**changes)


def test_blocks_of_a_swin_have_the_sizes_of_their_stage() -> None:
    sizes = [(b.dim, b.grid, b.num_heads, b.window, b.shift, b.merges) for b in SWIN.blocks]
    first, second = [(16, 10, 2, 4, 0, 0), (16, 10, 2, 4, 2, 0)], (32, 5, 4, 4, 2, 0)
    assert sizes == [*first, (32, 5, 4, 4, 0, 10), second]
    # A map no larger than a window is one window, and is not shifted.
    whole = [(b.grid, b.window, b.shift) for b in SWIN.replace(window_size=5).blocks]
    assert whole == [(10, 5, 0), (10, 5, 2), (5, 5, 0), (5, 5, 0)]
    assert [SWIN.hidden_shape(block) for block in (2, 3)] == [(100, 16), (25, 32)]
    assert LGViTConfig.from_json(json.loads(json.dumps(SWIN.to_json()))) == SWIN


def test_contradictions_are_reported_together(tiny_config: LGViTConfig) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_config.replace(family="resnet", num_heads=3, labels=("a",), exits=(LPH, LPH))
    parts = ("family must", "num_heads 3", "exits must be sorted", "expected 5 labels")
    assert all(part in str(caught.value) for part in parts)


def test_every_architecture_is_valid() -> None:
    assert len(architectures()) == 18
    for name in architectures():
        config = architecture(name, num_classes=10, image_size=384)
        swin = config.family in ("swin", "swinv2")
        assert (config.num_classes, config.grid, config.exits) == (10, 96 if swin else 24, ())
        assert config.preprocess.resize == 438  # floor(384 / 0.875), as timm
        assert config.hidden_size == (32 if swin else 64) * config.num_heads
        assert config.classifiers == 1 + name.endswith("distilled")
        assert config.prefix_tokens == (0 if swin else config.classifiers)
        assert config.window_size == (12 if swin else 0)


def test_architectures_bring_the_preprocessing_they_were_trained_with() -> None:
    assert architecture("vit-base").preprocess == Preprocess(256, "bilinear")
    deit = architecture("deit-tiny").preprocess
    assert (deit.resize, deit.interpolation, deit.mean[0]) == (256, "bicubic", 0.485)


def test_unknown_architecture() -> None:
    with pytest.raises(ConfigError, match="unknown architecture 'vit-huge'; known: vit-tiny, "):
        architecture("vit-huge")


def test_json_round_trip(tiny_config: LGViTConfig) -> None:
    for config in (
        tiny_config,
        tiny_config.replace(exits=(), labels=("ä", "b", "c", "d", "e")),
        architecture("deit-base-distilled").replace(exits=default_heads([4, 6, 8, 10])),
    ):
        text = json.dumps(config.to_json())
        assert LGViTConfig.from_json(json.loads(text)) == config


def test_json_may_leave_out_defaults_and_points_of_numbers(tiny_config: LGViTConfig) -> None:
    data = tiny_config.to_json() | {"layer_norm_eps": 1}
    del data["exits"], data["labels"], data["preprocess"], data["qkv_bias"]
    config = LGViTConfig.from_json(data)
    assert (config.exits, config.labels, config.qkv_bias) == ((), (), True)
    assert config.layer_norm_eps == 1.0


def test_all_faults_of_hostile_json_are_reported_together(tiny_config: LGViTConfig) -> None:
    data: dict[str, Any] = copy.deepcopy(tiny_config.to_json())
    del data["patch_size"], data["num_heads"]
    data |= dict(evil={"__class__": "os.system"}, image_size="32", hidden_size=32.0)
    data |= dict(num_blocks=True, qkv_bias=1, labels=["a", 2, None], family=["vit"])
    data["exits"] = [{"block": 1, "head": "lph", "depth": 3}, "lph", {"head": "gah"}, None]
    data["preprocess"]["mean"] = [0.5, 0.5]
    data["preprocess"]["std"] = {"r": 1}
    with pytest.raises(ConfigError) as caught:
        LGViTConfig.from_json(data)
    assert set(str(caught.value).split("; ")) == {
        *("config: unknown key 'evil'", "config: missing key 'patch_size'"),
        *("config: missing key 'num_heads'", "config.exits[2]: missing key 'block'"),
        "config.image_size: expected a whole number, found '32'",
        "config.hidden_size: expected a whole number, found 32.0",
        "config.num_blocks: expected a whole number, found True",
        "config.qkv_bias: expected true or false, found 1",
        "config.labels[1]: expected a string, found 2",
        "config.labels[2]: expected a string, found None",
        "config.family: expected a string, found ['vit']",
        "config.exits[0]: unknown key 'depth'",
        "config.exits[1]: expected an object, found 'lph'",
        "config.exits[3]: expected an object, found None",
        "config.preprocess.mean: expected a list of 3, found [0.5, 0.5]",
        "config.preprocess.std: expected a list, found {'r': 1}",
    }


@pytest.mark.parametrize("data", [None, [], "config", 3, True, float("nan")])
def test_json_that_is_no_object(data: object) -> None:
    with pytest.raises(ConfigError, match="config: expected an object, found"):
        LGViTConfig.from_json(data)


def test_values_that_make_no_sense_are_named_with_their_place(tiny_config: LGViTConfig) -> None:
    data = tiny_config.to_json()
    data["exits"][1]["size"] = -2
    data["preprocess"]["resize"] = -1
    with pytest.raises(ConfigError) as caught:
        LGViTConfig.from_json(data)
    assert "config.exits[1]: lph kernel must be 0..65536, found -2" in str(caught.value)
    assert "config.preprocess: resize must be 1..65536, found -1" in str(caught.value)


def nested(depth: int) -> list[Any]:
    return functools.reduce(lambda value, _: [value], range(depth), [])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_blocks", 10**6, r"num_blocks must be 1\.\.65536"),
        ("num_blocks", -1, r"num_blocks must be 1\.\.65536, found -1"),
        ("exits", [{"block": 1, "head": "lph"}] * 100_001, "config.exits: expected a list"),
        ("labels", ["a"] * 1000, "expected 5 labels, found 1000"),
        ("labels", nested(200), r"config.labels\[0\]: expected a string, found \[\[\["),
        ("exits", nested(200), r"config.exits\[0\]: expected an object"),
        ("family", "v" * 10**6, "family must be one of vit, deit, swin"),
        ("family", {"a": "b" * 10**6}, r"expected a string, found \{'a': 'bbb[b]*\.\.\.$"),
    ],
)
def test_json_that_means_to_be_too_much(
    tiny_config: LGViTConfig, key: str, value: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        LGViTConfig.from_json(tiny_config.to_json() | {key: value})


def test_nesting_deeper_than_python_counts_is_refused(tiny_config: LGViTConfig) -> None:
    deep = nested(sys.getrecursionlimit() // 2)
    with pytest.raises(ConfigError, match="expected a whole number"):
        LGViTConfig.from_json(tiny_config.to_json() | {"image_size": deep})
