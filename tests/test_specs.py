from __future__ import annotations

import json

import pytest

from edgeclf.specs import ClipSpec, PreprocessSpec, TensorSpec, check_thresholds

CLIP = ClipSpec.by_rate(20, 5.0)
RECORDS = [
    CLIP,
    ClipSpec(16, 4.0, 1.0, 2.0, sampling="uniform", padding="repeat_last"),
    PreprocessSpec((224, 224)),
    PreprocessSpec((48, 64), crop="none", stack=3, stack_seconds=0.12),
    PreprocessSpec((224, 224), resize="planes"),
    TensorSpec("frames", "uint8", (None, 224, 224, 3)),
    TensorSpec("frames", "uint8", (None, 2, 224, 224, 3)),
]


@pytest.mark.parametrize("spec", RECORDS, ids=str)
def test_spec_survives_json(spec: ClipSpec | PreprocessSpec | TensorSpec) -> None:
    assert type(spec).from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_clips_at_another_rate_have_as_many_frames_and_as_much_overlap() -> None:
    first = ClipSpec(20, 25.0, hop_seconds=0.2, stale_seconds=1.0, sampling="first", padding="repeat_last")
    slow = first.at_rate(4.0)
    assert (slow.length, slow.hop_slots, slow.padding, slow.sampling) == (20, 5, "repeat_last", "rate")
    assert (slow.seconds, slow.stale_seconds) == (5.0, 2.5), "a gap counts as one of clips that long"
    with pytest.raises(ValueError, match="rate 0 must be"):
        first.at_rate(0)


def test_hop_defaults_to_a_quarter_of_a_clip() -> None:
    assert (CLIP.seconds, CLIP.hop_seconds, CLIP.hop_slots) == (4.0, 1.0, 5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("length", 0),
        ("length", True),
        ("length", 10**9),
        ("rate", 0),
        ("rate", "5"),
        ("rate", float("nan")),
        ("hop_seconds", -1),
        ("stale_seconds", 0),
        ("sampling", "psychic"),
        ("sampling", None),
        ("padding", None),
        ("padding", "zeros"),
    ],
)
def test_clip_spec_refuses_nonsense(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        ClipSpec.from_dict(CLIP.to_dict() | {key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", [224]),
        ("size", [0, 1]),
        ("size", [9999, 9]),
        ("crop", "middle"),
        ("color", "bgr"),
        ("resize", "yuv"),
        ("resize", None),
        ("stack", 0),
        ("stack", 17),
        ("stack", 1.0),
        ("stack", True),
        ("stack", None),
        ("stack_seconds", 0.1),
        ("stack_seconds", -0.1),
        ("stack_seconds", "0"),
        ("stack_seconds", float("nan")),
    ],
)
def test_preprocess_spec_refuses_nonsense(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        PreprocessSpec.from_dict(PreprocessSpec((8, 8)).to_dict() | {key: value})


@pytest.mark.parametrize("seconds", [0, 0.0, -0.1, 1.5, float("nan"), float("inf"), None])
def test_stack_needs_a_distance_between_its_pictures(seconds: float) -> None:
    with pytest.raises(ValueError, match="stack_seconds"):
        PreprocessSpec((8, 8), stack=2, stack_seconds=seconds)


def test_input_has_a_dimension_for_the_stack_only_where_there_is_one() -> None:
    assert PreprocessSpec((8, 6)).input_shape == (8, 6, 3)
    assert PreprocessSpec((8, 6), stack=3, stack_seconds=1.0).input_shape == (3, 8, 6, 3)


def test_preprocessing_written_before_planes_were_resized_resizes_rgb() -> None:
    old = PreprocessSpec((8, 8)).to_dict()
    del old["resize"]
    assert PreprocessSpec.from_dict(old).resize == "rgb"


def test_preprocessing_written_before_there_were_stacks_has_none() -> None:
    old = {"size": [8, 8], "crop": "none", "interpolation": "area", "color": "gray3"}
    spec = PreprocessSpec.from_dict(old)
    assert (spec.stack, spec.stack_seconds) == (1, 0.0)
    assert spec == PreprocessSpec((8, 8), crop="none", interpolation="area", color="gray3")
    with pytest.raises(ValueError, match="color"):
        PreprocessSpec.from_dict({key: value for key, value in old.items() if key != "color"})


@pytest.mark.parametrize("sampling", ["rate", "first", "uniform"])
def test_stream_form_of_a_clip_is_cut_by_time_and_else_the_same(sampling: str) -> None:
    clip = ClipSpec.from_dict(CLIP.to_dict() | {"sampling": sampling, "padding": "repeat_last"})
    assert clip.of_stream().to_dict() == clip.to_dict() | {"sampling": "rate"}


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ({"cat": 0.5}, "'cat', which is no label"),
        ({"a": 1.1}, "threshold of 'a' is 1.1"),
        ({"a": -0.1}, "threshold of 'a'"),
        ({"a": float("nan")}, "threshold of 'a' is nan"),
        ({"a": True}, "threshold of 'a' is True"),
        ({"a": "0.5"}, "threshold of 'a'"),
        ({"a": None}, "threshold of 'a'"),
        ([0.5, 0.5], "must map labels to scores"),
        (None, "must map labels to scores"),
    ],
    ids=str,
)
def test_threshold_that_makes_no_sense_is_named(thresholds: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_thresholds(thresholds, ("a", "b"))


def test_thresholds_may_be_of_some_labels_only() -> None:
    check_thresholds({}, ("a", "b"))
    check_thresholds({"b": 0}, ("a", "b"))
    check_thresholds({"a": 1, "b": 0.25}, ("a", "b"))


def test_unknown_and_missing_keys_are_named() -> None:
    with pytest.raises(ValueError, match="speed"):
        ClipSpec.from_dict(CLIP.to_dict() | {"speed": 1})
    with pytest.raises(ValueError, match="length"):
        ClipSpec.from_dict({})
