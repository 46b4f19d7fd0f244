"""Sessions that ask for a signature: what they open, load and leave alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from bundles import list_again
from signed import Pair, key_pair, own_copy, signed_copy
from small import frames

from lgvit_edge.errors import BundleError, MissingDependency, UsageError
from lgvit_edge.runtime import Session
from lgvit_edge.runtime.session import open_in_float32

pytest.importorskip("cryptography", reason="cryptography is not installed")


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return key_pair(tmp_path / "fleet.key")


@pytest.mark.parametrize("form", ["path", "text", "pem", "raw"])
def test_a_session_takes_keys_in_every_form(
    bundle: Path, tmp_path: Path, pair: Pair, form: str
) -> None:
    root = signed_copy(bundle, tmp_path / "out", pair)
    forms = {"path": pair.public, "text": str(pair.public), "pem": pair.public.read_bytes()}
    key = forms.get(form, pair.key.public.raw)
    with Session.open(root, trusted_keys=[key]) as session:
        assert session.predict(frames(1)[0]).label in "abcde"
        assert session.check_parity() < 1e-3


@pytest.mark.parametrize("open_it", [Session.open, open_in_float32])
def test_nothing_is_loaded_of_a_bundle_that_is_not_signed(
    bundle: Path, tmp_path: Path, pair: Pair, open_it: object
) -> None:
    root = own_copy(bundle, tmp_path / "out")
    with pytest.raises(BundleError, match="out is not signed; run, where the key is: lgvit-edge"):
        open_it(root, trusted_keys=[pair.public])  # type: ignore[operator]
    with pytest.raises(UsageError, match="expected at least one trusted key"):
        open_it(root, trusted_keys=[])  # type: ignore[operator]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "auto"])
def test_every_way_of_running(
    bundle: Path, tmp_path: Path, pair: Pair, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compiled goes into the user's cache, nothing into the bundle."""
    pytest.importorskip("openvino", reason="openvino is not installed")
    monkeypatch.setenv("LGVIT_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LGVIT_EDGE_BACKEND")
    root = signed_copy(bundle, tmp_path / "out", pair)
    before = {path: path.stat().st_mtime_ns for path in sorted(root.rglob("*"))}
    for _ in range(2):
        with Session.open(root, backend=backend, trusted_keys=[pair.public]) as session:
            session.predict(frames(1)[0])
            session.policy = "never"
            session.predict(frames(1)[0])
    assert {path: path.stat().st_mtime_ns for path in sorted(root.rglob("*"))} == before
    if backend == "openvino":
        (folder,) = (tmp_path / "cache").iterdir()
        assert folder.name.startswith("signed-") and list(folder.glob("*.blob"))


def test_weights_that_were_changed_and_listed_anew(
    bundle: Path, tmp_path: Path, pair: Pair
) -> None:
    root = signed_copy(bundle, tmp_path / "out", pair)
    weights = root / "segments" / "weights.bin"
    weights.write_bytes(b"\0" + weights.read_bytes()[1:])
    list_again(root)
    with Session.open(root):  # hashes alone are content
        pass
    with pytest.raises(BundleError, match="manifest.json is not the file that was signed"):
        Session.open(root, trusted_keys=[pair.public])


def test_without_the_package(
    bundle: Path, tmp_path: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = signed_copy(bundle, tmp_path / "out", pair)
    for name in [n for n in sys.modules if n.split(".")[0] == "cryptography"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependency, match=r"cryptography.*lgvit-edge\[sign\]"):
        Session.open(root, trusted_keys=[pair.public])
    with Session.open(root) as session:  # a signature that nobody asks for is no matter
        session.predict(frames(1)[0])
