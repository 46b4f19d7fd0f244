"""Several networks become the passes of one bundle, or one clear error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import write_photos

from lgvit_edge.architecture.config import ExitConfig
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.errors import BundleError, ExportError, ParityError, UsageError
from lgvit_edge.export import ExportOptions, export_bundle
from lgvit_edge.images.labelled import LabelledImage, unlabelled_images
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.model import LGViT, model_costs, save_checkpoint
from lgvit_edge.model.randomised import randomised
from lgvit_edge.policies import Confidence
from lgvit_edge.runtime import Session

pytestmark = pytest.mark.slow


def small(model: LGViT, **changes: Any) -> LGViT:
    """Two blocks, one exit, 16 px, unless told otherwise."""
    sizes = dict(image_size=16, num_blocks=2, exits=(ExitConfig(1, "mlp"),))
    config = model.config.replace(**sizes | dict(preprocess=Preprocess(resize=16)) | changes)
    return randomised(LGViT(config)).eval()


def test_the_manifest_lists_passes_and_what_each_costs(
    passes_bundle: Path, pass_models: list[LGViT]
) -> None:
    manifest = open_bundle(passes_bundle).manifest
    coarse, fine = manifest.passes
    assert (coarse.image_size, fine.image_size) == (16, 32)
    assert [m.config.preprocess for m in pass_models] == [coarse.preprocess, fine.preprocess]
    assert [s.head for s in manifest.segments] == ["lph", "mlp", "final", "gah", "final"]
    assert [s.head_macs is None for s in manifest.segments] == [False, False, True, False, True]
    names = [segment.spec.graph.file for segment in manifest.segments]
    assert names == [f"segments/segment_{i}.onnx" for i in range(5)]
    costs = [model_costs(model) for model in pass_models]
    assert manifest.baseline.macs == costs[1].baseline
    assert manifest.cumulative_macs(5) == sum(sum(cost.segments) for cost in costs)
    assert len(manifest.parity.max_difference) == 5


def test_weights_that_passes_share_are_stored_once(tmp_path: Path, quick_model: LGViT) -> None:
    """One network at two sizes: its positions differ, and nothing else of any size."""
    alone = export_bundle(quick_model, tmp_path / "alone")
    both = [quick_model.resized(16).with_exits([]), quick_model]
    manifest = export_bundle(both, tmp_path / "both")
    (one,), (two,) = alone.weights, manifest.weights
    assert one.bytes <= two.bytes < 1.3 * one.bytes
    with Session.open(tmp_path / "both") as session:
        assert session.check_parity() < 1e-4
        assert session.manifest.begins == (0, 1, None)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precision_and_real_images(
    tmp_path: Path, quick_model: LGViT, precision: str
) -> None:
    photos = write_photos(tmp_path / "photos", "ab", 4)
    images = unlabelled_images(photos)
    # Whatever lower precision does to random weights: what is tried is that it is done to all.
    options = ExportOptions(precision=precision, tolerance=10.0)
    models = [small(quick_model), quick_model]
    manifest = export_bundle(
        models, tmp_path / "out", options, calibration=images if precision == "int8" else ()
    )
    assert manifest.precision == precision
    with Session.open(tmp_path / "out", backend="onnxruntime") as session:
        assert np.isfinite(session.exit_logits(list(images))).all()
    if precision == "int8":
        assert manifest.calibration is not None
        blocks = manifest.calibration.blocks
        assert len(blocks) == 2 and any(blocks)
        for i, segment in enumerate(manifest.segments):
            own = set(range(segment.first_block, segment.last_block + 1))
            graph = (tmp_path / "out" / segment.spec.graph.file).read_bytes()
            quantized = bool(own & set(blocks[manifest.pass_numbers[i] - 1]))
            assert manifest.quantized(i) == quantized == (b"QuantizeLinear" in graph)


def test_decisions_are_compared_over_passes(tmp_path: Path, quick_model: LGViT) -> None:
    photos = write_photos(tmp_path / "photos", "abcde", 3)
    images = [LabelledImage(path, i % 5) for i, path in enumerate(unlabelled_images(photos))]
    models = [small(quick_model), quick_model]
    options = ExportOptions(policy=Confidence((0.3, 0.35, 0.4)))
    agreed = export_bundle(models, tmp_path / "out", options, images=images).agreement
    assert agreed is not None and agreed.images == 15
    assert len(agreed.confidence_change) == 4
    assert (agreed.same_exit, agreed.same_label) == (1.0, 1.0)
    with Session.open(tmp_path / "out") as session:
        logits = session.exit_logits([image.path for image in images])
    labels = np.array([image.class_index for image in images])
    assert agreed.accuracy == (logits[:, -1].argmax(axis=1) == labels).mean()


def test_a_pass_that_diverges_is_named(
    tmp_path: Path, quick_model: LGViT, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lgvit_edge.export import checks

    run = checks.graph_runner

    def wrong(path: Path, graph: Any) -> Any:
        plain = run(path, graph)
        if path.name != "segment_2.onnx":  # the first of pass 2
            return plain
        return lambda inputs: [array + 1 for array in plain(inputs)]

    monkeypatch.setattr(checks, "graph_runner", wrong)
    with pytest.raises(ParityError, match="segment 2 diverges from PyTorch in 'hidden_out'"):
        export_bundle([small(quick_model), quick_model], tmp_path / "out")
    assert not (tmp_path / "out").exists()


Change = Callable[[LGViT], list[LGViT]]


def relabelled(model: LGViT, *labels: str) -> LGViT:
    return small(model, labels=labels)


REFUSED: dict[str, tuple[Change, str]] = {
    "count": (
        lambda m: [small(m, num_classes=4, labels=()), m],
        "pass 1 has 4 classes, pass 2 has 5: expected passes trained for the same classes",
    ),
    "names": (
        lambda m: [relabelled(m, "a", "b", "cat", "d", "e"), m],
        "have another classes: class 2 is 'cat' in pass 1, 'c' in pass 2",
    ),
    "order": (
        lambda m: [relabelled(m, "a", "b", "d", "c", "e"), m],
        "passes 1 and 2 have another order of classes: class 2 is 'd' in pass 1, 'c' in pass 2",
    ),
    "one side": (
        lambda m: [relabelled(m), m],
        "pass 2 names its classes, pass 1 does not.*--labels FILE",
    ),
    "other side": (
        lambda m: [small(m), small(m, image_size=32, labels=(), preprocess=Preprocess(resize=32))],
        "pass 1 names its classes, pass 2 does not",
    ),
    "fine first": (
        lambda m: [m, small(m)],
        r"pass 1 \(32 px, .* G MACs\) comes before pass 2 \(16 px, .*: expected passes from coarse",
    ),
    "same": (lambda m: [m, m], "passes 1 and 2 are the same network at the same size: expected an"),
    "same cost": (
        lambda m: [m, randomised(LGViT(m.config)).eval()],
        "comes before pass 2 .* each with more MACs than the one before",
    ),
    "third": (lambda m: [small(m), m, m], "passes 2 and 3 are the same network"),
    "none": (lambda m: [], "expected at least one model"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_networks_that_are_no_passes_of_one_bundle(
    tmp_path: Path, exported_model: LGViT, fault: str
) -> None:
    make, message = REFUSED[fault]
    with pytest.raises(UsageError, match=message):
        export_bundle(make(exported_model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_thresholds_are_for_the_exits_of_all_passes(tmp_path: Path, exported_model: LGViT) -> None:
    options = ExportOptions(policy=Confidence((0.1, 0.2, 0.3)))
    with pytest.raises(UsageError, match="one threshold or 5"):
        export_bundle([small(exported_model), exported_model], tmp_path / "out", options)


def test_logits_that_are_not_finite_in_any_pass(tmp_path: Path, exported_model: LGViT) -> None:
    coarse = small(exported_model)
    with torch.no_grad():
        coarse.backbone.blocks[0].fc1.weight.mul_(float("nan"))  # type: ignore[operator,union-attr]
    with pytest.raises(ExportError, match="logits are not finite"):
        export_bundle([coarse, exported_model], tmp_path / "out")


def test_a_bundle_of_the_old_form_is_refused_and_replaced(
    bundle_copy: Path, quick_model: LGViT
) -> None:
    """Version 7 knew no plain models."""
    path = bundle_copy / "manifest.json"
    old = json.loads(path.read_text())
    del old["plain_models"]
    path.write_text(json.dumps(old | {"schema_version": 7}))
    message = "expected schema version 9, found 7; export the bundle again"
    with pytest.raises(BundleError, match=message):
        Session.open(bundle_copy)
    export_bundle(quick_model, bundle_copy)
    assert open_bundle(bundle_copy).manifest.schema_version == 9


def test_commands_show_passes(
    passes_bundle: Path, tmp_path: Path, command: Callable[..., str], quick_model: LGViT
) -> None:
    save_checkpoint(small(quick_model, labels=()), tmp_path / "coarse.pt")
    save_checkpoint(randomised(LGViT(quick_model.config.replace(labels=()))), tmp_path / "fine.pt")
    files = [tmp_path / f"{name}.pt" for name in ("coarse", "fine")]
    said = command("export", "--ckpt", files[0], "--ckpt", files[1], "--out", tmp_path / "out")
    assert "pass 1 (16 px) and pass 2 (32 px), 4 segments and the baseline" in said
    assert "no pass names its classes" in said and "to name them: --labels FILE" in said
    said = command("export", "--ckpt", files[1], "--ckpt", files[0], "--out", "out", status=2)
    assert "expected passes from coarse to fine" in said
    said = command("info", passes_bundle)
    assert "2 passes, 4 exits, 5 classes" in said
    assert "pass 1: vit, 3 blocks, images of 16 x 16" in said
    assert "3 pass 1 (16 px) 3-3 final" in said and "4 pass 2 (32 px) 1-2 gah" in said
    shown = json.loads(command("info", passes_bundle, "--json"))
    assert [each["title"] for each in shown["passes"]] == ["pass 1 (16 px)", "pass 2 (32 px)"]
    assert [row["pass_number"] for row in shown["segments"]] == [1, 1, 1, 2, 2]
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "black.png")
    arguments = ("predict", "--engines", passes_bundle, tmp_path / "black.png", "--policy")
    assert "pass 2 (32 px)" in command(*arguments, "never")
    (row,) = json.loads(command(*arguments, "fixed:2", "--json"))
    assert (row["exit"], row["block"], row["pass_number"]) == (2, 2, 1)
    said = command("verify", shutil.copytree(passes_bundle, tmp_path / "copy"))
    assert "all of them gave PyTorch's logits" in said
