"""Datasets of labelled images: folders on disk, arrays in memory; and their random changes."""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.errors import DataError
from lgvit_edge.images.classes import ClassOrder, by_number, names_agree
from lgvit_edge.images.folders import SUFFIXES, class_folders, class_names
from lgvit_edge.images.preprocess import load_rgb, resize_crop
from lgvit_edge.images.spec import Preprocess

_RATIO = (3 / 4, 4 / 3)  # width to height of a crop
_ATTEMPTS = 10


class Dataset(Protocol):
    """A dataset of labelled images, each of the size the network takes."""

    classes: tuple[str, ...]  # names, by label
    labels: NDArray[np.int64]  # [n]

    def __len__(self) -> int:
        """The number of images, n."""

    def image(self, index: int, rng: np.random.Generator | None) -> NDArray[np.uint8]:
        """Returns an image ``[S, S, 3] uint8``, augmented by ``rng`` or else as at inference.

        Raises:
            DataError: this image cannot be read.
        """

    def fingerprint(self) -> str:
        """Returns a hash that differs when images, labels or their order differ."""


class ImageFolder:
    """A dataset in a folder: one sub-folder of images per class."""

    def __init__(
        self,
        folder: str | Path,
        *,
        size: int,
        preprocess: Preprocess,
        classes: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        min_crop: float = 0.08,
        flip: bool = True,
    ) -> None:
        """List the images; none is opened.

        Args:
            folder: holds one sub-folder per class.
            size: side of the network's input, in pixels.
            preprocess: how the network expects its images.
            classes: folder names in the order of the labels, such as a model's class names;
                default: the sub-folders, by number or else in sorted order.
            names: what to call the classes instead of by their folders.
            min_crop: smallest share of an image that a random crop keeps.
            flip: mirror every other augmented image.

        Raises:
            DataError: no such folder, fewer than two classes, a class without images, or a class
                that ``classes`` does not name.
        """
        self.folder = Path(folder)
        self.size, self.preprocess = size, preprocess
        self.min_crop, self.flip = min_crop, flip
        found = class_names(self.folder)  # there are some
        order = ClassOrder(tuple(classes or by_number(found)))
        folders = class_folders(self.folder)
        if not names_agree(folders.names, order.names):
            unknown = [name for name in folders.names if not names_agree([name], order.names)]
            raise DataError(
                f"{self.folder}: expected only classes of the training images, "
                f"found {_shorten(unknown)} as well"
            )
        if len(order.names) < 2:
            raise DataError(
                f"{self.folder}: expected at least two classes, one sub-folder each, "
                f"found only {order.names[0]!r}"
            )
        parts = list(zip(folders.names, folders.found, strict=True))
        empty = [name for name, part in parts if not part.images]
        if empty:
            raise DataError(
                f"{self.folder}: expected images ({', '.join(sorted(SUFFIXES))}) in every class "
                f"folder, found none in {_shorten(empty)}"
            )
        self.classes = tuple(names or order.names)
        self.left_out = tuple(folders.left_out())  # what to tell people
        self.paths = [path for _, part in parts for path in part.images]
        counts = [len(part.images) for _, part in parts]
        self.labels = np.repeat(np.array(order.indices(folders.names), np.int64), counts)

    def split(self, share: float, seed: int) -> tuple[ImageFolder, ImageFolder]:
        """Returns two datasets that share no image: the rest, and ``share`` of every class.

        ``share`` is in 0..1: of every class at least one image is set aside, and one is left.
        ``seed`` decides which.

        Raises:
            DataError: a class has a single image.
        """
        rng, aside = np.random.default_rng(seed), np.zeros(len(self), bool)
        for label in np.unique(self.labels):
            own = rng.permutation(np.flatnonzero(self.labels == label))
            if len(own) < 2:
                raise DataError(
                    f"{self.folder}: expected at least two images of each class to set some "
                    f"aside, found one of {self.classes[label]!r}; give a folder: --val DIR"
                )
            aside[own[: min(max(round(share * len(own)), 1), len(own) - 1)]] = True
        return self._part(~aside), self._part(aside)

    def at(self, size: int, preprocess: Preprocess) -> ImageFolder:
        """Returns the same images for a network of another input size; crops are the same."""
        other = copy.copy(self)
        other.size, other.preprocess = size, preprocess
        return other

    def _part(self, chosen: NDArray[np.bool_]) -> ImageFolder:
        part = copy.copy(self)
        part.paths = list(itertools.compress(self.paths, chosen))
        part.labels = self.labels[chosen]
        return part

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int, rng: np.random.Generator | None) -> NDArray[np.uint8]:
        """Returns ``[size, size, 3] uint8``: a random crop, without ``rng`` as at inference.

        Raises:
            DataError: this image cannot be read.
        """
        frame = load_rgb(self.paths[index])
        if rng is None:
            return resize_crop(frame, self.preprocess, self.size)
        return random_resized_crop(
            frame, self.preprocess, self.size, rng, min_share=self.min_crop, flip=self.flip
        )

    def fingerprint(self) -> str:
        """Returns a hash of names, sizes in bytes and labels; no image is read."""
        digest = hashlib.sha256()
        for path, label in zip(self.paths, self.labels, strict=True):
            try:
                size = os.stat(path).st_size
            except OSError as error:
                raise DataError(f"cannot read {path}: {error.strerror}") from None
            digest.update(os.fsencode(path.relative_to(self.folder)))  # some are not UTF-8
            digest.update(f"\0{size}\0{label}\n".encode())
        return digest.hexdigest()


