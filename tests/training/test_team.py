"""Training by several processes: the numbers of one."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import TRAIN, python

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
STAGES = "--epochs 2 --batch-size 5 --cache-features features-{0} --out {0}.pt"
PASSES = "--passes 8,16 --shared --exits none --order whole --epochs 2 --batch-size 5 --out p{0}.pt"
# One command after the other, as processes that were started once: starts take longest.
COMMANDS = """
import json, sys
from lgvit_edge.cli.app import main
for line in json.loads(sys.argv[1]):
    sys.argv = ["lgvit-edge", *line.split(), "--workers", "0"]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
"""


def test_two_processes_learn_what_one_learns(folder: Path, trained: Callable[[str], str]) -> None:
    (folder / "commands.py").write_text(COMMANDS)
    lines = json.dumps([f"{TRAIN} {options.format('two')}" for options in (STAGES, PASSES)])
    two = subprocess.Popen(
        [sys.executable, *LAUNCH, "commands.py", lines],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    for options in (STAGES, PASSES):
        trained(f"{options.format('one')} --device cpu")
    said, _ = two.communicate(timeout=300)
    assert two.returncode == 0, said
    assert said.count("wrote two.pt") == said.count("wrote ptwo-8.pt") == 1, said
    assert said.count("next: ") == 2, said
    rows = {}
    for name in ("one", "two"):
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
        one, two = (load_model(folder / f"{name}.pt").exit_logits(pixels) for name in rows)
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-3)
    # And so do passes.
    pixels = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, two = (load_model(folder / f"p{name}-8.pt").exit_logits(pixels) for name in rows)
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-3)
    left = {path.name for path in folder.iterdir() if path.name.startswith("ptwo")}
    files = {f"ptwo-{size}.{kind}" for size in (8, 16) for kind in ("pt", "eval.json", "eval.png")}
    assert left == files | {"ptwo.log.csv", "ptwo.log.png", "ptwo.passes.json"}


# Five rows, one of them an outlier, shared unevenly; everything against one process.
SHARED = """
import copy, os, sys
import torch
from torch import distributed, nn
from lgvit_edge.training.optimiser import input_scales
from lgvit_edge.training.team import Team

child = os.fork()
rank = 0 if child else 1
distributed.init_process_group("gloo", f"file://{sys.argv[1]}", rank=rank, world_size=2)
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
assert not child or os.waitpid(child, 0)[1] == 0
"""


def test_norms_gradients_and_scales_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    python(SHARED, tmp_path / "meet", OMP_NUM_THREADS="1")


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


def test_processes_that_do_not_find_each_other() -> None:
    script = """
import os
import accelerate
from lgvit_edge.errors import UsageError
from lgvit_edge.training.team import join
for name, value in (("WORLD_SIZE", "2"), ("WORLD_SIZE", "two"), ("PMI_SIZE", "2")):
    if os.fork():
        os.wait()
        continue
    os.environ[name] = value
    try:
        join("cpu")
    except UsageError as error:
        print(str(error).replace("\\n", " "), flush=True)
    os._exit(0)
"""
    two, word, mpi = python(script).splitlines()
    assert re.search("cannot join the other processes .WORLD_SIZE=2.: .*; start them with", two)
    assert re.search("cannot join the other processes .WORLD_SIZE=two.", word)
    assert re.search("cannot join|do not meet; start them with accelerate launch", mpi)


def test_a_gpu_that_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UsageError, match="PyTorch finds no GPU; use device cpu"):
        join("cuda")
