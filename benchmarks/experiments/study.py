"""Compares exits, heads, schemes and placements on a frozen backbone, as the paper's tables do.

``python -m lgvit_edge.benchmarks.experiments.study --data DIR --weights vit_tiny.pth --out DIR``
trains the heads of the paper and of its rivals on the same images for the same epochs, from
features that are computed once, and writes ``study.json``, ``study.md`` and ``study.png``.
Thresholds are chosen on one half of the validation images and reported on the other. Heads whose
checkpoint exists are not trained again.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lgvit_edge._support.outputs import write, write_json
from lgvit_edge._support.terminal import say
from lgvit_edge.benchmarks.experiments.frame import run_command
from lgvit_edge.benchmarks.experiments.study_rows import DROP, RATE, RATES, SPEED_UP, Case, Study
from lgvit_edge.benchmarks.measure import command_line
from lgvit_edge.cli.options import check_outputs
from lgvit_edge.errors import UsageError
from lgvit_edge.images.classes import class_order
from lgvit_edge.images.folders import class_names
from lgvit_edge.machine.environment import environment
from lgvit_edge.model import count_parameters
from lgvit_edge.policies.picture import draw as draw_lines
from lgvit_edge.training import TrainingConfig
from lgvit_edge.training.data.datasets import ImageFolder
from lgvit_edge.training.start import is_checkpoint, load_start

# Table 1: heads, placement, scheme and policy of each rival. A frozen backbone has no loss, so
# alternating with it (BERxiT) is plain training. Heads that share nothing learn the same whatever
# the weights of their losses, apart from clipping.
METHODS = (
    Case("LGViT"),
    Case("SDN", "mlp", scheme="weighted"),
    Case("PABEE", "mlp", scheme="normal", policy="patience"),
    Case("PCEE", "mlp", scheme="normal", policy="patient_confidence"),
    Case("BERxiT", "mlp", scheme="alternating"),
    Case("ViT-EE", "encoder", "6", "normal"),
)
HEADS = (
    Case("MLP", "mlp"),
    Case("Conv", "conv"),
    Case("Attention", "attention"),
    Case("LPH and GAH"),
)
SCHEMES = (
    *(Case(scheme, scheme=scheme) for scheme in ("normal", "distillation", "alternating")),
    Case("the paper's"),
)
KL = (
    Case("averaged over images", "mlp"),
    Case("over classes as well, as the authors do", "mlp", kl="class"),
)
PLACEMENTS = tuple(
    Case(name, exits=f"{name}:4") for name in ("shallow", "middle", "deep", "uniform")
)
TABLES = {
    "1": ("Methods (Table 1)", METHODS),
    "3": ("Heads, the paper's scheme (Table 3)", HEADS),
    "4": ("Schemes, the paper's heads (Table 4)", SCHEMES),
    "7": ("Placements of four exits (Table 7)", PLACEMENTS),
    "kl": ("The KL term of Eq. 14, MLP heads", KL),
}

_OF_A_CASE = ("lr", "scheme", "kl", "cache")  # settings that are not the same for all


def main(
    data: Annotated[Path, typer.Option(help="Folder with train/ and val/, images by class.")],
    out: Annotated[Path, typer.Option(help="Folder for results, checkpoints and features.")],
    weights: Annotated[Path | None, typer.Option(help="Checkpoint of a trained backbone.")] = None,
    backbone: Annotated[str, typer.Option(help="Architecture, or a checkpoint.")] = "vit-tiny",
    epochs: Annotated[int, typer.Option(min=1, help="Epochs per training.")] = 5,
    only: Annotated[str, typer.Option(help="Tables to make, separated by commas.")] = "1,3,4,7,kl",
    precision: Annotated[str, typer.Option(help="Matrix products in fp32 or bf16.")] = "bf16",
) -> None:
    """Trains the paper's heads and its rivals' on one frozen backbone; writes tables and curves."""
    check_outputs({}, {"--out": out})
    wanted = only.split(",")
    if unknown := set(wanted) - set(TABLES):
        raise UsageError(f"--only: expected some of {', '.join(TABLES)}; found {unknown.pop()!r}")
    chosen = {TABLES[name][0]: TABLES[name][1] for name in wanted}
    if weights is None and not is_checkpoint(backbone):
        raise UsageError(
            "heads learn on a trained backbone: expected --weights or a checkpoint as --backbone"
        )
    out.mkdir(parents=True, exist_ok=True)
    # With crops of at least a quarter, training images are about as hard as new ones.
    config = TrainingConfig(
        epochs=(epochs, epochs), cache_views=1, min_crop=0.25, precision=precision
    )
    plain = load_start(backbone, weights, num_classes=0, seed=config.seed).eval()
    size, spec = plain.config.image_size, plain.config.preprocess
    folders, labels = class_names(data / "train"), plain.config.labels
    order = class_order(folders, labels, plain.config.num_classes).names
    read = functools.partial(ImageFolder, size=size, preprocess=spec, classes=order)
    images = read(data / "train", min_crop=config.min_crop, flip=config.flip)
    val = read(data / "val")
    study = Study(plain, images, val, config, out)
    study.keep_features([case for cases in chosen.values() for case in cases])
    record = _record(study, chosen)
    write_json(out / "study.json", record)
    write(out / "study.md", tables(record))
    draw(record, out / "study.png")
    say(f"wrote {out / 'study.json'}, study.md, study.png")


def _record(study: Study, chosen: dict[str, tuple[Case, ...]]) -> dict[str, Any]:
    rows: dict[str, list[dict[str, Any]]] = {title: [] for title in chosen}
    results: dict[tuple[str, str], dict[str, Any]] = {}  # some stand in several tables
    for title, case in [(title, case) for title, cases in chosen.items() for case in cases]:
        say(f"{title}: {case.name}")
        key = (case.training, case.policy)
        results[key] = results.get(key) or study.row(case)
        rows[title].append({**dataclasses.asdict(case), **results[key]})
    first = next(iter(rows.values()))
    curves = {row["name"]: row["curve"] for row in first}
    base = {
        "accuracy": first[0]["accuracies"][-1],
        "parameters": count_parameters(study.backbone),
        **first[0]["baseline"],
    }
    for row in itertools.chain(*rows.values()):
        del row["curve"], row["baseline"]
    half = len(study.val) // 2
    settings = study.config.identity()
    return {
        "baseline": base,
        "conditions": {
            "training": {k: settings[k] for k in settings if k not in _OF_A_CASE},
            "learning_rates": {"others": RATE, **RATES},
            "training_images": len(study.train),
            "tuning": len(study.val) - half,
            "reporting": half,
            "speed_up": SPEED_UP,
            "drop": DROP,
        },
        "tables": rows,
        "curves": curves,
        "env": environment(),
        "command": command_line(),
    }


def tables(record: dict[str, Any]) -> str:
    """Returns the study as Markdown."""
    base, how = record["baseline"], record["conditions"]
    lines = [
        f"Baseline without exits: {base['accuracy']:.2%} on the {how['reporting']} reporting "
        f"images ({base['accuracy_all']:.2%} on all), {base['macs'] / 1e9:.3f} G MACs, "
        f"{base['parameters'] / 1e6:.2f} M parameters.",
        "",
    ]
    for title, rows in record["tables"].items():
        lines += [f"## {title}", "", *_table(rows, how), ""]
    return "\n".join(lines)


def _table(rows: Sequence[dict[str, Any]], how: dict[str, Any]) -> list[str]:
    fast, sure = f"at >= {how['speed_up']}x MACs", f"losing <= {100 * how['drop']:.0f} points"
    head = (
        f"| | parameters, M | accuracy {fast} | MACs, G | MACs x | layers x | wall clock x | "
        f"accuracy {sure} | MACs, G | MACs x | layers x | accuracy of each exit, % |"
    )
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    for row in rows:
        cells = [row["name"], f"{row['parameters'] / 1e6:.2f}"]
        cells += _cells(row["at_speedup"], wall=True) + _cells(row["at_accuracy"], wall=False)
        exits = zip(row["blocks"], row["accuracies"], strict=True)
        cells.append(", ".join(f"{block}: {100 * a:.1f}" for block, a in exits))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cells(point: dict[str, Any] | None, *, wall: bool) -> list[str]:
    if point is None:
        return ["not reached"] + ["-"] * (3 + wall)
    cells = [f"{point['accuracy']:.2%}", f"{point['macs'] / 1e9:.3f}"]
    cells += [f"{point[key]:.2f}" for key in ("macs_speedup", "layers_speedup")]
    measured = point.get("wall_clock")
    return cells + ([f"{measured:.2f}" if measured else "-"] if wall else [])


def draw(record: dict[str, Any], path: Path) -> None:
    """Draws accuracy against speed-up on the reporting images, a line per method (Figure 1)."""
    base, how = record["baseline"]["accuracy"], record["conditions"]
    draw_lines(
        record["curves"],
        path,
        baseline=base,
        title=f"{how['reporting']} held-out images",
        drop=how["drop"],
        limits=((0.95, 2.5), (100 * base - 25, 100 * base + 2)),
    )


if __name__ == "__main__":
    run_command(main)
