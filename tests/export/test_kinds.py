"""Every kind of model from its directory to a label: pairs of pictures, whole clips, frames of files, votes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeclf
from edgeclf.bundle import ModelBundle, open_bundle
from edgeclf.errors import BundleError
from edgeclf.export.bundling import CLASSIFIER_GRAPH, EXTRACTOR_GRAPH, export_bundle
from edgeclf.model_directory import open_keras_model
from edgeclf.runtime.pipeline import Classifier, LoopOptions
from edgeclf.theatre import ACTIONS
from tests.support import keras_models
from tests.support.keras_models import CLIP, FEATURES, LABELS, MOTION, SIZE, UNIFORM
from tests.support.videos import RED, plain, write_video

pytestmark = [pytest.mark.keras, pytest.mark.usefixtures("converters")]

KINDS: dict[str, Callable[[Path], Path]] = {
    "motion": keras_models.write_motion_model,
    "network": keras_models.write_network_model,
    "uniform": keras_models.write_uniform_model,
    "vote": keras_models.write_vote_model,
}
OF_FILES = ["rendered scenes, as files", "decoded clips, as files"]


@pytest.fixture(scope="module")
def folder(converters: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory and a bundle of each kind."""
    path = tmp_path_factory.mktemp("kinds")
    for kind, write in KINDS.items():
        export_bundle(write(path / kind), path / f"{kind}.edgeclf", clips=["synthetic://walk?seed=3"])
    return path


def bundle_of(folder: Path, kind: str) -> ModelBundle:
    return open_bundle(folder / f"{kind}.edgeclf")


def checks_of(folder: Path, kind: str) -> list[str]:
    return [check["name"] for check in bundle_of(folder, kind).manifest.parity["fp32"]]


def loaded(file: Path) -> Any:
    import onnx

    return onnx.load(file)


def graph_of(folder: Path, kind: str, name: str) -> Any:
    return loaded(folder / f"{kind}.edgeclf" / name).graph


def sizes_of(tensor: Any) -> list[Any]:
    return [dim.dim_param or dim.dim_value for dim in tensor.type.tensor_type.shape.dim]


