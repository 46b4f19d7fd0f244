"""Writes a bench record as one self-contained web page, without network or scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lgvit_edge import __version__
from lgvit_edge._support.outputs import write
from lgvit_edge.architecture.families import FAMILIES
from lgvit_edge.benchmarks.report import plots
from lgvit_edge.benchmarks.report.gallery import Gallery
from lgvit_edge.benchmarks.report.html import rendered
from lgvit_edge.benchmarks.report.terminal import computed_in, passes_of, what_was_measured
from lgvit_edge.bundle.inspection import both_counts
from lgvit_edge.bundle.manifest import Manifest


def write_page(
    path: Path, record: dict[str, Any], manifest: Manifest, gallery: Gallery | None
) -> None:
    """Writes the page, completely or not at all.

    ``record`` is of ``measure_images`` or ``measure_exits``, with its ``survey``; ``gallery`` holds
    the images seen in the run, None if there were none.

    Raises:
        MissingDependency: jinja2 or matplotlib is not installed.
        OSError: the page cannot be written.
    """
    drawn = [plots.latencies, plots.departures, plots.segments]
    if "policies" in record["survey"]:
        drawn.insert(0, plots.tradeoff)
    text = rendered(
        "page.html.j2",
        record=record,
        title=_title(manifest),
        subtitle=_subtitle(record),
        notes=_notes(record),
        tiles=_tiles(record),
        plots=[draw(record) for draw in drawn],
        points=_points(record, manifest),
        mistakes=gallery.mistakes() if gallery else [],
        gallery=gallery.exits() if gallery else [],
        energy=_energy(record),
        passes=passes_of(record),
        command=record["command"],
        conditions=_conditions(record),
        percent=_percent,
        ms=lambda part, key: "-" if part is None else f"{part[key]:.2f}",
        number=lambda value, digits: "-" if value is None else f"{value:.{digits}f}",
    )
    write(path, text)


def _title(manifest: Manifest) -> str:
    exits = len(manifest.segments) - 1
    # A device that opens a bundle need not have the family; then its name is printed.
    labels = [
        FAMILIES[p.family].label if p.family in FAMILIES else p.family for p in manifest.passes
    ]
    sizes = [each.image_size for each in manifest.passes]
    networks = ", then ".join(f"{label} {size}" for label, size in zip(labels, sizes, strict=True))
    return f"{networks} with {exits} exits, {manifest.precision}: what early exits give"


def _subtitle(record: dict[str, Any]) -> str:
    runtime = record["env"]["runtime"]
    where = record["env"]["cpu"] if runtime["device"] == "cpu" else runtime["device"]
    return (
        f"{record['samples']} images, {runtime['backend']} {runtime['version']}, {where}, "
        f"{runtime['threads']} threads, lgvit-edge {__version__}"
    ) + "".join(f"; {text}" for text in [computed_in(runtime)] if text)


def _notes(record: dict[str, Any]) -> list[str]:
    notes = []
    if "mix" in record:
        notes.append(
            "Random frames were stopped at every exit in turn: times are measured, shares are "
            "assumed. With --data DIR the page shows accuracy and real shares."
        )
    if record.get("skipped"):
        notes.append(f"{len(record['skipped'])} images cannot be read and were skipped.")
    notes += [*record["plain_models"], *record.get("notes", ())]
    surveyed = record["survey"]["images"]
    if "mix" not in record and surveyed < record["samples"]:
        notes.append(f"Policies are compared on {surveyed} of the images, evenly spaced.")
    return notes


def _tiles(record: dict[str, Any]) -> list[tuple[str, str]]:
    speedup = record["speedup"]
    wall, (low, high) = speedup["wall_clock"], speedup["wall_clock_95"]
    ms, base_ms = (part["latency_ms"]["mean"] for part in (record, record["baseline"]))
    tiles = [
        (f"{wall:.2f}x", f"faster than without exits (95 %: {low:.2f} to {high:.2f})"),
        (
            f"{speedup['macs']:.2f}x",
            f"fewer multiply-accumulates (MACs); {both_counts(record['baseline'])}",
        ),
        (f"{record['efficiency']:.3f}", "efficiency: time saved for MACs saved"),
        (f"{ms:.2f} ms", f"per image on average; {base_ms:.2f} ms without exits"),
    ]
    if energy := _energy(record):
        first = energy["meters"][0]
        mj, base_mj = (first[part]["mj_per_image"] for part in ("chain", "baseline"))
        told = f"per image at {first['name']}; {base_mj:.2f} mJ without exits"
        tiles.append((f"{mj:.2f} mJ", told))
    if record["accuracy"] is not None:
        base = _percent(record["baseline_accuracy"])
        tiles.insert(0, (_percent(record["accuracy"]), f"accuracy; {base} without exits"))
    return tiles


def _energy(record: dict[str, Any]) -> dict[str, Any] | None:
    """Return the meters that gave figures, and what they measured; None if there are none."""
    energy = record.get("energy")
    meters = [meter for meter in energy["meters"] if meter["chain"]] if energy else []
    if energy is None or not meters:
        return None
    words = what_was_measured(energy)
    return {"meters": meters, "words": words, "unstable": energy["unstable"]}


def _points(record: dict[str, Any], manifest: Manifest) -> list[dict[str, str]]:
    here = record["survey"].get("points", {})
    rows = []
    for name, point in manifest.points.items():
        now, guarantee = here.get(name), "-"
        if bound := point.guarantee:
            guarantee = f"\u2264 {100 * bound.risk:g} % ({100 * (1 - bound.delta):g} % sure)"
        rows.append(
            {
                "name": name,
                "policy": str(point.policy["name"]),
                "accuracy": _percent(now and now["accuracy"]),
                "speedup": "-" if now is None else f"{now['wall_clock_speedup']:.2f}x",
                "then": _percent(point.accuracy),
                "ms": f"{point.latency_ms:.2f} ms",
                "guarantee": guarantee,
            }
        )
    return rows


def _conditions(record: dict[str, Any]) -> list[tuple[str, str]]:
    env, bundle = record["env"], dict(record["bundle"])
    bundle["passes"] = [
        f"{each['family']} {each['image_size']}, {each['blocks']} blocks"
        for each in bundle["passes"]
    ]
    nested = {k: v for k, v in env.items() if isinstance(v, dict)} | {"bundle": bundle}
    rows = [(k.replace("_", " "), str(v)) for k, v in env.items() if k not in nested]
    for name, values in nested.items():
        rows.append((name, ", ".join(f"{k} {v}" for k, v in values.items())))
    rows += [(f"clocks, heat {when}", _listed(state)) for when, state in record["clocks"].items()]
    return [*rows, ("policy", str(record["policy"]) if "policy" in record else "forced exits")]


def _listed(values: dict[str, Any]) -> str:
    """Return names with their values; a value that holds others stands in parentheses."""
    parts = [(k.replace("_", " "), v) for k, v in values.items()]
    told = [f"{k} ({_listed(v)})" if isinstance(v, dict) else f"{k} {v}" for k, v in parts]
    return ", ".join(told) or "not told"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"
