"""Makes a small Debian for aarch64, and runs commands in it by user-mode emulation.

Mirror, index, proxies and certificates are those of this machine's apt and pip.
"""

from __future__ import annotations

import ast
import contextlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

NEEDED = {"debootstrap": "debootstrap", "qemu-aarch64-static": "qemu-user-static"}
BINFMT = Path("/proc/sys/fs/binfmt_misc")
HANDLER = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")  # of Debian's qemu-user-static
CERTIFICATES = "/etc/ssl/certs/of-the-host.crt"
# Processors that are emulated, as Linux tells of them in /proc/cpuinfo: older emulators show the
# host's there. The Neoverse N1 is the Cortex-A76 of servers; both lack SVE and bfloat16.
_N1 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop"
_N1 += " asimddp ssbs"
CPUS = {"cortex-a76": ("0xd0b", _N1), "neoverse-n1": ("0xd0c", _N1)}
PROXIES = ("http_proxy", "https_proxy", "no_proxy")


class Problem(Exception):
    """What a user has to mend before anything can run."""


def mirror_of(targets: str, suite: str) -> str:
    """Return the archive of a suite; ``targets`` are lines ``SITE CODENAME COMPONENT`` of apt.

    Raises:
        Problem: apt has none.
    """
    for line in targets.splitlines():
        site, *rest = line.split()
        if rest == [suite, "main"]:
            return site
    raise Problem(f"apt has no archive of {suite} with main; name one: --mirror URL --suite NAME")


def pip_settings(listed: str) -> dict[str, str]:
    """Return variables that give pip there what ``pip config list`` says here.

    Files and folders of this machine are left out: what they hold is for its own processor.
    """
    settings = {}
    # Those of the environment are listed first, and win.
    for line in reversed(listed.splitlines()):
        name, _, value = line.partition("=")
        name = name.rpartition(".")[2].removeprefix("default-")
        text = str(ast.literal_eval(value))
        kept = " ".join(w for w in text.split() if not w.startswith(("/", "file:", "~", ".")))
        if name in ("index-url", "extra-index-url", "proxy", "timeout", "trusted-host") and kept:
            settings["PIP_" + name.upper().replace("-", "_")] = kept
    return settings


def certificates(listed: str, variables: Mapping[str, str]) -> Path | None:
    """Return the file of certificates that pip trusts here; None if it is pip's own."""
    named = re.search(r"^(?:global|install|:env:)\.cert=(.*)$", listed, re.MULTILINE)
    text = str(ast.literal_eval(named[1])) if named else variables.get("SSL_CERT_FILE", "")
    return Path(text) if text and Path(text).is_file() else None


class Device:
    """Runs commands in the emulated Debian below ``root``."""

    def __init__(self, root: Path, cpu: str, variables: Mapping[str, str]) -> None:
        """Run as if on ``cpu``, of QEMU, with these variables and none of this machine's."""
        self.root = root
        self._setup = "mount -t sysfs -o ro sysfs /sys"
        if cpu in CPUS:
            (root / "etc" / "cpuinfo").write_text(cpuinfo(cpu))
            self._setup += " && mount --bind /etc/cpuinfo /proc/cpuinfo"
        self._variables = {
            "QEMU_CPU": cpu,
            "PATH": "/opt/venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "COLUMNS": "120",
            **variables,
        }

    def run(
        self, *command: str, seconds: float | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; its result holds ``stdout`` and ``stderr``.

        Raises:
            subprocess.TimeoutExpired: it took longer; it and all that it started are gone.
        """
        # On several cores, threads of ONNX Runtime and OpenVINO sometimes wait for ever under QEMU.
        one = ("taskset", "--cpu-list", str(max(os.sched_getaffinity(0))))
        # Mounts and processes end with the command, because they are in namespaces of its own. A
        # shell comes first there, because a crash does not end a first process.
        shell = ("sh", "-c", f'{self._setup} && "$@"; exit $?', "sh")
        own = ("--mount", "--pid", "--fork", "--kill-child", f"--root={self.root}", "--mount-proc")
        return subprocess.run(
            [*one, "unshare", *own, "--wd=/", *shell, *command],
            env={**self._variables, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
        )


def cpuinfo(cpu: str) -> str:
    """Return what Linux tells of one of ``CPUS`` in ``/proc/cpuinfo``."""
    part, features = CPUS[cpu]
    lines = ["BogoMIPS\t: 50.00", f"Features\t: {features}", "CPU implementer\t: 0x41"]
    lines += [
        "CPU architecture: 8",
        "CPU variant\t: 0x3",
        f"CPU part\t: {part}",
        "CPU revision\t: 1",
    ]
    return "\n".join(["processor\t: 0", *lines]) + "\n"


def check_here() -> None:
    """Check that this machine can emulate.

    Raises:
        Problem: a program or a right is missing.
    """
    missing = [package for tool, package in NEEDED.items() if not shutil.which(tool)]
    if missing:
        raise Problem(f"{' and '.join(missing)} missing; run: apt install {' '.join(missing)}")
    if os.geteuid() != 0:
        raise Problem("expected root, who alone may make such a system; run it with sudo")


@contextlib.contextmanager
def emulation() -> Iterator[None]:
    """Let this machine run programs for aarch64; what it could not before, it cannot afterwards."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, which cleans up
    if not (BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)], check=True)
    handler = BINFMT / "qemu-aarch64"
    if handler.exists():
        yield
        return
    # The kernel keeps the emulator open, so that systems below a root need no copy of it.
    (BINFMT / "register").write_text(HANDLER.read_text())
    try:
        yield
    finally:
        handler.write_text("-1")


