"""Reads protobuf messages without the protobuf package, and copies nothing.

Readers of protobuf differ on what nobody should write: a field given twice, unknown fields, numbers
that are too long. All of that is refused, so that what is checked here is what a backend will see.
"""

from __future__ import annotations

from typing import Any

VARINT, BYTES, FIXED32 = 0, 2, 5  # wire types
# Values of a repeated field: an empty one takes 2 bytes in a file, and 100 times as many here.
MAX_VALUES = 2**16


class Message:
    """Describes one kind of message: its name in errors, and the fields that it may have.

    A field is its name, its number and its wire type; the name of a repeated one ends in ``*``.
    """

    def __init__(self, name: str, *fields: tuple[str, int, int]) -> None:
        self.name = name
        self._fields = {
            number << 3 | wire: (field.rstrip("*"), field.endswith("*"))
            for field, number, wire in fields
        }
        self._repeated = [field for field, repeated in self._fields.values() if repeated]

    def read(self, data: memoryview) -> dict[str, Any]:
        """Return values by name of field: an unsigned ``int`` of 64 bits, or a view of the bytes.

        Of a repeated field a list, which may be empty. Other fields that are not there are left
        out.

        Raises:
            ValueError: it is no such message, or it has another field.
        """
        found: dict[str, Any] = {name: [] for name in self._repeated}
        place, end, fields = 0, len(data), self._fields
        try:
            while place < end:
                tag = data[place]
                place += 1
                if tag > 127:
                    tag, place = _varint(data, place - 1)
                known = fields.get(tag)
                if known is None:
                    raise ValueError(
                        f"{self.name}: field {tag >> 3} of type {tag & 7}, which no export writes"
                    )
                name, repeated = known
                wire = tag & 7
                if wire == FIXED32:
                    size = 4
                else:  # a size, or the value itself
                    size = data[place]
                    place += 1
                    if size > 127:
                        size, place = _varint(data, place - 1)
                value: int | memoryview = size
                if wire != VARINT:
                    if size > end - place:
                        raise IndexError
                    value = data[place : place + size]
                    place += size
                if repeated:
                    found[name].append(value)
                    if len(found[name]) > MAX_VALUES:
                        raise ValueError(f"{self.name}: more than {MAX_VALUES} values of {name}")
                elif name in found:
                    raise ValueError(f"{self.name}: two values of {name}")
                else:
                    found[name] = value
        except IndexError:
            raise ValueError(f"{self.name}: it is cut off") from None
        return found


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """Return the number at ``place``, and the place after it."""
    number = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            if number >> 64:
                break  # other readers drop these bits, and see another number
            return number, place
    raise ValueError("a number of more than 64 bits")
