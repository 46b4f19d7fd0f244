"""Checkpoints: written and read back to the bit, and every way a file can be wrong."""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import foreign_states as foreign
import pytest
import torch
from pytest import MonkeyPatch
from safetensors.torch import load_file, save_file

from lgvit_edge.errors import CheckpointError, LGViTEdgeError
from lgvit_edge.model import LGViT, load_backbone, load_checkpoint, save_checkpoint

State = dict[str, Any]
Save, Load = Callable[[str], Path], Callable[[Path], LGViT]
suffixes = pytest.mark.parametrize("suffix", ["pt", "safetensors"])
loads = pytest.mark.parametrize("load", [load_checkpoint, load_backbone])
WEIGHT = "backbone.blocks.0.fc1.weight"


@pytest.fixture
def saved(tmp_path: Path, tiny_model: LGViT) -> Save:
    """``tiny_model`` written under a suffix, alone in its folder."""

    def save(suffix: str) -> Path:
        folder = tmp_path / "saved"
        folder.mkdir(exist_ok=True)
        path = folder / f"model.{suffix}"
        save_checkpoint(tiny_model, path)
        return path

    return save


def rewrite(path: Path, spoil: Callable[[State], object] = dict.copy, **changes: Any) -> Path:
    """The same ``.pt`` with its state dict changed in place, and other top-level entries."""
    content = torch.load(path, weights_only=True)
    spoil(content["state"])
    torch.save(content | changes, path)
    return path


# Ours, both ways.


@suffixes
def test_round_trip_is_exact(saved: Save, tiny_model: LGViT, suffix: str) -> None:
    tiny_model.train()  # the mode is not saved
    path = saved(suffix)
    loaded = load_checkpoint(path)
    assert loaded.config == tiny_model.config
    assert not loaded.training
    assert all(p.requires_grad for p in loaded.parameters())
    expected = tiny_model.state_dict()
    assert list(loaded.state_dict()) == list(expected)
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_file_holds_plain_types_and_tensors(saved: Save) -> None:
    content = torch.load(saved("pt"), weights_only=True)
    assert sorted(content) == ["config", "format", "state", "version"]
    json.dumps(content["config"])
    assert len(load_file(saved("safetensors"))) == len(content["state"])


@suffixes
def test_saving_again_replaces_the_file(saved: Save, tiny_model: LGViT, suffix: str) -> None:
    path = saved(suffix)
    with torch.no_grad():
        tiny_model.backbone.final.norm.bias.fill_(3.0)
    save_checkpoint(tiny_model, path)
    assert load_checkpoint(path).backbone.final.norm.bias.eq(3.0).all()


