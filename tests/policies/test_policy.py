"""Exit policies against small cases computed by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lgvit_edge.errors import UsageError
from lgvit_edge.policies import (
    POLICIES,
    Confidence,
    Departures,
    Ensemble,
    Entropy,
    FixedExit,
    Never,
    Patience,
    PatientConfidence,
    Policy,
    described,
    from_json,
    parse,
)
from lgvit_edge.policies.scores import confidence, entropy, log_softmax
from lgvit_edge.policies.text import typed

Floats = NDArray[np.float32]


def logits(*probabilities: list[float]) -> Floats:
    """``[B, C]`` logits whose softmax is exactly these, up to float32."""
    with np.errstate(divide="ignore"):
        return np.log(np.array(probabilities, np.float64)).clip(-1e4).astype(np.float32)


def sequence(*exits: list[list[float]]) -> Floats:
    """``[B, M + 1, C]`` from the probabilities at each exit, ``[M + 1][B][C]``."""
    return np.stack([logits(*rows) for rows in exits], axis=1)


def select(policy: Policy, all_logits: Floats) -> list[int]:
    return policy.replay(all_logits)[0].tolist()


def test_confidence_and_entropy_by_hand() -> None:
    x = logits([0.5, 0.25, 0.25], [0.9, 0.05, 0.05], [1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(confidence(x), [0.5, 0.9, 1 / 3], rtol=1e-6)
    middle = -(0.9 * math.log(0.9) + 0.1 * math.log(0.05))
    expected = [1.5 * math.log(2), middle, math.log(3)]
    np.testing.assert_allclose(entropy(x), expected, rtol=1e-6)
    np.testing.assert_allclose(np.exp(log_softmax(x)), np.exp(x), rtol=1e-6)


def test_both_do_not_change_when_all_logits_shift() -> None:
    x = logits([0.5, 0.25, 0.25])
    for shift in (-1000.0, 1000.0):
        np.testing.assert_allclose(confidence(x + np.float32(shift)), [0.5], rtol=1e-4)
        np.testing.assert_allclose(entropy(x + np.float32(shift)), [1.5 * math.log(2)], rtol=1e-4)


@pytest.mark.parametrize("scale", [1e4, 1e30, -1e4])
def test_probabilities_of_zero_give_no_nan(scale: float) -> None:
    x = np.array([[scale, 0, -scale], [0, 0, scale]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        assert confidence(x).tolist() == [1.0, 1.0] if scale > 0 else [1.0, 0.5]
        np.testing.assert_allclose(entropy(x), [0, 0] if scale > 0 else [0, math.log(2)], rtol=1e-6)
    assert confidence(x).dtype == entropy(x).dtype == np.float32


def test_confidence_of_one_image_at_all_exits() -> None:
    logits = np.random.default_rng(0).normal(size=(1, 3, 5)).astype(np.float32)
    expected = np.exp(log_softmax(logits)).max(axis=-1)
    np.testing.assert_allclose(confidence(logits), expected, rtol=1e-6)


def test_confidence_is_computed_for_each_image_alone() -> None:
    """One large logit in the batch must not wash out the others, as a shared maximum would."""
    alone = np.array([[2.0, 1.0, 0.0]], np.float32)
    together = np.concatenate([alone, np.array([[5000.0, 0.0, 0.0]], np.float32)])
    assert confidence(together)[0] == confidence(alone)[0]
    assert entropy(together)[0] == entropy(alone)[0]
    assert confidence(together)[0] == pytest.approx(math.e**2 / (math.e**2 + math.e + 1))


def test_confidence_stops_above_its_threshold() -> None:
    x = sequence(
        [[0.7, 0.3], [0.85, 0.15], [0.6, 0.4]],
        [[0.9, 0.1], [0.5, 0.5], [0.7, 0.3]],
        [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]],
    )
    assert select(Confidence(0.8), x) == [2, 1, 3]
    assert select(Confidence(0.65), x) == [1, 1, 2]
    assert select(Confidence((0.95, 0.6)), x) == [2, 3, 2]
    assert select(Confidence(0.0), x) == [1, 1, 1]


def test_confidence_equal_to_the_threshold_goes_on() -> None:
    # Two and four equal logits: 1/2 and 1/4 are exact.
    x = np.zeros((1, 2, 4), np.float32)
    assert confidence(x[:, 0]).tolist() == [0.25]
    assert select(Confidence(0.25), x) == [2]
    assert select(Confidence(0.2499999), x) == [1]
    certain = np.array([[[1e4, 0.0], [0.0, 0.0]]], np.float32)
    assert confidence(certain[:, 0]).tolist() == [1.0]
    assert select(Confidence(1.0), certain) == [2]


def test_a_threshold_is_compared_in_float32() -> None:
    """A confidence that reads 0.8 in float32 is not above a threshold of 0.8."""
    tracker = Confidence(0.8).start(1)
    steps = np.linspace(1.3862, 1.3864, 20_001).astype(np.float32)
    x = np.stack([steps, np.zeros_like(steps)], axis=1)
    stop, score = tracker.step(1, x), confidence(x)
    assert (score == np.float32(0.8)).any()
    assert not stop[score == np.float32(0.8)].any()
    assert stop.tolist() == (score > np.float32(0.8)).tolist()


def test_entropy_stops_below_its_threshold() -> None:
    uniform = math.log(2)
    x = sequence([[0.5, 0.5], [0.99, 0.01]], [[0.9, 0.1], [0.5, 0.5]], [[1.0, 0.0]] * 2)
    assert select(Entropy(0.6), x) == [2, 1]
    assert select(Entropy((uniform * 1.001, 0.0)), x) == [1, 1]
    assert select(Entropy(0.0), x) == [3, 3]
    # Equal goes on.
    equal = np.zeros((1, 2, 2), np.float32)
    exact = float(entropy(equal[:, 0])[0])
    assert select(Entropy(exact), equal) == [2]
    assert select(Entropy(exact * 1.0001), equal) == [1]


def predictions(*rows: str) -> Floats:
    """``[B, M + 1, 3]``: each row spells the class predicted at each exit, such as ``aab``."""
    out = np.zeros((len(rows), len(rows[0]), 3), np.float32)
    for b, row in enumerate(rows):
        for m, letter in enumerate(row):
            out[b, m, "abc".index(letter)] = 1.0
    return out


@pytest.mark.parametrize(
    ("patience", "expected"),
    [(1, [1, 1, 1, 1]), (2, [2, 3, 4, 5]), (3, [3, 4, 5, 5]), (4, [4, 5, 5, 5])],
)
def test_patience_counts_exits_that_agree(patience: int, expected: list[int]) -> None:
    x = predictions("aaaab", "abbbc", "abccc", "abcab")
    assert select(Patience(patience), x) == expected
    # It starts again when the prediction changes.
    assert select(Patience(3), predictions("aabaaabb")) == [6]


def test_patience_follows_rows_that_stay() -> None:
    """Rows leave at different exits; the counters of those that stay go with them."""
    x = predictions("aabcab", "abbcab", "abaacb", "ababbb", "abcabc")
    assert select(Patience(2), x) == [2, 3, 4, 5, 6]
    # Whatever stands above and below it in the batch.
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        assert select(Patience(2), x[order]) == [[2, 3, 4, 5, 6][i] for i in order]


def confidences(*rows: list[float]) -> Floats:
    """``[B, M + 1, 2]`` with these confidences at each exit."""
    return np.stack([logits(*[[p, 1 - p] for p in row]) for row in rows])


def test_patient_confidence_counts_confident_exits() -> None:
    x = confidences(
        [0.9, 0.9, 0.6, 0.9, 0.9],
        [0.9, 0.6, 0.9, 0.9, 0.9],
        [0.6, 0.9, 0.6, 0.9, 0.9],
        [0.6, 0.6, 0.6, 0.6, 0.6],
    )
    assert select(PatientConfidence(0.8, 2), x) == [2, 4, 5, 5]
    assert select(PatientConfidence(0.8, 1), x) == [1, 1, 2, 5]
    assert select(PatientConfidence(0.8, 3), x) == [5, 5, 5, 5]
    assert select(PatientConfidence(0.5, 4), x) == [4, 4, 4, 4]
    assert select(PatientConfidence((0.95, 0.5, 0.5, 0.5), 2), x) == [3, 3, 3, 3]
    # It does not ask for agreement.
    x = np.array([[[5.0, 0.0], [0.0, 5.0], [5.0, 0.0]]], np.float32)
    assert select(PatientConfidence(0.8, 2), x) == [2]
    assert select(Patience(2), x) == [3]


def test_a_temperature_divides_the_logits() -> None:
    x = np.array([[[2.0, 1.0, -9.0], [0.0, 0.0, 0.0]], [[1.0, 0.5, 0.5], [0.0, 0.0, 0.0]]])
    x = x.astype(np.float32)
    scores = confidence(x[:, 0] / 2)
    between = float(scores.mean())
    assert select(Confidence(between, temperature=2.0), x) == [1, 2]
    high = float(scores.max()) * 1.0001
    assert select(Confidence(high, temperature=2.0), x) == [2, 2]
    assert select(Confidence(high), x) == [1, 2]  # undivided, the first is surer than that
    per_exit = Confidence(high, temperature=(2.0,))
    assert select(per_exit, x) == [2, 2]
    assert select(PatientConfidence(between, 1, 2.0), x) == [1, 2]
    calm = float(entropy(x[:, 0] / 2).mean())
    assert select(Entropy(calm, 2.0), x) == [1, 2]


@pytest.mark.parametrize("kind", [Confidence, Entropy, PatientConfidence, Ensemble])
def test_numbers_must_match_the_exits(kind: type[Any]) -> None:
    with pytest.raises(UsageError, match="expected one temperature or 3, .* found 2"):
        kind(0.5, temperature=(1.0, 2.0)).start(3)
    with pytest.raises(UsageError, match="expected one threshold or 3, one per exit .* found 2"):
        kind((0.5, 0.5)).start(3)
    kind((0.5, 0.5, 0.5)).start(3)


def test_an_ensemble_adds_logits_up_by_hand() -> None:
    """Two exits lean to class 1, unsure; together they are sure, against the final classifier."""
    x = np.array([[[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]], np.float32)
    once, twice = (1 / (1 + math.exp(-z)) for z in (1.0, 1.5))  # 1 + 0.5 * 1
    assert Ensemble(once - 0.01).replay(x)[0].tolist() == [1]
    for threshold, exit, answer in ((once, 2, 1), (twice + 0.001, 3, 0)):
        found = Ensemble(threshold).replay(x)
        assert [part.tolist() for part in found] == [[exit], [answer]]
    # With a decay of 1 all that was said counts alike: 1 + 1 - 1 for class 1 at the end.
    assert Ensemble(0.999, 1.0).replay(x)[1].tolist() == [1]


def test_an_ensemble_without_memory_is_confidence() -> None:
    x = np.random.default_rng(1).normal(0, 2, (50, 5, 4)).astype(np.float32)
    expected = Confidence(0.6).replay(x)
    found = Ensemble(0.6, decay=0.0).replay(x)
    assert all((a == b).all() for a, b in zip(found, expected, strict=True))


def test_fixed_and_never() -> None:
    x = np.zeros((2, 4, 3), np.float32)
    for exit in (1, 2, 3, 4):
        assert select(FixedExit(exit), x) == [exit, exit]
    assert select(Never(), x) == [4, 4]
    with pytest.raises(UsageError, match=r"expected an exit in 1\.\.4, found 5"):
        FixedExit(5).start(3)


def test_without_images_nothing_leaves_and_without_exits_all_take_the_final_classifier() -> None:
    for kind in POLICIES.values():
        assert select(kind(), np.zeros((0, 4, 3), np.float32)) == []
    for policy in (Confidence(0.0), Entropy(1.0), Patience(1), FixedExit(1), Never()):
        assert select(policy, np.zeros((2, 1, 3), np.float32)) == [1, 1]


def test_logits_that_are_nan_stop_nothing() -> None:
    x = np.full((1, 3, 4), np.nan, np.float32)
    assert select(Confidence(0.0), x) == [3]
    assert select(Entropy(9.0), x) == [3]
    assert select(PatientConfidence(0.0, 1), x) == [3]


SOME = [
    *(Confidence(0.55), Confidence((0.8, 0.7, 0.6, 0.5, 0.45)), Confidence(0.97, temperature=0.5)),
    *(Entropy(0.9), Entropy(0.4, temperature=(1.0, 0.9, 0.8, 0.7, 0.6)), Patience(2), Patience(3)),
    *(PatientConfidence(0.5, 2), PatientConfidence(0.8, 2, temperature=0.5)),
    *(Ensemble(0.95), Ensemble((0.99, 0.99, 0.98, 0.97, 0.96), 0.3, 0.7)),
    *(FixedExit(3), FixedExit(6), Never()),
]


@pytest.mark.parametrize("policy", SOME, ids=repr)
def test_select_is_stepping_each_image_alone(policy: Policy) -> None:
    x = np.random.default_rng(4).normal(0, 1.5, (64, 6, 4)).astype(np.float32)
    expected = []
    for row in x:
        tracker = policy.start(5)
        seen = [tracker.combine(row[None, m - 1]) for m in range(1, 6)]
        stops = (m for m in range(1, 6) if tracker.step(m, seen[m - 1])[0])
        expected.append(next(stops, 6))
    assert select(policy, x) == expected
    if not isinstance(policy, (FixedExit, Never)):
        assert len(set(expected)) > 3  # rows did leave at different exits


def test_a_policy_remembers_nothing_between_batches() -> None:
    policy = Patience(2)
    x = predictions("aab")
    assert [select(policy, x) for _ in range(3)] == [[2]] * 3
    one, other = policy.start(2), policy.start(2)
    assert not one.step(1, x[:, 0])[0]
    assert not other.step(1, x[:, 0])[0]
    assert one.step(2, x[:, 1])[0]


TWO = np.array([0.9, 0.8])


@pytest.mark.parametrize("given", [TWO.tolist(), tuple(TWO.tolist()), TWO, list(TWO)], ids=repr)
def test_lists_and_arrays_are_numbers_per_exit(given: Any) -> None:
    for kind in (Confidence, Entropy, Ensemble, PatientConfidence):
        policy = kind(given, temperature=given)
        assert policy == kind((0.9, 0.8), temperature=(0.9, 0.8))
        assert hash(policy) == hash(kind((0.9, 0.8), temperature=(0.9, 0.8)))
        for numbers in (policy.threshold, policy.temperature):
            assert isinstance(numbers, tuple) and {type(each) for each in numbers} == {float}
        json.dumps(policy.to_json())
        policy.start(2)
        with pytest.raises(UsageError, match="expected one threshold or 3, .* found 2"):
            policy.start(3)


def test_numbers_of_numpy_are_numbers() -> None:
    for one in (1, np.float64(1), np.float32(1), np.int64(1), np.array(1.0)):
        policy = Confidence(one, temperature=one)  # type: ignore[arg-type]
        assert policy == Confidence(1.0) and type(policy.threshold) is float
    assert type(Ensemble(0.5, np.float64(0.25)).decay) is float
    for kind in (Patience, FixedExit):
        policy = kind(np.int64(2))  # type: ignore[assignment, arg-type]
        assert policy == kind(2) and json.loads(json.dumps(policy.to_json()))
    assert type(PatientConfidence(0.5, np.int32(3)).patience) is int  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given",
    [
        *(math.nan, np.float32("nan"), [0.5, math.nan], np.array([0.5, math.nan])),
        *([], np.array([]), [[0.5]], np.array([[0.5]]), True, np.bool_(True), None, "0.5", 1.5),
    ],
    ids=repr,
)
def test_what_is_no_threshold_is_refused(given: Any) -> None:
    for kind in (Confidence, PatientConfidence, Ensemble):
        with pytest.raises(UsageError, match="threshold"):
            kind(given)
        with pytest.raises(UsageError, match="temperature"):
            kind(0.5, temperature=200 if isinstance(given, float) and given == 1.5 else given)
    for count in (Patience, FixedExit):
        with pytest.raises(UsageError, match="must be a whole number of at least 1"):
            count(given)


def test_a_policy_among_fewer_exits_keeps_their_numbers() -> None:
    policy = PatientConfidence((0.9, 0.8, 0.7), 2, (1.0, 2.0, 3.0))
    assert policy.among([1, 3]) == PatientConfidence((0.9, 0.7), 2, (1.0, 3.0))
    assert Ensemble(0.5).among([2]) == Ensemble(0.5)


def test_rows_that_leave_a_batch_are_named_and_the_others_go_on() -> None:
    x = confidences([0.9, 0.6, 0.7], [0.6, 0.7, 0.9], [0.6, 0.9, 0.8])
    batch = Departures(Confidence(0.8), 2, 3)
    first = batch.see(x[:, 0])
    assert (first.exit, first.rows.tolist(), first.going.tolist()) == (1, [0], [1, 2])
    second = batch.see(x[batch.rows, 1])
    assert (second.exit, second.rows.tolist(), second.going.tolist()) == (2, [2], [0])
    assert second.scores == pytest.approx([0.9])
    final = batch.see(x[batch.rows, 2])
    assert (final.exit, final.rows.tolist(), len(batch.rows)) == (3, [1], 0)
    assert final.scores == pytest.approx([0.9]) and final.classes.tolist() == [0]


@pytest.mark.parametrize("policy", SOME, ids=repr)
def test_json_round_trip(policy: Policy) -> None:
    data = json.loads(json.dumps(policy.to_json()))
    assert data["name"] == policy.name
    assert from_json(data) == policy


def test_json_names_the_parameters() -> None:
    values = dict(threshold=[0.5, 0.6], patience=3, temperature=1.0)
    assert PatientConfidence((0.5, 0.6), 3).to_json() == {"name": "patient_confidence", **values}
    assert from_json({"name": "confidence"}) == Confidence(0.8)


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        *[("confidence", Confidence(0.8)), ("confidence:0.9", Confidence(0.9))],
        ("confidence:1", Confidence(1.0)),
        ("entropy:0.6,0.5", Entropy((0.6, 0.5))),
        ("confidence:0.8:0.5", Confidence(0.8, 0.5)),
        ("entropy:0.6:0.5,2", Entropy(0.6, (0.5, 2.0))),
        ("ensemble:0.9:0.25:0.5", Ensemble(0.9, 0.25, 0.5)),
        ("patient_confidence:0.5:3:2", PatientConfidence(0.5, 3, 2.0)),
        ("patience:3", Patience(3)),
        ("patient_confidence:0.5:2", PatientConfidence(0.5, 2)),
        ("patient_confidence:0.5,0.6", PatientConfidence((0.5, 0.6), 2)),
        *[("fixed:3", FixedExit(3)), ("never", Never())],
    ],
)
def test_parse(text: str, policy: Policy) -> None:
    assert parse(text) == policy
    assert parse(typed(policy.to_json())) == policy


FORM = "expected a policy such as confidence:0.8, .* or never; found"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *[(text, f"{FORM} '{text}'") for text in ("", "sometimes", "Confidence:0.8")],
        *[(text, f"{FORM} '{text}'") for text in ("never:1", "fixed:1:2")],
        ("confidence:", "'confidence:': '' is not a number"),
        ("confidence:high", "'confidence:high': 'high' is not a number"),
        ("confidence:0.8,", "'0.8,' is not a number"),
        ("patience:2.5", "'2.5' is not a number"),
        ("fixed:" + "9" * 5000, "is not a number"),
        ("confidence:1.5", r"a threshold must be in 0\.\.1, found 1\.5"),
        ("confidence:nan", r"a threshold must be in 0\.\.1, found nan"),
        ("confidence:0.5,-1", r"a threshold must be in 0\.\.1, found -1\.0"),
        ("entropy:-0.1", r"a threshold must be in 0\.\.1000, found -0\.1"),
        ("confidence:0.8:0", r"a temperature must be in 0\.01\.\.100, found 0"),
        ("ensemble:0.8:1.5", r"a decay must be in 0\.\.1, found 1\.5"),
        ("ensemble:0.8:0.5,0.4", r"a decay must be in 0\.\.1, found \(0\.5, 0\.4\)"),
        ("patience:0", "patience must be a whole number of at least 1, found 0"),
        ("patient_confidence:0.5:-2", "patience must be a whole number of at least 1, found -2"),
        ("fixed:0", "exit must be a whole number of at least 1, found 0"),
    ],
)
def test_typed_policies_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(text)


def test_every_policy_is_described_and_its_example_works() -> None:
    told = described()
    for name, kind in POLICIES.items():
        assert kind.name == name and type(parse(kind.example)) is kind
        assert f"{kind.example} ({kind.help})" in told
        settings = kind.settings(3)
        assert all(type(policy) is kind for policy in settings)
        for policy in settings:
            policy.start(3)
        assert len({kind.label for kind in POLICIES.values()}) == len(POLICIES)
    with pytest.raises(UsageError) as refused:
        parse("sometimes")
    assert all(kind.example in str(refused.value) for kind in POLICIES.values())


NAMES = "name must be one of confidence, entropy, ensemble, patience, patient_confidence, fixed, "
NAMES += "never, found"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        *[(data, f"{NAMES} None") for data in (None, [], {})],
        *[({"name": name}, NAMES) for name in (["confidence"], {"a": 1})],
        ({"name": "os.system"}, f"{NAMES} 'os.system'"),
        (
            {"name": "confidence", "patience": 1, "evil": 2},
            r"policy confidence has no evil, patience; it has \['temperature', 'threshold'\]",
        ),
        *[
            ({"name": "confidence", "threshold": value}, f"a threshold must be .* found {value!r}")
            for value in ("0.8", True, None, {"a": 1})
        ],
        ({"name": "entropy", "threshold": 10**400}, "a threshold must be"),
        ({"name": "confidence", "threshold": [0.5, [0.5]]}, r"threshold must be .* found \[0\.5\]"),
        ({"name": "entropy", "threshold": float("nan")}, "threshold must be .* found nan"),
        *[
            ({"name": "patience", "patience": value}, f"whole number of at least 1, found {said}")
            for value, said in ((2.0, "2.0"), (True, "True"), ([2], r"\(2,\)"))
        ],
        ({"name": "fixed", "exit": "1"}, "exit must be a whole number of at least 1, found '1'"),
    ],
)
def test_json_policies_that_are_refused(data: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_json(data)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_rule_decides_as_its_policy_does(name: str) -> None:
    """Exit by exit, in float32; a policy that remembers other exits has none."""
    policy = parse(POLICIES[name].example)
    rule = policy.start(3).rule()
    assert (rule is None) is (name in ("patience", "ensemble", "patient_confidence"))
    if rule is None:
        return
    logits = np.random.default_rng(0).normal(0, 3, (200, 4, 10)).astype(np.float32)
    exits, _ = policy.replay(logits)
    for row, exit in zip(logits, exits, strict=True):
        scaled = row[:3] * np.asarray(rule.scales, np.float32)[:, None]
        sure = [rule.measure.sureness(number) for number in rule.measure.of(scaled)]
        limits = [rule.measure.sureness(np.float32(t)) for t in rule.thresholds]
        stops = [a > b for a, b in zip(sure, limits, strict=True)]
        assert exit == [*stops, True].index(True) + 1


def test_a_rule_has_each_exits_threshold_and_temperature() -> None:
    rule = Confidence((0.5, 0.6), temperature=(2.0, 4.0)).start(2).rule()
    assert rule is not None
    assert (rule.thresholds, rule.scales) == ((0.5, 0.6), (0.5, 0.25))
