"""Labelled clips, an extractor in NumPy, and the command line in this process."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclf.cli import main
from edgeclf.runtime.session import Arrays, Placement
from edgeclf.specs import TensorSpec
from tests.support.videos import BLUE, GREEN, RED, plain, write_video

COLORS = {"red": RED, "green": GREEN, "blue": BLUE}
COLUMNS = ("path", "label", "group", "split")


def require_keras() -> None:
    """Skip the test that asks where Keras cannot run."""
    for package, name in (("tensorflow", "TensorFlow"), ("keras", "Keras")):
        pytest.importorskip(package, reason=f"{name} is not installed: pip install 'edgeclf[dev]'")


def write_csv(path: Path, rows: Sequence[Sequence[str]], columns: Sequence[str] = COLUMNS) -> Path:
    """A CSV with its header; `path` is returned."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def write_color_clips(folder: Path, groups: int, *, seconds: float = 1.0) -> list[Path]:
    """`red/v_red_g01_c01.avi` and so on: one clip for each colour and group, named as in UCF101."""
    paths = []
    for color, rgb in COLORS.items():
        (folder / color).mkdir(parents=True, exist_ok=True)
        for group in range(1, groups + 1):
            shade = (min(255, rgb[0] + group), rgb[1], rgb[2])  # no two files are alike
            path = folder / color / f"v_{color}_g{group:02}_c01.avi"
            paths.append(write_video(path, plain(shade, seconds, fps=10), fps=10))
    return paths


class ColorExtractor:
    """A session that takes the mean colour of a frame, 0 to 1, and counts what it is asked."""

    def __init__(self, size: tuple[int, int] = (16, 16)) -> None:
        self.inputs = (TensorSpec("frames", "uint8", (None, *size, 3)),)
        self.outputs = (TensorSpec("features", "float32", (None, 3)),)
        self.placement = Placement("numpy", "mean", "cpu", "fp32", 1)
        self.batches: list[int] = []

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        frames = feeds["frames"]
        self.batches.append(len(frames))
        return {"features": (frames.mean((1, 2)) / 255).astype(np.float32)}

    def close(self) -> None:
        pass


class KeptClips:
    """A classifier session that keeps every clip it is given and finds all labels equally likely."""

    def __init__(self, length: int, features: int, labels: int) -> None:
        self.inputs = (
            TensorSpec("features", "float32", (None, length, features)),
            TensorSpec("length", "int32", (None,)),
        )
        self.outputs = (TensorSpec("scores", "float32", (None, labels)),)
        self.placement = Placement("numpy", "even", "cpu", "fp32", 1)
        self.clips: list[tuple[NDArray[np.float32], int]] = []

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        for features, length in zip(feeds["features"], feeds["length"], strict=True):
            self.clips.append((features, int(length)))
        count, labels = len(feeds["length"]), self.outputs[0].shape[1] or 1
        return {"scores": np.full((count, labels), 1 / labels, np.float32)}

    def close(self) -> None:
        pass


def edgeclf(*arguments: str | Path) -> CompletedProcess[str]:
    """`edgeclf ARGUMENTS`, run in this process: what importing TensorFlow costs is paid once."""
    stdout, stderr = io.StringIO(), io.StringIO()
    command = ["edgeclf", *map(str, arguments)]
    with (
        patch.object(sys, "argv", command),
        patch.dict("os.environ"),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
        pytest.raises(SystemExit) as exited,
    ):
        main()
    code = exited.value.code
    return CompletedProcess(
        command, code if isinstance(code, int) else int(code is not None), stdout.getvalue(), stderr.getvalue()
    )
