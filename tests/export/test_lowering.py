"""Lower precisions of the tiny model: made, judged, kept or left out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclf.bundle import ModelBundle, open_bundle
from edgeclf.dataset import Dataset
from edgeclf.errors import ExportError, ParityError
from edgeclf.export import lowering as module
from edgeclf.export.attach import attach_classifier
from edgeclf.export.bundling import export_bundle
from edgeclf.export.half import half_from_onnx
from edgeclf.export.lowering import Lowering
from edgeclf.export.precision import LIMITS, Limits
from edgeclf.export.quantize import QuantisationForm, int8_from_onnx
from edgeclf.layouts import LabelledClip
from edgeclf.model_directory import read_description, write_description
from edgeclf.runtime.model import open_model
from edgeclf.runtime.verify import verify_bundle
from tests.support.keras_models import LABELS, clips, write_network_model
from tests.support.tensorrt_rtx import build
from tests.support.videos import write_video

pytestmark = [pytest.mark.keras, pytest.mark.usefixtures("converters")]

ALL = ("fp16", "int8", "u8s8")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Clips like those of the model directory, to train on and to test, with labels that mean nothing."""
    folder = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    found = []
    for number, label in enumerate(LABELS * 4):
        base = clips()[number % 6][0]
        frames = [np.roll(base, step, axis=1) ^ rng.integers(0, 8, base.shape, dtype=np.uint8) for step in range(12)]
        path = write_video(folder / f"{label}_{number}.avi", frames, fps=10)
        found.append(LabelledClip(path, label, f"g{number}", "train" if number % 2 else "test"))
    return Dataset(tuple(found), tuple(sorted(LABELS)))