def test_training_continues_from_a_loaded_model(saved: Save) -> None:
    model = load_checkpoint(saved("pt")).train()
    model.exit_logits(torch.zeros(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    norm = model.heads[0].body.expand_norm
    assert int(norm.num_batches_tracked) == 1


# Where nothing can be written, nothing is left behind.


@suffixes
@pytest.mark.parametrize(
    ("place", "fault"),
    [("file/model", ": .*Not a direct"), ("nowhere/model", ""), ("model", ".*Is a directory")],
)
def test_places_that_cannot_be_written(
    tmp_path: Path, tiny_model: LGViT, suffix: str, place: str, fault: str
) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / f"model.{suffix}").mkdir()
    with pytest.raises(CheckpointError, match=rf"cannot write .*{place}\.{suffix}{fault}"):
        save_checkpoint(tiny_model, tmp_path / f"{place}.{suffix}")
    assert {path.name for path in tmp_path.rglob("*")} == {"file", f"model.{suffix}"}
    assert (tmp_path / "file").read_text() == "kept"


def test_a_target_with_no_name(tmp_path: Path, tiny_model: LGViT, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot write \.: "):
        save_checkpoint(tiny_model, ".")
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow past 4 KB, as on a disk with no more room.

    Only around the call: the limit holds for pytest's own output too.
    """
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@suffixes
def test_a_full_disk_leaves_the_old_file(tiny_model: LGViT, tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"model.{suffix}"
    target.write_text("the old one")
    with pytest.raises(CheckpointError, match="cannot write"), full_disk():
        save_checkpoint(tiny_model, target)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(target.name, "the old one")]


# Files that are not what they should be.


@loads
@suffixes
def test_missing_and_empty_files(tmp_path: Path, load: Load, suffix: str) -> None:
    path = tmp_path / f"model.{suffix}"
    with pytest.raises(CheckpointError, match=rf"no such checkpoint: .*model\.{suffix}"):
        load(path)
    path.touch()
    with pytest.raises(CheckpointError, match=rf"model\.{suffix} is empty"):
        load(path)


@loads
@suffixes
@pytest.mark.parametrize("keep", [1, 4, 100, 0.5, 0.999])
def test_truncated_files(saved: Save, load: Load, suffix: str, keep: float) -> None:
    path = saved(suffix)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(CheckpointError, match="is (cut off|neither).*; copy or download it again$"):
        load(path)


@loads
@suffixes
def test_random_bytes(tmp_path: Path, load: Load, suffix: str) -> None:
    path = tmp_path / f"model.{suffix}"
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        noise = torch.randint(0, 256, (200,), generator=generator, dtype=torch.uint8)
        path.write_bytes(noise.numpy().tobytes())
        with pytest.raises(CheckpointError, match="is (cut off, damaged, or no|neither) "):
            load(path)


@suffixes
def test_flipped_bytes_load_or_are_refused(saved: Save, suffix: str) -> None:
    """Whatever a damaged header says, the error is ours."""
    generator = torch.Generator().manual_seed(1)
    path = saved(suffix)
    data = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(data)
        at = int(torch.randint(0, 3000, (1,), generator=generator))
        damaged[at] = int(torch.randint(0, 256, (1,), generator=generator))
        path.write_bytes(damaged)
        try:
            load_checkpoint(path)
        except LGViTEdgeError:
            pass


class Bomb:
    """A pickle that runs a command when somebody trusts it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@loads
@pytest.mark.parametrize("kind", ["torch", "torch inside ours", "bare pickle"])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, load: Load, kind: str) -> None:
    mark, path = tmp_path / "executed", tmp_path / "model.pt"
    bomb = Bomb(mark)
    if kind == "bare pickle":
        path.write_bytes(pickle.dumps({"format": "lgvit-edge", "state": bomb}, protocol=2))
    elif kind == "torch":
        torch.save(bomb, path)
    else:
        torch.save({"format": "lgvit-edge", "version": 1, "config": {}, "state": bomb}, path)
    with pytest.raises(
        CheckpointError,
        match=r"was refused: it holds more than tensors and plain types \(builtins\.getattr",
    ):
        load(path)
    assert not mark.exists()
    if kind == "bare pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert mark.exists()  # the bomb is live


def test_code_in_an_authors_directory_is_not_run(tmp_path: Path) -> None:
    folder = foreign.write_directory(tmp_path / "authors", AUTHORS, Bomb(tmp_path / "executed"))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin was refused"):
        load_checkpoint(folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [{}, [1, 2], {"state_dict": {}}, {"format": "other"}, 3, None])
def test_files_of_another_kind(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"is not an LGViT checkpoint: .*run: lgvit-edge tr"):
        load_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize("content", [[1, 2], 3, None, {"a": 3}, {1: torch.zeros(1)}])
def test_backbones_that_are_no_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="expected a state dict of tensors"):
        load_backbone(tmp_path / "model.pt")


