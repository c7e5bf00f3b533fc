"""The model card that goes into a bundle: what was trained on what, how well it does, what it is for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from edgeclf.bundle import Manifest
from edgeclf.export.parity import Check
from edgeclf.model_directory import ModelDescription

CARD_NAME = "MODEL_CARD.md"


def model_card(manifest: Manifest, description: ModelDescription, checks: Iterable[Check]) -> str:
    """Markdown made of the model's own records: `provenance`, `evaluation` and the parity report."""
    clip, preprocess = description.clip, description.preprocess
    provenance = dict(description.provenance)
    lines = [
        f"# {manifest.name}",
        "",
        str(provenance.pop("summary", f"A video classifier trained by the recipe `{description.recipe}`.")),
        "",
        f"- labels: {', '.join(description.labels)}",
        f"- clip: {clip.length} frames at {clip.rate:g} a second ({clip.seconds:g} s), "
        f"a new clip every {clip.hop_seconds:g} s",
        f"- input: {preprocess.size[0]}x{preprocess.size[1]} {preprocess.color}, crop `{preprocess.crop}`, "
        f"resize `{preprocess.interpolation}`",
        "",
        "## Intended use",
        "",
        str(provenance.pop("intended_use", "As its training data allow; measure it on your own video first.")),
        "",
        "## Accuracy, as measured",
        "",
        *_listed(description.evaluation),
        "",
        "## Data, weights and licences",
        "",
        *_listed(provenance),
        "",
        "## Agreement with Keras",
        "",
        *(f"- {check}" for check in checks),
        "",
    ]
    return "\n".join(lines)


def _listed(values: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for key, value in values.items():
        name = key.replace("_", " ") if not indent else key  # further in, keys may be labels
        if isinstance(value, Mapping):
            yield f"{indent}- {name}:"
            yield from _listed(value, indent + "  ")
        else:
            yield f"{indent}- {name}: {value}"
