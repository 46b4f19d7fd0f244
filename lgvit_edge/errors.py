"""Every exception lgvit-edge raises on purpose.

    LGViTEdgeError
    ├── UsageError            the command or call cannot mean anything (exit status 2)
    │   └── ConfigError       a model or exit configuration contradicts itself
    ├── CheckpointError       a checkpoint is missing, damaged, not ours, or does not fit
    │   └── UnknownHeadsError weights do not tell their number of attention heads
    ├── BundleError           a bundle is missing, damaged, unsafe or of another schema
    ├── DataError             images or labels cannot be used
    ├── ExportError           a graph could not be exported or written
    │   └── BuildError        an engine could not be compiled, or is not what was asked for
    ├── ParityError           a graph or a backend disagrees with PyTorch
    ├── TrainingError         training cannot go on
    ├── TuningError           no operating point is what was asked for
    ├── BackendError          a backend cannot run here
    ├── StalledError          a source of a stream delivers no image in time
    ├── UpstreamError         a server gave no answer
    ├── SourceError           a camera cannot be opened, or its connection broke
    ├── SinkError             answers cannot be delivered
    └── MissingDependency     a package of an optional extra is not installed

The command line catches only the root. Each message says what was expected, what was found and, if
there is one, the command that fixes it.
"""

from __future__ import annotations

_BEGINNING, _END = 3000, 1000  # characters of a message that stay


class LGViTEdgeError(Exception):
    """The base of every exception that lgvit-edge raises on purpose."""

    def __str__(self) -> str:
        # What a damaged file says is quoted, and may be long; the cure stands at the end.
        text = super().__str__()
        more = len(text) - _BEGINNING - _END
        if more <= 0:
            return text
        return f"{text[:_BEGINNING]} ...({more} characters left out)... {text[-_END:]}"


class UsageError(LGViTEdgeError, ValueError):
    """The command or call cannot mean anything."""


class ConfigError(UsageError):
    """A model or exit configuration contradicts itself."""


class CheckpointError(LGViTEdgeError):
    """A checkpoint is missing, damaged, not ours, or does not fit the model."""


class UnknownHeadsError(CheckpointError):
    """Weights do not tell their number of attention heads."""


class BundleError(LGViTEdgeError):
    """A bundle is missing, damaged, unsafe or of another schema."""


class DataError(LGViTEdgeError):
    """Images or labels cannot be used."""


class ExportError(LGViTEdgeError):
    """A graph could not be exported or written."""


class BuildError(ExportError):
    """An engine could not be compiled, or is not what was asked for."""


class ParityError(LGViTEdgeError):
    """A graph, or a backend on this machine, disagrees with PyTorch."""


class TrainingError(LGViTEdgeError):
    """Training cannot go on."""


class TuningError(LGViTEdgeError):
    """No operating point is what was asked for."""


class BackendError(LGViTEdgeError):
    """A backend cannot run here."""


class StalledError(LGViTEdgeError, TimeoutError):
    """A source of a stream delivers no image in time."""


class UpstreamError(LGViTEdgeError):
    """A server gave no answer; the message says why in a few words.

    Attributes:
        kind: ``timeout``, ``unreachable``, ``refused``, ``failed``, ``paused`` (not asked after
            failures) or ``late`` (not asked for lack of time).
    """

    def __init__(self, message: str, kind: str = "failed") -> None:
        super().__init__(message)
        self.kind = kind


class SourceError(LGViTEdgeError):
    """A camera cannot be opened, or its connection broke.

    Attributes:
        denied: whether it wants another login, so that trying again soon may lock the account.
    """

    def __init__(self, message: str, *, denied: bool = False) -> None:
        super().__init__(message)
        self.denied = denied


class SinkError(LGViTEdgeError):
    """Answers cannot be delivered.

    Attributes:
        final: whether the same answer would fail again, so that it need not be tried.
    """

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class MissingDependency(LGViTEdgeError):
    """A package of an optional extra is not installed."""


def in_one_line(error: BaseException) -> str:
    """Returns what kind of error another library raised, and what it says, cut to one line.

    Of an error that has a cause, the cause: it is what can be mended.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
