"""The gate of export: a bundle must give Keras' answers, graph by graph and from picture to label.

What is compared is the written bundle as the runtime opens it, with everything in its manifest, against the
model directory run by Keras. A swapped colour channel, gate, resize or label therefore shows as a difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.bundle import ModelBundle
from edgeclf.clips import padded
from edgeclf.errors import ParityError, SessionError
from edgeclf.metrics import changed_winners, margins
from edgeclf.model_directory import ParityFrames, open_keras_model, read_parity
from edgeclf.runtime.model import Floats, Model, open_model
from edgeclf.runtime.pipeline import Form, LoopOptions, run_loop
from edgeclf.runtime.records import Prediction, SourceEnd
from edgeclf.theatre import ACTIONS

SCORE_TOLERANCE = 1e-4
FEATURE_TOLERANCE = 1e-3  # of the largest feature
CLEAR_MARGIN = 1e-3  # between the first two scores; closer ones may change places

RENDERED_SCENES = tuple(f"synthetic://{action}?seed=7&look=unseen" for action in ACTIONS)


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison: how many rows, how far apart at most, and how many clear winners changed."""

    name: str
    rows: int
    max_difference: float
    tolerance: float
    changed_labels: int

    @property
    def passed(self) -> bool:
        """Within the tolerance (a NaN is not), and no label changed."""
        return self.rows > 0 and self.max_difference <= self.tolerance and self.changed_labels == 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary."""
        return {
            "name": self.name,
            "rows": self.rows,
            "max_difference": float(f"{self.max_difference:.3g}"),
            "tolerance": float(f"{self.tolerance:.3g}"),
            "changed_labels": self.changed_labels,
            "passed": self.passed,
        }

    def __str__(self) -> str:
        verdict = "agrees" if self.passed else "DIFFERS"
        return (
            f"{self.name:<28} {verdict}: {self.rows} rows, largest difference {self.max_difference:.2e} "
            f"(allowed {self.tolerance:.0e}), {self.changed_labels} labels changed"
        )


def check_parity(bundle: ModelBundle, model_path: Path, clips: Sequence[str] = ()) -> list[Check]:
    """Compare a bundle with the model directory it was made from.

    Real frames of the model directory go through the extractor, the classifier at every clip length, and both
    together; rendered scenes, and the videos `clips`, go from the picture to the label. Where a file's clips are not
    those of a stream, both are compared.
    """
    converted, original = open_model(bundle, "cpu"), open_keras_model(model_path)
    parity = read_parity(model_path)
    return [
        *([_check_extractor(converted, original, parity)] if bundle.extractor.has_graph else []),
        *_check_classifier(converted, original, parity),
        _check_chain(converted, original, parity),
        _check_rules(converted, original),
        *_check_both_forms("rendered scenes", converted, original, RENDERED_SCENES),
        *(_check_both_forms("decoded clips", converted, original, clips) if clips else []),
    ]


def require_parity(checks: Iterable[Check]) -> None:
    """Raise ParityError that names every check that failed."""
    if failed := [str(check) for check in checks if not check.passed]:
        raise ParityError("the bundle does not agree with Keras:\n  " + "\n  ".join(failed), hint="nothing was written")


def _check_extractor(converted: Model, original: Model, parity: ParityFrames) -> Check:
    frames = np.concatenate([clip[:length] for clip, length in zip(parity.frames, parity.lengths, strict=True)])
    expected, found = original.extract(frames), converted.extract(frames)
    tolerance = FEATURE_TOLERANCE * max(1.0, float(np.abs(expected).max()))
    return Check("extractor", len(frames), _largest_difference(found, expected), tolerance, 0)


def _check_classifier(converted: Model, original: Model, parity: ParityFrames) -> list[Check]:
    """Every clip of the parity frames, cut to every length. What stands behind it must not matter where it is masked.

    A mean over no frames is no number, so that Keras may have no scores for a clip of length 0.
    """
    masked = original.clip.padding == "mask"
    lengths = np.arange(0 if masked else 1, original.clip.length + 1, dtype=np.int32)
    cuts = np.tile(lengths, len(parity.features))
    features = np.repeat(parity.features, len(lengths), axis=0)
    cut = _cut(features, cuts, original)
    expected = original.classify(cut, cuts)
    known = np.isfinite(expected).all(axis=1) | (cuts > 0)
    found = converted.classify(cut, cuts)
    checks = [_scores_check(f"classifier, lengths {lengths[0]} to T", found[known], expected[known])]
    if masked:
        found = converted.classify(features, cuts)
        checks.append(_scores_check("classifier, noise as padding", found[known], expected[known]))
    return checks


def _cut(features: NDArray[Any], lengths: NDArray[np.int32], model: Model) -> NDArray[Any]:
    """Clips cut to lengths, with the padding that the model has behind them."""
    return np.stack([padded(rows[:length], model.clip) for rows, length in zip(features, lengths, strict=True)])


def _check_chain(converted: Model, original: Model, parity: ParityFrames) -> Check:
    """Frames to scores, against the answers that Keras gave when the model was trained."""
    clips = zip(parity.frames, parity.lengths, strict=True)
    features = np.stack([padded(converted.extract(frames[:length]), original.clip) for frames, length in clips])
    return _scores_check("frames to scores", converted.classify(features, parity.lengths), parity.scores)


def _check_rules(converted: Model, original: Model) -> Check:
    """What no single clip shows: how clips make a file's label, what gap ends a clip, and what is unknown."""
    rules = [
        (model.aggregate, model.clip.stale_seconds, model.clip.padding, model.clip.sampling, model.thresholds)
        for model in (converted, original)
    ]
    return Check("aggregate and gaps", len(rules[0]), 0.0 if rules[0] == rules[1] else float("inf"), 0.0, 0)


