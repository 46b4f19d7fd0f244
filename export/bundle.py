"""``export_bundle``: exports a trained model as a verified bundle."""

from __future__ import annotations

import contextlib
import functools
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lgvit_edge._support.optional import require
from lgvit_edge._support.terminal import held_interrupts
from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.bundle import directory as bundle
from lgvit_edge.bundle import layout
from lgvit_edge.bundle.graphs import check_graph
from lgvit_edge.bundle.manifest import (
    ACCUMULATION,
    PRECISIONS,
    SCHEMA_VERSION,
    TARGETS,
    Agreement,
    Calibration,
    FileSpec,
    GraphPart,
    GraphSpec,
    Manifest,
    Parity,
    Parts,
    PassSpec,
    SegmentSpec,
    TensorSpec,
)
from lgvit_edge.bundle.operators import OPSETS
from lgvit_edge.bundle.plain_files import size_of
from lgvit_edge.errors import ExportError, UsageError
from lgvit_edge.export import int8 as quantize
from lgvit_edge.export.accumulate import accumulate_in_float32
from lgvit_edge.export.checks import ChainCheck, compare, exact_logits, gate, sample_images
from lgvit_edge.export.graph import Part, Traced, WeightStore, save, trace
from lgvit_edge.export.half import ISLANDS, halve
from lgvit_edge.export.passes import check_passes
from lgvit_edge.images.labelled import LabelledImage, content_hash, evenly
from lgvit_edge.images.preprocess import load_rgb, network_input
from lgvit_edge.machine.environment import version_of
from lgvit_edge.machine.jetson import JETPACKS, JetPack
from lgvit_edge.machine.preflight import fits
from lgvit_edge.model import LGViT, ModelCosts, Segment, count_parameters, cut
from lgvit_edge.model.segments import INPUTS, example_input
from lgvit_edge.policies import Confidence, Policy
from lgvit_edge.runtime.samples import images_name

