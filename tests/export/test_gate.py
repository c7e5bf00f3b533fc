"""The gate of export refuses every fault that a conversion has been known to make.

Each fault is put into graphs and a manifest that pass without it (the first test), with hashes that fit.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclf.bundle import Manifest, ModelBundle, sha256_of
from edgeclf.errors import ParityError
from edgeclf.export import bundling, parity
from edgeclf.export.bundling import CLASSIFIER_GRAPH, EXTRACTOR_GRAPH, export_bundle
from edgeclf.export.extractor import onnx_from_keras_extractor
from edgeclf.export.sequence_graph import onnx_from_keras_classifier
from edgeclf.model_directory import import_keras, open_keras_model
from edgeclf.runtime.model import Model
from edgeclf.runtime.session import Arrays, Session
from edgeclf.specs import ClipSpec
from tests.support.keras_models import CLIP, LABELS, classifier, extractor

pytestmark = pytest.mark.keras

EXTRACTOR, CHAIN, SCENES = "extractor", "frames to scores", "rendered scenes"
LENGTHS, PADDING = "classifier, lengths 0 to T", "classifier, noise as padding"
RULES = "aggregate and gaps"
OTHER_CLIPS, OTHER_LABELS = "rendered scenes (other clips)", "rendered scenes (other labels)"

Fault = Callable[[Path, Manifest], Manifest]  # changes graphs in a folder, and returns the manifest for them
Weights = NDArray[np.float32]
Scores = NDArray[np.float32]  # (N, C)


def gate(bundle: ModelBundle, model_dir: Path, target: Path, fault: Fault, patch: pytest.MonkeyPatch) -> None:
    """Export the model directory with a converter that makes the fault."""

    def write_graphs(path: Path, models: Sequence[Path]) -> Manifest:
        for name in (EXTRACTOR_GRAPH, CLASSIFIER_GRAPH):
            shutil.copy(bundle.path / name, path / name)
        manifest = fault(path, replace(bundle.manifest, parity={}))
        return replace(manifest, files={name: sha256_of(path / name) for name in (EXTRACTOR_GRAPH, CLASSIFIER_GRAPH)})

    patch.setattr(bundling, "write_graphs", write_graphs)
    export_bundle(model_dir, target)


def refusal(bundle: ModelBundle, model_dir: Path, folder: Path, fault: Fault, patch: pytest.MonkeyPatch) -> str:
    """What the gate says when it refuses; nothing may have been written."""
    with pytest.raises(ParityError, match="nothing was written") as raised:
        gate(bundle, model_dir, folder / "a.edgeclf", fault, patch)
    assert list(folder.iterdir()) == []
    return str(raised.value)


def named_checks(message: str) -> set[str]:
    return set(re.findall(r"^  (.+?) +DIFFERS", message, re.MULTILINE))


# -- faults in the graphs ---------------------------------------------------------------------------------------------


def edit(path: Path, change: Callable[[Any], None]) -> None:
    import onnx

    model = onnx.load(path)
    change(model.graph)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def reweigh(graph: Any, name: str, change: Callable[[Weights], Weights]) -> None:
    from onnx import numpy_helper

    (tensor,) = (tensor for tensor in graph.initializer if tensor.name == name)
    changed = np.ascontiguousarray(change(numpy_helper.to_array(tensor).copy()))
    tensor.CopyFrom(numpy_helper.from_array(changed, name))


def only_node(graph: Any, op: str) -> Any:
    (node,) = (node for node in graph.node if node.op_type == op)
    return node


def swapped_color_channels(path: Path, manifest: Manifest) -> Manifest:
    def swap(graph: Any) -> None:
        stem = next(node for node in graph.node if node.op_type == "Conv")
        reweigh(graph, stem.input[1], lambda kernel: kernel[:, ::-1])

    edit(path / EXTRACTOR_GRAPH, swap)
    return manifest


def swapped_gates(path: Path, manifest: Manifest) -> Manifest:
    """z and r change places, in kernels and biases."""

    def swap(graph: Any) -> None:
        gru = only_node(graph, "GRU")
        for name in gru.input[1:3]:
            reweigh(graph, name, lambda kernel: kernel.reshape(3, 12, -1)[[1, 0, 2]].reshape(kernel.shape))
        reweigh(graph, gru.input[3], lambda bias: bias.reshape(6, 12)[[1, 0, 2, 4, 3, 5]].reshape(1, -1))

    edit(path / CLASSIFIER_GRAPH, swap)
    return manifest


def swapped_biases(path: Path, manifest: Manifest) -> Manifest:
    """The biases of the inputs and of the state change places."""

    def swap(graph: Any) -> None:
        reweigh(graph, only_node(graph, "GRU").input[3], lambda bias: np.roll(bias, 36, axis=1))

    edit(path / CLASSIFIER_GRAPH, swap)
    return manifest


def reset_before_product(path: Path, manifest: Manifest) -> Manifest:
    def clear(graph: Any) -> None:
        for attribute in only_node(graph, "GRU").attribute:
            if attribute.name == "linear_before_reset":
                attribute.i = 0

    edit(path / CLASSIFIER_GRAPH, clear)
    return manifest


def length_through(*steps: tuple[str, int]) -> Fault:
    """The GRU sees the length after some operations with a constant."""

    def fault(path: Path, manifest: Manifest) -> Manifest:
        edit(path / CLASSIFIER_GRAPH, insert)
        return manifest

    def insert(graph: Any) -> None:
        from onnx import helper, numpy_helper

        tensor = "length"
        for number, (op, value) in enumerate(steps):
            graph.initializer.append(numpy_helper.from_array(np.array(value, np.int32), f"value_{number}"))
            graph.node.insert(number, helper.make_node(op, [tensor, f"value_{number}"], [f"length_{number}"]))
            tensor = f"length_{number}"
        only_node(graph, "GRU").input[4] = tensor

    return fault


def no_length(path: Path, manifest: Manifest) -> Manifest:
    def drop(graph: Any) -> None:
        only_node(graph, "GRU").input[4] = ""

    edit(path / CLASSIFIER_GRAPH, drop)
    return manifest


def nan_weight(name: str, op: str) -> Fault:
    def fault(path: Path, manifest: Manifest) -> Manifest:
        edit(path / name, poison)
        return manifest

    def poison(graph: Any) -> None:
        node = next(node for node in graph.node if node.op_type == op)
        reweigh(graph, node.input[2], lambda bias: np.where(np.arange(len(bias)) == 1, np.float32("nan"), bias))

    return fault


def perturbed_statistic(path: Path, manifest: Manifest) -> Manifest:
    """One variance of one normalisation, off by 5 %."""
    model = import_keras().models.clone_model(extractor())
    model.set_weights(extractor().get_weights())
    gamma, beta, mean, variance = model.get_layer("stem_bn").get_weights()
    variance[3] *= 1.05
    model.get_layer("stem_bn").set_weights([gamma, beta, mean, variance])
    (path / EXTRACTOR_GRAPH).write_bytes(onnx_from_keras_extractor(model).SerializeToString())
    return manifest


def other_training(path: Path, manifest: Manifest) -> Manifest:
    model = onnx_from_keras_classifier(classifier(seed=9), CLIP)
    (path / CLASSIFIER_GRAPH).write_bytes(model.SerializeToString())
    return manifest


# -- faults in the manifest -------------------------------------------------------------------------------------------


def wrong_preprocess(**changes: Any) -> Fault:
    def fault(path: Path, manifest: Manifest) -> Manifest:
        preprocess = replace(manifest.extractor.preprocess, **changes)
        return replace(manifest, extractor=replace(manifest.extractor, preprocess=preprocess))

    return fault


def wrong_entry(**changes: Any) -> Fault:
    def fault(path: Path, manifest: Manifest) -> Manifest:
        return replace(manifest, classifiers=(replace(manifest.classifiers[0], **changes),))

    return fault


FAULTS: dict[str, tuple[Fault, set[str]]] = {
    "swapped colour channels": (swapped_color_channels, {EXTRACTOR, CHAIN, SCENES}),
    "perturbed statistic": (perturbed_statistic, {EXTRACTOR, CHAIN, SCENES}),
    "NaN in the extractor": (nan_weight(EXTRACTOR_GRAPH, "Conv"), {EXTRACTOR, CHAIN, SCENES}),
    "swapped gates": (swapped_gates, {LENGTHS, PADDING, CHAIN, SCENES}),
    "swapped biases": (swapped_biases, {LENGTHS, PADDING, CHAIN, SCENES}),
    "reset before the product": (reset_before_product, {LENGTHS, PADDING, CHAIN, SCENES}),
    "NaN in the classifier": (nan_weight(CLASSIFIER_GRAPH, "Gemm"), {LENGTHS, PADDING, CHAIN, SCENES}),
    "classifier of another training": (other_training, {LENGTHS, PADDING, CHAIN, SCENES}),
    "length one less": (length_through(("Sub", 1), ("Max", 0)), {LENGTHS, PADDING, CHAIN, SCENES}),
    "length one more": (length_through(("Add", 1), ("Min", CLIP.length)), {LENGTHS, PADDING, CHAIN}),
    "length at least one": (length_through(("Max", 1)), {LENGTHS, PADDING}),
    "length ignored": (no_length, {LENGTHS, PADDING, CHAIN}),
    "wrong resize": (wrong_preprocess(interpolation="area"), {SCENES}),
    "wrong crop": (wrong_preprocess(crop="none"), {SCENES}),
    "letterbox": (wrong_preprocess(crop="letterbox"), {SCENES}),
    "wrong colours": (wrong_preprocess(color="gray3"), {SCENES}),
    "labels backwards": (wrong_entry(labels=LABELS[::-1]), {SCENES}),
    "other labels": (wrong_entry(labels=(*LABELS[:3], "five")), {OTHER_LABELS}),
    "wrong clip rate": (wrong_entry(clip=ClipSpec.by_rate(CLIP.length, 5.0)), {OTHER_CLIPS}),
    "wrong hop": (wrong_entry(clip=replace(CLIP, hop_seconds=0.4)), {OTHER_CLIPS}),
    "wrong aggregate": (wrong_entry(aggregate="vote"), {RULES}),
    "wrong gap": (wrong_entry(clip=replace(CLIP, stale_seconds=9.0)), {RULES}),
    "wrong frames of files": (wrong_entry(clip=replace(CLIP, sampling="first")), {RULES}),
    "thresholds of its own": (wrong_entry(thresholds={LABELS[0]: 0.9}), {RULES}),
}


def unchanged(path: Path, manifest: Manifest) -> Manifest:
    return manifest


def test_bundle_without_a_fault_passes(
    exported: ModelBundle, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate(exported, model_dir, tmp_path / "a.edgeclf", unchanged, monkeypatch)
    assert (tmp_path / "a.edgeclf" / "manifest.json").is_file()


@pytest.mark.parametrize("name", FAULTS)
def test_gate_refuses(
    exported: ModelBundle, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fault, expected = FAULTS[name]
    assert named_checks(refusal(exported, model_dir, tmp_path, fault, monkeypatch)) == expected


def test_gate_refuses_swapped_labels_that_never_win(
    retrained: ModelBundle, retrained_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swapped = wrong_entry(labels=(*LABELS[:2], *LABELS[:1:-1]))
    message = refusal(retrained, retrained_dir, tmp_path, swapped, monkeypatch)
    assert named_checks(message) == {SCENES}
    assert "0 labels changed" in message


class Altered:
    """A classifier session whose scores are changed on their way out; `change` gets the number of the call."""

    def __init__(self, session: Session, change: Callable[[Scores, int], Scores]) -> None:
        self.inputs, self.outputs, self.placement = session.inputs, session.outputs, session.placement
        self._session, self._change = session, change
        self._calls = 0

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        self._calls += 1
        return {"scores": self._change(self._session.run(feeds)["scores"].copy(), self._calls)}

    def close(self) -> None:
        self._session.close()


def altered(model: Model, change: Callable[[Scores, int], Scores]) -> Model:
    return replace(model, classifier=Altered(model.classifier, change))


def test_nan_in_one_clip_of_many_is_a_difference(model_dir: Path) -> None:
    model = open_keras_model(model_dir)
    broken = altered(model, lambda scores, call: scores if call < 8 else scores * np.float32("nan"))
    check = parity._check_sources(SCENES, broken, model, parity.RENDERED_SCENES[:1])
    assert not np.isfinite(check.max_difference)
    assert not check.passed


def test_labels_that_are_as_good_as_tied_may_change_places(model_dir: Path) -> None:
    model = open_keras_model(model_dir)
    tied = altered(model, lambda scores, call: np.array([[0.50001, 0.49999, 0, 0]], np.float32))
    other = altered(model, lambda scores, call: np.array([[0.49999, 0.50001, 0, 0]], np.float32))
    check = parity._check_sources(SCENES, other, tied, parity.RENDERED_SCENES[:1])
    assert check.passed
    assert json.dumps(check.to_dict())


def test_comparison_of_nothing_does_not_pass(model_dir: Path) -> None:
    model = open_keras_model(model_dir)
    assert not parity._check_sources(SCENES, model, model, []).passed
