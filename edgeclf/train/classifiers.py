"""Sequence models: a clip of features to scores.

All have the input `features` float32 (N, length, feature_size) and, where what stands behind the end of a clip is
masked, the input `mask` bool (N, length), true where there is a frame; the true ones stand first. The output of all is
the layer `scores`, float32 (N, classes), whose rows sum to 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeclf.model_directory import import_keras


def gru_classifier(
    length: int,
    feature_size: int,
    classes: int,
    *,
    units: int = 64,
    dropout: float = 0.4,
    feature_dropout: float = 0.0,
) -> Any:
    """A GRU over a masked clip, dropout, softmax.

    In training, `dropout` is the share of the GRU's last state that is left out, `feature_dropout` that of the
    features, the same ones in all frames of a clip.
    """
    keras = import_keras()
    features, mask = _features_input(length, feature_size), _mask_input(length)
    kept = features
    if feature_dropout:
        kept = keras.layers.SpatialDropout1D(feature_dropout, name="feature_dropout")(features)
    state = keras.layers.GRU(units, name="gru")(kept, mask=mask)
    state = keras.layers.Dropout(dropout, name="dropout")(state)
    return keras.Model({"features": features, "mask": mask}, _scores(state, classes), name="gru_classifier")


def change_gru_classifier(
    length: int,
    feature_size: int,
    classes: int,
    *,
    units: int = 128,
    narrow: int = 256,
    dropout: float = 0.5,
    feature_dropout: float = 0.5,
) -> Any:
    """A GRU over the features of a masked clip and their change from frame to frame; the mean of its states decides.

    Roots of the features are taken, as in `statistics_classifier`; they must not be negative. The layer `standardise`
    takes mean and spread of training data. `narrow` units stand between features and GRU. In training,
    `feature_dropout` is the share of the features that is left out, the same ones in all frames, `dropout` that of the
    mean state.
    """
    keras = import_keras()
    layers, ops = keras.layers, keras.ops
    features, mask = _features_input(length, feature_size), _mask_input(length)
    roots = _roots(features)
    change = ops.abs(ops.subtract(roots[:, 1:], roots[:, :-1]))
    x = layers.Concatenate(name="with_change")([roots, layers.ZeroPadding1D((1, 0), name="change")(change)])
    x = layers.Normalization(name="standardise")(x)
    x = layers.SpatialDropout1D(feature_dropout, name="feature_dropout")(x)
    x = layers.Dense(narrow, activation="relu", name="narrow")(x)
    states = layers.GRU(units, return_sequences=True, name="gru")(x, mask=mask)
    state = layers.Dropout(dropout, name="dropout")(_mean(states, _valid(mask)))
    return keras.Model({"features": features, "mask": mask}, _scores(state, classes), name="change_gru_classifier")


def published_gru(length: int, feature_size: int, classes: int) -> Any:
    """Two GRUs over a masked clip, the classifier of the Keras code example on CNN-RNNs.

    Source: S. Paul, "Video Classification with a CNN-RNN Architecture", 2021,
    https://keras.io/examples/vision/video_classification.
    """
    keras = import_keras()
    layers = keras.layers
    features, mask = _features_input(length, feature_size), _mask_input(length)
    states = layers.GRU(16, return_sequences=True, name="gru1")(features, mask=mask)
    # The example leaves it to Keras to hand the mask on, which not every version has done:
    # https://github.com/keras-team/keras/pull/21449
    state = layers.GRU(8, name="gru2")(states, mask=mask)
    state = layers.Dropout(0.4, name="dropout")(state)
    state = layers.Dense(8, activation="relu", name="hidden")(state)
    return keras.Model({"features": features, "mask": mask}, _scores(state, classes), name="published_gru")


def published_lstm(length: int, feature_size: int, classes: int) -> Any:
    """Two LSTMs over a full clip, without a mask, as in a published notebook on features of VGG16.

    Source: the list of layers of a notebook, "VGG16 + LSTM". Keras 2 gave its hard sigmoid the slope 1/5; here it is
    Keras 3's, with 1/6.
    """
    keras = import_keras()
    layers = keras.layers
    features = _features_input(length, feature_size)
    lstm = layers.LSTM(456, dropout=0.5, recurrent_activation="hard_sigmoid", return_sequences=True, name="lstm1")
    state = layers.LSTM(8, name="lstm2")(lstm(features))
    state = layers.Dense(8, activation="relu", name="hidden")(state)
    return keras.Model(features, _scores(state, classes), name="published_lstm")


def lstm_classifier(
    length: int,
    feature_size: int,
    classes: int,
    *,
    mask: bool,
    units: int = 128,
    dropout: float = 0.0,
    roots: bool = False,
) -> Any:
    """One LSTM over a clip, dropout where there is any, softmax.

    With `roots` it is given roots of the features, which must not be negative then, as in `statistics_classifier`.

    Source: the network of Donahue et al. 2014 (arXiv 1411.4389), a CNN's features into one LSTM (Hochreiter &
    Schmidhuber 1997), but with the scores of the last frame in place of the mean over all frames.
    """
    keras = import_keras()
    features, inputs = _inputs(length, feature_size, mask=mask)
    options = {"mask": inputs["mask"]} if isinstance(inputs, dict) else {}
    state = keras.layers.LSTM(units, name="lstm")(_roots(features) if roots else features, **options)
    if dropout:
        state = keras.layers.Dropout(dropout, name="dropout")(state)
    return keras.Model(inputs, _scores(state, classes), name="lstm_classifier")


def vote_classifier(length: int, feature_size: int, classes: int) -> Any:
    """Four dense layers for a clip of one frame (`length` is 1); a video's label is what most of its frames say.

    Source: P. Sharma, "Step-by-Step Deep Learning Tutorial to Build your own Video Classification Model", 2019,
    https://www.analyticsvidhya.com/blog/2019/09/step-by-step-deep-learning-tutorial-video-classification-python.
    There the features are all values of VGG16's last feature map.
    """
    keras = import_keras()
    features = _features_input(length, feature_size)
    x = keras.layers.Flatten(name="frame")(features)
    for number, units in enumerate((1024, 512, 256, 128), start=1):
        x = keras.layers.Dense(units, activation="relu", name=f"hidden{number}")(x)
        x = keras.layers.Dropout(0.5, name=f"dropout{number}")(x)
    return keras.Model(features, _scores(x, classes), name="vote_classifier")


def statistics_classifier(
    length: int,
    feature_size: int,
    classes: int,
    *,
    first: int = 0,
    halves: bool = True,
    hidden: int = 128,
    dropout: float = 0.5,
    statistics_dropout: float = 0.7,
) -> Any:
    """What features do over a masked clip, in a few numbers each, then two dense layers; one without `hidden` units.

    The numbers are the mean over time, the maximum, the mean change from frame to frame, and, with `halves`, how the
    first half differs from the second. The first three are at least 0, and their roots are taken, which keeps a few
    strong features from drowning the others (power normalisation, Perronnin et al. 2010). The layer `statistics`
    ends the part that has no weights; `standardise` takes mean and spread of training data. In training,
    `statistics_dropout` is the share of the numbers that is left out, `dropout` that of the hidden units.
    Features before number `first` are not looked at; the others must not be negative. Without hidden units the weights
    begin at 0: on a hundred clips, what is left of random ones would drown what is learned.
    """
    keras = import_keras()
    layers, ops = keras.layers, keras.ops
    features, mask = _features_input(length, feature_size), _mask_input(length)
    valid = _valid(mask)
    frames = ops.sum(valid, axis=1)  # (N, 1)
    kept = ops.multiply(
        features[..., first:] if first else features, valid
    )  # noise behind a clip's end counts for nothing
    mean = _mean(features[..., first:] if first else features, valid)
    highest = ops.max(kept, axis=1)
    steps = ops.multiply(ops.abs(ops.subtract(kept[:, 1:], kept[:, :-1])), valid[:, 1:])
    change = ops.divide(ops.sum(steps, axis=1), ops.maximum(ops.subtract(frames, 1.0), 1.0))
    numbers = [_roots(ops.concatenate([mean, highest, change], axis=-1))]
    if halves:
        numbers.append(_halves(kept, frames))
    x = layers.Identity(name="statistics")(ops.concatenate(numbers, axis=-1))
    x = layers.Normalization(name="standardise")(x)
    x = layers.Dropout(statistics_dropout, name="statistics_dropout")(x)
    if hidden:
        x = layers.Dense(hidden, activation="relu", name="hidden")(x)
        x = layers.Dropout(dropout, name="dropout")(x)
    scores = _scores(x, classes, begin="glorot_uniform" if hidden else "zeros")
    return keras.Model({"features": features, "mask": mask}, scores, name="statistics_classifier")


def _roots(x: Any) -> Any:
    """Square roots of what is not negative; never of less than a millionth, since at 0 the slope has no end."""
    ops = import_keras().ops
    return ops.sqrt(ops.maximum(x, 1e-6))


def _halves(kept: Any, frames: Any) -> Any:
    """(N, F), the mean over the first half of the frames less that over the second; one in the middle is in neither."""
    ops = import_keras().ops
    length = kept.shape[1]
    middles = 2 * np.arange(0.5, length, dtype=np.float32).reshape(1, length, 1)
    side = ops.sign(ops.subtract(ops.expand_dims(frames, -1), middles))  # 1 in the first half, -1 in the second
    return ops.divide(ops.sum(ops.multiply(kept, side), axis=1), ops.maximum(ops.multiply(frames, 0.5), 0.5))


def _valid(mask: Any) -> Any:
    """(N, T, 1), 1 where there is a frame, 0 behind a clip's end."""
    ops = import_keras().ops
    return ops.expand_dims(ops.cast(mask, "float32"), -1)


def _mean(x: Any, valid: Any) -> Any:
    """(N, F), the mean over the frames that there are; 0 where there is none, of which Keras' layer makes a NaN."""
    ops = import_keras().ops
    return ops.divide(ops.sum(ops.multiply(x, valid), axis=1), ops.maximum(ops.sum(valid, axis=1), 1.0))


def _inputs(length: int, feature_size: int, *, mask: bool) -> tuple[Any, Any]:
    """The features, and the inputs of the model: a dictionary with the mask where there is one."""
    features = _features_input(length, feature_size)
    return features, {"features": features, "mask": _mask_input(length)} if mask else features


def _features_input(length: int, feature_size: int) -> Any:
    return import_keras().Input((length, feature_size), name="features")


def _mask_input(length: int) -> Any:
    return import_keras().Input((length,), dtype="bool", name="mask")


def _scores(state: Any, classes: int, *, begin: str = "glorot_uniform") -> Any:
    layers = import_keras().layers
    return layers.Dense(classes, activation="softmax", kernel_initializer=begin, dtype="float32", name="scores")(state)
