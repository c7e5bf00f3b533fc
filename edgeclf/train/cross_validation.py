"""Grouped cross-validation: a figure that rests on all training recordings, not on the few of the test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgeclf.dataset import Dataset, LabelledClip, with_validation
from edgeclf.folds import grouped_folds
from edgeclf.model_directory import import_keras
from edgeclf.train.evaluation import Evaluation, evaluation_of
from edgeclf.train.recipe import Recipe
from edgeclf.train.training import Workplace, score, train_recipe


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """One evaluation for each repeat, over all clips, each scored by a model that saw nothing of its group."""

    folds: int
    repeats: tuple[Evaluation, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary."""
        accuracies = [evaluation.accuracy for evaluation in self.repeats]
        first = self.repeats[0]
        interval = first.accuracy_interval()
        return {
            "folds": self.folds,
            "clips": len(first.truth),
            "groups": first.independent_groups,
            "accuracy": round(float(np.mean(accuracies)), 4),
            "repeats": [round(value, 4) for value in accuracies],
            "accuracy_interval_of_first": {"low": round(interval.low, 4), "high": round(interval.high, 4)},
            "recall": {
                row.label: round(float(np.mean([e.class_scores()[index].recall for e in self.repeats])), 4)
                for index, row in enumerate(first.class_scores())
            },
        }


def cross_validate(
    recipe: Recipe,
    clips: Sequence[LabelledClip],
    labels: tuple[str, ...],
    workplace: Workplace,
    *,
    folds: int,
    repeats: int = 1,
) -> CrossValidation:
    """Score every clip by a model that was trained on the groups of the other folds.

    Each model keeps a fifth of its own clips, by groups, for validation. Repeats draw other folds and other weights.
    Raises DataError where a class has fewer groups than there are folds.
    """
    return CrossValidation(
        folds, tuple(_one_repeat(recipe, clips, labels, workplace, folds, repeat) for repeat in range(repeats))
    )


def _one_repeat(
    recipe: Recipe,
    clips: Sequence[LabelledClip],
    labels: tuple[str, ...],
    workplace: Workplace,
    folds: int,
    repeat: int,
) -> Evaluation:
    seed = recipe.settings.seed + repeat
    recipe = recipe.with_seed(seed)
    workplace = replace(workplace, checkpoints=None)
    rows: dict[int, Any] = {}
    for number, held_out in enumerate(grouped_folds(clips, folds, seed=seed), start=1):
        evaluation = _one_fold(recipe, clips, set(held_out), labels, workplace)
        rows.update(zip(sorted(held_out), evaluation.scores, strict=True))
        workplace.say(f"repeat {repeat + 1}, fold {number} of {folds}: {evaluation.accuracy:.3f}")
        import_keras().utils.clear_session()
    return evaluation_of(labels, clips, [rows[index] for index in range(len(clips))])


def _one_fold(
    recipe: Recipe,
    clips: Iterable[LabelledClip],
    held_out: set[int],
    labels: tuple[str, ...],
    workplace: Workplace,
) -> Evaluation:
    known = [replace(clip, split="train") for index, clip in enumerate(clips) if index not in held_out]
    unknown = [clip for index, clip in enumerate(clips) if index in held_out]
    split = with_validation(Dataset(tuple(known), labels), seed=recipe.settings.seed)
    quiet = replace(workplace, say=lambda _message: None)
    trained = train_recipe(recipe, split.split("train"), split.split("validation"), labels, quiet)
    found, _ = score(trained, unknown, quiet)
    return found
