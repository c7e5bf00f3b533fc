"""Labelled clips as they lie on disk: one reader for each layout, and how pictures become clips."""

from __future__ import annotations

import csv
import logging
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgeclf.errors import DataError
from edgeclf.image_source import IMAGE_RATE, IMAGE_SUFFIXES, ImageSource
from edgeclf.video import VIDEO_SUFFIXES, VideoSource, open_video

log = logging.getLogger(__name__)

IMAGES_PER_CLIP = 10

_UCF_NAME = re.compile(r"^v_(\w+)_(g\d+)_c\d+$")
_UCF_GROUP = re.compile(r"^g\d+$")
_UCF_LIST = re.compile(r"^(?:train|test)list(\d+)\.txt$")
_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "valid": "validation", "test": "test"}
_PATH_COLUMNS = ("path", "video_name", "filename", "file", "video")
_LABEL_COLUMNS = ("label", "tag", "class", "category")

_Found = tuple[Path, tuple[Path, ...]]  # a clip's path and, if it is made of them, its pictures


@dataclass(frozen=True, slots=True)
class LabelledClip:
    """A video, or pictures that make a clip, with its class, its recording and the split it belongs to."""

    path: Path  # the video, the folder of the pictures, or a made-up name of pictures that were drawn
    label: str
    group: str  # the recording: clips of one group are never split; empty where nothing is known
    split: str  # "train", "validation" or "test"
    images: tuple[Path, ...] = ()  # in order; empty for a video

    @property
    def name(self) -> str:
        """What the clip is called in records."""
        return str(self.path)

    @property
    def source(self) -> Path | VideoSource:
        """What its frames are read from: the path of a video, or a new source of the pictures."""
        return ImageSource(self.name, self.images, rate=IMAGE_RATE) if self.images else self.path

    def open(self) -> VideoSource:
        """A new source of its frames."""
        source = self.source
        return open_video(source) if isinstance(source, Path) else source

    @property
    def files(self) -> tuple[Path, ...]:
        """The files whose bytes make the clip."""
        return self.images or (self.path,)


def read_layout(path: Path) -> list[LabelledClip]:
    """The clips behind a CSV, or behind a folder that holds CSV files or one folder for each class.

    A loose picture comes as a clip whose path is the picture (`is_picture`). Raises DataError where there is nothing.
    """
    if not path.is_dir():
        return _clips_of_csv(path)
    if all((path / name).is_file() for name in ("train.csv", "test.csv")):
        files = [path / f"{name}.csv" for name in _SPLITS if (path / f"{name}.csv").is_file()]
        return [clip for file in files for clip in _clips_of_csv(file)]
    if (path / "manifest.csv").is_file():
        return _clips_of_csv(path / "manifest.csv")
    return _clips_of_folder(path)


def is_picture(clip: LabelledClip) -> bool:
    """True for a loose picture, which is no clip yet."""
    return not clip.images and clip.path.suffix.lower() in IMAGE_SUFFIXES


# -- CSV files --------------------------------------------------------------------------------------------------------


