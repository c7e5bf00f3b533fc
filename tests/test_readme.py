"""What README shows works as it stands there. Its first two commands are run by CI, in a fresh clone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from edgeclf.theatre import TheatreSource, single_action
from tests.support.videos import write_video

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


SHELL, PYTHON = blocks("sh"), blocks("python")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that README's examples name."""
    folder = tmp_path_factory.mktemp("readme")
    for action in ("wave", "walk"):
        (folder / "clips" / action).mkdir(parents=True)
        for n in range(5):
            scene = single_action("wave_fast" if action == "wave" else action, n)
            images = [frame.image for frame in TheatreSource(scene, name=action).frames()]
            write_video(folder / "clips" / action / f"{n}.mp4", images, fps=scene.fps)
    (folder / "clip.mp4").write_bytes((folder / "clips" / "walk" / "0.mp4").read_bytes())
    return folder


def run(command: list[str], folder: Path) -> None:
    scripts = Path(sys.executable).parent
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={
            **os.environ,
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
    )
    assert done.returncode == 0, done.stderr


def test_readme_opens_with_the_two_commands() -> None:
    assert len(blocks("bash")) == 2
    assert "edgeclf infer" in blocks("bash")[0]
    assert "pytest" in blocks("bash")[1]


@pytest.mark.parametrize("block", SHELL, ids=range(len(SHELL)))
def test_shell_examples_work(block: str, folder: Path) -> None:
    if "edgeclf train" in block and not (find_spec("tensorflow") and find_spec("tf2onnx")):
        pytest.skip("TensorFlow is not installed")
    run(["bash", "-euo", "pipefail", "-c", block], folder)


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_python_examples_work(block: str, folder: Path) -> None:
    run([sys.executable, "-c", block], folder)


def test_links_lead_somewhere() -> None:
    root = Path(__file__).parents[1]
    for page in [root / "README.md", *root.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"