# Our format with something wrong inside.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "expected checkpoint version 1, found 2; run: pip install --upgrade"),
        ({"version": None}, "expected checkpoint version 1, found None"),
        ({"config": None}, "config: expected an object, found None"),
        ({"config": {"family": 3}}, "config.family: expected a string, found 3; config: missing"),
        ({"state": None}, "expected a state dict of tensors under 'state'"),
        ({"state": {"a": [1.0]}}, "expected a state dict of tensors under 'state'"),
        ({"state": {}}, r"missing backbone\.embedding\.prefix\n(.*\n)+  and \d+ more"),
    ],
)
def test_our_format_with_a_wrong_part(saved: Save, changes: State, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(rewrite(saved("pt"), **changes))


def test_safetensors_that_others_wrote(saved: Save) -> None:
    path = saved("safetensors")
    save_file(load_file(path), path)
    with pytest.raises(
        CheckpointError, match="is not an LGViT checkpoint: expected a file of `lgvit-edge tra"
    ):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "raw",
    ["[1]", '{"format": "other"}', "nonsense", pytest.param("[" * 100_000, id="deep")],
)
def test_safetensors_with_nonsense_for_a_header(saved: Save, raw: str) -> None:
    path = saved("safetensors")
    save_file(load_file(path), path, metadata={"lgvit-edge": raw})
    with pytest.raises(
        CheckpointError, match="expected the header of lgvit-edge, found .*; run lgvit-edge train"
    ):
        load_checkpoint(path)


def test_the_wrong_number_of_classes(saved: Save) -> None:
    path = saved("pt")
    config = torch.load(path, weights_only=True)["config"] | {"num_classes": 7, "labels": []}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(rewrite(path, config=config))
    text = str(caught.value)
    assert "model.pt does not fit its configuration:" in text
    name = "backbone.final.classifier.linears.0"
    assert f"{name}.weight is (5, 32), expected (7, 32)" in text
    assert f"{name}.bias is (5,), expected (7,)" in text
    assert "heads.2.classifier.linears.0.weight is (5, 32), expected (7, 32)" in text


def test_every_misfit_is_listed(saved: Save) -> None:
    def spoil(state: State) -> None:
        del state["heads.0.body.expand.bias"]
        del state["backbone.embedding.position"]
        state["heads.7.body.expand.bias"] = torch.zeros(3)
        state[WEIGHT] = state[WEIGHT].T.contiguous()
        state["backbone.final.norm.weight"] = torch.tensor(1.0)
        state["backbone.blocks.3.norm2.bias"][0] = float("nan")
        state["heads.1.body.project.bias"][-1] = float("inf")

    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(rewrite(saved("pt"), spoil))
    assert sorted(str(caught.value).splitlines()[1:-1]) == [
        "  backbone.blocks.0.fc1.weight is (32, 128), expected (128, 32)",
        "  backbone.blocks.3.norm2.bias holds NaN or infinity",
        "  backbone.final.norm.weight is (), expected (32,)",
        "  heads.1.body.project.bias holds NaN or infinity",
        "  missing backbone.embedding.position",
        "  missing heads.0.body.expand.bias",
        "  unexpected heads.7.body.expand.bias",
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_are_made_float32(saved: Save, tiny_model: LGViT, dtype: torch.dtype) -> None:
    weight = tiny_model.state_dict()[WEIGHT].to(dtype)
    path = rewrite(saved("pt"), lambda state: state.update({WEIGHT: weight}))
    assert torch.equal(load_checkpoint(path).state_dict()[WEIGHT], weight.float())


ODD: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "meta": lambda w: torch.empty(w.shape, device="meta"),
    "sparse": lambda w: w.to_sparse(),
    "float8": lambda w: w.to(torch.float8_e4m3fn),
    "complex": lambda w: w.to(torch.complex64),
    "bool": lambda w: w > 0,
    "too large for float32": lambda w: torch.full(w.shape, 1e300, dtype=torch.float64),
}


@pytest.mark.parametrize("kind", list(ODD))
def test_tensors_that_hold_no_weights(saved: Save, kind: str) -> None:
    path = rewrite(saved("pt"), lambda state: state.update({WEIGHT: ODD[kind](state[WEIGHT])}))
    with pytest.raises(CheckpointError, match="fc1"):
        load_checkpoint(path)


