"""Says where exits look, by kind of head: how far relevance spreads, and whether it finds a class.

``python -m lgvit_edge.benchmarks.experiments.relevance --ckpt lgvit=a.pt --ckpt mlp=b.pt --data
DIR`` takes relevance maps of every exit of trained models and measures how concentrated they are.
Images pasted from two and from four classes say how much of a map lies on the class asked for,
where no masks are at hand. For the first model it also makes weights random, from the head
backwards, and says how alike the maps stay; and it adds up what Grad-CAM promises to add up.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor, nn

from lgvit_edge._support.optional import require
from lgvit_edge._support.outputs import write
from lgvit_edge._support.terminal import console, note, progress_bar, say, table
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, run_command
from lgvit_edge.benchmarks.report.plots import in_picture, lacking_letters
from lgvit_edge.cli.options import check_outputs
from lgvit_edge.errors import ConfigError, DataError, UsageError
from lgvit_edge.images.labelled import evenly, find_images, readable
from lgvit_edge.images.preprocess import load_rgb, network_input, to_float
from lgvit_edge.model import LGViT, load_model
from lgvit_edge.probing.concentration import MEASURES, share_inside
from lgvit_edge.probing.overlay import columns, draw_grid
from lgvit_edge.probing.pasting import LAYOUTS, paste, pointed
from lgvit_edge.probing.relevance import METHODS, relevance, usual_method
from lgvit_edge.probing.sanity import randomisation
from lgvit_edge.probing.ways import logits_at, way_to

Summary = dict[str, Any]  # mean and error, None without two numbers, and count
Frames = NDArray[np.uint8]


def main(
    ckpt: Annotated[list[str], typer.Option(help="A model: name=checkpoint. Again for more.")],
    data: Annotated[Path, typer.Option(help="Images: a sub-folder per class.")],
    against: Annotated[
        str | None, typer.Option(help="Model that others are compared with, at the same block.")
    ] = None,
    images: Annotated[int, typer.Option(min=8, help="Images, spread evenly over classes.")] = 400,
    randomised: Annotated[int, typer.Option(min=1, help="Of them with random weights.")] = 24,
    methods: Annotated[str, typer.Option(help="Of the first model.")] = ",".join(METHODS),
    seed: Annotated[int, typer.Option(help="Which images are pasted; random weights.")] = 0,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder for pictures of some images, not to be published.")
    ] = None,
    means: Annotated[
        Path | None, typer.Option(help="Picture (PNG) of mean maps in images pasted from four.")
    ] = None,
    json: JsonFile = None,
) -> None:
    """Measures relevance maps of every exit of one or more models."""
    check_outputs({"--means": means}, {"--pictures": pictures})
    if means is not None or pictures is not None:
        require("matplotlib", extra="report")
    record = Record(json)
    named = [_named(text) for text in ckpt]
    if len(models := dict(named)) < len(named):
        raise UsageError(f"--ckpt: expected a name for each model, found {[n for n, _ in named]}")
    chosen = methods.split(",")
    if unknown := [method for method in chosen if method not in METHODS]:
        raise UsageError(f"--methods: expected some of {', '.join(METHODS)}, found {unknown[0]!r}")
    if against is not None and against not in models:
        raise UsageError(f"--against: expected one of {', '.join(models)}, found {against!r}")
    if "gradient" not in chosen and (against == next(iter(models)) or means is not None):
        raise UsageError("--against and --means compare gradient maps: add gradient to --methods")
    first = next(iter(models.values()))
    frames, pixels, labels = _read(first, data, images)
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    mean_maps: dict[tuple[str, int], Tensor] = {}
    for name, model in models.items():
        if _shape(model) != _shape(first):
            raise UsageError(
                f"{name} takes other images, or has other classes or another order of them, than "
                "the first model"
            )
        with progress_bar(f"maps of {name}") as progress:
            for exit in range(1, len(model.heads) + 2):
                progress(exit - 1, len(model.heads) + 1)
                usual = dict.fromkeys(["gradient", usual_method(model, exit)])
                for method in chosen if model is first else usual:
                    try:
                        row, mean_map = _measured(model, pixels, labels, exit, method, seed)
                    except ConfigError as error:  # such as Grad-CAM of a class token
                        left_out.append(f"{name}, {error}")
                        continue
                    if method == "gradient":
                        mean_maps[name, row["block"]] = mean_map
                    rows.append({"model": name, **row})
    compared = [] if against is None else _compared(rows, against)
    few = pixels[:: max(1, len(pixels) // randomised)][:randomised]
    random: list[dict[str, Any]] = []
    with progress_bar("random weights") as progress:
        for exit in range(1, len(first.heads) + 2):
            progress(exit - 1, len(first.heads) + 1)
            for method in dict.fromkeys(["gradient", usual_method(first, exit)]):
                found = randomisation(first, few, exit=exit, method=method, seed=seed)
                steps = {step: _summary(values) for step, values in found.items()}
                random.append({"exit": exit, "method": method, "steps": steps})
    complete = {
        exit: _left_over(first, pixels[:32], exit)
        for exit in range(1, len(first.heads) + 1)
        if usual_method(first, exit) == "gradcam"
    }
    _print(rows, compared, random, complete)
    record.write(
        images=len(pixels),
        randomised_images=len(few),
        seed=seed,
        maps=rows,
        left_out=left_out,
        compared=compared,
        random_weights=random,
        gradcam_left_over=complete,
        exits={name: [vars(exit) for exit in m.config.exits] for name, m in models.items()},
    )
    if means is not None:
        _draw_means(means, list(models), mean_maps)
    if pictures is not None:
        _draw(pictures, models, frames, pixels, labels, seed)


def _named(text: str) -> tuple[str, LGViT]:
    name, equals, path = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--ckpt: expected name=checkpoint, found {text!r}")
    return name, load_model(Path(path)).eval().requires_grad_(False)


def _shape(model: LGViT) -> tuple[Any, ...]:
    config = model.config
    return config.image_size, config.preprocess, config.num_classes, config.labels


def _read(model: LGViT, data: Path, count: int) -> tuple[Frames, Tensor, Tensor]:
    """Returns frames ``[B, H, W, 3] uint8``, network input ``[B, 3, H, W]`` and classes ``[B]``."""
    config = model.config
    found = find_images(data, num_classes=config.num_classes, names=config.labels, note=note)
    images = readable(evenly(found, count), note)
    if any(image.class_index is None for image in images):
        raise DataError(f"{data}: expected one sub-folder per class")
    spec, size = config.preprocess, config.image_size
    crops = [network_input([load_rgb(image.path)], spec, size, "uint8") for image in images]
    frames = np.concatenate(crops)
    labels = torch.tensor([image.class_index for image in images])
    return frames, torch.from_numpy(to_float(frames, config.preprocess)), labels


def _summary(values: Tensor) -> Summary:
    """Returns mean and standard error of what is a number, and how many there are."""
    known = values[values.isfinite()].double()
    if len(known) < 2:
        return {"mean": None, "error": None, "count": len(known)}
    error = float(known.std() / len(known) ** 0.5)
    return {"mean": float(known.mean()), "error": error, "count": len(known)}


def _rounded(values: Tensor) -> list[float | None]:
    """Returns the number of each image; None where it has none, as JSON has no NaN."""
    return [round(value, 4) if value == value else None for value in values.tolist()]


def _measured(
    model: LGViT, pixels: Tensor, labels: Tensor, exit: int, method: str, seed: int
) -> tuple[dict[str, Any], Tensor]:
    """Returns the measures of an exit, and its mean map (``_mean_map``) if it knows classes."""
    way = way_to(model, exit)
    maps = relevance(model, pixels, exit=exit, method=method)
    row: dict[str, Any] = {
        "exit": exit,
        "block": way.last_block,
        "head": way.kind,
        "method": method,
        "accuracy": float((logits_at(model, pixels, exit).argmax(-1) == labels).float().mean()),
        "empty": int((maps.flatten(1).amax(1) == 0).sum()),
    }
    for name, measure in MEASURES.items():
        row[name] = _summary(values := measure(maps)) | {"values": _rounded(values)}
    mean_map = torch.zeros(0)
    for layout in LAYOUTS if METHODS[method].knows_class else ():
        made = pointed(
            model, paste(pixels, labels, layout=layout, seed=seed), exit=exit, method=method
        )
        known = made.share.where(made.known, torch.nan)
        # Parts of one image are no independent samples: the mean of each image counts once.
        share = made.share.nanmean(1)
        row[layout] = {
            "share": _summary(share) | {"values": _rounded(share)},
            "share_known": _summary(known.nanmean(1)),
            "hit": _summary(made.hit.nanmean(1)),
            "hit_known": _summary(made.hit.where(made.known, torch.nan).nanmean(1)),
            "known": float(made.known.float().mean()),
            "correlation_of_classes": _summary(made.correlation),
        }
        if layout == "quadrants":
            mean_map = _mean_map(made.maps)
    return row, mean_map


def _mean_map(maps: Tensor) -> Tensor:
    """Returns the mean of maps ``[P, 4, Hp, Wp]``, mirrored so that what was asked for is first.

    That is the upper left quarter. 1 is what every patch would have by chance.
    """
    mirrored = [maps[:, part].flip([1] * (part > 1) + [2] * (part % 2)) for part in range(4)]
    joined = torch.cat(mirrored)
    shares = joined / joined.mean((1, 2), keepdim=True)
    return shares[shares.isfinite().all(2).all(1)].mean(0)


def _left_over(model: LGViT, images: Tensor, exit: int) -> float:
    """Returns the largest part of a logit that Grad-CAM's shares, class token and bias leave over.

    A negated classifier shows the negative shares, which maps leave out. In parts of the largest
    logit; for heads that add the mean of their features to prefix tokens.
    """
    config, negated = model.config, copy.deepcopy(model)
    logits = logits_at(model, images, exit)
    classes = logits.argmax(-1)
    linears = [
        part
        for part in negated.heads[exit - 1].modules()
        if isinstance(part, nn.Linear) and part.out_features == config.num_classes
    ]
    with torch.no_grad():
        rest = torch.stack([linear.bias[classes] for linear in linears]).mean(0)
        hidden = model.hidden_states(images)[way_to(model, exit).last_block]
        if config.prefix_tokens:
            rest = rest + torch.stack(
                [
                    (hidden[:, place] * linear.weight[classes]).sum(-1)
                    for place, linear in enumerate(linears)
                ]
            ).mean(0)
        for linear in linears:
            linear.weight.neg_()
    positive, negative = (
        relevance(each, images, exit=exit, classes=classes, method="gradcam").sum((1, 2))
        for each in (model, negated)
    )
    logit = logits.gather(1, classes[:, None])[:, 0]
    left = (logit - rest - (positive - negative)).abs()
    return float(left.max() / logit.abs().max())


def _compared(rows: Sequence[dict[str, Any]], against: str) -> list[dict[str, Any]]:
    """Returns by how much maps differ from another model's ``gradient`` maps, image by image.

    ``gains`` are of the share on the class asked for, by layout, and of each measure.
    """
    base = {
        row["block"]: row for row in rows if row["model"] == against and row["method"] == "gradient"
    }
    found = []
    for row in rows:
        other = base.get(row["block"])
        if other is None or row["model"] == against or row["method"] == "rollout":
            continue
        pairs = {layout: (row[layout]["share"], other[layout]["share"]) for layout in LAYOUTS}
        pairs |= {name: (row[name], other[name]) for name in MEASURES}
        keys = ("model", "block", "head", "method")
        gains = {name: _summary(_tensor(own) - _tensor(its)) for name, (own, its) in pairs.items()}
        found.append({key: row[key] for key in keys} | {"gains": gains})
    return found


def _tensor(summary: Summary) -> Tensor:
    return torch.tensor([torch.nan if value is None else value for value in summary["values"]])


def _print(
    rows: Sequence[dict[str, Any]],
    compared: Sequence[dict[str, Any]],
    random: Sequence[dict[str, Any]],
    complete: dict[int, float],
) -> None:
    keys = ("model", "block", "head", "method")
    maps = table(*keys, numbers=("accuracy", *MEASURES))
    for row in rows:
        cells = [f"{row['accuracy']:.3f}", *(_cell(row[name]) for name in MEASURES)]
        maps.add_row(*(str(row[key]) for key in keys), *cells)
    console.print(maps)
    names = ("share", "hit", "share_known", "hit_known", "correlation_of_classes")
    for layout, (parts, _) in LAYOUTS.items():
        say(f"{layout}: on the part of the class asked for (by chance {1 / parts:.2f})")
        on = table(*keys, numbers=(*names, "known"))
        for row in (row for row in rows if layout in row):
            cells = [*(_cell(row[layout][name]) for name in names), f"{row[layout]['known']:.2f}"]
            on.add_row(*(str(row[key]) for key in keys), *cells)
        console.print(on)
    if compared:
        say("above gradient maps of the model compared with, image by image: share on the class")
        gains = table(*keys, numbers=(*LAYOUTS, *MEASURES))
        for row in compared:
            cells = [_cell(row["gains"][name]) for name in (*LAYOUTS, *MEASURES)]
            gains.add_row(*(str(row[key]) for key in keys), *cells)
        console.print(gains)
    say("rank correlation with the model's own maps as weights become random")
    for row in random:
        steps = ", ".join(f"{step} {_cell(value)}" for step, value in row["steps"].items())
        say(f"exit {row['exit']}, {row['method']}: {steps}")
    for exit, left in complete.items():
        say(f"exit {exit}: Grad-CAM, class token and bias leave {left:.1e} of the logit over")


def _cell(summary: Summary) -> str:
    return "-" if summary["mean"] is None else f"{summary['mean']:.3f} ± {summary['error']:.3f}"


def _draw_means(path: Path, names: Sequence[str], maps: dict[tuple[str, int], Tensor]) -> None:
    figures: Any = require("matplotlib.figure", extra="report")
    blocks = sorted({block for _, block in maps})
    figure = figures.Figure(figsize=(1.5 * len(blocks) + 1, 1.5 * len(names) + 0.5))
    axes = figure.subplots(len(names), len(blocks), squeeze=False)
    most = max(float(values.max()) for values in maps.values())
    for (row, column), each in np.ndenumerate(axes):
        each.set(xticks=[], yticks=[])
        if (values := maps.get((names[row], blocks[column]))) is None:
            each.set_axis_off()
            continue
        shown = each.imshow(values.numpy(), cmap="inferno", vmin=0, vmax=most)
        side = len(values) / 2
        quarter = torch.zeros(2, 2, dtype=torch.bool)
        quarter[0, 0] = True
        share = float(share_inside(values[None], quarter))
        each.set_xlabel(f"{share:.0%}", fontsize=9)
        each.axhline(side - 0.5, color="white", linewidth=0.6)
        each.axvline(side - 0.5, color="white", linewidth=0.6)
        if not row:
            each.set_title(f"block {blocks[column]}", fontsize=9)
        if not column:
            each.set_ylabel(in_picture(names[row]), fontsize=9)
    bar = figure.colorbar(shown, ax=axes, shrink=0.6)
    bar.set_label("relevance (1: by chance)", fontsize=9)
    buffer = io.BytesIO()
    with lacking_letters():
        figure.savefig(buffer, dpi=100, format="png", bbox_inches="tight")
    write(path, buffer.getvalue())


def _draw(
    folder: Path,
    models: dict[str, LGViT],
    frames: Frames,
    pixels: Tensor,
    labels: Tensor,
    seed: int,
) -> None:
    """Draws eight images with all exits, of all models side by side, and eight pasted ones."""
    folder.mkdir(parents=True, exist_ok=True)
    config = next(iter(models.values())).config

    def picture(name: str, frames: Frames, pixels: Tensor, **asked: Any) -> None:
        shown = [
            column
            for model_name, model in models.items()
            for column in columns(model, pixels, method="gradient", name=model_name, **asked)
        ]
        shown.sort(key=lambda column: column.block)
        write(folder / name, draw_grid(frames, shown, names=config.labels))

    some = slice(0, None, max(1, len(pixels) // 8))
    picture("exits.png", frames[some][:8], pixels[some][:8])
    made = paste(pixels, labels, seed=seed)
    images, classes = made.images[:8], made.classes[:8]
    spec = config.preprocess
    mean, std = (torch.tensor(each)[:, None, None] for each in (spec.mean, spec.std))
    seen = ((images * std + mean) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for part in range(classes.shape[1]):
        picture(f"pasted-{part + 1}.png", seen, images, classes=classes[:, part])


if __name__ == "__main__":
    run_command(main)
