"""A headless Chromium, told what to do through pipes (the DevTools protocol)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

# Chromium wants its pipes as 3 and 4.
_PLACE_PIPES = """
import fcntl, os, sys
for place, end in enumerate([fcntl.fcntl(int(end), fcntl.F_DUPFD, 9) for end in sys.argv[1:3]], 3):
    os.dup2(end, place)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Chromium:
    """One tab. ``complaints`` holds what the console said of errors, and exceptions."""

    def __init__(self, profile: Path, width: int = 1280, height: int = 800) -> None:
        assert PROGRAM is not None
        theirs, self._to = os.pipe()
        self._from, answers = os.pipe()
        switches = ["--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--disable-gpu"]
        switches += ["--no-first-run", "--disable-background-networking"]
        switches += [f"--user-data-dir={profile}", f"--window-size={width},{height}"]

        self._process = subprocess.Popen(
            [sys.executable, "-c", _PLACE_PIPES, str(theirs), str(answers), PROGRAM, *switches],
            pass_fds=(theirs, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(answers)
        self._number, self._unread, self._tab = 0, b"", ""
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._tab = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._tab} if self._tab else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def see(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 20.0) -> None:
        """Wait until a JavaScript expression is true in the page."""
        end = time.monotonic() + seconds
        while not self.see(expression):
            assert time.monotonic() < end, f"never {expression}: {self.complaints}"
            time.sleep(0.02)

    def close(self) -> None:
        """End the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            part = os.read(self._from, 1 << 16)
            assert part, "Chromium has ended"
            self._unread += part
        text, _, self._unread = self._unread.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        tell: dict[str, Callable[[Any], str]] = {
            "Runtime.exceptionThrown": str,
            "Log.entryAdded": lambda said: said["entry"]["level"] == "error" and str(said),
            "Runtime.consoleAPICalled": lambda said: said["type"] == "error" and str(said),
        }
        if (name := message.get("method")) in tell:
            self.complaints += filter(None, [tell[name](message["params"])])
        return message
