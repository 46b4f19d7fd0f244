"""Saves the logits of all exits and of the baseline on a bundle's samples, in float32.

    python tools/all_logits.py BUNDLE BACKEND FILE.npz

``tools/arm64.py`` runs it on this machine and on the emulated one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.runtime.samples import read_samples
from lgvit_edge.runtime.session import open_in_float32


def save_logits(bundle: Path, backend: str, file: Path) -> None:
    """Write ``logits`` and PyTorch's, ``torch``, ``[n, M + 2, C] float32``, and the ``parity``.

    The last row of ``M + 2`` is the baseline's. The parity is ``Session.check_parity``'s.
    """
    images, exits = read_samples(open_bundle(bundle))
    rows = []
    with open_in_float32(bundle, backend=backend) as session:
        for i in range(len(images)):
            image = images[i : i + 1]
            rows.append(
                np.concatenate([session.timed_exits(image)[0], session.baseline_logits(image)])
            )
        parity = session.check_parity()
    # PyTorch's final classifier is the baseline's.
    torch = np.concatenate([exits, exits[:, -1:]], axis=1)
    np.savez(file, logits=np.stack(rows), torch=torch, parity=parity)


if __name__ == "__main__":
    save_logits(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
