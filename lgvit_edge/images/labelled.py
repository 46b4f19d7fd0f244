"""Finding images and their labels: a folder per class, or a flat folder with a list of labels."""

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
    """An image file and its class, or None where nobody said."""

    path: Path
    class_index: int | None


def find_images(
    data: Path, *, num_classes: int, names: tuple[str, ...] = (), labels: Path | None = None
) -> list[LabelledImage]:
    """All images under ``data``.

    Args:
        data: one sub-folder per class, or a flat folder.
        num_classes: C of the model.
        names: the model's class names; sub-folders are matched by name, or by sorted order where
            the model has no names.
        labels: for a flat folder, a text file of lines ``FILE CLASS``, class by index or name.

    Raises:
        DataError: nothing there, or the labels do not match the model's classes.
    """
    if not data.is_dir():
        raise DataError(f"no such folder: {data}")
    if labels is not None:
        return _listed(data, labels, num_classes, names)
    try:
        folders = sorted(p for p in data.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot read {data}: {error.strerror}") from None
    found = [(folder, list_images(folder)) for folder in folders]
    if not any(images for _, images in found):
        flat = [LabelledImage(path, None) for path in list_images(data)]
        if not flat:
            raise DataError(
                f"{data} holds no images: expected one sub-folder per class, or image files"
            )
        return flat
    classes = _folder_classes(data, [folder.name for folder, _ in found], num_classes, names)
    return [
        LabelledImage(path, index)
        for (_, images), index in zip(found, classes, strict=True)
        for path in images
    ]


def unlabelled_images(data: Path) -> list[Path]:
    """All images in a folder and its direct sub-folders, whatever their classes.

    Raises:
        DataError: no such folder, or no images in it.
    """
    if not data.is_dir():
        raise DataError(f"no such folder: {data}")
    try:
        folders = [data, *sorted(p for p in data.iterdir() if p.is_dir())]
    except OSError as error:
        raise DataError(f"cannot read {data}: {error.strerror}") from None
    found = [path for folder in folders for path in list_images(folder)]
    if not found:
        raise DataError(f"{data} holds no images, nor do the folders in it")
    return found


T = TypeVar("T")


def evenly(images: Sequence[T], count: int | None) -> Sequence[T]:
    """``count`` images spread evenly over the list, so that every class has its share."""
    if count is None or count >= len(images):
        return images
    return [images[i * len(images) // count] for i in range(count)]


def content_hash(paths: Iterable[Path]) -> str:
    """SHA-256 over the content of files, in order.

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


def _folder_classes(
    data: Path, folders: list[str], num_classes: int, names: tuple[str, ...]
) -> list[int]:
    if names:
        unknown = [name for name in folders if name not in names]
        if unknown:
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
    """ImageNet has two classes called crane: a name they share tells nothing."""
    for name in used:
        if names.count(name) > 1:
            raise DataError(
                f"the model has {names.count(name)} classes called {name!r}; give the class by "
                "index (--labels with lines FILE INDEX)"
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
        if not line.strip():
            continue
        line = line.strip()
        file, _, text = line.partition("\t" if "\t" in line else " ")
        text = text.strip()
        if text in names:
            _refuse_twins([text], names)
            index = names.index(text)
        elif text.isdecimal() and len(text) < 20 and int(text) < num_classes:
            index = int(text)
        else:
            raise DataError(
                f"{labels}, line {number}: expected FILE CLASS with a class in "
                f"0..{num_classes - 1} or a name the model knows, found {line[:80]!r}"
            )
        path = data / file
        if not path.is_file():
            raise DataError(f"{labels}, line {number}: no such image: {path}")
        images.append(LabelledImage(path, index))
    if not images:
        raise DataError(f"{labels} lists no images")
    return images
