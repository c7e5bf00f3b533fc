"""From model directories to a bundle: convert, write, prove, and only then put it in its place."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    open_classifiers,
    sha256_of,
    write_manifest,
)
from edgeclf.errors import BundleError, ExportError, ParityError
from edgeclf.export.card import CARD_NAME, model_card
from edgeclf.export.extractor import onnx_from_keras_extractor, onnx_from_keras_network
from edgeclf.export.golden import golden_of
from edgeclf.export.lint import require_lint
from edgeclf.export.lowering import Lowered, Lowering, add_precisions
from edgeclf.export.parity import Check, check_parity, require_parity
from edgeclf.export.report import REPORT_NAME, report_page
from edgeclf.export.sequence_graph import onnx_from_keras_classifier
from edgeclf.model_directory import (
    CLASSIFIER_NAME,
    EXTRACTOR_NAME,
    ModelDescription,
    classifier_session,
    extractor_session,
    load_keras,
    open_keras_model,
    read_description,
)
from edgeclf.runtime.golden import GOLDEN_NAME, write_golden
from edgeclf.runtime.verify import table, verify_bundle
from edgeclf.specs import TensorSpec

EXTRACTOR_GRAPH, CLASSIFIER_GRAPH = "extractor.onnx", "classifier.onnx"

Say = Callable[[str], None]


def export_bundle(
    model_path: Path,
    target: Path,
    *,
    also: Sequence[Path] = (),
    clips: Sequence[str] = (),
    golden: Sequence[str] = (),
    lowering: Lowering | None = None,
    say: Say = lambda _: None,
) -> ModelBundle:
    """Write the bundle `target` of the model directory `model_path`, if it agrees with Keras; it is returned opened.

    also: other model directories with the same extractor, whose classifiers the bundle shall hold too, each by its
    model's name. clips: videos that are compared from decoding to label, beside the frames in the model directory.
    golden: videos of which a few frames go into the bundle, for `edgeclf verify`, beside rendered ones. lowering:
    precisions beside FP32. An older bundle at `target` is replaced; where the gate fails nothing is. Raises BundleError
    where `target` is no place for a bundle, ExportError and ParityError.
    """
    _check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    models, lowering = [model_path, *also], lowering or Lowering()
    lowering.check(models)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
        path = Path(folder, target.name)
        path.mkdir()
        say("converting to ONNX")
        manifest = write_graphs(path, models)
        write_manifest(path, manifest)
        reports = [
            proven(bundle, model, clips, say) for bundle, model in zip(open_classifiers(path), models, strict=True)
        ]
        lowered = add_precisions(path, manifest, models, lowering, say)
        write_golden(path, golden_of([open_keras_model(model) for model in models], clips=golden))
        _finish(path, lowered, models, reports)
        _replay(path, say)
        put_in_place(path, target)
    return open_classifiers(target)[0]


def proven(bundle: ModelBundle, model_path: Path, clips: Sequence[str], say: Say) -> list[Check]:
    """The checks of one classifier, which all passed."""
    say(f"comparing {bundle.classifier.name} with Keras")
    checks = check_parity(bundle, model_path, clips)
    for check in checks:
        say(str(check))
    require_parity(checks)
    return checks


# -- graphs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Graphs:
    """A model directory in ONNX: the bytes of its graphs, and the tensors that they take and give."""

    path: Path
    description: ModelDescription
    extractor: bytes  # empty where the classifier takes frames
    frames: tuple[TensorSpec, ...]
    features: tuple[TensorSpec, ...]
    classifier: bytes
    clips: tuple[TensorSpec, ...]
    scores: tuple[TensorSpec, ...]


def write_graphs(path: Path, models: Sequence[Path]) -> Manifest:
    """Convert model directories with one extractor into the folder `path`; the manifest without parity.

    Raises ExportError where their extractors or preprocessing differ.
    """
    descriptions = [read_description(model) for model in models]
    names = classifier_files([description.name for description in descriptions])
    for model, description in zip(models, descriptions, strict=True):
        if description.preprocess != descriptions[0].preprocess:
            raise ExportError(
                f"{model} preprocesses frames in another way than {models[0]}", hint="export it as its own bundle"
            )
    converted = [graphs_of(model, about) for model, about in zip(models, descriptions, strict=True)]
    first = converted[0]
    _require_one_extractor(converted)
    graphs = {name: one.classifier for name, one in zip(names, converted, strict=True)}
    if first.extractor:
        graphs = {EXTRACTOR_GRAPH: first.extractor, **graphs}
    for name, graph in graphs.items():
        (path / name).write_bytes(graph)
    return Manifest(
        name=first.description.name,
        extractor=ExtractorEntry(
            first.description.preprocess,
            {"fp32": EXTRACTOR_GRAPH} if first.extractor else {},
            first.frames,
            first.features,
        ),
        classifiers=tuple(classifier_entry(one, name) for name, one in zip(names, converted, strict=True)),
        files={name: sha256_of(path / name) for name in graphs},
        parity={},
        provenance=provenance_of(converted),
    )


def graphs_of(model_path: Path, description: ModelDescription) -> Graphs:
    """A model directory converted to ONNX."""
    extractor, classifier = load_keras(model_path)
    frames_to_features = extractor_session(extractor, description.preprocess)
    features_to_scores = classifier_session(classifier, description.clip)
    about_frames = {"schema": "1", "preprocess": json.dumps(description.preprocess.to_dict())}
    about_clips = {
        **(about_frames if extractor is None else {"schema": "1"}),
        "role": "classifier",
        "labels": json.dumps(description.labels, ensure_ascii=False),
        "clip": json.dumps(description.clip.to_dict()),
    }
    if extractor is None:
        extractor_graph, graph = b"", onnx_from_keras_network(classifier)
    else:
        extractor_graph = _bytes(onnx_from_keras_extractor(extractor), {**about_frames, "role": "extractor"})
        graph = onnx_from_keras_classifier(classifier, description.clip)
    return Graphs(
        model_path,
        description,
        extractor_graph,
        frames_to_features.inputs,
        frames_to_features.outputs,
        _bytes(graph, about_clips),
        features_to_scores.inputs,
        features_to_scores.outputs,
    )


def _bytes(model: Any, keys: Mapping[str, str]) -> bytes:
    """The graph's file, with keys that explain it where it is found alone; raises ExportError where it is unfit."""
    from onnx import helper

    require_lint(model, role=keys["role"])
    helper.set_model_props(model, {f"edgeclf.{key}": value for key, value in keys.items()})
    written: bytes = model.SerializeToString(deterministic=True)
    return written


