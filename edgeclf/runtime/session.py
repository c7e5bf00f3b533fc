"""A session runs one graph somewhere; this module says what that means and opens one by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from edgeclf.errors import SessionError
from edgeclf.registry import Registry
from edgeclf.specs import Device, TensorSpec

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Placement:
    """What really runs a graph, not what was asked for."""

    backend: str
    provider: str
    device: str
    precision: str
    threads: int  # inside one run; 0 where the library decides

    def __str__(self) -> str:
        threads = f"{self.threads or 'default'} thread{'' if self.threads == 1 else 's'}"
        return f"{self.backend} {self.provider} {self.precision}, {threads}"


class Session(Protocol):
    """One graph, ready to run."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Names, dtypes and shapes that `run` expects."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Names, dtypes and shapes that `run` returns."""

    @property
    def placement(self) -> Placement:
        """Backend, provider, precision and threads that are in use."""

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """All outputs by name. May be called from several threads at once."""

    def close(self) -> None:
        """Give up the graph's memory. Safe to call twice."""


Opener = Callable[..., Session]

BACKENDS: Registry[Opener] = Registry(
    "backend",
    {
        "onnxruntime": "edgeclf.runtime.sessions.onnxruntime:open_onnxruntime",
        "openvino": "edgeclf.runtime.sessions.openvino:open_openvino",
        "tensorrt": "edgeclf.runtime.sessions.tensorrt:open_tensorrt",
    },
    error=SessionError,
    group="edgeclf.sessions",
)


MAX_BATCH = 32  # what the loop gives a GPU at once
CPU_PRECISIONS = frozenset({"u8s8"})  # graphs in a form that TensorRT refuses


def open_session(
    graph: Path,
    device: Device = "auto",
    *,
    precision: str = "fp32",
    backend: str | None = None,
    threads: int = 1,
    max_batch: int = MAX_BATCH,
) -> Session:
    """A session for the ONNX file `graph`.

    device: "auto" takes CUDA where it works and the CPU elsewhere, with a warning where CUDA should work but does not;
    a device that is named and does not work raises SessionError with the reason. backend: "onnxruntime", "openvino" or
    "tensorrt"; without a name it is "tensorrt" for the device of that name and "onnxruntime" for all others. precision:
    what the file holds, for the record. threads: inside one run; 0 leaves the library as it comes. max_batch: the
    largest batch that `run` will be given; backends without fixed shapes take larger ones too.
    """
    name = backend or ("tensorrt" if device == "tensorrt" else "onnxruntime")
    return BACKENDS.load(name)(graph, device=device, precision=precision, threads=threads, max_batch=max_batch)
