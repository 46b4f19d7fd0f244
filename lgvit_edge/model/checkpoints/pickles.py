"""Reads files of ``torch.save`` without running, or even looking up, anything they name.

Training scripts put more than tensors into a checkpoint: their arguments, NumPy's numbers, objects
of their own. PyTorch's reader of weights refuses such a file. Here each class it does not know is
replaced by an inert stand-in for the time of the call, so that the tensors can be read.
"""

from __future__ import annotations

import contextlib
import io
import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from lgvit_edge.errors import CheckpointError
from lgvit_edge.model.checkpoints.formats import AGAIN, STATE_DICT, begins, is_zip

_MARK = "stands_for"
# Their state is a tuple, which only an object takes; all others may turn out to be dicts.
_OBJECTS = ("numpy", "_io", "datetime", "random")
_MOST = 500  # classes that a file names: PyTorch's reader looks through all of them each time
_LISTS = ("collections.deque",)


def read_pickle(path: Path) -> Any:
    """Reads what ``torch.save`` wrote: tensors, plain types, and stand-ins for all else.

    Raises:
        CheckpointError: damaged, or not to be read without running it.
    """
    named: dict[str, None] = {}
    try:
        named = _named(path)
        if len(named) > _MOST:
            raise ValueError(f"{len(named)} classes are named, {_MOST} at most are expected")
        stand_ins: list[Any] = [(_stand_in(name), name) for name in named]
        with torch.serialization.safe_globals(stand_ins), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        raise CheckpointError(_refusal(path, named, error)) from None


def stands_for(value: object) -> str | None:
    """Returns the name of the class that a value stands for; None for what was read as it is."""
    name = getattr(value, _MARK, None)
    return name if isinstance(name, str) else None


def _named(path: Path) -> dict[str, None]:
    """Returns the classes and functions that a file names, in order, without importing any."""
    if not is_zip(path):
        named: dict[str, None] = {}
        # PyTorch before 1.6: three headers, then the content. It says itself what is wrong.
        with path.open("rb") as file, contextlib.suppress(ValueError):
            for _ in range(4):
                named |= dict.fromkeys(_globals(file))
        return named
    with zipfile.ZipFile(path) as archive:
        content = next(e for e in archive.infolist() if e.filename.endswith("/data.pkl"))
        del content.CRC  # compared already, where the file has any
        return dict.fromkeys(_globals(io.BytesIO(archive.read(content))))


def _globals(pickled: IO[bytes]) -> Iterator[str]:
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name == "GLOBAL":
            module, name = str(argument).split(" ", 1)
            module, name = NAME_MAPPING.get((module, name), (module, name))
            yield f"{IMPORT_MAPPING.get(module, module)}.{name}"


def _stand_in(name: str) -> type:
    """Returns a class that takes whatever it is made of, and keeps nothing but its name.

    PyTorch's reader fills plain dicts and lists only, so a class that may be one makes one.
    """

    def empty(cls: type, *_: object) -> object:
        if name in _LISTS:
            return []
        if name.split(".")[0] in _OBJECTS:
            return object.__new__(cls)
        made: OrderedDict[str, object] = OrderedDict()
        made.__dict__[_MARK] = name
        return made

    return type(
        "StandIn", (), {"__new__": empty, "__setstate__": lambda self, state: None, _MARK: name}
    )


def _refusal(path: Path, named: dict[str, None], error: Exception) -> str:
    # What PyTorch puts before it advises to trust the file.
    reason = str(error).rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
    reason = " ".join(reason.splitlines()[0].split())
    if " " not in reason:  # not a sentence, but the argument of some exception
        reason = type(error).__name__
    says = f'PyTorch says: "{reason if len(reason) <= 200 else reason[:200] + "..."}"'
    own = ("torch.", "collections.OrderedDict", "_codecs.encode")
    others = [name[:60] for name in named if not name.startswith(own)]
    if others and not isinstance(error, (RuntimeError, EOFError, OSError)):
        listed = ", ".join(others[:4]) + (", ..." if len(others) > 4 else "")
        return (
            f"{path} was refused: it holds more than tensors and plain types ({listed}), and "
            f"cannot be read without running code of them; {STATE_DICT}"
        )
    if is_zip(path):
        return f"{path} was refused: its content cannot be read as weights ({says}); {STATE_DICT}"
    head = begins(path)[:12]
    if not head.startswith(b"\x80"):
        return (
            f"{path} is neither a file of torch.save nor safetensors (it begins {head!r}); {AGAIN}"
        )
    if reason.startswith("Invalid magic number"):
        return f"{path} is a pickle, but not one of torch.save; {STATE_DICT}"
    return f"{path} is cut off, damaged, or no file of torch.save ({says}); {AGAIN}"
