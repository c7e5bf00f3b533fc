"""Whether a bundle gives its own answers here: its golden inputs are replayed on a device of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeclf.bundle import ModelBundle
from edgeclf.errors import SessionError
from edgeclf.metrics import changed_winners, cosines
from edgeclf.runtime.golden import Golden, read_golden
from edgeclf.runtime.model import Model, open_model
from edgeclf.runtime.session import CPU_PRECISIONS, MAX_BATCH
from edgeclf.specs import Device


@dataclass(frozen=True, slots=True)
class Allowed:
    """How far the answers of a precision may lie from the original's."""

    cosine: float  # between the features of each frame, at the least
    score: float | None  # the largest difference of a score; None: labels alone count
    margin: float  # between the first two scores; closer ones may change places


ALLOWED = {
    "fp32": Allowed(cosine=0.9999, score=1e-4, margin=1e-3),
    "fp16": Allowed(cosine=0.999, score=None, margin=0.05),
}
# Of INT8, bfloat16 and whatever else a bundle may hold. What they cost in accuracy is measured when they are exported;
# on rendered scenes, which are not what INT8 was calibrated on, a winner by a quarter has been seen to change.
COARSE = Allowed(cosine=0.9, score=None, margin=0.5)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of replaying one precision."""

    classifier: str
    precision: str
    extractor: str  # what really ran it; empty where it could not run
    sequence: str  # likewise of the classifier
    frames: int
    clips: int
    cosine_min: float  # between the features here and the original's; of the scores where there is no extractor
    cosine_mean: float
    max_difference: float  # of a score
    changed_labels: int  # of clips that have a clear winner
    allowed: Allowed
    problem: str = ""  # why it could not run

    @property
    def passed(self) -> bool:
        """Within everything that is allowed; a NaN is not."""
        return not self.faults

    @property
    def faults(self) -> tuple[str, ...]:
        """What is not within what is allowed."""
        if self.problem:
            return (self.problem,)
        limit = self.allowed.score
        checks = {
            f"cosine below {self.allowed.cosine:g}": self.cosine_min >= self.allowed.cosine,
            f"scores off by more than {limit}": limit is None or self.max_difference <= limit,
            "labels changed": self.changed_labels == 0,
        }
        return tuple(fault for fault, holds in checks.items() if not holds)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary; figures that are no numbers are null."""
        return {
            "classifier": self.classifier,
            "precision": self.precision,
            "passed": self.passed,
            "faults": list(self.faults),
            "extractor": self.extractor,
            "sequence": self.sequence,
            "frames": self.frames,
            "clips": self.clips,
            "cosine": {
                "min": _number(self.cosine_min),
                "mean": _number(self.cosine_mean),
                "allowed": self.allowed.cosine,
            },
            "max_difference": {"found": _number(self.max_difference), "allowed": self.allowed.score},
            "changed_labels": {"found": self.changed_labels, "clear_margin": self.allowed.margin},
        }


def verify_bundle(
    bundle: ModelBundle, *, device: Device = "auto", backend: str | None = None, precisions: Sequence[str] = ()
) -> list[Verdict]:
    """Replay a bundle's golden inputs through its chosen classifier, in each precision that it holds or in those named.

    Raises BundleError where it has no golden inputs or lacks a precision, and SessionError where the device cannot be
    used. A precision that was not named and does not run here is a verdict that says why.
    """
    golden = read_golden(bundle)
    entry = bundle.extractor if bundle.extractor.has_graph else bundle.classifier
    verdicts = []
    on_tensorrt = "tensorrt" in (device, backend)
    held = [name for name in entry.precisions if not (on_tensorrt and name in CPU_PRECISIONS)]
    for precision in precisions or held:
        try:
            verdicts.append(_replayed(bundle, golden, device, backend, precision))
        except SessionError as error:
            if precisions or precision == "fp32":
                raise
            verdicts.append(_not_run(bundle, golden, precision, str(error)))
    return verdicts


def table(bundle: Path, verdicts: Sequence[Verdict]) -> str:
    """The verdicts as text."""
    width = max(len(verdict.extractor) for verdict in verdicts)
    name = max(10, *(len(verdict.classifier) for verdict in verdicts))
    first = verdicts[0]
    lines = [
        f"{bundle.name}: {first.frames} golden frames, {first.clips} clips",
        "",
        f"{'classifier':<{name}}  {'precision':<10}{'runs on':<{width}}  {'cosine min':>10}{'mean':>9}"
        f"{'score off by':>14}{'labels changed':>16}  verdict",
    ]
    lines += [_row(verdict, name, width) for verdict in verdicts]
    if any(verdict.precision != "fp32" for verdict in verdicts):
        lines += [
            "",
            "Other precisions than fp32 are checked for this device alone; what they cost in accuracy stands in the "
            "manifest, under parity.",
        ]
    return "\n".join(lines)


# -- replaying --------------------------------------------------------------------------------------------------------


def _replayed(bundle: ModelBundle, golden: Golden, device: Device, backend: str | None, precision: str) -> Verdict:
    with closing(open_model(bundle, device, precision=precision, backend=backend)) as model:
        return compared(model, golden, precision)


def compared(model: Model, golden: Golden, precision: str) -> Verdict:
    """The verdict on a model that runs in `precision`: its features and scores beside the golden ones."""
    clips = golden.clips[model.name]
    batches = [golden.frames[n : n + MAX_BATCH] for n in range(0, len(golden.frames), MAX_BATCH)]
    features = np.concatenate([model.extract(batch) for batch in batches])
    scores = model.classify(clips.of(features, model.clip), clips.lengths)
    alike = cosines(scores, clips.scores) if golden.features is None else cosines(features, golden.features)
    allowed = ALLOWED.get(precision, COARSE)
    return Verdict(
        model.name,
        precision,
        str(model.extractor.placement if golden.features is not None else model.classifier.placement),
        str(model.classifier.placement),
        len(golden.frames),
        len(clips.rows),
        float(alike.min()),
        float(alike.mean()),
        float(np.abs(scores - clips.scores).max()),
        changed_winners(scores, clips.scores, allowed.margin),
        allowed,
    )


def _not_run(bundle: ModelBundle, golden: Golden, precision: str, problem: str) -> Verdict:
    nan = float("nan")
    name = bundle.classifier.name
    clips = len(golden.clips[name].rows)
    allowed = ALLOWED.get(precision, COARSE)
    return Verdict(name, precision, "", "", len(golden.frames), clips, nan, nan, nan, 0, allowed, problem)


# -- text -------------------------------------------------------------------------------------------------------------


def _row(verdict: Verdict, name: int, width: int) -> str:
    start = f"{verdict.classifier:<{name}}  {verdict.precision:<10}"
    if verdict.problem:
        return f"{start}DOES NOT RUN: {verdict.problem}"
    return (
        f"{start}{verdict.extractor:<{width}}  {verdict.cosine_min:>10.5f}{verdict.cosine_mean:>9.5f}"
        f"{verdict.max_difference:>14.1e}{verdict.changed_labels:>16}  "
        f"{'same' if verdict.passed else 'DIFFERS: ' + ', '.join(verdict.faults)}"
    )


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None
