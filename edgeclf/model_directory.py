"""The trained model on disk: what training writes, and export, evaluation and bench read.

Nothing else passes between those stages. The Keras files hold built-in layers only and are loaded in Keras'
safe mode, so that no custom class is shared and nothing in them is executed.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.clips import padded
from edgeclf.errors import BundleError, import_extra
from edgeclf.runtime.cores import available_cores
from edgeclf.runtime.golden import ARCHIVE_ERRORS
from edgeclf.runtime.model import Floats, FramesAsFeatures, Model, thresholds_of
from edgeclf.runtime.session import Arrays, Placement, Session
from edgeclf.specs import (
    Aggregate,
    ClipSpec,
    PreprocessSpec,
    TensorSpec,
    check_aggregate,
    check_labels,
    check_thresholds,
    labels_from_json,
)

SCHEMA_VERSION = 1
DESCRIPTION_NAME = "model.json"
EXTRACTOR_NAME = "extractor.keras"
CLASSIFIER_NAME = "classifier.keras"
PARITY_NAME = "parity.npz"

_TRAIN_AGAIN = "train it again"


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What `model.json` says."""

    name: str
    recipe: str
    labels: tuple[str, ...]
    preprocess: PreprocessSpec
    clip: ClipSpec
    aggregate: Aggregate
    keras_version: str
    provenance: Mapping[str, Any]  # data, split, seed, licences
    evaluation: Mapping[str, Any]
    thresholds: Mapping[str, float] = field(default_factory=dict)  # below its own, a winning label is "unknown"
    has_extractor: bool = True  # False where the classifier takes the frames themselves
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        check_labels(self.labels)
        check_thresholds(self.thresholds, self.labels)
        check_aggregate(self.aggregate)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary."""
        return {
            "schema_version": self.schema_version,
            "name": self.name,
            "recipe": self.recipe,
            "labels": list(self.labels),
            "preprocess": self.preprocess.to_dict(),
            "clip": self.clip.to_dict(),
            "aggregate": self.aggregate,
            "keras_version": self.keras_version,
            "provenance": dict(self.provenance),
            "evaluation": dict(self.evaluation),
            "thresholds": dict(self.thresholds),
            "has_extractor": self.has_extractor,
        }

    @classmethod
    def from_dict(cls, data: Any) -> ModelDescription:
        """The checked description; raises ValueError, KeyError or TypeError where it makes no sense."""
        if data["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {data['schema_version']!r}, this edgeclf reads {SCHEMA_VERSION}")
        return cls(
            **{key: data[key] for key in ("name", "recipe", "aggregate", "keras_version", "provenance", "evaluation")},
            labels=labels_from_json(data["labels"]),
            preprocess=PreprocessSpec.from_dict(data["preprocess"]),
            clip=ClipSpec.from_dict(data["clip"]),
            thresholds=dict(data.get("thresholds", {})),
            has_extractor=bool(data.get("has_extractor", True)),
        )


@dataclass(frozen=True, slots=True)
class ParityFrames:
    """Real input with the answers that Keras gave when the model was written.

    What stands behind a clip's length is its padding.
    """

    frames: NDArray[np.uint8]  # (M, T, H, W, 3) preprocessed RGB, or (M, T, K, H, W, 3)
    lengths: NDArray[np.int32]  # (M,)
    features: NDArray[Any]  # float32 (M, T, F), or the frames again where they are the features
    scores: Floats  # (M, C)

    def __post_init__(self) -> None:
        count, length = self.frames.shape[:2]
        if count == 0 or [len(array) for array in (self.lengths, self.features, self.scores)] != [count] * 3:
            raise ValueError("it does not hold one length, features and scores for each clip")
        if self.features.shape[1] != length or not all(1 <= n <= length for n in self.lengths):
            raise ValueError(f"its lengths or features do not fit clips of {length} frames")


def write_description(path: Path, description: ModelDescription) -> None:
    """Write `model.json` into the model directory `path`."""
    text = json.dumps(description.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    (path / DESCRIPTION_NAME).write_text(text + "\n", encoding="utf-8")


def write_model(
    path: Path, description: ModelDescription, extractor: Any, classifier: Any, clips: list[NDArray[np.uint8]]
) -> None:
    """Write a model directory: the Keras models, the description, and Keras' answers for a few real clips.

    extractor: None where the classifier takes frames. clips: preprocessed frames uint8 (n, H, W, 3), stacked
    ones (n, K, H, W, 3), n from 1 to the clip length, one array for each clip.
    """
    path.mkdir(parents=True, exist_ok=True)
    if extractor is not None:
        _save(extractor, path / EXTRACTOR_NAME)
    _save(classifier, path / CLASSIFIER_NAME)
    write_description(path, description)
    model = _keras_model(description, extractor, classifier)
    with (path / PARITY_NAME).open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **_answers(model, clips))


def _save(model: Any, file: Path) -> None:
    """Write a Keras model without its optimiser, which holds every weight twice more."""
    model.optimizer, model.compiled = None, False
    model.save(file)


def read_description(path: Path) -> ModelDescription:
    """The description of the model directory `path`; raises BundleError where there is none."""
    file = path / DESCRIPTION_NAME
    try:
        return ModelDescription.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise BundleError(f"{path} is no model directory: it has no {DESCRIPTION_NAME}", hint=_TRAIN_AGAIN) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{file} is not valid: {error!r}", hint=_TRAIN_AGAIN) from error


def read_parity(path: Path) -> ParityFrames:
    """The real input and Keras' answers in the model directory `path`."""
    try:
        # np.load leaves a file open that it opened itself and cannot read.
        with (path / PARITY_NAME).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return ParityFrames(**{name: arrays[name] for name in ("frames", "lengths", "features", "scores")})
    except ARCHIVE_ERRORS as error:
        raise BundleError(f"{path / PARITY_NAME} cannot be read: {error}", hint=_TRAIN_AGAIN) from error


