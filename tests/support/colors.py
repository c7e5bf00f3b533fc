"""A bundle that tells red, green and blue clips apart, made of a dozen ONNX nodes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgeclf.bundle import ClassifierEntry, ExtractorEntry, Manifest, sha256_of, write_manifest
from edgeclf.specs import ClipSpec, PreprocessSpec, TensorSpec
from tests.support.onnx_writer import Node, Tensor, onnx_bytes

LABELS = ("red", "green", "blue")
SIZE = (16, 16)
CLIP = ClipSpec.by_rate(length=8, rate=5.0)


def extractor_onnx() -> bytes:
    """The mean colour of a frame, 0 to 1."""
    return onnx_bytes(
        [
            Node("Cast", ["frames"], ["pixels"], {"to": 1}),
            Node("ReduceMean", ["pixels"], ["means"], {"axes": [1, 2], "keepdims": 0}),
            Node("Div", ["means", "full"], ["features"]),
        ],
        [Tensor("frames", "uint8", ("batch", *SIZE, 3))],
        [Tensor("features", "float32", ("batch", 3))],
        {"full": np.array(255, np.float32)},
    )


def classifier_onnx(clip: ClipSpec = CLIP) -> bytes:
    """Softmax of ten times the mean over the valid frames of a clip."""
    return onnx_bytes(
        [
            Node("ReduceSum", ["features", "time"], ["sum"], {"keepdims": 0}),
            Node("Cast", ["length"], ["count"], {"to": 1}),
            Node("Unsqueeze", ["count", "time"], ["column"]),
            Node("Div", ["sum", "column"], ["mean"]),
            Node("Mul", ["mean", "gain"], ["logits"]),
            Node("Softmax", ["logits"], ["scores"], {"axis": 1}),
        ],
        [Tensor("features", "float32", ("batch", clip.length, 3)), Tensor("length", "int32", ("batch",))],
        [Tensor("scores", "float32", ("batch", 3))],
        {"time": np.array([1], np.int64), "gain": np.array(10, np.float32)},
    )


def write_bundle(path: Path, clip: ClipSpec = CLIP, *, thresholds: Mapping[str, float] | None = None) -> Path:
    """The bundle in the new folder `path`."""
    path.mkdir(parents=True)
    (path / "extractor.onnx").write_bytes(extractor_onnx())
    (path / "classifier.onnx").write_bytes(classifier_onnx(clip))
    write_manifest(path, manifest_of(path, clip, thresholds=thresholds))
    return path


def manifest_of(path: Path, clip: ClipSpec = CLIP, *, thresholds: Mapping[str, float] | None = None) -> Manifest:
    return Manifest(
        name="colors",
        extractor=ExtractorEntry(
            preprocess=PreprocessSpec(SIZE),
            precisions={"fp32": "extractor.onnx"},
            inputs=(TensorSpec("frames", "uint8", (None, *SIZE, 3)),),
            outputs=(TensorSpec("features", "float32", (None, 3)),),
        ),
        classifiers=(
            ClassifierEntry(
                name="colors",
                labels=LABELS,
                clip=clip,
                aggregate="mean",
                precisions={"fp32": "classifier.onnx"},
                inputs=(
                    TensorSpec("features", "float32", (None, clip.length, 3)),
                    TensorSpec("length", "int32", (None,)),
                ),
                outputs=(TensorSpec("scores", "float32", (None, 3)),),
                evaluation={},
                thresholds=thresholds or {},
            ),
        ),
        files={name: sha256_of(path / name) for name in ("extractor.onnx", "classifier.onnx")},
        parity={},
        provenance={},
    )
