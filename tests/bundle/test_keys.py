"""Keys: written once, for their owner alone, and read only where they are what they should be."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lgvit_edge.bundle.keys import make_keys, public_file, read_private_key, read_trusted
from lgvit_edge.errors import ExportError, UsageError

pytest.importorskip("cryptography", reason="cryptography is not installed")


def never() -> bytes:
    raise AssertionError("no passphrase is needed")


def test_a_pair_signs_and_is_believed(tmp_path: Path) -> None:
    public = make_keys(tmp_path / "k", None)
    private = read_private_key(tmp_path / "k", never)
    assert read_trusted([tmp_path / "k.pub"]) == (public,) == (private.public,)
    signature = private.sign(b"words")
    assert public.signed(b"words", signature)
    assert not public.signed(b"Words", signature)
    assert not public.signed(b"words", signature[:-1] + bytes([signature[-1] ^ 1]))
    assert len(public.id) == 16 and public.id in repr(private)
    secret = (tmp_path / "k").read_bytes().splitlines()[1]
    assert secret.decode() not in repr(private)


def test_the_private_file_is_the_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_keys(tmp_path / "k", b"words")
    finally:
        os.umask(before)
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o600
    assert public_file(tmp_path / "k").stat().st_mode & 0o777 == 0o644
    assert b"ENCRYPTED" in (tmp_path / "k").read_bytes()


def test_a_passphrase_is_asked_for_where_it_is_needed(tmp_path: Path) -> None:
    public = make_keys(tmp_path / "k", "Wörter".encode())
    assert read_private_key(tmp_path / "k", "Wörter".encode).public == public
    with pytest.raises(UsageError, match="the passphrase is not that of") as wrong:
        read_private_key(tmp_path / "k", lambda: b"Worter")
    assert "Worter" not in str(wrong.value) and wrong.value.__cause__ is None


@pytest.mark.parametrize("passphrase", [b"", b"x" * 1001])
def test_a_passphrase_that_is_none(tmp_path: Path, passphrase: bytes) -> None:
    with pytest.raises(UsageError, match="a passphrase has 1 to 1000 bytes"):
        make_keys(tmp_path / "k", passphrase)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", ["k", "k.pub"])
def test_no_key_is_overwritten(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("old")
    with pytest.raises(UsageError, match=f"{there} exists, and keys are never overwritten"):
        make_keys(tmp_path / "k", None)
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "old"


def test_a_full_disk_leaves_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``os.fsync`` is where a full disk may be told; the disk of the tests is not."""

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExportError, match="cannot write .*k: No space left on device"):
        make_keys(tmp_path / "k", None)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot write .*none/k: No such file or directory"):
        make_keys(tmp_path / "none" / "k", None)


def openssl(*arguments: str) -> None:
    try:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")


def test_keys_of_openssl(tmp_path: Path) -> None:
    private, public = str(tmp_path / "k"), str(tmp_path / "k.pub")
    openssl("genpkey", "-algorithm", "ed25519", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    (tmp_path / "k").chmod(0o600)
    assert read_trusted([public]) == (read_private_key(Path(private), never).public,)


def test_keys_of_another_kind(tmp_path: Path) -> None:
    private, public = str(tmp_path / "k"), str(tmp_path / "k.pub")
    openssl("genpkey", "-algorithm", "x25519", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    (tmp_path / "k").chmod(0o600)
    with pytest.raises(UsageError, match="k.pub is of another kind: expected Ed25519"):
        read_trusted([public])
    with pytest.raises(UsageError, match="k is no private Ed25519 key"):
        read_private_key(Path(private), never)


def test_a_private_key_that_others_can_read(tmp_path: Path) -> None:
    make_keys(tmp_path / "k", None)
    (tmp_path / "k").chmod(0o640)
    with pytest.raises(UsageError, match=r"others can read .* \(mode 640\).*chmod 600"):
        read_private_key(tmp_path / "k", never)


@pytest.mark.parametrize("content", [b"", b"no key", b"\xff" * 100, b"-----BEGIN PRIVATE KEY-----"])
def test_what_is_no_private_key(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "k").write_bytes(content)
    (tmp_path / "k").chmod(0o600)
    with pytest.raises(UsageError, match="k is no private Ed25519 key"):
        read_private_key(tmp_path / "k", never)
    with pytest.raises(UsageError, match="cannot read the private key .*: No such file"):
        read_private_key(tmp_path / "none", never)


def test_every_form_of_a_trusted_key(tmp_path: Path) -> None:
    one, two = make_keys(tmp_path / "one", None), make_keys(tmp_path / "two", None)
    files = [tmp_path / "one.pub", tmp_path / "two.pub"]
    both = files[0].read_bytes() + b"of the second site\n" + files[1].read_bytes()
    (tmp_path / "both").write_bytes(both)
    for given in ([*files], [str(files[0]), two.raw], [both], [tmp_path / "both"], [both, *files]):
        assert read_trusted(given) == (one, two)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("k.pub", "must be a list, such as"),
        (b"x" * 32, "must be a list, such as"),
        (7, "must be a list, such as"),
        ([], "expected at least one trusted key, found none"),
        ([7], "a trusted key must be a file's path or bytes"),
        (["none.pub"], "cannot read the trusted key none.pub: No such file"),
        (["k"], "the trusted key k is a private key, which belongs on no device"),
        ([b"x" * 31], "the trusted key holds no public keys: expected PEM"),
        ([b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"], "cannot be read"),
        ([b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"], "no public keys"),
        (["pipe"], "it is a pipe or a device"),
    ],
)
def test_what_is_no_trusted_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Any, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make_keys(Path("k"), None)
    os.mkfifo("pipe")
    with pytest.raises(UsageError, match=said):
        read_trusted(given)
