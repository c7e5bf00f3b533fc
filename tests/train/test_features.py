"""Features of whole videos: the clips are the runtime's own, and what is kept is used only where it fits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclf.dataset import LabelledClip
from edgeclf.errors import EdgeclfError, VideoError
from edgeclf.image_source import IMAGE_RATE
from edgeclf.runtime.model import FramesAsFeatures
from edgeclf.runtime.pipeline import LoopOptions, open_classifier, run_loop
from edgeclf.runtime.records import Prediction
from edgeclf.runtime.session import Session
from edgeclf.specs import ClipSpec, PreprocessSpec
from edgeclf.train.augment import Augmentation
from edgeclf.train.examples import ClipExamples
from edgeclf.train.features import (
    AS_IT_IS,
    Extraction,
    KeptFeatures,
    VideoFeatures,
    View,
    content_hash,
    extractor_identity,
    joined_pictures,
    single_pictures,
    video_features,
)
from edgeclf.train.fit import FitSettings
from tests.support.colors import CLIP, LABELS, SIZE
from tests.support.labelled import ColorExtractor, require_keras
from tests.support.sessions import MeanExtractor, keeping_model
from tests.support.videos import BLUE, GREEN, RED, ListSource, plain, write_video

PREPROCESS = PreprocessSpec(SIZE)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    change = plain(RED, 2, fps=12.5) + plain(BLUE, 2, fps=12.5)
    gap = [n / 10 for n in range(30)] + [6 + n / 10 for n in range(12)]
    paths = [
        write_video(folder / "change.mp4", change, fps=12.5),
        write_video(folder / "short.avi", plain(GREEN, 0.7)),
        write_video(folder / "one.mkv", plain(GREEN, 0.1, fps=10), fps=10),
        write_video(folder / "slow.mp4", plain(RED, 4, fps=3), fps=3),
        write_video(folder / "gap.mkv", plain(RED, 3, fps=10) + plain(GREEN, 1.2, fps=10), times=gap),
    ]
    write_video(folder / "long.avi", plain(BLUE, 6, fps=10), fps=10, options={"g": "5"})
    cut = (folder / "long.avi").read_bytes()
    (folder / "cut.avi").write_bytes(cut[: len(cut) // 2])
    return [*paths, folder / "cut.avi"]


def labelled(paths: Sequence[Path]) -> list[LabelledClip]:
    return [LabelledClip(path, "any", "", "train") for path in paths]


def extraction_of(
    extractor: Session | None = None,
    *,
    identity: str = "mean colour",
    preprocess: PreprocessSpec = PREPROCESS,
    clip: ClipSpec = CLIP,
    dtype: str = "float32",
) -> Extraction:
    return Extraction(extractor or MeanExtractor(preprocess), identity, preprocess, clip, dtype)


def features_of(
    paths: Sequence[Path],
    extractor: Session | None = None,
    *,
    cache: Path | None = None,
    view: View = AS_IT_IS,
    **settings: Any,
) -> list[VideoFeatures]:
    return video_features(labelled(paths), extraction_of(extractor, **settings), view=view, cache=cache)


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def assert_same(found: VideoFeatures, expected: VideoFeatures) -> None:
    for name in ("rows", "pts_seconds", "slots", "restarts"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype
    assert found.error == expected.error


# -- clips ------------------------------------------------------------------------------------------------------------


PREPROCESSES = {
    "picture": PREPROCESS,
    "stack": PreprocessSpec(SIZE, crop="none", stack=2, stack_seconds=0.12),
    "letterbox": PreprocessSpec((12, 20), crop="letterbox", interpolation="area", color="gray3"),
}


def clip_of(sampling: str, padding: str) -> ClipSpec:
    return ClipSpec.from_dict(CLIP.to_dict() | {"sampling": sampling, "padding": padding})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> LabelledClip:
    """A clip of seven picture files."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(3)
    paths = tuple(folder / f"{number}.png" for number in range(7))
    for path in paths:
        assert cv2.imwrite(str(path), rng.integers(0, 256, (20, 26, 3), np.uint8))
    return LabelledClip(folder, "any", "", "train", paths)


