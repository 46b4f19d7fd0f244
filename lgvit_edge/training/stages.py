"""The two stages (paper section 3.4): what each trains, on what, with which loss."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from lgvit_edge.model import LGViT
from lgvit_edge.training import losses
from lgvit_edge.training.data.batches import Batch, Batches
from lgvit_edge.training.features import (
    FeatureStore,
    HiddenStates,
    StoredStates,
    hidden_states,
    view_keys,
)
from lgvit_edge.training.optimiser import Total, input_scales, layer_peaks
from lgvit_edge.training.schemes import SCHEMES
from lgvit_edge.training.settings import TrainingConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """The results of one training step."""

    loss: Tensor  # scalar, to differentiate
    logits: Tensor  # [B, C], for the progress bar's accuracy
    labels: Tensor  # [B]


class Stage(Protocol):
    """What the training loop needs of a stage."""

    number: int

    @property
    def aligners(self) -> nn.Module:
        """What it trains beside the model, and is not exported."""

    @property
    def sources(self) -> Sequence[Batches]:
        """Where its images come from."""

    def parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Returns what it trains, by name."""

    def peaks(self) -> dict[nn.Parameter, float]:
        """Returns the highest learning rate of each of them."""

    def start(self) -> None:
        """Freezes what it does not train, and puts every module into its mode."""

    def scales(self, total: Total) -> dict[nn.Parameter, Tensor]:
        """Returns the scales of inputs by which updates are scaled, as ``input_scales`` does."""

    def steps(self, epoch: int, first: int) -> Iterator[Step]:
        """Yields the steps of one epoch; ``first`` is the 0-based number of the first."""


class StageOne:
    """Stage 1: trains the whole model by the scheme's joint loss.

    Where the scheme alternates, even steps train on the final loss alone. The paper's weighs by
    depth as well: the authors' ``alternating_weighted``. Of the answers of a ``teacher``, if any,
    every classifier learns by Eq. 14, which the paper has for its exits and their own final
    classifier.
    """

    number = 1

    def __init__(
        self,
        model: LGViT,
        config: TrainingConfig,
        batches: Batches,
        teacher: FeatureStore | None = None,
    ) -> None:
        self.model, self.config, self.batches, self.teacher = model, config, batches, teacher
        self.scheme, self.sources = SCHEMES[config.scheme], (batches,)
        self.aligners = nn.ModuleDict()
        self._views = view_keys(config.seed, config.views, 1) if config.views else []

    def parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Returns all of the model's parameters."""
        return self.model.named_parameters()

    def peaks(self) -> dict[nn.Parameter, float]:
        """Returns rates that fall towards the input; heads have one of their own."""
        (lr, stage_two), config = self.config.lr, self.config
        head_lr = config.head_lr or stage_two
        return layer_peaks(self.model, lr=lr, head_lr=head_lr, decay=config.layer_decay)

    def start(self) -> None:
        """Puts the whole model into training mode."""
        self.model.requires_grad_(True).train()

    def scales(self, total: Total) -> dict[nn.Parameter, Tensor]:
        """Returns the scales of all heads' inputs in the first batch; a backbone has norms."""
        batch = next(self._epoch(0), None) if self.model.config.exits else None
        if batch is None:  # or no image can be read; the first epoch raises
            return {}
        states = hidden_states(self.model, batch, self.config)
        return head_scales(self.model, states, self.config, total)

    def steps(self, epoch: int, first: int) -> Iterator[Step]:
        """Yields the steps of one epoch; ``first`` is the 0-based number of the first."""
        for step, batch in enumerate(self._epoch(epoch), first):
            answers = None
            if self.teacher is not None:
                answers = self.teacher.answers(batch.indices, epoch % len(self._views))
            with_exits = step % 2 == 1 or not self.scheme.alternates
            yield self.step(batch, with_exits=with_exits, teacher=answers)

    def _epoch(self, epoch: int) -> Iterator[Batch]:
        view = self._views[epoch % len(self._views)] if self._views else None
        return self.batches.shuffled((self.config.seed, self.number, epoch), view=view)

    def step(self, batch: Batch, *, with_exits: bool, teacher: Tensor | None = None) -> Step:
        """Computes the final loss, or the scheme's loss of all classifiers.

        ``teacher`` holds a teacher's logits of the batch, ``[B, C]``.
        """
        model, exits = self.model, self.model.config.exits
        with self.config.autocast(batch.images.device):
            if with_exits and exits:
                everything = model.exit_logits(batch.images)
            else:
                everything = model(batch.images)[:, None]
        *early, logits = everything.float().unbind(dim=1)
        labels, imitation = batch.labels, self.config.imitation
        if early:
            blocks = [*(exit.block for exit in exits), model.config.num_blocks]
            loss = self.scheme.loss(
                early, logits, labels, blocks, joint=True, teacher=teacher, **imitation
            )
        elif teacher is None:
            loss = functional.cross_entropy(logits, labels)
        else:
            loss = losses.kd_loss(logits, teacher, labels, **imitation)
        return Step(loss, logits, labels)


