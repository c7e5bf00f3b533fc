"""`edgeclf train theatre`: a small CNN-GRU trained from scratch on rendered clips.

The extractor learns the pose of the figure from single frames, for which the renderer knows the truth; the
classifier then learns actions from sequences of its features. No frame of a clip tells sitting down from
standing up or a slow wave from a fast one, so what this model gets right it gets from motion; `measure` has
the controls that show it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeclf.model_directory import (
    ModelDescription,
    classifier_session,
    extractor_session,
    import_keras,
    write_model,
)
from edgeclf.runtime.model import Floats
from edgeclf.runtime.prefetch import parallel_map, prefetch
from edgeclf.runtime.stages import SampledFrame, SourceId, decode
from edgeclf.specs import ClipSpec, PreprocessSpec
from edgeclf.theatre import ACTIONS, TheatreSource, single_action
from edgeclf.theatre_figure import Pose
from edgeclf.train.classifiers import gru_classifier
from edgeclf.train.disguise import disguised

PREPROCESS = PreprocessSpec((64, 80), crop="none", interpolation="area")
CLIP = ClipSpec.by_rate(length=20, rate=10.0)
FEATURES = 64

Split = Literal["train", "validation", "test"]
Progress = Callable[[str], None]

_FIRST_SEED: dict[Split, int] = {"train": 0, "validation": 1_000_000, "test": 2_000_000}


@dataclass(frozen=True, slots=True)
class TheatreSettings:
    """How much is rendered and for how long it is trained on."""

    train_clips: int = 5000
    validation_clips: int = 480
    test_clips: int = 600
    pose_epochs: int = 10
    action_epochs: int = 40
    seed: int = 0


@dataclass(frozen=True, slots=True)
class RenderedClips:
    """Clips as the extractor takes them, with their truth. What stands behind a clip's length is zero."""

    frames: NDArray[np.uint8]  # (N, T, H, W, 3)
    poses: Floats  # (N, T, P), what `_pose_target` makes of a pose
    lengths: NDArray[np.int32]  # (N,)
    labels: NDArray[np.int32]  # (N,) index into ACTIONS

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(N, T), true where a clip has a frame."""
        valid: NDArray[np.bool_] = np.arange(CLIP.length) < self.lengths[:, None]
        return valid


def render_clips(count: int, split: Split, *, workers: int = 2) -> RenderedClips:
    """`count` clips, actions in turn. Test clips are drawn from looks that training and validation never show."""
    frames = np.zeros((count, CLIP.length, *PREPROCESS.size, 3), np.uint8)
    poses = np.zeros((count, CLIP.length, _POSE_VALUES), np.float32)
    lengths = np.zeros(count, np.int32)
    with parallel_map(partial(_render, split=split), range(count), workers=workers, name="worker") as clips:
        for index, (pixels, truth) in enumerate(clips):
            lengths[index] = len(pixels)
            frames[index, : len(pixels)] = pixels
            poses[index, : len(pixels)] = truth
    return RenderedClips(frames, poses, lengths, np.arange(count, dtype=np.int32) % len(ACTIONS))


def _render(index: int, split: Split) -> tuple[NDArray[np.uint8], Floats]:
    """Frames and poses of one clip, through the runtime's own sampling and preprocessing."""
    scene = single_action(
        ACTIONS[index % len(ACTIONS)],
        _FIRST_SEED[split] + index,
        look="unseen" if split == "test" else "seen",
    )
    source = TheatreSource(scene, name="theatre")
    items = decode(SourceId(index, source.name), lambda: source, PREPROCESS, CLIP)
    slots = [item for item in items if isinstance(item, SampledFrame) for _ in range(item.sample.slots)][: CLIP.length]
    poses = [_pose_target(scene.pose(item.pts_seconds)) for item in slots]
    return np.stack([item.pixels for item in slots]), np.array(poses, np.float32)


_POSE_VALUES = 15


def _pose_target(pose: Pose) -> list[float]:
    """A pose as numbers of like size: angles by sine and cosine, so that nothing jumps at half a turn."""
    angles = (
        pose.lean,
        pose.near_upper,
        pose.near_upper + pose.near_fore,
        pose.far_upper,
        pose.far_upper + pose.far_fore,
    )
    around = [part for angle in angles for part in (math.sin(math.radians(angle)), math.cos(math.radians(angle)))]
    legs = [4 * (x - pose.hip_x) for x in (pose.near_x, pose.far_x)]
    return [*around, *legs, 4 * pose.hip_y, 8 * pose.near_y, 8 * pose.far_y]


