from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeclf import bundle as module
from edgeclf.bundle import MANIFEST_NAME, Manifest, open_bundle, open_classifiers
from edgeclf.errors import BundleError
from edgeclf.specs import ClipSpec
from tests.support.colors import CLIP, write_bundle

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def copy(colors: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(colors, tmp_path / "copy.edgeclf"))


def edit(bundle: Path, change: Edit) -> None:
    data = json.loads((bundle / MANIFEST_NAME).read_text())
    change(data)
    (bundle / MANIFEST_NAME).write_text(json.dumps(data))


def test_bundle_opens_by_path_and_by_path_and_classifier(colors: Path) -> None:
    assert open_bundle(colors).classifier.labels == ("red", "green", "blue")
    assert open_bundle(f"{colors}#colors").classifier.name == "colors"


def test_every_classifier_of_a_path_is_opened_and_each_file_hashed_once(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(copy, lambda manifest: manifest["classifiers"].append({**manifest["classifiers"][0], "name": "again"}))
    hashed: list[str] = []

    def counting(path: Path) -> str:
        hashed.append(path.name)
        return sha256_of(path)

    sha256_of = module.sha256_of
    monkeypatch.setattr(module, "sha256_of", counting)
    opened = open_classifiers(copy)
    assert [one.classifier.name for one in opened] == ["colors", "again"]
    assert sorted(hashed) == sorted(opened[0].manifest.files)
    with pytest.raises(BundleError, match="holds several classifiers"):
        open_bundle(copy)


def test_name_of_a_classifier_opens_that_one_alone(copy: Path) -> None:
    edit(copy, lambda manifest: manifest["classifiers"].append({**manifest["classifiers"][0], "name": "again"}))
    assert [one.classifier.name for one in open_classifiers(f"{copy}#again")] == ["again"]
    assert [one.classifier.name for one in open_classifiers("theatre")] == ["theatre"]
    with pytest.raises(BundleError, match=r"no classifier 'shapes'; choose one .*: colors, again"):
        open_classifiers(f"{copy}#shapes")


def test_manifest_survives_its_file(colors: Path) -> None:
    manifest = open_bundle(colors).manifest
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest


def test_thresholds_survive_their_file(tmp_path: Path) -> None:
    bundle = open_bundle(write_bundle(tmp_path / "strict.edgeclf", thresholds={"blue": 0.25, "red": 1.0}))
    assert bundle.classifier.thresholds == {"blue": 0.25, "red": 1.0}
    assert Manifest.from_dict(json.loads(json.dumps(bundle.manifest.to_dict()))) == bundle.manifest


def test_manifest_written_before_there_were_thresholds_and_stacks_has_none(copy: Path) -> None:
    def strip(manifest: dict[str, Any]) -> None:
        del manifest["classifiers"][0]["thresholds"]
        for key in ("stack", "stack_seconds"):
            del manifest["extractor"]["preprocess"][key]

    edit(copy, strip)
    bundle = open_bundle(copy)
    assert bundle.classifier.thresholds == {}
    assert bundle.extractor.preprocess.stack == 1


@pytest.mark.parametrize("sampling", ["first", "uniform"])
def test_sampling_of_files_survives_the_manifest(tmp_path: Path, sampling: str) -> None:
    clip = ClipSpec.from_dict(CLIP.to_dict() | {"sampling": sampling})
    assert open_bundle(write_bundle(tmp_path / "counted.edgeclf", clip)).classifier.clip == clip


def test_missing_bundle_names_what_there_is() -> None:
    with pytest.raises(BundleError, match="there is no bundle 'nothing'; packaged:"):
        open_bundle("nothing")


def test_unknown_classifier_lists_the_known(colors: Path) -> None:
    with pytest.raises(BundleError, match=r"no classifier 'shapes'; choose one .*: colors"):
        open_bundle(f"{colors}#shapes")


def test_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no manifest\.json"):
        open_bundle(tmp_path)


def test_altered_file_is_refused(copy: Path) -> None:
    with (copy / "extractor.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match=r"extractor.onnx was altered"):
        open_bundle(copy)


def test_file_that_leads_out_of_the_folder_is_refused(copy: Path, tmp_path: Path) -> None:
    shutil.move(copy / "extractor.onnx", tmp_path / "outside.onnx")
    (copy / "extractor.onnx").symlink_to(tmp_path / "outside.onnx")
    with pytest.raises(BundleError, match="leads out of the bundle"):
        open_bundle(copy)


BROKEN: list[tuple[Edit, str]] = [
    (lambda m: m.update(schema_version=2), "schema_version is 2"),
    (lambda m: m.pop("extractor"), "lacks 'extractor'"),
    (lambda m: m.update(classifiers=[]), "no classifier"),
    (lambda m: m["files"].update({"../evil": "0"}), "leads out of the bundle"),
    (lambda m: m["files"].pop("extractor.onnx"), "not among its files"),
    (lambda m: m["extractor"]["preprocess"].update(size=[32, 32]), "its preprocessing gives"),
    (lambda m: m["classifiers"][0].update(labels=["a", "b"]), "its labels ask for"),
    (lambda m: m["classifiers"][0].update(labels=["a", "a", "b"]), "one label twice"),
    (lambda m: m["classifiers"][0]["clip"].update(length=9), "must be float32"),
    (lambda m: m["classifiers"][0]["clip"].update(padding="repeat_last"), "has 2 inputs"),
    (lambda m: m["classifiers"][0]["inputs"][0].update(shape=[None, 8, 4]), "takes 4 values a frame"),
    (lambda m: m["classifiers"][0].update(aggregate="median"), "aggregate is"),
    (lambda m: m["extractor"].update(precisions={}), "no fp32 graph"),
    (lambda m: m.update(files=[]), "is not valid"),
    (lambda m: m["classifiers"][0].update(labels="xyz"), "must be a list of names"),
    (lambda m: m.update(classifiers="x"), "is not valid"),
    (lambda m: m["classifiers"][0].update(thresholds={"pink": 0.5}), "'pink', which is no label"),
    (lambda m: m["classifiers"][0].update(thresholds={"red": 2}), "threshold of 'red' is 2"),
    (lambda m: m["classifiers"][0].update(thresholds={"red": "high"}), "threshold of 'red' is 'high'"),
    (lambda m: m["classifiers"][0].update(thresholds=0.5), "is not valid"),
    (
        lambda m: m["extractor"]["preprocess"].update(stack=2, stack_seconds=0.1),
        "its preprocessing gives .*N,2,16,16,3",
    ),
    (lambda m: m["extractor"]["preprocess"].update(stack=2), "stack_seconds"),
    (lambda m: m["classifiers"][0]["clip"].update(sampling="last"), "sampling is 'last'"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_manifest_that_contradicts_itself_is_refused(copy: Path, change: Edit, message: str) -> None:
    edit(copy, change)
    with pytest.raises(BundleError, match=message):
        open_bundle(copy)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '{"schema_version": 1}'])
def test_manifest_that_is_no_manifest_is_refused(copy: Path, text: str) -> None:
    (copy / MANIFEST_NAME).write_text(text)
    with pytest.raises(BundleError):
        open_bundle(copy)


@pytest.mark.parametrize("name", ["weights.bin", ".hidden"])
def test_file_that_the_manifest_does_not_name_is_refused(copy: Path, name: str) -> None:
    (copy / name).touch()  # a graph could take its weights from it, unhashed
    with pytest.raises(BundleError, match="which its manifest does not name"):
        open_bundle(copy)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e308"])
def test_number_that_is_none_is_refused(copy: Path, number: str) -> None:
    text = (copy / MANIFEST_NAME).read_text()
    (copy / MANIFEST_NAME).write_text(text.replace('"stale_seconds": 1.0', f'"stale_seconds": {number}'))
    with pytest.raises(BundleError, match="is not valid"):
        open_bundle(copy)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_manifest_that_is_a_pipe_is_refused_at_once(copy: Path) -> None:
    (copy / MANIFEST_NAME).unlink()
    os.mkfifo(copy / MANIFEST_NAME)
    with pytest.raises(BundleError, match=r"has no manifest\.json"):
        open_bundle(copy)


def test_precision_that_is_not_there_is_refused(colors: Path) -> None:
    bundle = open_bundle(colors)
    with pytest.raises(BundleError, match="holds no int8 graph; it holds fp32"):
        bundle.graph(bundle.extractor, "int8")
