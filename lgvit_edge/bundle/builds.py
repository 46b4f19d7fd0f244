"""Compiled engines of a bundle: ``engines/<tag>/build.json`` and how to find the right build.

One bundle can serve several devices, each with engines of its own. The record says what they were
made from and for, so that a mismatch is named before TensorRT sees the file.
"""

from __future__ import annotations

import hashlib
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from lgvit_edge._support.files import write_json
from lgvit_edge.bundle.codec import loads, to_json
from lgvit_edge.bundle.directory import BUILD, ENGINES, Bundle
from lgvit_edge.bundle.manifest import GraphSpec
from lgvit_edge.errors import BundleError
from lgvit_edge.machine.tensorrt import MODULES

BUILD_SCHEMA = 1
_MAX_BYTES = 4 * 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,120}")


@dataclass(frozen=True)
class EngineSpec:
    """One engine.

    Attributes:
        file: beside ``build.json``.
        sha256: of the engine; a plain TensorRT plan, nothing before or after it.
        onnx_sha256: of the graph it was compiled from.
        bytes: its size.
        seconds: what compiling took.
    """

    file: str
    sha256: str
    onnx_sha256: str
    bytes: int
    seconds: float

    def __post_init__(self) -> None:
        """Refuse names that could leave the folder."""
        if not _NAME.fullmatch(self.file) or self.file.startswith("."):
            raise ValueError(f"engine file {self.file!r} must be a plain name")


@dataclass(frozen=True)
class Build:
    """``build.json``.

    Attributes:
        schema_version: of this layout.
        library: ``tensorrt`` or ``tensorrt-rtx``.
        version: of the library; engines of another one do not load.
        platform: system and processor, such as ``linux-aarch64``.
        gpu: the GPU they were tuned on; None where none was needed (RTX).
        multiprocessors: of that GPU.
        compute_capabilities: that they run on; empty for the library's own choice (RTX).
        precision: of the graphs.
        batch: smallest, usual and largest batch.
        weights_sha256: of the files the graphs read their weights from.
        workspace: bytes of scratch memory the builder was told to use at most, if it was.
        optimization_level: 0 to 5, if one was asked for.
        engines: by graph: ``segment_0``..., ``baseline``.
        warnings: what TensorRT said.
    """

    schema_version: int
    library: str
    version: str
    platform: str
    gpu: str | None
    multiprocessors: int | None
    compute_capabilities: tuple[str, ...]
    precision: str
    batch: tuple[int, int, int]
    weights_sha256: tuple[str, ...]
    workspace: int | None
    optimization_level: int | None
    engines: dict[str, EngineSpec]
    warnings: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse what no build writes."""
        if self.library not in MODULES:
            raise ValueError(f"library must be one of {', '.join(MODULES)}: {self.library!r}")
        if (self.gpu is None) != (self.multiprocessors is None):
            raise ValueError("gpu and multiprocessors go together")

    @property
    def tag(self) -> str:
        """Name of the folder: one per device, version and precision."""
        if self.gpu is None:
            chosen = "".join(f"-sm{c.replace('.', '')}" for c in self.compute_capabilities)
            return f"rtx{chosen}-{self.version}-{self.precision}"
        device = re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-")
        device = re.sub(r"^nvidia-(jetson-)?|-developer-kit$", "", device)
        capability = "".join(self.compute_capabilities).replace(".", "")
        return (
            f"{device}-{self.multiprocessors}mp-sm{capability}-{self.library}-{self.version}-"
            f"{self.precision}"
        )

    def fault(self, bundle: Bundle) -> str | None:
        """What keeps the engines from being this bundle's, if anything does."""
        weights = tuple(file.sha256 for file in bundle.manifest.weights)
        graphs = graphs_of(bundle)
        missing = [name for name in graphs if name not in self.engines]
        if missing:
            return f"incomplete, {missing[0]} is missing"
        same = all(self.engines[n].onnx_sha256 == g.graph.sha256 for n, g in graphs.items())
        if (self.weights_sha256, self.batch, same) != (weights, bundle.manifest.batch, True):
            return "compiled from other graphs: the bundle is newer, or files were swapped"
        return None


def platform_name() -> str:
    """This system and processor, as ``Build.platform``."""
    return f"{platform.system().lower()}-{platform.machine().lower()}"


def graphs_of(bundle: Bundle) -> dict[str, GraphSpec]:
    """Every graph by the name its engine has, segments first."""
    segments = {f"segment_{i}": s.spec for i, s in enumerate(bundle.manifest.segments)}
    return segments | {"baseline": bundle.manifest.baseline}


def write_build(folder: Path, build: Build) -> None:
    """Write ``build.json`` whole or not at all."""
    write_json(folder / BUILD, to_json(build))


def read_build(folder: Path) -> Build:
    """Read ``build.json``.

    Raises:
        BundleError: missing, damaged, or of another schema version.
    """
    path = folder / BUILD
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from None
    return loads(
        Build,
        text,
        version=BUILD_SCHEMA,
        limit=_MAX_BYTES,
        where=str(path),
        cure=rebuild(folder),
        error=BundleError,
    )


def find_builds(root: Path) -> list[tuple[Path, Build | BundleError]]:
    """Every build of a bundle by folder name, or what is wrong with its record."""
    top = root.resolve() / ENGINES
    found: list[tuple[Path, Build | BundleError]] = []
    for folder in sorted(path.parent for path in (root / ENGINES).glob(f"*/{BUILD}")):
        try:
            if not folder.resolve().is_relative_to(top):
                raise BundleError(f"{folder} leaves the bundle")
            found.append((folder, read_build(folder)))
        except BundleError as error:
            found.append((folder, error))
    return found


def read_engine(folder: Path, build: Build, key: str, graph: GraphSpec) -> bytes:
    """The engine of one graph, checked against the record and the bundle.

    Raises:
        BundleError: missing, not the file that was built, or built from another graph.
    """
    spec = build.engines.get(key)
    if spec is None:
        raise BundleError(f"{folder} has no engine of {key}; {rebuild(folder)}")
    path = folder / spec.file
    if spec.onnx_sha256 != graph.graph.sha256:
        raise BundleError(
            f"{path} was compiled from another graph than {graph.graph.file}; {rebuild(folder)}"
        )
    try:
        if path.is_symlink() or not (path.is_file() or not path.exists()):
            raise BundleError(f"{path} is no plain file; {rebuild(folder)}")
        data = path.read_bytes() if path.stat().st_size == spec.bytes else b""
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}; {rebuild(folder)}") from None
    if hashlib.sha256(data).hexdigest() != spec.sha256:
        raise BundleError(
            f"{path} is not the engine that was built: expected {spec.bytes} bytes with the hash "
            f"in {BUILD}, found others; copy it again, or {rebuild(folder)}"
        )
    return data


def rebuild(folder: Path) -> str:
    """The command that makes the engines in ``folder`` anew."""
    return f"run: lgvit-edge build {folder.parent.parent}"