def theatre_extractor() -> Any:
    """Four strided convolutions and one over what is left of the picture: uint8 (64, 80, 3) to 64 features."""
    keras = import_keras()
    layers = keras.layers
    frames = keras.Input((*PREPROCESS.size, 3), dtype="uint8", name="frames")
    x = layers.Rescaling(1 / 127.5, -1.0, name="normalise")(frames)
    for number, filters in enumerate((24, 48, 72, 96), start=1):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False, name=f"conv{number}")(x)
        x = layers.BatchNormalization(name=f"bn{number}")(x)
        x = layers.ReLU(name=f"relu{number}")(x)
    x = layers.Conv2D(FEATURES, x.shape[1:3], activation="relu", name="pose")(x)
    return keras.Model(frames, layers.GlobalAveragePooling2D(name="features")(x), name="theatre_extractor")


def train_theatre(path: Path, settings: TheatreSettings, say: Progress) -> ModelDescription:
    """Train, measure with its controls, and write the model directory `path`."""
    keras = import_keras()
    keras.utils.set_random_seed(settings.seed)
    say(f"rendering {settings.train_clips} clips to learn from")
    train = render_clips(settings.train_clips, "train")
    validation = render_clips(settings.validation_clips, "validation")
    extractor = theatre_extractor()
    _learn_poses(extractor, train, settings, say)
    classifier = gru_classifier(CLIP.length, FEATURES, len(ACTIONS), units=64, dropout=0.3)
    _learn_actions(extractor, classifier, train, validation, settings, say)
    say(f"measuring on {settings.test_clips} clips of unseen looks, with controls")
    evaluation = measure(extractor, classifier, train, render_clips(settings.test_clips, "test"), settings.seed)
    description = _describe(keras.__version__, settings, evaluation)
    clips = [frames[:length] for frames, length in zip(validation.frames[:8], validation.lengths[:8], strict=True)]
    write_model(path, description, extractor, classifier, clips)
    return description


