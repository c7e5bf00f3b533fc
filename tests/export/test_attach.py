"""One more classifier for a bundle: what must stay as it was, what is added, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import edgeclf
from edgeclf.bundle import ModelBundle, open_bundle, open_classifiers, sha256_of
from edgeclf.errors import BundleError, ExportError, ParityError
from edgeclf.export.attach import attach_classifier
from edgeclf.export.bundle_command import bundle as bundle_command
from edgeclf.export.bundling import export_bundle
from edgeclf.export.golden import golden_of
from edgeclf.model_directory import open_keras_model, read_parity
from edgeclf.runtime.golden import GOLDEN_NAME, write_golden
from edgeclf.runtime.verify import verify_bundle
from tests.golden.bundles.make_examples import seal
from tests.support.keras_models import LABELS, write_motion_model, write_network_model, write_vote_model

pytestmark = [pytest.mark.keras, pytest.mark.usefixtures("converters")]


def contents(folder: Path) -> dict[str, str]:
    return {file.name: sha256_of(file) for file in folder.iterdir()}


@pytest.fixture(scope="module")
def vote_dir(converters: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of single frames on the extractor of the tiny model."""
    return write_vote_model(tmp_path_factory.mktemp("models") / "votes")


@pytest.fixture
def held(exported: ModelBundle, model_dir: Path, tmp_path: Path) -> Path:
    """The tiny model's bundle with golden inputs, alone in a folder."""
    path = Path(shutil.copytree(exported.path, tmp_path / "bundles" / "tiny.edgeclf"))
    write_golden(path, golden_of([open_keras_model(model_dir)]))
    return seal(path)


