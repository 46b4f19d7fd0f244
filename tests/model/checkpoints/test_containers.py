"""What training programs keep: each file loads exactly the right weights, or is refused by name."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import json
import pickle
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_states as foreign
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lgvit_edge.cli.app import main
from lgvit_edge.errors import CheckpointError
from lgvit_edge.export import models_to_export
from lgvit_edge.model import LGViT, load_checkpoint, load_model, save_checkpoint

State = dict[str, torch.Tensor]
D, CLASSES = 64, 5


ONE, TWO = (foreign.timm_state(seed, D, CLASSES) for seed in (1, 2))


def load(path: Path, **options: Any) -> tuple[LGViT, str]:
    """The model, and all that was said."""
    said: list[str] = []
    if path.is_file():
        options = {"num_heads": 1} | options
    model = load_model(path, note=said.append, **options)
    return model, "\n".join(text for text in said if "assumed" not in text)


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> list[State]:
    """The weights of ``ONE`` and ``TWO`` under our names."""
    states = []
    for state in (ONE, TWO):
        path = tmp_path_factory.mktemp("right") / "plain.pth"
        torch.save(state, path)
        model, said = load(path)
        assert said == ""
        states.append(model.state_dict())
    return states


def assert_same(model: LGViT, expected: State) -> None:
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def renamed(state: State, *pairs: tuple[str, str]) -> State:
    def rename(name: str) -> str:
        for old, new in pairs:
            name = re.sub(old, new, name)
        return name

    return {rename(name): tensor for name, tensor in state.items()}


def mmpretrain(state: State) -> State:
    body = {n: t for n, t in state.items() if not n.startswith("head.")}
    body = renamed(
        body,
        (r"^norm\.", "ln1."),
        (r"^blocks\.(\d+)\.norm(\d)", r"layers.\1.ln\2"),
        (r"^blocks\.", "layers."),
        (r"mlp\.fc1", "ffn.layers.0.0"),
        (r"mlp\.fc2", "ffn.layers.1"),
        (r"patch_embed\.proj\.", "patch_embed.projection."),
    )
    head = {f"head.layers.{n}": t for n, t in state.items() if n.startswith("head.")}
    return under("backbone.", body) | head


class Colour(enum.Enum):
    RED = "red"


class Settings(dict[str, Any]):
    """A dict with attributes, as yacs, addict and Lightning have."""

    def __init__(self, **values: Any) -> None:
        super().__init__(values)
        self.__dict__["frozen"] = True


class Own:
    """An object of a training program, which no reader can import."""

    def __init__(self) -> None:
        self.model = "vit"


def circle() -> dict[str, Any]:
    content: dict[str, Any] = {"model": ONE}
    content["again"] = content
    content["list"] = [content]
    return content


class Hidden:
    """Becomes a state dict whose pickle hides its own methods."""

    def __reduce__(self) -> tuple[Any, ...]:
        attributes = dict(items=3, keys=4, get=5, copy=6, _metadata={})
        return collections.OrderedDict, (), attributes, None, iter(ONE.items())


def optimiser() -> dict[str, Any]:
    return torch.optim.Adam([nn.Parameter(torch.zeros(2))], lr=np.float64(0.1)).state_dict()


ARGS = argparse.Namespace(lr=0.1, data=Path("data"), when=datetime.datetime(2026, 1, 1))
RUN = {"optimizer": optimiser(), "epoch": np.int64(3), "metric": np.float32(81.5), "args": ARGS}
LIGHTNING = {
    "epoch": 1,
    "global_step": 7,
    "pytorch-lightning_version": "2.5.0",
    "callbacks": {"ModelCheckpoint{'monitor': 'x'}": {"best": torch.tensor(0.5)}},
    "hyper_parameters": Settings(net=Own()),
    "optimizer_states": [optimiser()],
}
NOT_EMA = "not the moving average under {}, which --use-ema takes"
BOTH = under("model.", ONE) | under("ema_model.", TWO)
EMA_CALLBACK = {"EMACallback": {"ema_state_dict": under("model.", TWO)}}
MMENGINE = {"meta": {"mmengine_version": "0.10"}, "message_hub": {"runtime_info": {"epoch": 3}}}

# What is saved, which of the two models it is, and what is said; with --use-ema and without.
LOADED: dict[str, tuple[Any, int, str]] = {
    "plain": (ONE, 1, "^$"),
    "under model": ({"model": ONE}, 1, "took the weights under 'model'$"),
    "under state_dict": ({"state_dict": ONE, "epoch": 3}, 1, "'state_dict'; left aside epoch$"),
    "timm": ({"state_dict": ONE, **RUN}, 1, "left aside optimizer, epoch, metric, args$"),
    "DeiT": ({"model": ONE, "lr_scheduler": {"a": 1}, **RUN}, 1, "under 'model'; left aside lr_s"),
    "timm with EMA": (
        {"state_dict": ONE, "state_dict_ema": TWO, **RUN},
        1,
        "trained weights under 'state_dict'; " + NOT_EMA.format("'state_dict_ema'"),
    ),
    "DeiT with EMA": (
        {"model": ONE, "model_ema": TWO, **RUN},
        1,
        "trained weights under 'model'; " + NOT_EMA.format("'model_ema'"),
    ),
    "EMA first": ({"ema": TWO, "net": ONE}, 1, NOT_EMA.format("'ema'")),
    "EMA alone": ({"model_ema": TWO}, 2, "took the moving average under 'model_ema'$"),
    "EMA beside None": ({"model": ONE, "model_ema": None}, 1, "'model'; left aside model_ema$"),
    "Lightning": (
        {"state_dict": under("model.", ONE) | {"criterion.weight": torch.ones(5)}, **LIGHTNING},
        1,
        r"with the prefix 'model\.' under 'state_dict'; left aside epoch, .*, \.\.\.$",
    ),
    "Lightning net": ({"state_dict": under("net.", ONE), **LIGHTNING}, 1, r"prefix 'net\.'"),
    "Lightning backbone": ({"state_dict": under("backbone.", ONE)}, 1, r"prefix 'backbone\.'"),
    "Lightning WeightAveraging": (
        {"state_dict": under("model.", TWO), "current_model_state": under("model.", ONE)},
        1,
        r"trained weights with the prefix 'model\.' under 'current_model_state'; not the moving",
    ),
    "Lightning EMA callback": (
        {"state_dict": under("model.", ONE), "callbacks": EMA_CALLBACK},
        1,
        "not the moving average with the .* under 'callbacks' / 'EMACallback' / 'ema_state_dict'",
    ),
    "EMA by prefix": (
        BOTH,
        1,
        r"'model\.'; not the .* prefix 'ema_model\.', which .*use_ema=True\)$",
    ),
    "EMA by prefix, nested": ({"state_dict": BOTH}, 1, r"prefix 'model\.' under 'state_dict'"),
    "one module, two names": (under("model.", ONE) | under("net.", ONE), 1, r"'model\.'"),
    "DataParallel": (under("module.", ONE), 1, r"the weights with the prefix 'module\.'$"),
    "torch.compile": (under("_orig_mod.", ONE), 1, "^$"),
    "DataParallel of compiled": (under("module._orig_mod.", ONE), 1, r"the prefix 'module\.'$"),
    "compiled blocks": (renamed(ONE, (r"^(blocks\.\d+)", r"\1._orig_mod")), 1, "^$"),
    "FSDP": (under("_fsdp_wrapped_module.", ONE), 1, "^$"),
    "AveragedModel": (
        under("module.", ONE) | {"n_averaged": torch.tensor(5)},
        1,
        "left aside n_averaged$",
    ),
    "fastai": ({"model": ONE, "opt": optimiser()}, 1, "'model'; left aside opt$"),
    "DeepSpeed": ({"module": ONE, "ds_version": "0.14"}, 1, "under 'module'; left aside ds_v"),
    "DINO": (
        {"student": under("module.", ONE), "teacher": TWO, **RUN},
        1,
        r"trained weights with the prefix 'module\.' under 'student'; not the teacher under 'teach",
    ),
    "a teacher of another shape": (
        under("model.", ONE) | under("teacher.", ONE | {"pos_embed": torch.zeros(1, 5, D)}),
        1,
        r"took the weights with the prefix 'model\.'; not the model of other shapes with the pr",
    ),
    "optimiser with names": (
        {"model": ONE, "optimizer": {"exp_avg": TWO, "state": {"patch_embed.proj.weight": {}}}},
        1,
        "under 'model'; left aside optimizer$",
    ),
    "names with other values": (
        {"model": ONE, "decay": dict.fromkeys(ONE, 0.9)},
        1,
        "left aside decay$",
    ),
    "thop": (
        ONE | {"total_ops": torch.zeros(1), "blocks.0.attn.total_params": torch.zeros(1)},
        1,
        r"left aside total_ops, blocks\.0\.attn\.total_params$",
    ),
    "nested deeper": ({"a": {"b": {"state": {"net": ONE}}}}, 1, "'a' / 'b' / 'state' / 'net'"),
    "keys that are no strings": ({"model": ONE, 3: "x", None: 1, (1, 2): {}}, 1, "3, None, "),
    "numbers among tensors": ({**ONE, "epoch": 3, "name": "x"}, 1, "left aside epoch, name$"),
    "numbers as names": ({**ONE, 7: torch.ones(1)}, 1, "left aside 7$"),
    "a tuple as a name": ({**ONE, (1, 2): torch.ones(1)}, 1, "left aside a tuple$"),
    "names that are long": ({"model": ONE, "x" * 999: 1}, 1, "left aside x{60}$"),
    "circles": (circle(), 1, "under 'model'; left aside again, list$"),
    "hidden methods": (Hidden(), 1, "^$"),
    "hidden methods, nested": ({"model": Hidden()}, 1, "under 'model'$"),
    "parameters": ({name: nn.Parameter(tensor) for name, tensor in ONE.items()}, 1, "^$"),
    "in float64": ({name: tensor.double() for name, tensor in ONE.items()}, 1, "^$"),
    "slices of larger tensors": ({n: torch.cat([t, t])[: len(t)] for n, t in ONE.items()}, 1, "^$"),
    "transposed": ({n: t.T.contiguous().T if t.ndim == 2 else t for n, t in ONE.items()}, 1, "^$"),
    "objects of many kinds": (
        {
            "model": ONE,
            "settings": Settings(a=Settings(b=1)),
            "own": Own(),
            "colour": Colour.RED,
            "queue": collections.deque([1, 2]),
            "default": collections.defaultdict(list, {"a": [1]}),
            "array": np.arange(3),
            "when": datetime.datetime(2026, 1, 1),
            "path": Path("a"),
            "set": frozenset([1]),
            "range": range(3),
            "function": under,
        },
        1,
        "left aside settings, own, colour, queue, default, array, ...$",
    ),
    "in a dict of its own kind": ({"model": Settings(**ONE)}, 1, "under 'model'$"),
    "MMPretrain": ({"meta": {}, "state_dict": mmpretrain(ONE)}, 1, r"prefix 'backbone\.' under"),
    "MMEngine with EMA": (
        {
            **MMENGINE,
            "state_dict": mmpretrain(TWO),
            "ema_state_dict": under("module.", mmpretrain(ONE)) | {"steps": torch.tensor(9)},
        },
        1,
        r"trained weights with the prefix 'module\.backbone\.' under 'ema_state_dict'; not the mov",
    ),
}


@pytest.mark.parametrize("name", list(LOADED))
def test_loads_exactly_the_right_weights(tmp_path: Path, right: list[State], name: str) -> None:
    content, which, message = LOADED[name]
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    model, said = load(path)
    assert_same(model, right[which - 1])
    assert re.search(message, said), said
    assert said == "" or said.startswith(f"{path}: took the ")
    ema = "EMA" in name or name in ("DINO", "Lightning WeightAveraging")
    if name == "EMA beside None" or not ema:
        with pytest.raises(CheckpointError, match="expected the trained .* leave --use-ema out"):
            load(path, use_ema=True)
        return
    model, said = load(path, use_ema=True)
    assert_same(model, right[1])
    assert f"took the {'teacher' if name == 'DINO' else 'moving average'} " in said
    assert which == 2 or "; not the trained weights " in said


# Other writers of the same content.


def repacked(path: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """The same archive with some entries changed, and right checksums."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, change(name, data))
    return path


