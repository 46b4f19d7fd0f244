"""``Upstream``: a device's way to the Triton that goes on with what it began."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.numbers import positive
from lgvit_edge._support.optional import require
from lgvit_edge.errors import UpstreamError, UsageError, in_one_line
from lgvit_edge.serving.breaker import Breaker
from lgvit_edge.serving.contract import ENCODED, HIDDEN, IDENTITY, OUTPUTS, POLICY, SEGMENT

T = TypeVar("T")
NOT_ASKED = "not asked after failures"
_EXTRA = "upstream"
_URL = re.compile(r"tritons?://([^/\s]+:[0-9]{1,5})/([A-Za-z0-9][A-Za-z0-9_.-]{0,63})")
_REPLY = 65_536  # bytes
_TRIED, _RECENT = 32, 10.0  # requests whose times count, and for how many seconds
_CHANNEL = [
    ("grpc.max_receive_message_length", _REPLY),
    # Whoever tries again decides when; a connection does not wait on its own.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),  # else a new channel would take the old connection
]
_HURRIED = 3  # requests in a row that got little time and no answer: the connection may be dead


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
        """Name the server; nothing is sent before the first ``ask``.

        Args:
            url: ``triton://HOST:PORT/MODEL``, of Triton's gRPC port; ``tritons://`` for TLS.
            timeout_ms: how long a request may take.
            certificates: (TLS) file in PEM with the certificates to trust; None for the system's.
            breaker: decides when a failing server is asked again.

        Raises:
            UsageError: an argument is none, or the file holds no certificate.
            OSError: ``certificates`` cannot be read.
            MissingDependency: tritonclient is not installed.
        """
        if not (found := _URL.fullmatch(url)) or int(found[1].rpartition(":")[2]) > 65_535:
            raise UsageError(
                "expected triton://HOST:PORT/MODEL with Triton's gRPC port, such as "
                f"triton://10.0.0.5:8001/lgvit, or tritons:// for TLS; found {url!r:.200}"
            )
        self.url, self.breaker = url, breaker or Breaker()
        self.timeout_ms = positive("the server's time in ms", timeout_ms)
        self._host, self._model = found.groups()
        self._library = require("tritonclient.grpc", extra=_EXTRA)
        self._credentials = self._trusted(certificates)
        self._times: deque[tuple[float, float]] = deque(maxlen=_TRIED)  # when, and how many ms
        self._client: Any = None
        self._lock, self._closed = threading.Lock(), False
        self._hurried = 0

    @property
    def expected_ms(self) -> float:
        """How long a request takes: the 90th percentile of the last 10 s; 0 if there was none."""
        since = time.monotonic() - _RECENT
        times = sorted(ms for when, ms in tuple(self._times) if when > since)
        return times[int(0.9 * (len(times) - 1))] if times else 0.0

    def ask(
        self, rest: Rest, read: Callable[[dict[str, Any]], T], timeout_ms: float | None = None
    ) -> T:
        """Send one image, and return what ``read`` makes of the outputs (``contract.OUTPUTS``).

        ``read`` gets them by name, and raises ``UpstreamError`` where they cannot be.

        Raises:
            UpstreamError: there is no answer, or none that can be used.
        """
        most = self.timeout_ms if timeout_ms is None else min(timeout_ms, self.timeout_ms)
        if (ticket := self.breaker.asks()) is None:
            raise UpstreamError(NOT_ASKED, "paused")
        begun, client = time.monotonic(), None
        good: bool | None = False
        try:
            client = self._connected()
            answer = read(self._infer(client, rest, most))
            good = True
        except UpstreamError as error:
            # A server that was given less time than usual has not failed.
            good = None if error.kind == "timeout" and most < self.timeout_ms else False
            raise
        finally:
            if good is not False:
                self._times.append((time.monotonic(), (time.monotonic() - begun) * 1e3))
            self._hurried = self._hurried + 1 if good is None else 0
            if self.breaker.ended(ticket, good) or self._hurried >= _HURRIED:
                self._hurried = 0
                self._leave(client)
        return answer

    def close(self) -> None:
        """End the connection; what waits for an answer gets an error."""
        with self._lock:
            self._closed = True
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def __enter__(self) -> Upstream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _trusted(self, certificates: str | Path | None) -> Any:
        """Return what gRPC needs for TLS; None without."""
        if not self.url.startswith("tritons:"):
            if certificates is not None:
                raise UsageError("certificates are for tritons://, found triton://")
            return None
        trusted = None if certificates is None else Path(certificates).read_bytes()
        if trusted is not None and b"-----BEGIN CERTIFICATE-----" not in trusted:
            raise UsageError(f"expected certificates in PEM, found none in {certificates}")
        return require("grpc", extra=_EXTRA).ssl_channel_credentials(trusted)

    def _connected(self) -> Any:
        with self._lock:
            if self._closed:
                raise UpstreamError("the way to the server is closed")
            if self._client is None:
                self._client = self._library.InferenceServerClient(
                    self._host, creds=self._credentials, channel_args=_CHANNEL
                )
            return self._client

    def _leave(self, client: Any) -> None:
        """Take a new connection next time. The old one ends with the last request that uses it."""
        with self._lock:
            if client is self._client:
                self._client = None

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
        except library.InferenceServerException as error:
            raise _refusal(error, timeout_ms) from None
        except Exception as error:  # as where another thread closes the connection
            raise UpstreamError(f"cannot be asked: {in_one_line(error)}") from None
        values = {}
        for output in OUTPUTS:
            try:
                array = reply.as_numpy(output.name)
            except Exception as error:  # tritonclient trusts sizes and types that a reply claims
                raise UpstreamError(f"a reply that cannot be read: {in_one_line(error)}") from None
            if array is None or (array.shape, str(array.dtype)) != ((1, 1), output.dtype):
                raise UpstreamError(f"a reply without one {output.name}")
            value = array[0, 0]
            text = isinstance(value, bytes)
            values[output.name] = value.decode("utf-8", "replace") if text else value.item()
        return values


def _refusal(error: Any, timeout_ms: float) -> UpstreamError:
    """Return what a failed call means for the device."""
    status = str(error.status() or "").rpartition(".")[2]
    said = " ".join(str(error.message() or status).split())[:300]
    if status == "DEADLINE_EXCEEDED":
        return UpstreamError(f"no answer in {timeout_ms:.0f} ms", "timeout")
    if status == "UNAVAILABLE":
        return UpstreamError(f"cannot be reached: {said}", "unreachable")
    kind = "refused" if status in ("INVALID_ARGUMENT", "NOT_FOUND") else "failed"
    return UpstreamError(f"{kind}: {said}", kind)
