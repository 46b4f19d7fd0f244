"""Models of the Hugging Face Hub: out of a cache that the test makes, and from a hub of its own."""

from __future__ import annotations

import hashlib
import importlib
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from small import vit, write_photos

from lgvit_edge.errors import CheckpointError, MissingDependency, UsageError
from lgvit_edge.model import LGViT, load_backbone, load_checkpoint, load_model, save_checkpoint

hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
for part in ("constants", "errors", "file_download"):
    importlib.import_module(f"huggingface_hub.{part}")

COMMIT, LATER = "0123456789" * 4, "f" * 40
NAME, PINNED = "hf:someone/tiny-vit", f"hf:someone/tiny-vit@{COMMIT}"
Files = dict[str, bytes]


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """A ViT in Hugging Face's names."""
    torch.manual_seed(seed)
    state = {
        "vit.embeddings.cls_token": torch.randn(1, 1, 16),
        "vit.embeddings.position_embeddings": torch.randn(1, 17, 16),
        "vit.embeddings.patch_embeddings.projection.weight": torch.randn(16, 3, 8, 8),
        "vit.embeddings.patch_embeddings.projection.bias": torch.randn(16),
        "classifier.weight": torch.randn(3, 16),
        "classifier.bias": torch.randn(3),
    }
    shapes = {f"attention.attention.{part}": (16, 16) for part in ("query", "key", "value")}
    shapes |= {"attention.output.dense": (16, 16), "intermediate.dense": (32, 16)}
    shapes |= {"output.dense": (16, 32), "layernorm_before": (16,), "layernorm_after": (16,)}
    layers = [f"vit.encoder.layer.{i}.{name}" for i in range(2) for name in shapes]
    for name in (*layers, "vit.layernorm"):
        shape = shapes.get(name.split(".", 4)[-1], (16,))
        state[f"{name}.weight"] = torch.randn(shape) / 4 + (len(shape) == 1)
        state[f"{name}.bias"] = torch.randn(shape[0])
    return state


def repository(seed: int = 0) -> Files:
    config = dict(model_type="vit", hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    config |= dict(intermediate_size=32, image_size=32, patch_size=8, num_labels=3)
    processor = dict(size={"height": 32, "width": 32}, image_mean=[0.1] * 3, image_std=[0.2] * 3)
    return {
        "config.json": json.dumps(config).encode(),
        "preprocessor_config.json": json.dumps(processor).encode(),
        "model.safetensors": save(weights(seed)),
        "pytorch_model.bin": b"a pickle, which nobody must open",
        "README.md": b"# tiny",
    }


def sharded(files: Files) -> Files:
    """The same in two files."""
    state = weights()
    names = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(state)}
    for file in set(names.values()):
        files[file] = save({n: state[n] for n in state if names[n] == file})
    files["model.safetensors.index.json"] = json.dumps({"weight_map": names}).encode()
    del files["model.safetensors"]
    return files


