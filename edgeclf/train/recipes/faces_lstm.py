"""Short clips of one face: a small network from scratch, and an LSTM."""

from __future__ import annotations

from functools import partial

from edgeclf.image_source import IMAGE_RATE
from edgeclf.specs import ClipSpec
from edgeclf.train.augment import Augmentation
from edgeclf.train.classifiers import lstm_classifier
from edgeclf.train.fit import FitSettings
from edgeclf.train.recipe import Recipe

RECIPE = Recipe(
    name="faces-lstm",
    summary="a small grey 48x48 network from scratch and LSTM(64), for emotion from clips of 10 faces",
    source="pictures grouped as in FER2013 (Goodfellow et al. 2013, arXiv 1307.0414)",
    extractor="faces_cnn",
    weights="none",
    crop="none",
    clip=ClipSpec(length=10, rate=IMAGE_RATE, hop_seconds=1.0, stale_seconds=1.0),
    classifier=partial(lstm_classifier, mask=True, units=64, dropout=0.5),
    settings=FitSettings(epochs=30, batch=32, learning_rate=1e-3, patience=8, schedule="cosine"),
    frames_first=FitSettings(
        epochs=60, batch=64, learning_rate=2e-3, patience=0, schedule="cosine", weight_decay=0.05, label_smoothing=0.1
    ),
    drawn_clips=100,
    views=2,
    augmentation=Augmentation(flip=True, crop=0.15, brightness=0.2, rotation=12),
)
