"""Passes: one architecture at several image sizes, of which the coarse ones answer easy images.

The last pass is an ordinary model. Each coarser one begins with its weights, for fewer patches, and
learns what it answers: cascaded transformers, as in DVT (NeurIPS 2021) and CF-ViT (AAAI 2023).
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from lgvit_edge._support.optional import require
from lgvit_edge._support.outputs import write_json
from lgvit_edge._support.terminal import errors, say
from lgvit_edge.architecture.config import MAX_SIZE, ExitConfig, LGViTConfig
from lgvit_edge.errors import ConfigError, TrainingError, UsageError
from lgvit_edge.model import LGViT, save_checkpoint
from lgvit_edge.training import report
from lgvit_edge.training.checks import check_place, check_room
from lgvit_edge.training.data.datasets import ImageFolder
from lgvit_edge.training.loop import train_together
from lgvit_edge.training.points import calibrated, shown
from lgvit_edge.training.resume import resume_path
from lgvit_edge.training.run import Trainee
from lgvit_edge.training.schemes import ORDERS
from lgvit_edge.training.settings import TrainingConfig
from lgvit_edge.training.start import attach_exits
from lgvit_edge.training.teacher import Teacher
from lgvit_edge.training.team import join


@dataclass(frozen=True)
class Passes:
    """Trained passes, coarse first."""

    models: tuple[LGViT, ...]
    files: tuple[Path, ...]  # the checkpoint of each
    record: dict[str, Any] | None  # as ``calibrated`` returns it; None without validation images


def pass_sizes(text: str, config: LGViTConfig) -> tuple[int, ...]:
    """Returns the image sizes of all passes, in pixels, coarse first.

    ``text`` holds sizes such as ``112,224``, or numbers up to 1 as shares of the image size of the
    last pass, which is that of ``config``.

    Raises:
        UsageError: it holds others, fewer than two, or sizes that do not fit.
    """
    fine, patch = config.image_size, config.patch_size
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    pixels = [number * fine if 0 < number <= 1 else number for number in numbers]
    whole = [round(p) for p in pixels if 1 <= p <= MAX_SIZE and abs(p - round(p)) < 1e-6]
    if len(whole) < max(2, len(pixels)):
        found = "" if len(pixels) < 2 else f" ({', '.join(f'{side:g}' for side in pixels)} pixels)"
        raise UsageError(
            "--passes: expected two or more image sizes such as 112,224, or shares of the last "
            f"one such as 0.5,1; found {text!r}{found}"
        )
    for side in whole:
        if side % patch:
            below = side // patch * patch
            fitting = " or ".join(str(fit) for fit in (below, below + patch) if fit)
            raise UsageError(
                f"--passes: expected multiples of the patch of {patch} pixels, found {side}; take "
                f"{fitting}"
            )
    if whole != sorted(set(whole)):
        raise UsageError(f"--passes: expected sizes that grow, coarse first; found {text!r}")
    if whole[-1] != fine:
        raise UsageError(
            f"--passes: expected the last size to be the backbone's {fine} pixels, found "
            f"{whole[-1]}; for another one add --image-size {whole[-1]}"
        )
    return tuple(whole)


def pass_path(out: Path, size: int) -> Path:
    """Returns the checkpoint of one pass: ``model-112.pt`` for ``model.pt``."""
    return out.with_name(f"{out.stem}-{size}{out.suffix}")


def train_passes(
    model: LGViT,
    train_set: ImageFolder,
    val_set: ImageFolder | None,
    config: TrainingConfig,
    *,
    sizes: Sequence[int],
    exits: Sequence[Sequence[ExitConfig]] | None = None,
    shared: bool = False,
    out: str | Path,
    features: str | Path | None = None,
    answers: str | Path | None = None,
    resume: bool = True,
    console: Console | None = None,
) -> Passes:
    """Trains passes of one architecture, writes a checkpoint for each, and calibrates them.

    The last pass is ``model``, trained in ``config.order``; without exits, stage 2 has nothing to
    do, and in the order ``frozen`` the model stays as it is. Every coarser pass begins with its
    weights, positions interpolated, and trains stage 1, then stage 2 where it has exits. The last
    pass is its teacher, by ``config.gamma`` of the loss (Eq. 14); 0 leaves the teacher out.
    Interrupted, the same call goes on.

    Args:
        model: the last pass as it begins; left as it is.
        train_set: what to learn from, as ``model`` takes it.
        val_set: held-out images; one half chooses temperatures and thresholds, the other reports.
        config: settings.
        sizes: image sizes, coarse first; the last is the model's, see ``pass_sizes``.
        exits: those of each pass but the last, whose exits are the model's; default: none.
        shared: trains one set of weights for all passes, in turns; what depends on the image size
            (positions), and the exit heads, are each pass's own.
        out: ``model.pt`` names ``model-112.pt`` and so on.
        features: a folder that keeps what stage 2 stores, and the teacher's answers.
        answers: another folder for those answers, for trainings whose stages 2 have little in
            common.
        resume: continue an interrupted training.
        console: where progress goes; default: standard error.

    Raises:
        UsageError: settings or sizes do not allow it.
        ConfigError: a size does not fit the architecture or the exits.
        DataError, TrainingError: as ``train`` raises them.
    """
    out, features = Path(out), None if features is None else Path(features)
    if tuple(sizes) != pass_sizes(",".join(map(str, sizes)), model.config):
        raise UsageError(f"expected image sizes in pixels, found {list(sizes)}")
    if val_set is not None:
        require("scipy.optimize", extra="train")  # not after hours of training
    team = join(config.device)
    console = (console or errors) if team.leads else Console(quiet=True)
    files = tuple(pass_path(out, size) for size in sizes)
    begins = planned(model, sizes, exits or [()] * (len(sizes) - 1), config.seed)
    if team.leads:
        for file, begin in zip(files, begins, strict=True):
            check_place(file, features)
            check_room(file, begin)
    work = out.with_name(out.name + ".passes")
    kept = (features or work) / "teacher" if answers is None else Path(answers)
    job = _Job(config, train_set, features, kept, work, resume, console)
    models = job.shared(begins, files, out) if shared else job.apart(begins, files)
    record = None
    if val_set is not None and team.leads:
        measured = []
        for trained, file in zip(models, files, strict=True):
            size, spec = trained.config.image_size, trained.config.preprocess
            say(f"pass of {size} px, {len(val_set)} validation images:", console)
            at_size = val_set.at(size, spec)
            trained.to(team.device)
            measured.append(report.measure(trained, at_size, file, console, config))
            trained.cpu()
        record = calibrated(models, measured, files)
        target = out.with_suffix(".passes.json")
        try:
            write_json(target, record)
        except OSError as error:
            raise TrainingError(f"cannot write {target}: {error.strerror}") from None
        shown(record, console)
        say(f"temperatures and thresholds: {target}", console)
    team.wait()
    if team.leads:
        for place in (*files, out):
            resume_path(place).unlink(missing_ok=True)
        shutil.rmtree(work, ignore_errors=True)
    team.wait()
    return Passes(tuple(models), files, record)


@contextlib.contextmanager
def naming(size: int) -> Iterator[None]:
    """Names the pass in the message of a configuration that does not fit."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"pass of {size} px: {error}") from None


