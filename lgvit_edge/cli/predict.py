"""The ``predict`` command: classifies image files, to the screen or by the million into a file."""

from __future__ import annotations

import contextlib
import functools
import shlex
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from lgvit_edge._support.finite_json import dumps
from lgvit_edge._support.numbers import positive
from lgvit_edge._support.outputs import check_file
from lgvit_edge._support.terminal import console, note, plain, say, table
from lgvit_edge.cli.options import (
    AsJson,
    Engines,
    PointName,
    PolicyText,
    RunOptions,
    check_outputs,
    show,
    with_options,
)
from lgvit_edge.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import Any

    from rich.console import Console

    from lgvit_edge.images.preprocess import ImageLike
    from lgvit_edge.runtime import Result, Session
    from lgvit_edge.serving import Upstream

_PANEL, _SERVER = "Folders into a file", "With a server"


@dataclass(frozen=True)
class FolderOptions:
    """How a folder is answered into a file; ``with_options`` makes an option of each field."""

    data: Annotated[
        Path | None,
        Option(
            metavar="DIR|LIST",
            rich_help_panel=_PANEL,
            help="Folder of images, however deep, or a text file with the path of one in each "
            "line. With --out.",
        ),
    ] = None
    out: Annotated[
        Path | None,
        Option(
            rich_help_panel=_PANEL,
            help="File of answers to write (.jsonl, .parquet). The same command goes on where one "
            "was interrupted or killed.",
        ),
    ] = None
    batch: Annotated[
        int | None,
        Option(
            min=1,
            rich_help_panel=_PANEL,
            help="Images that run together. Default: the bundle's usual batch.",
        ),
    ] = None
    decoders: Annotated[
        int | None,
        Option(
            min=1,
            rich_help_panel=_PANEL,
            help="Threads that decode ahead. Default: one per core, 8 at most.",
        ),
    ] = None
    times: Annotated[
        bool | None,
        Option(
            "--times",
            rich_help_panel=_PANEL,
            help="Also write latencies, which are others in every run.",
        ),
    ] = None
    restart: Annotated[
        bool | None,
        Option(
            "--restart",
            rich_help_panel=_PANEL,
            help="Remove what an earlier run left at --out, and begin anew.",
        ),
    ] = None
    ray: Annotated[
        str | None,
        Option(
            metavar="ADDRESS",
            rich_help_panel=_PANEL,
            help="Let a Ray cluster do the work: HOST:PORT or auto for one that runs, local to "
            "start one on this machine.",
        ),
    ] = None


@dataclass(frozen=True)
class ServerOptions:
    """Which server goes on with unsure images; ``with_options`` makes an option of each field."""

    upstream: Annotated[
        str | None,
        Option(
            metavar="URL",
            rich_help_panel=_SERVER,
            help="Let a Triton with the same bundle go on with images that are unsure: "
            "triton://HOST:PORT/MODEL, of its gRPC port, or tritons:// for TLS.",
        ),
    ] = None
    after: Annotated[
        int | None,
        Option(
            min=0,
            rich_help_panel=_SERVER,
            help="The last exit that is read here (lgvit-edge info lists them); 0 to send every "
            "image. Not needed for a bundle of several passes: its last pass runs there.",
        ),
    ] = None
    send: Annotated[
        str | None,
        Option(
            metavar="jpeg|hidden",
            rich_help_panel=_SERVER,
            help="What is sent: the image as a JPEG, the default, or the hidden state.",
        ),
    ] = None
    server_timeout_ms: Annotated[
        float | None,
        Option(
            rich_help_panel=_SERVER,
            help="Milliseconds that the server may take; then the image is answered here. "
            "Default: 1000.",
        ),
    ] = None
    certificates: Annotated[
        Path | None,
        Option(
            rich_help_panel=_SERVER,
            help="File in PEM with the certificates to trust, with tritons://. Default: the "
            "system's.",
        ),
    ] = None


@functools.partial(with_options, name="server", make=ServerOptions)
@functools.partial(with_options, name="folder", make=FolderOptions)
@with_options
def predict(
    engines: Engines,
    images: Annotated[
        list[Path] | None, Argument(help="Image files or folders of them, to show the answers.")
    ] = None,
    policy: PolicyText = None,
    point: PointName = None,
    *,
    run: RunOptions,
    folder: FolderOptions,
    server: ServerOptions,
    as_json: AsJson = False,
) -> None:
    """Classify images; show label, confidence, exit and latency, or write answers to a file.

    Images that are named are shown. With --data and --out a folder or list of any size is answered
    into a file, and can be interrupted.
    """
    _check_together(engines, images, folder, server)
    if images:
        _show(engines, images, policy, point, run, server, as_json)
    else:
        _write(engines, policy, point, run, folder, as_json)


def _check_together(
    engines: Path, images: list[Path] | None, folder: FolderOptions, server: ServerOptions
) -> None:
    """Refuse options that lack what they need, or do not go together."""
    of_server = [field.name for field in fields(server) if getattr(server, field.name) is not None]
    if of_server and server.upstream is None:
        option = of_server[0].replace("_", "-")
        raise UsageError(f"--{option} needs --upstream triton://HOST:PORT/MODEL")
    if of_server and not images:
        raise UsageError(
            "--upstream is for images that are named, as in: lgvit-edge predict --engines "
            f"{shlex.quote(str(engines))} --upstream ... photo.jpg; --data and --out are answered "
            "by this machine alone"
        )
    given = [field.name for field in fields(folder) if getattr(folder, field.name) is not None]
    line = shlex.join(["lgvit-edge", "predict", "--engines", str(engines)])
    where = shlex.quote(str((images or [folder.data or Path("DIR")])[0]))
    if images and given:
        raise UsageError(
            f"--{given[0]} is for a folder or list given as --data; images that are named are "
            f"shown; run: {line} --data {where} --out answers.jsonl"
        )
    if not images and not given:
        raise UsageError(
            f"expected images to show, or --data and --out; run: {line} photo.jpg, or: {line} "
            "--data DIR --out answers.jsonl"
        )
    if not images and (folder.data is None or folder.out is None):
        needed = "--data DIR or a list" if folder.data is None else "--out FILE"
        raise UsageError(
            f"--{given[0]} needs {needed}; run: {line} --data {where} --out "
            f"{shlex.quote(str(folder.out or 'answers.jsonl'))}"
        )