@pytest.mark.parametrize("names", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_numbers_of_old_and_new_numpy(tmp_path: Path, right: list[State], names: bytes) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"model": ONE, **RUN}, path)
    repacked(path, lambda _, data: re.sub(rb"numpy\._?core\.multiarray", names, data))
    assert names in path.read_bytes()
    model, _ = load(path)
    assert_same(model, right[0])


@pytest.mark.parametrize("content", [ONE, {"model": ONE, "model_ema": TWO, **RUN}])
def test_files_of_pytorch_before_1_6(tmp_path: Path, right: list[State], content: State) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path, _use_new_zipfile_serialization=False)
    model, _ = load(path)
    assert_same(model, right[0])


def test_a_file_without_checksums(tmp_path: Path, right: list[State]) -> None:
    path = tmp_path / "weights.pth"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(ONE, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(load(path)[0], right[0])


def test_the_content_counts_and_not_the_name(tmp_path: Path, right: list[State]) -> None:
    save_file(under("model.", ONE), tmp_path / "weights.pth")
    torch.save({"model": ONE}, tmp_path / "weights.safetensors")
    for name, said in (("weights.pth", "prefix 'model.'"), ("weights.safetensors", "'model'")):
        model, notes = load(tmp_path / name)
        assert_same(model, right[0])
        assert said in notes


def test_a_slice_does_not_keep_the_rest_in_memory(tmp_path: Path) -> None:
    large = torch.cat([ONE["head.weight"], torch.zeros(10_000, D)])
    torch.save(ONE | {"head.weight": large[:CLASSES]}, tmp_path / "weights.pth")
    weight = load(tmp_path / "weights.pth")[0].backbone.final.classifier.linears[0].weight
    assert torch.equal(weight, ONE["head.weight"])
    assert weight.untyped_storage().nbytes() == 4 * CLASSES * D


def huggingface(folder: Path, content: Any, **config: Any) -> Path:
    config = foreign.HF_CONFIG | {"model_type": "vit", "num_hidden_layers": 2} | config
    return foreign.write_directory(folder, config, content)


def test_folders_hold_prefixes_and_averages_too(tmp_path: Path) -> None:
    one, two = (
        foreign.huggingface_state("vit", tokens=1, classifiers=foreign.ONE, depth=2).state
        for _ in range(2)
    )
    two = {name: tensor + 1 for name, tensor in two.items()}
    plain, _ = load(huggingface(tmp_path / "plain", one))
    for i, content in enumerate(
        [under("_orig_mod.", one), under("module.", one), {"state_dict": one, "ema": two}]
    ):
        folder = huggingface(tmp_path / str(i), content)
        assert_same(load(folder)[0], plain.state_dict())
    average, said = load(folder, use_ema=True)
    assert_same(average, load(huggingface(tmp_path / "two", two))[0].state_dict())
    assert "took the moving average under 'ema'; not the trained weights" in said


def test_the_authors_folders_too(tmp_path: Path) -> None:
    make = foreign.huggingface_state("deit", tokens=1, classifiers=foreign.ONE, depth=2)
    foreign.add_exit(make, 0, "linear", foreign.ONE)
    config = foreign.HF_CONFIG | {"num_hidden_layers": 2, "model_type": "deit", "backbone": "ViT"}
    config |= {"highway_type": "linear", "position_exits": "[1]", "num_early_exits": 1}
    plain = load_checkpoint(foreign.write_directory(tmp_path / "plain", config, make.state))
    average = {name: tensor + 1 for name, tensor in make.state.items()}
    mean = load_checkpoint(foreign.write_directory(tmp_path / "mean", config, average))
    content = {"model": under("module.", make.state), "model_ema": average, **RUN}
    folder = foreign.write_directory(tmp_path / "wrapped", config, content)
    for use_ema, expected in ((False, plain), (True, mean)):
        said: list[str] = []
        first = load_checkpoint(folder, use_ema=use_ema, note=said.append)
        for model in (first, *models_to_export([folder], use_ema=use_ema, note=said.append)):
            assert_same(model, expected.state_dict())
        took = ["--use-ema takes" in text for text in said if "preprocessor_config" not in text]
        assert took == [not use_ema] * 2


def test_without_a_printer_the_log_says_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": ONE}, tmp_path / "weights.pth")
    load_model(tmp_path / "weights.pth", num_heads=1)
    assert "took the weights under 'model'" in capsys.readouterr().err


# What is refused: the content of a file of torch.save, and what the error says.


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)