@pytest.mark.parametrize("takes_frames", [False, True], ids=["features", "frames"])
@pytest.mark.parametrize("preprocess", PREPROCESSES.values(), ids=PREPROCESSES)
@pytest.mark.parametrize("padding", ["mask", "repeat_last"])
@pytest.mark.parametrize("sampling", ["rate", "first", "uniform"])
def test_training_sees_what_the_loop_feeds_the_classifier(
    videos: list[Path], sampling: str, padding: str, preprocess: PreprocessSpec, takes_frames: bool
) -> None:
    clip = clip_of(sampling, padding)
    flags = assert_same_feeds(labelled(videos), clip, preprocess, takes_frames=takes_frames)
    expected = {"rate": {(), ("partial",), ("stale",)}, "first": {(), ("partial",)}, "uniform": {()}}
    assert flags == expected[sampling]


@pytest.mark.parametrize("takes_frames", [False, True], ids=["features", "frames"])
@pytest.mark.parametrize("preprocess", PREPROCESSES.values(), ids=PREPROCESSES)
@pytest.mark.parametrize("padding", ["mask", "repeat_last"])
@pytest.mark.parametrize("sampling", ["rate", "first", "uniform"])
def test_training_sees_of_pictures_what_the_loop_feeds_the_classifier(
    pictures: LabelledClip, sampling: str, padding: str, preprocess: PreprocessSpec, takes_frames: bool
) -> None:
    assert_same_feeds([pictures], clip_of(sampling, padding), preprocess, takes_frames=takes_frames)


def assert_same_feeds(
    labelled_clips: Sequence[LabelledClip], clip: ClipSpec, preprocess: PreprocessSpec, *, takes_frames: bool
) -> set[tuple[str, ...]]:
    """The same frames, preprocessing and padding in the same clips, in the loop and in training; the clips' flags."""
    flags: set[tuple[str, ...]] = set()
    session: Session = FramesAsFeatures(preprocess) if takes_frames else MeanExtractor(preprocess)
    found = video_features(labelled_clips, Extraction(session, "any", preprocess, clip))
    for labelled_clip, features in zip(labelled_clips, found, strict=True):
        model, kept = keeping_model(preprocess, clip, LABELS, takes_frames=takes_frames)
        records = run_loop([labelled_clip.source], model, LoopOptions().sequential(), form="file")
        predictions = [record for record in records if isinstance(record, Prediction)]
        clips = features.clips(clip)
        assert clips, labelled_clip.name
        assert [(round(c.start_seconds, 6), round(c.end_seconds, 6), c.flags) for c in clips] == [
            (p.start_seconds, p.end_seconds, p.flags) for p in predictions
        ]
        for cut, (rows, length) in zip(clips, kept.clips, strict=True):
            assert length in (cut.length, None)
            assert cut.features.dtype == rows.dtype
            np.testing.assert_array_equal(cut.features, rows)
        for (shown, shown_length), (rows, length) in zip(shown_to_keras(features, clip), kept.clips, strict=True):
            assert length in (shown_length, None)
            np.testing.assert_array_equal(shown, rows)
        flags |= {cut.flags for cut in clips}
    return flags


def shown_to_keras(features: VideoFeatures, clip: ClipSpec) -> list[tuple[NDArray[Any], int]]:
    """What a validation epoch makes of a video: features and length of each clip."""

    def feeds(rows: NDArray[Any], lengths: NDArray[np.int32]) -> Any:
        return list(zip(rows, lengths.tolist(), strict=True))

    examples = ClipExamples([[features]], np.zeros(1, np.int32), 2, clip, feeds, FitSettings(batch=3))
    return [pair for batch in examples.epoch(0) for pair in batch.inputs]


def test_clips_get_the_labels_that_the_bundle_finds(videos: list[Path], colors: Path) -> None:
    features = features_of(videos[:1])[0].clips(CLIP)
    with open_classifier(colors, device="cpu") as classifier:
        result = classifier.classify(videos[0])
    assert [LABELS[int(clip.features[: clip.length].mean(0).argmax())] for clip in features] == [
        clip.label for clip in result.clips
    ]


