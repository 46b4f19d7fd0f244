"""Where exits of several models look: a whole run on tiny models, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from small import vit, write_photos

from lgvit_edge.architecture.config import ExitConfig
from lgvit_edge.benchmarks.experiments.relevance import main
from lgvit_edge.errors import UsageError
from lgvit_edge.model import LGViT, save_checkpoint
from lgvit_edge.model.randomised import randomised

pytest.importorskip("matplotlib")
CONFIG = vit(num_classes=4, labels=tuple("abcd"), exits=(ExitConfig(1, "mlp"),), num_blocks=2)


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    write_photos(tmp_path / "photos", "abcd", 2)
    other = CONFIG.replace(exits=(ExitConfig(1, "conv"),))
    for seed, (name, config) in enumerate((("mlp", CONFIG), ("conv", other))):
        save_checkpoint(randomised(LGViT(config), seed), tmp_path / f"{name}.pt")
    return [f"{name}={tmp_path / name}.pt" for name in ("mlp", "conv")]


def test_the_whole_study(models: list[str], tmp_path: Path) -> None:
    record, means = tmp_path / "found.json", tmp_path / "means.png"
    main(models, tmp_path / "photos", "mlp", 8, 8, "gradient,gradcam", means=means, json=record)
    found = json.loads(record.read_text())
    assert {(row["model"], row["block"], row["method"]) for row in found["maps"]} == {
        *(("mlp", block, "gradient") for block in (1, 2)),
        *(("conv", block, "gradient") for block in (1, 2)),
        ("conv", 1, "gradcam"),
    }
    assert {row["model"] for row in found["compared"]} == {"conv"}
    assert [text[:5] for text in found["left_out"]] == ["mlp, "] * 2  # they read no patch
    assert "reads prefix tokens alone" in found["left_out"][0]
    with Image.open(means) as picture:
        assert picture.width > picture.height > 100


def test_what_cannot_be_compared_is_refused(models: list[str], tmp_path: Path) -> None:
    turned = CONFIG.replace(labels=tuple("dcba"))
    save_checkpoint(randomised(LGViT(turned), 0), tmp_path / "turned.pt")
    photos = tmp_path / "photos"
    with pytest.raises(UsageError, match="or another order of them, than the first model"):
        main([models[0], f"turned={tmp_path}/turned.pt"], photos, None, 8, 8, "gradient")
    for more in ({"against": "mlp"}, {"means": tmp_path / "means.png"}):
        with pytest.raises(UsageError, match="add gradient to --methods"):
            main(models, photos, images=8, methods="rollout", **more)  # type: ignore[arg-type]
    assert not (tmp_path / "means.png").exists()
    with pytest.raises(UsageError, match="expected a name for each model"):
        main([models[0], models[0]], photos, None, 8, 8, "gradient")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="--pictures: expected a folder, found a file"):
        main(models, photos, None, 8, 8, "gradient", pictures=tmp_path / "file")
