"""What may be changed of a recipe, and that a mistake is named before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeclf.errors import DataError
from edgeclf.train.overrides import merged, read_config, with_overrides
from edgeclf.train.recipe import RECIPES, Recipe

LITE0 = "lite0-gru"


def changed(name: str, **overrides: Any) -> Recipe:
    return with_overrides(RECIPES.load(name), overrides)


# -- what is changed --------------------------------------------------------------------------------------------------


def test_nothing_given_changes_nothing() -> None:
    for name in RECIPES:
        assert changed(name) == RECIPES.load(name)


def test_settings_that_are_not_named_stay() -> None:
    before, recipe = RECIPES.load(LITE0), changed(LITE0, settings={"epochs": 3, "batch": 5})
    assert (recipe.settings.epochs, recipe.settings.batch) == (3, 5)
    assert recipe.settings.learning_rate == before.settings.learning_rate
    assert recipe.clip == before.clip


def test_another_extractor_begins_with_its_imagenet_weights_unless_told_otherwise() -> None:
    assert RECIPES.load("faces-lstm").weights == "none"
    assert changed("faces-lstm", extractor="faces_cnn").weights == "none"
    assert changed("faces-lstm", extractor="efficientnet_lite0").weights == "imagenet"
    assert changed("faces-lstm", extractor="efficientnet_lite0", weights="none").weights == "none"


def test_table_within_a_table_is_changed_in_part() -> None:
    before, recipe = RECIPES.load("resnet50-lstm"), changed("resnet50-lstm", fine_tuning={"settings": {"epochs": 2}})
    assert recipe.fine_tuning.last == before.fine_tuning.last
    assert (recipe.fine_tuning.settings.epochs, recipe.fine_tuning.settings.batch) == (
        2,
        before.fine_tuning.settings.batch,
    )


def test_hop_and_gap_follow_the_length_and_rate_of_a_clip() -> None:
    clip = changed(LITE0, clip={"length": 16, "rate": 4.0}).clip
    assert (clip.length, clip.rate, clip.hop_seconds, clip.stale_seconds) == (16, 4.0, 1.0, 2.0)
    clip = changed(LITE0, clip={"length": 16, "hop_seconds": 0.2}).clip
    assert (clip.length, clip.rate, clip.hop_seconds) == (16, 5.0, 0.2)


@pytest.mark.parametrize("name", ["conv3d", "vgg16-lstm"])
def test_recipe_that_counts_frames_goes_on_counting(name: str) -> None:
    before, clip = RECIPES.load(name).clip, changed(name, clip={"length": 7}).clip
    assert (clip.length, clip.sampling, clip.padding) == (7, before.sampling, before.padding)


def test_other_extractor_has_its_own_size_and_features() -> None:
    recipe = changed("inceptionv3-gru", extractor="efficientnet_lite0")
    assert recipe.feature_size == 1280
    assert recipe.preprocess.size == (224, 224)


def test_options_of_the_classifier_are_added_to_those_of_the_recipe() -> None:
    recipe = changed(LITE0, classifier_options={"units": 7})
    assert recipe.classifier_options == {**RECIPES.load(LITE0).classifier_options, "units": 7}


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"speed": 1, "colour": 2}, "a recipe has no colour, speed to change; it has extractor, weights"),
        ({"name": "mine"}, "no name to change"),
        ({"classifier": "gru"}, "no classifier to change"),
        ({"settings": {"epoch": 3, "rate": 1}}, "settings has no epoch, rate; it has batch"),
        ({"augmentation": {"zoom": 0.1}}, "augmentation has no zoom; it has brightness"),
        ({"clip": {"len": 3}}, "clip has no len; it has hop_seconds"),
        ({"clip": {"sampling": "first"}}, "clip has no sampling"),
        ({"fine_tuning": {"last": 1}}, "with fine_tuning the classifier is not refitted: set refit = false"),
        ({"frames_first": {"epochs": 1}}, "lite0-gru has no frames_first"),
        ({"classifier_options": {"layers": 2}}, "classifier_options has no layers; it has"),
        ({"classifier_options": {"first": 2}}, "classifier_options has no first"),
        ({"classifier_options": 3}, "classifier_options must be a table, not 3"),
        ({"classifier_options": {"units": 2, "roots": True}}, "classifier_options has no roots"),
        ({"settings": 3}, "settings must be a table, not 3"),
        ({"clip": [3]}, r"clip must be a table, not \[3\]"),
        ({"clip": {"length": 0}}, "clip: .*length 0 must be"),
        ({"clip": {"rate": 0}}, "clip: "),
        ({"clip": {"length": "ten"}}, "clip: "),
        ({"clip": {"padding": "none"}}, "clip has no padding"),
        ({"augmentation": {"crop": 0.9}}, "augmentation: .*out of range"),
        ({"augmentation": {"crop": "much"}}, "augmentation: crop is 'much', must be a number"),
        ({"augmentation": {"flip": "no"}}, "augmentation: flip is 'no', must be true or false"),
        ({"augmentation": {"temporal_shift": "false"}}, "augmentation: temporal_shift is 'false', must be true"),
        ({"extractor": ""}, "lite0-gru cannot be changed so: there is no extractor '', but .*efficientnet_lite0"),
        ({"views": 2}, "views are the same without an augmentation of pixels: set flip, crop, brightness or rotation"),
        ({"views": 2, "augmentation": {"temporal_shift": True}}, "views are the same"),
    ],
    ids=str,
)
def test_mistake_is_named(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        with_overrides(RECIPES.load(LITE0), overrides)


def test_unknown_key_within_a_table_within_a_table_is_named_with_its_place() -> None:
    with pytest.raises(DataError, match=r"fine_tuning\.settings has no epoch; it has"):
        changed("resnet50-lstm", fine_tuning={"settings": {"epoch": 3}})
    with pytest.raises(DataError, match=r"fine_tuning\.settings must be a table, not 3"):
        changed("resnet50-lstm", fine_tuning={"settings": 3})


@pytest.mark.parametrize(
    "overrides",
    [
        {"weights": "coco"},
        {"crop": "round"},
        {"resize": "halves"},
        {"stream": "sound"},
        {"views": 0},
        {"views": "two"},
        {"top": 1},
        {"refit": "no"},
        {"drawn_clips": -1},
        {"stack_seconds": -1.0},
        {"extractor": "alexnet"},
        {"settings": {"epochs": 0}},
        {"settings": {"batch": 0}},
        {"settings": {"learning_rate": "fast"}},
        {"settings": {"learning_rate": 0.0}},
        {"settings": {"schedule": "cosinus"}},
        {"settings": {"keep": "first"}},
        {"settings": {"label_smoothing": 2.0}},
        {"settings": {"mixup": -1.0}},
        {"settings": {"patience": -1}},
    ],
    ids=str,
)
def test_value_that_makes_no_sense_is_refused_before_training(overrides: dict[str, Any]) -> None:
    ((key, value),) = overrides.items()
    named = next(iter(value)) if isinstance(value, dict) else key
    with pytest.raises(DataError) as refused:
        changed("lite0-motion" if key in ("stream", "stack_seconds") else LITE0, **overrides)
    assert named in str(refused.value)


@pytest.mark.parametrize("change", [{"flip": True}, {"crop": 0.1}, {"brightness": 0.1}, {"rotation": 5}], ids=str)
def test_views_go_with_each_augmentation_of_pixels(change: dict[str, Any]) -> None:
    assert changed(LITE0, views=2, augmentation=change).views == 2


def test_views_of_a_recipe_are_refused_with_its_augmentation_taken_away() -> None:
    still = {"flip": False, "crop": 0, "brightness": 0, "rotation": 0}
    with pytest.raises(DataError, match="views are the same without an augmentation of pixels"):
        changed("faces-lstm", augmentation=still)
    assert changed("faces-lstm", augmentation=still, views=1).views == 1


def test_network_of_frames_takes_no_views() -> None:
    with pytest.raises(DataError, match="views are of features: a network of frames augments anew in every epoch"):
        changed("conv3d", views=2)


def test_network_of_frames_takes_no_extractor() -> None:
    with pytest.raises(DataError, match="conv3d has no extractor: its network takes frames; leave --extractor out"):
        changed("conv3d", extractor="resnet50")


def test_motion_wants_an_extractor_that_gives_features_of_change() -> None:
    with pytest.raises(DataError, match="resnet50 gives no features of change; take an EfficientNet-Lite"):
        changed("lite0-motion", extractor="resnet50")
    assert changed("lite0-motion", extractor="efficientnet_lite2").extractor == "efficientnet_lite2"


def test_text_is_not_taken_for_true() -> None:
    for recipe, option in (("faces-lstm", "roots"), ("lite0-motion", "halves")):
        with pytest.raises(DataError, match=f"{option} is 'false', must be true or false; write it without quotes"):
            changed(recipe, classifier_options={option: "false"})
        assert changed(recipe, classifier_options={option: False}).classifier_options[option] is False


def test_nothing_moves_between_pictures_that_are_drawn() -> None:
    with pytest.raises(DataError, match="drawn_clips are of loose pictures: nothing moves in them"):
        changed("lite0-motion", drawn_clips=10)


def test_vote_over_frames_takes_no_longer_clips() -> None:
    with pytest.raises(DataError, match="vote"):
        changed("vgg16-vote", clip={"length": 2})


@pytest.mark.parametrize("name", ["lite0-gru", "vgg16-lstm", "conv3d", "resnet50-lstm"])
def test_padding_that_the_classifier_does_not_take_is_refused(name: str) -> None:
    other = {"mask": "repeat_last", "repeat_last": "mask"}[RECIPES.load(name).clip.padding]
    with pytest.raises(DataError, match="padding"):
        changed(name, clip={"padding": other})


# -- options over a file ----------------------------------------------------------------------------------------------


def test_option_goes_before_the_file_and_one_that_was_not_given_does_not() -> None:
    config = {"views": 2, "settings": {"epochs": 5, "batch": 7}, "augmentation": {"flip": True}}
    options = {"views": None, "top": None, "settings": {"epochs": 9, "batch": None}, "clip": {"length": None}}
    assert merged(config, options) == {
        "views": 2,
        "settings": {"epochs": 9, "batch": 7},
        "augmentation": {"flip": True},
    }
    assert config["settings"] == {"epochs": 5, "batch": 7}, "what is given is left alone"


def test_option_that_says_no_goes_before_the_file() -> None:
    found = merged({"settings": {"class_weights": True, "seed": 3}}, {"settings": {"class_weights": False, "seed": 0}})
    assert found == {"settings": {"class_weights": False, "seed": 0}}


def test_table_that_is_none_is_named_also_beside_options() -> None:
    with pytest.raises(DataError, match="settings must be a table, not 3"):
        with_overrides(RECIPES.load(LITE0), merged({"settings": 3}, {"settings": {"epochs": 2}}))


def test_file_is_read_as_toml(tmp_path: Path) -> None:
    pytest.importorskip("tomllib", reason="TOML is read from Python 3.11 on")
    path = tmp_path / "more.toml"
    path.write_text('weights = "none"\n[settings]\nepochs = 5\n[fine_tuning.settings]\nbatch = 2\n')
    assert read_config(path) == {
        "weights": "none",
        "settings": {"epochs": 5},
        "fine_tuning": {"settings": {"batch": 2}},
    }


@pytest.mark.parametrize("content", [b"settings = ", b"[settings\n", b"\xff\xfe", b"a = 1\na = 2"], ids=repr)
def test_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("tomllib", reason="TOML is read from Python 3.11 on")
    (tmp_path / "more.toml").write_bytes(content)
    with pytest.raises(DataError, match=r"more\.toml cannot be read: .*see docs/training\.md"):
        read_config(tmp_path / "more.toml")


def test_missing_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("tomllib", reason="TOML is read from Python 3.11 on")
    with pytest.raises(DataError, match=r"none\.toml cannot be read"):
        read_config(tmp_path / "none.toml")
