"""Golden inputs are made: rendered scenes and noise, with the answers of the models that a bundle is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.errors import ExportError
from edgeclf.runtime.golden import Golden, GoldenClips, noise
from edgeclf.runtime.model import FramesAsFeatures, Model
from edgeclf.runtime.stages import SampledFrame, SourceId, decode
from edgeclf.video import open_video

# Actions that look unlike each other, one seed, so that figure and place are the same.
SCENES = tuple(f"synthetic://{action}?seed=7&look=unseen" for action in ("walk", "fall", "wave_fast", "sit_down"))

_FRAME_BYTES = 3_700_000  # of all frames before they are compressed, which leaves about an eighth
_FEWEST, _MOST = 2, 6  # frames of each source
_SHADES = np.uint8(0xF0)  # 16 shades of each colour compress to a sixth of what 256 do


def golden_of(models: Sequence[Model], *, clips: Sequence[str] = ()) -> Golden:
    """Golden inputs with the answers of models that share one extractor, each of which names its clips.

    models: the originals, as they are run by the framework that trained them. clips: videos of which frames are taken
    too; without any there are no real pictures in it. Raises VideoError where one cannot be read, and ExportError where
    a model gives no numbers.
    """
    first = models[0]
    frames = _frames(first, [*SCENES, *clips])
    features = None if isinstance(first.extractor, FramesAsFeatures) else first.extract(frames)
    if features is not None and not np.isfinite(features).all():
        raise ExportError(f"the extractor of {first.name} gives features that are no numbers", hint="train it again")
    values = frames if features is None else features
    return Golden(frames, features, {model.name: _clips_of(model, values) for model in models})


def with_classifier(golden: Golden, model: Model) -> Golden:
    """The same frames with clips of one more model, whose extractor is the one that they were made with."""
    values = golden.frames if golden.features is None else golden.features
    return replace(golden, clips={**golden.clips, model.name: _clips_of(model, values)})


# -- frames -----------------------------------------------------------------------------------------------------------


def _frames(model: Model, sources: Sequence[str]) -> NDArray[np.uint8]:
    """A few frames of every source, spread over it, and one of noise."""
    frame_bytes = int(np.prod(model.preprocess.input_shape))
    count = min(_MOST, max(_FEWEST, _FRAME_BYTES // frame_bytes // len(sources)))
    rendered = [_spread(_decoded(source, model), count) for source in sources]
    return np.concatenate([*(frames & _SHADES for frames in rendered), noise(model.extractor.inputs[0], 1)])


def _decoded(source: str, model: Model) -> list[NDArray[np.uint8]]:
    """The frames of a source as the model samples them from a stream."""
    frames: list[NDArray[np.uint8]] = []
    opened = partial(open_video, source)
    for item in decode(SourceId(0, source), opened, model.preprocess, model.clip.of_stream()):
        if isinstance(item, SampledFrame):
            frames.append(item.pixels)
        elif item.end.error:
            raise item.end.error
    return frames


def _spread(frames: list[NDArray[np.uint8]], count: int) -> NDArray[np.uint8]:
    places = np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)
    return np.stack([frames[place] for place in places])


# -- clips ------------------------------------------------------------------------------------------------------------


def _clips_of(model: Model, values: NDArray[Any]) -> GoldenClips:
    """Clips of features, or of frames, with the scores that the model gives them."""
    runs = _runs(len(values), model.clip.length)
    rows = np.full((len(runs), model.clip.length), -1, np.int32)
    for row, run in zip(rows, runs, strict=True):
        row[: len(run)] = run
    lengths = np.array([len(run) for run in runs], np.int32)
    clips = GoldenClips(rows, lengths, np.zeros((len(runs), len(model.labels)), np.float32))
    scores = model.classify(clips.of(values, model.clip), lengths)
    if not np.isfinite(scores).all():
        raise ExportError(f"{model.name} gives scores that are no numbers", hint="train it again")
    return replace(clips, scores=scores)


def _runs(count: int, length: int) -> list[NDArray[np.intp]]:
    """Which of `count` frames the clips are made of: parts of them forward, one backward, all, and three cut short."""
    parts = np.array_split(np.arange(count), min(4, count))
    forward = [part[np.arange(length) * len(part) // length] for part in parts]
    everything = np.arange(length) * count // length
    short = [run[:shorter] for run, shorter in zip(forward, (1, length // 2, length - 1), strict=False) if shorter > 0]
    runs = [*forward, forward[0][::-1], everything, *(run for run in short if len(run) < length)]
    return list({tuple(run): run for run in runs}.values())
