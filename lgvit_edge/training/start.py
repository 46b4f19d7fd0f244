"""Starts a training: from folders of images, and the model that a backbone or a file gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from rich.console import Console

from lgvit_edge._support.terminal import say
from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.architecture.placement import plan_exits
from lgvit_edge.architecture.published import architecture, architectures
from lgvit_edge.errors import DataError, UsageError
from lgvit_edge.images.classes import by_number, class_order, names_agree, numbered
from lgvit_edge.images.folders import check_apart, class_names
from lgvit_edge.model import LGViT, block_macs, load_model
from lgvit_edge.model.checkpoints.containers import Note, note_in_log
from lgvit_edge.model.checkpoints.hub import on_hub
from lgvit_edge.model.checkpoints.timm_names import published
from lgvit_edge.training.data.datasets import ImageFolder
from lgvit_edge.training.settings import TrainingConfig

if TYPE_CHECKING:
    from typing_extensions import Required

DEFAULT_EXITS = "uniform:8"


class StartOptions(TypedDict, total=False):
    """How ``start_from_folder`` makes the model and finds the images, but for exits."""

    backbone: Required[str]
    weights: str | Path | None
    use_ema: bool
    heads: str | None
    image_size: int | None
    val: str | Path | float | None
    classes: str | Path | None
    num_heads: int | None
    preprocess: Mapping[str, Any] | None


@dataclass(frozen=True)
class Start:
    """What a training begins with."""

    model: LGViT
    images: ImageFolder
    val: ImageFolder | None
    knows: bool  # whether its final classifier knows the classes of the images already


def start_from_folder(
    data: str | Path,
    *,
    backbone: str,
    config: TrainingConfig,
    console: Console,
    weights: str | Path | None = None,
    use_ema: bool = False,
    exits: str | None = None,
    default_exits: str = DEFAULT_EXITS,
    heads: str | None = None,
    image_size: int | None = None,
    val: str | Path | float | None = None,
    classes: str | Path | None = None,
    num_heads: int | None = None,
    preprocess: Mapping[str, Any] | None = None,
) -> Start:
    """Returns the model to train and its images; nothing is trained or written.

    Args:
        data: one sub-folder per class; or ``train/`` and maybe ``val/`` that hold those.
        backbone: an architecture, the path of a checkpoint, or ``hf:owner/name``, on the hub.
        config: settings of the training.
        console: where remarks go.
        weights: a checkpoint for the architecture; None starts at random.
        use_ema: where such a checkpoint also holds the moving average of its weights, take that.
        exits: as ``plan_exits`` reads them; default: those of the checkpoint, else the next.
        default_exits: the exits of a checkpoint that has none.
        heads: kind of the exit heads, as ``default_heads`` reads it; default: ``lgvit``.
        image_size: image size in pixels, if different from the backbone's.
        val: one sub-folder per class; or the share 0..1 of the training images that is set aside;
            default: ``data/val`` where ``data/train`` is used.
        classes: a file with the folder name of each class, or ``sorted``, as ``class_order`` takes
            it; default: by name where the model has class names.
        num_heads: attention heads of weights that do not tell theirs.
        preprocess: settings other than the checkpoint's, see ``Preprocess.changed``.

    Raises:
        UsageError: the arguments are not valid, or contradict the checkpoint.
        DataError: the images cannot be used.
        CheckpointError: the weights cannot be used.
    """
    train_folder, val_folder = _folders(Path(data), val)
    folders = class_names(train_folder)
    random_start = weights is None and not is_checkpoint(backbone)
    # The final classifier then stays as it is, or teaches first.
    frozen = config.stages[0] == 2
    if random_start and frozen:
        raise UsageError(
            "stage 2 freezes the backbone, so it needs a trained one: expected --weights or a "
            "checkpoint as --backbone; or train it with --order joint"
        )
    if random_start and num_heads is not None:
        raise UsageError(
            "--num-heads is for weights that do not tell theirs, found none: add --weights, or a "
            "checkpoint as --backbone"
        )
    if random_start and use_ema:
        raise UsageError(
            "--use-ema chooses between the weights of a checkpoint, found none: add --weights, or "
            "a checkpoint as --backbone"
        )
    start = load_start(
        backbone,
        None if weights is None else Path(weights),
        num_classes=len(folders),
        seed=config.seed,
        trains_classifier=not frozen,
        num_heads=num_heads,
        use_ema=use_ema,
        note=partial(say, to=console),
    )
    if preprocess is not None:
        old = start.config
        spec = old.preprocess.changed(old.image_size, **preprocess)
        start.config = old.replace(preprocess=spec)
    if random_start:
        say(f"no --weights: {backbone} starts from random weights (seed {config.seed})", console)
    if image_size is not None and image_size != start.config.image_size:
        start = start.resized(image_size)
    wanted = _exits(start.config, exits, heads, default_exits)
    task = _task(start.config, folders, frozen, classes, random_start, console)
    model = _prepare(start, wanted, task, config.seed)
    size, spec = model.config.image_size, model.config.preprocess
    read = partial(ImageFolder, size=size, preprocess=spec, classes=task.folders, names=task.names)
    train_set = read(train_folder, min_crop=config.min_crop, flip=config.flip)
    val_set = None
    for text in train_set.left_out:
        say(text, console)
    if isinstance(val, float):
        train_set, val_set = train_set.split(val, config.seed)
        say(f"{len(val_set)} images set aside for validation, {len(train_set)} to train", console)
    elif val_folder is not None:
        val_set = read(val_folder)
        for text in val_set.left_out:
            say(text, console)
    else:
        say(
            "no validation images, so accuracy is not measured; add --val DIR or --val 0.1",
            console,
        )
    knows = task.kept and not random_start
    return Start(model, train_set, val_set, knows)


def check_features(
    features: str | Path | None, data: str | Path, val: str | Path | float | None
) -> None:
    """Refuses features among the images of a training, where they would be read as a class.

    Raises:
        UsageError: they would lie there.
    """
    if features is not None:
        for folder in _folders(Path(data), val):
            check_apart("--cache-features", features, folder)


def _folders(data: Path, val: str | Path | float | None) -> tuple[Path, Path | None]:
    if isinstance(val, float) and not 0 < val < 1:
        raise UsageError(f"--val: expected a folder or a share between 0 and 1, found {val}")
    folder = None if val is None or isinstance(val, float) else Path(val)
    if not (data / "train").is_dir():
        return data, folder
    if val is None and (data / "val").is_dir():
        folder = data / "val"
    return data / "train", folder


@dataclass(frozen=True)
class _Task:
    """The classes to learn."""

    folders: tuple[str, ...]  # the folder of each class, in the order of the classes
    names: tuple[str, ...]  # what they are called
    kept: bool  # whether they are those of the checkpoint, whose classifiers stay


def _task(
    config: LGViTConfig,
    folders: Sequence[str],
    frozen: bool,
    classes: str | Path | None,
    random_start: bool,
    console: Console,
) -> _Task:
    """Return the classes of the images, in the order of the checkpoint's where they are its own."""
    count, labels = len(folders), config.labels
    same_count = config.num_classes == count
    if frozen and not same_count:
        raise UsageError(
            f"stage 2 keeps the final classifier of {config.num_classes} classes, but the images "
            f"have {count}; give images of those classes, or train a new classifier: --order joint"
        )
    known = classes is not None or not labels or names_agree(folders, labels)
    if not frozen and (random_start or not same_count or not known):
        if not random_start:
            differ = (
                f"the checkpoint has {config.num_classes} classes, the images {count}"
                if not same_count
                else f"the checkpoint's classes ({numbered(labels)}) are called otherwise than the "
                "images'; if they are the same, give their order with --classes"
            )
            say(f"{differ}: the classifiers start afresh", console)
        order = tuple(by_number(folders))
        if classes is not None:
            order = class_order(folders, (), count, classes).names
        return _Task(order, order, kept=False)
    try:
        found = class_order(folders, labels, count, classes)
    except DataError as error:
        if classes is not None or not frozen:
            raise
        raise DataError(f"{error}; or train a new classifier: --order joint") from None
    if found.told is not None:
        say(found.told, console)
    elif list(found.names) != sorted(folders):
        say(f"classes stand in the checkpoint's order: {numbered(found.names)}", console)
    return _Task(found.names, labels or found.names, kept=True)


