"""Features of a frozen backbone stored on disk: same losses, resumed, checked, announced."""

from __future__ import annotations

import collections
import io
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytest import MonkeyPatch
from rich.console import Console

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.errors import DataError, TrainingError
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.model import LGViT
from lgvit_edge.training import TrainingConfig, train
from lgvit_edge.training.data.batches import Batches
from lgvit_edge.training.data.datasets import ArrayDataset
from lgvit_edge.training.features import FeatureStore, HiddenCache
from lgvit_edge.training.start import seeded

FAST = TrainingConfig(epochs=(1, 2), lr=(1e-3, 1e-3), batch_size=8, workers=0, device="cpu")


Open = Callable[..., FeatureStore]
Lock = Callable[[Path], Any]


class Damaged(ArrayDataset):
    """Image 5 cannot be read."""

    def image(self, index: int, rng: np.random.Generator | None) -> np.ndarray:
        if index == 5:
            raise DataError("image 5 is damaged")
        return super().image(index, rng)


def images(count: int = 30) -> ArrayDataset:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (count, 16, 16, 3), np.uint8)
    return Damaged(frames, np.arange(count) % 3, shift=2)


def batches(workers: int = 0) -> Batches:
    return Batches(images(), Preprocess(resize=16), batch_size=4, workers=workers)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr("lgvit_edge.training.features._CHUNK", 8)


@pytest.fixture
def model(small_config: LGViTConfig) -> LGViT:
    return seeded(small_config.replace(num_classes=3), 0).eval()


@pytest.fixture
def opened(tmp_path: Path, model: LGViT) -> Open:
    def open(views: int = 0, model: LGViT = model, seed: int = 1) -> FeatureStore:
        config = FAST.replace(cache_views=views, seed=seed)
        return FeatureStore(tmp_path / "features", model, batches(), config)

    return open


@pytest.mark.parametrize("views", [0, 2])
def test_an_epoch_from_disk_is_an_epoch_from_memory(views: int, opened: Open, model: LGViT) -> None:
    stored = opened(views)
    assert stored.fill() == 4 * max(views, 1)
    expected = HiddenCache(model, batches(), FAST.replace(cache_views=views, seed=1))
    for epoch in range(2):
        both = (features.shuffled(epoch, 8, (7,)) for features in (stored, expected))
        pairs = list(zip(*both, strict=True))
        assert sum(len(a.labels) for a, _ in pairs) == 29  # without the damaged one
        for a, b in pairs:
            assert torch.equal(a.labels, b.labels)
            for x, y in zip((*a.exits, a.last), (*b.exits, b.last), strict=True):
                # The last bit of float16: batches are cut elsewhere.
                torch.testing.assert_close(x, y, rtol=2e-3, atol=2e-3)
            torch.testing.assert_close(a.teacher, b.teacher, rtol=1e-4, atol=1e-5)


