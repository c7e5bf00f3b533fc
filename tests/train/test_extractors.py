"""What all extractors have in common, which layers are tuned, and the network for faces."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclf.errors import EdgeclfError
from edgeclf.specs import PreprocessSpec
from edgeclf.train.extractors import EXTRACTORS, FACES_CNN, Pooling, fine_tunable, split_at_trained

# size, features of the mean, features of the whole map, parameters: Keras' documentation and the papers
EXPECTED = {
    "efficientnet_lite0": ((224, 224), 1280, 7 * 7 * 1280, 3_413_024),
    "efficientnet_lite1": ((240, 240), 1280, 8 * 8 * 1280, 4_189_344),
    "efficientnet_lite2": ((260, 260), 1280, 9 * 9 * 1280, 4_869_168),
    "inceptionv3": ((224, 224), 2048, 5 * 5 * 2048, 21_802_784),
    "vgg16": ((224, 224), 512, 25_088, 14_714_688),
    "resnet50": ((224, 224), 2048, 7 * 7 * 2048, 23_587_712),
    "mobilenet_v2": ((224, 224), 1280, 7 * 7 * 1280, 2_257_984),
    "faces_cnn": ((48, 48), 128, 6 * 6 * 128, 583_712),
}


@pytest.fixture(scope="module")
def keras() -> Any:
    pytest.importorskip("tensorflow", reason="needs TensorFlow: pip install 'edgeclf[train]'")
    return pytest.importorskip("keras", reason="needs Keras: pip install 'edgeclf[train]'")


@pytest.fixture(scope="module")
def faces(keras: Any) -> Any:
    return _with_statistics(FACES_CNN.build(None))


def _with_statistics(model: Any) -> Any:
    """`model` with random moving averages, which in a fresh one are all alike."""
    rng = np.random.default_rng(11)
    for layer in model.layers:
        if layer.name.endswith("_bn"):
            layer.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in layer.weights])
    return model


def pictures(channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(2).integers(0, 256, (2, 48, 48, channels), dtype=np.uint8)


# -- all extractors ---------------------------------------------------------------------------------------------------


def test_all_extractors_are_known_by_name() -> None:
    assert set(EXTRACTORS) >= set(EXPECTED)
    assert all(EXTRACTORS.load(name).name == name for name in EXPECTED)


def test_unknown_extractor_names_the_known_ones() -> None:
    with pytest.raises(EdgeclfError, match=r"unknown extractor 'vgg61'; known: efficientnet_lite0, .*vgg16"):
        EXTRACTORS.load("vgg61")


@pytest.mark.parametrize("name", EXPECTED)
def test_extractor_says_what_it_is_fed_and_gives(name: str) -> None:
    extractor = EXTRACTORS.load(name)
    size, mean, whole, _ = EXPECTED[name]
    assert extractor.preprocess == PreprocessSpec(size, crop="center_square", interpolation="linear")
    assert (extractor.features(), extractor.features("avg"), extractor.features("flatten")) == (mean, mean, whole)
    assert extractor.weights_source
    assert extractor.licence


@pytest.mark.keras
@pytest.mark.parametrize(
    ("name", "pooling"),
    [*((name, "avg") for name in EXPECTED), ("efficientnet_lite0", "flatten"), ("vgg16", "flatten")],
)
def test_network_is_what_its_extractor_says(name: str, pooling: Pooling, keras: Any) -> None:
    extractor = EXTRACTORS.load(name)
    model = extractor.build(None, pooling=pooling)
    (frames,), (features,) = model.inputs, model.outputs
    assert (frames.name, frames.dtype, frames.shape) == ("frames", "uint8", (None, *extractor.size, 3))
    assert (features.dtype, features.shape) == ("float32", (None, extractor.features(pooling)))
    assert (model.name, model.layers[-1].name, model.count_params()) == (name, "features", EXPECTED[name][-1])


@pytest.mark.parametrize("module", ["extractors", "lite_networks", "applications", "classifiers", "clip_networks"])
def test_importing_the_module_loads_no_framework(module: str) -> None:
    code = f"import sys, edgeclf.train.{module}; sys.exit(any(m in sys.modules for m in ('keras', 'tensorflow')))"
    subprocess.run([sys.executable, "-c", code], check=True)


# -- fine-tuning ------------------------------------------------------------------------------------------------------


@pytest.mark.keras
def test_last_layers_are_tuned_and_normalisation_never_is(keras: Any) -> None:
    model = FACES_CNN.build(None)
    assert fine_tunable(model, 3) == ("block3b_conv", "block4a_conv", "block4b_conv")
    trained = {layer.name for layer in model.layers if layer.trainable_weights}
    assert trained == {"block3b_conv", "block4a_conv", "block4b_conv"}
    assert len(model.trainable_weights) == 3


@pytest.mark.keras
@pytest.mark.parametrize(("last", "count"), [(0, 0), (1, 1), (8, 8), (100, 8)])
def test_as_many_layers_are_tuned_as_were_asked_for_and_there_are(last: int, count: int, keras: Any) -> None:
    model = FACES_CNN.build(None)
    model.trainable = False
    assert len(fine_tunable(model, last)) == len(model.trainable_weights) == count


@pytest.mark.keras
def test_second_choice_replaces_the_first(keras: Any) -> None:
    model = FACES_CNN.build(None)
    fine_tunable(model, 8)
    fine_tunable(model, 1)
    assert [layer.name for layer in model.layers if layer.trainable_weights] == ["block4b_conv"]


@pytest.mark.keras
def test_layers_of_a_model_within_the_model_are_found(keras: Any) -> None:
    frames = keras.Input((48, 48, 3), dtype="uint8", name="frames")
    inner = FACES_CNN.build(None)
    scores = keras.layers.Dense(7, activation="softmax", name="scores")(inner(frames))
    model = keras.Model(frames, scores)
    assert fine_tunable(model, 2) == ("block4b_conv", "scores")
    assert len(model.trainable_weights) == 3


@pytest.mark.keras
def test_frozen_normalisation_keeps_its_statistics_in_training(keras: Any) -> None:
    model = FACES_CNN.build(None)
    fine_tunable(model, 2)
    before = {layer.name: layer.get_weights() for layer in model.layers}
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    model.train_on_batch(pictures(), np.ones((2, 128), np.float32))
    changed = {
        layer.name
        for layer in model.layers
        if any((old != new).any() for old, new in zip(before[layer.name], layer.get_weights(), strict=True))
    }
    assert changed == {"block4a_conv", "block4b_conv"}


@pytest.mark.keras
@pytest.mark.parametrize(("last", "shape"), [(1, (6, 6, 128)), (3, (12, 12, 64)), (4, (12, 12, 64))])
def test_network_is_split_behind_its_last_frozen_layer(last: int, shape: tuple[int, ...], keras: Any) -> None:
    model = FACES_CNN.build(None)
    frozen, rest = split_at_trained(model, fine_tunable(model, last)[0])
    assert frozen.output_shape[1:] == shape
    assert (len(frozen.trainable_weights), len(rest.trainable_weights)) == (0, last)
    np.testing.assert_allclose(rest(frozen(pictures())), model(pictures()), atol=1e-6)


@pytest.mark.keras
def test_network_is_not_split_between_its_branches(keras: Any) -> None:
    layers = keras.layers
    frames = keras.Input((8, 8, 3), name="frames")
    x = layers.Conv2D(4, 1, name="before")(frames)
    left, right = layers.Conv2D(4, 1, name="left")(x), layers.Conv2D(4, 1, name="right")(x)
    x = layers.Conv2D(4, 1, name="behind")(layers.Add(name="sum")([left, right]))
    model = keras.Model(frames, layers.GlobalAveragePooling2D(name="features")(x), name="branches")
    for last, output in ((1, "sum"), (2, "before"), (3, "before"), (4, None)):
        trained = fine_tunable(model, last)
        frozen, rest = split_at_trained(model, trained[0])
        assert (frozen and frozen.operations[-1].name) == output, trained
        assert len(rest.trainable_weights) == 2 * last


@pytest.mark.keras
def test_network_is_not_split_where_its_maps_are_much_larger_than_frames(keras: Any) -> None:
    frames = keras.Input((8, 8, 3), name="frames")
    x = keras.layers.Conv2D(7, 1, name="wide")(frames)
    x = keras.layers.Conv2D(7, 1, name="trained")(x)
    model = keras.Model(frames, x, name="wide_network")
    assert split_at_trained(model, "trained") == (None, model)


@pytest.mark.keras
def test_network_within_a_network_is_not_split(keras: Any) -> None:
    frames = keras.Input((48, 48, 3), dtype="uint8", name="frames")
    model = keras.Model(frames, FACES_CNN.build(None)(frames), name="outer")
    assert split_at_trained(model, fine_tunable(model, 1)[0]) == (None, model)


def test_fewer_than_no_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="last is -1"):
        fine_tunable(object(), -1)


# -- the network for faces --------------------------------------------------------------------------------------------


@pytest.mark.keras
def test_faces_are_seen_as_the_mean_of_their_channels(keras: Any, faces: Any) -> None:
    grey = keras.Model(faces.inputs, faces.get_layer("picture").output)
    found = grey.predict_on_batch(pictures())
    expected = pictures().mean(axis=-1, keepdims=True) / 127.5 - 1
    assert found.shape == (2, 48, 48, 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.keras
def test_grey_face_is_the_same_in_one_channel(keras: Any, faces: Any) -> None:
    grey = keras.Model(faces.inputs, faces.get_layer("picture").output)
    found = grey.predict_on_batch(pictures(1).repeat(3, axis=-1))
    np.testing.assert_allclose(found, pictures(1) / 127.5 - 1, atol=2e-7)


@pytest.mark.keras
def test_faces_network_is_pairs_of_convolutions_with_dropout_between(faces: Any) -> None:
    kinds = [type(layer).__name__ for layer in faces.layers]
    assert [layer.filters for layer in faces.layers if hasattr(layer, "filters")] == [
        32,
        32,
        64,
        64,
        128,
        128,
        128,
        128,
    ]
    assert (kinds.count("MaxPooling2D"), kinds.count("BatchNormalization")) == (3, 8)
    assert [layer.rate for layer in faces.layers if type(layer).__name__ == "Dropout"] == [0.25] * 3


def test_faces_network_has_no_imagenet_weights() -> None:
    with pytest.raises(EdgeclfError, match=r"faces_cnn has no ImageNet weights.*--weights none"):
        FACES_CNN.build("imagenet")


# TensorFlow's own tensors do not know the `copy` keyword that NumPy 2 passes to __array__.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.keras
def test_saved_faces_network_loads_in_safe_mode_and_answers_the_same(keras: Any, faces: Any, tmp_path: Path) -> None:
    faces.save(tmp_path / "extractor.keras")
    loaded = keras.models.load_model(tmp_path / "extractor.keras", compile=False, safe_mode=True)
    expected = faces.predict_on_batch(pictures())
    assert expected.std() > 1e-3
    np.testing.assert_array_equal(loaded.predict_on_batch(pictures()), expected)
