"""Joins the parts of a job into the file of answers, and lists what could not be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lgvit_edge._support.outputs import replacing
from lgvit_edge.errors import DataError
from lgvit_edge.offline.formats import Format
from lgvit_edge.offline.job import Finished, Job
from lgvit_edge.offline.parts import Parts
from lgvit_edge.offline.rows import FAULT


class _Sorted:
    """Parts the lines of a job into answers, which it counts, and faults, which it writes."""

    def __init__(self, parts: Parts, faults: IO[bytes]) -> None:
        self._parts, self._faults = parts, faults
        self.exits: Counter[int] = Counter()
        self.unreadable, self.example = 0, ""

    def answers(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        for line, row in self._parts.lines():
            if FAULT in row:
                self.unreadable, self.example = self.unreadable + 1, str(row[FAULT])
                self._faults.write(line)
            else:
                self.exits[row["exit"]] += 1
                yield line, row


def join(parts: Parts, job: Job, out: Path, unreadable: Path, form: Format, exits: int) -> Finished:
    """Write the answers to ``out``, whole or not at all, and faults, if any, to ``unreadable``.

    Raises:
        DataError: no image could be read, or a part is not what was written.
        OSError: as writing does.
    """
    with replacing(out) as answers:
        with replacing(unreadable) as beside, beside.open("wb") as faults:
            lines = _Sorted(parts, faults)
            form.write(answers, lines.answers(), job)
            if lines.unreadable == job.images:
                raise DataError(
                    f"none of {job.images} images can be read, such as: {lines.example}; mend "
                    "them, then begin anew with --restart"
                )
        size = answers.stat().st_size
    if not lines.unreadable:
        unreadable.unlink()
    counts = tuple(lines.exits[exit] for exit in range(1, exits + 1))
    return Finished(size, job.images - lines.unreadable, lines.unreadable, counts)
