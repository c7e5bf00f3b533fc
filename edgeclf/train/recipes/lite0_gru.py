"""A GRU on ImageNet features of EfficientNet-Lite0: the default."""

from __future__ import annotations

from edgeclf.specs import ClipSpec
from edgeclf.train.classifiers import change_gru_classifier
from edgeclf.train.fit import FitSettings
from edgeclf.train.recipe import Recipe

RECIPE = Recipe(
    name="lite0-gru",
    summary="EfficientNet-Lite0 and a GRU, 8 seconds at 5 frames a second; small, fast, the default",
    source="ours; EfficientNet-Lite of Tan & Le 2019 (arXiv 1905.11946)",
    extractor="efficientnet_lite0",
    crop="none",
    clip=ClipSpec.by_rate(length=40, rate=5.0),
    classifier=change_gru_classifier,
    refit=True,
    settings=FitSettings(
        epochs=20,
        batch=64,
        learning_rate=1e-3,
        patience=0,
        keep="last",
        schedule="cosine",
        weight_decay=0.3,
        label_smoothing=0.1,
        mixup=0.4,
    ),
)
