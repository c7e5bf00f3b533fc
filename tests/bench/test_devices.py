"""Which rows there are for the devices and precisions that were asked for, and the reasons where they do not work."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from edgeclf.bench.devices import Choice, choices_of, open_asked, open_one
from edgeclf.bundle import ModelBundle, open_bundle
from edgeclf.errors import BundleError, SessionError


@pytest.fixture(scope="module")
def bundle(colors: Path) -> ModelBundle:
    return open_bundle(colors)


def named(devices: str, precisions: str, bundle: ModelBundle, backend: str | None = None) -> list[str]:
    choices = choices_of(devices.split(","), precisions.split(","), backend, bundle)
    return [f"{choice.device} {choice.backend} {choice.precision}" for choice in choices]


def test_one_device_and_precision_is_one_choice(bundle: ModelBundle) -> None:
    assert named("auto", "fp32", bundle) == ["auto None fp32"]
    assert named("cpu", "bf16", bundle) == ["cpu openvino bf16"], "nothing else runs bf16"
    assert named("cpu", "fp32", bundle, "openvino") == ["cpu openvino fp32"]


def test_all_is_every_device_with_the_cpu_and_every_precision_that_makes_sense(bundle: ModelBundle) -> None:
    assert named("all", "all", bundle) == [
        "cpu onnxruntime fp32",
        "cpu openvino fp32",
        "cpu openvino bf16",
        "cuda onnxruntime fp32",
        "tensorrt tensorrt fp32",
        "tensorrt onnxruntime fp32",
    ]


def test_list_of_devices_keeps_its_order(bundle: ModelBundle) -> None:
    assert named("cuda,cpu", "fp32", bundle) == ["cuda onnxruntime fp32", "cpu onnxruntime fp32", "cpu openvino fp32"]
    assert named("cpu", "u8s8,int8", bundle, "tensorrt") == ["cpu tensorrt int8"]


def test_choices_read_as_words() -> None:
    assert str(Choice("cpu", "fp32", "openvino")) == "openvino fp32"
    assert str(Choice("cuda", "fp16", "onnxruntime")) == "onnxruntime fp16 on cuda"
    assert str(Choice("tensorrt", "fp16", "tensorrt")) == "tensorrt fp16"


def test_single_choice_that_does_not_work_is_an_error(bundle: ModelBundle) -> None:
    with ExitStack() as stack, pytest.raises(BundleError, match="holds no int8 graph"):
        open_asked(stack, bundle, [Choice("cpu", "int8")], name="pipelined", group="device")


def test_choice_that_does_not_work_among_others_is_a_row_with_the_reason(bundle: ModelBundle) -> None:
    choices = [Choice("cpu", "int8", "onnxruntime"), Choice("cpu", "fp32", "onnxruntime")]
    with ExitStack() as stack:
        models, rows = open_asked(stack, bundle, choices, name="pipelined", group="device")
    assert list(models) == [choices[1]]
    (row,) = rows
    assert (row["name"], row["status"], row["group"]) == ("pipelined, onnxruntime int8", "unavailable", "device")
    assert "holds no int8 graph" in row["reason"]
    assert (row["device"], row["backend"], row["precision"], row["metrics"]) == ("cpu", "onnxruntime", "int8", {})


def test_nothing_that_works_is_an_error_with_every_reason(bundle: ModelBundle) -> None:
    choices = [Choice("cpu", precision, "onnxruntime") for precision in ("int8", "fp16")]
    with ExitStack() as stack, pytest.raises(SessionError, match=r"int8(.|\n)*fp16"):
        open_asked(stack, bundle, choices, name="pipelined", group="device")


def test_models_are_closed_with_the_stack(bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        model = open_one(stack, bundle, Choice("cpu"))
        closed: list[str] = []
        monkeypatch.setattr(type(model.extractor), "close", lambda session: closed.append("closed"))
    assert closed == ["closed"] * 2, "the extractor and the classifier"
