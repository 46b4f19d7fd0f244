"""Arrays of other libraries on the host; those on a GPU are in ``runtime/gpu_image_cases.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lgvit_edge.errors import DataError
from lgvit_edge.images.preprocess import as_rgb, check_several, network_input, several
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.runtime import Session

RNG = np.random.default_rng(0)


class Elsewhere:
    """An array of another kind of memory, by DLPack's number, though it lies on the host."""

    def __init__(self, kind: int, error: Exception | None = None) -> None:
        self.array, self.kind, self.error = RNG.integers(0, 256, (8, 9, 3), np.uint8), kind, error

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, 0

    def __dlpack__(self, **options: Any) -> Any:
        if self.error is not None:
            raise self.error
        return self.array.__dlpack__(**options)


@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize("shape", [(8, 9, 3), (8, 9, 4), (8, 9, 1), (8, 9)])
def test_a_tensor_is_what_its_numpy_array_is(shape: tuple[int, ...], color: str) -> None:
    tensor = torch.from_numpy(RNG.integers(0, 256, shape, np.uint8))
    found = as_rgb(tensor, color)
    np.testing.assert_array_equal(found, as_rgb(tensor.numpy(), color))
    assert np.shares_memory(found, tensor.numpy())  # nothing is copied


def test_planes_are_taken_as_a_view() -> None:
    planes = torch.from_numpy(RNG.integers(0, 256, (3, 8, 9), np.uint8))
    wanted = planes.numpy().transpose(1, 2, 0)
    np.testing.assert_array_equal(as_rgb(planes.permute(1, 2, 0)), wanted)
    for image in (planes, planes.numpy()):
        with pytest.raises(
            DataError, match=r"found uint8 \[3, 8, 9\]; move .*\.permute\(1, 2, 0\)"
        ):
            as_rgb(image)


@pytest.mark.parametrize("kind", [3, 11])
def test_page_locked_memory_is_on_the_host(kind: int) -> None:
    image = Elsewhere(kind)
    np.testing.assert_array_equal(as_rgb(image), image.array)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(8, 9, 3), r"found float32 \[8, 9, 3\]; scale .*\.to\(torch\.uint8\)"),
        (torch.zeros(8, 9, 3, dtype=torch.bfloat16), "cannot be viewed by NumPy: .* uint8"),
        (torch.zeros(0, 9, 3, dtype=torch.uint8), r"found uint8 \[0, 9, 3\]$"),
        (torch.zeros(8, 9, 3, device="meta"), "Tensor does not tell where it is: .*meta"),
        (Elsewhere(10), r"Elsewhere lies on a device, .*\.cpu\(\)"),
        (Elsewhere(2), r"Elsewhere lies on a device, .*\.get\(\)"),
        (SimpleNamespace(__cuda_array_interface__={}), r"lies on a device.*\.copy_to_host\(\)"),
        (Elsewhere(1, BufferError("no more")), "cannot be viewed by NumPy: BufferError: no more"),
    ],
)
def test_what_cannot_be_read_on_the_host(image: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_rgb(image)


def test_one_tensor_is_not_several_images() -> None:
    """Its rows would pass as grey images."""
    batch = torch.zeros(2, 8, 9, 3, dtype=torch.uint8)
    assert len(several(batch)) == 2
    for take in (several, check_several):
        take(batch)
        with pytest.raises(DataError, match=r"expected several .* found an array \[8, 9, 3\]"):
            take(batch[0])
    spec = Preprocess(resize=4)
    assert network_input(batch, spec, 4, "uint8").shape == (2, 4, 4, 3)  # type: ignore[arg-type]


def test_a_session_reads_tensors(bundle: Path) -> None:
    with Session.open(bundle) as session:
        side = session.manifest.passes[0].image_size
        images = [RNG.integers(0, 256, (side, side, 3), np.uint8) for _ in range(3)]
        wanted = [session.predict(image).confidence for image in images]
        tensor = torch.zeros(side, side, 3, dtype=torch.uint8)

        def frames() -> Iterator[torch.Tensor]:
            for image in images:
                tensor.copy_(torch.from_numpy(image))
                yield tensor  # one tensor for all, as a camera may do

        assert [result.confidence for result in session.stream(frames())] == wanted
        prepared = session.prepare([tensor])
        tensor.fill_(0)
        again = session.prepare([images[-1]])
        np.testing.assert_array_equal(prepared.of(0), again.of(0))
        batch = torch.from_numpy(np.stack(images))
        assert [r.confidence for r in session.predict_batch(batch)] == wanted  # type: ignore[arg-type]
