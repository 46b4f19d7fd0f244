"""Gathers what an export needs: the models, and a compiler for their engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from lgvit_edge.architecture.placement import plan_exits
from lgvit_edge.architecture.published import architecture
from lgvit_edge.errors import MissingDependency, UsageError
from lgvit_edge.export.tensorrt.build import gpu_index
from lgvit_edge.export.tensorrt.builder import BuilderOptions, EngineBuilder
from lgvit_edge.machine.tensorrt import TensorRT
from lgvit_edge.model import LGViT, block_macs, load_checkpoint, load_model
from lgvit_edge.model.checkpoints.containers import Note, note_in_log

NO_EXITS = "none"  # of a pass, or a plain model, whose own classifier is its only exit


def models_to_export(
    checkpoints: Sequence[str | Path] = (),
    *,
    use_ema: bool = False,
    archs: Sequence[str] = (),
    exits: Sequence[str] = (),
    heads: str | None = None,
    image_sizes: Sequence[int] = (),
    note: Note = note_in_log,
) -> list[LGViT]:
    """Return the network of each pass, trained, or with random weights for timing; in eval mode.

    Args:
        checkpoints: each as ``load_checkpoint`` reads it; of several, and without exits, also as
            ``load_backbone`` does.
        use_ema: of checkpoints, as ``load_checkpoint`` takes it.
        archs: instead of them, some of ``architectures()``.
        exits: for each pass; of a checkpoint, those of its exits to keep (default all), of an
            architecture, as ``plan_exits`` reads them (default 8 uniform ones), or ``none``.
        heads: of architectures, as ``default_heads`` reads it.
        image_sizes: for each pass, the side of its input in pixels; default the model's.
        note: as ``load_checkpoint`` takes it.

    Raises:
        UsageError: neither or both of ``checkpoints`` and ``archs``, what is for the other one, or
            not as many ``exits`` or ``image_sizes`` as passes; a single model has no exits and
            ``none`` was not asked for.
        CheckpointError: a checkpoint cannot be used.
        ConfigError: exits, heads or sizes do not fit the model.
    """
    if bool(checkpoints) == bool(archs):
        raise UsageError("expected --ckpt MODEL, or --arch NAME for random weights")
    sources = checkpoints or archs
    count, option = len(sources), "--ckpt" if checkpoints else "--arch"
    if checkpoints and heads is not None:
        raise UsageError("--heads is for --arch: a checkpoint has its heads")
    if archs and use_ema:
        raise UsageError("--use-ema is for --ckpt: an architecture has random weights")
    for name, given in (("--exits", exits), ("--image-size", image_sizes)):
        if len(given) not in (0, count):
            raise UsageError(
                f"expected {name} once for each {option}, {count} in all, found {len(given)}"
            )
    plain = list(exits) == [NO_EXITS]
    models = []
    for i, source in enumerate(sources):
        chosen = exits[i] if exits else None
        size = image_sizes[i] if image_sizes else None
        if checkpoints:
            read = load_checkpoint if count == 1 and not plain else load_model
            models.append(_trained(read(source, use_ema=use_ema, note=note), chosen, size))
        else:
            models.append(_random(str(source), chosen, heads, size))
    if count == 1 and not plain and not models[0].config.exits:
        raise UsageError(
            f"{sources[0]} has no exits; run: lgvit-edge train to add and train them, or export it "
            "as a plain model to compare with: --exits none"
        )
    return models


def _trained(model: LGViT, exits: str | None, image_size: int | None) -> LGViT:
    if image_size is not None and image_size != model.config.image_size:
        model = model.resized(image_size)
    if exits is None:
        return model
    if exits == NO_EXITS:
        return model.with_exits([])
    chosen = plan_exits(exits, block_macs(model.config))
    return model.with_exits([exit.block for exit in chosen])


def _random(arch: str, exits: str | None, heads: str | None, image_size: int | None) -> LGViT:
    config = architecture(arch, image_size=image_size or 224)
    if exits == NO_EXITS:
        return LGViT(config).eval()
    chosen = plan_exits(
        exits or "uniform:8", block_macs(config), heads=heads or "lgvit", family=config.family
    )
    return LGViT(config.replace(exits=chosen)).eval()


def check_builder(out: Path, options: BuilderOptions, device: str | None = None) -> None:
    """Check before the long part of an export that TensorRT-RTX can compile here.

    Raises:
        MissingDependency: it is not installed.
        UsageError: it does not take the options, or ``device`` is no GPU's name.
        BackendError: there is no such GPU.
    """
    gpu_index(device)
    try:
        EngineBuilder(TensorRT("tensorrt-rtx"), options)
    except MissingDependency as error:
        raise MissingDependency(
            f"{error}; or add --no-engines, and later run: lgvit-edge build {quote(str(out))}"
        ) from error
