"""Wrong and hostile ``config.json``: each gives one error, fast, that names key and value."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_states as foreign
import pytest
import torch

from lgvit_edge.errors import CheckpointError
from lgvit_edge.model import LGViT, load_backbone, load_checkpoint

NAN, INF, HUGE = float("nan"), float("inf"), 10**400
LABELS = {str(i): f"thing {i}" for i in range(foreign.CLASSES)}
HF_VIT = foreign.HF_CONFIG | {"model_type": "vit", "num_hidden_layers": 3, "num_labels": 5}
VIT = HF_VIT | dict(model_type="deit", backbone="ViT", highway_type="LGViT")
VIT |= dict(num_early_exits=2, position_exits="[1,2]")
SIZES = dict(image=16, patch=2, dim=8, depths=[1, 2, 2, 1], heads=[1, 1, 2, 2], window=2)
HF_SWIN = dict(model_type="swin", image_size=16, patch_size=2, embed_dim=8, depths=[1, 2, 2, 1])
HF_SWIN |= dict(num_heads=[1, 1, 2, 2], window_size=2, mlp_ratio=3.0, layer_norm_eps=1e-5)
HF_SWIN |= dict(num_labels=5, id2label=LABELS)
SWIN = HF_SWIN | dict(highway_type="LGViT", num_early_exits="[0,1,2,0]")
SWIN |= dict(position_exits="[[],[1],[1,2],[]]")
CONFIGS = {"vit": VIT, "swin": SWIN, "hf vit": HF_VIT, "hf swin": HF_SWIN}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories that load as they are; the configuration is rewritten by each test."""
    root = tmp_path_factory.mktemp("hostile")
    make = foreign.huggingface_state("deit", tokens=1, classifiers=foreign.ONE, depth=3)
    for k, kind in enumerate(["conv1_1", "attention_r2"]):
        foreign.add_exit(make, k, kind, foreign.ONE)
    swin = foreign.swin_state(**SIZES)
    states = {"hf swin": dict(swin.state), "vit": make.state, "swin": swin.state}
    hf_vit = foreign.huggingface_state("vit", tokens=1, classifiers=foreign.ONE, depth=3)
    states["hf vit"] = hf_vit.state
    for stage, k, kind in ((1, 0, "conv1_1"), (2, 0, "conv1_1"), (2, 1, "conv2_1")):
        name = f"swin.encoder.layers.{stage}.highway.{k}"
        foreign.add_swin_exit(swin, name, kind, 8 << stage)
    return {
        form: foreign.write_directory(root / form, CONFIGS[form], state, "model.safetensors")
        for form, state in states.items()
    }


def loader(form: str) -> Callable[[Path], LGViT]:
    return load_backbone if form.startswith("hf") else load_checkpoint


Folders = dict[str, Path]


