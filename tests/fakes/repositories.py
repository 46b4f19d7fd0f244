"""Bundles as they come to a server."""

from __future__ import annotations

import hashlib
from typing import Any

from lgvit_edge._support.outputs import write_json
from lgvit_edge.bundle.builds import Build, EngineSpec, graphs_of
from lgvit_edge.bundle.codec import to_json
from lgvit_edge.bundle.directory import Bundle


def engines_for(bundle: Bundle, tag: str = "card", **changes: Any) -> None:
    """Write engines of noise, as TensorRT would have compiled them for some other card."""
    folder = bundle.root / "engines" / tag
    folder.mkdir(parents=True)
    specs = {}
    for name, graph in graphs_of(bundle).items():
        data = f"{tag} {name}".encode()
        (folder / f"{name}.engine").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        specs[name] = EngineSpec(f"{name}.engine", digest, graph.graph.sha256, len(data), 1.0)
    fields: dict[str, Any] = dict(
        schema_version=1,
        library="tensorrt",
        version="10.3.0",
        platform="linux-x86_64",
        gpu="NVIDIA Imaginary",
        multiprocessors=1,
        compute_capabilities=("9.9",),
        precision="fp32",
        batch=bundle.manifest.batch,
        weights_sha256=tuple(file.sha256 for file in bundle.manifest.weights),
        workspace=None,
        optimization_level=None,
        tolerance=None,
        engines=specs,
        warnings=(),
    )
    write_json(folder / "build.json", to_json(Build(**fields | changes)))
