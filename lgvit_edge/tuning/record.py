"""Stores the logits and times of every image at every exit, in a file that ``tune`` reads.

The file is a memory-mapped ``.npy`` with one record per image. A ``.json`` beside it names the
bundle, the images and the device. A record is marked done after it was written, so an interrupted
run continues with the others.
"""

from __future__ import annotations

import contextlib
import os
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support import finite_json
from lgvit_edge._support.files import MAX_TEXT, locked, read_bytes, require_file
from lgvit_edge._support.outputs import named, write_json
from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.errors import DataError
from lgvit_edge.policies.evaluate import Images, head_ms
from lgvit_edge.tuning.costs import Costs

_VERSION = 2
TO_DO, DONE, UNREADABLE = 0, 1, 2
NO_CLASS = -1  # the label of an image without one
# What NumPy raises for a file that cannot be read, or whose header is damaged.
_DAMAGED = (OSError, ValueError, SyntaxError, TypeError, EOFError, tokenize.TokenError)


@dataclass(frozen=True, eq=False)
class Recording:
    """Holds the records of all images: ``rows`` is ``[n]``, of the type ``record_type`` gives."""

    path: Path
    rows: NDArray[Any]
    about: dict[str, Any]

    @property
    def missing(self) -> NDArray[np.intp]:
        """Places of the images that have not been run, ``[k]``."""
        return np.flatnonzero(self.rows["state"] == TO_DO)

    @property
    def usable(self) -> NDArray[np.intp]:
        """Places of the images that were run and could be read, ``[k]``."""
        return np.flatnonzero(self.rows["state"] == DONE)

    @property
    def unreadable(self) -> NDArray[np.intp]:
        """Places of the images that could not be read, ``[k]``."""
        return np.flatnonzero(self.rows["state"] == UNREADABLE)

    def images(self, places: NDArray[np.intp]) -> Images:
        """Returns logits and labels of the images at these places.

        Raises:
            DataError: a logit is not finite, or a label is none of the model's classes.
        """
        logits, labels = self.rows["logits"][places], self.rows["label"][places].astype(np.int64)
        if not np.isfinite(logits).all():
            raise DataError(_spoilt(self.path, "logits that are not finite numbers"))
        if ((labels < 0) | (labels >= logits.shape[-1])).any():
            raise DataError(_spoilt(self.path, f"labels beyond 0..{logits.shape[-1] - 1}"))
        return Images(logits, labels)

    def costs(self, manifest: Manifest) -> Costs:
        """Returns mean times over the images, and the MACs from the manifest.

        Raises:
            DataError: a time is not a positive number.
        """
        rows = self.rows[self.usable]
        base = rows["baseline_ms"]
        base = base[~np.isnan(base)]
        without = rows[~np.isnan(rows["blocks_ms"]).all(axis=1)]
        for times, least in (
            *((times, 1) for times in (rows["prepare_ms"], rows["segment_ms"], base)),
            (without["blocks_ms"], 0),  # of a session that runs all heads
        ):
            if len(times) < least or not (np.isfinite(times) & (times >= 0)).all():
                raise DataError(_spoilt(self.path, "times that are not positive numbers"))
        apart = manifest.head_macs_apart if len(without) else ()
        heads = head_ms(without["segment_ms"], without["blocks_ms"]) if apart else []
        return Costs(
            float(rows["prepare_ms"].mean(dtype=np.float64)),
            tuple(rows["segment_ms"].mean(axis=0, dtype=np.float64).tolist()),
            float(base.mean(dtype=np.float64)),
            tuple(segment.spec.macs for segment in manifest.segments),
            tuple(segment.head_macs for segment in manifest.segments[:-1]),
            manifest.baseline.macs,
            tuple(map(manifest.cumulative_blocks, range(1, len(manifest.segments) + 1))),
            manifest.passes[-1].num_blocks,
            apart,
            tuple(ms if macs else 0.0 for ms, macs in zip(heads, apart, strict=True)),
        )


def record_type(exits: int, classes: int) -> np.dtype[Any]:
    """Returns the type of one image's record: logits of exits 1..M + 1, class, times, state."""
    return np.dtype(
        [
            ("logits", "<f4", (exits, classes)),
            ("label", "<i4"),
            ("prepare_ms", "<f4"),
            ("segment_ms", "<f4", (exits,)),
            ("blocks_ms", "<f4", (exits,)),  # of segments without heads; NaN if not measured
            ("baseline_ms", "<f4"),  # likewise
            ("state", "u1"),
        ]
    )


