"""Labelled clips from folders and CSV files, and splits that keep recordings together."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgeclf.errors import DataError
from edgeclf.train.dataset import Dataset, LabelledClip, load_dataset, with_validation
from tests.support.labelled import write_csv


def touch(folder: Path, *names: str) -> Path:
    """Empty files; loading a data set opens no video."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
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


# -- folders ----------------------------------------------------------------------------------------------------------


def test_each_folder_is_a_class(tmp_path: Path) -> None:
    touch(tmp_path, "sit/a.mp4", "run/b.AVI", "run/deep/c.mkv", "run/notes.txt", "loose.mp4", "empty/x.json")
    dataset = load_dataset(tmp_path)
    assert dataset.labels == ("run", "sit")
    assert [(clip.path.name, clip.label, clip.split) for clip in dataset.clips] == [
        ("b.AVI", "run", "train"),
        ("c.mkv", "run", "train"),
        ("a.mp4", "sit", "train"),
    ]


def test_ucf_names_give_groups_and_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "Punch/v_Punch_g08_c01.avi", "Punch/v_Punch_g08_c02.avi", "Sit/v_Sit_Up_g11_c07.mp4")
    assert [clip.group for clip in load_dataset(tmp_path).clips] == ["g08", "g08", "g11"]
    assert not caplog.records


@pytest.mark.parametrize("name", ["v_Punch_g08.avi", "Punch_g08_c01.avi", "v_Punch_g08_c01_copy.avi"])
def test_other_names_give_no_group_and_a_warning(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, f"Punch/{name}", "Sit/v_Sit_g11_c07.avi")
    with caplog.at_level(logging.WARNING):
        dataset = load_dataset(tmp_path)
    assert dataset.clips[0].group == ""
    assert "no groups are known" in caplog.text


@pytest.mark.parametrize("files", [(), ("run/a.mp4",), ("a.mp4", "b.mp4"), ("run/a.txt", "sit/b.txt")], ids=str)
def test_folder_without_two_classes_is_refused(tmp_path: Path, files: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="does not hold two folders with videos; make one folder for each class"):
        load_dataset(touch(tmp_path, *files))


# -- CSV files --------------------------------------------------------------------------------------------------------


def test_csv_paths_are_relative_to_it_and_splits_have_synonyms(tmp_path: Path) -> None:
    rows = [
        ("clips/a.avi", "run", "g1", "train"),
        ("/far/b.avi", "sit", " g2 ", "VAL"),
        ("c.avi", "run", "", "valid"),
        ("d.avi", "run", "", " test "),
        ("e.avi", "sit", "", ""),
    ]
    dataset = load_dataset(write_csv(tmp_path / "clips.csv", rows))
    assert dataset.labels == ("run", "sit")
    assert [clip.path for clip in dataset.clips[:2]] == [tmp_path / "clips/a.avi", Path("/far/b.avi")]
    assert [clip.group for clip in dataset.clips] == ["g1", "g2", "", "", ""]
    assert [clip.split for clip in dataset.clips] == ["train", "validation", "validation", "test", "train"]
    assert [clip.path.name for clip in dataset.split("validation")] == ["b.avi", "c.avi"]


def test_group_and_split_columns_may_be_missing_and_others_there(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "clips.csv", [("12", "run", "a.avi")], columns=("frames", "label", "path"))
    assert load_dataset(file).clips == (LabelledClip(tmp_path / "a.avi", "run", "", "train"),)


def test_byte_order_mark_of_a_spreadsheet_is_no_column(tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text("\ufeffpath,label\na.avi,läuft\n", encoding="utf-8")
    assert load_dataset(tmp_path / "clips.csv").labels == ("läuft",)


@pytest.mark.parametrize("text", ["", "\n\n", "path,label\n", "file,label\na.avi,run\n", "path;label\na.avi;run\n"])
def test_csv_without_rows_or_columns_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "clips.csv").write_text(text)
    with pytest.raises(DataError, match="has no rows with the columns path and label"):
        load_dataset(tmp_path / "clips.csv")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("b.avi,run,g1,later", "line 4: split is 'later'; use train, val or test"),
        ("b.avi,,g1,test", "line 4: path or label is empty"),
        (",run,g1,test", "line 4: path or label is empty"),
        ("b.avi", "line 4: path or label is empty"),
    ],
)
def test_bad_row_is_named_by_its_line_in_the_file(tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "clips.csv").write_text(f"path,label,group,split\na.avi,run,g0,train\n\n{row}\n")
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path / "clips.csv")


@pytest.mark.parametrize(
    "content", [b"path,label\na.avi,l\xe4uft\n", b"\x00\xff\xfe", None], ids=["latin", "0", "none"]
)
def test_file_that_is_no_text_or_not_there_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "clips.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"clips\.csv cannot be read"):
        load_dataset(tmp_path / "clips.csv")


def test_group_in_two_splits_is_refused(tmp_path: Path) -> None:
    rows = [("a.avi", "run", "g1", "train"), ("b.avi", "sit", "g1", "test")]
    with pytest.raises(DataError, match="group 'g1' stands in train and test; a recording belongs to one split"):
        load_dataset(write_csv(tmp_path / "clips.csv", rows))


def test_file_in_two_splits_is_refused(tmp_path: Path) -> None:
    rows = [("a.avi", "run", "", "train"), ("./a.avi", "run", "", "test")]
    with pytest.raises(DataError, match=r"a\.avi' stands in train and test"):
        load_dataset(write_csv(tmp_path / "clips.csv", rows))


# -- classes ----------------------------------------------------------------------------------------------------------


def test_only_named_classes_are_kept(tmp_path: Path) -> None:
    rows = [(f"{label}.avi", label, "", "train") for label in ("walk", "run", "sit")]
    dataset = load_dataset(write_csv(tmp_path / "clips.csv", rows), classes=("walk", "run", "walk"))
    assert dataset.labels == ("run", "walk")
    assert [clip.label for clip in dataset.clips] == ["walk", "run"]


def test_unknown_class_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    touch(tmp_path, "run/a.mp4", "sit/b.mp4")
    with pytest.raises(DataError, match="has no class fly, swim; it has run, sit"):
        load_dataset(tmp_path, classes=("swim", "run", "fly"))


def test_leak_among_other_classes_does_not_matter(tmp_path: Path) -> None:
    rows = [("a.avi", "run", "g1", "train"), ("b.avi", "sit", "g2", "train"), ("c.avi", "fly", "g1", "test")]
    assert len(load_dataset(write_csv(tmp_path / "clips.csv", rows), classes=("run", "sit")).clips) == 2


# -- validation -------------------------------------------------------------------------------------------------------


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


def test_test_clips_stay_test_clips() -> None:
    test = tuple(LabelledClip(Path(f"t{n}.avi"), "run", f"t{n}", "test") for n in range(5))
    train = recordings(10)
    drawn = with_validation(Dataset((*test, *train.clips), train.labels))
    assert drawn.clips[:5] == test
    assert drawn.split("test") == list(test)


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
    with pytest.raises(DataError, match="no train clip is left of run, sit"):
        with_validation(recordings(1))


def test_every_class_gets_a_validation_clip_where_it_has_two_groups(tmp_path: Path) -> None:
    rows = [(f"{label}{n}.avi", label, "", "train") for label in ("run", "sit", "walk") for n in range(3)]
    for seed in range(20):
        dataset = with_validation(load_dataset(write_csv(tmp_path / "clips.csv", rows)), seed=seed)
        assert {clip.label for clip in dataset.split("validation")} == {"run", "sit", "walk"}
