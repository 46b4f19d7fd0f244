"""Outputs of a frozen backbone that others learn from: per batch, in memory, or on disk.

Stage 2 reads the hidden states after the exits' blocks, the pupils of a teacher its answers. On
disk is one file of float16 per block, memory-mapped, filled chunk by chunk. After every chunk its
checksums are written: an interrupted run continues there, and a damaged chunk is computed again.
"""

from __future__ import annotations

import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lgvit_edge._support import finite_json
from lgvit_edge._support.files import MAX_TEXT, locked, read_bytes
from lgvit_edge._support.outputs import named, write_json
from lgvit_edge.bundle.codec import to_json
from lgvit_edge.errors import TrainingError
from lgvit_edge.machine.memory import memory_bytes
from lgvit_edge.model import LGViT
from lgvit_edge.training.data.batches import Batch, Batches, Key, shuffled_indices
from lgvit_edge.training.resume import weights_hash
from lgvit_edge.training.settings import TrainingConfig

_SHARE_OF_MEMORY = 0.5
_INDEX = "features.json"
_VERSION = 2  # 1: identity, checksums by chunk. 2: blocks beside the identity
_CHUNK = 512  # images between two checksums
_MARGIN = 200_000_000  # bytes of disk left to others
Progress = Callable[[int, int], None]  # called with what is done, and how much there is in all


@dataclass(frozen=True)
class HiddenStates:
    """The inputs of one step of stage 2, in float32."""

    exits: list[Tensor]  # outputs of the M exits' blocks, each [B, T, D]
    last: Tensor  # output of block L, [B, T, D]; its patch tokens are F_L
    teacher: Tensor  # the final classifier's logits, through the final norm, [B, C]
    labels: Tensor  # [B] int64


@torch.no_grad()
def frozen(model: LGViT, images: Tensor, config: TrainingConfig) -> tuple[list[Tensor], Tensor]:
    """Returns the outputs ``[B, T, D]`` of embedding and blocks, and the final logits ``[B, C]``.

    They are float32, whatever precision they were computed in.
    """
    with config.autocast(images.device):
        states = model.hidden_states(images)
        logits = model.backbone.final(states[-1])
    return [state.float() for state in states], logits.float()


def hidden_states(model: LGViT, batch: Batch, config: TrainingConfig) -> HiddenStates:
    """Runs the backbone once for all exits."""
    states, teacher = frozen(model, batch.images, config)
    exits = [states[exit.block] for exit in model.config.exits]
    return HiddenStates(exits, states[-1], teacher, batch.labels)


def view_keys(seed: int, views: int, stage: int = 2) -> list[Key | None]:
    """Returns the random key of each copy that repeats; None is the image as at inference.

    Stage 1's copies are those that its first epochs would see anyway. Stage 2's are others: a
    backbone knows what it was trained on.
    """
    return [(seed, 1 if stage == 1 else 0, view) for view in range(views)] or [None]


class StoredStates(Protocol):
    """Hidden states of all images, computed before."""

    def shuffled(self, epoch: int, batch_size: int, key: Key) -> Iterator[HiddenStates]:
        """Yields one epoch in random order."""


class HiddenCache:
    """Hidden states of all images in memory, in float16."""

    def __init__(
        self,
        model: LGViT,
        batches: Batches,
        config: TrainingConfig,
        progress: Progress = lambda done, total: None,
    ) -> None:
        """Run the backbone, frozen from here on, over the training images.

        ``progress`` is called with images done and images in all, from 0 for each view.

        Raises:
            TrainingError: the states would not fit into half of this machine's memory.
        """
        keys, shape = view_keys(config.seed, config.cache_views), model.config
        images, memory = len(batches.dataset) * len(keys), memory_bytes()
        blocks = [*(exit.block for exit in shape.exits), shape.num_blocks]
        needed = 2 * images * sum(math.prod(shape.hidden_shape(block)) for block in blocks)
        if needed > _SHARE_OF_MEMORY * memory:
            raise TrainingError(
                f"caching {images} images takes {needed / 1e9:.1f} GB, expected at most half of "
                f"this machine's {memory / 1e9:.1f} GB; train without cache"
            )
        self.device = next(model.parameters()).device
        model.eval()
        self._progress = progress
        self._views = [self._compute(model, batches, config, key) for key in keys]

    def _compute(
        self, model: LGViT, batches: Batches, config: TrainingConfig, key: Key | None
    ) -> HiddenStates:
        count, stored, filled = len(batches.dataset), list[Tensor](), 0
        for batch in batches.ordered(key):
            s = hidden_states(model, batch, config)
            rows = [*(t.half().cpu() for t in (*s.exits, s.last)), s.teacher, s.labels]
            # Filled in place: joining a list of batches would need twice the memory.
            stored = stored or [t.new_empty((count, *t.shape[1:])) for t in rows]
            for whole, part in zip(stored, rows, strict=True):
                whole[filled : filled + len(part)] = part
            filled += len(s.labels)
            self._progress(filled, count)
        if not stored:
            raise TrainingError("expected training images, found none that can be read")
        *exits, last, teacher, labels = (whole[:filled] for whole in stored)
        return HiddenStates(exits, last, teacher, labels)

    def shuffled(self, epoch: int, batch_size: int, key: Key) -> Iterator[HiddenStates]:
        """Yields one epoch in random order; epochs take the views in turn."""
        states = self._views[epoch % len(self._views)]
        for rows in shuffled_indices(len(states.labels), batch_size, key):
            stored, places = (*states.exits, states.last), rows.to(states.labels.device)
            *exits, last = (tensor[rows].to(self.device).float() for tensor in stored)
            yield HiddenStates(exits, last, states.teacher[places], states.labels[places])