@pytest.fixture(scope="module")
def lowered(model_dir: Path, data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """The tiny model in all precisions. Its weights are random, so that INT8 is allowed to be far off."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "edgeclf.export.precision.LIMITS",
            {"fp16": LIMITS["fp16"], **dict.fromkeys(("int8", "u8s8"), Limits(None, 0.5, 50.0))},
        )
        target = tmp_path_factory.mktemp("bundles") / "lowered.edgeclf"
        return export_bundle(model_dir, target, lowering=Lowering(ALL, (data,), min_windows=20))


def graph(bundle: ModelBundle, precision: str) -> Any:
    import onnx

    return onnx.load(bundle.graph(bundle.extractor, precision))


def test_bundle_holds_every_precision_of_the_extractor(lowered: ModelBundle) -> None:
    assert dict(lowered.extractor.precisions) == {
        "fp32": "extractor.onnx",
        **{precision: f"extractor.{precision}.onnx" for precision in ALL},
    }
    assert dict(lowered.classifier.precisions) == {"fp32": "classifier.onnx"}


@pytest.mark.parametrize("precision", ALL)
def test_every_precision_takes_and_gives_what_fp32_does(lowered: ModelBundle, precision: str) -> None:
    model = open_model(lowered, "cpu", precision=precision)
    frames = np.concatenate(clips())
    features = model.extract(frames)
    expected = open_model(lowered, "cpu").extract(frames)
    assert features.dtype == np.float32
    assert 0 < np.abs(features - expected).max() < 0.6  # features have a deviation of 1


def test_graphs_say_what_they_are(lowered: ModelBundle) -> None:
    keys = {
        precision: {entry.key: entry.value for entry in graph(lowered, precision).metadata_props} for precision in ALL
    }
    for precision in ALL:
        assert keys[precision]["edgeclf.precision"] == precision
        assert keys[precision]["edgeclf.role"] == "extractor"
    assert json.loads(keys["int8"]["edgeclf.quantisation"])["symmetric"] is True
    assert json.loads(keys["u8s8"]["edgeclf.quantisation"])["symmetric"] is False


def test_manifest_holds_the_figures_of_each_precision(lowered: ModelBundle) -> None:
    for precision in ALL:
        (report,) = lowered.manifest.parity[precision]
        assert report["classifier"] == "tiny"
        assert report["share_of_layers"] == 1.0
        assert (report["clips"], report["windows"]) == (8, 56)
        low, high = report["accuracy_difference_interval_points"]
        assert low <= 100 * (report["accuracy"] - report["fp32_accuracy"]) <= high


def test_report_and_card_show_the_precisions(lowered: ModelBundle) -> None:
    page = (lowered.path / "report.html").read_text(encoding="utf-8")
    card = (lowered.path / "MODEL_CARD.md").read_text(encoding="utf-8")
    for precision in ALL:
        assert f'<td class="text">{precision}</td>' in page
        assert f"tiny in {precision}: 100% of layers" in card


def test_int8_for_tensorrt_has_no_zero_points_and_the_other_has(lowered: ModelBundle) -> None:
    from onnx import TensorProto, numpy_helper

    def zero_points(precision: str) -> list[Any]:
        model = graph(lowered, precision)
        arrays = {tensor.name: tensor for tensor in model.graph.initializer}
        nodes = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
        return [arrays[node.input[2]] for node in nodes]

    assert all(not numpy_helper.to_array(tensor).any() for tensor in zero_points("int8"))
    assert {tensor.data_type for tensor in zero_points("int8")} == {TensorProto.INT8}
    assert {tensor.data_type for tensor in zero_points("u8s8")} == {TensorProto.UINT8}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_tensorrt_builds_every_precision_that_is_meant_for_it(lowered: ModelBundle, precision: str) -> None:
    built = build(lowered.graph(lowered.extractor, precision), precision)
    assert len(built.plan) > 0
    if precision == "fp16":
        assert built.half_share > 0.5


def test_golden_inputs_replay_in_fp32_and_fp16(lowered: ModelBundle) -> None:
    assert all(verdict.passed for verdict in verify_bundle(lowered, device="cpu", precisions=["fp32", "fp16"]))


def test_fp16_needs_no_labelled_clips(model_dir: Path, tmp_path: Path) -> None:
    bundle = export_bundle(model_dir, tmp_path / "half.edgeclf", lowering=Lowering(("fp16",)))
    (report,) = bundle.manifest.parity["fp16"]
    assert "accuracy" not in report
    assert report["clips"] == len(clips())
    sizes = {name: bundle.graph(bundle.extractor, name).stat().st_size for name in ("fp32", "fp16")}
    assert sizes["fp16"] < sizes["fp32"]


def test_int8_without_labelled_clips_is_refused() -> None:
    with pytest.raises(ExportError, match="name them with --data"):
        Lowering(("int8",))


def test_data_of_another_number_of_models_is_refused(model_dir: Path, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="1 models need labelled clips each, 2 sets are there"):
        export_bundle(model_dir, tmp_path / "a.edgeclf", lowering=Lowering(("int8",), (data, data)))


def broken(patch: pytest.MonkeyPatch) -> None:
    """Make FP16 graphs wrong: every weight of the first convolution is turned round."""
    from onnx import numpy_helper

    def wrong(model: Any) -> Any:
        half = half_from_onnx(model)
        weights = next(tensor for tensor in half.graph.initializer if len(tensor.dims) == 4)
        weights.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weights), weights.name))
        return half

    patch.setattr(module, "half_from_onnx", wrong)


def test_precision_that_fails_stops_the_export(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    with pytest.raises(ParityError, match="tiny in fp16: cosine"):
        export_bundle(model_dir, tmp_path / "a.edgeclf", lowering=Lowering(("fp16",)))
    assert list(tmp_path.iterdir()) == []


def test_precision_that_fails_is_left_out_where_that_is_allowed(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    bundle = export_bundle(model_dir, tmp_path / "a.edgeclf", lowering=Lowering(("fp16",), allow=True))
    assert set(bundle.extractor.precisions) == {"fp32"}
    assert not (bundle.path / "extractor.fp16.onnx").exists()
    assert "cosine" in bundle.manifest.parity["left_out"]["fp16"][0]
    assert "fp16 was left out" in (bundle.path / "report.html").read_text(encoding="utf-8")
    open_bundle(bundle.path)


def test_int8_that_fails_is_tried_with_its_first_layers_in_fp32(
    model_dir: Path, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "layer_count", lambda _: 12)
    converted: list[int] = []

    def recorded(model: Any, frames: Any, form: QuantisationForm) -> Any:
        converted.append(form.float_layers)
        return int8_from_onnx(model, frames, replace(form, float_layers=0))

    monkeypatch.setattr(module, "int8_from_onnx", recorded)
    lowering = Lowering(("int8",), (data,), allow=True, min_windows=10_000)  # more than there are
    bundle = export_bundle(model_dir, tmp_path / "a.edgeclf", lowering=lowering)
    assert converted == [0, 4]  # 10 are more than half of 12
    assert set(bundle.extractor.precisions) == {"fp32"}
    assert any("10000 are asked for" in reason for reason in bundle.manifest.parity["left_out"]["int8"])


def test_classifier_of_frames_is_lowered_itself(converters: None, tmp_path: Path) -> None:
    model = write_network_model(tmp_path / "network")
    bundle = export_bundle(model, tmp_path / "network.edgeclf", lowering=Lowering(("fp16",)))
    assert dict(bundle.classifier.precisions) == {"fp32": "classifier.onnx", "fp16": "classifier.fp16.onnx"}
    scores = [
        open_model(bundle, "cpu", precision=precision).classify(
            np.zeros((1, *[size or 1 for size in bundle.classifier.inputs[0].shape[1:]]), np.uint8),
            np.array([bundle.classifier.clip.length], np.int32),
        )
        for precision in ("fp32", "fp16")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=5e-3)


def test_classifier_that_is_attached_is_judged_in_every_precision(
    model_dir: Path, lowered: ModelBundle, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(lowered.path, tmp_path / "lowered.edgeclf"))
    other = Path(shutil.copytree(model_dir, tmp_path / "other"))
    write_description(other, replace(read_description(other), name="other"))
    with pytest.raises(ExportError, match="name labelled clips to judge with --data"):
        attach_classifier(path, other)
    with pytest.raises(ParityError, match=r"(?s)in int8: 56 labelled windows cannot.*the bundle stays as it is"):
        attach_classifier(path, other, data=data)
    with pytest.raises(ParityError, match=r"(?s)^(?!.*cannot tell)"):
        attach_classifier(path, other, data=data, min_windows=56)
    assert open_bundle(path).manifest == open_bundle(lowered.path).manifest
    monkeypatch.setattr("edgeclf.export.precision.PrecisionReport.failures", lambda self, **_: [])
    attached = attach_classifier(path, other, data=data)
    assert [report["classifier"] for report in attached.manifest.parity["int8"]] == ["tiny", "other"]
    assert "other in u8s8" in (path / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert (path / "report.html").read_text(encoding="utf-8").count('<td class="text">other</td>') > 3


def test_split_that_is_not_there_is_refused(model_dir: Path, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no split 'validation'"):
        export_bundle(model_dir, tmp_path / "a.edgeclf", lowering=Lowering(("int8",), (data,), split="validation"))
    without = Dataset(tuple(replace(clip, split="train") for clip in data.clips), data.labels)
    assert module.clips_of(without, "test") == without.clips


def test_precision_that_cannot_be_made_is_left_out_where_that_is_allowed(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(model: Any) -> Any:
        raise ExportError("the graph is too odd")

    monkeypatch.setattr(module, "half_from_onnx", refused)
    with pytest.raises(ExportError, match="too odd"):
        export_bundle(model_dir, tmp_path / "a.edgeclf", lowering=Lowering(("fp16",)))
    bundle = export_bundle(model_dir, tmp_path / "a.edgeclf", lowering=Lowering(("fp16",), allow=True))
    assert bundle.manifest.parity["left_out"] == {"fp16": ["the graph is too odd"]}
    assert set(bundle.extractor.precisions) == {"fp32"}
