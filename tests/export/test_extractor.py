"""Keras extractors as ONNX graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclf.errors import ExportError
from edgeclf.export.extractor import onnx_from_keras_extractor
from edgeclf.runtime.session import Session, open_session
from edgeclf.specs import TensorSpec
from tests.support.keras_models import FEATURES, SIZE, extractor

pytestmark = [pytest.mark.keras, pytest.mark.usefixtures("converters")]

SMALL = (8, 12, 3)


def session_of(model: Any, folder: Path) -> Session:
    path = folder / "extractor.onnx"
    path.write_bytes(onnx_from_keras_extractor(model).SerializeToString())
    return open_session(path, "cpu")


def noise(count: int, *shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)


def small_inputs() -> tuple[Any, Any]:
    """The input of a small extractor, and the same rescaled."""
    import keras

    frames = keras.Input(SMALL, dtype="uint8", name="pictures")
    return frames, keras.layers.Rescaling(1 / 255)(frames)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_graph_equals_keras(converters: None, tmp_path: Path, count: int) -> None:
    frames = noise(count, *SIZE, 3)
    found = session_of(extractor(), tmp_path).run({"frames": frames})["features"]
    np.testing.assert_allclose(found, np.asarray(extractor()(frames)), rtol=1e-4, atol=1e-4)


def test_tensors_are_frames_and_features_with_a_dynamic_batch() -> None:
    graph = onnx_from_keras_extractor(extractor()).graph
    dims = {
        tensor.name: [dim.dim_param or dim.dim_value for dim in tensor.type.tensor_type.shape.dim]
        for tensor in [*graph.input, *graph.output]
    }
    assert dims == {"frames": ["N", *SIZE, 3], "features": ["N", FEATURES]}


def test_tensors_are_renamed_whatever_keras_calls_them(tmp_path: Path) -> None:
    import keras

    frames, x = small_inputs()
    session = session_of(keras.Model(frames, keras.layers.GlobalMaxPooling2D(name="other")(x)), tmp_path)
    assert session.inputs == (TensorSpec("frames", "uint8", (None, *SMALL)),)
    assert session.outputs == (TensorSpec("features", "float32", (None, 3)),)


def test_graph_says_nothing_of_layers_and_converter() -> None:
    model = onnx_from_keras_extractor(extractor())
    assert model.producer_name == "edgeclf"
    assert b"tf2onnx" not in model.SerializeToString()
    assert b"stem" not in model.SerializeToString()


def test_second_conversion_gives_the_same_bytes() -> None:
    first, second = (onnx_from_keras_extractor(extractor()).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_node_with_several_outputs_keeps_them_apart(tmp_path: Path) -> None:
    import keras

    frames, x = small_inputs()
    red, green, _ = keras.ops.split(x, 3, axis=-1)
    model = keras.Model(frames, keras.layers.GlobalAveragePooling2D()(keras.ops.concatenate([green, red], -1)))
    pictures = noise(3, *SMALL)
    found = session_of(model, tmp_path).run({"frames": pictures})["features"]
    np.testing.assert_allclose(found, pictures.mean(axis=(1, 2))[:, 1::-1] / 255, rtol=1e-5)


def test_input_beside_the_frames_is_refused() -> None:
    import keras

    frames, x = small_inputs()
    extra = keras.Input((3,), name="extra")
    model = keras.Model([frames, extra], keras.layers.GlobalAveragePooling2D()(x) + extra)
    with pytest.raises(ExportError, match="extra"):
        onnx_from_keras_extractor(model)


def test_output_beside_the_features_is_refused() -> None:
    import keras

    frames, x = small_inputs()
    x = keras.layers.GlobalAveragePooling2D()(x)
    with pytest.raises(ExportError, match="give features"):
        onnx_from_keras_extractor(keras.Model(frames, [x, x * 2.0]))


def test_control_flow_is_refused() -> None:
    import keras

    frames, x = small_inputs()
    x = keras.layers.GRU(3)(keras.layers.Reshape((SMALL[0], -1))(x), mask=keras.ops.any(frames > 0, axis=(2, 3)))
    with pytest.raises(ExportError, match="holds Loop"):
        onnx_from_keras_extractor(keras.Model(frames, x))


# -- what tf2onnx leaves undone ---------------------------------------------------------------------------------------


def converted(build: Callable[[Any, Any], Any], folder: Path, shape: tuple[int, ...] = (16, 12, 3)) -> Counter[str]:
    """The operators of a network, `build(layers, pixels)` to features, that has proven to give Keras' answers."""
    import keras

    keras.utils.set_random_seed(1)
    frames = keras.Input(shape, dtype="uint8", name="frames")
    model = keras.Model(frames, build(keras.layers, keras.layers.Rescaling(1 / 64, offset=-2.0)(frames)))
    return operators(model, folder)


def operators(model: Any, folder: Path) -> Counter[str]:
    pictures = noise(3, *model.input.shape[1:])
    session = session_of(model, folder)
    assert [spec.name for spec in session.inputs] == ["frames"]
    np.testing.assert_allclose(
        session.run({"frames": pictures})["features"], np.asarray(model(pictures)), rtol=1e-4, atol=1e-5
    )
    return Counter(node.op_type for node in onnx_from_keras_extractor(model).graph.node)


