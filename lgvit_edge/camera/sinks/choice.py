"""Makes the sinks that a run asks for, from the options of the command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lgvit_edge._support.optional import resolve
from lgvit_edge.camera.sinks.base import Sink
from lgvit_edge.errors import UsageError


@dataclass(frozen=True)
class _Kind:
    """How a sink is made: what its option is given comes first, then these keywords.

    Attributes:
        sink: module and class.
        settings: further options, and what the class calls them.
        shared: likewise, but settings of the cameras too: they may be given without the sink.
        given: keywords that the application fills in.
    """

    sink: str
    settings: Mapping[str, str] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    given: tuple[str, ...] = ()


# By the names of their options.
_KINDS = {
    "jsonl": _Kind("jsonl:JsonLines", {"jsonl_mb": "max_mb"}),
    "mqtt": _Kind("mqtt:Mqtt", {"mqtt_topic": "topic", "cafile": "cafile"}),
    "webhook": _Kind("webhook:Webhook", {"webhook_changes": "changes", "cafile": "cafile"}),
    "video": _Kind("video:VideoFiles", given=("recorded",)),
    "keep_unsure": _Kind(
        "unsure:KeepUnsure",
        {"keep_mb": "max_mb", "keep_every": "every"},
        shared={"unsure_below": "below"},
        given=("labels",),
    ),
}


def sink_options() -> list[str]:
    """Return the names of all options that are about sinks."""
    kinds = _KINDS.values()
    return [*_KINDS, *dict.fromkeys(o for kind in kinds for o in (*kind.settings, *kind.shared))]


def make_sinks(values: Mapping[str, Any], **given: Sequence[str]) -> list[Sink]:
    """Make the sinks that ``values``, by the names of the options, ask for; none is opened.

    ``given`` are the ``labels`` of the model and the cameras that are ``recorded``.

    Raises:
        UsageError: a value cannot be; names the sink.
    """
    sinks: list[Sink] = []
    for name, kind in _KINDS.items():
        if (target := values.get(name)) is None:
            continue
        settings = {
            keyword: values[option]
            for option, keyword in {**kind.settings, **kind.shared}.items()
            if values.get(option) is not None
        }
        make = resolve(f"lgvit_edge.camera.sinks.{kind.sink}")
        try:
            sinks.append(make(str(target), **settings, **{key: given[key] for key in kind.given}))
        except UsageError as error:
            raise UsageError(f"{name.replace('_', '-')}: {error}") from None
    return sinks


def unused_options(values: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return options that no sink uses that was asked for, each with the options that would."""
    unused: dict[str, list[str]] = {}
    for name, kind in _KINDS.items():
        for option in kind.settings:
            if values.get(option) is not None:
                unused.setdefault(option, []).append(name)
    return {
        option: users
        for option, users in unused.items()
        if all(values.get(user) is None for user in users)
    }


def written_folders(values: Mapping[str, Any]) -> list[Path]:
    """Return the folders that sinks write to."""
    folders = [Path(values[name]) for name in ("video", "keep_unsure") if values.get(name)]
    if (lines := values.get("jsonl")) not in (None, "-"):
        folders.append(Path(lines).parent)
    return folders
