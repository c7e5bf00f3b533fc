"""An opened model: two sessions and what the manifest says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.bundle import ClassifierEntry, ExtractorEntry, ModelBundle
from edgeclf.errors import BundleError
from edgeclf.runtime.session import MAX_BATCH, Arrays, Placement, Session, open_session
from edgeclf.specs import Aggregate, ClipSpec, Device, PreprocessSpec, Resize, TensorSpec

Floats = NDArray[np.float32]
BF16 = "bf16"  # a way to calculate rather than a graph


@dataclass(frozen=True, slots=True)
class Model:
    """Everything that the loop needs of a model, whoever opened it."""

    name: str
    labels: tuple[str, ...]
    preprocess: PreprocessSpec
    clip: ClipSpec
    aggregate: Aggregate
    extractor: Session
    classifier: Session
    thresholds: tuple[float, ...] = ()  # of each label; a winner below its own is "unknown"; none: nothing is
    sample_fps: float | None = None  # frames a second, where they are other than the model was trained with

    def with_threshold(self, threshold: float | None) -> Model:
        """The same model with one threshold for all labels; with its own ones for None."""
        return self if threshold is None else replace(self, thresholds=(threshold,) * len(self.labels))

    def resizing(self, resize: Resize) -> Model:
        """The same model with another way to resize pictures than the one it was trained with."""
        return replace(self, preprocess=replace(self.preprocess, resize=resize))

    def sampling_at(self, rate: float) -> Model:
        """The same model with clips of `rate` frames a second, whatever it was trained with; 0.01 to 1000."""
        return replace(self, clip=self.clip.at_rate(rate), sample_fps=rate)

    def extract(self, frames: NDArray[np.uint8]) -> NDArray[Any]:
        """Features float32 (N, F) of frames uint8 (N, H, W, 3) RGB, or (N, K, H, W, 3) where pictures are stacked.

        Where the classifier takes frames, a frame is its own feature.
        """
        return _first_output(self.extractor, {self.extractor.inputs[0].name: frames})

    def classify(self, features: NDArray[Any], lengths: NDArray[np.int32]) -> Floats:
        """Scores float32 (N, C) of clips of features (N, T, F); rows of a clip from its length on are padding.

        Clips run one by one: reductions such as softmax are vectorised over the batch in some kernels, so that a
        clip's last bit would depend on its neighbours. It costs 7 microseconds a clip (19 instead of 12).
        """
        names = [spec.name for spec in self.classifier.inputs]
        scores = [
            _first_output(self.classifier, dict(zip(names, (features[n : n + 1], lengths[n : n + 1]), strict=False)))
            for n in range(len(features))
        ]
        return np.concatenate(scores)

    def close(self) -> None:
        """Close both sessions."""
        self.extractor.close()
        self.classifier.close()


def open_model(
    bundle: ModelBundle,
    device: Device = "auto",
    *,
    precision: str = "fp32",
    backend: str | None = None,
    threads: int = 1,
    max_batch: int = MAX_BATCH,
) -> Model:
    """The model of a bundle with its extractor on `device`; the classifier runs on one CPU thread.

    A classifier that takes frames is what runs on `device`. backend, threads and max_batch are those of
    `open_session`, for what runs there. Precision "bf16" runs the fp32 graph, where the backend can. Raises BundleError
    where a graph is not what the manifest says.
    """
    (model,) = open_models([bundle], device, precision=precision, backend=backend, threads=threads, max_batch=max_batch)
    return model


def open_models(
    bundles: Sequence[ModelBundle],
    device: Device = "auto",
    *,
    precision: str = "fp32",
    backend: str | None = None,
    threads: int = 1,
    max_batch: int = MAX_BATCH,
) -> tuple[Model, ...]:
    """The models of bundles that have the same extractor, of which one session serves all; as `open_model`.

    Raises BundleError where two differ in their extractor, or have one name.
    """
    _check_together(bundles, precision)

    def on_device(bundle: ModelBundle, entry: ExtractorEntry | ClassifierEntry) -> Session:
        graph = bundle.graph(entry, "fp32" if precision == BF16 else precision)
        return open_session(graph, device, precision=precision, backend=backend, threads=threads, max_batch=max_batch)

    def classifier_of(bundle: ModelBundle) -> Session:
        if not bundle.extractor.has_graph:
            return on_device(bundle, bundle.classifier)
        return open_session(bundle.graph(bundle.classifier), "cpu")

    first = bundles[0]
    with ExitStack() as opened:
        extractor: Session = FramesAsFeatures(first.extractor.preprocess)
        if first.extractor.has_graph:
            extractor = on_device(first, first.extractor)
            opened.callback(extractor.close)
        _check_tensors("extractor", first.extractor, extractor)
        models = []
        for bundle in bundles:
            classifier = classifier_of(bundle)
            opened.callback(classifier.close)
            _check_tensors("classifier", bundle.classifier, classifier)
            models.append(_model(bundle, extractor, classifier))
        opened.pop_all()
    return tuple(models)


def _model(bundle: ModelBundle, extractor: Session, classifier: Session) -> Model:
    entry = bundle.classifier
    return Model(
        entry.name,
        entry.labels,
        bundle.extractor.preprocess,
        entry.clip,
        entry.aggregate,
        extractor,
        classifier,
        thresholds_of(entry.thresholds, entry.labels),
    )


def _check_together(bundles: Sequence[ModelBundle], precision: str) -> None:
    names = [bundle.classifier.name for bundle in bundles]
    if len(set(names)) < len(names):
        raise BundleError(f"two classifiers have one name: {', '.join(names)}", hint="name each once")
    for bundle in bundles[1:]:
        if _extractor_of(bundle, precision) != _extractor_of(bundles[0], precision):
            raise BundleError(
                f"{names[0]!r} and {bundle.classifier.name!r} have different extractors",
                hint="run them one after the other, or attach one classifier to the other's bundle",
            )


def _extractor_of(bundle: ModelBundle, precision: str) -> tuple[object, ...]:
    """What two bundles must have in common for one extractor to serve both."""
    files = bundle.extractor.precisions
    name = files.get("fp32" if precision == BF16 else precision)
    return bundle.extractor.preprocess, name and bundle.manifest.files[name]


def thresholds_of(thresholds: Mapping[str, float], labels: tuple[str, ...]) -> tuple[float, ...]:
    """The thresholds in the order of the labels, 0 for those that have none; empty where there are none at all."""
    return tuple(thresholds.get(label, 0.0) for label in labels) if thresholds else ()


class FramesAsFeatures:
    """A session in the extractor's place where the classifier takes frames: each frame is its own feature."""

    def __init__(self, preprocess: PreprocessSpec) -> None:
        self.inputs = (TensorSpec("frames", "uint8", (None, *preprocess.input_shape)),)
        self.outputs = self.inputs
        self.placement = Placement("none", "frames as they are", "cpu", "uint8", 1)

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        return dict(feeds)

    def close(self) -> None:
        """Nothing is held."""


def _first_output(session: Session, feeds: dict[str, NDArray[Any]]) -> NDArray[Any]:
    return session.run(feeds)[session.outputs[0].name]


def _check_tensors(role: str, entry: Any, session: Session) -> None:
    for said, found in ((entry.inputs, session.inputs), (entry.outputs, session.outputs)):
        if said != found:
            raise BundleError(
                f"manifest says the {role} has {_listed(said)}, the graph has {_listed(found)}",
                hint="export it again from its model directory",
            )


def _listed(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(map(str, specs))
