"""The optimizer: schedule elsewhere; here what scaled inputs change, and what not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.training import TrainingConfig
from lgvit_edge.training.features import HiddenStates
from lgvit_edge.training.optimiser import adamw, input_scales
from lgvit_edge.training.stages import StageTwo
from lgvit_edge.training.start import seeded


def learn(inputs: torch.Tensor, *, scaled: bool, steps: int = 5) -> torch.Tensor:
    """What a linear layer answers after a few steps towards 0, started alike for any scale."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 2)
    rms = inputs.square().mean(0).sqrt()
    with torch.no_grad():
        layer.weight.div_(rms)
    scales = input_scales(layer, lambda: layer(inputs)) if scaled else {}
    optimizer = adamw(layer.named_parameters(), weight_decay=0.1, clip=1.0, scales=scales)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for _ in range(steps):
        optimizer.zero_grad()
        layer(inputs).square().mean().backward()
        optimizer.step()
    return layer(inputs).detach()


def test_features_of_any_size_are_learned_alike() -> None:
    features = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    features = features / features.square().mean(0).sqrt()
    sizes = torch.tensor([1.0, 0.5, 7.0, 30.0])
    expected = learn(features, scaled=True)
    torch.testing.assert_close(learn(features * sizes, scaled=True), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(learn(features * sizes, scaled=False), expected, rtol=0.1)
    # Where all inputs have the scale 1 already nothing changes.
    torch.testing.assert_close(expected, learn(features, scaled=False), rtol=1e-4, atol=1e-5)


def test_a_feature_that_is_always_0_gets_no_boundless_step() -> None:
    features = torch.zeros(8, 4)
    features[:, 0] = 2
    layer = nn.Linear(4, 2)
    (scale,) = input_scales(layer, lambda: layer(features)).values()
    assert scale.tolist() == [[2.0, *[pytest.approx(0.005)] * 3]]
    (scale,) = input_scales(layer, lambda: layer(torch.zeros(8, 4))).values()
    assert (scale > 0).all()


def test_gradients_are_clipped_together() -> None:
    weights = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))]
    optimizer = adamw([("w", weights[0]), ("b", weights[1])], weight_decay=0, clip=1.0)
    for weight in weights:
        weight.grad = torch.full_like(weight, 3.0)
    optimizer.step()
    norm = torch.cat([w.grad.flatten() for w in weights if w.grad is not None]).norm()
    assert float(norm) == pytest.approx(1.0, abs=1e-5)


def states() -> HiddenStates:
    generator = torch.Generator().manual_seed(0)
    exits = [torch.randn(8, 17, 16, generator=generator) * size for size in (0.1, 50.0)]
    teacher, labels = torch.randn(8, 2, generator=generator), torch.arange(8) % 2
    return HiddenStates(exits, exits[1], teacher, labels)


class Stored:
    """One batch of hidden states."""

    def shuffled(self, *_: object) -> object:
        return iter([states()])


def test_scales_of_heads(small_config: LGViTConfig) -> None:
    model = seeded(small_config, 0)
    stage = StageTwo(model, TrainingConfig(), None, Stored())  # type: ignore[arg-type]
    stage.start()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scales = stage.scales(lambda values: values)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    names = {parameter: name for name, parameter in model.named_parameters()}
    means = {names[weight]: float(scale.mean()) for weight, scale in scales.items()}
    assert 0.05 < means["heads.0.body.expand.weight"] < 0.2
    assert 25 < means["heads.1.body.value.weight"] < 100
    # After a norm in training mode the scale is 1, whatever its statistics are so far.
    assert 0.5 < means["heads.0.body.project.weight"] < 2
    assert "heads.0.body.depthwise.weight" not in means
    assert not any(name.startswith("backbone") for name in means)


def test_scales_come_back_with_the_optimizer() -> None:
    layer = nn.Linear(4, 2)
    features = torch.randn(8, 4) * 5
    scales = input_scales(layer, lambda: layer(features))
    saved = adamw(layer.named_parameters(), weight_decay=0, scales=scales).state_dict()
    other = adamw(layer.named_parameters(), weight_decay=0)
    other.load_state_dict(saved)
    assert torch.equal(other.param_groups[0]["scales"][0], next(iter(scales.values())))
