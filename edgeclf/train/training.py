"""What all recipes have in common: features, fitting, calibration, and the measurement at the end.

Every choice is made on training and validation clips; test clips are read once, when all is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeclf.clips import Clip
from edgeclf.dataset import LabelledClip, draw_image_clips
from edgeclf.model_directory import classifier_session, extractor_session, import_keras
from edgeclf.runtime.model import Floats
from edgeclf.runtime.records import aggregate_scores
from edgeclf.runtime.session import Session
from edgeclf.specs import ClipSpec
from edgeclf.train.augment import Augmentation
from edgeclf.train.calibration import apply_temperature, choose_thresholds, fit_temperature, fold_temperature
from edgeclf.train.evaluation import Evaluation, evaluation_of
from edgeclf.train.examples import ClipExamples, Feeds, feeds_of
from edgeclf.train.extractors import fine_tunable, split_at_trained
from edgeclf.train.features import (
    AS_IT_IS,
    Extraction,
    KeptFeatures,
    VideoFeatures,
    View,
    extractor_identity,
    joined_pictures,
    single_pictures,
    video_features,
)
from edgeclf.train.fit import FitSettings, Fitted, Row, fit
from edgeclf.train.recipe import Recipe

Precision = Literal["float32", "mixed_float16"]
Say = Callable[[str], None]
Steps = Callable[[str, int], AbstractContextManager[Callable[[], None]]]  # a task and its number of steps

# Of what stands for a whole clip, or a picture.
_ONE_ROW = replace(ClipSpec.by_rate(length=1, rate=1.0), padding="repeat_last")


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where training keeps things and whom it tells.

    cache: features; checkpoints: None where nothing shall be taken up again. precision: in which networks are
    trained; what is written is float32.
    """

    cache: Path
    say: Say
    steps: Steps
    checkpoints: Path | None = None
    precision: Precision = "float32"


@dataclass(frozen=True, slots=True)
class Trained:
    """A classifier with its extractor (None: it takes frames), and how it came about."""

    recipe: Recipe  # as it was used: with the stream form of its clips
    labels: tuple[str, ...]
    extractor: Any
    classifier: Any
    phases: dict[str, Fitted]
    temperature: float
    thresholds: dict[str, float]
    validation: dict[str, float]  # loss and accuracy over validation clips

    @property
    def history(self) -> tuple[dict[str, Any], ...]:
        """All epochs of all phases, numbered through, each with its phase."""
        rows = _numbered_through(self.phases.values())
        phases = [phase for phase, fitted in self.phases.items() for _ in fitted.history]
        return tuple({"epoch": row["epoch"], "phase": phase, **row} for row, phase in zip(rows, phases, strict=True))

    @property
    def measured_history(self) -> tuple[Row, ...]:
        """The same in numbers alone, without refitting, which trains on the validation clips too."""
        return _numbered_through(fitted for phase, fitted in self.phases.items() if phase != "refitted")


def _numbered_through(phases: Iterable[Fitted]) -> tuple[Row, ...]:
    rows = [row for fitted in phases for row in fitted.history]
    return tuple({**row, "epoch": float(number)} for number, row in enumerate(rows, start=1))


def train_recipe(
    recipe: Recipe,
    train: Sequence[LabelledClip],
    validation: Sequence[LabelledClip],
    labels: tuple[str, ...],
    workplace: Workplace,
) -> Trained:
    """Train on clips of features, or of frames; the weights are those of the lowest validation loss.

    Clips that cannot be read are reported and left out. Raises DataError where none is left.
    """
    keras = import_keras()
    keras.utils.set_random_seed(recipe.settings.seed)
    phases: dict[str, Fitted] = {}
    if recipe.trains_extractor:
        extractor = _trained_on_frames(recipe, train, validation, labels, workplace, phases)
    else:
        extractor = recipe.build_extractor()
    drawn = bool(recipe.drawn_clips) and all(clip.images for clip in train)
    if drawn:
        train = draw_image_clips(
            train, per_class=recipe.drawn_clips, length=recipe.clip.length, seed=recipe.settings.seed
        )
    extraction = extraction_of(recipe, extractor)
    views = [
        _features(train, extraction, workplace, view=View(number, recipe.augmentation), drawn=drawn)
        for number in range(recipe.views if recipe.extractor else 1)
    ]
    held_out = _features(validation, extraction, workplace)
    recipe = replace(recipe, clip=with_stream_form(recipe.clip, views[0]))
    data = _Data(recipe, _indices(train, labels), _indices(validation, labels), labels)
    keras.utils.set_random_seed(recipe.settings.seed)
    classifier = _fit_classifier(data, views, held_out, workplace, phases)
    if recipe.fine_tuning.last:
        extractor, classifier = _fine_tuned(data, extractor, classifier, train, validation, workplace, phases)
        held_out = _features(validation, extraction_of(recipe, extractor), workplace)
    temperature, thresholds, figures = _calibrate(data, classifier, held_out)
    if recipe.refit:
        both = [[*videos, *held_out] for videos in views]
        data = replace(data, train=np.concatenate([data.train, data.validation]))
        keras.utils.set_random_seed(recipe.settings.seed)
        classifier = _fit_classifier(data, both, held_out, workplace, phases, again=True)
        fold_temperature(classifier, temperature)
    return Trained(recipe, labels, extractor, classifier, phases, temperature, thresholds, figures)


