"""Data sets: what is refused, which classes are kept, and splits that keep recordings together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pytest

from edgeclf.dataset import (
    Dataset,
    LabelledClip,
    draw_image_clips,
    load_dataset,
    load_ucf101,
    with_validation,
)
from edgeclf.errors import DataError
from tests.support.labelled import write_csv

UCF101_8 = [(1, 824, 220), (2, 728, 316), (3, 725, 319)]  # official split, clips for training and for test


@pytest.fixture
def sklearn() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install 'edgeclf[train]'")


def write_files(folder: Path, contents: Mapping[str, str]) -> Path:
    """Files of some bytes; loading a data set opens no video."""
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def recordings(groups: int, labels: Sequence[str] = ("run", "sit"), clips: int = 3) -> Dataset:
    """`clips` training clips of each class in each group."""
    made = [
        LabelledClip(Path(f"{label}_{group}_{n}.avi"), label, f"g{group:02}", "train")
        for label in labels
        for group in range(groups)
        for n in range(clips)
    ]
    return Dataset(tuple(made), tuple(sorted(labels)))


def with_splits(*splits: str) -> Dataset:
    clips = [LabelledClip(Path(f"{n}.avi"), "run", "", split) for n, split in enumerate(splits)]
    return Dataset(tuple(clips), ("run",))


def test_set_has_splits_where_a_clip_is_kept_from_training() -> None:
    assert with_splits("train", "validation").has_splits
    assert with_splits("test").has_splits
    assert not with_splits("train", "train").has_splits
    assert not with_splits().has_splits


# -- what makes a set unfit -------------------------------------------------------------------------------------------


def test_group_in_two_splits_is_refused(tmp_path: Path) -> None:
    rows = [("a.avi", "run", "g1", "train"), ("b.avi", "sit", "g1", "test")]
    with pytest.raises(DataError, match="group 'g1' stands in train and test; a recording belongs to one split"):
        load_dataset(write_csv(tmp_path / "clips.csv", rows))


def test_file_in_two_splits_is_refused(tmp_path: Path) -> None:
    rows = [("a.avi", "run", "", "train"), ("./a.avi", "run", "", "test")]
    with pytest.raises(DataError, match=r"a\.avi' stands in train and test"):
        load_dataset(write_csv(tmp_path / "clips.csv", rows))


def test_file_with_two_labels_is_refused(tmp_path: Path) -> None:
    rows = [("a.avi", "run", "", "train"), ("./a.avi", "sit", "", "train")]
    with pytest.raises(DataError, match=r"a\.avi is labelled run and sit; keep one"):
        load_dataset(write_csv(tmp_path / "clips.csv", rows))


def test_copies_in_two_splits_are_refused_and_counted(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{split}{n}.avi": f"video {n}" for split in ("train", "test") for n in range(3)})
    rows = [(f"{split}{n}.avi", "run", "", split) for split in ("train", "test") for n in range(3)]
    with pytest.raises(
        DataError,
        match=r"train0\.avi \(train\) and \S+test0\.avi \(test\) are the same, byte for byte; there are 3 such cases",
    ):
        load_dataset(write_csv(tmp_path / "clips.csv", rows))


def test_copies_with_two_labels_are_refused(tmp_path: Path) -> None:
    write_files(tmp_path, {"run/a.avi": "same", "sit/b.avi": "same", "sit/c.avi": "size"})
    with pytest.raises(DataError, match=r"a\.avi \(run\) and \S+b\.avi \(sit\) are the same.* 1 such"):
        load_dataset(tmp_path)


def test_copies_within_a_split_are_one_group_and_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_files(tmp_path, {"a.avi": "one", "b.avi": "one", "c.avi": "two", "d.avi": "two", "e.avi": "six"})
    rows = [
        ("a.avi", "run", "g1", ""),
        ("b.avi", "run", "g2", ""),
        ("c.avi", "run", "g2", ""),
        ("d.avi", "run", "", ""),
    ]
    dataset = load_dataset(write_csv(tmp_path / "clips.csv", [*rows, ("e.avi", "run", "", "")]))
    assert "copies of other clips in their split: 2, such as" in caplog.text
    *copies, single = dataset.clips
    assert len({clip.group for clip in copies}) == 1
    assert all(clip.group for clip in copies)
    assert single.group == ""


def test_files_of_equal_size_and_other_content_are_no_copies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_files(tmp_path, {"a.avi": "one", "b.avi": "two"})
    rows = [("a.avi", "run", "", "train"), ("b.avi", "run", "", "test")]
    assert len(load_dataset(write_csv(tmp_path / "clips.csv", rows)).clips) == 2
    assert not caplog.records


def test_missing_and_empty_files_stay_and_are_copies_of_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_files(tmp_path, {"a.avi": "", "b.avi": ""})
    rows = [("a.avi", "run", "", "train"), ("b.avi", "sit", "", "test"), ("c.avi", "sit", "", "train")]
    assert len(load_dataset(write_csv(tmp_path / "clips.csv", rows)).clips) == 3
    assert not caplog.records


def test_folders_of_pictures_are_copies_only_as_a_whole(tmp_path: Path) -> None:
    same = {"run/a/1.jpg": "black", "run/a/2.jpg": "white", "sit/b/1.jpg": "black", "sit/b/2.jpg": "green"}
    write_files(tmp_path, same)
    assert len(load_dataset(tmp_path).clips) == 2
    write_files(tmp_path, {"sit/b/2.jpg": "white"})
    with pytest.raises(DataError, match=r"a \(run\) and \S+b \(sit\) are the same"):
        load_dataset(tmp_path)


def test_copies_among_loose_pictures_are_found_before_they_make_clips(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{split}/sad/{n}.jpg": f"{split}{n}" for split in ("train", "test") for n in range(10)})
    write_files(tmp_path, {"train/mad/1.jpg": "mad", "test/sad/3.jpg": "train7"})
    with pytest.raises(DataError, match=r"7\.jpg \(train\) and \S+3\.jpg \(test\)|3\.jpg \(test\) and \S+7\.jpg"):
        load_dataset(tmp_path)


def write_pictures_with_copies(folder: Path, copied: int) -> Path:
    """Thirty pictures of each class, and behind them copies of the first ones."""
    contents = {f"{label}/{n:02}.jpg": f"{label} {n:02}" for label in ("mad", "sad") for n in range(30)}
    copies = {f"sad/{30 + n}.jpg": f"sad {n:02}" for n in range(copied)}
    return write_files(folder, {**contents, **copies})


def contents_of(clips: Sequence[LabelledClip]) -> Counter[str]:
    return Counter(image.read_text() for clip in clips for image in clip.images)


def test_copies_among_loose_pictures_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clips = load_dataset(write_pictures_with_copies(tmp_path, 20)).clips
    assert "pictures left out as copies of others in their split: 20" in caplog.text
    assert set(contents_of(clips).values()) == {1}
    for n in range(20):
        (tmp_path / f"sad/{30 + n}.jpg").unlink()
    caplog.clear()
    assert load_dataset(tmp_path).clips == clips
    assert "left out" not in caplog.text


@pytest.mark.usefixtures("sklearn")
@pytest.mark.parametrize("seed", range(4))
def test_no_picture_stands_in_training_and_validation(tmp_path: Path, seed: int) -> None:
    dataset = with_validation(load_dataset(write_pictures_with_copies(tmp_path, 30), images_per_clip=5), seed=seed)
    train, validation = (contents_of(dataset.split(name)) for name in ("train", "validation"))
    assert train
    assert validation
    assert not set(train) & set(validation)


def test_copies_of_pictures_in_several_groups_stay_in_one_whatever_their_order(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{group}{n}.jpg": f"sad {n}" for group in "ab" for n in range(10)})
    write_files(tmp_path, {f"c{n}.jpg": f"mad {n}" for n in range(10)})
    rows = [(f"{group}{n}.jpg", "mad" if group == "c" else "sad", group, "") for group in "abc" for n in range(10)]
    first = load_dataset(write_csv(tmp_path / "clips.csv", rows))
    assert [(clip.label, clip.group, len(clip.images)) for clip in first.clips] == [("mad", "c", 10), ("sad", "a", 10)]
    assert load_dataset(write_csv(tmp_path / "clips.csv", rows[::-1])) == first


def test_picture_in_rows_of_two_groups_is_in_one_clip(tmp_path: Path) -> None:
    rows = [(f"{label}{n}.jpg", label, group, "") for label in ("mad", "sad") for group in "ab" for n in range(10)]
    dataset = load_dataset(write_csv(tmp_path / "clips.csv", rows))
    assert [(clip.label, clip.group, len(clip.images)) for clip in dataset.clips] == [
        ("mad", "a", 10),
        ("sad", "a", 10),
    ]


def test_pictures_of_groups_that_share_a_video_are_in_one_group(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.avi": "same", "b.avi": "same", **{f"{n}.jpg": f"sad {n}" for n in range(10)}})
    rows = [("a.avi", "sad", "g1", ""), ("b.avi", "sad", "g2", ""), *((f"{n}.jpg", "sad", "g2", "") for n in range(10))]
    dataset = load_dataset(write_csv(tmp_path / "clips.csv", rows))
    assert {clip.group for clip in dataset.clips} == {"g1"}


def test_only_files_of_equal_size_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def hashed(path: Path) -> str:
        read.append(path.name)
        return path.name

    monkeypatch.setattr("edgeclf.dataset.sha256_of", hashed)
    write_files(tmp_path, {"run/a.avi": "1", "run/b.avi": "22", "sit/c.avi": "33", "sit/d.avi": "4444"})
    load_dataset(tmp_path)
    assert read == ["b.avi", "c.avi"]


# -- classes ----------------------------------------------------------------------------------------------------------


def test_only_named_classes_are_kept(tmp_path: Path) -> None:
    rows = [(f"{label}.avi", label, "", "train") for label in ("walk", "run", "sit")]
    dataset = load_dataset(write_csv(tmp_path / "clips.csv", rows), classes=("walk", "run", "walk"))
    assert dataset.labels == ("run", "walk")
    assert [clip.label for clip in dataset.clips] == ["walk", "run"]


def test_unknown_class_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    write_files(tmp_path, {"run/a.mp4": "a", "sit/b.mp4": "b"})
    with pytest.raises(DataError, match="has no class fly, swim; it has run, sit"):
        load_dataset(tmp_path, classes=("swim", "run", "fly"))


def test_leak_among_other_classes_does_not_matter(tmp_path: Path) -> None:
    rows = [("a.avi", "run", "g1", "train"), ("b.avi", "sit", "g2", "train"), ("c.avi", "fly", "g1", "test")]
    assert len(load_dataset(write_csv(tmp_path / "clips.csv", rows), classes=("run", "sit")).clips) == 2


def csv_of(path: Path, train: Mapping[str, int], test: Mapping[str, int] | None = None) -> Path:
    """A CSV of so many clips of each class, which are not there."""
    rows = [
        (f"{label}{split}{n}.avi", label, "", split)
        for split, counts in (("train", train), ("test", test or {}))
        for label, count in counts.items()
        for n in range(count)
    ]
    return write_csv(path / "clips.csv", rows)


def test_top_keeps_the_classes_with_most_training_clips(tmp_path: Path) -> None:
    file = csv_of(tmp_path, {"d": 2, "a": 3, "c": 2, "b": 1, "e": 9}, {"b": 20})
    assert load_dataset(file, top=2).labels == ("a", "e")
    assert load_dataset(file, top=3).labels == ("a", "c", "e")
    assert load_dataset(file, top=9).labels == ("a", "b", "c", "d", "e")
    with pytest.raises(DataError, match="keep one at the least"):
        load_dataset(file, top=0)


def test_background_classes_become_one(tmp_path: Path) -> None:
    file = csv_of(tmp_path, {"a": 3, "b": 2, "c": 1, "d": 4})
    dataset = load_dataset(file, background=("b", "c"))
    assert Counter(clip.label for clip in dataset.clips) == {"a": 3, "background": 3, "d": 4}
    assert dataset.labels == ("a", "background", "d")
    assert load_dataset(file, classes=("a",), background=("b", "c")).labels == ("a", "background")
    assert load_dataset(file, top=1, background=("b", "c")).labels == ("background", "d")


def test_pooled_classes_keep_their_groups_apart(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{label}/v_{label}_g01_c01.avi": label for label in ("Box", "Dive", "Sit")})
    dataset = load_dataset(tmp_path, background=("Box", "Dive"))
    assert [clip.group for clip in dataset.clips] == ["Box/g01", "Dive/g01", "Sit/g01"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"background": ("x",)}, "has no class x; it has a, b"),
        ({"classes": ("a", "b"), "background": ("b",)}, "b cannot be a class and background"),
    ],
)
def test_background_that_cannot_be_is_refused(
    tmp_path: Path, options: dict[str, tuple[str, ...]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(
            csv_of(tmp_path, {"a": 1, "b": 1}),
            classes=options.get("classes", ()),
            background=options.get("background", ()),
        )


def test_loose_pictures_become_clips_of_their_split(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{label}/{n}.jpg": f"{label} {n}" for label in ("mad", "sad") for n in range(25)})
    dataset = load_dataset(tmp_path)
    assert Counter((clip.label, len(clip.images)) for clip in dataset.clips) == {
        ("mad", 10): 2,
        ("mad", 5): 1,
        ("sad", 10): 2,
        ("sad", 5): 1,
    }
    assert len(load_dataset(tmp_path, images_per_clip=5).clips) == 10


def test_class_with_too_few_pictures_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, {**{f"mad/{n}.jpg": str(n) for n in range(9)}, "sad/1.jpg": "1!"})
    with pytest.raises(DataError, match="sad has too few pictures for a clip"):
        load_dataset(tmp_path)


# -- validation -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("sklearn")
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_no_group_is_split_and_the_share_is_reached_by_less_than_a_group(seed: int, share: float) -> None:
    dataset = recordings(20)
    drawn = with_validation(dataset, share=share, seed=seed)
    groups = {split: {clip.group for clip in drawn.split(split)} for split in ("train", "validation")}
    assert not groups["train"] & groups["validation"]
    assert groups["train"] | groups["validation"] == {clip.group for clip in dataset.clips}
    assert [(clip.path, clip.label, clip.group) for clip in drawn.clips] == [
        (clip.path, clip.label, clip.group) for clip in dataset.clips
    ]
    assert share <= len(drawn.split("validation")) / len(drawn.clips) < share + 1 / 20 + 1e-9


@pytest.mark.usefixtures("sklearn")
def test_split_depends_on_the_seed_alone() -> None:
    dataset = recordings(20)
    shuffled = Dataset(dataset.clips[::-1], dataset.labels)
    splits = [{clip.path for clip in with_validation(dataset, seed=seed).split("validation")} for seed in range(6)]
    assert len({frozenset(paths) for paths in splits}) > 1
    for seed, paths in enumerate(splits):
        assert {clip.path for clip in with_validation(shuffled, seed=seed).split("validation")} == paths


def test_own_validation_split_is_kept() -> None:
    clips = [
        LabelledClip(Path(f"{label}_{split}.avi"), label, "", split)
        for label in ("run", "sit")
        for split in ("train", "validation", "test")
    ]
    dataset = Dataset(tuple(clips), ("run", "sit"))
    assert with_validation(dataset) is dataset


@pytest.mark.usefixtures("sklearn")
def test_test_clips_stay_test_clips() -> None:
    test = tuple(LabelledClip(Path(f"t{n}.avi"), "run", f"t{n}", "test") for n in range(5))
    train = recordings(10)
    drawn = with_validation(Dataset((*test, *train.clips), train.labels))
    assert drawn.clips[:5] == test
    assert drawn.split("test") == list(test)


@pytest.mark.usefixtures("sklearn")
def test_clip_without_group_is_a_group_of_its_own() -> None:
    clips = tuple(LabelledClip(Path(f"{n:02}.avi"), "run" if n % 2 else "sit", "", "train") for n in range(40))
    drawn = with_validation(Dataset(clips, ("run", "sit")), share=0.25)
    assert len(drawn.split("validation")) == 10


@pytest.mark.parametrize(
    ("lonely", "split"),
    [(("g99", "validation"), "train"), (("g00", "train"), "validation")],
    ids=["train", "validation"],
)
def test_class_without_training_or_validation_clips_is_refused(lonely: tuple[str, str], split: str) -> None:
    clips = (
        LabelledClip(Path("a.avi"), "run", "g00", "train"),
        LabelledClip(Path("b.avi"), "run", "g99", "validation"),
        LabelledClip(Path("c.avi"), "fly", *lonely),
    )
    with pytest.raises(DataError, match=f"no {split} clip is left of fly; add clips of other recordings"):
        with_validation(Dataset(clips, ("fly", "run")))


def test_single_recording_cannot_be_split() -> None:
    with pytest.raises(DataError, match="no validation clip is left of run, sit"):
        with_validation(recordings(1))


@pytest.mark.usefixtures("sklearn")
def test_every_class_gets_a_validation_clip_where_it_has_two_groups(tmp_path: Path) -> None:
    rows = [(f"{label}{n}.avi", label, "", "train") for label in ("run", "sit", "walk") for n in range(3)]
    for seed in range(20):
        dataset = with_validation(load_dataset(write_csv(tmp_path / "clips.csv", rows)), seed=seed)
        assert {clip.label for clip in dataset.split("validation")} == {"run", "sit", "walk"}


@pytest.mark.usefixtures("sklearn")
def test_split_by_clip_of_known_recordings_warns(caplog: pytest.LogCaptureFixture) -> None:
    dataset = recordings(4)
    drawn = with_validation(dataset, by="clip", share=0.25)
    groups = [{clip.group for clip in drawn.split(split)} for split in ("train", "validation")]
    assert groups[0] & groups[1]
    assert len(drawn.split("validation")) == 6
    assert f"clips of {len(groups[0] & groups[1])} recordings stand in training and in validation" in caplog.text


@pytest.mark.usefixtures("sklearn")
@pytest.mark.parametrize("by", ["group", "clip"])
def test_split_of_clips_without_groups_is_the_same_by_group_and_by_clip(
    by: Literal["group", "clip"], caplog: pytest.LogCaptureFixture
) -> None:
    clips = tuple(LabelledClip(Path(f"{n:02}.avi"), "run" if n % 2 else "sit", "", "train") for n in range(40))
    dataset = Dataset(clips, ("run", "sit"))
    assert with_validation(dataset, by=by) == with_validation(dataset)
    assert not caplog.records


# -- real data --------------------------------------------------------------------------------------------------------


def splits_of_groups(dataset: Dataset) -> list[int]:
    """In how many splits each group stands."""
    splits: dict[str, set[str]] = {}
    for clip in dataset.clips:
        splits.setdefault(clip.group, set()).add(clip.split)
    return [len(names) for names in splits.values()]


@pytest.mark.shared
@pytest.mark.parametrize(("number", "train", "test"), UCF101_8)
def test_official_lists_split_the_clips_as_they_say(shared_data: Path, number: int, train: int, test: int) -> None:
    folder = shared_data / "ucf101_8"
    dataset = load_ucf101(folder, folder / "ucfTrainTestlist", number=number)
    assert len(dataset.labels) == 8
    assert (len(dataset.split("train")), len(dataset.split("test"))) == (train, test)
    assert set(splits_of_groups(dataset)) == {1}


@pytest.mark.shared
def test_official_lists_agree_with_the_manifest(shared_data: Path) -> None:
    folder = shared_data / "ucf101_8"
    listed = load_dataset(folder, ucf_lists=folder / "ucfTrainTestlist")
    assert set(listed.clips) == set(load_dataset(folder / "manifest.csv").clips)


@pytest.mark.shared
@pytest.mark.usefixtures("sklearn")
@pytest.mark.parametrize("seed", range(3))
def test_validation_of_real_recordings_is_a_fifth_of_each_class(shared_data: Path, seed: int) -> None:
    dataset = with_validation(load_dataset(shared_data / "ucf101_8"), seed=seed)
    assert set(splits_of_groups(dataset)) == {1}
    train, validation = (Counter(clip.label for clip in dataset.split(split)) for split in ("train", "validation"))
    for label in dataset.labels:
        assert validation[label] / (train[label] + validation[label]) == pytest.approx(0.2, abs=0.06)


@pytest.mark.shared
def test_faces_become_clips_of_ten(shared_data: Path) -> None:
    dataset = load_dataset(shared_data / "fer2013")
    assert [len(dataset.split(split)) for split in ("train", "validation", "test")] == [140, 35, 28]
    assert Counter(len(clip.images) for clip in dataset.clips) == {10: 202, 9: 1}
    drawn = draw_image_clips(dataset.split("test"))
    assert Counter(clip.label for clip in drawn) == dict.fromkeys(dataset.labels, 100)


@pytest.mark.shared
def test_scenes_that_hold_both_classes_keep_their_names(shared_data: Path) -> None:
    dataset = load_dataset(shared_data / "surv_fight")
    assert len({clip.group for clip in dataset.split("train")}) == 40