def planned(
    model: LGViT, sizes: Sequence[int], exits: Sequence[Sequence[ExitConfig]], seed: int
) -> list[LGViT]:
    """Returns the passes as they begin: ``model`` for each size, with exits of its own.

    Raises:
        ConfigError: names the pass that does not fit.
    """
    coarse = []
    for size, own in zip(sizes[:-1], exits, strict=True):
        with naming(size):
            coarse.append(attach_exits(model.resized(size), own, seed=seed))
    return [*coarse, model]


def tie(models: Sequence[LGViT]) -> None:
    """Gives all models the last one's parameters, save those whose shape the image size decides.

    Those are positions. Exit heads stay each model's own.
    """
    last = models[-1]
    for model in models[:-1]:
        theirs = dict(last.backbone.named_parameters())
        for name, parameter in list(model.backbone.named_parameters()):
            if parameter.shape == theirs[name].shape:
                owner, _, own = name.rpartition(".")
                setattr(model.backbone.get_submodule(owner), own, theirs[name])


@dataclass(frozen=True)
class _Job:
    """What all trainings of one call have in common."""

    config: TrainingConfig
    images: ImageFolder
    features: Path | None
    answers: Path  # of the teacher
    work: Path  # a folder for the time of the call
    resume: bool
    console: Console

    def apart(self, begins: Sequence[LGViT], files: Sequence[Path]) -> list[LGViT]:
        """Trains the last pass, then each coarser one from its weights."""
        *coarse, fine = begins
        fine = self._fine(fine, files[-1])
        teacher, models = self._teacher(fine), []
        for begin, file in zip(coarse, files, strict=False):
            size = begin.config.image_size
            say(f"pass of {size} px", self.console)
            exits = begin.config.exits
            begin = attach_exits(fine.resized(size), exits, seed=self.config.seed)
            trainee = self._trainee(begin, file, teacher)
            models += self._train([trainee], self._order(exits, self._coarse), file)
        return [*models, fine]

    def shared(self, begins: Sequence[LGViT], files: Sequence[Path], out: Path) -> list[LGViT]:
        """Trains one set of weights; the teacher is the last pass as it was before."""
        *coarse, fine = begins
        self.work.mkdir(exist_ok=True)
        before = self._fine(fine.with_exits([]), self.work / "teacher.pt")
        teacher, seed = self._teacher(before), self.config.seed
        models = [
            *(
                attach_exits(before.resized(p.config.image_size), p.config.exits, seed=seed)
                for p in coarse
            ),
            attach_exits(before, fine.config.exits, seed=seed),
        ]
        tie(models)
        say("all passes in turns", self.console)
        trainees = [self._trainee(m, file, teacher) for m, file in zip(models, files, strict=True)]
        every = [exit for model in models for exit in model.config.exits]
        return self._train(trainees, self._order(every, self._coarse), out)

    @property
    def _coarse(self) -> str:
        """The order of a pass whose backbone has to learn another size."""
        return "joint" if self.config.order == "frozen" else self.config.order

    def _order(self, exits: Sequence[ExitConfig], order: str) -> str | None:
        """Returns an order without stage 2 where nothing would be trained; None: without any."""
        if exits:
            return order
        return "whole" if 1 in ORDERS[order].stages else None

    def _fine(self, begin: LGViT, file: Path) -> LGViT:
        size, order = begin.config.image_size, self._order(begin.config.exits, self.config.order)
        say(f"pass of {size} px" + ("" if order else ", as it is"), self.console)
        if order is None:
            if join(self.config.device).leads:
                save_checkpoint(begin, file)
            return begin
        return self._train([self._trainee(begin, file, None)], order, file)[0]

    def _teacher(self, fine: LGViT) -> Teacher | None:
        if not self.config.gamma:
            return None
        return Teacher(fine.with_exits([]), self._at(fine), self.answers)

    def _trainee(self, begin: LGViT, file: Path, teacher: Teacher | None) -> Trainee:
        size, folder = begin.config.image_size, None
        if self.features is not None and begin.config.exits:
            folder = self.features / str(size)
        return Trainee(begin, self._at(begin), None, file, folder, teacher)

    def _at(self, model: LGViT) -> ImageFolder:
        return self.images.at(model.config.image_size, model.config.preprocess)

    def _train(self, trainees: Sequence[Trainee], order: str | None, out: Path) -> list[LGViT]:
        assert order is not None  # a pass that is trained has stages
        config = self.config.replace(order=order)
        return train_together(trainees, config, out=out, resume=self.resume, console=self.console)
