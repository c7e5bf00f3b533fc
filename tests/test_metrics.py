"""Figures against values worked out by hand, and against scikit-learn."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest

from edgeclf import metrics
from edgeclf.metrics import UNREAD, Floats, Interval, Ints

CLASSES = 5


@pytest.fixture(scope="module")
def sklearn() -> ModuleType:
    reason = "scikit-learn is not installed: pip install 'edgeclf[dev]'"
    module: ModuleType = pytest.importorskip("sklearn.metrics", reason=reason)
    return module


def random_scores(seed: int, count: int = 200, *, decimals: int | None = None) -> tuple[Floats, Ints]:
    """Scores that sum to 1, with many ties where decimals are few, and the truth; the last class is never there."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(CLASSES - 1, size=count)
    logits = rng.normal(size=(count, CLASSES)) + 1.5 * np.eye(CLASSES)[truth]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return (scores if decimals is None else scores.round(decimals)), truth


# -- what was found ---------------------------------------------------------------------------------------------------


def test_winner_is_the_highest_score_the_first_of_equals_and_nothing_for_an_unread_clip() -> None:
    nan = math.nan
    scores = np.array([[0.1, 0.7, 0.2], [0.4, 0.4, 0.2], [nan, nan, nan], [0.0, 0.0, 0.0]])
    assert metrics.winners(scores).tolist() == [1, 0, UNREAD, 0]


def test_confusion_has_a_row_for_what_is_there_and_a_last_column_for_unread_clips() -> None:
    found = metrics.confusion_matrix(np.array([0, 0, 1, 1]), np.array([0, 1, 1, UNREAD]), 3)
    assert found.tolist() == [[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize("seed", range(3))
def test_confusion_and_class_figures_equal_those_of_scikit_learn(sklearn: ModuleType, seed: int) -> None:
    scores, truth = random_scores(seed)
    found = metrics.winners(scores)
    confusion = metrics.confusion_matrix(truth, found, CLASSES)
    labels = list(range(CLASSES))
    assert confusion[:, :-1].tolist() == sklearn.confusion_matrix(truth, found, labels=labels).tolist()
    figures = metrics.class_figures(confusion)
    expected = sklearn.precision_recall_fscore_support(truth, found, labels=labels, zero_division=0)
    for ours, theirs in zip((figures.precision, figures.recall, figures.f1, figures.clips), expected, strict=True):
        np.testing.assert_allclose(ours, theirs)


def test_averages_equal_those_of_scikit_learn_over_the_classes_that_are_there(sklearn: ModuleType) -> None:
    scores, truth = random_scores(7)
    found = metrics.winners(scores)
    figures = metrics.class_figures(metrics.confusion_matrix(truth, found, CLASSES))
    for kind, ours in (("macro", figures.macro()), ("weighted", figures.weighted())):
        there = sorted(set(truth.tolist()))
        theirs = sklearn.precision_recall_fscore_support(truth, found, labels=there, average=kind, zero_division=0)
        assert (ours.precision, ours.recall, ours.f1) == pytest.approx(theirs[:3])


def test_unread_clip_lowers_recall_and_leaves_precision_alone() -> None:
    figures = metrics.class_figures(metrics.confusion_matrix(np.array([0, 0, 1]), np.array([0, UNREAD, 1]), 2))
    assert (figures.precision.tolist(), figures.recall.tolist()) == ([1, 1], [0.5, 1])
    assert figures.f1[0] == pytest.approx(2 / 3)


def test_class_that_is_never_there_and_never_found_has_zeros_and_no_weight() -> None:
    figures = metrics.class_figures(metrics.confusion_matrix(np.array([0, 1]), np.array([0, 1]), 3))
    assert (figures.precision[2], figures.recall[2], figures.f1[2], figures.clips[2]) == (0, 0, 0, 0)
    assert figures.macro() == figures.weighted() == metrics.Averages(1.0, 1.0, 1.0)


def test_no_clip_at_all_gives_zeros() -> None:
    none = np.array([], np.int64)
    figures = metrics.class_figures(metrics.confusion_matrix(none, none, 2))
    assert figures.macro() == figures.weighted() == metrics.Averages(0.0, 0.0, 0.0)
    assert metrics.top_accuracy(np.empty((0, 2)), none, 1) == 0


@pytest.mark.parametrize("count", [1, 2, 4])
def test_top_accuracy_equals_that_of_scikit_learn(sklearn: ModuleType, count: int) -> None:
    scores, truth = random_scores(3)
    labels = list(range(CLASSES))
    expected = sklearn.top_k_accuracy_score(truth, scores, k=count, labels=labels)
    assert metrics.top_accuracy(scores, truth, count) == pytest.approx(expected)


def test_top_accuracy_breaks_ties_as_the_winner_does_and_counts_unread_clips_as_wrong() -> None:
    scores = np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [math.nan] * 3])
    assert metrics.top_accuracy(scores, np.array([0, 1, 0]), 1) == pytest.approx(1 / 3)
    assert metrics.top_accuracy(scores, np.array([0, 1, 0]), 3) == pytest.approx(2 / 3)


