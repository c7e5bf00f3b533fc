from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from edgeclf.errors import VideoError
from edgeclf.runtime.overlay import save_labelled
from edgeclf.runtime.timeline import Segment
from edgeclf.video import RgbImage
from tests.support.videos import GREEN, RED, ListSource, plain

SEGMENTS = [Segment("first", 0.0, 1.0, 0.9), Segment("second", 1.0, 2.0, 0.3)]


def source(seconds: float = 2.0, **options: object) -> ListSource:
    images = plain(RED, seconds, fps=25, size=(121, 161))
    return ListSource("red", images, [n / 25 for n in range(len(images))], **options)  # type: ignore[arg-type]


def frames_of(path: Path) -> list[tuple[float, RgbImage]]:
    with av.open(str(path)) as container:
        return [(float(frame.time or 0), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_every_frame_keeps_its_time_and_gets_a_bar(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    assert save_labelled(source(), SEGMENTS, path) == 50
    frames = frames_of(path)
    assert [seconds for seconds, _ in frames] == pytest.approx([n / 25 for n in range(50)], abs=2e-3)
    image = frames[0][1]
    assert image.shape == (120, 160, 3)  # encoders want even sides
    assert image[:90, :, 0].mean() > 180
    assert image[-10:, -20:].mean() < 90


def test_label_changes_with_its_segment(tmp_path: Path) -> None:
    save_labelled(source(), SEGMENTS, tmp_path / "out.mp4")
    frames = frames_of(tmp_path / "out.mp4")
    bars = [image[-16:].astype(int) for _, image in (frames[5], frames[20], frames[30])]
    assert np.abs(bars[0] - bars[1]).mean() < 4
    assert np.abs(bars[1] - bars[2]).mean() > 8


def test_gif_is_thinned_to_ten_frames_a_second(tmp_path: Path) -> None:
    written = save_labelled(source(), SEGMENTS, tmp_path / "out.gif")
    assert 17 <= written <= 20
    assert len(frames_of(tmp_path / "out.gif")) == written


def test_frame_of_another_size_is_resized(tmp_path: Path) -> None:
    images = [*plain(RED, 0.2), *plain(GREEN, 0.2, size=(96, 128))]
    save_labelled(ListSource("two", images, [n / 25 for n in range(10)]), SEGMENTS, tmp_path / "out.mp4")
    assert {image.shape for _, image in frames_of(tmp_path / "out.mp4")} == {(48, 64, 3)}


def test_good_frames_of_a_damaged_source_are_saved(tmp_path: Path) -> None:
    damaged = source(error=VideoError("damaged"))
    assert save_labelled(damaged, SEGMENTS, tmp_path / "out.mp4") == 50
    assert damaged.closed


def test_source_without_frames_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="has no frame to save"):
        save_labelled(ListSource("empty", [], []), SEGMENTS, tmp_path / "out.mp4")
    assert list(tmp_path.iterdir()) == []


def test_failure_leaves_an_older_file_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "out.mp4").write_bytes(b"older")
    with pytest.raises(ZeroDivisionError):
        save_labelled(source(error=ZeroDivisionError()), SEGMENTS, tmp_path / "out.mp4")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"older"]
