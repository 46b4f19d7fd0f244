"""The limits that a container sets on this process through its control groups.

A control group that is silent or unreadable sets no limit. Tests replace ``root``, below which the
system's files lie.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")


def cpu_quota(root: Path = ROOT) -> float | None:
    """Return how many processors' time this process may use; None for no limit."""
    quotas = []
    for folder in _groups(root, "cpu"):
        if (folder / "cpu.max").exists():
            quota, _, period = read_system_file(folder / "cpu.max").partition(" ")
        else:
            quota = read_system_file(folder / "cpu.cfs_quota_us")
            period = read_system_file(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period):  # neither "max" nor "-1"
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory_limit(root: Path = ROOT) -> int | None:
    """Return the memory in bytes that this process and its group may use; None for no limit."""
    limits = []
    for folder in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = read_system_file(folder / name)
            if limit.isdecimal():
                limits.append(int(limit))
    return min(limits, default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process and of the groups around it; the least limit counts."""
    ours = {}
    for line in read_system_file(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):  # version 2 names none
            ours[name] = PurePosixPath(path)
    for line in read_system_file(root / "proc/self/mountinfo").splitlines():
        mount, _, kind = line.partition(" - ")
        top, place = mount.split(" ")[3:5]
        system, _, options = kind.split(" ", 2)
        named = {"cgroup2": "", "cgroup": controller}.get(system)
        if named is None or named not in ours or (named and named not in options.split(",")):
            continue
        folder = root / place.lstrip("/")
        # If the group lies outside the mounted part, only the mounted part is visible.
        inside = ours[named].is_relative_to(top) and ".." not in ours[named].parts
        parts = ours[named].relative_to(top).parts if inside else ()
        yield folder
        for part in parts:
            folder /= part
            yield folder


def read_system_file(path: Path) -> str:
    """Return a system file's text without space around it; empty if it cannot be read.

    A sensor that is off answers "try again" (EAGAIN), as a Jetson's unused thermal zones do: Python
    then returns None where a file is read as text or bytes, so the system is asked directly.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        parts = list(iter(lambda: os.read(file, 1 << 16), b""))
    except OSError:
        return ""
    finally:
        os.close(file)
    return b"".join(parts).decode("utf-8", errors="replace").strip()


def read_number(path: Path, unit: float = 1) -> float | None:
    """Return the whole number in a system file times its unit; None if there is none."""
    text = read_system_file(path)
    return int(text) * unit if re.fullmatch(r"-?\d{1,18}", text, re.ASCII) else None
