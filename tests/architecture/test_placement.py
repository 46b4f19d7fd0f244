"""Where exits go, by MACs or by a scheme, and which heads they get."""

from __future__ import annotations

import itertools
import random

import pytest

from lgvit_edge.architecture.config import ExitConfig
from lgvit_edge.architecture.families import FAMILIES
from lgvit_edge.architecture.heads import head_choices
from lgvit_edge.architecture.placement import default_heads, plan_exits
from lgvit_edge.architecture.published import architecture, architectures
from lgvit_edge.errors import ConfigError
from lgvit_edge.model import block_macs

EQUAL = [100] * 12


def blocks(text: str, macs: list[int] | None = None) -> list[int]:
    return [exit.block for exit in plan_exits(text, macs or EQUAL)]


def between(macs: list[int], exits: list[int]) -> list[int]:
    """MACs between adjacent exits."""
    return [sum(macs[a:b]) for a, b in itertools.pairwise(exits)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("uniform:8", [4, 5, 6, 7, 8, 9, 10, 11]),  # the paper's
        *[("uniform:2", [4, 8]), ("uniform:1", [4])],
        # Table 7 of the paper.
        ("shallow:4", [2, 3, 4, 5]),
        ("middle:4", [6, 7, 8, 9]),
        ("deep:4", [8, 9, 10, 11]),
        ("uniform:4", [4, 6, 8, 10]),
        # As far as there are blocks.
        *[("shallow:1", [2]), ("middle:1", [6]), ("deep:1", [11])],
        *[(f"{scheme}:11", list(range(1, 12))) for scheme in ("uniform", "shallow", "deep")],
        ("shallow:10", list(range(2, 12))),
        *[(f"middle:{count}", list(range(12 - count, 12))) for count in (6, 8)],
        *[("4,6,8,10", [4, 6, 8, 10]), (" 4, 6 ", [4, 6]), ("11", [11]), ("none", [])],
    ],
)
def test_exits_of_twelve_equal_blocks(text: str, expected: list[int]) -> None:
    assert blocks(text) == expected


@pytest.mark.parametrize(
    ("macs", "text", "expected"),
    [
        # A third of 1200 is spent within the first block, two thirds within the second.
        ([500, 300, 100, 100, 100, 100], "uniform:2", [1, 2]),
        ([100, 100, 100, 100, 300, 500], "uniform:2", [4, 5]),
        # The targets crowd in the first block: exits move on, one per block.
        ([1000, 1, 1, 1, 1, 1], "uniform:3", [1, 2, 3]),
        # They crowd in the last: room is left for all, none after the final block.
        ([1, 1, 1, 1, 1, 1000], "uniform:3", [3, 4, 5]),
        # The other schemes do not look at MACs.
        ([1000, 1, 1, 1, 1, 1], "middle:2", [3, 4]),
        ([1, 1, 1, 1, 1, 1000], "shallow:2", [2, 3]),
        # Networks that are shorter than the scheme's first block.
        *[([1, 1], f"{scheme}:1", [1]) for scheme in ("shallow", "middle", "deep")],
        ([1, 1, 1], "middle:1", [1]),
        ([1, 1, 1, 1], "shallow:3", [1, 2, 3]),
    ],
)
def test_exits_of_other_networks(macs: list[int], text: str, expected: list[int]) -> None:
    assert blocks(text, macs) == expected


def test_uniform_exits_are_sorted_and_in_range_whatever_the_costs() -> None:
    for macs in itertools.product([1, 7, 50], repeat=5):
        for count in range(1, 5):
            exits = blocks(f"uniform:{count}", list(macs))
            assert exits == sorted(set(exits))
            assert len(exits) == count
            assert 1 <= exits[0] and exits[-1] <= 4


@pytest.mark.parametrize("scheme", ["shallow", "middle", "deep"])
def test_other_schemes_give_blocks_that_follow_each_other(scheme: str) -> None:
    for depth in range(2, 26):
        for count in range(1, depth):
            exits = blocks(f"{scheme}:{count}", [1] * depth)
            assert exits == list(range(exits[0], exits[0] + count))
            assert 1 <= exits[0] and exits[-1] < depth
            if scheme == "deep":
                assert exits[-1] == depth - 1


def test_adjacent_uniform_exits_cost_about_the_same_wherever_blocks_allow_it() -> None:
    """Exits can only stand between blocks: each is off by half a block at most."""
    rng = random.Random(0)
    tried = 0
    for _ in range(400):
        depth, count = rng.randint(12, 48), rng.randint(2, 8)
        macs = [rng.randint(50, 150) for _ in range(depth)]
        step, largest = 2 * sum(macs) / (3 * count), max(macs)
        if largest > step / 2:
            continue  # then a block is more than what lies between two exits
        exits, tried = blocks(f"uniform:{count}", macs), tried + 1
        assert abs(sum(macs[: exits[0]]) - sum(macs) / 3) <= largest / 2
        gaps = [*between(macs, exits), sum(macs[exits[-1] :])]
        assert all(abs(gap - step) <= largest for gap in gaps)
        assert max(gaps) <= 3 * min(gaps)
    assert tried > 100


