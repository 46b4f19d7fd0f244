"""A slow and lossy link between this machine and a network namespace; needs root on Linux.

``python -m lgvit_edge.benchmarks.experiments.link`` puts a TUN device here and another into a new
namespace, and carries packets between them: each waits for its turn at the rate, then for the
delay, and some are lost. It does what ``tc netem`` does, where the kernel lacks that.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from types import TracebackType
from typing import Annotated

import typer

from lgvit_edge.benchmarks.experiments.frame import run_command

HERE, THERE = "10.99.7.1", "10.99.7.2"  # addresses of the two ends
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 1, 0x1000
_PACKETS = 1000  # that wait at most, as for netem


class Link:
    """The link, for as long as a block of code lasts; a process of its own carries the packets.

    Attributes:
        namespace: the name of the far end's network namespace.
    """

    def __init__(self, delay_ms: float, loss: float, rate: float) -> None:
        """Take the delay of one way, the share of packets lost, and bits per second."""
        self.namespace = f"lgvit-edge-{os.getpid()}"
        self._options = [f"--delay={delay_ms}", f"--loss={loss}", f"--rate={rate}"]
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Link:
        """Make it, and wait until it carries.

        Raises:
            RuntimeError: it cannot be made; standard error says why.
        """
        command = [sys.executable, "-m", __spec__.name, self.namespace, *self._options]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            self.__exit__(None, None, None)
            raise RuntimeError("the link cannot be made; it takes root, Linux and iproute2")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        self._process.communicate()  # the end of its input ends it
        subprocess.run(["ip", "netns", "del", self.namespace], stderr=subprocess.DEVNULL)

    def there(self, command: list[str]) -> list[str]:
        """Return a command that runs in the namespace."""
        return ["ip", "netns", "exec", self.namespace, *command]


class _Way:
    """Carries packets one way."""

    def __init__(
        self, source: int, target: int, delay: float, loss: float, rate: float, seed: int
    ) -> None:
        self._source, self._target = source, target
        self._delay, self._loss, self._rate = delay, loss, rate
        self._random = random.Random(seed)
        self._waiting: deque[tuple[float, bytes]] = deque()  # until when, and the packet
        self._free = 0.0  # when the last packet was sent

    def run(self) -> None:
        while True:
            wait = None
            if self._waiting:
                wait = max(0.0, self._waiting[0][0] - time.monotonic())
            readable, _, _ = select.select([self._source], [], [], wait)
            now = time.monotonic()
            while self._waiting and self._waiting[0][0] <= now:
                os.write(self._target, self._waiting.popleft()[1])
            if not readable:
                continue
            packet = os.read(self._source, 65_536)
            if len(self._waiting) >= _PACKETS:
                continue
            self._free = max(self._free, now) + len(packet) * 8 / self._rate
            if self._random.random() >= self._loss:
                self._waiting.append((self._free + self._delay, packet))


def _tun(name: str) -> int:
    """Make a TUN device; return what reads and writes its packets."""
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return device


def main(
    namespace: Annotated[str, typer.Argument(help="Name of the network namespace to make.")],
    delay: Annotated[float, typer.Option(help="Milliseconds, one way.")] = 20.0,
    loss: Annotated[float, typer.Option(help="Share of packets lost, each way.")] = 0.01,
    rate: Annotated[float, typer.Option(help="Bits per second, each way.")] = 5e6,
) -> None:
    """Carries packets to a new network namespace and back, until standard input ends."""

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)

    ip("netns", "add", namespace)
    here, there = _tun("lgve-here"), _tun("lgve-there")
    inside = ("netns", "exec", namespace, "ip")
    ip("link", "set", "lgve-there", "netns", namespace)
    ip("addr", "add", HERE, "peer", THERE, "dev", "lgve-here")
    ip("link", "set", "lgve-here", "up")
    ip(*inside, "addr", "add", THERE, "peer", HERE, "dev", "lgve-there")
    ip(*inside, "link", "set", "lgve-there", "up")
    ip(*inside, "link", "set", "lo", "up")
    for seed, ends in enumerate([(here, there), (there, here)]):
        way = _Way(*ends, delay / 1e3, loss, rate, seed)
        threading.Thread(target=way.run, daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    run_command(main)
