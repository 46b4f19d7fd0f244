"""The answers of a job on their way: a file for each shard, in a folder beside the output.

A shard that is whole has the name of its number. The one that a session writes is appended to,
batch by batch, and has ``.part`` behind its name.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from lgvit_edge._support import finite_json
from lgvit_edge._support.outputs import write
from lgvit_edge.errors import DataError
from lgvit_edge.offline.job import Job
from lgvit_edge.offline.listing import Listing
from lgvit_edge.offline.rows import FAULT

_PART = ".part"


class Parts:
    """The shards of a job; one process at a time may use them."""

    def __init__(self, folder: Path, job: Job, listing: Listing) -> None:
        """Make the folder if it is missing.

        Raises:
            OSError: it cannot be made.
        """
        self._folder, self._job, self._listing = folder, job, listing
        folder.mkdir(exist_ok=True)
        self.shards = -(-job.images // job.shard)
        whole = re.compile(r"\d{6,}\.jsonl")
        names = {path.name for path in folder.iterdir() if whole.fullmatch(path.name)}
        self._done = {shard for shard in range(self.shards) if self._path(shard).name in names}
        self._begun: dict[int, int] = {}  # of shards that are appended to: images with a line
        self._lines = sum(len(self.images_of(shard)) for shard in self._done)
        self._file: int | None = None
        self._shard = -1
        for shard in self.missing():
            if self._part(shard).exists():
                self._begun[shard] = self._mend(shard)
                self._lines += self._begun[shard]
                if self._begun[shard] == len(self.images_of(shard)):
                    self._finish(shard)

    def __len__(self) -> int:
        """How many images have a line."""
        return self._lines

    def images_of(self, shard: int) -> range:
        """Return the images of a shard, by their place in the listing."""
        first = shard * self._job.shard
        return range(first, min(first + self._job.shard, self._job.images))

    def missing(self) -> list[int]:
        """Return the shards that are not whole."""
        return [shard for shard in range(self.shards) if shard not in self._done]

    def batches(self, shard: int) -> Iterator[range]:
        """Yield the images of a shard that have no line yet, batch by batch."""
        images, size = self.images_of(shard), self._job.batch
        for first in range(images.start + self._begun.get(shard, 0), images.stop, size):
            yield range(first, min(first + size, images.stop))

    def append(self, shard: int, lines: list[bytes]) -> None:
        """Add the lines of a shard's next batch.

        Raises:
            OSError: they cannot be written; what was there before stays valid.
        """
        if self._shard != shard:
            self.close()
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._file, self._shard = os.open(self._part(shard), flags, 0o666), shard
        assert self._file is not None
        size = os.fstat(self._file).st_size
        left = memoryview(b"".join(lines))
        try:
            while left:
                left = left[os.write(self._file, left) :]
            self._begun[shard] = self._begun.get(shard, 0) + len(lines)
            self._lines += len(lines)
            if self._begun[shard] == len(self.images_of(shard)):
                self.close()
                self._finish(shard)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self._part(shard), size)
            raise

    def put(self, shard: int, lines: list[bytes]) -> None:
        """Write a whole shard, or nothing; raises ``OSError`` as writing does."""
        write(self._path(shard), b"".join(lines))
        self._part(shard).unlink(missing_ok=True)
        self._lines += len(lines) - self._begun.get(shard, 0)
        self._settle(shard)

    def lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Yield every image's line and what it says, in the order of the listing.

        Raises:
            DataError: a shard is not what was written.
            OSError: it cannot be read.
        """
        for shard in range(self.shards):
            yield from self._whole(shard)

    def readable(self) -> str | None:
        """Return the path of an image that was read in an earlier run; None if none is known."""
        for shard in [*self._begun, *sorted(self._done, reverse=True)]:
            path = self._path(shard) if shard in self._done else self._part(shard)
            with path.open("rb") as file:
                for index, line in zip(self.images_of(shard), file, strict=False):
                    if FAULT not in (_parsed(line) or {FAULT: ""}):
                        return self._listing[index].path
        return None

    def close(self) -> None:
        """Close the shard that is appended to."""
        if self._file is not None:
            os.close(self._file)
        self._file, self._shard = None, -1

    def __enter__(self) -> Parts:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _path(self, shard: int) -> Path:
        return self._folder / f"{shard:06}.jsonl"

    def _part(self, shard: int) -> Path:
        return self._folder / f"{shard:06}.jsonl{_PART}"

    def _finish(self, shard: int) -> None:
        with self._part(shard).open("rb+") as file:
            os.fsync(file.fileno())
        self._part(shard).replace(self._path(shard))
        self._settle(shard)

    def _settle(self, shard: int) -> None:
        self._begun.pop(shard, None)
        self._done.add(shard)

    def _mend(self, shard: int) -> int:
        """Cut what a killed run left behind its last whole batch; return the images before it."""
        path, size, images = self._part(shard), self._job.batch, self.images_of(shard)
        count = kept = good = end = 0
        with path.open("rb") as file:
            for index, line in zip(images, file, strict=False):
                row = _parsed(line)
                if row is None or row.get("path") != self._listing[index].name:
                    break
                count, end = count + 1, end + len(line)
                if count % size == 0 or count == len(images):
                    good, kept = end, count
        os.truncate(path, good)
        return kept

    def _whole(self, shard: int) -> Iterator[tuple[bytes, dict[str, Any]]]:
        path, images, count = self._path(shard), self.images_of(shard), 0
        with path.open("rb") as file:
            for index, line in zip(images, file, strict=False):
                row = _parsed(line)
                if row is None or row.get("path") != self._listing[index].name:
                    break
                count += 1
                yield line, row
            if count < len(images) or file.read(1):
                raise DataError(
                    f"{path} is not what was written: expected a line for each of {len(images)} "
                    f"images, and line {count + 1} is another; remove the file, then run the same "
                    "command again"
                )


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return what a whole line says; None if it is torn."""
    try:
        row = finite_json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and line.endswith(b"\n") else None
