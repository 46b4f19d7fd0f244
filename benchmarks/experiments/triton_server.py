"""A real Triton on this machine, for as long as a block of code lasts."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
import uuid
from collections.abc import Mapping
from http.client import HTTPResponse
from pathlib import Path
from types import TracebackType
from typing import cast

from lgvit_edge.errors import BackendError

HOME = Path(sys.prefix) / "triton"  # what tools/triton.py made
_READY, _END = 120.0, 30.0  # seconds
_PORTS = ("http", "grpc", "metrics")
_STAND_IN = """
import os
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime


class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        # Each segment has a process of its own, and the others need the cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = Path(__file__).with_name("model.onnx")
        self.session = onnxruntime.InferenceSession(path, options)

    def execute(self, requests):
        responses = []
        for request in requests:
            given = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            names = [output.name for output in self.session.get_outputs()]
            arrays = self.session.run(names, given)
            tensors = [pb_utils.Tensor(*pair) for pair in zip(names, arrays)]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return responses
"""


def missing() -> str | None:
    """Return why no server can be started here; None where it can."""
    if not (HOME / "python").is_dir():
        return (
            f"needs {HOME}, which `make dev` makes on Linux, x86-64 and Python up to 3.12; "
            f"run: {sys.executable} tools/triton.py {HOME}"
        )
    if not _libpython().exists():
        return f"needs a Python with a shared library, {_libpython()}"
    return None


def stand_in(repository: Path) -> None:
    """Let Python models run the segments of a repository, with the same files and library.

    In place of Triton's ONNX Runtime backend, which this server lacks.
    """
    for path in repository.glob("*/config.pbtxt"):
        text = path.read_text(encoding="utf-8")
        if 'backend: "onnxruntime"\n' in text:
            text = text.replace('backend: "onnxruntime"', 'backend: "python"')
            text = text.replace('default_model_filename: "model.onnx"\n', "")
            path.write_text(text, encoding="utf-8")
            path.with_name("1").joinpath("model.py").write_text(_STAND_IN)


def _libpython() -> Path:
    folder, name = (sysconfig.get_config_var(key) or "" for key in ("LIBDIR", "INSTSONAME"))
    return Path(folder) / name


class TritonServer:
    """Runs NVIDIA's tritonserver on free ports of 127.0.0.1; a context manager.

    Attributes:
        repository: of models.
        ports: of ``http``, ``grpc`` and ``metrics``, once it was started.
        log: what the server says.
    """

    def __init__(
        self,
        repository: Path,
        log: Path,
        *arguments: str,
        python: Path = HOME / "python",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Serve the models of a repository.

        Args:
            repository: that ``lgvit-edge triton`` wrote.
            log: file for what the server says.
            arguments: of tritonserver, beside the places and ports.
            python: the environment that models run in.
            environment: variables to set.
        """
        self.log = log.absolute()
        self.ports: dict[str, int] = {}
        self.repository, self._arguments, self._python = repository.absolute(), arguments, python
        self._variables = {"LD_LIBRARY_PATH": str(_libpython().parent), **(environment or {})}
        self._region = f"lgvit_edge_{uuid.uuid4().hex}_"  # of shared memory
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server, and wait until it is ready; again at the same ports.

        Raises:
            BackendError: it ends instead, or takes too long; has the end of what it said.
        """
        triton = HOME / "pytriton" / "tritonserver"
        if not self.ports:  # those of before, if it was started before
            with contextlib.ExitStack() as held:
                for name in _PORTS:
                    one = held.enter_context(socket.socket())
                    one.bind(("127.0.0.1", 0))
                    self.ports[name] = one.getsockname()[1]
        command = [
            str(triton / "bin" / "tritonserver"),
            f"--model-repository={self.repository}",
            f"--backend-directory={triton / 'backends'}",
            *(f"--{name}-address=127.0.0.1" for name in _PORTS),
            *(f"--{name}-port={self.ports[name]}" for name in _PORTS),
            f"--backend-config=python,shm-region-prefix-name={self._region}",
            *self._arguments,
        ]
        path = f"{self._python / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=os.environ | {"PATH": path} | self._variables,
                cwd=self.log.parent,  # whose modules its models could import
                stdout=log,
                stderr=log,
                start_new_session=True,  # the processes of its models end with it
            )
        deadline = time.monotonic() + _READY
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise BackendError(f"tritonserver is not ready:\n{self.said()[-3000:]}")
            time.sleep(0.05)

    def said(self) -> str:
        """Return what the server said so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def metrics(self) -> str:
        """Return the server's metrics, in Prometheus' text format."""
        with self._get("metrics", "metrics") as response:
            return str(response.read().decode())

    def url(self, protocol: str) -> str:
        """Return the address for a client of ``http`` or ``grpc``."""
        return f"127.0.0.1:{self.ports[protocol]}"

    def stop(self) -> None:
        """End the server as a user would, and wait for it."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server at once, as if the machine failed."""
        self._end(signal.SIGKILL)

    def _ready(self) -> bool:
        try:
            with self._get("http", "v2/health/ready") as response:
                return response.status == 200
        except OSError:
            return False

    def _get(self, port: str, path: str) -> HTTPResponse:
        address = f"http://127.0.0.1:{self.ports[port]}/{path}"
        return cast(HTTPResponse, urllib.request.urlopen(address, timeout=10))

    def _end(self, number: int) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(ProcessLookupError):  # those of models, if they are left
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process = None
        for region in Path("/dev/shm").glob(f"{self._region}*"):  # a killed server leaves them
            region.unlink(missing_ok=True)
