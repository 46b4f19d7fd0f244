"""Runs all segments as one CUDA graph, in which the device decides where an image stops.

Experimental: no GPU has run this. The graph is flat: segment 0, its decision, a conditional node
with segment 1, its decision, a conditional node with segment 2, and so on. A decision is a kernel
(``cuda/kernels/exit.cu``) that compares one exit's logits with the threshold. The host launches the
graph once, and reads each exit's logits as soon as they are there, while the device goes on.

The host decides too, and its word stands. The device's decision only keeps the device from waiting
for the host's. Rounding may let the two differ. If the device stopped too early, the host launches
the next segment; if it went on, nobody reads what it computes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.errors import BackendError
from lgvit_edge.machine.gpu import Gpu
from lgvit_edge.policies import Rule
from lgvit_edge.policies.scores import ENTROPY, PROBABILITY, difference
from lgvit_edge.runtime.cuda.api import Cuda

_OLDEST_CUDA = (12, 6)  # see ``cuda.graphs``
_NEAR = 1e-3  # a score this near to a threshold may be rounded to either side of it
_ONE, _THREADS = (1, 1, 1), (128, 1, 1)
_RULE = np.dtype([("threshold", "f4"), ("scale", "f4"), ("low_is_sure", "i4"), ("unused", "i4")])
_ANSWER = np.dtype([("launch", "u4"), ("goes_on", "u4")])


def check_supported(device: Gpu, max_batch: int, passes: int) -> None:
    """Refuse what can never work here.

    Raises:
        BackendError: the driver is too old, batches may vary, or there are several passes, of
            which the host resizes the images.
    """
    without = "or open the session without --device-exit, or TensorRTOptions(device_exit=True)"
    if tuple(map(int, device.driver.split("."))) < _OLDEST_CUDA:
        raise BackendError(
            f"exits on the device need a driver for CUDA 12.6 or newer, found {device.driver}; "
            f"update it (on a Jetson: JetPack 6.1 or newer), {without}"
        )
    if max_batch > 1:
        raise BackendError(
            "exits on the device are for bundles of one image at a time, found batches of up to "
            f"{max_batch}; export with --batch 1, {without}"
        )
    if passes > 1:
        raise BackendError(
            f"exits on the device are for bundles of one pass, found {passes} passes; export one "
            f"network, {without}"
        )


def check_decisions(
    run: Callable[[NDArray[Any], Rule | None], tuple[NDArray[np.float32], int]],
    images: NDArray[Any],
    tolerance: float,
) -> None:
    """Compare the device's logits and decisions with the host's, image by image.

    ``run`` takes one image, and a rule for the device, or None to run it without the device's
    decisions. It returns all logits ``[M + 1, C]``, and the segment at which the device stopped. Of
    the rules tried, one never stops, one always does, and two do at about half of the exits.

    Raises:
        BackendError: they differ by more than ``tolerance``, or it stopped elsewhere.
    """
    rows = [images[i : i + 1] for i in range(len(images))]
    expected = np.stack([run(row, None)[0] for row in rows])
    exits = expected.shape[1] - 1
    plain = (1.0,) * exits
    rules = [Rule(PROBABILITY, (bound,) * exits, plain) for bound in (2.0, -1.0)]
    for measure in (PROBABILITY, ENTROPY):
        scores = measure.of(expected[:, :exits].reshape(-1, expected.shape[-1]))
        rules.append(Rule(measure, (_between(scores),) * exits, plain))
    for rule in rules:
        for row, logits in zip(rows, expected, strict=True):
            found, stopped = run(row, rule)
            if not (gap := difference(found, logits)) <= tolerance:
                raise BackendError(
                    f"its logits differ by {gap:.3g} from the host's, tolerance {tolerance:g}"
                )
            scores = rule.measure.of(logits[:exits])
            surer = np.array([rule.measure.sureness(score) for score in scores])
            surer -= rule.measure.sureness(rule.thresholds[0])
            wanted = int(np.argmax([*(surer > 0), True]))
            if stopped != wanted and np.abs(surer).min() > _NEAR:
                raise BackendError(f"it stopped at exit {stopped + 1}, expected {wanted + 1}")


def _between(scores: NDArray[np.float32]) -> float:
    """Return the middle of the widest gap amid the scores; a single score is returned itself."""
    ordered = np.sort(scores)
    middle = ordered[len(ordered) // 4 : 3 * len(ordered) // 4 + 1]
    widest = int(np.argmax([*np.diff(middle), 0]))
    return float(middle[widest : widest + 2].mean())


class _Exit(ctypes.Structure):
    """The kernel's parameter, ``struct Exit``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("logits", "copy", "rule", "answer", "state")),
        ("next", ctypes.c_ulonglong),
        *((name, ctypes.c_int) for name in ("classes", "first", "last")),
    ]