class FeatureStore:
    """Hidden states and answers of all images, stored in a folder.

    ``HiddenCache`` holds them in memory.
    """

    def __init__(
        self,
        folder: str | Path,
        model: LGViT,
        batches: Batches,
        config: TrainingConfig,
        *,
        blocks: Sequence[int] = (),
        hidden: bool = True,
    ) -> None:
        """Read the folder's index; nothing is computed or written yet.

        The backbone is frozen from here on. Outputs of ``blocks`` are stored beside those that the
        model's exits read, for other trainings. Without ``hidden`` only the final classifier's
        answers are, on the copies of stage 1.

        Raises:
            TrainingError: the folder holds features of another backbone or of other images, or
                not those of all blocks.
        """
        self.folder, self.model, self.batches = Path(folder), model, batches
        self.config = config
        self.keys = view_keys(config.seed, config.cache_views, 2 if hidden else 1)
        self.images = len(batches.dataset)
        self.device = next(model.parameters()).device
        shape = model.config
        exits = [*(exit.block for exit in shape.exits), shape.num_blocks]
        self.blocks = exits if hidden else []
        self._hidden = hidden
        self._stored, self._sums = self._read_index({*self.blocks, *blocks})
        self._rows = len(self.keys) * self.images
        kinds: dict[str, Any] = {f"block_{b}": ("<f2", shape.hidden_shape(b)) for b in self._stored}
        kinds |= {"teacher": ("<f4", (shape.num_classes,)), "valid": "|u1"}
        self._kinds = {name: np.dtype(kind) for name, kind in kinds.items()}
        self.bytes = self._rows * sum(kind.itemsize for kind in self._kinds.values())  # complete
        self._arrays: dict[str, NDArray[Any]] = {}

    def _identity(self) -> dict[str, Any]:
        """Returns what must be the same for stored features to be used, blocks aside."""
        shape, config = self.model.config, self.config
        views = config.cache_views
        return {
            "backbone": weights_hash(self.model.backbone),
            "images": self.batches.dataset.fingerprint(),
            "preprocessing": to_json(shape.preprocess),
            "image size": shape.image_size,
            "precision": config.precision,
            "views": views,
            "stage": None if self._hidden else 1,
            # Views differ by these; images as at inference do not.
            "augmentation": [config.seed, config.min_crop, config.flip] if views else None,
        }

    def _read_index(self, blocks: set[int]) -> tuple[list[int], dict[str, dict[str, int]]]:
        """Returns the blocks that are or will be stored, and checksums by chunk."""
        path = self.folder / _INDEX
        self._described = self._identity()
        try:
            index = finite_json.loads(read_bytes(path, MAX_TEXT))
            if index["version"] != _VERSION:
                raise ValueError(f"version {index['version']}")
            identity, sums = dict(index["identity"]), dict(index["checksums"])
            stored = [int(block) for block in index["blocks"]]
        except FileNotFoundError:
            return sorted(blocks), {}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise TrainingError(
                f"{path} cannot be used ({error}); delete {self.folder} to compute it again"
            ) from None
        other = [name for name, value in self._described.items() if identity.get(name) != value]
        if not blocks <= set(stored):
            other.append(f"blocks ({', '.join(map(str, stored))})")
        if other:
            raise TrainingError(
                f"{self.folder} holds features of another {', '.join(other)}; give another folder, "
                f"or compute them again after: rm -r '{self.folder}'"
            )
        return stored, sums

    def _check_room(self) -> None:
        """Checks that the folder can be written and its disk has room."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            written = sum(p.stat().st_blocks * 512 for p in self.folder.iterdir())
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise TrainingError(f"cannot store features in {self.folder}: {error}") from None
        needed = self.bytes - written + _MARGIN
        if free < needed:
            raise TrainingError(
                f"{self.folder}: features of {self.images} images take {self.bytes / 1e9:.1f} GB, "
                f"expected {needed / 1e9:.1f} GB of free disk, found {free / 1e9:.1f} GB"
            )

    def fill(self, progress: Progress = lambda done, total: None, *, wait: bool = False) -> int:
        """Computes the chunks that are missing or damaged.

        ``progress`` is called with chunks done and chunks in all. ``wait`` tells whether to wait
        for another process that fills the same folder. Returns the number of chunks computed.

        Raises:
            TrainingError: no room, or not one image could be read.
        """
        self._check_room()
        try:
            doing = f"computes the features in {self.folder}" if wait else None
            with locked(self.folder / ".lock", wait=doing):
                _, self._sums = self._read_index(set(self._stored))
                computed = self._fill(progress)
        except BlockingIOError as holder:
            raise TrainingError(
                f"another training ({holder}) computes the features in {self.folder}; wait for it"
            ) from None
        except OSError as error:
            raise TrainingError(f"cannot store features in {self.folder}: {error}") from None
        if not self._arrays["valid"].any():
            raise TrainingError("expected training images, found none that can be read")
        return computed

    @property
    def unreadable(self) -> int:
        """The number of images without features, once filled."""
        return self.images - len(self._valid(0))

    def attach(self) -> None:
        """Opens the files that another process has filled."""
        for name, kind in self._kinds.items():
            path, size = self.folder / name, kind.itemsize * self._rows
            mode: Any = "r+" if path.is_file() and path.stat().st_size == size else "w+"
            self._arrays[name] = np.memmap(path, dtype=kind, mode=mode, shape=(self._rows,))
            if mode == "w+":  # a memory map on a disk that is full would kill the process
                with named(path, path, needed=size), path.open("rb+") as file:
                    os.posix_fallocate(file.fileno(), 0, size)

    def _fill(self, progress: Progress) -> int:
        self.attach()
        computed, chunks = 0, list(self._chunks())
        for done, (key, first, images) in enumerate(chunks):
            progress(done, len(chunks))
            if not self._intact(first, len(images)):
                self._compute(key, first, images)
                computed += 1
        progress(len(chunks), len(chunks))
        return computed

    def _chunks(self) -> Iterator[tuple[Key | None, int, NDArray[np.int64]]]:
        """Yields augmentation key, first row, and images of each chunk."""
        for view, key in enumerate(self.keys):
            for first in range(0, self.images, _CHUNK):
                images = np.arange(first, min(first + _CHUNK, self.images))
                yield key, view * self.images + first, images

    def _compute(self, key: Key | None, first: int, images: NDArray[np.int64]) -> None:
        self.model.eval()
        self._arrays["valid"][first : first + len(images)] = 0
        for batch in self.batches.ordered(key, images):
            rows = batch.indices.numpy() - images[0] + first
            states, teacher = frozen(self.model, batch.images, self.config)
            for block in self._stored:
                self._arrays[f"block_{block}"][rows] = states[block].half().cpu().numpy()
            self._arrays["teacher"][rows] = teacher.cpu().numpy()
            self._arrays["valid"][rows] = 1
        for array in self._arrays.values():
            array.flush()  # type: ignore[attr-defined]  # all are memory maps
        sums = {name: self._checksum(name, first, len(images)) for name in self._arrays}
        self._sums[str(first)] = sums
        record = {"version": _VERSION, "identity": self._described, "blocks": self._stored}
        write_json(self.folder / _INDEX, {**record, "checksums": self._sums})

    def _intact(self, first: int, count: int) -> bool:
        """Returns whether what this model reads of a chunk is as it was written."""
        read = {"teacher", "valid", *(f"block_{block}" for block in self.blocks)}
        sums = self._sums.get(str(first), {})
        return all(sums.get(name) == self._checksum(name, first, count) for name in read)

    def _checksum(self, name: str, first: int, count: int) -> int:
        return zlib.crc32(self._arrays[name][first : first + count].tobytes())

    def shuffled(self, epoch: int, batch_size: int, key: Key) -> Iterator[HiddenStates]:
        """Yields one epoch in random order; epochs take the views in turn."""
        first = self.images * (epoch % len(self.keys))
        valid = self._valid(first)
        for places in shuffled_indices(len(valid), batch_size, key, self.batches.team):
            yield self._states(valid[places], first)

    def ordered(self, batch_size: int) -> Iterator[HiddenStates]:
        """Yields the first view of every image, in order."""
        for images in self._valid(0).split(batch_size):
            yield self._states(images, 0)

    def answers(self, images: Tensor, view: int) -> Tensor:
        """Returns the final classifier's logits ``[k, C] float32`` of images, by place ``[k]``.

        ``view`` is that of ``keys``.
        """
        stored = torch.from_numpy(self._arrays["teacher"])
        return stored.index_select(0, images + self.images * view).to(self.device)

    def _valid(self, first: int) -> Tensor:
        """Returns the images that could be read, of the view that begins at a row."""
        return torch.from_numpy(np.flatnonzero(self._arrays["valid"][first : first + self.images]))

    def _states(self, images: Tensor, first: int) -> HiddenStates:
        names, rows = [*(f"block_{block}" for block in self.blocks), "teacher"], images + first
        arrays = (torch.from_numpy(self._arrays[name]) for name in names)
        *exits, last, teacher = (a.index_select(0, rows).to(self.device).float() for a in arrays)
        labels = self.batches.dataset.labels[images.numpy()]
        return HiddenStates(exits, last, teacher, torch.from_numpy(labels).to(self.device))
