"""``lgvit-edge bundle``: keys, signatures and packed bundles as they are typed."""

from __future__ import annotations

import getpass
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import lgvit_edge
from signed import Pair, key_pair, own_copy, signed_copy
from small import write_photos

from lgvit_edge.bundle.keys import read_private_key, read_trusted
from lgvit_edge.cli.options import TRUSTED_KEYS

pytest.importorskip("cryptography", reason="cryptography is not installed")
Command = Callable[..., str]
PASSPHRASE = "LGVIT_EDGE_KEY_PASSPHRASE"


@pytest.fixture
def here(tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a bundle of its own in ``out``."""
    monkeypatch.chdir(tmp_path)
    own_copy(bundle, tmp_path / "out")
    return tmp_path


@pytest.fixture
def pair(here: Path) -> Pair:
    return key_pair(here / "fleet.key")


def test_from_a_workstation_to_a_device(
    here: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSPHRASE, "a long one")
    said = command("bundle", "keys", "fleet.key")
    (key,) = {key.id for key in read_trusted([here / "fleet.key.pub"])}
    assert f"key {key}" in said and "fleet.key.pub: for devices" in said
    secret = Path("fleet.key").read_text().splitlines()[1]
    assert f"out is signed by {key}" in command("bundle", "sign", "out", "--key", "fleet.key")
    monkeypatch.delenv(PASSPHRASE)
    said = command("bundle", "verify", "out", "--trusted-keys", "fleet.key.pub", "--json")
    record = json.loads(said)
    assert record["key"] == key and len(record["digest"]) == 64
    said = command("bundle", "pack", "out", "--out", "out.tar")
    assert f"signed by {key}" in said
    said = command("bundle", "unpack", "out.tar", "--out", "new", "--trusted-keys", "fleet.key.pub")
    assert f"new: a bundle of 15 files, 0.4 MB, signed by {key}" in said, said
    assert record["digest"][:12] in command(
        "bundle", "verify", "new", "--trusted-keys", "fleet.key.pub"
    )
    write_photos(here / "photos", "a", 1)
    monkeypatch.setenv(TRUSTED_KEYS, "fleet.key.pub")
    assert record["digest"][:12] in command("predict", "--engines", "new", "photos", "--json")
    assert secret not in said


def test_json_of_every_command(here: Path, command: Command) -> None:
    made = json.loads(command("bundle", "keys", "k", "--no-passphrase", "--json"))
    assert made == {"key": made["key"], "private": "k", "public": "k.pub"}
    signed = json.loads(command("bundle", "sign", "out", "--key", "k", "--json"))
    assert signed == {
        "bundle": "out",
        "key": made["key"],
        "signature": "out/signature.json",
        "engines": [],
    }
    packed = json.loads(command("bundle", "pack", "out", "--out", "x.tar", "--json"))
    unpacked = json.loads(command("bundle", "unpack", "x.tar", "--out", "new", "--json"))
    assert packed["key"] == made["key"] and packed["bytes"] == Path("x.tar").stat().st_size
    assert unpacked == packed | {"out": "new", "key": None}  # nobody asked


@pytest.mark.parametrize(
    "line",
    [
        "predict --engines out photos",
        "bench --engines out --rounds 1",
        "bench --engines out --engines signed --data photos",
        "camera --engines out --source photos --check",
        "bundle verify out",
    ],
)
@pytest.mark.parametrize("way", ["option", "environment"])
def test_every_command_of_a_device_asks_for_the_signature(
    here: Path, pair: Pair, command: Command, monkeypatch: pytest.MonkeyPatch, line: str, way: str
) -> None:
    write_photos(here / "photos", "abcde", 1)
    signed_copy(here / "out", here / "signed", pair)
    options = ["--trusted-keys", "fleet.key.pub"]
    if way == "environment":
        monkeypatch.setenv(TRUSTED_KEYS, "fleet.key.pub")
        options = []
    said = command(*line.split(), *options, status=1)
    assert "out is not signed; run, where the key is: lgvit-edge bundle sign" in said
    if "signed" not in line:
        command(*line.replace(" out", " signed").split(), *options)


def test_a_service_keeps_the_keys_of_the_environment(
    here: Path, pair: Pair, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUSTED_KEYS, "fleet.key.pub")
    said = command("camera", "--engines", "out", "--source", "0", "--systemd")
    assert f"--trusted-keys {here / 'fleet.key.pub'}" in said


def test_the_file_of_a_camera_names_the_keys(here: Path, pair: Pair, command: Command) -> None:
    write_photos(here / "photos", "a", 1)
    Path("camera.toml").write_text(
        'engines = "out"\nsource = "photos"\ntrusted_keys = "fleet.key.pub"\n'
    )
    said = command("camera", "--config", "camera.toml", "--check", status=1)
    assert "out is not signed" in said
    command("bundle", "sign", "out", "--key", "fleet.key")
    command("camera", "--config", "camera.toml", "--check")


# Passphrases


class Terminal:
    """Somebody who types."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *typed: str) -> None:
        self.typed = list(typed)
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
        monkeypatch.setattr(getpass, "getpass", lambda prompt: self.typed.pop(0))


def test_a_passphrase_is_asked_for_at_a_terminal(
    here: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    Terminal(monkeypatch, "one", "two")
    said = command("bundle", "keys", "k", status=2)
    assert "the two passphrases differ; nothing was written" in said
    assert not Path("k").exists()
    Terminal(monkeypatch, "one", "one")
    command("bundle", "keys", "k")
    Terminal(monkeypatch, "two")
    said = command("bundle", "sign", "out", "--key", "k", status=2)
    assert "the passphrase is not that of k" in said and "two" not in said.split("error:")[1]
    Terminal(monkeypatch, "one")
    command("bundle", "sign", "out", "--key", "k")


def test_without_a_terminal_it_is_no_riddle(here: Path, command: Command) -> None:
    said = command("bundle", "keys", "k", status=2)
    assert f"a private key needs a passphrase: set {PASSPHRASE}, or add --no-passphrase" in said
    done = lgvit_edge("bundle", "keys", "k", **{PASSPHRASE: "one"})
    assert done.returncode == 0 and "one" not in done.stdout
    said = command("bundle", "sign", "out", "--key", "k", status=2)
    assert f"the private key is encrypted: set {PASSPHRASE}" in said
    read_private_key(Path("k"), lambda: b"one")


# Wrong use


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("keys fleet.key --no-passphrase", 2, "fleet.key exists, and keys are never overwritten"),
        ("keys none/k --no-passphrase", 2, "FILE: no such folder: .*/none; run: mkdir -p"),
        ("sign out", 2, "Missing option '--key'"),
        ("sign out --key none", 2, "cannot read the private key none: No such file"),
        ("sign out --key fleet.key.pub", 2, "others can read|is no private Ed25519 key"),
        ("sign none --key fleet.key", 1, "none is not a bundle: no such directory"),
        ("sign --engines out --key fleet.key", 2, "run: lgvit-edge bundle sign out --key fleet"),
        ("sign out --key fleet.key --trusted-keys fleet.key.pub", 1, "out is not signed"),
        (
            "verify out",
            2,
            "which keys are trusted\\? Add --trusted-keys FILE, or set LGVIT_EDGE_TR",
        ),
        ("verify out --trusted-keys fleet.key", 2, "is a private key, which belongs on no device"),
        ("verify out --trusted-keys none", 2, "cannot read the trusted key none"),
        ("pack none --out x.tar", 1, "none is not a bundle"),
        ("pack out --out out/x.tar", 2, "lies in the bundle itself"),
        ("unpack none.tar --out new", 1, "cannot read none.tar: No such file"),
        ("unpack fleet.key --out new", 1, "fleet.key is not what lgvit-edge bundle pack writes"),
        ("unpack x.tar --out out", 1, "out exists; name another --out, or add --replace"),
        ("fly", 2, "No such command 'fly'"),
    ],
)
def test_wrong_use_is_one_line(
    here: Path, pair: Pair, command: Command, line: str, status: int, said: str
) -> None:
    command("bundle", "pack", "out", "--out", "x.tar")
    os.chmod("fleet.key.pub", 0o600)
    before = sorted(here.rglob("*"))
    found = command("bundle", *line.split(), status=status)
    assert re.search(said, found), found
    assert sorted(here.rglob("*")) == before


def test_help_of_the_group(command: Command) -> None:
    for help in ("--help", "-h"):
        assert "unpack" in command("bundle", help)
    assert "--trusted-keys" in command("bundle", "unpack", "--help")
    said = lgvit_edge("bundle").stdout
    assert all(name in said for name in ("keys", "sign", "verify", "pack", "unpack"))
