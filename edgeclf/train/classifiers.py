"""Sequence models: a clip of features to scores."""

from __future__ import annotations

from typing import Any

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

    Inputs: `features` float32 (N, length, feature_size) and `mask` bool (N, length), true where there is a frame;
    the true ones stand first. Output: scores float32 (N, classes) that sum to 1. In training, `dropout` is the
    share of the GRU's last state that is left out, `feature_dropout` that of the features, the same ones in all
    frames of a clip.
    """
    keras = import_keras()
    features = keras.Input((length, feature_size), name="features")
    mask = keras.Input((length,), dtype="bool", name="mask")
    kept = features
    if feature_dropout:
        kept = keras.layers.SpatialDropout1D(feature_dropout, name="feature_dropout")(features)
    state = keras.layers.GRU(units, name="gru")(kept, mask=mask)
    state = keras.layers.Dropout(dropout, name="dropout")(state)
    scores = keras.layers.Dense(classes, activation="softmax", name="scores")(state)
    return keras.Model({"features": features, "mask": mask}, scores, name="gru_classifier")
