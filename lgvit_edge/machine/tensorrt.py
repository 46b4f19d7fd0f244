"""``tensorrt`` (8.6 to 11) and ``tensorrt_rtx`` behind one face: what building and running share.

The two modules have the same classes; what differs between versions is asked for by name, never by
number, because NVIDIA renumbered its enumerations from one major version to the next.
"""

from __future__ import annotations

import importlib
from collections import deque
from typing import Any

from lgvit_edge.errors import BackendError, MissingDependency, UsageError
from lgvit_edge.machine.jetson import detect
from lgvit_edge.machine.preflight import explain_import_error

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
OLDEST = (8, 6)  # 8.5 has no LayerNormalization in its parser
_KEPT = 200  # messages; a long session's log must not grow
# One logger per library and process: TensorRT keeps the first it was given, whoever gave it.
_LOGGERS: dict[str, tuple[Any, deque[tuple[str, str]]]] = {}
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "UINT8": "uint8", "INT8": "int8", "BOOL": "bool"}


class TensorRT:
    """One of the two libraries.

    Attributes:
        library: ``tensorrt`` or ``tensorrt-rtx``.
        module: the imported module.
        version: such as ``10.3.0``.
        logger: for every object of the library.
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
        except Exception as error:  # bindings without libraries raise what ctypes raises
            raise MissingDependency(f"{library} is installed but does not load: {error}") from error
        self.version = str(self.module.__version__)
        if not self.is_rtx and self.version_tuple < OLDEST:
            raise BackendError(
                f"expected TensorRT {OLDEST[0]}.{OLDEST[1]} or newer, found {self.version}, whose "
                "parser has no LayerNormalization; run the bundle on ONNX Runtime "
                "(pip install 'lgvit-edge[cpu]'), or upgrade JetPack"
            )
        if library not in _LOGGERS:
            log: deque[tuple[str, str]] = deque(maxlen=_KEPT)
            _LOGGERS[library] = (_logger(self.module, log), log)
        self.logger, self._log = _LOGGERS[library]

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT-RTX."""
        return self.library == "tensorrt-rtx"

    @property
    def version_tuple(self) -> tuple[int, ...]:
        """The version's leading numbers."""
        numbers = [part for part in self.version.split(".") if part.isdecimal()]
        return tuple(int(part) for part in numbers)

    @property
    def strongly_typed(self) -> bool:
        """Whether engines compute in the types the graph says (10 and newer, RTX)."""
        return hasattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")

    def dtype(self, found: Any) -> str:
        """A ``DataType`` as numpy names it."""
        return _DTYPES.get(found.name, str(found.name).lower())

    def take_log(self, *severities: str) -> list[str]:
        """Messages of these severities, each once; the log starts afresh."""
        found = [text for severity, text in self._log if severity in severities]
        self._log.clear()
        return list(dict.fromkeys(found))

    def reason(self) -> str:
        """The last errors of the log, which starts afresh."""
        said = self.take_log("INTERNAL_ERROR", "ERROR")
        return "; ".join(said[-3:])[:600] or "TensorRT gave no reason"

    def make(self, kind: str) -> Any:
        """A ``Builder`` or ``Runtime``.

        Raises:
            BackendError: TensorRT does not start: the bindings have no better word for it than
                ``TypeError``.
        """
        try:
            return getattr(self.module, kind)(self.logger)
        except TypeError as error:
            raise BackendError(
                f"{self.library} {self.version} does not start ({error}): {self.reason()}; "
                "run: lgvit-edge doctor"
            ) from None


def _logger(module: Any, log: deque[tuple[str, str]]) -> Any:
    """An ``ILogger`` that keeps what it is told from warnings up."""
    kept = {"INTERNAL_ERROR", "ERROR", "WARNING"}

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity.name in kept:
                log.append((severity.name, message))

    return Logger()
