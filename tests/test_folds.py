"""Folds and validation splits: recordings stay whole, classes stay balanced, the seed alone decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from edgeclf.errors import DataError
from edgeclf.folds import grouped_folds, unit_of, validation_of
from edgeclf.layouts import LabelledClip


@pytest.fixture(autouse=True)
def sklearn() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install 'edgeclf[train]'")


def clips_of(groups: Mapping[str, int], clips: int = 4) -> list[LabelledClip]:
    """`clips` clips in each of so many groups of each class; every group is of one class."""
    return [
        LabelledClip(Path(f"{label}/{group}_{n}.avi"), label, f"{label}/g{group:02}", "train")
        for label, count in groups.items()
        for group in range(count)
        for n in range(clips)
    ]


def ungrouped(count: int, labels: tuple[str, ...] = ("run", "sit")) -> list[LabelledClip]:
    return [LabelledClip(Path(f"{label}{n}.avi"), label, "", "train") for label in labels for n in range(count)]


def units(clips: list[LabelledClip], positions: tuple[int, ...] | frozenset[int]) -> set[str]:
    return {unit_of(clips[position]) for position in positions}


# -- folds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_every_clip_is_held_out_once_and_no_group_is_split(seed: int) -> None:
    clips = clips_of({"run": 9, "sit": 7, "walk": 5})
    folds = grouped_folds(clips, 5, seed=seed)
    assert sorted(position for fold in folds for position in fold) == list(range(len(clips)))
    assert sum(len(units(clips, fold)) for fold in folds) == len({clip.group for clip in clips})


def test_every_fold_holds_about_as_many_clips_of_a_class() -> None:
    clips = clips_of({"run": 20, "sit": 10})
    for fold in grouped_folds(clips, 5):
        assert Counter(clips[position].label for position in fold) == {"run": 16, "sit": 8}


def test_group_of_several_classes_stays_whole() -> None:
    clips = [
        LabelledClip(Path(f"{label}{scene}{n}.avi"), label, f"scene{scene}", "train")
        for scene in range(10)
        for label in ("fight", "calm")
        for n in range(2)
    ]
    for fold in grouped_folds(clips, 5):
        assert len(fold) == 8
        assert len(units(clips, fold)) == 2


def test_clip_without_group_is_a_group_of_its_own() -> None:
    clips = ungrouped(10)
    assert [len(fold) for fold in grouped_folds(clips, 5)] == [4] * 5


def test_folds_depend_on_the_seed_and_not_on_the_order_of_the_clips() -> None:
    clips = clips_of({"run": 9, "sit": 8})
    backwards = clips[::-1]
    folds = [[units(clips, fold) for fold in grouped_folds(clips, 4, seed=seed)] for seed in range(4)]
    assert folds == [[units(backwards, fold) for fold in grouped_folds(backwards, 4, seed=seed)] for seed in range(4)]
    assert any(fold != folds[0] for fold in folds)


def test_class_with_fewer_groups_than_folds_is_named() -> None:
    with pytest.raises(DataError, match="sit has 3 groups, too few for 4 folds"):
        grouped_folds(clips_of({"run": 9, "sit": 3}), 4)


def test_one_fold_is_refused() -> None:
    with pytest.raises(DataError, match="1 folds cannot be made"):
        grouped_folds(ungrouped(3), 1)


# -- validation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.5, 0.8])
def test_share_is_met_in_every_class(share: float) -> None:
    clips = clips_of({"run": 20, "sit": 40, "walk": 10})
    counts = Counter(clips[position].label for position in validation_of(clips, share))
    assert counts == {label: pytest.approx(share * total, abs=4) for label, total in totals(clips).items()}


def totals(clips: list[LabelledClip]) -> Counter[str]:
    return Counter(clip.label for clip in clips)


@pytest.mark.parametrize("seed", range(20))
def test_class_with_two_groups_is_on_both_sides(seed: int) -> None:
    clips = clips_of({"run": 20, "sit": 2, "walk": 2, "fly": 3})
    chosen = validation_of(clips, 0.2, seed=seed)
    left = frozenset(range(len(clips))) - chosen
    for side in (chosen, left):
        assert {clips[position].label for position in side} == {"run", "sit", "walk", "fly"}
    assert not units(clips, chosen) & units(clips, left)
    assert len(chosen) <= 0.3 * len(clips)


@pytest.mark.parametrize("seed", range(10))
def test_classes_that_share_groups_are_on_both_sides(seed: int) -> None:
    clips = [
        LabelledClip(Path(f"{label}{scene}.avi"), label, f"scene{scene}", "train")
        for label, scenes in (("a", (0, 1)), ("b", (1, 2)), ("c", (2, 3)), ("d", (3, 0)))
        for scene in scenes
    ]
    chosen = validation_of(clips, 0.3, seed=seed)
    assert {clips[position].label for position in chosen} == set("abcd")
    assert {clip.label for position, clip in enumerate(clips) if position not in chosen} == set("abcd")


def test_nothing_is_held_out_of_single_recordings() -> None:
    assert validation_of(clips_of({"run": 1, "sit": 1}), 0.2) == frozenset()
    assert validation_of([], 0.2) == frozenset()


@pytest.mark.parametrize("share", [0.0, 1.0, -0.2, 7.0, float("nan")])
def test_share_has_to_lie_between_none_and_all(share: float) -> None:
    with pytest.raises(DataError, match="it is above 0 and below 1"):
        validation_of(ungrouped(4), share)
