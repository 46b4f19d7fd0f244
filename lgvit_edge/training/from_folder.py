"""Trains from folders of images and the options of ``lgvit-edge train``: one model, or passes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lgvit_edge._support.terminal import errors, say
from lgvit_edge.architecture.config import ExitConfig
from lgvit_edge.architecture.placement import plan_exits
from lgvit_edge.errors import CheckpointError, UnknownHeadsError, UsageError
from lgvit_edge.images.classes import numbered
from lgvit_edge.model import LGViT, block_macs, load_model
from lgvit_edge.training.checks import alone
from lgvit_edge.training.loop import train
from lgvit_edge.training.passes import Passes, naming, pass_sizes, train_passes
from lgvit_edge.training.settings import TrainingConfig
from lgvit_edge.training.start import Start, StartOptions, check_features, start_from_folder
from lgvit_edge.training.teacher import Teacher
from lgvit_edge.training.team import join

if TYPE_CHECKING:
    from typing_extensions import Unpack


def train_from_folder(
    data: str | Path,
    *,
    out: str | Path,
    config: TrainingConfig | None = None,
    features: str | Path | None = None,
    exits: str | None = None,
    teacher: str | Path | None = None,
    resume: bool = True,
    console: Console | None = None,
    **options: Unpack[StartOptions],
) -> LGViT:
    """Trains an LGViT on a folder of images.

    Args:
        data: one sub-folder per class; or ``train/`` and maybe ``val/`` that hold those.
        out: ``.pt`` or ``.safetensors``.
        config: settings of the training.
        features: a folder that stores the frozen blocks' outputs, see ``train``.
        exits: as ``plan_exits`` reads them; default: those of the checkpoint, else 8 uniform.
        teacher: a checkpoint whose answers stage 1 imitates; ``start`` is the model as it begins.
        resume: continue from ``<out>.resume`` when it is there.
        console: where progress goes; default: standard error.
        **options: as ``start_from_folder`` takes them.

    Raises:
        UsageError: the arguments are not valid, or contradict the checkpoint.
        DataError: the images cannot be used.
        CheckpointError: the weights cannot be used.
        TrainingError: training cannot go on.
    """
    config = config or TrainingConfig()
    team = join(config.device)
    console = (console or errors) if team.leads else Console(quiet=True)
    with alone(Path(out), None if features is None else Path(features), team):
        check_features(features, data, options.get("val"))
        start = start_from_folder(data, config=config, console=console, exits=exits, **options)
        return train(
            start.model,
            start.images,
            start.val,
            config,
            out=out,
            features=features,
            teacher=None if teacher is None else load_teacher(teacher, start, console),
            resume=resume,
            console=console,
        )


def load_teacher(teacher: str | Path, start: Start, console: Console) -> Teacher:
    """Returns the teacher in a checkpoint, or for ``start`` the model as it begins.

    Raises:
        UsageError: the model that begins knows nothing to teach.
        CheckpointError: the checkpoint cannot be used.
    """
    if str(teacher) == "start":
        if not start.knows:
            raise UsageError(
                "--teacher start: the classifier starts afresh and has nothing to teach; expected "
                "a checkpoint that knows the classes"
            )
        model = start.model
    else:
        try:
            model = load_model(teacher, note=partial(say, to=console))
        except UnknownHeadsError as error:
            raise CheckpointError(
                f"--teacher: {error}; the option is for the backbone: in Python, call train with "
                "teacher=Teacher(load_model(PATH, num_heads=N), images)"
            ) from None
    if not model.config.labels:
        taken = numbered(start.images.classes)
        say(f"the teacher has no class names: its classes are taken to be {taken}", console)
    images = start.images.at(model.config.image_size, model.config.preprocess)
    return Teacher(model.with_exits([]), images)


def passes_from_folder(
    data: str | Path,
    *,
    sizes: str,
    out: str | Path,
    exits: str | None = None,
    shared: bool = False,
    config: TrainingConfig | None = None,
    features: str | Path | None = None,
    resume: bool = True,
    console: Console | None = None,
    **options: Unpack[StartOptions],
) -> Passes:
    """Trains passes on a folder of images, as ``train_passes`` does.

    Args:
        data: one sub-folder per class; or ``train/`` and maybe ``val/`` that hold those.
        sizes: as ``pass_sizes`` reads them.
        out: ``model.pt`` names ``model-112.pt`` and so on.
        exits: for each pass as ``plan_exits`` reads them, such as ``none/6,9``, or once for all;
            default: none, and for the last pass those of the checkpoint.
        shared: one set of weights for all passes.
        config: settings.
        features: a folder that keeps the teacher's answers and what stage 2 stores.
        resume: continue an interrupted training.
        console: where progress goes; default: standard error.
        **options: as ``start_from_folder`` takes them, all but exits.

    Raises:
        As ``train_from_folder`` and ``train_passes`` do.
    """
    config = config or TrainingConfig()
    team = join(config.device)
    console = (console or errors) if team.leads else Console(quiet=True)
    with alone(Path(out), None if features is None else Path(features), team):
        check_features(features, data, options.get("val"))
        typed = ["none"] if exits is None else exits.split("/")
        last = None if exits is None else typed[-1]
        start = start_from_folder(
            data, config=config, console=console, exits=last, default_exits="none", **options
        )
        wanted = pass_sizes(sizes, start.model.config)
        if len(typed) not in (1, len(wanted)):
            raise UsageError(
                f"--exits: expected those of one pass for all, or of {len(wanted)} passes with / "
                f"between them, such as none/6,9; found {exits!r}"
            )
        coarse = (typed * len(wanted) if len(typed) == 1 else typed)[: len(wanted) - 1]
        plans = [
            _placed(start.model, size, text, options.get("heads"))
            for size, text in zip(wanted, coarse, strict=False)
        ]
        return train_passes(
            start.model,
            start.images,
            start.val,
            config,
            sizes=wanted,
            exits=plans,
            shared=shared,
            out=out,
            features=features,
            resume=resume,
            console=console,
        )


def _placed(model: LGViT, size: int, text: str, heads: str | None) -> tuple[ExitConfig, ...]:
    with naming(size):
        config = model.resized(size).config.replace(exits=())
        macs = block_macs(config)
        return plan_exits(text, macs, heads=heads or "lgvit", family=config.family)
