"""``build_engines``: compiles those engines of a bundle that are not up to date, and checks them.

Never imports torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lgvit_edge._support.files import locked
from lgvit_edge._support.outputs import write_json
from lgvit_edge._support.pace import Pace, in_words
from lgvit_edge.bundle import builds as engines
from lgvit_edge.bundle.builds import Build, EngineSpec
from lgvit_edge.bundle.codec import to_json
from lgvit_edge.bundle.directory import Bundle, check_writable, open_bundle, tell_if_signed
from lgvit_edge.bundle.layout import BUILD, ENGINES, LOCK, REJECTED
from lgvit_edge.bundle.manifest import ACCUMULATION, GraphSpec, Manifest
from lgvit_edge.errors import (
    BackendError,
    BuildError,
    BundleError,
    MissingDependency,
    ParityError,
    UsageError,
)
from lgvit_edge.export.tensorrt.apart import Job, compile_engine
from lgvit_edge.export.tensorrt.builder import BuilderOptions, BuildTask, EngineBuilder
from lgvit_edge.machine import jetson
from lgvit_edge.machine.gpu import find_gpu, no_gpu
from lgvit_edge.machine.preflight import fits, preflight
from lgvit_edge.machine.tensorrt import TensorRT
from lgvit_edge.runtime import Session, TensorRTOptions
from lgvit_edge.runtime.backends.base import ChainOptions
from lgvit_edge.runtime.backends.registry import backend_of, refusal
from lgvit_edge.runtime.backends.tensorrt_engine import choose_build

Progress = Callable[[int, int, str], None]
LIBRARIES = {"jetson": "tensorrt", "rtx": "tensorrt-rtx"}  # by target
TIMING_CACHE = "timing.cache"
STAGING = ".partial"


@dataclass(frozen=True)
class Built:
    """Holds the result of ``build_engines``."""

    folder: Path
    build: Build  # the record of the engines in it
    compiled: tuple[str, ...]  # names of the engines compiled now; the others were up to date
    seconds: float  # for compiling
    max_difference: float | None  # of logits, from PyTorch's samples; None if not run here
    not_run: str  # why this machine cannot run the engines; empty where it can


def build_engines(
    bundle: str | Path,
    *,
    library: str | None = None,
    options: BuilderOptions | None = None,
    force: bool = False,
    tolerance: float | None = None,
    cuda_graphs: bool = True,
    device: str | None = None,
    progress: Progress = lambda done, total, text: None,
    note: Callable[[str], None] = lambda text: None,
) -> Built:
    """Compile every segment and the baseline into ``engines/<tag>/``, and check them if they run.

    New engines are written to a separate folder and moved together, the record last. An interrupted
    build continues where it stopped, and the old engines stay usable until the end.

    Args:
        bundle: the directory ``lgvit-edge export`` wrote.
        library: ``tensorrt`` or ``tensorrt-rtx``; None for the one of the bundle's target.
        options: None for the defaults.
        force: compile all engines, even those up to date.
        tolerance: largest difference of logits from PyTorch's, which is recorded with the engines;
            None for the one recorded, else the bundle's. Engines that an earlier call rejected are
            not compiled again.
        cuda_graphs: check the engines as recorded CUDA graphs, as sessions run them by default.
        device: the GPU that compiles and checks, as for ``Session.open``: ``cuda:1`` for the
            second; None for the first.
        progress: called with engines done, engines in all, and the present step, again every
            second. TensorRT's phase, and the time left as soon as engines that were compiled tell
            it, follow a colon.
        note: called at the start with what building takes, with what makes building or running
            slow on this Jetson, and before the engines are checked.

    Raises:
        UsageError: an option is invalid, or the bundle is for CPUs.
        BundleError: the bundle is damaged.
        MissingDependency: the library is not installed.
        BackendError: this machine cannot compile for the target, or not run what it should.
        BuildError: an engine could not be compiled, or another build is writing there.
        ParityError: the engines' logits differ from PyTorch's; names the segment and what to try.
            Their record is kept as ``build.rejected.json``, and nobody runs them.
    """
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise UsageError(f"the tolerance must be a positive number, found {tolerance}")
    index = gpu_index(device)
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
    gpu = find_gpu(index)
    if not trt.is_rtx and gpu is None:
        raise BackendError(
            "TensorRT compiles on the GPU that will run the engines, and there is no NVIDIA GPU or "
            "driver here; copy the bundle to that device and run there: lgvit-edge build "
            f"{opened.root.name} (an RTX card needs none: export with --target rtx)"
        )
    if gpu is not None and not trt.runs_on(gpu):
        note(
            f"{library} {trt.version} compiles for compute capabilities "
            f"{', '.join(trt.capabilities)}: its engines do not run on this machine's {gpu.name} "
            f"({gpu.compute_capability}); for this GPU add --builder tensorrt"
        )
    options = options or BuilderOptions()
    EngineBuilder(trt, options)  # takes the options, or says why not
    tuned_on = None if trt.is_rtx else gpu  # RTX engines are not tied to one GPU
    capabilities = (tuned_on.compute_capability,) if tuned_on else options.compute_capabilities
    planned = Build(
        schema_version=engines.BUILD_SCHEMA,
        library=library,
        version=trt.version,
        platform=engines.platform_name(),
        gpu=tuned_on.name if tuned_on else None,
        multiprocessors=tuned_on.multiprocessors if tuned_on else None,
        compute_capabilities=capabilities,
        precision=opened.manifest.precision,
        batch=opened.manifest.batch,
        weights_sha256=tuple(file.sha256 for file in opened.manifest.weights),
        workspace=options.workspace,
        optimization_level=options.optimization_level,
        tolerance=None,
        engines={},
        warnings=(),
    )
    folder = opened.root / ENGINES / planned.tag
    graphs = engines.graphs_of(opened)
    compiled: tuple[str, ...] = ()
    if tolerance is not None and not force and (folder / REJECTED).exists():
        check_writable(opened.root)
        with _locked(folder):
            _take_back(folder, planned, graphs)
    if not force and len(_current(folder, planned, graphs)) == len(graphs):
        build = engines.read_build(folder)
    else:
        check_writable(opened.root)
        with _locked(folder):
            build, compiled = _build_all(
                opened, folder, planned, options, force, index, progress, note
            )
        tell_if_signed(opened.root)
    accepted = build.tolerance if tolerance is None else tolerance
    difference, not_run = _verify(folder, build, accepted, cuda_graphs, device, note)
    if difference is not None and accepted != build.tolerance:
        # Without the record the next check would reject them.
        build = dataclasses.replace(build, tolerance=accepted)
        with _locked(folder):
            write_json(folder / BUILD, to_json(build))
    seconds = time.perf_counter() - start
    return Built(folder, build, compiled, seconds, difference, not_run)


def gpu_index(device: str | None) -> int:
    """Return the number of the GPU that compiles and checks: that of ``device``, else 0.

    Raises:
        UsageError: ``device`` is no GPU's name.
        BackendError: it names a further GPU than there are. None at all is enough for RTX.
    """
    options = ChainOptions(device=device)
    if (fault := refusal(backend_of("tensorrt"), options)) is not None:
        raise UsageError(fault)
    if options.gpu and find_gpu(options.gpu) is None:
        raise BackendError(no_gpu(options.gpu))
    return options.gpu


def check_graphs(bundle: str | Path) -> str:
    """Check that TensorRT-RTX's parser, whose version is returned, reads every graph of a bundle.

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
    """Check a Jetson's software for known problems, before minutes of compiling."""
    board = jetson.detect()
    if board is None:
        return
    findings = preflight(board)
    if board.jetpack is not None:
        opset, precision = manifest.opset, manifest.precision
        findings += fits(board.jetpack, opset=opset, precision=precision, tensorrt=board.tensorrt)
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
    options: BuilderOptions,
    force: bool,
    gpu: int,
    progress: Progress,
    note: Callable[[str], None],
) -> tuple[Build, tuple[str, ...]]:
    graphs, staging, cache = engines.graphs_of(bundle), folder / STAGING, folder / TIMING_CACHE
    current = {} if force else _current(folder, planned, graphs)
    missing = {name: graph for name, graph in graphs.items() if name not in current}
    ready = _current(staging, planned, missing)
    if not ready:
        shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(exist_ok=True)
    options = _capped(options)
    if todo := {name: graph for name, graph in missing.items() if name not in ready}:
        note(_needs(folder, planned, todo, options))
    # TensorRT 8 chooses types itself: the largest segment shows whether that made it faster.
    largest = max(list(graphs)[:-1], key=lambda name: graphs[name].macs)
    build = dataclasses.replace(planned, engines=ready)
    pace = Pace(sum(graph.macs for graph in todo.values()))
    for known in (_before(folder, planned, todo), {n: spec.seconds for n, spec in ready.items()}):
        if known:
            pace.learn(sum(graphs[name].macs for name in known), sum(known.values()))
    for done, name in enumerate(missing):
        if name in ready:
            continue
        pace.begin(graphs[name].macs)

        def phase(text: str, done: int = done, name: str = name) -> None:
            how = ", ".join(filter(None, (str(pace), text.lower())))
            progress(done, len(missing), f"{name}: {how}" if how else name)

        phase("")
        task = dataclasses.replace(_task(bundle, name), timed=name == largest)
        job = Job(planned.library, options, task, staging / f"{name}.engine", cache, gpu)
        made = compile_engine(job, phase)
        onnx = graphs[name].graph.sha256
        spec = EngineSpec(job.engine.name, made.sha256, onnx, made.bytes, made.seconds)
        said = (*made.findings, *build.warnings, *made.warnings)  # TensorRT may say much
        warnings = tuple(dict.fromkeys(said))
        build = dataclasses.replace(build, engines=build.engines | {name: spec}, warnings=warnings)
        write_json(staging / BUILD, to_json(build))
    progress(len(missing), len(missing), "")
    for spec in build.engines.values():
        (staging / spec.file).replace(folder / spec.file)
    complete = {name: (current | build.engines)[name] for name in graphs}
    build = dataclasses.replace(build, engines=complete)
    write_json(folder / BUILD, to_json(build))
    (folder / REJECTED).unlink(missing_ok=True)  # its engines were replaced
    shutil.rmtree(staging)
    return build, tuple(name for name in missing if name not in ready)


