"""Every clip is scored once, by a model that saw nothing of its group."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgeclf.dataset import LabelledClip
from edgeclf.errors import DataError
from edgeclf.train import cross_validation
from edgeclf.train.cross_validation import cross_validate
from edgeclf.train.evaluation import FAILED, Evaluation, evaluation_of
from edgeclf.train.recipe import RECIPES
from tests.support.training import Told

LABELS = ("cat", "dog")
GROUPS = 6
CLIPS = [
    LabelledClip(Path(f"{label}_{group}_{number}.avi"), label, f"{label}{group}", split)
    for label in LABELS
    for group in range(GROUPS)
    for number in range(2)
    for split in ["train" if group % 2 else "validation"]
]
RECIPE = RECIPES.load("lite0-gru")


@dataclass
class Stub:
    """Stands in for training and scoring: keeps what each model saw, and knows which clips it cannot read."""

    unreadable: frozenset[str] = frozenset()
    models: list[SimpleNamespace] = field(default_factory=list)

    def train(self, recipe: Any, train: Any, validation: Any, labels: Any, workplace: Any) -> SimpleNamespace:
        self.models.append(
            SimpleNamespace(recipe=recipe, train=train, validation=validation, labels=labels, workplace=workplace)
        )
        return self.models[-1]

    def score(self, trained: SimpleNamespace, clips: Any, workplace: Any) -> tuple[Evaluation, Evaluation]:
        trained.scored = list(clips)
        rows = [None if clip.name in self.unreadable else self.row(clip) for clip in clips]
        found = evaluation_of(trained.labels, clips, rows)
        return found, found

    @staticmethod
    def row(clip: LabelledClip) -> list[float]:
        """Scores that tell the clip; the first of each group is taken for a cat."""
        right = clip.label == "cat" or "_0.avi" not in clip.name
        share = 0.6 + 0.001 * CLIPS.index(replace(clip, split=CLIPS[names().index(clip.name)].split))
        winner = LABELS.index(clip.label) if right else 0
        return [share, 1 - share] if winner == 0 else [1 - share, share]


def names() -> list[str]:
    return [clip.name for clip in CLIPS]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install 'edgeclf[train]'")
    stub = Stub()
    monkeypatch.setattr(cross_validation, "train_recipe", stub.train)
    monkeypatch.setattr(cross_validation, "score", stub.score)
    keras = SimpleNamespace(utils=SimpleNamespace(clear_session=lambda: None))
    monkeypatch.setattr(cross_validation, "import_keras", lambda: keras)
    return stub


def groups_of(clips: list[LabelledClip]) -> set[str]:
    return {clip.group for clip in clips}


def found(stub: Stub, *, folds: int = 3, repeats: int = 1, told: Told | None = None, **options: Any) -> Any:
    workplace = (told or Told()).workplace(Path("cache"), **options)
    return cross_validate(RECIPE, CLIPS, LABELS, workplace, folds=folds, repeats=repeats)


@pytest.mark.parametrize("folds", [2, 3, GROUPS])
def test_every_clip_is_scored_once_by_a_model_that_never_saw_its_group(stub: Stub, folds: int) -> None:
    found(stub, folds=folds)
    assert len(stub.models) == folds
    assert Counter(clip.name for model in stub.models for clip in model.scored) == Counter(names())
    for model in stub.models:
        seen = groups_of(model.train) | groups_of(model.validation)
        assert not seen & groups_of(model.scored)
        assert seen | groups_of(model.scored) == groups_of(CLIPS)


def test_validation_of_each_model_is_of_other_groups_than_its_training(stub: Stub) -> None:
    found(stub)
    for model in stub.models:
        assert not groups_of(model.train) & groups_of(model.validation)
        assert {clip.label for clip in model.train} == {clip.label for clip in model.validation} == set(LABELS)


def test_split_that_the_data_had_does_not_matter(stub: Stub) -> None:
    found(stub)
    assert any(clip.name in {c.name for c in CLIPS if c.split == "validation"} for m in stub.models for clip in m.train)
    assert any(clip.name in {c.name for c in CLIPS if c.split == "train"} for m in stub.models for clip in m.validation)


def test_scores_stand_with_their_clips(stub: Stub) -> None:
    (evaluation,) = found(stub).repeats
    assert evaluation.names == tuple(names())
    assert evaluation.truth == tuple(clip.label for clip in CLIPS)
    np.testing.assert_allclose(evaluation.scores, [Stub.row(clip) for clip in CLIPS])
    wrong = sum(clip.label == "dog" and "_0.avi" in clip.name for clip in CLIPS)
    assert evaluation.accuracy == pytest.approx(1 - wrong / len(CLIPS))


def test_clip_that_cannot_be_read_is_wrong(stub: Stub) -> None:
    stub.unreadable = frozenset({"cat_0_0.avi"})
    (evaluation,) = found(stub).repeats
    assert evaluation.found[names().index("cat_0_0.avi")] == FAILED


def test_repeats_draw_other_folds_and_other_weights(stub: Stub) -> None:
    result = found(stub, folds=3, repeats=3)
    assert len(stub.models) == 9
    assert [model.recipe.settings.seed for model in stub.models] == [0] * 3 + [1] * 3 + [2] * 3
    drawn = {
        frozenset(frozenset(groups_of(model.scored)) for model in stub.models[3 * n : 3 * n + 3]) for n in range(3)
    }
    assert len(drawn) == 3
    assert all(sorted(evaluation.names) == sorted(names()) for evaluation in result.repeats)


def test_same_seed_draws_the_same_folds(stub: Stub) -> None:
    found(stub)
    found(stub)
    assert [groups_of(model.scored) for model in stub.models[:3]] == [
        groups_of(model.scored) for model in stub.models[3:]
    ]


def test_no_fold_leaves_a_checkpoint_for_another(stub: Stub) -> None:
    found(stub, checkpoints=Path("checkpoints"))
    assert {model.workplace.checkpoints for model in stub.models} == {None}


def test_each_fold_is_told_with_its_accuracy(stub: Stub) -> None:
    told = Told()
    found(stub, folds=2, repeats=2, told=told)
    assert [line.partition(":")[0] for line in told.said] == [
        f"repeat {repeat}, fold {fold} of 2" for repeat in (1, 2) for fold in (1, 2)
    ]


def test_figures_are_those_of_all_clips(stub: Stub) -> None:
    result = found(stub, repeats=2)
    figures = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (figures["folds"], figures["clips"], figures["groups"]) == (3, len(CLIPS), 2 * GROUPS)
    assert figures["repeats"] == [round(evaluation.accuracy, 4) for evaluation in result.repeats]
    assert figures["accuracy"] == pytest.approx(np.mean(figures["repeats"]), abs=1e-4)
    assert figures["recall"]["cat"] == 1.0
    assert figures["recall"]["dog"] < 1.0
    interval = figures["accuracy_interval_of_first"]
    assert interval["low"] <= figures["repeats"][0] <= interval["high"]


def test_class_with_fewer_groups_than_folds_is_refused(stub: Stub) -> None:
    with pytest.raises(DataError, match="cat has 6 groups, too few for 7 folds"):
        found(stub, folds=GROUPS + 1)
    assert stub.models == []
