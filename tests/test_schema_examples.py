"""A bundle of every schema version can be read, and the published schema says what the reader says."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edgeclf
from edgeclf.bundle import MANIFEST_NAME, PACKAGED, SCHEMA_VERSION, Manifest, open_bundle
from edgeclf.runtime.golden import GOLDEN_NAME
from edgeclf.runtime.verify import verify_bundle
from tests.golden.bundles.make_examples import example_of, write_example
from tests.support.videos import BLUE, plain, write_video

VERSIONS = range(1, SCHEMA_VERSION + 1)
SCHEMA = Path(__file__).parents[1] / "docs" / "bundle-schema.json"


def manifest_of(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / MANIFEST_NAME).read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is missing: pip install 'edgeclf[dev]'")
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


# -- examples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_example_of_every_version_opens_and_gives_its_own_answers(version: int, tmp_path: Path) -> None:
    path = example_of(version)
    assert manifest_of(path)["schema_version"] == version
    assert all(verdict.passed for verdict in verify_bundle(open_bundle(path), device="cpu"))
    video = write_video(tmp_path / "blue.mp4", plain(BLUE, 2))
    with edgeclf.open(path, device="cpu") as classifier:
        assert classifier.classify(video).label == "blue"


def test_example_of_today_is_what_is_written_today(tmp_path: Path) -> None:
    written, kept = write_example(tmp_path / "today.edgeclf"), example_of(SCHEMA_VERSION)
    assert sorted(file.name for file in written.iterdir()) == sorted(file.name for file in kept.iterdir())
    for file in written.iterdir():
        if file.name not in (MANIFEST_NAME, GOLDEN_NAME):  # archives differ between versions of zlib
            assert file.read_bytes() == (kept / file.name).read_bytes(), file.name
    today, then = manifest_of(written), manifest_of(kept)
    for manifest in (today, then):
        del manifest["files"][GOLDEN_NAME]
    assert today == then


# -- schema -----------------------------------------------------------------------------------------------------------

BUNDLES = [*map(example_of, VERSIONS), *sorted(PACKAGED.glob("*.edgeclf"))]


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_manifests_fit_the_schema(validator: Any, bundle: Path) -> None:
    validator.validate(manifest_of(bundle))


BOTH_REFUSE: dict[str, Callable[[dict[str, Any]], object]] = {
    "another version": lambda m: m.update(schema_version=SCHEMA_VERSION + 1),
    "no classifier": lambda m: m.update(classifiers=[]),
    "no parity": lambda m: m.pop("parity"),
    "a file elsewhere": lambda m: m["files"].update({"../evil": "0" * 64}),
    "no size": lambda m: m["extractor"]["preprocess"].pop("size"),
    "an unknown key of preprocess": lambda m: m["extractor"]["preprocess"].update(mean=[0, 0, 0]),
    "an unknown crop": lambda m: m["extractor"]["preprocess"].update(crop="left"),
    "a stack of 17": lambda m: m["extractor"]["preprocess"].update(stack=17, stack_seconds=0.1),
    "an unknown key of clip": lambda m: m["classifiers"][0]["clip"].update(frames=8),
    "no rate": lambda m: m["classifiers"][0]["clip"].pop("rate"),
    "a rate of 0": lambda m: m["classifiers"][0]["clip"].update(rate=0),
    "an unknown sampling": lambda m: m["classifiers"][0]["clip"].update(sampling="last"),
    "one label": lambda m: m["classifiers"][0].update(labels=["red"]),
    "a label twice": lambda m: m["classifiers"][0].update(labels=["red", "red", "blue"]),
    "an empty label": lambda m: m["classifiers"][0].update(labels=["red", "", "blue"]),
    "a threshold of 2": lambda m: m["classifiers"][0].update(thresholds={"red": 2}),
    "an unknown aggregate": lambda m: m["classifiers"][0].update(aggregate="median"),
    "no fp32": lambda m: m["classifiers"][0].update(precisions={"fp16": "classifier.onnx"}),
    "a tensor of doubles": lambda m: m["classifiers"][0]["outputs"][0].update(dtype="float64"),
    "a size of 0": lambda m: m["classifiers"][0]["outputs"][0].update(shape=[None, 0]),
    "three inputs": lambda m: m["classifiers"][0]["inputs"].append(m["classifiers"][0]["inputs"][1]),
}


@pytest.mark.parametrize("fault", BOTH_REFUSE)
def test_schema_and_reader_refuse_the_same(validator: Any, fault: str) -> None:
    manifest = manifest_of(example_of(SCHEMA_VERSION))
    BOTH_REFUSE[fault](manifest)
    assert not validator.is_valid(manifest)
    with pytest.raises((ValueError, KeyError, TypeError)):
        Manifest.from_dict(manifest)


BOTH_ALLOW: dict[str, Callable[[dict[str, Any]], object]] = {
    "a new key": lambda m: m.update(signature="..."),
    "a new key of a classifier": lambda m: m["classifiers"][0].update(note="..."),
    "no thresholds": lambda m: m["classifiers"][0].pop("thresholds"),
    "no stack": lambda m: [m["extractor"]["preprocess"].pop(key) for key in ("stack", "stack_seconds")],
    "another precision": lambda m: m["extractor"]["precisions"].update(int8="extractor.onnx"),
    "another report": lambda m: m["parity"].update(int8={"accuracy": 0.9}),
}


@pytest.mark.parametrize("change", BOTH_ALLOW)
def test_schema_and_reader_allow_the_same(validator: Any, change: str) -> None:
    manifest = copy.deepcopy(manifest_of(example_of(SCHEMA_VERSION)))
    BOTH_ALLOW[change](manifest)
    validator.validate(manifest)
    Manifest.from_dict(manifest)


def test_schema_lists_every_key_that_is_written() -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    manifest = open_bundle(example_of(SCHEMA_VERSION)).manifest.to_dict()
    definitions = schema["$defs"]
    (classifier,) = manifest["classifiers"]
    pairs = [
        (schema, manifest),
        (schema["properties"]["extractor"], manifest["extractor"]),
        (definitions["classifier"], classifier),
        (definitions["clip"], classifier["clip"]),
        (definitions["preprocess"], manifest["extractor"]["preprocess"]),
        (definitions["tensor"], classifier["inputs"][0]),
    ]
    for described, written in pairs:
        assert set(described["properties"]) == set(written)