STATE_DICT = r"torch\.save\(model\.state_dict\(\), 'weights\.pth'\)$"
NO_MODEL = "expected a state dict of tensors with the names of a ViT, DeiT or Swin, found "
WEIGHT = "blocks.1.mlp.fc1.weight"
ODD: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "sparse": (torch.Tensor.to_sparse, r"is torch\.sparse_coo, expected a dense tensor"),
    "meta": (lambda w: torch.empty(w.shape, device="meta"), r"is torch\.float32 on meta, exp"),
    "complex": (lambda w: w.to(torch.complex64), r"is torch\.complex64, expected float32, fl"),
    "integers": (torch.Tensor.long, r"is torch\.int64, expected float32"),
    "bytes": (lambda w: w.to(torch.uint8), r"is torch\.uint8, expected float32"),
    "bool": (torch.Tensor.bool, r"is torch\.bool, expected float32"),
    "float8": (lambda w: w.to(torch.float8_e4m3fn), r"is torch\.float8_e4m3fn, expected float32"),
    "one number repeated": (lambda w: torch.zeros(1, 1).expand(w.shape), "is a view that repeats"),
    "nothing": (lambda w: w[:0], r"is \(0, 64\), expected \(128, 64\)"),
    "a scalar": (lambda w: w.sum(), r"is \(\), expected \(128, 64\)"),
    "another shape": (lambda w: w.T.contiguous(), r"is \(64, 128\), expected \(128, 64\)"),
    "NaN": (lambda w: w * float("nan"), "holds NaN or infinity"),
    "too large": (lambda w: w.double() + 1e300, "holds NaN or infinity"),
}


