"""Builds engines with NVIDIA's own parser and builder on a CPU.

TensorRT-RTX is a sibling of TensorRT: the same parser of ONNX and nearly the interface of TensorRT 11, and it builds
without a GPU or a driver. So a graph that it refuses, or a call of ours that it does not know, is found here. It does
not run engines, and says nothing of speed or of answers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeclf.runtime.tensorrt_engine import BuildSettings, BuiltEngine, engine_from_onnx


def builder() -> Any:
    """The bindings of TensorRT-RTX; skips the test that asks where they are missing."""
    return pytest.importorskip(
        "tensorrt_rtx_bindings",
        reason="TensorRT-RTX is not installed (tensorrt-rtx-cu12-bindings and -libs, x86-64 Linux, extra dev)",
        exc_type=ImportError,
    )


def build(
    graph: Path, precision: str = "fp32", *, say: Callable[[str], None] = lambda _: None, **settings: Any
) -> BuiltEngine:
    """The engine of an ONNX file, by the code that builds on a device; `settings` are those of BuildSettings."""
    return engine_from_onnx(builder(), graph, BuildSettings(precision, **settings), say=say)
