"""Turns a dataset into batches on the device.

Every random choice is drawn from a generator seeded by (seed, stage, epoch, image), so it depends
neither on the number of workers nor on what ran before: a resumed training draws the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from lgvit_edge.errors import DataError
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.training.data.datasets import Dataset
from lgvit_edge.training.team import Team

Key = tuple[int, ...]
Indices = np.ndarray[Any, Any]
ALONE = Team(torch.device("cpu"))


@dataclass(frozen=True)
class Batch:
    """Images and labels of one step."""

    images: Tensor  # [B, 3, S, S] float32, normalised
    labels: Tensor  # [B] int64
    indices: Tensor  # [B] int64, places in the dataset


class Batches:
    """Batches of a dataset, epoch after epoch."""

    def __init__(
        self,
        dataset: Dataset,
        preprocess: Preprocess,
        *,
        batch_size: int,
        workers: int = 0,
        team: Team = ALONE,
    ) -> None:
        """Prepare the loader; workers start with the first epoch.

        ``batch_size`` counts the images of all processes of the ``team`` together, of which
        ``shuffled`` yields this one's share. ``workers`` processes decode; 0 decodes in this one.
        """
        self.dataset, self.device, self.team = dataset, team.device, team
        self.unreadable: dict[int, str] = {}  # why images that were skipped cannot be read
        self._sampler = _Sampler(len(dataset), batch_size)
        self._loader: torch_data.DataLoader[Any] = torch_data.DataLoader(
            _Items(dataset),
            batch_sampler=self._sampler,
            num_workers=workers,
            collate_fn=_collate,
            persistent_workers=workers > 0,
        )
        mean, std = torch.tensor([preprocess.mean, preprocess.std], device=self.device).float()
        self._scale = (1 / (255 * std))[:, None, None]
        self._offset = (-mean / std)[:, None, None]

    def __len__(self) -> int:
        """The number of batches per epoch."""
        return len(_bounds(len(self.dataset), self._sampler.batch_size, self.team.size))

    def shuffled(self, key: Key, *, view: Key | None = None) -> Iterator[Batch]:
        """Yields one epoch of augmented images in random order, both decided by ``key``.

        ``view`` decides the augmentation alone, where one repeats: ``ordered`` gives the same.
        """
        return self._run(_permutation(len(self.dataset), key), view or key, self.team)

    def ordered(self, key: Key | None = None, indices: Indices | None = None) -> Iterator[Batch]:
        """Yields all images, or those of ``indices``, in order: augmented as ``key`` decides.

        Without a ``key`` they are as at inference.
        """
        return self._run(np.arange(len(self.dataset)) if indices is None else indices, key)

    def _run(self, order: Indices, key: Key | None, team: Team = ALONE) -> Iterator[Batch]:
        self._sampler.order, self._sampler.key, self._sampler.team = order, key, team
        for frames, indices, faults in self._loader:
            self.unreadable.update(faults)
            if not indices:
                if team.size == 1:
                    continue
                raise DataError(  # the other processes would wait for this one for ever
                    f"a process can read none of its {len(faults)} images of a batch, such as: "
                    f"{next(iter(faults.values()))}; remove them, or train with one process"
                )
            images = torch.from_numpy(frames).to(self.device).permute(0, 3, 1, 2)
            normalised = images.to(torch.float32) * self._scale + self._offset
            labels = torch.from_numpy(self.dataset.labels[indices]).to(self.device)
            yield Batch(normalised, labels, torch.tensor(indices))


def shuffled_indices(count: int, batch_size: int, key: Key, team: Team = ALONE) -> Iterator[Tensor]:
    """Yields the indices that ``Batches.shuffled`` would use, for cached images."""
    order = torch.from_numpy(_permutation(count, key))
    return (team.share(order[a:b]) for a, b in _bounds(count, batch_size, team.size))


def _permutation(count: int, key: Key) -> Indices:
    return np.random.default_rng(key).permutation(count)


def _bounds(count: int, batch_size: int, processes: int = 1) -> list[tuple[int, int]]:
    starts = list(range(0, count, batch_size))
    # A last batch of one image would give BatchNorm nothing to learn from, and every process needs
    # a row. Its images join the batch before.
    if len(starts) > 1 and count - starts[-1] < max(2, processes):
        starts.pop()
    return list(zip(starts, [*starts[1:], count], strict=True))


class _Sampler:
    """Yields lists of (index, key); ``order`` and ``key`` are set before each epoch."""

    def __init__(self, count: int, batch_size: int) -> None:
        self.batch_size = batch_size
        self.order = np.arange(count)
        self.key: Key | None = None
        self.team = ALONE

    def __iter__(self) -> Iterator[list[tuple[int, Key | None]]]:
        for a, b in _bounds(len(self.order), self.batch_size, self.team.size):
            yield [(int(i), self.key) for i in self.team.share(self.order[a:b])]


class _Items(torch_data.Dataset[Any]):
    """Decodes images, in worker processes if there are any."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, item: tuple[int, Key | None]) -> tuple[int, Any]:
        index, key = item
        rng = None if key is None else np.random.default_rng((*key, index))
        try:
            return index, self.dataset.image(index, rng)
        except DataError as error:  # one damaged file must not end a night of training
            return index, str(error)


def _collate(items: list[tuple[int, Any]]) -> tuple[Any, list[int], dict[int, str]]:
    good = [(i, frame) for i, frame in items if not isinstance(frame, str)]
    faults = {i: fault for i, fault in items if isinstance(fault, str)}
    frames = np.stack([frame for _, frame in good]) if good else None
    return frames, [i for i, _ in good], faults
