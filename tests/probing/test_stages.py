"""The stages of networks: names, order, what they hold, and networks of the user's own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from small import swin, vit
from torch import Tensor, nn

from lgvit_edge.architecture.config import ExitConfig
from lgvit_edge.errors import UsageError
from lgvit_edge.model import LGViT
from lgvit_edge.model.randomised import randomised
from lgvit_edge.probing.stages import (
    is_function,
    lgvit_stages,
    made_by,
    module_stages,
    steady_stages,
)


def stages_of(model: nn.Module, pixels: Tensor) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        if isinstance(model, LGViT):
            seen["all"] = lgvit_stages(model, pixels, seen.__setitem__)
        else:
            module_stages(model, pixels, seen.__setitem__)
    return seen


def test_an_lgvit_shows_blocks_heads_and_exits_in_order() -> None:
    exits = (ExitConfig(1, "lph", 3), ExitConfig(2, "mlp"), ExitConfig(3, "gah", 2))
    model = randomised(LGViT(vit(hidden_size=32, num_blocks=4, exits=exits)))
    pixels = torch.randn(3, 3, 32, 32)
    seen = stages_of(model, pixels)
    # The features of an mlp head are the block's output, which is a stage already.
    assert list(seen) == [
        *("embedding", "block 1", "head 1: lph", "exit 1", "block 2", "exit 2"),
        *("block 3", "head 3: gah", "exit 3", "block 4", "final", "all"),
    ]
    with torch.no_grad():
        expected = model.exit_logits(pixels)
        states = model.hidden_states(pixels)
    assert torch.equal(seen["all"], expected) and torch.equal(seen["exit 2"], expected[:, 1])
    assert torch.equal(seen["block 3"], states[3])
    assert torch.equal(seen["head 1: lph"], model.heads[0].features(states[1]))  # type: ignore[operator]


def test_normed_blocks_have_tokens_of_one_size_and_answers_stay() -> None:
    model = randomised(LGViT(vit(exits=(ExitConfig(2, "conv"),))))
    model.backbone.blocks[0].fc2.bias.data[3] = 1000  # a large channel, as trained ViTs have
    pixels, seen = torch.randn(4, 3, 32, 32), {}
    with torch.no_grad():
        logits = lgvit_stages(model, pixels, seen.__setitem__, normed=True)
        assert torch.equal(logits, model.exit_logits(pixels))
        plain = model.heads[0].features(model.hidden_states(pixels)[2])  # type: ignore[operator]
    assert torch.allclose(seen["block 1"].square().mean(-1), torch.tensor(1.0), atol=1e-3)
    assert torch.equal(seen["head 1: conv"], plain)


def test_a_swin_has_stages_of_several_shapes() -> None:
    exits = (ExitConfig(1, "conv"), ExitConfig(3, "lph", 3))
    seen = stages_of(randomised(LGViT(swin(exits=exits))), torch.randn(2, 3, 32, 32))
    assert seen["embedding"].shape == (2, 256, 16) and seen["block 4"].shape == (2, 64, 32)
    assert seen["head 2: lph"].shape == (2, 64, 32)


class Odd(nn.Module):
    """A shared activation that works in place, a leaf without floats, one that nobody calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 6), nn.Linear(6, 6)
        self.relu, self.never, self.pick = nn.ReLU(inplace=True), nn.Linear(1, 1), Pick()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x.flatten(1)))
        x = self.relu(self.second(x))
        picked: Tensor = self.pick(x)
        return picked


class Pick(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(-1)


def test_any_network_shows_its_leaves_call_by_call() -> None:
    model, pixels, shapes = Odd(), torch.randn(5, 3, 2, 2), {}
    seen: dict[str, Tensor] = {}

    def see(name: str, stage: Tensor) -> None:
        seen[name], shapes[name] = stage.clone(), stage.shape

    with torch.no_grad():
        module_stages(model, pixels, see)
    assert list(shapes.items()) == [
        (name, (5, 6)) for name in ("first", "relu", "second", "relu (2)")
    ]
    assert (seen["first"] < 0).any(), "seen before the activation changed it in place"
    assert not any(m._forward_hooks for m in model.modules()), "no hook stays"
    alone = nn.Linear(3, 2)
    assert list(stages_of(alone, torch.randn(2, 4, 3))) == ["Linear"]


class Placed(nn.Module):
    """Adds a table of six positions, which with six images looks like one row for each."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(6, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)[..., :6].transpose(1, 2)  # [B, 6, 3]
        answer: Tensor = self.last((x + self.table(torch.arange(6))).mean(1))
        return answer


def test_a_table_with_as_many_rows_as_images_is_no_stage() -> None:
    model, pixels = Placed(), torch.randn(6, 3, 4, 4)
    assert set(stages_of(model, pixels)) == {"table", "last"}
    assert steady_stages(model, pixels[:1]) == {"last"}


def test_a_network_that_changes_its_input_in_place_has_stages() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 2))
    with torch.no_grad():
        assert steady_stages(model, torch.randn(1, 3, 2, 2)) == {"0", "1", "2"}


def test_a_network_that_cannot_be_looked_into_is_told() -> None:
    with pytest.raises(UsageError, match=r"Odd cannot run images \[2, 3, 9, 9\]: RuntimeError"):
        stages_of(Odd(), torch.randn(2, 3, 9, 9))
    with pytest.raises(UsageError, match="Pick has no leaf that returns floats"):
        stages_of(Pick(), torch.randn(2, 3))
    deep = nn.Sequential(*[nn.ReLU() for _ in range(501)])
    with pytest.raises(UsageError, match="at most 500 leaves"):
        stages_of(deep, torch.randn(2, 3))


def test_networks_are_made_by_a_function_of_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_nets.py").write_text(
        "import torch\n"
        "from lgvit_edge.images.spec import Preprocess\n"
        "def net(): return torch.nn.Dropout()\n"
        "def number(): return 3\n"
        "def breaks(): raise RuntimeError('no weights')\n"
        "def ends(): raise SystemExit(0)\n"
        "class Odd(torch.nn.Module):\n"
        "    def train(self, mode=True): raise NotImplementedError('no eval()')\n"
        "def sized():\n"
        "    made = net()\n"
        "    made.image_size = 'large'\n"
        "    return made\n"
    )
    before = list(sys.path)
    assert not made_by("own_nets:net").training
    for name, told in {
        "own_nets:number": "expected a function that returns a torch.nn.Module, found one .* int",
        "own_nets:breaks": "own_nets:breaks makes no network: RuntimeError: no weights",
        "own_nets:ends": "own_nets:ends makes no network: SystemExit: 0",
        "own_nets:Odd": "own_nets:Odd makes no network: NotImplementedError: no eval",
        "own_nets:missing": "has no attribute 'missing'",
        "no_such_module:net": "No module named 'no_such_module'",
        "own_nets:sized": "expected image_size to be a whole number .* found 'large'",
    }.items():
        with pytest.raises(UsageError, match=told):
            made_by(name)
    assert sys.path == before
    sys.modules.pop("own_nets")


def test_files_are_no_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_function("torchvision.models:resnet50")
    assert not any(map(is_function, ("model.pt", "hf:owner/name", "C:/model.pt", "a:b:c")))
    Path("odd:name").touch()
    assert not is_function("odd:name")
