"""Shots as cameras give them, and waiting for what threads do."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.camera.monitor import Monitor
from lgvit_edge.camera.shot import Answer, Shot
from lgvit_edge.runtime.result import Result
from lgvit_edge.runtime.session import Session
from lgvit_edge.runtime.stats import Recorder, Statistics

START = 1_800_000_000.0  # seconds since 1970


def result(**changes: Any) -> Result:
    """What a session says of one image."""
    known: dict[str, Any] = {
        **{"class_index": 0, "label": "a", "confidence": 0.9, "exit": 2, "block": 3},
        **{"pass_number": 1, "latency_ms": 4.0, "network_ms": 3.0},
    }
    return Result(**{**known, **changes})


def answer(
    camera: str = "gate",
    frame: int = 0,
    label: str | None = "a",
    *,
    guess: str | None = None,
    region: str | None = None,
    box: tuple[int, int, int, int] = (0, 0, 64, 48),
    confidence: float = 0.9,
    at: float | None = None,
    **of_result: Any,
) -> Answer:
    """One answer, of a frame of a camera with 10 frames per second."""
    said = guess if guess is not None else label if label is not None else "a"
    return Answer(
        camera=camera,
        region=region,
        box=box,
        frame=frame,
        time=START + frame / 10 if at is None else at,
        label=label,
        guess=said,
        class_index=0,
        confidence=confidence,
        latency_ms=5.0,
        point=None,
        dropped=0,
        result=result(label=said, confidence=confidence, **of_result),
    )


def shot(
    camera: str = "gate",
    frame: int = 0,
    *answers: Answer,
    image: NDArray[np.uint8] | None = None,
    fps: float | None = None,
    at: float | None = None,
    **of_answer: Any,
) -> Shot:
    """A frame with its answers; without any, one of the whole frame."""
    answers = answers or (answer(camera, frame, at=at, **of_answer),)
    return Shot(camera, frame, START + frame / 10 if at is None else at, answers, image, fps)


def picture(width: int = 64, height: int = 48, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth picture, ``[H, W, 3] uint8``."""
    rows, columns = np.mgrid[:height, :width]
    planes = [(rows * 2 + columns + seed * 40 + shift) % 256 for shift in (0, 60, 120)]
    return np.stack(planes, 2).astype(np.uint8)


def until(condition: Callable[[], object], what: str = "it", seconds: float = 20.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        time.sleep(0.005)


class Described:
    """What a monitor asks of a session."""

    point: str | None = "balanced"

    def __init__(self) -> None:
        self.manifest = SimpleNamespace(
            segments=[SimpleNamespace(last_block=block) for block in (1, 2, 3, 4)],
            points={"fast": None, "balanced": None},
        )
        self.policy = SimpleNamespace(to_json=lambda: {"name": "confidence"})
        self.recorder = Recorder((1, 1, 1, 1))

    @property
    def stats(self) -> Statistics:
        return self.recorder.snapshot()

    def describe(self) -> dict[str, Any]:
        return {"backend": "onnxruntime", "device": "a CPU", "precision": "fp32"}


def monitor(*cameras: str) -> Monitor:
    """A monitor of cameras, of a session that only tells of itself."""
    return Monitor(cast(Session, Described()), {name: f"rtsp://{name}" for name in cameras})
