"""Compares what precisions below float32 decide with what float32 decides, on the same images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lgvit_edge.bundle.directory import add_to_manifest, open_bundle
from lgvit_edge.bundle.evidence import Evidence
from lgvit_edge.errors import BackendError
from lgvit_edge.images.labelled import LabelledImage
from lgvit_edge.policies import Policy
from lgvit_edge.runtime import Session
from lgvit_edge.runtime.backends.base import Candidate, ChainOptions
from lgvit_edge.runtime.backends.registry import backend_of
from lgvit_edge.runtime.precision import policies_judged
from lgvit_edge.runtime.selection import lower_precisions
from lgvit_edge.tuning.collect import Progress, collect
from lgvit_edge.tuning.record import NO_CLASS, Recording


def compare_precisions(
    bundle: Path,
    reference: Recording,
    images: Sequence[LabelledImage],
    *,
    backend: str = "auto",
    threads: int | None = None,
    device: str | None = None,
    policy: Policy | None = None,
    note: Callable[[str], None] = lambda text: None,
    progress: Progress = lambda done, total: None,
) -> list[Evidence]:
    """Runs images in every precision below float32 that is offered here, and keeps the evidence.

    Decisions are compared at the bundle's policy, at its operating points without a certificate and
    at ``policy``. The logits are kept beside ``reference``, so an interrupted run goes on; those of
    other images or another bundle are replaced. That a precision cannot run is kept too. Nothing is
    run where there is no such precision.

    Args:
        bundle: the folder; its manifest takes the evidence, after each precision.
        reference: what ``collect`` made of the images in float32.
        images: those of ``reference``; they need no classes.
        backend: as for ``Session.open``, like ``threads`` and ``device``.
        threads: of the CPU.
        device: to run on.
        policy: another one to compare at.
        note: takes why a precision, or what was found of it, was left out.
        progress: called with images done and images in all, for each precision anew.

    Raises:
        BundleError: the bundle was exported again since, or cannot be written; a policy in it is
            invalid.
        DataError: as ``collect``.
    """
    opened = open_bundle(bundle, verify=False)
    judged = policies_judged(opened.manifest)
    if policy is not None and policy not in judged:
        judged.append(policy)
    options = ChainOptions(threads=threads, device=device)
    evidence: list[Evidence] = []
    for way in lower_precisions(opened, backend, options):
        named = backend_of(way.backend).hardware
        if named is None:
            continue
        hardware = named(options)
        stem = reference.path.name.removesuffix(".npy")
        file = reference.path.with_name(f"{stem}.{way.backend}-{way.precision}.npy")
        try:
            with Session.open(
                bundle,
                backend=way.backend,
                precision=way.precision,
                threads=threads,
                device=device,
            ) as session:
                other = collect(
                    session, images, file, decisions_only=True, anew=True, progress=progress
                )
        except BackendError as error:  # such as a logit beyond what float16 holds
            note(f"{way.label} was not compared: {error}")
            found = [_failed(way, hardware, reference, error, each) for each in judged]
        else:
            found = [_judge(way, hardware, reference, other, each) for each in judged]
        for text in add_to_manifest(bundle, reference.about["bundle"], evidence=found):
            note(text)
        evidence += found
    return evidence


def _judge(
    way: Candidate, hardware: str, reference: Recording, other: Recording, policy: Policy
) -> Evidence:
    """Compare the decisions on the images that both could read."""
    places = np.intersect1d(reference.usable, other.usable)
    exits, answers = policy.replay(reference.rows["logits"][places])
    other_exits, other_answers = policy.replay(other.rows["logits"][places])
    labels = reference.rows["label"][places]
    labelled = (labels != NO_CLASS).all()
    return Evidence(
        backend=way.backend,
        precision=str(way.precision),
        hardware=hardware,
        policy=policy.to_json(),
        images=len(places),
        sha256=reference.about["images"],
        same_exit=float((exits == other_exits).mean()),
        same_label=float((answers == other_answers).mean()),
        accuracy=float((other_answers == labels).mean()) if labelled else None,
        reference_accuracy=float((answers == labels).mean()) if labelled else None,
    )


def _failed(
    way: Candidate, hardware: str, reference: Recording, error: BackendError, policy: Policy
) -> Evidence:
    return Evidence(
        backend=way.backend,
        precision=str(way.precision),
        hardware=hardware,
        policy=policy.to_json(),
        images=len(reference.usable),
        sha256=reference.about["images"],
        same_exit=0.0,
        same_label=0.0,
        accuracy=None,
        reference_accuracy=None,
        failure=" ".join(str(error).split())[:500],
    )