_FEWEST = 8  # calibration images needed
_BATCH = 16  # calibration images at a time
_CHOICE = 64  # calibration images for choosing blocks: each goes through the model ten times
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ExportOptions:
    """Holds the options of an export, and checks that they fit together.

    Attributes:
        target: what the bundle is for.
        precision: of the graphs; None for the target's usual one.
        fp32_islands: what stays in float32 inside half-precision graphs, of ``ISLANDS``; None for
            layernorm where TensorRT computes in the graph's types, else for nothing.
        fp32_accumulate: ask TensorRT to sum matrix products of fp16 graphs in float32.
        input: ``uint8`` NHWC RGB normalised inside segment 0, or ``float32`` NCHW.
        batch: smallest, usual and largest batch; 1, 1, 1 fixes it at one image.
        opset: ONNX operator set; None for the precision's usual one.
        policy: the bundle's policy, used unless a session gets another.
        tolerance: largest difference from PyTorch; None for the precision's usual one.
        jetpack: version on the Jetson that compiles the graphs, as ``6.0`` or ``6``; None for 6.
    """

    target: str = "cpu"
    precision: str | None = None
    fp32_islands: tuple[str, ...] | None = None
    fp32_accumulate: bool = False
    input: str = "uint8"
    batch: tuple[int, int, int] = (1, 1, 1)
    opset: int | None = None
    policy: Policy = Confidence(0.8)
    tolerance: float | None = None
    jetpack: str | None = None

    def __post_init__(self) -> None:
        if self.precision is None:
            usual = "fp16" if self.target in ("jetson", "rtx") else "fp32"
            object.__setattr__(self, "precision", usual)
        device = _find_jetpack(self.jetpack or "6") if self.target == "jetson" else None
        if self.opset is None:
            # int8 needs 19, for float16 scales; the TensorRT of an old device reads up to 17.
            old = device is not None and device.opset < 18
            object.__setattr__(self, "opset", 20 if self.precision == "int8" else 17 if old else 18)
        if self.fp32_islands is None:
            object.__setattr__(self, "fp32_islands", self._usual_islands(device))
        faults = list(self._faults(device))
        if device is not None and self.opset is not None and not faults:
            unfit = fits(device, opset=self.opset, precision=str(self.precision))
            faults = [f"{f.text}; {f.cure}" for f in unfit if f.level == "problem"]
        if faults:
            raise UsageError("; ".join(faults))

    def _usual_islands(self, device: JetPack | None) -> tuple[str, ...]:
        # A strongly typed TensorRT promises no float32 inside a LayerNorm of half precision:
        # "compute precision is typically controlled by casting the input" (NvInfer.h 10.3,
        # INormalizationLayer::setComputePrecision). TensorRT 8 promises it ("in kFLOAT32 even in
        # mixed precision mode regardless of any set builder flags"), and there a cast was reported
        # to turn what is around it into float32 too (NVIDIA/TensorRT#4540).
        typed = self.target == "rtx" or (device is not None and device.strongly_typed)
        return ("layernorm",) if typed and self.precision in ("fp16", "int8") else ()

    def _faults(self, device: JetPack | None) -> Iterator[str]:
        low, usual, high = self.batch
        if self.target not in TARGETS:
            yield f"target must be one of {', '.join(TARGETS)}: {self.target}"
        if self.precision not in PRECISIONS:
            yield f"precision must be one of {', '.join(PRECISIONS)}: {self.precision}"
        if unknown := set(self.fp32_islands or ()) - set(ISLANDS):
            islands = ", ".join(sorted(unknown))
            yield f"what stays in fp32 must be among {', '.join(ISLANDS)}: {islands}"
        if self.fp32_islands and self.precision == "fp32":
            yield "everything is in fp32 already: --keep-fp32 is for fp16 and int8"
        if self.fp32_accumulate:
            yield from self._sums_already(device)
        if self.input not in INPUTS:
            yield f"input must be one of {', '.join(INPUTS)}: {self.input}"
        if not low == 1 <= usual <= high <= 4096:
            yield (
                "batch must be 1:OPT:MAX with 1 <= OPT <= MAX <= 4096 (images that exit leave "
                f"the batch, so every size down to 1 occurs): {low}:{usual}:{high}"
            )
        if self.opset not in OPSETS:
            yield f"opset must be {OPSETS[0]}..{OPSETS[-1]}: {self.opset}"
        if self.precision == "int8" and self.opset not in (19, 20):
            yield (
                "int8 needs opset 19 or 20 (scales in float16 came with 19, and ONNX Runtime's "
                f"quantizer writes invalid graphs from 21 on): {self.opset}"
            )
        if self.tolerance is not None and not 0 < self.tolerance < math.inf:
            yield f"tolerance must be a positive number: {self.tolerance}"
        if self.jetpack is not None and device is None:
            yield "--jetpack is for --target jetson"

    def _sums_already(self, device: JetPack | None) -> Iterator[str]:
        """Say why matrix products are not asked to be summed in float32."""
        what = "--fp32-accumulate is for --precision fp16 with --target rtx or jetson"
        if self.precision == "fp32":
            yield f"{what}: fp32 sums in float32 already"
        elif self.precision == "int8":
            yield f"{what}: the quantizer's scales must meet the products themselves"
        elif self.target == "cpu":
            yield f"{what}: on CPUs half precision is summed in float32 already"
        elif device is not None and not device.strongly_typed:
            yield (
                f"{what}: TensorRT {device.tensorrt[0]} of JetPack {device.name} chooses types "
                "itself, whatever the graph asks for"
            )


def _find_jetpack(name: str) -> JetPack:
    """Return the newest JetPack with this version, such as ``6.0`` or ``6``."""
    matches = [j for j in JETPACKS if name in (str(j.major), *j.name.split("/"), j.name)]
    if not matches:
        names = ", ".join(name for j in JETPACKS for name in j.name.split("/"))
        raise UsageError(f"--jetpack: expected one of {names}, found {name!r}")
    return matches[-1]


