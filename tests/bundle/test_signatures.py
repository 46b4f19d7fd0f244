"""Signatures: each byte that is read, and each file that is there, hangs on one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from bundles import list_again
from signed import Pair, key_pair, own_copy, signed_copy
from small import point

from lgvit_edge.bundle.directory import add_to_manifest, open_bundle, writing
from lgvit_edge.bundle.keys import read_trusted
from lgvit_edge.bundle.signature import (
    check_signed_manifest,
    message,
    read_signature,
    trusted_signature,
)
from lgvit_edge.bundle.signing import sign_bundle
from lgvit_edge.errors import BundleError

pytest.importorskip("cryptography", reason="cryptography is not installed")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return key_pair(tmp_path_factory.mktemp("keys") / "fleet.key")


@pytest.fixture(scope="module")
def keys(pair: Pair) -> tuple[object, ...]:
    return read_trusted([pair.public])


@pytest.fixture(scope="module")
def kept(bundle: Path, pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed bundle with engines, which nobody runs; each test puts back what it changes."""
    root = own_copy(bundle, tmp_path_factory.mktemp("signed") / "out")
    add_engines(root, "card")
    sign_bundle(root, pair.key)
    return root


def add_engines(root: Path, tag: str) -> None:
    folder = root / "engines" / tag
    folder.mkdir(parents=True, mode=0o755)
    for name in ("build.json", "segment_0.engine", "timing.cache"):
        (folder / name).write_bytes(f"{name} of {tag}".encode())
        (folder / name).chmod(0o644)


def test_a_signed_bundle_is_opened_and_says_by_whom(kept: Path, keys: tuple, pair: Pair) -> None:
    assert open_bundle(kept, trusted_keys=keys).signer == pair.key.public
    assert open_bundle(kept).signer is None
    other = read_trusted([b"x" * 32])
    assert open_bundle(kept, trusted_keys=(*other, *keys)).signer == pair.key.public


def test_every_byte_of_the_signature_counts(kept: Path, keys: tuple) -> None:
    """Also one that JSON would pass over, such as a space."""
    path, manifest = kept / "signature.json", (kept / "manifest.json").read_bytes()
    true = path.read_bytes()
    try:
        for place in range(len(true)):
            for changed in (true[place] ^ 1, true[place] ^ 0x20):
                path.write_bytes(true[:place] + bytes([changed]) + true[place + 1 :])
                with pytest.raises(BundleError):  # in the way of open_bundle
                    check_signed_manifest(kept, trusted_signature(kept, keys), manifest)
    finally:
        path.write_bytes(true)
    open_bundle(kept, trusted_keys=keys)


