"""What each layout on disk is read as; opening no video."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgeclf.errors import DataError
from edgeclf.image_source import ImageSource
from edgeclf.layouts import (
    LabelledClip,
    clips_of_pictures,
    draw_image_clips,
    is_picture,
    read_layout,
    read_ucf101,
)
from tests.support.labelled import write_csv


def touch(folder: Path, *names: str) -> Path:
    """Empty files below a folder, which is returned."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(clips: Sequence[LabelledClip], folder: Path) -> list[tuple[str, str, str]]:
    """Path below the folder, label and split of each clip."""
    return [(clip.path.relative_to(folder).as_posix(), clip.label, clip.split) for clip in clips]


# -- clips ------------------------------------------------------------------------------------------------------------


def test_video_is_its_own_source_and_file() -> None:
    clip = LabelledClip(Path("run/a.avi"), "run", "", "train")
    assert (clip.name, clip.source, clip.files) == (str(Path("run/a.avi")), Path("run/a.avi"), (Path("run/a.avi"),))


def test_clip_of_pictures_opens_a_new_source_each_time() -> None:
    images = (Path("1.jpg"), Path("2.jpg"))
    clip = LabelledClip(Path("Angry/clip0001"), "Angry", "", "train", images)
    source = clip.source
    assert isinstance(source, ImageSource)
    assert (source.name, source.paths) == (clip.name, images)
    assert clip.source is not source
    assert clip.files == images


# -- folders of videos ------------------------------------------------------------------------------------------------


def test_each_folder_is_a_class(tmp_path: Path) -> None:
    touch(tmp_path, "sit/a.mp4", "run/b.AVI", "run/deep/c.mkv", "run/notes.txt", "loose.mp4", "empty/x.json")
    assert found(read_layout(tmp_path), tmp_path) == [
        ("run/b.AVI", "run", "train"),
        ("run/deep/c.mkv", "run", "train"),
        ("sit/a.mp4", "sit", "train"),
    ]


def test_folders_named_as_splits_hold_the_classes(tmp_path: Path) -> None:
    touch(tmp_path, "train/run/a.mp4", "train/sit/b.mp4", "test/run/c.mp4", "Val/sit/d.mp4", ".cache/x/e.mp4")
    assert sorted(found(read_layout(tmp_path), tmp_path)) == [
        ("Val/sit/d.mp4", "sit", "validation"),
        ("test/run/c.mp4", "run", "test"),
        ("train/run/a.mp4", "run", "train"),
        ("train/sit/b.mp4", "sit", "train"),
    ]


def test_folders_without_clips_beside_splits_are_ignored(tmp_path: Path) -> None:
    touch(tmp_path, "train/run/a.mp4", "train/sit/b.mp4", "test/run/c.mp4", "__MACOSX/train/run/._a.mp4")
    touch(tmp_path, "annotations/test.json", "annotations/train.xml")
    assert sorted(found(read_layout(tmp_path), tmp_path)) == [
        ("test/run/c.mp4", "run", "test"),
        ("train/run/a.mp4", "run", "train"),
        ("train/sit/b.mp4", "sit", "train"),
    ]


def test_folders_with_clips_beside_splits_are_refused_with_their_names(tmp_path: Path) -> None:
    touch(tmp_path, "train/run/a.mp4", "train/sit/b.mp4", "test/run/c.mp4", "more/d.mp4", "faces/sit/1.jpg", "notes/x")
    with pytest.raises(
        DataError, match="holds clips in faces, more beside the splits test, train; move them into class folders"
    ):
        read_layout(tmp_path)


def test_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    touch(tmp_path, "car/a.mp4", "plane/b.mp4", "train/c.mp4")
    assert {clip.label for clip in read_layout(tmp_path)} == {"car", "plane", "train"}


def test_splits_without_class_folders_are_no_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not hold two folders with videos"):
        read_layout(touch(tmp_path, "train/a.mp4", "test/b.mp4", "annotations/a.json"))