def mean_of(x: Any) -> Any:
    import keras

    return keras.layers.GlobalAveragePooling2D()(x)


def test_normalisation_after_a_depthwise_convolution_is_a_part_of_it(tmp_path: Path) -> None:
    found = operators(extractor(), tmp_path)
    assert (found["Conv"], found["Mul"], found["Add"]) == (2, 1, 1)  # one of each normalises pixels


def test_scalar_sum_after_a_convolution_without_bias_leaves_one_transpose(tmp_path: Path) -> None:
    """tf2onnx gives up on all Transposes there."""

    def build(layers: Any, x: Any) -> Any:
        x = layers.ReLU(6.0)(layers.Conv2D(4, 3, use_bias=False)(x) + 3.0)
        return mean_of(layers.Conv2D(4, 3, strides=2, use_bias=False)(x))

    assert converted(build, tmp_path)["Transpose"] == 1


@pytest.mark.parametrize("name", ["hard_sigmoid", "hard_silu"])
def test_hard_sigmoid_is_one_node(tmp_path: Path, name: str) -> None:
    found = converted(lambda layers, x: mean_of(layers.Conv2D(4, 3, activation=name)(x)), tmp_path)
    assert (found["HardSigmoid"], found["Clip"], found["Add"]) == (1, 0, 1)  # the sum normalises pixels


def test_padding_is_that_of_the_convolution(tmp_path: Path) -> None:
    found = converted(
        lambda layers, x: mean_of(layers.DepthwiseConv2D(3, 2)(layers.ZeroPadding2D(((0, 1), (2, 1)))(x))), tmp_path
    )
    assert (found["Pad"], found["Conv"]) == (0, 1)


def test_padding_before_a_maximum_counts_as_zeros(tmp_path: Path) -> None:
    """ONNX Runtime folds it into MaxPool, where it counts as less than any value."""

    def build(layers: Any, x: Any) -> Any:
        return mean_of(layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(layers.Conv2D(4, 3)(x))))

    assert converted(build, tmp_path)["Pad"] == 0


def test_convolution_in_groups_is_one_node(tmp_path: Path) -> None:
    """Keras compiles it in a function of its own, which tf2onnx does not look into."""
    found = converted(lambda layers, x: mean_of(layers.Conv2D(6, 3, groups=3)(x)), tmp_path)
    assert found["Conv"] == 1


def test_exact_gelu_is_converted(tmp_path: Path) -> None:
    found = converted(lambda layers, x: mean_of(layers.Activation("gelu")(layers.Conv2D(4, 3)(x))), tmp_path)
    assert found["Erf"] == 1


def test_dense_layer_on_maps_needs_no_transpose_of_its_own(tmp_path: Path) -> None:
    found = converted(
        lambda layers, x: mean_of(layers.Conv2D(4, 3)(layers.Dense(5, "relu")(layers.Conv2D(4, 3)(x)))), tmp_path
    )
    assert (found["Conv"], found["MatMul"], found["Reshape"], found["Transpose"]) == (3, 0, 0, 1)


def test_flattened_maps_keep_the_order_of_keras(tmp_path: Path) -> None:
    found = converted(lambda layers, x: layers.Flatten()(layers.Conv2D(4, 3)(x)), tmp_path)
    assert (found["Transpose"], found["Reshape"], found["Shape"]) == (2, 1, 0)


def test_normalisation_layer_brings_its_numbers_along(tmp_path: Path) -> None:
    """Other ways of tf2onnx than the one taken make inputs of them."""
    assert converted(
        lambda layers, x: mean_of(layers.Conv2D(4, 3)(layers.Normalization(mean=[1, 2, 3], variance=[4, 5, 6])(x))),
        tmp_path,
    )


def test_preprocessing_of_keras_brings_its_numbers_along(tmp_path: Path) -> None:
    import keras

    def build(layers: Any, x: Any) -> Any:
        return mean_of(layers.Conv2D(4, 3)(keras.applications.vgg16.preprocess_input(x)))

    assert converted(build, tmp_path)


def test_uint8_is_cast_before_it_is_cut(tmp_path: Path) -> None:
    import keras

    frames = keras.Input((16, 12, 3), dtype="uint8", name="frames")
    cut = keras.layers.Cropping2D(2)(frames)
    model = keras.Model(frames, mean_of(keras.layers.Rescaling(1 / 255)(cut)))
    operators(model, tmp_path)
    graph = onnx_from_keras_extractor(model).graph
    assert [node.op_type for node in graph.node if "frames" in node.input] == ["Cast"]


def test_functions_of_tensorflow_run_as_before(converters: None) -> None:
    import tensorflow as tf

    onnx_from_keras_extractor(extractor())
    assert not tf.config.functions_run_eagerly()


def test_operation_that_onnx_lacks_is_named() -> None:
    import keras

    frames, x = small_inputs()
    model = keras.Model(frames, keras.layers.GlobalAveragePooling2D()(keras.ops.erfinv(x / 2)))
    with pytest.raises(ExportError, match="ONNX has nothing for Erfinv"):
        onnx_from_keras_extractor(model)
