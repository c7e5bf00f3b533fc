from __future__ import annotations

from pathlib import Path

import pytest

from edgeclf.errors import NoSourceError, VideoError
from edgeclf.video import converting, expand_sources, is_live, open_video, redacted


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_folder_stands_for_the_videos_in_it_at_any_depth(tmp_path: Path) -> None:
    touch(tmp_path / "b.MP4", tmp_path / "deep" / "a.avi", tmp_path / "notes.txt")
    assert expand_sources([str(tmp_path)]) == [str(tmp_path / "b.MP4"), str(tmp_path / "deep" / "a.avi")]


def test_glob_stands_for_its_matches_in_order(tmp_path: Path) -> None:
    touch(tmp_path / "2.mp4", tmp_path / "1.mp4", tmp_path / "1.txt")
    assert expand_sources([str(tmp_path / "*.mp4")]) == [str(tmp_path / "1.mp4"), str(tmp_path / "2.mp4")]


def test_file_whose_name_looks_like_a_glob_is_itself(tmp_path: Path) -> None:
    touch(tmp_path / "[a].mp4")
    assert expand_sources([str(tmp_path / "[a].mp4")]) == [str(tmp_path / "[a].mp4")]


@pytest.mark.parametrize("name", ["{folder}", "{folder}/*.mp4"])
def test_what_names_nothing_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(VideoError, match="no video in"):
        expand_sources([name.format(folder=tmp_path)])


def test_missing_file_and_url_are_left_for_their_opening_to_refuse() -> None:
    assert expand_sources(["none.mp4", "synthetic://walk?seed=1"]) == ["none.mp4", "synthetic://walk?seed=1"]


def test_unknown_scheme_is_refused_by_name() -> None:
    with pytest.raises(VideoError, match="unknown kind of source 'gopher'"):
        open_video("gopher://old")


def test_credentials_do_not_reach_records() -> None:
    assert redacted("rtsp://admin:geheim@cam/1") == "rtsp://***@cam/1"
    assert redacted("rtsp://admin:p@ss/w@cam/1") == "rtsp://***@cam/1"
    assert redacted("a@b.mp4") == "a@b.mp4"


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("http://cam/v?access_token=geheim&x=1", "http://cam/v?access_token=***&x=1"),
        ("http://cam/v?x=1&apikey=geheim", "http://cam/v?x=1&apikey=***"),
        ("https://store/a.mp4?sig=geheim&X-Amz-Signature=geheim", "https://store/a.mp4?sig=***&X-Amz-Signature=***"),
        ("https://store/a.mp4#id_token=geheim", "https://store/a.mp4#id_token=***"),
        (
            "gst: rtspsrc location=rtsp://cam user-id=geheim user-pw=geheim ! decodebin ! appsink",
            "gst: rtspsrc location=rtsp://cam user-id=*** user-pw=*** ! decodebin ! appsink",
        ),
        ('gst: souphttpsrc proxy-pw="ge heim \\" x" proxy-id = geheim ! appsink', None),
        ("gst: rtspsrc user-pw='ge heim' ! appsink", None),
        ('gst: srtsrc uri="srt://h?passphrase=geheim" passphrase=(string)"ge heim" ! appsink', None),
        ('gst: rtspsrc user-pw="ge heim', None),
        ("gst: v4l2src ! x264enc key-int-max=30 ! appsink", "gst: v4l2src ! x264enc key-int-max=30 ! appsink"),
        ("a?monkeys=3.mp4", "a?monkeys=3.mp4"),
    ],
)
def test_keys_and_passwords_do_not_reach_records(source: str, shown: str | None) -> None:
    assert "heim" not in redacted(source)
    assert shown is None or redacted(source) == shown


def test_list_that_names_a_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one.mp4\n@b.txt\n")
    with pytest.raises(NoSourceError, match=r"names the list @b\.txt; lists do not nest"):
        expand_sources([f"@{tmp_path / 'a.txt'}"])


@pytest.mark.parametrize(
    ("name", "live"),
    [
        ("gst: filesrc location=a.mp4 ! decodebin ! appsink", False),
        ("gst: uridecodebin uri=file:///a.mp4 ! appsink", False),
        ("gst: v4l2src ! appsink", True),
        ("0", True),
        ("RTSP://cam", True),
        ("a.mp4", False),
        ("synthetic://walk", False),
    ],
)
def test_name_tells_whether_pictures_come_at_their_own_pace(name: str, live: bool) -> None:
    assert is_live(name) == live


def test_error_of_one_picture_is_one_of_its_source() -> None:
    with (
        pytest.raises(VideoError, match=r"a\.mp4 holds a picture that cannot be used: MemoryError") as caught,
        converting("a.mp4"),
    ):
        raise MemoryError
    assert isinstance(caught.value.__cause__, MemoryError)
    with pytest.raises(ZeroDivisionError), converting("a.mp4"):  # a bug of ours is not the source's
        raise ZeroDivisionError
