"""How much of the machine a container leaves to this process: quotas of its control groups.

A control group that says nothing, or cannot be read, limits nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")


def cpu_quota(root: Path = ROOT) -> float | None:
    """Processors' worth of time that this process may use; None for all there are.

    Args:
        root: where the system's files lie, for tests.
    """
    quotas = []
    for folder in _groups(root, "cpu"):
        if (folder / "cpu.max").exists():
            quota, _, period = _read(folder / "cpu.max").partition(" ")
        else:
            quota, period = (_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota.isdecimal() and period.isdecimal() and int(period):  # neither "max" nor "-1"
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes that this process may use, with those that share its limit; None for all there are."""
    limits = []
    for folder in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _read(folder / name)
            if limit.isdecimal():
                limits.append(int(limit))
    return min(limits, default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups this process is in, and of those around them.

    Each of them may have a limit, and the smallest counts.
    """
    ours = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):  # version 2 names none
            ours[name] = PurePosixPath(path)
    for line in _read(root / "proc/self/mountinfo").splitlines():
        mount, _, kind = line.partition(" - ")
        top, place = mount.split(" ")[3:5]
        system, _, options = kind.split(" ", 2)
        named = {"cgroup2": "", "cgroup": controller}.get(system)
        if named is None or named not in ours or (named and named not in options.split(",")):
            continue
        folder = root / place.lstrip("/")
        # Of a group outside the mounted part nothing but the mounted part can be seen.
        inside = ours[named].is_relative_to(top) and ".." not in ours[named].parts
        parts = ours[named].relative_to(top).parts if inside else ()
        yield folder
        for part in parts:
            folder /= part
            yield folder


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