def test_class_folders_without_clips_are_named_in_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "train/Sit/v_Sit_g01_c01.avi", "train/Run/v_Run_g01_c01.avi", "train/fly/notes.txt")
    touch(tmp_path, "test/Sit/v_Sit_g02_c01.avi")
    (tmp_path / "test/Run").mkdir()
    assert {clip.label for clip in read_layout(tmp_path)} == {"Run", "Sit"}
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / split}: folders without videos or pictures are no classes: {name}"
        for split, name in (("test", "Run"), ("train", "fly"))
    ]


def test_hidden_files_are_no_clips(tmp_path: Path) -> None:
    touch(tmp_path, "run/a.mp4", "run/._a.mp4", ".old/b.mp4", "sit/b.mp4", "sit/.thumbs/c.mp4")
    assert [name for name, _, _ in found(read_layout(tmp_path), tmp_path)] == ["run/a.mp4", "sit/b.mp4"]


def test_ucf_names_give_groups_of_their_class_and_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "Punch/v_Punch_g08_c01.avi", "Punch/v_Punch_g08_c02.avi", "Sit/v_Sit_g08_c07.mp4")
    assert [clip.group for clip in read_layout(tmp_path)] == ["Punch/g08", "Punch/g08", "Sit/g08"]
    assert not caplog.records


@pytest.mark.parametrize("name", ["v_Punch_g08.avi", "Punch_g08_c01.avi", "v_Punch_g08_c01_copy.avi"])
def test_other_names_give_no_group_and_a_warning(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, f"Punch/{name}", "Sit/v_Sit_g11_c07.avi")
    with caplog.at_level(logging.WARNING):
        clips = read_layout(tmp_path)
    assert clips[0].group == ""
    assert "no groups are known" in caplog.text


@pytest.mark.parametrize("files", [(), ("run/a.mp4",), ("a.mp4", "b.jpg"), ("run/a.txt", "sit/b.txt")], ids=str)
def test_folder_without_two_classes_is_refused(tmp_path: Path, files: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="does not hold two folders with videos or pictures; make one folder for each"):
        read_layout(touch(tmp_path, *files))


# -- folders of pictures ----------------------------------------------------------------------------------------------


def test_folder_of_pictures_is_a_clip_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = [f"frame{n}.jpg" for n in (1, 2, 9, 10, 11, 100)]
    touch(tmp_path, *(f"run/v_run_g01_c01/{name}" for name in sorted(names)), "sit/deep/b/x.PNG", "sit/deep/b/x.txt")
    first, second = read_layout(tmp_path)
    assert (first.path, first.label, first.group) == (tmp_path / "run/v_run_g01_c01", "run", "run/g01")
    assert [image.name for image in first.images] == names
    assert (second.path, second.images) == (tmp_path / "sit/deep/b", (tmp_path / "sit/deep/b/x.PNG",))


def test_loose_pictures_come_each_by_itself(tmp_path: Path) -> None:
    touch(tmp_path, "happy/1.jpg", "happy/2.webp", "sad/1.bmp", "cover.png")
    clips = read_layout(tmp_path)
    assert found(clips, tmp_path) == [
        ("happy/1.jpg", "happy", "train"),
        ("happy/2.webp", "happy", "train"),
        ("sad/1.bmp", "sad", "train"),
    ]
    assert all(is_picture(clip) for clip in clips)


def test_one_class_may_hold_pictures_and_another_folders_of_them(tmp_path: Path) -> None:
    touch(tmp_path, "happy/1.jpg", "sad/clip/1.jpg", "sad/clip/2.jpg")
    assert [(clip.path.name, len(clip.images)) for clip in read_layout(tmp_path)] == [("1.jpg", 0), ("clip", 2)]


def test_class_with_pictures_beside_folders_of_them_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "happy/1.jpg", "happy/clip/1.jpg", "sad/1.jpg")
    with pytest.raises(DataError, match="happy holds both pictures and folders of pictures"):
        read_layout(tmp_path)


