"""The report of an evaluation: a page to look at, a record to read by program, and a row for each clip.

`report.html` stands alone: styles, figures and pictures are in it, and it loads nothing.
"""

from __future__ import annotations

import base64
import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from edgeclf.dataset import LabelledClip
from edgeclf.metrics import Curve, Reliability
from edgeclf.report_page import PAGE, STYLE
from edgeclf.train import figures
from edgeclf.train.evaluation import FAILED, LEVEL, Evaluation

_PICTURES = 6  # of each wrong clip
_CONFUSIONS = 10  # pairs that are written out
_DENSE = 24  # classes from which on the cells of the confusion matrix are small
_UNSEEN = 3.0  # about -log(0.05): errors expected in a sample that shows none 1 time in 20


def write_report(
    folder: Path,
    evaluation: Evaluation,
    *,
    title: str,
    about: Mapping[str, Any],
    clips: Sequence[LabelledClip],
    history: Sequence[Mapping[str, float]] = (),
    thresholds: Mapping[str, float] | None = None,
    temperature: float | None = None,
    untempered: Evaluation | None = None,
    worst: int = 8,
) -> None:
    """Write `report.html`, `report.json` and `predictions.csv` into the folder, which is made if need be.

    about: where model and data come from; it may be nested. clips: those of the evaluation, in its order, or none
    where there shall be no pictures. history: a row for each epoch with epoch, loss, accuracy, val_loss,
    val_accuracy, learning_rate, as far as known. thresholds: of the labels, shown and not applied. temperature: the
    one that is already in the scores. untempered: the same clips without it, to compare with. worst: how many wrong
    clips are shown, the most confident first. Raises ValueError where clips do not fit the evaluation.
    """
    if clips and [clip.label for clip in clips] != list(evaluation.truth):
        raise ValueError("the clips are not those of the evaluation")
    report = _Report(evaluation, title, about, clips, history, thresholds, temperature, untempered, worst)
    folder.mkdir(parents=True, exist_ok=True)
    record = json.dumps(report.to_dict(), indent=2, allow_nan=False, default=str)
    (folder / "report.json").write_text(record + "\n", encoding="utf-8")
    _write_predictions(folder / "predictions.csv", evaluation)
    (folder / "report.html").write_text(report.to_html(), encoding="utf-8")


def _write_predictions(path: Path, evaluation: Evaluation) -> None:
    """A row for each clip; scores have nine digits, which is all that float32 holds."""
    columns = (evaluation.names, evaluation.groups, evaluation.truth, evaluation.found, evaluation.correct)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        scores = [f"score:{label}" for label in evaluation.labels]
        writer.writerow(["name", "group", "truth", "found", "correct", "score", *scores])
        for *clip, correct, row in zip(*columns, evaluation.scores, strict=True):
            cells = ["" if math.isnan(score) else f"{score:.9g}" for score in (row.max(), *row)]
            writer.writerow([*clip, "true" if correct else "false", *cells])


