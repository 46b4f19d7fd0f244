"""Runs the stages of one or several models: steps, epochs, files after each, and measuring."""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from lgvit_edge._support.terminal import progress_bar, say
from lgvit_edge.errors import DataError, TrainingError
from lgvit_edge.model import LGViT, save_checkpoint
from lgvit_edge.training import report
from lgvit_edge.training.data.batches import Batches
from lgvit_edge.training.data.datasets import Dataset
from lgvit_edge.training.features import FeatureStore, HiddenCache, StoredStates
from lgvit_edge.training.optimiser import adamw, learning_rate
from lgvit_edge.training.resume import Progress, resume_path, write_progress
from lgvit_edge.training.settings import TrainingConfig
from lgvit_edge.training.stages import Stage, StageOne, StageTwo, Step, Turns
from lgvit_edge.training.teacher import Teacher, answering, taught
from lgvit_edge.training.team import Team


@dataclass(frozen=True)
class Trainee:
    """A model to train, its images, and where it goes."""

    model: LGViT  # left as it is
    images: Dataset  # to learn from
    val: Dataset | None  # to measure on after each stage, if anything
    out: Path  # ``.pt`` or ``.safetensors``, written when all is done
    features: Path | None = None  # where stage 2 stores the frozen blocks' outputs
    teacher: Teacher | None = None  # of stage 1


