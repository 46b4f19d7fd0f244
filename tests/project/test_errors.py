"""The exception tree is what the docstring draws, and what an application may rely on."""

from __future__ import annotations

import re

import pytest

from lgvit_edge import errors
from lgvit_edge._support.optional import require


def test_the_tree_is_as_drawn() -> None:
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if (found := re.match(r"    ([│ ├└─]*)(\w+Error|MissingDependency)\b", line)) is None:
            continue
        depth = len(found[1]) // 4
        path = [*path[:depth], found[2]]
        drawn[found[2]] = path[-2] if depth else "Exception"
    classes = {
        name: kind.__bases__[0].__name__
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, Exception)
    }
    assert drawn == classes


def test_what_is_not_installed_is_no_fault_of_a_backend() -> None:
    with pytest.raises(errors.MissingDependency, match=r"run: pip install 'lgvit-edge\[x\]'") as it:
        require("no_such_module_anywhere", extra="x")
    assert not isinstance(it.value, errors.BackendError)


def test_a_disagreement_at_run_time_is_no_failed_export() -> None:
    assert not issubclass(errors.ParityError, errors.ExportError)


def test_what_a_file_says_makes_no_endless_message() -> None:
    """The cure stays, which stands at the end."""
    said = str(errors.BundleError(f"expected a name, found {'x' * 10**6}; export it again"))
    assert len(said) < 5000
    assert said.startswith("expected a name, found xxx") and said.endswith("xx; export it again")
    assert "characters left out" in said
    assert str(errors.DataError("short")) == "short"
