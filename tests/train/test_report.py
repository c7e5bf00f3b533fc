"""Reports of made-up evaluations: what they say, what they escape, and that they need nothing else."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgeclf import metrics
from edgeclf.dataset import LabelledClip
from edgeclf.errors import VideoError
from edgeclf.train import figures
from edgeclf.train.evaluation import FAILED, Evaluation
from edgeclf.train.figures import history_figure, thumbnails
from edgeclf.train.report import write_report
from edgeclf.video import RgbImage
from tests.support.videos import BLUE, RED, ListSource, plain, write_video

pytest.importorskip("matplotlib", reason="Matplotlib is not installed: pip install 'edgeclf[train]'")

VOID = {"meta", "img", "br"}
EVIL = '<script>alert("x")</script>&'
HISTORY = [
    {
        "epoch": epoch,
        "loss": 2 / epoch,
        "accuracy": 1 - 1 / (epoch + 1),
        "val_loss": 2 / epoch + 0.02 * epoch,
        "val_accuracy": 0.9 - 1 / (epoch + 1),
        "learning_rate": 1e-3 * 0.9**epoch,
    }
    for epoch in range(1, 13)
]


def random_evaluation(classes: int, count: int, *, failed: int = 0, strength: float = 2.0) -> Evaluation:
    """Clips of which the first `failed` cannot be read."""
    rng = np.random.default_rng(classes)
    truth = np.arange(count) % classes
    logits = rng.normal(size=(count, classes)) + strength * np.eye(classes)[truth]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores[:failed] = math.nan
    labels = tuple(f"class_{number}" for number in range(classes))
    return Evaluation(
        labels,
        tuple(labels[index] for index in truth),
        scores,
        tuple(f"clips/{number}.avi" for number in range(count)),
        tuple(f"g{number % 20}" for number in range(count)),
        tuple("VideoError: damaged" if number < failed else "" for number in range(count)),
    )


def clips_of(evaluation: Evaluation, path: Path) -> list[LabelledClip]:
    """The clips of an evaluation, all in one file."""
    return [LabelledClip(path, label, "", "test") for label in evaluation.truth]


def written(folder: Path, evaluation: Evaluation, **options: Any) -> str:
    """The page of a report; whatever else is in it is checked for every page."""
    write_report(folder, evaluation, **{"title": "A report", "about": {}, "clips": (), **options})
    html = (folder / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    assert all(address.startswith(("#", "data:image/jpeg;base64,")) for address in page.addresses)
    assert "url(http" not in html
    assert not re.search(r"\bnan\b", re.sub(r"base64,[^\"]*", "", html), re.IGNORECASE)
    return html


class Page(HTMLParser):
    """The text of a page, its pictures, and what it would load; tags must be closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "srcset"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "srcset"}]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)


def page_of(html: str) -> Page:
    page = Page()
    page.feed(html)
    return page


def words_of(html: str) -> str:
    """The text of the page, with one space for any white space."""
    return " ".join(" ".join(page_of(html).text).split())


# -- the page ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 8, 101])
def test_report_of_any_number_of_classes_is_one_page_that_loads_nothing(tmp_path: Path, classes: int) -> None:
    evaluation = random_evaluation(classes, 3 * classes + 40, failed=2)
    html = written(
        tmp_path, evaluation, history=HISTORY, temperature=1.5, thresholds=dict.fromkeys(evaluation.labels, 0.2)
    )
    page = page_of(html)
    assert page.tags.count("svg") == 3
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    words = words_of(html)
    for label in evaluation.labels:
        assert label in words
    for heading in ("Classes", "Confusion", "Precision and recall", "Calibration", "Training", "Reading problems"):
        assert heading in words


def test_headline_says_the_accuracy_and_what_it_rests_on(tmp_path: Path) -> None:
    evaluation = random_evaluation(4, 100, failed=1)
    words = words_of(written(tmp_path, evaluation))
    interval = evaluation.accuracy_interval()
    assert f"{100 * evaluation.accuracy:.1f} %" in words
    assert f"95 % interval {100 * interval.low:.1f} % to {100 * interval.high:.1f} %" in words
    assert f"{int(evaluation.correct.sum())} of 100 clips labelled rightly, among 4 classes." in words
    assert "20 independent groups" in words
    assert "1 clip could not be read, which counts as wrong." in words


