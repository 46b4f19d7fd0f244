"""Reads a bundle's samples: a few images, and the logits that PyTorch gave for them."""

from __future__ import annotations

import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.bundle.directory import Bundle
from lgvit_edge.bundle.plain_files import size_of
from lgvit_edge.errors import BundleError, in_one_line
from lgvit_edge.images.inputs import Inputs

_MAX_BYTES = 2**30  # five images of 2048 x 2048 in float32 have 250 MB


def read_samples(bundle: Bundle) -> tuple[Inputs, NDArray[np.float32]]:
    """Return network input for every pass, and logits ``[n, M + 1, C] float32``.

    Raises:
        BundleError: the file is missing, damaged, too large, or not of this bundle.
    """
    manifest = bundle.manifest
    path = bundle.path(manifest.parity.samples)
    try:
        # Checked first: a small archive may unpack to many gigabytes.
        most = min(size_of(path), _MAX_BYTES)
        with zipfile.ZipFile(path) as archive:
            if (size := sum(entry.file_size for entry in archive.infolist())) > most:
                raise ValueError(f"expected at most {most} bytes inside, found {size}")
        with np.load(path, allow_pickle=False) as samples:
            names = [images_name(index) for index in range(len(manifest.passes))]
            images, logits = [samples[name] for name in names], samples["logits"]
        for name, array, each in zip(names, images, manifest.passes, strict=True):
            _check(array, manifest.input, each.segments[0].spec.inputs[0].shape[1:], name)
        _check(logits, "float32", (len(manifest.segments), manifest.num_classes), "logits")
        if any(len(array) != len(logits) for array in images):
            raise ValueError(f"expected as many logits as images, found {len(logits)}")
    except Exception as error:  # zipfile, zlib and NumPy raise many kinds
        raise BundleError(
            f"{path} holds no samples of this bundle ({in_one_line(error)}); copy the bundle again "
            "or export it again"
        ) from None
    return Inputs(manifest.views, images), logits


def images_name(index: int) -> str:
    """Return the name, in the file of samples, of the images of the pass of this index."""
    return f"images_{index + 1}"


def _check(array: NDArray[Any], dtype: str, shape: tuple[int, ...], name: str) -> None:
    if array.dtype != dtype or array.shape[1:] != shape or not len(array):
        raise ValueError(
            f"expected {name} of {dtype} {['n', *shape]}, found {array.dtype} {list(array.shape)}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"expected finite {name}, found NaN or infinity")
