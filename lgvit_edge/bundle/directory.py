"""The bundle directory: reading and writing it; ``layout`` names its files."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fnmatch
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from lgvit_edge._support import finite_json
from lgvit_edge._support.cache import bundle_cache
from lgvit_edge._support.files import locked, read_bytes, reading
from lgvit_edge._support.outputs import PARTIAL, check_folder, followed, leftovers, named, write
from lgvit_edge._support.text import tell
from lgvit_edge.bundle.evidence import Evidence, merged
from lgvit_edge.bundle.graphs import check_graph
from lgvit_edge.bundle.keys import PublicKey
from lgvit_edge.bundle.layout import BASELINE, ENGINES, LOCK, MANIFEST, PARITY, SIGNATURE
from lgvit_edge.bundle.manifest import MAX_BYTES, FileSpec, GraphPart, GraphSpec, Manifest
from lgvit_edge.bundle.plain_files import is_tar, sha256, size_of
from lgvit_edge.bundle.plain_models import PlainModel
from lgvit_edge.bundle.points import OperatingPoint
from lgvit_edge.bundle.signature import (
    check_owners,
    check_signed_files,
    check_signed_manifest,
    trusted_signature,
)
from lgvit_edge.errors import BackendError, BundleError, ExportError, UsageError, in_one_line

_AGAIN = "copy the bundle again or export it again"
_EQUAL_WEIGHTS = 2**26  # bytes


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its checked manifest.

    Attributes:
        root: the folder.
        manifest: its description of itself.
        signer: the trusted key that signed it; None where no signature was asked for.
    """

    root: Path
    manifest: Manifest
    signer: PublicKey | None = None

    def path(self, spec: FileSpec) -> Path:
        """Return the path of a file in the bundle."""
        return self.root / spec.file

    @property
    def cache(self) -> Path | None:
        """Where what is compiled of it is kept for this user; None for nowhere.

        Where a signature was asked for, that is a place of its own: what another opening compiled
        may come from files that were changed after they were checked.
        """
        identity = self.manifest.identity
        return bundle_cache(identity if self.signer is None else f"signed-{identity}")


def open_bundle(
    root: str | Path, *, verify: bool = True, trusted_keys: Sequence[PublicKey] | None = None
) -> Bundle:
    """Open a bundle and check its files, without running anything from it.

    Args:
        root: the directory ``lgvit-edge export`` wrote.
        verify: check the hash of every file, and that each graph is one that an export writes
            (about 0.5 s for ViT-B).
        trusted_keys: one of these must have signed the bundle as it is, and nobody but this user
            and root may be able to change it.

    Raises:
        BundleError: it is missing, damaged, unsafe, of another schema version, or not signed.
        UsageError: ``root`` is no path.
    """
    if not isinstance(root, (str, os.PathLike)):
        raise UsageError(f"expected the path of a bundle's folder, such as 'out/', found {root!r}")
    root = Path(root)
    if trusted_keys is not None:
        root = Path(os.path.realpath(root))  # a link may lead elsewhere the next moment
    text = _read_manifest(root)
    signature = None
    if trusted_keys is not None:
        check_owners(root)
        signature = trusted_signature(root, trusted_keys)
        check_signed_manifest(root, signature, text)
    signer = None if signature is None else signature.signer
    bundle = Bundle(root, Manifest.loads(text), signer)
    if signature is not None:
        check_signed_files(root, bundle.manifest, signature)
    files, weights = bundle.manifest.files(), bundle.manifest.weights
    for check in (_check_place, _check_size):  # all before hashing, which may take long
        _check(check, bundle, files)
    if verify:
        # Weights are hashed beside graphs that are read, because hashing needs no Python.
        with ThreadPoolExecutor(1) as beside:
            hashed = beside.submit(_check, _check_hash, bundle, weights)
            _check(_check_hash, bundle, [spec for spec in files if spec not in weights])
            _check_graphs(bundle)
            hashed.result()
    return bundle