# -- two answers to the same ------------------------------------------------------------------------------------------


def test_cosines_are_those_of_each_pair_of_rows() -> None:
    found = np.array([[3, 0], [0, 2], [-1, 0], [1, 1], [0, 0]], np.float32)
    expected = np.array([[5, 0], [1, 0], [7, 0], [1, 0], [1, 0]], np.float32)
    assert metrics.cosines(found, expected).tolist() == pytest.approx([1, 0, -1, math.sqrt(0.5), 0])


def test_cosine_of_two_rows_of_zeros_is_1_and_of_no_numbers_none() -> None:
    found = np.array([[0, 0], [math.nan, 1]], np.float32)
    assert metrics.cosines(found, np.array([[0, 0], [1, 1]], np.float32)).tolist() == pytest.approx(
        [1, math.nan], nan_ok=True
    )


def test_cosines_of_large_features_do_not_overflow() -> None:
    large = np.full((1, 4), 1e30, np.float32)
    assert metrics.cosines(large, large).tolist() == pytest.approx([1])


def test_margin_is_between_the_first_two_scores_wherever_they_stand() -> None:
    assert metrics.margins(np.array([[0.1, 0.2, 0.7], [0.4, 0.2, 0.4]])).tolist() == pytest.approx([0.5, 0.0])


def test_changed_winners_are_counted_only_where_the_expected_one_is_clear() -> None:
    expected = np.array([[0.9, 0.1], [0.51, 0.49], [0.9, 0.1]])
    found = np.array([[0.4, 0.6], [0.4, 0.6], [0.6, 0.4]])
    assert metrics.changed_winners(found, expected, 0.1) == 1
    assert metrics.changed_winners(found, expected, 0.01) == 2


# -- precision and recall over all thresholds -------------------------------------------------------------------------


def test_curve_is_the_one_drawn_by_hand() -> None:
    curve = metrics.precision_recall_curve(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, True]))
    assert curve.precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3, 3 / 4])
    assert curve.recall.tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3, 1])
    assert curve.thresholds.tolist() == [0.9, 0.8, 0.7, 0.6]
    assert curve.average_precision == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert curve.corners().thresholds.tolist() == [0.9, 0.7, 0.6]
    assert curve.corners().average_precision == pytest.approx(curve.average_precision)