def _clips_of_csv(file: Path) -> list[LabelledClip]:
    """The clips of a CSV; in `train.csv` and `test.csv` a row without split is of the split that the name says."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:  # spreadsheets write a byte order mark
            reader = csv.DictReader(text)
            header = [(name or "").strip().lower() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read: {error}", hint="name a folder or a CSV with path,label") from error
    path_column = next((name for name in _PATH_COLUMNS if name in header), "")
    label_column = next((name for name in _LABEL_COLUMNS if name in header), "")
    if not rows or not path_column or not label_column:
        raise DataError(f"{file} has no rows with the columns path and label", hint=_COLUMNS_HINT)
    return [_clip_of_row(row, (path_column, label_column), file, number) for number, row in rows]


_COLUMNS_HINT = (
    f"its first line names the columns: path (or {', '.join(_PATH_COLUMNS[1:])}), "
    f"label (or {', '.join(_LABEL_COLUMNS[1:])}) and, if they are known, group and split"
)


def _clip_of_row(row: Mapping[str, str | None], columns: tuple[str, str], file: Path, number: int) -> LabelledClip:
    name, label, group, split = ((row.get(column) or "").strip() for column in (*columns, "group", "split"))
    if not name or not label:
        raise DataError(f"{file}, line {number}: path or label is empty", hint="fill in both")
    if split.lower() in {"", "na"}:
        split = file.stem.lower() if file.stem.lower() in _SPLITS else "train"
    if split.lower() not in _SPLITS:
        raise DataError(f"{file}, line {number}: split is {split!r}", hint="use train, val or test")
    path = _path_of_row(file, name, label)
    pictures = _pictures_in(path) if path.is_dir() else ()
    return LabelledClip(path, label, _group(path, group), _SPLITS[split.lower()], pictures)


def _path_of_row(file: Path, name: str, label: str) -> Path:
    """Where the file lies: beside the CSV, in the folder of a split or of its class; beside it if nowhere."""
    folders = (file.parent, *(file.parent / folder for folder in (file.stem, "train", "test", label)))
    return next((folder / name for folder in folders if (folder / name).exists()), file.parent / name)


# -- folders ----------------------------------------------------------------------------------------------------------


def _clips_of_folder(folder: Path) -> list[LabelledClip]:
    """Clips of all class folders, for training unless they lie in folders named as splits."""
    clips = [clip for root, split in _split_folders(folder) for clip in _clips_of_classes(root, split)]
    if len({clip.label for clip in clips}) < 2:
        raise DataError(
            f"{folder} does not hold two folders with videos or pictures", hint="make one folder for each class"
        )
    if not all(clip.group for clip in clips):
        log.warning("%s: no groups are known; clips of one recording may stand in training and validation", folder)
    return clips


def _split_folders(folder: Path) -> list[tuple[Path, str]]:
    """The folders `train`, `test` and so on with their splits, or the folder itself where there are none.

    Folders without clips beside them do not count; those with clips raise DataError where splits hold classes.
    """
    inner = _folders_in(folder)
    splits = [path for path in inner if path.name.lower() in _SPLITS]
    if not splits:
        return [(folder, "train")]
    others = [path.name for path in inner if path not in splits and _holds_clips(path)]
    if not others:
        return [(path, _SPLITS[path.name.lower()]) for path in splits]
    if any(_holds_clips(path) for split in splits for path in _folders_in(split)):
        raise DataError(
            f"{folder} holds clips in {', '.join(others)} beside the splits {', '.join(path.name for path in splits)}",
            hint="move them into class folders of a split or elsewhere; if all of these are classes, use a CSV",
        )
    return [(folder, "train")]


def _clips_of_classes(root: Path, split: str) -> list[LabelledClip]:
    found = {folder: _videos_below(folder) or _pictures_below(folder) for folder in _folders_in(root)}
    if empty := [folder.name for folder, clips in found.items() if not clips]:
        log.warning("%s: folders without videos or pictures are no classes: %s", root, ", ".join(empty))
    return [
        LabelledClip(path, folder.name, _group(path), split, images)
        for folder, clips in found.items()
        for path, images in clips
    ]


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error}", hint="name another folder or a CSV") from error


def _holds_clips(folder: Path) -> bool:
    return any(True for _ in _walk(folder, VIDEO_SUFFIXES | IMAGE_SUFFIXES))


def _videos_below(folder: Path) -> list[_Found]:
    return [(path, ()) for path in _files_below(folder, VIDEO_SUFFIXES)]


def _pictures_below(folder: Path) -> list[_Found]:
    """The folders of pictures below a class folder, or the pictures straight in it, each by itself."""
    clips = _picture_folders(folder)
    loose = [image for path, images in clips if path == folder for image in images]
    if loose and len(clips) > 1:
        raise DataError(f"{folder} holds both pictures and folders of pictures", hint="one or the other makes clips")
    return [(image, ()) for image in loose] or clips


def _picture_folders(folder: Path) -> list[_Found]:
    """All folders with pictures, the outermost included, with their pictures in order."""
    folders: defaultdict[Path, list[Path]] = defaultdict(list)
    for picture in _files_below(folder, IMAGE_SUFFIXES):
        folders[picture.parent].append(picture)
    return [(path, _in_order(pictures)) for path, pictures in sorted(folders.items())]


def _files_below(root: Path, suffixes: frozenset[str]) -> list[Path]:
    """Files of these kinds; hidden ones, such as the `._name` that macOS leaves in archives, are none."""
    return sorted(_walk(root, suffixes))


def _walk(root: Path, suffixes: frozenset[str]) -> Iterator[Path]:
    """The same in the order of the file system."""
    return (
        path
        for path in root.rglob("*")
        if path.suffix.lower() in suffixes
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and path.is_file()
    )


def _pictures_in(folder: Path) -> tuple[Path, ...]:
    return _in_order(path for path in _files_below(folder, IMAGE_SUFFIXES) if path.parent == folder)


def _in_order(pictures: Iterable[Path]) -> tuple[Path, ...]:
    """By the numbers in their names, so that `frame10` follows `frame9`."""
    return tuple(sorted(pictures, key=lambda path: _with_numbers(path.name)))


def _with_numbers(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if place % 2 else (0, part) for place, part in enumerate(re.split(r"(\d+)", name))]


def _group(path: Path, given: str = "") -> str:
    """The group that is given or that a UCF101 name tells; `gNN`, which each class counts anew, with its class."""
    ucf = _UCF_NAME.match(path.stem)
    if ucf and (not given or _UCF_GROUP.match(given)):
        return f"{ucf.group(1)}/{given or ucf.group(2)}"
    return given


# -- the official lists of UCF101 -------------------------------------------------------------------------------------


def read_ucf101(videos: Path, lists: Path, number: int) -> list[LabelledClip]:
    """The clips of the official split `number` whose files are below `videos`, whatever their extension.

    lists: the folder of `trainlistNN.txt` and `testlistNN.txt`, or one of these files, which then says the number.
    Clips are found by name, without regard to case: the class HandstandPushups has files v_HandStandPushups_*.
    One warning counts the clips that are not there. Raises DataError where lists are missing or name no clip.
    """
    if one := _UCF_LIST.match(lists.name) if lists.is_file() else None:
        lists, number = lists.parent, int(one.group(1))
    found = _by_name(_videos_below(videos) or _picture_folders(videos))
    clips: list[LabelledClip] = []
    missing = 0
    for split in ("train", "test"):
        for label, stem in _entries(lists / f"{split}list{number:02}.txt"):
            path, images = found.get(stem.lower(), (None, ()))
            missing += path is None
            if path is not None:
                clips.append(LabelledClip(path, label, _group(path), split, images))
    if not clips:
        raise DataError(f"{videos} holds none of the clips that {lists} lists", hint="name the folder of the videos")
    if missing:
        log.warning("%s: %d of the %d clips of split %d are missing", videos, missing, missing + len(clips), number)
    return clips


def _by_name(clips: Sequence[_Found]) -> dict[str, _Found]:
    """The clips under their names in lower case; of several with one name the first."""
    names: dict[str, _Found] = {}
    for path, images in clips:
        names.setdefault(path.stem.lower(), (path, images))
    if len(names) < len(clips):
        log.warning("%d clips are left out: others have their names", len(clips) - len(names))
    return names


def _entries(file: Path) -> Iterator[tuple[str, str]]:
    """Class and clip name of every line: `Class/v_Class_g01_c01.avi`, in training lists with a number behind it."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        numbers = sorted(
            {match.group(1) for path in file.parent.glob("*.txt") if (match := _UCF_LIST.match(path.name))}
        )
        hint = f"there are lists {', '.join(numbers)}" if numbers else "name the folder of trainlist01.txt"
        raise DataError(f"{file} cannot be read: {error}", hint=hint) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        entry = Path(line.split()[0])
        if entry.parent.name == "":
            raise DataError(f"{file}, line {number}: {entry} has no class folder", hint="use Class/video.avi")
        yield entry.parent.name, entry.stem


