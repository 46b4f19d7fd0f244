"""The ``info`` command: describes a checkpoint or a bundle."""

from __future__ import annotations

import functools
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
from typer import Argument

from lgvit_edge._support.optional import require
from lgvit_edge._support.terminal import note, plain, progress_bar, say, table
from lgvit_edge.architecture.config import HUB
from lgvit_edge.architecture.heads import HEAD_KINDS
from lgvit_edge.cli.checked import CheckOptions, print_check
from lgvit_edge.cli.evidence import print_evidence
from lgvit_edge.cli.options import AsJson, SourceOptions, show, telling, with_options
from lgvit_edge.errors import CheckpointError, DataError, ParityError, UsageError
from lgvit_edge.images.spec import Preprocess


def inspect(path: Path, source: SourceOptions, check: CheckOptions) -> dict[str, Any]:
    """Describe a bundle or a checkpoint as JSON."""
    from lgvit_edge.bundle.inspection import inspect_bundle
    from lgvit_edge.bundle.layout import MANIFEST

    hub = str(path).startswith(HUB)
    if check.check is None and check != CheckOptions():
        raise UsageError("--samples, --labels and --classes need --check")
    if not hub and not path.exists():
        raise CheckpointError(
            f"no such checkpoint or bundle: {path}; one on the Hugging Face Hub is hf:owner/name"
        )
    if (path / MANIFEST).is_file():
        if check.check is not None:
            raise UsageError(
                f"--check is for checkpoints, found a bundle; run: lgvit-edge bench --engines "
                f"{quote(str(path))} --data {quote(str(check.check))}"
            )
        if source != SourceOptions():
            options = "--use-ema, --num-heads, --mean, --std, --interpolation and --crop-pct"
            raise UsageError(f"{options} are for checkpoints, found a bundle: leave them out")
        from lgvit_edge.runtime.selection import known_choices

        about = inspect_bundle(path)
        chosen = known_choices(about["identity"])
        return about | {"choice": vars(chosen[0]) if chosen else None}
    names = ("config.json", "adapter_config.json")
    if path.is_dir() and not any((path / name).is_file() for name in names):
        raise CheckpointError(
            f"{path} is neither a bundle nor a checkpoint: expected {MANIFEST} or config.json in it"
        )
    require("torch", extra="export")
    from lgvit_edge.model.inspection import described, inspected

    if check.check is not None and not check.check.is_dir():
        raise DataError(f"--check: no such folder: {check.check}")
    model = inspected(
        path,
        classes=1000 if check.check is None else None,  # a fresh classifier only guesses
        num_heads=source.num_heads,
        use_ema=source.use_ema,
        preprocess=source.preprocess(),
        note=note,
    )
    about = described(model, path)
    if check.check is not None:
        from lgvit_edge.model.checking import check_model
        from lgvit_edge.model.checkpoints.loading import read_stored

        # By its commit: a branch may have moved on.
        stored = read_stored(model.config.source if hub else path, note=lambda text: None)
        tell = telling(told := list[str]())
        images = check.images(model.config, not stored.has_exits, tell)
        with progress_bar("checking") as progress:
            about["check"] = check_model(
                model, stored, images, use_ema=source.use_ema, progress=progress
            ) | {"notes": told}
    return about


def print_info(about: dict[str, Any], console: Console) -> None:
    """Print what ``inspect`` returns as text and tables."""
    from lgvit_edge.bundle.inspection import both_counts

    base = about["baseline"]
    passes = about.get("passes", [about])  # a checkpoint is one network
    several = len(passes) > 1
    counts = f"{about['exits']} exits, {about['classes']} classes"
    sized = [
        (
            f"{each['family']}, {each['blocks']} blocks",
            f"images of {each['image_size']} x {each['image_size']}",
        )
        for each in passes
    ]
    network, size = sized[0]
    what = f"{len(passes)} passes, {counts}" if several else f"{network}, {counts}, {size}"
    lines = [f" ({about['kind']}): {what}"]
    if several:
        lines += [f"pass {n}: {', '.join(pair)}" for n, pair in enumerate(sized, 1)]
    if about["kind"] == "bundle":
        batch = ":".join(map(str, about["batch"])) if about["batch"][2] > 1 else "1"
        lines.append(
            f"target {about['target']}, {about['precision']}, opset {about['opset']}, input "
            f"{about['input']}, batch {batch}, {about['bytes'] / 1e6:.1f} MB, "
            f"max |difference| from PyTorch {about['parity']:.2g}"
        )
        lines.append(both_counts(base))
        if about["calibration"]:
            for number, blocks in enumerate(about["calibration"]["blocks"], 1):
                where = f", pass {number}" if several else ""
                listed = ", ".join(map(str, blocks)) or "none"
                lines.append(f"int8 in the MLPs of blocks {listed}{where}")
        if agreement := about["agreement"]:
            lines.append(
                f"on {agreement['images']} images: {agreement['same_exit']:.2%} leave where they "
                f"do in float32, {agreement['same_label']:.2%} get the same answer"
            )
    console.print(plain(about["path"], "bold") + plain("\n".join(lines)))
    if about["kind"] == "checkpoint":
        console.print(
            f"patches of {about['patch_size']} x {about['patch_size']} pixels, {_shape(about)}; "
            f"{base['published_macs'] / 1e9:.2f} G MACs without exits as published, "
            f"{base['published_macs_without_attention_products'] / 1e9:.2f} G if attention's two "
            f"products are left out, as the paper does; {base['macs'] / 1e9:.2f} G as exported",
            highlight=False,
            soft_wrap=True,
        )
        say(_preprocess(about))
        if about["source"]:
            say(f"from {about['source']}")
    for engines in about.get("engines", ()):
        fault = engines["fault"]
        state = "" if fault is None else f"; {fault}"
        if fault is not None and "run:" not in fault:
            state += f"; run: lgvit-edge build {about['path']}"
        say(
            f"engines/{engines['tag']}: {engines['count']} engines, "
            f"{engines['bytes'] / 1e6:.1f} MB{state}"
        )
    console.print(_segments(about, passes))
    if about.get("points"):
        console.print(_points(about["points"]))
    print_evidence(about.get("evidence", ()), console)
    if choice := about.get("choice"):
        name = " ".join(filter(None, (choice["backend"], choice["precision"])))
        say(f"auto last chose {name} on this machine ({choice['date'][:10]})")
    if "check" in about:
        print_check(about["check"], console)


