"""The ``train`` command: a backbone and a folder of images in, an LGViT out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from lgvit_edge._support.terminal import console, say
from lgvit_edge.cli.options import Heads, ImageSize
from lgvit_edge.errors import UsageError

N = TypeVar("N")

_AUTHORS = "as the authors have it"
_BOTH = "; stage 1's and stage 2's as A,B"
_OPTIMISER, _DISTILLATION, _IMAGES = "Optimiser", "Distillation", "Images and speed"


def train(
    data: Annotated[
        Path, typer.Option(help="Image folder: a sub-folder per class, or train/ and val/.")
    ],
    out: Annotated[Path, typer.Option(help="Checkpoint to write, .pt or .safetensors.")] = Path(
        "model.pt"
    ),
    backbone: Annotated[
        str, typer.Option(help="An architecture such as deit-tiny, or a checkpoint's path.")
    ] = "vit-tiny",
    weights: Annotated[
        Path | None, typer.Option(help="Weights for the architecture: a timm state dict.")
    ] = None,
    val: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|SHARE",
            help="Validation images: a folder, or the share of the training images to set aside.",
        ),
    ] = None,
    exits: Annotated[
        str | None,
        typer.Option(
            help="uniform:M, shallow:M, middle:M, deep:M, or blocks as 4,6,8,10. "
            "Default: uniform:8."
        ),
    ] = None,
    heads: Heads = None,
    image_size: ImageSize = None,
    scheme: Annotated[
        str,
        typer.Option(help="lgvit (the paper's), normal, weighted, distillation or alternating."),
    ] = "lgvit",
    stage: Annotated[
        str, typer.Option(help="1 (whole model), 2 (exits, backbone frozen) or both.")
    ] = "both",
    epochs: Annotated[str, typer.Option(help=f"Epochs of each stage{_BOTH}.")] = "50",
    batch_size: Annotated[
        int, typer.Option(rich_help_panel=_OPTIMISER, min=2, help=f"Images per step, {_AUTHORS}.")
    ] = 64,
    lr: Annotated[
        str,
        typer.Option(
            rich_help_panel=_OPTIMISER,
            help=f"Peak learning rate, {_AUTHORS}{_BOTH}. Few images and epochs want 1e-4,4e-3.",
        ),
    ] = "5e-5",
    warmup: Annotated[
        float,
        typer.Option(
            rich_help_panel=_OPTIMISER, help="Share of the steps in which the rate rises."
        ),
    ] = 0.05,
    weight_decay: Annotated[
        float, typer.Option(rich_help_panel=_OPTIMISER, help="AdamW's.")
    ] = 0.05,
    clip: Annotated[
        float,
        typer.Option(rich_help_panel=_OPTIMISER, help="Largest norm of the gradient; 0: any."),
    ] = 1.0,
    gamma: Annotated[
        float,
        typer.Option(
            rich_help_panel=_DISTILLATION, help=f"Share of prediction distillation, {_AUTHORS}."
        ),
    ] = 0.3,
    temperature: Annotated[
        float,
        typer.Option(rich_help_panel=_DISTILLATION, help=f"Softens what is distilled, {_AUTHORS}."),
    ] = 2.0,
    alpha: Annotated[
        float,
        typer.Option(
            rich_help_panel=_DISTILLATION, help=f"Weight of heterogeneous distillation, {_AUTHORS}."
        ),
    ] = 0.01,
    beta: Annotated[
        float,
        typer.Option(
            rich_help_panel=_DISTILLATION, help=f"Weight of homogeneous distillation, {_AUTHORS}."
        ),
    ] = 0.01,
    kl: Annotated[
        str,
        typer.Option(
            rich_help_panel=_DISTILLATION,
            help="Average of distilled predictions: image, or class as the authors.",
        ),
    ] = "image",
    gram: Annotated[
        str,
        typer.Option(
            rich_help_panel=_DISTILLATION,
            help="Over the tokens of Eq. 11: mean, or sum as it is written.",
        ),
    ] = "mean",
    prediction_exits: Annotated[
        str,
        typer.Option(
            rich_help_panel=_DISTILLATION,
            help="Exits that Eq. 13 supervises: all, or two as in the paper.",
        ),
    ] = "all",
    min_crop: Annotated[
        float,
        typer.Option(
            rich_help_panel=_IMAGES, help="Smallest share of an image that a random crop keeps."
        ),
    ] = 0.08,
    flip: Annotated[
        bool, typer.Option(rich_help_panel=_IMAGES, help="Mirror every other training image.")
    ] = True,
    cache: Annotated[
        bool,
        typer.Option(
            rich_help_panel=_IMAGES,
            help="Stage 2: run the frozen backbone once and keep its outputs.",
        ),
    ] = False,
    cache_features: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=_IMAGES,
            help="The same in this folder, for this training and later ones; float16.",
        ),
    ] = None,
    cache_views: Annotated[
        int,
        typer.Option(
            rich_help_panel=_IMAGES,
            min=0,
            help="With a cache: augmented copies of each image; 0: as they are.",
        ),
    ] = 0,
    workers: Annotated[
        int, typer.Option(rich_help_panel=_IMAGES, min=0, help="Processes that decode images.")
    ] = 2,
    precision: Annotated[
        str,
        typer.Option(
            rich_help_panel=_IMAGES,
            help="fp32, or bf16 for mixed precision: faster where the processor has it.",
        ),
    ] = "fp32",
    seed: Annotated[int, typer.Option(help=f"Of everything random, {_AUTHORS}.")] = 777,
    resume: Annotated[bool, typer.Option(help="Go on where an interrupted run stopped.")] = True,
) -> None:
    """Train an LGViT from a backbone and a folder of images."""
    from lgvit_edge._support.optional import require

    require("torch", extra="train")
    from lgvit_edge.training.run import train_from_folder
    from lgvit_edge.training.settings import TrainingConfig
    from lgvit_edge.training.team import join

    config = TrainingConfig(
        epochs=_pair("--epochs", epochs, int),
        lr=_pair("--lr", lr, float),
        batch_size=batch_size,
        warmup=warmup,
        weight_decay=weight_decay,
        clip=clip,
        scheme=scheme,
        gamma=gamma,
        temperature=temperature,
        alpha=alpha,
        beta=beta,
        kl=kl,
        gram=gram,
        prediction_exits=prediction_exits,
        min_crop=min_crop,
        flip=flip,
        cache=cache,
        cache_views=cache_views,
        workers=workers,
        precision=precision,
        seed=seed,
    )
    train_from_folder(
        data,
        backbone=backbone,
        out=out,
        weights=weights,
        exits=exits,
        heads=heads,
        image_size=image_size,
        stage=stage,
        val=_val(val),
        config=config,
        features=cache_features,
        resume=resume,
        console=console,
    )
    if join(config.device).leads:
        say(f"next: lgvit-edge export --ckpt {out} --target cpu --out out/")


def _pair(option: str, text: str, kind: Callable[[str], N]) -> tuple[N, N]:
    """Stage 1's value and stage 2's, from one or two numbers."""
    try:
        values = [kind(part) for part in text.split(",")]
        first, second = values * 2 if len(values) == 1 else values
    except ValueError:
        raise UsageError(
            f"{option}: expected a number, or stage 1's and stage 2's as A,B; found {text!r}"
        ) from None
    return first, second


def _val(text: str | None) -> str | float | None:
    """A number is a share, unless a folder has that name."""
    if text is None or Path(text).exists():
        return text
    try:
        return float(text)
    except ValueError:
        return text