def test_every_file_counts(kept: Path, keys: tuple) -> None:
    """``python -m lgvit_edge.benchmarks.experiments.signatures`` changes every byte."""
    files = [path for path in sorted(kept.rglob("*")) if path.is_file()]
    assert len(files) > 12
    for path in files:
        true = path.read_bytes()
        places = {0, 1, len(true) // 3, len(true) // 2, len(true) - 2, len(true) - 1}
        for place in sorted(places):
            changed = bytearray(true)
            changed[place] ^= 1 << place % 8
            path.write_bytes(changed)
            with pytest.raises(BundleError):
                open_bundle(kept, trusted_keys=keys)
        for content in (true[:-1], true + b"\0", b""):
            path.write_bytes(content)
            with pytest.raises(BundleError):
                open_bundle(kept, trusted_keys=keys)
        path.unlink()
        with pytest.raises(BundleError):
            open_bundle(kept, trusted_keys=keys)
        path.write_bytes(true)
        path.chmod(0o644)
    open_bundle(kept, trusted_keys=keys)


@pytest.mark.parametrize(
    "name",
    ["notes.txt", "segments/more.onnx", "engines/card/more.engine", "engines/new/build.json", ".x"],
)
def test_a_file_more_is_refused(kept: Path, keys: tuple, name: str) -> None:
    path = kept / name
    made = not path.parent.exists()
    path.parent.mkdir(exist_ok=True)
    try:
        path.write_text("{}")
        path.chmod(0o644)
        with pytest.raises(BundleError, match=f"{name} is not covered by the signature"):
            open_bundle(kept, trusted_keys=keys)
    finally:
        path.unlink()
        if made:
            path.parent.rmdir()
    open_bundle(kept, trusted_keys=keys)


def test_a_lock_is_no_file_of_the_bundle(kept: Path, keys: tuple) -> None:
    (kept / ".lock").write_text("process 1")
    (kept / ".lock").chmod(0o644)
    open_bundle(kept, trusted_keys=keys)
    (kept / ".lock").unlink()


@pytest.mark.parametrize("kind", ["link", "folder link", "pipe"])
def test_what_is_no_plain_file_is_refused(kept: Path, keys: tuple, kind: str) -> None:
    path = kept / "engines" / "x"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(kept / ("engines/card" if kind == "folder link" else "manifest.json"))
    with pytest.raises(BundleError, match="engines/x is no plain file: a bundle holds files alone"):
        open_bundle(kept, trusted_keys=keys)
    path.unlink()


def test_a_stranger_lists_everything_anew(bundle: Path, pair: Pair, tmp_path: Path) -> None:
    """The manifest's own hashes prove nothing: an attacker writes them too."""
    root, keys = signed_copy(bundle, tmp_path / "out", pair), read_trusted([pair.public])
    weights = root / "segments" / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    list_again(root)
    open_bundle(root)
    with pytest.raises(BundleError, match="manifest.json is not the file that was signed"):
        open_bundle(root, trusted_keys=keys)


def test_a_stranger_signs_with_a_key_of_his_own(bundle: Path, pair: Pair, tmp_path: Path) -> None:
    other = key_pair(tmp_path / "other")
    root, keys = signed_copy(bundle, tmp_path / "out", other), read_trusted([pair.public])
    ids = f"expected {pair.key.public.id}, found {other.key.public.id}"
    with pytest.raises(BundleError, match=f"a key that is not trusted here: {ids}"):
        open_bundle(root, trusted_keys=keys)
    # Nor does it help him to name the trusted key.
    path = root / "signature.json"
    stated = json.loads(path.read_text()) | {"key": pair.key.public.raw.hex()}
    path.write_text(json.dumps(stated, indent=1) + "\n")
    with pytest.raises(BundleError, match="damaged or forged"):
        open_bundle(root, trusted_keys=keys)


def test_a_signature_of_another_bundle(
    bundle: Path, other_bundle: Path, pair: Pair, tmp_path: Path
) -> None:
    root, other = (
        signed_copy(each, tmp_path / name, pair)
        for each, name in ((bundle, "out"), (other_bundle, "other"))
    )
    shutil.copy(other / "signature.json", root / "signature.json")
    with pytest.raises(BundleError, match="manifest.json is not the file that was signed"):
        open_bundle(root, trusted_keys=read_trusted([pair.public]))


def test_an_unsigned_bundle(bundle: Path, pair: Pair, tmp_path: Path) -> None:
    root = own_copy(bundle, tmp_path / "a bundle")
    with pytest.raises(BundleError, match=r"is not signed; run.*bundle sign '.*a bundle' --key"):
        open_bundle(root, trusted_keys=read_trusted([pair.public]))


def test_the_message_says_what_it_is_for(kept: Path, pair: Pair) -> None:
    found = read_signature(kept)
    text = message(found.files).decode().splitlines()
    assert text[0] == "lgvit-edge bundle 1" and text[-1].endswith(" manifest.json")
    names = [spec.file for spec in found.files]
    assert names == sorted(names) and "engines/card/segment_0.engine" in names
    assert "segments/weights.bin" not in names  # which the manifest lists


def test_a_link_to_a_bundle_is_followed_once(kept: Path, keys: tuple, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(kept)
    assert open_bundle(tmp_path / "current", trusted_keys=keys).root == kept.resolve()


# Who could change it


def everywhere(root: Path) -> list[Path]:
    return [root, root / "segments", root / "manifest.json", root / "segments/weights.bin"]


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_what_others_can_write_is_refused(kept: Path, keys: tuple, place: int, mode: int) -> None:
    path = everywhere(kept)[place]
    before = path.stat().st_mode
    path.chmod(before | mode)
    with pytest.raises(BundleError, match=r"can be written by others \(mode .*chmod -R go-w"):
        open_bundle(kept, trusted_keys=keys)
    path.chmod(before)
    open_bundle(kept, trusted_keys=keys)


def test_a_folder_above_that_others_can_write(bundle: Path, pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    root = signed_copy(bundle, tmp_path / "open" / "out", pair)
    keys = read_trusted([pair.public])
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(BundleError, match="open can be written by others"):
        open_bundle(root, trusted_keys=keys)
    (tmp_path / "open").chmod(0o1777)  # as /tmp
    open_bundle(root, trusted_keys=keys)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("place", range(4))
def test_what_belongs_to_others_is_refused(kept: Path, keys: tuple, place: int) -> None:
    path = everywhere(kept)[place]
    os.chown(path, 12345, -1)
    with pytest.raises(BundleError, match=r"belongs to another user \(number 12345\)"):
        open_bundle(kept, trusted_keys=keys)
    os.chown(path, 0, -1)
    open_bundle(kept, trusted_keys=keys)


# Who signs, and what becomes of it


def test_what_belongs_to_no_bundle_is_not_signed(bundle: Path, pair: Pair, tmp_path: Path) -> None:
    root = own_copy(bundle, tmp_path / "out")
    for name in ("notes.txt", ".manifest.json.0.partial", "engines/x", "engines/a/.partial/b"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
        with pytest.raises(BundleError, match=f"{name} does not belong to a bundle.*remove it: rm"):
            sign_bundle(root, pair.key)
        path.unlink()
    assert not (root / "signature.json").exists()


def test_a_damaged_bundle_is_not_signed(bundle: Path, pair: Pair, tmp_path: Path) -> None:
    root = own_copy(bundle, tmp_path / "out")
    (root / "baseline.onnx").write_bytes(b"x" * (root / "baseline.onnx").stat().st_size)
    with pytest.raises(BundleError, match="its sha256 differs"):
        sign_bundle(root, pair.key)


def test_a_change_in_place_is_told(
    bundle: Path, pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, keys = signed_copy(bundle, tmp_path / "out", pair), read_trusted([pair.public])
    identity = open_bundle(root).manifest.identity
    add_to_manifest(root, identity, {})
    assert not capsys.readouterr().err
    open_bundle(root, trusted_keys=keys)
    add_to_manifest(root, identity, {"mine": point()})
    assert "was signed and is changed now" in capsys.readouterr().err
    with pytest.raises(BundleError, match="if the change is meant.*bundle sign"):
        open_bundle(root, trusted_keys=keys)
    sign_bundle(root, pair.key)
    assert "mine" in open_bundle(root, trusted_keys=keys).manifest.points


def test_a_device_vouches_for_the_engines_it_compiled(
    bundle: Path, pair: Pair, tmp_path: Path
) -> None:
    root, fleet = signed_copy(bundle, tmp_path / "out", pair), read_trusted([pair.public])
    device = key_pair(tmp_path / "device")
    add_engines(root, "orin")
    with pytest.raises(BundleError, match="engines/orin/.* is not covered by the signature"):
        open_bundle(root, trusted_keys=fleet)
    sign_bundle(root, device.key, trusted_keys=fleet)
    both = (*fleet, *read_trusted([device.public]))
    assert open_bundle(root, trusted_keys=both).signer == device.key.public
    with pytest.raises(BundleError, match="not trusted here"):
        open_bundle(root, trusted_keys=fleet)


def changed(root: Path) -> None:
    (root / "baseline.onnx").write_bytes((root / "baseline.onnx").read_bytes() + b"\0")
    list_again(root)


def unsigned(root: Path) -> None:
    (root / "signature.json").unlink()


@pytest.mark.parametrize(
    ("change", "said"),
    [(changed, "manifest.json is not the file that was signed|no graph"), (unsigned, "not signed")],
)
def test_a_device_vouches_for_nothing_else(
    bundle: Path, pair: Pair, tmp_path: Path, change: Callable[[Path], None], said: str
) -> None:
    root, fleet = signed_copy(bundle, tmp_path / "out", pair), read_trusted([pair.public])
    before = (root / "signature.json").read_bytes()
    change(root)
    with pytest.raises(BundleError, match=said):
        sign_bundle(root, key_pair(tmp_path / "device").key, trusted_keys=fleet)
    if (root / "signature.json").exists():
        assert (root / "signature.json").read_bytes() == before


def test_a_signed_bundle_can_be_exported_again(bundle: Path, pair: Pair, tmp_path: Path) -> None:
    root = signed_copy(bundle, tmp_path / "out", pair)
    with writing(root) as staging:
        shutil.copytree(bundle, staging, dirs_exist_ok=True)
    assert not (root / "signature.json").exists()


def test_too_many_files(kept: Path, keys: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lgvit_edge.bundle.signature.MAX_FILES", 5)
    with pytest.raises(BundleError, match="holds more than 5 files: it is no bundle"):
        open_bundle(kept, trusted_keys=keys)


def test_what_is_compiled_of_a_signed_bundle_lies_apart(kept: Path, keys: tuple) -> None:
    """What another opening compiled may come from files that were changed after the check."""
    caches = {open_bundle(kept, trusted_keys=k).cache for k in (None, keys)}
    assert len(caches) == 2 and None not in caches
