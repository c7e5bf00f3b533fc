"""Labelled clips: a folder for each class, or a CSV; and splits that keep recordings together."""

from __future__ import annotations

import csv
import logging
import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgeclf.errors import DataError
from edgeclf.video import VIDEO_SUFFIXES

log = logging.getLogger(__name__)

_UCF_GROUP = re.compile(r"^v_\w+_(g\d+)_c\d+$")
_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "valid": "validation", "test": "test"}


@dataclass(frozen=True, slots=True)
class LabelledClip:
    """A video file with its class, the recording it was cut from, and the split it belongs to."""

    path: Path
    label: str
    group: str  # clips of one group are never split; empty where nothing is known
    split: str  # "train", "validation" or "test"


@dataclass(frozen=True, slots=True)
class Dataset:
    """Clips with the sorted names of their classes."""

    clips: tuple[LabelledClip, ...]
    labels: tuple[str, ...]

    def split(self, name: str) -> list[LabelledClip]:
        """The clips of one split, in the order of the data set."""
        return [clip for clip in self.clips if clip.split == name]


def load_dataset(path: Path, *, classes: Collection[str] = ()) -> Dataset:
    """The data set behind a CSV (`path,label,group,split`), or behind a folder with one folder for each class.

    classes: only these, if any are named. Paths in a CSV are relative to it. Raises DataError where there is
    nothing, a class is unknown, or a group or file stands in two splits.
    """
    clips = _from_folder(path) if path.is_dir() else _from_csv(path)
    labels = sorted({clip.label for clip in clips})
    if unknown := sorted(set(classes) - set(labels)):
        raise DataError(f"{path} has no class {', '.join(unknown)}", hint=f"it has {', '.join(labels)}")
    if classes:
        clips = [clip for clip in clips if clip.label in classes]
        labels = sorted(set(classes))
    _refuse_two_labels(clips, path)
    _refuse_leaks(clips, path)
    return Dataset(tuple(clips), tuple(labels))


def with_validation(dataset: Dataset, *, share: float = 0.2, seed: int = 0) -> Dataset:
    """The data set with a validation split: its own, or groups that are taken out of the training clips.

    Whole groups are drawn until `share` of the training clips is reached, and one more for each class that has
    none of them; a clip without group is a group of its own. A group name is one group, also where several classes
    have it: that is always safe. Raises DataError where a class is left without training or validation clips.
    """
    if len(dataset.labels) < 2:
        raise DataError(f"there is only the class {', '.join(dataset.labels)}", hint="a classifier needs two at least")
    if not dataset.split("validation"):
        train = dataset.split("train")
        chosen = _drawn_groups(train, share, seed)
        clips = [
            replace(clip, split="validation") if clip.split == "train" and _unit(clip) in chosen else clip
            for clip in dataset.clips
        ]
        dataset = replace(dataset, clips=tuple(clips))
    for split in ("train", "validation"):
        if missing := sorted(set(dataset.labels) - {clip.label for clip in dataset.split(split)}):
            raise DataError(
                f"no {split} clip is left of {', '.join(missing)}",
                hint="add clips of other recordings, or a split column",
            )
    return dataset


def _drawn_groups(train: Sequence[LabelledClip], share: float, seed: int) -> set[str]:
    sizes = Counter(_unit(clip) for clip in train)
    order = sorted(sizes)
    random.Random(seed).shuffle(order)  # noqa: S311 - a reproducible split, not a secret
    chosen: set[str] = set()
    while order and sum(sizes[unit] for unit in chosen) < share * len(train):
        chosen.add(order.pop())
    for label in sorted({clip.label for clip in train}):
        units = {_unit(clip) for clip in train if clip.label == label}
        if len(units) > 1 and not units & chosen:
            chosen.add(next(unit for unit in reversed(order) if unit in units))
    return chosen


def _unit(clip: LabelledClip) -> str:
    return clip.group or str(clip.path)


def _from_folder(folder: Path) -> list[LabelledClip]:
    """Clips of all class folders, all for training; groups are known where files are named as in UCF101."""
    clips = [
        LabelledClip(path, path.relative_to(folder).parts[0], _ucf_group(path), "train")
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file() and path.parent != folder
    ]
    if len({clip.label for clip in clips}) < 2:
        raise DataError(f"{folder} does not hold two folders with videos", hint="make one folder for each class")
    if not all(clip.group for clip in clips):
        log.warning("%s: no groups are known; clips of one recording may stand in training and validation", folder)
    return clips


def _ucf_group(path: Path) -> str:
    match = _UCF_GROUP.match(path.stem)
    return match.group(1) if match else ""


def _from_csv(file: Path) -> list[LabelledClip]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:  # spreadsheets write a byte order mark
            reader = csv.DictReader(text)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read: {error}", hint="name a folder or a CSV with path,label") from error
    if not rows or not {"path", "label"} <= set(rows[0][1]):
        raise DataError(f"{file} has no rows with the columns path and label", hint="its first line names the columns")
    return [_clip_of_row(row, file, number) for number, row in rows]


def _clip_of_row(row: dict[str, str], file: Path, number: int) -> LabelledClip:
    split = _SPLITS.get((row.get("split") or "train").strip().lower())
    if split is None:
        raise DataError(f"{file}, line {number}: split is {row['split']!r}", hint="use train, val or test")
    if not row["path"] or not row["label"]:
        raise DataError(f"{file}, line {number}: path or label is empty", hint="fill in both")
    return LabelledClip(file.parent / row["path"], row["label"], (row.get("group") or "").strip(), split)


def _refuse_two_labels(clips: Iterable[LabelledClip], path: Path) -> None:
    labels: dict[Path, str] = {}
    for clip in clips:
        if labels.setdefault(clip.path, clip.label) != clip.label:
            raise DataError(f"{path}: {clip.path} is labelled {labels[clip.path]} and {clip.label}", hint="keep one")


def _refuse_leaks(clips: Iterable[LabelledClip], path: Path) -> None:
    splits: dict[str, str] = {}
    for clip in clips:
        for unit in filter(None, (clip.group and f"group {clip.group!r}", f"file {str(clip.path)!r}")):
            if splits.setdefault(unit, clip.split) != clip.split:
                raise DataError(
                    f"{path}: {unit} stands in {splits[unit]} and {clip.split}",
                    hint="a recording belongs to one split, or the score means nothing",
                )
