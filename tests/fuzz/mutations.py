"""Changes to files that keep their structure, so that faults lie behind the first check.

Each takes a random generator and a file's content, and returns the content changed in one to four
places. Equal generators make equal changes.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import pickletools
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

Change = Callable[[random.Random, bytes], bytes]

NUMBERS = (0, 1, -1, 2, 3, 7, 255, 256, 65535, 1 << 31, (1 << 31) - 1, -(1 << 31), 1 << 32)
NUMBERS += ((1 << 62), (1 << 63) - 1, -(1 << 63), 1 << 64, 10**30, 10**400)
FLOATS = (0.5, -0.0, 1e-300, 1e308, -1e308, float("nan"), float("inf"), float("-inf"))
TEXTS = ("", " ", "0", "x", "..", "../x", "/", "/dev/zero", "a\0b", "\x1b[2J", "\ud800", "\u202e")
TEXTS += ("é" * 40, "x" * 5000, "1e999", "NaN", "None", "__class__", "{}", "%s%n", "C:\\x")


def texts(rng: random.Random, data: bytes) -> bytes:
    """Lines, separators and numbers of a text, doubled, left out, exchanged or made odd."""
    text = data.decode("utf-8", "replace")
    for _ in range(rng.randint(1, 3)):
        separator = rng.choice((":", ",", "\n", " ", "", "\t", "."))
        parts = text.split(separator) if separator else list(text)
        place = rng.randrange(len(parts)) if parts else 0
        what = rng.randrange(6)
        if what == 0:
            parts.insert(place, rng.choice(parts) if parts else "")
        elif what == 1 and parts:
            del parts[place]
        elif what == 2 and parts:
            parts[place] = str(rng.choice(NUMBERS + FLOATS))
        elif what == 3 and parts:
            parts[place] = rng.choice(TEXTS)
        elif what == 4:
            rng.shuffle(parts)
        elif parts:
            parts[place] += chr(rng.choice((0, 9, 10, 34, 44, 58, 160, 0x660, 0xFEFF, 0x1F600)))
        text = separator.join(parts)
    return text.encode("utf-8", "surrogatepass")


def json_text(rng: random.Random, data: bytes) -> bytes:
    """Values of JSON, replaced, left out, doubled, exchanged or nested; seldom its text."""
    what = rng.random()
    if what < 0.05:
        return raw(rng, data)
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        value = _change_json(rng, value)
    text = json.dumps(value)
    if what < 0.07:  # deeper than what Python's json writes
        opens, closes = rng.choice((("[", "]"), ('{"x": ', "}")))
        depth = rng.choice((50, 900, 5000, 200_000))
        old = rng.choice(('"', "1", "{", "["))
        text = text.replace(old, opens * depth + "1" + closes * depth + old, 1)
    return text.encode("utf-8", "surrogatepass")


def _change_json(rng: random.Random, value: Any) -> Any:
    places = list(_places(value))
    if not places:
        return _odd(rng)
    holder, key = rng.choice(places)
    what = rng.randrange(6)
    if what == 0:
        del holder[key]
    elif what == 1:
        other, name = rng.choice(places)
        holder[key] = copy.deepcopy(other[name])
    elif what == 2 and isinstance(holder, list):
        holder += holder[: rng.choice((1, len(holder)))] * rng.choice((1, 2, 50))
    elif what == 2:
        holder[rng.choice(TEXTS)] = holder[key]
    elif what == 3 and type(holder[key]) is int:
        holder[key] += rng.choice((-1, 1, 1 << 20))
    elif what == 4:
        holder[key] = [holder[key]] if rng.random() < 0.7 else {"x": holder[key]}
    else:
        holder[key] = _odd(rng)
    return value


def raw(rng: random.Random, data: bytes) -> bytes:
    """Bytes, flipped, set, cut off, left out or doubled, and numbers of 2, 4 and 8 bytes."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not content:
            return bytes(rng.randbytes(8))
        place = min(rng.randrange(len(content)), rng.choice((16, 64, 512, len(content))))
        length = rng.choice((1, 2, 4, 8, 64, 4096))
        what = rng.randrange(7)
        if what == 0:
            content[place % len(content)] ^= 1 << rng.randrange(8)
        elif what == 1:
            content[place % len(content)] = rng.choice((0, 1, 127, 128, 255))
        elif what == 2:
            del content[place:]
        elif what == 3:
            del content[place : place + length]
        elif what == 4:
            content[place:place] = content[place : place + length]
        elif what == 5:
            content[place : place + length] = rng.randbytes(length)
        else:
            size = rng.choice((2, 4, 8))
            number = rng.choice(NUMBERS) % (1 << 8 * size)
            content[place : place + size] = number.to_bytes(size, rng.choice(("little", "big")))
    return bytes(content)


