"""Several classifiers on one extractor in one bundle."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import edgeclf
from edgeclf.bundle import ModelBundle, open_bundle
from edgeclf.errors import BundleError, ExportError, ParityError
from edgeclf.export.bundling import CLASSIFIER_GRAPH, EXTRACTOR_GRAPH, export_bundle
from edgeclf.export.command import export
from edgeclf.model_directory import read_parity
from tests.support.keras_models import LABELS, write_motion_model, write_network_model, write_vote_model

pytestmark = [pytest.mark.keras, pytest.mark.usefixtures("converters")]


@pytest.fixture(scope="module")
def vote_dir(converters: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vote_model(tmp_path_factory.mktemp("models") / "votes")


@pytest.fixture(scope="module")
def both(model_dir: Path, vote_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """The tiny model, and one of single frames on the same extractor."""
    return export_bundle(model_dir, tmp_path_factory.mktemp("bundles") / "both.edgeclf", also=[vote_dir])


def renamed(model: Path, target: Path, name: str) -> Path:
    """A copy of a model directory whose model has another name."""
    path = shutil.copytree(model, target)
    said = json.loads((path / "model.json").read_text(encoding="utf-8"))
    (path / "model.json").write_text(json.dumps(said | {"name": name}), encoding="utf-8")
    return path


def test_both_classifiers_open_by_name_and_run(both: ModelBundle) -> None:
    for name, labels in (("tiny", LABELS), ("vote", LABELS[:3])):
        with edgeclf.open(f"{both.path}#{name}", device="cpu") as classifier:
            result = classifier.classify("synthetic://walk?seed=3")
        assert result.labels == labels
    assert both.classifier.name == "tiny"


def test_bundle_of_two_asks_for_a_name(both: ModelBundle) -> None:
    with pytest.raises(BundleError, match=r"holds several classifiers; choose one with .*: tiny, vote"):
        open_bundle(both.path)


def test_one_extractor_and_a_graph_for_each_classifier(both: ModelBundle, exported: ModelBundle) -> None:
    files = {EXTRACTOR_GRAPH, CLASSIFIER_GRAPH, "vote.onnx", "MODEL_CARD.md", "golden.npz", "report.html"}
    assert set(both.manifest.files) == files
    for name in (EXTRACTOR_GRAPH, CLASSIFIER_GRAPH):
        assert both.manifest.files[name] == exported.manifest.files[name]


def test_each_classifier_has_its_report_card_and_provenance(both: ModelBundle) -> None:
    report = both.manifest.parity["fp32"]
    assert all(check["passed"] for check in report)
    lengths = [(check["classifier"], check["name"]) for check in report if "lengths" in check["name"]]
    assert lengths == [("tiny", "classifier, lengths 0 to T"), ("vote", "classifier, lengths 1 to T")]
    card = (both.path / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert [line for line in card.splitlines() if line.startswith("# ")] == ["# tiny", "# vote"]
    assert "classifier.keras" in both.manifest.provenance["also"]["vote"]["model_files"]


def test_command_takes_others_too(model_dir: Path, vote_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "both.edgeclf"
    result = CliRunner().invoke(export, [str(model_dir), "-o", str(target), "--also", str(vote_dir)])
    assert result.exit_code == 0, result.output
    assert f"{target}: tiny with 4 labels, vote with 3 labels, " in result.stdout


def test_other_preprocessing_is_refused(model_dir: Path, tmp_path: Path) -> None:
    other = write_motion_model(tmp_path / "motion")
    with pytest.raises(ExportError, match="preprocesses frames in another way"):
        export_bundle(model_dir, tmp_path / "a.edgeclf", also=[other])


def test_other_extractor_is_refused(model_dir: Path, tmp_path: Path) -> None:
    other = write_network_model(tmp_path / "network")
    with pytest.raises(ExportError, match="has another extractor"):
        export_bundle(model_dir, tmp_path / "a.edgeclf", also=[other])
    assert not (tmp_path / "a.edgeclf").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny", "two models are called 'tiny'"),
        ("a/b", "cannot name one"),
        ("extractor", "file cannot be extractor.onnx"),
    ],
)
def test_name_that_does_not_fit_is_refused(
    model_dir: Path, vote_dir: Path, tmp_path: Path, name: str, message: str
) -> None:
    other = renamed(vote_dir, tmp_path / "other", name)
    with pytest.raises(ExportError, match=message):
        export_bundle(model_dir, tmp_path / "a.edgeclf", also=[other])


def test_other_classifier_that_differs_from_keras_leaves_nothing(
    model_dir: Path, vote_dir: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(vote_dir, tmp_path / "other")
    arrays = asdict(read_parity(vote_dir))
    np.savez(other / "parity.npz", **arrays | {"scores": arrays["scores"][:, ::-1]})
    with pytest.raises(ParityError, match="frames to scores"):
        export_bundle(model_dir, tmp_path / "new" / "a.edgeclf", also=[other])
    assert list((tmp_path / "new").iterdir()) == []
