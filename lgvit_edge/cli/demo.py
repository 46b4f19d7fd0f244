"""The ``demo`` command: runs the whole workflow on handwritten digits, with no download.

Trains both stages of a small LGViT, exports it and benches it on held-out digits, through the
functions that the commands call, and prints those commands.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from typer import Option

from lgvit_edge._support.optional import require
from lgvit_edge._support.terminal import console, progress_bar, say
from lgvit_edge.cli.options import check_outputs

# The threshold was chosen on the training digits, not on the held-out digits reported here.
POLICY = "confidence:0.9"


def demo(
    out: Annotated[Path, Option(help="Folder for the demo's files.")] = Path("out-demo"),
) -> None:
    """Train, export and bench a small LGViT on digits; takes minutes, without a download."""
    require("torch", extra="train")
    from lgvit_edge import policies
    from lgvit_edge.benchmarks import measure_images, print_report
    from lgvit_edge.bundle.directory import check_place
    from lgvit_edge.export import ExportOptions, export_bundle
    from lgvit_edge.images.labelled import find_images
    from lgvit_edge.runtime import Session
    from lgvit_edge.training import train
    from lgvit_edge.training.data import digits

    check_outputs({}, {"--out": out})
    check_outputs({}, {"--out": out / "bundle"}, check=check_place)
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    train_set, val_set = digits.digits_sets()
    digits.write_images(val_set, out / "digits")

    console.rule("1/3 train a 12-block LGViT on 1,437 handwritten digits")
    training = digits.digits_training()
    model = train(
        digits.digits_model(training.seed),
        train_set,
        val_set,
        training,
        out=out / "model.pt",
        console=console,
    )

    console.rule("2/3 cut, export and verify")
    with progress_bar("exporting") as step:
        export_bundle(
            model,
            out / "bundle",
            ExportOptions(policy=policies.parse(POLICY)),
            progress=lambda text, done, total: step(done, total, text),
        )

    console.rule("3/3 bench on 360 held-out digits")
    with Session.open(out / "bundle") as session, progress_bar("measuring") as step:
        images = find_images(out / "digits", num_classes=10, names=session.manifest.labels)
        record = measure_images(session, images, progress=step)
    print_report(record, console)
    console.rule(f"done in {time.monotonic() - began:.0f} s; the same, step by step")
    say(f"# {out}/model.pt: both stages, with the settings of lgvit_edge.training.data.digits")
    say(
        f"lgvit-edge info    {out}/model.pt\n"
        f"lgvit-edge export  --ckpt {out}/model.pt --policy {POLICY} --out {out}/bundle\n"
        f"lgvit-edge bench   --engines {out}/bundle --data {out}/digits\n"
        f"lgvit-edge predict --engines {out}/bundle {out}/digits/7"
    )
