"""InceptionV3 and two GRUs: the Keras code example on CNN-RNNs."""

from __future__ import annotations

from edgeclf.specs import ClipSpec
from edgeclf.train.classifiers import published_gru
from edgeclf.train.fit import FitSettings
from edgeclf.train.recipe import Recipe

RECIPE = Recipe(
    name="inceptionv3-gru",
    summary="InceptionV3, GRU(16), GRU(8) on the first 20 frames, masked: the Keras example on CNN-RNNs",
    source="S. Paul, Video Classification with a CNN-RNN Architecture, keras.io/examples/vision/video_classification",
    extractor="inceptionv3",
    clip=ClipSpec(length=20, rate=25.0, hop_seconds=0.2, stale_seconds=1.0, sampling="first"),
    aggregate="first",
    classifier=published_gru,
    settings=FitSettings(epochs=10, batch=32, learning_rate=1e-3, patience=0),
)
