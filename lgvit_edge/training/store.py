"""The frozen backbone's outputs on disk, so that stage 2 runs it once and never again.

One file of float16 per block, memory-mapped, filled chunk by chunk. After every chunk its checksums
are written: an interrupted run goes on there, and a chunk that was damaged since is computed again.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lgvit_edge._files import locked, write_json
from lgvit_edge._schema import to_json
from lgvit_edge.errors import TrainingError
from lgvit_edge.model import LGViT
from lgvit_edge.training.batches import Batches, Key, shuffled_indices
from lgvit_edge.training.cache import HiddenStates

_INDEX = "features.json"
_VERSION = 1  # 1: identity, arrays, checksums by chunk
_CHUNK = 512  # images between two checksums
_MARGIN = 200_000_000  # bytes of disk left to others
Progress = Callable[[int, int], None]


class FeatureStore:
    """Hidden states of all images, as ``HiddenCache`` has them, in a folder.

    Attributes:
        folder: where.
        bytes: what it takes when it is complete.
    """

    def __init__(
        self, folder: str | Path, model: LGViT, batches: Batches, *, views: int, seed: int
    ) -> None:
        """Look at what is there; nothing is computed or written yet.

        Args:
            folder: made if it is missing.
            model: its backbone is frozen from here on.
            batches: of the training images.
            views: augmented copies of every image; 0 for the images as at inference.
            seed: of the augmentation.

        Raises:
            TrainingError: the folder holds features of another backbone or of other images, or
                there is too little room.
        """
        self.folder, self.model, self.batches = Path(folder), model, batches
        self.keys: list[Key | None] = [(seed, 0, view) for view in range(views)]
        self.keys = self.keys or [None]
        self.images = len(batches.dataset)
        self.device = next(model.parameters()).device
        config = model.config
        self.blocks = [*(exit.block for exit in config.exits), config.num_blocks]
        rows = len(self.keys) * self.images
        shapes: dict[str, tuple[str, tuple[int, ...]]]
        shapes = {f"block_{b}": ("<f2", config.hidden_shape(b)) for b in sorted(set(self.blocks))}
        shapes |= {"teacher": ("<f4", (config.num_classes,)), "valid": ("|u1", ())}
        self._shapes = {name: (kind, (rows, *tail)) for name, (kind, tail) in shapes.items()}
        sizes = [np.dtype(k).itemsize * math.prod(s) for k, s in self._shapes.values()]
        self.bytes = sum(sizes)
        self._identity = self._describe(seed)
        self._sums: dict[str, dict[str, int]] = self._read_index()
        self._arrays: dict[str, NDArray[Any]] = {}

    def _describe(self, seed: int) -> dict[str, Any]:
        """What must be the same for stored features to be of use."""
        digest = hashlib.sha256()
        for name, tensor in self.model.backbone.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy())
        config = self.model.config
        return {
            "backbone": digest.hexdigest(),
            "images": self.batches.dataset.fingerprint(),
            "preprocessing": to_json(config.preprocess),
            "image size": config.image_size,
            "blocks": sorted(set(self.blocks)),
            "views": len(self.keys) if self.keys != [None] else 0,
            "seed": seed,
        }

    def _read_index(self) -> dict[str, dict[str, int]]:
        path = self.folder / _INDEX
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["version"] != _VERSION:
                raise ValueError(f"version {found['version']}")
            then, sums = dict(found["identity"]), dict(found["checksums"])
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise TrainingError(
                f"{path} cannot be used ({error}); delete {self.folder} to compute it again"
            ) from None
        other = [name for name, value in self._identity.items() if then.get(name) != value]
        if other:
            raise TrainingError(
                f"{self.folder} holds features of another {', '.join(other)}; give another folder, "
                f"or compute them again after: rm -r '{self.folder}'"
            )
        return sums

    def check_room(self) -> None:
        """Before anything is computed.

        Raises:
            TrainingError: the folder cannot be made, or its disk has too little room.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            there = sum(p.stat().st_blocks * 512 for p in self.folder.iterdir())
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise TrainingError(f"cannot keep features in {self.folder}: {error}") from None
        needed = self.bytes - there + _MARGIN
        if free < needed:
            raise TrainingError(
                f"{self.folder}: features of {self.images} images take {self.bytes / 1e9:.1f} GB, "
                f"expected {needed / 1e9:.1f} GB of free disk, found {free / 1e9:.1f} GB"
            )

    def fill(self, progress: Progress = lambda done, total: None) -> int:
        """Compute what is missing or damaged.

        Args:
            progress: called with chunks done and chunks in all.

        Returns:
            How many chunks were computed.

        Raises:
            TrainingError: no room, or not one image could be read.
        """
        self.check_room()
        try:
            with locked(self.folder):
                made = self._fill(progress)
        except BlockingIOError:
            raise TrainingError(
                f"another training computes the features in {self.folder}; wait for it"
            ) from None
        except OSError as error:
            raise TrainingError(f"cannot keep features in {self.folder}: {error}") from None
        if not self._arrays["valid"].any():
            raise TrainingError("expected training images, found none that can be read")
        return made

    def _fill(self, progress: Progress) -> int:
        self._arrays = {name: self._map(name) for name in self._shapes}
        made, chunks = 0, list(self._chunks())
        for done, (key, first, images) in enumerate(chunks):
            progress(done, len(chunks))
            if self._sums.get(str(first)) != self._checksums(first, len(images)):
                self._compute(key, first, images)
                made += 1
        progress(len(chunks), len(chunks))
        return made

    def _map(self, name: str) -> NDArray[Any]:
        kind, shape = self._shapes[name]
        path, size = self.folder / name, np.dtype(kind).itemsize * math.prod(shape)
        fresh = not path.is_file() or path.stat().st_size != size
        return np.memmap(path, dtype=kind, mode="w+" if fresh else "r+", shape=shape)

    def _chunks(self) -> Iterator[tuple[Key | None, int, NDArray[np.int64]]]:
        """Augmentation, first row, and images of each chunk."""
        for view, key in enumerate(self.keys):
            for first in range(0, self.images, _CHUNK):
                images = np.arange(first, min(first + _CHUNK, self.images))
                yield key, view * self.images + first, images

    @torch.no_grad()
    def _compute(self, key: Key | None, first: int, images: NDArray[np.int64]) -> None:
        self.model.eval()
        self._arrays["valid"][first : first + len(images)] = 0
        for batch in self.batches.some(images, key):
            rows = batch.indices.numpy() - images[0] + first
            states = self.model.hidden_states(batch.images)
            for block in set(self.blocks):
                self._arrays[f"block_{block}"][rows] = states[block].half().cpu().numpy()
            teacher = self.model.backbone.final(states[-1])
            self._arrays["teacher"][rows] = teacher.cpu().numpy()
            self._arrays["valid"][rows] = 1
        for array in self._arrays.values():
            array.flush()  # type: ignore[attr-defined]  # all are memory maps
        self._sums[str(first)] = self._checksums(first, len(images))
        record = {"version": _VERSION, "identity": self._identity, "checksums": self._sums}
        write_json(self.folder / _INDEX, record)

    def _checksums(self, first: int, count: int) -> dict[str, int]:
        return {
            name: zlib.crc32(array[first : first + count].tobytes())
            for name, array in self._arrays.items()
        }

    def shuffled(self, epoch: int, batch_size: int, key: Key) -> Iterator[HiddenStates]:
        """One epoch in random order; epochs take the views in turn."""
        offset = self.images * (epoch % len(self.keys))
        valid = np.flatnonzero(self._arrays["valid"][offset : offset + self.images])
        labels = self.batches.dataset.labels
        for places in shuffled_indices(len(valid), batch_size, key):
            images = valid[places.numpy()]
            exits = [self._rows(f"block_{b}", images + offset) for b in self.blocks[:-1]]
            yield HiddenStates(
                exits,
                self._rows(f"block_{self.blocks[-1]}", images + offset),
                self._rows("teacher", images + offset),
                torch.from_numpy(labels[images]).to(self.device),
            )

    def _rows(self, name: str, rows: Sequence[int] | NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self._arrays[name][rows]).to(self.device).float()
