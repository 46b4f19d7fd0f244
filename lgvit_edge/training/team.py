"""Trains one model in several processes, as ``accelerate launch`` starts them.

Every process holds the whole model and takes its share of every batch. Gradients and the statistics
of BatchNorms are those of the whole batch, so the numbers are a single process's up to rounding,
however many there are.
"""

from __future__ import annotations

import datetime
import functools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from lgvit_edge._support.optional import require
from lgvit_edge.errors import UsageError

T = TypeVar("T")
# How long processes wait for one that computes features or measures; the default is minutes.
_PATIENCE = datetime.timedelta(days=2)
_LAUNCH = "start them with accelerate launch --multi_gpu --num_processes N -m lgvit_edge train"
# The number of processes, as torchrun (and so accelerate) and MPI's launchers set it.
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


@dataclass(frozen=True)
class Team:
    """The processes of a training, seen from one of them; by default it is alone."""

    device: torch.device  # of this process
    rank: int = 0  # 0..size - 1 over all machines; 0 leads: it alone writes files and prints
    size: int = 1  # processes over all machines
    leads_machine: bool = True  # whether it is the first on its machine
    waiting: Any = None  # the process group with a long timeout

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def share(self, rows: Any) -> Any:
        """Returns this process's rows of a batch."""
        return rows[self.rank :: self.size]

    def sum(self, value: float) -> float:
        """Returns the sum of a number over processes."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return float(total)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces every gradient by its sum over processes."""
        if self.size == 1:
            return
        # The same on every process: what receives a gradient follows from the step alone.
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def total(self, values: Tensor) -> Tensor:
        """Returns the sum of tensors over processes."""
        return values if self.size == 1 else _sum(values)

    def from_leader(self, value: T) -> T:
        """Returns process 0's ``value`` on every process."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Waits until all processes are here."""
        if self.size > 1:
            distributed.barrier(group=self.waiting)

    def synchronise(self, *modules: nn.Module) -> None:
        """Lets BatchNorms learn from whole batches."""
        if self.size == 1:
            return
        for module in modules:
            for part in module.modules():
                if type(part) is nn.BatchNorm2d:
                    part.__class__ = _WholeBatchNorm2d

    def separate(self, module: nn.Module) -> None:
        """Undoes ``synchronise``."""
        for part in module.modules():
            if isinstance(part, _WholeBatchNorm2d):
                part.__class__ = nn.BatchNorm2d  # type: ignore[assignment]


def join(device: str) -> Team:
    """Returns the team this process was started in; ``device`` is ``auto``, ``cpu`` or ``cuda``.

    Raises:
        UsageError: ``cuda`` was asked for and there is none, or the others cannot be found.
        MissingDependency: started as one of several, and accelerate is not installed.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda was asked for, but PyTorch finds no GPU; use device cpu")
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    started = {name: os.environ[name] for name in _SIZES if os.environ.get(name, "1") != "1"}
    if not started:
        return Team(torch.device("cpu" if on_cpu else "cuda"))
    accelerate = require("accelerate", extra="train")
    how = ", ".join(f"{name}={value}" for name, value in started.items())
    try:
        state = accelerate.PartialState(cpu=on_cpu)
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"cannot join the other processes ({how}): {error}; {_LAUNCH}") from None
    if state.num_processes == 1:  # else each would train alone and write the same files
        raise UsageError(f"started as one of several processes ({how}) that do not meet; {_LAUNCH}")
    place = (state.process_index, state.num_processes, state.is_local_main_process)
    return Team(state.device, *place, _waiting())


@functools.cache
def _waiting() -> Any:
    """Returns a group with a long timeout, on the CPU; other collectives keep theirs."""
    return distributed.new_group(backend="gloo", timeout=_PATIENCE)


class _Sum(torch.autograd.Function):
    """The sum over processes, through which gradients flow to all of them."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(context, *gradients)


_sum: Callable[[Tensor], Tensor] = _Sum.apply


class _WholeBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the rows of all processes; PyTorch's own runs on GPUs only."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x, dims = input.float(), (0, 2, 3)
        count = x.new_tensor([x.numel() / x.shape[1]])
        sums = _sum(torch.cat([x.sum(dims), count]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean[:, None, None]
        variance = _sum(centred.square().sum(dims)) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        output: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return output.to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
