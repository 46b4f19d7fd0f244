"""The paper's comparisons with the backbone trained along: its Tables 1 to 4, 6 and 7.

``python -m lgvit_edge.benchmarks.experiments.ablations --data DIR --backbone coarse.pt --out DIR``
begins with a trained backbone. The paper's scheme has two stages, its rivals' train everything at
once, for as many epochs as stage 1. Thresholds are chosen on one half of the validation images and
reported on the other. Rows of Table 2 are trained with every seed, others with the first. Trainings
that are done are not repeated, and one that was interrupted goes on; ``ablations.json`` and
``ablations.md`` are written after each. Several of these at once share a folder: each takes the
next training that no other does. For Table 5, ``bundles/`` holds the methods of Table 1, each with
its policy at 1.6 times fewer MACs: ``lgvit-edge bench`` measures their time. (``study`` compares
heads of a frozen backbone.)
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from lgvit_edge._support.files import locked
from lgvit_edge._support.outputs import write, write_json
from lgvit_edge._support.terminal import say
from lgvit_edge.architecture.config import ExitConfig
from lgvit_edge.architecture.placement import plan_exits
from lgvit_edge.benchmarks.experiments.frame import run_command
from lgvit_edge.benchmarks.experiments.study import METHODS
from lgvit_edge.benchmarks.experiments.study_rows import (
    RATES,
    SPEED_UP,
    Case,
    Measured,
    choose,
)
from lgvit_edge.benchmarks.experiments.trainings import (
    kept_answers,
    kept_bundle,
    same_settings,
    seeds_of,
    trained,
)
from lgvit_edge.benchmarks.measure import command_line
from lgvit_edge.cli.options import check_outputs
from lgvit_edge.errors import UsageError
from lgvit_edge.machine.environment import environment
from lgvit_edge.model import LGViT, block_macs, load_model
from lgvit_edge.policies import from_json
from lgvit_edge.training import TrainingConfig, train
from lgvit_edge.training.data.datasets import ImageFolder
from lgvit_edge.training.report import exit_costs
from lgvit_edge.training.resume import weights_hash
from lgvit_edge.training.start import attach_exits

SPEED_UPS = (1.4, SPEED_UP, 2.0)  # in MACs, at which rows are compared
_HEADS = {"mlp": "MLP", "conv": "Conv", "attention": "Attention", "lgvit": "LPH and GAH"}
_GAH = "mlp-gah"  # Table 2 without LPHs: MLPs in their place
_NAMES = {**_HEADS, _GAH: "MLP and GAH"}
_SCHEMES = ("normal", "weighted", "distillation", "alternating", "lgvit")

_USUAL = "uniform:8"  # exits of all rows that name no other, unless others are asked for


def _case(heads: str = "lgvit", scheme: str = "lgvit", exits: str = _USUAL) -> Case:
    shown = "two stages" if scheme == "lgvit" else scheme
    return Case(f"{_NAMES[heads]}, {shown}", heads, exits, scheme)


def _key(case: Case) -> str:
    return f"{case.heads}-{case.exits.replace(':', '')}-{case.scheme}"


TABLES = {
    "2": (
        "Main components (Table 2)",
        (
            *(_case("mlp", scheme) for scheme in ("normal", "lgvit")),
            _case(_GAH),
            *(_case("lgvit", scheme) for scheme in ("normal", "lgvit")),
        ),
    ),
    "1": ("Methods (Table 1)", METHODS),
    "3": ("Heads, two stages (Table 3)", tuple(_case(heads) for heads in _HEADS)),
    "4": ("Schemes, the paper's heads (Table 4)", tuple(_case(scheme=s) for s in _SCHEMES)),
    "7": (
        "Placements of four exits, two stages (Table 7)",
        tuple(_case(exits=f"{name}:4") for name in ("shallow", "deep", "middle", "uniform")),
    ),
    "6": (
        "Schemes and heads (Table 6)",
        tuple(_case(heads, scheme) for heads in _HEADS for scheme in _SCHEMES),
    ),
}
_ALL = "2,3,4,7,1,6"
_EVERY_SEED = {_key(case) for case in TABLES["2"][1]}


@dataclass(frozen=True)
class Ablations:
    """What all trainings share."""

    model: LGViT  # the backbone, without exits
    images: ImageFolder
    val: ImageFolder  # one half tunes, the other reports
    config: TrainingConfig
    exits: str  # of all rows that name no other
    out: Path

    def run(self, case: Case, seed: int) -> dict[str, Any]:
        """Returns accuracy and MACs of one training, which is done unless it was before.

        Raises:
            UsageError: results of other settings are there.
        """
        config = self.config.replace(
            scheme=case.scheme,
            order="joint" if case.scheme == "lgvit" else "whole",
            head_lr=RATES.get(case.heads, self.config.head_lr),
            seed=seed,
        )
        name = f"{_key(case)}-{seed}"
        checkpoint = self.out / f"{name}.pt"
        exits = self.exits_of(case)
        identity = {
            **config.identity(),
            "heads": case.heads,
            "exits": exits,
            "images": self.images.fingerprint(),
            "val": self.val.fingerprint(),
        }
        same_settings(self.out / f"{name}.json", self.model, identity)
        if not checkpoint.is_file():
            say(f"training {name}")
            begin = time.monotonic()
            train(self._fresh(case.heads, exits, seed), self.images, None, config, out=checkpoint)
            say(f"trained {name} in {(time.monotonic() - begin) / 60:.0f} minutes")
        model = load_model(checkpoint)
        found = kept_answers(self.out / f"{name}.npz", checkpoint, model, self.val, config.workers)
        measured = Measured(found, exit_costs(model))
        tuning, reporting = measured.half(0), measured.half(1)
        points = {}
        for speed_up in SPEED_UPS:
            policy = choose(case.policy, tuning, speed_up=speed_up)
            points[f"{speed_up:g}"] = None if policy is None else reporting.gives(policy).to_json()
        return {
            "seed": seed,
            "blocks": list(measured.costs.blocks),
            "accuracies": reporting.images.accuracies,
            "points": points,
        }

    def seconds(self) -> float:
        """Returns about how long a training takes, from a step on black pixels."""
        config, size = self.config, self.model.config.image_size
        model = self._fresh("lgvit", self.exits, config.seed).train()
        pixels = torch.zeros(min(config.batch_size, len(self.images)), 3, size, size)
        for _ in range(2):  # the first one is not typical
            begin = time.perf_counter()
            with config.autocast(pixels.device):
                logits = model.exit_logits(pixels)
            logits.float().mean().backward()
            took = time.perf_counter() - begin
        # Stage 2 runs the backbone once and then heads alone, which are a small part of it.
        return took * -(-len(self.images) // len(pixels)) * (config.epochs[0] + 1)

    def export(self, case: Case, seed: int, policy: dict[str, Any]) -> None:
        """Writes the bundle of a training that is done, with a policy of its own."""
        checkpoint = self.out / f"{_key(case)}-{seed}.pt"
        bundle = self.out / "bundles" / f"{case.name.lower()}-{seed}"
        kept_bundle(load_model(checkpoint), bundle, checkpoint, from_json(policy))

    def exits_of(self, case: Case) -> str:
        """Returns the exits of a row, as ``plan_exits`` reads them."""
        return self.exits if case.exits == _USUAL else case.exits

    def _fresh(self, heads: str, exits: str, seed: int) -> LGViT:
        config = self.model.config
        kind = "lgvit" if heads == _GAH else heads
        planned = plan_exits(exits, block_macs(config), heads=kind, family=config.family)
        if heads == _GAH:
            planned = tuple(
                ExitConfig(exit.block, "mlp") if exit.head == "lph" else exit for exit in planned
            )
        return attach_exits(self.model, planned, seed=seed)


def main(
    data: Annotated[Path, typer.Option(help="Folder with train/ and val/, images by class.")],
    out: Annotated[Path, typer.Option(help="Folder for results, checkpoints and answers.")],
    backbone: Annotated[str, typer.Option(help="Architecture, or a checkpoint.")],
    weights: Annotated[Path | None, typer.Option(help="Checkpoint of a trained backbone.")] = None,
    only: Annotated[str, typer.Option(help="Tables, separated by commas.")] = _ALL,
    exits: Annotated[str, typer.Option(help="Blocks of the exits, but for placements.")] = _USUAL,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of stage 1, and of rivals.")] = 10,
    heads_epochs: Annotated[int, typer.Option(min=1, help="Epochs of stage 2.")] = 3,
    lr: Annotated[float, typer.Option(help="Learning rate of the backbone.")] = 3e-4,
    layer_decay: Annotated[float, typer.Option(help="Of that rate, from block to block.")] = 0.75,
    head_lr: Annotated[float, typer.Option(help="Learning rate of heads.")] = 4e-3,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    images: Annotated[int | None, typer.Option(help="Training images. Default: all.")] = None,
    val_images: Annotated[int | None, typer.Option(help="Validation images.")] = None,
    precision: Annotated[str, typer.Option(help="Matrix products in fp32 or bf16.")] = "bf16",
    workers: Annotated[int, typer.Option(help="Processes that decode images.")] = 0,
) -> None:
    """Trains heads, schemes, placements and rivals with the backbone; writes the paper's tables."""
    check_outputs({}, {"--out": out})
    wanted = only.split(",")
    if unknown := set(wanted) - set(TABLES):
        raise UsageError(f"--only: expected some of {', '.join(TABLES)}; found {unknown.pop()!r}")
    config = TrainingConfig(
        epochs=(epochs, heads_epochs),
        lr=(lr, head_lr),
        head_lr=head_lr,
        layer_decay=layer_decay,
        min_crop=0.25,
        precision=precision,
        workers=workers,
        cache=True,
        cache_views=1,
    )
    parts = trained(data, backbone, weights, config, images=images, val_images=val_images)
    out.mkdir(parents=True, exist_ok=True)
    numbers, begun = seeds_of(seeds), weights_hash(parts[0])
    # A part must not replace the record of the whole.
    name = "ablations" if only == _ALL else f"ablations-{'-'.join(wanted)}"
    shared = Ablations(*parts, config, exits, out)
    plan = _plan([TABLES[name][1] for name in wanted], numbers)
    done: dict[tuple[str, str, int], dict[str, Any]] = {}
    for case, seed, result in _results(shared, plan):
        done[(*_row(case), seed)] = result
        titles = {title: cases for title, cases in (TABLES[name] for name in wanted)}
        record = {
            "conditions": {
                "training": config.identity(),
                "backbone": begun,
                "seeds": numbers,
                "training_images": len(shared.images),
                "validation_images": len(shared.val),
            },
            "tables": {title: _rows(shared, cases, done) for title, cases in titles.items()},
            "env": environment(),
            "command": command_line(),
        }
        write_json(out / f"{name}.json", record)
        write(out / f"{name}.md", tables(record))
    for case in METHODS if "1" in wanted else ():
        if point := done[(*_row(case), numbers[0])]["points"][f"{SPEED_UP:g}"]:
            shared.export(case, numbers[0], point["policy"])
    say(f"wrote {out / name}.json, {name}.md")