def test_one_class_may_hold_videos_and_another_pictures(tmp_path: Path) -> None:
    touch(tmp_path, "run/a.mp4", "sit/clip/1.jpg", "stray.mp4")
    assert [clip.path.name for clip in read_layout(tmp_path)] == ["a.mp4", "clip"]


def test_pictures_beside_videos_are_left_alone(tmp_path: Path) -> None:
    touch(tmp_path, "run/a.mp4", "run/a.jpg", "sit/b.mp4")
    assert [clip.path.name for clip in read_layout(tmp_path)] == ["a.mp4", "b.mp4"]


# -- CSV files --------------------------------------------------------------------------------------------------------


def test_csv_paths_are_relative_to_it_and_splits_have_synonyms(tmp_path: Path) -> None:
    rows = [
        ("clips/a.avi", "run", "g1", "train"),
        ("/far/b.avi", "sit", " g2 ", "VAL"),
        ("c.avi", "run", "", "valid"),
        ("d.avi", " run ", "", " test "),
        ("e.avi", "sit", "", ""),
        ("f.avi", "sit", "", "NA"),
    ]
    clips = read_layout(write_csv(tmp_path / "clips.csv", rows))
    assert [clip.path for clip in clips[:2]] == [tmp_path / "clips/a.avi", Path("/far/b.avi")]
    assert [clip.label for clip in clips] == ["run", "sit", "run", "run", "sit", "sit"]
    assert [clip.group for clip in clips] == ["g1", "g2", "", "", "", ""]
    assert [clip.split for clip in clips] == ["train", "validation", "validation", "test", "train", "train"]


def test_group_and_split_columns_may_be_missing_and_others_there(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "clips.csv", [("12", "run", "a.avi")], columns=("frames", "label", "path"))
    assert read_layout(file) == [LabelledClip(tmp_path / "a.avi", "run", "", "train")]


@pytest.mark.parametrize("path", ["path", "video_name", "filename", "file", "video", " Path "])
@pytest.mark.parametrize("label", ["label", "tag", "class", "category", "Label"])
def test_columns_have_other_names(tmp_path: Path, path: str, label: str) -> None:
    file = write_csv(tmp_path / "clips.csv", [("0", "a.avi", "run")], columns=("", path, label))
    assert read_layout(file) == [LabelledClip(tmp_path / "a.avi", "run", "", "train")]


def test_byte_order_mark_of_a_spreadsheet_is_no_column(tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text("\ufeffpath,label\na.avi,läuft\n", encoding="utf-8")
    assert read_layout(tmp_path / "clips.csv")[0].label == "läuft"


@pytest.mark.parametrize("text", ["", "\n\n", "path,label\n", "pfad,label\na.avi,run\n", "path;label\na.avi;run\n"])
def test_csv_without_rows_or_columns_is_refused_with_the_names_that_are_known(tmp_path: Path, text: str) -> None:
    (tmp_path / "clips.csv").write_text(text)
    with pytest.raises(DataError, match=r"has no rows with the columns path and label; .*video_name.*tag.*group and"):
        read_layout(tmp_path / "clips.csv")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("b.avi,run,g1,later", "line 4: split is 'later'; use train, val or test"),
        ("b.avi,,g1,test", "line 4: path or label is empty"),
        (" ,run,g1,test", "line 4: path or label is empty"),
        ("b.avi", "line 4: path or label is empty"),
    ],
)
def test_bad_row_is_named_by_its_line_in_the_file(tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "clips.csv").write_text(f"path,label,group,split\na.avi,run,g0,train\n\n{row}\n")
    with pytest.raises(DataError, match=message):
        read_layout(tmp_path / "clips.csv")


@pytest.mark.parametrize(
    "content", [b"path,label\na.avi,l\xe4uft\n", b"\x00\xff\xfe", None], ids=["latin", "0", "none"]
)
def test_file_that_is_no_text_or_not_there_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "clips.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"clips\.csv cannot be read"):
        read_layout(tmp_path / "clips.csv")


