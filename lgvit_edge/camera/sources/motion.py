"""Tells which frames show something new, with OpenCV's background subtraction (MOG2)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.optional import require

_WIDTH = 160  # pixels of the small grey picture that is compared
_BEGINNING = 10  # frames that always pass, while the background is learnt
_AT_LEAST_EVERY = 5.0  # seconds: a still scene is not forgotten


class Motion:
    """Passes frames of one camera in which enough pixels differ from the background.

    The background is learnt from all frames, so what stays becomes part of it. The first 10 frames
    pass, and after 5 seconds without any the next one does.
    """

    def __init__(self, share: float) -> None:
        """Pass frames in which at least this share of the pixels changed, 0..1."""
        self._share, self._cv2 = share, require("cv2", extra="camera")
        self._background: Any = None
        self._size = (0, 0)
        self._seen, self._passed = 0, 0.0

    def passes(self, image: NDArray[np.uint8], moment: float) -> bool:
        """Return whether a frame, ``[H, W, 3] uint8``, is worth an answer; learns from it.

        ``moment`` is when it was taken, in seconds on any clock that only goes forward.
        """
        cv2, (height, width) = self._cv2, image.shape[:2]
        if self._size != (height, width):
            self._background = cv2.createBackgroundSubtractorMOG2(detectShadows=False)
            self._size, self._seen = (height, width), 0
        small = (min(_WIDTH, width), max(1, height * min(_WIDTH, width) // width))
        grey = cv2.cvtColor(
            cv2.resize(image, small, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY
        )
        changed = np.count_nonzero(self._background.apply(grey)) / grey.size
        self._seen += 1
        due = not 0 <= moment - self._passed < _AT_LEAST_EVERY
        if changed < self._share and self._seen > _BEGINNING and not due:
            return False
        self._passed = moment
        return True
