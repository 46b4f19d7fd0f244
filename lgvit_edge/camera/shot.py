"""What travels through the camera application: frames, answers, shots and events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.runtime.result import Result

# State of a source: not yet delivering, delivering, late with its next frame, waiting before it is
# opened again, over.
State = Literal["opening", "live", "stalled", "lost", "ended"]


@dataclass(frozen=True)
class Frame:
    """One picture that a source delivered.

    Attributes:
        image: the picture, ``[H, W, 3] uint8`` RGB.
        number: which frame of its source it is, from 0, those of earlier connections included.
        connection: how often the source had been opened before, or a recording begun again.
        start: the ``time.perf_counter()`` at which the source delivered it.
        time: the same moment in seconds since 1970.
    """

    image: NDArray[np.uint8]
    number: int
    connection: int
    start: float
    time: float


@dataclass(frozen=True)
class Answer:
    """The answer for one frame, or for one region of it.

    Attributes:
        camera: name of the camera.
        region: name of the region of interest; None for the whole frame.
        box: the part of the frame that was classified: left, top, width and height in pixels.
        frame: number of the frame in its source, from 0.
        time: when the source delivered the frame, in seconds since 1970.
        label: the class; None where the answer is unsure.
        guess: the class, also where the answer is unsure.
        class_index: index of ``guess``, 0..C - 1.
        confidence: how sure, in the unit that ``result.measure`` names.
        latency_ms: from the delivery of the frame to the answer.
        point: the operating point in use; None for a policy without a name.
        dropped: frames of this camera that newer ones replaced since its previous answered frame.
        result: what the session said of this image.
    """

    camera: str
    region: str | None
    box: tuple[int, int, int, int]
    frame: int
    time: float
    label: str | None
    guess: str
    class_index: int
    confidence: float
    latency_ms: float
    point: str | None
    dropped: int
    result: Result

    @property
    def unsure(self) -> bool:
        """Whether the answer is too unsure to be used."""
        return self.label is None

    def to_json(self) -> dict[str, Any]:
        """Return the answer as plain types: one line of ``--jsonl``; docs/camera.md explains it."""
        result = self.result
        return {
            "camera": self.camera,
            "region": self.region,
            "box": list(self.box),
            "frame": self.frame,
            "time": round(self.time, 6),
            "class": self.label,
            "guess": self.guess,
            "class_index": self.class_index,
            "unsure": self.unsure,
            "confidence": round(self.confidence, 6),
            "measure": result.measure.name,
            "exit": result.exit,
            "block": result.block,
            "pass": result.pass_number,
            "stopped": result.stopped,
            "late": result.late,
            "latency_ms": round(self.latency_ms, 3),
            "network_ms": round(result.network_ms, 3),
            "point": self.point,
            "dropped": self.dropped,
            "bundle": result.bundle,
        }


@dataclass(frozen=True)
class Shot:
    """A frame with its answers, as it goes to the sinks: one answer for each region.

    Attributes:
        camera: name of the camera.
        frame: number of the frame in its source, from 0.
        time: when the source delivered it, in seconds since 1970.
        answers: one, or one for each region of interest, in their order.
        image: the picture, ``[H, W, 3] uint8`` RGB, not to be changed; None for sinks that need
            none.
        fps: frames per second that the source says it has; None where it does not say.
    """

    camera: str
    frame: int
    time: float
    answers: tuple[Answer, ...]
    image: NDArray[np.uint8] | None
    fps: float | None = None


@dataclass(frozen=True)
class Event:
    """Something that people should know: a camera lost or back, a sink that fails.

    Attributes:
        time: in seconds since 1970.
        camera: name of the camera; empty where it is about none.
        text: one line for a log.
        level: ``info``, ``warning`` or ``error``.
        state: the camera's state from now on; None where it stays.
    """

    time: float
    camera: str
    text: str
    level: Literal["info", "warning", "error"] = "info"
    state: State | None = field(default=None)

    def to_json(self) -> dict[str, Any]:
        """Return the event as plain types."""
        return {
            "time": round(self.time, 3),
            "camera": self.camera,
            "text": self.text,
            "level": self.level,
        }
