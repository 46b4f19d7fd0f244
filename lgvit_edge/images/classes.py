"""Finds which class of a model each folder of images is: by name, by number, or as a list says."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lgvit_edge.errors import DataError
from lgvit_edge.images.lists import read_names

SORTED = "sorted"  # in place of a file that gives the order of the classes
_CURE = (
    "give --classes FILE, a file with one folder name per line in the order of the model's "
    f"classes, or --classes {SORTED} if that is the sorted order"
)


@dataclass(frozen=True)
class ClassOrder:
    """The folder name of each class; ``told``: what to tell people where no names agreed."""

    names: tuple[str, ...]
    told: str | None = None

    def indices(self, folders: Sequence[str]) -> list[int]:
        """Return the class of each folder.

        Raises:
            DataError: a folder is none of them, or two are the same class.
        """
        places = _places(folders, self.names)
        if places is None:
            raise DataError(_unknown(folders, self.names))
        first: dict[int, str] = {}
        for name, place in zip(folders, places, strict=True):
            if (other := first.setdefault(place, name)) != name:
                raise DataError(f"folders {other} and {name} are the same class; keep one of them")
        return places


def class_order(
    folders: Iterable[str],
    labels: Sequence[str],
    num_classes: int,
    classes: str | Path | None = None,
) -> ClassOrder:
    """Return the order of a model's classes, in which every folder has its place.

    By name where the model has class names, whatever the order of the folders. Without names, by
    number where the folders are called 0 to C - 1, else in sorted order.

    Args:
        folders: names of the class folders.
        labels: the model's class names; empty if it has none.
        num_classes: C of the model.
        classes: overrules this: a file with a folder name per line, in the order of the model's
            classes; or ``sorted``.

    Raises:
        DataError: names or numbers do not agree, so only the user knows which class is which.
    """
    names = sorted(folders)
    if classes is not None and str(classes) != SORTED:
        order = ClassOrder(read_names(Path(classes), num_classes, "folder names"))
        if twins := [name for name, count in Counter(order.names).items() if count > 1]:
            raise DataError(f"{classes}: expected every folder once, found {twins[0]!r} twice")
        if not names_agree(names, order.names):
            raise DataError(f"{classes}: {_unknown(names, order.names)}")
    elif classes is None and labels:
        if not names_agree(names, labels):
            raise DataError(
                f"the labels do not match the model's: {_unknown(names, labels)}; {_CURE}"
            )
        refuse_twins(names, labels)
        order = ClassOrder(tuple(labels))
    elif classes is None and names_agree(names, numbers := tuple(map(str, range(num_classes)))):
        told = "the model has no class names: folders are classes by their numbers"
        order = ClassOrder(numbers, f"{told} ({numbered(numbers)})")
    else:
        if len(names) != num_classes:
            raise DataError(
                f"the labels do not match the model's: found {len(names)} class folders, the "
                f"model has {num_classes} classes and no names to match them by; {_CURE}"
            )
        told = "the model has no class names: folders are classes in sorted order"
        if classes is None and names != by_number(names):
            raise DataError(
                f"{told.partition(':')[0]}, and folders that are called {names[0]}, {names[1]}, "
                f"... have two orders, as numbers and as text; {_CURE}"
            )
        order = ClassOrder(tuple(names), None if classes else f"{told} ({numbered(names)})")
    order.indices(names)
    return order


def names_agree(folders: Sequence[str], labels: Sequence[str]) -> bool:
    """Say whether every folder is called like one of a model's classes."""
    return _places(folders, labels) is not None


def by_number(folders: Iterable[str]) -> list[str]:
    """Return folders in sorted order: of their numbers, where all are called by numbers."""
    names = sorted(folders)
    numbers = [_number(name) for name in names]
    keys = {name: number for name, number in zip(names, numbers, strict=True) if number is not None}
    return sorted(names, key=keys.__getitem__) if len(keys) == len(names) else names


def numbered(names: Sequence[str]) -> str:
    """Say which class is called how: the first two and the last."""
    shown = [f"class {index} = {name}" for index, name in enumerate(names)]
    return ", ".join(shown if len(shown) < 4 else [*shown[:2], "...", shown[-1]])


def refuse_twins(used: Iterable[str], names: Sequence[str]) -> None:
    """Refuse a name that several classes share, such as ImageNet's two classes named crane.

    Raises:
        DataError: one of the names ``used`` is such a name.
    """
    counts = Counter(names)
    for name in used:
        if counts[name] > 1:
            raise DataError(
                f"the model has {counts[name]} classes called {name!r}; in a label file, give the "
                f"class by index; for folders, {_CURE}"
            )


def _places(folders: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """Return where each folder is among the names; None if one is not there.

    Names may be composed differently ("é" as one character or two), numbers may begin with zeros.
    """
    texts = {_composed(name): place for place, name in reversed(list(enumerate(names)))}
    numbers = {_number(name): place for place, name in reversed(list(enumerate(names)))}
    places = []
    for name in folders:
        place, number = texts.get(_composed(name)), _number(name)
        if place is None and number is not None:
            place = numbers.get(number)
        if place is None:
            return None
        places.append(place)
    return places


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _number(name: str) -> int | None:
    return int(name) if name.isascii() and name.isdecimal() and len(name) < 20 else None


def _unknown(folders: Sequence[str], names: Sequence[str]) -> str:
    unknown = [name for name in folders if _places([name], names) is None]
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return (
        f"{len(unknown)} of {len(folders)} folders are none of its {len(names)} classes "
        f"({shown}), such as {unknown[0]!r}"
    )
