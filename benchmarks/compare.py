"""Compares bench records, or bundles; refuses those measured under unlike conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from lgvit_edge._support import finite_json
from lgvit_edge._support.files import read_bytes
from lgvit_edge._support.terminal import plain
from lgvit_edge.benchmarks.report.terminal import table_of
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.bundle.layout import MANIFEST
from lgvit_edge.bundle.points import OperatingPoint
from lgvit_edge.errors import DataError, UsageError

_MAX_BYTES = 1 << 28  # a record of 50,000 images has a tenth
# Conditions that must be the same for times to be compared, with their place in the record.
_CONDITIONS = {
    "processor": ("env", "cpu"),
    "cores": ("env", "cores"),
    "clock governor": ("env", "cpu_governor"),
    "Jetson": ("env", "jetson"),
    "backend": ("env", "runtime", "backend"),
    "backend version": ("env", "runtime", "version"),
    "device": ("env", "runtime", "device"),
    "threads": ("env", "runtime", "threads"),
    "precision": ("bundle", "precision"),
    "computed in": ("env", "runtime", "precision"),
    "image size of the baseline": ("bundle", "image_size"),
    "classes": ("bundle", "classes"),
    "samples": ("samples",),
    "images": ("images_sha256",),
    "shares assumed": ("mix",),
}


def compare_records(paths: list[Path], *, force: bool = False) -> dict[str, Any]:
    """Compares records of ``bench --json``, or tuned bundles, with the first of them.

    Returns:
        ``rows``, the first being the reference: ``time`` is the mean latency over the first's.
        ``time_paced`` is the same, each latency first divided by its own baseline's, which removes
        differences in machine speed. ``energy`` of a row has a meter for each that gave figures:
        ``mj`` and ``baseline_mj`` per image. ``unlike`` names conditions that differ; they are
        refused without ``force``.

    Raises:
        DataError: a file is not a record, or a bundle has no operating points.
        UsageError: fewer than two rows, or unlike conditions.
    """
    rows = [row for path in paths for row in _rows(path)]
    if len(rows) < 2:
        raise UsageError("expected at least two records or operating points to compare")
    first = rows[0]
    unlike = sorted({text for row in rows[1:] for text in _differences(first, row)})
    if unlike and not force:
        raise UsageError(
            f"measured under unlike conditions: {'; '.join(unlike)}; measure again under the same "
            "conditions, or compare anyway with --force"
        )
    for row in rows:
        row["time"] = row["latency_ms"] / first["latency_ms"]
        row["time_paced"] = row["time"] * (first["baseline_ms"] / row["baseline_ms"])
    return {"rows": rows, "unlike": unlike}


def _differences(first: dict[str, Any], other: dict[str, Any]) -> list[str]:
    mine, theirs = first["conditions"], other["conditions"]
    if mine.keys() != theirs.keys():
        return ["kind (a bench record and a bundle's operating point)"]
    return [
        f"{name} ({_short(mine[name])} and {_short(theirs[name])})"
        for name in mine
        if mine[name] != theirs[name]
    ]


def _short(value: Any) -> str:
    text = "unknown" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def parse_share(text: str) -> float:
    """Returns the share that is typed as ``5%`` or ``0.05``.

    Raises:
        UsageError: the text has another form.
    """
    try:
        value = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 100:
        raise UsageError(f"--fail-if-slower must be like 5% or 0.05, found {text!r}")
    return value


def print_comparison(comparison: dict[str, Any], console: Console) -> None:
    """Prints one row per record, and warnings below."""
    ratios = ("speed-up", "MACs x", "efficiency", "time", "paced")
    rows = [row | {"efficiency": row["wall_clock"] / row["macs"]} for row in comparison["rows"]]
    cells = (
        "{name} | {accuracy:.2%} | {latency_ms:.2f} | {p99_ms:.2f} | {wall_clock:.2f}x | "
        "{macs:.2f} | {efficiency:.3f} | {time:.3f} | {time_paced:.3f}"
    )
    numbers = ("accuracy", "mean (ms)", "p99", *ratios)
    console.print(table_of(rows, cells, "run", numbers=numbers))
    console.print(
        "time: mean latency over the first row's; paced: the same, each latency first divided by "
        "its own baseline's, which removes differences in machine speed",
        highlight=False,
        soft_wrap=True,
    )
    _print_energy(rows, console)
    for row in rows:
        for reason in row["unstable"]:
            console.print(plain(f"{row['name']}: unstable: {reason}", "yellow"), soft_wrap=True)
    for name in comparison["unlike"]:
        console.print(plain(f"unlike: {name}", "yellow"), soft_wrap=True)


def _print_energy(rows: list[dict[str, Any]], console: Console) -> None:
    """Print energy by the first meter that gave figures in all records."""
    meters = [row["energy"] for row in rows]
    common = [name for name in meters[0] if all(name in others for others in meters)]
    if not common:
        return
    told = [{"name": row["name"]} | row["energy"][common[0]] for row in rows]
    for row in told:
        row |= {"less": row["baseline_mj"] / row["mj"], "over": row["mj"] / told[0]["mj"]}
    cells = "{name} | {baseline_mj:.2f} | {mj:.2f} | {less:.2f}x | {over:.3f}"
    numbers = ("baseline", "early exit", "energy x", "over the first")
    console.print(table_of(told, cells, "mJ per image", numbers=numbers))
    said = f"energy at {common[0]}, idle power included; energy x: the baseline's over the exits'"
    console.print(plain(said), soft_wrap=True)


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.is_dir():
        points = open_bundle(path, verify=False).manifest.points
        if not points:
            raise DataError(
                f"{path} has no operating points; run: lgvit-edge tune --engines {path} "
                "--data DIR, or compare records of bench --json"
            )
        return [_of_point(path, name, point) for name, point in points.items()]
    try:
        record = finite_json.loads(read_bytes(path, _MAX_BYTES))
        if isinstance(record, dict) and "rows" in record and "bundles" in record:
            raise UsageError(
                f"{path} holds several bundles that bench compared with each other: expected "
                "records of one bundle each"
            )
        return [_of_record(path, record)]
    except FileNotFoundError:
        raise DataError(f"no such record or bundle: {path}") from None
    except UsageError:
        raise
    except (OSError, ArithmeticError, LookupError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise DataError(
            f"{path} is no record of lgvit-edge bench --json ({reason}); "
            f"a bundle is a folder with {MANIFEST}"
        ) from None


def _of_record(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    accuracy = record["accuracy"]
    return {
        "name": path.stem,
        "accuracy": None if accuracy is None else _share(accuracy),
        "latency_ms": _positive(record["latency_ms"]["mean"]),
        "p99_ms": _positive(record["latency_ms"]["p99"]),
        "baseline_ms": _positive(record["baseline"]["latency_ms"]["mean"]),
        "wall_clock": _positive(record["speedup"]["wall_clock"]),
        "macs": _positive(record["speedup"]["macs"]),
        "unstable": [str(reason) for reason in record["unstable"]],
        "energy": _energy(record.get("energy")),
        "conditions": {name: _at(record, keys) for name, keys in _CONDITIONS.items()},
    }


def _of_point(path: Path, name: str, point: OperatingPoint) -> dict[str, Any]:
    return {
        "name": f"{path.absolute().name}:{name}",
        "accuracy": point.accuracy,
        "latency_ms": point.latency_ms,
        "p99_ms": None,
        "baseline_ms": point.baseline_latency_ms,
        "wall_clock": point.wall_clock_speedup,
        "macs": point.macs_speedup,
        "unstable": [],
        "energy": {},
        "conditions": {"device": point.device, "images": point.data_sha256[:12]},
    }


def _energy(energy: Any) -> dict[str, dict[str, float]]:
    """Return the figures of the meters that gave some, by name and source."""
    if energy is None:
        return {}
    return {
        f"{meter['name']} ({meter['source']})": {
            "mj": _positive(meter["chain"]["mj_per_image"]),
            "baseline_mj": _positive(meter["baseline"]["mj_per_image"]),
        }
        for meter in energy["meters"]
        if meter["ratio"] is not None
    }


def _at(record: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def _share(value: Any) -> float:
    number = float(value)
    if not 0 <= number <= 1:
        raise ValueError(f"expected a share of images, 0..1, found {value!r}")
    return number


def _positive(value: Any) -> float:
    number = float(value)
    if not 0 < number < 1e12:
        raise ValueError(f"expected a positive number, found {value!r}")
    return number