def test_same_features_serve_clips_of_another_length_and_hop(videos: list[Path]) -> None:
    (features,) = features_of(videos[:1])
    clips = features.clips(ClipSpec.by_rate(length=4, rate=CLIP.rate, hop_seconds=0.8))
    assert [round(clip.start_seconds, 6) for clip in clips] == [0.0, 0.8, 1.6, 2.4, 3.2]


# -- many videos ------------------------------------------------------------------------------------------------------


def test_results_stand_in_the_order_of_the_paths(videos: list[Path]) -> None:
    alone = [features_of([path])[0] for path in videos]
    for order in (list(range(len(videos))), list(range(len(videos)))[::-1], [3, 0, 0, 4]):
        together = features_of([videos[n] for n in order])
        for n, features in zip(order, together, strict=True):
            assert_same(features, alone[n])


def test_many_videos_at_once(videos: list[Path], tmp_path: Path) -> None:
    shades = [(10 * n, 250 - 10 * n, 100) for n in range(24)]
    paths = [write_video(tmp_path / f"{n}.avi", plain(shade, 0.5, fps=10), fps=10) for n, shade in enumerate(shades)]
    extractor = ColorExtractor()
    found = features_of(paths, extractor)
    assert [len(features.rows) for features in found] == [3] * 24
    reds = np.array([features.rows[:, 0].mean() for features in found])
    np.testing.assert_allclose(reds * 255, [shade[0] for shade in shades], atol=12)
    assert len(extractor.batches) < 24, "frames of several videos share a batch"
    assert sum(extractor.batches) == 72


