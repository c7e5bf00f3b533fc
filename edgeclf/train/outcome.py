"""From a trained classifier to its model directory, with a report of how well it does."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.dataset import Dataset, LabelledClip
from edgeclf.model_directory import ModelDescription, import_keras, write_model
from edgeclf.runtime.stages import SampledFrame, SourceId, decode
from edgeclf.train.evaluation import Evaluation
from edgeclf.train.features import content_hash
from edgeclf.train.fit import write_log
from edgeclf.train.recipe import Recipe
from edgeclf.train.report import write_report
from edgeclf.train.training import Trained, Workplace, score, train_recipe

CHECKPOINTS_NAME, LOG_NAME, REPORT_NAME = "training", "log.csv", "report"
_PARITY_CLIPS, _PARITY_BYTES = 8, 48 << 20


def train_model(
    recipe: Recipe,
    dataset: Dataset,
    path: Path,
    name: str,
    workplace: Workplace,
    *,
    about: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> ModelDescription:
    """Train on the data set's training split, measure its test split once, and write the model directory `path`.

    Killed and started again with the same data and settings, it goes on where it was. about: what the model card
    shall say beside what is known here. evaluation: figures that were measured before, such as a cross-validation.
    """
    workplace = replace(workplace, checkpoints=path / CHECKPOINTS_NAME)
    train, validation, test = (dataset.split(split) for split in ("train", "validation", "test"))
    trained = train_recipe(recipe, train, validation, dataset.labels, workplace)
    found = score(trained, test, workplace) if test else None
    figures = {"validation": trained.validation, **(evaluation or {})}
    if found:
        figures["test"] = found[0].to_dict()
    description = ModelDescription(
        name,
        recipe.name,
        dataset.labels,
        trained.recipe.preprocess,
        trained.recipe.clip,
        recipe.aggregate,
        import_keras().__version__,
        {**(about or {}), **_provenance(trained, dataset)},
        figures,
        trained.thresholds,
        has_extractor=trained.extractor is not None,
    )
    write_model(path, description, trained.extractor, trained.classifier, _parity_clips(trained.recipe, validation))
    write_log(path / LOG_NAME, trained.history)
    if found:
        _report(path / REPORT_NAME, trained, found, test, description)
    shutil.rmtree(path / CHECKPOINTS_NAME, ignore_errors=True)
    return description


def _report(
    folder: Path,
    trained: Trained,
    found: tuple[Evaluation, Evaluation],
    test: Sequence[LabelledClip],
    description: ModelDescription,
) -> None:
    about = {"recipe": description.recipe, **description.provenance}
    if known := description.evaluation.get("cross_validation"):
        about["cross_validation"] = known
    write_report(
        folder,
        found[0],
        title=f"{description.name} on test clips",
        about=about,
        clips=test,
        history=trained.measured_history,
        thresholds=trained.thresholds,
        temperature=trained.temperature,
        untempered=found[1],
    )


def _provenance(trained: Trained, dataset: Dataset) -> dict[str, Any]:
    recipe = trained.recipe
    settings: dict[str, Any] = {"classifier": {**asdict(recipe.settings), **recipe.classifier_options}}
    if recipe.motion:
        settings["classifier"]["stream"] = recipe.stream
    if recipe.frames_first and recipe.trains_extractor:
        settings["frames"] = asdict(recipe.frames_first)
    if recipe.fine_tuning.last:
        settings["fine-tuning"] = asdict(recipe.fine_tuning)
    return {
        "source": recipe.source,
        **({"extractor": _extractor(recipe)} if recipe.extractor else {}),
        "settings": settings,
        "augmentation": asdict(recipe.augmentation),
        "best_epochs": {phase: fitted.best_epoch for phase, fitted in trained.phases.items()},
        "temperature": trained.temperature,
        "splits": {
            split: _split(dataset.split(split)) for split in ("train", "validation", "test") if dataset.split(split)
        },
    }


def _extractor(recipe: Recipe) -> dict[str, Any]:
    described = recipe.described_extractor
    pretrained = recipe.weights == "imagenet"
    return {
        "name": described.name,
        "weights": described.weights_source if pretrained else "none: random initial values",
        "licence": described.licence,
    }


def _split(clips: Sequence[LabelledClip]) -> dict[str, Any]:
    digests = sorted(f"{content_hash(clip)} {clip.label}" for clip in clips)
    return {
        "clips": len(clips),
        "groups": len({clip.group for clip in clips if clip.group}),
        "classes": dict(sorted(Counter(clip.label for clip in clips).items())),
        # One hash for the bytes and labels of all clips, in whatever order they were listed.
        "sha256_of_all": hashlib.sha256("\n".join(digests).encode()).hexdigest(),
    }


def _parity_clips(recipe: Recipe, validation: Sequence[LabelledClip]) -> list[NDArray[np.uint8]]:
    """The first frames of up to eight validation clips, of different classes as far as there are."""
    by_label: dict[str, list[LabelledClip]] = {}
    for clip in sorted(validation, key=lambda clip: clip.name):
        by_label.setdefault(clip.label, []).append(clip)
    most = max(len(clips) for clips in by_label.values())
    in_turn = [clips[turn] for turn in range(most) for clips in by_label.values() if turn < len(clips)]
    chosen: list[NDArray[np.uint8]] = []
    for clip in in_turn:
        items = decode(SourceId(0, clip.name), clip.open, recipe.preprocess, recipe.clip)
        pixels = [item.pixels for item in items if isinstance(item, SampledFrame) for _ in range(item.sample.slots)]
        if pixels:
            chosen.append(np.stack(pixels[: recipe.clip.length]))
        if len(chosen) == _PARITY_CLIPS or sum(frames.nbytes for frames in chosen) > _PARITY_BYTES:
            break
    return chosen
