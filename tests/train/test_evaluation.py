"""Figures against values worked out by hand, and a bundle against `infer`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgeclf.dataset import LabelledClip, load_dataset
from edgeclf.errors import DataError
from edgeclf.runtime.pipeline import LoopOptions, open_classifier
from edgeclf.train.evaluation import FAILED, ClassScore, Evaluation, evaluate, evaluation_of
from tests.support.labelled import edgeclf, write_color_clips, write_csv
from tests.support.videos import BLUE, RED, plain, write_video

OPTIONS = LoopOptions(workers=2, sources_at_once=2)
NAN = math.nan


def found_as(labels: Sequence[str], truth: Sequence[str], found: Sequence[str]) -> Evaluation:
    """The evaluation in which each clip's winner has a score of 0.7; FAILED where there is none."""
    rest = 0.3 / max(1, len(labels) - 1)
    rows = [[NAN if name == FAILED else 0.7 if label == name else rest for label in labels] for name in found]
    return Evaluation(tuple(labels), tuple(truth), np.array(rows))


# a: right, right, b, failed. b: right, a, a. c is never there and found once, in place of b.
BY_HAND = found_as("abcd", "aaaabbbb", ["a", "a", "b", FAILED, "b", "a", "a", "c"])


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of coloured clips; one blue clip is said to be red, one of two colours is mostly blue."""
    folder = tmp_path_factory.mktemp("clips")
    paths = write_color_clips(folder, 2)
    rows = [[str(path.relative_to(folder)), path.parent.name, "", "test"] for path in paths]
    write_video(folder / "wrong.avi", plain(BLUE, 1))
    write_video(folder / "both.mp4", plain(RED, 1.6) + plain(BLUE, 4))
    rows += [["wrong.avi", "red", "", "test"], ["both.mp4", "blue", "", "test"]]
    return write_csv(folder / "clips.csv", rows)


# -- what is kept -----------------------------------------------------------------------------------------------------


def test_winner_is_found_and_a_row_without_scores_has_failed() -> None:
    scores = np.array([[0.2, 0.8], [0.5, 0.5], [NAN, NAN]])
    evaluation = Evaluation(("a", "b"), ("b", "b", "a"), scores)
    assert evaluation.found == ("b", "a", FAILED)
    assert evaluation.correct.tolist() == [True, False, False]
    assert evaluation.confidence.tolist() == pytest.approx([0.8, 0.5, NAN], nan_ok=True)


def test_what_is_left_out_is_filled_in() -> None:
    evaluation = Evaluation(("a", "b"), ("b", "a"), np.eye(2))
    assert (evaluation.names, evaluation.groups, evaluation.problems) == (("#1", "#2"), ("", ""), ("", ""))
    assert (evaluation.errors, evaluation.independent_groups) == ((), 2)


def test_errors_are_the_problems_there_are() -> None:
    evaluation = Evaluation(("a", "b"), ("b", "a"), np.eye(2), problems=("", "damaged"))
    assert evaluation.errors == ("damaged",)


@pytest.mark.parametrize(
    ("truth", "scores", "names"),
    [
        (("a",), np.eye(2), ()),
        (("a", "b"), np.eye(3)[:2], ()),
        (("a", "b"), np.eye(2), ("one",)),
        (("a", "c"), np.eye(2), ()),
    ],
)
def test_lengths_and_labels_must_fit_together(
    truth: tuple[str, ...], scores: np.ndarray[tuple[int, int], np.dtype[np.float64]], names: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match=r"for each clip|labels|no such label: c"):
        Evaluation(("a", "b"), truth, scores, names)


def test_evaluation_of_known_scores_has_names_and_groups_of_the_clips() -> None:
    clips = [LabelledClip(Path("a.avi"), "b", "g1", "test"), LabelledClip(Path("b.avi"), "a", "", "test")]
    evaluation = evaluation_of(("a", "b"), clips, [(0.1, 0.9), None], ("", "VideoError: damaged"))
    assert (evaluation.truth, evaluation.found) == (("b", "a"), ("b", FAILED))
    assert (evaluation.names, evaluation.groups) == (("a.avi", "b.avi"), ("g1", ""))
    assert evaluation.errors == ("VideoError: damaged",)
    assert evaluation_of(("a", "b"), clips, [None, None]).found == (FAILED, FAILED)
    with pytest.raises(DataError, match="does not know b"):
        evaluation_of(("a", "c"), clips, [None, None])


# -- figures ----------------------------------------------------------------------------------------------------------


def test_accuracy_counts_failed_clips_as_wrong() -> None:
    assert BY_HAND.accuracy == 3 / 8


def test_precision_recall_and_f1_are_those_worked_out_by_hand() -> None:
    a, b, *_ = BY_HAND.class_scores()
    assert (a.label, a.precision, a.recall, a.clips) == ("a", 2 / 4, 2 / 4, 4)
    assert a.f1 == pytest.approx(0.5)
    assert (b.label, b.precision, b.recall, b.clips) == ("b", 1 / 2, 1 / 4, 4)
    assert b.f1 == pytest.approx(2 * (1 / 2) * (1 / 4) / (3 / 4))


def test_class_that_is_never_there_or_never_found_has_zeros() -> None:
    assert BY_HAND.class_scores()[2:] == [ClassScore("c", 0.0, 0.0, 0.0, 0), ClassScore("d", 0.0, 0.0, 0.0, 0)]
    never_found = found_as("ab", "ab", "bb")
    assert never_found.class_scores() == [ClassScore("a", 0, 0, 0, 1), ClassScore("b", 0.5, 1, 2 / 3, 1)]


def test_macro_is_over_the_classes_that_are_there_and_weighted_over_clips() -> None:
    assert BY_HAND.macro_f1 == pytest.approx((1 / 2 + 1 / 3) / 2)
    uneven = found_as("abc", "aaab", "aaaa")
    assert uneven.macro.recall == pytest.approx(1 / 2)
    assert uneven.weighted.recall == pytest.approx(3 / 4)


def test_confusion_has_a_row_for_what_is_there_and_a_last_column_for_failed_clips() -> None:
    assert BY_HAND.confusion() == [[2, 1, 0, 0, 1], [2, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]


def test_average_precision_is_of_the_classes_that_are_there() -> None:
    scores = np.array([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.4, 0.6, 0.0], [NAN] * 3])
    evaluation = Evaluation(("a", "b", "c"), ("a", "b", "b", "b"), scores)
    assert evaluation.average_precision() == pytest.approx({"a": 1.0, "b": 2 / 3})
    assert evaluation.to_dict()["average_precision"] == {
        "mean": 0.8333,
        "classes": {"a": 1.0, "b": 0.6667, "c": None},
    }


def test_calibration_is_over_the_clips_that_were_read() -> None:
    calibration = Evaluation(("a", "b"), ("a", "a", "b"), np.array([[0.75, 0.25], [0.25, 0.75], [NAN, NAN]])).to_dict()[
        "calibration"
    ]
    assert calibration == {
        "expected_calibration_error": 0.25,
        "log_loss": round(-(math.log(0.75) + math.log(0.25)) / 2, 4),
        "brier": round((2 * 0.0625 + 2 * 0.5625) / 2, 4),
    }


def test_interval_rests_on_groups() -> None:
    scores = np.eye(2)[[0] * 30 + [1] * 10]
    apart = Evaluation(("a", "b"), ("a",) * 40, scores)
    groups = tuple(f"g{index // 10}" for index in range(40))
    together = Evaluation(("a", "b"), ("a",) * 40, scores, groups=groups)
    assert (apart.independent_groups, together.independent_groups) == (40, 4)
    assert together.accuracy_interval().low < apart.accuracy_interval().low < 0.75 < apart.accuracy_interval().high
    described = together.to_dict()["accuracy_interval"]
    assert (described["level"], described["groups"], "bootstrap" in described["method"]) == (0.95, 4, True)
    assert (described["low"], described["high"]) == (0.25, 1.0)


def test_interval_of_one_group_is_null() -> None:
    one = Evaluation(("a", "b"), ("a", "a"), np.eye(2), groups=("g", "g")).to_dict()["accuracy_interval"]
    assert (one["low"], one["high"], one["groups"]) == (None, None, 1)


def test_top_5_is_told_where_there_are_many_classes() -> None:
    labels = tuple(f"class{number}" for number in range(10))
    scores = np.tile(np.arange(10.0)[::-1] / 45, (10, 1))
    assert Evaluation(labels, labels, scores).to_dict()["top_5_accuracy"] == 0.5
    assert "top_5_accuracy" not in BY_HAND.to_dict()


def test_nothing_evaluated_divides_by_nothing() -> None:
    empty = Evaluation(("a",), (), np.array([]))
    assert (empty.accuracy, empty.confusion(), empty.errors) == (0.0, [[0, 0]], ())
    described = json.loads(json.dumps(empty.to_dict(), allow_nan=False))
    assert (described["clips"], described["average_precision"]["mean"]) == (0, None)


def test_all_clips_failed_is_described_all_the_same() -> None:
    described = json.loads(json.dumps(found_as("ab", "aab", [FAILED] * 3).to_dict(), allow_nan=False))
    assert (described["accuracy"], described["failed"]) == (0.0, 3)
    assert described["average_precision"]["mean"] == 0.0
    assert set(described["calibration"].values()) == {None}


def test_one_clip_is_described_all_the_same() -> None:
    described = json.loads(json.dumps(found_as("ab", "a", "a").to_dict(), allow_nan=False))
    assert (described["accuracy"], described["accuracy_interval"]["low"]) == (1.0, None)
    assert described["macro"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0}


def test_dictionary_is_json_with_four_digits() -> None:
    found = json.loads(json.dumps(BY_HAND.to_dict(), allow_nan=False))
    assert (found["clips"], found["accuracy"], found["failed"]) == (8, 0.375, 1)
    assert found["classes"]["b"] == {"precision": 0.5, "recall": 0.25, "f1": 0.3333, "clips": 4}
    assert found["weighted"] == {"precision": 0.5, "recall": 0.375, "f1": 0.4167}
    assert found["confusion"][0] == [2, 1, 0, 0, 1]


def test_figures_equal_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed: pip install 'edgeclf[dev]'")
    truth = [*"aaabbbbccccc"]
    found = [*"aabbbbacccab"]
    ours = found_as("abc", truth, found)
    scores = ours.class_scores()
    expected = metrics.precision_recall_fscore_support(truth, found, labels=[*"abc"])
    for row, precision, recall, f1, count in zip(scores, *expected, strict=True):
        assert (row.precision, row.recall, row.f1, row.clips) == pytest.approx((precision, recall, f1, count))
    assert [row[:-1] for row in ours.confusion()] == metrics.confusion_matrix(truth, found).tolist()
    assert ours.macro_f1 == pytest.approx(metrics.f1_score(truth, found, average="macro"))


# -- a bundle ---------------------------------------------------------------------------------------------------------


def test_bundle_is_given_the_labels_and_scores_that_infer_prints(colors: Path, clips: Path) -> None:
    test = load_dataset(clips).split("test")
    steps: list[int] = []
    with open_classifier(colors, device="cpu") as classifier:
        found = evaluate(classifier.model, test, options=OPTIONS, progress=lambda: steps.append(1))
    printed = edgeclf("infer", *(clip.path for clip in test), "-b", colors, "--format", "jsonl").stdout
    lines = [json.loads(line) for line in printed.splitlines()]
    results = {line["source"]: line for line in lines if line["type"] == "result"}
    assert list(found.found) == [results[str(clip.path)]["label"] for clip in test]
    expected = [list(results[str(clip.path)]["scores"].values()) for clip in test]
    np.testing.assert_allclose(found.scores, expected, atol=1e-5)
    assert found.truth == tuple(clip.label for clip in test)
    assert found.names == tuple(str(clip.path) for clip in test)
    assert found.labels == ("red", "green", "blue")
    assert (found.accuracy, found.errors, len(steps)) == (7 / 8, (), 8)
    assert found.confusion() == [[2, 0, 1, 0], [0, 2, 0, 0], [0, 0, 3, 0]]


def test_clip_that_cannot_be_read_is_wrong_and_reported(colors: Path, clips: Path, tmp_path: Path) -> None:
    (tmp_path / "text.avi").write_text("not a video")
    good = load_dataset(clips).split("test")[0]
    given = [
        LabelledClip(tmp_path / "text.avi", "blue", "", "test"),
        good,
        LabelledClip(tmp_path / "none.avi", "red", "", "test"),
    ]
    with open_classifier(colors, device="cpu") as classifier:
        found = evaluate(classifier.model, given, options=OPTIONS)
    assert found.found == (FAILED, "red", FAILED)
    assert found.accuracy == 1 / 3
    assert found.to_dict()["failed"] == 2
    assert found.confusion() == [[1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert "text.avi" in found.problems[0]
    assert found.problems[1] == ""
    assert "none.avi" in found.problems[2]
    assert found.errors == (found.problems[0], found.problems[2])


def test_file_that_is_listed_twice_is_scored_twice(colors: Path, clips: Path) -> None:
    first, other, *_ = load_dataset(clips).split("test")
    with open_classifier(colors, device="cpu") as classifier:
        found = evaluate(classifier.model, [first, other, first], options=OPTIONS)
    assert (found.scores[0] == found.scores[2]).all()
    assert not np.isnan(found.scores).any()


def test_label_that_the_model_does_not_know_is_refused_before_anything_runs(colors: Path) -> None:
    unknown = [LabelledClip(Path("a.avi"), label, "", "test") for label in ("red", "pink", "lilac")]
    with (
        open_classifier(colors, device="cpu") as classifier,
        pytest.raises(DataError, match="does not know lilac, pink; it knows red, green, blue"),
    ):
        evaluate(classifier.model, unknown, options=OPTIONS)


def test_no_clip_is_refused(colors: Path) -> None:
    with (
        open_classifier(colors, device="cpu") as classifier,
        pytest.raises(DataError, match="no clip to evaluate on; choose another --split"),
    ):
        evaluate(classifier.model, [], options=OPTIONS)