def _read_manifest(root: Path) -> bytes:
    try:
        with reading(root / MANIFEST) as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        what = "no such directory" if not os.path.exists(root) else f"no readable {MANIFEST}"
        hint = f"export --ckpt model.pt --out {root}"
        if os.path.isfile(root):
            what, hint = "it is a file", f"export --ckpt {root} --out out/"
            if is_tar(root):
                what, hint = "it is packed", f"bundle unpack {quote(str(root))} --out out/"
        raise BundleError(
            f"{root} is not a bundle: {what} ({error.strerror}); run: lgvit-edge {hint}"
        ) from None


def check_same(bundle: Bundle) -> None:
    """Refuse a folder that now holds another bundle than when it was opened.

    For who loads more of it later.

    Raises:
        BundleError: it does, or is gone.
    """
    now = Manifest.loads(_read_manifest(bundle.root))
    if now.identity != bundle.manifest.identity:
        raise BundleError(
            f"{bundle.root} holds another bundle than when this session was opened; take that one: "
            f"session.reload({str(bundle.root)!r})"
        )


def _check(
    check: Callable[[Bundle, FileSpec], None], bundle: Bundle, files: Iterable[FileSpec]
) -> None:
    for spec in files:
        try:
            check(bundle, spec)
        except (OSError, RuntimeError) as error:  # RuntimeError: a circle of links
            why = getattr(error, "strerror", None) or in_one_line(error)
            raise BundleError(f"{bundle.path(spec)} cannot be read: {why}; {_AGAIN}") from None


def _check_place(bundle: Bundle, spec: FileSpec) -> None:
    found, top = bundle.path(spec).resolve(), bundle.root.resolve()
    if not found.is_relative_to(top):
        raise BundleError(f"{spec.file} leaves the bundle {bundle.root}")
    # A backend may look for weights beside the file that a link leads to.
    if found != top / spec.file:
        raise BundleError(f"{spec.file} is a link; copy the bundle with: cp -rL {bundle.root} COPY")


def _check_size(bundle: Bundle, spec: FileSpec) -> None:
    path = bundle.path(spec)
    if not path.exists():
        raise BundleError(f"{bundle.root} is incomplete: {spec.file} is missing; export it again")
    if (size := size_of(path)) != spec.bytes:
        raise BundleError(
            f"{path} is not the file that was exported: expected {spec.bytes} bytes, found {size}; "
            f"{_AGAIN}"
        )


def _check_hash(bundle: Bundle, spec: FileSpec) -> None:
    path = bundle.path(spec)
    if sha256(path) != spec.sha256:
        raise BundleError(
            f"{path} is not the file that was exported: its sha256 differs from the manifest's; "
            f"{_AGAIN}"
        )


def _check_graphs(bundle: Bundle) -> None:
    """Refuse graphs that no export writes, before a backend reads them."""
    manifest = bundle.manifest
    # Equal weights are stored once and loaded several times: zeros of a model that was not trained,
    # and those that passes share.
    times = 1 + len(manifest.passes)
    most = times * sum(spec.bytes for spec in manifest.weights) + _EQUAL_WEIGHTS
    parts = [part for segment in manifest.segments for part in segment.part_graphs]
    ends = [segment.spec for segment in manifest.segments if segment.parts is None]
    graphs: list[GraphSpec | GraphPart] = [*manifest.graphs, *parts]
    taken = {graph.graph.file: _check_graph(bundle, graph) for graph in graphs}
    # What is loaded together: segments whole, or in parts; or the baseline.
    loaded: list[Sequence[GraphSpec | GraphPart]] = [
        manifest.graphs[:-1],
        [*parts, *ends],
        [manifest.baseline],
    ]
    for together in loaded:
        if (found := sum(taken[graph.graph.file] for graph in together)) > most:
            raise _no_graph(bundle.root, f"expected at most {most} bytes of weights, found {found}")


