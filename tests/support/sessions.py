"""Sessions in NumPy that take clips of any kind, and a model made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.runtime.model import FramesAsFeatures, Model
from edgeclf.runtime.session import Arrays, Placement, Session
from edgeclf.specs import ClipSpec, PreprocessSpec, TensorSpec


class MeanExtractor:
    """A session that takes the mean of each picture of an input, (N, 3) or (N, 3 K), and counts the frames."""

    def __init__(self, preprocess: PreprocessSpec) -> None:
        self.inputs = (TensorSpec("frames", "uint8", (None, *preprocess.input_shape)),)
        self.outputs = (TensorSpec("features", "float32", (None, 3 * preprocess.stack)),)
        self.placement = Placement("numpy", "mean", "cpu", "fp32", 1)
        self.batches: list[int] = []

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        frames = feeds["frames"]
        assert frames.shape[1:] == self.inputs[0].shape[1:]
        self.batches.append(len(frames))
        means = frames.mean((-3, -2)) / 255
        return {"features": means.reshape(len(frames), -1).astype(np.float32)}

    def close(self) -> None:
        pass


class KeptFeeds:
    """A classifier's session that keeps every clip with its length, and scores it by its mean."""

    def __init__(self, clip: ClipSpec, extractor: Session, labels: int) -> None:
        feature = extractor.outputs[0]
        features = TensorSpec(feature.name, feature.dtype, (None, clip.length, *feature.shape[1:]))
        masked = (TensorSpec("length", "int32", (None,)),) if clip.padding == "mask" else ()
        self.inputs = (features, *masked)
        self.outputs = (TensorSpec("scores", "float32", (None, labels)),)
        self.placement = Placement("numpy", "kept", "cpu", "fp32", 1)
        self.clips: list[tuple[NDArray[Any], int | None]] = []

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        assert list(feeds) == [spec.name for spec in self.inputs]
        features = feeds[self.inputs[0].name]
        assert features.shape[1:] == self.inputs[0].shape[1:]
        lengths = feeds["length"].tolist() if "length" in feeds else [None] * len(features)
        self.clips += zip(features, lengths, strict=True)
        means = features.reshape(len(features), -1).mean(axis=1)
        steps = np.arange(1, (self.outputs[0].shape[1] or 1) + 1)
        scores = np.abs(np.sin(means[:, None] * steps * 7)) + 0.01
        return {"scores": (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)}

    def close(self) -> None:
        pass


def keeping_model(
    preprocess: PreprocessSpec,
    clip: ClipSpec,
    labels: Sequence[str] = ("red", "green", "blue"),
    *,
    takes_frames: bool = False,
    thresholds: tuple[float, ...] = (),
) -> tuple[Model, KeptFeeds]:
    """A model that gives chance labels, and its classifier's session, which keeps what it is fed."""
    extractor = FramesAsFeatures(preprocess) if takes_frames else MeanExtractor(preprocess)
    kept = KeptFeeds(clip, extractor, len(labels))
    return Model("kept", tuple(labels), preprocess, clip, "mean", extractor, kept, thresholds), kept
