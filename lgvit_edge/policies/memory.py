"""Memory: what a camera's frames looked like before, so that answers are averaged over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.numbers import real, whole
from lgvit_edge.errors import UsageError
from lgvit_edge.policies.scores import Floats, confidence, log_softmax

LONGEST = 1000  # frames of a window
LIFETIME = 5.0  # seconds
_SURE = 0.9  # probability above which an exit's own class overrules what was before

Classes = tuple[str, ...] | int  # their names, or how many there are where they have none


@dataclass(frozen=True)
class _State:
    logs: Floats  # averaged log-probabilities, ``[C]``
    best: int  # the likeliest class
    weight: float  # sum of the weights of the frames in it, the newest frame's being 1
    frames: int
    start: float  # of the newest frame
    classes: Classes


class Memory:
    """Remembers the frames of one camera: their log-probabilities, averaged with fading weights.

    Give the same object to ``Session.run`` or ``Session.predict`` with every frame of a camera, or
    of a region of it. At each exit the frame's log-probabilities are averaged with those that the
    frames before it left with: the policy decides on the average, and class and confidence are the
    average's. It becomes the memory.

    A frame that is k frames old weighs ``w ** k``, with ``w = 1 - 2 / (window + 1)``. Before the
    first frame, and ``lifetime`` seconds after the newest, nothing is remembered. Where an exit is
    sure of another class (above 90 %), it is believed, and the frames before are forgotten.

    A session changes it when it returns results, and only then.

    Attributes:
        window: frames that count, about: w is that of an exponential moving average over so many.
        lifetime: seconds after which the newest frame no longer counts.
    """

    def __init__(self, window: int = 8, *, lifetime: float = LIFETIME) -> None:
        """Remember nothing yet.

        Raises:
            UsageError: the window is not a whole number in 2..1000, or the lifetime not positive.
        """
        self.window = whole("window", window)
        if not 2 <= window <= LONGEST:
            raise UsageError(f"a window must be 2..{LONGEST} frames, found {window}")
        if not 0 < real(lifetime) < math.inf:
            raise UsageError(f"lifetime must be a positive number of seconds, found {lifetime!r}")
        self.lifetime = float(lifetime)
        self._fade = 1 - 2 / (window + 1)
        self._state: _State | None = None

    @property
    def frames(self) -> int:
        """How many frames are in it, since it last forgot."""
        return 0 if self._state is None else self._state.frames

    def forget(self) -> None:
        """Forget all frames, as where the camera was moved or lost."""
        self._state = None

    def _at(self, start: float) -> _State | None:
        """Returns what counts for a frame that began then, a ``time.perf_counter()``."""
        state = self._state
        # An older frame than the newest is from another time too.
        return state if state and 0 <= start - state.start <= self.lifetime else None

    def __repr__(self) -> str:
        return f"Memory({self.window}, lifetime={self.lifetime:g})"


class Averages:
    """Averages a batch's logits with the memories that its images came with.

    Log-probabilities are on the scale of the final classifier's logits (``Tracker.scale``), so that
    exits of different temperatures can be averaged, and policies may change between frames.
    """

    def __init__(
        self, memories: Sequence[Memory | None], starts: Sequence[float], classes: Classes
    ) -> None:
        """Look at what is remembered; the memories are not changed before ``keep``.

        Args:
            memories: of each image; None for an image on its own.
            starts: when each image's frame began.
            classes: of the logits.

        Raises:
            UsageError: a memory is of other classes.
        """
        count = classes if isinstance(classes, int) else len(classes)
        self._memories, self._starts, self._classes = memories, starts, classes
        self._states = [
            None if memory is None else memory._at(start)
            for memory, start in zip(memories, starts, strict=True)
        ]
        # The average is ``logits * rest + older``, in which rows without a memory stay as they are.
        self._rest = np.ones((len(memories), 1), np.float32)
        self._older = np.zeros((len(memories), count), np.float32)
        self._best = np.full(len(memories), -1)
        self._alone = np.ones(len(memories), np.bool_)  # not averaged at the exit last seen
        self._next: dict[int, _State] = {}  # by row
        for row, (memory, state) in enumerate(zip(memories, self._states, strict=True)):
            if memory is None or state is None:
                continue
            if state.classes is not classes and state.classes != classes:
                raise UsageError(
                    "a memory is of frames that were told apart into other classes; forget() it, "
                    "or take one for each bundle"
                )
            older = memory._fade * state.weight
            self._rest[row] = 1 / (1 + older)
            self._older[row] = np.float32(older / (1 + older)) * state.logs
            self._best[row] = state.best
        self._known = self._best >= 0

    def mix(self, rows: NDArray[np.intp], logits: Floats, scale: float) -> Floats:
        """Returns the logits that decide and answer, ``[len(rows), C]``, given an exit's own.

        ``scale`` is the exit's. Rows without a memory, and those that overrule it, stay as they
        are.
        """
        # This runs between two segments. Logits need not be made log-probabilities first: that
        # would add the same to all classes.
        rest, older, best, known = self._rest, self._older, self._best, self._known
        if len(rows) < len(known):
            rest, older, best, known = rest[rows], older[rows], best[rows], known[rows]
        mixed = logits * rest
        mixed += older if scale == 1.0 else older / np.float32(scale)
        self._alone[rows] = ~known
        other = np.flatnonzero(known & (logits.argmax(axis=-1) != best))
        if len(other):
            sure = other[confidence(logits[other] * np.float32(scale)) > _SURE]
            mixed[sure] = logits[sure]
            self._alone[rows[sure]] = True
        return mixed

    def take(self, rows: NDArray[np.intp], logits: Floats, scale: float) -> None:
        """Takes the logits that rows leave with, as ``mix`` returned them, ``[len(rows), C]``."""
        for row, logs in zip(rows.tolist(), log_softmax(logits * np.float32(scale)), strict=True):
            memory, state = self._memories[row], self._states[row]
            if memory is None:
                continue
            weight, frames = 1.0, 1
            if state is not None and not self._alone[row]:
                weight, frames = 1 + memory._fade * state.weight, state.frames + 1
            best, start = int(logs.argmax()), self._starts[row]
            self._next[row] = _State(logs, best, weight, frames, start, self._classes)

    def keep(self) -> None:
        """Changes the memories to what was taken, once all images have their results."""
        for row, state in self._next.items():
            memory = self._memories[row]
            assert memory is not None
            memory._state = state