@dataclass
class Run:
    """The state of one call of ``train_together``."""

    trainees: Sequence[Trainee]
    module: nn.ModuleList  # the copies that are trained
    config: TrainingConfig
    out: Path  # resume file and log are beside it
    identity: dict[str, str]
    console: Console
    team: Team
    saved: str = ""  # how far the resume file got
    history: list[report.Row] = field(default_factory=list)
    reported: set[str] = field(default_factory=set)

    @property
    def models(self) -> list[LGViT]:
        """The models in training, in the order of their trainees."""
        return list(self.module)  # type: ignore[arg-type]

    def stage(self, place: int, resumed: Progress | None) -> None:
        """Runs the stage at a place of the order, or what is left of it."""
        number = self.config.stages[place]
        epochs = self.config.epochs[number - 1]
        before = self.config.stages[:place].count(number) * epochs  # in an earlier run of the stage
        if resumed is not None:
            self.module.load_state_dict(resumed.model)
            self.history = resumed.history
            self._remember(number, resumed.epoch)
            say(f"continuing after {self.saved}", self.console)
            if resumed.epoch == epochs:
                return
        stage = self._make(number)
        self.team.synchronise(self.module, stage.aligners)
        stage.start()
        optimizer = adamw(
            stage.parameters(),
            weight_decay=self.config.weight_decay,
            clip=self.config.clip,
            # A resumed optimizer's state holds them.
            scales=stage.scales(self.team.total) if resumed is None else None,
            peaks=stage.peaks(),
        )
        first = 0
        if resumed is not None:
            stage.aligners.load_state_dict(resumed.aligners)
            optimizer.load_state_dict(resumed.optimizer)
            first = resumed.epoch
        length = sum(len(batches) for batches in stage.sources)  # steps of an epoch
        steps = epochs * length
        recent, share = report.Smoothed(), 0.0
        with progress_bar(f"stage {number}", to=self.console, lasting=True) as progress:
            for epoch in range(first, epochs):
                stage.start()
                # The schedule follows the epochs, whatever images had to be skipped.
                step = epoch * length
                begun, losses, accuracies = time.monotonic(), report.Mean(), report.Mean()
                for result in stage.steps(before + epoch, step):
                    share = learning_rate(step, steps, peak=1.0, warmup=self.config.warmup)
                    loss, accuracy, rows = self._update(stage, optimizer, result, share)
                    recent.add(loss, accuracy)
                    losses.add(loss)
                    accuracies.add(accuracy, rows)
                    step += 1
                    progress(step, steps, f"epoch {epoch + 1}/{epochs}: {recent}")
                for trainee, batches in zip(self._trained(number), stage.sources, strict=True):
                    self._report_unreadable(trainee, batches)
                rate = share * self.config.lr[number - 1]
                row = (number, before + epoch + 1, step, rate, losses.value, accuracies.value)
                seconds = time.monotonic() - begun
                self.history.append(dict(zip(report.COLUMNS, (*row, seconds), strict=True)))
                if self.team.leads:
                    report.write_log(self.history, report.log_path(self.out))
                    self._save(place, stage, optimizer, epoch + 1, step)

    def _trained(self, number: int) -> list[Trainee]:
        """Those that a stage trains: stage 2 has nothing to do where there are no exits."""
        return [t for t in self.trainees if number == 1 or t.model.config.exits]

    def _make(self, number: int) -> Stage:
        pairs = zip(self.trainees, self.models, strict=True)
        trained = self._trained(number)
        stages = [self._stage(number, t, model) for t, model in pairs if t in trained]
        return stages[0] if len(stages) == 1 else Turns(stages)

    def _stage(self, number: int, trainee: Trainee, model: LGViT) -> StageOne | StageTwo:
        batches = self._batches(trainee.images, model)
        config = self.config
        if number == 1:
            answers = None
            if trainee.teacher is not None:
                answers, config = self._answers(trainee, trainee.teacher), taught(config)
            return StageOne(model, config, batches, answers)
        cache: StoredStates | None = None
        if trainee.features is not None:
            cache = self._fill(FeatureStore(trainee.features, model, batches, config), trainee)
        elif config.cache:
            with progress_bar("frozen blocks", to=self.console) as progress:
                cache = HiddenCache(model, batches, config, progress)
        return StageTwo(model, config, batches, cache)

    def _batches(self, images: Dataset, model: LGViT) -> Batches:
        return Batches(
            images,
            model.config.preprocess,
            batch_size=self.config.batch_size,
            workers=self.config.workers,
            team=self.team,
        )

    def _answers(self, trainee: Trainee, teacher: Teacher) -> FeatureStore:
        """Returns the teacher's answers on every augmented copy of the images."""
        folder = teacher.folder or answers_path(trainee.out)
        model = copy.deepcopy(teacher.model).to(self.team.device)
        batches = self._batches(teacher.images, model)
        store = FeatureStore(folder, model, batches, answering(self.config), hidden=False)
        return self._fill(store, trainee, "the teacher's answers to", "teacher")

    def _fill(
        self,
        store: FeatureStore,
        trainee: Trainee,
        what: str = "features of",
        doing: str = "frozen blocks",
    ) -> FeatureStore:
        size = f"{store.bytes / 1e9:.2f} GB in {store.folder}"
        say(f"{what} {store.images} images take {size}", self.console)
        computed = 0
        if self.team.leads:
            with progress_bar(doing, to=self.console, lasting=True) as progress:
                computed = store.fill(progress)
        self.team.wait()
        if self.team.leads_machine and not self.team.leads:
            store.fill(wait=True)  # computes nothing where machines share the folder
        self.team.wait()
        if not self.team.leads_machine:
            store.attach()
        self._report_unreadable(trainee, store.batches)
        if not computed:
            unreadable = f"; {store.unreadable} images cannot be read"
            say("all were stored before" + (unreadable if store.unreadable else ""), self.console)
        return store

    def _update(
        self, stage: Stage, optimizer: torch.optim.Optimizer, result: Step, share: float
    ) -> tuple[float, float, int]:
        """Trains on one step, at a ``share`` of the highest learning rates.

        Returns the batch's loss, its accuracy and its number of answers.
        """
        rows, right = len(result.labels), result.logits.argmax(-1) == result.labels
        all_rows = self.team.sum(rows)
        loss = result.loss * (rows / all_rows)  # the sum over processes is the batch's mean
        value, correct = self.team.sum(float(loss.detach())), self.team.sum(float(right.sum()))
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss of stage {stage.number} became {value}; start again with a lower --lr"
            )
        for group in optimizer.param_groups:
            group["lr"] = share * group["peak"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.team.sum_gradients(p for _, p in stage.parameters())
        optimizer.step()
        return value, correct / all_rows, int(all_rows)

    def _save(
        self, place: int, stage: Stage, optimizer: torch.optim.Optimizer, epoch: int, step: int
    ) -> None:
        weights, aligners = self.module.state_dict(), stage.aligners.state_dict()
        state = optimizer.state_dict()
        progress = Progress(place, epoch, step, weights, aligners, state, self.history)
        write_progress(resume_path(self.out), progress, self.identity)
        self._remember(stage.number, epoch)

    def _remember(self, stage: int, epoch: int) -> None:
        self.saved = f"epoch {epoch}/{self.config.epochs[stage - 1]} of stage {stage}"

    def write(self) -> None:
        """Writes every model's checkpoint."""
        for trainee, model in zip(self.trainees, self.models, strict=True):
            save_checkpoint(model, trainee.out)
            say(f"wrote {trainee.out}", self.console)

    def measure(self, number: int) -> None:
        """Measures the exits after a stage, where there are validation images."""
        for trainee, model in zip(self.trainees, self.models, strict=True):
            if trainee.val is not None:
                say(f"after stage {number}, {len(trainee.val)} validation images:", self.console)
                report.measure(model, trainee.val, trainee.out, self.console, self.config)

    def clear(self) -> None:
        """Removes the answers of teachers that nobody asked to keep."""
        for trainee in self.trainees:
            if trainee.teacher is not None and trainee.teacher.folder is None:
                shutil.rmtree(answers_path(trainee.out), ignore_errors=True)

    def _report_unreadable(self, trainee: Trainee, batches: Batches) -> None:
        new = {why for why in batches.unreadable.values() if why not in self.reported}
        if len(batches.unreadable) == len(trainee.images):
            raise DataError("expected training images, found none that can be read")
        if not new:
            return
        self.reported |= new
        say(
            f"skipped {len(new)} of {len(trainee.images)} images that cannot be read, such as: "
            f"{min(new)}",
            self.console,
        )


def answers_path(out: Path) -> Path:
    """Returns the folder beside ``out`` that holds a teacher's answers while they are needed."""
    return out.with_name(out.name + ".teacher")