def cached(root: Path, files: Files, commit: str = COMMIT, owner: str = "someone") -> Path:
    """Files in the library's cache, as it keeps them; returns the folder of the commit."""
    home = root / f"models--{owner}--tiny-vit"
    snapshot = home / "snapshots" / commit
    for folder in (snapshot, home / "blobs", home / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        blob = home / "blobs" / hashlib.sha1(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{blob.name}")
    (home / "refs" / "main").write_text(commit)
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "hub"


@pytest.fixture
def offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""

    def refuse(*_: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return cache


class Hub(BaseHTTPRequestHandler):
    """What the hub answers to those who download."""

    files: Files
    commit = COMMIT
    refusal: tuple[int, str] | None = None
    fetched: list[str]

    def do_HEAD(self) -> None:
        self.answer(b"")

    def do_GET(self) -> None:
        self.answer(None)

    def answer(self, body: bytes | None) -> None:
        path = self.path.partition("?")[0].strip("/").split("/")
        content, code, fault, part = b"", 200, "", ""
        if self.refusal is not None:
            code, fault = self.refusal
        elif path[0] == "api" and path[1] != "models":
            code, fault = 404, "RepoNotFound"
        elif path[0] == "api":
            listed = [dict(type="file", path=n, size=1, oid=self.commit) for n in self.files]
            content = json.dumps(listed).encode()
        elif path[3] not in ("main", self.commit):
            code, fault = 404, "RevisionNotFound"
        elif path[-1] not in self.files:
            code, fault = 404, "EntryNotFound"
        else:
            content = self.files[path[-1]]
            if body is None:
                self.fetched.append(path[-1])
            if wanted := self.headers.get("Range"):  # older clients go on where they stopped
                begin, size = int(wanted.removeprefix("bytes=").rstrip("-")), len(content)
                code, content = 206, content[begin:]
                part = f"bytes {begin}-{size - 1}/{size}"
        self.send_response(code)
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("X-Error-Code", fault)
        if part:
            self.send_header("Content-Range", part)
        self.send_header("ETag", f'"{hashlib.sha1(self.files.get(path[-1], b"")).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content if body is None else b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def online(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """An empty cache, and a hub with the model."""
    served = type("Served", (Hub,), {"files": repository(), "fetched": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), served)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    old = hub.constants.ENDPOINT
    template = hub.constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(old, address)
    monkeypatch.setattr(hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


def logits(model: LGViT) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.ones(1, 3, 32, 32))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", [NAME, f"{NAME}@main", PINNED, Path(NAME)])
@pytest.mark.parametrize("form", [dict, sharded])
def test_a_cached_model_is_read_without_a_network(
    offline: Path, form: Callable[[Files], Files], name: str | Path
) -> None:
    folder = cached(offline, form(repository()))
    notes: list[str] = []
    model = load_backbone(name, note=notes.append)
    assert model.config.source == PINNED
    assert notes == [f"{PINNED}: files are taken from the hub to {folder}"]
    assert model.config.preprocess.mean == (0.1, 0.1, 0.1)
    assert torch.equal(logits(model), logits(load_backbone(folder)))


@pytest.mark.parametrize("form", [dict, sharded])
def test_a_model_is_downloaded_without_its_pickles(
    online: type[Hub], cache: Path, form: Callable[[Files], Files]
) -> None:
    online.files = form(online.files)
    model = load_model(NAME)
    assert model.config.source == PINNED
    wanted = {name for name in online.files if name.endswith((".json", ".safetensors"))}
    assert sorted(online.fetched) == sorted(wanted)
    load_model(PINNED)
    assert len(online.fetched) == len(wanted)  # nothing twice


def test_a_timm_model_tells_its_own_preprocessing(offline: Path) -> None:
    """``preprocessor_config.json`` is neither there nor asked for."""
    state = {
        "cls_token": torch.randn(1, 1, 16),
        "pos_embed": torch.randn(1, 17, 16),
        "patch_embed.proj.weight": torch.randn(16, 3, 8, 8),
        "patch_embed.proj.bias": torch.randn(16),
        "head.weight": torch.randn(3, 16),
        "head.bias": torch.randn(3),
    }
    shapes = {"attn.qkv": (48, 16), "attn.proj": (16, 16), "mlp.fc1": (64, 16), "mlp.fc2": (16, 64)}
    for name, shape in shapes.items():
        state[f"blocks.0.{name}.weight"] = torch.randn(shape)
        state[f"blocks.0.{name}.bias"] = torch.randn(shape[0])
    for name in ("blocks.0.norm1", "blocks.0.norm2", "norm"):
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.ones(16), torch.zeros(16)
    arguments = dict(embed_dim=16, depth=1, num_heads=2, img_size=32, patch_size=8)
    cfg = dict(mean=[0.3] * 3, std=[0.4] * 3, crop_pct=1.0, interpolation="bilinear")
    config = dict(architecture="vit_tiny_patch16_224", model_args=arguments, pretrained_cfg=cfg)
    cached(offline, {"config.json": json.dumps(config).encode(), "model.safetensors": save(state)})
    model = load_model(NAME)
    assert model.config.source == PINNED
    assert (model.config.num_heads, model.config.preprocess.mean) == (2, (0.3, 0.3, 0.3))


@pytest.mark.parametrize(
    "name",
    ["hf:", "hf:tiny", "hf:a/b/c", "hf:a/b@", "hf:../b", "hf:a/..", "hf:a/b@../c", "hf:a/b c"],
)
def test_a_malformed_name(name: str) -> None:
    with pytest.raises(UsageError, match="expected hf:owner/name or hf:owner/name@revision"):
        load_model(name)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependency, match=r"run: pip install 'lgvit-edge\[hub\]'"):
        load_model(NAME)


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ("config.json", r"config.json is not in the cache .*HF_HUB_OFFLINE forbids to ask"),
        ("model.safetensors", r"model.safetensors is not in the cache .*`hf download someone/tiny"),
        ("preprocessor_config.json", "or give .*0123456789 itself, for which the usual preproc"),
    ],
)
def test_what_the_cache_lacks(offline: Path, left_out: str, message: str) -> None:
    """A pickle beside it in the cache is no help, and unknown preprocessing is not assumed."""
    files = repository()
    del files[left_out]
    cached(offline, files)
    with pytest.raises(CheckpointError, match=message):
        load_model(NAME)


def test_a_cache_without_commits(offline: Path) -> None:
    """Which weights these are could not be told later."""
    cached(offline, repository(), "latest")
    with pytest.raises(CheckpointError, match="expected a folder of the cache that is named after"):
        load_model(NAME)


def test_a_newer_file_of_settings_alone(online: type[Hub]) -> None:
    about = json.loads(online.files.pop("preprocessor_config.json"))
    nested = {"image_processor": about | {"image_mean": [0.1, 0.2, 0.3]}}
    online.files["processor_config.json"] = json.dumps(nested).encode()
    assert load_model(NAME).config.preprocess.mean == (0.1, 0.2, 0.3)


def test_what_the_repository_lacks_is_remembered(
    online: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    del online.files["preprocessor_config.json"]
    notes: list[str] = []
    load_model(NAME, note=notes.append)
    assert "has no preprocessor_config.json; assumed" in notes[1]
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    assert load_model(NAME).config.source == PINNED


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ((403, "GatedRepo"), "is open only to those who accepted its terms, .* run: hf auth login"),
        ((401, "RepoNotFound"), "is no model on the hub, or one that you may not read"),
        ((404, "RepoNotFound"), "is no model on the hub, or one that you may not read"),
        ((404, "RevisionNotFound"), "has no revision"),
        ((404, "EntryNotFound"), "expected config.json, found nothing that the hub lists"),
        ((403, ""), "the hub cannot be reached .*403"),
    ],
)
def test_what_the_hub_refuses(online: type[Hub], refusal: tuple[int, str], message: str) -> None:
    online.refusal = refusal
    with pytest.raises(CheckpointError, match=message):
        load_model(NAME)


