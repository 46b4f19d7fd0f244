"""Options that several commands share, parsers for their values, and exit statuses."""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import io
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from rich.console import Console
from typer import Option
from typer.core import TyperCommand, TyperGroup, TyperOption

from lgvit_edge._support.finite_json import dumps
from lgvit_edge._support.optional import require
from lgvit_edge._support.outputs import FULL, check_file, check_folder, is_stdout
from lgvit_edge._support.terminal import console, errors, note, say
from lgvit_edge.architecture.heads import head_choices
from lgvit_edge.cli.misplaced import misplaced
from lgvit_edge.errors import DataError, LGViTEdgeError, UsageError
from lgvit_edge.images.spec import INTERPOLATIONS
from lgvit_edge.runtime.backends.registry import backends

if TYPE_CHECKING:
    from lgvit_edge.architecture.config import LGViTConfig
    from lgvit_edge.bundle.manifest import Manifest
    from lgvit_edge.images.labelled import LabelledImage
    from lgvit_edge.runtime import Session


def _values(field: str) -> str:
    """List what each backend accepts, for help: "onnxruntime: cpu, cuda; openvino: cpu, gpu."."""
    rows = {backend.name: getattr(backend, field) for backend in backends()}
    return "; ".join(f"{name}: {', '.join(row)}" for name, row in rows.items() if row) + "."


_THREADED = ", ".join(backend.name for backend in backends() if "threads" in backend.options)
# Filled in for the command that runs: describing policies loads NumPy, the root help loads little.
_POLICIES = "{policies}"

Engines = Annotated[Path, Option(help="Bundle folder that `lgvit-edge export` wrote.")]
PolicyText = Annotated[
    str | None,
    Option(
        help=f"Rule that decides when an image stops: {_POLICIES}. Several thresholds, separated "
        "by commas, apply one per exit. Default: the bundle's policy."
    ),
]
PointName = Annotated[
    str | None, Option("--point", help="Name of an operating point that `lgvit-edge tune` stored.")
]
Threads = Annotated[
    int | None, Option(help=f"Number of CPU threads ({_THREADED}). Default: one per core.")
]
Device = Annotated[
    str | None,
    Option(help=f"Device to run on, cuda:1 being the second GPU; {_values('devices')}"),
]
Backend = Annotated[
    str,
    Option(
        help=f"Library that runs the segments: {', '.join(b.name for b in backends())}, or auto: "
        "tensorrt if there are engines and a GPU, otherwise the fastest installed one, measured "
        "once per bundle and machine."
    ),
]
Precision = Annotated[
    str | None,
    Option(
        help=f"Precision that float32 graphs are computed in; {_values('precisions')} Default: "
        "fp32, or a faster one that the bundle has evidence for, of `tune` or `doctor --data`, at "
        "this policy on this hardware. fp32 also silences the hint at that."
    ),
]
Heads = Annotated[
    str | None,
    Option(
        help="Classifiers at the exits: "
        + ", ".join(f"{name} ({what})" for name, what in head_choices().items())
        + ". Default: lgvit."
    ),
]
ImageSize = Annotated[
    int | None,
    Option(
        min=1,
        help="Image size in pixels, if different from the model's; position embeddings are "
        "interpolated.",
    ),
]
Labels = Annotated[
    Path | None, Option(help="Label file of a flat --data folder: lines FILE CLASS.")
]
Classes = Annotated[
    str | None,
    Option(
        metavar="FILE|sorted",
        help="Which class each folder is, where names do not tell: a file of folder names, one per "
        "line, in the order of the model's classes; or sorted.",
    ),
]
Samples = Annotated[
    int | None, Option(min=1, help="Number of images, spread evenly. Default: all.")
]
UseEma = Annotated[
    bool,
    Option(
        "--use-ema",
        help="Of a checkpoint that also holds the moving average of its weights: take the average.",
    ),
]
AsJson = Annotated[bool, Option("--json", help="Print JSON instead of a table.")]
TRUSTED_KEYS = "LGVIT_EDGE_TRUSTED_KEYS"
TrustedKeys = Annotated[
    Path | None,
    Option(
        envvar=TRUSTED_KEYS,
        metavar="FILE",
        help="Public keys (PEM), one of which must have signed the bundle as it is. Default: any "
        "bundle is taken.",
    ),
]


