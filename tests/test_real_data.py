"""Real weights on real images; skipped without LGVIT_EDGE_DATA."""

from __future__ import annotations

from pathlib import Path

import pytest

from lgvit_edge.architecture.placement import plan_exits
from lgvit_edge.export import export_bundle
from lgvit_edge.images.labelled import find_images
from lgvit_edge.images.preprocess import load_rgb
from lgvit_edge.model import block_macs, load_backbone
from lgvit_edge.runtime import Session
from lgvit_edge.training import attach_exits


@pytest.mark.slow
def test_deit_tiny_still_classifies_imagenet(data_root: Path, tmp_path: Path) -> None:
    """Import, export and our preprocessing together keep the accuracy of the weights."""
    weights = data_root / "weights" / "deit_tiny_patch16_224_in1k_fp32.pth"
    backbone = load_backbone(weights)  # named after its architecture
    exits = plan_exits("6", block_macs(backbone.config))
    export_bundle(attach_exits(backbone, exits), tmp_path / "out")
    images = sorted((data_root / "data" / "imagenet-1k-samples").glob("*.jpg"))[::3]
    with Session.open(tmp_path / "out") as session:
        right = 0
        for path in images:  # each is named by its class
            prepared = session.prepare([load_rgb(path)])
            right += int(session.baseline_logits(prepared)[0].argmax()) == int(path.stem)
    assert len(images) == 334
    # Of all 1,000: 780. Processors round otherwise: three images more or less.
    assert right == pytest.approx(273, abs=3)


@pytest.mark.slow
def test_vit_tiny_still_classifies_tiny_imagenet(data_root: Path, tmp_path: Path) -> None:
    """250 images; of all 5,000 it classifies 69.2 % rightly."""
    weights = data_root / "weights" / "vit_tiny_patch16_224_tinyimagenet200_fp32.pth"
    backbone = load_backbone(weights)
    exits = plan_exits("6", block_macs(backbone.config))
    export_bundle(attach_exits(backbone, exits), tmp_path / "out")
    images = find_images(data_root / "data" / "tiny-imagenet-200" / "val", num_classes=200)
    with Session.open(tmp_path / "out") as session:
        right = 0
        for image in images[::20]:
            prepared = session.prepare([load_rgb(image.path)])
            right += int(session.baseline_logits(prepared)[0].argmax()) == image.class_index
    assert right == pytest.approx(188, abs=3)