def test_headline_owns_up_to_what_cannot_be_known(tmp_path: Path) -> None:
    one_group = Evaluation(("a", "b"), ("a", "b"), np.array([[0.9, 0.1], [0.9, 0.1]]), groups=("g", "g"))
    words = words_of(written(tmp_path, one_group))
    assert "All of it is one group" in words
    assert "interval" not in words
    no_error = Evaluation(("a", "b"), ("a", "b") * 30, np.array([[0.9, 0.1], [0.1, 0.9]] * 30))
    assert "an error rate of up to 5.0 %" in words_of(written(tmp_path, no_error))


def test_names_from_the_data_are_escaped(tmp_path: Path) -> None:
    labels = (EVIL, "$\\alpha$")
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [math.nan] * 2])
    evaluation = Evaluation(
        labels, (EVIL, labels[1], EVIL), scores, ("a", f"{EVIL}.avi", "c"), problems=("", "", f"VideoError: {EVIL}")
    )
    html = written(
        tmp_path,
        evaluation,
        title=EVIL,
        about={EVIL: {"of": [EVIL]}},
        clips=clips_of(evaluation, tmp_path / f"{EVIL}.avi"),
        thresholds={EVIL: 0.5},
    )
    assert "<script" not in html
    assert "script" not in page_of(html).tags
    assert words_of(html).count(EVIL) > 8
    assert "$\\alpha$" in html


def test_many_classes_show_the_worst_curves_and_the_mean(tmp_path: Path) -> None:
    evaluation = random_evaluation(30, 300)
    html = written(tmp_path, evaluation)
    legend = html[html.index("Precision and recall</h2>") :]
    legend = legend[legend.index('<ul class="legend">') : legend.index("</ul>")]
    worst = sorted(evaluation.average_precision().items(), key=lambda item: item[1])[:10]
    assert re.findall(r"<span>(.*?)</span>", legend) == [*(label for label, _ in worst), "mean of all 30"]


def test_confusion_shows_failed_clips_only_where_there_are_some(tmp_path: Path) -> None:
    assert FAILED not in written(tmp_path, random_evaluation(3, 60))
    html = written(tmp_path, random_evaluation(3, 60, failed=2))
    assert FAILED in html
    cells = re.findall(r'title="(class_\d found as [^"]*): (\d+) of 20">(\d+)<', html)
    assert ("class_0 found as (failed)", "1", "1") in cells
    assert all(title == text for _, title, text in cells)
    assert sum(int(count) for _, count, _ in cells) == 60


def test_thresholds_are_shown_with_what_they_would_do(tmp_path: Path) -> None:
    scores = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [math.nan] * 2])
    evaluation = Evaluation(("a", "b"), ("a", "b", "b", "b"), scores)
    words = words_of(written(tmp_path, evaluation, thresholds={"a": 0.7}))
    assert "to 2 of 4 clips, and 100.0 % of these labels are right." in words
    assert "0.7000" in words
    record = json.loads((tmp_path / "report.json").read_text())
    assert record["with_thresholds"] == {"answered": 2, "right": 2}


def test_temperature_compares_the_calibration_with_and_without(tmp_path: Path) -> None:
    evaluation, untempered = random_evaluation(4, 200), random_evaluation(4, 200, strength=1.0)
    words = words_of(written(tmp_path, evaluation, temperature=2.0, untempered=untempered))
    expected = untempered.reliability().expected_calibration_error
    assert f"without temperature {expected:.3f}" in words
    record = json.loads((tmp_path / "report.json").read_text())
    assert record["expected_calibration_error_without_temperature"] == pytest.approx(expected, abs=1e-6)
    words = words_of(written(tmp_path, evaluation, temperature=2.0))
    assert "A temperature of 2 is in the scores." in words
    assert "without temperature" not in words
    assert "temperature" not in words_of(written(tmp_path, evaluation))