def _results(
    shared: Ablations, plan: Sequence[tuple[Case, int]]
) -> Iterator[tuple[Case, int, dict[str, Any]]]:
    """Yields the result of each training; those that another run has under way come last."""
    left, times = list(plan), list[float]()
    count = len({(_key(case), seed) for case, seed in plan})

    def tell(seconds: float) -> None:
        names = {f"{_key(case)}-{seed}" for case, seed in left}
        waiting = sum(not (shared.out / f"{name}.npz").is_file() for name in names)
        hours = waiting * seconds / 3600
        say(f"{count - waiting} of {count} trainings done; about {hours:.1f} hours left")

    tell(shared.seconds())
    while left:
        for case, seed in tuple(left):
            begun = time.monotonic()
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(locked(shared.out / f".{_key(case)}-{seed}.lock"))
                except BlockingIOError:  # another run of this command trains it
                    continue
                result = shared.run(case, seed)
            left.remove((case, seed))
            yield case, seed, result
            if (took := time.monotonic() - begun) > 60:  # not one that was done before
                times.append(took)
                tell(statistics.fmean(times))
        if left:
            time.sleep(5)


def _rows(
    shared: Ablations, cases: Sequence[Case], done: dict[tuple[str, str, int], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Returns the rows of a table that have a result, with those of all their seeds."""
    rows = []
    for case in cases:
        runs = [result for (*row, _), result in sorted(done.items()) if tuple(row) == _row(case)]
        if runs:
            rows.append(asdict(case) | {"exits": shared.exits_of(case), "runs": runs})
    return rows


def _row(case: Case) -> tuple[str, str]:
    """Returns what tells rows apart: rows of one training may differ in their policy."""
    return _key(case), case.policy


def _plan(tables: Sequence[Sequence[Case]], seeds: Sequence[int]) -> list[tuple[Case, int]]:
    """Returns what is trained: the first seed of all rows, then the others of Table 2's."""
    cases = list({_row(case): case for cases in tables for case in cases}.values())
    plan = [(case, seeds[0]) for case in cases if _key(case) in _EVERY_SEED]
    plan += [(case, seed) for seed in seeds[1:] for case, _ in plan[: len(plan)]]
    return plan + [(case, seeds[0]) for case in cases if _key(case) not in _EVERY_SEED]


def tables(record: dict[str, Any]) -> str:
    """Returns the rows that are done as Markdown: means over seeds, with a standard error.

    Thresholds reach a speed-up on the images that they are chosen on; beside an accuracy stands
    what they give on the others.
    """
    lines: list[str] = []
    for title, rows in record["tables"].items():
        if not rows:
            continue
        goals = (f"chosen for {s:g}x MACs: %, and MACs" for s in SPEED_UPS)
        head = ["", *goals, "seeds", "each exit, %"]
        lines += [f"## {title}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for row in rows:
            runs = row["runs"]
            cells = [row["name"] if "Table 7" not in title else row["exits"].split(":")[0]]
            for speed_up in SPEED_UPS:
                points = [run["points"][f"{speed_up:g}"] for run in runs]
                if all(points):
                    faster = statistics.fmean(point["macs_speedup"] for point in points)
                    cells.append(f"{_mean([p['accuracy'] for p in points])} ({faster:.2f}x)")
                else:
                    cells.append("not reached")
            places = zip(*(run["accuracies"] for run in runs), strict=True)
            exits = zip(runs[0]["blocks"], places, strict=True)
            shown = ", ".join(f"{block}: {100 * statistics.fmean(a):.1f}" for block, a in exits)
            lines.append(f"| {' | '.join([*cells, str(len(runs)), shown])} |")
        lines.append("")
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> str:
    each = [100 * value for value in values]
    error = f" ± {statistics.stdev(each) / len(each) ** 0.5:.1f}" if len(each) > 1 else ""
    return f"{statistics.fmean(each):.1f}{error}"


if __name__ == "__main__":
    run_command(main)