def test_a_configuration_far_larger_than_its_weights(saved: Save) -> None:
    """Nothing of that size may be made to find out that it does not fit: it would be 17 TB."""
    path = saved("pt")
    config = torch.load(path, weights_only=True)["config"]
    config |= {"hidden_size": 65_536, "intermediate_size": 65_536, "num_blocks": 40}
    with pytest.raises(CheckpointError, match=r"does not fit its configuration(.*\n)+.*65536"):
        load_checkpoint(rewrite(path, config=config))


def test_a_weight_that_is_one_number_repeated(saved: Save) -> None:
    """A small file may say it holds a large tensor, every element of which is the same one."""
    extra = {"backbone.embedding.extra": torch.zeros(1).expand(65_536, 65_536)}
    with pytest.raises(CheckpointError, match=r"unexpected backbone\.embedding\.extra"):
        load_checkpoint(rewrite(saved("pt"), lambda state: state.update(extra)))


# The authors' directories.

AUTHORS: State = foreign.HF_CONFIG | dict(backbone="ViT", model_type="deit")
AUTHORS |= dict(highway_type="LGViT", num_early_exits=2, position_exits="[1,3]")


def test_placeholder_labels_are_no_names(tmp_path: Path) -> None:
    config = AUTHORS | {"id2label": {str(i): f"LABEL_{i}" for i in range(5)}}
    state = {"classifier.bias": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"missing deit\.embeddings"):
        load_checkpoint(foreign.write_directory(tmp_path / "authors", config, state))


def test_missing_keys_of_an_authors_directory_are_listed(tmp_path: Path) -> None:
    state = {"deit.pooler.dense.weight": torch.zeros(2), "distillation_classifier": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(foreign.write_directory(tmp_path / "authors", AUTHORS, state))
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("authors does not fit its configuration:")
    assert "  missing deit.embeddings.cls_token" in lines
    assert lines[-2].startswith("  and ") and lines[-2].endswith(" more")
    assert lines[-1].startswith("give weights and configuration that belong together")


def test_a_vit_configuration_with_the_weights_of_a_deit(tmp_path: Path) -> None:
    config = AUTHORS | {"position_exits": "[]", "num_early_exits": 0, "num_hidden_layers": 1}
    state = foreign.huggingface_state("deit", tokens=2, classifiers=foreign.TWO, depth=1).state
    folder = foreign.write_directory(tmp_path / "a", config | {"backbone": "DeiT"}, state)
    assert load_checkpoint(folder).config.prefix_tokens == 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    assert sorted(str(caught.value).splitlines()[1:-1]) == [
        "  deit.embeddings.position_embeddings is (1, 51, 32), expected (1, 50, 32)",
        "  missing classifier.bias",
        "  missing classifier.weight",
        "  unexpected cls_classifier.bias",
        "  unexpected cls_classifier.weight",
        "  unexpected deit.embeddings.distillation_token",
        "  unexpected distillation_classifier.bias",
        "  unexpected distillation_classifier.weight",
    ]


@loads
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"expected config\.json, found nothing"),
        ("{", r"config\.json cannot be read"),
        ("[" * 100_000, r"config\.json cannot be read"),
        ("[]", r"config\.json: expected a JSON object, found a list"),
        ("{}", r"is not an LGViT checkpoint|expected one of model\.safetensors"),
    ],
)
def test_directories_without_a_usable_configuration(
    tmp_path: Path, load: Load, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_a_directory_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(AUTHORS))
    with pytest.raises(CheckpointError, match=r"expected one of model\.safetensors, .*config"):
        load_checkpoint(tmp_path)
    torch.save([1], tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="expected a state dict of tensors .*, found a list"):
        load_checkpoint(tmp_path)


def test_negative_variances_are_refused(saved: Save) -> None:
    name = "heads.0.body.expand_norm.running_var"
    path = rewrite(saved("pt"), lambda state: state[name].fill_(-1.0))
    with pytest.raises(CheckpointError, match=f"{name} holds negative variances"):
        load_checkpoint(path)
