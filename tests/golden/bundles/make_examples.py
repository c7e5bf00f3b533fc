"""Writes the example of the schema version that is written today: `python -m tests.golden.bundles.make_examples`.

An example of an older version is never written again: it shows that what was once written can still be read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.bundle import MANIFEST_NAME, SCHEMA_VERSION, sha256_of, write_manifest
from edgeclf.runtime.golden import GOLDEN_NAME, Golden, GoldenClips, write_golden
from tests.support.colors import CLIP, SIZE, manifest_of, write_bundle

EXAMPLES = Path(__file__).parent


def example_of(version: int) -> Path:
    """The folder of a version's example."""
    return EXAMPLES / f"version_{version}.edgeclf"


def write_example(path: Path) -> Path:
    """Everything that a bundle can hold: golden inputs, measurements, thresholds, reports and where it is from."""
    write_bundle(path, thresholds={"blue": 0.5})
    written = manifest_of(path, thresholds={"blue": 0.5})
    (path / "MODEL_CARD.md").write_text("# colors\n\nTells red, green and blue clips apart.\n", encoding="utf-8")
    write_golden(path, golden())
    measured = {"test": {"clips": 3, "accuracy": 1.0}}
    check = {"classifier": "colors", "name": "extractor", "rows": 4, "max_difference": 0.0, "tolerance": 0.001}
    write_manifest(
        path,
        replace(
            written,
            classifiers=(replace(written.classifiers[0], evaluation=measured),),
            files={**written.files, **{name: sha256_of(path / name) for name in ("MODEL_CARD.md", GOLDEN_NAME)}},
            parity={"fp32": [{**check, "changed_labels": 0, "passed": True}]},
            provenance={"recipe": "by hand", "licence": "Apache-2.0"},
        ),
    )
    return path


def seal(bundle: Path, change: Callable[[dict[str, Any]], object] = lambda manifest: None) -> Path:
    """Change the manifest, name and hash every file of a bundle that was altered by hand; its path."""
    manifest = json.loads((bundle / MANIFEST_NAME).read_text(encoding="utf-8"))
    change(manifest)
    manifest["files"] = {file.name: sha256_of(file) for file in sorted(bundle.iterdir()) if file.name != MANIFEST_NAME}
    (bundle / MANIFEST_NAME).write_text(json.dumps(manifest), encoding="utf-8")
    return bundle


def golden() -> Golden:
    """Three plain frames and one of noise, with the answers that NumPy gives."""
    plain = np.zeros((3, *SIZE, 3), np.uint8)
    for channel in range(3):
        plain[channel, ..., channel] = 200
    noise = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    frames = np.concatenate([plain, noise])
    features = (frames.astype(np.float64).mean((1, 2)) / 255).astype(np.float32)
    rows = np.full((4, CLIP.length), -1, np.int32)
    lengths = np.array([CLIP.length, CLIP.length, 3, 1], np.int32)
    for row, length, frame in zip(rows, lengths, (0, 1, 2, 3), strict=True):
        row[:length] = frame
    rows[1, ::2] = 3
    means = np.stack([features[row[:length]].mean(0) for row, length in zip(rows, lengths, strict=True)])
    return Golden(frames, features, {"colors": GoldenClips(rows, lengths, _softmax(10 * means))})


def _softmax(logits: NDArray[Any]) -> NDArray[np.float32]:
    powers = np.exp(logits.astype(np.float64))
    scores: NDArray[np.float32] = (powers / powers.sum(1, keepdims=True)).astype(np.float32)
    return scores


if __name__ == "__main__":
    write_example(example_of(SCHEMA_VERSION))