@pytest.mark.parametrize("decimals", [None, 1])
def test_curve_and_average_precision_equal_those_of_scikit_learn(sklearn: ModuleType, decimals: int | None) -> None:
    scores, truth = random_scores(4, decimals=decimals)
    for label in range(CLASSES - 1):
        own, positive = scores[:, label], truth == label
        curve = metrics.precision_recall_curve(own, positive)
        precision, recall, thresholds = sklearn.precision_recall_curve(positive, own)
        np.testing.assert_allclose(curve.precision, precision[-2::-1])
        np.testing.assert_allclose(curve.recall, recall[-2::-1])
        np.testing.assert_allclose(curve.thresholds, thresholds[::-1])
        assert curve.average_precision == pytest.approx(sklearn.average_precision_score(positive, own))


def test_clips_of_one_score_are_found_together() -> None:
    curve = metrics.precision_recall_curve(np.full(4, 0.5), np.array([True, False, False, False]))
    assert (curve.precision.tolist(), curve.recall.tolist(), curve.average_precision) == ([0.25], [1.0], 0.25)


def test_unread_clip_is_never_found_so_the_curve_ends_early() -> None:
    curve = metrics.precision_recall_curve(np.array([0.9, math.nan]), np.array([True, True]))
    assert (curve.recall.tolist(), curve.average_precision) == ([0.5], 0.5)
    assert curve.precision_at(np.array([0.0, 0.5, 0.6])).tolist() == [1, 1, 0]


def test_curve_of_nothing_says_so() -> None:
    assert metrics.precision_recall_curve(np.array([math.nan]), np.array([True])).average_precision == 0
    assert math.isnan(metrics.precision_recall_curve(np.array([0.5]), np.array([False])).average_precision)


def test_precision_at_a_recall_is_the_best_that_can_be_had() -> None:
    curve = metrics.precision_recall_curve(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, True]))
    assert curve.precision_at(np.array([0, 0.3, 0.5, 1.0])).tolist() == pytest.approx([1, 1, 0.75, 0.75])


# -- calibration ------------------------------------------------------------------------------------------------------


def test_reliability_bins_hold_their_upper_edge() -> None:
    bins = metrics.reliability(np.array([0.0, 0.5, 0.51, 1.0]), np.array([False, True, False, True]), bins=2)
    assert bins.counts.tolist() == [2, 2]
    assert bins.confidence.tolist() == pytest.approx([0.25, 0.755])
    assert bins.accuracy.tolist() == [0.5, 0.5]
    assert bins.expected_calibration_error == pytest.approx((0.25 + 0.255) / 2)


def test_expected_calibration_error_weighs_bins_by_their_clips() -> None:
    bins = metrics.reliability(np.array([0.95, 0.95, 0.95, 0.65]), np.array([True, True, True, False]))
    assert bins.expected_calibration_error == pytest.approx((3 * 0.05 + 0.65) / 4)
    assert len(bins.counts) == 15
    assert np.isnan(bins.accuracy[0])


def test_calibration_of_no_clip_is_unknown() -> None:
    none, scores = np.array([], np.int64), np.empty((0, 2))
    assert math.isnan(metrics.reliability(np.array([]), np.array([], np.bool_)).expected_calibration_error)
    assert math.isnan(metrics.log_loss(scores, none))
    assert math.isnan(metrics.brier_score(scores, none))


def test_log_loss_and_brier_score_are_those_worked_out_by_hand() -> None:
    scores, truth = np.array([[0.5, 0.5, 0.0], [0.2, 0.8, 0.0]]), np.array([0, 1])
    assert metrics.log_loss(scores, truth) == pytest.approx(-(math.log(0.5) + math.log(0.8)) / 2)
    assert metrics.brier_score(scores, truth) == pytest.approx((0.25 + 0.25 + 0.04 + 0.04) / 2)
    assert metrics.log_loss(np.array([[1.0, 0.0]]), np.array([1])) == pytest.approx(36.04, abs=0.01)  # finite


def test_log_loss_and_brier_score_equal_those_of_scikit_learn(sklearn: ModuleType) -> None:
    scores, truth = random_scores(5)
    labels = list(range(CLASSES))
    assert metrics.log_loss(scores, truth) == pytest.approx(sklearn.log_loss(truth, scores, labels=labels))
    expected = sum(sklearn.brier_score_loss(truth == label, scores[:, label], pos_label=True) for label in labels)
    assert metrics.brier_score(scores, truth) == pytest.approx(expected)


