"""What is found in a folder: images however deep, and nothing that systems put there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lgvit_edge.errors import DataError
from lgvit_edge.images.folders import class_folders, class_names, find_files


def files(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def relative(paths: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def test_images_are_found_by_suffix_however_deep(tmp_path: Path) -> None:
    images = ["a.AVIF", "b.JFIF", "c.gif", "d.pgm", "e.tif", "in/deep/g.JPEG", "in/f.jpg"]
    others = ["notes.txt", "raw.NEF", "in/g.heic", "in/none"]
    passed = [".hidden.jpg", "._a.jpg", ".DS_Store", "Thumbs.db", "in/desktop.ini"]
    passed += ["__MACOSX/in/a.jpg", "@eaDir/a.jpg/SYNOFILE_THUMB_M.jpg", ".cache/x.png"]
    files(tmp_path, *images, *others, *passed)
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    found = find_files(tmp_path)
    # Files before folders
    expected = ["a.AVIF", "b.JFIF", "c.gif", "d.pgm", "e.tif", "in/f.jpg", "in/deep/g.JPEG"]
    assert relative(found.images, tmp_path) == expected
    left_out = sorted(["gone.png", "pipe.png", *others])
    assert sorted(relative(found.others, tmp_path)) == left_out


def test_links_are_followed_once_and_never_upwards(tmp_path: Path) -> None:
    files(tmp_path, "data/cat/1.png", "data/dog/2.png", "elsewhere/3.png", "4.png")
    cat = tmp_path / "data" / "cat"
    (cat / "more").symlink_to(tmp_path / "elsewhere")
    (cat / "again").symlink_to(tmp_path / "elsewhere")
    (cat / "itself").symlink_to(cat)
    (cat / "up").symlink_to(tmp_path)
    (cat / "file.png").symlink_to(tmp_path / "4.png")
    (cat / "loop.png").symlink_to(cat / "loop.png")
    names = [f"n{i}" for i in range(8)]  # each leads to all: 8! ways
    for name in names:
        (cat / name).mkdir()
        for other in names:
            (cat / name / other).symlink_to(cat / other)
    files(cat, *(f"{name}/x.png" for name in names))
    found = find_files(cat)
    seen = [path.resolve() for path in found.images]
    assert len(seen) == len(set(seen)) == 3 + 8
    assert relative(found.images, cat)[:3] == ["1.png", "file.png", "again/3.png"]
    assert relative(found.others, cat) == ["loop.png"]
    (tmp_path / "data" / "eel").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    assert class_names(tmp_path / "data") == ["cat", "dog", "eel"]


def test_class_folders(tmp_path: Path) -> None:
    files(tmp_path, "dog/1.png", "cat/2.png", "top.png", "notes.txt", "__MACOSX/3.png", ".git/4")
    folders = class_folders(tmp_path)
    assert folders.names == class_names(tmp_path) == ["cat", "dog"]
    assert [relative(part.images, tmp_path) for part in folders.found] == [
        ["cat/2.png"],
        ["dog/1.png"],
    ]
    beside, other = folders.left_out()
    assert "images beside the class folders are left out: 1" in beside and "(.txt: 1)" in other
    for name in ("none", "top.png"):
        with pytest.raises(DataError, match=f"no such folder: .*{name}"):
            class_folders(tmp_path / name)


def test_folders_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", refuse)
    for read in (find_files, class_folders, class_names):
        with pytest.raises(DataError, match="cannot read .*: Permission denied"):
            read(tmp_path)


def test_class_folders_need_names_in_utf_8(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(DataError, match=r"not UTF-8: b'caf\\xe9'; rename it"):
        class_names(tmp_path)