@dataclass(frozen=True)
class RunOptions:
    """How a bundle is run; ``with_options`` makes an option of each field. None: not typed."""

    threads: Threads = None
    device: Device = None
    backend: Backend = "auto"
    precision: Precision = None
    wait: Annotated[
        str | None,
        Option(
            help="tensorrt: how the CPU waits for the GPU: spin (lowest latency, occupies a core), "
            "block (sleeps) or hybrid (sleeps first, then spins). Default: hybrid."
        ),
    ] = None
    cuda_graphs: Annotated[
        bool | None,
        Option(
            "--cuda-graphs/--no-cuda-graphs",
            help="tensorrt: replay segments as recorded CUDA graphs. Default: --cuda-graphs.",
        ),
    ] = None
    speculate: Annotated[
        bool | None,
        Option(
            "--speculate/--no-speculate",
            help="tensorrt: start the next segment before the exit is decided. Default: "
            "--no-speculate.",
        ),
    ] = None
    device_exit: Annotated[
        bool | None,
        Option(
            "--device-exit/--no-device-exit",
            help="tensorrt, experimental: let the GPU decide where an image stops, in one CUDA "
            "graph of all segments. Default: --no-device-exit.",
        ),
    ] = None
    zero_copy: Annotated[
        bool | None,
        Option(
            "--zero-copy/--no-zero-copy",
            help="tensorrt: use images and logits where the CPU has them instead of copies. "
            "Default: --zero-copy where CPU and GPU share memory, as on a Jetson.",
        ),
    ] = None
    trusted_keys: TrustedKeys = None

    def open(self, engines: Path, policy: str | None, point: str | None) -> Session:
        """Open the session that the options ask for; raises as ``Session.open`` does.

        Says once how a lower precision would become available.
        """
        from lgvit_edge import policies
        from lgvit_edge.runtime import Session

        session = Session.open(
            engines,
            policy=None if policy is None else policies.parse(policy),
            point=point,
            **self.typed(),
        )
        if hint := session.describe().get("hint"):
            note(hint)
        return session

    def open_alike(self, engines: Path) -> Session:
        """Open a bundle that is compared with others: in float32, unless a precision was typed."""
        from lgvit_edge.runtime.session import open_in_float32

        if self.precision is not None:
            return self.open(engines, None, None)
        return open_in_float32(engines, **self.typed())

    def typed(self) -> dict[str, Any]:
        """Return the options to pass on: a backend refuses options that it does not take."""
        from lgvit_edge.runtime import TensorRTOptions

        typed = {name: value for name, value in asdict(self).items() if value is not None}
        names = ("wait", "cuda_graphs", "speculate", "device_exit", "zero_copy")
        tensorrt = {name: typed.pop(name) for name in names if name in typed}
        if "trusted_keys" in typed:
            typed["trusted_keys"] = [typed["trusted_keys"]]
        return typed | ({"tensorrt": TensorRTOptions(**tensorrt)} if tensorrt else {})


@dataclass(frozen=True)
class SourceOptions:
    """What a user tells of weights that others wrote; ``with_options`` makes an option of each."""

    use_ema: UseEma = False
    num_heads: Annotated[
        int | None,
        Option(
            min=1, help="Number of attention heads, for timm weights of an unknown architecture."
        ),
    ] = None
    mean: Annotated[
        str | None,
        Option(
            metavar="R,G,B",
            help="Mean that is subtracted from pixels in 0..1. Default: the checkpoint's.",
        ),
    ] = None
    std: Annotated[
        str | None,
        Option(
            metavar="R,G,B",
            help="Standard deviation that pixels are divided by. Default: the checkpoint's.",
        ),
    ] = None
    interpolation: Annotated[
        str | None,
        Option(
            help=f"How images are resized: {', '.join(INTERPOLATIONS)}. Default: the checkpoint's."
        ),
    ] = None
    crop_pct: Annotated[
        float | None,
        Option(
            help="Share of the resized image's side that the centre crop keeps, 0.1..1. "
            "Default: the checkpoint's."
        ),
    ] = None

    def preprocess(self) -> dict[str, Any]:
        """Return what ``Preprocess.changed`` takes."""
        return {
            "mean": _colour("--mean", self.mean),
            "std": _colour("--std", self.std),
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
        }