def tarred(rng: random.Random, data: bytes) -> bytes:
    """Anything of a packed bundle; or headers alone, and then a hash that is right."""
    if rng.random() < 0.3:
        return raw(rng, data)
    body, places, at = bytearray(data[:-65]), [], 0
    while body[at] and at < len(body) - 1024:
        places.append(at)
        at += 512 + (int(body[at + 124 : at + 135], 8) + 511 & ~511)
    place = rng.choice(places)
    body[place : place + 512] = raw(rng, bytes(body[place : place + 512]))
    return bytes(body) + f"{hashlib.sha256(body).hexdigest()}\n".encode()


def archive(
    inner: Callable[[random.Random, bytes], bytes], rng: random.Random, data: bytes
) -> bytes:
    """Members of a zip archive, changed by ``inner``, left out or renamed; or its bytes."""
    if rng.random() < 0.15:
        return raw(rng, data)
    with zipfile.ZipFile(io.BytesIO(data)) as given:
        members = [(name, given.read(name)) for name in given.namelist()]
    place = rng.randrange(len(members))
    if rng.random() < 0.3:  # the pickle stands first among many tensors
        place = 0
    name, content = members[place]
    what = rng.randrange(10)
    if what == 0:
        del members[place]
    elif what == 1:
        members[place] = rng.choice((*TEXTS[1:], f"{name}.x", name.upper())), content
    elif what == 2:
        members[place] = name, rng.choice(members)[1]
    else:
        members[place] = name, inner(rng, content)
    out = io.BytesIO()
    kind = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(out, "w", kind) as new:
        for name, content in members:
            name = name.replace("\0", "0").encode("utf-8", "replace").decode()[:200]
            if name not in new.namelist():
                new.writestr(name, content)
    return out.getvalue()


def npy(rng: random.Random, data: bytes) -> bytes:
    """The header of a ``.npy`` file, its length mended, or its bytes."""
    if rng.random() < 0.4 or len(data) < 10:
        return raw(rng, data)
    size = struct.unpack("<H", data[8:10])[0]
    header = texts(rng, data[10 : 10 + size])
    for old in (b"<f4", b"|u1"):
        if rng.random() < 0.3:
            header = header.replace(
                old, rng.choice((b"|O", b"<f8", b"<U999999", b"|V0", b"<M8[s]"))
            )
    return data[:8] + struct.pack("<H", len(header) % 65536) + header + data[10 + size :]


def checkpoint_member(rng: random.Random, data: bytes) -> bytes:
    """A member of PyTorch's archives: its pickle by opcodes, all else by bytes."""
    return pickled(rng, data) if data.startswith(b"\x80") else raw(rng, data)


def pickled(rng: random.Random, data: bytes) -> bytes:
    """Opcodes of a pickle, left out, doubled, exchanged, or calls put in; or its bytes."""
    try:
        starts = [place for _, _, place in pickletools.genops(data) if place is not None]
    except Exception:  # it was no pickle
        return raw(rng, data)
    ops = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(ops))
        what = rng.randrange(7)
        if what == 0:
            ops.insert(place, rng.choice(ops))
        elif what == 1 and len(ops) > 1:
            del ops[place]
        elif what == 2:
            other = rng.randrange(len(ops))
            ops[place], ops[other] = ops[other], ops[place]
        elif what == 3:
            ops[place] = raw(rng, ops[place])
        elif what == 4:
            ops.insert(place, rng.choice(_CALLS))
        elif what == 5:
            integer = struct.pack("<i", rng.choice((0, -1, 1 << 30, -(1 << 31))))
            ops.insert(place, rng.choice((b"J" + integer, b"j" + integer, b"r" + integer)))
        else:
            numbers = [i for i, op in enumerate(ops) if op[:1] in b"KMJ"]
            if numbers:
                ops[rng.choice(numbers)] = b"J" + struct.pack("<i", rng.choice((-1, 1 << 30, 0, 7)))
    return b"".join(ops)


def safetensors(rng: random.Random, data: bytes) -> bytes:
    """The header of a ``.safetensors`` file, its length mended or not, or its bytes."""
    if rng.random() < 0.2 or len(data) < 8:
        return raw(rng, data)
    size = struct.unpack("<Q", data[:8])[0]
    header = json_text(rng, data[8 : 8 + size])
    length = len(header)
    if rng.random() < 0.1:
        length = rng.choice(NUMBERS) % (1 << 64)
    return struct.pack("<Q", length) + header + data[8 + size :]