def export_bundle(
    models: LGViT | Sequence[LGViT],
    out: str | Path,
    options: ExportOptions | None = None,
    *,
    images: Sequence[LabelledImage] = (),
    calibration: Sequence[Path] = (),
    progress: Progress = lambda text, done, total: None,
) -> Manifest:
    """Export every segment and the baseline, check each against PyTorch, write the bundle.

    Example:
        export_bundle(load_checkpoint("model.pt"), "out/", ExportOptions(target="cpu"))

    Args:
        models: a model with at least one exit; or the network of each pass, with exits or without,
            in the order that they run: each needs more MACs than the one before.
        out: the bundle's directory; an older bundle there is replaced at the very end.
        options: None for the defaults.
        images: on which decisions are compared with float32 first; see ``agreement``.
        calibration: image files from which int8 scales are computed.
        progress: called with the name of the step, steps done and steps in all.

    Raises:
        UsageError: there are no models, the passes do not fit together, or the policy does
            not fit the exits.
        ExportError: a graph cannot be exported, the directory cannot be written, or the model's
            logits are not finite.
        ParityError: a graph disagrees with PyTorch, or decides differently on ``images``; names the
            segment.
        DataError: an image cannot be read.
        MissingDependency: a package of the ``export`` or ``cpu`` extra is missing.
    """
    options = options or ExportOptions()
    models = [models] if isinstance(models, LGViT) else list(models)
    costs = check_passes(models)
    options.policy.start(sum(model.config.num_exits + 1 for model in models) - 1)
    if (options.precision == "int8") != bool(calibration):
        raise UsageError(
            "int8 scales are computed from images: add --calib DIR with some like the camera's"
            if options.precision == "int8"
            else f"--calib is for --precision int8, found {options.precision}"
        )
    if 0 < len(calibration) < _FEWEST:
        raise UsageError(
            f"int8 scales need at least {_FEWEST} images, better 128; found {len(calibration)}"
        )
    for name, extra in (("onnx", "export"), ("onnxscript", "export"), ("onnxruntime", "cpu")):
        require(name, extra=extra)
    was_signed = (Path(out) / layout.SIGNATURE).exists()
    with bundle.writing(Path(out)) as staging, held_interrupts() as check:

        def step(text: str, done: int, total: int) -> None:
            check()
            progress(text, done, total)

        ready = [model.eval() for model in models]
        manifest = _Export(ready, costs, staging, options, images, calibration, step).run()
        check()
        bundle.finish(staging, manifest)
    if was_signed:
        bundle.tell_unsigned(Path(out))
    return manifest


