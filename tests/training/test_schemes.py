"""The losses of training schemes, against values computed by hand, and what they reach."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from rich.console import Console
from torch import Tensor

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.errors import UsageError
from lgvit_edge.model import LGViT, load_checkpoint
from lgvit_edge.training import TrainingConfig, register_scheme, train_from_folder
from lgvit_edge.training.data.batches import Batch
from lgvit_edge.training.features import hidden_states
from lgvit_edge.training.losses import kl_loss
from lgvit_edge.training.schemes import SCHEMES, Scheme
from lgvit_edge.training.settings import settings
from lgvit_edge.training.stages import StageOne, StageTwo

# One image of class 0; two exits after blocks 1 and 3 of 4, two classes.
LABELS = torch.tensor([0])
EXITS = [torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])]
FINAL = torch.tensor([[2.0, 0.0]])
BLOCKS = [1, 3, 4]
HOW: dict[str, Any] = {"gamma": 0.3, "temperature": 2.0, "kl": "image"}


def cross(gap: float) -> float:
    """Cross-entropy of two logits whose right one is larger by ``gap``."""
    return math.log(1 + math.exp(-gap))


def kl(student: float, teacher: float) -> float:
    """KL(teacher || student) of two classes whose logits are ``gap`` apart."""
    p, q = (1 / (1 + math.exp(-gap)) for gap in (teacher, student))
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


A, B, C = cross(0), cross(1), cross(2)
JOINT, HEADS = (A + B + C) / 3, (A + B) / 2
IMITATION = 4 * (kl(0, 1) + kl(0.5, 1)) / 2  # T = 2 halves the gaps; T^2 = 4


@pytest.mark.parametrize(
    ("scheme", "joint", "heads"),
    [
        ("normal", JOINT, HEADS),
        ("weighted", (A + 3 * B + 4 * C) / 8, (A + 3 * B) / 4),
        ("alternating", JOINT, HEADS),
        ("distillation", 0.7 * JOINT + 0.3 * IMITATION, 0.7 * HEADS + 0.3 * IMITATION),
        ("lgvit", (A + 3 * B + 4 * C) / 8, (A + 3 * B) / 4),
    ],
)
def test_losses_by_hand(scheme: str, joint: float, heads: float) -> None:
    for whole, expected in ((True, joint), (False, heads)):
        loss = SCHEMES[scheme].loss(EXITS, FINAL, LABELS, BLOCKS, joint=whole, **HOW)
        assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_the_authors_kl_is_divided_by_the_number_of_classes() -> None:
    student, teacher = torch.randn(3, 7), torch.randn(3, 7)
    ours = kl_loss(student, teacher, temperature=2)
    theirs = kl_loss(student, teacher, temperature=2, per="class")
    # As their code writes it: the sum over everything, times T^2, by the number of elements.
    log_s, log_t = ((x / 2).log_softmax(dim=1) for x in (student, teacher))
    literal = (log_t.exp() * (log_t - log_s)).sum() * 4 / student.numel()
    assert float(theirs) == pytest.approx(float(literal), rel=1e-5)
    assert float(ours) == pytest.approx(7 * float(theirs), rel=1e-5)


def test_imitation_teaches_the_exits_and_not_the_final_classifier() -> None:
    *exits, final = (logits.clone().requires_grad_() for logits in (*EXITS, FINAL))
    how = {**HOW, "gamma": 1.0}
    SCHEMES["distillation"].loss(exits, final, LABELS, BLOCKS, joint=True, **how).backward()
    assert all(e.grad is not None and e.grad.abs().max() > 0 for e in exits)
    assert final.grad is None or not final.grad.abs().max() > 0


def batch() -> Batch:
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.tensor([0, 1, 0, 1]), torch.arange(4))


class Once:
    """Epochs of one batch."""

    def shuffled(self, key: object, view: object = None) -> list[Batch]:
        return [batch()]


def reached(model: LGViT, loss: Tensor) -> set[str]:
    """First parts of the names of parameters that get a gradient."""
    loss.backward()
    return {
        name.split(".")[0]
        for name, p in model.named_parameters()
        if p.grad is not None and bool((p.grad != 0).any())
    }


@pytest.mark.parametrize("scheme", SCHEMES)
def test_stage_one_alternates_where_the_scheme_does(scheme: str, small_config: LGViTConfig) -> None:
    config = TrainingConfig(scheme=scheme)
    seen = []
    for step in (0, 1):
        model = LGViT(small_config)
        stage = StageOne(model, config, Once())  # type: ignore[arg-type]
        stage.start()
        (result,) = stage.steps(0, step)
        seen.append(reached(model, result.loss))
    both = {"backbone", "heads"}
    assert seen == [{"backbone"} if SCHEMES[scheme].alternates else both, both]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_stage_two_reaches_the_heads_alone(scheme: str, small_config: LGViTConfig) -> None:
    model = LGViT(small_config)
    stage = StageTwo(model, TrainingConfig(scheme=scheme), None, None)  # type: ignore[arg-type]
    assert bool(len(stage.aligners)) == (scheme == "lgvit")
    stage.start()
    result = stage.step(hidden_states(model, batch(), stage.config))
    assert reached(model, result.loss) == {"heads"}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_mixed_precision_computes_nearly_the_same(scheme: str, small_config: LGViTConfig) -> None:
    losses: dict[str, list[torch.Tensor]] = {}
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        model = LGViT(small_config)
        config = TrainingConfig(scheme=scheme, precision=precision)
        one = StageOne(model, config, None)  # type: ignore[arg-type]
        two = StageTwo(model, config, None, None)  # type: ignore[arg-type]
        one.start()
        steps = [one.step(batch(), with_exits=True)]
        two.start()
        steps.append(two.step(hidden_states(model, batch(), config)))
        for step in steps:
            step.loss.backward()
        losses[precision] = [step.loss.detach() for step in steps]
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        gradients = [p.grad for p in model.heads.parameters() if p.grad is not None]
        assert {gradient.dtype for gradient in gradients} == {torch.float32}
    exact, mixed = (torch.stack(losses[p]) for p in ("fp32", "bf16"))
    torch.testing.assert_close(mixed, exact, rtol=2e-2, atol=2e-2)
    assert not torch.equal(mixed, exact)


class Focal(Scheme):
    """Only the deepest classifier that learns counts."""

    def loss(
        self, exits: Any, final: Tensor, labels: Tensor, blocks: Any, *, joint: bool, **_: Any
    ) -> Tensor:
        return torch.nn.functional.cross_entropy(final if joint else exits[-1], labels)


@pytest.fixture
def toy() -> Iterator[None]:
    with mock.patch.dict(SCHEMES):
        register_scheme(Focal("toy", "the deepest classifier alone"))
        yield


@pytest.mark.usefixtures("toy")
def test_a_scheme_from_outside_trains(folder: Path) -> None:
    with pytest.raises(ValueError, match="called 'toy' already"):
        register_scheme(Focal("toy", "again"))
    (setting,) = (about for name, about, _ in settings() if name == "scheme")
    assert setting.choices is not None and "deepest classifier" in setting.choices()["toy"]
    with pytest.raises(UsageError, match=r"one of lgvit, .*, toy, found 'sdn'"):
        TrainingConfig(scheme="sdn")
    start = load_checkpoint(folder / "start.pt")
    model = train_from_folder(
        folder / "data",
        backbone=str(folder / "start.pt"),
        out=folder / "toy.pt",
        config=TrainingConfig(
            scheme="toy", epochs=(1, 1), lr=(1e-3, 1e-3), batch_size=16, weight_decay=0.0, workers=0
        ),
        console=Console(file=io.StringIO()),
    )
    states = start.state_dict(), model.state_dict()
    # Scaled updates of nothing leave rounding.
    moved = {n for n in states[0] if not torch.allclose(*(state[n] for state in states), atol=1e-7)}
    assert any(name.startswith("heads.1.") for name in moved)
    assert not any(name.startswith("heads.0.") and name.endswith("weight") for name in moved)


def test_schemes_and_forms_of_kl_that_do_not_exist() -> None:
    with pytest.raises(UsageError, match="scheme must be one of lgvit, normal, .*'sdn'; kl must"):
        TrainingConfig(scheme="sdn", kl="batch")


def test_a_seed_that_a_generator_cannot_take_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"seed must be in 0\.\.2\^63 - 1, found 9223372036854775808"
    ):
        TrainingConfig(seed=2**63)
    with pytest.raises(UsageError, match="seed must be in"):
        TrainingConfig(seed=-1)
