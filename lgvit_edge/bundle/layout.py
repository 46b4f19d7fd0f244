"""Names of the files in a bundle's folder; ``directory`` reads and writes them.

| file | what |
|---|---|
| manifest.json | written last: a directory without it is not a bundle |
| segments/segment_I.onnx | one graph per segment, numbered through all passes |
| segments/weights.bin | every weight once, shared by all graphs |
| baseline.onnx | the last pass's network without exits |
| parity.npz | sample inputs and the logits PyTorch gave at every exit |
| engines/TAG/build.json | what the engines beside it were compiled from and for |
| engines/TAG/segment_I.engine, baseline.engine | plain TensorRT plans |
| signature.json | who vouches for all of the above, if somebody does |
"""

from __future__ import annotations

MANIFEST = "manifest.json"
BASELINE = "baseline.onnx"
WEIGHTS = "segments/weights.bin"
PARITY = "parity.npz"
ENGINES = "engines"
BUILD = "build.json"
REJECTED = "build.rejected.json"  # in its place where the engines computed something else
SIGNATURE = "signature.json"
LOCK = ".lock"  # held while a bundle, or a folder of engines, is changed in place


def segment_file(index: int) -> str:
    """Return the file name of segment ``index`` inside the bundle."""
    return f"segments/segment_{index}.onnx"


def part_files(index: int) -> tuple[str, str]:
    """Return the file names of the blocks and the head of segment ``index``, apart."""
    return f"segments/blocks_{index}.onnx", f"segments/head_{index}.onnx"