@pytest.mark.parametrize(
    ("name", "count", "ratio"),
    [("swin-tiny", 4, 1.1), ("swin-tiny", 8, 1.2), ("swin-base", 8, 1.2)],
)
def test_uniform_exits_of_a_swin(name: str, count: int, ratio: float) -> None:
    """Its blocks cost up to a fifth more where a stage begins."""
    macs = block_macs(architecture(name))
    assert max(macs) > 1.15 * min(macs)
    exits = blocks(f"uniform:{count}", macs)
    gaps = between(macs, exits)
    assert len(exits) == count and max(gaps) < ratio * min(gaps)
    assert sum(macs[: exits[0]]) == pytest.approx(sum(macs) / 3, rel=0.05)


FORM = "exits must be uniform:M, shallow:M, .* or a list of blocks such as 4,6,8,10; found"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *[(text, f"{FORM} '{text}'") for text in ("", "eight", "uniform", "uniform:", "uniform:x")],
        *[(text, f"{FORM} '{text}'") for text in ("uniform:2.5", "deepest:4", "deep:4:2")],
        *[(text, f"{FORM} '{text}'") for text in ("4,,6", "4;6", "None")],
        *[(text, FORM) for text in ("__import__('os')", "uniform:" + "9" * 5000)],
        *[
            (f"{scheme}:{count}", f"{scheme}:M needs 1 <= M <= 11 here, found M = {count}")
            for scheme in ("uniform", "shallow", "middle", "deep")
            for count in (0, 12, -1)
        ],
        ("6,4", r"exits must be sorted blocks in 1\.\.11 .* found '6,4'"),
        *[(text, "exits must be sorted blocks") for text in ("4,4", "0,4", "-1")],
        ("4,12", r"\(block 12 ends in the final classifier\), found '4,12'"),
    ],
)
def test_exits_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_exits(text, EQUAL)


def test_one_block_leaves_no_room_for_an_exit() -> None:
    assert plan_exits("none", [1]) == ()
    for text in ("uniform:1", "deep:1"):
        with pytest.raises(ConfigError, match=r":M needs 1 <= M <= 0 here, found M = 1"):
            plan_exits(text, [1])


@pytest.mark.parametrize(
    ("family", "count", "kernels", "windows"),
    [
        ("vit", 8, [3, 3, 0, 0], [2, 2, 3, 3]),  # the authors'
        ("vit", 4, [3, 0], [2, 3]),
        ("vit", 2, [3], [2]),
        ("vit", 1, [3], []),
        ("vit", 3, [3, 0], [2]),
        ("vit", 6, [3, 3, 0], [2, 2, 3]),
        ("deit", 8, [3, 3, 0, 0], [2, 2, 3, 3]),
        ("swin", 8, [3, 3, 0, 0], [1, 1, 2, 2]),  # the authors'
        ("swin", 4, [3, 0], [1, 2]),
        ("swin", 2, [3], [1]),
    ],
)
def test_local_heads_below_and_global_heads_above(
    family: str, count: int, kernels: list[int], windows: list[int]
) -> None:
    exits = default_heads(range(1, count + 1), family=family)
    assert [e.block for e in exits] == list(range(1, count + 1))
    assert [e.head for e in exits] == ["lph"] * len(kernels) + ["gah"] * len(windows)
    assert [e.size for e in exits if e.head == "lph"] == kernels
    assert [e.size for e in exits if e.head == "gah"] == windows
    assert plan_exits(f"deep:{count}", [1] * (count + 1), family=family) == exits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("heads", ["mlp", "conv", "attention", "encoder"])
def test_one_kind_of_head_for_all_exits(heads: str, family: str) -> None:
    expected = tuple(ExitConfig(block, heads) for block in (6, 7, 8, 9))
    assert plan_exits("middle:4", EQUAL, heads=heads, family=family) == expected


@pytest.mark.parametrize("heads", ["lph", "gah", "LGViT", "", "transformer"])
def test_unknown_heads_are_refused(heads: str) -> None:
    """LPH and GAH alone need sizes, which follow from both together."""
    message = f"heads must be one of lgvit, mlp, conv, attention, encoder, found '{heads}'"
    with pytest.raises(ConfigError, match=message):
        plan_exits("4,8", EQUAL, heads=heads)


@pytest.mark.parametrize("heads", head_choices())
@pytest.mark.parametrize("name", architectures())
def test_every_published_backbone_takes_every_kind_of_head(name: str, heads: str) -> None:
    config = architecture(name)
    macs = [1] * config.num_blocks
    for text in ("uniform:8", "shallow:4", "deep:4"):
        exits = plan_exits(text, macs, heads=heads, family=config.family)
        assert config.replace(exits=exits).exits == exits
