"""ResNet50 and an LSTM, first on kept features, then the last layers of both as one."""

from __future__ import annotations

from functools import partial

from edgeclf.specs import ClipSpec
from edgeclf.train.augment import Augmentation
from edgeclf.train.classifiers import lstm_classifier
from edgeclf.train.fit import FitSettings
from edgeclf.train.recipe import FineTuning, Recipe

RECIPE = Recipe(
    name="resnet50-lstm",
    summary="ResNet50, LSTM(128), 16 frames at 4 a second; frozen first, then the last layers trained end to end",
    source="the usual transfer recipe: He et al. 2015 (arXiv 1512.03385), Donahue et al. 2014 (arXiv 1411.4389)",
    extractor="resnet50",
    clip=ClipSpec(length=16, rate=4.0, hop_seconds=1.0, stale_seconds=2.0, padding="repeat_last"),
    classifier=partial(lstm_classifier, mask=False, dropout=0.5),
    settings=FitSettings(epochs=30, batch=32, learning_rate=1e-3, patience=8, schedule="plateau"),
    augmentation=Augmentation(flip=True, crop=0.15, brightness=0.2, temporal_shift=True),
    fine_tuning=FineTuning(
        last=10, settings=FitSettings(epochs=6, batch=8, learning_rate=3e-5, patience=3, schedule="cosine")
    ),
)