@pytest.mark.parametrize(("column", "group"), [("", "Punch/g01"), ("g07", "Punch/g07"), ("s043", "s043")])
def test_only_ucf_groups_of_ucf_names_get_their_class(tmp_path: Path, column: str, group: str) -> None:
    rows = [("v_Punch_g01_c01.avi", "Punch", column, ""), ("a.avi", "Punch", column, "")]
    named, other = read_layout(write_csv(tmp_path / "clips.csv", rows))
    assert (named.group, other.group) == (group, column)


def test_relabelled_clips_of_one_recording_stay_in_one_group(tmp_path: Path) -> None:
    rows = [(f"v_Punch_g01_c0{n}.avi", label, "", "") for n, label in enumerate(("hit", "miss"))]
    assert {clip.group for clip in read_layout(write_csv(tmp_path / "clips.csv", rows))} == {"Punch/g01"}


@pytest.mark.parametrize("place", ["", "train", "test", "run"])
def test_bare_names_are_looked_for_in_folders_of_split_and_class(tmp_path: Path, place: str) -> None:
    touch(tmp_path / place, "a.avi")
    file = write_csv(tmp_path / "clips.csv", [("a.avi", "run")], columns=("video_name", "tag"))
    assert read_layout(file)[0].path == tmp_path / place / "a.avi"


