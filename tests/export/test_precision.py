from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclf.errors import ParityError
from edgeclf.export.precision import PrecisionReport, Reference, judge, require_precision
from edgeclf.export.windows import SampledClip
from edgeclf.metrics import Interval
from edgeclf.runtime.model import Model
from edgeclf.runtime.session import Arrays, Placement
from edgeclf.specs import ClipSpec, PreprocessSpec, TensorSpec

CLIP = ClipSpec.by_rate(length=4, rate=5.0)
LABELS = ("dark", "bright")


class Brightness:
    """An extractor in NumPy: the brightness of a frame, 0 to 1, times `factor`, beside a one."""

    def __init__(self, factor: float = 1.0) -> None:
        self.inputs = (TensorSpec("frames", "uint8", (None, 8, 8, 3)),)
        self.outputs = (TensorSpec("features", "float32", (None, 2)),)
        self.placement = Placement("numpy", "brightness", "cpu", "fp32", 1)
        self._factor = factor

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        mean = feeds["frames"].mean(axis=(1, 2, 3)) / 255 * self._factor
        return {"features": np.stack([mean, np.ones_like(mean)], axis=1).astype(np.float32)}

    def close(self) -> None:
        pass


class Threshold:
    """A classifier in NumPy: bright where the mean of a clip's rows is above one half."""

    def __init__(self) -> None:
        self.inputs = (TensorSpec("features", "float32", (None, 4, 2)), TensorSpec("length", "int32", (None,)))
        self.outputs = (TensorSpec("scores", "float32", (None, 2)),)
        self.placement = Placement("numpy", "threshold", "cpu", "fp32", 1)

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        mean = feeds["features"][:, :, 0].sum(axis=1) / feeds["length"]
        return {"scores": np.stack([1 - mean, mean], axis=1).astype(np.float32)}

    def close(self) -> None:
        pass


def model(factor: float = 1.0) -> Model:
    return Model("light", LABELS, PreprocessSpec((8, 8)), CLIP, "mean", Brightness(factor), Threshold())


def clip(brightness: int, label: str, group: str, frames: int = 7) -> SampledClip:
    return SampledClip(label, group, np.full((frames, 8, 8, 3), brightness, np.uint8))


CLIPS = [clip(30, "dark", "a"), clip(120, "dark", "b"), clip(140, "bright", "c"), clip(220, "bright", "d")]
GOOD = PrecisionReport("light", "int8", 0.9, 40, 2500, 0.99, 0.995, 0.99, 0.85, 0.852, Interval(-1.0, 0.5))


def test_model_agrees_with_itself() -> None:
    report = judge(Reference(model()), model(), "int8", 1.0, CLIPS)
    assert (report.clips, report.windows) == (4, 16)  # 7 frames: windows of 4 from 4 places
    assert (report.agreement, report.accuracy, report.fp32_accuracy) == (1.0, 1.0, 1.0)
    assert report.min_cosine == pytest.approx(1.0)
    assert report.failures(min_windows=16) == []


def test_difference_is_counted_window_by_window_with_its_interval() -> None:
    report = judge(Reference(model()), model(factor=0.8), "int8", 1.0, CLIPS)
    assert report.agreement == 0.75  # 140 of 255 falls below one half
    assert report.accuracy == 0.75
    assert report.accuracy_drop == pytest.approx(25.0)
    assert report.interval is not None
    assert report.interval.low < 0 <= report.interval.high
    failures = " ".join(report.failures(min_windows=1))
    assert "first label agrees in 75.00%" in failures
    assert "25.00 points below" in failures


def test_clips_without_labels_leave_the_accuracy_unknown() -> None:
    report = judge(Reference(model()), model(), "int8", 1.0, [*CLIPS, clip(10, "", "e")])
    assert (report.accuracy, report.accuracy_drop, report.interval) == (None, None, None)
    assert report.agreement == 1.0
    assert report.failures() == ["its accuracy is not known: name labelled clips with --data"]
    assert judge(Reference(model()), model(), "fp16", 1.0, [clip(10, "", "e")]).failures() == []


def test_scores_that_are_no_numbers_never_agree() -> None:
    report = judge(Reference(model()), model(factor=math.nan), "fp16", 1.0, CLIPS)
    assert report.agreement == 0
    assert any("no numbers" in failure for failure in report.failures())


def test_figures_that_are_no_numbers_are_written_as_none() -> None:
    report = judge(Reference(model()), model(factor=math.nan), "int8", 1.0, [clip(30, "dark", "a")])
    figures = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert figures["min_cosine"] is figures["mean_cosine"] is None
    assert "accuracy_difference_interval_points" not in figures  # of one recording


def test_no_clip_is_an_error() -> None:
    with pytest.raises(ParityError, match="no frame to judge"):
        judge(Reference(model()), model(), "fp16", 1.0, [])


class OnlyBrightness(Brightness):
    """Without the one; a black frame gives the smallest of numbers, in no particular direction."""

    def __init__(self, dark: float) -> None:
        super().__init__()
        self._dark = dark

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        features = super().run(feeds)["features"]
        features[:, 1] = self._dark
        return {"features": features}


def test_cosine_ignores_features_of_next_to_nothing() -> None:
    one, other = (replace(model(), extractor=OnlyBrightness(dark)) for dark in (1e-6, -1e-6))
    clips = [clip(200, "bright", "a"), clip(220, "bright", "b"), clip(0, "dark", "q")]
    assert judge(Reference(one), other, "fp16", 1.0, clips).min_cosine == pytest.approx(1.0)
    far = replace(model(), extractor=OnlyBrightness(-1.0))
    assert judge(Reference(one), far, "fp16", 1.0, clips).min_cosine < 0.9


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"share": 0.0}, "no layer calculates in int8"),
        ({"agreement": 0.969}, "97.0% are asked for"),
        ({"windows": 1999}, "1999 labelled windows cannot tell 0.5 points"),
        ({"accuracy": 0.8469}, "0.51 points below FP32"),
        ({"precision": "fp16", "agreement": 0.994}, "99.5% are asked for"),
        ({"precision": "fp16", "agreement": 1.0, "min_cosine": 0.9989}, "cosine 0.99890 is below 0.999"),
        ({"min_cosine": math.nan, "precision": "fp16", "agreement": 1.0}, "cosine nan"),
    ],
)
def test_each_limit_is_demanded(change: dict[str, Any], said: str) -> None:
    assert GOOD.failures() == []
    report = replace(GOOD, **change)
    assert any(said in failure for failure in report.failures())
    with pytest.raises(ParityError, match="light in"):
        require_precision([GOOD, report])


def test_lower_precision_may_be_better() -> None:
    assert replace(GOOD, accuracy=0.9).failures() == []
    require_precision([GOOD])


def test_report_is_written_with_every_figure() -> None:
    assert GOOD.to_dict() == {
        "classifier": "light",
        "share_of_layers": 0.9,
        "clips": 40,
        "windows": 2500,
        "min_cosine": 0.99,
        "mean_cosine": 0.995,
        "top1_agreement": 0.99,
        "accuracy": 0.85,
        "fp32_accuracy": 0.852,
        "accuracy_difference_interval_points": [-1.0, 0.5],
    }
    assert "difference -1.00 to +0.50 points" in str(GOOD)
