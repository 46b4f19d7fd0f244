"""What clients of the models in Triton send and get back: names, types, and parameters.

Whoever writes a model's configuration, and the model itself, read it here. Needs no NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from lgvit_edge.runtime.result import Result

BUNDLE = "bundle"  # the folder beside model.py
IMAGE = "image"  # uint8 RGB [B, H, W, 3], of any size
ENCODED = "encoded"  # [B, 1], each the bytes of an image file
HIDDEN = "hidden"  # float16 [B, K], each the values of a hidden state
INPUTS = (IMAGE, ENCODED, HIDDEN)
POINT = "point"  # parameter of a request: the name of an operating point
DEADLINE = "deadline_ms"  # parameter of a request: for each of its images
# Parameters of a request that goes on with what a device began. Images are crops of the network's
# size then, as the pass of that segment sees them.
SEGMENT = "segment"  # no exit before it answers; a hidden state is what it reads
IDENTITY = "identity"  # ``Manifest.identity`` of the device's bundle
POLICY = "policy"  # the device's, ``Policy.to_json`` as text
SEGMENTS = "segments"  # parameter of a model: what the names of its segments' models begin with


class Output(NamedTuple):
    """Describes one output, ``[B, 1]``: a value for each image.

    Attributes:
        name: of the tensor.
        triton: its type in Triton's words.
        dtype: its type in NumPy's words.
        of: what it is of a result.
    """

    name: str
    triton: str
    dtype: str
    of: Callable[[Result], Any]


OUTPUTS = (
    Output("label", "TYPE_STRING", "object", lambda result: result.label.encode()),
    Output("class_index", "TYPE_INT32", "int32", lambda result: result.class_index),
    Output("confidence", "TYPE_FP32", "float32", lambda result: result.confidence),
    Output("exit", "TYPE_INT32", "int32", lambda result: result.exit),
    Output("latency_ms", "TYPE_FP32", "float32", lambda result: result.latency_ms),
    Output("stopped", "TYPE_STRING", "object", lambda result: result.stopped.encode()),
    Output("late", "TYPE_BOOL", "bool", lambda result: result.late),
)


def graph_model(model: str, graph: str) -> str:
    """Return the name of the model that is one graph of the bundle, such as ``lgvit_segment_0``."""
    return f"{model}_{graph}"
