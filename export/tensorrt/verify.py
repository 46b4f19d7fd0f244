"""Checks new engines on the bundle's samples, where this machine can run them."""

from __future__ import annotations

from pathlib import Path

from lgvit_edge.bundle.directory import BUILD, open_bundle
from lgvit_edge.errors import BackendError, MissingDependency, ParityError
from lgvit_edge.machine.gpu import find_gpu
from lgvit_edge.runtime import Session, TensorRTOptions
from lgvit_edge.runtime.backends.tensorrt_engine import choose_build


def verify(folder: Path) -> tuple[float | None, str]:
    """Compare logits of the engines in ``folder`` (a bundle's ``engines/<tag>``) with PyTorch's.

    Returns:
        The largest difference of logits, as ``Session.check_parity`` gives it, or None and why the
        engines could not be run here.

    Raises:
        ParityError: they differ; the engines' record is deleted, so that they are not loaded.
        BackendError: this machine should run them, and does not.
    """
    root, tag = folder.parent.parent, folder.name
    if find_gpu() is None:
        return None, "there is no NVIDIA GPU here"
    try:
        choose_build(open_bundle(root, verify=False), tag)
    except BackendError as error:  # compiled for another GPU than the one here
        return None, str(error)
    try:
        session = Session.open(root, backend="tensorrt", tensorrt=TensorRTOptions(engines=tag))
    except MissingDependency as error:
        return None, str(error)
    try:
        with session:
            return session.check_parity(), ""
    except ParityError:
        (folder / BUILD).unlink()
        raise