@pytest.mark.parametrize(
    "history",
    [
        HISTORY[:1],
        [{"loss": 1.0}, {"loss": 0.5, "val_loss": 0.7}],
        [{"epoch": 1, "loss": math.nan, "val_loss": math.nan, "learning_rate": 0.0}],
    ],
)
def test_short_and_patchy_histories_are_drawn(tmp_path: Path, history: Sequence[Mapping[str, float]]) -> None:
    assert "<h2>Training</h2>" in written(tmp_path, random_evaluation(2, 20), history=history)


def test_no_history_has_no_figure(tmp_path: Path) -> None:
    assert "<h2>Training</h2>" not in written(tmp_path, random_evaluation(2, 20))
    assert history_figure([{"epoch": 1}]) == ""


@pytest.mark.parametrize(
    "evaluation",
    [
        random_evaluation(3, 6, failed=6),
        random_evaluation(3, 1),
        Evaluation(("a", "b", "c"), ("a", "a"), np.array([[0.2, 0.8, 0.0], [0.4, 0.6, 0.0]])),
        Evaluation(("a", "b"), (), np.array([])),
    ],
    ids=["all failed", "one clip", "class never there, another never found", "nothing"],
)
def test_degenerate_evaluations_are_reported(tmp_path: Path, evaluation: Evaluation) -> None:
    written(tmp_path, evaluation, temperature=1.2, thresholds={}, clips=clips_of(evaluation, tmp_path / "none.avi"))
    json.loads((tmp_path / "report.json").read_text())


def test_provenance_has_a_row_for_each_leaf(tmp_path: Path) -> None:
    about = {"data": {"path": Path("a/b"), "classes": ["x", "y"]}, "seed": 3}
    words = words_of(written(tmp_path, random_evaluation(2, 10), about=about))
    assert "data \u203a path a/b data \u203a classes x, y seed 3" in words
    assert json.loads((tmp_path / "report.json").read_text())["about"]["data"]["path"] == "a/b"


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_most_confident_errors_are_shown_with_pictures_and_unreadable_ones_with_words(tmp_path: Path) -> None:
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]])
    evaluation = Evaluation(("red", "blue"), ("blue", "blue", "blue", "blue"), scores, ("one", "two", "three", "four"))
    paths = [tmp_path / f"{name}.avi" for name in evaluation.names]
    write_video(paths[0], plain(RED, 1), fps=25)
    write_video(paths[3], plain(RED, 1), fps=25)
    clips = [LabelledClip(path, "blue", "", "test") for path in paths]
    html = written(tmp_path, evaluation, clips=clips, worst=2)
    strips = re.findall(r"<figure>.*?</figure>", html, re.DOTALL)
    assert len(strips) == 2
    assert strips[0].count("<img") == 6
    assert "blue</b> found as <b>red</b> with 0.900 <small>one</small>" in strips[0]
    assert strips[1].count("<img") == 0
    assert "VideoError" in strips[1]
    assert "three.avi" in strips[1]


def test_no_error_is_said_in_words(tmp_path: Path) -> None:
    right = Evaluation(("a", "b"), ("a", "b"), np.eye(2))
    assert "No clip that could be read is labelled wrongly." in written(
        tmp_path, right, clips=clips_of(right, tmp_path)
    )
    assert "Most confident errors" not in written(tmp_path, right)


def test_clips_of_another_evaluation_are_refused(tmp_path: Path) -> None:
    evaluation = random_evaluation(2, 4)
    with pytest.raises(ValueError, match="not those of the evaluation"):
        written(tmp_path, evaluation, clips=clips_of(evaluation, tmp_path)[:3])


def decoded(jpegs: Sequence[bytes]) -> list[RgbImage]:
    """The pictures, RGB."""
    pictures = [cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR) for jpeg in jpegs]
    return [np.asarray(picture, np.uint8)[..., ::-1] for picture in pictures]