def _check_both_forms(name: str, converted: Model, original: Model, sources: Sequence[str]) -> list[Check]:
    """As a stream, and as files where those have other clips."""
    checks = [_check_sources(name, converted, original, sources)]
    if original.clip.sampling != "rate":
        checks.append(_check_sources(f"{name}, as files", converted, original, sources, form="file"))
    return checks


def _check_sources(
    name: str, converted: Model, original: Model, sources: Sequence[str], *, form: Form = "stream"
) -> Check:
    """Pictures to labels: both models run the whole loop, each with its own preprocessing, clips and labels."""
    expected = _predictions(original, sources, form)
    try:
        found = _predictions(converted, sources, form)
    except SessionError:  # of scores that are no numbers
        return Check(name, len(expected), float("inf"), SCORE_TOLERANCE, 0)
    if sorted(converted.labels) != sorted(original.labels):
        return Check(f"{name} (other labels)", len(expected), float("inf"), SCORE_TOLERANCE, 0)
    if [_place(prediction) for prediction in found] != [_place(prediction) for prediction in expected]:
        return Check(f"{name} (other clips)", len(expected), float("inf"), SCORE_TOLERANCE, 0)
    difference = _largest_difference(_scores_by_label(converted, found), _scores_by_label(original, expected))
    changed = sum(
        a.top_label != b.top_label and bool(margins(np.array([b.scores]))[0] > CLEAR_MARGIN)
        for a, b in zip(found, expected, strict=True)
    )
    return Check(name, len(expected), difference, SCORE_TOLERANCE, changed)


def _predictions(model: Model, sources: Sequence[str], form: Form) -> list[Prediction]:
    options = LoopOptions(depth=0, workers=0, batch_size=8)
    predictions = []
    for record in run_loop(sources, model, options, form=form):
        if isinstance(record, SourceEnd) and record.error:
            raise record.error
        if isinstance(record, Prediction):
            predictions.append(record)
    return predictions


def _scores_by_label(model: Model, predictions: list[Prediction]) -> NDArray[Any]:
    """(N, C), the columns in alphabetical order of the labels: a label that never wins must have its own score too."""
    scores = np.array([prediction.scores for prediction in predictions]).reshape(-1, len(model.labels))
    ordered: NDArray[Any] = scores[:, np.argsort(model.labels)]
    return ordered


def _place(prediction: Prediction) -> tuple[str, float, float]:
    return prediction.source, prediction.start_seconds, prediction.end_seconds


def _scores_check(name: str, found: Floats, expected: Floats) -> Check:
    changed = changed_winners(found, expected, CLEAR_MARGIN)
    return Check(name, len(expected), _largest_difference(found, expected), SCORE_TOLERANCE, changed)


def _largest_difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.abs(found - expected).max(initial=0)) if found.shape == expected.shape else float("inf")
