"""The names of ``lgvit_edge``: listed once for people, loaded when used, shown by examples."""

from __future__ import annotations

import functools
import inspect
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import python

import lgvit_edge
from lgvit_edge import errors, export, policies, runtime
from lgvit_edge.images.labelled import find_images
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.model import LGViT
from lgvit_edge.training import ImageFolder

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


def test_the_page_lists_every_name() -> None:
    listed = re.findall(r"^\| `(\w+)` \| [A-Z].*\. \|$", PAGE.read_text(encoding="utf-8"), re.M)
    assert sorted(listed) == sorted({*lgvit_edge.__all__} - {"__version__"})
    assert set(lgvit_edge.__all__) <= set(dir(lgvit_edge))


def test_every_error_and_every_policy_is_offered() -> None:
    classes = {name for name, kind in vars(errors).items() if isinstance(kind, type)}
    rules = {kind.__name__ for kind in policies.POLICIES.values()}
    assert classes | rules <= set(lgvit_edge.__all__)


@pytest.mark.parametrize("package", [lgvit_edge, runtime, export])
def test_every_name_is_there(package: Any) -> None:
    for name in package.__all__:
        assert name in dir(package)
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match=f"'{package.__name__}' has no attribute 'Sesion'"):
        package.Sesion  # noqa: B018


def test_importing_loads_nothing_heavy() -> None:
    code = (
        "import sys; import lgvit_edge, lgvit_edge.runtime, lgvit_edge.export; dir(lgvit_edge);"
        "import lgvit_edge.runtime.backends.registry;"
        "heavy = {'numpy', 'torch', 'onnx', 'onnxruntime', 'PIL', 'openvino', 'rich', 'typer'};"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    assert python(code) == "\n"


def test_help_loads_no_array_library() -> None:
    code = (
        "import sys; import lgvit_edge.cli.app;"
        "print(*sorted({'numpy', 'torch', 'PIL', 'onnxruntime'} & set(sys.modules)))"
    )
    assert python(code) == "\n"


def example(function: Any) -> str:
    """The code under "Example:" in a docstring."""
    found = re.search(r"^Example:\n(( {4}.*\n)+)", inspect.getdoc(function) or "", re.M)
    assert found is not None
    return textwrap.dedent(found[1])


def test_the_examples_of_the_entry_points_run(
    bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundle, "out")
    shutil.copy(next((folder / "data" / "cat").iterdir()), "cat.jpg")
    names: dict[str, Any] = {name: getattr(lgvit_edge, name) for name in lgvit_edge.__all__}
    exec(example(lgvit_edge.Session.open), names)
    assert names["result"].label in "abcde"

    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (40, 50, 3), np.uint8)
    with lgvit_edge.Session.open(bundle) as session:
        exec(example(lgvit_edge.Session.predict), names | {"session": session, "frame": frame})

    brief = functools.partial(lgvit_edge.TrainingConfig, epochs=(1, 1), device="cpu")
    images = ImageFolder(folder / "data", size=16, preprocess=Preprocess(resize=16))
    given = {"train_set": images, "TrainingConfig": brief}
    exec(example(lgvit_edge.train), names | given)
    assert isinstance(lgvit_edge.load_checkpoint("model.pt"), LGViT)

    exec(example(lgvit_edge.export_bundle), names)
    given = {"images": find_images(folder / "data", num_classes=2), "Path": Path}
    pytest.importorskip("optuna", reason="optuna is not installed")
    exec(example(lgvit_edge.tune), names | given)
