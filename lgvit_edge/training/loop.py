"""Trains an LGViT: both stages, progress, and continuing after an interruption."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from lgvit_edge._support.terminal import errors, progress_bar, say
from lgvit_edge.errors import DataError, TrainingError
from lgvit_edge.model import LGViT, save_checkpoint
from lgvit_edge.training import report
from lgvit_edge.training.checks import check_place, check_room, check_task, check_team
from lgvit_edge.training.data.batches import Batches
from lgvit_edge.training.data.datasets import Dataset
from lgvit_edge.training.features import FeatureStore, HiddenCache, StoredStates
from lgvit_edge.training.optimiser import adamw, learning_rate
from lgvit_edge.training.resume import (
    Progress,
    fingerprint,
    read_progress,
    resume_path,
    write_progress,
)
from lgvit_edge.training.settings import TrainingConfig
from lgvit_edge.training.stages import Stage, StageOne, StageTwo, Step
from lgvit_edge.training.team import Team, join


def train(
    model: LGViT,
    train_set: Dataset,
    val_set: Dataset | None,
    config: TrainingConfig,
    *,
    stages: Sequence[int] = (1, 2),
    out: str | Path,
    features: str | Path | None = None,
    resume: bool = True,
    console: Console | None = None,
) -> LGViT:
    """Trains a copy of ``model``, writes it to ``out``, and returns it in eval mode, on the CPU.

    After every epoch ``<out>.resume`` is replaced. The same call continues from it and ends with
    the same weights as if it had never been interrupted: bit for bit on a CPU, with the same
    number of threads. Started by ``accelerate launch``, its processes share every batch; the first
    one writes files and prints.

    Example:
        train(load_checkpoint("start.pt"), train_set, None, TrainingConfig(), out="model.pt")

    Args:
        model: where to start; left as it is.
        train_set: what to learn from.
        val_set: what to measure on after each stage, if anything.
        config: settings.
        stages: 1, 2 or both.
        out: ``.pt`` or ``.safetensors``, written when all is done.
        features: a folder in which stage 2 stores the frozen blocks' outputs (float16), computed
            once; later trainings of the same backbone on the same images read them.
        resume: continue from ``<out>.resume`` when it is there.
        console: where progress goes; default: standard error.

    Raises:
        UsageError: stages or model do not allow it.
        DataError: the data do not fit the model.
        TrainingError: the loss is no number, ``out`` cannot be written, or ``<out>.resume`` is of
            another training.
        KeyboardInterrupt: interrupted; ``<out>.resume`` holds the last whole epoch.
    """
    out, stages = Path(out), tuple(stages)
    if features is not None:
        config = config.replace(cache=True)
    team = join(config.device)
    check_team(team, config, len(train_set), shared=features is not None)
    check_task(model, train_set, val_set, config, stages)
    folder = None if features is None else Path(features)
    if team.leads:
        check_place(out, folder)
        check_room(out, model)
    console = (console or errors) if team.leads else Console(quiet=True)
    identity = fingerprint(model, train_set, config, stages)
    resumed = read_progress(resume_path(out), identity) if resume and team.leads else None
    resumed = team.from_leader(resumed)
    model = copy.deepcopy(model).to(team.device)
    run = _Run(model, train_set, val_set, config, out, identity, console, folder, team)
    try:
        for number in stages:
            if resumed is not None and number < resumed.stage:
                continue
            run.stage(number, resumed if resumed is not None and resumed.stage == number else None)
            if team.leads:
                if number == stages[-1]:  # before steps that might fail and matter less
                    save_checkpoint(model, out)
                    say(f"wrote {out}", console)
                run.measure(number)
            team.wait()
        if team.leads:
            report.picture_of(run.history, report.log_path(out), console)
            resume_path(out).unlink(missing_ok=True)
    except KeyboardInterrupt:
        message = "interrupted before the first epoch was done: nothing to continue from"
        if run.saved:
            message = (
                f"interrupted; {resume_path(out)} holds {run.saved}. "
                "Run the same command again to continue"
            )
        say(message, console)
        raise
    model = model.cpu().requires_grad_(True).eval()
    team.separate(model)
    team.wait()
    return model


@dataclass
class _Run:
    """The state of one call of ``train``."""

    model: LGViT
    train_set: Dataset
    val_set: Dataset | None
    config: TrainingConfig
    out: Path
    identity: dict[str, str]
    console: Console
    features: Path | None
    team: Team
    saved: str = ""  # how far the resume file got
    history: list[report.Row] = field(default_factory=list)
    reported: set[int] = field(default_factory=set)

    def stage(self, number: int, resumed: Progress | None) -> None:
        """Runs a stage, or what is left of it."""
        batches = Batches(
            self.train_set,
            self.model.config.preprocess,
            batch_size=self.config.batch_size,
            workers=self.config.workers,
            team=self.team,
        )
        if resumed is not None:
            self.model.load_state_dict(resumed.model)
        stage = self._make(number, batches)
        self.team.synchronise(self.model, stage.aligners)
        stage.start()
        optimizer = adamw(
            stage.parameters(),
            weight_decay=self.config.weight_decay,
            clip=self.config.clip,
            # A resumed optimizer's state holds them.
            scales=stage.scales(self.team.total) if resumed is None else None,
        )
        first = 0
        if resumed is not None:
            stage.aligners.load_state_dict(resumed.aligners)
            optimizer.load_state_dict(resumed.optimizer)
            first, self.history = resumed.epoch, resumed.history
            self._remember(number, first)
            say(f"continuing after {self.saved}", self.console)
        epochs, peak = self.config.epochs[number - 1], self.config.lr[number - 1]
        steps = epochs * len(batches)
        recent, rate = report.Smoothed(), 0.0
        with progress_bar(f"stage {number}", to=self.console, lasting=True) as progress:
            for epoch in range(first, epochs):
                stage.start()
                # The schedule follows the epochs, whatever images had to be skipped.
                step = epoch * len(batches)
                begun, losses, accuracies = time.monotonic(), report.Mean(), report.Mean()
                for result in stage.steps(epoch, step):
                    rate = learning_rate(step, steps, peak=peak, warmup=self.config.warmup)
                    loss, accuracy, rows = self._update(stage, optimizer, result, rate)
                    recent.add(loss, accuracy)
                    losses.add(loss)
                    accuracies.add(accuracy, rows)
                    step += 1
                    progress(step, steps, f"epoch {epoch + 1}/{epochs}: {recent}")
                self._report_unreadable(batches)
                row = (number, epoch + 1, step, rate, losses.value, accuracies.value)
                seconds = time.monotonic() - begun
                self.history.append(dict(zip(report.COLUMNS, (*row, seconds), strict=True)))
                if self.team.leads:
                    report.write_log(self.history, report.log_path(self.out))
                    self._save(stage, optimizer, epoch + 1, step)

    def _make(self, number: int, batches: Batches) -> Stage:
        if number == 1:
            return StageOne(self.model, self.config, batches)
        cache: StoredStates | None = None
        if self.features is not None:
            cache = self._stored(self.features, batches)
        elif self.config.cache:
            with progress_bar("frozen blocks", to=self.console) as progress:
                cache = HiddenCache(self.model, batches, self.config, progress)
        return StageTwo(self.model, self.config, batches, cache)

    def _stored(self, folder: Path, batches: Batches) -> FeatureStore:
        store = FeatureStore(folder, self.model, batches, self.config)
        say(
            f"features of {store.images} images take {store.bytes / 1e9:.2f} GB in {folder}",
            self.console,
        )
        computed = 0
        if self.team.leads:
            with progress_bar("frozen blocks", to=self.console, lasting=True) as progress:
                computed = store.fill(progress)
        self.team.wait()
        if self.team.leads_machine and not self.team.leads:
            store.fill(wait=True)  # computes nothing where machines share the folder
        self.team.wait()
        if not self.team.leads_machine:
            store.attach()
        self._report_unreadable(batches)
        if not computed:
            unreadable = f"; {store.unreadable} images cannot be read"
            say("all were stored before" + (unreadable if store.unreadable else ""), self.console)
        return store

    def _update(
        self, stage: Stage, optimizer: torch.optim.Optimizer, result: Step, rate: float
    ) -> tuple[float, float, int]:
        """Trains on one step; returns the batch's loss, its accuracy and its number of answers."""
        rows, right = len(result.labels), result.logits.argmax(-1) == result.labels
        all_rows = self.team.sum(rows)
        loss = result.loss * (rows / all_rows)  # the sum over processes is the batch's mean
        value, correct = self.team.sum(float(loss.detach())), self.team.sum(float(right.sum()))
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss of stage {stage.number} became {value}; start again with a lower --lr"
            )
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.team.sum_gradients(p for _, p in stage.parameters())
        optimizer.step()
        return value, correct / all_rows, int(all_rows)

    def _save(self, stage: Stage, optimizer: torch.optim.Optimizer, epoch: int, step: int) -> None:
        weights, aligners = self.model.state_dict(), stage.aligners.state_dict()
        state = optimizer.state_dict()
        progress = Progress(stage.number, epoch, step, weights, aligners, state, self.history)
        write_progress(resume_path(self.out), progress, self.identity)
        self._remember(stage.number, epoch)

    def _remember(self, stage: int, epoch: int) -> None:
        self.saved = f"epoch {epoch}/{self.config.epochs[stage - 1]} of stage {stage}"

    def measure(self, number: int) -> None:
        """Measures the exits after a stage, where there are validation images."""
        if self.val_set is None:
            say(
                "no validation images, so accuracy is not measured; add --val DIR or --val 0.1",
                self.console,
            )
            return
        say(f"after stage {number}, {len(self.val_set)} validation images:", self.console)
        report.measure(self.model, self.val_set, self.out, self.console, self.config)

    def _report_unreadable(self, batches: Batches) -> None:
        new = {i: why for i, why in batches.unreadable.items() if i not in self.reported}
        if not new:
            return
        self.reported |= new.keys()
        if len(self.reported) == len(self.train_set):
            raise DataError("expected training images, found none that can be read")
        say(
            f"skipped {len(new)} of {len(self.train_set)} images that cannot be read, such as: "
            f"{next(iter(new.values()))}",
            self.console,
        )
