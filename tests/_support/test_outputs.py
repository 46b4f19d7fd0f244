"""Outputs: streams are written through, links stay, bad places are refused before the work."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pytest import MonkeyPatch

from lgvit_edge._support import outputs
from lgvit_edge._support.outputs import (
    check_file,
    check_folder,
    followed,
    is_mounted,
    is_stdout,
    replacing,
    write,
)

pytestmark = pytest.mark.usefixtures("in_time")


def output(path: Path, text: str) -> None:
    """As a command does: a check, work, and the output at the end."""
    check_file(path)
    write(path, text)


def test_devices_and_open_files_are_written_through(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to("/dev/null")
    for path in (Path("/dev/null"), tmp_path / "link"):
        output(path, "new")
        assert stat.S_ISCHR(os.stat(path).st_mode)
    assert (tmp_path / "link").is_symlink()
    with (tmp_path / "open").open("w+") as file:
        output(Path(f"/dev/fd/{file.fileno()}"), "first\n")
        output(Path(f"/proc/self/fd/{file.fileno()}"), "second\n")
    assert (tmp_path / "open").read_text() == "first\nsecond\n"
    print("before")  # what Python holds back comes first
    output(Path("/dev/stdout"), "new\n")
    output(Path("/dev/stderr"), "error\n")
    assert capfd.readouterr() == ("before\nnew\n", "error\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "open"]


def test_standard_output_is_known_by_any_name(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/stdout")
    names = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/dev/./stdout", str(tmp_path / "link"))
    assert all(is_stdout(Path(name)) for name in names)
    assert not any(is_stdout(Path(name)) for name in ("stdout", "/dev/stderr", "/dev/null"))


def test_a_full_device_is_named(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/full")
    for path in (Path("/dev/full"), tmp_path / "link"):
        with pytest.raises(OSError, match="No space left on device") as refused:
            output(path, "new")
        assert refused.value.filename == str(path) and stat.S_ISCHR(os.stat(path).st_mode)


def test_a_pipe_gets_the_whole_output_though_its_reader_came_early(tmp_path: Path) -> None:
    pipe, long = tmp_path / "pipe", "new " * 100_000  # longer than a pipe holds
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as thread:
        said = thread.submit(pipe.read_text)
        while True:  # until the reader is there
            try:
                check_file(pipe)
                break
            except OSError as none:
                assert "nobody reads from the pipe" in str(none)
        check_file(pipe)  # again, by another option or layer
        write(pipe, long)
        assert said.result(10) == long
    assert pipe.is_fifo()


def test_a_reader_that_leaves_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    check_file(tmp_path / "pipe")
    os.close(reader)
    with pytest.raises(BrokenPipeError) as refused:
        write(tmp_path / "pipe", "new")
    assert refused.value.filename == str(tmp_path / "pipe")


def test_a_link_stays_and_what_it_leads_to_is_replaced(
    tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "file").write_text("old")
    old = (tmp_path / "far" / "file").stat().st_ino
    (tmp_path / "near").symlink_to("far/file")
    (tmp_path / "link").symlink_to(tmp_path / "near")
    (tmp_path / "dangling").symlink_to("far/none")
    monkeypatch.chdir(tmp_path / "far")
    output(Path("../link"), "new")
    output(Path("../dangling"), "new")
    assert [(tmp_path / n).is_symlink() for n in ("link", "near", "dangling")] == [True] * 3
    for name in ("file", "none"):
        assert (tmp_path / "far" / name).read_text() == "new"
    assert (tmp_path / "far" / "file").stat().st_ino != old  # replaced, not overwritten
    assert len(list(tmp_path.rglob("*"))) == 6


@pytest.fixture
def places(tmp_path: Path, monkeypatch: MonkeyPatch) -> Iterator[Path]:
    """The working folder, with what is no place for a file."""
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").write_text("old")
    os.mkfifo("pipe")
    Path("round").symlink_to("about")
    Path("about").symlink_to("round")
    Path("lost").symlink_to("none/x")
    with socket.socket(socket.AF_UNIX) as end:
        end.bind("socket")
        yield tmp_path


@pytest.mark.parametrize(
    ("path", "number", "text"),
    [
        ("none/x", errno.ENOENT, "no such folder: .*none; run: mkdir -p .*/none"),
        ("lost", errno.ENOENT, "no such folder: .*none; run: mkdir -p .*/none"),
        ("file/x", errno.ENOTDIR, "expected a folder, found a file: .*/file; name a file else"),
        ("folder", errno.EISDIR, "expected a file, found a folder: folder"),
        ("pipe", errno.ENXIO, "nobody reads from the pipe pipe: start its reader first"),
        ("socket", errno.EINVAL, "expected a file, found a socket: socket"),
        ("round", errno.ELOOP, "round is a link that leads round in a circle; remove it"),
        ("/dev/fd/987", errno.EBADF, "/dev/fd/987 is not open here: name a file, or open it: 987>"),
        ("/sys/x", None, "cannot write to /sys: .*; name a file elsewhere"),
        ("x" * 250, errno.ENAMETOOLONG, "cannot write to .*: File name too long; name a file else"),
    ],
)
def test_what_is_no_place_for_a_file_is_refused(
    path: str, number: int | None, text: str, places: Path
) -> None:
    before = sorted(places.rglob("*"))
    for refused in (check_file, lambda path: write(path, "new")):
        with pytest.raises(OSError) as found:
            refused(Path(path))
        assert number in (None, found.value.errno)
        if refused is check_file:
            assert re.match(text, str(found.value.strerror)), found.value
    assert sorted(places.rglob("*")) == before and Path("file").read_text() == "old"


def test_what_is_read_again_is_no_stream(places: Path) -> None:
    for path in ("pipe", "/dev/null", "/dev/stdout"):
        with pytest.raises(OSError, match=f"expected a file, found a pipe or a device: {path}"):
            check_file(Path(path), streams=False)
    check_file(Path("file"), streams=False)


def test_a_disk_is_refused(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    try:
        os.mknod(disk, stat.S_IFBLK | 0o600, os.makedev(7, 250))  # no such disk: nothing is lost
    except OSError as error:
        pytest.skip(f"no device can be made here: {error.strerror}")
    with pytest.raises(OSError, match="expected a file, found a disk"):
        check_file(disk)


@pytest.mark.parametrize(
    ("path", "replaced", "text"),
    [
        ("file", False, "expected a folder, found a file: file"),
        ("pipe", True, "expected a folder, found a file: pipe"),
        ("file/x/y", False, "cannot write to .*/file: Not a directory; name a folder elsewhere"),
        ("round", False, "round is a link that leads round in a circle; remove it"),
        ("/sys/x/y", True, "cannot write to /sys: .*; name a folder elsewhere"),
    ],
)
def test_what_is_no_place_for_a_folder_is_refused(
    path: str, replaced: bool, text: str, places: Path
) -> None:
    with pytest.raises(OSError) as found:
        check_folder(Path(path), replaced=replaced)
    assert re.match(text, str(found.value.strerror)), found.value


def test_places_that_are_good_stay_as_they_are(places: Path) -> None:
    before = sorted(places.rglob("*"))
    for path in ("x", "file", "folder/x"):
        check_file(Path(path))
    for path in ("x", "x/y/z", "folder"):
        check_folder(Path(path), replaced=True)
        check_folder(Path(path))
    assert sorted(places.rglob("*")) == before


def test_a_killed_check_leaves_nothing(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    try:
        os.close(os.open(tmp_path, os.O_TMPFILE | os.O_RDWR))
    except (AttributeError, OSError):
        pytest.skip("this file system has no files without names")
    for module in (os, Path):  # as of a process that ends before it removes anything
        monkeypatch.setattr(module, "unlink", lambda *_, **__: None)
    check_file(tmp_path / "x")
    check_folder(tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_what_is_mounted_is_not_replaced(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    (tmp_path / "x.json").write_text("old")
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name in ("out", "x.json"))
    for name in ("out", "link"):
        with pytest.raises(OSError, match=f"{name} is mounted, .* name a folder inside it"):
            check_folder(tmp_path / name, replaced=True)
        check_folder(tmp_path / name)  # written in place
    with pytest.raises(OSError, match="x.json is mounted, .*: mount its folder, or name another"):
        check_file(tmp_path / "x.json")


MOUNTS = """
import os, subprocess, sys
from pathlib import Path
from lgvit_edge._support.outputs import check_file, check_folder, write

