"""What a self-test runs: the graphs of bundles, with rendered pictures and clips of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.bundle import ClassifierEntry, ExtractorEntry, ModelBundle, open_classifiers, packaged_classifiers
from edgeclf.errors import MissingExtraError
from edgeclf.preprocess import preprocess_frame
from edgeclf.runtime.session import open_session
from edgeclf.specs import PreprocessSpec
from edgeclf.theatre import ACTIONS, single_action

Arrays = dict[str, NDArray[Any]]

BATCHES = (1, 3, 8)


@dataclass(slots=True)
class Subject:
    """A graph of a packaged bundle with something to run: as many rows as the largest batch."""

    name: str
    graph: Path
    precision: str
    feeds: Arrays
    is_extractor: bool
    _reference: Arrays = field(default_factory=dict)

    def first(self, rows: int) -> Arrays:
        """The first rows of the feeds."""
        return {name: array[:rows] for name, array in self.feeds.items()}

    def reference(self) -> Arrays:
        """What ONNX Runtime gives for all rows on the CPU."""
        if not self._reference:
            with closing(open_session(self.graph, "cpu", precision=self.precision, backend="onnxruntime")) as session:
                self._reference = session.run(self.feeds)
        return self._reference


def subjects_of(bundles: Sequence[str]) -> Iterator[Subject]:
    """Every graph of the bundles, or of all packaged ones, in every precision that it is there in."""
    rows = BATCHES[-1]
    for name in bundles or sorted({str(path) for path in packaged_classifiers().values()}):
        opened = open_classifiers(name)
        bundle = opened[0]
        frames = rendered_frames(bundle.extractor.preprocess, 2 * rows)
        features: NDArray[Any] = frames
        if bundle.extractor.has_graph:
            feeds = {bundle.extractor.inputs[0].name: frames[:rows]}
            yield from _each_precision(f"{bundle.path.stem} extractor", bundle, bundle.extractor, feeds)
            features = _features(bundle, frames)
        for entry in (one.classifier for one in opened):
            yield from _each_precision(f"{entry.name} classifier", bundle, entry, _clips(entry, features, rows))


def _each_precision(
    name: str, bundle: ModelBundle, entry: ExtractorEntry | ClassifierEntry, feeds: Arrays
) -> Iterator[Subject]:
    for precision in entry.precisions:
        yield Subject(name, bundle.graph(entry, precision), precision, feeds, isinstance(entry, ExtractorEntry))


def rendered_frames(spec: PreprocessSpec, count: int) -> NDArray[np.uint8]:
    """Preprocessed pictures (count, H, W, 3) of rendered scenes, or stacks (count, K, H, W, 3)."""
    scenes = [single_action(ACTIONS[n % len(ACTIONS)], seed=n, fps=10) for n in range(count)]
    stacks = [[preprocess_frame(scene.render(step), spec) for step in range(spec.stack)] for scene in scenes]
    pictures = np.stack([np.stack(stack) for stack in stacks])
    return pictures if spec.stack > 1 else pictures[:, 0]


def _features(bundle: ModelBundle, frames: NDArray[np.uint8]) -> NDArray[Any]:
    """What the extractor makes of the frames; noise where there is no ONNX Runtime to ask."""
    try:
        with closing(open_session(bundle.graph(bundle.extractor), "cpu", backend="onnxruntime")) as session:
            return session.run({session.inputs[0].name: frames})[session.outputs[0].name]
    except MissingExtraError:
        size = bundle.extractor.outputs[0].shape[-1] or 1
        return np.random.default_rng(0).normal(size=(len(frames), size)).astype(np.float32)


def _clips(entry: ClassifierEntry, features: NDArray[Any], rows: int) -> Arrays:
    """Clips that differ in what they hold and in how far they are filled."""
    steps = np.arange(entry.clip.length)
    clips = np.stack([features[(row + steps * (row + 1)) % len(features)] for row in range(rows)])
    names = [spec.name for spec in entry.inputs]
    if len(names) == 1:
        return {names[0]: clips}
    lengths = np.linspace(entry.clip.length, 1, rows).astype(np.int32)
    for row, length in enumerate(lengths):
        clips[row, length:] = 0
    return {names[0]: clips, names[1]: lengths}