def make_device(folder: Path, cpu: str, mirror: str | None, suite: str | None) -> Device:
    """Return a Debian with Python in ``folder``, made unless it is there, and its network set up.

    ``mirror`` and ``suite`` are those of this machine unless they are given.

    Raises:
        Problem: there is no mirror, or debootstrap failed.
    """
    root = folder / "root"
    if not root.exists():
        suite = suite or platform.freedesktop_os_release().get("VERSION_CODENAME", "")
        _bootstrap(root, mirror or mirror_of(_targets(), suite), suite)
    listed = here("-m", "pip", "config", "list")
    variables = pip_settings(listed)
    for name in PROXIES:
        variables |= {n: os.environ[n] for n in (name, name.upper()) if n in os.environ}
    if trusted := certificates(listed, os.environ):
        shutil.copy(trusted, root / CERTIFICATES.lstrip("/"))
        variables |= {"PIP_CERT": CERTIFICATES, "SSL_CERT_FILE": CERTIFICATES}
    for name in ("etc/resolv.conf", "etc/hosts"):
        shutil.copy(Path("/", name), root / name)
    return Device(root, cpu, variables)


def _targets() -> str:
    listing = ["apt-get", "indextargets", "--format", "$(SITE) $(CODENAME) $(COMPONENT)"]
    done = subprocess.run([*listing, "Created-By: Packages"], capture_output=True, text=True)
    return done.stdout


def _bootstrap(root: Path, mirror: str, suite: str) -> None:
    print(f"making a Debian {suite} for aarch64 takes some minutes", flush=True)
    partial, log = root.with_suffix(".partial"), root.with_suffix(".txt")
    if partial.exists():
        shutil.rmtree(partial)  # of a run that was killed
    command = ["unshare", "--mount", "debootstrap", "--arch=arm64", "--variant=minbase"]
    command += ["--include=python3,python3-venv,ca-certificates", suite, str(partial), mirror]
    with log.open("w") as said:
        done = subprocess.run(command, stdout=said, stderr=subprocess.STDOUT)
    if done.returncode:
        raise Problem(f"debootstrap failed: {last_words(log.read_text())}; see {log}")
    partial.rename(root)


def here(*arguments: str, **variables: str) -> str:
    """Run Python on this machine; returns what it printed.

    Raises:
        Problem: it failed.
    """
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=Path(__file__).parents[1],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        said = last_words(done.stdout + done.stderr)
        raise Problem(f"here, python {' '.join(arguments)} failed: {said}")
    return done.stdout


def last_words(said: str, most: int = 300) -> str:
    """Return the last line that names an error, or else the last line, cut to ``most``."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*error\b", line, re.IGNORECASE)]
    line = (errors or lines or [""])[-1]
    return line if len(line) <= most else f"{line[:most]} ..."
