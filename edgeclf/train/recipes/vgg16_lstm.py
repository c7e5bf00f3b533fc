"""VGG16 and two LSTMs."""

from __future__ import annotations

from edgeclf.specs import ClipSpec
from edgeclf.train.classifiers import published_lstm
from edgeclf.train.fit import FitSettings
from edgeclf.train.recipe import Recipe

RECIPE = Recipe(
    name="vgg16-lstm",
    summary="VGG16, LSTM(456), LSTM(8) on 20 frames spread over the file; --top N takes the N largest classes",
    source="a published notebook on the largest classes of UCF101",
    extractor="vgg16",
    clip=ClipSpec(length=20, rate=4.0, hop_seconds=1.25, stale_seconds=2.5, sampling="uniform", padding="repeat_last"),
    aggregate="first",
    classifier=published_lstm,
    settings=FitSettings(epochs=40, batch=32, learning_rate=1e-3, patience=10),
)