def test_an_interrupted_run_goes_on_where_it_was(opened: Open, monkeypatch: MonkeyPatch) -> None:
    compute, calls = FeatureStore._compute, iter(range(2))

    def twice(self: FeatureStore, *arguments: object) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        compute(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(FeatureStore, "_compute", twice)
        opened().fill()
    assert opened().fill() == 2
    assert opened().fill() == 0


def test_what_is_there_is_not_computed_again_unless_damaged(opened: Open, tmp_path: Path) -> None:
    assert [opened().fill(), opened().fill()] == [4, 0]
    path = tmp_path / "features" / "block_2"
    right = path.read_bytes()
    flipped = right[:100] + bytes([right[100] ^ 1]) + right[101:]
    # Truncated: all of the file is made anew.
    for damaged, computed in ((flipped, 1), (right[:1000], 4)):
        path.write_bytes(damaged)
        assert opened().fill() == computed
        assert path.read_bytes() == right


def test_features_of_something_else_are_refused(opened: Open, model: LGViT, tmp_path: Path) -> None:
    opened().fill()
    other = seeded(model.config, 5).eval()
    with pytest.raises(TrainingError, match=r"of another backbone; give another .* rm -r '"):
        opened(model=other)
    with pytest.raises(TrainingError, match="of another views"):
        opened(views=1)
    index = tmp_path / "features" / "features.json"
    for text in ("{", "[]", '{"version": 9}', '{"version": 1, "identity": 3, "checksums": {}}'):
        index.write_text(text)
        with pytest.raises(TrainingError, match=r"features\.json cannot be used .*; delete"):
            opened()


def test_features_of_stage_two_are_no_answers_for_stage_one(model: LGViT, tmp_path: Path) -> None:
    config = TrainingConfig(cache=True, cache_views=1, seed=3)
    FeatureStore(tmp_path / "f", model, batches(), config).fill()
    with pytest.raises(TrainingError, match="features of another stage"):
        FeatureStore(tmp_path / "f", model, batches(), config, hidden=False)


def test_views_of_another_augmentation_are_refused(model: LGViT, tmp_path: Path) -> None:
    for views, refused in ((0, ()), (1, ("augmentation",))):
        folder = tmp_path / str(views)
        config = FAST.replace(cache_views=views)
        FeatureStore(folder, model, batches(), config).fill()
        for change in ({"min_crop": 0.5}, {"flip": False}, {"seed": 3}):
            other = config.replace(**change)
            if refused:
                with pytest.raises(TrainingError, match="of another augmentation; give"):
                    FeatureStore(folder, model, batches(), other)
            else:
                assert FeatureStore(folder, model, batches(), other).fill() == 0
        with pytest.raises(TrainingError, match="of another precision; give"):
            FeatureStore(folder, model, batches(), config.replace(precision="bf16"))


def test_a_folder_of_more_blocks_serves_exits_elsewhere(model: LGViT, tmp_path: Path) -> None:
    shallow = model.with_exits([1])
    assert FeatureStore(tmp_path, model, batches(), FAST).fill() == 4
    whole = FeatureStore(tmp_path, model, batches(), FAST)
    part = FeatureStore(tmp_path, shallow, batches(), FAST)
    assert (whole.fill(), part.fill(), part.bytes) == (0, 0, whole.bytes)
    for a, b in zip(part.shuffled(0, 8, (7,)), whole.shuffled(0, 8, (7,)), strict=True):
        assert len(a.exits) == 1
        assert torch.equal(a.exits[0], b.exits[0])
    other = tmp_path / "other"
    assert FeatureStore(other, shallow, batches(), FAST).fill() == 4
    with pytest.raises(TrainingError, match=r"features of another blocks \(1, 3\); give another"):
        FeatureStore(other, model, batches(), FAST)
    assert FeatureStore(tmp_path / "more", shallow, batches(), FAST, blocks=[2]).fill() == 4
    assert FeatureStore(tmp_path / "more", model, batches(), FAST).fill() == 0


def test_heads_do_not_matter_to_features(opened: Open, model: LGViT) -> None:
    opened().fill()
    again = seeded(model.config, 0).eval()
    torch.nn.init.normal_(again.heads[0].classifier.linears[0].weight)
    assert opened(model=again).fill() == 0


def test_too_little_room_is_said_before_anything_is_computed(
    opened: Open, monkeypatch: MonkeyPatch, tmp_path: Path
) -> None:
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1000))
    with pytest.raises(TrainingError, match=r"features of 30 images take 0\.0 GB, expected 0\.2"):
        opened().fill()
    assert list((tmp_path / "features").iterdir()) == []


def test_a_folder_that_cannot_be_made(model: LGViT, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot store features in|cannot be used"):
        FeatureStore(tmp_path / "file", model, batches(), FAST).fill()


def test_two_trainings_at_once(opened: Open, tmp_path: Path, lock_elsewhere: Lock) -> None:
    (tmp_path / "features").mkdir()
    with lock_elsewhere(tmp_path / "features" / ".lock"):
        with pytest.raises(TrainingError, match=r"another training \(.*\) computes .*; wait"):
            opened().fill()
    assert opened().fill() == 4


def test_workers_do_not_hold_the_lock(model: LGViT, tmp_path: Path, lock_elsewhere: Lock) -> None:
    store = FeatureStore(tmp_path, model, batches(workers=1), FAST)
    assert store.fill() == 4  # the worker was started meanwhile, and lives on
    with lock_elsewhere(tmp_path / ".lock"):
        pass
    assert store.unreadable == 1


def test_another_machine_waits_and_finds_all(
    opened: Open,
    tmp_path: Path,
    lock_elsewhere: Lock,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = opened(), opened()  # both see an empty folder
    first.fill()
    with lock_elsewhere(tmp_path / "features" / ".lock") as release:
        timer = threading.Timer(0.3, release)
        timer.start()
        assert second.fill(wait=True) == 0
        timer.join()
    said = capsys.readouterr().err
    assert said.startswith("waiting for another process, which computes the features in ")


def test_training_from_disk_learns_what_it_does_from_memory(tmp_path: Path, model: LGViT) -> None:
    said = io.StringIO()

    def run(name: str, **options: object) -> LGViT:
        config = FAST.replace(cache="features" not in options)
        options |= {"out": tmp_path / f"{name}.pt", "console": Console(file=said, width=200)}
        return train(model, images(), None, config.replace(order="frozen"), **options)

    memory = run("memory")
    for _ in range(2):
        disk = run("disk", features=tmp_path / "features")
        torch.testing.assert_close(
            memory.heads.state_dict(), disk.heads.state_dict(), rtol=1e-2, atol=2e-3
        )
    text = said.getvalue()
    assert "features of 30 images take 0.00 GB in" in text
    assert "all were stored before; 1 images cannot be read" in text
    assert "skipped 1 of 30 images" in text
    record = json.loads((tmp_path / "features" / "features.json").read_text())
    assert len(record["checksums"]) == 4
