"""The configuration file: every mistake is told with its line, whatever stands around it."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lgvit_edge.camera.config import Config, read_config
from lgvit_edge.camera.toml_lines import KeyPath, find_lines
from lgvit_edge.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KEYS: dict[str, tuple[type, ...]] = {
    "engines": (str,),
    "fps": (float,),
    "keep": (int,),
    "loop": (bool,),
    "jsonl": (str,),
    "point": (str,),
    "blocks": (list,),
    "anything": (),
}
CAMERA: dict[str, tuple[type, ...]] = {
    "source": (str, int),
    "every": (int,),
    "deadline_ms": (float,),
    "roi": (dict, list),
    "loop": (bool,),
}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("camera.toml")


def read(file: Path, text: str | bytes) -> Config:
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_config(file, KEYS, CAMERA)


def refused(file: Path, text: str | bytes) -> str:
    with pytest.raises(UsageError) as error:
        read(file, text)
    return str(error.value)


GOOD = """\
# The entrance
engines = "out/"
fps = 30

[camera.door]
source = "rtsp://host/stream"
deadline-ms = 20.5

[camera."back yard"]
source = 0
roi.gate = [
  0, 0,
  10, 10,
]
"""


def test_values_come_with_their_lines(file: Path) -> None:
    config = read(file, GOOD)
    assert config.values == {"engines": "out/", "fps": 30}
    assert config.cameras == {
        "door": {"source": "rtsp://host/stream", "deadline_ms": 20.5},
        "back yard": {"source": 0, "roi": {"gate": [0, 0, 10, 10]}},
    }
    assert config.where("fps") == "camera.toml, line 3, fps"
    assert config.where("camera", "door", "source") == "camera.toml, line 6, camera.door.source"
    place = "camera.toml, line 7, camera.door.deadline_ms"
    assert config.where_of("door", "deadline_ms") == place
    assert config.where_of("back yard", "roi") == 'camera.toml, line 11, camera."back yard".roi'
    place = 'camera.toml, line 13, camera."back yard".roi.gate.2'
    assert config.where("camera", "back yard", "roi", "gate", 2) == place
    # What is not given lacks in its table, or in the file.
    place = 'camera.toml, line 9, camera."back yard".every'
    assert config.where_of("back yard", "every") == place
    assert config.where("jsonl") == "camera.toml, jsonl"
    assert config.where() == "camera.toml"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "\ufeffengines = 'x'\n",
        "engines = 'x'\r\n\r\n[camera.a]\r\nsource = 1\r\n",
        "camera = {a = {source = 1}}",
        "camera.a.source = 1\ncamera.a.every = 2\n",
        "anything = 2020-01-01\n",
        "fps = 1\nkeep = 1\nloop = true\n",
    ],
)
def test_every_way_to_write_it_is_read(file: Path, text: str) -> None:
    config = read(file, text)
    document = tomllib.loads(text.removeprefix("\ufeff"))
    assert config.cameras == document.pop("camera", {})
    assert config.values == document


@pytest.mark.parametrize(
    ("text", "says"),
    [
        # what cannot be
        ("\n\nfsp = 30", "camera.toml, line 3, fsp: unknown option; did you mean fps?"),
        ("[camera.a]\nevry = 3", "line 2, camera.a.evry: unknown option; did you mean every?"),
        ("zzz = 1", "line 1, zzz: unknown option; expected one of: anything, blocks, engines, fps"),
        ("every = 3", "every: is an option of one camera; write it under [camera.NAME]"),
        ("[camera.a]\nfps = 3", "is an option of all cameras; write it above the first [table]"),
        ("fps = 'x'", "line 1, fps: must be a number, found 'x'"),
        ("fps = true", "line 1, fps: must be a number, found true"),
        ("keep = 1.0", "line 1, keep: must be a whole number, found 1.0"),
        ("keep = false", "line 1, keep: must be a whole number, found false"),
        ("loop = 1", "line 1, loop: must be true or false, found 1"),
        ("loop = 'yes'", "line 1, loop: must be true or false, found 'yes'"),
        ("engines = 1979-05-27", 'must be a text in "quotes", found the date or time 1979-05-27'),
        ("engines = ['a']", 'must be a text in "quotes", found a list'),
        ("blocks = {}", "blocks: must be a list, found a table"),
        ("[camera.a]\nroi = 1", "must be a table or a list, found 1"),
        ("fps = 'http://eve:hunter2@host/'", "found 'http://***@host/'"),
        ("fps = '" + 500 * "x" + "'", "x..."),
        # twice
        ("fps = 1\nfps = 2", "camera.toml, line 2: this key, or a part of it, is given twice"),
        (
            "[camera.a]\ndeadline-ms = 1\n\ndeadline_ms = 2",
            "line 4, camera.a.deadline_ms: is given twice, first on line 2",
        ),
        ("[camera.a]\nevery = 1\n[camera.a]\n", "line 3, column 10"),
        # cameras that are no tables
        ("camera = 3", "line 1, camera: expected a table [camera.NAME] for each camera"),
        ("[[camera]]\nsource = 1", "line 1, camera: expected a table [camera.NAME]"),
        ("[camera]\nsource = 1", "line 2, camera.source: expected a table [camera.NAME]"),
        # secrets
        ("mqtt_password = 'hunter2'", "line 1, mqtt_password: passwords and tokens do not belong"),
        ("[camera.a]\ntoken = 'hunter2'", "line 2, camera.a.token: passwords and tokens"),
        ("api-key = 'hunter2'", "line 1, api-key: passwords and tokens do not belong"),
        # no TOML
        ("fps 30", "camera.toml, line 1, column 5: expected "),
        ("a = 1\nsource = rtsp://x", "line 2, column 10: invalid value; a text stands in quotes"),
        ("fps = 'x", "camera.toml, line 1"),
        ("fps =\n", "camera.toml, line 1"),
        ('a = """\n\n', "camera.toml, line 1: "),
        ("a = " + 5000 * "[" + 5000 * "]", "camera.toml: brackets stand in brackets too often"),
        ("a = " + 5000 * "1", "camera.toml: no valid TOML: "),
        (b"a = 1\nb = '\xff'\n", "camera.toml, line 2: expected UTF-8, found other bytes"),
        ("a = 1\x1b[2J", r"camera.toml, line 1"),
        ('"a\\u001b[2J" = 1', r'line 1, "a\x1b[2J": unknown option'),
    ],
)
def test_every_mistake_is_told_with_its_line(file: Path, text: str | bytes, says: str) -> None:
    message = refused(file, text)
    assert says in message
    assert message.startswith("camera.toml")
    assert "hunter2" not in message and "\x1b" not in message and len(message) < 400


