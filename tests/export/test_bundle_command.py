"""`edgeclf bundle` as it is typed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgeclf.cli import cli
from edgeclf.export.bundle_command import bundle as bundle_command
from edgeclf.runtime.verify_command import verify
from tests.architecture.test_imports import FRAMEWORKS, HEAVY, modules_after
from tests.golden.bundles.make_examples import example_of, seal


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["bundle", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(example_of(1), tmp_path / "colors.edgeclf"))


# -- show -------------------------------------------------------------------------------------------------------------


def test_show_says_what_is_in_a_bundle(copy: Path) -> None:
    shown = run("show", copy).stdout
    facts = [
        "extractor.onnx, 0.2 kB",
        "classifier colors",
        "3: red, green, blue",
        "8 frames at 5 a second, a new one every 0.4 s",
        "1.0 on 3 clips (test)",
        "below blue 0.5",
        "1 of 1 checks passed",
        "by hand",
        "golden.npz",
    ]
    for fact in facts:
        assert fact in shown


def test_show_lists_every_classifier_and_how_pictures_are_stacked() -> None:
    shown = run("show", "ucf101_8").stdout
    assert "classifier ucf101_8" in shown
    assert "classifier fight" in shown
    assert "2 pictures 0.12 s apart" in shown
    assert "fight.onnx" in shown


def test_json_is_the_manifest_with_path_and_sizes(copy: Path) -> None:
    record = json.loads(run("show", copy, "--format", "json").stdout)
    assert record.pop("path") == str(copy)
    sizes = record.pop("bytes")
    assert sizes == {name: (copy / name).stat().st_size for name in record["files"]}
    assert record == json.loads((copy / "manifest.json").read_text(encoding="utf-8"))


def test_words_of_a_bundle_do_not_steer_the_terminal(copy: Path) -> None:
    def hostile(manifest: dict[str, Any]) -> None:
        manifest.update(name="\x1b[2Jcolors", provenance={"summary": "\x1b]0;title\x07", "also": 5})
        manifest["parity"] = {"fp32": ["nothing", {}], "int8": {"accuracy": 0.9}}

    shown = run("show", seal(copy, hostile)).stdout
    assert all(line.isprintable() for line in shown.splitlines())
    assert "0 of 2 checks passed" in shown
    assert '{"accuracy": 0.9}' in shown


def test_show_of_what_cannot_be_opened_is_exit_2(copy: Path) -> None:
    (copy / "extractor.onnx").unlink()
    command = [sys.executable, "-m", "edgeclf", "bundle", "show", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=dict(os.environ))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("BundleError: ")
    assert "extractor.onnx is missing" in done.stderr


# -- verify -----------------------------------------------------------------------------------------------------------


def test_verify_is_one_command_under_two_names(copy: Path) -> None:
    assert bundle_command.commands["verify"] is verify
    under_bundle = run("verify", copy, "--device", "cpu")
    alone = CliRunner().invoke(cli, ["verify", str(copy), "--device", "cpu"])
    assert under_bundle.exit_code == alone.exit_code == 0
    assert under_bundle.stdout == alone.stdout


# -- triton -----------------------------------------------------------------------------------------------------------


def test_triton_prints_the_folders_it_wrote(copy: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx is missing: pip install 'edgeclf[export]'")
    folder = tmp_path / "repository"
    result = run("triton", copy, folder, "--max-batch", 4, "--kind", "gpu", "--tensorrt", "FP16")
    assert result.exit_code == 0
    names = ["colors_extractor", "colors_clip", "colors_classifier"]
    assert result.stdout.splitlines() == [str(folder / name) for name in names]
    config = (folder / "colors_clip" / "config.pbtxt").read_text(encoding="utf-8")
    assert "max_batch_size: 4" in config
    assert "KIND_GPU" in config
    assert '"FP16"' in config


# -- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(bundle_command.commands))
def test_every_command_has_help_with_an_example(name: str) -> None:
    shown = run(name, "--help")
    assert shown.exit_code == 0
    assert "Examples:" in shown.stdout


def test_help_and_show_load_no_framework(copy: Path) -> None:
    start = "from click.testing import CliRunner; from edgeclf.cli import cli; "
    assert modules_after(start + "CliRunner().invoke(cli, ['bundle', 'triton', '--help'])") & HEAVY == set()
    code = start + f"assert CliRunner().invoke(cli, ['bundle', 'show', {str(copy)!r}]).exit_code == 0"
    assert modules_after(code) & FRAMEWORKS == set()
