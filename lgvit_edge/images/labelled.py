"""Search for images and labels: one folder per class, or a flat folder with a label file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lgvit_edge.errors import DataError
from lgvit_edge.images.preprocess import list_images


@dataclass(frozen=True)
class LabelledImage:
    """An image file and its class index; None if the image has no label."""

    path: Path
    class_index: int | None


def find_images(
    data: Path, *, num_classes: int, names: tuple[str, ...] = (), labels: Path | None = None
) -> list[LabelledImage]:
    """Return all images under ``data`` with their classes.

    Args:
        data: one sub-folder per class, or a flat folder.
        num_classes: C of the model.
        names: the model's class names; sub-folders are matched by name, or by sorted order if the
            model has no names.
        labels: label file of a flat folder: lines ``FILE CLASS``, the class by index or name, with
            a tab or a space between them.

    Raises:
        DataError: there are no images, or the labels do not match the model's classes.
    """
    if not data.is_dir():
        raise DataError(f"no such folder: {data}")
    if labels is not None:
        return _listed(data, labels, num_classes, names)
    folders = [folder for folder in _folders(data) if not folder.name.startswith(".")]
    contents = [list_images(folder) for folder in folders]
    if not any(contents):
        if flat := [LabelledImage(path, None) for path in list_images(data)]:
            return flat
        expected = "expected one sub-folder per class, or image files"
        raise DataError(f"{data} holds no images: {expected}")
    classes = _folder_classes(data, [folder.name for folder in folders], num_classes, names)
    return [
        LabelledImage(path, index)
        for images, index in zip(contents, classes, strict=True)
        for path in images
    ]


def unlabelled_images(data: Path) -> list[Path]:
    """Return all images in a folder and its direct sub-folders, without classes.

    Raises:
        DataError: no such folder, or no images in it.
    """
    if not data.is_dir():
        raise DataError(f"no such folder: {data}")
    if images := [path for folder in (data, *_folders(data)) for path in list_images(folder)]:
        return images
    raise DataError(f"{data} holds no images, nor do the folders in it")


T = TypeVar("T")


def evenly(images: Sequence[T], count: int | None) -> Sequence[T]:
    """Return ``count`` images spread evenly over the list, so that every class has its share."""
    if count is None or count >= len(images):
        return images
    return [images[i * len(images) // count] for i in range(count)]


def content_hash(paths: Iterable[Path]) -> str:
    """Return the SHA-256 over the content of files, in order.

    Raises:
        DataError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from None
    return digest.hexdigest()


def _folders(data: Path) -> list[Path]:
    try:
        return sorted(path for path in data.iterdir() if path.is_dir())
    except OSError as error:
        raise DataError(f"cannot read {data}: {error.strerror}") from None


def _folder_classes(
    data: Path, folders: list[str], num_classes: int, names: tuple[str, ...]
) -> list[int]:
    if names:
        if unknown := [name for name in folders if name not in names]:
            raise DataError(
                f"{data}: the labels do not match the model's: {len(unknown)} of {len(folders)} "
                f"folders are none of its {len(names)} classes, such as {unknown[0]!r}; "
                f"it knows {', '.join(names[:3])}..."
            )
        _refuse_twins(folders, names)
        return [names.index(name) for name in folders]
    if len(folders) != num_classes:
        raise DataError(
            f"{data}: the labels do not match the model's: found {len(folders)} class folders, "
            f"the model has {num_classes} classes and no names to match them by"
        )
    return list(range(num_classes))


def _refuse_twins(used: list[str], names: tuple[str, ...]) -> None:
    """Refuse a name that several classes share, such as ImageNet's two classes named crane."""
    for name in used:
        if names.count(name) > 1:
            raise DataError(
                f"the model has {names.count(name)} classes called {name!r}; give the class by "
                "index, in a list of lines FILE INDEX (--labels; of export: --data-labels)"
            )


def _listed(
    data: Path, labels: Path, num_classes: int, names: tuple[str, ...]
) -> list[LabelledImage]:
    try:
        lines = labels.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the labels {labels}: {error}") from None
    images = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                images.append(_listed_image(data, line.strip(), num_classes, names))
            except DataError as error:
                raise DataError(f"{labels}, line {number}: {error}") from None
    if not images:
        raise DataError(f"{labels} lists no images")
    return images


def _listed_image(data: Path, line: str, num_classes: int, names: tuple[str, ...]) -> LabelledImage:
    """Parse a line ``FILE CLASS`` of a label file; both parts may hold spaces.

    A tab separates the parts if there is one. Otherwise the separator is the space with a class on
    its right and an existing image on its left; it is an error if none is such, or several.
    """
    separator = "\t" if "\t" in line else " "
    places = [place for place, character in enumerate(line) if character == separator]
    if separator == "\t":
        del places[1:]
    pairs = {line[:place].rstrip(): line[place:].strip() for place in places}
    readings = {
        text: LabelledImage(data / file, index)
        for file, text in pairs.items()
        if (index := _class_of(text, num_classes, names)) is not None
    }
    if not readings:
        raise DataError(
            f"expected FILE CLASS with a class in 0..{num_classes - 1} or a name the model knows, "
            f"found {line[:80]!r}"
        )
    present = {text: image for text, image in readings.items() if image.path.is_file()}
    if not present:
        raise DataError(f"no such image: {next(iter(readings.values())).path}")
    if len(present) > 1:
        files = " and ".join(repr(image.path.name) for image in present.values())
        raise DataError(f"{line[:80]!r} fits {files}; put a tab between file and class")
    ((text, image),) = present.items()
    _refuse_twins([text], names)
    return image


def _class_of(text: str, num_classes: int, names: tuple[str, ...]) -> int | None:
    if text in names:
        return names.index(text)
    is_index = text.isdecimal() and len(text) < 20 and int(text) < num_classes
    return int(text) if is_index else None
