"""Extractors by the names of the recipes, with random weights, as graphs of every precision: for speed alone.

What a network costs does not depend on its weights. Answers and accuracy do, and are not to be read from these graphs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeclf.export.extractor import onnx_from_keras_extractor
from edgeclf.export.half import half_from_onnx
from edgeclf.export.quantize import QuantisationForm, int8_from_onnx
from edgeclf.runtime.golden import noise
from edgeclf.specs import PreprocessSpec, TensorSpec
from edgeclf.train.extractors import EXTRACTORS

_CALIBRATION_FRAMES = 16


@dataclass(frozen=True, slots=True)
class Network:
    """One extractor: the Keras model, and its graphs with what each took to make."""

    name: str
    model: Any
    preprocess: PreprocessSpec
    graphs: dict[str, Path]
    seconds: dict[str, float]

    @property
    def frames(self) -> TensorSpec:
        """What it takes: frames uint8 (N, H, W, 3)."""
        return TensorSpec("frames", "uint8", (None, *self.preprocess.input_shape))

    def to_dict(self) -> dict[str, Any]:
        """Sizes and times of the graphs, JSON-ready."""
        return {
            precision: {"megabytes": round(path.stat().st_size / 1e6, 1), "seconds": round(self.seconds[precision], 1)}
            for precision, path in self.graphs.items()
        }


def network_graphs(name: str, folder: Path) -> Network:
    """The extractor `name` with random weights, converted into the folder in fp32, fp16, int8 and u8s8.

    Batch normalisation keeps the statistics that Keras starts with: a mean of 0 and a variance of 1.
    """
    extractor = EXTRACTORS.load(name)
    model = extractor.build(None)
    frames = noise(TensorSpec("frames", "uint8", (None, *extractor.preprocess.input_shape)), _CALIBRATION_FRAMES)
    start = time.perf_counter()
    onnx_model = onnx_from_keras_extractor(model)
    network = Network(name, model, extractor.preprocess, {}, {"fp32": time.perf_counter() - start})
    makers: dict[str, Callable[[], Any]] = {
        "fp32": lambda: onnx_model,
        "fp16": lambda: half_from_onnx(onnx_model),
        "int8": lambda: int8_from_onnx(onnx_model, frames, QuantisationForm(symmetric=True)),
        "u8s8": lambda: int8_from_onnx(onnx_model, frames, QuantisationForm(symmetric=False)),
    }
    for precision, make in makers.items():
        start = time.perf_counter()
        network.graphs[precision] = folder / f"{name}.{precision}.onnx"
        network.graphs[precision].write_bytes(make().SerializeToString())
        network.seconds.setdefault(precision, time.perf_counter() - start)
    return network
