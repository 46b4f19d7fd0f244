"""Readers with a mistake of each kind that the fuzzer must find, and one without."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

import mutations
from targets import Target, Try

from lgvit_edge.errors import DataError


def _true(root: Path) -> list[bytes]:
    return [b"true"]


def _sound(root: Path, work: Path) -> Try:
    def read(content: bytes) -> None:
        if content != b"true":
            raise DataError("expected true")

    return read


def _raises(root: Path, work: Path) -> Try:
    return lambda content: None if content == b"true" else {}[content]


def _crashes(root: Path, work: Path) -> Try:
    return lambda content: None if content == b"true" else ctypes.string_at(0)


def _hangs(root: Path, work: Path) -> Try:
    return lambda content: None if content == b"true" else time.sleep(600)


def _grows(root: Path, work: Path) -> Try:
    return lambda content: None if content == b"true" else len(b"x" * (9 << 27))


def _talks(root: Path, work: Path) -> Try:
    def read(content: bytes) -> None:
        if content != b"true":
            raise Long("x" * 10_000)

    return read


class Long(DataError):
    """Says more than anybody reads."""

    def __str__(self) -> str:
        return str(self.args[0])


SOUND, RAISES, CRASHES, HANGS, GROWS, TALKS = (
    Target(opened.__name__.strip("_"), _true, mutations.raw, opened)
    for opened in (_sound, _raises, _crashes, _hangs, _grows, _talks)
)
