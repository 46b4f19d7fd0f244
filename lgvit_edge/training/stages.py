"""The two stages (paper section 3.4): what each trains, on what, with which loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from lgvit_edge.model import LGViT
from lgvit_edge.training import losses
from lgvit_edge.training.align import Align
from lgvit_edge.training.batches import Batch, Batches
from lgvit_edge.training.cache import HiddenCache, HiddenStates, hidden_states
from lgvit_edge.training.settings import TrainingConfig


@dataclass(frozen=True)
class Step:
    """What one step computed.

    Attributes:
        loss: scalar, to differentiate.
        logits: ``[B, C]`` that the progress bar's accuracy is of.
        labels: ``[B]``.
    """

    loss: Tensor
    logits: Tensor
    labels: Tensor


class Stage(Protocol):
    """One stage of training.

    Attributes:
        number: 1 or 2.
        aligners: trained beside the model and thrown away.
    """

    number: int
    aligners: nn.ModuleDict

    def parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Names and parameters that this stage trains."""
        ...

    def start(self) -> None:
        """Set modes and what may receive gradients."""
        ...

    def steps(self, epoch: int, first: int) -> Iterator[Step]:
        """The steps of one epoch; ``first`` is the number of the first in the stage, from 0."""
        ...


class StageOne:
    """Backbone and final classifier, the exits on every other step.

    Even steps train on the final loss alone, odd steps on all losses weighted by depth: the
    authors' ``alternating_weighted``.
    """

    number = 1

    def __init__(self, model: LGViT, config: TrainingConfig, batches: Batches) -> None:
        self.model, self.config, self.batches = model, config, batches
        self.aligners = nn.ModuleDict()

    def parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """All of the model's."""
        return self.model.named_parameters()

    def start(self) -> None:
        """Train everything."""
        self.model.requires_grad_(True)
        self.model.train()

    def steps(self, epoch: int, first: int) -> Iterator[Step]:
        """Losses of one epoch."""
        for step, batch in enumerate(
            self.batches.shuffled((self.config.seed, self.number, epoch)), first
        ):
            yield self.step(batch, with_exits=step % 2 == 1)

    def step(self, batch: Batch, *, with_exits: bool) -> Step:
        """The final loss, or all losses weighted by depth."""
        model, exits = self.model, self.model.config.exits
        if not (with_exits and exits):
            logits = model(batch.images)
            return Step(functional.cross_entropy(logits, batch.labels), logits, batch.labels)
        *early, logits = model.exit_logits(batch.images).unbind(dim=1)
        loss = losses.weighted_exits(
            [functional.cross_entropy(e, batch.labels) for e in early],
            functional.cross_entropy(logits, batch.labels),
            [*(e.block for e in exits), model.config.num_blocks],
        )
        return Step(loss, logits, batch.labels)


class StageTwo:
    """Heads and their aligners, by Eqs. 9 to 15; backbone and final classifier are frozen."""

    number = 2

    def __init__(
        self,
        model: LGViT,
        config: TrainingConfig,
        batches: Batches,
        cache: HiddenCache | None = None,
    ) -> None:
        self.model, self.config, self.batches, self.cache = model, config, batches, cache
        exits = model.config.exits
        # Stages of a Swin differ in shape, so its heads' features cannot be compared: like the
        # authors' code for it, only predictions are distilled.
        self.by_features = not model.config.depths
        device = next(model.parameters()).device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.aligners = nn.ModuleDict(
                {
                    str(m): Align(model.config, exits[m])
                    for m in (losses.first_and_last_of_each(exits) if self.by_features else ())
                }
            ).to(device)

    def parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Those of heads and aligners."""
        yield from self.model.heads.named_parameters(prefix="heads")
        yield from self.aligners.named_parameters(prefix="aligners")

    def start(self) -> None:
        """Freeze the backbone, its mode included; BatchNorms of heads keep learning."""
        self.model.requires_grad_(False).eval()
        self.model.heads.requires_grad_(True).train()
        self.aligners.train()

    def steps(self, epoch: int, first: int) -> Iterator[Step]:
        """Losses of one epoch; ``first`` does not matter."""
        key = (self.config.seed, self.number, epoch)
        if self.cache is not None:
            for states in self.cache.shuffled(epoch, self.config.batch_size, key):
                yield self.step(states)
            return
        for batch in self.batches.shuffled(key):
            yield self.step(hidden_states(self.model, batch))

    def step(self, states: HiddenStates) -> Step:
        """Eq. 15 on what the frozen blocks gave."""
        config, exits = self.config, self.model.config.exits
        prefix = self.model.config.prefix_tokens
        features, logits = [], []
        for head, hidden in zip(self.model.heads, states.exits, strict=True):
            feature = head.features(hidden)  # type: ignore[operator]
            features.append(feature)
            logits.append(head.classify(hidden, feature))  # type: ignore[operator]
        last = states.last[:, prefix:]
        aligned = {int(m): align(last) for m, align in self.aligners.items()}
        comparable = exits if self.by_features else ()
        loss = losses.total(
            losses.heterogeneous(features, aligned),
            losses.homogeneous(features, comparable, gram=config.gram),
            losses.prediction(
                logits,
                states.teacher,
                states.labels,
                exits,
                gamma=config.gamma,
                temperature=config.temperature,
                which=config.prediction_exits,
            ),
            alpha=config.alpha,
            beta=config.beta,
        )
        return Step(loss, torch.cat(logits), states.labels.repeat(len(logits)))
