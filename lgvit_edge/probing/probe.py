"""Probes one or two networks on images: everything in one run, as a record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lgvit_edge._support.terminal import Update
from lgvit_edge.benchmarks.measure import command_line
from lgvit_edge.errors import UsageError
from lgvit_edge.machine.environment import environment
from lgvit_edge.policies import Policy
from lgvit_edge.probing.analysis import easiness
from lgvit_edge.probing.cka import LEAST
from lgvit_edge.probing.collect import Subject, collect
from lgvit_edge.probing.overlay import MOST_ROWS
from lgvit_edge.probing.record import to_record
from lgvit_edge.probing.views import View, chosen_rows, view
from lgvit_edge.training.team import join


def probe(
    subjects: Sequence[Subject],
    images: Sequence[Path],
    policy: Policy,
    *,
    data: Path,
    batch_size: int = 64,
    seed: int = 0,
    device: str = "auto",
    normed: bool = False,
    relevance: int = 4,
    notes: Sequence[str] = (),
    progress: Update = lambda done, total, detail="": None,
) -> tuple[dict[str, Any], list[Path], list[View | None]]:
    """Runs images through one or two networks, and returns what that tells.

    Args:
        subjects: the first is an LGViT, with or without exits; all are left on the device.
        images: files; those that cannot be read are skipped and counted.
        policy: decides where images stop, for what depends on it.
        data: the folder that the record names files in.
        batch_size: images of a minibatch; the more, the closer CKA is to that of all images.
        seed: of the order of the images, and so of the minibatches.
        device: ``auto``, ``cpu`` or ``cuda``.
        normed: compare the blocks of LGViTs with their tokens normed, so that a few large channels
            do not decide CKA.
        relevance: of how many images to say where each exit looks, 0..64; they are spread from the
            easiest of the first network to its hardest, and the same for both.
        notes: what the reader of the record should know besides.
        progress: is told how many images are done, and then how many exits.

    Returns the record, in plain JSON types, the files that were read, by its rows, and for each
    network where its exits look, if that was asked for and it is an LGViT.

    Raises:
        UsageError: the first network is no LGViT, the policy does not fit the exits, or the device
            is not there.
        DataError: not one image can be read.
        CheckpointError: a network answers with numbers that are not finite.
    """
    if batch_size < LEAST:
        raise UsageError(f"--batch must be at least {LEAST}, found {batch_size}")
    if not 0 <= relevance <= MOST_ROWS:
        raise UsageError(f"--relevance must be 0..{MOST_ROWS}, found {relevance}")
    if subjects[0].lgvit is None:
        raise UsageError(f"expected an LGViT first, found {type(subjects[0].network).__name__}")
    for subject in subjects:
        if subject.lgvit is not None:
            policy.start(subject.lgvit.config.num_exits)
    where = join(device).device
    collected = collect(
        subjects,
        images,
        policy,
        batch_size=batch_size,
        seed=seed,
        device=where,
        normed=normed,
        progress=progress,
    )
    read = [images[place] for place in collected.places]
    views: list[View | None] = [None] * len(subjects)
    if relevance:
        first = collected.answers[0]
        assert first is not None  # an LGViT has answers
        rows = chosen_rows(easiness(first), relevance)
        views = [
            None
            if answers is None
            else view(subject, answers, read, rows, seed=seed, progress=progress)
            for subject, answers in zip(subjects, collected.answers, strict=True)
        ]
    record = to_record(subjects, collected, images, data, views) | {
        "policy": policy.to_json(),
        "batch": batch_size,
        "seed": seed,
        "device": str(where),
        "normed": normed,
        "notes": list(notes),
        "env": environment(),
        "command": command_line(),
    }
    return record, read, views