@dataclass(frozen=True)  # not slotted: figures that several sections show are worked out once
class _Report:
    """What is reported, and how each part of it is shown."""

    evaluation: Evaluation
    title: str
    about: Mapping[str, Any]
    clips: Sequence[LabelledClip]
    history: Sequence[Mapping[str, float]]
    thresholds: Mapping[str, float] | None
    temperature: float | None
    untempered: Evaluation | None
    worst: int

    @cached_property
    def figures(self) -> dict[str, Any]:
        """The evaluation's own dictionary."""
        return self.evaluation.to_dict()

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """The precision-recall curves of the classes that have a clip."""
        return self.evaluation.curves()

    @cached_property
    def bins(self) -> Reliability:
        """The reliability of the scores as they are."""
        return self.evaluation.reliability()

    @cached_property
    def bins_without(self) -> Reliability | None:
        """The reliability of the scores without the temperature, where they are known."""
        return self.untempered.reliability() if self.untempered else None

    @cached_property
    def answered(self) -> tuple[int, int]:
        """How many clips reach the threshold of the label found, and how many of these labels are right."""
        wanted = np.array([(self.thresholds or {}).get(label, 0.0) for label in self.evaluation.found])
        reached = self.evaluation.confidence >= wanted
        return int(reached.sum()), int((reached & self.evaluation.correct).sum())

    # -- record

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary: the evaluation's, and all that the page shows beside it."""
        return {
            "title": self.title,
            **self.figures,
            "temperature": self.temperature,
            "expected_calibration_error_without_temperature": (
                _known(self.bins_without.expected_calibration_error) if self.bins_without else None
            ),
            "thresholds": dict(self.thresholds) if self.thresholds is not None else None,
            "with_thresholds": (
                {"answered": self.answered[0], "right": self.answered[1]} if self.thresholds is not None else None
            ),
            "curves": {label: _curve_to_dict(curve) for label, curve in self.curves.items()},
            "reliability": {
                "counts": self.bins.counts.tolist(),
                "confidence": [_known(value) for value in self.bins.confidence],
                "accuracy": [_known(value) for value in self.bins.accuracy],
            },
            "history": [{key: _known(value) for key, value in row.items()} for row in self.history],
            "about": dict(self.about),
        }

    # -- page

    def to_html(self) -> str:
        """The whole page."""
        sections = (
            ("Classes", self._classes()),
            ("Confusion", self._confusion()),
            ("Precision and recall", self._precision_recall()),
            ("Calibration", self._calibration()),
            ("Training", self._training()),
            ("Most confident errors", self._errors()),
            ("Reading problems", self._problems()),
            ("Provenance", self._provenance()),
        )
        body = "\n".join(f"<section><h2>{name}</h2>\n{text}\n</section>" for name, text in sections if text)
        return PAGE.format(title=escape(self.title), style=STYLE, head=self._head(), body=body)

    def _head(self) -> str:
        accuracy, interval = self.evaluation.accuracy, self.evaluation.accuracy_interval()
        bounds = f"{_percent(LEVEL, 0)} interval {_percent(interval.low)} to {_percent(interval.high)}"
        spread = f"<br><em>{bounds}</em>" if interval.is_known else ""
        tiles = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in self._tiles())
        return (
            f'<p class="headline"><strong>{_percent(accuracy)}</strong> '
            f"<span>accuracy{spread}</span></p>\n<p>{self._basis()}</p>\n<dl>{tiles}</dl>"
        )

    def _tiles(self) -> Iterator[tuple[str, str]]:
        figures = self.figures
        yield "macro F1", _number(figures["macro"]["f1"])
        yield "mean average precision", _number(figures["average_precision"]["mean"])
        if "top_5_accuracy" in figures:
            yield "among the top 5", _percent(figures["top_5_accuracy"])
        calibration = figures["calibration"]
        yield "calibration error", _number(calibration["expected_calibration_error"])
        yield "log loss", _number(calibration["log_loss"])
        yield "Brier score", _number(calibration["brier"])

    def _basis(self) -> str:
        """How many clips and groups the accuracy rests on."""
        right, count = int(self.evaluation.correct.sum()), len(self.evaluation.truth)
        groups = self.evaluation.independent_groups
        parts = [f"{right} of {_counted(count, 'clip')} labelled rightly, among {len(self.evaluation.labels)} classes."]
        if groups == count:
            parts.append("Each clip counts as independent.")
        elif groups > 1:
            parts.append(
                f"The clips come from {groups} independent groups; the interval resamples whole groups, because clips "
                "of one group tend to be right or wrong together."
            )
        if groups < 2:
            parts.append("All of it is one group, so there is no telling how far the figure carries.")
        elif right == count:
            unseen = min(1.0, _UNSEEN / groups)
            parts.append(f"No error was seen, which an error rate of up to {_percent(unseen)} could also give.")
        if failed := self.figures["failed"]:
            parts.append(f"{_counted(failed, 'clip')} could not be read, which counts as wrong.")
        return " ".join(parts)

    def _classes(self) -> str:
        figures, thresholds = self.figures, self.thresholds
        head = ["class", "clips", "precision", "recall", "F1", "average<br>precision"] + ["threshold"] * (
            thresholds is not None
        )
        rows = []
        for row in self.evaluation.class_scores():
            average = figures["average_precision"]["classes"][row.label]
            cells = [_th(row.label), f"<td>{row.clips}</td>", *map(_bar, (row.precision, row.recall, row.f1, average))]
            if thresholds is not None:
                cells.append(f"<td>{_number(thresholds.get(row.label, 0.0), 4)}</td>")
            rows.append("".join(cells))
        foot = [
            self._average_row("macro", "every class counts the same"),
            self._average_row("weighted", "every clip does"),
        ]
        note = ""
        if thresholds is not None:
            answered, right = self.answered
            note = (
                f"<p>A label is given where its score reaches the threshold: to {answered} of "
                f"{_counted(len(self.evaluation.truth), 'clip')}, and {_share(right, answered)} of these labels are "
                "right. All other figures are without thresholds.</p>"
            )
        return _table(head, rows, foot) + note

    def _average_row(self, kind: str, meaning: str) -> str:
        figures, clips = self.figures[kind], len(self.evaluation.truth)
        averages = [
            (value.average_precision, self.evaluation.truth.count(label)) for label, value in self.curves.items()
        ]
        weights = [1 if kind == "macro" else count for _, count in averages]
        mean = sum(value * weight for (value, _), weight in zip(averages, weights, strict=True)) / max(1, sum(weights))
        cells = [_number(figures[key]) for key in ("precision", "recall", "f1")] + [_number(mean)]
        return (
            f'<th scope="row">{kind} <small>{meaning}</small></th><td>{clips}</td>'
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "<td></td>" * (self.thresholds is not None)
        )

    def _confusion(self) -> str:
        labels, counts = self.evaluation.labels, np.array(self.evaluation.confusion())
        failed = bool(counts[:, -1].any())
        columns = [*labels, FAILED] if failed else list(labels)
        heads = "".join(f'<th scope="col"><span>{escape(label)}</span></th>' for label in columns)
        rows = [
            f"<tr>{_th(label)}"
            + "".join(_cell(row, place, number, columns, label) for place in range(len(columns)))
            + "</tr>"
            for number, (label, row) in enumerate(zip(labels, counts, strict=True))
        ]
        dense = " dense" if len(labels) >= _DENSE else ""
        return (
            f"<p>Row: what is there. Column: what was found. Colour: share of the row.</p>\n"
            f'<div class="scroll{dense}"><table class="confusion"><thead><tr><td></td>{heads}</tr></thead>\n'
            f"<tbody>{''.join(rows)}</tbody></table></div>\n" + self._frequent_confusions()
        )

    def _frequent_confusions(self) -> str:
        labels, counts = self.evaluation.labels, np.array(self.evaluation.confusion())[:, :-1]
        pairs = [(counts[i, j], i, j) for i, j in zip(*np.nonzero(counts), strict=True) if i != j]
        rows = [
            f'{_th(labels[i])}<td class="text">{escape(labels[j])}</td><td>{count}</td>'
            f"<td>{_share(count, self.evaluation.truth.count(labels[i]))}</td>"
            for count, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2]))[:_CONFUSIONS]
        ]
        if not rows:
            return ""
        return "<h3>Most frequent confusions</h3>\n" + _table(
            ["what is there", "what was found", "clips", "of its clips"], rows, text_columns=2
        )

    def _precision_recall(self) -> str:
        if not self.curves:
            return ""
        ranked = sorted(self.curves.items(), key=lambda item: item[1].average_precision)
        few = len(ranked) <= figures.SERIES
        shown = list(self.curves.items()) if few else ranked[: figures.SERIES]
        legend = [(f"var(--c{n})", label, curve.average_precision) for n, (label, curve) in enumerate(shown)]
        mean = self.figures["average_precision"]["mean"]
        which = "" if few else f" Shown are the {figures.SERIES} classes with the lowest average precision."
        return (
            '<div class="beside"><div>'
            + _figure(
                figures.precision_recall_figure([c for _, c in shown], figures.mean_precision(self.curves.values()))
            )
            + f"</div><div>{_legend([*legend, ('var(--ink)', f'mean of all {len(ranked)}', mean)])}"
            + f"<p>Each class against all others; the number is the average precision.{which}</p></div></div>"
        )

    def _calibration(self) -> str:
        error = self.bins.expected_calibration_error
        if math.isnan(error):
            return ""
        legend = [("var(--accent)", "as it is" if self.temperature is None else "with temperature", error)]
        note = "A bar above the dashed line is a score that promises too little, one below it too much."
        if self.bins_without:
            legend.append(("var(--c1)", "without temperature", self.bins_without.expected_calibration_error))
        if self.temperature is not None:
            note += f" A temperature of {self.temperature:.3g} is in the scores."
        return (
            f'<div class="beside"><div>{_figure(figures.reliability_figure(self.bins, self.bins_without))}</div>'
            f"<div>{_legend(legend)}<p>How often the label found is right, by its score, in {len(self.bins.counts)} "
            f"bins; the number is the expected calibration error. {note}</p></div></div>"
        )

    def _training(self) -> str:
        if not (svg := figures.history_figure(self.history)):
            return ""
        rows = "".join(
            f'<li><i style="background:{color}"></i>{name}</li>'
            for color, name in (("var(--accent)", "training"), ("var(--c1)", "validation"))
        )
        return (
            f'{_figure(svg, "wide")}<ul class="legend inline">{rows}</ul>'
            "<p>The dotted line marks the lowest validation loss.</p>"
        )

    def _errors(self) -> str:
        wrong = np.flatnonzero(~self.evaluation.correct & (self.evaluation.found_indices >= 0))
        if not len(self.clips) or not self.worst:
            return ""
        if not len(wrong):
            return "<p>No clip that could be read is labelled wrongly.</p>"
        order = wrong[np.argsort(-self.evaluation.confidence[wrong], kind="stable")][: self.worst]
        return "\n".join(self._strip(int(index)) for index in order)

    def _strip(self, index: int) -> str:
        evaluation = self.evaluation
        pictures, problem = figures.thumbnails(self.clips[index].source, _PICTURES)
        images = "".join(
            f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">' for jpeg in pictures
        )
        strip = f'<div class="strip">{images}</div>' if images else ""
        note = f'<p class="problem">{escape(problem)}</p>' if problem else ""
        return (
            f"<figure>{strip}{note}<figcaption><b>{escape(evaluation.truth[index])}</b> found as "
            f"<b>{escape(evaluation.found[index])}</b> with {evaluation.confidence[index]:.3f} "
            f"<small>{escape(evaluation.names[index])}</small></figcaption></figure>"
        )

    def _problems(self) -> str:
        evaluation = self.evaluation
        rows = [
            f'{_th(name)}<td class="text">{escape(truth)}</td><td class="text">{escape(found)}</td>'
            f'<td class="text">{escape(problem) or "gave no clip"}</td>'
            for name, truth, found, problem in zip(
                evaluation.names, evaluation.truth, evaluation.found, evaluation.problems, strict=True
            )
            if problem or found == FAILED
        ]
        return _table(["clip", "what is there", "what was found", "problem"], rows, text_columns=4) if rows else ""

    def _provenance(self) -> str:
        rows = [
            _th(" \u203a ".join(keys)) + f'<td class="text">{escape(value)}</td>' for keys, value in _leaves(self.about)
        ]
        return _table([], rows) if rows else ""


