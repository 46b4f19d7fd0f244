"""One interface to ``tensorrt`` (8.6 to 11) and ``tensorrt_rtx``, for building and running.

The two modules have the same classes. Enumeration members are looked up by name, never by number,
because NVIDIA renumbered them between major versions.
"""

from __future__ import annotations

import importlib
from collections import deque
from typing import Any

from lgvit_edge.errors import BackendError, MissingDependency, UsageError
from lgvit_edge.machine.gpu import Gpu
from lgvit_edge.machine.jetson import detect, numbers
from lgvit_edge.machine.preflight import explain_import_error

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
OLDEST = (8, 6)  # 8.5 has no LayerNormalization in its parser
_LOG_LENGTH = 200  # messages; the log of a long session must not grow
# One logger per library and process, because TensorRT keeps the first logger it was given.
_LOGGERS: dict[str, tuple[Any, deque[tuple[str, str]]]] = {}
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "UINT8": "uint8", "INT8": "int8", "BOOL": "bool"}


class TensorRT:
    """An imported TensorRT library, ``tensorrt`` or ``tensorrt-rtx``.

    Its ``version`` is such as ``10.3.0``; its ``logger`` is for every object of the ``module``.
    """

    def __init__(self, library: str) -> None:
        """Import the library.

        Raises:
            UsageError: no such library.
            MissingDependency: it cannot be imported; says what to do.
            BackendError: it is too old.
        """
        if library not in MODULES:
            raise UsageError(f"expected one of {', '.join(MODULES)}, found {library!r}")
        self.library = library
        try:
            self.module: Any = importlib.import_module(MODULES[library])
        except ImportError as error:
            raise MissingDependency(explain_import_error(error, detect())) from error
        except Exception as error:  # bindings without libraries raise ctypes errors
            raise MissingDependency(f"{library} is installed but does not load: {error}") from error
        self.version = str(self.module.__version__)
        if not self.is_rtx and numbers(self.version) < OLDEST:
            raise BackendError(
                f"expected TensorRT {OLDEST[0]}.{OLDEST[1]} or newer, found {self.version}, whose "
                "parser has no LayerNormalization; run the bundle on ONNX Runtime "
                "(pip install 'lgvit-edge[cpu]'), or upgrade JetPack"
            )
        if library not in _LOGGERS:
            log: deque[tuple[str, str]] = deque(maxlen=_LOG_LENGTH)
            _LOGGERS[library] = (_logger(self.module, log), log)
        self.logger, self._log = _LOGGERS[library]

    @property
    def is_rtx(self) -> bool:
        """Return whether this is TensorRT-RTX."""
        return self.library == "tensorrt-rtx"

    @property
    def strongly_typed(self) -> bool:
        """Return whether engines compute in the graph's types (10 and newer, RTX)."""
        return hasattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")

    @property
    def capabilities(self) -> dict[str, Any]:
        """Return the compute capabilities that TensorRT-RTX compiles for, by names such as ``8.6``.

        Empty for TensorRT, which compiles for the GPU it runs on.
        """
        kinds = getattr(self.module, "ComputeCapability", None) if self.is_rtx else None
        members = {} if kinds is None else dict(kinds.__members__)
        return {f"{n[2:-1]}.{n[-1]}": kind for n, kind in members.items() if n.startswith("SM")}

    def runs_on(self, gpu: Gpu) -> bool:
        """Return whether engines of this library can run on a GPU at all, going by its kind.

        TensorRT-RTX knows few kinds: neither data-centre GPUs of 9.0 and 10.0 nor any Jetson.
        """
        return not self.capabilities or gpu.compute_capability in self.capabilities

    def dtype(self, data_type: Any) -> str:
        """Return numpy's name of a TensorRT ``DataType``."""
        return _DTYPES.get(data_type.name, str(data_type.name).lower())

    def take_log(self, *severities: str) -> list[str]:
        """Return the logged messages of these severities, each once, and empty the log."""
        messages = [text for severity, text in self._log if severity in severities]
        self._log.clear()
        return list(dict.fromkeys(messages))

    def reason(self) -> str:
        """Return the last logged errors as one text, and empty the log."""
        errors = self.take_log("INTERNAL_ERROR", "ERROR")
        return "; ".join(errors[-3:])[:600] or "TensorRT gave no reason"

    def make(self, kind: str) -> Any:
        """Make a TensorRT ``Builder`` or ``Runtime``.

        Raises:
            BackendError: TensorRT does not start, which its bindings report as ``TypeError``.
        """
        try:
            return getattr(self.module, kind)(self.logger)
        except TypeError as error:
            raise BackendError(
                f"{self.library} {self.version} does not start ({error}): {self.reason()}; "
                "run: lgvit-edge doctor"
            ) from None


def _logger(module: Any, log: deque[tuple[str, str]]) -> Any:
    """Make an ``ILogger`` that stores warnings and errors."""

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity.name in ("INTERNAL_ERROR", "ERROR", "WARNING"):
                log.append((severity.name, message))

    return Logger()
