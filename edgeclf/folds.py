"""Which clips are held out: whole recordings, with the classes balanced."""

from __future__ import annotations

import random
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import chain
from typing import Any

from edgeclf.errors import DataError, import_extra
from edgeclf.layouts import LabelledClip

_MOST_FOLDS = 20  # shares are met to a twentieth
_ATTEMPTS = 20  # at a draw that leaves every class on both sides, where groups hold several classes


def grouped_folds(clips: Sequence[LabelledClip], folds: int, *, seed: int = 0) -> list[tuple[int, ...]]:
    """The positions in `clips` that each fold holds out; every clip is held out once.

    Whole groups, and of each class about as many clips in every fold; a clip without group is a group of its own.
    The folds depend on the clips and the seed, not on the order of the clips. Raises DataError where a class has
    fewer groups than there are folds.
    """
    if folds < 2:
        raise DataError(f"{folds} folds cannot be made", hint="two at the least")
    for label, units in _units_by_label(clips).items():
        if len(units) < folds:
            raise DataError(
                f"{label} has {len(units)} groups, too few for {folds} folds",
                hint="make fewer folds, or add clips of other recordings",
            )
    return _folds(clips, folds, seed)


def validation_of(clips: Sequence[LabelledClip], share: float, *, seed: int = 0) -> frozenset[int]:
    """The positions in `clips` to validate on: whole groups with about `share` of the clips of each class.

    A class that has two groups is on both sides, unless groups hold several classes and no such choice is found.
    Empty where no class has two groups. Raises DataError where `share` is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise DataError(f"a share of {share:g} cannot be held out", hint="it is above 0 and below 1")
    by_label = _units_by_label(clips)
    most = max((len(units) for units in by_label.values()), default=0)
    if most < 2:
        return frozenset()
    folds = min(most, _MOST_FOLDS)
    candidates = chain.from_iterable(_candidates(clips, share, folds, seed + n) for n in range(_ATTEMPTS))
    first = next(candidates)
    chosen = next((units for units in chain([first], candidates) if _on_both_sides(by_label, units)), first)
    return frozenset(position for position, clip in enumerate(clips) if unit_of(clip) in chosen)


def unit_of(clip: LabelledClip) -> str:
    """What is never split: the clip's group, or the clip itself where none is known."""
    return clip.group or clip.name


def _candidates(clips: Sequence[LabelledClip], share: float, most: int, seed: int) -> Iterator[set[str]]:
    """Groups that could be held out, the choices nearest to `share` first."""
    part = min(max(Fraction(share).limit_denominator(most), Fraction(1, most)), Fraction(most - 1, most))
    folds = _folds(clips, part.denominator, seed)
    doubled = folds + folds
    choices = [
        [position for fold in doubled[start : start + part.numerator] for position in fold]
        for start in range(len(folds))
    ]
    for choice in sorted(choices, key=lambda positions: abs(len(positions) - share * len(clips))):
        yield _with_every_class({unit_of(clips[position]) for position in choice}, clips, seed)


def _with_every_class(chosen: set[str], clips: Sequence[LabelledClip], seed: int) -> set[str]:
    """The groups and, for each class that has none among them, one of its own unless it is the only one."""
    chosen = set(chosen)
    for label, units in _units_by_label(clips).items():
        if len(units) > 1 and not units & chosen:
            chosen.add(random.Random(f"{seed} {label}").choice(sorted(units)))  # noqa: S311 - a reproducible draw
    return chosen


def _on_both_sides(by_label: Mapping[str, set[str]], chosen: set[str]) -> bool:
    return all(units & chosen and units - chosen for units in by_label.values() if len(units) > 1)


def _units_by_label(clips: Iterable[LabelledClip]) -> dict[str, set[str]]:
    units: defaultdict[str, set[str]] = defaultdict(set)
    for clip in clips:
        units[clip.label].add(unit_of(clip))
    return dict(sorted(units.items()))


def _folds(clips: Sequence[LabelledClip], folds: int, seed: int) -> list[tuple[int, ...]]:
    selection: Any = import_extra("sklearn.model_selection", "scikit-learn", "train")
    order = sorted(range(len(clips)), key=lambda index: (unit_of(clips[index]), clips[index].label, clips[index].name))
    labels = [clips[index].label for index in order]
    units = [unit_of(clips[index]) for index in order]
    splitter = selection.StratifiedGroupKFold(folds, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():  # where a class has fewer clips than folds; the callers see to that
        warnings.simplefilter("ignore", UserWarning)
        held_out = [positions for _, positions in splitter.split(labels, labels, units)]
    return [tuple(sorted(order[position] for position in positions)) for positions in held_out]
