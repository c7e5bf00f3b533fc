"""Convolutions over time and space, from scratch."""

from __future__ import annotations

from edgeclf.specs import ClipSpec
from edgeclf.train.augment import Augmentation
from edgeclf.train.clip_networks import conv3d_network
from edgeclf.train.fit import FitSettings
from edgeclf.train.recipe import Recipe

RECIPE = Recipe(
    name="conv3d",
    summary="a Conv3D network on the first 10 frames at 112x112, from scratch, end to end",
    source="C3D, Tran et al. 2014 (arXiv 1412.0767), smaller",
    network=conv3d_network,
    size=(112, 112),
    clip=ClipSpec(length=10, rate=25.0, hop_seconds=0.1, stale_seconds=1.0, sampling="first", padding="repeat_last"),
    aggregate="first",
    weights="none",
    settings=FitSettings(epochs=25, batch=16, learning_rate=1e-3, patience=8, schedule="cosine", weight_decay=0.01),
    augmentation=Augmentation(flip=True, crop=0.2, brightness=0.2),
)