class StageTwo:
    """Stage 2: trains the heads; backbone and final classifier are frozen.

    The paper's scheme trains them and their aligners by Eqs. 9 to 15, its rivals by their own loss.
    """

    number = 2

    def __init__(
        self,
        model: LGViT,
        config: TrainingConfig,
        batches: Batches,
        cache: StoredStates | None = None,
    ) -> None:
        self.model, self.config, self.batches, self.cache = model, config, batches, cache
        self.sources = (batches,)
        exits = model.config.exits
        # Features of different shapes cannot be compared: of a Swin, whose stages differ, only
        # predictions are distilled, as in the authors' code for it.
        self.scheme = SCHEMES[config.scheme]
        self.by_features = self.scheme.features and model.config.one_shape
        device = next(model.parameters()).device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            aligned = losses.first_and_last_of_each(exits) if self.by_features else ()
            aligners = {str(m): losses.Align(model.config, exits[m]) for m in aligned}
        self.aligners = nn.ModuleDict(aligners).to(device)

    def parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Returns the parameters of heads and aligners."""
        yield from self.model.heads.named_parameters(prefix="heads")
        yield from self.aligners.named_parameters(prefix="aligners")

    def peaks(self) -> dict[nn.Parameter, float]:
        """Returns the same rate for all."""
        return {parameter: self.config.lr[1] for _, parameter in self.parameters()}

    def start(self) -> None:
        """Freezes the backbone, its mode included; BatchNorms of heads keep learning."""
        self.model.requires_grad_(False).eval()
        self.model.heads.requires_grad_(True).train()
        self.aligners.train()

    def scales(self, total: Total) -> dict[nn.Parameter, Tensor]:
        """Returns the scales of all heads' inputs in the first batch, norms as in training."""
        states = next(self._epoch(0), None)
        if states is None:  # no image can be read; the first epoch raises
            return {}
        return head_scales(self.model, states, self.config, total)

    def steps(self, epoch: int, first: int) -> Iterator[Step]:
        """Yields the steps of one epoch; ``first`` does not matter."""
        return (self.step(states) for states in self._epoch(epoch))

    def _epoch(self, epoch: int) -> Iterator[HiddenStates]:
        key = (self.config.seed, self.number, epoch)
        if self.cache is not None:
            yield from self.cache.shuffled(epoch, self.config.batch_size, key)
            return
        for batch in self.batches.shuffled(key):
            yield hidden_states(self.model, batch, self.config)

    def step(self, states: HiddenStates) -> Step:
        """Computes the scheme's loss from the frozen blocks' outputs."""
        model = self.model.config
        features, logits = run_heads(self.model, states, self.config)
        if self.scheme.features:
            loss = self._distilled(states, features, logits)
        else:
            blocks = [*(exit.block for exit in model.exits), model.num_blocks]
            loss = self.scheme.loss(
                logits, states.teacher, states.labels, blocks, joint=False, **self.config.imitation
            )
        return Step(loss, torch.cat(logits), states.labels.repeat(len(logits)))

    def _distilled(
        self, states: HiddenStates, features: list[Tensor], logits: list[Tensor]
    ) -> Tensor:
        """Returns the loss of Eq. 15."""
        config, exits = self.config, self.model.config.exits
        comparable = exits if self.by_features else ()
        last = states.last[:, self.model.config.prefix_tokens :]
        with config.autocast(last.device):
            targets = {int(m): align(last) for m, align in self.aligners.items()}
        return losses.total(
            losses.heterogeneous(features, {m: t.float() for m, t in targets.items()}),
            losses.homogeneous(features, comparable, gram=config.gram),
            losses.prediction(
                logits,
                states.teacher,
                states.labels,
                exits,
                which=config.prediction_exits,
                **config.imitation,
            ),
            alpha=config.alpha,
            beta=config.beta,
        )


class Turns:
    """A stage of several models that share weights: they are trained in turns, step by step.

    Parameters that are the same object in several models are trained by all of them.
    """

    def __init__(self, stages: Sequence[StageOne | StageTwo]) -> None:
        self.stages, self.number = stages, stages[0].number
        self.aligners = nn.ModuleList(stage.aligners for stage in stages)
        self.sources = [stage.batches for stage in stages]

    def parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Returns what any of the stages trains, once each."""
        every = itertools.chain.from_iterable(stage.parameters() for stage in self.stages)
        return {id(parameter): (name, parameter) for name, parameter in every}.values()

    def peaks(self) -> dict[nn.Parameter, float]:
        """Returns each stage's rates."""
        return _joined(stage.peaks() for stage in self.stages)

    def start(self) -> None:
        """Starts every stage."""
        for stage in self.stages:
            stage.start()

    def scales(self, total: Total) -> dict[nn.Parameter, Tensor]:
        """Returns the scales of each stage's heads."""
        return _joined(stage.scales(total) for stage in self.stages)

    def steps(self, epoch: int, first: int) -> Iterator[Step]:
        """Yields a step of each stage in turn; ``first`` counts the steps of all."""
        runs = [stage.steps(epoch, first // len(self.stages)) for stage in self.stages]
        while runs:
            for run in tuple(runs):
                # Computed when it is its turn: with the weights that the step before left.
                if (step := next(run, None)) is None:
                    runs.remove(run)
                else:
                    yield step


def _joined(parts: Iterable[dict[nn.Parameter, T]]) -> dict[nn.Parameter, T]:
    return {parameter: value for part in parts for parameter, value in part.items()}


def run_heads(
    model: LGViT, states: HiddenStates, config: TrainingConfig
) -> tuple[list[Tensor], list[Tensor]]:
    """Returns F_m and logits of every exit, in float32."""
    features, logits = [], []
    with config.autocast(states.last.device):
        for head, hidden in zip(model.heads, states.exits, strict=True):
            feature = head.features(hidden)  # type: ignore[operator]
            features.append(feature.float())
            logits.append(head.classify(hidden, feature).float())  # type: ignore[operator]
    return features, logits


def head_scales(
    model: LGViT, states: HiddenStates, config: TrainingConfig, total: Total
) -> dict[nn.Parameter, Tensor]:
    """Returns the scales of the inputs of all heads' layers, as ``input_scales`` does.

    The heads are left as they were, the running statistics of their norms included.
    """
    start = {name: tensor.clone() for name, tensor in model.heads.state_dict().items()}
    scales = input_scales(model.heads, lambda: run_heads(model, states, config), total)
    model.heads.load_state_dict(start)
    return scales
