"""The ConvNet that features are compared with: trained, gone on with, and refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small import write_photos

from lgvit_edge.benchmarks.experiments.convnet import (
    PREPROCESS,
    SIZE,
    ConvNet,
    _accuracy,
    main,
    trained,
)
from lgvit_edge.errors import DataError, UsageError
from lgvit_edge.training.data.datasets import ImageFolder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for part in ("train", "val"):
        write_photos(tmp_path / "data" / part, "ab", 2)
    (tmp_path / "data" / "val" / "a" / "00.png").write_bytes(b"no image")
    return tmp_path / "data"


def test_it_is_trained_and_gone_on_with(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "convnet.pt"
    main(data, out, epochs=2, batch_size=2, now=1)
    main(data, out, epochs=2, batch_size=2)
    history = torch.load(out, weights_only=True)["history"]
    assert len(history) == 2
    capsys.readouterr()
    main(data, out, epochs=1, batch_size=2)
    assert "has been trained for 2 of 1 epochs" in capsys.readouterr().out
    monkeypatch.setenv("CONVNET", str(out))
    assert trained().classifier.out_features == 2


def test_accuracy_is_of_the_images_that_can_be_read(data: Path) -> None:
    """Three of four; all of class 0 or 1, as the bias says."""
    images = ImageFolder(data / "val", size=SIZE, preprocess=PREPROCESS)
    model = ConvNet(2)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 1.0]))
    assert _accuracy(model, images) == pytest.approx(2 / 3)


def test_what_is_none_of_its_files_or_of_other_images_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "convnet.pt"
    main(data, out, epochs=1, batch_size=2)
    for part in ("train", "val"):
        write_photos(tmp_path / "others" / part, "vw", 2)
    with pytest.raises(UsageError, match="is of other settings"):
        main(tmp_path / "others", out, epochs=2, batch_size=2)
    (tmp_path / "text.pt").write_text("e")
    torch.save({"weights": 1}, tmp_path / "other.pt")
    for name in ("text.pt", "other.pt"):
        with pytest.raises(DataError, match="expected a file of this experiment"):
            main(data, tmp_path / name, epochs=1, batch_size=2)
        monkeypatch.setenv("CONVNET", str(tmp_path / name))
        with pytest.raises(DataError, match="expected a file of this experiment"):
            trained()
