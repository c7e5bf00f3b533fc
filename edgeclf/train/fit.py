"""Fitting a sequence model on clips of features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.model_directory import import_keras
from edgeclf.runtime.model import Floats
from edgeclf.specs import ClipSpec
from edgeclf.train.features import VideoFeatures


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How a sequence model is fitted."""

    epochs: int = 60
    batch: int = 64
    learning_rate: float = 1e-3
    patience: int = 15  # epochs without a lower validation loss, then it ends
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Fitted:
    """How it went: the epoch whose weights were kept, and what the validation clips said of it."""

    epochs: int
    best_epoch: int
    validation_loss: float
    validation_accuracy: float  # over clips of features, not over videos


@dataclass(frozen=True, slots=True)
class Examples:
    """Clips of features with their labels; the clips of one video weigh as much as one clip."""

    features: Floats  # (N, T, F)
    lengths: NDArray[np.int32]  # (N,)
    labels: NDArray[np.int32]  # (N,)
    weights: Floats  # (N,)

    def inputs(self) -> dict[str, NDArray[Any]]:
        """What a Keras classifier takes."""
        return {"features": self.features, "mask": np.arange(self.features.shape[1]) < self.lengths[:, None]}


def examples_of(videos: Sequence[VideoFeatures], labels: Sequence[int], clip: ClipSpec) -> Examples:
    """All clips of all videos; a video without any clip has none."""
    clips = [
        (part, label, 1 / len(parts))
        for video, label in zip(videos, labels, strict=True)
        for parts in [video.clips(clip)]
        for part in parts
    ]
    return Examples(
        np.stack([part.features for part, _, _ in clips]),
        np.array([part.length for part, _, _ in clips], np.int32),
        np.array([label for _, label, _ in clips], np.int32),
        np.array([weight for _, _, weight in clips], np.float32),
    )


def fit_classifier(
    classifier: Any,
    train: Examples,
    validation: Examples,
    settings: FitSettings,
    *,
    progress: Callable[[int, dict[str, float]], None],
) -> Fitted:
    """Fit a Keras classifier; it ends with the weights of the lowest validation loss.

    progress: called after each epoch with its number and Keras' figures.
    """
    keras = import_keras()
    classifier.compile(
        keras.optimizers.Adam(settings.learning_rate),
        loss="sparse_categorical_crossentropy",
        weighted_metrics=["accuracy"],
    )
    history = classifier.fit(
        train.inputs(),
        train.labels,
        sample_weight=train.weights / train.weights.mean(),
        validation_data=(validation.inputs(), validation.labels, validation.weights / validation.weights.mean()),
        epochs=settings.epochs,
        batch_size=settings.batch,
        callbacks=[
            keras.callbacks.EarlyStopping("val_loss", patience=settings.patience, restore_best_weights=True),
            keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: progress(epoch + 1, logs)),
        ],
        verbose=0,
    ).history
    best = int(np.argmin(history["val_loss"]))
    return Fitted(
        len(history["val_loss"]), best + 1, float(history["val_loss"][best]), float(history["val_accuracy"][best])
    )
