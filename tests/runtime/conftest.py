from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgeclf.bundle import ModelBundle, open_bundle
from edgeclf.runtime import tune, tuned
from tests.golden.bundles.make_examples import example_of


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of a test: what it keeps is found by no other, and by no user."""
    monkeypatch.setenv("EDGECLF_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same machine for all tests, whatever they run on."""
    for module in (tune, tuned):
        monkeypatch.setattr(module, "cuda_driver_problem", lambda: "no NVIDIA driver is installed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a bundle with golden inputs that a test may change."""
    return Path(shutil.copytree(example_of(1), tmp_path / "colors.edgeclf"))


@pytest.fixture
def bundle(folder: Path) -> ModelBundle:
    """The bundle in that folder."""
    return open_bundle(folder)
