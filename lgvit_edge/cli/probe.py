"""The ``probe`` command: looks into one or two models with images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from lgvit_edge._support.optional import require
from lgvit_edge._support.outputs import write_json
from lgvit_edge._support.terminal import console, errors, progress_bar, say
from lgvit_edge.cli.options import (
    AsJson,
    Classes,
    Labels,
    SourceOptions,
    check_outputs,
    matched_images,
    show,
    telling,
    with_options,
)
from lgvit_edge.errors import CheckpointError, UnknownHeadsError, UsageError
from lgvit_edge.images.folders import check_apart

if TYPE_CHECKING:
    from lgvit_edge.images.labelled import LabelledImage
    from lgvit_edge.model import LGViT
    from lgvit_edge.probing.collect import Subject

Tell = Callable[[str], None]  # takes what goes to the terminal and into the record


@functools.partial(with_options, name="source", make=SourceOptions)
def probe(
    checkpoint: Annotated[
        str, Argument(help="Checkpoint, with or without exits, or hf:owner/name.")
    ],
    other: Annotated[
        str | None,
        Argument(
            help="Second model to compare with: a checkpoint, hf:owner/name, or module:function "
            "that returns a torch.nn.Module (its code is run).",
        ),
    ] = None,
    *,
    data: Annotated[
        Path,
        Option(
            help="Images: one sub-folder per class, or a flat folder, with or without --labels."
        ),
    ],
    out: Annotated[Path, Option(help="Folder to write probe.json and probe.html to.")],
    labels: Labels = None,
    classes: Classes = None,
    samples: Annotated[int, Option(min=1, help="Number of images, spread evenly.")] = 1000,
    policy: Annotated[
        str, Option(help="Rule that decides when an image stops: {policies}.")
    ] = "confidence:0.8",
    batch: Annotated[
        int,
        Option(
            min=4,
            help="Images of a minibatch. The more, the closer CKA is to that of all images, and "
            "the more memory is used.",
        ),
    ] = 64,
    seed: Annotated[
        int,
        Option(
            min=0,
            max=2**63 - 1,
            help="Random seed of the order of images, and of the random weights that maps are "
            "compared with.",
        ),
    ] = 0,
    device: Annotated[
        str, Option(help="Device to run on: auto (a GPU if there is one), cpu or cuda.")
    ] = "auto",
    normed: Annotated[
        bool,
        Option(
            "--normed",
            help="Compare blocks with each token scaled to mean 0 and variance 1. Without it, a "
            "few channels with very large values can decide CKA.",
        ),
    ] = False,
    relevance: Annotated[
        int,
        Option(
            min=0,
            max=64,
            help="Images to show where each exit looks, from the easiest to the hardest; 0: none.",
        ),
    ] = 4,
    as_json: AsJson = False,
    source: SourceOptions,
) -> None:
    """Report how good each exit of a model is, what its stages resemble, and where exits look.

    Needs the extras export and report. --mean, --num-heads and other options of where a checkpoint
    comes from are for the first model. Compares the stages of one or two models (CKA), analyses the
    answers of all exits, and shows where they look in images.
    """
    require("torch", extra="export")
    from lgvit_edge import policies
    from lgvit_edge.benchmarks.report.html import check_report
    from lgvit_edge.probing.page import write_page
    from lgvit_edge.probing.probe import probe as run
    from lgvit_edge.probing.show import print_probe

    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device must be auto, cpu or cuda, found {device!r}")
    rule = policies.parse(policy)
    page, json_file = out / "probe.html", out / "probe.json"
    check_outputs({}, {"--out": out})
    check_apart("--out", out, data)
    for file in (page, json_file) if out.is_dir() else ():
        check_outputs({"--out": file})
    check_report()
    tell = telling(told := list[str]())
    first, second = _names(checkpoint, other)
    model = _loaded(checkpoint, source, tell)
    images, of_first = matched_images(model.config, data, labels, classes, samples)
    subjects, of_second = [_subject(first, model, images)], list[str]()
    if other is not None:
        subject, of_second = _other(other, second, model, images, data, labels, classes, tell)
        subjects.append(subject)
    for text in of_first:
        tell(text if other is None or text in of_second else f"{first}: {text}")
    for text in of_second:
        if text not in of_first:
            tell(f"{second}: {text}")
    with progress_bar("probing") as progress:
        record, read, views = run(
            subjects,
            [image.path for image in images],
            rule,
            data=data,
            batch_size=batch,
            seed=seed,
            device=device,
            normed=normed,
            relevance=relevance,
            notes=told,
            progress=progress,
        )
    out.mkdir(parents=True, exist_ok=True)
    write_page(page, record, read, views)
    write_json(json_file, record)
    show(record, as_json, print_probe)
    say(f"wrote {page} and {json_file.name}", errors if as_json else console)


def _loaded(path: str, source: SourceOptions, tell: Tell) -> LGViT:
    from lgvit_edge.bundle.layout import MANIFEST
    from lgvit_edge.model.inspection import inspected

    if (Path(path) / MANIFEST).is_file():
        raise CheckpointError(
            f"{path} is a bundle, expected the checkpoint that it was exported from; for a bundle "
            f"run: lgvit-edge bench --engines {quote(path)} --data DIR --report FILE.html"
        )
    return inspected(
        path,
        classes=None,  # a fresh classifier only guesses
        num_heads=source.num_heads,
        use_ema=source.use_ema,
        preprocess=source.preprocess(),
        note=tell,
    )


def _names(checkpoint: str, other: str | None) -> tuple[str, str]:
    """Return what to call the models: by their files, or by their paths where these are equal."""
    names = [checkpoint, other or ""]
    files = [Path(name).name for name in names]
    if files[0] != files[1]:
        return files[0], files[1]
    return (names[0], names[1]) if names[0] != names[1] else (names[0], f"{names[1]} again")


def _subject(name: str, model: LGViT, images: Sequence[LabelledImage]) -> Subject:
    """Return a checkpoint to probe, with the labels of the images if all have one."""
    import numpy as np

    from lgvit_edge.probing.collect import Subject

    known = [image.class_index for image in images if image.class_index is not None]
    labels = np.array(known, np.int64) if len(known) == len(images) else None
    return Subject(name, model, model.config.preprocess, model.config.image_size, labels)


def _other(
    other: str,
    name: str,
    first: LGViT,
    images: Sequence[LabelledImage],
    data: Path,
    labels: Path | None,
    classes: str | None,
    tell: Tell,
) -> tuple[Subject, list[str]]:
    """Return what to compare with, and what is to know of its labels."""
    from lgvit_edge.images.labelled import LabelledImage
    from lgvit_edge.model import LGViT
    from lgvit_edge.probing.collect import Subject
    from lgvit_edge.probing.stages import is_function, made_by

    try:
        # The source's options are for the first, and would be wrong for a second from elsewhere.
        model = made_by(other) if is_function(other) else _loaded(other, SourceOptions(), tell)
    except UnknownHeadsError as error:
        raise CheckpointError(
            f"{error}; the option is for the first model: of a second one name module:function, "
            "which returns lgvit_edge.model.load_model(PATH, num_heads=N)"
        ) from None
    if not isinstance(model, LGViT):
        preprocess = getattr(model, "preprocess", first.config.preprocess)
        size = getattr(model, "image_size", first.config.image_size)
        if size > preprocess.resize:
            raise UsageError(
                f"{other}: images of {size} pixels cannot be cut from ones that were resized to "
                f"{preprocess.resize}; give the network a preprocess with resize={size} or more"
            )
        return Subject(name, model, preprocess, size), []
    # Its classes may be others, or in another order: --labels and --classes are of the first's.
    mine, its = ((config.num_classes, config.labels) for config in (model.config, first.config))
    if labels is not None and mine != its:
        own = [LabelledImage(image.path, None) for image in images]
        return _subject(name, model, own), [
            f"labels are not used: {labels} is for the classes of the first model, and these are "
            "others or in another order"
        ]
    found, texts = matched_images(
        model.config, data, labels, classes if mine == its else None, None
    )
    known = {image.path: image.class_index for image in found}
    own = [LabelledImage(image.path, known.get(image.path)) for image in images]
    return _subject(name, model, own), texts
