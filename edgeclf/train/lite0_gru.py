"""`edgeclf train lite0-gru`: a GRU on features of EfficientNet-Lite0 with ImageNet weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.bundle import sha256_of
from edgeclf.errors import DataError
from edgeclf.model_directory import (
    ModelDescription,
    classifier_session,
    extractor_session,
    import_keras,
    write_model,
)
from edgeclf.runtime.records import aggregate_scores
from edgeclf.runtime.session import Session
from edgeclf.runtime.stages import SampledFrame, SourceId, decode
from edgeclf.specs import Aggregate, ClipSpec
from edgeclf.train.classifiers import gru_classifier
from edgeclf.train.dataset import Dataset, LabelledClip
from edgeclf.train.evaluation import FAILED, Evaluation
from edgeclf.train.extractors import EFFICIENTNET_LITE0
from edgeclf.train.features import VideoFeatures, extractor_identity, video_features
from edgeclf.train.fit import FitSettings, examples_of, fit_classifier
from edgeclf.video import open_video

CLIP = ClipSpec.by_rate(length=20, rate=5.0)
AGGREGATE: Aggregate = "mean"
RECIPE = EFFICIENTNET_LITE0

PARITY_CLIPS = 8
# Chosen by cross-validation over the 18 training groups of ucf101_8 (3 folds): 0.852 of the videos, 0.818 without.
FEATURE_DROPOUT = 0.5

Say = Callable[[str], None]
Steps = Callable[[str, int], AbstractContextManager[Callable[[], None]]]  # a task and its number of steps


def train_lite0_gru(
    dataset: Dataset,
    path: Path,
    name: str,
    settings: FitSettings,
    *,
    cache: Path,
    say: Say,
    steps: Steps,
    about: Mapping[str, Any] | None = None,
) -> ModelDescription:
    """Train on the data set's training split, keep the best epoch on its validation split, write the model directory.

    A test split is measured once, at the end. Videos that cannot be read are reported and left out of training;
    in the test they count as wrong. about: what the model card shall say beside what is known here.
    """
    keras = import_keras()
    keras.utils.set_random_seed(settings.seed)
    extractor = RECIPE.build("imagenet")
    session = extractor_session(extractor, RECIPE.preprocess)
    with steps("features", len(dataset.clips)) as advance:
        features = video_features(
            [clip.path for clip in dataset.clips],
            session,
            extractor_identity(extractor),
            RECIPE.preprocess,
            CLIP,
            cache=cache,
            progress=advance,
        )
    videos = dict(zip(dataset.clips, features, strict=True))
    for video in features:
        if video.error:
            say(f"not wholly read: {video.error}")
    sets = {split: _examples(dataset, videos, split) for split in ("train", "validation")}
    say(f"{len(sets['train'].labels)} training and {len(sets['validation'].labels)} validation clips of features")
    classifier = gru_classifier(CLIP.length, RECIPE.features, len(dataset.labels), feature_dropout=FEATURE_DROPOUT)
    with steps("epochs", settings.epochs) as advance:
        fitted = fit_classifier(
            classifier, sets["train"], sets["validation"], settings, progress=lambda _epoch, _figures: advance()
        )
    evaluation: dict[str, Any] = {
        "validation": {
            "loss": round(fitted.validation_loss, 4),
            "accuracy_of_clips": round(fitted.validation_accuracy, 4),
        }
    }
    if test := dataset.split("test"):
        found = _labels_found([videos[clip] for clip in test], classifier_session(classifier, CLIP), dataset.labels)
        evaluation["test"] = Evaluation(dataset.labels, tuple(clip.label for clip in test), found).to_dict()
    description = ModelDescription(
        name,
        "lite0-gru",
        dataset.labels,
        RECIPE.preprocess,
        CLIP,
        AGGREGATE,
        keras.__version__,
        {**(about or {}), **_provenance(dataset), "fit": asdict(settings), "best_epoch": fitted.best_epoch},
        evaluation,
    )
    write_model(path, description, extractor, classifier, _parity_clips(dataset))
    return description


def _examples(dataset: Dataset, videos: dict[LabelledClip, VideoFeatures], split: str) -> Any:
    clips = [clip for clip in dataset.split(split) if len(videos[clip].rows)]
    if not clips:
        raise DataError(f"no {split} video can be read", hint="check the paths of the data set")
    return examples_of([videos[clip] for clip in clips], [dataset.labels.index(clip.label) for clip in clips], CLIP)


def _labels_found(videos: Sequence[VideoFeatures], classifier: Session, labels: tuple[str, ...]) -> tuple[str, ...]:
    """The label of each video, made of its clips as the runtime does."""
    found = []
    for video in videos:
        clips = video.clips(CLIP)
        if not clips:
            found.append(FAILED)
            continue
        feeds = {
            "features": np.stack([clip.features for clip in clips]),
            "length": np.array([clip.length for clip in clips], np.int32),
        }
        scores = aggregate_scores(classifier.run(feeds)["scores"].tolist(), AGGREGATE)
        found.append(labels[int(np.argmax(scores))])
    return tuple(found)


def _parity_clips(dataset: Dataset) -> list[NDArray[np.uint8]]:
    """The first frames of up to eight validation videos, of different classes as far as there are."""
    videos = sorted(dataset.split("validation"), key=lambda clip: str(clip.path))
    by_turn = sorted(videos, key=lambda clip: [c.path for c in videos if c.label == clip.label].index(clip.path))
    clips: list[NDArray[np.uint8]] = []
    for clip in by_turn:
        opened = partial(open_video, clip.path)
        items = decode(SourceId(0, str(clip.path)), opened, RECIPE.preprocess, CLIP)
        pixels = [item.pixels for item in items if isinstance(item, SampledFrame)][: CLIP.length]
        if pixels and len(clips) < PARITY_CLIPS:
            clips.append(np.stack(pixels))
        if len(clips) == PARITY_CLIPS:
            break
    return clips


def _provenance(dataset: Dataset) -> dict[str, Any]:
    return {
        "extractor": {"name": RECIPE.name, "weights": RECIPE.weights_source, "licence": RECIPE.licence},
        "splits": {
            split: {
                "videos": len(clips),
                "groups": len({clip.group for clip in clips if clip.group}),
                "classes": dict(sorted(Counter(clip.label for clip in clips).items())),
                "sha256_of_all": _hash_of(clips),
            }
            for split in ("train", "validation", "test")
            if (clips := dataset.split(split))
        },
    }


def _hash_of(clips: Sequence[LabelledClip]) -> str:
    """One hash that stands for the bytes and labels of all clips, in whatever order they were listed."""
    import hashlib

    digests = sorted(f"{sha256_of(clip.path)} {clip.label}" for clip in clips if clip.path.is_file())
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