def score(trained: Trained, clips: Sequence[LabelledClip], workplace: Workplace) -> tuple[Evaluation, Evaluation]:
    """What the trained model finds in clips, and what it would find without the temperature that is in its scores.

    A clip of which nothing can be read counts as wrong.
    """
    videos = _features(clips, extraction_of(trained.recipe, trained.extractor), workplace)
    session = classifier_session(trained.classifier, trained.recipe.clip)
    rows = [_scores_of(video, trained, session) for video in videos]
    problems = [video.error for video in videos]
    found, untempered = (
        evaluation_of(trained.labels, clips, [row and row[way] for row in rows], problems) for way in (0, 1)
    )
    return found, untempered


def extraction_of(recipe: Recipe, extractor: Any) -> Extraction:
    """How the recipe's features are made by this extractor; by None, frames as they are."""
    session = extractor_session(extractor, recipe.preprocess)
    return Extraction(session, extractor_identity(extractor), recipe.preprocess, recipe.clip, recipe.feature_dtype)


def with_stream_form(clip: ClipSpec, videos: Sequence[VideoFeatures]) -> ClipSpec:
    """The clips of a recipe that counts frames, with the rate at which they are cut from a stream.

    It is the median rate of the frames that the clips of the training videos are made of.
    """
    if clip.sampling == "rate":
        return clip
    rates = [
        (video.slots.sum() - 1) / (video.pts_seconds[-1] - video.pts_seconds[0])
        for video in videos
        if len(video.pts_seconds) > 1 and video.pts_seconds[-1] > video.pts_seconds[0]
    ]
    rate = round(float(np.median(rates)), 3) if rates else clip.rate
    form = ClipSpec.by_rate(clip.length, min(max(rate, 0.01), 1000.0))
    return replace(form, sampling=clip.sampling, padding=clip.padding)


# -- the classifier ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Data:
    """The recipe with the classes of the clips that it is trained on."""

    recipe: Recipe
    train: NDArray[np.int32]
    validation: NDArray[np.int32]
    labels: tuple[str, ...]

    def examples(
        self,
        views: Sequence[Sequence[VideoFeatures]],
        feeds: Feeds,
        settings: FitSettings,
        clip: ClipSpec,
        augmentation: Augmentation | None = None,
    ) -> ClipExamples:
        """Training examples with an augmentation, validation examples without."""
        training = augmentation is not None
        return ClipExamples(
            views,
            self.train if training else self.validation,
            len(self.labels),
            clip,
            feeds,
            settings,
            training=training,
            augmentation=augmentation or Augmentation(),
        )