def _colour(option: str, text: str | None) -> tuple[float, ...] | None:
    numbers = parse_numbers(text)
    if numbers is not None and len(numbers) != 3:
        raise UsageError(f"{option}: expected three numbers such as 0.5,0.5,0.5; found {text!r}")
    return None if numbers is None else tuple(numbers)


def with_options(
    command: Callable[..., None],
    name: str = "run",
    options: Sequence[inspect.Parameter] = (),
    make: Callable[..., Any] = RunOptions,
) -> Callable[..., None]:
    """Replace the parameter ``name`` of a command by options from which ``make`` makes its value.

    Without ``options``, by those of ``make``.
    """
    options = options or list(inspect.signature(make, eval_str=True).parameters.values())
    own = inspect.signature(command, eval_str=True).parameters.values()
    every = [option for p in own for option in (options if p.name == name else [p])]

    @functools.wraps(command)
    def parsed(**values: Any) -> None:
        fields = {option.name: values.pop(option.name) for option in options}
        command(**values, **{name: make(**fields)})

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in every]
    parsed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    parsed.__annotations__ = {p.name: p.annotation for p in parameters}
    return parsed


class _Interrupted(Exception):
    """Raised when the user presses Ctrl-C."""


class Command(TyperCommand):
    """One command; its help names the policies, which are loaded only when the command is used.

    A bundle that is not where the command takes it is answered with the right line.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options, with their help complete."""
        parameters = super().get_params(ctx)
        for parameter in parameters:
            if isinstance(parameter, TyperOption) and _POLICIES in (parameter.help or ""):
                from lgvit_edge.policies import described

                parameter.help = str(parameter.help).replace(_POLICIES, described())
        return parameters

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what was typed; raise ``UsageError`` where it names the bundle elsewhere.

        An option whose value stands in brackets in the help may be typed without it.
        """
        optional = {
            name
            for parameter in self.params
            if re.fullmatch(r"\[[^\[\]]*\]", getattr(parameter, "metavar", None) or "")
            for name in parameter.opts
        }
        args = [
            f"{argument}=" if argument in optional and following.startswith("-") else argument
            for argument, following in zip(args, [*args[1:], "-"], strict=False)
        ]
        # Without the program's own name: "verify", or "bundle verify".
        name = ctx.command_path.removeprefix(ctx.find_root().command_path).strip()
        if (fault := misplaced(name or str(self.name), self.params, args)) is not None:
            raise UsageError(fault)
        return super().parse_args(ctx, args)


class Commands(TyperGroup):
    """The group of all commands; it lets Ctrl-C through."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; typer alone would turn Ctrl-C into a silent exit."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted from None


@contextlib.contextmanager
def exit_status() -> Iterator[None]:
    """Turn an error into one message and an exit status instead of a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names that this terminal's encoding has not
            stream.reconfigure(errors="backslashreplace")
    console.stderr = False
    try:
        try:
            yield
        except SystemExit:
            _flush()
            raise
    except _Interrupted:
        _fail("interrupted; no half-written file is left behind", 130)
    except LGViTEdgeError as error:
        _fail(str(error), 2 if isinstance(error, UsageError) else 1)
    except OSError as error:
        # Outputs are named where they are written, so this is what commands print.
        printed = "standard output" if error.errno in (*FULL, errno.EPIPE, errno.EIO) else None
        where = error.filename or printed
        _fail(f"{where}: {error.strerror}" if where else error.strerror or str(error), 1)
    except Exception as error:  # a bug in lgvit-edge
        kind = type(error).__name__
        _fail(f"internal error, {kind}: {error}\nadd --debug to see where, and report it", 1)


def _flush() -> None:
    """Let Python's buffer out here, where a full disk becomes a message."""
    if sys.stdout is not None:  # it was not closed
        sys.stdout.flush()


