"""Trains an LGViT, or several in turns: checks, continuing after an interruption, results."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from torch import nn

from lgvit_edge._support.terminal import errors, say
from lgvit_edge.model import LGViT
from lgvit_edge.training import report
from lgvit_edge.training.checks import (
    check_place,
    check_room,
    check_stages,
    check_task,
    check_team,
)
from lgvit_edge.training.data.datasets import Dataset
from lgvit_edge.training.resume import fingerprint, read_progress, resume_path
from lgvit_edge.training.run import Run, Trainee
from lgvit_edge.training.settings import TrainingConfig
from lgvit_edge.training.teacher import Teacher, check_teacher
from lgvit_edge.training.team import join


def train(
    model: LGViT,
    train_set: Dataset,
    val_set: Dataset | None,
    config: TrainingConfig,
    *,
    out: str | Path,
    features: str | Path | None = None,
    teacher: Teacher | None = None,
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
        out: ``.pt`` or ``.safetensors``, written when all is done.
        features: a folder in which stage 2 stores the frozen blocks' outputs (float16), computed
            once; later trainings of the same backbone on the same images read them.
        teacher: a model whose answers stage 1 imitates, by Eq. 14; ``config.gamma`` is their share.
        resume: continue from ``<out>.resume`` when it is there.
        console: where progress goes; default: standard error.

    Raises:
        UsageError: the settings, model or teacher do not allow it.
        DataError: the data do not fit the model.
        TrainingError: the loss is no number, ``out`` cannot be written, or ``<out>.resume`` is of
            another training.
        KeyboardInterrupt: interrupted; ``<out>.resume`` holds the last whole epoch.
    """
    folder = None if features is None else Path(features)
    trainee = Trainee(model, train_set, val_set, Path(out), folder, teacher)
    (trained,) = train_together([trainee], config, out=Path(out), resume=resume, console=console)
    resume_path(Path(out)).unlink(missing_ok=True)
    return trained


def train_together(
    trainees: Sequence[Trainee],
    config: TrainingConfig,
    *,
    out: Path,
    resume: bool = True,
    console: Console | None = None,
) -> list[LGViT]:
    """Trains copies of one or several models, in turns, and returns them as ``train`` does.

    Parameters that are the same object in several models stay so. Resume file and log are beside
    ``out``. The resume file is left there: the same call then only writes the checkpoints again,
    for a program of several trainings that was interrupted.

    Raises:
        As ``train`` does.
    """
    if any(trainee.features is not None for trainee in trainees):
        config = config.replace(cache=True)
    team = join(config.device)
    for trainee in trainees:
        check_team(team, config, len(trainee.images), shared=trainee.features is not None)
        check_task(trainee.model, trainee.images, trainee.val, config)
        check_stages([other.model for other in trainees], trainee.features, config)
        if trainee.teacher is not None:
            check_teacher(trainee.teacher, trainee.model, trainee.images, config)
        if team.leads:
            check_place(trainee.out, trainee.features)
            check_room(trainee.out, trainee.model)
    console = (console or errors) if team.leads else Console(quiet=True)
    identity = {k: v for trainee in trainees for k, v in _identity(trainee, trainees, config)}
    resumed = read_progress(resume_path(out), identity) if resume and team.leads else None
    resumed = team.from_leader(resumed)
    # One copy of all, so that what they share is copied once.
    models = copy.deepcopy(nn.ModuleList(trainee.model for trainee in trainees)).to(team.device)
    run = Run(trainees, models, config, out, identity, console, team)
    try:
        for place, number in enumerate(config.stages):
            if resumed is None or place >= resumed.place:
                here = resumed if resumed is not None and resumed.place == place else None
                run.stage(place, here)
                last = place == len(config.stages) - 1
                if team.leads and last:  # before steps that might fail and matter less
                    run.write()
                if team.leads:
                    run.measure(number)
                team.wait()
        if team.leads:
            report.picture_of(run.history, report.log_path(out), console)
            run.clear()
    except KeyboardInterrupt:
        message = "interrupted before the first epoch was done: nothing to continue from"
        if run.saved:
            message = (
                f"interrupted; {resume_path(out)} holds {run.saved}. "
                "Run the same command again to continue"
            )
        say(message, console)
        raise
    models = models.cpu().requires_grad_(True).eval()
    team.separate(models)
    team.wait()
    return run.models


def _identity(
    trainee: Trainee, trainees: Sequence[Trainee], config: TrainingConfig
) -> Iterable[tuple[str, str]]:
    """Yields what must be the same to continue, by names that tell several models apart."""
    of = "" if len(trainees) == 1 else f"{trainee.model.config.image_size} px: "
    teacher = None if trainee.teacher is None else trainee.teacher.model
    found = fingerprint(trainee.model, trainee.images, config, teacher)
    return ((of + name, value) for name, value in found.items())
