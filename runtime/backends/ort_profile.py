"""Times the operators of segments with ONNX Runtime's own profiler.

Each session writes a JSON file when its profiling ends: one event for every operator that ran, with
the name it has after optimization, and one event ``model_run`` for every run.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from lgvit_edge.bundle.directory import Bundle
from lgvit_edge.errors import BackendError, UsageError
from lgvit_edge.runtime.backends.base import ChainOptions, LayerTime
from lgvit_edge.runtime.backends.ort import OrtChain

_NODE = "_kernel_time"  # ends the name of an operator's event


def open_profiled(bundle: Bundle, names: list[str], options: ChainOptions) -> ProfiledOrtChain:
    """Open a chain that times its operators; see ``Backend.open_profiled``.

    Raises:
        UsageError: it would run on CUDA.
    """
    chain = ProfiledOrtChain(bundle, names, options)
    if (why := unprofiled(chain.describe())) is not None:
        chain.close()
        raise UsageError(f"{why}; use device 'cpu', or backend 'tensorrt'")
    return chain


def unprofiled(described: dict[str, Any]) -> str | None:
    """Return why operators on this device cannot be timed; see ``Backend.unprofiled``.

    Kernels are timed only by builds with --enable_cuda_profiling (microsoft/onnxruntime, pull
    requests 8406 and 9882), which those on PyPI are not.
    """
    if described["device"] == "cpu":
        return None
    return "on CUDA, ONNX Runtime's profiler times how long operators take to start, not to run"


class ProfiledOrtChain(OrtChain):
    """Runs a ``ProfiledChain`` on ONNX Runtime, with each segment in one session."""

    _in_parts = False

    def __init__(self, bundle: Bundle, names: list[str], options: ChainOptions) -> None:
        """Do what ``OrtChain`` does, and have the times written to a folder of its own."""
        self._folder = tempfile.TemporaryDirectory(prefix="lgvit-edge-profile-")
        self._profiles = Path(self._folder.name)
        self._runs, self._forgotten = [0] * len(names), [0] * len(names)
        try:
            super().__init__(bundle, names, options)
        except BaseException:
            self._folder.cleanup()
            raise

    def step(self) -> Any:
        """See ``Chain.step``."""
        self._runs[self._next] += 1
        return super().step()

    def describe(self) -> dict[str, Any]:
        """See ``ProfiledChain.describe``."""
        return super().describe() | {"profiler": "ONNX Runtime's profiler"}

    def forget(self) -> None:
        """See ``ProfiledChain.forget``."""
        self._forgotten = list(self._runs)

    def layer_times(self) -> list[list[list[LayerTime]]]:
        """See ``ProfiledChain.layer_times``."""
        files = [session.end_profiling() for (session,) in self._sessions]
        read = [_read(Path(file), runs) for file, runs in zip(files, self._runs, strict=True)]
        return [runs[first:] for runs, first in zip(read, self._forgotten, strict=True)]

    def close(self) -> None:
        """See ``Chain.close``."""
        super().close()  # sessions that were not read write their files now
        self._folder.cleanup()


def _read(path: Path, expected: int) -> list[list[LayerTime]]:
    """Return the operators of each run, as a profile tells them.

    Raises:
        BackendError: it is not whole, or holds another number of runs.
    """
    try:
        events = json.loads(path.read_bytes())
        runs: list[list[LayerTime]] = [[]]
        for event in events:
            if event["cat"] == "Node" and event["name"].endswith(_NODE):
                name, ms = event["name"].removesuffix(_NODE), event["dur"] / 1e3
                runs[-1].append(LayerTime(name, event["args"]["op_name"], ms))
            elif event["name"] == "model_run":  # the end of one
                runs.append([])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise BackendError(
            f"ONNX Runtime's profile cannot be read ({error}): free space in {path.parent.parent}, "
            "or name another folder in TMPDIR"
        ) from None
    if len(runs) - 1 != expected or runs[-1]:
        raise BackendError(
            f"expected {expected} runs in ONNX Runtime's profile, found {len(runs) - 1}: it keeps "
            "a million events; use fewer --runs"
        )
    return runs[:-1]