def _prepare(start: LGViT, wanted: tuple[ExitConfig, ...], task: _Task, seed: int) -> LGViT:
    """Returns ``start`` with the exits and classes asked for; weights that fit stay."""
    if wanted == start.config.exits and task.kept:
        start.config = start.config.replace(labels=task.names)
        return start
    count = len(task.names)
    return attach_exits(
        start, wanted, num_classes=count, labels=task.names, seed=seed, keep=task.kept
    )


def _exits(
    config: LGViTConfig, text: str | None, heads: str | None, default: str
) -> tuple[ExitConfig, ...]:
    if text is None and config.exits:
        if heads is None:
            return config.exits
        text = ",".join(str(exit.block) for exit in config.exits)
    macs = block_macs(config)
    return plan_exits(
        default if text is None else text, macs, heads=heads or "lgvit", family=config.family
    )


def attach_exits(
    backbone: LGViT,
    exits: Sequence[ExitConfig],
    *,
    num_classes: int | None = None,
    labels: Sequence[str] = (),
    seed: int = 777,
    keep: bool = True,
) -> LGViT:
    """Returns a new LGViT with the backbone's weights and fresh heads at ``exits``.

    The backbone is copied; its own heads, if any, are left behind. Without ``keep``, or where
    ``num_classes`` differs from the backbone's, the final classifier is fresh too and stage 1 has
    to train it. ``labels`` are class names; default: the backbone's, where the class count stays.

    Raises:
        ConfigError: exits or labels do not fit the backbone.
    """
    old = backbone.config
    classes = old.num_classes if num_classes is None else num_classes
    labels = tuple(labels) or (old.labels if classes == old.num_classes else ())
    config = old.replace(exits=tuple(exits), num_classes=classes, labels=labels)
    model = seeded(config, seed)
    keep, weights = keep and classes == old.num_classes, backbone.backbone.state_dict()
    if not keep:
        weights = {n: t for n, t in weights.items() if not n.startswith("final.classifier.")}
    model.backbone.load_state_dict(weights, strict=keep)
    return model.eval()


