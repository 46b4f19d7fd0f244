"""A bundle as one file: the same bytes everywhere, and nothing else is unpacked."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import resource
import shutil
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from signed import key_pair, own_copy, signed_copy
from small import frames

from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.bundle.keys import read_trusted
from lgvit_edge.bundle.packed import pack, unpack
from lgvit_edge.bundle.signature import files_in
from lgvit_edge.errors import BundleError, ExportError, UsageError
from lgvit_edge.runtime import Session

Change = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def archive(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("packed") / "out.tar"
    pack(bundle, file)
    return file.read_bytes()


def contents(root: Path) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in files_in(root)}


def sealed(body: bytes) -> bytes:
    """An archive with a hash that is right, as an attacker makes it."""
    return body + f"{hashlib.sha256(body).hexdigest()}\n".encode()


def test_a_bundle_there_and_back(bundle: Path, archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(archive)
    done = unpack(tmp_path / "x.tar", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(bundle)
    assert done.files == len(contents(bundle)) and done.bytes == len(archive)
    assert done.digest == open_bundle(bundle).manifest.digest and done.signer is None
    assert archive.endswith(f"{done.sha256}\n".encode())
    assert {path.name for path in tmp_path.iterdir()} == {"x.tar", "out"}


def test_the_same_bytes_whatever_the_folder_is_like(
    bundle: Path, archive: bytes, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    for name in sorted(contents(bundle), reverse=True):  # written in another order
        (other / name).parent.mkdir(exist_ok=True)
        (other / name).write_bytes((bundle / name).read_bytes())
        (other / name).chmod(0o640)
        os.utime(other / name, (10**9, 10**9))
    if os.geteuid() == 0:
        os.chown(other / "manifest.json", 12345, 12345)
    (other / ".lock").write_text("process 1")
    pack(other, tmp_path / "x.tar")
    assert (tmp_path / "x.tar").read_bytes() == archive


def test_tar_reads_it(bundle: Path, archive: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        found = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore
    assert found == contents(bundle)


def test_a_signed_bundle_keeps_its_signature(bundle: Path, tmp_path: Path) -> None:
    pair = key_pair(tmp_path / "k")
    root, keys = signed_copy(bundle, tmp_path / "out", pair), read_trusted([pair.public])
    assert pack(root, tmp_path / "x.tar").signer == pair.key.public
    before = os.umask(0o002)  # as many systems have it; others could write what it makes
    try:
        done = unpack(tmp_path / "x.tar", tmp_path / "again", trusted_keys=keys)
    finally:
        os.umask(before)
    assert done.signer == pair.key.public
    assert open_bundle(tmp_path / "again", trusted_keys=keys).signer == pair.key.public
    others = read_trusted([b"x" * 32])
    with pytest.raises(BundleError, match="x.tar: .*third is signed with a key that is not trust"):
        unpack(tmp_path / "x.tar", tmp_path / "third", trusted_keys=others)
    assert not (tmp_path / "third").exists()


def test_an_unsigned_one_where_a_signature_is_asked_for(archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(archive)
    with pytest.raises(BundleError, match="x.tar: .*out is not signed"):
        unpack(tmp_path / "x.tar", tmp_path / "out", trusted_keys=read_trusted([b"x" * 32]))
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def test_what_was_changed_since_it_was_signed_is_not_packed(bundle: Path, tmp_path: Path) -> None:
    root = signed_copy(bundle, tmp_path / "out", key_pair(tmp_path / "k"))
    (root / "manifest.json").write_bytes((root / "manifest.json").read_bytes() + b"\n")
    with pytest.raises(BundleError, match="manifest.json is not the file that was signed"):
        pack(root, tmp_path / "x.tar")
    assert not (tmp_path / "x.tar").exists()


def test_what_belongs_to_no_bundle_is_not_packed(bundle: Path, tmp_path: Path) -> None:
    root = own_copy(bundle, tmp_path / "out")
    (root / "notes.txt").write_text("x")
    with pytest.raises(BundleError, match="notes.txt does not belong to a bundle"):
        pack(root, tmp_path / "x.tar")
    with pytest.raises(UsageError, match="lies in the bundle itself"):
        pack(root, root / "x.tar")


def test_a_file_that_changes_meanwhile(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = own_copy(bundle, tmp_path / "out")

    def changes(opened: object) -> None:
        weights = root / "segments" / "weights.bin"
        weights.write_bytes(weights.read_bytes()[::-1])

    monkeypatch.setattr("lgvit_edge.bundle.packed.check_not_stale", changes)
    with pytest.raises(BundleError, match="weights.bin was changed while it was packed"):
        pack(root, tmp_path / "x.tar")
    assert not (tmp_path / "x.tar").exists()


# Archives that pack has not written


def names_of(archive: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return tar.getnames()


def remade(
    archive: bytes,
    entry: Callable[[tarfile.TarInfo], object] = lambda info: None,
    more: tuple[tarfile.TarInfo, ...] = (),
    format: int = tarfile.USTAR_FORMAT,
) -> bytes:
    """The archive as tarfile writes it, with entries changed or added, in order, and sealed."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore
    files += [(info, b"x" * info.size) for info in more]
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for info, data in sorted(files, key=lambda pair: pair[0].name):
            info.pax_headers = {}
            entry(info)
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    body = out.getvalue()
    return sealed(body[: len(body.rstrip(b"\0")) + 511 & ~511] + bytes(1024))


