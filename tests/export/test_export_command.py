"""`edgeclf export` as a process of its own, with another hash seed than ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeclf.bundle import ModelBundle, open_bundle
from edgeclf.export.bundling import CLASSIFIER_GRAPH, EXTRACTOR_GRAPH
from edgeclf.model_directory import read_parity

pytestmark = [pytest.mark.keras, pytest.mark.usefixtures("converters")]

Completed = subprocess.CompletedProcess[str]


def edgeclf_export(model: Path, output: Path, *, hash_seed: int = 1) -> Completed:
    command = [sys.executable, "-m", "edgeclf", "export", str(model), "-o", str(output)]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


@pytest.fixture(scope="module")
def done(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Completed, Path]:
    """The finished command, and the bundle that it was told to write."""
    target = tmp_path_factory.mktemp("command") / "tiny.edgeclf"
    return edgeclf_export(model_dir, target), target


def test_export_prints_the_bundle_and_reports_on_stderr(done: tuple[Completed, Path]) -> None:
    completed, target = done
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.startswith(f"{target}: 4 labels, ")
    assert "frames to scores" in completed.stderr
    assert open_bundle(target).manifest.name == "tiny"


def test_another_process_writes_the_same_graphs(
    done: tuple[Completed, Path], exported: ModelBundle, model_dir: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.edgeclf"
    assert edgeclf_export(model_dir, again, hash_seed=2).returncode == 0
    for name in (EXTRACTOR_GRAPH, CLASSIFIER_GRAPH):
        written = (done[1] / name).read_bytes()
        assert written == (again / name).read_bytes()
        assert written == (exported.path / name).read_bytes()


def test_other_scores_than_those_recorded_are_exit_1(model_dir: Path, tmp_path: Path) -> None:
    path = shutil.copytree(model_dir, tmp_path / "tampered")
    parity = read_parity(path)
    arrays = {name: getattr(parity, name) for name in ("frames", "lengths", "features")}
    np.savez(path / "parity.npz", **arrays, scores=parity.scores + np.float32(0.001))
    completed = edgeclf_export(path, tmp_path / "a.edgeclf")
    assert completed.returncode == 1
    assert completed.stdout == ""
    assert "ParityError: the bundle does not agree with Keras:\n  frames to scores" in completed.stderr
    assert list(tmp_path.iterdir()) == [path]


def test_missing_model_directory_is_exit_2(tmp_path: Path) -> None:
    completed = edgeclf_export(tmp_path / "none", tmp_path / "a.edgeclf")
    assert completed.returncode == 2
    assert "none" in completed.stderr
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_no_model_directory_is_exit_2(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    completed = edgeclf_export(tmp_path / "empty", tmp_path / "a.edgeclf")
    assert completed.returncode == 2
    assert "BundleError" in completed.stderr
