"""How one camera is read and answered: its source, frames, regions and thresholds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lgvit_edge._support.numbers import real, whole
from lgvit_edge.errors import DataError, UsageError

PACES = ("real", "fast")
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)(%?)")


@dataclass(frozen=True)
class Region:
    """A part of the picture that is classified by itself.

    Attributes:
        left, top, width, height: in pixels, or with ``share`` in shares of the picture, 0..1.
        share: whether they are shares.
    """

    left: float
    top: float
    width: float
    height: float
    share: bool = False

    @classmethod
    def parse(cls, text: str) -> Region:
        """Read ``x,y,w,h``, pixels such as ``100,50,224,224`` or shares such as ``10%,0%,50%,50%``.

        Raises:
            UsageError: it is neither.
        """
        numbers = [_NUMBER.fullmatch(part.strip()) for part in str(text).split(",")]
        signs = {found[2] for found in numbers if found}
        if len(numbers) != 4 or None in numbers or len(signs) != 1:
            raise UsageError(
                "expected left, top, width and height in pixels such as 100,50,224,224, or as "
                f"shares of the picture such as 10%,0%,50%,50%; found {text!r}"
            )
        share = signs == {"%"}
        x, y, w, h = (float(found[1]) / (100 if share else 1) for found in numbers if found)
        region = cls(x, y, w, h, share=share)
        if region.width <= 0 or region.height <= 0:
            raise UsageError(f"a region needs a width and a height above 0, found {text!r}")
        if share and (region.left + region.width > 1.0 or region.top + region.height > 1.0):
            raise UsageError(f"a region must lie within the picture, found {text!r}")
        return region

    def box(self, width: int, height: int, name: str = "") -> tuple[int, int, int, int]:
        """Return the region in a picture of this size: left, top, width and height in pixels.

        Raises:
            DataError: it does not lie within the picture.
        """
        factors = (width, height, width, height) if self.share else (1, 1, 1, 1)
        sides = (self.left, self.top, self.width, self.height)
        x, y, w, h = (round(side * factor) for side, factor in zip(sides, factors, strict=True))
        if self.share:  # rounded edges stay inside
            w, h = min(max(w, 1), width - x), min(max(h, 1), height - y)
        if w < 1 or h < 1 or x + w > width or y + h > height:
            raise DataError(
                f"the region {name} must lie within the picture: expected at most {width} x "
                f"{height} pixels, found {x},{y},{w},{h}"
            )
        return x, y, w, h


@dataclass(frozen=True)
class CameraSettings:
    """How one camera is read and answered.

    Attributes:
        source: its address, as ``lgvit-edge camera --source`` takes it, or a camera's number.
        every: one frame of so many is answered; the others are skipped.
        motion: share of pixels, 0..1, that must change for a frame to be answered; None for all.
        regions: parts of the picture by name, each answered by itself; none for the whole picture.
        deadline_ms: time from the delivery of a frame to its answer; None for any time.
        smooth: how answers are smoothed over frames, such as ``average:8`` or ``majority:8``; None
            for not at all.
        unsure_below: probability below which an answer is unsure; None for never.
        loop: whether files begin again at their end.
        pace: ``real``: files are read at their own frame rate; ``fast``: as fast as possible.
        timeout: seconds without a frame after which a source has stalled.
    """

    source: str | int
    every: int = 1
    motion: float | None = None
    regions: Mapping[str, Region] = field(default_factory=dict)
    deadline_ms: float | None = None
    smooth: str | None = None
    unsure_below: float | None = None
    loop: bool = False
    pace: Literal["real", "fast"] = "real"
    timeout: float = 5.0

    @property
    def address(self) -> str:
        """The source as text."""
        return str(self.source)

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            UsageError: names the first field that cannot be used.
        """
        is_source = isinstance(self.source, (str, int)) and not isinstance(self.source, bool)
        if not is_source or not self.address:
            raise UsageError(f"source must be text such as 0 or rtsp://..., found {self.source!r}")
        whole("every", self.every)
        if self.motion is not None and not 0 < real(self.motion) < 1:
            raise UsageError(f"motion must be a share above 0 and below 1, found {self.motion!r}")
        if self.deadline_ms is not None and not 0 < real(self.deadline_ms) < 1e9:
            raise UsageError(f"deadline_ms must be a positive number, found {self.deadline_ms!r}")
        if self.unsure_below is not None and not 0 < real(self.unsure_below) <= 1:
            raise UsageError(
                f"unsure_below must be a probability in 0..1, found {self.unsure_below!r}"
            )
        if self.smooth is not None:
            from lgvit_edge.camera.smoothing import parse_smoothing  # help must not load NumPy

            try:
                parse_smoothing(self.smooth)
            except UsageError as error:
                raise UsageError(f"smooth: {error}") from None
        if self.pace not in PACES:
            raise UsageError(f"pace must be one of {', '.join(PACES)}, found {self.pace!r}")
        if not 0 < real(self.timeout) < 1e6:
            raise UsageError(f"timeout must be a positive number, found {self.timeout!r}")
