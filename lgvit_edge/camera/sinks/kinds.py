"""The registry of sinks that a user can name: what each is called, takes, and is made by."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lgvit_edge._support.optional import resolve
from lgvit_edge.camera.sinks.base import Sink
from lgvit_edge.errors import UsageError


@dataclass(frozen=True)
class SinkKind:
    """Describes one kind of sink: how it is asked for, and how it is made.

    Attributes:
        name: such as ``jsonl``; the option is ``--jsonl``, the table of a settings file the same.
        target: what the option takes, such as ``FILE|-``.
        help: what it does, in a few words.
        factory: the class, or where it is: ``module:Class``. Its first argument is the target,
            its keywords are the further settings.
        given: those of its keywords that the application fills in, not the user.
    """

    name: str
    target: str
    help: str
    factory: str | type[Sink]
    given: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """The further settings that a user may give, with their defaults."""
        known = inspect.signature(resolve(self.factory)).parameters.values()
        return {
            p.name: p.default
            for p in known
            if p.kind is p.KEYWORD_ONLY and p.name not in self.given
        }

    def make(self, target: str, settings: Mapping[str, Any] | None = None, **given: Any) -> Sink:
        """Make a sink, not yet open; of ``given``, it takes what it knows.

        Raises:
            UsageError: there is no such setting, or a value cannot be; names the sink.
        """
        settings = dict(settings or {})
        if unknown := [name for name in settings if name not in self.settings]:
            known = ", ".join(self.settings) or "none"
            raise UsageError(f"{self.name} has no setting {unknown[0]!r}; it has: {known}")
        more = {name: value for name, value in given.items() if name in self.given}
        try:
            sink: Sink = resolve(self.factory)(target, **settings, **more)
        except UsageError as error:
            raise UsageError(f"{self.name}: {error}") from None
        return sink


_KINDS: dict[str, SinkKind] = {}


def register_sink(kind: SinkKind) -> None:
    """Add a kind of sink.

    Raises:
        ValueError: the name is in use.
    """
    if kind.name in _KINDS:
        raise ValueError(f"there is a sink kind {kind.name!r} already")
    _KINDS[kind.name] = kind


def sink_kinds() -> list[SinkKind]:
    """Return all kinds, in the order in which they were registered."""
    return list(_KINDS.values())


def sink_kind(name: str) -> SinkKind:
    """Return the kind of a name.

    Raises:
        UsageError: there is none; lists them.
    """
    if name not in _KINDS:
        raise UsageError(f"there is no sink {name!r}; there are: {', '.join(_KINDS)}")
    return _KINDS[name]


_HERE = "lgvit_edge.camera.sinks"
for _kind in (
    SinkKind("jsonl", "FILE|-", "a JSON line for each answer", f"{_HERE}.jsonl:JsonLines"),
    SinkKind("mqtt", "URL", "answers to an MQTT broker", f"{_HERE}.mqtt:Mqtt"),
    SinkKind("webhook", "URL", "answers in POST requests", f"{_HERE}.webhook:Webhook"),
    SinkKind(
        *("video", "DIR", "annotated video files", f"{_HERE}.video:VideoFiles"),
        given=("recorded",),
    ),
    SinkKind(
        *("keep-unsure", "DIR", "pictures that are hard, to label them"),
        factory=f"{_HERE}.unsure:KeepUnsure",
        given=("labels",),
    ),
):
    register_sink(_kind)
