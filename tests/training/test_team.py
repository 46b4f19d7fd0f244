"""Training by several processes: the numbers of one."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import python, training

from lgvit_edge.errors import DataError, UsageError
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.model import load_model
from lgvit_edge.training import ArrayDataset, TrainingConfig
from lgvit_edge.training.checks import check_team
from lgvit_edge.training.data.batches import Batches, shuffled_indices
from lgvit_edge.training.team import Team, join

# The launcher's flag for several processes, of which each takes a GPU where there is one.
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
LAUNCH += ["--main_process_port", "0"]


def test_two_processes_learn_what_one_learns(folder: Path) -> None:
    options = "--epochs 2 --batch-size 5 --workers 0 --cache-features features-{0} --out {0}.pt"
    running = {
        name: training(folder, options.format(name), *launcher, CUDA_VISIBLE_DEVICES="")
        for name, launcher in (("one", []), ("two", LAUNCH))
    }
    said = {name: process.communicate(timeout=300)[0] for name, process in running.items()}
    assert [process.returncode for process in running.values()] == [0, 0], said
    assert said["two"].count("wrote two.pt") == said["two"].count("next: ") == 1, said["two"]
    rows = {}
    for name in running:
        with (folder / f"{name}.log.csv").open() as file:
            rows[name] = [
                [float(row[c]) for c in ("stage", "step", "loss", "accuracy")]
                for row in csv.DictReader(file)
            ]
    assert len(rows["one"]) == 4
    np.testing.assert_allclose(rows["two"], rows["one"], rtol=1e-4)
    # Weights that no loss depends on (a bias that the next norm takes away) follow rounding alone,
    # so answers are compared, not weights.
    pixels = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, two = (load_model(folder / f"{name}.pt").exit_logits(pixels) for name in running)
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-3)


def test_two_processes_train_passes_as_one_does(folder: Path) -> None:
    options = "--passes 8,16 --shared --exits none --order whole --epochs 2 --batch-size 5 "
    options += "--workers 0 --val data --out {0}.pt"
    running = {
        name: training(folder, options.format(name), *launcher, CUDA_VISIBLE_DEVICES="")
        for name, launcher in (("one", []), ("two", LAUNCH))
    }
    said = {name: process.communicate(timeout=300)[0] for name, process in running.items()}
    assert [process.returncode for process in running.values()] == [0, 0], said
    assert said["two"].count("wrote two-8.pt") == said["two"].count("next: ") == 1, said["two"]
    pixels = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, two = (load_model(folder / f"{name}-8.pt").exit_logits(pixels) for name in running)
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-3)
    left = {path.name for path in folder.iterdir() if path.name.startswith("two")}
    files = {f"two-{size}.{kind}" for size in (8, 16) for kind in ("pt", "eval.json", "eval.png")}
    assert left == files | {"two.log.csv", "two.log.png", "two.passes.json"}


# Five rows, one of them an outlier, shared unevenly; everything against one process.
SHARED = """
import copy, sys
import torch
from torch import distributed, nn
from lgvit_edge.training.optimiser import input_scales
from lgvit_edge.training.team import Team

rank = int(sys.argv[1])
distributed.init_process_group("gloo", f"file://{sys.argv[2]}", rank=rank, world_size=2)
team = Team(torch.device("cpu"), rank, 2)
torch.manual_seed(0)
first, second = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 5, 3)
network = nn.Sequential(first, nn.BatchNorm2d(6), nn.GELU(), second, nn.BatchNorm2d(5))
for norm in (network[1], network[4]):
    nn.init.normal_(norm.weight)
alone = copy.deepcopy(network)
x, target = torch.randn(5, 4, 6, 6), torch.randn(5, 5, 4, 4)
x[0] *= 20
scales = [input_scales(alone[0], lambda: alone[0](x))[alone[0].weight]]
(alone(x) - target).square().mean().backward()
x, target = team.share(x), team.share(target)
scales += [input_scales(network[0], lambda: network[0](x), team.total)[network[0].weight]]
torch.testing.assert_close(*scales)
team.synchronise(network)
((network(x) - target).square().mean() * len(x) / 5).backward()
team.sum_gradients(network.parameters())
for one, two in zip(alone.parameters(), network.parameters(), strict=True):
    torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-6)
for one, two in zip(alone.buffers(), network.buffers(), strict=True):
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)
team.separate(network)
assert {type(part) for part in network.modules()} == {type(part) for part in alone.modules()}
"""


def test_norms_gradients_and_scales_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SHARED, str(rank), str(tmp_path / "meet")],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], said


def team(rank: int, size: int) -> Team:
    return Team(torch.device("cpu"), rank, size)


@pytest.mark.parametrize(("count", "steps"), [(16, 4), (17, 4), (18, 4), (19, 5)])
def test_processes_share_every_batch(count: int, steps: int) -> None:
    shares = [list(shuffled_indices(count, 4, (1,), team(rank, 3))) for rank in range(3)]
    assert [len(share) for share in shares] == [steps] * 3
    assert all(len(rows) for share in shares for rows in share)
    together = torch.cat([rows for share in shares for rows in share])
    assert sorted(together.tolist()) == list(range(count))


def test_a_process_that_can_read_nothing_stops_instead_of_keeping_others_waiting() -> None:
    class Broken(ArrayDataset):
        def image(self, index: int, rng: np.random.Generator | None) -> np.ndarray:
            raise DataError(f"image {index} is damaged")

    images = Broken(np.zeros((4, 16, 16, 3), np.uint8), np.array([0, 1, 0, 1]))
    batches = Batches(images, Preprocess(resize=16), batch_size=4, team=team(1, 2))
    with pytest.raises(DataError, match=r"none of its 2 images of a batch, such as: image \d is"):
        next(batches.shuffled((1,)))


def images(count: int) -> ArrayDataset:
    return ArrayDataset(np.zeros((count, 16, 16, 3), np.uint8), np.arange(count) % 2, classes="ab")


def test_settings_that_do_not_fit_several_processes() -> None:
    with pytest.raises(UsageError, match="expected at least 8 for 4 processes, found 6"):
        check_team(team(0, 4), TrainingConfig(batch_size=6), 20, shared=False)
    with pytest.raises(UsageError, match="in each of 2 processes; .* --cache-features DIR"):
        check_team(team(0, 2), TrainingConfig(cache=True), 20, shared=False)
    with pytest.raises(DataError, match="at least 8 training images for 4 processes, found 7"):
        check_team(team(0, 4), TrainingConfig(), 7, shared=False)
    check_team(team(0, 2), TrainingConfig(cache=True), 4, shared=True)
    check_team(team(0, 1), TrainingConfig(cache=True), 1, shared=False)


@pytest.mark.parametrize(
    ("name", "value", "how"),
    [
        ("WORLD_SIZE", "2", "cannot join the other processes .WORLD_SIZE=2.: .*; start them with"),
        ("WORLD_SIZE", "two", "cannot join the other processes .WORLD_SIZE=two."),
        ("PMI_SIZE", "2", "cannot join|do not meet; start them with accelerate launch"),
    ],
)
def test_processes_that_do_not_find_each_other(name: str, value: str, how: str) -> None:
    script = "from lgvit_edge.training.team import join; join('cpu')"
    assert re.search(f"UsageError: .*{how}", python(script, fails=True, **{name: value}))


def test_a_gpu_that_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UsageError, match="PyTorch finds no GPU; use device cpu"):
        join("cuda")
