from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeclf.dataset import Dataset
from tests.support.labelled import require_keras
from tests.support.training import color_dataset, fit_without_graphs, use_tiny_networks


@pytest.fixture(scope="module")
def tiny_networks() -> Iterator[None]:
    """Recipes with stand-ins for their extractors, fitted without graphs."""
    require_keras()
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_networks(patch)
        fit_without_graphs(patch)
        yield


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Clips of three colours."""
    return color_dataset(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where features of all tests are kept."""
    return tmp_path_factory.mktemp("cache")
