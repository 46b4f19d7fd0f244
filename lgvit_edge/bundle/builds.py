"""Compiled engines of a bundle, and the record ``engines/<tag>/build.json`` that describes them.

One bundle can serve several devices, each with its own engines. The record says what the engines
were compiled from and for, so that a mismatch is reported before TensorRT reads a file.
"""

from __future__ import annotations

import hashlib
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from lgvit_edge._support.files import reading
from lgvit_edge.bundle.codec import loads
from lgvit_edge.bundle.directory import Bundle
from lgvit_edge.bundle.layout import BUILD, ENGINES
from lgvit_edge.bundle.manifest import GraphPart, GraphSpec
from lgvit_edge.errors import BundleError, in_one_line
from lgvit_edge.machine.tensorrt import MODULES

BUILD_SCHEMA = 1
_MAX_BYTES = 4 * 1024 * 1024
_MAX_ENGINE = 2**34
_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,120}")


@dataclass(frozen=True)
class EngineSpec:
    """One engine, and the graph it was compiled from."""

    file: str  # name beside ``build.json``; a plain TensorRT plan
    sha256: str
    onnx_sha256: str  # hash of the graph
    bytes: int
    seconds: float  # that compiling took

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.file) or self.file.startswith("."):
            raise ValueError(f"engine file {self.file!r} must be a plain name")
        if not 0 <= self.bytes <= _MAX_ENGINE:
            raise ValueError(f"bytes of {self.file!r} must be 0..{_MAX_ENGINE}")


@dataclass(frozen=True)
class Build:
    """The record ``build.json``: all engines of one build, and what they were compiled for."""

    schema_version: int
    library: str  # ``tensorrt`` or ``tensorrt-rtx``
    version: str  # of the library; engines of another one do not load
    platform: str  # system and processor, such as ``linux-aarch64``
    gpu: str | None  # that engines were tuned on; None if none was needed (RTX)
    multiprocessors: int | None  # number in that GPU
    compute_capabilities: tuple[str, ...]  # to run on; empty for the library's own choice (RTX)
    precision: str
    batch: tuple[int, int, int]
    weights_sha256: tuple[str, ...]  # hashes of the graphs' weight files
    workspace: int | None  # limit of the builder's scratch memory in bytes, if one was set
    optimization_level: int | None  # 0 to 5, if one was set
    # That somebody accepted for these engines: the difference of logits; None for the bundle's.
    tolerance: float | None
    engines: dict[str, EngineSpec]  # by graph: ``segment_0``..., ``baseline``
    warnings: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.library not in MODULES:
            raise ValueError(f"library must be one of {', '.join(MODULES)}: {self.library!r}")
        if (self.gpu is None) != (self.multiprocessors is None):
            raise ValueError("gpu and multiprocessors go together")

    @property
    def tag(self) -> str:
        """Return the name of the build's folder: one per device, version and precision."""
        if self.gpu is None:
            listed = "".join(f"-sm{c.replace('.', '')}" for c in self.compute_capabilities)
            return f"rtx{listed}-{self.version}-{self.precision}"
        device = re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-")
        device = device.removeprefix("nvidia-")
        capability = "".join(self.compute_capabilities).replace(".", "")
        return (
            f"{device}-{self.multiprocessors}mp-sm{capability}-{self.library}-{self.version}-"
            f"{self.precision}"
        )

    def fault(self, bundle: Bundle) -> str | None:
        """Return why the engines do not belong to this bundle; None if they do."""
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
    """Return this system and processor in the form of ``Build.platform``."""
    return f"{platform.system().lower()}-{platform.machine().lower()}"


def graphs_of(bundle: Bundle) -> dict[str, GraphSpec]:
    """Return every graph of a bundle by its engine's name, segments first."""
    *segments, baseline = bundle.manifest.graphs
    return {f"segment_{i}": spec for i, spec in enumerate(segments)} | {"baseline": baseline}


def parts_of(bundle: Bundle) -> dict[str, tuple[GraphPart, GraphPart]]:
    """Return the graphs of blocks and head of every segment that has them, by its name."""
    named = ((f"segment_{i}", s.part_graphs) for i, s in enumerate(bundle.manifest.segments))
    return {name: (graphs[0], graphs[1]) for name, graphs in named if graphs}


def read_build(folder: Path, name: str = BUILD) -> Build:
    """Read ``build.json``, or raise ``BundleError``: missing, damaged or of another schema."""
    path = folder / name
    try:
        with reading(path) as file:
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
    """Return every build of a bundle, sorted by folder, or the error in its record."""
    top = root.resolve() / ENGINES
    builds: list[tuple[Path, Build | BundleError]] = []
    for folder in sorted(path.parent for path in (root / ENGINES).glob(f"*/{BUILD}")):
        try:
            if not folder.resolve().is_relative_to(top):
                raise BundleError(f"{folder} leaves the bundle")
            builds.append((folder, read_build(folder)))
        except BundleError as error:
            builds.append((folder, error))
        except (OSError, RuntimeError) as error:  # a circle of links
            builds.append((folder, BundleError(f"{folder} cannot be read: {in_one_line(error)}")))
    return builds


def read_engine(folder: Path, build: Build, key: str, graph: GraphSpec) -> bytes:
    """Read the engine of one graph and check it against the record and the bundle.

    Raises:
        BundleError: it is missing, not the file that was built, or built from another graph.
    """
    spec, cure = build.engines.get(key), rebuild(folder)
    if spec is None:
        raise BundleError(f"{folder} has no engine of {key}; {cure}")
    path, onnx = folder / spec.file, graph.graph
    if spec.onnx_sha256 != onnx.sha256:
        raise BundleError(f"{path} was compiled from another graph than {onnx.file}; {cure}")
    try:
        if path.is_symlink() or not (path.is_file() or not path.exists()):
            raise BundleError(f"{path} is no plain file; {cure}")
        data = path.read_bytes() if path.stat().st_size == spec.bytes else b""
    except (OSError, MemoryError) as error:
        raise BundleError(f"cannot read {path}: {in_one_line(error)}; {cure}") from None
    if hashlib.sha256(data).hexdigest() != spec.sha256:
        raise BundleError(
            f"{path} is not the engine that was built: expected {spec.bytes} bytes with the hash "
            f"in {BUILD}, found others; copy it again, or {cure}"
        )
    return data


def rebuild(folder: Path) -> str:
    """Return the command that compiles the engines in ``folder`` again."""
    return f"run: lgvit-edge build {folder.parent.parent}"
