"""The two stages (paper section 3.4): what each trains, on what, with which loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lgvit_edge.model import LGViT
from lgvit_edge.training import losses
from lgvit_edge.training.data.batches import Batch, Batches
from lgvit_edge.training.features import HiddenStates, StoredStates, hidden_states
from lgvit_edge.training.optimiser import Total, input_scales
from lgvit_edge.training.schemes import SCHEMES
from lgvit_edge.training.settings import TrainingConfig


@dataclass(frozen=True)
class Step:
    """The results of one training step."""

    loss: Tensor  # scalar, to differentiate
    logits: Tensor  # [B, C], for the progress bar's accuracy
    labels: Tensor  # [B]


class StageOne:
    """Stage 1: trains the whole model by the scheme's joint loss.

    Where the scheme alternates, even steps train on the final loss alone. The paper's weighs by
    depth as well: the authors' ``alternating_weighted``.
    """

    number = 1

    def __init__(self, model: LGViT, config: TrainingConfig, batches: Batches) -> None:
        self.model, self.config, self.batches = model, config, batches
        self.scheme = SCHEMES[config.scheme]
        self.aligners = nn.ModuleDict()  # trained beside the model, not exported

    def parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Returns all of the model's parameters."""
        return self.model.named_parameters()

    def start(self) -> None:
        """Puts the whole model into training mode."""
        self.model.requires_grad_(True).train()

    def scales(self, total: Total) -> dict[nn.Parameter, Tensor]:
        """Returns none: a backbone that learns too has norms."""
        return {}

    def steps(self, epoch: int, first: int) -> Iterator[Step]:
        """Yields the steps of one epoch; ``first`` is the 0-based number of the first."""
        batches = self.batches.shuffled((self.config.seed, self.number, epoch))
        for step, batch in enumerate(batches, first):
            yield self.step(batch, with_exits=step % 2 == 1 or not self.scheme.alternates)

    def step(self, batch: Batch, *, with_exits: bool) -> Step:
        """Computes the final loss, or the scheme's loss of all classifiers."""
        model, exits = self.model, self.model.config.exits
        if not (with_exits and exits):
            with self.config.autocast(batch.images.device):
                logits = model(batch.images)
            logits = logits.float()
            return Step(functional.cross_entropy(logits, batch.labels), logits, batch.labels)
        with self.config.autocast(batch.images.device):
            everything = model.exit_logits(batch.images)
        *early, logits = everything.float().unbind(dim=1)
        blocks = [*(exit.block for exit in exits), model.config.num_blocks]
        loss = self.scheme.loss(
            early, logits, batch.labels, blocks, joint=True, **self.config.imitation
        )
        return Step(loss, logits, batch.labels)


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
        start = {name: tensor.clone() for name, tensor in self.model.heads.state_dict().items()}
        scales = input_scales(self.model.heads, lambda: self._heads(states), total)
        self.model.heads.load_state_dict(start)  # undo the running statistics
        return scales

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

    def _heads(self, states: HiddenStates) -> tuple[list[Tensor], list[Tensor]]:
        """Returns F_m and logits of every exit, in float32."""
        features, logits = [], []
        with self.config.autocast(states.last.device):
            for head, hidden in zip(self.model.heads, states.exits, strict=True):
                feature = head.features(hidden)  # type: ignore[operator]
                features.append(feature.float())
                logits.append(head.classify(hidden, feature).float())  # type: ignore[operator]
        return features, logits

    def step(self, states: HiddenStates) -> Step:
        """Computes the scheme's loss from the frozen blocks' outputs."""
        model = self.model.config
        features, logits = self._heads(states)
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


Stage = StageOne | StageTwo
