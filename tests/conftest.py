from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.colors import write_bundle

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job that a script left in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_thread_or_error_is_left_behind(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    names = [thread.name for thread in set(threading.enumerate()) - before]
    left = [name for name in names if name.startswith(("decode", "extract", "prefetch", "worker"))]
    assert not left, f"threads left behind: {left}"
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert not errors, f"errors in the log: {errors}"


@pytest.fixture(scope="session")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that tells red, green and blue clips apart."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "colors.edgeclf")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the shared clips."""
    folder = os.environ.get("EDGECLF_TEST_DATA", "")
    if not Path(folder, "ucf101_avi").is_dir():
        pytest.skip("the shared clips are missing: EDGECLF_TEST_DATA does not name their folder")
    return Path(folder)