def _write(
    engines: Path,
    policy: str | None,
    point: str | None,
    run: RunOptions,
    folder: FolderOptions,
    as_json: bool,
) -> None:
    """Answer a folder or list into a file, and print what came of it."""
    from lgvit_edge.offline import answer_images

    assert folder.data is not None and folder.out is not None
    check_outputs({}, {"--out": folder.out}, check=partial(check_file, streams=False))
    outcome = answer_images(
        engines,
        folder.data,
        folder.out,
        policy=policy,
        point=point,
        options=run.typed(),
        batch=folder.batch,
        decoders=folder.decoders,
        times=bool(folder.times),
        restart=bool(folder.restart),
        ray=folder.ray,
        note=note,
    )
    show({"out": str(folder.out), **outcome.to_json()}, as_json, _print_outcome)


def _way(server: ServerOptions) -> AbstractContextManager[Upstream | None]:
    """Return the way to the server that helps, or to none."""
    if server.upstream is None:
        return contextlib.nullcontext()
    from lgvit_edge.serving import Upstream

    timeout = 1000.0 if server.server_timeout_ms is None else server.server_timeout_ms
    positive("--server-timeout-ms", timeout)
    return Upstream(server.upstream, timeout_ms=timeout, certificates=server.certificates)


def _answering(
    session: Session, upstream: Upstream | None, server: ServerOptions
) -> Callable[[ImageLike], Result]:
    """Return what answers an image: the session, or with its help the server."""
    if upstream is None:
        return session.predict
    from lgvit_edge.serving import SplitSession

    send = server.send or "jpeg"
    return SplitSession(session, upstream, after=server.after, send=send).predict


def _print_outcome(record: dict[str, Any], to: Console) -> None:
    rows = table("exit", numbers=("images", "share"))
    for number, count in enumerate(record["exits"], 1):
        name = "final" if number == len(record["exits"]) else str(number)
        rows.add_row(name, f"{count:,}", f"{count / record['answered']:.1%}")
    to.print(rows)
    done = record["images"] - record["earlier"]
    say(f"{record['answered']:,} answers: {record['out']}", to)
    if record["unreadable"]:
        count = f"{record['unreadable']:,} of {record['images']:,} images"
        say(f"{count} cannot be read: {record['unreadable_list']}", to)
    if record["images_per_second"] is None:
        say("all were answered before; nothing was run", to)
    else:
        before = f", {record['earlier']:,} were done before" if record["earlier"] else ""
        say(
            f"{done:,} images in {record['seconds']:,.1f} s, {record['images_per_second']:,.1f} a "
            f"second{before}",
            to,
        )


def _show(
    engines: Path,
    images: list[Path],
    policy: str | None,
    point: str | None,
    run: RunOptions,
    server: ServerOptions,
    as_json: bool,
) -> None:
    """Answer images one by one, and show the answers."""
    from lgvit_edge.images.labelled import unlabelled_images
    from lgvit_edge.images.preprocess import load_rgb

    files = [
        (file, file.relative_to(path if path.is_dir() else path.parent))
        for path in images
        for file in (unlabelled_images(path, note) if path.is_dir() else [path])
    ]
    results: list[tuple[Path, Path, Result]] = []
    failures: list[str] = []
    with _way(server) as upstream, run.open(engines, policy, point) as session:
        manifest = session.manifest
        answer = _answering(session, upstream, server)
        for file, name in files:
            try:
                frame = load_rgb(file)
            except DataError as error:
                failures.append(str(error))
                continue
            if not results:
                answer(frame)  # the first prediction pays for lazy set-up
            results.append((file, name, answer(frame)))
    if as_json:
        rows = [{"image": str(file), **result.to_json()} for file, _, result in results]
        print(dumps(rows))
    elif results:
        several = len(manifest.passes) > 1
        columns = ("exit", *(("pass",) if several else ()), "block", "latency (ms)")
        by = ("answered by",) if server.upstream else ()
        answers = table("image", "label", *by, numbers=("confidence", *columns))
        for _, name, result in results:
            answers.add_row(
                plain(str(name)),
                plain(result.label),
                *(["server" if result.upstream == "answered" else "device"] if by else []),
                result.confidence_text,
                str(result.exit),
                *([manifest.pass_title(result.pass_number)] if several else []),
                str(result.block),
                f"{result.latency_ms:.2f}",
            )
        console.print(answers)
    for why in sorted({r.upstream for _, _, r in results} - {"", "answered"}):
        note(f"the server gave no answer: {why}; such images were answered here")
    if failures:
        count = f"{len(failures)} of {len(files)} images cannot be read: " if files[1:] else ""
        more = f"; and {len(failures) - 5} more" if failures[5:] else ""
        raise DataError(f"{count}{'; '.join(failures[:5])}{more}")
