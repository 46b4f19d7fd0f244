"""The commands that make bundles and engines: ``export`` and ``build``."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lgvit_edge._terminal import console, progress_bar, say, table
from lgvit_edge.arguments import AsJson, parse_batch, read_labels
from lgvit_edge.bundle import open_bundle
from lgvit_edge.errors import BackendError, MissingDependency, UsageError

if TYPE_CHECKING:
    from lgvit_edge.export import ExportOptions
    from lgvit_edge.export.build import Built
    from lgvit_edge.jetson import JetPack
    from lgvit_edge.labelled import LabelledImage
    from lgvit_edge.manifest import Manifest

Capabilities = Annotated[
    str | None,
    typer.Option(
        "--compute-capability",
        help="RTX: GPUs the engines run on, such as 8.6,8.9. Default: 8.0 and newer.",
    ),
]


def export(
    ckpt: Annotated[
        Path | None, typer.Option(help="model.pt, .safetensors, or an authors' directory.")
    ] = None,
    target: Annotated[str, typer.Option(help="cpu, jetson or rtx.")] = "cpu",
    out: Annotated[Path, typer.Option(help="Directory of the bundle.")] = Path("out"),
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, fp16 or int8. Default: fp32 for cpu, fp16 for jetson and rtx."),
    ] = None,
    keep_fp32: Annotated[
        str | None,
        typer.Option(help="With fp16 and int8: layernorm, softmax or both stay in float32."),
    ] = None,
    calib: Annotated[
        Path | None, typer.Option(help="For int8: a folder of images like the camera's.")
    ] = None,
    calib_images: Annotated[
        int, typer.Option(min=1, help="How many of them, spread evenly.")
    ] = 128,
    data: Annotated[
        Path | None,
        typer.Option(help="Images on which the export must decide as float32 does, or fail."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many of --data, spread evenly.")] = 500,
    data_labels: Annotated[
        Path | None, typer.Option(help="For a flat --data folder: lines FILE CLASS.")
    ] = None,
    input: Annotated[
        str, typer.Option(help="uint8 (NHWC, normalised inside) or float32 (NCHW, normalised).")
    ] = "uint8",
    batch: Annotated[str, typer.Option(help="MIN:OPT:MAX, or 1.")] = "1",
    opset: Annotated[
        int | None, typer.Option(help="ONNX operator set. Default: 18; 20 for int8.")
    ] = None,
    jetpack: Annotated[
        str, typer.Option(help="With --target jetson: 6.0, 6, 7.0 or 7.2, as on the device.")
    ] = "6",
    policy: Annotated[str, typer.Option(help="The bundle's own exit policy.")] = "confidence:0.8",
    labels: Annotated[
        Path | None, typer.Option(help="Class names, one per line, in class order.")
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(help="Instead of --ckpt: this architecture with random weights, for timing."),
    ] = None,
    exits: Annotated[
        str | None,
        typer.Option(
            help="Of a checkpoint's exits keep those after these blocks, such as 4,8. "
            "With --arch: where its exits are. Default: all, and uniform:8."
        ),
    ] = None,
    engines: Annotated[
        bool, typer.Option(help="With --target rtx: compile the engines too.")
    ] = True,
    compute_capability: Capabilities = None,
) -> None:
    """Cut a trained LGViT at its exits, export each segment and verify it; for RTX, compile it."""
    from lgvit_edge import policy as policies
    from lgvit_edge._optional import require

    require("torch", extra="export")
    from lgvit_edge.export import ExportOptions, export_bundle

    if target == "jetson" and opset is None:
        opset = _opset_for(jetpack, precision)
    options = ExportOptions(
        target=target,
        precision=precision,
        fp32_islands=tuple(keep_fp32.split(",")) if keep_fp32 else (),
        input=input,
        batch=parse_batch(batch),
        opset=opset,
        policy=policies.parse(policy),
    )
    if target == "jetson":
        _check_jetpack(options, jetpack)
    if target == "rtx" and engines:
        from lgvit_edge._tensorrt import TensorRT

        try:
            TensorRT("tensorrt-rtx")
        except MissingDependency as error:  # say so before the long part
            raise MissingDependency(
                f"{error}; or add --no-engines, and later run: lgvit-edge build {out}"
            ) from error
    model = _model(ckpt, arch, exits)
    if labels is not None:
        model.config = model.config.replace(labels=read_labels(labels, model.config.num_classes))
    with progress_bar("exporting") as progress:
        manifest = export_bundle(
            model,
            out,
            options,
            images=_images(data, samples, data_labels, model),
            calibration=_calibration(calib, calib_images),
            progress=lambda text, done, total: progress(done, total, text),
        )
    _report(out, manifest, sum(p.numel() for p in model.parameters()))
    if target == "rtx" and engines:
        build(out, compute_capability=compute_capability)
    elif target == "jetson":
        _check_for_jetson(out)
        say(
            "engines are compiled on the device itself; next, copy the bundle there and run\n"
            f"  scp -r {out} USER@JETSON:\n"
            f"  lgvit-edge doctor\n"
            f"  lgvit-edge build {out.name}\n"
            f"  lgvit-edge bench --engines {out.name}"
        )
    elif target == "rtx":
        say(f"next: lgvit-edge build {out}")
    else:
        say(f"next: lgvit-edge bench --engines {out}")


def build(
    bundle: Annotated[Path, typer.Argument(help="The bundle `lgvit-edge export` wrote.")],
    builder: Annotated[
        str | None,
        typer.Option(help="tensorrt or tensorrt-rtx. Default: what the bundle's target needs."),
    ] = None,
    compute_capability: Capabilities = None,
    workspace_mb: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Scratch memory tactics may use. Default: a quarter of what a Jetson has free.",
        ),
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option(min=0, max=5, help="0 builds quickest, 5 runs quickest.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Compile all, current or not.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compile a bundle's TensorRT engines, on the device that will run them (RTX: anywhere)."""
    from lgvit_edge.export import BuilderOptions, build_engines

    options = BuilderOptions(
        workspace=None if workspace_mb is None else workspace_mb << 20,
        optimization_level=optimization_level,
        compute_capabilities=tuple(compute_capability.split(",")) if compute_capability else (),
    )
    _preflight(bundle, builder)
    with progress_bar("compiling") as progress:
        built = build_engines(
            bundle, library=builder, options=options, force=force, progress=progress
        )
    verified, why_not = _verify(bundle, built.build.tag)
    if as_json:
        found = dataclasses.asdict(built.build) | {
            "tag": built.build.tag,
            "compiled": built.compiled,
            "seconds": round(built.seconds, 2),
            "max_difference": verified,
            "not_run": why_not,
        }
        print(json.dumps(found, indent=1))
    else:
        _print_built(bundle, built, verified, why_not)


