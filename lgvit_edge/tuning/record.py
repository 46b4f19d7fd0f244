"""The file in which ``tune`` keeps what every image gave at every exit, and what that took.

One ``.npy`` file of records, memory-mapped, a record per image, and a ``.json`` beside it that says
of which bundle, images and device. A record is marked done after it was written: an interrupted run
goes on with those that are not.
"""

from __future__ import annotations

import contextlib
import json
import os
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.files import locked, write_json
from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.errors import DataError
from lgvit_edge.tuning.costs import Costs, costs_of

_VERSION = 1
TO_DO, DONE, UNREADABLE = 0, 1, 2


class Recording:
    """Records of all images; ``rows`` is ``[n]``, of the type ``record_type`` gives."""

    def __init__(self, path: Path, rows: NDArray[Any], about: dict[str, Any]) -> None:
        """Use ``recording`` or ``read``."""
        self.path, self.rows, self.about = path, rows, about

    @property
    def missing(self) -> NDArray[np.intp]:
        """Images that have not been run."""
        return np.flatnonzero(self.rows["state"] == TO_DO)

    @property
    def usable(self) -> NDArray[np.intp]:
        """Images that could be read, and have been run."""
        return np.flatnonzero(self.rows["state"] == DONE)

    def costs(self, manifest: Manifest) -> Costs:
        """Mean times over the images, beside MACs."""
        rows = self.rows[self.usable]
        prepare = float(rows["prepare_ms"].mean(dtype=np.float64))
        segments = rows["segment_ms"].mean(axis=0, dtype=np.float64)
        base = rows["baseline_ms"]
        return costs_of(
            manifest, prepare, segments, float(base[np.isfinite(base)].mean(dtype=np.float64))
        )


def record_type(exits: int, classes: int) -> np.dtype[Any]:
    """Of one image: logits of exits 1..M + 1, class, times, and whether it was run."""
    return np.dtype(
        [
            ("logits", "<f4", (exits, classes)),
            ("label", "<i4"),
            ("prepare_ms", "<f4"),
            ("segment_ms", "<f4", (exits,)),
            ("baseline_ms", "<f4"),  # NaN where it was not measured
            ("state", "u1"),
        ]
    )


def describe(manifest: Manifest, data_sha256: str, device: str) -> dict[str, Any]:
    """What must be the same for kept logits to be of use."""
    return {
        "version": _VERSION,
        "bundle": manifest.identity,
        "images": data_sha256,
        "device": device,
    }


@contextlib.contextmanager
def recording(
    path: Path, manifest: Manifest, labels: Sequence[int], about: dict[str, Any]
) -> Iterator[Recording]:
    """Open the file, or make it, and keep other processes out of it.

    Raises:
        DataError: it is of another bundle, images or device, another process fills it, or there is
            no room on the disk.
    """
    kind = record_type(len(manifest.segments), manifest.num_classes)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(path.with_name(f".{path.name}.lock")))
            path.open("ab").close()
        except BlockingIOError as holder:
            raise DataError(
                f"another run ({holder}) fills {path}: wait for it, or name another file with "
                "--logits"
            ) from None
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror or error}") from None
        if path.stat().st_size and not _unfinished(path, kind):
            _compare(path, read(path, manifest).about, about)
        else:
            _create(path, kind, len(labels), about)
        rows = np.lib.format.open_memmap(path, mode="r+")
        rows["label"] = labels  # which may have been corrected since
        try:
            yield Recording(path, rows, about)
        finally:
            rows.flush()


def read(path: Path, manifest: Manifest) -> Recording:
    """What a run kept, read-only.

    Raises:
        DataError: no such file, damaged, or of another bundle.
    """
    kind = record_type(len(manifest.segments), manifest.num_classes)
    try:
        about = json.loads(_beside(path).read_text(encoding="utf-8"))
        rows = _map(path)
        known = isinstance(about, dict) and about.get("version") == _VERSION
        if not known or not isinstance(about.get("device"), str) or rows.ndim != 1:
            raise ValueError("of another version")
    except FileNotFoundError as error:
        raise DataError(
            f"no such file: {error.filename}; run: lgvit-edge tune with --data"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} holds no logits that can be used ({error}); remove it to run the images again"
        ) from None
    if about.get("bundle") != manifest.identity or rows.dtype != kind or "images" not in about:
        raise DataError(_other(path, "bundle"))
    return Recording(path, rows, about)


def _map(path: Path) -> NDArray[Any]:
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (SyntaxError, TypeError, EOFError, tokenize.TokenError) as error:  # a damaged header
        raise ValueError(str(error)) from None


def _unfinished(path: Path, kind: np.dtype[Any]) -> bool:
    """Whether an interrupted run began to make the file; another's is never taken for that."""
    if _beside(path).exists():
        return False
    try:
        return bool(_map(path).dtype == kind)
    except (OSError, ValueError):
        return False


def _create(path: Path, kind: np.dtype[Any], count: int, about: dict[str, Any]) -> None:
    """Make the file, all to do; what describes it comes last, and makes it one."""
    try:
        rows = np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=(count,))
        # The room, now: writing to a memory map on a full disk kills the process without a word.
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        rows["baseline_ms"] = np.nan
        rows.flush()
        write_json(_beside(path), about)
    except OSError as error:
        path.unlink(missing_ok=True)
        _beside(path).unlink(missing_ok=True)
        size = count * kind.itemsize
        raise DataError(
            f"cannot keep {size / 1e6:.0f} MB of logits in {path}: {error.strerror}; name a file "
            "elsewhere with --logits"
        ) from None


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _compare(path: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    other = [name for name, value in now.items() if then.get(name) != value]
    if other:
        raise DataError(_other(path, ", ".join(other)))


def _other(path: Path, what: str) -> str:
    return (
        f"{path} holds the logits of another run (other {what}): name another file with --logits, "
        "or remove this one"
    )
