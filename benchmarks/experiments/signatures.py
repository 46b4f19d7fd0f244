"""Changes a signed bundle byte by byte, and counts what is refused.

``python -m lgvit_edge.benchmarks.experiments.signatures --engines out/`` signs a copy of a bundle
with a key of its own. Then it changes one byte after the other, in every file, and opens the copy
as a session does that trusts the key. It does the same with the bundle as one file.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from lgvit_edge._support.terminal import progress_bar, say
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, run_command
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.bundle.keys import make_keys, read_private_key
from lgvit_edge.bundle.packed import pack, unpack
from lgvit_edge.bundle.signature import files_in
from lgvit_edge.bundle.signing import sign_bundle
from lgvit_edge.cli.options import Engines
from lgvit_edge.errors import BundleError, LGViTEdgeError

_FOLDER = "/dev/shm"  # where nothing is written to a disk


def main(
    engines: Engines,
    most: Annotated[
        int, typer.Option(min=1, help="Bytes that are changed of each file, spread evenly.")
    ] = 1_000_000,
    json_file: JsonFile = None,
) -> None:
    """Counts single-byte changes that are refused, in every file of a bundle."""
    record = Record(json_file)
    place = _FOLDER if os.access(_FOLDER, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as folder, progress_bar("changing") as progress:
        root = Path(shutil.copytree(engines, Path(folder) / "out"))
        for path in (root, *root.rglob("*")):
            path.chmod(path.stat().st_mode & ~0o022)
        public = make_keys(Path(folder) / "key", None)
        sign_bundle(root, read_private_key(Path(folder) / "key", lambda: b""))
        archive, out = Path(folder) / "out.tar", Path(folder) / "again"
        pack(root, archive)
        began = time.perf_counter()
        open_bundle(root, trusted_keys=(public,))
        opening = time.perf_counter() - began

        def opened() -> None:
            open_bundle(root, trusted_keys=(public,))

        def unpacked() -> None:
            unpack(archive, out, trusted_keys=(public,))

        rows = []
        for name, path, read in [
            *((name, root / name, opened) for name in files_in(root)),
            ("the packed bundle", archive, unpacked),
        ]:
            tried, passed = 0, []
            for at, total in _changes(path, most):
                tried += 1
                if not _refused(read):
                    passed.append(at)
                progress(tried, total, name)
            rows.append({"file": name, "bytes": path.stat().st_size, "tried": tried})
            rows[-1]["passed"] = passed
    count = sum(int(str(row["tried"])) for row in rows)
    through = sum(len(row["passed"]) for row in rows if isinstance(row["passed"], list))
    for row in rows:
        say(f"{row['file']}: {row['tried']:,} of {row['bytes']:,} bytes changed")
    say(f"{count:,} changes of a single byte, {through} not refused; opening takes {opening:.3f} s")
    record.write(files=rows, tried=count, passed=through, opening_s=opening)


def _changes(path: Path, most: int) -> Iterator[tuple[int, int]]:
    """Change one byte of a file for each turn, and change it back."""
    size = path.stat().st_size
    count = min(size, most)
    with path.open("rb+", buffering=0) as file:
        for turn in range(count):
            at = turn * size // count
            (true,) = os.pread(file.fileno(), 1, at)
            os.pwrite(file.fileno(), bytes([true ^ 1 << turn % 8]), at)
            yield at, count
            os.pwrite(file.fileno(), bytes([true]), at)


def _refused(read: Callable[[], None]) -> bool:
    try:
        read()
    except BundleError:
        return True
    except LGViTEdgeError as error:
        raise BundleError(f"another error than of a bundle: {error}") from error
    return False


if __name__ == "__main__":
    run_command(main)