def test_remade_without_a_change_it_is_the_same(archive: bytes) -> None:
    assert remade(archive) == archive


def named(name: str, size: int = 3, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def at_first(**fields: object) -> Change:
    """Changes the header of the first file."""

    def entry(info: tarfile.TarInfo) -> None:
        if info.name == "baseline.onnx":
            for field, value in fields.items():
                setattr(info, field, value)

    return lambda archive: remade(archive, entry)


def with_entry(*args: object, **fields: object) -> Change:
    return lambda archive: remade(archive, more=(named(*args, **fields),))  # type: ignore


def twice(archive: bytes) -> bytes:
    size = 512 + (int(archive[124:135], 8) + 511 & ~511)
    return sealed(archive[:size] + archive[:-65])


def turned(archive: bytes) -> bytes:
    """The first file stands last."""
    size = 512 + (int(archive[124:135], 8) + 511 & ~511)
    body = archive[:-65]
    return sealed(body[size:-1024] + body[:size] + bytes(1024))


def hidden(archive: bytes) -> bytes:
    """Something stands in the padding of the first file."""
    size = int(archive[124:135], 8)
    assert size % 512
    body = bytearray(archive[:-65])
    body[512 + size] = 1
    return sealed(bytes(body))


STRANGE: dict[str, tuple[Change, str]] = {
    "absolute": (with_entry("/tmp/x"), "must be relative and stay in the bundle"),
    "parent": (with_entry("../x"), "must be relative and stay in the bundle"),
    "parent inside": (with_entry("segments/../../x"), "must be relative and stay in the bundle"),
    "backslash": (with_entry("..\\x"), "must be relative and stay in the bundle"),
    "drive": (with_entry("C:x"), "must be relative and stay in the bundle"),
    "control": (with_entry("a\x1bx"), "must be relative and stay in the bundle"),
    "here": (with_entry("./x"), "must be relative and stay in the bundle"),
    "link": (
        with_entry("x", 0, type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        "the entry 'x' is not as one writes it",
    ),
    "hard link": (
        with_entry("x", 0, type=tarfile.LNKTYPE, linkname="manifest.json"),
        "the entry 'x' is not as one writes it",
    ),
    "pipe": (with_entry("x", 0, type=tarfile.FIFOTYPE), "the entry 'x' is not as"),
    "device": (with_entry("x", 0, type=tarfile.CHRTYPE, devmajor=1), "the entry 'x' is not as"),
    "folder": (with_entry("x", 0, type=tarfile.DIRTYPE), "the entry 'x' is not as|must be"),
    "sparse": (with_entry("x", 3, type=tarfile.GNUTYPE_SPARSE), "the entry 'x' is not as"),
    "set-uid": (at_first(mode=0o4755), "the entry 'baseline.onnx' is not as"),
    "owner": (at_first(uid=7), "the entry 'baseline.onnx' is not as"),
    "named owner": (at_first(uname="root"), "the entry 'baseline.onnx' is not as"),
    "time": (at_first(mtime=7), "the entry 'baseline.onnx' is not as"),
    "twice": (twice, "'baseline.onnx' is there twice, or not in its place"),
    "order": (turned, "'baseline.onnx' is there twice, or not in its place"),
    "case": (with_entry("Baseline.onnx"), "'baseline.onnx' is there twice"),
    "file in a file": (with_entry("baseline.onnx/x"), "lies where another file is"),
    "file over a folder": (with_entry("segments"), "lies where another file is"),
    "long name": (
        lambda a: remade(a, more=(named("n" * 200),), format=tarfile.GNU_FORMAT),
        "the entry",
    ),
    "pax": (
        lambda a: remade(a, more=(named("\u732b" * 90),), format=tarfile.PAX_FORMAT),
        "the entry|must be relative",
    ),
    "deep": (with_entry("a/b/c/d/e/f"), "more files or folders than any bundle"),
    "stranger": (with_entry("notes.txt"), "notes.txt does not belong to a bundle"),
    "stranger in engines": (with_entry("engines/x"), "engines/x does not belong to a bundle"),
    "a lock": (with_entry("segments/.lock"), "'segments/.lock' does not belong to a bundle"),
    "hidden": (hidden, "behind 'baseline.onnx' there is something hidden"),
    "compressed": (lambda a: gzip.compress(a), "not what lgvit-edge bundle pack writes"),
    "nothing": (lambda a: b"", "it is truncated"),
    "zeros": (lambda a: bytes(10**5), "it was changed or truncated|its end"),
    "only an end": (lambda a: sealed(bytes(1024)), "no readable manifest.json"),
    "no manifest": (lambda a: without("manifest.json", a), "no readable manifest.json"),
    "no weights": (lambda a: without("segments/weights.bin", a), "weights.bin is missing"),
    "more behind": (lambda a: a + b"x", "its hash differs"),
    "another hash": (lambda a: a[:-2] + b"g\n", "its hash differs"),
    "no hash": (lambda a: a[:-65], "its hash differs"),
    "no end": (lambda a: sealed(a[: -65 - 512]), "truncated|its end is missing"),
}


def without(name: str, archive: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as other:
            for info in tar:
                if info.name != name:
                    other.addfile(info, tar.extractfile(info))
    body = out.getvalue()
    return sealed(body[: len(body.rstrip(b"\0")) + 511 & ~511] + bytes(1024))


@pytest.mark.parametrize("kind", STRANGE)
def test_what_pack_has_not_written_is_refused(archive: bytes, tmp_path: Path, kind: str) -> None:
    change, said = STRANGE[kind]
    folder = tmp_path / "place"
    folder.mkdir()
    (tmp_path / "x.tar").write_bytes(change(archive))
    with pytest.raises(BundleError, match=said) as refused:
        unpack(tmp_path / "x.tar", folder / "out")
    assert str(refused.value).startswith(f"{tmp_path / 'x.tar'}"), refused.value
    assert ".partial" not in str(refused.value)
    assert not list(folder.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"place", "x.tar"}


def test_a_change_anywhere_is_refused(archive: bytes, tmp_path: Path) -> None:
    """``python -m lgvit_edge.benchmarks.experiments.signatures`` changes many more bytes."""
    file, size = tmp_path / "x.tar", len(archive)
    places = {*range(0, size, size // 20), *range(0, 512, 50), *range(size - 70, size, 9), size - 1}
    for place in sorted(places):
        changed = bytearray(archive)
        changed[place] ^= 1 << place % 8
        file.write_bytes(changed)
        with pytest.raises(BundleError, match="not what lgvit-edge bundle pack writes"):
            unpack(file, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def test_a_truncated_one_is_refused(archive: bytes, tmp_path: Path) -> None:
    for size in (1, 511, 512, 513, 2000, len(archive) // 2, len(archive) - 600, len(archive) - 1):
        (tmp_path / "x.tar").write_bytes(archive[:size])
        with pytest.raises(BundleError, match="truncated"):
            unpack(tmp_path / "x.tar", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def test_a_size_that_is_claimed_is_not_believed(archive: bytes, tmp_path: Path) -> None:
    """Nor is anything written for it."""
    header = named("baseline.onnx", 8**11 - 1).tobuf(tarfile.USTAR_FORMAT)
    (tmp_path / "x.tar").write_bytes(header + archive[512:])
    with pytest.raises(BundleError, match="it is truncated"):
        unpack(tmp_path / "x.tar", tmp_path / "out")


def test_too_many_files(archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.tar").write_bytes(archive)
    monkeypatch.setattr("lgvit_edge.bundle.packed.MAX_FILES", 3)
    with pytest.raises(BundleError, match="more files or folders than any bundle"):
        unpack(tmp_path / "x.tar", tmp_path / "out")


# Places


def test_a_name_that_exists_is_refused_unless_asked(
    bundle: Path, other_bundle: Path, archive: bytes, tmp_path: Path
) -> None:
    (tmp_path / "x.tar").write_bytes(archive)
    out = own_copy(other_bundle, tmp_path / "out")
    with pytest.raises(ExportError, match="out exists; name another --out, or add --replace"):
        unpack(tmp_path / "x.tar", out)
    assert contents(out) == contents(other_bundle)
    unpack(tmp_path / "x.tar", out, replace=True)
    assert contents(out) == contents(bundle)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for replace in (False, True):
        with pytest.raises(ExportError, match="is not a bundle.*it is left alone"):
            unpack(tmp_path / "x.tar", tmp_path / "mine", replace=replace)
    assert {path.name for path in tmp_path.iterdir()} == {"x.tar", "out", "mine"}


def test_a_bad_archive_leaves_the_old_bundle(
    other_bundle: Path, archive: bytes, tmp_path: Path
) -> None:
    (tmp_path / "x.tar").write_bytes(archive[:-1])
    out = own_copy(other_bundle, tmp_path / "out")
    with pytest.raises(BundleError):
        unpack(tmp_path / "x.tar", out, replace=True)
    assert contents(out) == contents(other_bundle)
    assert {path.name for path in tmp_path.iterdir()} == {"x.tar", "out"}


def test_who_has_the_old_bundle_open_keeps_it(
    bundle: Path, other_bundle: Path, archive: bytes, tmp_path: Path
) -> None:
    """And does not take later from the new one what it had not loaded yet."""
    (tmp_path / "x.tar").write_bytes(archive)
    out = own_copy(other_bundle, tmp_path / "out")
    (frame,) = frames(1)
    with Session.open(out) as session:
        before = session.predict(frame)
        unpack(tmp_path / "x.tar", out, replace=True)
        after = session.predict(frame)
        assert (after.class_index, after.confidence) == (before.class_index, before.confidence)
        with pytest.raises(BundleError, match=r"holds another bundle than .*session.reload\('"):
            session.policy = "never"
        assert session.predict(frame).bundle == before.bundle


def test_a_full_disk_leaves_nothing(bundle: Path, archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(archive)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(ExportError, match="cannot write .*out: File too large: it needs more"):
            unpack(tmp_path / "x.tar", tmp_path / "out")
        with pytest.raises(OSError, match="File too large: it needs") as full:
            pack(bundle, tmp_path / "y.tar")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(full.value.filename) == str(tmp_path / "y.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def test_a_disk_that_would_be_filled_is_told_before(
    archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.tar").write_bytes(archive)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ExportError, match=r"it needs [\d,]+ bytes, and 1,000 are free"):
        unpack(tmp_path / "x.tar", tmp_path / "new" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_is_no_file(tmp_path: Path, kind: str, in_time: None) -> None:
    path = tmp_path / "x.tar"
    if kind == "folder":
        path.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(BundleError, match="cannot read .*x.tar: (No such|it is a)"):
        unpack(path, tmp_path / "out")


def test_a_packed_bundle_is_not_opened(archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(archive)
    with pytest.raises(BundleError, match=r"it is packed .*run: lgvit-edge bundle unpack .*x.tar"):
        Session.open(tmp_path / "x.tar")


def test_what_is_unpacked_only_its_owner_can_change(archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(archive)
    before = os.umask(0)
    try:
        unpack(tmp_path / "x.tar", tmp_path / "out")
    finally:
        os.umask(before)
    for path in (tmp_path / "out", *(tmp_path / "out").rglob("*")):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o022, path


def test_a_name_that_no_header_holds(bundle: Path, tmp_path: Path) -> None:
    root = own_copy(bundle, tmp_path / "out")
    (root / "engines" / ("t" * 200)).mkdir(parents=True)
    (root / "engines" / ("t" * 200) / ("e" * 120)).write_text("x")
    with pytest.raises(BundleError, match="cannot be packed"):
        pack(root, tmp_path / "x.tar")
