"""The study of reuse: what each way computes and costs, and a whole run on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import swin, vit, write_photos
from torch import nn

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.benchmarks.experiments import reuse, reuse_training
from lgvit_edge.benchmarks.experiments.reuse_arms import (
    FinePass,
    Refined,
    Seen,
    WithFeatures,
    chain_costs,
    check_passes,
    children,
    fine_macs,
    look,
)
from lgvit_edge.benchmarks.experiments.study_rows import Measured
from lgvit_edge.errors import UsageError
from lgvit_edge.model import LGViT, block_macs, model_costs, save_checkpoint
from lgvit_edge.model.backbones.first_tokens import deployed_block
from lgvit_edge.model.macs import count_macs
from lgvit_edge.model.randomised import randomised
from lgvit_edge.policies.evaluate import ExitCosts, Images
from lgvit_edge.training.start import seeded


@pytest.fixture(scope="module")
def passes() -> tuple[LGViT, LGViT]:
    """Passes of 16 and 32 pixels: 2 x 2 patches, then 4 x 4; do not change them."""
    fine = vit(prefix_tokens=2)
    return randomised(LGViT(fine.replace(image_size=16)), 1), randomised(LGViT(fine), 2)


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(3, 3, 16, 16, generator=generator),
        torch.randn(3, 3, 32, 32, generator=generator),
    )


@torch.no_grad()
def test_looking_computes_the_coarse_pass(
    passes: tuple[LGViT, LGViT], batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    coarse, small = passes[0], batch[0]
    seen = look(coarse, small)
    torch.testing.assert_close(seen.logits, coarse(small))
    torch.testing.assert_close(seen.features, coarse.hidden_states(small)[-1][:, 2:])
    # Of four blocks' attention, a little less with each further block, all to the four patches.
    blocks, total = coarse.backbone.blocks, 0.0
    for block, hidden in list(zip(blocks, coarse.hidden_states(small), strict=False))[1:]:
        shares = block.attention.scores(block.norm1(hidden)).softmax(-1).mean(1)[:, 0, 2:]
        total = 0.99 * total + 0.01 * shares
    torch.testing.assert_close(seen.attention, total)


@torch.no_grad()
@pytest.mark.parametrize("where", ["input", "blocks"])
def test_features_begin_with_the_fine_pass(
    where: str, passes: tuple[LGViT, LGViT], batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    (coarse, fine), (small, large) = passes, batch
    arm = WithFeatures(fine, coarse.config, where=where)
    seen = look(coarse, small)
    assert torch.equal(arm(large, seen), fine(large))
    # A trained projection reads the features, and leaves the prefix tokens alone.
    for projection in arm.projections:
        nn.init.normal_(projection.weight)
    assert not torch.allclose(arm(large, seen), fine(large))
    added = [more for more, _ in zip(arm.added(seen), range(5), strict=False) if more is not None]
    assert len(added) == {"input": 1, "blocks": 5}[where]
    assert all(more.shape == (3, 18, 16) and not more[:, :2].any() for more in added)


@torch.no_grad()
def test_refining_everything_is_the_fine_pass(
    passes: tuple[LGViT, LGViT], batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    (coarse, fine), (small, large) = passes, batch
    arm, seen = Refined(fine, coarse.config, share=1.0, features=True), look(coarse, small)
    assert arm.embed(large, seen).shape == (3, 2 + 16, 16)
    torch.testing.assert_close(arm(large, seen), fine(large))  # in another order of the tokens
    plain = Refined(fine, coarse.config, share=1.0)
    assert fine_macs(plain, coarse.config) == model_costs(fine).baseline


@torch.no_grad()
def test_the_most_attended_patches_are_refined(
    passes: tuple[LGViT, LGViT], batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    (coarse, fine), (small, large) = passes, batch
    attention = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]])
    seen = look(coarse, small)
    seen = Seen(small, seen.logits, seen.features, attention)
    arm = Refined(fine, coarse.config, share=0.3)  # two of four, as none is cut in parts
    tokens = arm.embed(large, seen)
    assert tokens.shape == (3, 2 + 8 + 2, 16)
    whole = fine.backbone.embedding(large)
    coarsely = fine.resized(16).backbone.embedding(small)
    torch.testing.assert_close(tokens[:, :2], whole[:, :2])
    # Of a map of 4 x 4, the upper right quarter, then the lower right one.
    upper_right, lower_right = [2, 3, 6, 7], [10, 11, 14, 15]
    places = 2 + torch.tensor(upper_right + lower_right)
    torch.testing.assert_close(tokens[0, 2:10], whole[0, places])
    torch.testing.assert_close(tokens[0, 10:], coarsely[0, 2 + torch.tensor([2, 0])])
    assert children(torch.tensor([[4]]), 3).tolist() == [[14, 15, 20, 21]]


def test_macs_of_every_way(passes: tuple[LGViT, LGViT]) -> None:
    coarse, fine = passes
    first, plain = model_costs(coarse).baseline, model_costs(fine).baseline
    whole_block = block_macs(coarse.config)[-1]
    assert chain_costs(coarse, FinePass(fine)) == ExitCosts(
        (5, 10), 5, (first, first + plain), plain
    )
    once = WithFeatures(fine, coarse.config, where="input")
    assert chain_costs(coarse, once).macs[1] == first + whole_block + plain + 4 * 16 * 16
    often = WithFeatures(fine, coarse.config, where="blocks")
    context = 4 * 16 * 48 + 5 * 4 * 48 * 16
    assert chain_costs(coarse, often).macs[1] == first + whole_block + plain + context
    # Half of four patches: 8 fine and 2 coarse ones beside two prefix tokens.
    embedding, tokens = 10 * 16 * 3 * 8 * 8, 12
    block = tokens * (4 * 16 * 16 + 2 * 16 * 32) + 2 * tokens**2 * 16
    last = fine.backbone.blocks[-1]
    refined = Refined(fine, coarse.config, share=0.5)
    ending = count_macs(deployed_block(last, 1), torch.zeros(1, tokens, 16)) + 16 * 3
    found = chain_costs(coarse, refined)
    assert found.macs == (first, first + embedding + 4 * block + ending)
    features = Refined(fine, coarse.config, share=0.5, features=True)
    assert chain_costs(coarse, features).macs[1] == found.macs[1] + whole_block + 2 * 16 * 16


def test_passes_that_do_not_fit_are_refused() -> None:
    fine = vit()
    check_passes(fine.replace(image_size=16), fine)
    with pytest.raises(UsageError) as refused:
        check_passes(swin(num_classes=3), fine.replace(labels=("a", "b", "c")))
    assert "coarse pass: expected a ViT or DeiT that reads its class token" in str(refused.value)
    assert "same classes" in str(refused.value) and "twice as many patches" in str(refused.value)
    with pytest.raises(UsageError, match="the fine pass: expected positions in the embedding"):
        check_passes(fine.replace(image_size=16), fine.replace(relative_positions=True))


def test_a_gain_is_against_the_control_on_the_same_images() -> None:
    """One image in four is answered rightly by the arm alone; the error is that of the images."""
    costs = ExitCosts((1, 2), 1, macs=(10, 110), baseline_macs=100)

    def chain(right: list[bool]) -> Measured:
        logits = np.zeros((2 * len(right), 2, 2), np.float32)
        logits[:, :, 0] = np.repeat(np.where(right, 9.0, -9.0), 2)[:, None]
        return Measured(Images(logits, np.zeros(len(logits), np.int64)), costs)

    runs = {
        "control": [chain([True, True, False, False])],
        "features input": [chain([True, True, True, False])],
    }
    arms = [{"name": name, **reuse.summary(run)} for name, run in runs.items()]
    rows = reuse.gains(arms, runs)
    assert {row["arm"] for row in rows} == {"features input"}
    assert [row["gain"] for row in rows] == [0.25] * len(rows)
    assert rows[0]["error"] == pytest.approx((0.25 * 0.75 / 4) ** 0.5)
    assert "| features input | confidence | >= 1.6x | +25.00 +- 21.65 |" in reuse.gains_table(
        {"gains": rows}
    )
    assert reuse.gains(arms[1:], runs) == []


def test_the_whole_study(
    tmp_path: Path, small_config: LGViTConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part, count in (("train", 6), ("val", 6)):
        write_photos(tmp_path / "data" / part, "ab", count)
    fine = seeded(small_config.replace(exits=(), labels=("a", "b")), 0).eval()
    save_checkpoint(fine, tmp_path / "start.pt")
    (tmp_path / "coarse" / "0").mkdir(parents=True)
    save_checkpoint(fine.resized(8), tmp_path / "coarse" / "0" / "8-taught-0-8.pt")
    out = tmp_path / "out"

    def run(**options: Any) -> None:
        given = {"data": tmp_path / "data", "out": out, "backbone": str(tmp_path / "start.pt")}
        given |= {"coarse": tmp_path / "coarse", "epochs": 2, "seeds": "0", "workers": 0}
        given |= {"only": "control,features blocks,refined features"}
        reuse.main(**{**given, "precision": "fp32", "images": 8, "val_images": 10, **options})

    # Interrupted in the second epoch, it goes on after the first.
    def stopped(path: Path, progress: Any, identity: dict[str, str]) -> None:
        written(path, progress, identity)
        raise KeyboardInterrupt

    written = reuse_training.write_progress
    with monkeypatch.context() as patch:
        patch.setattr(reuse_training, "write_progress", stopped)
        with pytest.raises(KeyboardInterrupt):
            run()
    begun = (out / "control-0.log.csv").read_text().splitlines()
    run()
    log = (out / "control-0.log.csv").read_text().splitlines()
    assert log[:2] == begun and len(log) == 3

    record = json.loads((out / "reuse.json").read_text())
    names = [arm["name"] for arm in record["arms"]]
    assert names == ["as it is", "control", "features blocks", "refined features"]
    assert (record["conditions"]["choosing"], record["conditions"]["reporting"]) == (5, 5)
    # The coarse pass is the same for all, and the control costs what the untrained chain does.
    assert len({arm["exit_accuracies"][0] for arm in record["arms"]}) == 1
    macs = {arm["name"]: arm["macs"] for arm in record["arms"]}
    assert macs["control"] == macs["as it is"]
    assert macs["refined features"][1] < macs["control"][1] < macs["features blocks"][1]
    assert {row["arm"] for row in record["gains"]} <= set(names[2:])
    assert "against the control" in (out / "reuse.md").read_text()
    assert (out / "reuse.csv").read_text().startswith("arm,policy,")
    assert (out / "reuse.png").read_bytes()[:4] == b"\x89PNG"

    # What is there is not trained again, nor are answers computed again from a trained pass.
    (out / "refined-features-0.5-0.npz").unlink()
    stored = {path: path.stat().st_mtime_ns for path in out.glob("*.[pn][tp]*")}
    run()
    assert {path: path.stat().st_mtime_ns for path in stored} == stored
    assert json.loads((out / "reuse.json").read_text())["arms"] == record["arms"]
    for options, message in (
        ({"epochs": 3}, r"is of other settings \(epochs\); give another folder"),
        ({"only": "feature"}, "--only: expected some of control, .* found 'feature'"),
        ({"lr": "1e-3"}, "--lr: expected two rates"),
        ({"share": 0.0}, "--share: expected above 0 and at most 1, found 0"),
        ({"seeds": "1"}, "--coarse: expected one 8-taught-1-8.pt .* found 0"),
        ({"data": tmp_path / "data" / "train"}, "expected val/ beside train/"),
    ):
        with pytest.raises(UsageError, match=message):
            run(**options)
