"""Search for images and labels: one folder per class, or a flat folder with a label file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from lgvit_edge._support.files import read_bytes
from lgvit_edge.errors import DataError, UsageError
from lgvit_edge.images.classes import class_order
from lgvit_edge.images.folders import class_folders, find_files, left_out
from lgvit_edge.images.labels import read_labels
from lgvit_edge.images.pixels import MAX_BYTES
from lgvit_edge.images.preprocess import load_rgb

Note = Callable[[str], None]


@dataclass(frozen=True)
class LabelledImage:
    """An image file and its class index; None if the image has no label."""

    path: Path
    class_index: int | None


def find_images(
    data: Path,
    *,
    num_classes: int,
    names: tuple[str, ...] = (),
    labels: Path | None = None,
    classes: str | Path | None = None,
    note: Note = lambda text: None,
) -> list[LabelledImage]:
    """Return all images under ``data`` with their classes.

    Args:
        data: one sub-folder per class, or a flat folder.
        num_classes: C of the model.
        names: the model's class names; empty if it has none.
        labels: label file of a flat folder, as ``read_labels`` reads it.
        classes: which class a sub-folder is, where names do not tell, as ``class_order`` takes it.
        note: takes what people should know: files that are left out, and how classes were matched
            where the model has no names.

    Raises:
        DataError: there are no images, or the labels do not match the model's classes.
        UsageError: ``labels`` and ``classes`` are both given.
    """
    if labels is not None and classes is not None:
        raise UsageError("--classes is for one folder per class, a label file for a flat folder")
    if labels is not None:
        listed = [LabelledImage(*pair) for pair in read_labels(data, labels, num_classes, names)]
        known = {image.path for image in listed}
        if rest := [path for path in find_files(data).images if path not in known]:
            note(f"images that {labels} does not list are left out: {len(rest)}, such as {rest[0]}")
        return listed
    folders = class_folders(data)
    if not any(part.images for part in folders.found):
        if not folders.images_beside:
            expected = "expected one sub-folder per class, or image files"
            raise DataError(f"{data} holds no images: {expected}")
        if classes is not None:
            raise DataError(f"{data} has no sub-folder per class, whose order --classes gives")
        for text in replace(folders, images_beside=[]).left_out():
            note(text)
        return [LabelledImage(path, None) for path in folders.images_beside]
    for text in folders.left_out():
        note(text)
    try:
        order = class_order(folders.names, names, num_classes, classes)
    except DataError as error:
        raise DataError(f"{data}: {error}") from None
    if order.told is not None:
        note(order.told)
    return [
        LabelledImage(path, index)
        for part, index in zip(folders.found, order.indices(folders.names), strict=True)
        for path in part.images
    ]


def unlabelled_images(data: Path, note: Note = lambda text: None) -> list[Path]:
    """Return all images in a folder and in the folders in it, without classes.

    ``note`` takes what people should know about files that are left out.

    Raises:
        DataError: no such folder, or no images in it.
    """
    if not data.is_dir():
        raise DataError(f"no such folder: {data}")
    found = find_files(data)
    for text in left_out(found.others):
        note(text)
    if not found.images:
        raise DataError(f"{data} holds no images, nor do the folders in it")
    return found.images


T = TypeVar("T")


def evenly(images: Sequence[T], count: int | None) -> Sequence[T]:
    """Return ``count`` images spread evenly over the list, so that every class has its share."""
    if count is None or count >= len(images):
        return images
    return [images[i * len(images) // count] for i in range(count)]


def readable(images: Sequence[LabelledImage], note: Note) -> list[LabelledImage]:
    """Return the images that can be decoded; ``note`` takes how many others there are.

    Raises:
        DataError: not one image can be decoded.
    """
    good, faults = [], []
    for image in images:
        try:
            load_rgb(image.path)
            good.append(image)
        except DataError as error:
            faults.append(str(error))
    if not good:
        raise DataError(f"none of {len(images)} images can be read, such as: {faults[0]}")
    if faults:
        note(f"{len(faults)} of {len(images)} images cannot be read, such as: {faults[0]}")
    return good


def content_hash(paths: Iterable[Path]) -> str:
    """Return the SHA-256 over the content of files, in order.

    Raises:
        DataError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(hashlib.sha256(read_bytes(path, MAX_BYTES)).digest())
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from None
    return digest.hexdigest()
