"""Finding images and labels, and labels that do not match the model's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lgvit_edge.errors import DataError, UsageError
from lgvit_edge.images.labelled import (
    LabelledImage,
    evenly,
    find_images,
    readable,
    unlabelled_images,
)


def files(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def found(images: list[LabelledImage], root: Path) -> dict[str, int | None]:
    return {str(i.path.relative_to(root)): i.class_index for i in images}


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    return files(tmp_path / "flat", "a.png", "b.jpg", "my cat.png", "notes.txt", "sub/c.png")


def test_folders_match_names_whatever_their_order(tmp_path: Path) -> None:
    files(tmp_path, "dog/1.png", "dog/2.JPG", "cat/3.png", "cat/x.txt", ".cache/4.png", "top.png")
    images = find_images(tmp_path, num_classes=3, names=("eel", "dog", "cat"))
    assert found(images, tmp_path) == {"cat/3.png": 2, "dog/1.png": 1, "dog/2.JPG": 1}
    assert [i.path.name for i in images] == ["3.png", "1.png", "2.JPG"]


def test_without_names_folders_match_in_sorted_order(tmp_path: Path) -> None:
    files(tmp_path, "n02/1.png", "n01/2.png", "n10/3.png")
    images = find_images(tmp_path, num_classes=3)
    assert found(images, tmp_path) == {"n01/2.png": 0, "n02/1.png": 1, "n10/3.png": 2}
    (tmp_path / "n00").mkdir()  # an empty one still counts
    images = find_images(tmp_path, num_classes=4)
    assert found(images, tmp_path) == {"n01/2.png": 1, "n02/1.png": 2, "n10/3.png": 3}


CURE = "--classes FILE, a file with one folder name per line in the order of the model's classes"


def test_folders_the_model_does_not_know(tmp_path: Path) -> None:
    files(tmp_path, "cat/1.png", "cow/2.png", "pig/3.png")
    with pytest.raises(DataError) as caught:
        find_images(tmp_path, num_classes=4, names=("cat", "dog", "eel", "fox"))
    assert str(caught.value) == (
        f"{tmp_path}: the labels do not match the model's: 2 of 3 folders are none of its "
        f"4 classes (cat, dog, eel, ...), such as 'cow'; give {CURE}, or --classes sorted if that "
        "is the sorted order"
    )


@pytest.mark.parametrize("classes", [1, 3])
def test_another_number_of_folders_than_classes(tmp_path: Path, classes: int) -> None:
    files(tmp_path, "a/1.png", "b/2.png")
    message = f"found 2 class folders, the model has {classes} classes and no names to match them"
    with pytest.raises(DataError, match=message):
        find_images(tmp_path, num_classes=classes)


def test_what_people_should_know_is_told(tmp_path: Path) -> None:
    """How classes were matched where the model has no names, and what was left out."""
    files(tmp_path, "cat/1.png", "cat/2.HEIC", "cat/deep/3.heic", "dog/4.png", "eel/5.gif")
    files(tmp_path, "fox/6.png", "top.png", "notes.txt", "._top.png", "Thumbs.db")
    told: list[str] = []
    find_images(tmp_path, num_classes=4, note=told.append)
    beside, left_out, matched = told
    assert beside == f"images beside the class folders are left out: 1, such as {tmp_path}/top.png"
    assert left_out.startswith("files that are no images of a kind that is read are left out: ")
    assert "3 (.heic: 2, .txt: 1), such as" in left_out and "convert" in left_out
    assert matched == (
        "the model has no class names: folders are classes in sorted order "
        "(class 0 = cat, class 1 = dog, ..., class 3 = fox)"
    )
    told.clear()
    find_images(tmp_path / "cat", num_classes=4, note=told.append)
    unlabelled_images(tmp_path / "cat", told.append)
    assert len(told) == 2 and all("left out: 2 (.heic: 2)" in text for text in told)
    told.clear()
    find_images(tmp_path, num_classes=4, names=("fox", "eel", "dog", "cat"), note=told.append)
    assert told == [beside, left_out]


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    files(tmp_path, "b.png", "a.jpg", "empty/readme.txt")
    assert found(find_images(tmp_path, num_classes=9), tmp_path) == {"a.jpg": None, "b.png": None}


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images: expected one sub-folder per class, or"):
        find_images(tmp_path, num_classes=2)
    files(tmp_path, "a/readme.txt", "b.txt")
    for name, message in (
        (".", "holds no images"),
        ("nowhere", r"no such folder: .*nowhere"),
        ("b.txt", r"no such folder: .*b\.txt"),
    ):
        with pytest.raises(DataError, match=message):
            find_images(tmp_path / name, num_classes=2)


def listed(flat: Path, text: str, *, names: tuple[str, ...] = ()) -> dict[str, int | None]:
    labels = flat.parent / "labels.txt"
    labels.write_bytes(text.encode())
    return found(find_images(flat, num_classes=12, names=names, labels=labels), flat)


def test_labels_by_index_and_by_name(flat: Path) -> None:
    names = (*(f"c{i}" for i in range(10)), "red fox", "7")
    assert listed(flat, "a.png 3\n\n  b.jpg   c4  \r\n", names=names) == {"a.png": 3, "b.jpg": 4}
    assert listed(flat, "a.png red fox\nsub/c.png 0", names=names) == {"a.png": 10, "sub/c.png": 0}
    # A name that looks like an index is a name.
    assert listed(flat, "a.png 7", names=names) == {"a.png": 11}


def test_a_tab_allows_spaces_in_file_names(flat: Path) -> None:
    given = listed(flat, "my cat.png\t2\na.png\tred fox", names=("red fox",))
    assert given == {"my cat.png": 2, "a.png": 0}


def test_without_a_tab_the_space_that_fits_file_and_class_parts_them(flat: Path) -> None:
    names = ("red fox", "fox", "lynx")
    given = listed(flat, "my cat.png 2\nb.jpg red fox\na.png  fox", names=names)
    assert given == {"my cat.png": 2, "b.jpg": 0, "a.png": 1}
    files(flat, "a.png red")
    with pytest.raises(DataError, match=r"fits 'a\.png' and 'a\.png red'; put a tab between"):
        listed(flat, "a.png red fox", names=names)
    # The name that two classes share is not the one that was meant.
    twins = ("crane", "crane", "old crane")
    assert listed(flat, "b.jpg old crane", names=twins) == {"b.jpg": 2}
    with pytest.raises(DataError, match="line 1: .* 2 classes called 'crane'; .* by index"):
        listed(flat, "b.jpg crane", names=twins)


LINE = r"expected FILE CLASS with a class in 0\.\.11 or a name the model knows, found"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png 12", rf"labels\.txt, line 1: {LINE} 'a\.png 12'"),
        ("a.png 3\nb.jpg -1", rf"line 2: {LINE} 'b\.jpg -1'"),
        *[(f"a.png{label}", LINE) for label in (" 1.5", "", " wolf", " " + "9" * 5000, " ²")],
        *[
            (f"{name} 3", f"line 1: no such image: .*/{re.escape(name)}")
            for name in ("no cat.png", "missing.png", "sub")
        ],
        ("a\0.png 3", "no such image"),
        *[(text, "labels.txt lists no images") for text in ("", "\n \n")],
    ],
)
def test_labels_that_do_not_match(flat: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        listed(flat, text, names=("red fox",))


def test_labels_that_cannot_be_read(flat: Path, tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(b"a.png \xff\xfe")
    faults = {"none.txt": "No such file", "flat": "it is a folder", "binary.txt": "decode"}
    for name, fault in faults.items():
        with pytest.raises(DataError, match=f"cannot read the list .*{name}: .*{fault}.*UTF-8"):
            find_images(flat, num_classes=2, labels=tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_label_files_of_editors_and_spreadsheets(flat: Path, encoding: str, end: str) -> None:
    files(flat, "a,b.png", 'the "best".png', "é.png")
    lines = [
        "filename,label",
        "a.png,3",
        "b.jpg, red fox",
        'sub/c.png,"tench, Tinca tinca"',
        '"a,b.png",tench, Tinca tinca',
        '"the ""best"".png",0',
        '"my cat.png" 2',
        "é.png;1",
    ]
    expected = {"a.png": 3, "b.jpg": 0, "sub/c.png": 1, "a,b.png": 1, 'the "best".png': 0}
    file = flat.parent / "labels.csv"
    file.write_bytes(end.join([*lines[:-1], ""]).encode(encoding))
    names = ("red fox", "tench, Tinca tinca", "c", "d")
    read = find_images(flat, num_classes=4, names=names, labels=file)
    assert found(read, flat) == expected | {"my cat.png": 2}
    file.write_bytes(end.join(lines).encode(encoding))
    with pytest.raises(DataError, match=r"line 8: expected FILE CLASS .* found 'é.png;1'"):
        find_images(flat, num_classes=4, names=names, labels=file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,filename\n3,a.png", "line 1: expected FILE CLASS"),  # the columns are swapped
        ("a.png,3\nfilename,label", "line 2: expected FILE CLASS"),  # no header
        ("a.png,3,640,480", "line 1: expected FILE CLASS|no such image"),
        ("a.png,3\nb.jpg 2\na.png 4", "line 3: a.png has class 4 here, and 3 before"),
        ("filename,label", "lists no images; expected lines FILE CLASS"),
    ],
)
def test_label_files_that_are_refused(flat: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        listed(flat, text)


def test_images_that_a_label_file_lacks_are_told(flat: Path) -> None:
    told: list[str] = []
    (flat.parent / "labels.txt").write_text("a.png 1\nsub/c.png 2\n")
    find_images(flat, num_classes=3, labels=flat.parent / "labels.txt", note=told.append)
    assert told == [
        f"images that {flat.parent}/labels.txt does not list are left out: 2, such as {flat}/b.jpg"
    ]


def test_a_name_that_two_classes_share_is_refused(tmp_path: Path) -> None:
    files(tmp_path, "crane/0.png")
    with pytest.raises(DataError, match="2 classes called 'crane'; .*for folders, give --classes"):
        find_images(tmp_path, num_classes=3, names=("crane", "crane", "heron"))


def test_the_order_of_the_classes_is_given(tmp_path: Path) -> None:
    files(tmp_path / "data", "n02/1.png", "n01/2.png")
    (tmp_path / "order.txt").write_text("n02\nn01\nn03\n")
    given: dict[str, Any] = {"num_classes": 3, "names": ("tench", "goldfish", "shark")}
    images = find_images(tmp_path / "data", classes=tmp_path / "order.txt", **given)
    assert found(images, tmp_path / "data") == {"n01/2.png": 1, "n02/1.png": 0}
    with pytest.raises(UsageError, match="--classes is for one folder per class"):
        find_images(tmp_path, labels=tmp_path / "order.txt", classes="sorted", **given)
    with pytest.raises(DataError, match="no sub-folder per class, whose order --classes gives"):
        find_images(tmp_path / "data" / "n01", classes="sorted", **given)


def test_images_that_cannot_be_decoded_are_told(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    files(tmp_path, "b.png", "c.png")
    told: list[str] = []
    images = find_images(tmp_path, num_classes=2)
    assert readable(images, told.append) == images[:1]
    assert len(told) == 1 and told[0].startswith("2 of 3 images cannot be read, such as: ")
    assert "b.png is not an image" in told[0]
    with pytest.raises(DataError, match="none of 2 images can be read, such as: .*b.png"):
        readable(images[1:], told.append)


def test_images_are_spread_evenly() -> None:
    listed = [LabelledImage(Path(str(i)), i) for i in range(10)]
    assert [i.class_index for i in evenly(listed, 3)] == [0, 3, 6]
    assert evenly(listed, None) is listed