def _print_built(bundle: Path, built: Built, verified: float | None, why_not: str) -> None:
    record = built.build
    if not built.compiled:
        say(f"{built.folder}: all {len(record.engines)} engines are current; nothing to do")
    else:
        rows = table("engine", "", numbers=("MB", "seconds"))
        for name, engine in record.engines.items():
            state = "compiled" if name in built.compiled else "current"
            rows.add_row(name, state, f"{engine.bytes / 1e6:.1f}", f"{engine.seconds:.1f}")
        console.print(rows)
        say(
            f"{built.folder}: {len(built.compiled)} of {len(record.engines)} engines compiled in "
            f"{built.seconds:.1f} s with {record.library} {record.version}, {record.precision}"
        )
    for warning in record.warnings[:5]:
        say(f"{record.library} warns: {warning}")
    if verified is not None:
        say(
            "verified on this GPU, segments and baseline, against PyTorch's samples: "
            f"max |difference| {verified:.2g}"
        )
        say(f"next: lgvit-edge bench --engines {bundle}")
    else:
        say(
            f"not run: {why_not}; where they are to run: "
            f"lgvit-edge bench --engines {bundle.name} --backend tensorrt"
        )


def _report(out: Path, manifest: Manifest, parameters: int) -> None:
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    worst = max(manifest.parity.max_difference)
    say(
        f"{out}: {len(manifest.segments)} segments and the baseline, opset {manifest.opset}, "
        f"{manifest.precision}, {size / 1e6:.1f} MB ({size / (4 * parameters):.2f}x the weights "
        "in float32)\n"
        f"verified against PyTorch: max |difference| {worst:.2g}, "
        f"tolerance {manifest.parity.tolerance:g}"
    )
    found = manifest.agreement
    if found is None:
        return
    rows = table("on real images", numbers=("float32", manifest.precision))
    if found.accuracy is not None and found.reference_accuracy is not None:
        rows.add_row(
            "top-1, final classifier", f"{found.reference_accuracy:.2%}", f"{found.accuracy:.2%}"
        )
    rows.add_row("same exit", "", f"{found.same_exit:.2%}")
    rows.add_row("same answer", "", f"{found.same_label:.2%}")
    for exit, change in enumerate(found.confidence_change, 1):
        rows.add_row(f"mean change of confidence, exit {exit}", "", f"{change:.4f}")
    console.print(rows)
    say(f"compared on {found.images} images")


