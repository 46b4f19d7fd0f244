"""The record of a job: what its answers are made with, kept beside them, so that none are mixed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lgvit_edge._support.files import read_bytes
from lgvit_edge._support.outputs import write
from lgvit_edge.bundle.codec import loads, to_json
from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.errors import UsageError
from lgvit_edge.offline.listing import Listing
from lgvit_edge.policies import Policy

_SCHEMA_VERSION = 1
_LIMIT = 1 << 20  # bytes
_AGAIN = "name another --out, or begin anew with --restart"
# Of ``Session.describe``: what may change the last bits of an answer, and so an exit.
_RAN = ("backend", "version", "device", "precision")


@dataclass(frozen=True)
class Finished:
    """What a finished job has written."""

    bytes: int  # of the answers' file
    answered: int
    unreadable: int
    exits: tuple[int, ...]  # answers at each exit


@dataclass(frozen=True)
class Job:
    """What answers are made with, and how far they are.

    Attributes:
        schema_version: of this record.
        bundle: the bundle's identity.
        labels: a hash of its class names.
        policy: decides where images stop, as ``Policy.to_json`` writes it.
        images: how many there are.
        listing: a hash of their paths, in order.
        batch: images that run together.
        times: whether answers have latencies.
        ran: backend, its version, device and precision; None before the first answer.
        finished: None while the job runs.
    """

    schema_version: int
    bundle: str
    labels: str
    policy: dict[str, Any]
    images: int
    listing: str
    batch: int
    times: bool
    ran: dict[str, str] | None = None
    finished: Finished | None = None

    @property
    def shard(self) -> int:
        """Images in a shard, whole batches: what a machine does at a time, at least 64 in all."""
        batches = min(1024, -(-self.images // 64)) / self.batch
        return max(1, round(batches)) * self.batch

    def about(self) -> dict[str, Any]:
        """Return what the answers were made with, for their file."""
        return {k: v for k, v in to_json(self).items() if k != "finished"}


def new_job(
    manifest: Manifest, policy: Policy, listing: Listing, *, batch: int, times: bool
) -> Job:
    """Return the record of a job that has not begun."""
    labels = json.dumps(manifest.labels).encode()
    return Job(
        schema_version=_SCHEMA_VERSION,
        bundle=manifest.identity,
        labels=hashlib.sha256(labels).hexdigest(),
        policy=plain(policy),
        images=len(listing),
        listing=listing.sha256,
        batch=batch,
        times=times,
    )


def plain(policy: Policy) -> dict[str, Any]:
    """Return a policy as a record has it once it is read again."""
    found: dict[str, Any] = json.loads(json.dumps(policy.to_json()))
    return found


def read_job(path: Path) -> Job | None:
    """Return the record in a file; None if there is none.

    Raises:
        UsageError: it is damaged, or of another version.
        OSError: it cannot be read.
    """
    try:
        text = read_bytes(path, _LIMIT)
    except FileNotFoundError:
        return None
    return loads(
        Job,
        text,
        version=_SCHEMA_VERSION,
        limit=_LIMIT,
        where=str(path),
        cure=_AGAIN,
        error=UsageError,
    )


def write_job(path: Path, job: Job) -> None:
    """Write the record, whole or not at all; raises ``OSError`` as writing does."""
    write(path, json.dumps(to_json(job), indent=1) + "\n")


def check_same(out: Path, begun: Job, now: Job) -> None:
    """Refuse to go on with a job that was begun with something else.

    Raises:
        UsageError: tells what differs.
    """
    for what, before, after in (
        ("bundle", begun.bundle[:16], now.bundle[:16]),
        ("class names", begun.labels[:16], now.labels[:16]),
        ("policy", begun.policy, now.policy),
        ("number of images", begun.images, now.images),
        ("list of images", begun.listing[:16], now.listing[:16]),
        ("--batch", begun.batch, now.batch),
        ("--times", begun.times, now.times),
    ):
        if before != after:
            raise UsageError(
                f"{out} was begun with another {what}: expected {_shown(before)}, found "
                f"{_shown(after)}; give what it was begun with, {_AGAIN}"
            )


def settled(out: Path, job: Job, described: dict[str, Any]) -> Job:
    """Return the record with what ``Session.describe`` says of who answers.

    Raises:
        UsageError: earlier answers came from another backend, version, device or precision.
    """
    ran = {name: str(described[name]) for name in _RAN if name in described}
    if job.ran is None:
        return dataclasses.replace(job, ran=ran)
    if job.ran != ran:
        typed = "".join(
            f" --{name} {job.ran[name]}"
            for name in ("backend", "device", "precision")
            if name in job.ran and job.ran[name] != ran.get(name)
        )
        raise UsageError(
            f"{out} was begun on {_shown(job.ran)}, found {_shown(ran)}, which rounds otherwise; "
            f"{f'add{typed}' if typed else 'install that version'}, {_AGAIN}"
        )
    return job


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(str(item) for item in value.values())[:200]
    return str(value).lower() if isinstance(value, bool) else str(value)