def _fit_classifier(
    data: _Data,
    views: Sequence[Sequence[VideoFeatures]],
    held_out: Sequence[VideoFeatures],
    workplace: Workplace,
    phases: dict[str, Fitted],
    *,
    again: bool = False,
) -> Any:
    """The recipe's classifier, fitted on features; on frames where it takes those.

    again: for as many epochs as were best the first time.
    """
    recipe, phase = data.recipe, "refitted" if again else "classifier"
    last_epoch = phases["classifier"].best_epoch if again else None
    classifier = _built(partial(recipe.build_classifier, len(data.labels)), workplace.precision)
    trained, clip, augmentation = classifier, recipe.clip, recipe.augmentation
    front = _front(classifier)
    if front is not None:
        # The part without weights gives the same in every epoch, so that it runs once.
        views = [_summarised(videos, front, clip) for videos in views]
        held_out = _summarised(held_out, front, clip)
        trained = import_keras().Model(front.output, classifier.output)
        clip, augmentation = _ONE_ROW, Augmentation()
    feeds = feeds_of(trained)
    train = data.examples(views, feeds, recipe.settings, clip, augmentation)
    standardise(trained, train)
    validation = data.examples([held_out], feeds, recipe.settings, clip)
    phases[phase] = _fit(trained, train, validation, recipe.settings, workplace, phase, last_epoch)
    return _in_single_precision(classifier, partial(recipe.build_classifier, len(data.labels)), workplace.precision)


def _in_single_precision(model: Any, build: Callable[[], Any], precision: Precision) -> Any:
    """The model, or one with its weights that computes in float32 where it does not."""
    return model if precision == "float32" else _with_weights_of(build(), model)


def _with_weights_of(model: Any, other: Any) -> Any:
    """The model with the weights of another one, which may compute in another precision."""
    model.set_weights(other.get_weights())
    for layer in model.layers:
        if hasattr(layer, "finalize_state"):  # mean and spread are used from elsewhere than where they are kept
            layer.finalize_state()
    return model


def standardise(model: Any, examples: ClipExamples) -> None:
    """Set the layer `standardise`, if there is one, to mean and spread of what it is given for the training clips."""
    layer = next((layer for layer in model.layers if layer.name == "standardise"), None)
    if layer is None:
        return
    # Behind a front that ran already the layer takes the model's input as it is.
    before = import_keras().Model(model.input, layer.input) if len(model.inputs) == 2 else None
    count, total, squares = 0, np.zeros(layer.input.shape[-1]), np.zeros(layer.input.shape[-1])
    for batch in replace(examples, training=False).epoch(0):
        rows = np.asarray(before(batch.inputs, training=False) if before else batch.inputs, np.float64)
        if rows.ndim == 3:
            rows = rows[batch.inputs["mask"]]
        count, total, squares = count + len(rows), total + rows.sum(axis=0), squares + (rows**2).sum(axis=0)
    spread = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0))
    layer.adapt_mean.assign(total / count)
    layer.adapt_variance.assign((spread + _LEAST_SPREAD) ** 2)  # what hardly varies must not be blown up
    layer.finalize_state()


_LEAST_SPREAD = 0.02


def _front(classifier: Any) -> Any:
    """The part of a classifier that has no weights, if it ends with a layer `statistics`."""
    layer = next((layer for layer in classifier.layers if layer.name == "statistics"), None)
    return layer and import_keras().Model(classifier.input, layer.output)


def _summarised(videos: Sequence[VideoFeatures], front: Any, clip: ClipSpec) -> list[VideoFeatures]:
    """What the front of a classifier gives for every clip of each video, as if it were the feature of a frame."""
    session = classifier_session(front, clip)
    rows: list[list[Floats]] = [[] for _ in videos]
    clips = ((index, part) for index, video in enumerate(videos) for part in video.clips(clip))
    while batch := list(islice(clips, _FRONT_BATCH)):
        for (index, _), row in zip(batch, _run_on_clips(session, [part for _, part in batch]), strict=True):
            rows[index].append(row)
    return [_as_video(found, session.outputs[0].shape[-1] or 0) for found in rows]


_FRONT_BATCH = 32


def _as_video(rows: Sequence[Floats], size: int) -> VideoFeatures:
    """Rows, one a second, in the place of a video's features."""
    count = len(rows)
    stacked = np.stack(rows) if rows else np.zeros((0, size), np.float32)
    return VideoFeatures(stacked, np.arange(float(count)), np.ones(count, np.int32), np.zeros(count, np.bool_))


# -- the extractor -----------------------------------------------------------------------------------------------------


