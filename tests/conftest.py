"""Models and bundles the tests share, and the way to real data."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from signal import default_int_handler
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.cli.app import main
from lgvit_edge.images.spec import Preprocess

# torch is imported where it is used: devices run what needs none of it (tools/arm64.py).
if TYPE_CHECKING:
    from lgvit_edge.model import LGViT


def pytest_configure(config: pytest.Config) -> None:
    """Give huggingface_hub, which reads it when imported, a home that goes away.

    It would keep there what a test's own hub answers, and believe it in the next run.
    """
    os.environ["HF_HOME"] = home = tempfile.mkdtemp()
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files of slow tests: one that begins last keeps the other workers waiting."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Spare the garbage collector all that the whole run needs: it would look through it often."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def own_surroundings(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test measures backends unless it means to, and none sees or leaves a cache of the user.

    One thread for PyTorch, here and in commands: on small models its threads mostly wait, the
    more so the busier the machine is.
    """
    # What nohup, or a shell in the background, ignores is ignored by what tests start, too.
    for number, usual in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, default_int_handler)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)
    os.environ["LGVIT_EDGE_BACKEND"] = "onnxruntime"
    os.environ["LGVIT_EDGE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["OMP_NUM_THREADS"] = "1"
    if torch := sys.modules.get("torch"):  # one that is imported later reads the variable
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Call ``make`` in the first worker that asks for ``name``; return what it made.

    Where ``LGVIT_EDGE_MADE`` names a folder, all is made and left there, for runs without torch.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    root = Path(os.environ.get("LGVIT_EDGE_MADE", root))

    def shared(name: str, make: Callable[[Path], object]) -> Path:
        with FileLock(root / f"{name}.lock"):
            if not (root / name).exists():
                shutil.rmtree(root / f"{name}.new", ignore_errors=True)  # of a making that failed
                (root / f"{name}.new").mkdir()
                make(root / f"{name}.new" / "out")
                (root / f"{name}.new").rename(root / name)
        return root / name / "out"

    return shared


def random_model(config: LGViTConfig, seed: int = 0) -> LGViT:
    """Random weights, norms included: fresh norms are identities and would hide mistakes."""
    import torch
    from torch import nn

    from lgvit_edge.model import LGViT

    torch.manual_seed(seed)
    model = LGViT(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 1.5)
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.weight.mul_(5)
                if module.bias is not None:
                    module.bias.uniform_(-0.2, 0.2)
    return model.eval()


def export(models: LGViT | list[LGViT], out: Path, **options: Any) -> None:
    """Write a bundle; ``options`` are those of ``ExportOptions``."""
    from lgvit_edge.export import ExportOptions, export_bundle

    export_bundle(models, out, ExportOptions(**options))


def make_tiny_config() -> LGViTConfig:
    """Four blocks, three exits with every kind of head."""
    return LGViTConfig(
        family="vit",
        image_size=32,
        patch_size=8,
        hidden_size=32,
        num_blocks=4,
        num_heads=4,
        intermediate_size=128,
        num_classes=5,
        exits=(
            ExitConfig(1, "lph", 3),
            ExitConfig(2, "lph", 0),
            ExitConfig(3, "gah", 2),
        ),
        labels=tuple("abcde"),
        preprocess=Preprocess(resize=32),
    )


def make_tiny_swin() -> LGViTConfig:
    """Three stages with an exit in each of the first two: [256, 8], then [64, 16] tokens."""
    return LGViTConfig(
        family="swin",
        image_size=32,
        patch_size=2,
        hidden_size=8,
        num_blocks=5,
        num_heads=2,
        intermediate_size=16,
        num_classes=5,
        prefix_tokens=0,
        pooling="mean",
        depths=(2, 2, 1),
        stage_heads=(2, 2, 4),
        window_size=4,
        exits=(ExitConfig(2, "lph", 3), ExitConfig(3, "gah", 2)),
        labels=tuple("abcde"),
        preprocess=Preprocess(resize=32),
    )


@pytest.fixture
def tiny_config() -> LGViTConfig:
    return make_tiny_config()


@pytest.fixture
def tiny_model(tiny_config: LGViTConfig) -> LGViT:
    return random_model(tiny_config)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real images and weights; tests that need it skip without it."""
    root = os.environ.get("LGVIT_EDGE_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("needs real images and weights: set LGVIT_EDGE_DATA to their folder")
    return Path(root)


@pytest.fixture(scope="session")
def exported_model() -> LGViT:
    """The model inside ``bundle``; do not change it."""
    return random_model(make_tiny_config())


@pytest.fixture(scope="session")
def swin_model() -> LGViT:
    """The model inside ``swin_bundle``; do not change it."""
    from lgvit_edge.model import LGViT
    from lgvit_edge.model.randomised import randomised

    return randomised(LGViT(make_tiny_swin()))


@pytest.fixture(scope="session")
def quick_model() -> LGViT:
    """Two blocks and one exit, for tests of what an export leaves behind; do not change it."""
    return random_model(make_tiny_config().replace(num_blocks=2, exits=(ExitConfig(1, "lph", 3),)))


@pytest.fixture(scope="session")
def swin_bundle(made_once: Callable[..., Path], request: pytest.FixtureRequest) -> Path:
    """For TensorRT, float32, batches 1 to 8, no engines; do not change it."""

    def make(out: Path) -> None:
        model = request.getfixturevalue("swin_model")
        export(model, out, target="rtx", precision="fp32", batch=(1, 4, 8))

    return made_once("swin", make)


@pytest.fixture(scope="session")
def rtx_bundle(
    made_once: Callable[..., Path], request: pytest.FixtureRequest
) -> Callable[[str], Path]:
    """For TensorRT, no engines yet; do not change them.

    ``fp32``, ``fp16`` (batches 1 to 8), ``fixed`` (fp16, 1), ``swin`` (fp32, 1 to 8), ``two``
    (passes, fp32, 1 to 8).
    """

    def bundle(name: str) -> Path:
        if name == "swin":
            return Path(request.getfixturevalue("swin_bundle"))
        precision = "fp32" if name in ("fp32", "two") else "fp16"
        batch = (1, 1, 1) if name == "fixed" else (1, 4, 8)

        def make(out: Path) -> None:
            models = "pass_models" if name == "two" else "exported_model"
            export(
                request.getfixturevalue(models),
                out,
                target="rtx",
                precision=precision,
                batch=batch,
            )

        return made_once(name, make)

    return bundle


@pytest.fixture(scope="session")
def bundle(made_once: Callable[..., Path], request: pytest.FixtureRequest) -> Path:
    """A bundle with batches 1 to 4; do not change it, take ``bundle_copy``."""

    def make(out: Path) -> None:
        export(request.getfixturevalue("exported_model"), out, batch=(1, 2, 4))

    return made_once("bundle", make)


@pytest.fixture(scope="session")
def other_bundle(made_once: Callable[..., Path]) -> Path:
    """Takes the images of ``bundle`` and has its classes, but one exit; do not change it."""

    def make(out: Path) -> None:
        config = make_tiny_config().replace(num_blocks=2, exits=(ExitConfig(1, "lph", 3),))
        export(random_model(config, 3), out, batch=(1, 2, 4))

    return made_once("other", make)


@pytest.fixture(scope="session")
def pass_models() -> list[LGViT]:
    """The passes of ``passes_bundle``: 16 px with exits 1 to 3, 32 px with exit 4 and the final."""
    tiny = make_tiny_config()
    coarse = tiny.replace(
        image_size=16,
        num_blocks=3,
        exits=(ExitConfig(1, "lph", 3), ExitConfig(2, "mlp")),
        preprocess=Preprocess(resize=18, mean=(0.4, 0.5, 0.6)),
    )
    fine = tiny.replace(exits=(ExitConfig(2, "gah", 2),), preprocess=Preprocess(resize=36))
    return [random_model(coarse, 1), random_model(fine, 2)]


@pytest.fixture(scope="session")
def passes_bundle(made_once: Callable[..., Path], request: pytest.FixtureRequest) -> Path:
    """A bundle of two passes with batches 1 to 4; do not change it."""

    def make(out: Path) -> None:
        export(request.getfixturevalue("pass_models"), out, batch=(1, 2, 4))

    return made_once("passes", make)


@pytest.fixture(scope="session")
def apart(made_once: Callable[..., Path], request: pytest.FixtureRequest) -> list[Path]:
    """Each pass of ``passes_bundle`` as a bundle of its own; do not change them."""

    def make(index: int, out: Path) -> None:
        export(request.getfixturevalue("pass_models")[index], out, batch=(1, 2, 4))

    return [made_once(name, partial(make, i)) for i, name in enumerate(("coarse", "fine"))]


@pytest.fixture
def interrupt(tmp_path: Path) -> Callable[[list[str], str], str]:
    """Run a command in ``tmp_path``, Ctrl-C it once a file is there; returns what it said."""

    def run(arguments: list[str], pattern: str) -> str:
        process = subprocess.Popen(
            [sys.executable, "-m", "lgvit_edge", *arguments],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored after nohup
        )
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob(pattern)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=300)
        assert process.returncode == 130, said
        assert "interrupted" in said and "Traceback" not in said
        return said

    return run


@pytest.fixture
def bundle_copy(tmp_path: Path, bundle: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


@pytest.fixture
def lock_elsewhere() -> Callable[[Path], contextlib.AbstractContextManager[Callable[[], None]]]:
    """Another process holds a lock file; the context gives what makes it let go."""

    @contextlib.contextmanager
    def held(path: Path) -> Iterator[Callable[[], None]]:
        script = "import fcntl, sys; file = open(sys.argv[1], 'w'); "
        script += "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB); print('held'); input()"
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", script, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"

        def release() -> None:
            process.kill()
            process.wait()

        try:
            yield release
        finally:
            release()
            process.communicate()

    return held


@pytest.fixture
def small_config() -> LGViTConfig:
    """Three blocks, two classes, an exit with a local and one with a global head."""
    return LGViTConfig(
        family="vit",
        image_size=16,
        patch_size=4,
        hidden_size=16,
        num_blocks=3,
        num_heads=2,
        intermediate_size=32,
        num_classes=2,
        exits=(ExitConfig(1, "lph", 3), ExitConfig(2, "gah", 2)),
        preprocess=Preprocess(resize=16),
    )


@pytest.fixture
def folder(tmp_path: Path, small_config: LGViTConfig) -> Path:
    """``data/``, images of two classes, dark and bright, and ``start.pt``, an LGViT for them."""
    from lgvit_edge.model import save_checkpoint
    from lgvit_edge.training.start import seeded

    rng = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(32):
            pixels = rng.integers(0, 156, (16, 16, 3)) + 50 * label
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "data" / name / f"{i}.png")
    save_checkpoint(seeded(small_config, 0).eval(), tmp_path / "start.pt")
    return tmp_path


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run a command in this process until it ends with ``status``; returns what it said."""

    def typed(*arguments: object, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["lgvit-edge", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        said = " ".join("".join(capsys.readouterr()).split())
        assert "internal error" not in said and "Traceback" not in said, said
        assert int(end.value.code or 0) == status, said
        return said

    return typed


@pytest.fixture
def in_time() -> Iterator[None]:
    """Fails what waits: nobody writes to a pipe of these tests."""

    def late(*_: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
