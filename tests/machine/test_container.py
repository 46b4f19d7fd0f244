"""What containers leave to a process, read from trees of faked files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lgvit_edge.machine.container import cpu_quota, memory_limit
from lgvit_edge.machine.cpu import available_cores
from lgvit_edge.machine.memory import memory_bytes

V2 = "31 23 0:28 {} /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate"
V1 = (
    "30 23 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 30 0:29 {0} /sys/fs/cgroup/cpu,cpuacct ro master:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "33 30 0:30 {0} /sys/fs/cgroup/memory ro master:9 - cgroup cgroup rw,memory\n"
    "34 30 0:31 {0} /sys/fs/cgroup/cpuset ro master:9 - cgroup cgroup rw,cpuset"
)
V1_GROUPS = "9:name=systemd:{0}\n4:memory:{0}\n3:cpuset:{0}\n2:cpu,cpuacct:{0}"


ROOT, DOCKER, B = V2.format("/"), "/docker/abc", {"a/b/cpu.max": "300000 100000"}


def v1_limits(*quotas: tuple[str, str]) -> dict[str, str]:
    """Of groups, whose period is 100 ms."""
    limits = {f"cpu,cpuacct/{group}cpu.cfs_quota_us": quota for group, quota in quotas}
    return limits | {name.replace("quota", "period"): "100000" for name in limits}


V1_LIMITS = v1_limits(("", "-1"), ("a/", "250000"), ("a/b/", "-1"))


def machine(root: Path, groups: str, mounts: str, limits: dict[str, str]) -> Path:
    files = {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts}
    files |= {f"sys/fs/cgroup/{name}": text for name, text in limits.items()}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("groups", "mounts", "limits", "quota"),
    [
        # Version 2: a container that sees its own group as the root.
        ("0::/", ROOT, {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", ROOT, {"cpu.max": "max 100000"}, None),
        ("0::/", ROOT, {}, None),
        # Groups in groups: the smallest counts, wherever it stands.
        ("0::/a/b", ROOT, {"a/cpu.max": "50000 100000", **B}, 0.5),
        ("0::/a/b", ROOT, {"a/cpu.max": "max 100000", **B, "c/cpu.max": "1 100000"}, 3.0),
        # A group beside or above the one that is mounted.
        ("0::/../other", ROOT, {"cpu.max": "200000 100000"}, 2.0),
        ("0::/docker/abc", V2.format(DOCKER), {"cpu.max": "200000 100000"}, 2.0),
        ("0::/elsewhere", V2.format(DOCKER), {"cpu.max": "200000 100000"}, 2.0),
        # Version 1: on the machine itself, and in a container.
        (V1_GROUPS.format("/a/b"), V1.format("/"), V1_LIMITS, 2.5),
        (V1_GROUPS.format(DOCKER), V1.format(DOCKER), v1_limits(("", "10000")), 0.1),
        # Nonsense limits nothing.
        ("0::/", ROOT, {"cpu.max": "plenty"}, None),
        ("0::/", ROOT, {"cpu.max": "100 0"}, None),
        ("", "", {"cpu.max": "100000 100000"}, None),
    ],
)
def test_quota(
    groups: str, mounts: str, limits: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    assert cpu_quota(machine(tmp_path, groups, mounts, limits)) == quota


@pytest.mark.parametrize(
    ("quota", "cores"), [("100000", 1), ("10000", 1), ("250000", 3), ("900000", 4), ("max", 4)]
)
def test_a_quota_counts_as_cores_rounded_up(
    quota: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    machine(tmp_path, "0::/", ROOT, {"cpu.max": f"{quota} 100000"})
    assert available_cores(tmp_path) == cores


def test_a_system_without_groups_has_all_its_cores(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None and memory_limit(tmp_path) is None
    assert 1 <= available_cores(tmp_path) <= (os.cpu_count() or 1)


def test_memory_of_a_container(tmp_path: Path) -> None:
    whole = memory_bytes(tmp_path)
    limits = {"memory.max": "max", "a/memory.max": "1000000", "a/b/memory.max": "2000000"}
    machine(tmp_path, "0::/a/b", ROOT, limits)
    assert memory_limit(tmp_path) == memory_bytes(tmp_path) == 1_000_000 < whole
    old = machine(
        tmp_path / "old",
        V1_GROUPS.format(DOCKER),
        V1.format(DOCKER),
        {"memory/memory.limit_in_bytes": "9223372036854771712"},  # as unlimited is written
    )
    assert memory_bytes(old) == whole