def _trained_on_frames(
    recipe: Recipe,
    train: Sequence[LabelledClip],
    validation: Sequence[LabelledClip],
    labels: tuple[str, ...],
    workplace: Workplace,
    phases: dict[str, Fitted],
) -> Any:
    """The extractor, trained to tell the class from one frame, through a layer that is then thrown away."""
    keras = import_keras()
    extractor = _built(recipe.build_extractor, workplace.precision)
    settings = recipe.frames_first
    assert settings is not None
    frames = extraction_of(recipe, None)
    data = _Data(recipe, _indices(train, labels), _indices(validation, labels), labels)
    x = keras.layers.Dropout(0.5)(extractor.output)
    scores = keras.layers.Dense(len(labels), activation="softmax", dtype="float32")(x)
    model = keras.Model(extractor.input, scores)
    feeds = feeds_of(model)
    phases["frames"] = _fit(
        model,
        data.examples([_features(train, frames, workplace)], feeds, settings, _ONE_ROW, recipe.augmentation),
        data.examples([_features(validation, frames, workplace)], feeds, settings, _ONE_ROW),
        settings,
        workplace,
        "frames",
    )
    return _in_single_precision(extractor, recipe.build_extractor, workplace.precision)


def _fine_tuned(
    data: _Data,
    extractor: Any,
    classifier: Any,
    train: Sequence[LabelledClip],
    validation: Sequence[LabelledClip],
    workplace: Workplace,
    phases: dict[str, Fitted],
) -> tuple[Any, Any]:
    """Extractor and classifier with their last layers trained as one; as they were where no epoch is better.

    They are trained on maps that the frozen layers gave once, or on frames, where pixels are augmented or two pictures
    make a frame.
    """
    keras = import_keras()
    recipe, settings = data.recipe, data.recipe.fine_tuning.settings
    precision, build_classifier = workplace.precision, partial(recipe.build_classifier, len(data.labels))
    if precision != "float32":
        extractor = _with_weights_of(_built(recipe.build_extractor, precision), extractor)
        classifier = _with_weights_of(_built(build_classifier, precision), classifier)
    tuned = fine_tunable(extractor, recipe.fine_tuning.last)
    workplace.say(f"fine-tuning {len(tuned)} layers of {extractor.name}, {tuned[0]} to {tuned[-1]}")
    frozen, rest = None, extractor
    if not recipe.augmentation.changes_pixels and not recipe.motion:
        # What the frozen layers make of frames is the same in every epoch, so that they run once.
        frozen, rest = split_at_trained(extractor, tuned[0])
    name, dtype, extraction = "frames", "uint8", extraction_of(recipe, frozen)
    if frozen:
        name, dtype, extraction = "maps", "float32", replace(extraction, dtype="float16")
    shape = extraction.extractor.outputs[0].shape[1:]
    taken = keras.Input((recipe.clip.length, *shape), dtype=dtype, name=name)
    # What TimeDistributed does, in one batch instead of one frame after the other.
    flat = rest(keras.ops.reshape(taken, (-1, *shape)))
    features = keras.ops.reshape(flat, (-1, recipe.clip.length, recipe.feature_size))
    inputs: Any = taken
    if recipe.clip.padding == "mask":
        mask = keras.Input((recipe.clip.length,), dtype="bool", name="mask")
        inputs, features = {name: taken, "mask": mask}, {"features": features, "mask": mask}
    model = keras.Model(inputs, classifier(features))
    with workplace.steps(name, len(train) + len(validation)) as advance:
        kept = [KeptFeatures(clips, extraction, workplace.cache, advance) for clips in (train, validation)]
    feeds = feeds_of(model)
    phases["fine-tuning"] = _fit(
        model,
        data.examples([kept[0]], feeds, settings, recipe.clip, recipe.augmentation),
        data.examples([kept[1]], feeds, settings, recipe.clip),
        settings,
        workplace,
        "fine-tuning",
        start_counts=True,
    )
    if phases["fine-tuning"].best_epoch == 0:
        workplace.say("no epoch of fine-tuning has a lower validation loss: both stay as they were")
    return (
        _in_single_precision(extractor, recipe.build_extractor, precision),
        _in_single_precision(classifier, build_classifier, precision),
    )


# -- the end -----------------------------------------------------------------------------------------------------------