def without(name: str) -> State:
    return {key: tensor for key, tensor in ONE.items() if not key.startswith(name)}


REFUSED: dict[str, tuple[Any, str]] = {
    "an optimiser": ({"optimizer": optimiser(), "epoch": 1}, f"{NO_MODEL}optimizer, epoch; "),
    "an optimiser's state": (optimiser(), f"{NO_MODEL}state, param_groups; .*{STATE_DICT}"),
    "nothing": ({}, f"{NO_MODEL}nothing; "),
    "an empty model": ({"model": {}}, f"{NO_MODEL}model; "),
    "no model": ({"model": None, "model_ema": None}, f"{NO_MODEL}model, model_ema; "),
    "a list": ([ONE], f"{NO_MODEL}a list; "),
    "None": (None, f"{NO_MODEL}a NoneType; "),
    "a tensor": (ONE["norm.weight"], f"{NO_MODEL}a Tensor; "),
    "arguments": (ARGS, rf"{NO_MODEL}an object of argparse\.Namespace; "),
    "a whole model": (
        Net(),
        rf"{NO_MODEL}a whole model \(.*test_containers\.Net\); .*{STATE_DICT}",
    ),
    "a model's whole": ({"model": Net()}, rf"{NO_MODEL}a whole model \(.*Net\) under 'model'; "),
    "several models": (
        {"a": ONE, "b": TWO},
        "expected one model, found several: under 'a' and under 'b'; save the state dict of the o",
    ),
    "an interrupted training": (
        {"format": "lgvit-edge-resume", "version": 2, "model": {}},
        "found the state of a training that was interrupted; repeat its command to finish it",
    ),
    "a model nested too deep": ({"a": {"b": {"c": {"d": {"e": {"f": ONE}}}}}}, f"{NO_MODEL}a; "),
    "several averages": ({"ema": ONE, "swa": TWO}, "found several: under 'ema' and under 'swa'"),
    "NumPy arrays": (
        {name: tensor.numpy() for name, tensor in ONE.items()},
        r"expected tensors, found an object of numpy\..* as patch_embed\.proj\.weight; ",
    ),
    "a list of numbers": (
        {**ONE, "patch_embed.proj.weight": [1.0]},
        r"expected tensors, found a list as patch_embed\.proj\.weight; ",
    ),
    "a weight that is no tensor": ({**ONE, WEIGHT: [1.0]}, rf"missing {re.escape(WEIGHT)}"),
    "an adapter beside": (
        ONE | {"blocks.0.attn.qkv.lora_A.default.weight": torch.zeros(8, D)},
        r"expected whole weights, found an adapter of PEFT \(blocks.*lora_A.*\); merge it, in",
    ),
    "an adapter around": (
        under("base_model.model.", renamed(ONE, (r"attn\.qkv\.", "attn.qkv.base_layer."))),
        r"found an adapter of PEFT \(blocks\.0\.attn\.qkv\.base_layer",
    ),
    "no classifier": (
        without("head."),
        "the weights have no classifier, and stage 2 trains none; "
        "run: lgvit-edge train --order joint",
    ),
    "a classifier beside": (
        under("backbone.", without("head.")) | {"fc.weight": torch.zeros(CLASSES, D)},
        "the weights have no classifier",
    ),
    "DINO's own": (
        {"student": under("module.backbone.", without("head.")), "teacher": without("head.")},
        "the weights have no classifier",
    ),
    "names of Hugging Face": (
        foreign.huggingface_state("vit", tokens=1, classifiers=foreign.ONE, depth=1).state,
        r"named as Hugging Face does, which needs config\.json: give the folder",
    ),
    "those of ViTModel": (
        {"embeddings.patch_embeddings.projection.weight": torch.zeros(1)},
        r"named as Hugging Face does, which needs config\.json",
    ),
    "Swin of MMPretrain": (
        {
            "backbone.patch_embed.projection.weight": torch.zeros(8, 3, 4, 4),
            "backbone.stages.0.blocks.0.norm1.weight": torch.zeros(8),
        },
        "is a Swin of MMPretrain, which merges patches in another order; expected the names of ti",
    ),
    "layer scale of MMPretrain": (
        mmpretrain(ONE) | {"backbone.layers.0.attn.gamma1.weight": torch.ones(D)},
        r"unexpected blocks\.0\.attn\.gamma1\.weight",
    ),
    "hidden layer of MMPretrain": (
        mmpretrain(ONE) | {"head.layers.pre_logits.weight": torch.ones(D, D)},
        r"unexpected head\.layers\.pre_logits\.weight",
    ),
    "one weight twice": (
        ONE | {"_orig_mod.norm.bias": torch.zeros(D)},
        r"expected each weight once, found norm\.bias twice, once as _orig_mod\.norm\.bias; ",
    ),
    "one renamed": (
        renamed(ONE, (r"^norm\.bias", "norm.bios")),
        r"missing norm\.bias\n(.|\n)*bios",
    ),
    "one too many": (ONE | {"norm3.bias": torch.zeros(D)}, r"unexpected norm3\.bias"),
    "a block too few": (without("blocks.0"), r"missing blocks\.0\.norm1\.weight"),
    "another network": (
        {"conv1.weight": torch.zeros(1)},
        r"expected a timm ViT, .* missing; found conv1\.weight",
    ),
    **{
        f"weight: {kind}": (ONE | {WEIGHT: change(ONE[WEIGHT])}, rf"{re.escape(WEIGHT)} {message}")
        for kind, (change, message) in ODD.items()
    },
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_content_that_is_refused(tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    path = tmp_path / "weights.pth"
    with warnings.catch_warnings():  # PyTorch's, about sparse tensors
        warnings.simplefilter("ignore")
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))


