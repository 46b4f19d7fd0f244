"""What the tests of training share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from processes import TRAIN


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """A second thread only slows such small tensors down, the more so beside other work.

    It would also add in another order, so what a module trains once is trained with one, too.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def trained(
    folder: Path, command: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], str]:
    """What ``processes.training`` says, but run to its end in this process: starts take longest."""

    def run(options: str) -> str:
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            return command(*TRAIN.split(), *options.split(), "--workers", "0")

    return run
