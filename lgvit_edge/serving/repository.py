"""Writes a bundle as a model repository of NVIDIA Triton."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from lgvit_edge._support.files import locked
from lgvit_edge._support.numbers import whole
from lgvit_edge._support.outputs import PARTIAL, check_folder, followed, named
from lgvit_edge.bundle.builds import find_builds, graphs_of, read_engine
from lgvit_edge.bundle.directory import Bundle, open_bundle
from lgvit_edge.bundle.layout import BUILD, ENGINES, MANIFEST, SIGNATURE
from lgvit_edge.errors import BundleError, UsageError
from lgvit_edge.runtime.backends.registry import AUTO, backend_of, refusal
from lgvit_edge.runtime.precision import bundle_policy
from lgvit_edge.serving import segments
from lgvit_edge.serving.contract import (
    BUNDLE,
    ENCODED,
    HIDDEN,
    IMAGE,
    OUTPUTS,
    SEGMENTS,
    graph_model,
)
from lgvit_edge.serving.options import RunParameters
from lgvit_edge.serving.pbtxt import Word, dumps

CONFIG, VERSION = "config.pbtxt", "1"
LAYOUTS = ("session", "segments")
_LONGEST = 10_000_000
_MODEL = files("lgvit_edge.serving") / "model.py.txt"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class ServingOptions:
    """Holds what the models in Triton are to be.

    Attributes:
        name: of the model that clients call.
        layout: ``session``, one model that runs the whole bundle; or ``segments``, a model of
            Triton's own backend for each segment, and one that calls them.
        run: how the bundle is run.
        instances: processes that answer requests at once, each with a session of its own.
        queue_delay_us: microseconds that a request may wait for others to make a batch with.
    """

    name: str = "lgvit"
    layout: str = "session"
    run: RunParameters = field(default_factory=RunParameters)
    instances: int = 1
    queue_delay_us: int = 2000

    def __post_init__(self) -> None:
        """Refuse what Triton would."""
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                "a model's name must be letters, digits, '-', '_' or '.', 64 at most, and begin "
                f"with a letter or digit; found {self.name[:80]!r}"
            )
        if self.layout not in LAYOUTS:
            raise UsageError(f"layout must be one of {', '.join(LAYOUTS)}, found {self.layout!r}")
        whole("instances", self.instances)
        if not 0 <= self.queue_delay_us <= _LONGEST:
            raise UsageError(
                f"the queue delay must be 0 to {_LONGEST} microseconds, found {self.queue_delay_us}"
            )


def write_repository(engines: Path, out: Path, options: ServingOptions) -> list[str]:
    """Write a bundle as a model repository; return the names of its models, clients' first.

    ``out`` gets all of it or, where writing fails, nothing.

    Raises:
        BundleError: the bundle, or an engine in it, cannot be used.
        MissingDependency: the package onnx is needed and not installed.
        UsageError: an option does not fit the bundle, ``out`` holds something, or another process
            writes it.
        OSError: ``out`` cannot be written.
    """
    with _new_folder(out) as staging:
        bundle = open_bundle(engines)
        default = options.run.stop_rule(bundle.manifest)
        folder = staging / options.name / VERSION
        folder.mkdir(parents=True)
        (folder / "model.py").write_bytes(_MODEL.read_bytes())
        if options.layout == "session":
            _check(bundle, options.run)
            _copy(bundle, folder / BUNDLE)
            _write(folder, front(bundle, options, options.run.given, warm=True))
            return [options.name]
        # The model that calls them runs nothing itself.
        (folder / BUNDLE).mkdir()
        shutil.copyfile(bundle.root / MANIFEST, folder / BUNDLE / MANIFEST)
        rule = {name: options.run.given.get(name) for name in ("point", "policy")}
        _write(folder, front(bundle, options, {SEGMENTS: options.name, **rule}, warm=False))
        backend, models = segments.backend_for(options.run), [options.name]
        points = (bundle_policy(bundle.manifest, name) for name in bundle.manifest.points)
        for key, graph in segments.graphs_to_serve(bundle, [default, *points]).items():
            models.append(graph_model(options.name, key))
            folder = staging / models[-1] / VERSION
            folder.mkdir(parents=True)
            segments.write_graph(bundle, key, graph, backend, folder)
            batch = bundle.manifest.batch
            _write(folder, segments.config(models[-1], graph, batch, backend, options.run))
        return models


def front(
    bundle: Bundle, options: ServingOptions, parameters: Mapping[str, Any], *, warm: bool
) -> dict[str, Any]:
    """Return the configuration of the model that clients call.

    ``parameters`` are for the model; ``warm`` tells whether Triton sends it images of noise first.
    """
    most, side = bundle.manifest.batch[2], bundle.manifest.passes[0].image_size
    noise = {"data_type": Word("TYPE_UINT8"), "dims": [side, side, 3], "random_data": True}
    warm_up = [
        {"name": f"batch of {size}", "batch_size": size, "inputs": {"key": IMAGE, "value": noise}}
        for size in sorted({1, most})
    ]
    return {
        "name": options.name,
        "backend": "python",
        "max_batch_size": most,
        # A request has one of them. Ragged, because the model gets each request by itself: images
        # of unlike size may come in one batch.
        "input": [
            {
                "name": IMAGE,
                "data_type": Word("TYPE_UINT8"),
                "dims": [-1, -1, 3],
                "allow_ragged_batch": True,
                "optional": True,
            },
            {"name": ENCODED, "data_type": Word("TYPE_STRING"), "dims": [1], "optional": True},
            {
                "name": HIDDEN,
                "data_type": Word("TYPE_FP16"),
                "dims": [-1],
                "allow_ragged_batch": True,
                "optional": True,
            },
        ],
        "output": [
            {"name": output.name, "data_type": Word(output.triton), "dims": [1]}
            for output in OUTPUTS
        ],
        "dynamic_batching": {"max_queue_delay_microseconds": options.queue_delay_us},
        "instance_group": [{"count": options.instances, "kind": Word("KIND_CPU")}],
        "model_warmup": warm_up if warm else [],
        "parameters": [
            {"key": key, "value": {"string_value": str(value)}}
            for key, value in parameters.items()
            if value is not None
        ],
    }


def _write(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the configuration of the model whose version lies in ``folder``."""
    (folder.parent / CONFIG).write_text(dumps(config), encoding="utf-8")


