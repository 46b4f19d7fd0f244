"""The camera application: from cameras to answers that other programs use; without PyTorch.

Names load when first used; docs/camera.md explains them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lgvit_edge._support.lazy import lazily

if TYPE_CHECKING:
    from lgvit_edge.camera.drawing import draw as draw
    from lgvit_edge.camera.drawing import jpeg as jpeg
    from lgvit_edge.camera.monitor import Monitor as Monitor
    from lgvit_edge.camera.page.server import Page as Page
    from lgvit_edge.camera.pipeline import Camera as Camera
    from lgvit_edge.camera.settings import CameraSettings as CameraSettings
    from lgvit_edge.camera.settings import Region as Region
    from lgvit_edge.camera.shot import Answer as Answer
    from lgvit_edge.camera.shot import Event as Event
    from lgvit_edge.camera.shot import Frame as Frame
    from lgvit_edge.camera.shot import Shot as Shot
    from lgvit_edge.camera.sinks.base import Sink as Sink
    from lgvit_edge.camera.sinks.jsonl import JsonLines as JsonLines
    from lgvit_edge.camera.sinks.metrics import prometheus as prometheus
    from lgvit_edge.camera.sinks.mqtt import Mqtt as Mqtt
    from lgvit_edge.camera.sinks.unsure import KeepUnsure as KeepUnsure
    from lgvit_edge.camera.sinks.video import VideoFiles as VideoFiles
    from lgvit_edge.camera.sinks.webhook import Webhook as Webhook
    from lgvit_edge.camera.sources.base import Source as Source
    from lgvit_edge.camera.sources.base import SourceKind as SourceKind
    from lgvit_edge.camera.sources.base import register_source as register_source

_HOMES = {
    "lgvit_edge.camera.drawing": (
        "draw",
        "jpeg",
    ),
    "lgvit_edge.camera.monitor": ("Monitor",),
    "lgvit_edge.camera.page.server": ("Page",),
    "lgvit_edge.camera.pipeline": ("Camera",),
    "lgvit_edge.camera.settings": (
        "CameraSettings",
        "Region",
    ),
    "lgvit_edge.camera.shot": (
        "Answer",
        "Event",
        "Frame",
        "Shot",
    ),
    "lgvit_edge.camera.sinks.base": ("Sink",),
    "lgvit_edge.camera.sinks.jsonl": ("JsonLines",),
    "lgvit_edge.camera.sinks.metrics": ("prometheus",),
    "lgvit_edge.camera.sinks.mqtt": ("Mqtt",),
    "lgvit_edge.camera.sinks.unsure": ("KeepUnsure",),
    "lgvit_edge.camera.sinks.video": ("VideoFiles",),
    "lgvit_edge.camera.sinks.webhook": ("Webhook",),
    "lgvit_edge.camera.sources.base": (
        "Source",
        "SourceKind",
        "register_source",
    ),
}
__all__ = [name for names in _HOMES.values() for name in names]
__getattr__, __dir__ = lazily(__name__, _HOMES)