def load_keras(path: Path) -> tuple[Any, Any]:
    """The Keras extractor and classifier of the model directory `path`, loaded in safe mode.

    The extractor is None where the classifier takes frames.
    """
    extractor = load_network(path / EXTRACTOR_NAME) if read_description(path).has_extractor else None
    return extractor, load_network(path / CLASSIFIER_NAME)


def load_network(file: Path) -> Any:
    """The Keras model in a file, loaded in safe mode; raises BundleError where it cannot be."""
    try:
        return import_keras().models.load_model(file, compile=False, safe_mode=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{file} cannot be loaded: {error}", hint=_TRAIN_AGAIN) from error


def open_keras_model(path: Path) -> Model:
    """The model directory `path` as a model for the loop, run by Keras itself."""
    return _keras_model(read_description(path), *load_keras(path))


def import_keras() -> Any:
    """The `keras` module, on TensorFlow and with its log turned down."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import_extra("tensorflow", "TensorFlow", "train")  # says now, not later, that it is missing
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of every batch of another size
    return import_extra("keras", "Keras", "train")


class KerasSession:
    """A Keras model as a session, for training, parity and baselines; nothing in runtime looks it up."""

    def __init__(self, model: Any, inputs: tuple[TensorSpec, ...], output: TensorSpec) -> None:
        import keras
        import tensorflow as tf

        self.inputs = inputs
        self.outputs = (output,)
        self.placement = Placement("keras", f"keras {keras.__version__}", "cpu", "fp32", available_cores())
        signature = [tf.TensorSpec(spec.shape, spec.dtype) for spec in inputs]
        self._call: Callable[..., Any] | None = tf.function(
            _caller(model, inputs), input_signature=signature, autograph=False
        )

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        if self._call is None:
            raise RuntimeError("the session is closed")
        result = self._call(*(feeds[spec.name] for spec in self.inputs))
        return {self.outputs[0].name: result.numpy()}

    def close(self) -> None:
        self._call = None


def extractor_session(extractor: Any, preprocess: PreprocessSpec) -> Session:
    """A session for a Keras extractor: frames uint8 (N, H, W, 3) to features float32 (N, F), or maps (N, h, w, c).

    None in the place of an extractor leaves the frames as they are.
    """
    if extractor is None:
        return FramesAsFeatures(preprocess)
    features = TensorSpec("features", "float32", (None, *map(int, extractor.output_shape[1:])))
    return KerasSession(extractor, (TensorSpec("frames", "uint8", (None, *preprocess.input_shape)),), features)


def classifier_session(classifier: Any, clip: ClipSpec) -> KerasSession:
    """A session for a Keras classifier, which takes the mask of a clip where the session takes its length."""
    taken = next(tensor for tensor in classifier.inputs if tensor.name != "mask")
    inputs = [TensorSpec(taken.name, taken.dtype, (None, clip.length, *map(int, taken.shape[2:])))]
    if clip.padding == "mask":
        inputs.append(TensorSpec("length", "int32", (None,)))
    return KerasSession(
        classifier, tuple(inputs), TensorSpec("scores", "float32", (None, int(classifier.output_shape[-1])))
    )


def _caller(model: Any, inputs: tuple[TensorSpec, ...]) -> Callable[..., Any]:
    import tensorflow as tf

    def with_length(features: Any, length: Any) -> Any:
        mask = tf.sequence_mask(length, inputs[0].shape[1])
        return model({inputs[0].name: features, "mask": mask}, training=False)

    def plain(tensor: Any) -> Any:
        return model(tensor, training=False)

    return with_length if len(inputs) == 2 else plain


def _keras_model(description: ModelDescription, extractor: Any, classifier: Any) -> Model:
    return Model(
        description.name,
        description.labels,
        description.preprocess,
        description.clip,
        description.aggregate,
        extractor_session(extractor, description.preprocess),
        classifier_session(classifier, description.clip),
        thresholds_of(description.thresholds, description.labels),
    )


def _answers(model: Model, clips: list[NDArray[np.uint8]]) -> dict[str, NDArray[Any]]:
    lengths = np.array([len(clip) for clip in clips], np.int32)
    features = np.stack([padded(model.extract(clip), model.clip) for clip in clips])
    return {
        "frames": np.stack([padded(clip, model.clip) for clip in clips]),
        "lengths": lengths,
        "features": features,
        "scores": model.classify(features, lengths),
    }