def _capped(options: BuilderOptions) -> BuilderOptions:
    """Limit the memory that compiling takes on a Jetson, whose GPU has no memory of its own.

    The limits are not recorded, because what is free differs at the next build.
    """
    board = jetson.detect()
    if board is None or board.available_gb is None:
        return options
    free = int(board.available_gb * 1e9)
    workspace = free // 4 if options.workspace is None else options.workspace
    return dataclasses.replace(options, workspace=workspace, tactic_memory=free * 3 // 4)


def _needs(
    folder: Path, planned: Build, graphs: dict[str, GraphSpec], options: BuilderOptions
) -> str:
    """Say what compiling these graphs will take, as far as it is known."""
    size = 4 if planned.precision == "fp32" else 2
    # The graph's weights and the engine's: both are in memory when an engine is done.
    weights = 2 * size * max(graph.parameters for graph in graphs.values())
    scratch = ""
    if options.workspace is not None:
        scratch = f", and up to {options.workspace / 1e6:.0f} MB of scratch memory (--workspace-mb)"
    known = sum(_before(folder, planned, graphs).values())
    took = f"; they took {in_words(known)} before" if known else ""
    return (
        f"compiling {len(graphs)} engines, one after the other: the largest needs at least "
        f"{weights / 1e6:.1f} MB for its weights, as read and as compiled{scratch}{took}"
    )


def _before(folder: Path, planned: Build, graphs: dict[str, GraphSpec]) -> dict[str, float]:
    """Return the seconds that each of these engines took in the last build here, which was alike.

    Empty where there was none. Other graphs of the same name are taken for alike: a model that was
    trained again. Levels of optimization are not: kernels are tried for minutes, or hardly.
    """
    for name in (BUILD, REJECTED):
        with contextlib.suppress(BundleError):
            record = engines.read_build(folder, name)
            alike = record.optimization_level == planned.optimization_level
            if alike and graphs.keys() <= record.engines.keys():
                return {name: record.engines[name].seconds for name in graphs}
    return {}


def _verify(
    folder: Path,
    build: Build,
    tolerance: float | None,
    cuda_graphs: bool,
    device: str | None,
    note: Callable[[str], None],
) -> tuple[float | None, str]:
    """Compare logits of the engines in ``folder`` with PyTorch's, on the bundle's samples.

    Return the largest difference, as ``Session.check_parity`` gives it, or None and why the engines
    could not be run here. The record of engines that differ is renamed, so they are not loaded.
    """
    root, tag = folder.parent.parent, folder.name
    gpu = ChainOptions(device=device).gpu
    if find_gpu(gpu) is None:
        return None, "there is no NVIDIA GPU here"
    opened = open_bundle(root, verify=False)
    try:
        choose_build(opened, tag, gpu)
    except BackendError as error:  # compiled for another GPU than the one here
        return None, str(error)
    note(f"checking the logits of {len(build.engines)} engines on this GPU")
    try:
        options = TensorRTOptions(engines=tag, cuda_graphs=cuda_graphs)
        session = Session.open(root, backend="tensorrt", device=device, tensorrt=options)
    except MissingDependency as error:
        return None, str(error)
    try:
        with session:
            return session.check_parity(tolerance), ""
    except ParityError as error:
        with _locked(folder):
            # Not the engines of another build, which may have come meanwhile.
            if engines.read_build(folder) == build:
                (folder / BUILD).replace(folder / REJECTED)
        on = f" --device {device}" if device else ""
        raise ParityError(
            f"{error}. The record is kept as {folder / REJECTED}.{_finer(build, opened.manifest)} "
            f"If the accuracy suffices nevertheless: lgvit-edge build {root}{on} --tolerance "
            f"NUMBER, then measure it: lgvit-edge bench --engines {root}{on} --data DIR"
        ) from None


def _finer(build: Build, manifest: Manifest) -> str:
    """Say how to compute more in float32, by what was not done yet."""
    if build.precision == "fp32":
        return ""
    kept = manifest.fp32_islands
    ways = [] if {"layernorm", "softmax"} <= set(kept) else ["--keep-fp32 layernorm,softmax"]
    typed = TensorRT(build.library).strongly_typed
    if build.precision == "fp16" and typed and ACCUMULATION not in kept:
        ways.append("--fp32-accumulate")
    listed = f"{' '.join(ways)}, or with " if ways else ""
    return f" To compute more in float32, export again with {listed}--precision fp32."


def _take_back(folder: Path, planned: Build, graphs: dict[str, GraphSpec]) -> None:
    """Make rejected engines that are otherwise up to date the current ones, to be judged anew."""
    rejected = _current(folder, planned, graphs, REJECTED)
    if len(rejected) == len(graphs) and not (folder / BUILD).exists():
        (folder / REJECTED).replace(folder / BUILD)


def _task(bundle: Bundle, name: str) -> BuildTask:
    manifest, graph = bundle.manifest, engines.graphs_of(bundle)[name]
    quantized = manifest.quantized(None if name == "baseline" else int(name.rpartition("_")[2]))
    dtype, batch = manifest.hidden_dtype, manifest.batch
    accumulate = ACCUMULATION in manifest.fp32_islands
    return BuildTask(bundle.path(graph.graph), graph, dtype, quantized, batch, accumulate)


def _current(
    folder: Path, planned: Build, graphs: dict[str, GraphSpec], record_file: str = BUILD
) -> dict[str, EngineSpec]:
    """Return the intact engines in ``folder`` that were compiled as planned from these graphs."""
    try:
        record = engines.read_build(folder, record_file)
    except BundleError:
        return {}
    if dataclasses.replace(record, engines={}, warnings=(), tolerance=None) != planned:
        return {}
    current = {}
    for name, graph in graphs.items():
        with contextlib.suppress(BundleError):
            engines.read_engine(folder, record, name, graph)
            current[name] = record.engines[name]
    return current


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder against a second build; the lock ends with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / LOCK):
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
    """Remove the staging folder, and the folder itself, where nothing was compiled."""
    staging = folder / STAGING
    if staging.is_dir() and not any(staging.glob("*.engine")):
        shutil.rmtree(staging)
    if {path.name for path in folder.iterdir()} == {LOCK}:
        (folder / LOCK).unlink()
        folder.rmdir()
        folder.parent.rmdir()
