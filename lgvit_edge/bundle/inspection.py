"""Description of a bundle as plain JSON types, for ``lgvit-edge info``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lgvit_edge.bundle.builds import Build, find_builds, graphs_of, read_engine
from lgvit_edge.bundle.codec import to_json
from lgvit_edge.bundle.directory import Bundle, open_bundle
from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.errors import BundleError


def inspect_bundle(path: Path) -> dict[str, Any]:
    """Describe a bundle, its segments and its engines as JSON; raises as ``open_bundle``."""
    bundle = open_bundle(path)
    manifest = bundle.manifest
    shown = to_json(manifest)

    def take(*names: str) -> dict[str, Any]:
        return {name: shown[name] for name in names}

    rows = [
        {
            "index": index,
            "pass_number": number,
            "first_block": segment.first_block,
            "last_block": segment.last_block,
            "head": segment.head,
            "macs": segment.spec.macs,
            "parameters": segment.spec.parameters,
            **({} if segment.head_macs is None else {"head_macs": segment.head_macs}),
        }
        for index, (segment, number) in enumerate(
            zip(manifest.segments, manifest.pass_numbers, strict=True)
        )
    ]
    return {
        "kind": "bundle",
        "path": str(path),
        "identity": manifest.identity,
        "passes": pass_records(manifest),
        "exits": len(manifest.segments) - 1,
        "classes": manifest.num_classes,
        **take("target", "precision", "opset", "input", "batch", "policy", "points"),
        "parity": max(manifest.parity.max_difference),
        "bytes": sum(p.stat().st_size for p in path.rglob("*") if p.is_file()),
        **take("versions", "fp32_islands", "calibration", "agreement"),
        "evidence": evidence_records(manifest),
        "engines": [_engines(folder, build, bundle) for folder, build in find_builds(path)],
        "baseline": {
            "macs": manifest.baseline.macs,
            "published_macs": manifest.published_macs,
            "parameters": manifest.baseline.parameters,
        },
        "segments": with_totals(rows, manifest.baseline.macs),
    }


def evidence_records(manifest: Manifest) -> list[dict[str, Any]]:
    """Return what is known of precisions below float32; ``at`` names the policies it is known at.

    Those are ``default`` for the bundle's own and the names of points; empty for another policy.
    Certified points are not named: ``auto`` takes no lower precision for them.
    """
    points = {n: point.policy for n, point in manifest.points.items() if point.guarantee is None}
    named = {"default": manifest.policy} | points
    return [
        evidence.to_record() | {"at": [n for n, p in named.items() if p == evidence.policy]}
        for evidence in manifest.evidence
    ]


def pass_records(manifest: Manifest) -> list[dict[str, Any]]:
    """Return what records say of each pass."""
    return [
        {
            "number": number,
            "title": manifest.pass_title(number),
            "family": each.family,
            "image_size": each.image_size,
            "blocks": each.num_blocks,
            "macs": sum(segment.spec.macs for segment in each.segments),
        }
        for number, each in enumerate(manifest.passes, 1)
    ]


def both_counts(baseline: dict[str, Any]) -> str:
    """Return a sentence with the baseline's ``macs`` and ``published_macs``."""
    exported, published = baseline["macs"] / 1e6, baseline["published_macs"] / 1e6
    return f"baseline: {exported:,.1f} M MACs as exported, {published:,.1f} M as published"


def with_totals(rows: list[dict[str, Any]], baseline_macs: int) -> list[dict[str, Any]]:
    """Add to each segment's row the MACs and the speed-up of an image that leaves after it."""
    total = 0
    for row in rows:
        total += row["macs"]
        row |= {"cumulative_macs": total, "macs_speedup": baseline_macs / total}
    return rows


def _engines(folder: Path, build: Build | BundleError, bundle: Bundle) -> dict[str, Any]:
    if isinstance(build, BundleError):
        return {"tag": folder.name, "gpu": None, "count": 0, "bytes": 0, "fault": str(build)}
    fault = build.fault(bundle)
    try:
        for name, graph in {} if fault else graphs_of(bundle).items():
            read_engine(folder, build, name, graph)
    except BundleError as error:
        fault = str(error)
    return {
        "tag": build.tag,
        "gpu": build.gpu,
        "count": len(build.engines),
        "bytes": sum(engine.bytes for engine in build.engines.values()),
        "fault": fault,
    }
