"""``--check``: opens everything that a plan names, once, and tells what was found."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from lgvit_edge.camera.monitor import Monitor
from lgvit_edge.camera.page.server import Page
from lgvit_edge.camera.pipeline import Camera
from lgvit_edge.camera.plan import Plan
from lgvit_edge.camera.settings import CameraSettings
from lgvit_edge.camera.sinks.base import Sink
from lgvit_edge.camera.sources.base import kind_of, without_secrets
from lgvit_edge.errors import DataError, LGViTEdgeError, in_one_line
from lgvit_edge.runtime.session import Session


def check_plan(plan: Plan) -> dict[str, Any]:
    """Open the bundle, one picture of every camera, and every place that answers go to.

    Returns a record: ``session``, ``cameras`` and ``places``, and as ``faults`` what cannot be
    opened; nothing is written to a place but what opening it writes.

    Raises:
        LGViTEdgeError: the bundle cannot be opened.
    """
    with plan.open() as session:
        with ThreadPoolExecutor(len(plan.cameras)) as threads:
            looks = [
                threads.submit(_look, name, settings, session)
                for name, settings in plan.cameras.items()
            ]
            cameras = [look.result() for look in looks]
        places = _places(plan, session)
        about = session.describe()
        policy = str(session.policy.to_json()["name"])
    rows = [*cameras, *places]
    return {
        "session": {**about, "policy": policy, "point": plan.point},
        "cameras": cameras,
        "places": places,
        "faults": [f"{row['name']}: {row['fault']}" for row in rows if row["fault"]],
    }


def place_faults(plan: Plan, session: Session) -> list[str]:
    """Return which places that answers go to cannot be opened, and why; opens and closes each."""
    return [f"{row['name']}: {row['fault']}" for row in _places(plan, session) if row["fault"]]


def _places(plan: Plan, session: Session) -> list[dict[str, Any]]:
    try:
        Camera(plan.cameras, session)  # whether cameras and policy go together
        sinks = plan.sinks(session)
    except LGViTEdgeError as error:
        return [{"name": "settings", "about": "", "fault": _words(error)}]
    rows = [_try(sink.name, "can be opened", partial(_open, sink)) for sink in sinks]
    if plan.page is not None:
        host, port = plan.page
        about = f"can listen at {host}:{port}"
        rows.append(_try("page", about, lambda: _listen(host, port, session)))
    return rows


def _look(name: str, settings: CameraSettings, session: Session) -> dict[str, Any]:
    """Open one source, answer its first picture, and return what it is."""
    kind = kind_of(settings.address)
    row: dict[str, Any] = {
        "name": name,
        "source": without_secrets(settings.address),
        "kind": kind.help,
        "picture": "",
        "regions": ", ".join(settings.regions) or "whole picture",
        "answer": "",
        "fault": "",
    }
    try:
        source = kind.open(settings.address, settings.timeout)
    except (LGViTEdgeError, OSError) as error:
        return row | {"fault": _words(error)}
    try:
        picture = None
        end = time.monotonic() + 4 * settings.timeout  # a stream may be joined between two pictures
        while picture is None and time.monotonic() < end:
            with contextlib.suppress(DataError):
                if (picture := source.read()) is None:
                    return row | {"fault": "it ends before its first picture"}
        if picture is None:
            return row | {"fault": "no picture that can be decoded"}
        height, width = picture.shape[:2]
        row["picture"] = f"{width} x {height}" + (f", {source.fps:g}/s" if source.fps else "")
        boxes = [region.box(width, height, n) for n, region in settings.regions.items()]
        x, y, w, h = boxes[0] if boxes else (0, 0, width, height)
        result = session.predict(np.ascontiguousarray(picture[y : y + h, x : x + w]))
        row["answer"] = f"{result.label} ({result.confidence_text}) at exit {result.exit}"
    except (LGViTEdgeError, OSError) as error:
        row["fault"] = _words(error)
    finally:
        source.close()
    return row


def _open(sink: Sink) -> None:
    sink.open()
    sink.close()


def _listen(host: str, port: int, session: Session) -> None:
    page = Page(Monitor(session, {}), session, host=host, port=port)
    page.open()
    page.stop()


def _try(name: str, about: str, call: Callable[[], None]) -> dict[str, Any]:
    try:
        call()
    except (LGViTEdgeError, OSError) as error:
        return {"name": name, "about": about, "fault": _words(error)}
    return {"name": name, "about": about, "fault": ""}


def _words(error: BaseException) -> str:
    text = str(error) if isinstance(error, LGViTEdgeError) else in_one_line(error)
    return without_secrets(text)
