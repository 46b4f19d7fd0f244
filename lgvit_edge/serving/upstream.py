"""``Upstream``: a device's way to the Triton that goes on with what it began."""

from __future__ import annotations

import io
import json
import math
import re
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.numbers import real
from lgvit_edge._support.optional import require
from lgvit_edge.errors import DataError, UpstreamError, UsageError, in_one_line
from lgvit_edge.serving.breaker import Breaker
from lgvit_edge.serving.contract import ENCODED, HIDDEN, IDENTITY, OUTPUTS, POLICY, SEGMENT

_URL = re.compile(r"tritons?://([^/\s]+:[0-9]{1,5})/([A-Za-z0-9][A-Za-z0-9_.-]{0,63})")
NOT_ASKED = "not asked after failures"
_REPLY = 65_536  # bytes
_TRIED = 32  # requests whose times are remembered
_CHANNEL = [
    ("grpc.max_receive_message_length", _REPLY),
    # Whoever tries again decides when; a connection does not wait on its own.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class Rest(NamedTuple):
    """Holds what is sent of one image.

    Attributes:
        segment: the server begins with it, or with its pass, and reads no exit before it.
        payload: a JPEG file, or a hidden state, ``[1, ...] float16``.
        identity: ``Manifest.identity`` of the bundle.
        policy: ``Policy.to_json`` of the policy that decides.
    """

    segment: int
    payload: bytes | NDArray[np.float16]
    identity: str
    policy: Mapping[str, Any]

    @property
    def size(self) -> int:
        """Bytes of the payload."""
        return len(self.payload) if isinstance(self.payload, bytes) else self.payload.nbytes


class Upstream:
    """Asks a model that ``lgvit-edge triton`` wrote, over gRPC; for several threads.

    A request is sent once. When several in a row failed, the server is left alone for a while
    (``Breaker``), and asked over a new connection then.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_ms: float = 1000.0,
        certificates: str | Path | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        """Name the server; nothing is sent before the first ``ask`` or ``check``.

        Args:
            url: ``triton://HOST:PORT/MODEL``, of Triton's gRPC port; ``tritons://`` for TLS.
            timeout_ms: how long a request may take.
            certificates: (TLS) file in PEM with the certificates to trust; None for the system's.
            breaker: decides when a failing server is asked again.

        Raises:
            UsageError: an argument is none.
            OSError: ``certificates`` cannot be read.
            MissingDependency: tritonclient is not installed.
        """
        if not (found := _URL.fullmatch(url)):
            raise UsageError(
                "expected triton://HOST:PORT/MODEL with Triton's gRPC port, such as "
                f"triton://10.0.0.5:8001/lgvit, or tritons:// for TLS; found {url!r:.200}"
            )
        if not 0 < real(timeout_ms) < math.inf:
            raise UsageError(f"timeout_ms must be a positive number, found {timeout_ms!r}")
        self._tls = url.startswith("tritons:")
        if certificates is not None:
            if not self._tls:
                raise UsageError("certificates are for tritons://, found triton://")
            Path(certificates).read_bytes()  # told now, rather than at the first image
        self.url, self.timeout_ms, self.breaker = url, timeout_ms, breaker or Breaker()
        self._host, self._model = found.groups()
        self._certificates = certificates
        self._library = require("tritonclient.grpc", extra="upstream")
        self._times: deque[float] = deque(maxlen=_TRIED)
        self._lock = threading.Lock()
        self._client: Any = None

    @property
    def expected_ms(self) -> float:
        """How long a request takes: the 90th percentile of the latest; 0 before there is one."""
        times = sorted(self._times)
        return times[int(0.9 * (len(times) - 1))] if times else 0.0

    def ask(self, rest: Rest, timeout_ms: float | None = None) -> dict[str, Any]:
        """Return the outputs of the model for one image, by name (``contract.OUTPUTS``).

        Raises:
            UpstreamError: there is no answer, or none that can be used.
        """
        timeout_ms = self.timeout_ms if timeout_ms is None else min(timeout_ms, self.timeout_ms)
        if not self.breaker.asks():
            raise UpstreamError(NOT_ASKED, "paused")
        begun, client = time.monotonic(), None
        try:
            client = self._connected()
            answer = self._infer(client, rest, timeout_ms)
        except BaseException:
            self.breaker.failed()
            if self.breaker.open and client is not None:
                self._leave(client)
            raise
        self.breaker.succeeded()
        self._times.append((time.monotonic() - begun) * 1e3)
        return answer

    def close(self) -> None:
        """End the connection; what waits for an answer gets an error."""
        self._leave(self._client)

    def __enter__(self) -> Upstream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                options: dict[str, Any] = {"ssl": True} if self._tls else {}
                if self._certificates is not None:
                    options["root_certificates"] = str(self._certificates)
                self._client = self._library.InferenceServerClient(
                    self._host, channel_args=_CHANNEL, **options
                )
            return self._client

    def _leave(self, client: Any) -> None:
        """Close a connection, unless another thread has a new one already."""
        with self._lock:
            if client is None or client is not self._client:
                return
            self._client = None
        client.close()

    def _infer(self, client: Any, rest: Rest, timeout_ms: float) -> dict[str, Any]:
        library = self._library
        if isinstance(rest.payload, bytes):
            tensor = library.InferInput(ENCODED, [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[rest.payload]], object))
        else:
            tensor = library.InferInput(HIDDEN, [1, rest.payload.size], "FP16")
            tensor.set_data_from_numpy(rest.payload.reshape(1, -1))
        try:
            reply = client.infer(
                self._model,
                [tensor],
                outputs=[library.InferRequestedOutput(output.name) for output in OUTPUTS],
                client_timeout=timeout_ms / 1e3,
                parameters={
                    SEGMENT: rest.segment,
                    IDENTITY: rest.identity,
                    POLICY: json.dumps(rest.policy),
                },
            )
            arrays = {output.name: reply.as_numpy(output.name) for output in OUTPUTS}
        except library.InferenceServerException as error:
            raise _refusal(error, timeout_ms) from None
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            # tritonclient trusts the sizes and types that a reply claims.
            raise UpstreamError(f"a reply that cannot be read: {in_one_line(error)}") from None
        for output in OUTPUTS:
            array = arrays[output.name]
            if array is None or (array.shape, str(array.dtype)) != ((1, 1), output.dtype):
                raise UpstreamError(f"a reply without one {output.name}")
        values = {name: array[0, 0] for name, array in arrays.items()}
        return {
            name: value.decode("utf-8", "replace") if isinstance(value, bytes) else value.item()
            for name, value in values.items()
        }


def jpeg(crop: NDArray[np.uint8], quality: int) -> bytes:
    """Encode ``[H, W, 3] uint8`` RGB as a JPEG file, colours at full resolution.

    Raises:
        DataError: it cannot be encoded.
    """
    from PIL import Image

    file = io.BytesIO()
    try:
        Image.fromarray(crop).save(file, "JPEG", quality=quality, subsampling=0)
    except (OSError, ValueError) as error:
        raise DataError(f"the image cannot become a JPEG: {in_one_line(error)}") from None
    return file.getvalue()


def _refusal(error: Any, timeout_ms: float) -> UpstreamError:
    """Return what a failed call means for the device."""
    status = str(error.status() or "").rpartition(".")[2]
    if status == "DEADLINE_EXCEEDED":
        return UpstreamError(f"no answer in {timeout_ms:.0f} ms", "timeout")
    if status == "UNAVAILABLE":
        return UpstreamError("cannot be reached", "unreachable")
    said = " ".join(str(error.message() or status).split())[:300]
    kind = "refused" if status == "INVALID_ARGUMENT" else "failed"
    return UpstreamError(f"{kind}: {said}", kind)
