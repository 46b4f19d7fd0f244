"""The ``bundle`` commands: sign and verify a bundle, make one file of it and a bundle of that."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer import Argument, Option

from lgvit_edge._support.terminal import say
from lgvit_edge.cli.options import (
    TRUSTED_KEYS,
    AsJson,
    Command,
    TrustedKeys,
    check_outputs,
    show,
)
from lgvit_edge.errors import UsageError

if TYPE_CHECKING:
    from lgvit_edge.bundle.keys import PublicKey

PASSPHRASE = "LGVIT_EDGE_KEY_PASSPHRASE"
Folder = Annotated[Path, Argument(help="Bundle folder that `lgvit-edge export` wrote.")]

commands = typer.Typer(
    help="Sign bundles for devices that trust a key, and make one file of a bundle.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def keys(
    file: Annotated[
        Path, Argument(help="Where the private key goes; its public half goes to FILE.pub.")
    ],
    passphrase: Annotated[
        bool,
        Option(
            "--passphrase/--no-passphrase",
            help=f"Encrypt the private key: {PASSPHRASE} holds the passphrase, or it is asked for.",
        ),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Make a key pair: a private key that signs bundles, and a public one for devices."""
    from lgvit_edge.bundle.keys import make_keys, public_file

    for path in (file, public_file(file)):
        if os.path.lexists(path):
            raise UsageError(f"{path} exists, and keys are never overwritten: name another")
    check_outputs({"FILE": file})
    public = make_keys(file, _new_passphrase() if passphrase else None)
    record = {"key": public.id, "private": str(file), "public": str(public_file(file))}
    show(record, as_json, _print_keys)


def sign(
    bundle: Folder,
    key: Annotated[Path, Option(help="Private key that `lgvit-edge bundle keys` wrote.")],
    trusted_keys: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="Public keys, one of which must have signed the bundle before, since when only "
            "engines may have been added: for devices that compile their own.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Sign a bundle exactly as it is, engines included."""
    from lgvit_edge.bundle.keys import read_private_key
    from lgvit_edge.bundle.layout import SIGNATURE
    from lgvit_edge.bundle.signing import sign_bundle

    trusted = _trusted(trusted_keys)
    private = read_private_key(key, _passphrase)
    signature = sign_bundle(bundle, private, trusted_keys=trusted)
    record = {
        "bundle": str(bundle),
        "key": signature.signer.id,
        "signature": str(bundle / SIGNATURE),
        "engines": sorted(
            {s.file.split("/")[1] for s in signature.files if s.file.startswith("engines/")}
        ),
    }
    show(record, as_json, _print_signed)


def verify(bundle: Folder, trusted_keys: TrustedKeys = None, as_json: AsJson = False) -> None:
    """Check that a trusted key signed a bundle, and that nothing in it was changed since."""
    from lgvit_edge.bundle.directory import open_bundle

    trusted = _trusted(trusted_keys)
    if trusted is None:
        raise UsageError(f"which keys are trusted? Add --trusted-keys FILE, or set {TRUSTED_KEYS}")
    opened = open_bundle(bundle, trusted_keys=trusted)
    assert opened.signer is not None
    record = {"bundle": str(bundle), "digest": opened.manifest.digest, "key": opened.signer.id}
    show(record, as_json, _print_verified)


def pack(
    bundle: Folder,
    out: Annotated[Path, Option(help="File to write, such as out.tar.")],
    as_json: AsJson = False,
) -> None:
    """Make one file of a bundle; the same bundle gives the same bytes, wherever it is packed."""
    from lgvit_edge.bundle.packed import pack as write

    check_outputs({"--out": out})
    packed = write(bundle, out)
    show(_packed(out, packed), as_json, _print_packed)


def unpack(
    file: Annotated[Path, Argument(help="File that `lgvit-edge bundle pack` wrote.")],
    out: Annotated[Path, Option(help="Bundle folder to write.")],
    replace: Annotated[
        bool, Option("--replace", help="Replace the bundle that is there, in one step.")
    ] = False,
    trusted_keys: TrustedKeys = None,
    as_json: AsJson = False,
) -> None:
    """Make a bundle of such a file, whole or not at all."""
    from lgvit_edge.bundle.directory import check_place
    from lgvit_edge.bundle.packed import unpack as write

    trusted = _trusted(trusted_keys)
    check_outputs({}, {"--out": out}, check=check_place)
    unpacked = write(file, out, replace=replace, trusted_keys=trusted)
    show(_packed(out, unpacked), as_json, _print_unpacked)


for command in (keys, sign, verify, pack, unpack):
    commands.command(cls=Command)(command)


def _trusted(file: Path | None) -> tuple[PublicKey, ...] | None:
    from lgvit_edge.bundle.keys import read_trusted

    return None if file is None else read_trusted([file])


def _passphrase() -> bytes:
    """Return the passphrase of a private key, from the environment or the terminal."""
    if (typed := os.environ.get(PASSPHRASE)) is None:
        if not sys.stdin.isatty():
            raise UsageError(f"the private key is encrypted: set {PASSPHRASE} to its passphrase")
        typed = getpass.getpass("passphrase of the private key: ")
    return os.fsencode(typed)


def _new_passphrase() -> bytes:
    """Return the passphrase for a new key, typed twice where it is not in the environment."""
    if (typed := os.environ.get(PASSPHRASE)) is None:
        if not sys.stdin.isatty():
            raise UsageError(
                f"a private key needs a passphrase: set {PASSPHRASE}, or add --no-passphrase where "
                "its file is safe"
            )
        typed = getpass.getpass("passphrase for the new private key: ")
        if getpass.getpass("once more: ") != typed:
            raise UsageError("the two passphrases differ; nothing was written")
    return os.fsencode(typed)


def _packed(out: Path, packed: Any) -> dict[str, Any]:
    return {
        "out": str(out),
        "files": packed.files,
        "bytes": packed.bytes,
        "sha256": packed.sha256,
        "digest": packed.digest,
        "key": None if packed.signer is None else packed.signer.id,
    }


def _print_keys(record: dict[str, Any], console: Console) -> None:
    say(f"key {record['key']}", console)
    say(f"{record['private']}: signs bundles; keep it where they are made, and secret", console)
    say(f"{record['public']}: for devices, which trust what it signed", console)


def _print_signed(record: dict[str, Any], console: Console) -> None:
    engines = f", with engines/{', engines/'.join(record['engines'])}" if record["engines"] else ""
    say(f"{record['signature']}: {record['bundle']} is signed by {record['key']}{engines}", console)
    say(f"on devices: lgvit-edge bundle verify {record['bundle']} --trusted-keys KEY.pub", console)


def _print_verified(record: dict[str, Any], console: Console) -> None:
    say(
        f"{record['bundle']} is as {record['key']} signed it (digest {record['digest'][:12]})",
        console,
    )


def _print_packed(record: dict[str, Any], console: Console) -> None:
    signed = f"signed by {record['key']}" if record["key"] else "not signed"
    say(
        f"{record['out']}: {record['files']} files, {record['bytes'] / 1e6:.1f} MB, {signed} "
        f"(digest {record['digest'][:12]})",
        console,
    )


def _print_unpacked(record: dict[str, Any], console: Console) -> None:
    signed = f"signed by {record['key']}" if record["key"] else "whose signature was not asked for"
    say(
        f"{record['out']}: a bundle of {record['files']} files, {record['bytes'] / 1e6:.1f} MB, "
        f"{signed} (digest {record['digest'][:12]})",
        console,
    )
