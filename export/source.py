"""Gathers what an export needs: the model, and a compiler for its engines."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from lgvit_edge.architecture.placement import plan_exits
from lgvit_edge.architecture.published import architecture
from lgvit_edge.errors import MissingDependency, UsageError
from lgvit_edge.export.tensorrt.build import gpu_index
from lgvit_edge.export.tensorrt.builder import BuilderOptions, EngineBuilder
from lgvit_edge.machine.tensorrt import TensorRT
from lgvit_edge.model import LGViT, block_macs, load_checkpoint
from lgvit_edge.model.checkpoints.containers import Note, note_in_log


def model_to_export(
    checkpoint: str | Path | None = None,
    *,
    use_ema: bool = False,
    arch: str | None = None,
    exits: str | None = None,
    heads: str | None = None,
    image_size: int | None = None,
    note: Note = note_in_log,
) -> LGViT:
    """Return a trained model, or one with random weights for timing; in eval mode.

    Args:
        checkpoint: as ``load_checkpoint`` reads it.
        use_ema: of a checkpoint, as ``load_checkpoint`` takes it.
        arch: instead of it, one of ``architectures()``.
        exits: for a checkpoint, those of its exits to keep (default all); for an architecture, as
            ``plan_exits`` reads them (default 8 uniform ones).
        heads: of an architecture, as ``default_heads`` reads it.
        image_size: side of the network's input in pixels, where it is not the model's.
        note: as ``load_checkpoint`` takes it.

    Raises:
        UsageError: neither or both of ``checkpoint`` and ``arch``, or what is for the other one.
        CheckpointError: the checkpoint cannot be used.
        ConfigError: exits, heads or sizes do not fit the model.
    """
    if (checkpoint is None) == (arch is None):
        raise UsageError("expected --ckpt MODEL, or --arch NAME for random weights")
    if checkpoint is not None:
        if heads is not None:
            raise UsageError("--heads is for --arch: a checkpoint has its heads")
        model = load_checkpoint(checkpoint, use_ema=use_ema, note=note)
        if image_size is not None and image_size != model.config.image_size:
            model = model.resized(image_size)
        if exits is None:
            return model
        chosen = plan_exits(exits, block_macs(model.config))
        return model.with_exits([exit.block for exit in chosen])
    if use_ema:
        raise UsageError("--use-ema is for --ckpt: an architecture has random weights")
    config = architecture(str(arch), image_size=image_size or 224)
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
