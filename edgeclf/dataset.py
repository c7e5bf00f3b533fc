"""Labelled data sets: which classes are kept, what makes a set unfit, and a validation split."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgeclf.bundle import sha256_of
from edgeclf.errors import DataError
from edgeclf.folds import unit_of, validation_of
from edgeclf.layouts import (
    IMAGES_PER_CLIP,
    LabelledClip,
    clips_of_pictures,
    draw_image_clips,
    is_picture,
    read_layout,
    read_ucf101,
)

__all__ = [
    "BACKGROUND",
    "Dataset",
    "LabelledClip",
    "draw_image_clips",
    "load_dataset",
    "load_ucf101",
    "with_validation",
]

log = logging.getLogger(__name__)

BACKGROUND = "background"  # the class in which others are pooled


@dataclass(frozen=True, slots=True)
class Dataset:
    """Clips with the sorted names of their classes."""

    clips: tuple[LabelledClip, ...]
    labels: tuple[str, ...]

    @property
    def has_splits(self) -> bool:
        """Whether any clip is for validation or test; without such clips all of them count as for training."""
        return any(clip.split in ("validation", "test") for clip in self.clips)

    def split(self, name: str) -> list[LabelledClip]:
        """The clips of one split, in the order of the data set."""
        return [clip for clip in self.clips if clip.split == name]


def load_dataset(
    path: Path,
    *,
    classes: Collection[str] = (),
    background: Collection[str] = (),
    top: int | None = None,
    ucf_lists: Path | None = None,
    ucf_split: int = 1,
    images_per_clip: int = IMAGES_PER_CLIP,
) -> Dataset:
    """The data set behind a CSV, or behind a folder with one folder of videos or pictures for each class.

    A CSV has the columns path,label and, if they are known, group and split; `video_name,tag` and some others mean
    the same. Paths are relative to it. A folder is read through `train.csv` and `test.csv`, or `manifest.csv`, where
    it holds them. A folder of pictures inside a class folder is a clip; pictures straight inside it are put together
    by chance, always the same, `images_per_clip` at a time.

    classes: only these, if any are named, and the background. background: clips of these classes become one class.
    top: of the classes beside the background those that have most training clips. ucf_lists: the official lists of
    UCF101, of which split `ucf_split` says which clips below `path` are for training and for test.

    Raises DataError where there is nothing, a class is unknown, a group, a file or the content of a file stands in
    two splits, or has two labels. A file that is missing is an error only when it is read.
    """
    clips = read_ucf101(path, ucf_lists, ucf_split) if ucf_lists else read_layout(path)
    _refuse_unknown(clips, classes, background, path)
    if classes:
        clips = [clip for clip in clips if clip.label in {*classes, *background}]
    clips = [replace(clip, label=BACKGROUND) if clip.label in background else clip for clip in clips]
    if top is not None:
        kept = _largest(clips, top)
        clips = [clip for clip in clips if clip.label in kept]
    labels = sorted({clip.label for clip in clips})
    clips = _joined(_checked(clips, path), images_per_clip)
    if gone := sorted(set(labels) - {clip.label for clip in clips}):
        raise DataError(f"{path}: {', '.join(gone)} has too few pictures for a clip", hint="add some, or leave it out")
    return Dataset(tuple(clips), tuple(labels))


def load_ucf101(videos: Path, lists: Path, *, number: int = 1) -> Dataset:
    """The official split `number` (1, 2 or 3) of UCF101, or of the part of it that is below `videos`."""
    return load_dataset(videos, ucf_lists=lists, ucf_split=number)


def with_validation(
    dataset: Dataset, *, share: float = 0.2, seed: int = 0, by: Literal["group", "clip"] = "group"
) -> Dataset:
    """The data set with a validation split: its own, or about `share` of the training clips, of each class alike.

    by: "group" takes whole groups, "clip" single clips whatever recording they are from, which flatters the figures
    that are measured on them. A clip without group is a group of its own. A group name is one group, also where
    several classes have it. Raises DataError where a class is left without training or validation clips.
    """
    if len(dataset.labels) < 2:
        raise DataError(f"there is only the class {', '.join(dataset.labels)}", hint="a classifier needs two at least")
    if not dataset.split("validation"):
        dataset = _with_drawn_validation(dataset, share, seed, by)
    for split in ("train", "validation"):
        if missing := sorted(set(dataset.labels) - {clip.label for clip in dataset.split(split)}):
            raise DataError(
                f"no {split} clip is left of {', '.join(missing)}",
                hint="add clips of other recordings, or a split column",
            )
    return dataset


def _with_drawn_validation(dataset: Dataset, share: float, seed: int, by: Literal["group", "clip"]) -> Dataset:
    train = dataset.split("train")
    units = train if by == "group" else [replace(clip, group="") for clip in train]
    chosen = {train[position] for position in validation_of(units, share, seed=seed)}
    if torn := {clip.group for clip in chosen if clip.group} & {clip.group for clip in train if clip not in chosen}:
        log.warning(
            "clips of %d recordings stand in training and in validation: validation figures will flatter", len(torn)
        )
    clips = [replace(clip, split="validation") if clip in chosen else clip for clip in dataset.clips]
    return replace(dataset, clips=tuple(clips))


# -- classes ----------------------------------------------------------------------------------------------------------


def _refuse_unknown(
    clips: Iterable[LabelledClip], classes: Collection[str], background: Collection[str], path: Path
) -> None:
    labels = {clip.label for clip in clips}
    if unknown := sorted({*classes, *background} - labels):
        raise DataError(f"{path} has no class {', '.join(unknown)}", hint=f"it has {', '.join(sorted(labels))}")
    if both := sorted(set(classes) & set(background)):
        raise DataError(f"{', '.join(both)} cannot be a class and background", hint="name it once")


def _largest(clips: Iterable[LabelledClip], top: int) -> set[str]:
    """The `top` classes with most training clips, of several with as many the first by name; and the background."""
    if top < 1:
        raise DataError(f"the {top} largest classes are none", hint="keep one at the least")
    clips = list(clips)
    counts = Counter(clip.label for clip in clips if clip.split == "train")
    labels = sorted({clip.label for clip in clips} - {BACKGROUND}, key=lambda label: (-counts[label], label))
    return {*labels[:top], BACKGROUND}


def _joined(clips: Sequence[LabelledClip], images_per_clip: int) -> list[LabelledClip]:
    """The clips, and behind them the clips that loose pictures make."""
    pictures = [clip for clip in clips if is_picture(clip)]
    return [clip for clip in clips if not is_picture(clip)] + clips_of_pictures(pictures, images_per_clip)


# -- what makes a set unfit -------------------------------------------------------------------------------------------


def _checked(clips: Sequence[LabelledClip], path: Path) -> list[LabelledClip]:
    """The clips, where no file, group or content stands in two splits or has two labels.

    Copies within a split are in one group, so that a validation split does not tear them apart; of loose pictures,
    which clips are drawn from, one copy is kept.
    """
    _refuse_two_labels(clips, path)
    _refuse_leaks(clips, path)
    copies = _copies(clips)
    _refuse_copies(copies, lambda clip: clip.split, "a copy of a training clip tests nothing", path)
    _refuse_copies(copies, lambda clip: clip.label, "keep the one that is right", path)
    clips = _without_copied_pictures(clips, copies, path)
    copies = [rest for alike in copies if len(rest := [clip for clip in alike if not is_picture(clip)]) > 1]
    if not copies:
        return list(clips)
    count, (first, second, *_) = sum(len(alike) - 1 for alike in copies), copies[0]
    log.warning("%s: copies of other clips in their split: %d, such as %s of %s", path, count, second.name, first.name)
    return _grouped_with_copies(clips, copies)


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


def _refuse_copies(
    copies: Iterable[Sequence[LabelledClip]], what: Callable[[LabelledClip], str], hint: str, path: Path
) -> None:
    """Raise where clips of the same content differ in `what`: their split or their label."""
    apart = [alike for alike in copies if len({what(clip) for clip in alike}) > 1]
    if not apart:
        return
    first = apart[0][0]
    other = next(clip for clip in apart[0] if what(clip) != what(first))
    raise DataError(
        f"{path}: {first.name} ({what(first)}) and {other.name} ({what(other)}) are the same, byte for byte; "
        f"there are {len(apart)} such cases",
        hint=hint,
    )


def _copies(clips: Iterable[LabelledClip]) -> list[list[LabelledClip]]:
    """Clips of the same content, together. Files that are empty or cannot be read are copies of none."""
    by_size: defaultdict[tuple[int, ...], list[LabelledClip]] = defaultdict(list)
    for clip in {clip.path: clip for clip in clips}.values():
        with suppress(OSError):
            by_size[tuple(file.stat().st_size for file in clip.files)].append(clip)
    by_content: defaultdict[tuple[str, ...], list[LabelledClip]] = defaultdict(list)
    for sizes, alike in by_size.items():
        for clip in alike if len(alike) > 1 and any(sizes) else ():
            with suppress(OSError):
                by_content[tuple(sha256_of(file) for file in clip.files)].append(clip)
    return [alike for alike in by_content.values() if len(alike) > 1]


def _without_copied_pictures(
    clips: Iterable[LabelledClip], copies: Iterable[Sequence[LabelledClip]], path: Path
) -> list[LabelledClip]:
    """The clips without loose pictures that repeat others; of copies the first by path stays, or one that is a clip.

    A picture that stands in several rows stays in the first of them.
    """
    left_out = {
        clip.path
        for alike in copies
        for clip in sorted(alike, key=lambda clip: (is_picture(clip), clip.path))[1:]
        if is_picture(clip)
    }
    kept: list[LabelledClip] = []
    seen = set(left_out)
    for clip in clips:
        if not is_picture(clip):
            kept.append(clip)
        elif clip.path not in seen:
            seen.add(clip.path)
            kept.append(clip)
    if left_out:
        log.warning("%s: pictures left out as copies of others in their split: %d", path, len(left_out))
    return kept


def _grouped_with_copies(clips: Iterable[LabelledClip], copies: Iterable[Sequence[LabelledClip]]) -> list[LabelledClip]:
    """The clips with one group name for groups that share a content."""
    names: dict[str, str] = {}
    for alike in copies:
        units = {unit_of(clip) for clip in alike}
        units |= {names[unit] for unit in units if unit in names}
        first = min(units)
        names.update(dict.fromkeys([unit for unit, name in names.items() if name in units], first))
        names.update(dict.fromkeys(units, first))
    return [replace(clip, group=names[unit_of(clip)]) if unit_of(clip) in names else clip for clip in clips]