@contextlib.contextmanager
def recording(
    path: Path,
    manifest: Manifest,
    labels: Sequence[int],
    data_sha256: str,
    device: str,
    *,
    anew: bool = False,
) -> Iterator[Recording]:
    """Opens or creates the file for writing, and locks other processes out of it.

    With ``anew`` a file that is damaged or of another run is replaced.

    Raises:
        DataError: it is of another bundle, images or device, another process fills it, or there is
            no room on the disk.
    """
    kind = record_type(len(manifest.segments), manifest.num_classes)
    about = dict(version=_VERSION, bundle=manifest.identity, images=data_sha256, device=device)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(path.with_name(f".{path.name}.lock")))
            require_file(path)
            path.open("ab").close()
        except BlockingIOError as holder:
            raise DataError(
                f"another run ({holder}) is writing {path}: wait for it, or name another file "
                "with --logits"
            ) from None
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror or error}") from None
        try:
            goes_on = path.stat().st_size and not _unfinished(path, kind)
            if goes_on:
                _check_same(path, manifest, about)
        except DataError:
            if not anew:
                raise
            goes_on = False
            _beside(path).unlink(
                missing_ok=True
            )  # it would describe the new one until that is whole
        if not goes_on:
            _create(path, kind, len(labels), about)
        rows = np.lib.format.open_memmap(path, mode="r+")
        rows["label"] = labels  # they may have been corrected since
        try:
            yield Recording(path, rows, about)
        finally:
            rows.flush()


def _check_same(path: Path, manifest: Manifest, about: dict[str, Any]) -> None:
    then = read(path, manifest).about
    if other := [name for name, value in about.items() if then.get(name) != value]:
        raise DataError(_other(path, ", ".join(other)))


def read(path: Path, manifest: Manifest) -> Recording:
    """Opens what a run stored, read-only.

    Raises:
        DataError: no such file, damaged, or of another bundle.
    """
    kind = record_type(len(manifest.segments), manifest.num_classes)
    try:
        require_file(path)
        about = finite_json.loads(read_bytes(_beside(path), MAX_TEXT))
        rows = np.lib.format.open_memmap(path, mode="r")
        current = isinstance(about, dict) and about.get("version") == _VERSION
        if not current or not isinstance(about.get("device"), str) or rows.ndim != 1:
            raise ValueError("of another version")
    except FileNotFoundError as error:
        raise DataError(
            f"no such file: {error.filename}; run: lgvit-edge tune with --data"
        ) from None
    except _DAMAGED as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path} holds no logits that can be used ({reason}); remove it to run the images again"
        ) from None
    if about.get("bundle") != manifest.identity or rows.dtype != kind or "images" not in about:
        raise DataError(_other(path, "bundle"))
    return Recording(path, rows, about)


def _unfinished(path: Path, kind: np.dtype[Any]) -> bool:
    """Whether an interrupted run of the same kind left the file without its description."""
    if _beside(path).exists():
        return False
    try:
        return bool(np.lib.format.open_memmap(path, mode="r").dtype == kind)
    except _DAMAGED:
        return False


def _create(path: Path, kind: np.dtype[Any], count: int, about: dict[str, Any]) -> None:
    """Create the file with nothing done; its description is written last and completes it."""
    try:
        with named(path, path, needed=count * kind.itemsize):
            rows = np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=(count,))
            # Reserve the space: writing to a memory map on a full disk kills the process silently.
            with path.open("rb+") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        rows["baseline_ms"] = rows["blocks_ms"] = np.nan
        rows.flush()
        write_json(_beside(path), about)
    except OSError as error:
        path.unlink(missing_ok=True)
        _beside(path).unlink(missing_ok=True)
        raise DataError(f"cannot keep the logits (--logits) in {path}: {error.strerror}") from None


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _spoilt(path: Path, what: str) -> str:
    return f"{path} holds {what}: it is damaged; remove it to run the images again"


def _other(path: Path, what: str) -> str:
    return (
        f"{path} holds the logits of another run (other {what}): name another file with --logits, "
        "or remove this one"
    )
