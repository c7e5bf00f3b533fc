"""What goes into golden inputs, and that a bundle gives the answers of the model it was made from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeclf.bundle import ModelBundle, open_bundle
from edgeclf.errors import ExportError, VideoError
from edgeclf.export.bundling import export_bundle
from edgeclf.export.golden import golden_of, with_classifier
from edgeclf.model_directory import open_keras_model
from edgeclf.runtime.golden import Golden, write_golden
from edgeclf.runtime.model import Model
from edgeclf.runtime.verify import verify_bundle
from edgeclf.specs import ClipSpec, PreprocessSpec
from tests.golden.bundles.make_examples import seal
from tests.support import keras_models
from tests.support.sessions import keeping_model
from tests.support.videos import RED, plain, write_video

SMALL = PreprocessSpec((32, 40))
CLIP = ClipSpec.by_rate(length=8, rate=5.0)


def model_of(preprocess: PreprocessSpec = SMALL, clip: ClipSpec = CLIP, *, takes_frames: bool = False) -> Model:
    return keeping_model(preprocess, clip, takes_frames=takes_frames)[0]


def size_of(golden: Golden, folder: Path) -> int:
    return write_golden(folder, golden).stat().st_size


# -- frames -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "preprocess",
    [
        SMALL,
        PreprocessSpec((64, 80), crop="none", interpolation="area"),
        PreprocessSpec((224, 224)),
        PreprocessSpec((299, 299)),
        PreprocessSpec((224, 224), stack=2, stack_seconds=0.12),
        PreprocessSpec((299, 299), stack=2, stack_seconds=0.12),
    ],
    ids=lambda spec: "x".join(map(str, spec.input_shape)),
)
def test_file_stays_below_600_kb(preprocess: PreprocessSpec, tmp_path: Path) -> None:
    golden = golden_of([model_of(preprocess)])
    assert golden.frames.shape[1:] == preprocess.input_shape
    assert len(golden.frames) >= 9
    assert size_of(golden, tmp_path) < 600e3


def test_frames_differ_and_one_is_noise() -> None:
    frames = golden_of([model_of()]).frames
    assert len(np.unique(frames.reshape(len(frames), -1), axis=0)) >= 20  # in a scene the figure may stand still
    assert frames[-1].std() > 60
    assert not (frames[:-1] & 15).any()  # 16 shades


def test_same_model_gives_the_same_file(tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        files.append(write_golden(tmp_path / name, golden_of([model_of()])).read_bytes())
    assert files[0] == files[1]


def test_real_frames_are_taken_only_from_videos_that_are_named(tmp_path: Path) -> None:
    video = write_video(tmp_path / "red.mp4", plain(RED, 3))
    red = [frames[..., 0].min() > 180 and frames[..., 1].max() < 60 for frames in golden_of([model_of()]).frames]
    assert not any(red)
    with_video = golden_of([model_of()], clips=[str(video)]).frames
    assert sum(bool(frame[..., 0].min() > 180 and frame[..., 1].max() < 60) for frame in with_video) >= 2


def test_video_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"a\.mp4"):
        golden_of([model_of()], clips=[str(tmp_path / "a.mp4")])


# -- clips and answers ------------------------------------------------------------------------------------------------


def test_clips_are_full_and_short_and_each_is_there_once() -> None:
    clips = golden_of([model_of()]).clips["kept"]
    assert (clips.lengths == CLIP.length).sum() >= 6
    assert {1, CLIP.length // 2, CLIP.length - 1} <= set(clips.lengths.tolist())
    assert len(np.unique(clips.rows, axis=0)) == len(clips.rows)


def test_single_frames_are_clips_of_a_classifier_that_votes() -> None:
    clips = golden_of([model_of(clip=replace(CLIP, length=1, padding="repeat_last"))]).clips["kept"]
    assert clips.rows.shape[1] == 1
    assert len(clips.rows) >= 4


def test_answers_are_those_of_the_models() -> None:
    model, kept = keeping_model(SMALL, CLIP)
    golden = golden_of([model])
    assert golden.features is not None
    assert np.allclose(golden.features, golden.frames.mean((1, 2)) / 255, atol=1e-6)
    clips = golden.clips["kept"]
    for (fed, length), row, expected in zip(kept.clips, clips.rows, clips.lengths, strict=True):
        assert length == expected
        assert np.array_equal(fed[:length], golden.features[row[:length]])
        assert not fed[length:].any()
    assert np.array_equal(model.classify(clips.of(golden.features, model.clip), clips.lengths), clips.scores)


def test_model_of_whole_clips_has_no_features() -> None:
    model = model_of(takes_frames=True)
    golden = golden_of([model])
    assert golden.features is None
    clips = golden.clips["kept"]
    assert np.array_equal(model.classify(clips.of(golden.frames, model.clip), clips.lengths), clips.scores)


def test_one_more_classifier_leaves_frames_and_other_clips() -> None:
    golden = golden_of([model_of()])
    other = replace(model_of(clip=replace(CLIP, length=3)), name="other")
    grown = with_classifier(golden, other)
    assert grown.frames is golden.frames
    assert grown.clips["kept"] is golden.clips["kept"]
    assert grown.clips["other"].rows.shape[1] == 3
    together = golden_of([model_of(), other])
    assert np.array_equal(grown.clips["other"].scores, together.clips["other"].scores)


def test_scores_that_are_no_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, kept = keeping_model(SMALL, CLIP)
    scores = np.full((1, 3), np.nan, np.float32)
    monkeypatch.setattr(kept, "run", lambda feeds: {"scores": scores})
    with pytest.raises(ExportError, match="kept gives scores that are no numbers"):
        golden_of([model])


# -- with Keras -------------------------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[Path], Path]] = {
    "tiny": keras_models.write_tiny_model,
    "motion": keras_models.write_motion_model,
    "network": keras_models.write_network_model,
    "uniform": keras_models.write_uniform_model,
    "vote": keras_models.write_vote_model,
}


def with_golden_of_keras(bundle: ModelBundle, model: Path, target: Path) -> ModelBundle:
    path = Path(shutil.copytree(bundle.path, target))
    write_golden(path, golden_of([open_keras_model(model)]))
    return open_bundle(seal(path))


@pytest.mark.keras
@pytest.mark.usefixtures("converters")
@pytest.mark.parametrize("kind", KINDS)
def test_bundle_of_every_kind_gives_the_answers_of_keras(kind: str, tmp_path: Path) -> None:
    model = KINDS[kind](tmp_path / kind)
    exported = export_bundle(model, tmp_path / f"{kind}.edgeclf")
    (tmp_path / "copy").mkdir()
    bundle = with_golden_of_keras(exported, model, tmp_path / "copy" / f"{kind}.edgeclf")
    verdict = verify_bundle(bundle, device="cpu", precisions=["fp32"])[0]
    assert verdict.passed, verdict
    assert verdict.clips >= 4


@pytest.mark.keras
def test_answers_of_another_training_are_seen(exported: ModelBundle, retrained_dir: Path, tmp_path: Path) -> None:
    bundle = with_golden_of_keras(exported, retrained_dir, tmp_path / "tiny.edgeclf")
    verdict = verify_bundle(bundle, device="cpu", precisions=["fp32"])[0]
    assert not verdict.passed
    assert verdict.cosine_min > 0.9999  # the extractor is the same
    assert verdict.changed_labels > 0