def _calibrate(
    data: _Data, classifier: Any, held_out: Sequence[VideoFeatures]
) -> tuple[float, dict[str, float], dict[str, float]]:
    """Temperature and thresholds, the one folded into the classifier.

    The temperature is chosen on the clips of the validation videos, thresholds on the scores of whole videos.
    """
    examples = data.examples([held_out], feeds_of(classifier), data.recipe.settings, data.recipe.clip)
    batches = list(examples.epoch(0))
    scores = np.concatenate([np.asarray(classifier(batch.inputs, training=False)) for batch in batches])
    truth = np.concatenate([batch.truth for batch in batches]).argmax(axis=1)
    weights = np.concatenate([batch.weights for batch in batches])
    temperature = round(fit_temperature(scores, truth, weights), 4)
    fold_temperature(classifier, temperature)
    scores = np.concatenate([np.asarray(classifier(batch.inputs, training=False)) for batch in batches])
    right = np.average(scores.argmax(axis=1) == truth, weights=weights)
    loss = -np.average(np.log(np.maximum(scores[np.arange(len(truth)), truth], 1e-12)), weights=weights)
    figures = {"loss": round(float(loss), 4), "accuracy_of_clips": round(float(right), 4)}
    video_of = np.array([window.video for window in examples.windows])
    videos = np.unique(video_of)
    whole = np.array([aggregate_scores(scores[video_of == video], data.recipe.aggregate) for video in videos])
    return temperature, choose_thresholds(whole, data.validation[videos], data.labels), figures


def _scores_of(
    video: VideoFeatures, trained: Trained, session: Session
) -> tuple[Sequence[float], Sequence[float]] | None:
    """The scores of a video, with and without the temperature, made of its clips as the runtime does; None: no clip."""
    clips = video.clips(trained.recipe.clip)
    if not clips:
        return None
    scores = _run_on_clips(session, clips).astype(np.float64)
    aggregate, untempered = trained.recipe.aggregate, apply_temperature(scores, 1 / trained.temperature)
    return aggregate_scores(scores.tolist(), aggregate), aggregate_scores(untempered.tolist(), aggregate)


def _run_on_clips(session: Session, clips: Sequence[Clip]) -> Floats:
    """(N, ...), what a classifier, or its front, gives for clips."""
    features = np.stack([clip.features for clip in clips])
    if features.dtype == np.float16:
        features = features.astype(np.float32)
    feeds: dict[str, NDArray[Any]] = {session.inputs[0].name: features}
    if len(session.inputs) == 2:
        feeds["length"] = np.array([clip.length for clip in clips], np.int32)
    return session.run(feeds)[session.outputs[0].name]


def _features(
    clips: Sequence[LabelledClip],
    extraction: Extraction,
    workplace: Workplace,
    *,
    view: View = AS_IT_IS,
    drawn: bool = False,
) -> list[VideoFeatures]:
    """The features of clips. drawn: they share pictures, each of which is extracted once, and augmented by itself."""
    task = "features" if view.number == 0 else f"features, view {view.number}"
    parts = single_pictures(clips) if drawn else clips
    with workplace.steps(task, len(parts)) as advance:
        videos = video_features(parts, extraction, view=view, cache=workplace.cache, progress=advance)
    if view.number == 0:
        for video in videos:
            if video.error:
                workplace.say(f"not wholly read: {video.error}")
    return joined_pictures(clips, videos, extraction.clip) if drawn else videos


def _fit(
    model: Any,
    train: ClipExamples,
    validation: ClipExamples,
    settings: FitSettings,
    workplace: Workplace,
    phase: str,
    last_epoch: int | None = None,
    *,
    start_counts: bool = False,
) -> Fitted:
    folder = workplace.checkpoints / phase if workplace.checkpoints else None
    with workplace.steps(f"{phase}, epochs", last_epoch or settings.epochs) as advance:
        return fit(
            model,
            train,
            validation,
            settings,
            folder=folder,
            progress=lambda _row: advance(),
            last_epoch=last_epoch,
            start_counts=start_counts,
        )


def _built(build: Callable[[], Any], precision: Precision) -> Any:
    """What `build` gives where layers compute in this precision."""
    keras = import_keras()
    keras.config.set_dtype_policy(precision)
    try:
        return build()
    finally:
        keras.config.set_dtype_policy("float32")


def has_gpu() -> bool:
    """Whether TensorFlow sees a GPU."""
    import_keras()
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def _indices(clips: Sequence[LabelledClip], labels: tuple[str, ...]) -> NDArray[np.int32]:
    return np.array([labels.index(clip.label) for clip in clips], np.int32)