def seeded(config: LGViTConfig, seed: int) -> LGViT:
    """Returns an LGViT with fresh weights, which depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LGViT(config)


def load_start(
    backbone: str,
    weights: Path | None,
    *,
    num_classes: int,
    seed: int,
    trains_classifier: bool = True,
    num_heads: int | None = None,
    use_ema: bool = False,
    note: Note = note_in_log,
) -> LGViT:
    """Loads the model that ``--backbone`` and ``--weights`` name.

    ``backbone`` is the path of a checkpoint (ours, the authors', or a plain backbone of Hugging
    Face or timm), the name of one on the hub, or an architecture. For an architecture, ``weights``
    is such a path or name; None starts at random, with ``num_classes`` and ``seed``. An
    architecture may be one of timm's names, whose ``weights`` must be given. Weights without a
    classifier get one of ``num_classes`` if the training ``trains_classifier``. The rest is as in
    ``load_model``.

    Raises:
        UsageError: ``backbone`` is neither, or a path and ``weights`` are both given.
        CheckpointError: the checkpoint cannot be used.
    """
    classes = num_classes if trains_classifier else None
    load = partial(load_model, num_heads=num_heads, classes=classes, use_ema=use_ema, note=note)
    if backbone in architectures():
        if weights is None:
            return seeded(architecture(backbone, num_classes=num_classes), seed)
        model = load(weights, arch=backbone)
        expected = architecture(backbone)
        differing = [
            f"{field} {getattr(expected, field)}, found {getattr(model.config, field)}"
            for field in ("hidden_size", "num_blocks", "num_heads", "prefix_tokens")
            if getattr(expected, field) != getattr(model.config, field)
        ]
        if differing:
            raise UsageError(f"{weights} is no {backbone}: expected {'; '.join(differing)}")
        return model
    found = is_checkpoint(backbone)
    if not found and weights is not None and published(backbone) is not None:
        return load(weights, arch=backbone)
    if not found:
        raise UsageError(
            f"--backbone {backbone}: expected a checkpoint's path, hf:owner/name of the hub, one "
            f"of {', '.join(architectures())}, or timm's name of the architecture of --weights"
        )
    if weights is not None:
        raise UsageError(
            f"--backbone {backbone} is a checkpoint already; give its architecture with "
            "--weights, or leave --weights out"
        )
    return load(backbone)


def is_checkpoint(backbone: str) -> bool:
    """Says whether this is a path, or a name on the hub, and not an architecture."""
    return on_hub(backbone) or Path(backbone).exists()
