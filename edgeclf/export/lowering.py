"""Lower precisions of a bundle: made, judged on real clips, and kept only where they pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeclf.bundle import (
    ClassifierEntry,
    ExtractorEntry,
    Manifest,
    ModelBundle,
    open_classifiers,
    sha256_of,
    write_manifest,
)
from edgeclf.dataset import Dataset
from edgeclf.errors import ExportError
from edgeclf.export.half import half_from_onnx, half_share
from edgeclf.export.lint import require_lint
from edgeclf.export.precision import LIMITS, MIN_WINDOWS, PrecisionReport, Reference, judge, require_precision
from edgeclf.export.quantize import QuantisationForm, int8_from_onnx, int8_share, layer_count
from edgeclf.export.windows import SampledClip, calibration_input, parity_clips, sampled_clips
from edgeclf.layouts import LabelledClip
from edgeclf.runtime.cores import available_cores
from edgeclf.runtime.model import open_model
from edgeclf.runtime.session import CPU_PRECISIONS

Say = Callable[[str], None]
_Entry = TypeVar("_Entry", ExtractorEntry, ClassifierEntry)


# INT8 in the form that TensorRT takes, and in the one that CPUs are faster with (ONNX Runtime's names for both).
_FORMS: Mapping[str, QuantisationForm] = {
    "int8": QuantisationForm(symmetric=True),
    "u8s8": QuantisationForm(symmetric=False),
}
_FLOAT_LAYERS = (4, 10)  # of INT8 are tried one after the other where the gate is not passed without


@dataclass(frozen=True, slots=True)
class Lowering:
    """Which precisions a bundle shall hold beside FP32, and the clips that decide about them."""

    precisions: tuple[str, ...] = ()
    data: tuple[Dataset, ...] = ()  # labelled clips of each model, in the models' order; may be left out for FP16 alone
    split: str = "test"  # the clips that they are judged on; those of "train" calibrate INT8
    allow: bool = False  # a precision that fails is left out, instead of the whole bundle
    min_windows: int = MIN_WINDOWS

    def __post_init__(self) -> None:
        for precision in self.precisions:
            if precision not in LIMITS:
                raise ExportError(f"there is no precision {precision!r}", hint=f"choose of {', '.join(LIMITS)}")
        if set(self.precisions) & set(_FORMS) and not self.data:
            raise ExportError(
                "INT8 is calibrated on training clips and judged on labelled ones", hint="name them with --data"
            )

    def check(self, models: Sequence[Path]) -> None:
        """Raise ExportError unless there are labelled clips for each model, or none at all."""
        if self.data and len(self.data) != len(models):
            raise ExportError(
                f"{len(models)} models need labelled clips each, {len(self.data)} sets are there",
                hint="name --data once for each model, in their order",
            )


@dataclass(frozen=True, slots=True)
class Lowered:
    """The manifest with the precisions that passed, all reports, and why the others were left out."""

    manifest: Manifest
    reports: tuple[PrecisionReport, ...] = ()
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)


def add_precisions(path: Path, manifest: Manifest, models: Sequence[Path], lowering: Lowering, say: Say) -> Lowered:
    """Write the graphs of all precisions into the bundle in the folder `path`, judge them, and keep those that pass.

    The bundle's FP32 graphs are there and proven. INT8 that fails is tried again with more of its first layers in
    float32. Raises ParityError where a precision fails and may not be left out.
    """
    lowered, maker = Lowered(manifest), _Maker(path, tuple(models), lowering, say)
    for precision in dict.fromkeys(lowering.precisions):
        lowered = _with_precision(lowered, precision, maker)
    return lowered


def _with_precision(lowered: Lowered, precision: str, maker: _Maker) -> Lowered:
    """What there is with one precision more, or with the reasons why it is not there."""
    lowering, reports = maker.lowering, list[PrecisionReport]()
    try:
        for float_layers in maker.steps(lowered.manifest, precision):
            manifest, reports = maker.judged(lowered.manifest, precision, float_layers)
            failures = [
                f"{one.classifier}: {failure}"
                for one in reports
                for failure in one.failures(min_windows=lowering.min_windows)
            ]
            if not failures:
                return Lowered(manifest, (*lowered.reports, *reports), lowered.left_out)
        if not lowering.allow:
            hint = "nothing was written; --allow leaves such a precision out of the bundle"
            require_precision(reports, min_windows=lowering.min_windows, hint=hint)
    except ExportError as error:
        if not lowering.allow:
            raise
        failures = [str(error)]
    for file in maker.path.glob(f"*.{precision}.onnx"):
        file.unlink()
    write_manifest(maker.path, lowered.manifest)
    return Lowered(lowered.manifest, (*lowered.reports, *reports), {**lowered.left_out, precision: failures})


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes a precision of the bundle in a folder, and judges it."""

    path: Path
    models: tuple[Path, ...]
    lowering: Lowering
    say: Say
    references: dict[int, Reference] = field(default_factory=dict)  # of each classifier
    calibration: list[NDArray[np.uint8]] = field(default_factory=list)  # read once

    def steps(self, manifest: Manifest, precision: str) -> Iterator[int]:
        """How many layers stay in FP32, in the order in which that is tried; never half of them."""
        import onnx

        yield 0
        if precision in _FORMS:
            entry = manifest.extractor if manifest.extractor.has_graph else manifest.classifiers[0]
            layers = layer_count(onnx.load(self.path / entry.precisions["fp32"]))
            yield from (count for count in _FLOAT_LAYERS if 2 * count < layers)

    def judged(self, manifest: Manifest, precision: str, float_layers: int) -> tuple[Manifest, list[PrecisionReport]]:
        """The manifest with the precision, whose graphs are written, and a report for each classifier."""
        self.say(f"converting to {precision}" + (f", first {float_layers} layers in fp32" if float_layers else ""))
        manifest, share = self._written(manifest, precision, float_layers)
        write_manifest(self.path, manifest)
        self.say(f"judging {precision}")
        opened = enumerate(open_classifiers(self.path))
        reports = [self._report(number, bundle, precision, share) for number, bundle in opened]
        return manifest, reports

    def _written(self, manifest: Manifest, precision: str, float_layers: int) -> tuple[Manifest, float]:
        """The manifest with graphs of what runs on the device, and the least share of their layers."""
        entries = [manifest.extractor] if manifest.extractor.has_graph else list(manifest.classifiers)
        shares, names = [], {}
        for entry in entries:
            source = entry.precisions["fp32"]
            names[source] = source.replace(".onnx", f".{precision}.onnx")
            model, share = self._lowered(source, precision, manifest, float_layers)
            (self.path / names[source]).write_bytes(model.SerializeToString(deterministic=True))
            shares.append(share)
        return _with_files(self.path, manifest, precision, names), min(shares)

    def _lowered(self, source: str, precision: str, manifest: Manifest, float_layers: int) -> tuple[Any, float]:
        """A graph in another precision, with its keys, and the share of layers that calculate in it."""
        import onnx

        model = onnx.load(self.path / source)
        keys = {entry.key: entry.value for entry in model.metadata_props} | {"edgeclf.precision": precision}
        if precision == "fp16":
            lowered = half_from_onnx(model)
            share = half_share(lowered)
        else:
            form = replace(_FORMS[precision], float_layers=float_layers)
            lowered = int8_from_onnx(model, self._calibration(manifest), form)
            share = int8_share(lowered)
            keys["edgeclf.quantisation"] = json.dumps(asdict(form))
        onnx.helper.set_model_props(lowered, keys)
        if precision not in CPU_PRECISIONS:
            require_lint(lowered, role=source, tensorrt=True)
        return lowered, share

    def _calibration(self, manifest: Manifest) -> NDArray[np.uint8]:
        """Input of the graph, of training clips; of all clips where there are no splits."""
        if not self.calibration:
            training = [one for data in self.lowering.data for one in clips_of(data, "train")]
            clip, whole = manifest.classifiers[0].clip, not manifest.extractor.has_graph
            self.calibration.append(calibration_input(training, manifest.extractor.preprocess, clip, whole=whole))
        return self.calibration[0]

    def _report(self, number: int, bundle: ModelBundle, precision: str, share: float) -> PrecisionReport:
        if number not in self.references:
            self.references[number] = Reference(open_model(bundle, "cpu", threads=available_cores()))
        data = self.lowering.data[number] if self.lowering.data else None
        clips = _clips(bundle, self.models[number], data, self.lowering.split)
        report = _judged(bundle, self.references[number], precision, share, clips)
        self.say(str(report))
        return report


