from __future__ import annotations

from pathlib import Path

import pytest

from edgeclf.errors import VideoError
from edgeclf.video import expand_sources, open_video, redacted


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