def test_thumbnails_are_spread_over_the_whole_clip_and_small() -> None:
    shades = [(number, number, number) for number in range(20, 220)]
    pictures = [np.full((180, 320, 3), shade, np.uint8) for shade in shades]
    source = ListSource("grey", pictures, [number / 25 for number in range(200)])
    found, problem = thumbnails(source)
    assert (problem, source.closed) == ("", True)
    assert {picture.shape for picture in decoded(found)} == {(90, 160, 3)}
    assert [picture.mean() for picture in decoded(found)] == pytest.approx([20, 59, 98, 137, 176, 216], abs=6)


def test_thumbnails_keep_the_order_of_colours() -> None:
    found, _ = thumbnails(ListSource("blue", plain(BLUE, 0.2), [0, 0.04, 0.08, 0.12, 0.16]), count=1)
    assert decoded(found)[0].mean((0, 1)) == pytest.approx(BLUE, abs=20)


def test_thumbnails_of_a_short_or_tall_clip_are_what_there_is() -> None:
    tall = [np.zeros((400, 3, 3), np.uint8)] * 2
    found, _ = thumbnails(ListSource("tall", tall, [0, 1]))
    assert [picture.shape for picture in decoded(found)] == [(160, 1, 3)] * 2
    assert thumbnails(ListSource("none", [], [])) == ([], "")


def test_pictures_before_damage_are_shown_beside_what_was_wrong() -> None:
    broken = ListSource("cut", plain(RED, 0.4), [n / 25 for n in range(10)], error=VideoError("cut is damaged"))
    found, problem = thumbnails(broken)
    assert (len(found), problem) == (6, "VideoError: cut is damaged")


def test_file_that_is_not_there_gives_words(tmp_path: Path) -> None:
    found, problem = thumbnails(tmp_path / "none.avi")
    assert found == []
    assert "none.avi" in problem


# -- records ----------------------------------------------------------------------------------------------------------


def test_record_holds_the_figures_and_curves_of_the_evaluation(tmp_path: Path) -> None:
    evaluation = random_evaluation(5, 80, failed=2)
    written(tmp_path, evaluation, history=HISTORY, thresholds={"class_0": 0.5}, title="Five")
    record = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert {key: record[key] for key in evaluation.to_dict()} == json.loads(json.dumps(evaluation.to_dict()))
    assert (record["title"], record["thresholds"], record["temperature"]) == ("Five", {"class_0": 0.5}, None)
    assert record["history"][0]["val_loss"] == pytest.approx(HISTORY[0]["val_loss"])
    for label, average in evaluation.average_precision().items():
        curve = record["curves"][label]
        assert np.diff(curve["recall"], prepend=0) @ curve["precision"] == pytest.approx(average, abs=1e-4)
    assert sum(record["reliability"]["counts"]) == 78


def test_predictions_agree_with_the_evaluation(tmp_path: Path) -> None:
    evaluation = random_evaluation(3, 40, failed=1)
    written(tmp_path, evaluation)
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == list(evaluation.names)
    assert [row["group"] for row in rows] == list(evaluation.groups)
    assert [row["truth"] for row in rows] == list(evaluation.truth)
    assert [row["found"] for row in rows] == list(evaluation.found)
    assert [row["correct"] == "true" for row in rows] == evaluation.correct.tolist()
    read = np.array([[float(row[f"score:{label}"] or "nan") for label in evaluation.labels] for row in rows])
    np.testing.assert_allclose(read, evaluation.scores, rtol=1e-8)
    assert rows[0]["score"] == rows[0]["score:class_0"] == ""
    assert float(rows[1]["score"]) == pytest.approx(evaluation.confidence[1])


def test_figures_leave_no_placeholder_colour_behind() -> None:
    curve = metrics.precision_recall_curve(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]))
    svg = figures.precision_recall_figure([curve] * 12, figures.mean_precision([curve]))
    assert "#0102" not in svg
    assert "#0101" not in svg
    assert {f"var(--c{number})" for number in range(10)} <= set(re.findall(r"var\(--\w+\)", svg))
    assert "var(--ca)" not in svg
