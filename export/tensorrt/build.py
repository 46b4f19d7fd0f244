"""``build_engines``: compile what is not current of a bundle's engines, and run them.

Never imports torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lgvit_edge._support.files import locked, replacing
from lgvit_edge.bundle import builds as engines
from lgvit_edge.bundle.builds import Build, EngineSpec
from lgvit_edge.bundle.directory import ENGINES, Bundle, open_bundle
from lgvit_edge.bundle.manifest import GraphSpec, Manifest
from lgvit_edge.errors import BackendError, BuildError, BundleError, UsageError
from lgvit_edge.export.tensorrt.builder import BuilderOptions, BuildTask, EngineBuilder
from lgvit_edge.export.tensorrt.verify import verify
from lgvit_edge.machine import jetson
from lgvit_edge.machine.gpu import find_gpu
from lgvit_edge.machine.preflight import fits, preflight
from lgvit_edge.machine.tensorrt import TensorRT

Progress = Callable[[int, int, str], None]
LIBRARIES = {"jetson": "tensorrt", "rtx": "tensorrt-rtx"}  # by target
TIMING_CACHE = "timing.cache"
STAGING = ".partial"


@dataclass(frozen=True)
class Built:
    """What ``build_engines`` did.

    Attributes:
        folder: where the engines are.
        build: the record.
        compiled: names of the engines compiled now; the others were current.
        seconds: what compiling took.
        max_difference: largest difference of logits from PyTorch's on the bundle's samples; None
            where this machine cannot run the engines.
        not_run: why it cannot; empty where it can.
    """

    folder: Path
    build: Build
    compiled: tuple[str, ...]
    seconds: float
    max_difference: float | None
    not_run: str


def build_engines(
    bundle: str | Path,
    *,
    library: str | None = None,
    options: BuilderOptions | None = None,
    force: bool = False,
    progress: Progress = lambda done, total, text: None,
    note: Callable[[str], None] = lambda text: None,
) -> Built:
    """Compile every segment and the baseline into ``engines/<tag>/``, and run what runs here.

    New engines gather in a folder of their own and take their places together, the record last: an
    interrupted build goes on where it stopped, and engines that worked stay until then.

    Args:
        bundle: the directory ``lgvit-edge export`` wrote.
        library: ``tensorrt`` or ``tensorrt-rtx``; None for the bundle's target's.
        options: how.
        force: compile all, current or not.
        progress: called with engines done, engines in all, and what is being done.
        note: called with what makes building or running slow on this Jetson, before it starts.

    Raises:
        UsageError: an option means nothing, or the bundle is for CPUs.
        BundleError: the bundle is damaged.
        MissingDependency: the library is not installed.
        BackendError: this machine cannot compile for the target, or not run what it should.
        BuildError: an engine could not be compiled, or another build is writing there.
        ParityError: the engines compute something else than PyTorch did; nobody will load them.
    """
    start = time.perf_counter()
    opened = open_bundle(bundle)
    if opened.manifest.target == "cpu":
        raise UsageError(
            f"{bundle} was exported for CPUs, whose graphs TensorRT does not read; export it again "
            "with --target rtx or --target jetson"
        )
    if library is None and opened.manifest.target == "jetson" and jetson.detect() is None:
        raise BackendError(
            "the bundle is for a Jetson, whose engines are compiled on it, and this machine is "
            f"none; copy {opened.root} there and run: lgvit-edge build {opened.root.name} (for an "
            "NVIDIA GPU of this machine, add: --builder tensorrt)"
        )
    library = library or LIBRARIES[opened.manifest.target]
    if library == "tensorrt":
        _check_board(opened.manifest, note)
    trt = TensorRT(library)
    gpu = find_gpu()
    if not trt.is_rtx and gpu is None:
        raise BackendError(
            "TensorRT compiles on the GPU that will run the engines, and there is no NVIDIA GPU or "
            "driver here; copy the bundle to that device and run there: lgvit-edge build "
            f"{opened.root.name} (an RTX card needs none: export with --target rtx)"
        )
    options = options or BuilderOptions()
    planned = Build(
        schema_version=engines.BUILD_SCHEMA,
        library=library,
        version=trt.version,
        platform=engines.platform_name(),
        gpu=None if trt.is_rtx or gpu is None else gpu.name,
        multiprocessors=None if trt.is_rtx or gpu is None else gpu.multiprocessors,
        compute_capabilities=(
            options.compute_capabilities if trt.is_rtx or gpu is None else (gpu.compute_capability,)
        ),
        precision=opened.manifest.precision,
        batch=opened.manifest.batch,
        weights_sha256=tuple(file.sha256 for file in opened.manifest.weights),
        workspace=options.workspace,
        optimization_level=options.optimization_level,
        engines={},
        warnings=(),
    )
    folder = opened.root / ENGINES / planned.tag
    graphs = engines.graphs_of(opened)
    compiled: tuple[str, ...] = ()
    if not force and len(_current(folder, planned, graphs)) == len(graphs):
        build = engines.read_build(folder)
    else:
        with _locked(folder):
            build, compiled = _build_all(opened, folder, planned, trt, options, force, progress)
    return Built(folder, build, compiled, time.perf_counter() - start, *verify(folder))


def default_workspace() -> int | None:
    """A quarter of the free memory on a Jetson, whose CPU and GPU share it; else no cap."""
    found = jetson.detect()
    if found is None or found.available_gb is None:
        return None
    return int(found.available_gb * 1e9) // 4


def check_graphs(bundle: str | Path) -> str:
    """Let TensorRT-RTX's parser read every graph of a bundle; nothing is compiled.

    Returns:
        The parser's version.

    Raises:
        MissingDependency: TensorRT-RTX is not installed.
        BuildError: it refuses a graph.
    """
    opened = open_bundle(bundle)
    trt = TensorRT("tensorrt-rtx")
    builder = EngineBuilder(trt, BuilderOptions())
    for name in engines.graphs_of(opened):
        builder.check(_task(opened, name))
    return trt.version


def _check_board(manifest: Manifest, note: Callable[[str], None]) -> None:
    """On a Jetson: what is known to go wrong, before minutes are spent."""
    board = jetson.detect()
    if board is None:
        return
    findings = preflight(board)
    if board.jetpack is not None:
        findings += fits(
            board.jetpack,
            opset=manifest.opset,
            precision=manifest.precision,
            tensorrt=board.tensorrt,
        )
    problems = []
    for finding in findings:
        text = "; ".join(filter(None, (finding.text, finding.cure)))
        if finding.level == "problem":
            problems.append(text)
        elif finding.level == "note":
            note(text)
    if problems:
        raise BackendError(f"this Jetson cannot compile the bundle: {'. '.join(problems)}")


def _build_all(
    bundle: Bundle,
    folder: Path,
    planned: Build,
    trt: TensorRT,
    options: BuilderOptions,
    force: bool,
    progress: Progress,
) -> tuple[Build, tuple[str, ...]]:
    graphs, staging, cache = engines.graphs_of(bundle), folder / STAGING, folder / TIMING_CACHE
    keep = {} if force else _current(folder, planned, graphs)
    missing = {name: graph for name, graph in graphs.items() if name not in keep}
    ready = _current(staging, planned, missing)
    if not ready:
        shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(exist_ok=True)
    # Not part of the record unless asked for: free memory is another one at the next build.
    effective = dataclasses.replace(options, workspace=options.workspace or default_workspace())
    builder = EngineBuilder(trt, effective, timing_cache=_read(cache))
    build = dataclasses.replace(planned, engines=ready)
    for done, name in enumerate(missing):
        progress(done, len(missing), name)
        if name in ready:
            continue

        def phase(text: str, done: int = done, name: str = name) -> None:
            progress(done, len(missing), f"{name}: {text.lower()}")

        began = time.perf_counter()
        plan = builder.build(_task(bundle, name), progress=phase)
        spec = _write(staging / f"{name}.engine", plan, graphs[name], time.perf_counter() - began)
        said = dict.fromkeys([*build.warnings, *trt.take_log("WARNING")])
        build = dataclasses.replace(
            build, engines=build.engines | {name: spec}, warnings=tuple(said)
        )
        engines.write_build(staging, build)
        if builder.timing_cache and not trt.is_rtx:
            with replacing(cache) as partial:
                partial.write_bytes(builder.timing_cache)
    progress(len(missing), len(missing), "")
    for spec in build.engines.values():
        (staging / spec.file).replace(folder / spec.file)
    made = {name: (keep | build.engines)[name] for name in graphs}
    build = dataclasses.replace(build, engines=made)
    engines.write_build(folder, build)
    shutil.rmtree(staging)
    return build, tuple(name for name in missing if name not in ready)


def _task(bundle: Bundle, name: str) -> BuildTask:
    manifest, graph = bundle.manifest, engines.graphs_of(bundle)[name]
    index = None if name == "baseline" else int(name.rpartition("_")[2])
    return BuildTask(
        onnx=bundle.path(graph.graph),
        graph=graph,
        dtype=manifest.hidden_dtype,
        quantized=manifest.quantized(index),
        batch=manifest.batch,
    )


def _current(folder: Path, planned: Build, graphs: dict[str, GraphSpec]) -> dict[str, EngineSpec]:
    """Engines in ``folder`` that were compiled just so from just these graphs, and are intact."""
    try:
        found = engines.read_build(folder)
    except BundleError:
        return {}
    if dataclasses.replace(found, engines={}, warnings=()) != planned:
        return {}
    keep = {}
    for name, graph in graphs.items():
        with contextlib.suppress(BundleError):
            engines.read_engine(folder, found, name, graph)
            keep[name] = found.engines[name]
    return keep


def _write(path: Path, plan: bytes, graph: GraphSpec, seconds: float) -> EngineSpec:
    with replacing(path) as partial:
        partial.write_bytes(plan)
    return EngineSpec(
        file=path.name,
        sha256=hashlib.sha256(plan).hexdigest(),
        onnx_sha256=graph.graph.sha256,
        bytes=len(plan),
        seconds=round(seconds, 3),
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second build out; the lock goes with the process, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock"):
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    _tidy(folder)
    except BlockingIOError as holder:
        raise BuildError(f"another build ({holder}) is writing {folder}; wait for it") from None
    except OSError as error:
        raise BuildError(f"cannot write {folder}: {error.strerror or error}") from error


def _tidy(folder: Path) -> None:
    """Where nothing was compiled, leave no trace."""
    staging = folder / STAGING
    if staging.is_dir() and not any(staging.glob("*.engine")):
        shutil.rmtree(staging)
    if {path.name for path in folder.iterdir()} == {".lock"}:
        (folder / ".lock").unlink()
        folder.rmdir()
        folder.parent.rmdir()
