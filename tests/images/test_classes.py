"""Which class a folder is: by name, by number, in sorted order, or as a list says."""

from __future__ import annotations

from pathlib import Path

import pytest

from lgvit_edge.errors import DataError
from lgvit_edge.images.classes import by_number, class_order, names_agree
from lgvit_edge.images.lists import read_names

TWELVE = [str(number) for number in range(12)]
ACCENT = ("caf\u00e9", "cafe\u0301")  # the same name, as Linux and as a Mac write it


@pytest.mark.parametrize(
    ("folders", "labels", "count", "expected"),
    [
        (["b", "a"], ("a", "b"), 2, [1, 0]),
        (["b", "a"], ("b", "a"), 2, [0, 1]),
        (["b"], ("a", "b", "c"), 3, [1]),  # some classes have no images
        ([ACCENT[1], "a"], ("a", ACCENT[0]), 2, [1, 0]),
        (TWELVE, (), 12, list(range(12))),
        (["10", "2"], (), 12, [10, 2]),
        (["007", "011"], (), 12, [7, 11]),
        (["10", "2"], tuple(TWELVE), 12, [10, 2]),
        (["10", "2"], tuple(sorted(TWELVE)), 12, [2, 4]),  # as another program trained it
        (["00", "09"], tuple(TWELVE), 12, [0, 9]),
        (["n2", "n1"], (), 2, [1, 0]),
        (["1", "2", "3"], (), 3, [0, 1, 2]),  # both orders are the same
    ],
)
def test_the_class_of_a_folder(
    folders: list[str], labels: tuple[str, ...], count: int, expected: list[int]
) -> None:
    order = class_order(folders, labels, count)
    assert order.indices(folders) == expected
    assert (order.told is None) == bool(labels)
    assert len(order.names) == count


@pytest.mark.parametrize(
    ("folders", "labels", "count", "message"),
    [
        (["a", "c"], ("a", "b"), 2, r"1 of 2 folders are none of its 2 classes \(a, b\), .*'c'"),
        (["0", "1"], ("cat", "dog"), 2, "2 of 2 folders are none of its 2 classes"),
        (["cat", "dog"], ("0", "1"), 2, "2 of 2 folders are none of its 2 classes"),
        (["Cat"], ("cat", "dog"), 2, "1 of 1 folders"),
        (["crane"], ("crane", "crane"), 2, "2 classes called 'crane'"),
        (["a", "b"], (), 3, "found 2 class folders, the model has 3 classes"),
        (list(map(str, range(1, 13))), (), 12, "called 1, 10, ... have two orders"),
    ],
)
def test_folders_that_nobody_but_the_user_knows(
    folders: list[str], labels: tuple[str, ...], count: int, message: str
) -> None:
    with pytest.raises(DataError, match=f"{message}.*--classes FILE, .*--classes sorted"):
        class_order(folders, labels, count)


def test_two_folders_of_one_class() -> None:
    for folders, labels in ((["1", "01"], ()), (list(ACCENT), ("x", ACCENT[0]))):
        with pytest.raises(DataError, match="are the same class; keep one of them"):
            class_order(folders, labels, 2)


def test_the_order_may_be_given(tmp_path: Path) -> None:
    file, labels = tmp_path / "order.txt", ("tench", "goldfish", "shark")
    file.write_text("\ufeffn2\r\nn1\r\nn3\r\n\r\n", encoding="utf-8", newline="")
    order = class_order(["n1", "n2"], labels, 3, file)
    assert (order.names, order.told) == (("n2", "n1", "n3"), None)
    assert order.indices(["n1", "n2"]) == [1, 0]
    order = class_order(["10", "9", "8"], ("a", "b", "c"), 3, "sorted")
    assert (order.names, order.told) == (("10", "8", "9"), None)
    for text, message in (
        ("n1\nn2", "expected 3 folder names, one per line and class, found 2"),
        ("n1\n\nn2", "line 2 is empty, expected one of the folder names"),
        ("n1\nn1\nn2", "expected every folder once, found 'n1' twice"),
        ("n1\nn3\nn4", "1 of 2 folders are none of its 3 classes .* such as 'n2'"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=f"order.txt: {message}"):
            class_order(["n1", "n2"], labels, 3, file)
    with pytest.raises(DataError, match="cannot read the list .*missing: No such file"):
        class_order(["n1"], labels, 3, "missing")
    with pytest.raises(DataError, match="found 2 class folders, the model has 3 classes"):
        class_order(["n1", "n2"], labels, 3, "sorted")


def test_fresh_classes_are_in_the_order_of_numbers() -> None:
    assert by_number(["10", "9", "1"]) == ["1", "9", "10"]
    assert by_number(["10", "9", "a"]) == ["10", "9", "a"]
    assert names_agree(["b"], ("a", "b")) and not names_agree(["c"], ("a", "b"))


def test_lists_of_names(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    for raw in (b"cat\nred fox\n", b"\xef\xbb\xbfcat\r\nred fox", "cat\nred fox".encode("utf-16")):
        file.write_bytes(raw)
        assert read_names(file, 2, "class names") == ("cat", "red fox")
    file.write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match="cannot read the list .*decode.*; expected text in UTF-8"):
        read_names(file, 1, "class names")
    with file.open("wb") as sparse:
        sparse.truncate(1 << 30)
    with pytest.raises(DataError, match="expected at most 67108864 bytes, found 1073741824"):
        read_names(file, 1, "class names")