def refusal(folders: Folders, form: str, config: dict[str, Any]) -> str:
    """Returns the error text of loading, which must be short."""
    (folders[form] / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        loader(form)(folders[form])
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert len(str(caught.value)) < 3000
    return str(caught.value)


@pytest.mark.parametrize("form", list(CONFIGS))
def test_what_the_others_are_made_from_loads(folders: Folders, form: str) -> None:
    (folders[form] / "config.json").write_text(json.dumps(CONFIGS[form]))
    model = loader(form)(folders[form])
    assert model.config.num_exits == {"vit": 2, "swin": 3}.get(form, 0)
    assert model.config.labels == tuple(LABELS.values())


Row = tuple[str, object, str]


def quoted(value: object) -> str:
    return re.escape(repr(value))


# Of every transformer: key, value, what the message says.
SHARED: list[Row] = [
    *[("image_size", v, rf"image_size.*found {v}\b") for v in (0, -28, 10**9)],
    ("image_size", 29, "image_size 29 is not a multiple"),
    ("image_size", [28, 56], "image_size must be square, found 28 x 56"),
    ("image_size", HUGE, "image_size"),
    *[("patch_size", v, rf"patch_size.*found {v}\b") for v in (0, -4, 10**9)],
    ("patch_size", 3, "not a multiple of patch_size 3"),
    ("patch_size", [4, 8], "patch_size must be square, found 4 x 8"),
    *[("num_labels", v, rf"(num_labels|num_classes).*found {v}\b") for v in (0, -5, 10**9)],
    ("num_labels", "5", "(num_labels|num_classes).*'5'"),
    ("num_labels", True, "(num_labels|num_classes).*True"),
    ("num_labels", 4, "expected 4 labels, found 5"),
    ("id2label", {"0": "a", "1": "b"}, "expected 5 labels, found 2"),
    *[("id2label", {v: "b"}, "id2label must map class numbers") for v in ("a", "0.5", "")],
    *[("layer_norm_eps", v, rf"layer_norm_eps.*found {v}") for v in (NAN, INF, -INF, 0.0, -1.0)],
    *[("layer_norm_eps", v, f"layer_norm_eps.*{quoted(v)}") for v in ("1e-5", None, True, [1])],
    ("layer_norm_eps", HUGE, "layer_norm_eps"),
    *[("qkv_bias", v, f"qkv_bias.*{quoted(v)}") for v in ("yes", 1, None)],
    *[
        ("hidden_act", v, f"hidden_act must be one of gelu, .* found {quoted(v)}")
        for v in ("mish", ["gelu"])
    ],
    ("hidden_act", None, "hidden_act.*None"),
]
PLAIN: list[Row] = [
    *[
        (key, v, rf"({key}|{ours}).*found .?{text}")
        for key, ours in (
            ("hidden_size", "hidden_size"),
            ("num_hidden_layers", "num_blocks"),
            ("num_attention_heads", "num_heads"),
            ("intermediate_size", "intermediate_size"),
        )
        for v, text in ((0, "0"), (-4, "-4"), (10**6, "1000000"), (32.5, r"32\.5"), ("4", "4"))
    ],
    ("hidden_size", 30, "hidden_size 30 is not a multiple of num_heads 4"),
    ("hidden_size", "32", "config.hidden_size: expected a whole number, found '32'"),
    ("hidden_size", True, "hidden_size.*True"),
    ("hidden_size", None, "hidden_size.*None"),
    ("hidden_size", NAN, "hidden_size.*nan"),
    ("hidden_size", 64, r"is \(32,.*\), expected \(64,"),
    ("num_hidden_layers", 4, r"missing \w+\.encoder\.layer\.3\."),
    ("num_hidden_layers", 1001, "num_blocks must be 1..1000, found 1001"),
    ("num_attention_heads", 5, "is not a multiple of num_heads 5"),
]
SWINS: list[Row] = [
    *[("embed_dim", v, rf"(embed_dim|hidden_size).* {v}\b") for v in (0, -8, 10**6)],
    ("embed_dim", HUGE, "embed_dim|hidden_size"),
    *[("embed_dim", v, f"embed_dim {quoted(v)}") for v in ("8", None, 8.0, True)],
    ("embed_dim", 9, r"stage widths \[9, 18, 36, 72\].*|is \(8,.*\), expected \(9,"),
    ("num_heads", [3, 3, 3, 3], "not.* multiple.*3"),
    ("num_heads", [1, 1, 3, 1], r"not multiples of stage_heads \[1, 1, 3, 1\]"),
    *[
        (key, v, rf"{key} must be a list such as \[2, 2, 6, 2\], found {quoted(v)}")
        for key in ("depths", "num_heads")
        for v in ("[1,2,2,1]", [], None, 4, [1, 2, 2.0, 1], [True] * 4, [[1]] * 4, {"a": 1}, ["1"])
    ],
    ("depths", [10**6], "(depths|num_blocks).*1000000"),
    ("depths", [1, 10**6, 1, 1], "(depths|num_blocks).*100000"),
    ("depths", [HUGE], "depths|num_blocks"),
    ("depths", [1] * 10**5, "depths|num_blocks"),
    ("depths", [0, 2, 2, 2], r"depths \[0, 2, 2, 2\]"),
    ("depths", [-1, 3, 3, 1], r"depths \[-1, 3, 3, 1\]"),
    ("depths", [1] * 9, r"depths \[1, 1, 1, 1, 1, 1, 1, 1, 1\]"),
    ("depths", [1, 2, 2], r"stage_heads.*\[1, 1, 2, 2\]|position_exits.* 3 of them"),
    ("num_heads", [1, 1, 2], r"stage_heads.*\[1, 1, 2\]"),
    ("num_heads", [1, 1, 2, 2, 2], r"stage_heads.*\[1, 1, 2, 2, 2\]"),
    ("num_heads", [0, 1, 2, 2], "num_heads must be 1.*found 0"),
    ("num_heads", [1, 0, 2, 2], r"stage_heads \[1, 0, 2, 2\]"),
    ("num_heads", [1, -1, 2, 2], r"stage_heads \[1, -1, 2, 2\]"),
    *[
        ("mlp_ratio", v, rf"mlp_ratio {quoted(v)}")
        for v in (NAN, INF, -INF, "4", -4.0, 0, None, True, [4.0], 0.3)
    ],
    *[("mlp_ratio", v, "mlp_ratio|intermediate_size") for v in (1e308, HUGE, 1e6)],
    ("mlp_ratio", 4.0, r"is \(24, 8\), expected \(32, 8\)"),
    *[("window_size", v, rf"window_size must be 1..256, found {v}") for v in (0, -1, 10**9)],
    *[("window_size", v, f"window_size.*{quoted(v)}") for v in ("7", None, [2, 2], True)],
    ("window_size", 4, r"bias_table is \(9, 1\), expected \(49, 1\)"),
    ("use_absolute_embeddings", True, "use_absolute_embeddings is not supported"),
]
POSITIONS = "position_exits must be a list such as .*found "
EXITS: list[Row] = [
    *[("highway_type", v, f"highway_type.*{quoted(v)}") for v in (None, ["LGViT"], {"a": 1}, 3)],
    *[
        ("highway_type", v, f"highway_type.*{quoted(v)}")
        for v in ("", "lgvit", "attention_rx", "attention_r", "attention_r-1")
    ],
    ("highway_type", "x" * 10**5, "highway_type.*'xxx"),
    *[("position_exits", v, POSITIONS) for v in (None, 4, "", "4", "{}", {}, "[null]", '["1"]')],
    *[("position_exits", v, POSITIONS) for v in ("4,5", "[1.5]", "[true]")],
    ("position_exits", "[1,true]", POSITIONS + r"\[1, True\]"),
    ("position_exits", "[[],[true],[1,2],[]]", POSITIONS),
    ("position_exits", [True, 2], POSITIONS),
    ("position_exits", "[[],[1.0],[],[]]", POSITIONS),
    ("position_exits", "[[],[[1]],[],[]]", POSITIONS),
    ("position_exits", "[" * 10**5, POSITIONS),
    ("position_exits", "[" + "1," * 10**5 + "1]", "position_exits|exits must"),
    *[
        ("num_early_exits", v, "num_early_exits")
        for v in (3, "x", None, "[", {"a": 1}, "[0,1,1,0]", "[9]", [0, 1, True, 0], -1, NAN)
    ],
    *[("backbone", v, f"backbone {quoted(v)}") for v in ("Swin", "vit", "", ["ViT"], {"ViT": 1})],
    *[("backbone", v, f"backbone {quoted(v)}") for v in (3, True)],
    ("backbone", "x" * 10**5, "backbone 'xxx"),
]
OF_A_VIT: list[Row] = [
    ("backbone", None, 'with backbone "ViT" or "DeiT", .*; found backbone None, model_type .deit'),
    ("model_type", "swin", "backbone 'ViT', model_type 'swin'"),
    *[
        ("highway_type", v, f"highway_type '{v}' is not supported")
        for v in ("vti", "attention_r0", "attention_r22")
    ],
    ("highway_type", "attention_r²", "highway_type.*'attention_r²'"),
    ("highway_type", "attention_r8", r"its window must be 1\.\.7 on 7 x 7 tokens, not 8"),
    ("position_exits", "[1,x]", r'position_exits must be a list such as "\[4,5,6\]", found '),
    *[("position_exits", v, r"position_exits.*\[\]") for v in ("[[],[1],[1,2],[]]", "[[],[2]]")],
    ("position_exits", [[1], [2]], r"position_exits.*\[1\]"),
    ("position_exits", "[1,1]", r"\[1, 1\]"),
    ("position_exits", "[2,1]", r"exits must be sorted.*found \[2, 1\]"),
    ("position_exits", "[0,1]", r"must lie after blocks 1\.\.2 .*\[0, 1\]"),
    ("position_exits", "[-1,1]", r"\[-1, 1\]"),
    ("position_exits", "[1,3]", r"must lie after blocks 1\.\.2 .*\[1, 3\]"),
    ("num_early_exits", 3, r"num_early_exits 3 but position_exits \[1, 2\]"),
    ("position_exits", f"[1,{HUGE}]", r"\[1, 1000"),
]
OF_A_SWIN: list[Row] = [
    ("backbone", "ViT", "backbone 'ViT', model_type 'swin'"),
    ("backbone", "DeiT", "backbone 'DeiT', model_type 'swin'"),
    ("model_type", "deit", "backbone None, model_type 'deit'"),
    ("model_type", ["swin"], r"model_type \['swin'\]"),
    ("highway_type", "conv1_1", "highway_type.*'conv1_1'"),
    ("highway_type", "attention_r1", "highway_type.*'attention_r1'"),
    ("position_exits", "[1,2]", r"position_exits.*found \[1, 2\]"),
    ("position_exits", "[[],[1],[1,2]]", r"position_exits.*4.*found \[\[\], \[1\], \[1, 2\]\]"),
    ("position_exits", "[[],[1],[1,2],[],[]]", r"position_exits.*4.*found \[\[\], \[1\],"),
    ("position_exits", "[[],1,[1,2],[]]", r"position_exits.*found \[\[\], 1,"),
    ("position_exits", "[[],[3],[1,2],[]]", r"position_exits of stage 2 .*1\.\.2, found \[3\]"),
    ("position_exits", "[[],[0],[1,2],[]]", r"position_exits of stage 2 .*1\.\.2, found \[0\]"),
    ("position_exits", "[[],[-1],[1,2],[]]", r"position_exits of stage 2 .*found \[-1\]"),
    ("position_exits", "[[],[1],[2,1],[]]", r"exits must be sorted.*\[2, 5, 4\]"),
    ("position_exits", "[[],[1],[1,1],[]]", r"exits must be sorted.*\[2, 4, 4\]"),
]
OUTSIDE = r"exits must lie after blocks 1\.\.5 .*found \[2, 4, 6\]"
COUNTS = r"highway_type 'LGViT' is not supported; expected LGViT \(2, 4, 6 or 8 exits\)"
# Known only with the whole configuration: several keys change.
LARGER: list[tuple[str, dict[str, Any], str]] = [
    *[
        (form, {"position_exits": positions, "num_early_exits": numbers}, message)
        for form, positions, numbers, message in (
            ("swin", "[[1],[1],[1],[]]", "[1,1,1,0]", "0 exits at most in stage 1, found 1"),
            ("swin", "[[],[1],[1],[1]]", "[0,1,1,1]", OUTSIDE),
            ("vit", "[]", 0, "unexpected deit.encoder.highway.0"),
            ("vit", "[1]", 1, COUNTS),
        )
    ],
    ("hf vit", {"num_labels": -1}, r"config\.json: num_classes must be 1"),
    ("hf vit", {"model_type": "bert"}, "model_type vit, .*, found 'bert'"),
    ("hf vit", {"model_type": None}, "model_type .*found None"),
    ("hf vit", {"model_type": ["vit"]}, r"model_type .*found \['vit'\]"),
    ("hf vit", {"model_type": "deit"}, r"missing deit\.embeddings\.cls_token"),
    ("hf vit", HF_SWIN, r"missing swin\.embeddings\.patch_embeddings"),
    ("hf swin", HF_VIT, r"missing vit\.embeddings\.cls_token"),
    ("vit", {"backbone": "DeiT"}, r"missing deit\.embeddings.*distillation_token"),
    ("vit", SWIN | {"backbone": None}, r"missing swin\.embeddings\.patch_embeddings"),
    ("swin", VIT, r"missing deit\.embeddings\.cls_token"),
]
ROWS = [
    *[(form, {key: value}, message) for form in CONFIGS for key, value, message in SHARED],
    *[(form, {key: v}, message) for form in ("vit", "hf vit") for key, v, message in PLAIN],
    *[(form, {key: v}, message) for form in ("swin", "hf swin") for key, v, message in SWINS],
    *[(form, {key: v}, message) for form in ("vit", "swin") for key, v, message in EXITS],
    *[("vit", {key: value}, message) for key, value, message in OF_A_VIT],
    *[("swin", {key: value}, message) for key, value, message in OF_A_SWIN],
    *LARGER,
]


def named(value: object) -> str:
    text = str(value)
    return text if len(text) <= 70 else f"{text[:60]}...{len(text)}"


@pytest.mark.parametrize(("form", "changes", "message"), ROWS, ids=named)
def test_refused(folders: Folders, form: str, changes: dict[str, Any], message: str) -> None:
    error = refusal(folders, form, CONFIGS[form] | changes)
    if any(isinstance(value, float) and not math.isfinite(value) for value in changes.values()):
        message = "config.json cannot be read as JSON .expected finite numbers, found -?(NaN|Inf)"
    assert re.search(message, error), error


@pytest.mark.parametrize(
    ("form", "key", "message"),
    [
        ("vit", "position_exits", "position_exits.*None"),
        ("vit", "highway_type", "is not an LGViT checkpoint"),
        ("vit", "backbone", "backbone None, model_type 'deit'"),
        ("vit", "hidden_size", r"is \(32,.*\), expected \(768,"),
        ("vit", "num_hidden_layers", r"missing deit\.encoder\.layer\.3\."),
        ("vit", "image_size", r"position_embeddings is \(1, 50, 32\), expected \(1, 3137, 32\)"),
        ("swin", "position_exits", "position_exits.*None"),
        ("swin", "highway_type", "is not an LGViT checkpoint"),
        ("swin", "model_type", "backbone None, model_type None"),
        ("swin", "depths", "position_exits of stage|missing swin"),
        ("swin", "embed_dim", r"is \(8,.*\), expected \(96,|stage widths"),
        ("swin", "window_size", r"bias_table is \(9, 1\), expected \(169, 1\)"),
        ("hf vit", "model_type", "found None"),
        ("hf swin", "num_heads", "stage_heads|num_heads"),
    ],
)
def test_a_key_that_is_missing(folders: Folders, form: str, key: str, message: str) -> None:
    error = refusal(folders, form, {k: v for k, v in CONFIGS[form].items() if k != key})
    assert re.search(message, error), error


@pytest.mark.parametrize("depth", [50, 300, 450, 600, 900, 1200, 3000, 20_000])
@pytest.mark.parametrize(
    ("form", "key"),
    [
        *[("vit", key) for key in ("position_exits", "highway_type", "backbone", "image_size")],
        *[("swin", key) for key in ("depths", "mlp_ratio", "num_early_exits", "model_type")],
        *[("hf swin", key) for key in ("model_type", "num_heads", "hidden_act", "embed_dim")],
    ],
)
def test_lists_in_lists(folders: Folders, form: str, key: str, depth: int) -> None:
    text = json.dumps(CONFIGS[form] | {key: "HERE"}).replace('"HERE"', "[" * depth + "]" * depth)
    (folders[form] / "config.json").write_text(text)
    with pytest.raises(CheckpointError):
        loader(form)(folders[form])


@pytest.mark.parametrize(
    ("form", "key", "code", "value"),
    [
        ("vit", "position_exits", "[{} or 1, 2]", [1, 2]),
        ("vit", "num_early_exits", "{} or 2", 2),
        ("swin", "position_exits", "[[], [1], [1, {} or 2], []]", [[], [1], [1, 2], []]),
        ("swin", "num_early_exits", "[0, 1, 2, {} or 0]", [0, 1, 2, 0]),
    ],
)
def test_python_is_not_evaluated(
    folders: Folders, tmp_path: Path, form: str, key: str, code: str, value: object
) -> None:
    mark = tmp_path / "executed"
    code = code.format(f"open({str(mark)!r}, 'w').close()")
    error = refusal(folders, form, CONFIGS[form] | {key: code})
    assert key in error and "open(" in error
    assert not mark.exists()
    assert eval(code) == value  # what the authors would do
    assert mark.exists()


def test_nothing_is_made_to_find_out_that_it_does_not_fit(folders: Folders) -> None:
    """1000 blocks of 65536 would be 200 TB."""
    changes = {"hidden_size": 65_536, "num_hidden_layers": 40, "intermediate_size": 65_536}
    error = refusal(folders, "hf vit", HF_VIT | changes)
    assert "expected (65536, 65536)" in error
    changes = {"embed_dim": 16_384, "depths": [10, 10, 10, 10], "mlp_ratio": 4}
    error = refusal(folders, "hf swin", HF_SWIN | changes)
    assert "expected" in error
    assert torch.zeros(1).device.type == "cpu"  # and the default device is as it was
