"""The command line's own vocabulary: shared options, what is parsed by hand, exit statuses."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from lgvit_edge._support.terminal import errors
from lgvit_edge.architecture.heads import head_choices
from lgvit_edge.errors import DataError, LGViTEdgeError, UsageError
from lgvit_edge.policies import described
from lgvit_edge.runtime.backends.registry import backends

if TYPE_CHECKING:
    from lgvit_edge.runtime import Session


def _values(field: str) -> str:
    """What each backend takes, for help: "onnxruntime: cpu or cuda; openvino: cpu or gpu."."""
    rows = {backend.name: getattr(backend, field) for backend in backends()}
    return "; ".join(f"{name}: {' or '.join(row)}" for name, row in rows.items() if row) + "."


def _takers(option: str) -> str:
    """The backends that take an option, for help."""
    return ", ".join(backend.name for backend in backends() if option in backend.options)


Engines = Annotated[Path, typer.Option(help="The bundle `lgvit-edge export` wrote.")]
PolicyText = Annotated[
    str | None,
    typer.Option(
        help=f"When an image stops: {described()}. Thresholds may be lists, one per exit. "
        "Default: the bundle's own."
    ),
]
PointName = Annotated[
    str | None, typer.Option("--point", help="An operating point of `lgvit-edge tune`, by name.")
]
Threads = Annotated[
    int | None, typer.Option(help=f"CPU threads ({_takers('threads')}). Default: one per core.")
]
Device = Annotated[str | None, typer.Option(help=_values("devices"))]
Backend = Annotated[
    str,
    typer.Option(
        help=f"{', '.join(backend.name for backend in backends())}. auto: tensorrt where engines "
        "and a GPU are, else the fastest installed, measured once per bundle and machine."
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        help=f"What float32 graphs are computed in; {_values('precisions')} Default: the "
        "fastest within the bundle's tolerance."
    ),
]
# Of these nothing is passed on but what was typed: a backend that does not take one refuses it.
Wait = Annotated[
    str | None,
    typer.Option(help="tensorrt: spin (soonest, burns a core), block or hybrid. Default: hybrid."),
]
CudaGraphs = Annotated[
    bool | None,
    typer.Option(
        "--cuda-graphs/--no-cuda-graphs",
        help="tensorrt: replay recorded segments. Default: --cuda-graphs.",
    ),
]
Speculate = Annotated[
    bool | None,
    typer.Option(
        "--speculate/--no-speculate",
        help="tensorrt: start the next segment before the exit is decided. Default: "
        "--no-speculate.",
    ),
]
Heads = Annotated[
    str | None,
    typer.Option(
        help=", ".join(f"{name} ({what})" for name, what in head_choices().items())
        + ". Default: lgvit."
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        min=1, help="Side of the network's input, where it is not the model's: positions change."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


class _Interrupted(Exception):
    """Ctrl-C."""


class Commands(TyperGroup):
    """All commands; lets Ctrl-C through."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; typer would make a silent exit of Ctrl-C."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted from None


@contextlib.contextmanager
def exit_status() -> Iterator[None]:
    """Turn errors into one message and an exit status; a traceback helps no user."""
    try:
        yield
    except _Interrupted:
        _fail("interrupted; no half-written file is left behind", 130)
    except LGViTEdgeError as error:
        _fail(str(error), 2 if isinstance(error, UsageError) else 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", 1)
    except Exception as error:  # a bug of ours
        kind = type(error).__name__
        _fail(f"internal error, {kind}: {error}\nadd --debug to see where, and report it", 1)


def _fail(message: str, status: int) -> NoReturn:
    errors.print("[bold red]error:[/] ", end="")
    errors.print(message, markup=False, highlight=False, soft_wrap=True)  # commands stay copyable
    sys.exit(status)


def check_folders(files: dict[str, Path | None]) -> None:
    """Refuse files that could not be written, before minutes are spent.

    Args:
        files: by option.

    Raises:
        UsageError: the folder of one is missing.
    """
    for option, file in files.items():
        if file is not None and not file.absolute().parent.is_dir():
            raise UsageError(f"{option}: no such folder: {file.absolute().parent}")
        if file is not None and file.is_dir():
            raise UsageError(f"{option}: expected a file, found a folder: {file}")


def parse_batch(text: str) -> tuple[int, int, int]:
    """``MIN:OPT:MAX``, or one number for all three.

    Raises:
        UsageError: neither.
    """
    try:
        numbers = [int(part) for part in text.split(":")]
        low, usual, high = numbers if len(numbers) == 3 else numbers * 3
    except ValueError:
        raise UsageError(
            f"--batch must be MIN:OPT:MAX such as 1:4:8, or 1; found {text!r}"
        ) from None
    return low, usual, high


def parse_numbers(text: str | None) -> list[float] | None:
    """Numbers between commas.

    Raises:
        UsageError: something else.
    """
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"expected numbers such as 40,30,20,10; found {text!r}") from None


def read_labels(path: Path, count: int) -> tuple[str, ...]:
    """Class names, one per line.

    Raises:
        DataError: unreadable, or not ``count`` of them.
    """
    try:
        names = tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the labels {path}: {error}") from None
    if len(names) != count:
        raise DataError(f"{path}: expected {count} labels, one per class, found {len(names)}")
    return names


def open_session(
    engines: Path,
    policy: str | None,
    point: str | None,
    threads: int | None,
    device: str | None,
    backend: str,
    precision: str | None,
    wait: str | None,
    cuda_graphs: bool | None,
    speculate: bool | None,
) -> Session:
    """The session that a command's options ask for; None is what nobody typed.

    Raises:
        LGViTEdgeError: as ``Session.open`` does.
    """
    from lgvit_edge import policies
    from lgvit_edge.runtime import Session, TensorRTOptions

    options = {"wait": wait, "cuda_graphs": cuda_graphs, "speculate": speculate}
    typed: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    return Session.open(
        engines,
        backend=backend,
        policy=None if policy is None else policies.parse(policy),
        point=point,
        threads=threads,
        device=device,
        precision=precision,
        tensorrt=TensorRTOptions(**typed) if typed else None,
    )