def check_place(out: Path) -> None:
    """Check before long work that a repository can be written to ``out``.

    Raises:
        OSError: no folder can be made there.
        UsageError: something is there.
    """
    check_folder(out, replaced=True)
    target = followed(out)
    if target.exists() and any(target.iterdir()):
        raise UsageError(
            f"{out} is not empty, and nothing in it is overwritten: name another folder, or remove "
            "it first; tritonserver takes several with --model-repository"
        )


def _check(bundle: Bundle, run: RunParameters) -> None:
    """Refuse what no server could open, before anything is copied."""
    if run.backend in (None, AUTO):
        return
    if (fault := refusal(backend_of(str(run.backend)), run.chain_options())) is not None:
        raise UsageError(fault)
    if run.backend == "tensorrt" and not find_builds(bundle.root):
        raise BundleError(
            f"{bundle.root} has no TensorRT engines; run: lgvit-edge build {bundle.root}"
        )


def _copy(bundle: Bundle, folder: Path) -> None:
    """Copy a bundle, with its engines and signature; what else lies there stays behind."""
    for name in (MANIFEST, *(spec.file for spec in bundle.manifest.files())):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.root / name, folder / name)
    if (bundle.root / SIGNATURE).exists():  # for who checks it where the server runs
        shutil.copyfile(bundle.root / SIGNATURE, folder / SIGNATURE)
    graphs = graphs_of(bundle)
    for place, build in find_builds(bundle.root):
        if isinstance(build, BundleError):
            raise build
        target = folder / ENGINES / place.name
        target.mkdir(parents=True)
        shutil.copyfile(place / BUILD, target / BUILD)
        for name, engine in build.engines.items():
            data = read_engine(place, build, name, graphs[name])
            (target / engine.file).write_bytes(data)


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder to write into, which becomes ``out`` at the end of the body."""
    check_place(out)
    target = followed(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}{PARTIAL}")
    try:
        with locked(target.with_name(f".{target.name}.lock")):
            shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
            try:
                staging.mkdir()
                with named(out, staging):
                    yield staging
                staging.rename(target)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except BlockingIOError as holder:
        raise UsageError(
            f"{out} is being written by {holder}; wait for it, or name another"
        ) from None
