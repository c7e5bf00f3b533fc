"""Batches out of videos: their order, padding and weights, and what is changed in training only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclf.errors import DataError
from edgeclf.specs import ClipSpec
from edgeclf.train.augment import Augmentation
from edgeclf.train.examples import ClipExamples, feeds_of
from edgeclf.train.features import VideoFeatures
from edgeclf.train.fit import Batch, FitSettings

CLIP = ClipSpec.by_rate(length=4, rate=2.0, hop_seconds=1.0)
REPEATED = replace(CLIP, padding="repeat_last")
SIZE = 3


def video(frames: int, *, start: int = 0, dtype: str = "float32", slots: Sequence[int] | None = None) -> VideoFeatures:
    """A video with `frames` sampled frames whose features count them, from `start`."""
    rows = np.repeat(np.arange(start, start + frames)[:, None], SIZE, axis=1).astype(dtype)
    return VideoFeatures(
        rows,
        np.arange(frames) / CLIP.rate,
        np.array(slots if slots is not None else [1] * frames, np.int32),
        np.zeros(frames, np.bool_),
    )


def pictures(frames: int, *, seed: int = 0) -> VideoFeatures:
    """A video whose features are one noisy picture again and again."""
    picture = np.random.default_rng(seed).integers(1, 256, (8, 8, 3), np.uint8)
    return replace(video(frames), rows=np.broadcast_to(picture, (frames, 8, 8, 3)).copy())


def both(features: NDArray[Any], lengths: NDArray[np.int32]) -> Any:
    return SimpleNamespace(features=features, lengths=lengths.tolist())


def examples(
    videos: Sequence[VideoFeatures],
    labels: Sequence[int] | None = None,
    *,
    clip: ClipSpec = CLIP,
    training: bool = True,
    views: Sequence[Sequence[VideoFeatures]] = (),
    augmentation: Augmentation | None = None,
    **settings: Any,
) -> ClipExamples:
    labels = [n % 2 for n in range(len(videos))] if labels is None else labels
    return ClipExamples(
        [videos, *views],
        np.array(labels, np.int32),
        max(labels) + 1,
        clip,
        both,
        FitSettings(**{"batch": 4, **settings}),
        training=training,
        augmentation=augmentation or Augmentation(),
    )


def firsts(batches: Sequence[Batch]) -> list[float]:
    """The first feature of each clip, which says where it starts."""
    return [float(clip.flat[0]) for batch in batches for clip in batch.inputs.features]


def joined(batches: Sequence[Batch], what: str) -> NDArray[Any]:
    return np.concatenate([getattr(batch, what) for batch in batches])


# -- order ------------------------------------------------------------------------------------------------------------

VIDEOS = [video(4, start=10 * number) for number in range(11)]


def test_epoch_takes_every_clip_once_and_its_last_batch_may_be_small() -> None:
    made = examples(VIDEOS)
    batches = list(made.epoch(0))
    assert [len(batch.truth) for batch in batches] == [4, 4, 3]
    assert made.steps == 3
    assert sorted(firsts(batches)) == [10 * number for number in range(11)]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    made = examples(VIDEOS, seed=3)
    list(made.epoch(0))
    next(made.epoch(7))
    again = examples(VIDEOS, seed=3)
    assert firsts(list(made.epoch(5))) == firsts(list(again.epoch(5)))
    orders = {tuple(firsts(list(examples(VIDEOS, seed=seed).epoch(epoch)))) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len(orders) == 6


def test_all_that_is_drawn_depends_on_seed_and_epoch_alone() -> None:
    def drawn(epoch: int) -> list[bytes]:
        made = examples(
            [pictures(9, seed=n) for n in range(6)],
            mixup=0.5,
            augmentation=Augmentation(flip=True, crop=0.3, brightness=0.3, temporal_shift=True),
        )
        return [batch.inputs.features.tobytes() + batch.truth.tobytes() for batch in made.epoch(epoch)]

    assert drawn(2) == drawn(2)
    assert drawn(2) != drawn(3)


def test_truth_goes_with_its_clip() -> None:
    for batch in examples(VIDEOS, list(range(11))).epoch(1):
        found = [int(clip[0, 0]) // 10 for clip in batch.inputs.features]
        assert batch.truth.argmax(axis=1).tolist() == found
        assert batch.truth.sum(axis=1).tolist() == [1.0] * len(found)


def test_validation_is_in_the_order_of_the_videos_in_every_epoch() -> None:
    made = examples(VIDEOS, training=False)
    for epoch in (0, 1):
        assert firsts(list(made.epoch(epoch))) == [10 * number for number in range(11)]


# -- padding ----------------------------------------------------------------------------------------------------------


def test_masked_clip_has_zeros_behind_its_length() -> None:
    (batch,) = examples([video(3, start=5), video(4, start=5)], training=False).epoch(0)
    assert batch.inputs.features[:, :, 0].tolist() == [[5, 6, 7, 0], [5, 6, 7, 8]]
    assert batch.inputs.lengths == [3, 4]


def test_repeated_clip_has_its_last_frame_behind_its_length() -> None:
    (batch,) = examples([video(3, start=5), video(4, start=5)], training=False, clip=REPEATED).epoch(0)
    assert batch.inputs.features[:, :, 0].tolist() == [[5, 6, 7, 7], [5, 6, 7, 8]]


def test_padding_is_the_same_in_training() -> None:
    for clip, behind in ((CLIP, 0), (REPEATED, 7)):
        (batch,) = examples([video(3, start=5)], training=True, clip=clip).epoch(0)
        assert batch.inputs.features[0, :, 0].tolist() == [5, 6, 7, behind]


def test_padding_leaves_the_features_of_the_video_alone() -> None:
    short = video(3, start=5)
    list(examples([short]).epoch(0))
    assert short.rows[:, 0].tolist() == [5, 6, 7]


def test_frame_that_fills_several_slots_is_repeated() -> None:
    (batch,) = examples([video(2, start=1, slots=[1, 3])], training=False).epoch(0)
    assert batch.inputs.features[0, :, 0].tolist() == [1, 2, 2, 2]


def test_video_without_frames_gives_no_example_and_one_is_needed() -> None:
    (batch,) = examples([video(0), video(4)], [0, 1]).epoch(0)
    assert batch.truth.tolist() == [[0.0, 1.0]]
    with pytest.raises(DataError, match="no clip can be read; check the paths"):
        examples([video(0), video(0)])


# -- weights ----------------------------------------------------------------------------------------------------------


def weights_by_video(made: ClipExamples) -> dict[int, float]:
    batches = list(made.epoch(0))
    totals: dict[int, float] = {}
    for window, weight in zip(made.windows, joined(batches, "weights"), strict=True):
        totals[window.video] = totals.get(window.video, 0.0) + float(weight)
    return totals


def test_clips_of_one_video_weigh_as_much_as_the_only_clip_of_another() -> None:
    made = examples([video(4), video(12), video(2)], [0, 1, 2], training=False)
    assert [window.video for window in made.windows] == [0, 1, 1, 1, 1, 1, 2]
    assert sum(window.weight for window in made.windows if window.video == 1) == pytest.approx(1)
    totals = weights_by_video(made)
    assert totals[0] == pytest.approx(totals[1]) == pytest.approx(totals[2])


def test_weights_are_1_in_the_mean() -> None:
    for class_weights in (False, True):
        made = examples([video(4), video(12), video(2), video(8)], [0, 1, 1, 1], class_weights=class_weights)
        assert joined(list(made.epoch(0)), "weights").mean() == pytest.approx(1)


def test_weight_goes_with_its_clip_in_training() -> None:
    made = examples([video(4, start=100), video(12)], [0, 1])
    for epoch in range(4):
        for batch in made.epoch(epoch):
            heavy = batch.inputs.features[:, 0, 0] == 100
            assert (batch.weights[heavy] > 2).all()
            assert (batch.weights[~heavy] < 1).all()


def test_classes_weigh_the_same_where_that_is_asked_for() -> None:
    videos, labels = [video(4)] * 5 + [video(12)], [0, 0, 0, 0, 0, 1]
    totals = weights_by_video(examples(videos, labels, training=False, class_weights=True))
    assert sum(totals[n] for n in range(5)) == pytest.approx(totals[5])
    plain = weights_by_video(examples(videos, labels, training=False))
    assert sum(plain[n] for n in range(5)) == pytest.approx(5 * plain[5])


def test_class_without_a_clip_that_can_be_read_spoils_no_weight() -> None:
    (batch,) = examples([video(4), video(0), video(4)], [0, 1, 2], class_weights=True).epoch(0)
    assert np.isfinite(batch.weights).all()


# -- what changes from epoch to epoch ---------------------------------------------------------------------------------

SHIFT = Augmentation(temporal_shift=True)


def starts(made: ClipExamples, epochs: int = 60) -> set[float]:
    return {first for epoch in range(epochs) for first in firsts(list(made.epoch(epoch)))}


def test_shifted_clip_starts_anywhere_where_it_fits() -> None:
    assert starts(examples([video(7)], augmentation=SHIFT)) == {0, 1, 2, 3}
    assert starts(examples([video(7)])) == {0, 2, 3}, "hops of two, and the last one"


def test_shifted_clip_is_full_and_in_order() -> None:
    for epoch in range(20):
        for batch in examples([video(9)], augmentation=SHIFT).epoch(epoch):
            for clip, length in zip(batch.inputs.features[:, :, 0], batch.inputs.lengths, strict=True):
                assert length == 4
                assert np.diff(clip).tolist() == [1, 1, 1]


def test_shifted_clip_counts_slots_and_not_frames() -> None:
    found = {
        tuple(clip[:, 0])
        for epoch in range(40)
        for batch in examples([video(3, slots=[1, 3, 1])], augmentation=SHIFT).epoch(epoch)
        for clip in batch.inputs.features
    }
    assert found == {(0, 1, 1, 1), (1, 1, 1, 2)}


def test_video_of_one_clip_or_with_a_gap_is_not_shifted() -> None:
    gap = replace(video(12), restarts=np.arange(12) == 6)
    assert starts(examples([video(4)], augmentation=SHIFT)) == {0}
    assert starts(examples([video(3)], augmentation=SHIFT)) == {0}
    assert starts(examples([gap], augmentation=SHIFT)) == starts(examples([gap]))


def test_validation_is_not_shifted() -> None:
    assert starts(examples([video(7)], augmentation=SHIFT, training=False)) == {0, 2, 3}


def test_each_clip_is_taken_from_any_view_in_training_and_from_the_first_in_validation() -> None:
    views = [[video(4, start=100)], [video(4, start=200)]]
    assert starts(examples([video(4)], views=views)) == {0, 100, 200}
    assert starts(examples([video(4)], views=views, training=False)) == {0}


def test_frames_are_changed_in_training_only_and_alike_within_a_clip() -> None:
    videos, change = [pictures(4, seed=n) for n in range(3)], Augmentation(flip=True, crop=0.3, brightness=0.3)
    for batch in examples(videos, augmentation=change, training=False).epoch(0):
        np.testing.assert_array_equal(batch.inputs.features, np.stack([video.rows for video in videos]))
    (batch,) = examples(videos, augmentation=change).epoch(0)
    assert batch.inputs.features.dtype == np.uint8
    for clip in batch.inputs.features:
        np.testing.assert_array_equal(clip, np.broadcast_to(clip[0], clip.shape))
        assert not any((clip[0] == video.rows[0]).all() for video in videos)


def test_clips_of_frames_are_changed_each_in_its_own_way() -> None:
    videos = [pictures(4)] * 6
    (batch,) = examples(videos, augmentation=Augmentation(crop=0.4, brightness=0.4), batch=6).epoch(0)
    assert len({clip.tobytes() for clip in batch.inputs.features}) == 6


def test_features_are_not_changed_as_pictures_are() -> None:
    (batch,) = examples([video(4)], augmentation=Augmentation(flip=True, crop=0.5, brightness=1.0)).epoch(0)
    assert batch.inputs.features[0, :, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("training", [False, True])
def test_half_precision_is_made_single(training: bool) -> None:
    (batch,) = examples([video(3, start=5, dtype="float16")], training=training).epoch(0)
    assert batch.inputs.features.dtype == np.float32
    assert batch.inputs.features[0, :, 0].tolist() == [5, 6, 7, 0]


# -- mixup ------------------------------------------------------------------------------------------------------------


def test_mixed_truth_sums_to_1_and_says_how_much_of_each_is_there() -> None:
    """The features of class 0 are 0 and those of class 1 are 1, so that each clip says its own share."""
    values = [replace(video(4), rows=np.full((4, SIZE), float(n % 2), np.float32)) for n in range(64)]
    mixed = 0
    for batch in examples(values, mixup=0.4, batch=16).epoch(0):
        np.testing.assert_allclose(batch.truth.sum(axis=1), 1, rtol=1e-6)
        shares = batch.inputs.features.reshape(16, -1)
        np.testing.assert_allclose(shares, np.repeat(batch.truth[:, 1:], 4 * SIZE, axis=1), rtol=1e-5, atol=1e-6)
        mixed += int(((batch.truth > 0.05) & (batch.truth < 0.95)).any(axis=1).sum())
        assert batch.inputs.features.dtype == batch.truth.dtype == batch.weights.dtype == np.float32
    assert mixed > 8


def test_mixed_clip_is_as_long_as_the_longer_of_the_two() -> None:
    videos = [video(2, start=1), video(4, start=1)] * 8
    lengths = set()
    for batch in examples(videos, mixup=1.0, batch=16).epoch(0):
        for clip, length in zip(batch.inputs.features, batch.inputs.lengths, strict=True):
            assert (clip[:length] > 0).any()
            assert not clip[length:].any()
            lengths.add(length)
    assert lengths == {2, 4}


def test_validation_is_not_mixed() -> None:
    for batch in examples(VIDEOS, mixup=1.0, training=False).epoch(0):
        assert set(batch.truth.ravel()) == {0.0, 1.0}


# -- what a model takes -----------------------------------------------------------------------------------------------


def model_with(**inputs: int) -> Any:
    """What `feeds_of` looks at in a model: names of inputs, and their ranks."""
    return SimpleNamespace(inputs=[SimpleNamespace(name=name, shape=(None,) * rank) for name, rank in inputs.items()])


FEATURES, LENGTHS = np.ones((2, 4, SIZE), np.float32), np.array([4, 1], np.int32)


@pytest.mark.parametrize("inputs", [{"features": 3, "mask": 2}, {"mask": 2, "features": 3}], ids=["first", "last"])
def test_mask_is_true_where_there_is_a_frame(inputs: dict[str, int]) -> None:
    found = feeds_of(model_with(**inputs))(FEATURES, LENGTHS)
    assert set(found) == {"features", "mask"}
    assert found["mask"].tolist() == [[True] * 4, [True, False, False, False]]
    assert found["features"] is FEATURES


def test_frames_have_a_mask_under_their_own_name() -> None:
    assert set(feeds_of(model_with(frames=5, mask=2))(np.ones((2, 4, 8, 8, 3)), LENGTHS)) == {"frames", "mask"}


def test_model_without_mask_takes_features_alone() -> None:
    assert feeds_of(model_with(features=3))(FEATURES, LENGTHS) is FEATURES


def test_model_without_time_takes_the_only_row() -> None:
    found = feeds_of(model_with(features=2))(FEATURES[:, :1], LENGTHS)
    assert found.shape == (2, SIZE)