@dataclass
class _Export:
    """One export: its options, its staging folder and what it has computed so far."""

    models: list[LGViT]
    costs: list[ModelCosts]  # of each model
    staging: Path
    options: ExportOptions
    images: Sequence[LabelledImage]
    calibration: Sequence[Path]
    progress: Progress

    def __post_init__(self) -> None:
        options = self.options
        self.store = WeightStore(self.staging / layout.WEIGHTS)
        # Tracing and segments of each pass, then the baseline and the manifest.
        self.steps = sum(model.config.num_exits + 2 for model in self.models) + 2
        self.done = 0
        assert options.precision is not None and options.opset is not None  # filled in
        self.precision, self.opset = options.precision, options.opset
        self.islands = options.fp32_islands or ()
        # Of int8 graphs, the float layers are in half precision on GPUs and single on CPUs.
        self.half = self.precision == "fp16"
        self.half = self.half or (self.precision == "int8" and options.target != "cpu")
        self.limits: list[dict[int, quantize.Limits]] = [{} for _ in self.models]
        self.gaps: list[float] = []  # of each segment so far

    def run(self) -> Manifest:
        options = self.options
        if self.precision == "int8":
            self._calibrate()
        samples = [sample_images(model.config, options.input) for model in self.models]
        expected = np.concatenate(
            [exact_logits(m, pixels) for m, (_, pixels) in zip(self.models, samples, strict=True)],
            axis=1,
        )
        if not np.isfinite(expected).all():
            raise ExportError(
                "the model's own logits are not finite numbers: expected finite weights that do "
                "not overflow; train it again, with a lower learning rate"
            )
        check = ChainCheck(expected, self.precision, options.tolerance)
        passes = []
        for place, (images, _) in enumerate(samples):
            check.begin(images)
            each, whole = self._pass(place, check)
            passes.append(each)
        self._step("baseline")
        final = self.models[-1]
        blocks = range(1, final.config.num_blocks + 1)
        parameters = count_parameters(final.backbone)
        baseline = self._save(*whole, -1, blocks, self.costs[-1].baseline, parameters)
        check.baseline(self.staging / layout.BASELINE, baseline, samples[-1][0])
        agreed = None
        if self.images:
            agreed = compare(
                self.models,
                self.staging,
                [[segment.spec for segment in each.segments] for each in passes],
                self.images,
                input=options.input,
                policy=options.policy,
                progress=lambda done, total: self.progress("comparing images", done, total),
            )
            gate(agreed, self.precision)
        self._step("manifest")
        arrays = {images_name(place): images for place, (images, _) in enumerate(samples)}
        arrays["logits"] = expected
        np.savez(self.staging / layout.PARITY, **arrays)  # type: ignore[arg-type]
        described = bundle.describe(self.staging, layout.PARITY)
        parity = Parity(described, check.tolerance, tuple(self.gaps))
        return self._manifest(passes, baseline, self.costs[-1].published, parity, agreed)

    def _step(self, text: str) -> None:
        self.progress(text, self.done, self.steps)
        self.done += 1

    def _pass(self, place: int, check: ChainCheck) -> tuple[PassSpec, tuple[Any, Part]]:
        """Export one pass; return it, and the graph of its whole network with what to save it as.

        ``place`` is its index.
        """
        options, model, costs = self.options, self.models[place], self.costs[place]
        cuts = cut(model, input=options.input, cast_first=options.target != "cpu")
        self._step("tracing" if len(self.models) == 1 else f"tracing pass {place + 1}")
        low, _, high = options.batch
        parts = [self._part(model, segment) for segment in cuts]
        traced, chain = trace(parts, opset=self.opset, batch=(low, high))
        segments = []
        for segment, part, graphs in zip(cuts, parts, traced, strict=True):
            index, number = segment.index, len(self.gaps)
            self._step(f"segment {number}")
            blocks = range(segment.first_block, segment.last_block + 1)
            macs, parameters = costs.segments[index], segment.parameters
            spec = self._save(graphs.whole, part, place, blocks, macs, parameters)
            described = SegmentSpec(
                spec,
                segment.first_block,
                segment.last_block,
                segment.head,
                costs.heads[index] if segment.exit else None,
                self._parts(graphs, number, place, blocks),
            )
            for graph in described.part_graphs:
                self._check_graph(graph)
            segments.append(described)
            self.gaps.append(check.segment(number, self.staging, described, segment.module))
        config = model.config
        each = PassSpec(config.family, config.image_size, config.preprocess, tuple(segments))
        whole = replace(parts[0], file=layout.BASELINE, outputs=parts[-1].outputs)
        return each, (chain, whole)

    def _calibrate(self) -> None:
        for place, model in enumerate(self.models):
            self.limits[place] = quantize.choose(
                model,
                quantize.calibrate(model, self._batches(model.config)),
                functools.partial(self._batches, model.config, _CHOICE),
            )
        if not any(self.limits):
            raise ExportError(
                "no block's MLP can be computed in int8 without moving exit decisions on the "
                f"{len(self.calibration)} calibration images; use --precision fp16"
            )

    def _batches(self, config: LGViTConfig, largest: int | None = None) -> Iterator[Tensor]:
        paths = evenly(self.calibration, largest)
        for first in range(0, len(paths), _BATCH):
            self.progress("calibrating", first, len(paths))
            frames = [load_rgb(path) for path in paths[first : first + _BATCH]]
            pixels = network_input(frames, config.preprocess, config.image_size, "float32")
            yield torch.from_numpy(pixels)

    def _part(self, model: LGViT, segment: Segment) -> Part:
        options, index = self.options, segment.index
        size = 1 if options.batch[2] == 1 else 2
        example = example_input(model.config, index, input=options.input, batch=size)
        return Part(
            layout.segment_file(len(self.gaps) + index),
            halve(segment.module, self.islands) if self.half else segment.module,
            example.half() if self.half and index else example,
            "hidden" if index else "image",
            ("hidden_out", "logits") if segment.exit else ("logits",),
        )

    def _save(
        self, graph: Any, part: Part, place: int, blocks: range, macs: int, parameters: int
    ) -> GraphSpec:
        """Save a graph of the pass of index ``place``, which has these of its blocks."""
        config, size = self.models[place].config, 1 if self.options.batch[2] == 1 else -1
        file = self._write(graph, part.file, place, blocks)
        dtype = str(part.example.dtype).removeprefix("torch.")
        inputs = TensorSpec(part.input, dtype, (size, *part.example.shape[1:]))
        outputs = [TensorSpec("logits", "float32", (size, config.num_classes))]
        if "hidden_out" in part.outputs:
            shape = (size, *config.hidden_shape(blocks[-1]))
            outputs.insert(
                0, TensorSpec("hidden_out", "float16" if self.half else "float32", shape)
            )
        with _as_sessions_do(part.file):
            spec = GraphSpec(file, (inputs,), tuple(outputs), macs, parameters)
        self._check_graph(spec)
        return spec

    def _parts(self, graphs: Traced, number: int, place: int, blocks: range) -> Parts | None:
        """Save blocks and head of segment ``number`` apart, where they are."""
        if graphs.head is None:
            return None
        blocks_file, head_file = layout.part_files(number)
        first = self._write(graphs.blocks, blocks_file, place, blocks)
        second = self._write(graphs.head, head_file, place, range(0))
        with _as_sessions_do(blocks_file):
            return Parts(first, second)

    def _write(self, graph: Any, file: str, place: int, blocks: range) -> FileSpec:
        chosen = self.limits[place]
        limits = {number: chosen[number] for number in blocks if number in chosen}
        rewrite = (lambda proto: quantize.quantize(proto, limits)) if limits else None
        if self.options.fp32_accumulate:
            accumulate_in_float32(graph)
        save(graph, self.staging / file, self.store, rewrite)
        return bundle.describe(self.staging, file)

    def _check_graph(self, spec: GraphSpec | GraphPart) -> None:
        file = spec.graph
        weights = FileSpec(layout.WEIGHTS, file.sha256, size_of(self.store.path))  # not hashed yet
        with _as_sessions_do(file.file):
            data = (self.staging / file.file).read_bytes()
            check_graph(data, spec, self.opset, bundle.weights_of((weights,), spec))

    def _manifest(
        self,
        passes: list[PassSpec],
        whole: GraphSpec,
        published_macs: int,
        parity: Parity,
        agreed: Agreement | None,
    ) -> Manifest:
        options = self.options
        calibration = None
        if self.calibration:
            sha256 = content_hash(self.calibration)
            blocks = tuple(tuple(limits) for limits in self.limits)
            calibration = Calibration(len(self.calibration), sha256, quantize.METHOD, blocks)
        names = ("lgvit-edge", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")
        packages = {name: number for name in names if (number := version_of(name)) is not None}
        try:
            return Manifest(
                schema_version=SCHEMA_VERSION,
                labels=self.models[0].config.labels,
                input=options.input,
                batch=options.batch,
                passes=tuple(passes),
                baseline=whole,
                published_macs=published_macs,
                weights=(bundle.describe(self.staging, layout.WEIGHTS),),
                parity=parity,
                policy=options.policy.to_json(),
                precision=self.precision,
                opset=self.opset,
                target=options.target,
                versions={"python": platform.python_version(), **packages},
                fp32_islands=self.islands + (ACCUMULATION,) * options.fp32_accumulate,
                calibration=calibration,
                agreement=agreed,
                points={},
                plain_models={},
            )
        except ValueError as error:
            raise ExportError(f"the bundle does not fit together: {error}") from None


@contextlib.contextmanager
def _as_sessions_do(file: str) -> Iterator[None]:
    """Refuse a graph that no session would run."""
    try:
        yield
    except ValueError as error:
        raise ExportError(
            f"{file} would not be run, because bundles may come from strangers: {error}; operators "
            "of your own kinds are allowed by register_operator of lgvit_edge.bundle.operators, "
            "here and on the device"
        ) from None
