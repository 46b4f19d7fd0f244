"""The losses of stage 2 against values computed by hand, and where their gradients go."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small import vit
from torch.nn import functional

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.model import LGViT
from lgvit_edge.training import ArrayDataset, TrainingConfig, losses
from lgvit_edge.training.data.batches import Batches
from lgvit_edge.training.features import hidden_states
from lgvit_edge.training.losses import Align
from lgvit_edge.training.stages import StageOne, StageTwo

KINDS = (("lph", 3), ("lph",), ("gah", 2), ("gah", 3))
EXITS = tuple(ExitConfig(block, *kind) for block, kind in enumerate(KINDS, 1))


def tiny(exits: tuple[ExitConfig, ...] = EXITS, **changes: object) -> LGViTConfig:
    return vit(exits=exits, **changes)


def close(loss: torch.Tensor, expected: float) -> None:
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


# Eq. 14: at T = 2 the student says (1/2, 1/2) and the teacher (3/4, 1/4).
STUDENT = torch.tensor([[0.0, 0.0]])
TEACHER = torch.tensor([[2 * math.log(3), 0.0]])
LABELS = torch.tensor([1])
KL = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
KD = 0.7 * math.log(2) + 0.3 * 4 * KL


def test_kd_is_cross_entropy_and_kl_times_t_squared_averaged_over_images() -> None:
    close(losses.kd_loss(STUDENT, TEACHER, LABELS), KD)
    both = losses.kd_loss(STUDENT.repeat(2, 1), TEACHER.repeat(2, 1), LABELS.repeat(2))
    close(both, KD)
    close(losses.kd_loss(TEACHER, TEACHER, LABELS, gamma=1.0), 0.0)


def test_prediction_sums_over_all_exits_or_those_of_the_paper() -> None:
    logits = [STUDENT] * 4
    close(losses.prediction(logits, TEACHER, LABELS, EXITS), 4 * KD)
    close(losses.prediction(logits, TEACHER, LABELS, EXITS, which="paper"), 2 * KD)
    assert losses.last_of_each(EXITS) == [1, 3]


def test_heterogeneous_is_the_mean_over_exits_and_tokens() -> None:
    # One token as (1/2, 1/2) against (3/4, 1/4), the other equal: half the KL, averaged.
    target = torch.tensor([[[math.log(3), 0.0], [0.0, 0.0]]])
    same = torch.zeros(1, 2, 2)
    features = [same, same, same, target]
    close(losses.heterogeneous(features, {0: target}), KL / 2)
    close(losses.heterogeneous(features, {0: target, 3: target}), KL / 4)


def test_heterogeneous_compares_the_exits_of_eq_9() -> None:
    eight = [ExitConfig(b, "lph") for b in range(4)]
    eight += [ExitConfig(b, "gah", 2) for b in range(4, 8)]
    assert losses.first_and_last_of_each(eight) == [0, 3, 4, 7]
    assert losses.first_and_last_of_each(EXITS[:1]) == [0]
    assert losses.first_and_last_of_each(EXITS[:3]) == [0, 1, 2]


def test_homogeneous_by_hand() -> None:
    zeros, ones = torch.zeros(1, 4, 2), torch.ones(1, 4, 2)
    # LPH: (1 - 0)^2 = 1. GAH: F^T F of four ones is 4 everywhere, of one token of twos also 4.
    same_product = torch.full((1, 1, 2), 2.0)
    close(losses.homogeneous([zeros, ones, ones, same_product], EXITS, gram="sum"), 1.0)
    # And of one token of ones it is 1: (4 - 1)^2 = 9.
    one_token = [ones, ones, ones, torch.ones(1, 1, 2)]
    close(losses.homogeneous(one_token, EXITS, gram="sum"), 9.0)  # (4 - 1)^2, as Eq. 11 is written
    close(losses.homogeneous(one_token, EXITS), 0.0)  # the mean product is 1 with any N'


def test_homogeneous_teachers_do_not_follow_their_pupils() -> None:
    features = [torch.rand(2, 4, 2, requires_grad=True) for _ in EXITS]
    losses.homogeneous(features, EXITS).backward()
    assert features[0].grad is not None and features[2].grad is not None
    assert features[1].grad is None and features[3].grad is None


def test_stage_two_weighs_as_eq_15_and_stage_one_by_block() -> None:
    one = torch.tensor(1.0)
    close(losses.total(one * 2, one * 3, one, alpha=0.01, beta=0.1), 1.32)
    close(losses.weighted_exits([one, one * 2], one * 3, [4, 8, 12]), (4 + 16 + 36) / 24)


@pytest.mark.parametrize("exits", [(), EXITS[:1], EXITS[2:3], EXITS[1:3]])
def test_nothing_to_compare_is_zero(exits: tuple[ExitConfig, ...]) -> None:
    features = [torch.rand(1, 4, 2) for _ in exits]
    close(losses.homogeneous(features, exits), 0.0)
    close(losses.heterogeneous(features, {}), 0.0)
    if not exits:
        close(losses.prediction([], TEACHER, LABELS, exits), 0.0)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("exit", EXITS)
@pytest.mark.parametrize("side", [4, 5, 7])
def test_aligned_features_have_the_exits_shape(exit: ExitConfig, average: bool, side: int) -> None:
    config = tiny((exit,), image_size=8 * side, gah_average=average, preprocess=Preprocess(64))
    hidden = torch.rand(2, side * side + 1, 16)
    features = LGViT(config).heads[0].features(hidden)
    assert Align(config, exit)(hidden[:, 1:]).shape == features.shape


def batches(config: LGViTConfig) -> Batches:
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    return Batches(ArrayDataset(images, np.arange(8) % 3), config.preprocess, batch_size=4)


def with_gradient(model: torch.nn.Module) -> set[str]:
    return {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}


@pytest.mark.parametrize("exits", [EXITS, EXITS[:1], EXITS[2:3]])
def test_stage_two_reaches_only_heads_and_aligners(exits: tuple[ExitConfig, ...]) -> None:
    model = LGViT(tiny(exits))
    stage = StageTwo(model, TrainingConfig(), batches(model.config))
    stage.start()
    assert not model.backbone.training and model.heads.training
    before = {n: b.clone() for n, b in model.heads.named_buffers()}
    next(iter(stage.steps(0, 0))).loss.backward()
    reached = with_gradient(model)
    assert reached and all(name.startswith("heads.") for name in reached)
    for m in range(len(exits)):
        assert f"heads.{m}.classifier.linears.0.weight" in reached
    assert with_gradient(stage.aligners)
    moved = [n for n, b in model.heads.named_buffers() if not torch.equal(b, before[n])]
    assert moved or exits == EXITS[2:3]  # BatchNorms of the LPHs learn


def test_the_literal_eq_13_leaves_other_classifiers_without_gradient() -> None:
    model = LGViT(tiny())
    stage = StageTwo(model, TrainingConfig(prediction_exits="paper"), batches(model.config))
    stage.start()
    next(iter(stage.steps(0, 0))).loss.backward()
    reached = {int(n.split(".")[1]) for n in with_gradient(model) if "classifier" in n}
    assert reached == {1, 3}


def test_stage_one_alternates() -> None:
    model = LGViT(tiny())
    stage = StageOne(model, TrainingConfig(), batches(model.config))
    stage.start()
    batch = next(stage.batches.ordered())
    even = stage.step(batch, with_exits=False)
    close(even.loss, functional.cross_entropy(model(batch.images), batch.labels).item())
    even.loss.backward()
    assert not any(name.startswith("heads.") for name in with_gradient(model))
    stage.step(batch, with_exits=True).loss.backward()
    assert any(name.startswith("heads.") for name in with_gradient(model))
    assert any(name.startswith("backbone.blocks.0.") for name in with_gradient(model))


def test_the_teacher_is_the_final_classifier_through_the_final_norm() -> None:
    model = LGViT(tiny()).eval()
    batch = next(batches(model.config).ordered())
    states = hidden_states(model, batch, TrainingConfig())
    torch.testing.assert_close(states.teacher, model(batch.images).detach())
    assert [s.shape for s in states.exits] == [(4, 17, 16)] * 4
