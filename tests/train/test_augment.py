"""What is drawn for a clip, and that all of its pictures are changed alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeclf.train.augment import Augmentation, Pictures, drawn_change

ALL = Augmentation(flip=True, crop=0.3, brightness=0.4, rotation=20)
SHAPES = [(12, 16, 3), (5, 12, 16, 3), (5, 2, 12, 16, 3), (1, 13, 7, 3)]


def noise(*shape: int) -> Pictures:
    return np.random.default_rng(7).integers(0, 256, shape, np.uint8)


def changed(augmentation: Augmentation, pictures: Pictures, seed: int = 0) -> Pictures:
    return drawn_change(augmentation, np.random.default_rng(seed))(pictures)


def smooth(height: int = 40, width: int = 60) -> Pictures:
    """Red grows to the right, green to the bottom; blue is flat."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns * 4, rows * 6, np.full_like(rows, 90)], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(),
        Augmentation(flip=True),
        Augmentation(crop=0.5),
        Augmentation(brightness=1.0),
        Augmentation(rotation=45),
        ALL,
    ],
    ids=["none", "flip", "crop", "brightness", "rotation", "all"],
)
def test_shape_and_type_stay_what_they_were(shape: tuple[int, ...], augmentation: Augmentation) -> None:
    for seed in range(4):
        pictures = noise(*shape)
        found = changed(augmentation, pictures, seed)
        assert (found.shape, str(found.dtype)) == (shape, "uint8")
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(pictures, noise(*shape), "what is given is left alone")


def test_change_depends_on_what_is_drawn_alone() -> None:
    pictures = noise(3, 12, 16, 3)
    np.testing.assert_array_equal(changed(ALL, pictures, 5), changed(ALL, pictures, 5))
    assert len({changed(ALL, pictures, seed).tobytes() for seed in range(8)}) == 8


@pytest.mark.parametrize("shape", [(4, 12, 16, 3), (4, 2, 12, 16, 3)], ids=["pictures", "stacks"])
def test_all_pictures_of_a_clip_are_changed_alike(shape: tuple[int, ...]) -> None:
    picture = noise(12, 16, 3)
    clip = np.broadcast_to(picture, shape)
    for seed in range(6):
        found = changed(ALL, clip, seed).reshape(-1, 12, 16, 3)
        np.testing.assert_array_equal(found, np.broadcast_to(changed(ALL, picture, seed), found.shape))


def test_one_change_does_the_same_each_time_it_is_used() -> None:
    change = drawn_change(ALL, np.random.default_rng(0))
    first, second = noise(2, 12, 16, 3)
    np.testing.assert_array_equal(change(np.stack([first, second]))[1], change(second))


def test_nothing_to_change_changes_nothing() -> None:
    pictures = noise(2, 12, 16, 3)
    np.testing.assert_array_equal(changed(Augmentation(temporal_shift=True), pictures), pictures)
    assert not Augmentation(temporal_shift=True).changes_pixels


@pytest.mark.parametrize("change", [{"flip": True}, {"crop": 0.1}, {"brightness": 0.1}, {"rotation": 1.0}], ids=str)
def test_each_change_of_pixels_is_known_as_one(change: dict[str, Any]) -> None:
    assert Augmentation(**change).changes_pixels


def test_about_half_of_the_clips_are_mirrored() -> None:
    pictures = noise(2, 12, 16, 3)
    mirrored = 0
    for seed in range(200):
        found = changed(Augmentation(flip=True), pictures, seed)
        is_mirrored = bool((found == pictures[:, :, ::-1]).all())
        assert is_mirrored or (found == pictures).all()
        mirrored += is_mirrored
    assert 70 <= mirrored <= 130


def test_brightness_multiplies_all_values_by_one_factor_and_clips_them() -> None:
    pictures = np.full((2, 4, 4, 3), 100, np.uint8)
    values = {int(changed(Augmentation(brightness=0.5), pictures, seed)[0, 0, 0, 0]) for seed in range(200)}
    assert min(values) >= 50
    assert max(values) <= 150
    assert min(values) < 60
    assert max(values) > 140
    bright = np.full((4, 4, 3), 250, np.uint8)
    found = {int(value) for seed in range(50) for value in changed(Augmentation(brightness=1.0), bright, seed).flat}
    assert 255 in found
    assert all(0 <= value <= 255 for value in found)


def test_crop_keeps_at_least_its_share_and_stays_inside() -> None:
    picture = smooth()
    spans = []
    for seed in range(60):
        found = changed(Augmentation(crop=0.5), picture, seed).astype(int)
        assert found[20, :, 0].min() >= 0
        assert found[:, :, 0].max() <= picture[:, :, 0].max()
        assert np.abs(found[:, :, 2] - 90).max() <= 1
        spans.append((found[20, -1, 0] - found[20, 0, 0]) / (59 * 4))
    assert 0.45 <= min(spans) < 0.6
    assert 0.9 < max(spans) <= 1.0


def test_crop_cuts_as_much_of_both_sides() -> None:
    for seed in range(20):
        found = changed(Augmentation(crop=0.5), smooth(), seed).astype(int)
        across = (found[20, -1, 0] - found[20, 0, 0]) / (59 * 4)
        down = (found[-1, 30, 1] - found[0, 30, 1]) / (39 * 6)
        assert across == pytest.approx(down, abs=0.06)


def test_rotation_turns_either_way_about_the_middle() -> None:
    slopes = []
    for seed in range(40):
        found = changed(Augmentation(rotation=20), smooth(), seed).astype(int)
        assert abs(int(found[20, 30, 0]) - 120) <= 8
        slopes.append((found[25, 30, 0] - found[15, 30, 0]) / (10 * 4))
    assert min(slopes) < -0.2
    assert max(slopes) > 0.2
    assert max(map(abs, slopes)) < np.tan(np.radians(20)) + 0.1


@pytest.mark.parametrize(
    "change",
    [
        {"crop": -0.1},
        {"crop": 0.6},
        {"brightness": -0.1},
        {"brightness": 1.1},
        {"rotation": -1},
        {"rotation": 46},
        {"crop": float("nan")},
    ],
    ids=str,
)
def test_value_out_of_range_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        Augmentation(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flip": "no"}, "flip is 'no', must be true or false"),
        ({"flip": 1}, "flip is 1, must be true or false"),
        ({"temporal_shift": "false"}, "temporal_shift is 'false', must be true or false"),
        ({"crop": "much"}, "crop is 'much', must be a number"),
        ({"brightness": True}, "brightness is True, must be a number"),
        ({"rotation": None}, "rotation is None, must be a number"),
    ],
    ids=str,
)
def test_value_of_another_type_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**change)