@pytest.mark.parametrize("kind", KINDS)
def test_whole_file_gets_the_scores_of_keras(folder: Path, kind: str) -> None:
    scenes = [f"synthetic://{action}?seed=11&look=unseen" for action in ACTIONS[:3]]
    original = Classifier(open_keras_model(folder / kind), LoopOptions(depth=0, workers=0))
    with edgeclf.open(folder / f"{kind}.edgeclf", device="cpu") as converted, original:
        found = [converted.classify(scene) for scene in scenes]
        expected = [original.classify(scene) for scene in scenes]
    assert [len(result.clips) for result in found] == [len(result.clips) for result in expected]
    np.testing.assert_allclose([r.scores for r in found], [r.scores for r in expected], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_check_passed(folder: Path, kind: str) -> None:
    report = bundle_of(folder, kind).manifest.parity["fp32"]
    assert all(check["passed"] and check["rows"] > 0 for check in report)


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_hold_no_control_flow(folder: Path, kind: str) -> None:
    for file in (folder / f"{kind}.edgeclf").glob("*.onnx"):
        assert not {node.op_type for node in loaded(file).graph.node} & {"Loop", "Scan", "If"}


# -- pairs of pictures ------------------------------------------------------------------------------------------------


def test_stacked_pictures_are_one_input_and_the_weights_stand_there_once(folder: Path) -> None:
    graph = graph_of(folder, "motion", EXTRACTOR_GRAPH)
    assert sizes_of(graph.input[0]) == ["N", 2, *SIZE, 3]
    assert sizes_of(graph.output[0]) == ["N", 8]
    assert [node.op_type for node in graph.node].count("Conv") == 1
    assert sum(list(tensor.dims) == [4, 3, 3, 3] for tensor in graph.initializer) == 1


def test_stack_is_cast_before_it_is_cut(folder: Path) -> None:
    nodes = graph_of(folder, "motion", EXTRACTOR_GRAPH).node
    assert [node.op_type for node in nodes if "frames" in node.input] == ["Cast"]


def test_card_says_how_pictures_are_stacked(folder: Path) -> None:
    card = (folder / "motion.edgeclf" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"2 pictures, {MOTION.stack_seconds:g} s apart" in card


# -- whole clips ------------------------------------------------------------------------------------------------------


def test_network_has_no_extractor(folder: Path) -> None:
    bundle = bundle_of(folder, "network")
    assert not bundle.extractor.has_graph
    assert bundle.extractor.inputs == bundle.extractor.outputs
    assert set(bundle.manifest.files) == {CLASSIFIER_GRAPH, "MODEL_CARD.md", "golden.npz", "report.html"}
    assert sizes_of(graph_of(folder, "network", CLASSIFIER_GRAPH).input[0]) == ["N", CLIP.length, *SIZE, 3]
    keys = {entry.key for entry in loaded(bundle.path / CLASSIFIER_GRAPH).metadata_props}
    assert "edgeclf.preprocess" in keys


def test_network_classifies_a_video(folder: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "red.mp4", plain(RED, 1.0))
    with edgeclf.open(folder / "network.edgeclf") as classifier:
        result = classifier.classify(video)
    assert result.label in LABELS
    assert len(result.clips) == 1
    assert sum(result.scores) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["extractor"].update(outputs=[{"name": "f", "dtype": "float32", "shape": [None, 3]}]), "no fp32"),
        (lambda m: m["extractor"].update(precisions={"fp32": CLASSIFIER_GRAPH}), "extractor output is frames uint8"),
        (lambda m: m["classifiers"][0]["inputs"][0].update(shape=[None, 6, 9, 9, 3]), "takes 9x9x3 values a frame"),
        (lambda m: m["classifiers"][0]["inputs"][0].update(shape=[None, 5, *SIZE, 3]), r"must be .*uint8\[N,6,H,W,3\]"),
    ],
)
def test_network_whose_manifest_contradicts_itself_is_refused(
    folder: Path, tmp_path: Path, change: Callable[[Any], object], message: str
) -> None:
    path = shutil.copytree(folder / "network.edgeclf", tmp_path / "a.edgeclf")
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(BundleError, match=message):
        open_bundle(path)


# -- files and votes --------------------------------------------------------------------------------------------------


def test_frames_of_files_are_compared_as_files_too(folder: Path) -> None:
    assert [name for name in checks_of(folder, "uniform") if "files" in name] == OF_FILES
    assert [name for name in checks_of(folder, "network") if "files" in name] == OF_FILES
    assert not [name for name in checks_of(folder, "vote") if "files" in name]


def test_lengths_begin_at_1_where_nothing_is_masked(folder: Path) -> None:
    assert [name for name in checks_of(folder, "uniform") if "classifier" in name] == ["classifier, lengths 1 to T"]
    assert [spec.name for spec in bundle_of(folder, "uniform").classifier.inputs] == ["features"]


def test_thresholds_and_clips_are_carried(folder: Path) -> None:
    entry = bundle_of(folder, "uniform").classifier
    assert entry.thresholds == {"one": 0.4, "three": 0.25}
    assert entry.clip == UNIFORM
    assert bundle_of(folder, "vote").classifier.aggregate == "vote"


def test_card_says_which_frames_of_files_and_which_thresholds(folder: Path) -> None:
    card = (folder / "uniform.edgeclf" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "- files: 6 frames spread evenly over a file" in card
    assert "below that of its label: one 0.4, three 0.25" in card


def test_vote_takes_one_frame(folder: Path) -> None:
    graph = graph_of(folder, "vote", CLASSIFIER_GRAPH)
    assert sizes_of(graph.input[0]) == ["N", 1, FEATURES]