def _learn_poses(extractor: Any, train: RenderedClips, settings: TheatreSettings, say: Progress) -> None:
    """Train the extractor to tell the pose from one frame, through a linear layer that is then thrown away."""
    keras = import_keras()
    poses = keras.layers.Dense(_POSE_VALUES, name="poses")(extractor.output)
    model = keras.Model(extractor.input, poses)
    frames, targets = train.frames[train.valid], train.poses[train.valid]
    steps = settings.pose_epochs * (len(frames) // _POSE_BATCH)
    schedule = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    model.compile(keras.optimizers.Adam(schedule), loss="mse")
    for epoch in range(settings.pose_epochs):
        order = np.random.default_rng([settings.seed, epoch]).permutation(len(frames))
        draw = partial(_pose_batch, frames=frames, targets=targets, order=order, seed=(settings.seed, epoch))
        starts = range(0, len(frames) - _POSE_BATCH + 1, _POSE_BATCH)
        with prefetch(map(draw, starts), depth=4) as batches:
            losses = [float(model.train_on_batch(*batch)) for batch in batches]
        say(f"poses, epoch {epoch + 1}/{settings.pose_epochs}: loss {losses[-1]:.4f}")
        model.reset_metrics()


_POSE_BATCH = 128


def _pose_batch(
    start: int, *, frames: NDArray[np.uint8], targets: Floats, order: NDArray[Any], seed: tuple[int, int]
) -> tuple[NDArray[np.uint8], Floats]:
    """Frames, four of five disguised, each in its own way, and their poses."""
    rng = np.random.default_rng([*seed, start])
    chosen = order[start : start + _POSE_BATCH]
    pixels = [disguised(frames[n : n + 1], rng) if rng.random() < 0.8 else frames[n : n + 1] for n in chosen]
    return np.concatenate(pixels), targets[chosen]


def _learn_actions(
    extractor: Any,
    classifier: Any,
    train: RenderedClips,
    validation: RenderedClips,
    settings: TheatreSettings,
    say: Progress,
) -> None:
    """Train the classifier on features of all clips as they are and twice in disguise.

    It ends with the weights of the lowest validation loss. A fifth of the clips is cut short, so that
    clips that are not full are known too.
    """
    keras = import_keras()
    rng = np.random.default_rng([settings.seed, settings.pose_epochs])
    copies = [_features(extractor, train), *(_features(extractor, _disguised_clips(train, rng)) for _ in range(2))]
    lengths = _cut_short(np.tile(train.lengths, len(copies)), rng)
    best = keras.callbacks.EarlyStopping("val_loss", patience=settings.action_epochs, restore_best_weights=True)
    classifier.compile(keras.optimizers.Adam(2e-3), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    history = classifier.fit(
        _masked(np.concatenate(copies), lengths),
        np.tile(train.labels, len(copies)),
        validation_data=(_masked(_features(extractor, validation), validation.lengths), validation.labels),
        epochs=settings.action_epochs,
        batch_size=64,
        callbacks=[best],
        verbose=0,
    ).history
    at = int(np.argmin(history["val_loss"]))
    say(
        f"actions, best of {settings.action_epochs} epochs is {at + 1}: "
        f"validation loss {history['val_loss'][at]:.3f}, accuracy {history['val_accuracy'][at]:.3f}"
    )


def _disguised_clips(clips: RenderedClips, rng: np.random.Generator) -> RenderedClips:
    return replace(clips, frames=np.stack([disguised(frames, rng) for frames in clips.frames]))


def _cut_short(lengths: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int32]:
    cut = rng.integers(CLIP.length * 3 // 4, CLIP.length + 1, len(lengths))
    return np.where(rng.random(len(lengths)) < 0.2, np.minimum(cut, lengths), lengths).astype(np.int32)


def _masked(features: Floats, lengths: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
    valid = np.arange(CLIP.length) < lengths[:, None]
    return {"features": features * valid[..., None].astype(np.float32), "mask": valid}


def measure(extractor: Any, classifier: Any, train: RenderedClips, test: RenderedClips, seed: int) -> dict[str, Any]:
    """Test accuracy, and two controls that see the same frames without their order.

    `mean_of_features`: logistic regression on each clip's features averaged over time, fitted on training clips.
    `shuffled_frames`: this model on clips whose frames stand in random order.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    features, train_features = _features(extractor, test), _features(extractor, train)
    scores = _scores(classifier, features, test.lengths)
    scaler = StandardScaler().fit(_means(train_features, train.lengths))
    pooled = LogisticRegression(max_iter=2000, C=1.0).fit(
        scaler.transform(_means(train_features, train.lengths)), train.labels
    )
    shuffled = _shuffled(features, test.lengths, np.random.default_rng(seed))
    return {
        "test_clips": len(test.labels),
        "accuracy": _accuracy(scores.argmax(1), test.labels),
        "per_label_accuracy": {
            action: _accuracy(scores[test.labels == n].argmax(1), np.full((test.labels == n).sum(), n))
            for n, action in enumerate(ACTIONS)
        },
        "controls": {
            "mean_of_features_accuracy": _accuracy(
                pooled.predict(scaler.transform(_means(features, test.lengths))), test.labels
            ),
            "shuffled_frames_accuracy": _accuracy(_scores(classifier, shuffled, test.lengths).argmax(1), test.labels),
        },
    }


def _features(extractor: Any, clips: RenderedClips) -> Floats:
    session = extractor_session(extractor, PREPROCESS)
    rows = [session.run({"frames": frames})["features"] for frames in clips.frames]
    features: Floats = np.stack(rows) * clips.valid[..., None].astype(np.float32)
    return features


def _scores(classifier: Any, features: Floats, lengths: NDArray[np.int32]) -> Floats:
    scores: Floats = classifier_session(classifier, CLIP).run({"features": features, "length": lengths})["scores"]
    return scores


def _means(features: Floats, lengths: NDArray[np.int32]) -> Floats:
    mean: Floats = (features.sum(axis=1) / lengths[:, None]).astype(np.float32)
    return mean


def _shuffled(features: Floats, lengths: NDArray[np.int32], rng: np.random.Generator) -> Floats:
    shuffled: Floats = features.copy()
    for clip, length in zip(shuffled, lengths, strict=True):
        clip[:length] = clip[rng.permutation(length)]
    return shuffled


def _accuracy(found: NDArray[Any], labels: NDArray[Any]) -> float:
    return round(float((found == labels).mean()), 4)


def _describe(keras_version: str, settings: TheatreSettings, evaluation: dict[str, Any]) -> ModelDescription:
    return ModelDescription(
        name="theatre",
        recipe="theatre",
        labels=ACTIONS,
        preprocess=PREPROCESS,
        clip=CLIP,
        aggregate="mean",
        keras_version=keras_version,
        provenance={
            "summary": "A small CNN-GRU that tells what a rendered figure does; trained from scratch.",
            "intended_use": "Demonstration, tests and benchmarks on rendered scenes. It knows nothing of real video. "
            "In Accuracy, `controls` says how well the same frames do without their order: averaged over time "
            "(logistic regression), and shuffled (this model).",
            "data": "clips rendered by edgeclf.theatre; nothing else was seen",
            "licence": "Apache-2.0",
            "train": {"clips": settings.train_clips, "looks": "seen", "first_seed": _FIRST_SEED["train"]},
            "validation": {
                "clips": settings.validation_clips,
                "looks": "seen",
                "first_seed": _FIRST_SEED["validation"],
            },
            "test": {"clips": settings.test_clips, "looks": "unseen", "first_seed": _FIRST_SEED["test"]},
            "epochs": {"poses": settings.pose_epochs, "actions": settings.action_epochs},
            "seed": settings.seed,
        },
        evaluation=evaluation,
    )