def test_all_mistakes_are_told_at_once_in_the_order_of_their_lines(file: Path) -> None:
    text = "fps = 'x'\nfsp = 1\n[camera.a]\nevry = 1\n[camera.b]\nevery = 'x'\n"
    lines = refused(file, text).splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "camera.toml, line 1, fps",
        "camera.toml, line 2, fsp",
        "camera.toml, line 4, camera.a.evry",
        "camera.toml, line 6, camera.b.every",
    ]


def test_what_is_no_readable_file_is_refused(file: Path) -> None:
    def says() -> str:
        with pytest.raises(UsageError) as error:
            read_config(file, KEYS, CAMERA)
        return str(error.value)

    assert says() == "cannot read the configuration camera.toml: No such file or directory"
    file.mkdir()
    assert "it is a folder" in says()
    file.rmdir()
    os.mkfifo(file)
    assert "it is a pipe" in says()  # and nobody waits
    file.unlink()
    file.write_bytes(b"#" * ((1 << 20) + 1))
    assert "expected at most 1048576 bytes" in says()


# Documents by chance, against Python's own reader


def leaves(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Every path in what was read."""
    if path:
        yield path
    items = enumerate(value) if isinstance(value, list) else value.items()
    for key, below in items:
        if isinstance(below, (dict, list)):
            yield from leaves(below, (*path, key))
        else:
            yield (*path, key)


class Document:
    """Writes a document, and down on which line each key of it stands."""

    TEXTS = (
        *('"a # b"', "'[x]'", '"a \\" = \'"', "'c:\\\\d'", '""', "''", '"\\\\"', '"é, ] }"'),
        *('"""\nkey = 1\n[table]\n"""', "'''\n# no\n\n'''", '"""a ""b"" \\""""', "''''a'''''"),
        *('""""""', "''''''", '"""\\\n   b"""', '"""x"""""', "'''\n\"\"\"\n'''"),
    )
    SCALARS = ("1", "-0.5e3", "true", "0x1F", "inf", "1979-05-27 07:32:00", "07:32:00", "1_0")
    SPACES = ("", " ", "\t ", "  ")

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.text, self.lines = "", {}
        self._count = 0
        for _ in range(self.random.randint(0, 5)):
            self._pair(())
            self._end()
        tables: list[KeyPath] = []
        for _ in range(self.random.randint(0, 8)):
            self._table(tables)
            for _ in range(self.random.randint(0, 4)):
                self._pair(tables[-1])
                self._end()

    def _write(self, *choices: str) -> None:
        self.text += self.random.choice(choices)

    def _note(self, path: KeyPath) -> None:
        for length in range(1, len(path) + 1):
            self.lines.setdefault(path[:length], self.text.count("\n") + 1)

    def _name(self) -> tuple[str, str]:
        """A new key, as it is and as it is written."""
        self._count += 1
        name = f"k-{self._count}_"
        written = [(name, name), (name, f'"{name}"'), (name, f"'{name}'"), (f"{name}.#", None)]
        written += [(f'{name}"', None), (f"{name}é\n", None), (f"{name}=]", None)]
        key, text = self.random.choice(written)
        escapes = key.replace('"', '\\"').replace("\n", "\\n").replace("é", "\\u00e9")
        return key, text or f'"{escapes}"'

    def _key(self, most: int = 3) -> list[str]:
        names = []
        for number in range(self.random.randint(1, most)):
            key, text = self._name()
            if number:
                self._write(".", " . ", "\t.")
            self.text += text
            names.append(key)
        return names

    def _pair(self, table: KeyPath, depth: int = 0) -> None:
        self._write(*self.SPACES)
        here = self.text
        path = (*table, *self._key())
        text, self.text = self.text, here  # the line where the key begins
        self._note(path)
        self.text = text
        self._write("=", " = ", "\t= ")
        self._value(path, depth, flat=depth > 0 and self.random.random() < 0.5)

    def _value(self, path: KeyPath, depth: int, *, flat: bool = False) -> None:
        kind = self.random.randrange(6 if depth < 3 else 4)
        if kind < 2:
            self._write(*self.TEXTS)
        elif kind < 4:
            self._write(*self.SCALARS)
        elif kind == 4:
            self.text += "["
            count = self.random.randint(0, 4)
            for number in range(count):
                self._break()
                self._note((*path, number))
                self._value((*path, number), depth + 1)
                self._break()
                if number < count - 1 or self.random.random() < 0.3:
                    self.text += ","
            self._break()
            self.text += "]"
        else:
            self.text += "{"
            count = self.random.randint(0, 3)
            for number in range(count):
                self._pair(path, depth + 1)
                self._write(*self.SPACES)
                if number < count - 1:
                    self.text += ","
            self._write(*self.SPACES)
            self.text += "}"

    def _break(self) -> None:
        self._write(*self.SPACES, "\n", " # ] , } \" ''' \n", "\n\n  ")

    def _end(self) -> None:
        self._write("\n", " \n", '  # it\'s """\n', "\n\n# [no.table]\n# a = 1\n", "\n \t\n")

    def _table(self, tables: list[KeyPath]) -> None:
        """A table of its own, one below a former one, or one more of a list."""
        above: KeyPath = self.random.choice(tables) if tables and self.random.random() < 0.4 else ()
        if any(isinstance(part, int) for part in above):
            above = ()
        listed = self.random.random() < 0.4
        self._write(*self.SPACES)
        here, start = self.text, "[[" if listed else "["
        self.text += start + self.random.choice(self.SPACES)
        for part in above:
            escapes = str(part).replace('"', '\\"').replace("\n", "\\n")
            self.text += f'"{escapes}" .'
        path: KeyPath = (*above, *self._key())
        self._write(*self.SPACES)
        self.text += start.replace("[", "]")
        text, self.text = self.text, here
        self._note((*path, 0) if listed else path)
        self.text = text
        self._end()
        tables.append((*path, 0) if listed else path)
        if listed and self.random.random() < 0.5:
            self.text += "[["
            names = [str(p).replace('"', '\\"').replace("\n", "\\n") for p in path]
            self._note((*path, 1))
            self.text += ".".join(f'"{name}"' for name in names) + "]]"
            self._end()
            tables.append((*path, 1))


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_lines_of_documents_by_chance(ends: str) -> None:
    kinds: set[str] = set()
    for seed in range(300):
        document = Document(seed)
        text = document.text.replace("\n", ends)
        read = tomllib.loads(text)
        lines = find_lines(text, tomllib.loads)
        assert lines == document.lines, f"seed {seed}:\n{text}"
        assert set(lines) == set(leaves(read)), f"seed {seed}:\n{text}"
        kinds |= {kind for kind in ("[[", '"""', "'''", "{", " . ", "\\u00e9") if kind in text}
    assert len(kinds) == 6  # they are not all empty
