"""Runs a foreign model in the library that it is from, to compare its answers with ours.

No code of a checkpoint is run, and weights are read as safely as everywhere: safetensors, or
pickles of tensors alone.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.errors import in_one_line
from lgvit_edge.model.checkpoints.loading import Stored
from lgvit_edge.model.checkpoints.timm_names import named_in

Prepare = Callable[[NDArray[np.uint8]], Tensor]


class NotRun(Exception):
    """The original cannot be run here; says why, in one line."""


@dataclass(frozen=True)
class Original:
    """A model in its own library."""

    library: str  # and its version
    logits: Callable[[Tensor], Tensor]  # normalised ``[B, 3, H, W] float32 -> [B, C] float32``
    prepare: Prepare | None  # its own preprocessing, ``[H, W, 3] uint8 -> [3, H, W] float32``
    unprepared: str = ""  # why there is none


def original(stored: Stored, config: LGViTConfig, *, use_ema: bool = False) -> Original:
    """Makes the original of a checkpoint; ``config`` is that of our model.

    Raises:
        NotRun: it has none, or its library is missing or does not take it.
    """
    if stored.has_exits:
        raise NotRun("a model with exits has no other library that runs it")
    of_timm = "architecture" in stored.config or not stored.config  # only timm writes that key
    with _quiet(of_timm):
        if of_timm:
            return _tried(_of_timm(stored, config, use_ema), config)
        return _tried(_of_transformers(stored.path, use_ema), config)


def _of_transformers(folder: Path, use_ema: bool) -> Original:
    if use_ema:
        raise NotRun("transformers does not read a moving average beside the weights")
    transformers, library = _imported("transformers")
    safely: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        model, report = transformers.AutoModelForImageClassification.from_pretrained(
            folder, weights_only=True, output_loading_info=True, **safely
        )
    except Exception as error:
        raise NotRun(f"{library} does not read it ({in_one_line(error)})") from None
    if absent := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
        raise NotRun(f"{library} finds no fitting weights for {', '.join(absent[:3])}")
    model = model.float().eval()

    def logits(pixels: Tensor) -> Tensor:
        return model(pixel_values=pixels).logits  # type: ignore[no-any-return]

    if not (folder / "preprocessor_config.json").is_file():
        return Original(library, logits, None, "it has no preprocessor_config.json")
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(folder, **safely)
    except Exception as error:
        return Original(library, logits, None, f"{library}: {in_one_line(error)}")

    def prepare(image: NDArray[np.uint8]) -> Tensor:
        ready = processor(images=_pillow(image), return_tensors="pt")["pixel_values"]
        return ready[0].float()  # type: ignore[no-any-return]

    return Original(library, logits, prepare)


def _of_timm(stored: Stored, config: LGViTConfig, use_ema: bool) -> Original:
    name = f"local-dir:{stored.path}" if stored.config else named_in(stored.path.stem)
    if not name:
        raise NotRun(
            "the file does not tell timm's name of its architecture; rename it so that it begins "
            "with that name"
        )
    timm, library = _imported("timm")
    sizes = {"num_classes": config.num_classes}
    if not stored.config:
        sizes["img_size"] = config.image_size
    state = stored.model_weights(use_ema, lambda text: None)
    try:
        model = timm.create_model(name, pretrained=False, **sizes)
        try:
            model.load_state_dict(state, strict=True)
        except RuntimeError:  # older names, which timm brings up to date itself
            renew = sys.modules[type(model).__module__].checkpoint_filter_fn
            model.load_state_dict(renew(state, model), strict=True)
    except Exception as error:
        raise NotRun(f"{library} does not read it ({in_one_line(error)})") from None
    model = model.float().eval()
    try:
        settings = timm.data.resolve_model_data_config(model)
        transform = timm.data.create_transform(**settings, is_training=False)
    except Exception as error:
        return Original(library, model, None, f"{library}: {in_one_line(error)}")
    return Original(library, model, lambda image: transform(_pillow(image)))


def _tried(made: Original, config: LGViTConfig) -> Original:
    """Returns the original once it has run, without its preprocessing if that does not run."""
    side = config.image_size
    try:
        with torch.no_grad():
            shape = tuple(made.logits(torch.zeros(1, 3, side, side)).shape)
    except Exception as error:
        raise NotRun(f"{made.library} does not run it ({in_one_line(error)})") from None
    if shape != (1, config.num_classes):
        raise NotRun(f"{made.library} makes logits {shape} of one image of {side} x {side}")
    if made.prepare is None:
        return made
    try:
        ready = made.prepare(np.full((side + 20, side + 30, 3), 128, np.uint8))
        fault = "" if isinstance(ready, Tensor) and ready.ndim == 3 else "it makes no tensors"
    except Exception as error:
        fault = in_one_line(error)
    return replace(made, prepare=None, unprepared=f"{made.library}: {fault}") if fault else made


def _imported(name: str) -> tuple[Any, str]:
    """Returns a library, and its name with the version."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            raise NotRun(f"{name} is not installed; run: pip install {name}") from None
        raise NotRun(f"{name} cannot be imported ({in_one_line(error)})") from None
    except Exception as error:  # what it imports may be broken in any way
        raise NotRun(f"{name} cannot be imported ({in_one_line(error)})") from None
    return module, f"{name} {getattr(module, '__version__', '')}".strip()


@contextlib.contextmanager
def _quiet(of_timm: bool) -> Iterator[None]:
    """Keeps what the libraries say about themselves from the terminal."""
    with contextlib.ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # What is wrong with it, if anything, its import tells again where it is caught.
        with contextlib.suppress(Exception):
            if not of_timm:
                logs = importlib.import_module("transformers.utils.logging")
                stack.callback(logs.set_verbosity, logs.get_verbosity())
                logs.set_verbosity_error()
                if logs.is_progress_bar_enabled():
                    stack.callback(logs.enable_progress_bar)
                    logs.disable_progress_bar()
        yield


def _pillow(image: NDArray[np.uint8]) -> Any:
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(image))
