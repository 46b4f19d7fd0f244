"""Reads from an ONNX graph which files hold its weights, without the onnx package.

A graph may name any file as the place of its weights, and a backend opens it. So the names are read
before a backend sees the graph.
"""

from __future__ import annotations

# Fields of onnx.proto that lead to tensors, by message: number of the field, message in it.
_INNER: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}
_KEY, _VALUE = 1, 2  # of an entry
_FIXED = {1: 8, 5: 4}  # bytes of values by wire type
_VARINT, _BYTES = 0, 2


def external_files(graph: bytes) -> set[str]:
    """Return every ``location`` of external data in a serialised ``ModelProto``.

    Raises:
        ValueError: it is no protobuf message.
    """
    found: set[str] = set()
    todo = [("Model", 0, len(graph))]
    while todo:
        message, place, end = todo.pop()
        inner = _INNER.get(message, {})
        keys: list[bytes] = []
        values: list[bytes] = []
        while place < end:
            tag, place = _varint(graph, place, end)
            number, wire = tag >> 3, tag & 7
            if tag >> 32:  # other readers drop these bits, and see another field
                raise ValueError("not a protobuf message")
            if wire == _BYTES:
                size, place = _varint(graph, place, end)
                if message == "Entry":
                    part = graph[place : place + size]
                    (keys if number == _KEY else values if number == _VALUE else []).append(part)
                elif number in inner:
                    todo.append((inner[number], place, place + size))
                place += size
            elif wire == _VARINT:
                _, place = _varint(graph, place, end)
            elif wire in _FIXED:
                place += _FIXED[wire]
            else:
                raise ValueError("not a protobuf message")
        if place != end:
            raise ValueError("cut off")
        if b"location" in keys:
            found |= {value.decode("utf-8") for value in values}
    return found


def _varint(data: bytes, place: int, end: int) -> tuple[int, int]:
    """Return the number at ``place``, and the place after it."""
    number = shift = 0
    while place < end and shift < 70:
        byte = data[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, place
        shift += 7
    raise ValueError("cut off")