# -- clips made of loose pictures -------------------------------------------------------------------------------------


def clips_of_pictures(pictures: Iterable[LabelledClip], length: int = IMAGES_PER_CLIP) -> list[LabelledClip]:
    """Clips of `length` pictures of one class, split and group, each picture in one clip at the most.

    The draw depends on the pictures alone, not on their order. What is left over makes a shorter clip where it is half
    a clip at least, and is left out and counted in the log otherwise.
    """
    if length < 1:
        raise DataError(f"a clip cannot have {length} pictures", hint="one at the least")
    pools: defaultdict[tuple[str, str, str], list[Path]] = defaultdict(list)
    for picture in pictures:
        pools[picture.label, picture.split, picture.group].append(picture.path)
    clips: list[LabelledClip] = []
    left_out = 0
    for (label, split, group), paths in sorted(pools.items()):
        drawn = sorted(set(paths))
        random.Random(f"{label} {split} {group}").shuffle(drawn)  # noqa: S311 - a reproducible draw
        for start in range(0, len(drawn), length):
            images = tuple(drawn[start : start + length])
            if 2 * len(images) < length:
                left_out += len(images)
            else:
                clips.append(LabelledClip(Path(), label, group, split, images))
    if left_out:
        log.info("%d pictures are left over, too few for a clip of their class, split and group", left_out)
    return _named(clips, "clip")


def draw_image_clips(
    clips: Iterable[LabelledClip], *, per_class: int = 100, length: int = IMAGES_PER_CLIP, seed: int = 0
) -> list[LabelledClip]:
    """`per_class` clips for each class and split, each of `length` pictures drawn anew from all that `clips` hold.

    For measuring on more clips than there are without a picture twice: clips share pictures, so that figures of
    several of them are not independent, and they must not be split any further. Raises DataError where a class
    has fewer pictures than a clip.
    """
    pools: defaultdict[tuple[str, str], set[Path]] = defaultdict(set)
    for clip in clips:
        pools[clip.label, clip.split].update(clip.images)
    drawn: list[LabelledClip] = []
    for (label, split), pool in sorted(pools.items()):
        if len(pool) < length:
            raise DataError(f"{label} has {len(pool)} {split} pictures, a clip takes {length}", hint="add pictures")
        rng = random.Random(f"{seed} {label} {split}")  # noqa: S311 - a reproducible draw
        paths = sorted(pool)
        drawn += [LabelledClip(Path(), label, "", split, tuple(rng.sample(paths, length))) for _ in range(per_class)]
    return _named(drawn, "draw")


def _named(clips: Sequence[LabelledClip], word: str) -> list[LabelledClip]:
    """The clips with made-up paths that tell them apart: `Angry/clip0007`."""
    counts: defaultdict[str, int] = defaultdict(int)
    named = []
    for clip in clips:
        counts[clip.label] += 1
        named.append(replace(clip, path=Path(clip.label, f"{word}{counts[clip.label]:04}")))
    return named