def png(rng: random.Random, data: bytes) -> bytes:
    """Chunks of a PNG, changed with their checksum mended, left out, doubled or exchanged."""
    if rng.random() < 0.2 or data[:4] != b"\x89PNG":
        return raw(rng, data)
    chunks, place = [], 8
    while place + 12 <= len(data):
        size = struct.unpack(">I", data[place : place + 4])[0]
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += 12 + size
    place = rng.randrange(len(chunks))
    kind, content = chunks[place]
    what = rng.randrange(6)
    if what == 0:
        chunks.insert(place, rng.choice(chunks))
    elif what == 1:
        del chunks[place]
    elif what == 2:
        bomb = zlib.compress(bytes(1 << 22), 9)
        chunks.insert(1, (rng.choice((b"iTXt", b"zTXt", b"iCCP", b"eXIf")), b"k\0\0" + bomb))
    else:
        chunks[place] = kind, raw(rng, content)
    out = bytearray(data[:8])
    for kind, content in chunks:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        out += struct.pack(">I", len(content)) + kind + content + checksum
    return bytes(out)


def onnx_graph(rng: random.Random, data: bytes) -> bytes:
    """Fields of an ONNX graph at any depth, by their types; seldom its bytes."""
    if rng.random() < 0.1:
        return raw(rng, data)
    import onnx

    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        messages = list(_messages(model))
        kinds = sorted({type(message).__name__ for message in messages})
        kind = rng.choice(kinds)  # else the many nodes leave no turn to what is rare
        _change_message(rng, rng.choice([m for m in messages if type(m).__name__ == kind]))
    return bytes(model.SerializeToString())


_OPERATORS = "Loop If Scan ConstantOfShape Expand Tile Range Pad Resize OneHot EyeLike NonZero"
_OPERATORS += " RandomNormal MatMul Gemm Conv Softmax LayerNormalization Reshape Transpose Gather"
_OPERATORS += " Slice Concat Add Mul Gelu Erf Cast QuantizeLinear DequantizeLinear Einsum Unique"
_OPERATORS += " TopK CumSum GatherND ScatterND StringNormalizer SequenceConstruct Split ReduceMean"
_CALLS = (
    b"cos\nsystem\n",
    b"cbuiltins\neval\n",
    b"c__builtin__\nbytearray\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n",
    b"(tR",
    b"R",
    b"b",
    b"Q",
    b")",
    b"}",
    b"X\x04\x00\x00\x00echo",
    b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
)


def _odd(rng: random.Random) -> Any:
    simple: tuple[Any, ...] = (*NUMBERS, *FLOATS, *TEXTS, None, True, False)
    return rng.choice((*simple, [], {}, [[]], [None], {"": None}))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in list(keys):
        yield value, key
        yield from _places(value[key])


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if field.is_repeated else [value]:
                yield from _messages(part)


def _change_message(rng: random.Random, message: Any) -> None:
    fields = message.DESCRIPTOR.fields
    present = [field for field, _ in message.ListFields()]
    field = rng.choice(present if present and rng.random() < 0.8 else fields)
    value = getattr(message, field.name)
    what = rng.randrange(4)
    if what == 0:
        message.ClearField(field.name)
    elif field.is_repeated and len(value):
        place = rng.randrange(len(value))
        if what == 1:
            del value[place]
        elif what == 2 or field.message_type is not None:
            value.extend([value[place]] * rng.choice((1, 1, 40)))
        else:
            value[place] = _odd_field(rng, field, value[place])
    elif field.message_type is not None:
        part = value.add() if field.is_repeated else value
        part.SetInParent()
    elif field.is_repeated:
        value.append(_odd_field(rng, field, None))
    else:
        setattr(message, field.name, _odd_field(rng, field, value))


def _odd_field(rng: random.Random, field: Any, old: Any) -> Any:
    if field.type == field.TYPE_STRING:
        if field.name == "op_type":
            return rng.choice(_OPERATORS.split())
        text = rng.choice((*TEXTS, "pixels", "hidden", "logits", "weights.bin", f"{old}x"))
        return text.encode("utf-8", "replace").decode()
    if field.type == field.TYPE_BYTES:
        return raw(rng, bytes(old or b"\0" * 8))[: 1 << 20]
    if field.type == field.TYPE_ENUM:
        return rng.choice(field.enum_type.values).number
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return rng.choice((*FLOATS[:4], FLOATS[5], FLOATS[6], float(rng.randint(-9, 9))))
    number = rng.choice((*NUMBERS, int(old or 0) + 1, int(old or 0) - 1, int(old or 0) * 1000))
    if field.type == field.TYPE_INT32:
        return (number + (1 << 31)) % (1 << 32) - (1 << 31)
    if field.type == field.TYPE_INT64:
        return (number + (1 << 63)) % (1 << 64) - (1 << 63)
    return number % (1 << 63)