def test_nested_tensors(tmp_path: Path) -> None:
    with warnings.catch_warnings():  # that they are a prototype
        warnings.simplefilter("ignore")
        odd = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
        torch.save(ONE | {WEIGHT: odd}, tmp_path / "weights.pth")
        with pytest.raises(CheckpointError, match=rf"{WEIGHT} is nested, expected a dense tensor"):
            load(tmp_path / "weights.pth")


def test_quantised_weights(tmp_path: Path) -> None:
    with warnings.catch_warnings():  # that they are deprecated
        warnings.simplefilter("ignore")
        odd = torch.quantize_per_tensor(ONE[WEIGHT], 0.1, 0, torch.qint8)
        torch.save(ONE | {WEIGHT: odd}, tmp_path / "weights.pth")
        with pytest.raises(
            CheckpointError, match=rf"{WEIGHT} is torch\.qint8 on cpu, expected a d"
        ):
            load(tmp_path / "weights.pth")


def test_a_file_of_ours_holds_no_average(tmp_path: Path, tiny_model: LGViT) -> None:
    save_checkpoint(tiny_model, tmp_path / "model.pt")
    with pytest.raises(
        CheckpointError, match="found a file of lgvit-edge train, which holds one m"
    ):
        load_model(tmp_path / "model.pt", use_ema=True)


