"""Features of whole videos: the clips are the runtime's own, and what is kept is used only where it fits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeclf.errors import EdgeclfError, VideoError
from edgeclf.runtime.model import Model
from edgeclf.runtime.pipeline import LoopOptions, open_classifier, run_loop
from edgeclf.runtime.records import Prediction
from edgeclf.specs import ClipSpec, PreprocessSpec
from edgeclf.train.features import VideoFeatures, feature_cache_folder, video_features
from tests.support.colors import CLIP, LABELS, SIZE
from tests.support.labelled import ColorExtractor, KeptClips, require_keras
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


def features_of(
    paths: Sequence[Path],
    extractor: ColorExtractor | None = None,
    *,
    identity: str = "mean colour",
    preprocess: PreprocessSpec = PREPROCESS,
    clip: ClipSpec = CLIP,
    cache: Path | None = None,
) -> list[VideoFeatures]:
    return video_features(paths, extractor or ColorExtractor(preprocess.size), identity, preprocess, clip, cache=cache)


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def assert_same(found: VideoFeatures, expected: VideoFeatures) -> None:
    for name in ("rows", "pts_seconds", "slots", "restarts"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype
    assert found.error == expected.error


# -- clips ------------------------------------------------------------------------------------------------------------


def test_clips_are_those_of_the_runtime(videos: list[Path]) -> None:
    flags = set()
    for path, features in zip(videos, features_of(videos), strict=True):
        kept = KeptClips(CLIP.length, 3, len(LABELS))
        model = Model("even", LABELS, PREPROCESS, CLIP, "mean", ColorExtractor(), kept)
        records = run_loop([path], model, LoopOptions().sequential())
        predictions = [record for record in records if isinstance(record, Prediction)]
        clips = features.clips(CLIP)
        assert [(round(c.start_seconds, 6), round(c.end_seconds, 6), c.flags) for c in clips] == [
            (p.start_seconds, p.end_seconds, p.flags) for p in predictions
        ]
        assert [clip.length for clip in clips] == [length for _, length in kept.clips]
        for clip, (rows, _) in zip(clips, kept.clips, strict=True):
            np.testing.assert_array_equal(clip.features, rows)
        flags |= {clip.flags for clip in clips}
    assert flags == {(), ("partial",), ("stale",)}


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
    video_features(
        paths, ColorExtractor(), "mean colour", PREPROCESS, CLIP, cache=tmp_path, progress=lambda: steps.append(1)
    )
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
    ],
    ids=str,
)
def test_features_of_other_settings_are_made_anew(videos: list[Path], tmp_path: Path, change: dict[str, str]) -> None:
    features_of(videos[4:5], cache=tmp_path)
    (found,) = features_of(videos[4:5], cache=tmp_path, **change)  # type: ignore[arg-type]
    (expected,) = features_of(videos[4:5], **change)  # type: ignore[arg-type]
    assert_same(found, expected)
    assert len(files_in(tmp_path)) == 2


def test_length_and_hop_do_not_change_what_is_kept(videos: list[Path], tmp_path: Path) -> None:
    features_of(videos[:1], cache=tmp_path)
    features_of(videos[:1], BrokenExtractor(), clip=replace(CLIP, length=5, hop_seconds=9), cache=tmp_path)


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
    videos: list[Path], tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    (made,) = features_of(videos[:1], cache=tmp_path)
    (file,) = files_in(tmp_path)
    good = file.read_bytes()
    file.write_bytes(damage(good))  # type: ignore[operator]
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
    monkeypatch.setattr("edgeclf.train.features.open_video", lambda _: damaged)
    (found,) = features_of(videos[:1], cache=tmp_path)
    assert (found.error, found.rows.shape) == ("bad packet", (10, 3))
    assert len(found.clips(CLIP)) == 2
    assert files_in(tmp_path) == set()


def test_folder_that_cannot_be_written_is_named(videos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(EdgeclfError, match=r"features cannot be kept in .*cache.*; name a folder with --cache"):
        features_of(videos, cache=tmp_path / "cache")


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert feature_cache_folder() == tmp_path / "edgeclf" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert feature_cache_folder() == tmp_path / "home" / ".cache" / "edgeclf" / "features"


# -- with Keras -------------------------------------------------------------------------------------------------------


@pytest.mark.keras
def test_identity_of_an_extractor_is_its_layers_and_weights() -> None:
    require_keras()
    import keras

    from edgeclf.train.features import extractor_identity

    def extractor(*, seed: int = 0, strides: int = 1) -> object:
        keras.utils.set_random_seed(seed)
        frames = keras.Input((8, 8, 3), dtype="uint8", name="frames")
        x = keras.layers.Rescaling(1 / 255, name="scale")(frames)
        x = keras.layers.Conv2D(2, 3, strides=strides, name="conv")(x)
        return keras.Model(frames, keras.layers.GlobalAveragePooling2D(name="pool")(x), name="tiny")

    identities = [extractor_identity(extractor()), extractor_identity(extractor())]
    assert identities[0] == identities[1]
    assert len({identities[0], extractor_identity(extractor(seed=1)), extractor_identity(extractor(strides=2))}) == 3
