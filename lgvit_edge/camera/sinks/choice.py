"""Makes the sinks that a run asks for, from the options of the command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lgvit_edge.camera.sinks.base import Sink
from lgvit_edge.camera.sinks.kinds import sink_kinds

# Options that are further settings of sinks: of which kinds, and how they are called there.
_SETTINGS = {
    "jsonl_mb": {"jsonl": "max_mb"},
    "mqtt_topic": {"mqtt": "topic"},
    "webhook_changes": {"webhook": "changes"},
    "cafile": {"mqtt": "cafile", "webhook": "cafile"},
    "keep_mb": {"keep-unsure": "max_mb"},
    "keep_every": {"keep-unsure": "every"},
}
# Also a setting of the cameras, so that it may be given without the sink.
_SHARED = {"unsure_below": {"keep-unsure": "below"}}


def option_of(kind: str) -> str:
    """Return the option that asks for a kind of sink: ``keep_unsure`` for ``keep-unsure``."""
    return kind.replace("-", "_")


def sink_options() -> list[str]:
    """Return the names of all options that are about sinks."""
    return [*(option_of(kind.name) for kind in sink_kinds()), *_SETTINGS, *_SHARED]


def make_sinks(values: Mapping[str, Any], **given: Sequence[str]) -> list[Sink]:
    """Make the sinks that ``values``, by the names of the options, ask for; none is opened.

    ``given`` are the ``labels`` of the model and the cameras that are ``recorded``.

    Raises:
        UsageError: a value cannot be; names the sink.
    """
    sinks = []
    for kind in sink_kinds():
        if (target := values.get(option_of(kind.name))) is not None:
            settings = {
                users[kind.name]: values[option]
                for option, users in (_SETTINGS | _SHARED).items()
                if kind.name in users and values.get(option) is not None
            }
            sinks.append(kind.make(str(target), settings, **given))
    return sinks


def unused_options(values: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return options that no sink uses that was asked for, each with the options that would."""
    return {
        option: [option_of(user) for user in users]
        for option, users in _SETTINGS.items()
        if values.get(option) is not None
        and all(values.get(option_of(user)) is None for user in users)
    }


def written_folders(values: Mapping[str, Any]) -> list[Path]:
    """Return the folders that sinks write to."""
    folders = [Path(values[name]) for name in ("video", "keep_unsure") if values.get(name)]
    if (lines := values.get("jsonl")) not in (None, "-"):
        folders.append(Path(lines).parent)
    return folders
