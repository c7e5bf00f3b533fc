"""Figures against values worked out by hand, and a bundle against `infer`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeclf.errors import DataError
from edgeclf.runtime.pipeline import LoopOptions, open_classifier
from edgeclf.train.dataset import LabelledClip, load_dataset
from edgeclf.train.evaluation import FAILED, ClassScore, Evaluation, evaluate
from tests.support.labelled import edgeclf, write_color_clips, write_csv
from tests.support.videos import BLUE, RED, plain, write_video

OPTIONS = LoopOptions(workers=2, sources_at_once=2)

# a: right, right, b, failed. b: right, a, a. c is never there and found once, in place of b.
BY_HAND = Evaluation(
    ("a", "b", "c", "d"),
    ("a", "a", "a", "a", "b", "b", "b", "b"),
    ("a", "a", "b", FAILED, "b", "a", "a", "c"),
    ("four.avi is damaged",),
)


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
    never_found = Evaluation(("a", "b"), ("a", "b"), ("b", "b"))
    assert never_found.class_scores() == [ClassScore("a", 0, 0, 0, 1), ClassScore("b", 0.5, 1, 2 * 0.5 / 1.5, 1)]


def test_confusion_has_a_row_for_what_is_there_and_a_last_column_for_failed_clips() -> None:
    assert BY_HAND.confusion() == [[2, 1, 0, 0, 1], [2, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]


def test_nothing_evaluated_divides_by_nothing() -> None:
    empty = Evaluation(("a",), (), ())
    assert (empty.accuracy, empty.confusion()) == (0.0, [[0, 0]])


def test_dictionary_is_json_with_four_digits() -> None:
    found = json.loads(json.dumps(BY_HAND.to_dict()))
    assert (found["clips"], found["accuracy"], found["failed"]) == (8, 0.375, 1)
    assert found["classes"]["b"] == {"precision": 0.5, "recall": 0.25, "f1": 0.3333, "clips": 4}
    assert found["confusion"][0] == [2, 1, 0, 0, 1]


def test_figures_equal_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed: pip install 'edgeclf[dev]'")
    truth = [*"aaabbbbccccc"]
    found = [*"aabbbbacccab"]
    ours = Evaluation(("a", "b", "c"), tuple(truth), tuple(found))
    scores = ours.class_scores()
    expected = metrics.precision_recall_fscore_support(truth, found, labels=[*"abc"])
    for row, precision, recall, f1, count in zip(scores, *expected, strict=True):
        assert (row.precision, row.recall, row.f1, row.clips) == pytest.approx((precision, recall, f1, count))
    assert [row[:-1] for row in ours.confusion()] == metrics.confusion_matrix(truth, found).tolist()


# -- a bundle ---------------------------------------------------------------------------------------------------------


def test_bundle_is_given_the_labels_that_infer_prints(colors: Path, clips: Path) -> None:
    test = load_dataset(clips).split("test")
    steps: list[int] = []
    with open_classifier(colors, device="cpu") as classifier:
        found = evaluate(classifier.model, test, options=OPTIONS, progress=lambda: steps.append(1))
    printed = edgeclf("infer", *(clip.path for clip in test), "-b", colors, "--format", "jsonl").stdout
    lines = [json.loads(line) for line in printed.splitlines()]
    labels = {line["source"]: line["label"] for line in lines if line["type"] == "result"}
    assert list(found.found) == [labels[str(clip.path)] for clip in test]
    assert found.truth == tuple(clip.label for clip in test)
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
    assert {name for name in ("text.avi", "none.avi") for error in found.errors if name in error} == {
        "text.avi",
        "none.avi",
    }


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