def test_no_safetensors(online: type[Hub]) -> None:
    del online.files["model.safetensors"]
    found = "found README.md, config.json, preprocessor_config.json, pytorch_model.bin; files of"
    with pytest.raises(CheckpointError, match=f"holds no safetensors: .*{found}.*save_pretrained"):
        load_model(NAME)
    assert "pytorch_model.bin" not in online.fetched


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ("model.bin", "expected names of safetensors, found 'model.bin'"),
        ("../x.safetensors", "expected names of files beside it, found '../x.safetensors'"),
        ("x.safetensors", "expected x.safetensors, which its index names, found README.md"),
    ],
)
def test_an_index_that_leads_elsewhere(online: type[Hub], shard: str, message: str) -> None:
    del online.files["model.safetensors"]
    index = {"weight_map": {"vit.layernorm.weight": shard}}
    online.files["model.safetensors.index.json"] = json.dumps(index).encode()
    with pytest.raises(CheckpointError, match=message):
        load_model(NAME)


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (
            OSError(28, "disk full"),
            CheckpointError,
            "could not be downloaded .*disk full",
        ),
        (KeyboardInterrupt("Ctrl-C"), KeyboardInterrupt, "Ctrl-C"),
    ],
)
def test_a_download_that_stops(
    online: type[Hub],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: BaseException,
    kind: type[BaseException],
    message: str,
) -> None:
    """No half file is left where models are read from, and the next call continues."""
    download = hub.file_download.http_get

    def stop(url: str, temp_file: Any, **options: Any) -> None:
        if url.endswith("model.safetensors"):
            temp_file.write(online.files["model.safetensors"][:11])
            raise fault
        download(url, temp_file, **options)

    with monkeypatch.context() as patched:
        patched.setattr(hub.file_download, "http_get", stop)
        with pytest.raises(kind, match=message):
            load_model(NAME)
    assert [path.name for path in cache.rglob("snapshots/*/*")] == ["config.json"]
    load_model(NAME)


