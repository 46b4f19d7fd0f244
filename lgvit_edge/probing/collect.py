"""Runs images once through one or two networks, and keeps what the probes need of them.

Memory is bounded whatever the number of images: one minibatch of pixels, about one stage of it, a
Gram matrix of the minibatch for each stage (8 n^2 bytes for n images, twice that while they are
added), two numbers for each pair of stages, and a few numbers for each image.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lgvit_edge._support.terminal import Update
from lgvit_edge.errors import CheckpointError, DataError
from lgvit_edge.images.preprocess import load_rgb, network_input, to_float
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.model import LGViT
from lgvit_edge.policies import Policy
from lgvit_edge.policies.scores import confidence
from lgvit_edge.probing.analysis import Answers
from lgvit_edge.probing.cka import LEAST, Cka, centred_gram
from lgvit_edge.probing.looks import Looks, looks_of
from lgvit_edge.probing.stages import lgvit_stages, module_stages, steady_stages
from lgvit_edge.probing.ways import evaluating


@dataclass(frozen=True)
class Subject:
    """A network to probe, with the images that it wants.

    Labels are classes of this network, one for each image; None where they are not known.
    """

    name: str
    network: nn.Module  # an LGViT has exits to analyse; of any other only stages are compared
    preprocess: Preprocess
    size: int  # of an image's side, in pixels
    labels: NDArray[np.int64] | None = None

    @property
    def lgvit(self) -> LGViT | None:
        """The network, where it is an LGViT."""
        return self.network if isinstance(self.network, LGViT) else None


@dataclass
class Collected:
    """What a run over images left."""

    places: NDArray[np.int64]  # of the images that were read, among those given, [n], in order
    looks: dict[str, NDArray[np.float64]]  # ``Looks`` of these images, by field, each [n]
    answers: list[Answers | None]  # of each network, rows as ``places``; None where it is no LGViT
    cka: Cka | None  # of stages (network, name); None with fewer than ``LEAST`` images
    unreadable: list[str]  # why files could not be read


def collect(
    subjects: Sequence[Subject],
    images: Sequence[Path],
    policy: Policy,
    *,
    batch_size: int,
    seed: int,
    device: torch.device,
    normed: bool = False,
    progress: Update = lambda done, total, detail="": None,
) -> Collected:
    """Runs images, in an order that ``seed`` decides, through all networks.

    Args:
        subjects: the networks; they are moved to ``device``, and run in eval mode.
        images: files; those that cannot be read are skipped.
        policy: where it stops and what it answers is kept of LGViTs.
        batch_size: images of a minibatch, for CKA too.
        seed: a minibatch should hold images of many classes, so they are mixed.
        device: what runs the networks.
        normed: compare the blocks of LGViTs as ``lgvit_stages`` norms them.
        progress: is told how many images are done.

    Raises:
        DataError: not one image can be read.
        UsageError: a network that is no LGViT fails.
        CheckpointError: an LGViT answers with numbers that are not finite.
    """
    run = _Run(subjects, policy, device, normed)
    order = np.random.default_rng(seed).permutation(len(images))
    with contextlib.ExitStack() as stack:
        for subject in subjects:
            stack.enter_context(evaluating(subject.network.to(device)))
        for done, place in enumerate(order.tolist()):
            progress(done, len(images))
            try:
                run.take(place, load_rgb(images[place]))
            except DataError as error:
                run.unreadable.append(str(error))
                continue
            if len(run.waiting) == batch_size:
                run.flush()
        run.flush()
    progress(len(images), len(images))
    if not run.places:
        raise DataError(f"none of {len(images)} images can be read, such as: {run.unreadable[0]}")
    return run.collected()


@dataclass
class _Run:
    """The state between two images."""

    subjects: Sequence[Subject]
    policy: Policy
    device: torch.device
    normed: bool
    cka: Cka = field(default_factory=Cka)
    places: list[int] = field(default_factory=list)
    looks: list[Looks] = field(default_factory=list)
    # Pixels of images that no network has seen yet, ``[S, S, 3] uint8`` for each network
    waiting: list[list[NDArray[np.uint8]]] = field(default_factory=list)
    rows: list[dict[str, list[NDArray[Any]]]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    # Stages of networks that are no LGViT, by the number of the network
    steady: dict[int, frozenset[str]] = field(default_factory=dict)

    def take(self, place: int, frame: NDArray[np.uint8]) -> None:
        """Takes an image for the next minibatch."""
        crops = [
            network_input([frame], subject.preprocess, subject.size, "uint8")[0]
            for subject in self.subjects
        ]
        self.places.append(place)
        self.looks.append(looks_of(frame.shape[0], frame.shape[1], crops[0]))
        self.waiting.append([np.array(crop) for crop in crops])  # a view would keep the frame

    @torch.no_grad()
    def flush(self) -> None:
        """Runs the images that wait."""
        if not self.waiting:
            return
        grams: dict[tuple[int, str], Tensor] = {}
        compared = len(self.waiting) >= LEAST
        while len(self.rows) < len(self.subjects):
            self.rows.append({})
        for number, subject in enumerate(self.subjects):
            crops = np.stack([crops[number] for crops in self.waiting])
            pixels = torch.from_numpy(to_float(crops, subject.preprocess)).to(self.device)

            if subject.lgvit is None and number not in self.steady:
                self.steady[number] = steady_stages(subject.network, pixels[:1])
            steady = self.steady.get(number)

            def see(
                name: str,
                stage: Tensor,
                number: int = number,
                steady: frozenset[str] | None = steady,
            ) -> None:
                if compared and (steady is None or name in steady):
                    grams[number, name] = centred_gram(stage)

            if subject.lgvit is None:
                module_stages(subject.network, pixels, see)
                continue
            answered = lgvit_stages(subject.lgvit, pixels, see, normed=self.normed)
            logits = answered.float().cpu().numpy()
            if not np.isfinite(logits).all():
                raise CheckpointError(
                    f"{subject.name} answers with numbers that are not finite; train it again"
                )
            exits, answers = self.policy.replay(logits)
            found = {
                "classes": logits.argmax(axis=-1),
                "confidences": confidence(logits),
                "exits": exits,
                "answers": answers,
            }
            for name, values in found.items():
                self.rows[number].setdefault(name, []).append(values)
        if compared:
            self.cka.add(grams)
        self.waiting.clear()

    def collected(self) -> Collected:
        """Returns everything, images in the order in which they were given."""
        order = np.argsort(self.places)
        places = np.array(self.places, np.int64)[order]
        table = np.array(self.looks, np.float64)[order]
        return Collected(
            places,
            {name: table[:, column] for column, name in enumerate(Looks._fields)},
            [self._answers(number, order, places) for number in range(len(self.subjects))],
            self.cka if self.cka.batches else None,
            self.unreadable,
        )

    def _answers(
        self, number: int, order: NDArray[np.intp], places: NDArray[np.int64]
    ) -> Answers | None:
        subject = self.subjects[number]
        if subject.lgvit is None:
            return None
        columns = {name: np.concatenate(v)[order] for name, v in self.rows[number].items()}
        config = subject.lgvit.config
        return Answers(
            columns["classes"].astype(np.int64),
            columns["confidences"],
            columns["exits"].astype(np.int64),
            columns["answers"].astype(np.int64),
            (*(exit.block for exit in config.exits), config.num_blocks),
            None if subject.labels is None else subject.labels[places],
        )
