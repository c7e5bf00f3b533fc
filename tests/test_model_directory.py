"""What training writes is what export and evaluation read, and nothing in it is executed."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclf.errors import BundleError
from edgeclf.model_directory import (
    classifier_session,
    extractor_session,
    load_keras,
    open_keras_model,
    read_description,
    read_parity,
    write_description,
    write_model,
)
from edgeclf.runtime.pipeline import Classifier, LoopOptions
from edgeclf.specs import ClipSpec, PreprocessSpec
from tests.support.counting import NumberedSource
from tests.support.keras_models import (
    CLIP,
    FEATURES,
    LABELS,
    PREPROCESS,
    SIZE,
    clips,
    description,
    extractor,
    require,
    tiny_classifier,
    write_tiny_model,
)

pytestmark = pytest.mark.keras


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("tensorflow", "keras")
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def model_dir(written: Path, tmp_path: Path) -> Path:
    """A copy, for damage."""
    return shutil.copytree(written, tmp_path / "tiny")


@pytest.fixture
def arrays(written: Path) -> dict[str, Any]:
    """The arrays in `parity.npz`."""
    with np.load(written / "parity.npz", allow_pickle=False) as file:
        return dict(file)


def test_optimiser_is_left_out_of_the_files(tmp_path: Path) -> None:
    require("tensorflow", "keras")
    from edgeclf.train.classifiers import vote_classifier

    model = vote_classifier(1, FEATURES, len(LABELS))
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(np.zeros((2, 1, FEATURES)), np.zeros(2), verbose=0)
    clip = replace(CLIP, length=1, padding="repeat_last")
    write_model(tmp_path / "vote", replace(description(), clip=clip), extractor(), model, [clips()[0][:1]])
    weights = sum(int(np.prod(weight.shape)) * 4 for weight in model.weights)
    assert (tmp_path / "vote" / "classifier.keras").stat().st_size < 1.5 * weights
    assert load_keras(tmp_path / "vote")[1].count_params() == model.count_params()


# -- model.json -------------------------------------------------------------------------------------------------------


def test_description_comes_back_as_it_was_written(written: Path) -> None:
    assert read_description(written) == description()


def test_folder_without_description_is_no_model_directory(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"it has no model\.json; train it again"):
        read_description(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"{}", b"\xff", b"[" * 100_000],
    ids=["empty", "cut", "list", "null", "no keys", "no text", "deep"],
)
def test_description_that_is_no_description_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"is not valid: .*train it again"):
        read_description(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"schema_version": 2}, "schema_version is 2, this edgeclf reads 1"),
        ({"labels": 4}, "must be a list of names"),
        ({"clip": []}, "ClipSpec must be an object"),
        ({"clip": {**CLIP.to_dict(), "length": 0}}, "length 0"),
        ({"preprocess": {**PREPROCESS.to_dict(), "crop": "round"}}, "crop is 'round'"),
        ({"preprocess": {**PREPROCESS.to_dict(), "code": "import os"}}, "unknown keys"),
        ({"thresholds": {"five": 0.5}}, "'five', which is no label"),
        ({"thresholds": {"one": 7}}, "threshold of 'one' is 7"),
        ({"thresholds": 0.5}, "is not valid"),
        ({"thresholds": None}, "is not valid"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_value_that_makes_no_sense_is_named(model_dir: Path, change: dict[str, Any], named: str) -> None:
    content = json.loads((model_dir / "model.json").read_text(encoding="utf-8"))
    (model_dir / "model.json").write_text(json.dumps({**content, **change}), encoding="utf-8")
    with pytest.raises(BundleError, match=named):
        read_description(model_dir)


@pytest.mark.parametrize("key", ["labels", "clip", "preprocess", "aggregate", "provenance", "schema_version"])
def test_missing_key_is_named(model_dir: Path, key: str) -> None:
    content = json.loads((model_dir / "model.json").read_text(encoding="utf-8"))
    del content[key]
    (model_dir / "model.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BundleError, match=key):
        read_description(model_dir)


def test_description_written_before_there_were_thresholds_and_networks_of_frames_is_read(model_dir: Path) -> None:
    content = json.loads((model_dir / "model.json").read_text(encoding="utf-8"))
    for key in ("thresholds", "has_extractor"):
        del content[key]
    for key in ("stack", "stack_seconds"):
        del content["preprocess"][key]
    (model_dir / "model.json").write_text(json.dumps(content), encoding="utf-8")
    assert read_description(model_dir) == description()


def test_thresholds_reach_the_model_in_the_order_of_its_labels(model_dir: Path) -> None:
    write_description(model_dir, replace(description(), thresholds={"three": 0.75, "one": 0.5}))
    assert read_description(model_dir).thresholds == {"three": 0.75, "one": 0.5}
    assert open_keras_model(model_dir).thresholds == (0.5, 0.0, 0.75, 0.0)


def test_model_without_thresholds_finds_nothing_unknown(written: Path) -> None:
    assert open_keras_model(written).thresholds == ()


# -- parity.npz -------------------------------------------------------------------------------------------------------


def test_parity_frames_come_back_with_zeros_behind_each_clip(written: Path) -> None:
    parity = read_parity(written)
    assert parity.frames.shape == (len(clips()), CLIP.length, *SIZE, 3)
    for clip, frames, length, features in zip(clips(), parity.frames, parity.lengths, parity.features, strict=True):
        assert length == len(clip)
        np.testing.assert_array_equal(frames[:length], clip)
        assert not frames[length:].any()
        assert not features[length:].any()


def test_parity_holds_the_answers_of_keras(written: Path) -> None:
    parity = read_parity(written)
    mask = np.arange(CLIP.length) < parity.lengths[:, None]
    features = np.asarray(extractor()(parity.frames.reshape(-1, *SIZE, 3))).reshape(parity.features.shape)
    np.testing.assert_allclose(parity.features[mask], features[mask], rtol=1e-4, atol=1e-4)
    scores = tiny_classifier()({"features": parity.features, "mask": mask})
    np.testing.assert_allclose(parity.scores, scores, rtol=1e-4, atol=1e-5)


def test_tiny_model_is_worth_comparing(written: Path) -> None:
    scores = read_parity(written).scores
    assert len(set(scores.argmax(axis=1))) >= 3
    assert scores.max(axis=1).min() > 0.35


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_truncated_parity_frames_are_refused(model_dir: Path, keep: float) -> None:
    path = model_dir / "parity.npz"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(BundleError, match=r"parity\.npz cannot be read: .*train it again"):
        read_parity(model_dir)


def test_flipped_bits_in_parity_frames_are_refused(model_dir: Path) -> None:
    path = model_dir / "parity.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(BundleError, match="cannot be read"):
        read_parity(model_dir)


def test_missing_parity_frames_are_refused(model_dir: Path) -> None:
    (model_dir / "parity.npz").unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        read_parity(model_dir)


def test_array_that_is_no_archive_is_refused(model_dir: Path) -> None:
    with (model_dir / "parity.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(BundleError, match="cannot be read"):
        read_parity(model_dir)


class Explosive:
    """Would leave a file behind if it were ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickled_objects_are_refused_and_not_run(model_dir: Path, arrays: dict[str, Any], tmp_path: Path) -> None:
    harm = np.array([Explosive(tmp_path / "harm")], object)
    np.savez(model_dir / "parity.npz", **{**arrays, "lengths": harm})
    with pytest.raises(BundleError, match="allow_pickle=False"):
        read_parity(model_dir)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"frames": slice(0, 0), "lengths": slice(0, 0), "features": slice(0, 0), "scores": slice(0, 0)},
        {"lengths": slice(1)},
        {"scores": slice(1)},
        {"features": (slice(None), slice(1))},
    ],
    ids=["no clips", "lengths", "scores", "features"],
)
def test_arrays_that_do_not_fit_each_other_are_refused(
    model_dir: Path, arrays: dict[str, Any], change: dict[str, Any]
) -> None:
    np.savez(model_dir / "parity.npz", **{**arrays, **{name: arrays[name][part] for name, part in change.items()}})
    with pytest.raises(BundleError, match="cannot be read"):
        read_parity(model_dir)


