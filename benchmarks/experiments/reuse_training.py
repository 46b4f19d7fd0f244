"""Trains a fine pass beside a frozen coarse one, and reads the answers of both."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from lgvit_edge._support.terminal import errors, progress_bar, say
from lgvit_edge.benchmarks.experiments.reuse_arms import FinePass, look
from lgvit_edge.errors import DataError, TrainingError
from lgvit_edge.model import LGViT
from lgvit_edge.policies.evaluate import Images
from lgvit_edge.training import TrainingConfig, report
from lgvit_edge.training.data.batches import Batch, Batches, Key
from lgvit_edge.training.data.datasets import ImageFolder
from lgvit_edge.training.optimiser import adamw, layer_peaks, learning_rate
from lgvit_edge.training.resume import Progress, read_progress, write_progress
from lgvit_edge.training.team import join


class Pairs:
    """Batches of the same images at the sizes of both passes, and where they augment, in one view.

    Every image is decoded once for each size.
    """

    def __init__(
        self, images: ImageFolder, coarse: LGViT, fine: LGViT, config: TrainingConfig, size: int
    ) -> None:
        team = join(config.device)
        self._sources = [
            Batches(
                images.at(model.config.image_size, model.config.preprocess),
                model.config.preprocess,
                batch_size=size,
                workers=config.workers,
                team=team,
            )
            for model in (coarse, fine)
        ]

    def __len__(self) -> int:
        """The number of batches per epoch."""
        return len(self._sources[0])

    def shuffled(self, key: Key) -> Iterator[tuple[Batch, Batch]]:
        """Yields an epoch of augmented images in random order, coarse and fine."""
        return zip(*(source.shuffled(key) for source in self._sources), strict=True)

    def ordered(self) -> Iterator[tuple[Batch, Batch]]:
        """Yields all images in order, as at inference."""
        return zip(*(source.ordered() for source in self._sources), strict=True)


def train_fine(
    fine: FinePass,
    coarse: LGViT,
    images: ImageFolder,
    config: TrainingConfig,
    out: Path,
    identity: dict[str, str],
) -> None:
    """Trains a fine pass as stage 1 trains a model, by cross-entropy; the coarse one is frozen.

    Of ``config.lr``, the first is the network's and the second that of new layers. ``out`` is
    replaced after every epoch: from there the same call goes on, or finds that all is done.

    Raises:
        TrainingError: the loss is no number, or ``out`` is of another ``identity``.
        DataError: not one image can be read.
    """
    epochs, device = config.epochs[0], join(config.device).device
    before = read_progress(out, identity)
    if before is not None:
        fine.load_state_dict(before.model)
        if before.epoch == epochs:
            return
        say(f"continuing after epoch {before.epoch}/{epochs}", errors)
    fine.to(device).train()
    coarse.to(device).eval()
    peaks = dict.fromkeys(fine.parameters(), config.lr[1]) | layer_peaks(
        fine.fine, lr=config.lr[0], head_lr=config.lr[1], decay=config.layer_decay
    )
    optimizer = adamw(
        fine.named_parameters(), weight_decay=config.weight_decay, clip=config.clip, peaks=peaks
    )
    if before is not None:
        optimizer.load_state_dict(before.optimizer)
    history = [] if before is None else before.history
    pairs = Pairs(images, coarse, fine.fine, config, config.batch_size)
    steps, recent = epochs * len(pairs), report.Smoothed()
    with progress_bar(out.stem, to=errors, lasting=True) as progress:
        for epoch in range(0 if before is None else before.epoch, epochs):
            step, share = epoch * len(pairs), 0.0
            begun, losses, accuracies = time.monotonic(), report.Mean(), report.Mean()
            for small, large in pairs.shuffled((config.seed, 1, epoch)):
                share = learning_rate(step, steps, peak=1.0, warmup=config.warmup)
                for group in optimizer.param_groups:
                    group["lr"] = share * group["peak"]
                with config.autocast(device):
                    logits = fine(large.images, look(coarse, small.images)).float()
                loss = functional.cross_entropy(logits, large.labels)
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise TrainingError(
                        f"the loss became {value}; start again with a lower --lr: rm '{out}'"
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                right = float((logits.argmax(-1) == large.labels).float().mean())
                recent.add(value, right)
                losses.add(value)
                accuracies.add(right, len(large.labels))
                step += 1
                progress(step, steps, f"epoch {epoch + 1}/{epochs}: {recent}")
            if not losses.weight:
                raise DataError("expected training images, found none that can be read")
            row = (1, epoch + 1, step, share * config.lr[0], losses.value, accuracies.value)
            seconds = time.monotonic() - begun
            history.append(dict(zip(report.COLUMNS, (*row, seconds), strict=True)))
            report.write_log(history, report.log_path(out))
            # What is done needs no optimizer, which is twice as large as the weights.
            state = optimizer.state_dict() if epoch + 1 < epochs else {}
            done = Progress(0, epoch + 1, step, fine.state_dict(), {}, state, history)
            write_progress(out, done, identity)


@torch.no_grad()
def chain_answers(
    fine: FinePass, coarse: LGViT, images: ImageFolder, config: TrainingConfig
) -> Images:
    """Returns the logits of both passes, ``[n, 2, C] float32``, of images as at inference."""
    device, logits, labels = join(config.device).device, [], []
    fine.to(device).eval()
    coarse.to(device).eval()
    pairs = Pairs(images, coarse, fine.fine, config, 100)
    with progress_bar("measuring accuracy", to=errors) as progress:
        for done, (small, large) in enumerate(pairs.ordered()):
            progress(done, len(pairs))
            seen = look(coarse, small.images)
            both = torch.stack([seen.logits, fine(large.images, seen)], dim=1)
            logits.append(both.cpu().numpy())
            labels.append(large.labels.cpu().numpy())
    if not labels:
        raise DataError("expected images to evaluate on, found none that can be read")
    return Images(np.concatenate(logits), np.concatenate(labels))
