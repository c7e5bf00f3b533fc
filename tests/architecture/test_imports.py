from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FRAMEWORKS = {"tensorflow", "keras", "torch", "onnx", "tf2onnx", "sklearn", "matplotlib"}
HEAVY = FRAMEWORKS | {"numpy", "cv2", "av", "onnxruntime", "rich"}


def modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


def test_importing_edgeclf_loads_nothing() -> None:
    assert modules_after("import edgeclf") & HEAVY == set()


def test_help_loads_nothing() -> None:
    code = "import sys; from click.testing import CliRunner; from edgeclf.cli import cli; "
    assert modules_after(code + "assert CliRunner().invoke(cli, ['--help']).exit_code == 0") & HEAVY == set()


def test_runtime_loads_no_training_framework() -> None:
    code = """
import pkgutil, importlib, edgeclf.runtime
for module in pkgutil.walk_packages(edgeclf.runtime.__path__, "edgeclf.runtime."):
    importlib.import_module(module.name)
"""
    assert modules_after(code) & FRAMEWORKS == set()


def test_classifying_a_file_loads_no_training_framework(colors: Path, tmp_path: Path) -> None:
    from tests.support.videos import RED, plain, write_video

    video = write_video(tmp_path / "a.mp4", plain(RED, 1))
    code = f"import edgeclf\nwith edgeclf.open({str(colors)!r}) as c: assert c.classify({str(video)!r}).label == 'red'"
    assert modules_after(code) & FRAMEWORKS == set()


def test_public_names_are_those_of_all() -> None:
    import edgeclf

    for name in edgeclf.__all__:
        assert getattr(edgeclf, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = edgeclf.nothing


def test_every_command_has_help_with_an_example() -> None:
    from click.testing import CliRunner

    from edgeclf.cli import cli

    for name in cli.commands if cli.commands else cli.list_commands(None):  # type: ignore[arg-type]
        shown = CliRunner().invoke(cli, [name, "--help"])
        assert shown.exit_code == 0
        assert "Examples:" in shown.output
