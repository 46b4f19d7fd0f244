"""What tests of models share: timm, where it is installed."""

from __future__ import annotations

from typing import Any

import pytest

from lgvit_edge.benchmarks.experiments.published import import_timm
from lgvit_edge.errors import MissingDependency


@pytest.fixture(scope="session")
def timm() -> Any:
    try:
        return import_timm()
    except MissingDependency as error:
        pytest.skip(str(error))