def _jetpack(name: str) -> JetPack:
    from lgvit_edge.jetson import JETPACKS

    known = [j for j in JETPACKS if name in (str(j.major), *j.name.split("/"), j.name)]
    if not known:
        names = ", ".join(j.name for j in JETPACKS)
        raise UsageError(f"--jetpack: expected one of {names}, found {name!r}")
    return known[-1]


def _opset_for(jetpack: str, precision: str | None) -> int | None:
    """The usual operator set, or an older one where the device's TensorRT reads no newer."""
    highest = _jetpack(jetpack).opset
    return 17 if highest < 18 and precision != "int8" else None


def _check_jetpack(options: ExportOptions, jetpack: str) -> None:
    """Refuse now what the device could not build."""
    from lgvit_edge.jetson import fits

    assert options.opset is not None and options.precision is not None  # filled in
    problems = [
        f"{f.text}; {f.cure}"
        for f in fits(_jetpack(jetpack), opset=options.opset, precision=options.precision)
        if f.level == "problem"
    ]
    if problems:
        raise UsageError("; ".join(problems))


def _preflight(bundle: Path, builder: str | None) -> None:
    """On a Jetson: what is known to go wrong, before minutes are spent."""
    from lgvit_edge import jetson

    found = jetson.detect()
    if found is None or builder == "tensorrt-rtx":
        return
    findings = jetson.preflight(found)
    if found.jetpack is not None:
        manifest = open_bundle(bundle, verify=False).manifest
        findings += jetson.fits(
            found.jetpack,
            opset=manifest.opset,
            precision=manifest.precision,
            tensorrt=found.tensorrt,
        )
    for finding in findings:
        if finding.level != "ok":
            cure = f"; {finding.cure}" if finding.cure else ""
            print(f"{finding.level}: {finding.text}{cure}", file=sys.stderr)
    if any(finding.level == "problem" for finding in findings):
        raise BackendError("this Jetson cannot compile the bundle as it is; see above")


def _check_for_jetson(out: Path) -> None:
    """What can be known of a Jetson's engines on a workstation: no more than that they parse."""
    from lgvit_edge.export.build import check_graphs

    try:
        version = check_graphs(out)
    except MissingDependency:
        say(
            "not checked with a TensorRT parser: for that, pip install 'lgvit-edge[rtx]' and "
            "export again"
        )
    else:
        say(
            f"every graph parses with TensorRT-RTX {version}'s strongly typed parser (a Jetson "
            "has another version of TensorRT; only a build there is proof)"
        )


def _verify(bundle: Path, tag: str) -> tuple[float | None, str]:
    """Run the engines just built on the bundle's own samples, or say why that cannot be done."""
    from lgvit_edge.gpu import find_gpu
    from lgvit_edge.runtime import Session, TensorRTOptions
    from lgvit_edge.runtime.trt_engine import choose_build

    if find_gpu() is None:
        return None, "there is no NVIDIA GPU here"
    try:
        choose_build(open_bundle(bundle, verify=False), tag)
    except BackendError as error:  # compiled for another GPU than the one that happens to be here
        return None, str(error)
    try:
        session = Session.open(bundle, backend="tensorrt", tensorrt=TensorRTOptions(engines=tag))
    except MissingDependency as error:
        return None, str(error)
    with session:
        return session.check_parity(), ""


def _images(
    data: Path | None, samples: int, labels: Path | None, model: Any
) -> Sequence[LabelledImage]:
    if data is None:
        return ()
    from lgvit_edge.labelled import evenly, find_images

    config = model.config
    found = find_images(data, num_classes=config.num_classes, names=config.labels, labels=labels)
    return evenly(found, samples)


def _calibration(folder: Path | None, count: int) -> Sequence[Path]:
    if folder is None:
        return ()
    from lgvit_edge.labelled import evenly, unlabelled_images

    return evenly(unlabelled_images(folder), count)


def _model(ckpt: Path | None, arch: str | None, exits: str | None) -> Any:
    if (ckpt is None) == (arch is None):
        raise UsageError("expected --ckpt MODEL, or --arch NAME for random weights")
    from lgvit_edge.config import architecture, plan_exits
    from lgvit_edge.model import LGViT, block_macs, load_checkpoint

    if ckpt is not None:
        model = load_checkpoint(ckpt)
        if exits is None:
            return model
        chosen = plan_exits(exits, block_macs(model.config))
        return model.with_exits([exit.block for exit in chosen])
    config = architecture(str(arch))
    console.print(f"[yellow]{arch} with random weights: good for timing, not for answers[/]")
    return LGViT(config.replace(exits=plan_exits(exits or "uniform:8", block_macs(config)))).eval()