class DeviceExit:
    """Launches the graph of all segments, and reads what the device computed and decided.

    Segments are numbered from 0.

    Attributes:
        logits: ``[M + 1, 1, C] float32``; those of a segment are there once it is ``told``.
    """

    def __init__(
        self, cuda: Cuda, segments: Sequence[ctypes.c_void_p], logits: Sequence[int], classes: int
    ) -> None:
        """Put the graph together and make it ready.

        Args:
            cuda: the device.
            segments: a recorded graph of each segment; they are copied.
            logits: the address of each segment's logits on the device.
            classes: how many logits there are.

        Raises:
            BackendError: the driver refuses, or a segment holds what no conditional node may.
        """
        self._cuda, count = cuda, len(segments)
        self._rules, rules = cuda.mapped((count,), _RULE)
        self._answers, answers = cuda.mapped((count,), _ANSWER)
        self.logits, copies = cuda.mapped((count, 1, classes), np.float32)
        nothing = cuda.pinned((2,), np.uint32)
        state = cuda.allocate(nothing.nbytes)
        kernel = cuda.kernel("exit", "decide_exit")
        exits = [
            _Exit(
                logits=logits[i],
                copy=copies + i * classes * 4,
                rule=rules + i * _RULE.itemsize,
                answer=answers + i * _ANSWER.itemsize,
                state=state,
                classes=classes,
                first=i == 0,
                last=i == count - 1,
            )
            for i in range(count)
        ]
        cuda.upload(state, nothing.ctypes.data, nothing.nbytes)
        # The driver may load a kernel when it first runs. The state is 0, so it does nothing.
        cuda.run(kernel, _ONE, _THREADS, exits[-1])
        cuda.synchronize()
        parts = cuda.graph_in_parts()
        try:
            parts.add_graph(segments[0])
            for exit, segment in zip(exits, [*segments[1:], None], strict=True):
                if segment is not None:
                    exit.next = parts.condition()
                parts.add_kernel(kernel, _ONE, _THREADS, exit)
                if segment is not None:
                    parts.add_if(exit.next, segment)
        except BaseException:
            cuda.discard(parts.graph)
            raise
        self._graph = cuda.runnable(parts.graph)
        self._launch = self._answers["launch"]
        self._launches = 0

    def follow(self, rule: Rule) -> bool:
        """Let the device decide by this rule; return False where it cannot compute the measure."""
        if rule.measure not in (PROBABILITY, ENTROPY):
            return False
        low = rule.measure == ENTROPY
        for i, (threshold, scale) in enumerate(zip(rule.thresholds, rule.scales, strict=True)):
            self._rules[i] = (threshold, scale, low, 0)
        return True

    def launch(self) -> None:
        """Queue all segments.

        Host and device count launches, each for itself. An answer with another number is old.
        """
        # Counted first: if this is interrupted, an old answer must not have the new number.
        self._launches += 1
        try:
            self._cuda.launch(self._graph)
        except BackendError:
            self._launches -= 1  # nothing was queued, so the device counts none either
            raise

    def recount(self) -> None:
        """Take the number of launches from the device, once it has run all of them."""
        self._launches = int(self._launch[0])  # every launch decides about the first exit

    def told(self, segment: int) -> bool:
        """Return whether the device has written a segment's answer since the last launch."""
        # The device writes the logits, then the answer, then this number. The host reads the number
        # first. A processor may load ahead of time, but by fewer instructions than Python runs
        # between the two reads.
        return bool(self._launch[segment] == self._launches & 0xFFFFFFFF)  # 32 bits on the device

    def goes_on(self, segment: int) -> bool:
        """Return whether the device runs the next segment, once ``told``."""
        return bool(self._answers[segment]["goes_on"])
