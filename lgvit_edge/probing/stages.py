"""The stages of a network, each a tensor that it computes of the images on its way to an answer.

An LGViT has its blocks, what each head makes of its block (``F_m`` of Eqs. 9 to 11), the logits of
each exit, and those of its final classifier. Any other module has the outputs of its leaves: of the
modules that hold no others.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from lgvit_edge.errors import UsageError, in_one_line
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.model import LGViT

FINAL = "final"  # the stage of the final classifier's logits
_MOST = 500  # stages of a module: the picture has a row for each
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
See = Callable[[str, Tensor], None]


def is_function(text: str) -> bool:
    """Says whether a model is named as ``module:function``, and is no file."""
    return _FUNCTION.fullmatch(text) is not None and not Path(text).exists()


def made_by(text: str) -> nn.Module:
    """Returns the network that ``module:function`` makes, in eval mode.

    Modules of the working directory are found after the installed ones. Where the network has the
    attributes ``preprocess`` (a ``Preprocess``) and ``image_size``, it gets such images.

    Raises:
        UsageError: it cannot be imported, fails, or returns something else.
    """
    name, _, function = text.partition(":")
    try:
        with _working_directory_found():
            made = getattr(importlib.import_module(name), function)()
        if isinstance(made, nn.Module):
            made.eval()
    except (Exception, SystemExit) as error:  # it is the user's own code
        raise UsageError(f"{text} makes no network: {in_one_line(error)}") from error
    if not isinstance(made, nn.Module):
        raise UsageError(
            f"{text}: expected a function that returns a torch.nn.Module, found one that returns "
            f"{type(made).__name__}"
        )
    size, preprocess = getattr(made, "image_size", 1), getattr(made, "preprocess", Preprocess())
    if type(size) is not int or size < 1 or not isinstance(preprocess, Preprocess):
        raise UsageError(
            f"{text}: expected image_size to be a whole number and preprocess a "
            f"lgvit_edge.images.spec.Preprocess, found {size!r} and {type(preprocess).__name__}"
        )
    return made


@contextlib.contextmanager
def _working_directory_found() -> Iterator[None]:
    here = str(Path.cwd())
    if here in sys.path:
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def lgvit_stages(model: LGViT, pixels: Tensor, see: See, *, normed: bool = False) -> Tensor:
    """Runs images ``[B, 3, H, W]`` through all exits, and gives each stage to ``see`` by name.

    Returns the logits ``[B, M + 1, C]``. A stage is gone once ``see`` returns, so memory holds
    about one of them at a time. Heads whose features are the block's output itself have none.
    ``normed`` shows blocks as the norm of the next one leaves them, without its weights: each token
    has mean 0 and variance 1.
    """

    def see_hidden(name: str, hidden: Tensor) -> None:
        see(name, functional.layer_norm(hidden, hidden.shape[-1:]) if normed else hidden)

    exits = {exit.block: number for number, exit in enumerate(model.config.exits, 1)}
    hidden = model.backbone.embedding(pixels)
    see_hidden("embedding", hidden)
    logits = []
    for block, layer in enumerate(model.backbone.blocks, 1):
        hidden = layer(hidden)
        see_hidden(f"block {block}", hidden)
        if (number := exits.get(block)) is not None:
            head = model.heads[number - 1]
            features = head.features(hidden)  # type: ignore[operator]
            if features is not hidden:
                see(head_stage(model, number), features)
            logits.append(head.classify(hidden, features))  # type: ignore[operator]
            see(f"exit {number}", logits[-1])
    logits.append(model.backbone.final(hidden))
    see(FINAL, logits[-1])
    return torch.stack(logits, dim=1)


def head_stage(model: LGViT, number: int) -> str:
    """Returns the name of the stage of a head's features, by the number of its exit, 1..M."""
    return f"head {number}: {model.config.exits[number - 1].head}"


def steady_stages(module: nn.Module, image: Tensor) -> frozenset[str]:
    """Returns the stages that have a row for each image, whatever their number.

    Others only look so with some number of images, as a table of 64 positions does with 64.
    ``image`` is ``[1, 3, H, W]``. Raises as ``module_stages`` does.
    """

    def found(count: int) -> frozenset[str]:
        names = set[str]()
        module_stages(module, image.repeat(count, 1, 1, 1), lambda name, _: names.add(name))
        return frozenset(names)

    return found(2) & found(3)


def module_stages(module: nn.Module, pixels: Tensor, see: See) -> None:
    """Runs images through any network, and gives the output of each leaf to ``see`` by name.

    A leaf that runs several times has a stage for each; outputs that are no floats of every image
    are left out.

    Raises:
        UsageError: the network fails, or has too many leaves, or none.
    """
    calls, seen = Counter[str](), Counter[str]()

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_: nn.Module, __: object, output: object) -> None:
            calls[name] += 1
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return
            if output.ndim < 2 or len(output) != len(pixels):
                return
            seen[name] += 1
            if seen.total() > _MOST:
                raise UsageError(f"expected a network of at most {_MOST} leaves, found more")
            see(name if calls[name] == 1 else f"{name} ({calls[name]})", output)

        return hook

    hooks = [leaf.register_forward_hook(watch(name)) for name, leaf in _leaves(module)]
    try:
        module(pixels)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:  # it is the user's own code
        raise UsageError(
            f"{type(module).__name__} cannot run images {list(pixels.shape)}: {in_one_line(error)}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise UsageError(f"{type(module).__name__} has no leaf that returns floats of every image")


def _leaves(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, part in module.named_modules():
        if next(part.children(), None) is None:
            yield name or type(module).__name__, part
