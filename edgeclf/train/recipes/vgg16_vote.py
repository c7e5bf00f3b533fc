"""Single frames through VGG16 and dense layers; most frames decide."""

from __future__ import annotations

from edgeclf.specs import ClipSpec
from edgeclf.train.classifiers import vote_classifier
from edgeclf.train.fit import FitSettings
from edgeclf.train.recipe import Recipe

RECIPE = Recipe(
    name="vgg16-vote",
    summary="VGG16's last feature map of one frame a second, four dense layers, the most frequent label of the frames",
    source="P. Sharma, Step-by-Step Deep Learning Tutorial to Build your own Video Classification Model, 2019",
    extractor="vgg16",
    pooling="flatten",
    clip=ClipSpec(length=1, rate=1.0, hop_seconds=1.0, stale_seconds=2.0, padding="repeat_last"),
    aggregate="vote",
    classifier=vote_classifier,
    settings=FitSettings(epochs=20, batch=64, learning_rate=1e-4, patience=3),
    feature_dtype="float16",  # of 7x7x512 values a frame
)
