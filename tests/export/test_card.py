"""What a person reads of a model: figures, not dumps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgeclf.export.card import model_card
from edgeclf.export.parity import Check
from edgeclf.model_directory import ModelDescription
from edgeclf.specs import ClipSpec, PreprocessSpec

LABELS = ("jump", "run", "rest")
CHECK = Check("extractor", 5, 1e-6, 1e-3, 0)


def described(**changes: Any) -> ModelDescription:
    description = ModelDescription(
        name="sports",
        recipe="lite0-gru",
        labels=LABELS,
        preprocess=PreprocessSpec((32, 32)),
        clip=ClipSpec.by_rate(8, 4.0),
        aggregate="mean",
        keras_version="3",
        provenance={"summary": "What people do."},
        evaluation={},
    )
    return replace(description, **changes)


def measured(labels: tuple[str, ...] = LABELS, *, low: float | None = 0.7) -> dict[str, Any]:
    """The figures of a test, in the form that training writes."""
    return {
        "clips": 220,
        "accuracy": 0.8091,
        "accuracy_interval": {"low": low, "high": 0.9, "level": 0.95, "groups": 12, "method": "bootstrap"},
        "macro": {"precision": 0.8, "recall": 0.81, "f1": 0.79},
        "classes": {
            label: {"precision": 0.5, "recall": n / 100, "f1": 0.6, "clips": 2} for n, label in enumerate(labels)
        },
        "average_precision": {"mean": 0.9, "classes": dict.fromkeys(labels, 0.9)},
        "calibration": {"expected_calibration_error": 0.02},
        "confusion": [[1] * (len(labels) + 1)] * len(labels),
        "failed": 0,
    }


def card(**changes: Any) -> str:
    return model_card(described(**changes), [CHECK])


def test_measurement_is_a_line_and_a_column_of_recalls() -> None:
    crossed = {"folds": 5, "clips": 90, "accuracy": 0.7, "recall": {"jump": 0.6, "run": 0.8}}
    text = card(evaluation={"validation": {"loss": 0.3}, "test": measured(), "cross_validation": crossed})
    assert "- test: accuracy 0.8091 (95 % interval 0.7 to 0.9), macro F1 0.79, on 220 clips\n" in text
    assert "- cross validation: accuracy 0.7, on 90 clips, 5 folds\n" in text
    assert "- validation:\n  - loss: 0.3\n" in text
    assert "| recall of | test | cross validation |\n| --- | ---: | ---: |\n| jump | 0.0 | 0.6 |\n" in text
    assert "| rest | 0.02 |  |\n" in text
    assert "confusion" not in text
    assert "calibration" not in text


def test_of_many_classes_the_lowest_are_shown() -> None:
    text = card(evaluation={"test": measured(tuple(f"class{n}" for n in range(101)))})
    rows = [line for line in text.splitlines() if line.startswith("| class")]
    assert rows == [f"| class{n} | {n / 100} |" for n in range(10)]
    assert "| lowest recalls of 101 | test |" in text


def test_interval_that_cannot_be_told_is_left_out() -> None:
    assert "- test: accuracy 0.8091, macro F1" in card(evaluation={"test": measured(low=None)})


def test_plain_figures_are_listed() -> None:
    text = card(evaluation={"accuracy": 0.5, "controls": {"shuffled": 0.1}})
    assert "- accuracy: 0.5\n- controls:\n  - shuffled: 0.1\n" in text


def test_counts_of_many_classes_are_summed_up() -> None:
    classes = {f"class{n}": n + 1 for n in range(20)}
    assert "  - classes: 20, with 1 to 20 each\n" in card(provenance={"split": {"classes": classes}})


def test_frames_of_files_pictures_and_thresholds_are_told() -> None:
    clip = replace(described().clip, sampling="first", padding="repeat_last")
    text = card(clip=clip, preprocess=PreprocessSpec((32, 32), stack=2, stack_seconds=0.12), thresholds={"run": 0.25})
    assert "- files: the first 8 frames of a file that is labelled as a whole; a stream is cut into clips by" in text
    assert "2 pictures, 0.12 s apart" in text
    assert "- `unknown` where the highest score is below that of its label: run 0.25" in text


def test_plain_model_says_nothing_of_files_stacks_and_thresholds() -> None:
    text = card()
    assert not [word for word in ("files", "pictures", "unknown") if word in text]
    assert str(CHECK) in text
