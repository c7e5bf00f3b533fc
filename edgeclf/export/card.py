"""The model card that goes into a bundle: what was trained on what, how well it does, what it is for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from edgeclf.export.parity import Check
from edgeclf.export.precision import PrecisionReport
from edgeclf.model_directory import ModelDescription
from edgeclf.specs import ClipSpec, PreprocessSpec

CARD_NAME = "MODEL_CARD.md"

_MANY_CLASSES = 30  # more are not shown one by one
_LOWEST_CLASSES = 10
_MANY_COUNTS = 12


def model_card(
    description: ModelDescription, checks: Iterable[Check], precisions: Iterable[PrecisionReport] = ()
) -> str:
    """Markdown made of the model's own records: `provenance`, `evaluation` and the parity reports of its classifier."""
    provenance = dict(description.provenance)
    lines = [
        f"# {description.name}",
        "",
        str(provenance.pop("summary", f"A video classifier trained by the recipe `{description.recipe}`.")),
        "",
        f"- labels: {', '.join(description.labels)}",
        *_input(description.clip, description.preprocess),
        *_thresholds(description.thresholds),
        "",
        "## Intended use",
        "",
        str(provenance.pop("intended_use", "As its training data allow; measure it on your own video first.")),
        "",
        "## Accuracy, as measured",
        "",
        *_accuracy(description.evaluation),
        "",
        "## Data, weights and licences",
        "",
        *_listed(provenance),
        "",
        "## Agreement with Keras",
        "",
        *(f"- {check}" for check in checks),
        *_beside_fp32(precisions),
        "",
    ]
    return "\n".join(lines)


def _beside_fp32(precisions: Iterable[PrecisionReport]) -> Iterator[str]:
    said = [f"- {report}" for report in precisions]
    if said:
        yield from ("", "## Lower precisions beside FP32", "", *said)


# -- what goes in -----------------------------------------------------------------------------------------------------

_OF_FILES = {
    "first": "the first {length} frames of a file that is labelled as a whole",
    "uniform": "{length} frames spread evenly over a file that is labelled as a whole",
}


def _input(clip: ClipSpec, preprocess: PreprocessSpec) -> Iterator[str]:
    yield (
        f"- clip: {clip.length} frame{'s' if clip.length > 1 else ''} at {clip.rate:g} a second ({clip.seconds:g} s), "
        f"a new clip every {clip.hop_seconds:g} s"
    )
    if clip.sampling in _OF_FILES:
        yield f"- files: {_OF_FILES[clip.sampling].format(length=clip.length)}; a stream is cut into clips by time"
    yield (
        f"- input: {preprocess.size[0]}x{preprocess.size[1]} {preprocess.color}, crop `{preprocess.crop}`, "
        f"resize `{preprocess.interpolation}`"
    )
    if preprocess.stack > 1:
        yield f"- a frame comes with those before it: {preprocess.stack} pictures, {preprocess.stack_seconds:g} s apart"


def _thresholds(thresholds: Mapping[str, float]) -> Iterator[str]:
    if thresholds:
        said = ", ".join(f"{label} {score:g}" for label, score in thresholds.items())
        yield f"- `unknown` where the highest score is below that of its label: {said}"


# -- how well it does -------------------------------------------------------------------------------------------------


def _accuracy(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """The figures that matter of each measurement, and the recall of classes; the manifest has all of them."""
    measured = {name: value for name, value in evaluation.items() if _is_measurement(value)}
    for name, figures in measured.items():
        yield f"- {_words(name)}: {_figures(figures)}"
    yield from _listed({name: value for name, value in evaluation.items() if name not in measured})
    recalls = {name: _recalls(figures) for name, figures in measured.items()}
    yield from _recall_table({name: recall for name, recall in recalls.items() if recall})


def _is_measurement(value: Any) -> bool:
    return isinstance(value, Mapping) and "accuracy" in value and "clips" in value


def _figures(figures: Mapping[str, Any]) -> str:
    said = f"accuracy {figures['accuracy']}"
    interval = figures.get("accuracy_interval") or figures.get("accuracy_interval_of_first") or {}
    if interval.get("low") is not None and interval.get("high") is not None:
        said += f" (95 % interval {interval['low']} to {interval['high']})"
    if macro := figures.get("macro"):
        said += f", macro F1 {macro['f1']}"
    counts = [f"{figures[what]} {what}" for what in ("clips", "groups", "folds") if what in figures]
    return f"{said}, on {', '.join(counts)}"


def _recalls(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The recall of each class that has a clip."""
    if "recall" in figures:
        return dict(figures["recall"])
    classes = figures.get("classes", {})
    return {label: row["recall"] for label, row in classes.items() if row["clips"]}


def _recall_table(recalls: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A column for each measurement; of many classes the rows of those that are found least."""
    if not recalls:
        return
    labels = list(dict.fromkeys(label for recall in recalls.values() for label in recall))
    title = "recall of"
    if len(labels) > _MANY_CLASSES:
        labels.sort(key=lambda label: min(recall.get(label, 1) for recall in recalls.values()))
        title = f"lowest recalls of {len(labels)}"
        labels = labels[:_LOWEST_CLASSES]
    yield from ("", f"| {title} | {' | '.join(map(_words, recalls))} |", "| --- |" + " ---: |" * len(recalls))
    for label in labels:
        yield f"| {label} | {' | '.join(str(recall.get(label, '')) for recall in recalls.values())} |"


# -- all else ---------------------------------------------------------------------------------------------------------


def _listed(values: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for key, value in values.items():
        name = key if indent else _words(key)  # further in, keys may be labels
        if not isinstance(value, Mapping):
            yield f"{indent}- {name}: {value}"
        elif len(value) > _MANY_COUNTS and all(isinstance(count, int) for count in value.values()):
            yield f"{indent}- {name}: {len(value)}, with {min(value.values())} to {max(value.values())} each"
        else:
            yield f"{indent}- {name}:"
            yield from _listed(value, indent + "  ")


def _words(key: str) -> str:
    return key.replace("_", " ")
