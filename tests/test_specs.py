from __future__ import annotations

import json

import pytest

from edgeclf.specs import ClipSpec, PreprocessSpec, TensorSpec

CLIP = ClipSpec.by_rate(20, 5.0)
RECORDS = [CLIP, PreprocessSpec((224, 224)), TensorSpec("frames", "uint8", (None, 224, 224, 3))]


@pytest.mark.parametrize("spec", RECORDS, ids=lambda spec: type(spec).__name__)
def test_spec_survives_json(spec: ClipSpec | PreprocessSpec | TensorSpec) -> None:
    assert type(spec).from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


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
        ("padding", None),
    ],
)
def test_clip_spec_refuses_nonsense(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        ClipSpec.from_dict(CLIP.to_dict() | {key: value})


@pytest.mark.parametrize(("key", "value"), [("size", [224]), ("size", [0, 1]), ("size", [9999, 9]), ("crop", "middle")])
def test_preprocess_spec_refuses_nonsense(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        PreprocessSpec.from_dict(PreprocessSpec((8, 8)).to_dict() | {key: value})


def test_unknown_and_missing_keys_are_named() -> None:
    with pytest.raises(ValueError, match="speed"):
        ClipSpec.from_dict(CLIP.to_dict() | {"speed": 1})
    with pytest.raises(ValueError, match="length"):
        ClipSpec.from_dict({})
