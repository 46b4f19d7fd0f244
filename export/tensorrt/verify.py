"""Running engines just built on the bundle's own samples, where this machine can."""

from __future__ import annotations

from pathlib import Path

from lgvit_edge.bundle.directory import BUILD, open_bundle
from lgvit_edge.errors import BackendError, MissingDependency, ParityError
from lgvit_edge.machine.gpu import find_gpu
from lgvit_edge.runtime import Session, TensorRTOptions
from lgvit_edge.runtime.backends.tensorrt_engine import choose_build


def verify(folder: Path) -> tuple[float | None, str]:
    """Compare the engines in ``folder`` (``engines/<tag>`` of a bundle) with PyTorch's samples.

    Returns:
        The largest difference of logits, as ``Session.check_parity`` gives it, or None and why the
        engines could not be run here.

    Raises:
        ParityError: they compute something else; their record is gone, so that nobody loads them.
        BackendError: this machine should run them, and does not.
    """
    root, tag = folder.parent.parent, folder.name
    if find_gpu() is None:
        return None, "there is no NVIDIA GPU here"
    try:
        choose_build(open_bundle(root, verify=False), tag)
    except BackendError as error:  # compiled for another GPU than the one that happens to be here
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
