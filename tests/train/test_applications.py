"""Extractors of keras.applications against Keras' own functions; nothing is downloaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import URLError

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclf.errors import BundleError, MissingExtraError
from edgeclf.train.extractors import EXTRACTORS

pytestmark = pytest.mark.keras

# the function and the module of keras.applications
FUNCTIONS = {
    "inceptionv3": ("InceptionV3", "inception_v3"),
    "vgg16": ("VGG16", "vgg16"),
    "resnet50": ("ResNet50", "resnet50"),
    "mobilenet_v2": ("MobileNetV2", "mobilenet_v2"),
}


@pytest.fixture(scope="module")
def keras() -> Any:
    pytest.importorskip("tensorflow", reason="needs TensorFlow: pip install 'edgeclf[train]'")
    return pytest.importorskip("keras", reason="needs Keras: pip install 'edgeclf[train]'")


@pytest.fixture
def no_network(keras: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keras with an empty folder of weights and a downloader that finds no host."""

    def fail(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise URLError("Name or service not known")

    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", fail)
    monkeypatch.setattr("keras.src.backend.config.keras_home", lambda: str(tmp_path))


def frames() -> NDArray[np.uint8]:
    """Two pictures with all values of a pixel and channels that are far from alike."""
    noise = np.random.default_rng(4).integers(0, 256, (1, 224, 224, 3))
    y, x = np.mgrid[:224, :224]
    ramps = np.stack([x, 255 - y, (x + y) // 4], axis=-1)[np.newaxis]
    return np.concatenate([noise, ramps]).astype(np.uint8)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_network_and_normalisation_equal_those_of_keras(
    name: str, keras: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function, module = FUNCTIONS[name]
    path = tmp_path / "weights.h5"
    asked: list[tuple[Any, ...]] = []

    def get_file(file: str, url: str, *, cache_subdir: str, file_hash: str | None = None) -> str:
        asked.append((file, url, cache_subdir, file_hash))
        return str(path)

    with monkeypatch.context() as patch:
        patch.setattr("keras.src.utils.file_utils.get_file", get_file)
        patch.setattr(keras.Model, "load_weights", lambda *_: None)
        theirs = getattr(keras.applications, function)(
            include_top=False, weights="imagenet", pooling="avg", input_shape=(224, 224, 3)
        )
    theirs.save(path)
    monkeypatch.setattr(keras.utils, "get_file", get_file)
    ours = EXTRACTORS.load(name).build("imagenet")

    assert asked[0] == asked[1]
    pixels = getattr(keras.applications, module).preprocess_input(frames().astype(np.float32))
    expected = theirs.predict_on_batch(pixels)
    found = ours.predict_on_batch(frames())
    np.testing.assert_allclose(found / expected.std(), expected / expected.std(), rtol=1e-4, atol=1e-4)

    normalised = keras.Model(ours.inputs, ours.get_layer("normalise").output).predict_on_batch(frames())
    if name in ("vgg16", "resnet50"):
        np.testing.assert_array_equal(normalised[..., ::-1], pixels)  # the first convolution takes RGB
    else:
        np.testing.assert_allclose(normalised, pixels, atol=2e-7)


def test_failed_download_says_what_was_wanted_and_what_else_there_is(
    no_network: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KERAS_HOME", "/weights/of/keras")
    with pytest.raises(MissingExtraError) as caught:
        EXTRACTORS.load("vgg16").build("imagenet")
    file = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    assert caught.value.message == (
        f"the weights {file} cannot be downloaded from https://storage.googleapis.com/tensorflow/keras-applications/"
        f"vgg16/{file}: <urlopen error Name or service not known>"
    )
    assert "into /weights/of/keras/models by hand" in caught.value.hint
    assert "--extractor efficientnet_lite0" in caught.value.hint
    assert "--weights none" in caught.value.hint
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("error", [TimeoutError("timed out"), OSError(28, "No space left on device")])
def test_whatever_stops_the_download_is_told(
    error: Exception, keras: Any, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise error

    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", fail)
    monkeypatch.delenv("KERAS_HOME", raising=False)
    with pytest.raises(MissingExtraError, match=f"{re.escape(str(error))}.*~/.keras/models") as caught:
        EXTRACTORS.load("mobilenet_v2").build("imagenet")
    assert caught.value.__cause__ is error


def test_file_put_there_by_hand_is_used_without_a_download(keras: Any, no_network: None, tmp_path: Path) -> None:
    theirs = keras.applications.MobileNetV2(include_top=False, weights=None, pooling="avg", input_shape=(224, 224, 3))
    (tmp_path / "models").mkdir()
    theirs.save(tmp_path / "models" / "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5")
    ours = EXTRACTORS.load("mobilenet_v2").build("imagenet")
    for found, expected in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("content", [b"", b"<html>sign in to use this network</html>"])
def test_broken_file_is_named(content: bytes, no_network: None, tmp_path: Path) -> None:
    file = tmp_path / "models" / "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(BundleError, match=f"{file.name} does not hold the weights of .*delete it"):
        EXTRACTORS.load("mobilenet_v2").build("imagenet")


# TensorFlow's own tensors do not know the `copy` keyword that NumPy 2 passes to __array__.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_saved_model_loads_in_safe_mode_and_answers_the_same(keras: Any, tmp_path: Path) -> None:
    model = EXTRACTORS.load("vgg16").build(None)
    model.save(tmp_path / "extractor.keras")
    loaded = keras.models.load_model(tmp_path / "extractor.keras", compile=False, safe_mode=True)
    np.testing.assert_array_equal(loaded.predict_on_batch(frames()), model.predict_on_batch(frames()))