def _fail(message: str, status: int) -> NoReturn:
    errors.print("[bold red]error:[/] ", end="")
    say(message, errors)
    sys.exit(status)


def check_outputs(
    files: dict[str, Path | None],
    others: dict[str, Path | None] | None = None,
    *,
    check: Callable[[Path], None] = check_folder,
) -> None:
    """Raise ``UsageError`` before long work if outputs, by option, cannot be written.

    ``others`` are no files, or no plain ones: ``check`` looks at them. Where a file is standard
    output, what is said to people goes to standard error.
    """
    for checked, named in ((check_file, files), (check, others or {})):
        for option, path in named.items():
            try:
                if path is not None:
                    checked(path)
            except OSError as error:
                raise UsageError(f"{option}: {error.strerror}") from None
    console.stderr |= any(file is not None and is_stdout(file) for file in files.values())


def check_picture(plot: Path | None) -> None:
    """Raise before long work if a picture cannot be drawn.

    Raises:
        UsageError: it is no kind of file that can be drawn.
        MissingDependency: matplotlib is not installed.
    """
    if plot is not None:
        if plot.suffix not in (".png", ".svg", ".pdf"):
            raise UsageError(f"--plot must end in .png, .svg or .pdf, found {plot.name!r}")
        require("matplotlib", extra="report")


def parse_batch(text: str) -> tuple[int, int, int]:
    """Parse ``MIN:OPT:MAX``, or one number for all three, or raise ``UsageError``."""
    try:
        numbers = [int(part) for part in text.split(":")]
        low, usual, high = numbers if len(numbers) == 3 else numbers * 3
    except ValueError:
        raise UsageError(
            f"--batch must be MIN:OPT:MAX such as 1:4:8, or 1; found {text!r}"
        ) from None
    return low, usual, high


def parse_numbers(text: str | None) -> list[float] | None:
    """Parse numbers that commas separate, or raise ``UsageError``."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"expected numbers such as 40,30,20,10; found {text!r}") from None


def telling(told: list[str]) -> Callable[[str], None]:
    """Return what tells people something on standard error, and keeps it for the record."""

    def tell(text: str) -> None:
        note(text)
        told.append(text)

    return tell


def labelled_images(
    about: Manifest | LGViTConfig,
    data: Path,
    labels: Path | None,
    classes: str | None,
    count: int | None,
    note: Callable[[str], None] = note,
) -> Sequence[LabelledImage]:
    """Return ``count`` images of ``--data``, spread evenly, with a model's or bundle's classes.

    ``note`` takes what people should know of how they were found.
    """
    from lgvit_edge.images.labelled import evenly, find_images

    images = find_images(
        data,
        num_classes=about.num_classes,
        names=about.labels,
        labels=labels,
        classes=classes,
        note=note,
    )
    return evenly(images, count)


def matched_images(
    config: LGViTConfig, data: Path, labels: Path | None, classes: str | None, count: int | None
) -> tuple[Sequence[LabelledImage], list[str]]:
    """Return images as ``labelled_images``, without labels that do not match the model's classes.

    The texts say that, and what else is to know of how they were found. Where ``labels`` or
    ``classes`` were given, a mismatch is an error.
    """
    from lgvit_edge.images.labelled import LabelledImage, evenly, unlabelled_images

    told = list[str]()
    try:
        return labelled_images(config, data, labels, classes, count, told.append), told
    except DataError as error:
        if labels or classes:
            raise
        told = [f"labels are not used: {error}"]
        paths = evenly(unlabelled_images(data, told.append), count)
        return [LabelledImage(path, None) for path in paths], told


def show(
    record: dict[str, Any], as_json: bool, printed: Callable[[dict[str, Any], Console], None]
) -> None:
    """Print a record as JSON, or as ``printed`` shows it to people."""
    if as_json:
        print(dumps(record))
    else:
        printed(record, console)
