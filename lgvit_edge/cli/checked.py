"""The option ``--check`` of ``info``: the images to check on, and what it prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from typer import Option

from lgvit_edge._support.terminal import say, table
from lgvit_edge.cli.options import Classes, labelled_images, matched_images

if TYPE_CHECKING:
    from lgvit_edge.architecture.config import LGViTConfig
    from lgvit_edge.images.labelled import LabelledImage


@dataclass(frozen=True)
class CheckOptions:
    """What to check a checkpoint on; ``with_options`` makes an option of each field."""

    check: Annotated[
        Path | None,
        Option(
            metavar="DIR",
            help="Images to check the answers on: compared with timm or transformers where the "
            "checkpoint is theirs, and with the labels of the images.",
        ),
    ] = None
    samples: Annotated[
        int | None, Option(min=1, help="Number of --check images, spread evenly. Default: 64.")
    ] = None
    labels: Annotated[
        Path | None, Option(help="Label file of a flat --check folder: lines FILE CLASS.")
    ] = None
    classes: Classes = None

    def images(
        self, config: LGViTConfig, comparable: bool, tell: Callable[[str], None]
    ) -> Sequence[LabelledImage]:
        """Return the images of ``--check`` that can be decoded; ``tell`` takes what is to know.

        Labels that do not match the model's classes are left out where answers are ``comparable``
        without them.
        """
        from lgvit_edge.images.labelled import readable

        assert self.check is not None
        how = (config, self.check, self.labels, self.classes, self.samples or 64)
        if comparable:
            found, texts = matched_images(*how)
            for text in texts:
                tell(text)
        else:
            found = labelled_images(*how, tell)
        return readable(found, tell)


def print_check(check: dict[str, Any], console: Console) -> None:
    """Print the record of ``check_model``."""
    if check["accuracy"] is not None:
        rows = table("exit", numbers=("accuracy",))
        for number, share in enumerate(check["accuracy"], 1):
            last = number == len(check["accuracy"])
            rows.add_row("final" if last else str(number), f"{share:.2%}")
        console.print(rows)
    for text in _sentences(check):
        say(text, console)


def _sentences(check: dict[str, Any]) -> Iterator[str]:
    """Yield what the check found, in sentences."""
    library, images = check["library"], check["images"]
    yield f"checked on {images} images, {check['labelled']} of them with labels"
    if check["chance"]:
        yield (
            "warning: right no more often than a guess may be; look at the order of the classes "
            "(--classes) and the preprocessing above"
        )
    if check["published"] is not None:
        yield f"timm publishes {check['published']:.2%} on ImageNet-1k for weights of this name"
    if check["below"]:
        yield (
            "warning: that is far more than was reached; if these are images of ImageNet, look at "
            "the order of the classes (--classes) and the preprocessing above"
        )
    if library is None:
        yield f"not compared with another library: {check['not_compared']}"
        return
    same, own = check["same_pixels"], check["own_preprocessing"]
    yield (
        f"{library} on equal pixels: {same['agree']} of {images} answers agree, logits differ by "
        f"{same['largest_difference']:.2g} at most"
    )
    if own is None:
        yield f"its preprocessing is not compared: {check['not_prepared']}"
    else:
        yield (
            f"{library} with its own preprocessing: {own['agree']} of {images} answers agree, "
            f"pixels differ by {own['grey_levels']:.2g} grey levels on average in the worst image"
            + (f" ({own['a_pixel_beside']} are cut a pixel beside)" * bool(own["a_pixel_beside"]))
        )
        if own["accuracy"] is not None:
            yield f"accuracy of {library}: {own['accuracy']:.2%}"
    yield f"{'agrees' if check['agrees'] else 'differs'}: {library} and lgvit-edge"
