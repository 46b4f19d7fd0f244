"""Checkpoints: written and read back to the bit, and every way a file can be wrong."""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lgvit_edge.errors import CheckpointError, LGViTEdgeError
from lgvit_edge.model import LGViT, load_backbone, load_checkpoint, save_checkpoint

SUFFIXES = ["pt", "safetensors"]
WEIGHT = "backbone.blocks.0.fc1.weight"


@pytest.fixture
def saved(tmp_path: Path, tiny_model: LGViT) -> Callable[[str], Path]:
    """``tiny_model`` written under a suffix, alone in its folder."""

    def save(suffix: str) -> Path:
        folder = tmp_path / "saved"
        folder.mkdir(exist_ok=True)
        path = folder / f"model.{suffix}"
        save_checkpoint(tiny_model, path)
        return path

    return save


def rewrite(path: Path, **changes: Any) -> Path:
    """The same ``.pt`` with some top-level entries changed."""
    content = torch.load(path, weights_only=True)
    torch.save(content | changes, path)
    return path


def with_state(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The same ``.pt`` with its state dict changed in place."""
    content = torch.load(path, weights_only=True)
    change(content["state"])
    torch.save(content, path)
    return path


# Ours, both ways.


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip_is_exact(saved: Callable[[str], Path], tiny_model: LGViT, suffix: str) -> None:
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


def test_the_file_holds_plain_types_and_tensors(saved: Callable[[str], Path]) -> None:
    content = torch.load(saved("pt"), weights_only=True)
    assert sorted(content) == ["config", "format", "state", "version"]
    json.dumps(content["config"])
    assert len(load_file(saved("safetensors"))) == len(content["state"])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_saving_again_replaces_the_file(
    saved: Callable[[str], Path], tiny_model: LGViT, suffix: str
) -> None:
    path = saved(suffix)
    with torch.no_grad():
        tiny_model.backbone.final.norm.bias.fill_(3.0)
    save_checkpoint(tiny_model, path)
    assert load_checkpoint(path).backbone.final.norm.bias.eq(3.0).all()


def test_training_continues_from_a_loaded_model(saved: Callable[[str], Path]) -> None:
    model = load_checkpoint(saved("pt")).train()
    model.exit_logits(torch.zeros(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    norm = model.heads[0].body.expand_norm
    assert int(norm.num_batches_tracked) == 1


# Where nothing can be written, nothing is left behind.


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folder_that_is_a_file(tmp_path: Path, tiny_model: LGViT, suffix: str) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(CheckpointError, match=rf"cannot write .*model\.{suffix}: .*Not a direct"):
        save_checkpoint(tiny_model, tmp_path / "file" / f"model.{suffix}")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "kept")]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folder_that_does_not_exist(tmp_path: Path, tiny_model: LGViT, suffix: str) -> None:
    with pytest.raises(CheckpointError, match="cannot write"):
        save_checkpoint(tiny_model, tmp_path / "nowhere" / f"model.{suffix}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_target_that_is_a_folder(tmp_path: Path, tiny_model: LGViT, suffix: str) -> None:
    target = tmp_path / f"model.{suffix}"
    target.mkdir()
    with pytest.raises(CheckpointError, match=r"cannot write .*Is a directory"):
        save_checkpoint(tiny_model, target)
    assert list(tmp_path.iterdir()) == [target]
    assert list(target.iterdir()) == []


def test_a_target_without_a_name(
    tmp_path: Path, tiny_model: LGViT, monkeypatch: pytest.MonkeyPatch
) -> None:
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


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_leaves_the_old_file(tiny_model: LGViT, tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"model.{suffix}"
    target.write_text("the old one")
    with pytest.raises(CheckpointError, match="cannot write"), full_disk():
        save_checkpoint(tiny_model, target)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(target.name, "the old one")]


# Files that are not what they should be.


@pytest.mark.parametrize("load", [load_checkpoint, load_backbone])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_and_empty_files(
    tmp_path: Path, load: Callable[[Path], LGViT], suffix: str
) -> None:
    path = tmp_path / f"model.{suffix}"
    with pytest.raises(CheckpointError, match=rf"no such checkpoint: .*model\.{suffix}"):
        load(path)
    path.touch()
    with pytest.raises(CheckpointError, match=rf"model\.{suffix} is empty"):
        load(path)


@pytest.mark.parametrize("load", [load_checkpoint, load_backbone])
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("keep", [1, 4, 100, 0.5, 0.999])
def test_truncated_files(
    saved: Callable[[str], Path], load: Callable[[Path], LGViT], suffix: str, keep: float
) -> None:
    path = saved(suffix)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(CheckpointError, match="cannot be read, it is truncated|was refused: it is"):
        load(path)


@pytest.mark.parametrize("load", [load_checkpoint, load_backbone])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_random_bytes(tmp_path: Path, load: Callable[[Path], LGViT], suffix: str) -> None:
    path = tmp_path / f"model.{suffix}"
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        noise = torch.randint(0, 256, (200,), generator=generator, dtype=torch.uint8)
        path.write_bytes(noise.numpy().tobytes())
        with pytest.raises(CheckpointError, match="cannot be read|was refused|expected a state"):
            load(path)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_flipped_bytes_load_or_are_refused(saved: Callable[[str], Path], suffix: str) -> None:
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


@pytest.mark.parametrize("load", [load_checkpoint, load_backbone])
@pytest.mark.parametrize("kind", ["torch", "torch inside ours", "bare pickle"])
def test_code_in_a_pickle_is_not_run(
    tmp_path: Path, load: Callable[[Path], LGViT], kind: str
) -> None:
    mark, path = tmp_path / "executed", tmp_path / "model.pt"
    bomb = Bomb(mark)
    if kind == "bare pickle":
        path.write_bytes(pickle.dumps({"format": "lgvit-edge", "state": bomb}, protocol=2))
    elif kind == "torch":
        torch.save(bomb, path)
    else:
        torch.save({"format": "lgvit-edge", "version": 1, "config": {}, "state": bomb}, path)
    with pytest.raises(CheckpointError, match="was refused: it is damaged or holds more than ten"):
        load(path)
    assert not mark.exists()
    if kind == "bare pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert mark.exists()  # the bomb is live


def test_code_in_an_authors_directory_is_not_run(tmp_path: Path) -> None:
    mark, folder = tmp_path / "executed", tmp_path / "authors"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(AUTHORS))
    torch.save(Bomb(mark), folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin was refused"):
        load_checkpoint(folder)
    assert not mark.exists()


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
def test_our_format_with_a_wrong_part(
    saved: Callable[[str], Path], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(rewrite(saved("pt"), **changes))


def test_safetensors_that_others_wrote(saved: Callable[[str], Path]) -> None:
    path = saved("safetensors")
    save_file(load_file(path), path)
    with pytest.raises(CheckpointError, match="was not written by lgvit-edge: it has no config"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "raw",
    [
        "[1]",
        '{"format": "other"}',
        "nonsense",
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_safetensors_with_nonsense_for_a_header(saved: Callable[[str], Path], raw: str) -> None:
    path = saved("safetensors")
    save_file(load_file(path), path, metadata={"lgvit-edge": raw})
    with pytest.raises(CheckpointError, match="was not written by lgvit-edge"):
        load_checkpoint(path)


def test_the_wrong_number_of_classes(saved: Callable[[str], Path]) -> None:
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


def test_every_misfit_is_listed(saved: Callable[[str], Path]) -> None:
    def spoil(state: dict[str, Any]) -> None:
        del state["heads.0.body.expand.bias"]
        del state["backbone.embedding.position"]
        state["heads.7.body.expand.bias"] = torch.zeros(3)
        state[WEIGHT] = state[WEIGHT].T.contiguous()
        state["backbone.final.norm.weight"] = torch.tensor(1.0)
        state["backbone.blocks.3.norm2.bias"][0] = float("nan")
        state["heads.1.body.project.bias"][-1] = float("inf")

    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(with_state(saved("pt"), spoil))
    assert sorted(str(caught.value).splitlines()[1:]) == [
        "  backbone.blocks.0.fc1.weight is (32, 128), expected (128, 32)",
        "  backbone.blocks.3.norm2.bias holds NaN or infinity",
        "  backbone.final.norm.weight is (), expected (32,)",
        "  heads.1.body.project.bias holds NaN or infinity",
        "  missing backbone.embedding.position",
        "  missing heads.0.body.expand.bias",
        "  unexpected heads.7.body.expand.bias",
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_become_float32(
    saved: Callable[[str], Path], tiny_model: LGViT, dtype: torch.dtype
) -> None:
    weight = tiny_model.state_dict()[WEIGHT]

    def convert(state: dict[str, Any]) -> None:
        state[WEIGHT] = state[WEIGHT].to(dtype)

    model = load_checkpoint(with_state(saved("pt"), convert))
    assert torch.equal(model.state_dict()[WEIGHT], weight.to(dtype).float())


ODD: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "meta": lambda w: torch.empty(w.shape, device="meta"),
    "sparse": lambda w: w.to_sparse(),
    "float8": lambda w: w.to(torch.float8_e4m3fn),
    "complex": lambda w: w.to(torch.complex64),
    "bool": lambda w: w > 0,
    "too large for float32": lambda w: torch.full(w.shape, 1e300, dtype=torch.float64),
}


@pytest.mark.parametrize("kind", list(ODD))
def test_tensors_that_hold_no_weights(saved: Callable[[str], Path], kind: str) -> None:
    path = with_state(saved("pt"), lambda state: state.update({WEIGHT: ODD[kind](state[WEIGHT])}))
    with pytest.raises(CheckpointError, match="fc1"):
        load_checkpoint(path)


def test_a_configuration_far_larger_than_its_weights(saved: Callable[[str], Path]) -> None:
    """Nothing of that size may be made to find out that it does not fit: it would be 17 TB."""
    path = saved("pt")
    config = torch.load(path, weights_only=True)["config"]
    config |= {"hidden_size": 65_536, "intermediate_size": 65_536, "num_blocks": 40}
    with pytest.raises(CheckpointError, match=r"does not fit its configuration(.*\n)+.*65536"):
        load_checkpoint(rewrite(path, config=config))


def test_a_weight_that_is_one_number_repeated(saved: Callable[[str], Path]) -> None:
    """A small file may say it holds a large tensor, every element of which is the same one."""

    def spoil(state: dict[str, Any]) -> None:
        state["backbone.embedding.extra"] = torch.zeros(1).expand(65_536, 65_536)

    with pytest.raises(CheckpointError, match=r"unexpected backbone\.embedding\.extra"):
        load_checkpoint(with_state(saved("pt"), spoil))


# The authors' directories.

AUTHORS: dict[str, Any] = {
    "backbone": "ViT",
    "model_type": "deit",
    "highway_type": "LGViT",
    "num_early_exits": 2,
    "position_exits": "[1,3]",
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_labels": 5,
}


def directory(root: Path, config: object, state: object = None) -> Path:
    folder = root / "authors"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    torch.save({} if state is None else state, folder / "pytorch_model.bin")
    return folder


POSITIONS = r'position_exits must be a list such as "\[4,5,6\]", found '


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": None}, 'with backbone "ViT" or "DeiT", .*; found backbone None, model_type'),
        ({"model_type": "swin"}, "found backbone 'ViT', model_type 'swin'"),
        ({"position_exits": "4,5"}, POSITIONS),
        ({"position_exits": None}, POSITIONS),
        ({"position_exits": "[1.5]"}, POSITIONS),
        ({"position_exits": "[true]"}, POSITIONS),
        ({"position_exits": "[[],[2]]"}, POSITIONS),
        ({"position_exits": "[" * 100_000}, POSITIONS),
        ({"num_early_exits": 3}, r"num_early_exits 3 but position_exits \[1, 3\]"),
        ({"position_exits": "[3,1]"}, r"exits must be sorted.*found \[3, 1\]"),
        ({"position_exits": "[1,4]"}, r"must lie after blocks 1\.\.3"),
        ({"position_exits": "[0,1]"}, r"must lie after blocks 1\.\.3"),
        (
            {"position_exits": "[1,2,3]", "num_early_exits": 3},
            r"highway_type 'LGViT' is not supported; expected LGViT \(2, 4, 6 or 8 exits\)",
        ),
        ({"highway_type": "vti"}, "highway_type 'vti' is not supported"),
        ({"highway_type": "attention_r0"}, "highway_type .attention_r0. is not supported"),
        ({"highway_type": "attention_r9"}, r"its window must be 1..4 on 4 x 4 tokens"),
        ({"highway_type": "attention_r22"}, "highway_type 'attention_r22' is not supported"),
        ({"hidden_act": "relu"}, "hidden_act must be gelu, found 'relu'"),
        ({"hidden_size": "32"}, "config.hidden_size: expected a whole number, found '32'"),
        ({"image_size": [32, 32]}, r"config.image_size: expected a whole number, found \[32"),
        ({"id2label": {"a": "b"}}, "id2label must map class numbers to names"),
        ({"id2label": {"0": "b", "1": "c"}}, "expected 5 labels, found 2"),
    ],
)
def test_authors_configurations_that_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(directory(tmp_path, AUTHORS | changes))


def test_python_in_position_exits_is_not_evaluated(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    code = f"[open({str(mark)!r}, 'w').close() or 1, 3]"
    with pytest.raises(CheckpointError, match=POSITIONS):
        load_checkpoint(directory(tmp_path, AUTHORS | {"position_exits": code}))
    assert not mark.exists()
    assert eval(code) == [1, 3]
    assert mark.exists()  # the code is live


def test_placeholder_labels_are_no_names(tmp_path: Path) -> None:
    config = AUTHORS | {"id2label": {str(i): f"LABEL_{i}" for i in range(5)}, "num_labels": None}
    del config["num_labels"]
    with pytest.raises(CheckpointError, match=r"missing deit\.embeddings"):
        load_checkpoint(directory(tmp_path, config))


def test_missing_keys_of_an_authors_directory_are_listed(tmp_path: Path) -> None:
    state = {"deit.pooler.dense.weight": torch.zeros(2), "distillation_classifier": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(directory(tmp_path, AUTHORS, state))
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("authors does not fit its configuration:")
    assert "  missing deit.embeddings.cls_token" in lines
    assert lines[-1].startswith("  and ") and lines[-1].endswith(" more")


def one_block_deit() -> dict[str, torch.Tensor]:
    """A DeiT of one block: two prefix tokens, two classifiers."""
    layer = "deit.encoder.layer.0"
    shapes: dict[str, tuple[int, ...]] = {
        "deit.embeddings.patch_embeddings.projection": (32, 3, 8, 8),
        **{f"{layer}.attention.attention.{part}": (32, 32) for part in ("query", "key", "value")},
        f"{layer}.attention.output.dense": (32, 32),
        f"{layer}.layernorm_before": (32,),
        f"{layer}.layernorm_after": (32,),
        f"{layer}.intermediate.dense": (64, 32),
        f"{layer}.output.dense": (32, 64),
        "deit.layernorm": (32,),
        "cls_classifier": (5, 32),
        "distillation_classifier": (5, 32),
    }
    state = {f"{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
    state |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
    embeddings = {"cls_token": 1, "distillation_token": 1, "position_embeddings": 18}
    return state | {
        f"deit.embeddings.{name}": torch.zeros(1, rows, 32) for name, rows in embeddings.items()
    }


def test_a_vit_configuration_with_the_weights_of_a_deit(tmp_path: Path) -> None:
    config = AUTHORS | {"position_exits": "[]", "num_early_exits": 0, "num_hidden_layers": 1}
    folder = directory(tmp_path, config | {"backbone": "DeiT"}, one_block_deit())
    assert load_checkpoint(folder).config.prefix_tokens == 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    assert sorted(str(caught.value).splitlines()[1:]) == [
        "  deit.embeddings.position_embeddings is (1, 18, 32), expected (1, 17, 32)",
        "  missing classifier.bias",
        "  missing classifier.weight",
        "  unexpected cls_classifier.bias",
        "  unexpected cls_classifier.weight",
        "  unexpected deit.embeddings.distillation_token",
        "  unexpected distillation_classifier.bias",
        "  unexpected distillation_classifier.weight",
    ]


@pytest.mark.parametrize("load", [load_checkpoint, load_backbone])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"config\.json cannot be read: .*No such file"),
        ("{", r"config\.json cannot be read"),
        ("[" * 100_000, r"config\.json cannot be read"),
        ("[]", r"config\.json: expected an object"),
        ("{}", r"is not an LGViT checkpoint|expected one of model\.safetensors"),
    ],
)
def test_directories_without_a_usable_configuration(
    tmp_path: Path, load: Callable[[Path], LGViT], text: str | None, message: str
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
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: expected a state dict"):
        load_checkpoint(tmp_path)


def test_a_huggingface_model_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="model_type vit, deit, swin, found 'bert'"):
        load_backbone(directory(tmp_path, {"model_type": "bert"}))
    (tmp_path / "authors" / "config.json").write_text('{"model_type": "vit", "num_labels": -1}')
    with pytest.raises(CheckpointError, match=r"config\.json: num_classes must be 1"):
        load_backbone(tmp_path / "authors")


# timm's state dicts, whose configuration comes from shapes.


TIMM = {
    "cls_token": (1, 1, 64),
    "pos_embed": (1, 17, 64),
    "patch_embed.proj.weight": (64, 3, 8, 8),
    "head.weight": (5, 64),
    "blocks.0.mlp.fc1.weight": (256, 64),
}
NONSENSE: list[tuple[int, ...]] = [(), (4,), (0,), (1, 0, 64), (0, 0, 0, 0)]


@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, shape) for name in TIMM for shape in NONSENSE],
)
def test_timm_shapes_that_make_no_sense(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    state = {key: torch.zeros(size) for key, size in {**TIMM, name: shape}.items()}
    torch.save(state, tmp_path / "timm.pth")
    with pytest.raises(CheckpointError):
        load_backbone(tmp_path / "timm.pth")


def test_negative_variances_are_refused(saved: Callable[[str], Path]) -> None:
    name = "heads.0.body.expand_norm.running_var"
    path = with_state(saved("pt"), lambda state: state[name].fill_(-1.0))
    with pytest.raises(CheckpointError, match=f"{name} holds negative variances"):
        load_checkpoint(path)


def test_huggingface_preprocessing_is_read_where_it_is_given(tmp_path: Path) -> None:
    from lgvit_edge.model.checkpoints.huggingface import huggingface_config

    raw = {"model_type": "deit", "num_labels": 5}
    assert huggingface_config(raw, {}, {}).preprocess.interpolation == "bicubic"
    given = {"size": {"shortest_edge": 248}, "image_mean": [0.1, 0.2, 0.3], "resample": 2}
    spec = huggingface_config(raw, {}, given).preprocess
    assert (spec.resize, spec.interpolation) == (248, "bilinear")
    assert spec.mean == (0.1, 0.2, 0.3) and spec.std == (0.229, 0.224, 0.225)
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json\.mean: expected a list"):
        huggingface_config(raw, {}, {"image_mean": "grey"})
