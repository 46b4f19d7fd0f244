"""The manifest of a bundle, ``manifest.json``, as one frozen dataclass tree.

Export, runtime and benchmarks share it; it needs only the standard library. A tensor's name is
written once, in its ``TensorSpec``, and all read it there.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from lgvit_edge.bundle.codec import loads, to_json
from lgvit_edge.bundle.evidence import Evidence
from lgvit_edge.bundle.plain_models import PlainModel
from lgvit_edge.bundle.points import OperatingPoint, check_name
from lgvit_edge.errors import BundleError
from lgvit_edge.images.spec import Preprocess, View

# History: 1 - first version. 2 - half and int8 precision: islands, calibration, agreement.
# 3 - preprocessing may squash images, which version 2 never does. 4 - operating points, MACs of
# heads, temperatures in policies. 5 - sizes of files. 6 - published MACs. 7 - passes. 8 - plain
# models that a bundle was compared with; evidence of lower precisions, which may be missing.
# 9 - blocks and heads as graphs of their own, beside each segment's.
SCHEMA_VERSION = 9
TARGETS = ("cpu", "jetson", "rtx")
DTYPES = ("uint8", "float16", "float32")
PRECISIONS = ("fp32", "fp16", "int8")
ACCUMULATION = "accumulation"  # among ``fp32_islands``: sums of matrix products
MAX_BYTES = 16 * 1024 * 1024  # a manifest of 1000 classes has 100 KB
_MAX_ELEMENTS = 2**31
_MAX_FILE = 2**34  # the largest ViTs have 8 GB of weights
_MAX_GRAPH = 2**24  # a ViT-B has 1 MB: large weights are in files of their own
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileSpec:
    """A file of the bundle: its relative name, with ``/`` separators, its hash and its size."""

    file: str
    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        parts = self.file.split("/")
        unsafe = "\\" in self.file or ":" in self.file or not self.file.isprintable()
        if unsafe or any(p in ("", ".", "..") for p in parts):
            raise ValueError(f"file name {self.file!r} must be relative and stay in the bundle")
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256 of {self.file!r} must be 64 hexadecimal digits")
        if not 0 <= self.bytes <= _MAX_FILE:
            raise ValueError(f"bytes of {self.file!r} must be 0..{_MAX_FILE}, found {self.bytes}")


def _check_onnx(graph: FileSpec) -> None:
    # By other endings backends read other formats, with other files beside them.
    if not graph.file.endswith(".onnx") or graph.bytes > _MAX_GRAPH:
        raise ValueError(f"graph {graph.file!r} must be an .onnx file of at most 16 MiB")


@dataclass(frozen=True)
class TensorSpec:
    """An input or output tensor of a graph: its sizes, -1 first if the batch is dynamic."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, found {self.dtype!r}")
        sizes = self.shape[1:] if self.shape[:1] == (-1,) else self.shape
        # Rank and sides first: the product of a hostile shape would take minutes.
        small = 1 <= len(self.shape) <= 8 and all(1 <= s <= _MAX_ELEMENTS for s in sizes)
        if not small or math.prod(sizes) > _MAX_ELEMENTS:
            raise ValueError(f"tensor {self.name!r} has an impossible shape {list(self.shape)}")

    def for_batch(self, batch: int) -> tuple[int, ...]:
        """Return the shape for a batch of this size."""
        return (batch, *self.shape[1:])


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX graph: its file, tensors and cost per image."""

    graph: FileSpec
    inputs: tuple[TensorSpec, ...]  # one tensor, ``image`` or ``hidden``
    outputs: tuple[TensorSpec, ...]  # ``hidden``, but not the last; ``logits`` [B, C] float32
    macs: int  # multiply-accumulates for one image
    parameters: int  # number of trained values

    def __post_init__(self) -> None:
        if len(self.inputs) != 1 or len(self.outputs) not in (1, 2):
            raise ValueError("a graph has one input and one or two outputs")
        if len(self.logits.shape) != 2 or self.logits.dtype != "float32":
            raise ValueError("logits must be float32 [B, C]")
        if self.macs < 1 or self.parameters < 0:
            raise ValueError("macs and parameters must be counts")
        _check_onnx(self.graph)

    @property
    def logits(self) -> TensorSpec:
        """Return the classifier's output tensor."""
        return self.outputs[-1]

    @property
    def hidden(self) -> TensorSpec | None:
        """Return the output that the next segment reads; None where a network ends."""
        return self.outputs[0] if len(self.outputs) == 2 else None


