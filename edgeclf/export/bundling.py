"""From a model directory to a bundle: convert, write, prove, and only then put it in its place."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgeclf import __version__
from edgeclf.bundle import (
    MANIFEST_NAME,
    ClassifierEntry,
    ExtractorEntry,
    Manifest,
    ModelBundle,
    open_bundle,
    sha256_of,
    write_manifest,
)
from edgeclf.errors import BundleError, ExportError
from edgeclf.export.card import CARD_NAME, model_card
from edgeclf.export.extractor import onnx_from_keras_extractor
from edgeclf.export.parity import Check, check_parity, require_parity
from edgeclf.export.recurrent import onnx_from_keras_classifier
from edgeclf.model_directory import (
    CLASSIFIER_NAME,
    EXTRACTOR_NAME,
    ModelDescription,
    classifier_session,
    extractor_session,
    load_keras,
    read_description,
)

EXTRACTOR_GRAPH, CLASSIFIER_GRAPH = "extractor.onnx", "classifier.onnx"

Say = Callable[[str], None]


def export_bundle(
    model_path: Path, target: Path, *, clips: Sequence[str] = (), say: Say = lambda _: None
) -> ModelBundle:
    """Write the bundle `target` of the model directory `model_path`, if it agrees with Keras.

    clips: videos that are compared from decoding to label, beside the frames in the model directory. An
    older bundle at `target` is replaced; where the gate fails nothing is. Raises BundleError where
    `target` is no place for a bundle, ExportError and ParityError.
    """
    _check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
        path = Path(folder, target.name)
        path.mkdir()
        say("converting the extractor and the classifier")
        manifest = write_graphs(path, model_path)
        write_manifest(path, manifest)
        say("comparing with Keras")
        checks = check_parity(open_bundle(path), model_path, clips)
        for check in checks:
            say(str(check))
        require_parity(checks)
        _finish(path, manifest, read_description(model_path), checks)
        _put_in_place(path, target)
    return open_bundle(target)


def write_graphs(path: Path, model_path: Path) -> Manifest:
    """Convert both models into the folder `path`; the manifest of what was written, without parity."""
    description = read_description(model_path)
    if description.clip.padding != "mask":
        raise ExportError(f"padding {description.clip.padding!r} cannot be exported yet", hint="train with 'mask'")
    extractor, classifier = load_keras(model_path)
    shared = {"schema": "1", "preprocess": json.dumps(description.preprocess.to_dict())}
    _save(onnx_from_keras_extractor(extractor), path / EXTRACTOR_GRAPH, {**shared, "role": "extractor"})
    _save(
        onnx_from_keras_classifier(classifier, description.clip),
        path / CLASSIFIER_GRAPH,
        {
            "schema": "1",
            "role": "classifier",
            "labels": json.dumps(description.labels, ensure_ascii=False),
            "clip": json.dumps(description.clip.to_dict()),
        },
    )
    frames_to_features = extractor_session(extractor, description.preprocess)
    features_to_scores = classifier_session(classifier, description.clip)
    return Manifest(
        name=description.name,
        extractor=ExtractorEntry(
            description.preprocess,
            {"fp32": EXTRACTOR_GRAPH},
            frames_to_features.inputs,
            frames_to_features.outputs,
        ),
        classifiers=(
            ClassifierEntry(
                description.name,
                description.labels,
                description.clip,
                description.aggregate,
                {"fp32": CLASSIFIER_GRAPH},
                features_to_scores.inputs,
                features_to_scores.outputs,
                description.evaluation,
            ),
        ),
        files={name: sha256_of(path / name) for name in (EXTRACTOR_GRAPH, CLASSIFIER_GRAPH)},
        parity={},
        provenance=_provenance(model_path, description),
    )


def _save(model: Any, path: Path, keys: dict[str, str]) -> None:
    """Write the graph, with keys that explain it where it is found alone."""
    from onnx import helper

    helper.set_model_props(model, {f"edgeclf.{key}": value for key, value in keys.items()})
    path.write_bytes(model.SerializeToString(deterministic=True))


def _provenance(model_path: Path, description: ModelDescription) -> dict[str, Any]:
    return {
        "recipe": description.recipe,
        **description.provenance,
        "model_files": {name: sha256_of(model_path / name) for name in (EXTRACTOR_NAME, CLASSIFIER_NAME)},
        "trained_with": {"keras": description.keras_version},
        "exported_with": {
            "edgeclf": __version__,
            **{name: version(name) for name in ("keras", "tensorflow", "tf2onnx", "onnx")},
        },
    }


def _finish(path: Path, manifest: Manifest, description: ModelDescription, checks: list[Check]) -> None:
    """Add the report and the model card."""
    (path / CARD_NAME).write_text(model_card(manifest, description, checks), encoding="utf-8")
    written = manifest.to_dict()
    written["files"][CARD_NAME] = sha256_of(path / CARD_NAME)
    written["parity"] = {"fp32": [check.to_dict() for check in checks]}
    write_manifest(path, Manifest.from_dict(json.loads(json.dumps(written))))


def _put_in_place(path: Path, target: Path) -> None:
    """Rename the finished bundle; an older one is moved aside first, and back if that fails."""
    older = path.with_name("older")
    if target.exists():
        target.rename(older)
    try:
        path.rename(target)
    except OSError:
        if older.exists():
            older.rename(target)
        raise


def _check_target(target: Path) -> None:
    if target.suffix != ".edgeclf":
        raise BundleError(f"{target} is no name for a bundle", hint="name it NAME.edgeclf")
    if target.exists() and not (target / MANIFEST_NAME).is_file():
        raise BundleError(f"{target} exists and is no bundle", hint="choose another name")