# -- how sure a share is ----------------------------------------------------------------------------------------------


def test_interval_of_independent_clips_is_that_of_the_binomial_distribution() -> None:
    correct = np.arange(400) % 4 > 0
    interval = metrics.bootstrap_interval(correct, [""] * 400)
    deviation = math.sqrt(0.75 * 0.25 / 400)
    assert (interval.low, interval.high) == pytest.approx((0.75 - 1.96 * deviation, 0.75 + 1.96 * deviation), abs=0.005)


def test_interval_over_groups_is_as_wide_as_that_of_so_few_clips() -> None:
    right = np.arange(20) % 4 > 0  # 20 recordings, each wholly right or wrong, of 20 clips
    correct = np.repeat(right, 20)
    groups = [f"g{number}" for number in np.repeat(np.arange(20), 20)]
    grouped = metrics.bootstrap_interval(correct, groups)
    alone = metrics.bootstrap_interval(correct, [""] * 400)
    assert grouped == metrics.bootstrap_interval(right, [""] * 20)
    assert grouped.high - grouped.low > 4 * (alone.high - alone.low)


def test_interval_covers_the_true_share_as_often_as_it_says_only_if_groups_are_known() -> None:
    rng = np.random.default_rng(2)
    covered = {"grouped": 0, "alone": 0}
    groups = [f"g{number}" for number in np.repeat(np.arange(40), 10)]
    for _ in range(60):
        correct = rng.random(400) < np.repeat(rng.beta(2, 1, 40), 10)  # a share of 2/3 that differs between groups
        for kind, names in (("grouped", groups), ("alone", [""] * 400)):
            interval = metrics.bootstrap_interval(correct, names, resamples=500)
            covered[kind] += interval.low <= 2 / 3 <= interval.high
    assert covered["grouped"] >= 53
    assert covered["alone"] < 46


def test_groups_weigh_as_much_as_they_have_clips() -> None:
    interval = metrics.bootstrap_interval([True] * 9 + [False], ["big"] * 9 + ["small"])
    assert interval == Interval(0.0, 1.0)  # each is drawn twice in a quarter of the resamples
    assert metrics.bootstrap_interval([True] * 9 + [False], ["big"] * 9 + ["small"], level=0.4) == Interval(0.9, 0.9)


@pytest.mark.parametrize("groups", [["a", "a", "a"], []])
def test_interval_of_one_group_or_nothing_is_unknown(groups: list[str]) -> None:
    interval = metrics.bootstrap_interval([True] * len(groups), groups)
    assert not interval.is_known
    assert math.isnan(interval.high)


def test_interval_is_the_same_each_time_and_for_any_names_of_groups() -> None:
    rng = np.random.default_rng(0)
    correct, numbers = rng.random(60) < 0.7, rng.integers(15, size=60)
    first = metrics.bootstrap_interval(correct, [f"a{n}" for n in numbers])
    assert first == metrics.bootstrap_interval(correct, [f"b{100 - n}" for n in numbers])
    assert first != metrics.bootstrap_interval(correct, [f"a{n}" for n in numbers], seed=1)


def test_interval_does_not_change_where_the_draws_do_not_fit_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    correct = np.random.default_rng(0).random(100) < 0.7
    whole = metrics.bootstrap_interval(correct, [""] * 100)
    monkeypatch.setattr(metrics, "_DRAWS_AT_ONCE", 70_000)
    assert metrics.bootstrap_interval(correct, [""] * 100) == whole


def test_clip_without_group_is_a_unit_of_its_own() -> None:
    assert metrics.independent_units(["a", "", "a", "", "b"]).tolist() == [0, 1, 0, 2, 3]
