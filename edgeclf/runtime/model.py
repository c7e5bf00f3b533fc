"""An opened model: two sessions and what the manifest says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.bundle import ModelBundle
from edgeclf.errors import BundleError
from edgeclf.runtime.session import Session, open_session
from edgeclf.specs import Aggregate, ClipSpec, Device, PreprocessSpec, TensorSpec

Floats = NDArray[np.float32]


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

    def extract(self, frames: NDArray[np.uint8]) -> Floats:
        """Features float32 (N, F) of frames uint8 (N, H, W, 3) RGB."""
        return _first_output(self.extractor, {self.extractor.inputs[0].name: frames})

    def classify(self, features: Floats, lengths: NDArray[np.int32]) -> Floats:
        """Scores float32 (N, C) of clips float32 (N, T, F); rows of a clip from its length on are padding.

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


def open_model(bundle: ModelBundle, device: Device = "auto", *, precision: str = "fp32", threads: int = 1) -> Model:
    """The model of a bundle with its sessions on `device`; the classifier always runs on one CPU thread.

    threads: inside one run of the extractor. Raises BundleError where a graph is not what the manifest says.
    """
    extractor = open_session(bundle.graph(bundle.extractor, precision), device, precision=precision, threads=threads)
    classifier = open_session(bundle.graph(bundle.classifier), "cpu")
    _check_tensors("extractor", bundle.extractor, extractor)
    _check_tensors("classifier", bundle.classifier, classifier)
    entry = bundle.classifier
    return Model(
        entry.name, entry.labels, bundle.extractor.preprocess, entry.clip, entry.aggregate, extractor, classifier
    )


def _first_output(session: Session, feeds: dict[str, NDArray[Any]]) -> Floats:
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
