"""The analysis of answers: figures worked out by hand, and another library's."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lgvit_edge.policies.calibration import calibration_errors
from lgvit_edge.policies.evaluate import Images
from lgvit_edge.policies.scores import confidence
from lgvit_edge.probing import analysis
from lgvit_edge.probing.analysis import Answers, analysed, auroc, correlation
from lgvit_edge.probing.looks import looks_of

# Six images, two exits and the final classifier, classes 0 and 1. By image: right all along, only
# late, only early, never, right in the middle alone, right all along.
CLASSES = np.array([[0, 0, 0], [1, 1, 0], [0, 1, 1], [1, 1, 1], [0, 1, 0], [1, 1, 1]])
LABELS = np.array([0, 0, 0, 0, 1, 1])
SURE = np.array([[0.9] * 3, [0.6] * 3, [0.8] * 3, [0.7] * 3, [0.6] * 3, [0.95] * 3], np.float32)
EXITS = np.array([1, 3, 1, 2, 3, 1])


def answers(labels: NDArray[np.int64] | None = LABELS) -> Answers:
    given = CLASSES[np.arange(6), EXITS - 1]
    return Answers(CLASSES, SURE, EXITS, given, (4, 8, 12), labels)


def test_going_on_mends_and_spoils() -> None:
    thought = analysis.overthinking(answers().right, (4, 8, 12))
    # Image 2 is right early and wrong at the end, image 4 right in between.
    assert thought["destructive"] == pytest.approx(2 / 6)
    assert thought["wasteful"] == pytest.approx(2 / 6)
    assert thought["oracle_accuracy"] == pytest.approx(5 / 6)
    assert thought["oracle_mean_block"] == pytest.approx((4 + 12 + 4 + 12 + 8 + 4) / 6)
    assert thought["spoilt_by_exit"] == pytest.approx([1 / 6, 1 / 6])
    assert thought["mended_by_exit"] == pytest.approx([1 / 6, 1 / 6])


def test_exits_agree_as_counted() -> None:
    matrix = analysis.agreement(CLASSES)
    assert np.array_equal(matrix, matrix.T) and np.all(np.diag(matrix) == 1)
    assert matrix[0, 1] == pytest.approx(4 / 6) and matrix[1, 2] == pytest.approx(4 / 6)


def test_each_class_has_its_safe_exit() -> None:
    first, second = analysis.class_rows(answers(), ("cat", "dog"))
    assert (first["name"], first["images"], second["name"]) == ("cat", 4, "dog")
    assert first["accuracy"] == pytest.approx([0.5, 0.25, 0.5])
    assert first["safe_exit"] == 1 and first["drop"] == 0
    # Of its four images, one is lost at exit 1 and one won; half an image more in each case.
    assert first["drop_error"] == pytest.approx((1.5 + 1.5) ** 0.5 / 6)
    assert second["accuracy"] == pytest.approx([0.5, 1, 0.5])
    assert second["shares"] == pytest.approx([0.5, 0, 0.5])
    assert second["mean_block"] == 8 and second["policy_accuracy"] == 0.5


@pytest.mark.parametrize(("count", "error"), [(1, 1 / 3), (5, 1 / 7), (98, 0.01)])
def test_few_images_leave_a_large_error_though_all_are_right(count: int, error: float) -> None:
    zeros = np.zeros(count, int)
    same = Answers(
        np.zeros((count, 3), int),
        np.ones((count, 3), np.float32),
        zeros + 1,
        zeros,
        (4, 8, 12),
        zeros,
    )
    (row,) = analysis.class_rows(same, ("cat",))
    assert (row["safe_exit"], row["drop"], row["drop_error"]) == (1, 0, pytest.approx(error))


@pytest.mark.parametrize(("last", "early", "safe"), [(7, 6, 1), (13, 12, 1), (13, 11, 3)])
def test_exactly_one_point_less_is_safe(last: int, early: int, safe: int) -> None:
    classes = np.ones((100, 3), int)
    classes[:early, :2], classes[:last, 2] = 0, 0
    ones, zeros = np.ones((100, 3), np.float32), np.zeros(100, int)
    (row,) = analysis.class_rows(Answers(classes, ones, zeros + 3, zeros, (4, 8, 12), zeros), ())
    assert row["safe_exit"] == safe


def test_images_of_one_value_are_in_one_part() -> None:
    count = 40
    exits = np.repeat([1, 2, 3, 3], 10)  # in the order of the folders
    same = Answers(
        np.zeros((count, 3), int),
        np.ones((count, 3), np.float32),
        exits,
        np.zeros(count, int),
        (4, 8, 12),
        None,
    )
    values = np.full(count, 100.0)
    values[0] = 50.0
    parts = analysis.look_row("pixels", values, same)["parts"]
    assert [(part["from"], part["to"]) for part in parts] == [(50, 50), (100, 100)]
    assert parts[1]["mean_block"] == pytest.approx(same.depth[1:].mean())
    spread = analysis.look_row("pixels", np.arange(40.0), same)["parts"]
    assert [part["mean_block"] for part in spread] == [4, 8, 12, 12]


def test_a_class_that_only_the_end_gets_right_is_safe_there() -> None:
    late = Answers(
        np.array([[1, 1, 0]] * 4), SURE[:4], EXITS[:4], np.zeros(4, int), (4, 8, 12), LABELS[:4]
    )
    (row,) = analysis.class_rows(late, ())
    assert (row["name"], row["safe_exit"], row["drop"]) == ("0", 3, 0)


def test_auroc_and_ranks_agree_with_another_library() -> None:
    stats = pytest.importorskip("scipy.stats")
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 20, 300) / 20  # many are equal
    right = rng.random(300) < scores
    assert auroc(scores, right) == pytest.approx(metrics.roc_auc_score(right, scores))
    other = scores + rng.integers(0, 3, 300)
    assert correlation(scores, other) == pytest.approx(stats.spearmanr(scores, other).statistic)
    assert np.array_equal(analysis.ranks(other), stats.rankdata(other))


def test_what_is_not_defined_is_none() -> None:
    assert auroc(np.array([0.5, 0.6]), np.array([True, True])) is None
    assert auroc(np.array([0.5, 0.6]), np.array([False, False])) is None
    assert correlation(np.ones(3), np.arange(3)) is None
    assert analysis.look_row("pixels", np.ones(6), answers())["parts"] is None


def test_calibration_is_that_of_tuning() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, 3, 4)).astype(np.float32) * 3
    labels = rng.integers(0, 4, 200)
    classes = logits.argmax(-1)
    ones = np.ones(200, np.int64)
    found = Answers(classes, confidence(logits), ones, classes[:, 0], (1, 2, 3), labels)
    errors = [row["calibration_error"] for row in analysis.exit_rows(found)]
    expected = calibration_errors(Images(logits, labels), (1.0, 1.0))
    assert errors[:2] == pytest.approx(expected, abs=1e-6)
    bins = analysis.exit_rows(found)[0]["calibration"]
    assert sum(part["images"] for part in bins) == 200
    gap = sum(part["images"] * abs(part["confidence"] - part["accuracy"]) for part in bins)
    assert gap / 200 == pytest.approx(errors[0])


def test_easy_images_are_sure_and_right() -> None:
    order = np.argsort(-analysis.easiness(answers()))
    assert list(order[:2]) == [5, 0] and order[-1] == 3
    assert np.argsort(-analysis.easiness(answers(None)))[-1] in (1, 4)  # the least sure ones


def test_depth_goes_with_what_images_look_like() -> None:
    sharpness = np.array([1.0, 9, 2, 5, 8, 3])
    row = analysis.look_row("sharpness", sharpness, answers())
    assert row["correlation"] > 0.9
    blocks = [part["mean_block"] for part in row["parts"]]
    assert blocks == sorted(blocks) and len(blocks) == 4
    assert row["parts"][0]["from"] == 1 and row["parts"][-1]["to"] == 9


def test_without_labels_what_needs_them_is_none() -> None:
    record = analysed(answers(None), (), {"brightness": np.arange(6.0)})
    assert record["overthinking"] is None and record["classes"] is None
    assert record["policy"]["accuracy"] is None and record["policy"]["mean_block"] == 22 / 3
    assert {row["accuracy"] for row in record["exits"]} == {None}
    assert [row["share"] for row in record["exits"]] == pytest.approx([3 / 6, 1 / 6, 2 / 6])
    assert record["looks"][0]["parts"][0]["accuracy"] is None


def test_blur_and_brightness_are_measured() -> None:
    rng = np.random.default_rng(0)
    noise = np.repeat(rng.integers(0, 256, (32, 32, 1), np.uint8), 3, axis=2)
    blurred = noise.copy()
    blurred[1:] = (noise[1:].astype(int) + noise[:-1]) // 2
    sharp, soft = (looks_of(32, 40, image) for image in (noise, blurred))
    assert sharp.pixels == 1280 and soft.sharpness < 0.8 * sharp.sharpness
    assert looks_of(9, 9, np.full((8, 8, 3), 200, np.uint8)) == pytest.approx((81, 0, 200))
    assert looks_of(1, 1, np.zeros((2, 2, 3), np.uint8)).sharpness == 0