class ArrayDataset:
    """A dataset of images in memory."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        *,
        classes: Sequence[str] = (),
        shift: int = 0,
    ) -> None:
        """Check the arrays; nothing is copied.

        Args:
            images: ``[n, S, S, 3] uint8`` RGB, of the size the network takes.
            labels: ``[n]``, whole numbers from 0.
            classes: names by label; default: the numbers.
            shift: augmented images are moved by up to this many pixels.

        Raises:
            DataError: shapes or types differ from these, or a label has no class.
        """
        images, labels = np.asarray(images), np.asarray(labels)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise DataError(
                f"expected images uint8 [n, S, S, 3], found {images.dtype} {list(images.shape)}"
            )
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise DataError(
                f"expected {len(images)} whole-numbered labels, found {labels.dtype} "
                f"{list(labels.shape)}"
            )
        if not len(images):
            raise DataError("expected images, found none")
        count = len(classes) or int(labels.max()) + 1
        if labels.min() < 0 or labels.max() >= count:
            raise DataError(
                f"expected labels in 0..{count - 1}, found {labels.min()}..{labels.max()}"
            )
        self.images, self.labels, self.shift = images, labels.astype(np.int64), shift
        self.classes = tuple(classes) or tuple(str(c) for c in range(count))

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int, rng: np.random.Generator | None) -> NDArray[np.uint8]:
        """Returns an image ``[S, S, 3] uint8``, shifted when there is an ``rng``."""
        frame: NDArray[np.uint8] = self.images[index]
        return random_shift(frame, rng, pixels=self.shift) if rng and self.shift else frame

    def fingerprint(self) -> str:
        """Returns a hash of every pixel and label."""
        digest = hashlib.sha256(f"{self.images.shape} {self.shift}".encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()


def random_crop_box(
    height: int, width: int, rng: np.random.Generator, *, min_share: float
) -> tuple[float, float, float, float]:
    """Returns left, top, right and bottom of a random part of an image.

    Its area is uniform in ``min_share``..1 of the image's, its aspect ratio log-uniform in
    3/4..4/3: the usual random resized crop.
    """
    for _ in range(_ATTEMPTS):
        area = height * width * rng.uniform(min_share, 1.0)
        ratio = math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return float(x), float(y), float(x + w), float(y + h)
    # A panorama may hold no crop of such a shape: take the largest in its middle.
    ratio = min(max(width / height, _RATIO[0]), _RATIO[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


def random_resized_crop(
    frame: NDArray[np.uint8],
    spec: Preprocess,
    size: int,
    rng: np.random.Generator,
    *,
    min_share: float,
    flip: bool,
) -> NDArray[np.uint8]:
    """Returns a random part of ``frame``, resized and, if ``flip``, every other time mirrored.

    ``[H, W, 3] uint8 -> [size, size, 3] uint8``, with the interpolation of ``spec``. ``min_share``
    is the smallest share of the image's area in a crop.
    """
    from PIL import Image

    box = random_crop_box(frame.shape[0], frame.shape[1], rng, min_share=min_share)
    resampling = Image.Resampling[spec.interpolation.upper()]
    image = Image.fromarray(np.ascontiguousarray(frame)).resize((size, size), resampling, box=box)
    result = np.asarray(image)
    return result[:, ::-1] if flip and rng.random() < 0.5 else result


def random_shift(
    frame: NDArray[np.uint8], rng: np.random.Generator, *, pixels: int
) -> NDArray[np.uint8]:
    """Returns ``frame [H, W, 3] uint8`` moved by up to ``pixels`` each way; borders are black."""
    top, left = pixels - rng.integers(-pixels, pixels + 1, size=2)
    padded = np.pad(frame, ((pixels, pixels), (pixels, pixels), (0, 0)))
    return padded[top : top + frame.shape[0], left : left + frame.shape[1]]


def _shorten(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