# -- parts of a page --------------------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Iterable[str], foot: Iterable[str] = (), *, text_columns: int = 1) -> str:
    """A table of rows of cells. text_columns: how many columns, from the left, are words and not numbers."""
    heads = "".join(
        f'<th scope="col"{" class=text" if place < text_columns else ""}>{name}</th>' for place, name in enumerate(head)
    )
    parts = [
        f"<thead><tr>{heads}</tr></thead>" if head else "",
        "<tbody>" + "\n".join(f"<tr>{row}</tr>" for row in rows) + "</tbody>",
        "".join(f"<tr>{row}</tr>" for row in foot),
    ]
    parts[2] = f"<tfoot>{parts[2]}</tfoot>" if parts[2] else ""
    return f'<div class="scroll"><table>{"".join(parts)}</table></div>'


def _cell(row: Any, place: int, own: int, columns: Sequence[str], label: str) -> str:
    """A cell of the confusion matrix; `own` is the place of the row's label."""
    count, total = int(row[place]), int(row.sum())
    if not count:
        return '<td class="own"></td>' if place == own else "<td></td>"
    kind = "hit" if place == own else "miss"
    strong = " strong" if count / total > 0.85 else ""
    title = escape(f"{label} found as {columns[place]}: {count} of {total}")
    return f'<td class="{kind}{strong}" style="--s:{count / total:.2f}" title="{title}">{count}</td>'


