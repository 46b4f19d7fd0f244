"""The command line in the process of the tests, which has imported everything already."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from lgvit_edge.cli.app import main


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run a command that ends with ``status``; returns what it said, on one line."""

    def typed(*arguments: object, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["lgvit-edge", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        said = " ".join("".join(capsys.readouterr()).split())
        assert "internal error" not in said and "Traceback" not in said, said
        assert int(end.value.code or 0) == status, said
        return said

    return typed
