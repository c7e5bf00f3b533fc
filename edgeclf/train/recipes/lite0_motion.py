"""Appearance and motion: EfficientNet-Lite0 on frames and on the change between frames."""

from __future__ import annotations

from edgeclf.specs import ClipSpec
from edgeclf.train.classifiers import statistics_classifier
from edgeclf.train.fit import FitSettings
from edgeclf.train.recipe import Recipe

RECIPE = Recipe(
    name="lite0-motion",
    summary="EfficientNet-Lite0 on frames and on their change, statistics over 8 seconds; for what a still cannot tell",
    source="ours; two streams of Simonyan & Zisserman 2014 (arXiv 1406.2199), differences of Wang et al. 2016",
    extractor="efficientnet_lite0",
    motion=True,
    crop="none",
    clip=ClipSpec.by_rate(length=40, rate=5.0),
    classifier=statistics_classifier,
    refit=True,
    settings=FitSettings(
        epochs=30,
        batch=64,
        learning_rate=1e-3,
        patience=0,
        keep="last",
        schedule="cosine",
        weight_decay=1.0,
        label_smoothing=0.1,
        mixup=0.4,
    ),
)