def _points(points: dict[str, Any]) -> Table:
    rows = table(
        *("point", "policy"), numbers=("accuracy", "lost", "MACs x", "mean (ms)", "images")
    )
    for name, point in points.items():
        rows.add_row(
            plain(name),
            plain(str(point["policy"]["name"])),
            f"{point['accuracy']:.2%}",
            f"{point['baseline_accuracy'] - point['accuracy']:.2%}",
            f"{point['macs_speedup']:.2f}",
            f"{point['latency_ms']:.2f}",
            str(point["images"]),
        )
    devices = "; ".join(sorted({point["device"] for point in points.values()}))
    rows.caption = plain(f"times: {devices}")
    rows.caption_justify = "left"
    return rows


def _shape(about: dict[str, Any]) -> str:
    if not about["depths"]:
        return f"{about['hidden_size']} wide, {about['attention_heads']} attention heads"
    stages = len(about["depths"])
    return (
        f"stages of {', '.join(map(str, about['depths']))} blocks, {about['hidden_size']} to "
        f"{about['hidden_size'] << stages - 1} wide, windows of {about['window_size']} x "
        f"{about['window_size']} tokens"
    )


def _preprocess(about: dict[str, Any]) -> str:
    spec = Preprocess(**about["preprocess"])
    return f"images: {spec.described(about['image_size'])}; the classifier reads {about['pooling']}"


def _segments(about: dict[str, Any], passes: list[dict[str, Any]]) -> Table:
    base, rows, several = about["baseline"], about["segments"], len(passes) > 1
    columns = ("exit", *(("pass",) if several else ()), "blocks", "head")
    grid = table(*columns, numbers=("MACs (M)", "+ head", "total", "speed-up", "params (M)"))
    for row in rows:
        last, head = row is rows[-1], row.get("head_macs")
        size = f" {HEAD_KINDS[row['head']].size}={row['size']}" if row.get("size") else ""
        grid.add_row(
            "final" if last else str(row["index"] + 1),
            *([passes[row["pass_number"] - 1]["title"]] if several else []),
            f"{row['first_block']}-{row['last_block']}",
            plain("" if last else row["head"] + size),
            f"{(row['macs'] - (head or 0)) / 1e6:,.1f}",
            "" if head is None else f"{head / 1e6:,.1f}",
            f"{row['cumulative_macs'] / 1e6:,.1f}",
            f"{row['macs_speedup']:.2f}x",
            f"{row['parameters'] / 1e6:,.2f}",
        )
    grid.add_section()
    macs, parameters = f"{base['macs'] / 1e6:,.1f}", f"{base['parameters'] / 1e6:,.2f}"
    where = [passes[-1]["title"]] if several else []
    blocks = f"1-{passes[-1]['blocks']}"
    grid.add_row("none", *where, blocks, "", macs, "", macs, "1.00x", parameters)
    return grid


@functools.partial(with_options, name="source", make=SourceOptions)
@functools.partial(with_options, name="check", make=CheckOptions)
def info(
    path: Annotated[Path, Argument(help="Checkpoint, hf:owner/name, or bundle.")],
    as_json: AsJson = False,
    *,
    check: CheckOptions,
    source: SourceOptions,
) -> None:
    """Show what a checkpoint or a bundle is, and check a checkpoint's answers on images."""
    about = inspect(path, source, check)
    show(about, as_json, print_info)
    if differs := about.get("check", {}).get("differs"):
        raise ParityError("; ".join(differs))
