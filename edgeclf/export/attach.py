"""One more classifier for a bundle that is there: convert, compare, and only then replace the bundle."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeclf.bundle import Manifest, ModelBundle, open_bundle, open_classifiers, sha256_of, write_manifest
from edgeclf.dataset import Dataset
from edgeclf.errors import ExportError
from edgeclf.export.bundling import (
    Graphs,
    Say,
    classifier_entry,
    classifier_files,
    graphs_of,
    proven,
    provenance_of,
    put_in_place,
)
from edgeclf.export.card import CARD_NAME, model_card
from edgeclf.export.golden import with_classifier
from edgeclf.export.lowering import judge_attached
from edgeclf.export.parity import Check
from edgeclf.export.precision import MIN_WINDOWS, PrecisionReport
from edgeclf.export.report import REPORT_NAME, report_page
from edgeclf.model_directory import open_keras_model, read_description
from edgeclf.runtime.golden import GOLDEN_NAME, read_golden, write_golden

_APART = "export it as its own bundle, or all of them anew: edgeclf export A -o B.edgeclf --also C"


def attach_classifier(
    path: Path,
    model_path: Path,
    *,
    clips: Sequence[str] = (),
    data: Dataset | None = None,
    split: str = "test",
    min_windows: int = MIN_WINDOWS,
    say: Say = lambda _: None,
) -> ModelBundle:
    """Add the classifier of a model directory to the bundle in the folder `path`; it is returned opened and chosen.

    Its extractor must become the very bytes that the bundle holds, and the new classifier passes the gate of export, in
    every precision of the extractor. clips: videos that are compared from decoding to label. data: labelled clips that
    lower precisions are judged on, those of `split`; INT8 asks for them, and for `min_windows` windows of them. What
    stood in the bundle stays as it is, byte for byte but for manifest, report, model card and golden inputs, which
    grow. Raises ExportError where the model does not fit, and ParityError; the bundle is then as it was.
    """
    held = open_classifiers(path)[0]
    description = read_description(model_path)
    file = _file_of(held.manifest, description.name)
    if description.preprocess != held.extractor.preprocess:
        raise ExportError(f"{model_path} preprocesses frames in another way than {path}", hint=_APART)
    say("converting to ONNX")
    converted = graphs_of(model_path, description)
    _require_extractor(held, converted)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".attach-") as folder:
        copy = Path(shutil.copytree(path, Path(folder, path.name)))
        (copy / file).write_bytes(converted.classifier)
        manifest = _with_classifier(held.manifest, converted, file, sha256_of(copy / file))
        write_manifest(copy, manifest)
        attached = open_bundle(f"{copy}#{description.name}")
        checks = proven(attached, model_path, clips, say)
        reports = judge_attached(attached, model_path, data, split=split, min_windows=min_windows, say=say)
        _finish(copy, manifest, held, converted, checks, reports)
        open_bundle(f"{copy}#{description.name}")
        put_in_place(copy, path)
    return open_bundle(f"{path}#{description.name}")


def _file_of(manifest: Manifest, name: str) -> str:
    """The file of the new classifier, whose name must fit beside those that are there."""
    file = classifier_files([*(entry.name for entry in manifest.classifiers), name])[-1]
    if file in manifest.files:
        raise ExportError(f"the bundle holds a file {file} already", hint="train the model with another name")
    return file


def _require_extractor(held: ModelBundle, converted: Graphs) -> None:
    there = held.graph(held.extractor).read_bytes() if held.extractor.has_graph else b""
    if converted.extractor != there:
        raise ExportError(
            f"{converted.path} has another extractor than {held.path}: their graphs differ, by their weights or by the "
            "versions that converted them",
            hint=_APART,
        )


def _with_classifier(manifest: Manifest, converted: Graphs, file: str, digest: str) -> Manifest:
    provenance = dict(manifest.provenance)
    provenance["also"] = {**provenance.get("also", {}), converted.description.name: provenance_of([converted])}
    return replace(
        manifest,
        classifiers=(*manifest.classifiers, classifier_entry(converted, file)),
        files={**manifest.files, file: digest},
        provenance=provenance,
    )


def _finish(
    copy: Path,
    manifest: Manifest,
    held: ModelBundle,
    converted: Graphs,
    checks: Sequence[Check],
    reports: Sequence[PrecisionReport],
) -> None:
    """Add the reports, the model card and the golden answers, and the hashes of what changed."""
    changed = [CARD_NAME, REPORT_NAME]
    card = copy / CARD_NAME
    before = [card.read_text(encoding="utf-8")] if card.exists() else []
    card.write_text("\n".join([*before, model_card(converted.description, checks, reports)]), encoding="utf-8")
    if GOLDEN_NAME in manifest.files:
        write_golden(copy, with_classifier(read_golden(held), open_keras_model(converted.path)))
        changed.append(GOLDEN_NAME)
    parity = _with_report(manifest, converted.description.name, checks, reports)
    page = report_page(replace(manifest, parity=parity).to_dict())
    (copy / REPORT_NAME).write_text(page, encoding="utf-8")
    files = {**manifest.files, **{name: sha256_of(copy / name) for name in changed}}
    write_manifest(copy, replace(manifest, files=files, parity=parity))


def _with_report(
    manifest: Manifest, name: str, checks: Sequence[Check], reports: Sequence[PrecisionReport]
) -> dict[str, Any]:
    """The parity report with one more classifier's checks; each check names its classifier."""
    first = manifest.classifiers[0].name
    before = [{"classifier": first, **check} for check in manifest.parity.get("fp32", [])]
    added = {report.precision: [*manifest.parity[report.precision], report.to_dict()] for report in reports}
    fp32 = [*before, *({"classifier": name, **check.to_dict()} for check in checks)]
    return {**manifest.parity, **added, "fp32": fp32}