class GraphPart(NamedTuple):
    """A part of a graph as a graph of its own: its file and tensors."""

    graph: FileSpec
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Parts:
    """A segment's graph once more, in two: its head is not run where nobody reads the exit."""

    blocks: FileSpec  # from the segment's input to its hidden output
    head: FileSpec  # from there to the logits

    def __post_init__(self) -> None:
        for part in (self.blocks, self.head):
            _check_onnx(part)


@dataclass(frozen=True)
class SegmentSpec:
    """One segment of the chain: its graph, blocks (1-based, inclusive) and head."""

    spec: GraphSpec
    first_block: int
    last_block: int
    head: str  # a kind of ``HEAD_KINDS``, or ``final``
    # The head's share of the MACs; None where the network ends: its own classifier is no head.
    head_macs: int | None = None
    parts: Parts | None = None  # None where the network ends, or the head reads more than hidden

    def __post_init__(self) -> None:
        if self.parts is not None and (self.spec.hidden is None or self.head_macs is None):
            raise ValueError("only a segment with a head of its own has parts")

    @property
    def part_graphs(self) -> tuple[GraphPart, ...]:
        """Return the graphs of blocks and head; none where they are not apart."""
        spec, parts, hidden = self.spec, self.parts, self.spec.hidden
        if parts is None or hidden is None:
            return ()
        return (
            GraphPart(parts.blocks, spec.inputs, (hidden,)),
            GraphPart(parts.head, (hidden,), (spec.logits,)),
        )


@dataclass(frozen=True)
class PassSpec:
    """One pass over the image: a network with an input size of its own, cut into segments."""

    family: str
    image_size: int  # side of the network's input, in pixels
    preprocess: Preprocess
    segments: tuple[SegmentSpec, ...]  # the last ends in the network's own classifier

    def __post_init__(self) -> None:
        if faults := list(self._faults()):
            raise ValueError("; ".join(faults))

    def _faults(self) -> Iterator[str]:
        if not self.segments:
            yield "expected at least one segment"
            return
        ends = [0, *(segment.last_block for segment in self.segments)]
        pairs = zip(self.segments, ends, strict=False)
        if not all(s.first_block == end + 1 <= s.last_block for s, end in pairs):
            yield "segments must cover blocks 1, 2, ... without gaps"
        if not self._chained():
            yield "each segment's hidden output must be the next one's input, and the last has none"
        if not 1 <= self.image_size <= self.preprocess.resize:
            yield "image_size must fit resize"

    def _chained(self) -> bool:
        for segment, following in zip(self.segments, (*self.segments[1:], None), strict=True):
            hidden = segment.spec.hidden
            if following is None or hidden is None:
                return following is None and hidden is None
            read = following.spec.inputs[0]
            if (hidden.dtype, hidden.shape) != (read.dtype, read.shape):
                return False
        return True

    @property
    def num_blocks(self) -> int:
        """Return the number of the network's blocks, L."""
        return self.segments[-1].last_block


@dataclass(frozen=True)
class Parity:
    """The largest difference between ONNX Runtime and PyTorch at export."""

    # ``images_1``... of each pass, and ``logits`` [n, M + 1, C] float32 that PyTorch gave
    samples: FileSpec
    tolerance: float  # of logits: absolute, or relative for logits above 1
    max_difference: tuple[float, ...]  # the largest measured, per segment, in the same measure


@dataclass(frozen=True)
class Calibration:
    """The calibration that int8 scales were computed from."""

    images: int  # how many there were
    sha256: str  # over the content of the image files, in order
    method: str  # rule that computes scales from the observed values
    blocks: tuple[tuple[int, ...], ...]  # of each pass those whose MLPs are quantized, 1-based


@dataclass(frozen=True)
class Agreement:
    """A comparison of the exported chain with the float32 model on real images."""

    images: int  # how many there were
    sha256: str  # over the content of the image files, in order
    policy: dict[str, Any]  # of both, as ``lgvit_edge.policies.rules`` writes it
    accuracy: float | None  # top-1 of the exported final classifier, 0..1; None without labels
    reference_accuracy: float | None  # the same for the float32 model
    same_exit: float  # share of images that leave at the same exit
    same_label: float  # share of images that get the same answer
    confidence_change: tuple[float, ...]  # mean |difference| of the confidence, per exit