def _check_graph(bundle: Bundle, graph: GraphSpec | GraphPart) -> int:
    """Check one graph; return the bytes of weights that it takes from files."""
    path, manifest = bundle.path(graph.graph), bundle.manifest
    try:
        data = read_bytes(path, graph.graph.bytes)
        return check_graph(data, graph, manifest.opset, weights_of(manifest.weights, graph))
    except MemoryError:
        raise BackendError(f"out of memory: cannot check {path}; close other programs") from None
    except (OSError, ValueError) as error:
        raise _no_graph(path, str(error)[:600]) from None


def _no_graph(path: Path, why: str) -> BundleError:
    return BundleError(
        f"{path} is no graph that lgvit-edge exports: {why}; {_AGAIN}; do not run it if you do not "
        "trust who made it"
    )


def weights_of(files: Iterable[FileSpec], graph: GraphSpec | GraphPart) -> dict[str, int]:
    """Return the bytes of files with weights, by the name that a graph gives them."""
    folder = "".join(graph.graph.file.rpartition("/")[:2])
    # Listed names have no "..", no root and no drive, and were checked against links.
    return {
        spec.file.removeprefix(folder): spec.bytes for spec in files if spec.file.startswith(folder)
    }


@contextlib.contextmanager
def writing(root: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield an empty folder to write a bundle into, and move it to ``root`` at the end.

    Until then ``root`` is untouched, so a failed, interrupted or killed export leaves the old
    bundle or none. The body writes the manifest last (``finish``). A lock admits one writer per
    ``root``, so partial folders beside it were left by killed processes and are removed.
    Without ``replace``, a bundle that is there already is an error, and stays.

    Raises:
        ExportError: ``root`` holds something that is not a bundle, cannot be written, or is being
            written by another process.
    """
    given = root
    try:
        check_folder(given, replaced=True)
        root = followed(given)
        staging, aside = root.with_name(f".{root.name}{PARTIAL}"), _set_aside(root)
        root.parent.mkdir(parents=True, exist_ok=True)
        with locked(root.with_name(f".{root.name}{LOCK}")):
            _put_back(aside, root)  # an export was killed between its renames
            _check_replaceable(root, replace)
            for left in (staging, aside):
                shutil.rmtree(left, ignore_errors=True)
            try:
                (staging / "segments").mkdir(parents=True)
                with named(given, staging):
                    yield staging
                _swap(staging, root, aside, replace)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except BlockingIOError as holder:
        raise ExportError(
            f"{given} is being written by {holder}; wait for it, or name another --out"
        ) from None
    except OSError as error:
        raise ExportError(f"cannot write {given}: {error.strerror or error}") from error


def check_place(root: Path) -> None:
    """Check before long work that ``writing`` will be able to put a bundle at ``root``.

    Raises:
        OSError: no folder can be put there, as ``check_folder`` says.
        ExportError: it holds something that is not a bundle.
    """
    check_folder(root, replaced=True)
    root = followed(root)
    if not _set_aside(root).exists():  # what a killed export left comes back first
        _check_replaceable(root)


def _set_aside(root: Path) -> Path:
    return root.with_name(f".{root.name}.old")


def finish(staging: Path, manifest: Manifest) -> None:
    """Write the manifest, which turns the folder ``staging`` into a bundle."""
    write(staging / MANIFEST, manifest.dumps())


def check_writable(root: Path) -> None:
    """Check before long work that a bundle can be changed in place.

    Raises:
        BundleError: its folder cannot be written.
    """
    try:
        check_folder(root)
    except OSError as error:
        raise BundleError(
            f"{error.strerror} (copy the bundle there: cp -r {quote(str(root))} COPY)"
        ) from None


def add_to_manifest(
    root: Path,
    identity: str,
    points: Mapping[str, OperatingPoint] | None = None,
    *,
    plain_models: Mapping[str, PlainModel] | None = None,
    evidence: Sequence[Evidence] = (),
) -> list[str]:
    """Add operating points by name, those of other names stay; or replace the plain models.

    Evidence is added as ``merged`` does; returns its notes. ``identity`` is that of the manifest
    that they were measured with.

    Raises:
        BundleError: the bundle was exported again meanwhile, or cannot be written.
    """
    try:
        # Two runs must not lose each other's points or write into a newly exported bundle.
        with locked(root / LOCK, wait=f"changes {root}"):
            manifest = open_bundle(root, verify=False).manifest
            if manifest.identity != identity:
                raise BundleError(
                    f"{root} was exported again meanwhile: the figures are not its own; run the "
                    "command again"
                )
            plain = manifest.plain_models if plain_models is None else dict(plain_models)
            new = manifest.points | dict(points or {})
            known, notes = merged(manifest.evidence, evidence)
            before = manifest
            manifest = dataclasses.replace(manifest, points=new, plain_models=plain, evidence=known)
            finish(root, manifest)
            if manifest != before:
                tell_if_signed(root)
            return notes
    except OSError as error:
        raise BundleError(f"cannot write {root / MANIFEST}: {error.strerror or error}") from None


def tell_if_signed(root: Path) -> None:
    """Say that a bundle was changed which somebody had signed."""
    if (root / SIGNATURE).exists():
        tell_unsigned(root)


def tell_unsigned(root: Path) -> None:
    """Say that a bundle had a signature, which no longer holds."""
    tell(
        f"note: {root} was signed and is changed now: whoever asks for a signature refuses it "
        f"until it is signed again: lgvit-edge bundle sign {quote(str(root))} --key KEY"
    )


def describe(staging: Path, name: str) -> FileSpec:
    """Return the name, hash and size of a file in ``staging``."""
    return FileSpec(name, sha256(staging / name), size_of(staging / name))


def _swap(staging: Path, root: Path, aside: Path, replace: bool) -> None:
    with contextlib.ExitStack() as stack:
        if root.is_dir():  # waits a moment while operating points are written
            stack.enter_context(locked(root / LOCK, wait=f"changes {root}"))
        _check_replaceable(root, replace)  # again, because the work took time
        try:
            if not _exchange(staging, root):
                with contextlib.suppress(FileNotFoundError):
                    root.rename(aside)
                staging.rename(root)
        finally:  # Ctrl-C between the two renames included
            _put_back(aside, root)
            shutil.rmtree(aside, ignore_errors=True)


def _exchange(staging: Path, root: Path) -> bool:
    """Exchange two folders in one step, which Linux can do; return whether both were there.

    So there is no moment without a bundle, for readers and for ``kill -9``.
    """
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    places = here, os.fsencode(staging), here, os.fsencode(root)
    return rename is not None and rename(*places, exchange) == 0


def _put_back(aside: Path, root: Path) -> None:
    """Rename ``aside`` back to ``root``, unless a bundle has taken its place."""
    if aside.exists() and not (root / MANIFEST).exists():
        if root.exists():
            _check_replaceable(root)
            shutil.rmtree(root)  # made by a process that waits for the lock in it
        aside.rename(root)


def _check_replaceable(root: Path, replace: bool = True) -> None:
    """Refuse ``root`` unless it is missing, an empty folder, or a bundle without other files.

    Without ``replace``, a bundle is refused too.
    """
    if not replace and (root / MANIFEST).exists():
        raise ExportError(f"{root} exists; name another --out, or add --replace")
    if root.exists() and not _may_replace(root):
        raise ExportError(
            f"{root} exists and is not a bundle, or holds more than one: it is left alone; name "
            "another --out, or remove it first"
        )


def _may_replace(root: Path) -> bool:
    if not root.is_dir():
        return False
    partial = leftovers(MANIFEST)  # a killed run may have left such files
    names = {path.name for path in root.iterdir() if not fnmatch.fnmatchcase(path.name, partial)}
    names.discard(LOCK)
    if not names:
        return True
    try:
        record = finite_json.loads(read_bytes(root / MANIFEST, MAX_BYTES))
    except (OSError, ValueError):
        return False
    ours = isinstance(record, dict) and {"schema_version", "baseline"} <= record.keys()
    ours = ours and bool({"passes", "segments"} & record.keys())  # segments, before version 7
    return ours and names <= {MANIFEST, SIGNATURE, "segments", ENGINES, BASELINE, PARITY}
