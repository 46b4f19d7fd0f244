"""``Inputs``: images on their way through a bundle, resized for a pass when it begins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.errors import DataError, UsageError
from lgvit_edge.images.arrays import is_array
from lgvit_edge.images.preprocess import (
    ImageLike,
    as_rgb,
    network_input,
    several,
    to_float,
)
from lgvit_edge.images.spec import View


class Inputs:
    """Holds images as the passes of a bundle see them; ``Session.prepare`` makes it.

    It has a length, and a slice of it holds some of the images. Images are resized at once for one
    pass. Where there are others, the images are kept, and resized each time that ``of`` asks.

    Attributes:
        views: how each pass sees the images.
    """

    __slots__ = ("_count", "_frames", "_ready", "views")

    def __init__(
        self,
        views: tuple[View, ...],
        ready: Sequence[NDArray[Any] | None],
        frames: Sequence[NDArray[np.uint8]] | None = None,
    ) -> None:
        """Hold the input ``[B, ...]`` of each pass, or instead of any the frames it is made from.

        Use ``prepare``.
        """
        self.views, self._ready, self._frames = views, ready, frames
        known = frames if frames is not None else next(a for a in ready if a is not None)
        self._count = len(known)

    @classmethod
    def prepare(
        cls,
        images: Sequence[ImageLike],
        views: tuple[View, ...],
        color: str = "rgb",
        *,
        first: int = 0,
        own: bool = False,
    ) -> Inputs:
        """Resize images of any size, each as ``as_rgb`` takes it, for the pass of index ``first``.

        One array ``[B, H, W, C]`` will do. The result may share memory with the images, which then
        must not change while it is used; with ``own`` it shares none.

        Raises:
            DataError: an image has another type or shape, or ``images`` is no sequence or empty.
            UsageError: there is no such color.
        """
        if len(views) == 1:
            array = network_input(images, *views[0], color)
            if own and len(array) == 1:  # more were stacked
                array = _own(array, images[0])
            return cls(views, (array,))
        images = several(images)
        # Contiguous, because each resizing would make it so again.
        frames = [np.ascontiguousarray(as_rgb(image, color)) for image in images]
        if own:
            frames = [_own(frame, image) for frame, image in zip(frames, images, strict=True)]
        ready: list[NDArray[Any] | None] = [None] * len(views)
        ready[first] = network_input(frames, *views[first])
        return cls(views, ready, frames)

    @staticmethod
    def of_crops(crops: Sequence[NDArray[np.uint8]], views: tuple[View, ...], index: int) -> Inputs:
        """Hold ``[size, size, 3] uint8`` RGB that was resized and cropped for the last pass.

        Raises:
            UsageError: ``index`` is that of another pass, after which they would not do.
            DataError: one has another size.
        """
        preprocess, size, dtype = views[index]
        if index < len(views) - 1:
            raise UsageError(f"expected crops for pass {len(views)}, the last, found {index + 1}")
        if not crops:
            raise DataError("expected at least one crop, found none")
        for crop in crops:
            if crop.shape != (size, size, 3):
                raise DataError(f"expected a crop [{size}, {size}, 3], found {list(crop.shape)}")
        ready: list[NDArray[Any] | None] = [None] * len(views)
        array = np.stack(crops)
        ready[index] = array if dtype == "uint8" else to_float(array, preprocess)
        return Inputs(views, ready)

    @staticmethod
    def join(parts: Iterable[Inputs]) -> Inputs:
        """Return the images of all parts, for the same passes, in their order."""
        first, *others = parts
        if not others:
            return first
        if len({part._frames is None for part in (first, *others)}) == 2:  # some cannot be resized
            first, *others = (part.resized() for part in (first, *others))
        ready = [
            None if array is None else np.concatenate([array, *(p.of(i) for p in others)])
            for i, array in enumerate(first._ready)
        ]
        if first._frames is None:
            return Inputs(first.views, ready)
        frames = [frame for part in (first, *others) for frame in part._frames or ()]
        return Inputs(first.views, ready, frames)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, rows: slice | NDArray[np.intp]) -> Inputs:
        ready = [None if array is None else array[rows] for array in self._ready]
        if self._frames is None:
            return Inputs(self.views, ready)
        places = np.arange(len(self))[rows]
        return Inputs(self.views, ready, [self._frames[place] for place in places])

    def of(self, index: int, rows: NDArray[np.intp] | None = None) -> NDArray[Any]:
        """Return the input of the pass of this index, ``[B, ...]``; of some rows, if given."""
        array = self._ready[index]
        if array is not None:
            return array if rows is None else array[rows]
        assert self._frames is not None  # kept wherever a pass is not ready
        frames = self._frames if rows is None else [self._frames[row] for row in rows]
        return network_input(frames, *self.views[index])

    def resized(self) -> Inputs:
        """Return the same images, resized for every pass now, so that ``of`` takes no time."""
        return Inputs(self.views, [self.of(index) for index in range(len(self.views))])


def _own(array: NDArray[Any], image: ImageLike) -> NDArray[Any]:
    """Return an array, or a copy of it where it may share memory with the image it is made from."""
    if isinstance(image, np.ndarray):
        return array.copy() if np.may_share_memory(array, image) else array
    return array.copy() if is_array(image) else array  # of another library: there is no telling
