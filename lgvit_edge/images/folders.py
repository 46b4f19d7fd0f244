"""Walks folders of images: what is an image, what is passed over, and what is left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lgvit_edge.errors import DataError, UsageError

_SUFFIXES = (
    *("avif", "bmp", "dib", "gif", "j2k", "jfif", "jp2", "jpe", "jpeg", "jpg", "mpo", "pbm"),
    *("pgm", "png", "pnm", "ppm", "tif", "tiff", "webp"),
)
SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES)
# What systems put into folders besides hidden files (.DS_Store, ._x.jpg); in lower case
OF_SYSTEMS = frozenset(
    {
        *("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information"),
        *("lost+found", "thumbs.db", "desktop.ini"),
    }
)


@dataclass
class Found:
    """The image files that were found, in order, and the files that were left out."""

    images: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)


def check_apart(option: str, out: str | Path, data: str | Path | None) -> None:
    """Refuse a folder to write among images, which the next run would read as a class.

    Raises:
        UsageError: it lies there, and is not hidden.
    """
    if data is None:
        return
    place, images = (Path(os.path.realpath(folder)) for folder in (out, data))
    if place.is_relative_to(images):
        if not any(part.startswith(".") for part in place.relative_to(images).parts):
            raise UsageError(
                f"{option}: {out} lies in {data}, where it would be read as a class; name a folder "
                "elsewhere"
            )


def find_files(folder: Path) -> Found:
    """Find the images in ``folder`` and in the folders in it, however deep.

    By suffix: the files of a folder sorted by name, then its folders. Links are followed; a folder
    that several lead to is read once. Hidden files, and those that systems make, are passed over.

    Raises:
        DataError: a folder cannot be read.
    """
    found = Found()
    for path, image in walk(folder):
        (found.images if image else found.others).append(path)
    return found


def walk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Yield what ``find_files`` finds, one file after the other, and whether each is an image.

    So nobody needs to hold all of a large folder. Raises as ``find_files`` does.
    """
    start = os.path.realpath(folder)
    # A link to a folder above would find everything again, or without end.
    seen = {str(parent) for parent in Path(start).parents}
    waiting = [(folder, start)]
    while waiting:
        here, real = waiting.pop()
        if real in seen:
            continue
        seen.add(real)
        files, folders = _entries(here)
        for path in files:
            yield path, is_image(path)
        waiting += reversed(folders)


@dataclass(frozen=True)
class ClassFolders:
    """A folder with one sub-folder per class, sorted: its names, and what each of them holds."""

    names: list[str]
    found: list[Found]
    images_beside: list[Path]  # images in none of the sub-folders
    files_beside: list[Path]

    def left_out(self) -> Iterator[str]:
        """Yield what to tell people about files that belong to no class."""
        if self.images_beside:
            count, example = len(self.images_beside), self.images_beside[0]
            yield f"images beside the class folders are left out: {count}, such as {example}"
        others = [path for part in self.found for path in part.others]
        yield from left_out([*self.files_beside, *others])


def class_folders(folder: Path) -> ClassFolders:
    """Find the images of each class.

    Raises:
        DataError: a folder cannot be read, or the name of a sub-folder is not UTF-8.
    """
    folders, files = _split(folder)
    images = [path for path in files if is_image(path)]
    return ClassFolders(
        [path.name for path in folders],
        [find_files(path) for path in folders],
        images,
        [path for path in files if path not in set(images)],
    )


def class_names(folder: Path) -> list[str]:
    """Return the names of the sub-folders, one per class, sorted.

    Raises:
        DataError: there are none, or as ``class_folders``.
    """
    folders, files = _split(folder)
    if not folders:
        images = sum(is_image(path) for path in files)
        contents = f"{images} images and no sub-folder" if images else "no sub-folder"
        raise DataError(f"{folder}: expected one sub-folder of images per class, found {contents}")
    return [path.name for path in folders]


def is_image(path: Path) -> bool:
    """Say whether this is a file with the suffix of an image."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def left_out(others: Sequence[Path]) -> Iterator[str]:
    """Yield how many files were left out, of which kinds, and one of them; nothing of none."""
    if not others:
        return
    kinds = Counter(path.suffix.lower() or "no suffix" for path in others)
    counted = ", ".join(f"{kind}: {count}" for kind, count in kinds.most_common(5))
    more = ", ..." if len(kinds) > 5 else ""
    yield (
        f"files that are no images of a kind that is read are left out: {len(others)} "
        f"({counted}{more}), such as {others[0]}; convert images of other kinds to JPEG or PNG"
    )


def _split(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the class folders and the files of ``folder``."""
    if not folder.is_dir():
        raise DataError(f"no such folder: {folder}")
    real = Path(os.path.realpath(folder))
    files, entries = _entries(folder)
    # A link to this folder or to one above it is no class.
    folders = [path for path, target in entries if Path(target) not in (real, *real.parents)]
    for path in folders:
        try:
            path.name.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{folder}: the name of a class folder is not UTF-8: {os.fsencode(path.name)!r}; "
                "rename it"
            ) from None
    return folders, files


def _entries(folder: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Return the files in a folder, and the folders with their real paths, sorted by name."""
    files: list[Path] = []
    folders: list[tuple[Path, str]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith(".") or entry.name.lower() in OF_SYSTEMS:
                    continue
                path = folder / entry.name
                if path.is_dir() if entry.is_symlink() else entry.is_dir():
                    folders.append((path, os.path.realpath(path)))
                else:
                    files.append(path)
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror}") from None
    return files, folders