def _legend(entries: Iterable[tuple[str, str, float | None]]) -> str:
    rows = "".join(
        f'<li><i style="background:{color}"></i><span>{escape(name)}</span><b>{_number(value)}</b></li>'
        for color, name, value in entries
    )
    return f'<ul class="legend">{rows}</ul>'


def _figure(svg: str, kind: str = "") -> str:
    return f'<div class="scroll"><div class="plot {kind}">{svg}</div></div>'


def _th(text: str) -> str:
    return f'<th scope="row">{escape(text)}</th>'


def _bar(value: float | None) -> str:
    return f'<td class="bar" style="--v:{value or 0:.3f}">{_number(value)}</td>'


def _leaves(values: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """The values of a nested mapping as text, each with the keys that lead to it."""
    for key, value in values.items():
        keys = (*above, str(key))
        if isinstance(value, Mapping):
            yield from _leaves(value, keys)
        elif isinstance(value, (list, tuple)):
            yield keys, ", ".join(map(str, value))
        else:
            yield keys, str(value)


def _curve_to_dict(curve: Curve) -> dict[str, list[float]]:
    """The corners of a curve: all that average precision depends on."""
    corners = curve.corners()
    columns = {"recall": corners.recall, "precision": corners.precision, "thresholds": corners.thresholds}
    return {name: [round(value, 6) for value in values.tolist()] for name, values in columns.items()}


def _known(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None


def _number(value: float | None, digits: int = 3) -> str:
    return "\u2013" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}\u202f%"


def _share(part: int, whole: int) -> str:
    return _percent(part / whole) if whole else "\u2013"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