# Files that are no file of torch.save, or a damaged one.


def archive(**entries: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as file:
            for name, data in entries.items():
                file.writestr(name.replace("__", "/"), data)

    return write


def holding(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def scripted(path: Path) -> None:
    with warnings.catch_warnings():  # that TorchScript is deprecated
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


def compressed(path: Path) -> None:
    torch.save(ONE, path)
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in entries.items():
            file.writestr(name, data)


def new_protocol(path: Path) -> None:
    torch.save(ONE, path, pickle_protocol=4)


def many_classes(path: Path) -> None:
    """A list of classes, which would be slow to read, not wrong."""
    names = b"".join(b"cbuiltins\nf%d\na" % i for i in range(600))
    torch.save([], path)
    repacked(path, lambda name, data: b"\x80\x02]" + names + b"." if "data.pkl" in name else data)


FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "ONNX": ("m.onnx", holding(b"\x08\x08\x12\x07pytorch"), "is an ONNX graph; expected safeten"),
    "GGUF": ("m.gguf", holding(b"GGUF\x03\0\0\0"), "is a GGUF file; expected"),
    "Keras": ("tf_model.h5", holding(b"\x89HDF\r\n\x1a\n"), "is an HDF5 file, as Keras writes; "),
    "Keras 3": ("m.keras", archive(**{"model.weights.h5": b"x"}), "is a Keras model; "),
    "TensorFlow": ("saved_model.pb", holding(b"\x08\x01"), "is a graph of TensorFlow; "),
    "Flax": ("flax_model.msgpack", holding(b"\x82\xa3"), "is a file of Flax; .* with timm or tr"),
    "engine": ("m.engine", holding(b"ptrt"), "is a compiled engine; "),
    "distributed": ("__0_0.distcp", holding(b"PK"), r"run: python -m torch\.distributed\.check"),
    "JAX": ("B_16.npz", archive(**{"cls.npy": b"\x93NUMPY"}), "is a NumPy archive, as JAX models"),
    "NumPy": ("w.npy", holding(b"\x93NUMPY\x01\0"), "is a NumPy array; "),
    "TorchScript": ("m.pt", scripted, r"is a TorchScript program; .*torch\.jit\.load\(FILE\)"),
    "export": ("m.pt2", archive(**{"m__archive_format": b"pt2"}), r"program of torch\.export; "),
    "gzip": ("w.pth.gz", holding(b"\x1f\x8b\x08\0"), "is an archive of files; .*; unpack it"),
    "tar": ("w.tar", holding(b"\0" * 257 + b"ustar\0"), "is an archive of files; "),
    "zip": ("w.zip", archive(a=b"1"), "is a zip archive without weights, found a; .*; unpack it"),
    "web page": ("w.pth", holding(b"<!DOCTYPE html>"), "is a web page, not the file itself; "),
    "LFS": (
        "w.pth",
        holding(b"version https://git-lfs"),
        "pointer of Git LFS.*; run: git lfs pull",
    ),
    "text": ("w.pth", holding(b"hello"), r"neither .* nor safetensors \(it begins b'hello'\); "),
    "pickle": (
        "w.pkl",
        lambda p: p.write_bytes(pickle.dumps({"a": 1}, 2)),
        "a pickle, but not one",
    ),
    "many classes": ("w.pth", many_classes, r"was refused: it holds more than .* \(builtins\.f0, "),
    "protocol 4": ("w.pth", new_protocol, r"refused: its content cannot be read as weights \(PyT"),
    "compressed": (
        "w.pth",
        compressed,
        "expected a file of torch.save, which is not compressed, f",
    ),
}


@pytest.mark.parametrize("kind", list(FILES))
def test_files_of_another_kind(tmp_path: Path, kind: str) -> None:
    name, write, message = FILES[kind]
    write(tmp_path / name)
    with warnings.catch_warnings():  # PyTorch's, about the protocol
        warnings.simplefilter("ignore")
        with pytest.raises(CheckpointError, match=message) as caught:
            load(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("keep", [0, 1, 4, 100, 0.5, 0.999, -1])
def test_files_that_are_cut_off(tmp_path: Path, zipped: bool, keep: float) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"model": ONE, **RUN}, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(
        CheckpointError, match="is (empty|cut off|neither).* copy or download it again$"
    ):
        load(path)


def test_a_flipped_byte_never_loads_wrong_weights(tmp_path: Path, right: list[State]) -> None:
    """PyTorch checks no checksum: without ours a changed number would load unseen."""
    path = tmp_path / "weights.pth"
    torch.save({"model": ONE}, path)
    data = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(len(data), (150,), generator=generator).tolist()
    refused = 0
    for at in [*range(0, 60, 3), *range(len(data) - 60, len(data), 3), *places]:
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            model, _ = load(path)
        except CheckpointError as error:
            refused += 1
            assert str(error).startswith(str(path))
        else:
            assert_same(model, right[0])
    assert refused > 100


FOLDERS: dict[str, tuple[list[str], str]] = {
    "empty": ([], "expected config.json, found nothing; save it with save_pretrained$"),
    "weights alone": (["w.pth"], r"expected config\.json, found w\.pth; give the file of weights"),
    "adapter": (
        ["adapter_config.json", "adapter_model.bin"],
        "found adapter_config.* of PEFT; mer",
    ),
    "no weights": (
        ["config.json"],
        r"expected one of .* beside config\.json, found config\.json; ",
    ),
    "TensorFlow": (
        ["config.json", "tf_model.h5"],
        r"found config\.json, tf_model\.h5; save the mo",
    ),
}


@pytest.mark.parametrize("kind", list(FOLDERS))
def test_folders_that_are_refused(tmp_path: Path, kind: str) -> None:
    names, message = FOLDERS[kind]
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_a_folder_of_vitmodel_has_no_classifier(tmp_path: Path) -> None:
    state = foreign.huggingface_state("vit", tokens=1, classifiers=(), depth=2).state
    for i, content in enumerate([state, renamed(state, (r"^vit\.", ""))]):
        folder = huggingface(tmp_path / str(i), content, architectures=["ViTModel"])
        with pytest.raises(CheckpointError, match=r"has no classifier: expected classifier\.weig"):
            load(folder)


# Nothing in a file is executed or imported.


class Bomb:
    """A pickle that calls something when somebody trusts it."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


BOMBS: dict[str, Callable[[Path], Bomb]] = {
    "os.mkdir": lambda mark: Bomb(__import__("os").mkdir, str(mark)),
    "os.system": lambda mark: Bomb(__import__("os").system, f"touch {mark}"),
    "exec": lambda mark: Bomb(exec, f"open({str(mark)!r}, 'w').close()"),
    "eval": lambda mark: Bomb(eval, f"open({str(mark)!r}, 'w').close()"),
    "shutil": lambda mark: Bomb(shutil.copyfile, __file__, str(mark)),
    "subprocess": lambda mark: Bomb(subprocess.getoutput, f"touch {mark}"),
    "a method": lambda mark: Bomb(Path.touch, mark),
    "what a pickle names": lambda mark: Bomb(pickle.loads, pickle.dumps(Bomb(Path.touch, mark), 2)),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["alone", "beside", "as a weight", "as a key", "as a dict"])
@pytest.mark.parametrize("kind", list(BOMBS))
def test_nothing_in_a_file_is_executed(
    tmp_path: Path, right: list[State], kind: str, place: str, zipped: bool
) -> None:
    mark, path = tmp_path / "executed", tmp_path / "weights.pth"
    bomb: Any = BOMBS[kind](mark)
    content = {
        "alone": bomb,
        "beside": {"model": ONE, "args": bomb},
        "as a weight": {**ONE, WEIGHT: bomb},
        "as a key": {"model": ONE, bomb: 1},
        "as a dict": {"model": bomb, "state_dict": ONE},
    }[place]
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    try:
        model, _ = load(path)
    except CheckpointError:
        pass
    else:  # it was left aside unread
        assert_same(model, right[0])
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # the bomb is live


def test_stand_ins_are_gone_after_the_call(tmp_path: Path) -> None:
    torch.save({"model": ONE, **RUN}, tmp_path / "weights.pth")
    before = set(torch.serialization.get_safe_globals())
    load(tmp_path / "weights.pth")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "weights.pth", weights_only=True)


def test_a_storage_cannot_claim_more_than_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"model": {"a": torch.zeros(200), **ONE}}, path)
    # 200 numbers, in the storage and in the shape, become 60,000: PyTorch sees it itself.
    repacked(path, lambda _, data: data.replace(b"K\xc8", b"M\x60\xea"))
    with pytest.raises(CheckpointError, match=r"content cannot be read as weights \(Py"):
        load(path)


# The commands.


def test_info_says_what_it_takes_beside_its_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"model": ONE, "model_ema": TWO, **RUN}, path)
    for options, message in (([], "not the moving average"), (["--use-ema"], "took the moving")):
        words = ["lgvit-edge", "info", str(path), "--num-heads", "1", "--json"]
        monkeypatch.setattr(sys, "argv", [*words, *options])
        with pytest.raises(SystemExit, match="0"):
            main()
        output = capsys.readouterr()
        assert json.loads(output.out)["blocks"] == 2
        assert output.err.startswith(f"note: {path}: ") and message in output.err


def test_use_ema_is_refused_where_there_is_nothing_to_choose(
    tmp_path: Path, command: Callable[..., str]
) -> None:
    torch.save(ONE, tmp_path / "weights.pth")
    said = command("info", tmp_path / "weights.pth", "--use-ema", status=1)
    assert "expected the trained weights and their moving average" in said
    (tmp_path / "manifest.json").write_text("{}")
    said = command("info", tmp_path, "--use-ema", status=2)
    assert "--crop-pct are for checkpoints, found a bundle" in said
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert "model.merge_and_unload()" in command("info", tmp_path / "adapter", status=1)
