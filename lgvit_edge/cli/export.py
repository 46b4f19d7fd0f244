"""The ``export`` command: turns a checkpoint into a verified bundle, for RTX with engines."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

from typer import Option

from lgvit_edge._support.optional import require
from lgvit_edge._support.terminal import console, note, progress_bar, say, table
from lgvit_edge.cli.build import BuildDevice, Capabilities, parse_capabilities, print_built
from lgvit_edge.cli.options import (
    Classes,
    Heads,
    Labels,
    UseEma,
    check_outputs,
    labelled_images,
    parse_batch,
)
from lgvit_edge.errors import MissingDependency, UsageError
from lgvit_edge.images.folders import check_apart

if TYPE_CHECKING:
    from lgvit_edge.bundle.manifest import Manifest


def export(
    ckpt: Annotated[
        list[Path] | None,
        Option(
            help="Checkpoint: .pt, .safetensors, or a folder of the LGViT authors' code. Given "
            "several times, one for each pass over the image, from coarse to fine; then also a "
            "plain backbone, of Hugging Face or timm."
        ),
    ] = None,
    target: Annotated[str, Option(help="Kind of device: cpu, jetson or rtx.")] = "cpu",
    out: Annotated[Path, Option(help="Bundle folder to write.")] = Path("out"),
    precision: Annotated[
        str | None,
        Option(
            help="Precision: fp32, fp16 or int8. Default: fp32 for cpu, fp16 for jetson and rtx."
        ),
    ] = None,
    keep_fp32: Annotated[
        str | None,
        Option(
            help="With fp16 and int8: operations that stay in float32: layernorm, softmax, "
            "layernorm,softmax or none. Default: layernorm for jetson (from 6.1) and rtx."
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        Option(
            help="Largest allowed difference of logits from PyTorch's; the bundle keeps it. "
            "Default: 1e-4 for fp32, 5e-2 for fp16, 4 for int8."
        ),
    ] = None,
    fp32_accumulate: Annotated[
        bool,
        Option(
            "--fp32-accumulate",
            help="With fp16 for jetson and rtx: ask TensorRT to sum matrix products in float32.",
        ),
    ] = False,
    calib: Annotated[
        Path | None, Option(help="For int8: folder of calibration images, similar to the camera's.")
    ] = None,
    calib_images: Annotated[
        int, Option(min=1, help="Number of calibration images, spread evenly.")
    ] = 128,
    data: Annotated[
        Path | None,
        Option(help="Images to compare with float32; export fails if too many exits differ."),
    ] = None,
    samples: Annotated[
        int, Option(min=1, help="Number of --data images to compare, spread evenly.")
    ] = 500,
    data_labels: Labels = None,
    classes: Classes = None,
    input: Annotated[
        str,
        Option(
            help="Input type: uint8 (NHWC, the graph normalises) or float32 (NCHW, normalised)."
        ),
    ] = "uint8",
    batch: Annotated[str, Option(help="Batch sizes MIN:OPT:MAX, or 1.")] = "1",
    opset: Annotated[
        int | None, Option(help="ONNX opset version. Default: 18; 20 for int8.")
    ] = None,
    jetpack: Annotated[
        str | None, Option(help="With --target jetson: its JetPack, 6.0, 6, 7.0 or 7. Default: 6.")
    ] = None,
    policy: Annotated[str, Option(help="Exit policy of the bundle.")] = "confidence:0.8",
    labels: Annotated[
        Path | None, Option(help="File of class names, one per line, in class order.")
    ] = None,
    arch: Annotated[
        list[str] | None,
        Option(
            help="Instead of --ckpt: an architecture with random weights, for timing; for several "
            "passes, several times."
        ),
    ] = None,
    exits: Annotated[
        list[str] | None,
        Option(
            help="Blocks whose exits are exported, such as 4,8; with --arch also uniform:M, "
            "shallow:M, middle:M or deep:M; none: its own classifier alone, to compare with. "
            "Default: all; with --arch uniform:8. Of several passes, once for each."
        ),
    ] = None,
    heads: Heads = None,
    image_size: Annotated[
        list[int] | None,
        Option(
            min=1,
            help="Image size in pixels, if different from the model's; position embeddings are "
            "interpolated. Of several passes, once for each.",
        ),
    ] = None,
    use_ema: UseEma = False,
    engines: Annotated[bool, Option(help="With --target rtx: also compile the engines.")] = True,
    capability: Capabilities = None,
    device: BuildDevice = None,
) -> None:
    """Export a trained LGViT as one verified graph per segment; for RTX, also compile engines.

    Several networks become the passes of one bundle: each begins from the image again, at its own
    size, and the first confident exit of any answers.
    """
    require("torch", extra="export")
    from lgvit_edge import policies
    from lgvit_edge.bundle.directory import check_place
    from lgvit_edge.export import (
        BuilderOptions,
        ExportOptions,
        build_engines,
        export_bundle,
        source,
    )
    from lgvit_edge.images.labelled import LabelledImage, evenly, readable, unlabelled_images
    from lgvit_edge.images.lists import read_names
    from lgvit_edge.machine.memory import peak_memory_mb

    for option, value in (("--capability", capability), ("--device", device)):
        if value is not None and (target != "rtx" or not engines):
            raise UsageError(f"{option} is for --target rtx, where engines are compiled")
    if (data_labels or classes) and data is None:
        raise UsageError("--data-labels and --classes need --data")
    check_outputs({}, {"--out": out}, check=check_place)
    check_apart("--out", out, data)
    options = ExportOptions(
        target=target,
        precision=precision,
        fp32_islands=_islands(keep_fp32),
        fp32_accumulate=fp32_accumulate,
        tolerance=tolerance,
        input=input,
        batch=parse_batch(batch),
        opset=opset,
        policy=policies.parse(policy),
        jetpack=jetpack,
    )
    builder = BuilderOptions(compute_capabilities=parse_capabilities(capability))
    if target == "rtx" and engines:
        source.check_builder(out, builder, device)
    models = source.models_to_export(
        ckpt or (),
        use_ema=use_ema,
        archs=arch or (),
        exits=exits or (),
        heads=heads,
        image_sizes=image_size or (),
        note=note,
    )
    if arch:
        names = " and ".join(dict.fromkeys(arch))
        say(f"{names} with random weights: for timing only, answers are random", style="yellow")
    if labels is not None:
        listed_names = read_names(labels, models[0].config.num_classes, "class names")
        for model in models:
            if model.config.num_classes == len(listed_names):  # else the export says so
                model.config = model.config.replace(labels=listed_names)
    config = models[0].config
    if len(models) > 1 and not arch and not any(model.config.labels for model in models):
        note(
            "no pass names its classes, so that they are the same in the same order was not "
            "checked; to name them: --labels FILE"
        )
    compared: Sequence[LabelledImage] = ()
    if data is not None:
        compared = readable(labelled_images(config, data, data_labels, classes, samples), note)
    calibration: Sequence[LabelledImage] = ()
    if calib is not None:
        listed = [LabelledImage(path, None) for path in unlabelled_images(calib, note)]
        calibration = readable(evenly(listed, calib_images), note)
    start = time.perf_counter()
    with progress_bar("exporting") as progress:
        manifest = export_bundle(
            models,
            out,
            options,
            images=compared,
            calibration=[image.path for image in calibration],
            progress=lambda text, done, total: progress(done, total, text),
        )
    _report(out, manifest, sum(p.numel() for model in models for p in model.parameters()))
    say(f"took {time.perf_counter() - start:.0f} s, peak memory {peak_memory_mb() / 1e3:.2f} GB")
    if target == "rtx" and engines:
        again = f"lgvit-edge build {quote(str(out))}" + (f" --device {device}" if device else "")
        say(f"compiling the engines; if interrupted, run: {again}")
        with progress_bar("compiling") as progress:
            built = build_engines(out, options=builder, device=device, progress=progress, note=note)
        print_built(out, built, device)
    elif target == "jetson":
        _check_for_jetson(out)
        say(
            "engines are compiled on the device itself; next, copy the bundle there and run\n"
            f"  scp -r {quote(str(out))} USER@JETSON:\n"
            "  lgvit-edge doctor\n"
            f"  lgvit-edge build {quote(out.name)}\n"
            f"  lgvit-edge bench --engines {quote(out.name)}\n"
            "(how to install there: docs/tensorrt.md)"
        )
    else:
        command = "build" if target == "rtx" else "bench --engines"
        say(f"next: lgvit-edge {command} {quote(str(out))}")


def _islands(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return () if text == "none" else tuple(text.split(","))


def _report(out: Path, manifest: Manifest, parameters: int) -> None:
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    worst = max(manifest.parity.max_difference)
    titles = [manifest.pass_title(number) for number in sorted(set(manifest.pass_numbers))]
    passes = f"{' and '.join(titles)}, " if len(titles) > 1 else ""
    say(
        f"{out}: {passes}{len(manifest.segments)} segments and the baseline, opset "
        f"{manifest.opset}, "
        f"{manifest.precision}, {size / 1e6:.1f} MB ({size / (4 * parameters):.2f}x the weights "
        "in float32)\n"
        f"verified against PyTorch: max |difference| {worst:.2g}, "
        f"tolerance {manifest.parity.tolerance:g}"
    )
    agreement = manifest.agreement
    if agreement is None:
        if manifest.precision == "int8":
            say("not compared with float32 on real images: add --data DIR")
        return
    rows = table("on real images", numbers=("float32", manifest.precision))
    if agreement.accuracy is not None and agreement.reference_accuracy is not None:
        rows.add_row(
            "top-1, final classifier",
            f"{agreement.reference_accuracy:.2%}",
            f"{agreement.accuracy:.2%}",
        )
    rows.add_row("same exit", "", f"{agreement.same_exit:.2%}")
    rows.add_row("same answer", "", f"{agreement.same_label:.2%}")
    for exit, change in enumerate(agreement.confidence_change, 1):
        rows.add_row(f"mean change of confidence, exit {exit}", "", f"{change:.4f}")
    console.print(rows)
    say(f"compared on {agreement.images} images")


def _check_for_jetson(out: Path) -> None:
    # All that a workstation can check.
    from lgvit_edge.export.tensorrt.build import check_graphs

    try:
        version = check_graphs(out)
    except MissingDependency:
        say(
            "not checked with a TensorRT parser; to check, pip install 'lgvit-edge[rtx]' and "
            "export again"
        )
    else:
        say(
            f"every graph parses with TensorRT-RTX {version}'s strongly typed parser (a Jetson "
            "has another version of TensorRT; only a build there is proof)"
        )
