"""Keeps the pictures that a model finds hard: labelled, they are what it is trained on next."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

from lgvit_edge._support.numbers import real, whole
from lgvit_edge._support.optional import require
from lgvit_edge._support.outputs import PARTIAL, check_folder, write
from lgvit_edge.camera.drawing import encoded
from lgvit_edge.camera.shot import Answer, Shot
from lgvit_edge.camera.sinks.base import Sink
from lgvit_edge.camera.sinks.jsonl import as_line
from lgvit_edge.camera.sinks.lines import LineFile
from lgvit_edge.camera.sinks.names import IN_FILES, as_name
from lgvit_edge.errors import SinkError, UsageError
from lgvit_edge.images.folders import OF_SYSTEMS

TO_LABEL, ANSWERS, CLASSES = "to-label", "answers.jsonl", "classes.txt"
_ANSWERS_BYTES = 20_000_000
_QUALITY = 95  # of JPEG: less would change what the network sees
_FREED = 0.9  # of the limit: how much stays, so that not each picture looks through all others
_NAME = 50  # bytes of a camera's or region's name
_OURS = re.compile(r".*-\d{8}T\d{6}\.\d{3}Z-\d+(-.*)?\.(jpg|png)")
_STALE = 600.0  # seconds after which an unfinished file is one that a killed process left


class KeepUnsure(Sink):
    """Stores what was classified late or unsurely, in ``FOLDER/to-label/GUESS/CAMERA-TIME.jpg``.

    ``FOLDER/answers.jsonl`` holds what the model said of each. ``FOLDER/classes.txt`` holds the
    name of each class's folder, in the order of the model's classes: it is for ``--classes``.
    Pictures that were moved out of ``to-label`` are never touched again.
    """

    name = "keep-unsure"
    images = True
    room = 8

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        below: float | None = None,
        from_exit: int | None = None,
        every: float = 10.0,
        max_mb: float = 1000,
        png: bool = False,
        labels: Sequence[str] = (),
    ) -> None:
        """Name the folder, and what is hard.

        Args:
            folder: where the pictures go.
            below: answers less sure than this are kept, in the unit of the policy's confidence.
            from_exit: answers of this exit, 1..M + 1, and of later ones are kept; None: those that
                no exit was sure of, so that the final classifier answered.
            every: seconds between two pictures of the same region of the same camera.
            max_mb: megabytes of pictures in ``to-label``; the oldest are removed.
            png: whether pictures are stored without loss, in several times the space.
            labels: names of the model's classes, in their order; empty if it has none.

        Raises:
            UsageError: a number is out of range.
        """
        if below is not None and real(below) != real(below):
            raise UsageError(f"below must be a number, found {below!r}")
        if not 0 <= real(every) < float("inf"):
            raise UsageError(f"every must be at least 0 seconds, found {every!r}")
        if not 0.001 <= real(max_mb) < float("inf"):
            raise UsageError(f"max_mb must be a number of at least 0.001, found {max_mb!r}")
        if not isinstance(png, bool):
            raise UsageError(f"png must be true or false, found {png!r}")
        self._folder, self._waiting = Path(folder), Path(folder) / TO_LABEL
        self._below, self._every, self._suffix = below, every, ".png" if png else ".jpg"
        self._from_exit = None if from_exit is None else whole("from_exit", from_exit)
        self._labels, self._folders = tuple(labels), class_folder_names(labels)
        self._max_bytes = int(max_mb * 1e6)
        self._bytes = 0  # at least as many as are there
        self._answers = LineFile(self._folder / ANSWERS, max_bytes=_ANSWERS_BYTES, keep=1)
        self._kept: dict[tuple[str, str | None], float] = {}  # time.monotonic() of the last one

    def open(self) -> None:
        """Make the folder.

        Raises:
            UsageError: it cannot be written, or another process keeps pictures there.
            MissingDependency: OpenCV is not installed.
        """
        require("cv2", extra="camera")
        try:
            self._waiting.mkdir(parents=True, exist_ok=True)
            check_folder(self._waiting)
            self._answers.open()
            if self._folders:
                write(self._folder / CLASSES, "".join(f"{name}\n" for name in self._folders))
        except OSError as error:
            self._answers.close()
            text = f"cannot write to {self._folder}: {error.strerror}; name another folder"
            raise UsageError(text) from None
        except SinkError as error:
            raise UsageError(str(error)) from None
        self._bytes = sum(size for _, _, size in self._pictures())

    def take(self, shot: Shot) -> None:
        """Store the hard ones of the answers of a shot, each with the region it is about."""
        for answer in shot.answers:
            place, now = (answer.camera, answer.region), time.monotonic()
            if self._is_hard(answer) and now - self._kept.get(place, -1e9) >= self._every:
                self._store(shot, answer)
                self._kept[place] = now

    def close(self) -> None:
        """Close the list of answers."""
        self._answers.close()

    def _is_hard(self, answer: Answer) -> bool:
        result = answer.result
        if self._from_exit is None:
            late = result.stopped == "final"
        else:
            late = result.exit >= self._from_exit
        sureness = result.measure.sureness
        below = self._below is not None and sureness(answer.confidence) < sureness(self._below)
        return answer.unsure or late or below

    def _store(self, shot: Shot, answer: Answer) -> None:
        left, top, width, height = answer.box
        if shot.image is None:
            return
        image = shot.image[top : top + height, left : left + width]
        try:
            data = encoded(image, self._suffix, _QUALITY)
        except ValueError as error:
            raise SinkError(str(error), final=True) from None
        if len(data) > self._max_bytes:
            text = f"a picture of {len(data):,} bytes is more than max_mb allows; allow more"
            raise SinkError(text, final=True)
        self._make_room(len(data))
        path = self._waiting / self._folder_of(answer) / _file_name(answer, self._suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, data)
        self._bytes += len(data)
        self._answers.append(as_line(answer, file=str(path.relative_to(self._folder))))

    def _folder_of(self, answer: Answer) -> str:
        index = answer.class_index
        if index < len(self._labels) and self._labels[index] == answer.guess:
            return self._folders[index]
        return class_folder_names([answer.guess])[0]

    def _make_room(self, needed: int) -> None:
        """Remove the oldest pictures where the next one would exceed the limit."""
        if self._bytes + needed <= self._max_bytes:
            return
        pictures = sorted(self._pictures())
        self._bytes = sum(size for _, _, size in pictures)
        if self._bytes + needed <= self._max_bytes:
            return  # people have moved some of them
        for _, path, size in pictures:
            if self._bytes + needed <= self._max_bytes * _FREED:
                break
            Path(path).unlink(missing_ok=True)
            self._bytes -= size

    def _pictures(self) -> Iterator[tuple[float, str, int]]:
        """Yield the time, path and bytes of each picture to label; remove unfinished files."""
        for folder in [entry.path for entry in os.scandir(self._waiting) if entry.is_dir()]:
            for entry in list(os.scandir(folder)):
                with contextlib.suppress(FileNotFoundError):
                    about = entry.stat(follow_symlinks=False)
                    if _OURS.fullmatch(entry.name):
                        yield about.st_mtime, entry.path, about.st_size
                    elif entry.name.endswith(PARTIAL) and time.time() - about.st_mtime > _STALE:
                        os.unlink(entry.path)


def class_folder_names(labels: Sequence[str]) -> tuple[str, ...]:
    """Return for each class the name of its folder: its own, wherever a folder can be called so.

    Classes that share a name, as ImageNet's two cranes, have their index at the end of it.
    """
    names = [as_name(label) for label in labels]
    counts = Counter(names)
    names = [f"{n}%~{index}" if counts[n] > 1 else n for index, n in enumerate(names)]
    return tuple(f"%{ord(n[0]):02X}{n[1:]}" if n.lower() in OF_SYSTEMS else n for n in names)


def _file_name(answer: Answer, suffix: str) -> str:
    """Return a name that no other answer has."""
    moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=answer.time)
    text = f"{moment:%Y%m%dT%H%M%S}.{moment.microsecond // 1000:03d}Z"
    region = "" if answer.region is None else f"-{as_name(answer.region, IN_FILES, _NAME)}"
    camera = as_name(answer.camera, IN_FILES, _NAME)
    return f"{camera}-{text}-{answer.frame}{region}{suffix}"