def judge_attached(
    bundle: ModelBundle, model_path: Path, data: Dataset | None, *, split: str, min_windows: int, say: Say
) -> list[PrecisionReport]:
    """Reports of a classifier that comes to an extractor that is there in lower precisions, all of which passed.

    data: labelled clips of the classifier, which INT8 asks for. Raises ExportError and ParityError.
    """
    held = [precision for precision in bundle.extractor.precisions if precision != "fp32"]
    if data is None and set(held) & set(_FORMS):
        raise ExportError(f"{bundle.path} holds {', '.join(held)}", hint="name labelled clips to judge with --data")
    reference = Reference(open_model(bundle, "cpu", threads=available_cores()))
    reports = []
    for precision in held:
        judged = bundle.manifest.parity.get(precision) or [{}]
        share = judged[0].get("share_of_layers", 1.0)
        reports.append(_judged(bundle, reference, precision, share, _clips(bundle, model_path, data, split)))
        say(str(reports[-1]))
    require_precision(reports, min_windows=min_windows, hint="the bundle stays as it is")
    return reports


def _judged(
    bundle: ModelBundle, reference: Reference, precision: str, share: float, clips: Iterator[SampledClip]
) -> PrecisionReport:
    with closing(open_model(bundle, "cpu", precision=precision, threads=available_cores())) as lowered:
        return judge(reference, lowered, precision, share, clips)


def clips_of(data: Dataset, split: str) -> Sequence[LabelledClip]:
    """The clips of a split; all where the data have no splits. Raises ExportError where only this one is empty."""
    if not data.has_splits:
        return data.clips
    if not (chosen := data.split(split)):
        raise ExportError(
            f"the labelled clips have no split {split!r}", hint="INT8 is calibrated on train, and judged on --split"
        )
    return chosen


def _clips(bundle: ModelBundle, model: Path, data: Dataset | None, split: str) -> Iterator[SampledClip]:
    """Labelled clips of the split, all where there are no splits; the model's own few clips without any."""
    if data is None:
        return parity_clips(model)
    entry = bundle.classifier
    known = [clip for clip in clips_of(data, split) if clip.label in entry.labels]
    return sampled_clips(known, bundle.extractor.preprocess, entry.clip)


def _with_files(path: Path, manifest: Manifest, precision: str, names: Mapping[str, str]) -> Manifest:
    """The manifest with files of one more precision. names: of the FP32 files to those of the precision."""

    def named(entry: _Entry) -> _Entry:
        file = names.get(entry.precisions.get("fp32", ""))
        return replace(entry, precisions={**entry.precisions, precision: file}) if file else entry

    return replace(
        manifest,
        extractor=named(manifest.extractor),
        classifiers=tuple(map(named, manifest.classifiers)),
        files={**manifest.files, **{file: sha256_of(path / file) for file in names.values()}},
    )