@pytest.mark.parametrize("length", [0, -1, CLIP.length + 1])
def test_length_outside_a_clip_is_refused(model_dir: Path, arrays: dict[str, Any], length: int) -> None:
    np.savez(model_dir / "parity.npz", **{**arrays, "lengths": np.full_like(arrays["lengths"], length)})
    with pytest.raises(BundleError, match="lengths"):
        read_parity(model_dir)


# -- the Keras files --------------------------------------------------------------------------------------------------


def test_loaded_models_give_the_answers_of_those_that_were_saved(written: Path) -> None:
    model, parity = open_keras_model(written), read_parity(written)
    assert (model.labels, model.clip, model.preprocess) == (LABELS, CLIP, PREPROCESS)
    np.testing.assert_allclose(model.extract(clips()[0]), parity.features[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.classify(parity.features, parity.lengths), parity.scores, rtol=1e-5, atol=1e-6)


def test_lambda_layer_is_refused(model_dir: Path) -> None:
    import keras

    features = keras.Input((4,), name="features")
    keras.Model(features, keras.layers.Lambda(lambda x: x * 2)(features)).save(model_dir / "classifier.keras")
    with pytest.raises(BundleError, match=r"classifier\.keras cannot be loaded: .*Lambda"):
        load_keras(model_dir)


def no_archive(path: Path) -> None:
    path.write_bytes(b"weights")


def no_config(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")


def half_of_it(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def no_weights(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist() if name.endswith(".json")}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in kept.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("damage", [Path.unlink, no_archive, no_config, half_of_it, no_weights])
def test_damaged_keras_file_is_named(model_dir: Path, damage: Any) -> None:
    damage(model_dir / "extractor.keras")
    with pytest.raises(BundleError, match=r"extractor\.keras cannot be loaded: [^;]+"):
        load_keras(model_dir)


# -- sessions ---------------------------------------------------------------------------------------------------------


def test_length_of_a_session_is_the_mask_of_keras(written: Path) -> None:
    features = np.random.default_rng(6).normal(size=(7, CLIP.length, FEATURES)).astype(np.float32)
    length = np.arange(7, dtype=np.int32)
    mask = np.arange(CLIP.length) < length[:, None]
    scores = classifier_session(tiny_classifier(), CLIP).run({"features": features, "length": length})["scores"]
    expected = tiny_classifier()({"features": features, "mask": mask}, training=False)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


def test_sessions_describe_their_tensors(written: Path) -> None:
    frames_to_features = extractor_session(extractor(), PREPROCESS)
    features_to_scores = classifier_session(tiny_classifier(), CLIP)
    assert [str(spec) for spec in frames_to_features.inputs] == ["frames uint8[N,32,40,3]"]
    assert [str(spec) for spec in frames_to_features.outputs] == ["features float32[N,10]"]
    assert [str(spec) for spec in features_to_scores.inputs] == ["features float32[N,6,10]", "length int32[N]"]
    assert [str(spec) for spec in features_to_scores.outputs] == ["scores float32[N,4]"]


def test_closed_session_says_so(written: Path) -> None:
    session = extractor_session(extractor(), PREPROCESS)
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.run({"frames": clips()[0]})


# -- networks that take frames, and stacked pictures ------------------------------------------------------------------


COUNTED = ClipSpec(4, 25.0, 0.1, 1.0, sampling="first", padding="repeat_last")
SMALL = PreprocessSpec((6, 8), crop="none")
STACKED = PreprocessSpec((6, 8), crop="none", stack=2, stack_seconds=0.08)


def frames_network(length: int, *, mask: bool) -> Any:
    """Scores that follow the mean of the frames."""
    import keras

    keras.utils.set_random_seed(3)
    layers = keras.layers
    frames = keras.Input((length, *SMALL.input_shape), dtype="uint8", name="frames")
    x = layers.Reshape((length, -1), name="flat")(layers.Rescaling(1 / 255, name="scale")(frames))
    inputs: Any = frames
    if mask:
        valid = keras.Input((length,), dtype="bool", name="mask")
        inputs = {"frames": frames, "mask": valid}
        x = layers.GlobalAveragePooling1D(name="mean")(x, mask=valid)
    else:
        x = layers.GlobalAveragePooling1D(name="mean")(x)
    return keras.Model(inputs, layers.Dense(len(LABELS), activation="softmax", name="scores")(x))


def stacked_extractor() -> Any:
    """The means of the two pictures."""
    import keras

    frames = keras.Input(STACKED.input_shape, dtype="uint8", name="frames")
    x = keras.layers.Rescaling(1 / 255, name="scale")(frames)
    return keras.Model(frames, keras.layers.Flatten(name="features")(x), name="stacked")


def some_clips(preprocess: PreprocessSpec, lengths: tuple[int, ...] = (4, 2, 1)) -> list[Any]:
    rng = np.random.default_rng(4)
    return [rng.integers(0, 256, (length, *preprocess.input_shape), np.uint8) for length in lengths]


@pytest.mark.parametrize("mask", [False, True], ids=["repeated", "masked"])
def test_network_of_frames_comes_back_without_extractor(tmp_path: Path, mask: bool) -> None:
    require("tensorflow", "keras")
    clip = COUNTED if not mask else replace(COUNTED, padding="mask")
    network = frames_network(clip.length, mask=mask)
    said = replace(description(), preprocess=SMALL, clip=clip, has_extractor=False)
    write_model(tmp_path / "net", said, None, network, some_clips(SMALL))
    assert not (tmp_path / "net" / "extractor.keras").exists()
    assert read_description(tmp_path / "net") == said
    assert load_keras(tmp_path / "net")[0] is None

    parity, model = read_parity(tmp_path / "net"), open_keras_model(tmp_path / "net")
    np.testing.assert_array_equal(parity.features, parity.frames)
    assert parity.frames.dtype == np.uint8
    last = parity.frames[1, 1] if not mask else np.zeros_like(parity.frames[1, 1])
    np.testing.assert_array_equal(parity.frames[1, 2:], [last, last])
    np.testing.assert_allclose(model.classify(parity.frames, parity.lengths), parity.scores, rtol=1e-5, atol=1e-6)
    with Classifier(model, LoopOptions(depth=0)) as classifier:
        result = classifier.classify(NumberedSource([n / 25 for n in range(9)]))
    assert len(result.clips) == 1


def test_stacked_pictures_come_back(tmp_path: Path) -> None:
    require("tensorflow", "keras")
    from edgeclf.train.classifiers import gru_classifier

    clip = ClipSpec.by_rate(4, 5.0)
    extractor_of_stacks = stacked_extractor()
    size = int(extractor_of_stacks.output_shape[-1])
    said = replace(description(), preprocess=STACKED, clip=clip)
    classifier = gru_classifier(clip.length, size, len(LABELS), units=3)
    write_model(tmp_path / "net", said, extractor_of_stacks, classifier, some_clips(STACKED))
    parity, model = read_parity(tmp_path / "net"), open_keras_model(tmp_path / "net")
    assert model.preprocess == STACKED
    assert parity.frames.shape == (3, 4, 2, 6, 8, 3)
    assert [str(spec) for spec in model.extractor.inputs] == ["frames uint8[N,2,6,8,3]"]
    np.testing.assert_allclose(model.extract(parity.frames[0]), parity.features[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.classify(parity.features, parity.lengths), parity.scores, rtol=1e-5, atol=1e-6)


def removed(path: Path) -> None:
    (path / "extractor.keras").unlink()


def kept(path: Path) -> None:
    """Nothing is done."""


@pytest.mark.parametrize("change", [removed, kept])
def test_description_alone_says_whether_there_is_an_extractor(model_dir: Path, change: Callable[[Path], None]) -> None:
    change(model_dir)
    write_description(model_dir, replace(description(), has_extractor=False))
    assert load_keras(model_dir)[0] is None
