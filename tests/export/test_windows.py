from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgeclf.dataset import load_dataset
from edgeclf.export.windows import CALIBRATION_FRAMES, calibration_input, sampled_clips, windows_of
from edgeclf.layouts import LabelledClip
from edgeclf.specs import ClipSpec, PreprocessSpec
from tests.support.labelled import write_color_clips

CLIP = ClipSpec.by_rate(length=4, rate=5.0)
PREPROCESS = PreprocessSpec((16, 16))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[LabelledClip]:
    folder = tmp_path_factory.mktemp("clips")
    write_color_clips(folder, groups=2)
    return list(load_dataset(folder).clips)


def test_frames_of_labelled_clips_are_sampled_by_time(clips: list[LabelledClip]) -> None:
    found = list(sampled_clips(clips, PREPROCESS, CLIP))
    assert [clip.label for clip in found] == [clip.label for clip in clips]
    assert {clip.frames.shape for clip in found} == {(5, 16, 16, 3)}  # a second at 5 frames a second
    assert found[0].frames.dtype == np.uint8


def test_clip_that_cannot_be_read_gives_nothing(clips: list[LabelledClip], tmp_path: Path) -> None:
    broken = LabelledClip(tmp_path / "broken.avi", "red", "g9", "test")
    broken.path.write_bytes(b"no video")
    assert len(list(sampled_clips([broken, clips[0]], PREPROCESS, CLIP))) == 1


@pytest.mark.parametrize(("rows", "length", "count"), [(1, 1, 1), (2, 1, 2), (5, 3, 3), (8, 4, 5), (20, 4, 17)])
def test_windows_are_half_as_long_as_the_clip_and_begin_everywhere(rows: int, length: int, count: int) -> None:
    values = np.arange(rows, dtype=np.float32)[:, None] + 1
    windows, lengths = windows_of(values, CLIP)
    assert windows.shape == (count, CLIP.length, 1)
    assert lengths.tolist() == [length] * count
    for start, window in enumerate(windows):
        assert window[:length, 0].tolist() == [start + 1 + step for step in range(length)]
        assert not window[length:].any()


def test_calibration_takes_all_labels_alike(clips: list[LabelledClip]) -> None:
    found = calibration_input(clips, PREPROCESS, CLIP, whole=False)
    assert found.shape[1:] == (16, 16, 3)
    assert len(found) <= CALIBRATION_FRAMES
    winners = Counter(found.reshape(len(found), -1, 3).mean(axis=1).argmax(axis=1).tolist())
    assert len(winners) == 3
    assert len(set(winners.values())) == 1


def test_calibration_can_be_repeated(clips: list[LabelledClip]) -> None:
    first, second = (calibration_input(clips, PREPROCESS, CLIP, whole=False) for _ in range(2))
    assert np.array_equal(first, second)


def test_calibration_of_clip_networks_takes_whole_clips(clips: list[LabelledClip]) -> None:
    assert calibration_input(clips, PREPROCESS, CLIP, whole=True).shape == (6, 4, 16, 16, 3)


def test_calibration_without_a_readable_clip_is_empty(tmp_path: Path) -> None:
    missing = LabelledClip(tmp_path / "missing.avi", "red", "", "train")
    assert len(calibration_input([missing], PREPROCESS, CLIP, whole=False)) == 0