def test_unreadable_video_has_its_error_and_harms_no_other(videos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text.avi").write_text("not a video")
    bad = [tmp_path / "text.avi", tmp_path / "none.avi", tmp_path]
    found = features_of([bad[0], videos[0], bad[1], videos[1], bad[2]], cache=tmp_path / "cache")
    assert_same(found[1], features_of(videos[:1])[0])
    assert_same(found[3], features_of(videos[1:2])[0])
    for path, features in zip(bad, [found[0], found[2], found[4]], strict=True):
        assert str(path) in features.error
        assert features.rows.shape == (0, 3)
        assert features.clips(CLIP) == []
    assert len(files_in(tmp_path / "cache")) == 2


def test_no_video_is_no_features() -> None:
    assert features_of([]) == []


def test_progress_counts_each_video_once_whether_kept_or_not(videos: list[Path], tmp_path: Path) -> None:
    features_of(videos[:2], cache=tmp_path)
    steps: list[int] = []
    paths = [*videos[:4], tmp_path / "none.avi"]
    video_features(labelled(paths), extraction_of(), cache=tmp_path, progress=lambda: steps.append(1))
    assert len(steps) == 5


class BrokenExtractor(ColorExtractor):
    def run(self, feeds: object) -> dict[str, np.ndarray]:
        raise RuntimeError("device lost")


def test_error_in_the_extractor_reaches_the_caller(videos: list[Path]) -> None:
    with pytest.raises(RuntimeError, match="device lost"):
        features_of(videos, BrokenExtractor())


# -- what is kept -----------------------------------------------------------------------------------------------------


def test_kept_features_are_used_instead_of_the_extractor(videos: list[Path], tmp_path: Path) -> None:
    whole = videos[:5]
    made = features_of(whole, cache=tmp_path)
    assert len(files_in(tmp_path)) == 5
    kept = features_of(whole, BrokenExtractor(), cache=tmp_path)
    for found, expected in zip(kept, made, strict=True):
        assert_same(found, expected)


def test_video_is_known_by_its_bytes_wherever_it_lies(videos: list[Path], tmp_path: Path) -> None:
    features_of(videos[:1], cache=tmp_path / "cache")
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(videos[0].read_bytes())
    assert features_of([copy], BrokenExtractor(), cache=tmp_path / "cache")[0].error == ""


def test_same_path_with_other_bytes_is_another_video(videos: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(videos[0].read_bytes())
    features_of([path], cache=tmp_path / "cache")
    write_video(path, plain(GREEN, 1))
    assert_same(features_of([path], cache=tmp_path / "cache")[0], features_of([path])[0])


@pytest.mark.parametrize(
    "change",
    [
        {"identity": "other weights"},
        {"preprocess": replace(PREPROCESS, crop="none")},
        {"preprocess": replace(PREPROCESS, interpolation="area")},
        {"preprocess": replace(PREPROCESS, color="gray3")},
        {"preprocess": replace(PREPROCESS, size=(16, 20))},
        {"clip": replace(CLIP, rate=4.0)},
        {"clip": replace(CLIP, stale_seconds=9.0)},
        {"clip": replace(CLIP, sampling="first")},
        {"clip": replace(CLIP, sampling="uniform")},
        {"preprocess": replace(PREPROCESS, stack=2, stack_seconds=0.12)},
        {"dtype": "float16"},
        {"view": View(1, Augmentation(flip=True))},
    ],
    ids=str,
)
def test_features_of_other_settings_are_made_anew(videos: list[Path], tmp_path: Path, change: dict[str, Any]) -> None:
    features_of(videos[4:5], cache=tmp_path)
    (found,) = features_of(videos[4:5], cache=tmp_path, **change)
    (expected,) = features_of(videos[4:5], **change)
    assert_same(found, expected)
    assert len(files_in(tmp_path)) == 2


def test_length_and_hop_do_not_change_what_is_kept(videos: list[Path], tmp_path: Path) -> None:
    features_of(videos[:1], cache=tmp_path)
    features_of(videos[:1], BrokenExtractor(), clip=replace(CLIP, length=5, hop_seconds=9), cache=tmp_path)


@pytest.mark.parametrize("sampling", ["first", "uniform"])
def test_length_changes_what_is_kept_where_frames_are_counted(
    videos: list[Path], tmp_path: Path, sampling: str
) -> None:
    for length in (3, 5):
        clip = ClipSpec.from_dict(CLIP.to_dict() | {"sampling": sampling, "length": length})
        (found,) = features_of(videos[:1], clip=clip, cache=tmp_path)
        assert found.slots.sum() == length
    same = replace(clip, rate=9.0, hop_seconds=2.0, padding="repeat_last")
    features_of(videos[:1], BrokenExtractor(), clip=same, cache=tmp_path)
    assert len(files_in(tmp_path)) == 2


def cut_off(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = content.index(b"NUMPY") + 140
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


def emptied(content: bytes) -> bytes:
    return b""


def garbled(content: bytes) -> bytes:
    return b"no archive" * 50


def an_array_instead(content: bytes) -> bytes:
    start = content.index(b"\x93NUMPY")
    return content[start : start + 400]


@pytest.mark.parametrize("damage", [cut_off, flipped, emptied, garbled, an_array_instead])
def test_damaged_file_is_made_again_with_a_warning(
    videos: list[Path], tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    (made,) = features_of(videos[:1], cache=tmp_path)
    (file,) = files_in(tmp_path)
    good = file.read_bytes()
    file.write_bytes(damage(good))
    with caplog.at_level(logging.WARNING):
        (again,) = features_of(videos[:1], cache=tmp_path)
    assert f"{file} is damaged and will be made again" in caplog.text
    assert_same(again, made)
    assert files_in(tmp_path) == {file}
    assert_same(features_of(videos[:1], BrokenExtractor(), cache=tmp_path)[0], made)


def test_video_that_ends_early_gives_what_was_read_and_is_not_kept(
    videos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = ListSource("damaged", plain(RED, 2, fps=5), [n / 5 for n in range(10)], error=VideoError("bad packet"))
    monkeypatch.setattr("edgeclf.layouts.open_video", lambda _: damaged)
    (found,) = features_of(videos[:1], cache=tmp_path)
    assert (found.error, found.rows.shape) == ("bad packet", (10, 3))
    assert len(found.clips(CLIP)) == 2
    assert files_in(tmp_path) == set()


def test_folder_that_cannot_be_written_is_named(videos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(EdgeclfError, match=r"features cannot be kept in .*cache.*; name a folder with --cache"):
        features_of(videos, cache=tmp_path / "cache")


# -- half precision, pictures -----------------------------------------------------------------------------------------


def test_features_are_kept_in_half_precision_where_that_is_asked_for(videos: list[Path], tmp_path: Path) -> None:
    (exact,) = features_of(videos[:1])
    (made,) = features_of(videos[:1], dtype="float16", cache=tmp_path)
    (kept,) = features_of(videos[:1], BrokenExtractor(), dtype="float16", cache=tmp_path)
    assert exact.rows.dtype == np.float32
    assert made.rows.dtype == kept.rows.dtype == np.float16
    np.testing.assert_array_equal(made.rows, exact.rows.astype(np.float16))
    assert_same(kept, made)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_frames_are_kept_as_they_are_whatever_the_precision(videos: list[Path], tmp_path: Path, dtype: str) -> None:
    for _ in range(2):
        (found,) = features_of(videos[:1], FramesAsFeatures(PREPROCESS), dtype=dtype, cache=tmp_path)
        assert (str(found.rows.dtype), found.rows.shape[1:]) == ("uint8", (*SIZE, 3))


def test_clip_of_pictures_has_features_and_is_kept(pictures: LabelledClip, tmp_path: Path) -> None:
    (made,) = video_features([pictures], extraction_of(clip=replace(CLIP, rate=10.0)), cache=tmp_path)
    assert (made.error, made.rows.shape) == ("", (7, 3))
    np.testing.assert_allclose(made.pts_seconds, np.arange(7) / 10)
    (kept,) = video_features(
        [pictures], extraction_of(BrokenExtractor(), clip=replace(CLIP, rate=10.0)), cache=tmp_path
    )
    assert_same(kept, made)


def test_same_pictures_in_another_order_are_another_clip(pictures: LabelledClip, tmp_path: Path) -> None:
    backward = replace(pictures, images=pictures.images[::-1])
    extraction = extraction_of(clip=replace(CLIP, rate=10.0))
    first, second = video_features([pictures, backward], extraction, cache=tmp_path)
    np.testing.assert_array_equal(first.rows, second.rows[::-1])
    assert len(files_in(tmp_path)) == 2


def test_clip_with_a_picture_that_cannot_be_read_has_an_error_and_is_not_kept(
    pictures: LabelledClip, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for bad in (tmp_path / "text.png", tmp_path / "none.png"):
        clip = replace(pictures, images=(*pictures.images[:3], bad))
        (found,) = video_features([clip], extraction_of(), cache=tmp_path / "cache")
        assert "1 of 4 pictures cannot be read" in found.error
        assert len(found.rows) == 2
    assert not files_in(tmp_path / "cache")


def test_content_of_a_clip_that_is_missing_has_no_hash(pictures: LabelledClip, tmp_path: Path) -> None:
    assert content_hash(labelled([tmp_path / "none.avi"])[0]) == ""
    assert content_hash(replace(pictures, images=(*pictures.images, tmp_path / "none.png"))) == ""
    assert len(content_hash(pictures)) == 64


# -- views ------------------------------------------------------------------------------------------------------------

CHANGES = Augmentation(flip=True, crop=0.3, brightness=0.4)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two videos that no change leaves as they are: pictures grow brighter to the right."""
    folder = tmp_path_factory.mktemp("scene")
    ramp = np.broadcast_to(np.linspace(20, 160, 64)[None, :, None], (48, 64, 3))
    bright = [(ramp + np.array([0, 10 * number, 40])).astype(np.uint8) for number in range(2)]
    return [
        write_video(folder / f"{number}.avi", [image] * 6, fps=5, codec="ffv1") for number, image in enumerate(bright)
    ]


def frames_of(paths: Sequence[Path], view: View, cache: Path | None = None) -> list[VideoFeatures]:
    return features_of(paths, FramesAsFeatures(PREPROCESS), view=view, cache=cache)


def test_first_view_is_the_clip_as_it_is(scene: list[Path]) -> None:
    (plain_view,), (zero,) = frames_of(scene[:1], AS_IT_IS), frames_of(scene[:1], View(0, CHANGES))
    assert_same(zero, plain_view)


def test_other_views_differ_from_the_first_and_from_each_other(scene: list[Path]) -> None:
    rows = {frames_of(scene[:1], View(number, CHANGES))[0].rows.tobytes() for number in range(5)}
    assert len(rows) == 5


def test_view_of_a_clip_is_always_the_same(scene: list[Path]) -> None:
    for number in (1, 2):
        alone = [frames_of([path], View(number, CHANGES))[0] for path in scene]
        for found, expected in zip(frames_of(scene[::-1], View(number, CHANGES))[::-1], alone, strict=True):
            assert_same(found, expected)


def test_all_frames_of_a_view_are_changed_alike(scene: list[Path]) -> None:
    for number in range(1, 5):
        (found,) = frames_of(scene[:1], View(number, CHANGES))
        np.testing.assert_array_equal(found.rows, np.broadcast_to(found.rows[0], found.rows.shape))


def test_views_of_two_clips_are_changed_each_in_its_own_way() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    found = {View(1, CHANGES).change(digest)(pictures).tobytes() for digest in ("one", "two", "three")}
    assert len(found) == 3


def test_views_are_kept_beside_each_other(scene: list[Path], tmp_path: Path) -> None:
    views = [View(number, CHANGES) for number in range(3)]
    made = [features_of(scene, view=view, cache=tmp_path) for view in views]
    kept = [features_of(scene, BrokenExtractor(), view=view, cache=tmp_path) for view in views]
    for some, others in zip(made, kept, strict=True):
        for found, expected in zip(others, some, strict=True):
            assert_same(found, expected)
    assert len(files_in(tmp_path)) == 6


# -- features that stay on disk ---------------------------------------------------------------------------------------


def kept_features(clips: Sequence[LabelledClip], cache: Path, extractor: Session | None = None) -> KeptFeatures:
    return KeptFeatures(clips, extraction_of(extractor), cache, lambda: None)


def test_kept_features_are_those_that_would_be_held(videos: list[Path], tmp_path: Path) -> None:
    kept = kept_features(labelled(videos), tmp_path)
    assert len(kept) == len(videos)
    for found, expected in zip(kept, features_of(videos), strict=True):
        assert_same(found, expected)


def test_kept_features_are_made_once(videos: list[Path], tmp_path: Path) -> None:
    whole = labelled(videos[:3])
    steps: list[int] = []
    KeptFeatures(whole, extraction_of(), tmp_path, lambda: steps.append(1))
    again = KeptFeatures(whole, extraction_of(BrokenExtractor()), tmp_path, lambda: steps.append(1))
    assert len(again[2].rows) == 1
    assert len(steps) == 6


def test_clip_that_cannot_be_kept_stays_in_memory(videos: list[Path], pictures: LabelledClip, tmp_path: Path) -> None:
    (tmp_path / "text.avi").write_text("not a video")
    damaged = replace(pictures, images=(*pictures.images, tmp_path / "none.png"))
    bad = labelled([tmp_path / "none.avi", tmp_path / "text.avi"])
    kept = kept_features([*bad, damaged, *labelled(videos[:1])], tmp_path / "cache")
    assert [bool(features.error) for features in kept] == [True, True, True, False]
    assert [len(features.rows) > 0 for features in kept] == [False, False, True, True]


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:100])])
def test_kept_file_that_is_gone_or_damaged_is_made_again(
    videos: list[Path], tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    kept = kept_features(labelled(videos[:1]), tmp_path)
    (file,) = files_in(tmp_path)
    before = kept[0]
    damage(file)
    assert_same(kept[0], before)
    assert_same(kept_features(labelled(videos[:1]), tmp_path, BrokenExtractor())[0], before)


def test_kept_file_that_cannot_be_made_again_is_named(videos: list[Path], tmp_path: Path) -> None:
    video = tmp_path / "moved.avi"
    video.write_bytes(videos[0].read_bytes())
    kept = kept_features(labelled([video]), tmp_path / "cache")
    (file,) = files_in(tmp_path / "cache")
    file.unlink()
    video.unlink()
    with pytest.raises(EdgeclfError, match=r"\.npz is gone or damaged, and cannot be made again"):
        kept[0]


def test_there_is_an_end_to_kept_features(videos: list[Path], tmp_path: Path) -> None:
    with pytest.raises(IndexError):
        kept_features(labelled(videos[:1]), tmp_path)[1]


# -- clips that share pictures ----------------------------------------------------------------------------------------

SHARING = {
    "all": ClipSpec.by_rate(4, IMAGE_RATE),
    "every second": ClipSpec.by_rate(2, IMAGE_RATE / 2),
    "each twice": ClipSpec.by_rate(8, 2 * IMAGE_RATE),
    "the first": replace(ClipSpec.by_rate(3, IMAGE_RATE), sampling="first", padding="repeat_last"),
    "spread": replace(ClipSpec.by_rate(3, IMAGE_RATE), sampling="uniform", padding="repeat_last"),
    "broken by a gap": replace(ClipSpec.by_rate(4, IMAGE_RATE), stale_seconds=0.15),
}


@pytest.mark.parametrize("name", SHARING)
def test_clip_of_pictures_read_one_by_one_is_as_if_it_was_read_as_a_whole(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(4)
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        if number in (1, 4):
            path.write_bytes(b"no picture")
        else:
            assert cv2.imwrite(str(path), rng.integers(0, 256, (*SIZE, 3), np.uint8))
    orders = [(0, 2, 3, 5), (5, 3, 0, 2), (0, 1, 2, 3), (4, 5, 1, 0), (2, 3, 1, 4), (1, 4, 4, 1)]
    clips = [
        LabelledClip(Path(f"clip{number}"), "red", "", "train", tuple(paths[index] for index in order))
        for number, order in enumerate(orders)
    ]
    extraction = Extraction(ColorExtractor(), "colours", PREPROCESS, SHARING[name])
    pictures = single_pictures(clips)
    assert [picture.path for picture in pictures] == paths
    found = joined_pictures(clips, video_features(pictures, extraction), extraction.clip)
    for clip, other in zip(found, video_features(clips, extraction), strict=True):
        for part in ("rows", "pts_seconds", "slots", "restarts"):
            np.testing.assert_array_equal(getattr(clip, part), getattr(other, part))


def test_pictures_of_a_view_are_changed_one_by_one(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        assert cv2.imwrite(str(path), np.full((*SIZE, 3), 100 + number, np.uint8))
    clip = LabelledClip(Path("clip"), "red", "", "train", tuple(paths))
    extraction = Extraction(FramesAsFeatures(PREPROCESS), "frames", PREPROCESS, SHARING["all"])
    view = View(1, Augmentation(brightness=0.5))
    whole = video_features([clip], extraction, view=view)
    single = joined_pictures([clip], video_features(single_pictures([clip]), extraction, view=view), extraction.clip)
    alike, apart = (found.rows.mean(axis=(1, 2, 3)) / np.arange(100, 106) for found in (whole[0], single[0]))
    assert np.ptp(alike) < 0.02
    assert np.ptp(apart) > 0.2


# -- with Keras -------------------------------------------------------------------------------------------------------


@pytest.mark.keras
def test_identity_of_an_extractor_is_its_layers_and_weights() -> None:
    require_keras()
    import keras

    def extractor(*, seed: int = 0, strides: int = 1) -> object:
        keras.utils.set_random_seed(seed)
        frames = keras.Input((8, 8, 3), dtype="uint8", name="frames")
        x = keras.layers.Rescaling(1 / 255, name="scale")(frames)
        x = keras.layers.Conv2D(2, 3, strides=strides, name="conv")(x)
        return keras.Model(frames, keras.layers.GlobalAveragePooling2D(name="pool")(x), name="tiny")

    identities = [extractor_identity(extractor()), extractor_identity(extractor())]
    assert identities[0] == identities[1]
    assert len({identities[0], extractor_identity(extractor(seed=1)), extractor_identity(extractor(strides=2))}) == 3


def test_frames_as_they_are_have_an_identity_of_their_own() -> None:
    assert extractor_identity(None) == "frames"