@pytest.fixture(scope="module")
def grown(
    exported: ModelBundle, model_dir: Path, vote_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A bundle before and after one more classifier."""
    folder = tmp_path_factory.mktemp("grown")
    before = Path(shutil.copytree(exported.path, folder / "before.edgeclf"))
    write_golden(before, golden_of([open_keras_model(model_dir)]))
    after = Path(shutil.copytree(seal(before), folder / "after.edgeclf"))
    attach_classifier(after, vote_dir)
    return before, after


# -- what is added ----------------------------------------------------------------------------------------------------


def test_both_classifiers_run_and_give_their_own_answers(grown: tuple[Path, Path]) -> None:
    opened = open_classifiers(grown[1])
    assert [(one.classifier.name, one.classifier.labels) for one in opened] == [("tiny", LABELS), ("vote", LABELS[:3])]
    for one in opened:
        assert all(verdict.passed for verdict in verify_bundle(one, device="cpu", precisions=["fp32"]))
        with edgeclf.open(f"{grown[1]}#{one.classifier.name}", device="cpu") as classifier:
            assert classifier.classify("synthetic://walk?seed=3").labels == one.classifier.labels


def test_graphs_that_were_there_stay_byte_for_byte(grown: tuple[Path, Path]) -> None:
    before, after = map(contents, grown)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"manifest.json", "MODEL_CARD.md", "report.html", GOLDEN_NAME}
    assert set(after) - set(before) == {"vote.onnx"}


def test_classifier_is_that_of_an_export_of_both(
    grown: tuple[Path, Path], model_dir: Path, vote_dir: Path, tmp_path: Path
) -> None:
    together = export_bundle(model_dir, tmp_path / "both.edgeclf", also=[vote_dir]).manifest
    manifest = open_classifiers(grown[1])[0].manifest
    assert manifest.files["vote.onnx"] == together.files["vote.onnx"]
    assert manifest.classifiers[1] == together.classifiers[1]


def test_report_card_and_provenance_name_the_new_classifier(grown: tuple[Path, Path]) -> None:
    before, after = (open_classifiers(path)[0].manifest for path in grown)
    report = after.parity["fp32"]
    assert all(check["passed"] for check in report)
    assert {check["classifier"] for check in report} == {"tiny", "vote"}
    assert [check for check in report if check["classifier"] == "tiny"] == before.parity["fp32"]
    origin = after.provenance["also"]["vote"]
    assert "classifier.keras" in origin["model_files"]
    assert origin["exported_with"]["edgeclf"] == edgeclf.__version__
    assert {key: value for key, value in after.provenance.items() if key != "also"} == before.provenance
    card = (grown[1] / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert card.startswith((grown[0] / "MODEL_CARD.md").read_text(encoding="utf-8"))
    assert [line for line in card.splitlines() if line.startswith("# ")] == ["# tiny", "# vote"]


def test_given_clips_are_compared_as_well(held: Path, vote_dir: Path) -> None:
    opened = attach_classifier(held, vote_dir, clips=["synthetic://walk?seed=3"])
    assert opened.classifier.name == "vote"
    assert opened.manifest.parity["fp32"][-1]["name"] == "decoded clips"
    assert list(held.parent.iterdir()) == [held]


def test_older_bundle_grows_without_golden_inputs(exported: ModelBundle, vote_dir: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(exported.path, tmp_path / "old.edgeclf"))
    (path / GOLDEN_NAME).unlink(missing_ok=True)
    opened = attach_classifier(seal(path), vote_dir)
    assert [entry.name for entry in opened.manifest.classifiers] == ["tiny", "vote"]
    assert GOLDEN_NAME not in opened.manifest.files


def test_command_reports_and_prints_what_is_held(held: Path, vote_dir: Path) -> None:
    result = CliRunner().invoke(bundle_command, ["attach", str(held), str(vote_dir)])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{held}: tiny with 4 labels, vote with 3 labels\n"
    assert "frames to scores" in result.stderr


# -- what is refused --------------------------------------------------------------------------------------------------


def test_classifier_that_differs_from_keras_leaves_the_bundle(held: Path, vote_dir: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(vote_dir, tmp_path / "tampered"))
    arrays = asdict(read_parity(vote_dir))
    np.savez(other / "parity.npz", **arrays | {"scores": arrays["scores"][:, ::-1]})
    before = contents(held)
    with pytest.raises(ParityError, match="frames to scores"):
        attach_classifier(held, other)
    assert contents(held) == before
    assert list(held.parent.iterdir()) == [held]


def test_failed_rename_brings_the_bundle_back(held: Path, vote_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename, before = Path.rename, contents(held)

    def failing(path: Path, new: Path) -> Path:
        if path.parent.name.startswith(".attach-") and path.name == held.name:
            raise OSError("disk on fire")
        return rename(path, new)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="disk on fire"):
        attach_classifier(held, vote_dir)
    assert contents(held) == before
    assert list(held.parent.iterdir()) == [held]


def test_other_preprocessing_is_refused(held: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="preprocesses frames in another way"):
        attach_classifier(held, write_motion_model(tmp_path / "motion"))


def test_other_extractor_is_refused(held: Path, tmp_path: Path) -> None:
    before = contents(held)
    with pytest.raises(ExportError, match=r"has another extractor than .*--also"):
        attach_classifier(held, write_network_model(tmp_path / "network"))
    assert contents(held) == before


def test_extractor_of_other_bytes_is_refused(held: Path, vote_dir: Path) -> None:
    with (held / "extractor.onnx").open("ab") as file:
        file.write(b"\x3a\x00")  # an empty graph, which readers add to the one before it
    with pytest.raises(ExportError, match="has another extractor"):
        attach_classifier(seal(held), vote_dir)


@pytest.mark.parametrize(
    ("name", "message"),
    [("tiny", "two models are called 'tiny'"), ("a/b", "cannot name one"), ("extractor", "cannot be extractor.onnx")],
)
def test_name_that_does_not_fit_is_refused(held: Path, vote_dir: Path, tmp_path: Path, name: str, message: str) -> None:
    other = Path(shutil.copytree(vote_dir, tmp_path / "other"))
    said = json.loads((other / "model.json").read_text(encoding="utf-8"))
    (other / "model.json").write_text(json.dumps(said | {"name": name}), encoding="utf-8")
    with pytest.raises(ExportError, match=message):
        attach_classifier(held, other)


def test_file_that_is_there_is_never_overwritten(held: Path, vote_dir: Path) -> None:
    (held / "vote.onnx").write_bytes(b"another precision, say")
    with pytest.raises(ExportError, match=r"holds a file vote\.onnx"):
        attach_classifier(seal(held), vote_dir)


def test_altered_bundle_is_refused(held: Path, vote_dir: Path) -> None:
    with (held / "classifier.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match="was altered"):
        attach_classifier(held, vote_dir)
    with pytest.raises(BundleError, match="was altered"):
        open_bundle(held)
