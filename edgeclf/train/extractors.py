"""Networks that turn frames into features: what one is, which there are, and how one is tuned on other pictures.

All of them are built of Keras' own layers, so that they load in safe mode and convert. Keras is imported when a network
is built.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, Protocol

from edgeclf.errors import EdgeclfError
from edgeclf.model_directory import import_keras
from edgeclf.registry import Registry
from edgeclf.specs import PreprocessSpec

Weights = Literal["imagenet"]
Pooling = Literal["avg", "flatten"]  # the mean over the last feature map, or all of its values


class Build(Protocol):
    """Builds a keras.Model from `frames` uint8 (N, H, W, 3) RGB to `features` float32 (N, F).

    Casting and normalising are inside. `weights=None` leaves Keras' random initial values.
    Raises MissingExtraError where the weights cannot be had, BundleError where they are not those expected.
    """

    def __call__(self, weights: Weights | None, *, pooling: Pooling = "avg") -> Any: ...


@dataclass(frozen=True, slots=True)
class Extractor:
    """A network by name: how to build it, the sizes of its frames and its last feature map, whose weights it takes."""

    name: str
    build: Build
    size: tuple[int, int]  # (height, width) in pixels
    feature_map: tuple[int, int, int]  # (height, width, channels)
    weights_source: str
    licence: str

    @property
    def preprocess(self) -> PreprocessSpec:
        """How a picture becomes its input: the middle square, scaled to `size`."""
        return PreprocessSpec(self.size, crop="center_square", interpolation="linear")

    def features(self, pooling: Pooling = "avg") -> int:
        """How many features a frame has."""
        return self.feature_map[-1] if pooling == "avg" else prod(self.feature_map)


EXTRACTORS: Registry[Extractor] = Registry(
    "extractor",
    {
        "efficientnet_lite0": "edgeclf.train.lite_networks:EFFICIENTNET_LITE0",
        "efficientnet_lite1": "edgeclf.train.lite_networks:EFFICIENTNET_LITE1",
        "efficientnet_lite2": "edgeclf.train.lite_networks:EFFICIENTNET_LITE2",
        "inceptionv3": "edgeclf.train.applications:INCEPTIONV3",
        "vgg16": "edgeclf.train.applications:VGG16",
        "resnet50": "edgeclf.train.applications:RESNET50",
        "mobilenet_v2": "edgeclf.train.applications:MOBILENET_V2",
        "faces_cnn": "edgeclf.train.extractors:FACES_CNN",
    },
    error=EdgeclfError,
    group="edgeclf.extractors",
)


def features_of(feature_map: Any, pooling: Pooling) -> Any:
    """The output of an extractor's last layer, named `features`: (N, F) from its last feature map (N, H, W, C)."""
    layers = import_keras().layers
    layer = layers.GlobalAveragePooling2D if pooling == "avg" else layers.Flatten
    return layer(name="features")(feature_map)


def fine_tunable(model: Any, last: int) -> tuple[str, ...]:
    """Names of the last layers with weights, which alone are trained from now on; the order is the network's.

    `last` counts layers that are not batch normalisations. Those stay frozen wherever they stand and so keep using
    their moving averages, as Keras' guide "Transfer learning & fine-tuning" advises: statistics of a few small
    batches would spoil what the layers between them have learned.
    """
    if last < 0:
        raise ValueError(f"last is {last}, must be 0 or more")
    normalisation = import_keras().layers.BatchNormalization
    model.trainable = True  # else a model that was frozen as a whole keeps hiding the weights of its layers
    layers = [layer for layer in _plain_layers(model) if layer.weights]
    trained = [layer for layer in layers if not isinstance(layer, normalisation)]
    trained = trained[len(trained) - min(last, len(trained)) :]
    for layer in layers:
        layer.trainable = False
    for layer in trained:
        layer.trainable = True
    return tuple(layer.name for layer in trained)


def split_at_trained(model: Any, trained: str) -> tuple[Any, Any]:
    """The network up to the last feature map that training does not change, and the rest; both share its layers.

    trained: the first layer that is trained. The first part gives one map for every frame. It is None, and the rest is
    the whole network, where nothing with weights is left for it, where its maps would be more than twice as large as
    frames, and where there is a model within the network.
    """
    keras = import_keras()
    if any(hasattr(layer, "layers") for layer in model.layers):
        return None, model
    operations = list(model.operations)  # each behind all that it takes
    first = [operation.name for operation in operations].index(trained)
    places = {id(operation.output): place for place, operation in enumerate(operations)}
    earliest = len(operations)  # of those whose output is taken from here on
    for place in range(len(operations) - 1, 0, -1):
        earliest = min(earliest, *(places[id(tensor)] for tensor in keras.tree.flatten(operations[place].input)))
        before = operations[place - 1].output
        fits = prod(before.shape[1:]) <= _LARGEST_MAP * prod(model.input_shape[1:])
        if earliest == place - 1 < first and fits:
            frozen = keras.Model(model.input, before, name=f"{model.name}_frozen")
            if frozen.weights:
                return frozen, keras.Model(before, model.output, name=f"{model.name}_trained")
    return None, model


_LARGEST_MAP = 2  # times as many values as a frame has


def _plain_layers(model: Any) -> Iterator[Any]:
    """The layers in order, those of a model within the model in its place."""
    for layer in model.layers:
        yield from _plain_layers(layer) if hasattr(layer, "layers") else [layer]


# -- a small network for faces ----------------------------------------------------------------------------------------

_FACES_CHANNELS = (32, 64, 128, 128)


def _faces_cnn(weights: Weights | None, *, pooling: Pooling = "avg") -> Any:
    """Pairs of 3x3 convolutions with normalisation, in the manner of VGG (Simonyan & Zisserman 2014, arXiv 1409.1556).

    Small, and with dropout after each pooling, since it is meant for a thousand or two pictures of faces.
    """
    if weights is not None:
        message = "faces_cnn has no ImageNet weights, since it is trained on faces from random initial ones"
        raise EdgeclfError(message, hint="take `--weights none`")
    keras = import_keras()
    layers = keras.layers
    frames = keras.Input((*FACES_CNN.size, 3), dtype="uint8", name="frames")
    x = _grey(layers.Rescaling(1 / 127.5, offset=-1.0, name="normalise")(frames))
    for number, channels in enumerate(_FACES_CHANNELS, start=1):
        if number > 1:
            x = layers.MaxPooling2D(name=f"block{number}_pool")(x)
            x = layers.Dropout(0.25, name=f"block{number}_dropout")(x)
        for letter in "ab":
            name = f"block{number}{letter}"
            x = layers.Conv2D(channels, 3, padding="same", use_bias=False, name=f"{name}_conv")(x)
            x = layers.BatchNormalization(name=f"{name}_bn")(x)
            x = layers.ReLU(name=f"{name}_relu")(x)
    return keras.Model(frames, features_of(x, pooling), name=FACES_CNN.name)


def _grey(x: Any) -> Any:
    """The mean of the channels, (N, H, W, 3) to (N, H, W, 1); no weights that training could change."""
    layers = import_keras().layers
    _, height, width, channels = x.shape
    x = layers.Reshape((height * width, channels), name="pixels")(x)
    x = layers.GlobalAveragePooling1D(data_format="channels_first", name="grey")(x)
    return layers.Reshape((height, width, 1), name="picture")(x)


FACES_CNN = Extractor(
    name="faces_cnn",
    build=_faces_cnn,
    size=(48, 48),
    feature_map=(6, 6, _FACES_CHANNELS[-1]),
    weights_source="none: trained from random initial values",
    licence="Apache-2.0",
)
