"""Every family of `keras.applications`, our own extractors and clip networks: as graphs, against Keras and TensorRT."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclf.export.extractor import onnx_from_keras_extractor, onnx_from_keras_network
from edgeclf.export.lint import lint
from edgeclf.runtime.session import open_session
from edgeclf.train.clip_networks import conv3d_network
from edgeclf.train.extractors import EXTRACTORS
from edgeclf.train.lite_networks import motion_extractor
from tests.support.tensorrt_rtx import build

pytestmark = [pytest.mark.keras, pytest.mark.usefixtures("converters")]

SMALLEST = {"Xception": 71, "InceptionV3": 75, "InceptionResNetV2": 75}  # others take 32 pixels
# One network of each family, by its module, which knows how it wants pixels.
QUICK = {"MobileNet": "mobilenet", "MobileNetV2": "mobilenet_v2", "MobileNetV3Small": "mobilenet_v3"}
BULK = {
    "VGG16": "vgg16",
    "VGG19": "vgg19",
    "ResNet50": "resnet",
    "ResNet50V2": "resnet_v2",
    "InceptionV3": "inception_v3",
    "InceptionResNetV2": "inception_resnet_v2",
    "Xception": "xception",
    "DenseNet121": "densenet",
    "NASNetMobile": "nasnet",
    "MobileNetV3Large": "mobilenet_v3",
    "EfficientNetB0": "efficientnet",
    "EfficientNetV2B0": "efficientnet_v2",
    "ConvNeXtTiny": "convnext",
}


def application(name: str, module: str) -> Any:
    """The network with its own preprocessing and a mean over its last maps."""
    import keras

    side = SMALLEST.get(name, 32)
    frames = keras.Input((side, side, 3), dtype="uint8", name="pictures")
    preprocess = import_module(f"keras.src.applications.{module}").preprocess_input
    body = getattr(keras.applications, name)(include_top=False, weights=None, input_shape=(side, side, 3))
    x = body(preprocess(keras.ops.cast(frames, "float32")))
    return keras.Model(frames, keras.layers.GlobalAveragePooling2D()(x))


def ours(name: str, **options: Any) -> Any:
    return EXTRACTORS.load(name).build(None, **options)


def with_statistics(model: Any, rng: np.random.Generator) -> Any:
    """The model with statistics, scales and biases that are not those of a fresh one, which would hide faults."""
    draws: dict[str, Callable[[Any], NDArray[Any]]] = {
        "gamma": lambda shape: rng.uniform(0.5, 1.5, shape),
        "beta": lambda shape: rng.normal(0, 0.3, shape),
        "bias": lambda shape: rng.normal(0, 0.1, shape),
        "moving_mean": lambda shape: rng.normal(0, 0.3, shape),
        "moving_variance": lambda shape: rng.uniform(0.5, 2, shape),
    }
    for weight in model.weights:
        draw = draws.get(weight.path.rsplit("/", 1)[-1])
        if draw is not None:
            weight.assign(draw(tuple(weight.shape)))
    return model


@dataclass(frozen=True)
class Network:
    """A network to convert, the most nodes that its graph may have, and how many Transposes it needs."""

    make: Callable[[], Any]
    nodes: int
    transposes: int = 1


def slow(name: str, network: Network) -> Any:
    return pytest.param(network, id=name, marks=pytest.mark.slow)


NODES = {
    "MobileNet": 60,
    "MobileNetV2": 103,
    "MobileNetV3Small": 141,
    "MobileNetV3Large": 161,
    "VGG16": 40,
    "VGG19": 46,
    "ResNet50": 128,
    "ResNet50V2": 164,
    "InceptionV3": 218,
    "InceptionResNetV2": 581,
    "Xception": 131,
    "DenseNet121": 434,
    "NASNetMobile": 666,
    "EfficientNetB0": 243,
    "EfficientNetV2B0": 271,
    "ConvNeXtTiny": 489,
}
NETWORKS = [
    *(pytest.param(Network(partial(application, *each), NODES[each[0]]), id=each[0]) for each in QUICK.items()),
    *(slow(each[0], Network(partial(application, *each), NODES[each[0]])) for each in BULK.items()),
    pytest.param(Network(partial(ours, "faces_cnn"), 27, transposes=0), id="faces_cnn"),
    pytest.param(Network(partial(ours, "faces_cnn", pooling="flatten"), 27), id="faces_cnn, flat"),
    pytest.param(Network(partial(ours, "efficientnet_lite0"), 97), id="efficientnet_lite0"),
    pytest.param(Network(partial(motion_extractor, None, gain=2.0), 106), id="motion"),
    pytest.param(Network(partial(motion_extractor, None, appearance=False), 106), id="motion alone"),
    pytest.param(Network(partial(conv3d_network, 5, length=8, size=(32, 40)), 22), id="conv3d"),
    slow("efficientnet_lite1", Network(partial(ours, "efficientnet_lite1"), 127)),
    slow("efficientnet_lite2", Network(partial(ours, "efficientnet_lite2"), 127)),
    slow("inceptionv3", Network(partial(ours, "inceptionv3"), 218)),
    slow("vgg16", Network(partial(ours, "vgg16"), 37)),
    slow("resnet50", Network(partial(ours, "resnet50"), 125)),
    slow("resnet50, flat", Network(partial(ours, "resnet50", pooling="flatten"), 125, transposes=2)),
    slow("mobilenet_v2", Network(partial(ours, "mobilenet_v2"), 103)),
]


@dataclass(frozen=True)
class Converted:
    network: Network
    frames: NDArray[np.uint8]
    expected: NDArray[np.float32]
    model: Any
    file: Path

    @property
    def graph(self) -> Any:
        return self.model.graph


@pytest.fixture(scope="module", params=NETWORKS)
def converted(
    request: pytest.FixtureRequest, converters: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Converted]:
    """A network, what Keras answers, and its graph; one at a time, since some are large."""
    import keras

    network: Network = request.param
    keras.utils.set_random_seed(0)
    model = with_statistics(network.make(), np.random.default_rng(0))
    frames = np.random.default_rng(1).integers(0, 256, (3, *model.input.shape[1:]), np.uint8)
    convert = onnx_from_keras_network if model.output_names[0] == "scores" else onnx_from_keras_extractor
    graph = convert(model)
    file = tmp_path_factory.mktemp("graph") / "graph.onnx"
    file.write_bytes(graph.SerializeToString())
    yield Converted(network, frames, np.asarray(model(frames, training=False)), graph, file)
    file.unlink()
    keras.backend.clear_session()
    gc.collect()


def ops(nodes: Any) -> list[str]:
    return [node.op_type for node in nodes]


def test_answers_are_those_of_keras_in_any_batch(converted: Converted) -> None:
    session = open_session(converted.file, "cpu")
    scale = np.abs(converted.expected).max()
    assert converted.expected.std() > 0.01 * scale, "features hardly differ, which shows no fault"
    for count in (1, 3):
        (found,) = session.run({"frames": converted.frames[:count]}).values()
        assert np.abs(found - converted.expected[:count]).max() < 2e-5 * scale


def test_frames_are_the_only_input_and_are_cast(converted: Converted) -> None:
    graph = converted.graph
    assert [tensor.name for tensor in graph.input] == ["frames"]
    assert ops(node for node in graph.node if "frames" in node.input) == ["Cast"]


def test_one_transpose_before_all_convolutions(converted: Converted) -> None:
    found = ops(converted.graph.node)
    assert found.count("Transpose") == converted.network.transposes
    if converted.network.transposes == 1 and "Reshape" not in found:
        assert found.index("Transpose") < found.index("Conv")


def test_nothing_is_left_that_convolutions_can_do(converted: Converted) -> None:
    made = {name: node for node in converted.graph.node for name in node.output}
    users: dict[str, list[str]] = {}
    for node in converted.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node.op_type)
    constants = {tensor.name for tensor in converted.graph.initializer}
    for node in converted.graph.node:
        before = [made[name].op_type for name in node.input if name in made and users[name] == [node.op_type]]
        if node.op_type in {"Mul", "Add", "Sub", "Div"} and constants & set(node.input):
            assert before != ["Conv"]
        if node.op_type == "Conv":
            assert before != ["Pad"]


def test_graph_has_no_more_nodes_than_it_needs(converted: Converted) -> None:
    assert len(converted.graph.node) <= converted.network.nodes


def test_lint_finds_nothing(converted: Converted) -> None:
    assert lint(converted.model) == []


def test_tensorrt_builds_an_engine(converted: Converted) -> None:
    assert build(converted.file, max_batch=2).plan
