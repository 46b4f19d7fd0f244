"""The ``train`` command: trains an LGViT from a backbone and a folder of images."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from lgvit_edge._support.optional import require
from lgvit_edge._support.terminal import console, say
from lgvit_edge.cli.options import (
    Classes,
    Heads,
    ImageSize,
    SourceOptions,
    with_options,
)
from lgvit_edge.errors import UsageError
from lgvit_edge.training.settings import Setting, TrainingConfig, settings

if TYPE_CHECKING:
    from lgvit_edge.training.start import StartOptions


def _option(name: str, about: Setting, default: Any) -> inspect.Parameter:
    words = f"{about.help} ({about.bounds})" if about.bounds else about.help
    if about.choices is not None:
        words += ": " + ", ".join(f"{word} ({does})" for word, does in about.choices().items())
    kind = type(default)
    if kind is tuple:
        kind, words = str, f"{words}; stage 1's and stage 2's as A,B"
        default = ",".join(f"{value:g}" for value in dict.fromkeys(default))
    option = Option(rich_help_panel=about.panel, help=f"{words}.")
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def _pair(name: str, text: str, kind: Callable[[str], float]) -> tuple[float, ...]:
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 2):
        raise UsageError(
            f"--{name}: expected a number, or stage 1's and stage 2's as A,B; found {text!r}"
        )
    return tuple(values * 2 if len(values) == 1 else values)


def _config(**fields: Any) -> TrainingConfig:
    for name, _, default in settings():
        if isinstance(default, tuple):
            fields[name] = _pair(name, fields[name], type(default[0]))
    return TrainingConfig(**fields)


# Default, bounds, help and group of an option come from the field of ``TrainingConfig``.
@functools.partial(with_options, name="source", make=SourceOptions)
@functools.partial(
    with_options, name="config", options=[_option(*setting) for setting in settings()], make=_config
)
def train(
    data: Annotated[
        Path, Option(help="Image folder: one sub-folder per class, or train/ and val/.")
    ],
    out: Annotated[Path, Option(help="Checkpoint to write (.pt, .safetensors).")] = Path(
        "model.pt"
    ),
    backbone: Annotated[
        str,
        Option(
            help="Architecture such as deit-tiny, timm's name of one (with --weights), path of a "
            "checkpoint, or hf:owner/name (on the Hugging Face Hub; or one @revision of it)."
        ),
    ] = "vit-tiny",
    weights: Annotated[
        Path | None,
        Option(help="Pretrained weights of the architecture: a timm state dict. Default: random."),
    ] = None,
    val: Annotated[
        str | None,
        Option(
            metavar="DIR|SHARE",
            help="Validation images: a folder, or the share of --data to set aside, such as 0.1. "
            "Default: val/ beside train/ in --data, if there is one.",
        ),
    ] = None,
    classes: Classes = None,
    exits: Annotated[
        str | None,
        Option(
            help="Exit positions: uniform:M, shallow:M, middle:M, deep:M, or blocks such as 4,6,8. "
            "With --passes also for each of them, such as none/6,9. Default: uniform:8; with "
            "--passes none."
        ),
    ] = None,
    heads: Heads = None,
    image_size: ImageSize = None,
    passes: Annotated[
        str | None,
        Option(
            metavar="SIZES",
            help="Train passes, networks for several image sizes that answer in turn: sizes such "
            "as 112,224, or shares of the backbone's such as 0.5,1. --out m.pt names m-112.pt and "
            "m-224.pt.",
        ),
    ] = None,
    shared: Annotated[
        bool,
        Option("--shared", help="With --passes: one set of weights for all, trained in turns."),
    ] = False,
    teacher: Annotated[
        str | None,
        Option(
            metavar="PATH|start",
            help="Checkpoint whose answers stage 1 imitates, or start: the model as it begins. "
            "--gamma is their share of the loss.",
        ),
    ] = None,
    cache_features: Annotated[
        Path | None,
        Option(
            help="Stage 2: run the frozen blocks once and keep their outputs in this folder, for "
            "this training and later ones. With --passes: the teacher's answers as well."
        ),
    ] = None,
    resume: Annotated[bool, Option(help="Continue an interrupted run.")] = True,
    *,
    config: TrainingConfig,
    source: SourceOptions,
) -> None:
    """Train an LGViT from a backbone and a folder of images."""
    require("torch", extra="train")
    from lgvit_edge.training import train_from_folder
    from lgvit_edge.training.team import join

    options: StartOptions = {
        "backbone": backbone,
        "weights": weights,
        "use_ema": source.use_ema,
        "heads": heads,
        "image_size": image_size,
        "val": _val(val),
        "classes": classes,
        "num_heads": source.num_heads,
        "preprocess": source.preprocess(),
    }
    if passes is None:
        if shared:
            raise UsageError("--shared is for several passes: add --passes, such as 112,224")
        train_from_folder(
            data,
            out=out,
            config=config,
            features=cache_features,
            teacher=teacher,
            resume=resume,
            console=console,
            exits=exits,
            **options,
        )
        following = f"--ckpt {quote(str(out))}"
    else:
        if teacher is not None:
            raise UsageError(
                "--teacher is for a training without --passes, in which the last pass teaches the "
                "others; leave it out"
            )
        following = _passes(
            *(data, out, config, cache_features, resume), passes, exits, shared, options
        )
    if join(config.device).leads:
        say(f"next: lgvit-edge export {following} --target cpu --out out/")


def _passes(
    data: Path,
    out: Path,
    config: TrainingConfig,
    features: Path | None,
    resume: bool,
    sizes: str,
    exits: str | None,
    shared: bool,
    options: StartOptions,
) -> str:
    """Train passes; return the options of export that take them."""
    from lgvit_edge.training import passes_from_folder

    trained = passes_from_folder(
        data,
        sizes=sizes,
        exits=exits,
        shared=shared,
        out=out,
        config=config,
        features=features,
        resume=resume,
        console=console,
        **options,
    )
    typed = [f"--ckpt {quote(str(file))}" for file in trained.files]
    if trained.record is not None:
        typed.append(f"--policy {trained.record['points'][0]['typed']}")
    return " ".join(typed)


def _val(text: str | None) -> str | float | None:
    """Convert a number to a share, unless a folder has that name."""
    if text is None or Path(text).exists():
        return text
    try:
        return float(text)
    except ValueError:
        return text
