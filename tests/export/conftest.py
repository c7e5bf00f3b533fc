from __future__ import annotations

from pathlib import Path

import pytest

from edgeclf.bundle import ModelBundle
from tests.support.keras_models import require, write_retrained_model, write_tiny_model


@pytest.fixture(scope="session")
def converters() -> None:
    """Skips where Keras or the converters are not installed."""
    require("tensorflow", "keras", "onnx", "tf2onnx")


@pytest.fixture(scope="session")
def model_dir(converters: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model directory; tests copy it before they change it."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def retrained_dir(converters: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with another classifier."""
    return write_retrained_model(tmp_path_factory.mktemp("models") / "retrained")


@pytest.fixture(scope="session")
def exported(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """The bundle of the tiny model, which passed the gate."""
    from edgeclf.export.bundling import export_bundle

    return export_bundle(model_dir, tmp_path_factory.mktemp("bundles") / "tiny.edgeclf")


@pytest.fixture(scope="session")
def retrained(retrained_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """The bundle of the retrained model, which passed the gate."""
    from edgeclf.export.bundling import export_bundle

    return export_bundle(retrained_dir, tmp_path_factory.mktemp("bundles") / "retrained.edgeclf")