def test_train_and_test_csv_of_a_folder_are_its_splits(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.avi", "test/a.avi", "test/b.avi", "run/other.avi")
    for name, videos in (("train", ["a.avi"]), ("test", ["a.avi", "b.avi"]), ("val", ["c.avi"])):
        write_csv(tmp_path / f"{name}.csv", [(video, "run") for video in videos], columns=("video_name", "tag"))
    assert found(read_layout(tmp_path), tmp_path) == [
        ("train/a.avi", "run", "train"),
        ("c.avi", "run", "validation"),
        ("test/a.avi", "run", "test"),
        ("test/b.avi", "run", "test"),
    ]
    assert [clip.split for clip in read_layout(tmp_path / "test.csv")] == ["test", "test"]


def test_manifest_of_a_folder_is_read_instead_of_its_files(tmp_path: Path) -> None:
    touch(tmp_path, "run/a.mp4", "sit/b.mp4")
    write_csv(tmp_path / "manifest.csv", [("run/a.mp4", "run", "", "test")])
    assert found(read_layout(tmp_path), tmp_path) == [("run/a.mp4", "run", "test")]


def test_row_may_name_a_folder_of_pictures(tmp_path: Path) -> None:
    touch(tmp_path, "one/2.jpg", "one/10.jpg", "one/deep/3.jpg")
    (clip,) = read_layout(write_csv(tmp_path / "clips.csv", [("one", "run", "", "")]))
    assert [image.name for image in clip.images] == ["2.jpg", "10.jpg"]


# -- the official lists of UCF101 -------------------------------------------------------------------------------------


def ucf_lists(folder: Path, train: str, test: str, number: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"trainlist{number:02}.txt").write_bytes(train.replace("\n", "\r\n").encode())
    (folder / f"testlist{number:02}.txt").write_bytes(test.replace("\n", "\r\n").encode())
    return folder


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    train = "Sit/v_Sit_g08_c01.avi 2\nHandstandPushups/v_HandStandPushups_g09_c01.avi 1\nSit/v_Sit_g08_c02.avi 2\n\n"
    return ucf_lists(tmp_path / "lists", train, "Sit/v_Sit_g01_c01.avi\n")


def test_lists_find_videos_by_name_whatever_case_extension_and_folder(tmp_path: Path, lists: Path) -> None:
    videos = touch(
        tmp_path / "videos",
        "handstandpushups/v_HandstandPushups_g09_c01.MP4",
        "v_Sit_g08_c01.webm",
        "Sit/v_Sit_g08_c02.avi",
        "Sit/v_Sit_g01_c01.avi",
        "Sit/v_Sit_g02_c01.avi",
    )
    clips = read_ucf101(videos, lists, 1)
    assert found(clips, videos) == [
        ("v_Sit_g08_c01.webm", "Sit", "train"),
        ("handstandpushups/v_HandstandPushups_g09_c01.MP4", "HandstandPushups", "train"),
        ("Sit/v_Sit_g08_c02.avi", "Sit", "train"),
        ("Sit/v_Sit_g01_c01.avi", "Sit", "test"),
    ]
    assert [clip.group for clip in clips] == ["Sit/g08", "HandstandPushups/g09", "Sit/g08", "Sit/g01"]


def test_missing_videos_of_lists_are_counted_in_one_warning(
    tmp_path: Path, lists: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips = read_ucf101(touch(tmp_path / "videos", "v_Sit_g08_c01.avi"), lists, 1)
    assert len(clips) == 1
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "3 of the 4 clips of split 1 are missing"
    ]


def test_of_two_videos_with_one_name_the_first_is_taken(
    tmp_path: Path, lists: Path, caplog: pytest.LogCaptureFixture
) -> None:
    videos = touch(tmp_path / "videos", "avi/v_Sit_g08_c01.avi", "mp4/v_Sit_g08_c01.mp4")
    assert [clip.path.suffix for clip in read_ucf101(videos, lists, 1)] == [".avi"]
    assert "1 clips are left out: others have their names" in caplog.text


def test_lists_find_folders_of_pictures(tmp_path: Path, lists: Path) -> None:
    videos = touch(tmp_path / "frames", "Sit/v_Sit_g08_c01/2.jpg", "Sit/v_Sit_g08_c01/1.jpg")
    (clip,) = read_ucf101(videos, lists, 1)
    assert [image.name for image in clip.images] == ["1.jpg", "2.jpg"]
    assert clip.group == "Sit/g08"


def test_list_file_says_the_number_of_its_split(tmp_path: Path) -> None:
    lists = ucf_lists(tmp_path / "lists", "Sit/v_Sit_g01_c01.avi 1", "Sit/v_Sit_g02_c01.avi", number=3)
    videos = touch(tmp_path / "videos", "v_Sit_g01_c01.avi", "v_Sit_g02_c01.avi")
    assert [clip.split for clip in read_ucf101(videos, lists / "testlist03.txt", 1)] == ["train", "test"]


def test_lists_that_name_no_video_here_are_refused(tmp_path: Path, lists: Path) -> None:
    with pytest.raises(DataError, match="holds none of the clips"):
        read_ucf101(touch(tmp_path / "videos", "run/a.avi"), lists, 1)


def test_split_without_lists_is_refused_with_those_that_are_there(tmp_path: Path, lists: Path) -> None:
    with pytest.raises(DataError, match=r"trainlist04\.txt cannot be read.*there are lists 01"):
        read_ucf101(tmp_path, lists, 4)
    with pytest.raises(DataError, match=r"trainlist01\.txt cannot be read.*name the folder of trainlist01"):
        read_ucf101(tmp_path, tmp_path, 1)


def test_entry_without_class_folder_is_named_by_its_line(tmp_path: Path) -> None:
    lists = ucf_lists(tmp_path / "lists", "Sit/a.avi 1\nb.avi 1\n", "")
    with pytest.raises(DataError, match=r"trainlist01\.txt, line 2: b\.avi has no class folder"):
        read_ucf101(tmp_path, lists, 1)


# -- clips made of loose pictures -------------------------------------------------------------------------------------


def pictures(label: str, count: int, split: str = "train", group: str = "") -> list[LabelledClip]:
    return [LabelledClip(Path(f"{label}/{split}{group}{n:03}.jpg"), label, group, split) for n in range(count)]


def test_each_picture_is_in_one_clip_of_its_class_split_and_group() -> None:
    loose = [
        *pictures("sad", 20),
        *pictures("sad", 10, "test"),
        *pictures("sad", 10, group="anna"),
        *pictures("mad", 30),
    ]
    clips = clips_of_pictures(loose)
    assert Counter((clip.label, clip.split, clip.group, len(clip.images)) for clip in clips) == {
        ("sad", "train", "", 10): 2,
        ("sad", "test", "", 10): 1,
        ("sad", "train", "anna", 10): 1,
        ("mad", "train", "", 10): 3,
    }
    assert sorted(image for clip in clips for image in clip.images) == sorted(clip.path for clip in loose)
    place = {clip.path: (clip.label, clip.split, clip.group) for clip in loose}
    for clip in clips:
        assert {place[image] for image in clip.images} == {(clip.label, clip.split, clip.group)}


def test_clips_of_pictures_have_names_that_tell_them_apart() -> None:
    names = [clip.name for clip in clips_of_pictures([*pictures("sad", 20), *pictures("sad", 10, "test")])]
    assert names == [str(Path("sad", f"clip000{n}")) for n in (1, 2, 3)]


@pytest.mark.parametrize(("count", "lengths"), [(9, [9]), (14, [10]), (15, [10, 5]), (5, [5]), (4, [])])
def test_leftover_is_a_short_clip_or_left_out_and_counted(
    count: int, lengths: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        clips = clips_of_pictures(pictures("sad", count))
    assert [len(clip.images) for clip in clips] == lengths
    left = count - sum(lengths)
    assert (f"{left} pictures are left over" in caplog.text) == (left > 0)


def test_same_pictures_make_the_same_clips_in_any_order_and_company() -> None:
    loose = pictures("sad", 35)
    clips = clips_of_pictures(loose)
    assert clips_of_pictures(loose[::-1]) == clips
    assert clips_of_pictures([*pictures("mad", 12), *loose])[1:] == clips
    assert [image.name for image in clips[0].images] != sorted(image.name for image in clips[0].images)


def test_clip_of_no_picture_is_refused() -> None:
    with pytest.raises(DataError, match="a clip cannot have 0 pictures"):
        clips_of_pictures(pictures("sad", 9), 0)


def test_drawn_clips_share_pictures_but_hold_none_twice() -> None:
    clips = clips_of_pictures([*pictures("sad", 40, "test"), *pictures("mad", 20, "test")])
    drawn = draw_image_clips(clips, per_class=50)
    assert Counter(clip.label for clip in drawn) == {"mad": 50, "sad": 50}
    assert len({clip.name for clip in drawn}) == 100
    for clip in drawn:
        assert len(set(clip.images)) == 10
        assert {image.parent.name for image in clip.images} == {clip.label}
        assert clip.split == "test"
    assert {image for clip in drawn for image in clip.images} == {image for clip in clips for image in clip.images}


def test_draw_depends_on_the_seed_alone() -> None:
    clips = clips_of_pictures(pictures("sad", 40))
    assert draw_image_clips(clips, seed=1) == draw_image_clips(clips[::-1], seed=1)
    assert draw_image_clips(clips, seed=1) != draw_image_clips(clips, seed=2)


def test_each_split_is_drawn_from_its_own_pictures() -> None:
    clips = clips_of_pictures([*pictures("sad", 20), *pictures("sad", 20, "test")])
    for clip in draw_image_clips(clips, per_class=20):
        assert {image.name.startswith(clip.split) for image in clip.images} == {True}


def test_class_with_fewer_pictures_than_a_clip_is_refused() -> None:
    with pytest.raises(DataError, match="sad has 9 train pictures, a clip takes 10"):
        draw_image_clips(clips_of_pictures(pictures("sad", 9)))
    with pytest.raises(DataError, match="run has 0 test pictures"):
        draw_image_clips([LabelledClip(Path("a.avi"), "run", "", "test")])