def test_an_exit_model_is_asked_for(offline: Path) -> None:
    cached(offline, repository())
    with pytest.raises(CheckpointError, match=f"lgvit-edge train --backbone {PINNED} --data DIR"):
        load_checkpoint(NAME)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_checkpoints_remember_their_source(tmp_path: Path, suffix: str) -> None:
    model = LGViT(vit(source=PINNED))
    save_checkpoint(model, tmp_path / f"model{suffix}")
    assert load_model(tmp_path / f"model{suffix}").config.source == PINNED


def test_an_interrupted_training_goes_on_from_its_commit(
    offline: Path, tmp_path: Path, command: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    cached(offline, repository())
    data, out = write_photos(tmp_path / "data", ("cat", "dog"), 4), tmp_path / "model.pt"
    settings = ("--exits", 1, "--heads", "mlp", "--epochs", 1, "--batch-size", 4, "--workers", 0)
    asked = ("train", "--data", data, "--out", out, "--device", "cpu", *settings, "--backbone")
    with monkeypatch.context() as patched:
        patched.setattr("lgvit_edge.training.run.save_checkpoint", interrupt)
        assert f"{PINNED}: files are taken" in command(*asked, NAME, status=130)
    cached(offline, repository(seed=1), LATER)  # main has moved
    moved = command(*asked, NAME, status=1)
    assert f"model.source (then '{PINNED}', now 'hf:someone/tiny-vit@{LATER}')" in moved
    assert f"Repeat that training's command with {PINNED} as its checkpoint to continue" in moved
    assert "continuing after epoch 1/1 of stage 2" in command(*asked, PINNED)
    assert f"from {PINNED}" in command("info", out)
    assert json.loads(command("info", out, "--json"))["source"] == PINNED


def test_its_answers_are_checked(
    offline: Path, tmp_path: Path, command: Callable[..., str]
) -> None:
    """The library that runs the original reads the folder of that commit."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    cached(offline, repository())
    data = write_photos(tmp_path / "data", ("0", "1", "2"), 2)
    assert "agrees: transformers 5" in command("info", NAME, "--check", data)


def test_stage_2_starts_from_the_hub(
    offline: Path, tmp_path: Path, command: Callable[..., str]
) -> None:
    """It is a trained backbone, as a path is."""
    cached(offline, repository())
    data = write_photos(tmp_path / "data", ("0", "1", "2"), 2)
    settings = ("--epochs", 1, "--batch-size", 2, "--workers", 0, "--device", "cpu")
    asked = ("train", "--data", data, "--out", tmp_path / "m.pt", "--order", "frozen", "--exits", 1)
    command(*asked, *settings, "--heads", "mlp", "--prediction-exits", "all", "--backbone", NAME)
    command("export", "--ckpt", NAME, status=1)
    command("info", "hf:someone", status=2)