def mount(*arguments):
    subprocess.run(["mount", *map(str, arguments)], check=True)

def refused(check, *arguments, **options):
    try:
        check(*arguments, **options)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    raise SystemExit(f"{arguments} was not refused")

root = Path(sys.argv[1])
for name in ("disk", "with space", "plain"):
    (root / name).mkdir()
(root / "one").write_text("old")
(root / "other").write_text("old")
mount("-t", "tmpfs", "-o", "size=256k", "none", root / "disk")
mount("--bind", root / "plain", root / "with space")  # of the same file system
mount("--bind", root / "one", root / "other")
print(refused(check_folder, root / "disk", replaced=True))
print(refused(check_folder, root / "with space", replaced=True))
print(refused(check_file, root / "other"))
check_folder(root / "disk")
check_folder(root / "disk" / "bundle", replaced=True)
write(root / "disk" / "x", "old")
print(refused(write, root / "disk" / "x", "new " * 100_000))
print((root / "disk" / "x").read_text(), os.listdir(root / "disk"))
mount("-o", "remount,ro", root / "disk")
print(refused(check_file, root / "disk" / "x"))
print(refused(check_folder, root / "disk" / "bundle", replaced=True))
"""


def test_real_mounts_and_a_real_full_disk(tmp_path: Path) -> None:
    if not (tool := shutil.which("unshare")):
        pytest.skip("needs unshare")
    alone = [tool, "--map-root-user", "--mount"]
    if subprocess.run(
        [*alone, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True
    ).returncode:
        pytest.skip("nothing can be mounted here")
    done = subprocess.run(
        [*alone, sys.executable, "-c", MOUNTS, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    folder, space, file, full, old, written, bundle = done.stdout.splitlines()
    assert "disk is mounted, so it cannot be replaced: name a folder inside it, such as" in folder
    assert "with space is mounted, so it cannot be replaced" in space and "'" in space
    assert "other is mounted, so it cannot be replaced: mount its folder, or name another" in file
    assert re.search(
        r"disk/x: No space left on device: it needs 400,000 bytes, and 2\d\d,\d{3} are free; name "
        "a place elsewhere",
        full,
    )
    assert old == "old ['x']"
    assert (
        "cannot write to" in written and "Read-only file system; name a file elsewhere" in written
    )
    assert "Read-only file system; name a folder elsewhere" in bundle


@pytest.fixture
def short_files() -> Iterator[None]:
    """No file of more than 4,096 bytes can be written: another kind of full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_says_what_was_needed_and_leaves_the_old_file(
    tmp_path: Path, short_files: None
) -> None:
    path = tmp_path / "x"
    write(path, "old")
    with pytest.raises(OSError) as known:
        write(path, "new " * 2000)
    with pytest.raises(OSError) as unknown, replacing(path) as partial:
        partial.write_text("new " * 2000)
    for found, needed in ((known, "8,000"), (unknown, "more than 4,096")):
        assert (found.value.errno, found.value.filename) == (errno.EFBIG, str(path))
        assert re.fullmatch(
            rf"File too large: it needs {needed} bytes, and [\d,]+ are free; name a place "
            r"elsewhere \(or raise ulimit -f\)",
            str(found.value.strerror),
        )
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", outputs.FULL)
@pytest.mark.parametrize("wrapped", [False, True])
def test_full_disks_of_every_kind(number: int, wrapped: bool, tmp_path: Path) -> None:
    """PyTorch raises another error in the place of the one that it met."""

    def body(partial: Path) -> None:
        partial.write_bytes(b"12345")
        try:
            raise OSError(number, os.strerror(number))
        except OSError as error:
            if wrapped:
                raise RuntimeError("enforce fail") from error
            raise

    with pytest.raises(OSError, match="it needs more than 5 bytes") as found:
        with replacing(tmp_path / "x") as partial:
            body(partial)
    assert (found.value.errno, found.value.filename) == (number, str(tmp_path / "x"))
    assert not list(tmp_path.iterdir())


def test_an_error_about_another_file_is_told_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as found, replacing(tmp_path / "x"):
        (tmp_path / "none").read_text()
    assert found.value.filename == str(tmp_path / "none")


def test_links_are_followed_to_the_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("c/d")
    assert followed(tmp_path / "a") == tmp_path / "c" / "d"
    assert not is_mounted(tmp_path) and is_mounted(Path("/"))