def _require_one_extractor(converted: Sequence[Graphs]) -> None:
    """A bundle has one: that of all models must be the same to the last byte."""
    for other in converted:
        if other.extractor != converted[0].extractor:
            raise ExportError(
                f"{other.path} has another extractor than {converted[0].path}: their graphs differ",
                hint="export it as its own bundle",
            )


def classifier_files(names: Sequence[str]) -> list[str]:
    """The file of each classifier; raises ExportError where the names of the models do not fit beside each other."""
    for place, name in enumerate(names):
        if name in names[:place]:
            raise ExportError(f"two models are called {name!r}", hint="train one of them with another name")
        if len(names) > 1 and not re.fullmatch(r"\w[\w.-]*", name):
            raise ExportError(f"{name!r} cannot name one of several classifiers", hint="use letters, digits, - and _")
    files = [CLASSIFIER_GRAPH, *(f"{name}.onnx" for name in names[1:])]
    if taken := {EXTRACTOR_GRAPH, CLASSIFIER_GRAPH} & set(files[1:]):
        raise ExportError(f"a classifier's file cannot be {', '.join(taken)}", hint="give the model another name")
    return files


def classifier_entry(graphs: Graphs, file: str) -> ClassifierEntry:
    """What the manifest says of a classifier whose graph is in `file`."""
    description = graphs.description
    return ClassifierEntry(
        description.name,
        description.labels,
        description.clip,
        description.aggregate,
        {"fp32": file},
        graphs.clips,
        graphs.scores,
        description.evaluation,
        description.thresholds,
    )


def provenance_of(converted: Sequence[Graphs]) -> dict[str, Any]:
    """That of the first model, and under `also` of the others by their names."""
    first, *others = converted
    return {
        **_origin(first),
        "exported_with": {
            "edgeclf": __version__,
            **{name: version(name) for name in ("keras", "tensorflow", "tf2onnx", "onnx")},
        },
        **({"also": {other.description.name: _origin(other) for other in others}} if others else {}),
    }


def _origin(graphs: Graphs) -> dict[str, Any]:
    description = graphs.description
    files = (EXTRACTOR_NAME, CLASSIFIER_NAME) if description.has_extractor else (CLASSIFIER_NAME,)
    return {
        "recipe": description.recipe,
        **description.provenance,
        "model_files": {name: sha256_of(graphs.path / name) for name in files},
        "trained_with": {"keras": description.keras_version},
    }


# -- folders ----------------------------------------------------------------------------------------------------------


def _finish(path: Path, lowered: Lowered, models: Sequence[Path], reports: Sequence[Sequence[Check]]) -> None:
    """Add the report, in which each check names its classifier, the same as a page, and the model card."""
    manifest = lowered.manifest
    cards = [
        model_card(
            read_description(model),
            checks,
            [one for one in lowered.reports if one.classifier == entry.name and one.precision not in lowered.left_out],
        )
        for model, checks, entry in zip(models, reports, manifest.classifiers, strict=True)
    ]
    (path / CARD_NAME).write_text("\n".join(cards), encoding="utf-8")
    written = manifest.to_dict()
    written["parity"] = {
        "fp32": [
            {"classifier": entry.name, **check.to_dict()}
            for entry, checks in zip(manifest.classifiers, reports, strict=True)
            for check in checks
        ],
        **{
            precision: [report.to_dict() for report in lowered.reports if report.precision == precision]
            for precision in dict.fromkeys(report.precision for report in lowered.reports)
        },
        **({"left_out": lowered.left_out} if lowered.left_out else {}),
    }
    (path / REPORT_NAME).write_text(report_page(written), encoding="utf-8")
    for name in (CARD_NAME, REPORT_NAME, GOLDEN_NAME):
        written["files"][name] = sha256_of(path / name)
    write_manifest(path, Manifest.from_dict(json.loads(json.dumps(written))))


def _replay(path: Path, say: Say) -> None:
    """The bundle as it was written gives its golden answers, as `edgeclf verify` will ask of it elsewhere."""
    verdicts = [
        verdict
        for bundle in open_classifiers(path)
        for verdict in verify_bundle(bundle, device="cpu", precisions=["fp32"])
    ]
    if failed := [verdict for verdict in verdicts if not verdict.passed]:
        raise ParityError(
            "the bundle does not give its own golden answers:\n" + table(path, failed), hint="nothing was written"
        )
    say("golden inputs replayed")


def put_in_place(path: Path, target: Path) -> None:
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
