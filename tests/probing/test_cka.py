"""Linear CKA: a second implementation, its invariances, minibatches."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lgvit_edge.errors import UsageError
from lgvit_edge.probing.cka import Cka, centred_gram

Floats = NDArray[np.float64]


def features(n: int, width: int, seed: int) -> Tensor:
    """Large means and unequal scales, as the features of networks have."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, width)) * rng.exponential(size=width) + 5 * rng.normal(size=width)
    return torch.from_numpy(values)


def linear_cka(x: Tensor, y: Tensor) -> float:
    """CKA of two sets of features ``[n, ...]`` of the same images, in one minibatch."""
    cka = Cka()
    cka.add({0: centred_gram(x), 1: centred_gram(y)})
    return float(cka.matrix()[0, 1])


def hsic_by_tuples(k: Floats, l: Floats) -> float:  # noqa: E741 - as in the paper
    """HSIC as the mean over all four different images (Song et al. 2012, Eq. 3)."""
    n, total = len(k), 0.0
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])
    return total / (n * (n - 1) * (n - 2) * (n - 3))


def hsic_by_traces(k: Floats, l: Floats) -> float:  # noqa: E741
    """HSIC_1 in the closed form of Nguyen et al. 2020, Eq. 3."""
    n, one = len(k), np.ones(len(k))
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    means = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return float((np.trace(k @ l) + means - 2 / (n - 2) * one @ k @ l @ one) / (n * (n - 3)))


@pytest.mark.parametrize(("hsic", "n"), [(hsic_by_tuples, 7), (hsic_by_traces, 60)])
def test_agrees_with_a_second_implementation(hsic: object, n: int) -> None:
    x, y = features(n, 5, 0), features(n, 9, 1)
    y[:, :3] += x[:, :3]
    k, l = (v.numpy() @ v.numpy().T for v in (x, y))  # noqa: E741
    expected = hsic(k, l) / math.sqrt(hsic(k, k) * hsic(l, l))  # type: ignore[operator]
    assert linear_cka(x, y) == pytest.approx(expected, abs=1e-9)
    assert linear_cka(x.float(), y.float()) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("n", [4, 7, 32, 50, 100, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_the_same_for_all_images_has_no_cka(n: int, dtype: torch.dtype) -> None:
    varied = features(n, 12, 9).to(dtype)
    for seed in range(20):
        one, other = (features(1, 9, s).to(dtype).expand(n, 9) for s in (seed, seed + 100))
        assert math.isnan(linear_cka(one, other)) and math.isnan(linear_cka(one, varied))
    # Features that vary little count all the same, beside ones that do not at all.
    little = torch.cat([1000 + 0.01 * varied, one], dim=1)
    assert linear_cka(little, varied) > 0.99


def test_turning_scaling_and_moving_change_nothing() -> None:
    x, y = features(50, 8, 0), features(50, 12, 1)
    y[:, :8] += x
    turn = torch.linalg.qr(features(12, 12, 2))[0]
    before = linear_cka(x, y)
    assert 0.05 < before < 0.95
    assert linear_cka(x, y @ turn) == pytest.approx(before, abs=1e-9)
    assert linear_cka(x, 300 * y) == pytest.approx(before, abs=1e-9)
    assert linear_cka(x, y + features(1, 12, 3)) == pytest.approx(before, abs=1e-9)
    assert linear_cka(y, y @ turn) == pytest.approx(1, abs=1e-9)


def test_an_invertible_map_that_stretches_changes_it() -> None:
    x = features(50, 8, 0)
    stretch = torch.diag(torch.tensor([50.0, *[1.0] * 7], dtype=torch.float64))
    assert linear_cka(x, x @ stretch) < 0.95


def test_random_features_have_nothing_in_common_however_few_images() -> None:
    rng = np.random.default_rng(0)
    found = [
        linear_cka(*(torch.from_numpy(rng.normal(size=(10, 100))) for _ in range(2)))
        for _ in range(200)
    ]
    # The estimate with a bias is near 1 for ten images of a hundred features.
    assert abs(np.mean(found)) < 0.02


def test_a_stage_is_like_itself_and_the_matrix_is_symmetric() -> None:
    cka = Cka()
    for seed in range(3):
        stages = {"a": features(20, 6, seed), "b": features(20, 30, seed + 9)}
        stages["c"] = stages["a"] + 0.1 * stages["b"][:, :6]
        cka.add({name: centred_gram(stage) for name, stage in stages.items()})
    matrix = cka.matrix()
    assert cka.stages == ("a", "b", "c") and (cka.images, cka.batches) == (60, 3)
    assert np.allclose(np.diag(matrix), 1, atol=1e-12) and np.array_equal(matrix, matrix.T)


def test_minibatches_of_64_are_within_one_percent_of_all_images_at_once() -> None:
    """On features whose spectrum falls as those of networks do; docs/probing.md has real ones."""
    n, rng = 3200, np.random.default_rng(0)
    causes = rng.normal(size=(n, 40)) / np.sqrt(1 + np.arange(40))
    x = torch.from_numpy(causes @ rng.normal(size=(40, 60)))
    y = torch.from_numpy(np.tanh(causes @ rng.normal(size=(40, 80))))
    whole, cka = linear_cka(x, y), Cka()
    for start in range(0, n, 64):
        part = slice(start, start + 64)
        cka.add({"x": centred_gram(x[part]), "y": centred_gram(y[part])})
    assert cka.matrix()[0, 1] == pytest.approx(whole, rel=0.01)


def test_features_that_never_change_have_no_cka() -> None:
    x = features(10, 4, 0)
    cka = Cka()
    cka.add({"x": centred_gram(x), "same": centred_gram(torch.ones(10, 3))})
    matrix = cka.matrix()
    assert matrix[0, 0] == pytest.approx(1) and np.isnan(matrix[1]).all()
    assert np.isnan(linear_cka(x, x * float("inf")))


def test_wrong_use_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 4 images, found 3"):
        centred_gram(torch.ones(3, 2))
    with pytest.raises(UsageError, match="at least 4 images, found none"):
        Cka().matrix()
    cka = Cka()
    cka.add({"x": centred_gram(features(5, 2, 0))})
    with pytest.raises(UsageError, match="expected the same 1 stages in every minibatch"):
        cka.add({"y": centred_gram(features(5, 2, 0))})
