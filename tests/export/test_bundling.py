"""What `export_bundle` writes, and what it leaves alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclf.bundle import ClassifierEntry, ExtractorEntry, ModelBundle, open_bundle, sha256_of
from edgeclf.errors import BundleError, ExportError, ParityError
from edgeclf.export.bundling import CLASSIFIER_GRAPH, EXTRACTOR_GRAPH, export_bundle
from edgeclf.export.card import CARD_NAME
from edgeclf.model_directory import read_description, read_parity
from edgeclf.runtime.model import open_model
from tests.support.keras_models import CLIP, LABELS, PREPROCESS

pytestmark = pytest.mark.keras

CHECKS = [
    "extractor",
    "classifier, lengths 0 to T",
    "classifier, noise as padding",
    "frames to scores",
    "aggregate and gaps",
    "rendered scenes",
]


def load_graph(bundle: ModelBundle, name: str) -> Any:
    import onnx

    return onnx.load(bundle.path / name)


def metadata(bundle: ModelBundle, name: str) -> dict[str, str]:
    return {entry.key: entry.value for entry in load_graph(bundle, name).metadata_props}


def contents(folder: Path) -> dict[str, str]:
    return {file.name: sha256_of(file) for file in folder.iterdir()}


@pytest.fixture
def tampered_dir(model_dir: Path, tmp_path: Path) -> Path:
    """A model directory whose recorded scores are not those of its models."""
    path = shutil.copytree(model_dir, tmp_path / "tampered")
    parity = read_parity(path)
    np.savez(
        path / "parity.npz",
        frames=parity.frames,
        lengths=parity.lengths,
        features=parity.features,
        scores=parity.scores[:, ::-1],
    )
    return path


def test_bundle_opens_and_runs(exported: ModelBundle) -> None:
    model = open_model(exported, "cpu")
    assert (model.labels, model.clip, model.preprocess) == (LABELS, CLIP, PREPROCESS)
    model.close()


def test_manifest_carries_the_evaluation_and_the_hashes_of_the_models(exported: ModelBundle, model_dir: Path) -> None:
    assert exported.classifier.evaluation == read_description(model_dir).evaluation
    for name in ("extractor.keras", "classifier.keras"):
        assert exported.manifest.provenance["model_files"][name] == sha256_of(model_dir / name)


def test_graphs_have_the_tensors_of_the_manifest(exported: ModelBundle) -> None:
    entries: list[tuple[str, ExtractorEntry | ClassifierEntry]] = [
        (EXTRACTOR_GRAPH, exported.extractor),
        (CLASSIFIER_GRAPH, exported.classifier),
    ]
    for name, entry in entries:
        graph = load_graph(exported, name).graph
        assert [tensor.name for tensor in graph.input] == [spec.name for spec in entry.inputs]
        assert [tensor.name for tensor in graph.output] == [spec.name for spec in entry.outputs]
        for tensor, spec in zip([*graph.input, *graph.output], [*entry.inputs, *entry.outputs], strict=True):
            sizes = [dim.dim_value or None for dim in tensor.type.tensor_type.shape.dim]
            assert tuple(sizes) == spec.shape


@pytest.mark.parametrize("name", [EXTRACTOR_GRAPH, CLASSIFIER_GRAPH])
def test_graphs_hold_no_control_flow(exported: ModelBundle, name: str) -> None:
    assert not {node.op_type for node in load_graph(exported, name).graph.node} & {"Loop", "Scan", "If"}


def test_uint8_frames_are_cast_before_anything_else(exported: ModelBundle) -> None:
    nodes = load_graph(exported, EXTRACTOR_GRAPH).graph.node
    assert [node.op_type for node in nodes if "frames" in node.input] == ["Cast"]


def test_graph_alone_explains_itself(exported: ModelBundle) -> None:
    extractor, classifier = metadata(exported, EXTRACTOR_GRAPH), metadata(exported, CLASSIFIER_GRAPH)
    assert (extractor["edgeclf.role"], classifier["edgeclf.role"]) == ("extractor", "classifier")
    assert json.loads(extractor["edgeclf.preprocess"])["interpolation"] == "linear"
    assert json.loads(classifier["edgeclf.labels"]) == list(LABELS)
    assert json.loads(classifier["edgeclf.clip"])["rate"] == CLIP.rate


def test_manifest_holds_a_parity_report_in_which_all_passed(exported: ModelBundle) -> None:
    report = exported.manifest.parity["fp32"]
    assert [check["name"] for check in report] == CHECKS
    assert all(check["passed"] and check["rows"] > 0 for check in report)


def test_model_card_is_written_and_hashed(exported: ModelBundle) -> None:
    card = (exported.path / CARD_NAME).read_text(encoding="utf-8")
    assert card.startswith("# tiny\n")
    assert "Random weights." in card
    assert all(f"- {name}" in card for name in CHECKS)
    assert exported.manifest.files[CARD_NAME] == sha256_of(exported.path / CARD_NAME)


def test_given_clips_are_compared_as_well(model_dir: Path, tmp_path: Path) -> None:
    bundle = export_bundle(model_dir, tmp_path / "a.edgeclf", clips=["synthetic://walk?seed=3"])
    assert bundle.manifest.parity["fp32"][-1]["name"] == "decoded clips"


def test_older_bundle_is_replaced_whole(model_dir: Path, exported: ModelBundle, tmp_path: Path) -> None:
    target = shutil.copytree(exported.path, tmp_path / "tiny.edgeclf")
    (target / "stale.onnx").write_bytes(b"of an older export")
    export_bundle(model_dir, target)
    assert contents(target) == contents(exported.path)
    assert list(tmp_path.iterdir()) == [target]


def test_failed_gate_leaves_the_older_bundle(tampered_dir: Path, exported: ModelBundle, tmp_path: Path) -> None:
    target = shutil.copytree(exported.path, tmp_path / "tiny.edgeclf")
    with pytest.raises(ParityError, match="frames to scores"):
        export_bundle(tampered_dir, target)
    assert contents(open_bundle(target).path) == contents(exported.path)
    assert set(tmp_path.iterdir()) == {target, tampered_dir}


def test_failed_rename_brings_the_older_bundle_back(
    model_dir: Path, exported: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = shutil.copytree(exported.path, tmp_path / "tiny.edgeclf")
    rename = Path.rename

    def failing(path: Path, new: Path) -> Path:
        if path.parent.name.startswith(".export-") and path.name == target.name:
            raise OSError("disk on fire")
        return rename(path, new)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="disk on fire"):
        export_bundle(model_dir, target)
    assert contents(target) == contents(exported.path)
    assert list(tmp_path.iterdir()) == [target]


def test_failed_gate_leaves_nothing_behind(tampered_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="nothing was written"):
        export_bundle(tampered_dir, tmp_path / "new" / "a.edgeclf")
    assert list((tmp_path / "new").iterdir()) == []


def test_missing_model_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no model directory"):
        export_bundle(tmp_path / "none", tmp_path / "new" / "a.edgeclf")
    assert list((tmp_path / "new").iterdir()) == []


def test_folder_that_is_no_bundle_is_never_replaced(model_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "holiday.edgeclf"
    target.mkdir()
    (target / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(BundleError, match="exists and is no bundle"):
        export_bundle(model_dir, target)
    assert (target / "photo.jpg").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["bundle", "bundle.onnx", ".edgeclf"])
def test_target_must_be_named_as_a_bundle(model_dir: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match=r"name it NAME\.edgeclf"):
        export_bundle(model_dir, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_padding_that_does_not_fit_the_classifier_is_refused(model_dir: Path, tmp_path: Path) -> None:
    path = shutil.copytree(model_dir, tmp_path / "repeats")
    text = (path / "model.json").read_text(encoding="utf-8").replace('"mask"', '"repeat_last"')
    (path / "model.json").write_text(text, encoding="utf-8")
    with pytest.raises(ExportError, match="repeat_last"):
        export_bundle(path, tmp_path / "a.edgeclf")


def test_new_classifier_leaves_the_extractor_byte_for_byte(exported: ModelBundle, retrained: ModelBundle) -> None:
    assert exported.manifest.files[EXTRACTOR_GRAPH] == retrained.manifest.files[EXTRACTOR_GRAPH]
    assert exported.manifest.files[CLASSIFIER_GRAPH] != retrained.manifest.files[CLASSIFIER_GRAPH]