@dataclass(frozen=True)
class Manifest:
    """The content of a bundle's ``manifest.json``."""

    schema_version: int
    labels: tuple[str, ...]  # class names, or empty
    input: str  # ``uint8`` NHWC RGB, normalised inside the graph; or ``float32`` NCHW, normalised
    batch: tuple[int, int, int]  # smallest, usual and largest
    passes: tuple[PassSpec, ...]  # in the order that they run, the last the most accurate
    baseline: GraphSpec  # the last pass's network without exits
    published_macs: int  # of the baseline with every block whole, as its authors count
    weights: tuple[FileSpec, ...]
    parity: Parity
    policy: dict[str, Any]  # the default, as ``Policy.to_json`` writes it
    precision: str  # ``fp32``, ``fp16``, or ``int8`` for the blocks' linear layers
    opset: int
    target: str
    versions: dict[str, str]  # of the packages that wrote it
    fp32_islands: tuple[str, ...]  # what stays in float32 inside graphs of lower precision
    calibration: Calibration | None
    agreement: Agreement | None  # if the export compared decisions on real images
    points: dict[str, OperatingPoint]  # from tuning, by name
    plain_models: dict[str, PlainModel]  # that it was compared with, by name
    evidence: tuple[Evidence, ...] = ()  # of precisions that float32 graphs may be computed in

    def __post_init__(self) -> None:
        if not self.passes:
            raise ValueError("expected at least one pass")
        for name, point in self.points.items():
            check_name(name)
            if len(point.shares) != len(self.segments):
                raise ValueError(f"point {name!r} must have one share per exit and the final one")
        for name in self.plain_models:
            if not (0 < len(name) <= 200 and name.isprintable()):
                raise ValueError(f"a plain model's name must be a short line, found {name[:80]!r}")
        if faults := list(self._faults()):
            raise ValueError("; ".join(faults))

    def _faults(self) -> Iterator[str]:
        low, usual, high = self.batch
        labels, classes = len(self.labels), self.num_classes
        if self.published_macs < 1:
            yield f"published_macs must be a count, found {self.published_macs}"
        if self.input not in ("uint8", "float32"):
            yield f"input must be uint8 or float32: {self.input!r}"
        if self.target not in TARGETS:
            yield f"target must be one of {TARGETS}: {self.target!r}"
        if self.precision not in PRECISIONS:
            yield f"precision must be one of {PRECISIONS}: {self.precision!r}"
        if not 1 == low <= usual <= high <= 4096:
            yield f"batch must be MIN <= OPT <= MAX, MIN 1: {self.batch}"
        if len(self.segments) > 1000:
            yield "expected 1 to 1000 segments"
        if len({graph.logits.shape[1:] for graph in self.graphs}) > 1:
            yield "segments and baseline must have the same classes"
        if len(self.parity.max_difference) != len(self.segments):
            yield "parity must have one max_difference per segment"
        if self.calibration is not None and len(self.calibration.blocks) != len(self.passes):
            yield "calibration must list blocks of each pass"
        size = 1 if high == 1 else -1
        if any(t.shape[0] != size for g in self.graphs for t in (*g.inputs, *g.outputs)):
            yield f"tensors must have {'a fixed' if high == 1 else 'a free'} batch"
        if not self._fed():
            yield "each pass and the baseline must take images as the manifest says"
        if self.baseline.hidden is not None:
            yield "the baseline has no hidden output"
        names = [spec.file for spec in self.files()]
        if len(set(names)) < len(names):
            yield "each file must be listed once"
        if labels not in (0, classes):
            yield f"expected {classes} labels, found {labels}"

    def _fed(self) -> bool:
        fed = [(each.image_size, each.segments[0].spec) for each in self.passes]
        fed.append((self.passes[-1].image_size, self.baseline))
        for side, graph in fed:
            image = {"uint8": (side, side, 3), "float32": (3, side, side)}.get(self.input)
            if (graph.inputs[0].dtype, graph.inputs[0].shape[1:]) != (self.input, image):
                return False
        return True

    @cached_property
    def segments(self) -> tuple[SegmentSpec, ...]:
        """Return the segments of all passes in their order: segment i ends in exit i + 1."""
        return tuple(segment for each in self.passes for segment in each.segments)

    @cached_property
    def begins(self) -> tuple[int | None, ...]:
        """Return, for each segment, the index of the pass that it begins; None where it does not.

        A segment that begins a pass takes images, any other the hidden state of the one before.
        """
        return tuple(
            None if place else index
            for index, each in enumerate(self.passes)
            for place in range(len(each.segments))
        )

    @cached_property
    def pass_numbers(self) -> tuple[int, ...]:
        """Return the number of the pass of each exit, from 1, the final classifier's last."""
        return tuple(n for n, each in enumerate(self.passes, 1) for _ in each.segments)

    @property
    def head_macs_apart(self) -> tuple[int, ...]:
        """Return the MACs of each exit's head, ``[M]``; 0 where it is not apart from its blocks."""
        return tuple((s.parts and s.head_macs) or 0 for s in self.segments[:-1])

    @property
    def views(self) -> tuple[View, ...]:
        """Return how each pass sees an image."""
        return tuple(View(each.preprocess, each.image_size, self.input) for each in self.passes)

    def pass_title(self, number: int) -> str:
        """Return what people read of a pass, numbered from 1, such as ``pass 1 (112 px)``."""
        return f"pass {number} ({self.passes[number - 1].image_size} px)"

    @property
    def graphs(self) -> list[GraphSpec]:
        """Return all graphs, segments first, then the baseline."""
        return [*(segment.spec for segment in self.segments), self.baseline]

    @property
    def hidden_dtype(self) -> str:
        """Return the type of the hidden state and of the arithmetic between quantized layers."""
        half = self.precision == "fp16" or (self.precision == "int8" and self.target != "cpu")
        hidden = (segment.spec.hidden for segment in self.segments)
        return next((spec.dtype for spec in hidden if spec), "float16" if half else "float32")

    @property
    def num_classes(self) -> int:
        """Return the number of classes, C."""
        return self.baseline.logits.shape[-1]

    def quantized(self, segment: int | None) -> bool:
        """Return whether a segment (None: the baseline) computes anything in int8."""
        if self.calibration is None:
            return False
        if segment is None:
            return bool(self.calibration.blocks[-1])
        spec = self.segments[segment]
        blocks = self.calibration.blocks[self.pass_numbers[segment] - 1]
        return not set(blocks).isdisjoint(range(spec.first_block, spec.last_block + 1))

    def cumulative_macs(self, exit: int) -> int:
        """Return the MACs of an image that leaves at ``exit`` (1..M + 1), all passes together."""
        return sum(segment.spec.macs for segment in self.segments[:exit])

    def cumulative_blocks(self, exit: int) -> int:
        """Return the blocks that an image goes through that leaves at ``exit``, in all passes."""
        return sum(s.last_block - s.first_block + 1 for s in self.segments[:exit])

    def files(self) -> list[FileSpec]:
        """Return every file that the manifest lists with its hash and size."""
        parts = [part.graph for segment in self.segments for part in segment.part_graphs]
        return [*(g.graph for g in self.graphs), *parts, *self.weights, self.parity.samples]

    @property
    def identity(self) -> str:
        """Return a hash of graphs and preprocessing, independent of policy and operating points."""
        sizes = [[each.image_size, to_json(each.preprocess)] for each in self.passes]
        parts = [to_json(self.files()), self.input, sizes]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @cached_property
    def digest(self) -> str:
        """Return a hash of all of it, which names the bundle with its policy, points and labels.

        It is that of the file ``manifest.json``, as this version writes it.
        """
        return hashlib.sha256(self.dumps().encode()).hexdigest()

    def dumps(self) -> str:
        """Return the manifest as JSON text, or raise ``ValueError`` if a number is not finite."""
        return json.dumps(to_json(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def loads(cls, text: str | bytes) -> Manifest:
        """Parse and validate ``manifest.json``, or raise ``BundleError``."""
        return loads(
            cls,
            text,
            version=SCHEMA_VERSION,
            limit=MAX_BYTES,
            where="manifest",
            cure="export the bundle again, or run: pip install --upgrade lgvit-edge",
            error=BundleError,
        )
