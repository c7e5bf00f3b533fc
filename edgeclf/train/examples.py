"""Clips of features, or of frames, as the batches that a Keras model is fitted on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.errors import DataError
from edgeclf.runtime.model import Floats
from edgeclf.specs import ClipSpec
from edgeclf.train.augment import Augmentation, drawn_change
from edgeclf.train.features import VideoFeatures
from edgeclf.train.fit import Batch, FitSettings

Feeds = Callable[[NDArray[Any], NDArray[np.int32]], Any]  # features (N, T, ...) and lengths (N,) to a model's inputs


def feeds_of(model: Any) -> Feeds:
    """What a Keras model takes, made of features (N, T, ...) and lengths (N,).

    With an input `mask` that is a dictionary; without, the features alone, and their only row where it takes no time.
    """
    names = [tensor.name for tensor in model.inputs]
    rank = len(model.inputs[0].shape)
    if "mask" not in names:
        return lambda features, _lengths: features if features.ndim == rank else features[:, 0]
    taken = next(name for name in names if name != "mask")
    return lambda features, lengths: {taken: features, "mask": np.arange(features.shape[1]) < lengths[:, None]}


@dataclass(frozen=True, slots=True)
class Window:
    """One clip of a video: the rows that it is made of, with those of the padding behind the first `length`."""

    video: int
    rows: NDArray[np.int64]  # (T,)
    length: int
    weight: float  # all clips of one video together weigh 1


@dataclass(frozen=True, slots=True)
class ClipExamples:
    """Batches of the clips of labelled videos.

    views: the features of all videos, once for each view; an epoch takes one of them for each clip, by chance.
    Frames are changed as `augmentation` says when they are taken. `augmentation` also moves the starts of clips;
    `mixup` blends each clip with another one (Zhang et al. 2018, arXiv 1710.09412; 0: not at all). Without training
    the first view is taken in order, unchanged.
    """

    views: Sequence[Sequence[VideoFeatures]]
    labels: NDArray[np.int32]  # (videos,) index of the class
    classes: int
    clip: ClipSpec
    feeds: Feeds
    settings: FitSettings
    training: bool = False
    augmentation: Augmentation = field(default_factory=Augmentation)
    windows: tuple[Window, ...] = field(init=False)

    def __post_init__(self) -> None:
        windows = tuple(
            Window(index, clip.features[:, 0], clip.length, 1 / len(clips))
            for index, video in enumerate(self.views[0])
            for clips in [video.windows(self.clip)]
            for clip in clips
        )
        if not windows:
            raise DataError("no clip can be read", hint="check the paths of the data set")
        object.__setattr__(self, "windows", windows)

    @property
    def steps(self) -> int:
        """Batches in one epoch."""
        return -(-len(self.windows) // self.settings.batch)

    @property
    def identity(self) -> str:
        """A hash of the labels, and of the rows of every clip."""
        digest = hashlib.sha256(np.asarray(self.labels, np.int32).tobytes())
        for window in self.windows:
            digest.update(np.array([window.video, window.length, *window.rows], np.int64).tobytes())
        return digest.hexdigest()

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of an epoch."""
        rng = np.random.default_rng([self.settings.seed, number])
        order = rng.permutation(len(self.windows)) if self.training else np.arange(len(self.windows))
        weights = self._weights()
        for start in range(0, len(order), self.settings.batch):
            chosen = order[start : start + self.settings.batch]
            yield self._batch([self.windows[n] for n in chosen], weights[chosen], rng)

    def _weights(self) -> Floats:
        weights = np.array([window.weight for window in self.windows], np.float32)
        if self.settings.class_weights:
            labels = np.array([self.labels[window.video] for window in self.windows])
            weights = weights / np.bincount(labels, weights, self.classes)[labels].astype(np.float32)
        scaled: Floats = (weights / weights.mean()).astype(np.float32)
        return scaled

    def _batch(self, windows: Sequence[Window], weights: Floats, rng: np.random.Generator) -> Batch:
        taken = [self._features(window, rng) for window in windows]
        features = np.stack([features for features, _ in taken])
        lengths = np.array([length for _, length in taken], np.int32)
        truth = np.eye(self.classes, dtype=np.float32)[[self.labels[window.video] for window in windows]]
        if features.dtype == np.float16:
            features = features.astype(np.float32)
        if self.training and self.settings.mixup:
            features, lengths, truth, weights = _mixed(features, lengths, truth, weights, self.settings.mixup, rng)
        return Batch(self.feeds(features, lengths), truth, weights)

    def _features(self, window: Window, rng: np.random.Generator) -> tuple[NDArray[Any], int]:
        """The features (T, ...) of a clip as it is taken this time, and its length."""
        if not self.training:
            return _rows(self.views[0][window.video].rows, window.rows, window.length, self.clip), window.length
        video = self.views[int(rng.integers(len(self.views)))][window.video]
        rows, length = (
            self._shifted(window, video, rng) if self.augmentation.temporal_shift else (window.rows, window.length)
        )
        features = _rows(video.rows, rows, length, self.clip)
        if features.dtype == np.uint8:
            features = drawn_change(self.augmentation, rng)(features)
        return features, length

    def _shifted(self, window: Window, video: VideoFeatures, rng: np.random.Generator) -> tuple[NDArray[np.int64], int]:
        """The rows of a clip that starts anywhere in the video; a video with a gap, or of one clip, is left alone."""
        slots = np.repeat(np.arange(len(video.slots)), video.slots)
        spare = len(slots) - self.clip.length
        if video.restarts.any() or spare <= 0:
            return window.rows, window.length
        start = int(rng.integers(spare + 1))
        return slots[start : start + self.clip.length], self.clip.length


def _rows(rows: NDArray[Any], chosen: NDArray[np.int64], length: int, clip: ClipSpec) -> NDArray[Any]:
    """The chosen rows; where padding is masked, zeros from `length` on."""
    features = rows[chosen]
    if clip.padding == "mask":
        features[length:] = 0
    return features


def _mixed(
    features: NDArray[Any],
    lengths: NDArray[np.int32],
    truth: Floats,
    weights: Floats,
    strength: float,
    rng: np.random.Generator,
) -> tuple[NDArray[Any], NDArray[np.int32], Floats, Floats]:
    """Each clip blended with another of the batch, as long as the longer of the two."""
    other = rng.permutation(len(features))
    share = rng.beta(strength, strength, len(features)).astype(np.float32)

    def blend(values: NDArray[Any]) -> Floats:
        own = share.reshape(-1, *[1] * (values.ndim - 1))
        blended: Floats = (own * values + (1 - own) * values[other]).astype(np.float32)
        return blended

    return blend(features), np.maximum(lengths, lengths[other]), blend(truth), blend(weights)
