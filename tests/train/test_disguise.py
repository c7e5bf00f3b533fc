from __future__ import annotations

import numpy as np

from edgeclf.train.disguise import disguised


def frames() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Three equal frames, dark on the left and bright on the right, in three different channels."""
    ramp = np.broadcast_to(np.linspace(40, 200, 80)[:, None] * (1.0, 0.8, 0.6), (3, 64, 80, 3))
    return ramp.astype(np.uint8)


def test_shape_and_type_stay_and_the_originals_are_not_touched() -> None:
    given = frames()
    changed = disguised(given, np.random.default_rng(0))
    assert changed.shape == given.shape
    assert changed.dtype == np.uint8
    np.testing.assert_array_equal(given, frames())


def test_seed_decides_the_disguise() -> None:
    first, again, other = (disguised(frames(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_frames_of_one_clip_get_the_same_disguise_but_for_noise() -> None:
    for seed in range(5):
        changed = disguised(frames(), np.random.default_rng(seed)).astype(int)
        assert np.abs(changed[0] - changed[2]).mean() < 12


def test_about_half_of_the_clips_are_mirrored() -> None:
    mirrored = 0
    for seed in range(200):
        grey = disguised(frames()[:1], np.random.default_rng(seed)).astype(int).mean(axis=(0, 1, 3))
        mirrored += grey[:20].mean() > grey[-20:].mean()
    assert 60 < mirrored < 140
