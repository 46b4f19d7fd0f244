"""The ``train`` command: trains an LGViT from a backbone and a folder of images."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

from typer import Option

from lgvit_edge._support.optional import require
from lgvit_edge._support.terminal import console, say
from lgvit_edge.cli.options import Classes, Heads, ImageSize, SourceOptions, with_options
from lgvit_edge.errors import UsageError
from lgvit_edge.training.settings import Setting, TrainingConfig, settings


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
            "Default: uniform:8."
        ),
    ] = None,
    heads: Heads = None,
    image_size: ImageSize = None,
    stage: Annotated[
        str, Option(help="Stage: 1 (whole model), 2 (exits, backbone frozen) or both.")
    ] = "both",
    cache_features: Annotated[
        Path | None,
        Option(
            help="Stage 2: run the frozen blocks once and keep their outputs in this folder, for "
            "this training and later ones."
        ),
    ] = None,
    resume: Annotated[bool, Option(help="Continue an interrupted run.")] = True,
    *,
    config: TrainingConfig,
    source: SourceOptions,
) -> None:
    """Train an LGViT from a backbone and a folder of images."""
    require("torch", extra="train")
    from lgvit_edge.training.start import train_from_folder
    from lgvit_edge.training.team import join

    train_from_folder(
        data,
        backbone=backbone,
        out=out,
        weights=weights,
        use_ema=source.use_ema,
        exits=exits,
        heads=heads,
        image_size=image_size,
        stage=stage,
        val=_val(val),
        classes=classes,
        config=config,
        features=cache_features,
        resume=resume,
        console=console,
        num_heads=source.num_heads,
        preprocess=source.preprocess(),
    )
    if join(config.device).leads:
        say(f"next: lgvit-edge export --ckpt {quote(str(out))} --target cpu --out out/")


def _val(text: str | None) -> str | float | None:
    """Convert a number to a share, unless a folder has that name."""
    if text is None or Path(text).exists():
        return text
    try:
        return float(text)
    except ValueError:
        return text
