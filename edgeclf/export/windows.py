"""What lower precisions are calibrated and judged on: frames of labelled clips, and the windows they make."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.clips import padded
from edgeclf.layouts import LabelledClip
from edgeclf.model_directory import read_parity
from edgeclf.runtime.stages import Ended, SampledFrame, SourceId, decode
from edgeclf.specs import ClipSpec, PreprocessSpec

CALIBRATION_FRAMES, CALIBRATION_CLIPS = 256, 64


@dataclass(frozen=True, slots=True)
class SampledClip:
    """All sampled frames of one clip, in order of time."""

    label: str  # empty where it is not known
    group: str
    frames: NDArray[np.uint8]  # (n, H, W, 3) preprocessed RGB, or (n, K, H, W, 3)


def sampled_clips(clips: Sequence[LabelledClip], preprocess: PreprocessSpec, clip: ClipSpec) -> Iterator[SampledClip]:
    """The frames of labelled clips, sampled by time as a stream is; nothing of a clip that gives no frame.

    A gap in the time stamps cuts a clip in two. A clip that breaks off gives what came before.
    """
    for number, labelled in enumerate(clips):
        frames: list[NDArray[np.uint8]] = []
        with closing(decode(SourceId(number, labelled.name), labelled.open, preprocess, clip.of_stream())) as items:
            for item in items:
                if frames and (isinstance(item, Ended) or item.sample.restart):
                    yield SampledClip(labelled.label, labelled.group or labelled.name, np.stack(frames))
                    frames = []
                if isinstance(item, SampledFrame):
                    frames += [item.pixels] * item.sample.slots


def parity_clips(model_path: Path) -> Iterator[SampledClip]:
    """The few clips in a model directory, without labels."""
    parity = read_parity(model_path)
    for number, (frames, length) in enumerate(zip(parity.frames, parity.lengths, strict=True)):
        yield SampledClip("", str(number), frames[:length])


def windows_of(rows: NDArray[Any], clip: ClipSpec) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Overlapping windows of a clip's rows (n, ...): padded to (W, T, ...), and their lengths (W,).

    A window is half as long as the clip, T at most, and begins at every row from which it fits: many answers of one
    recording, each as it would be given for a shorter one.
    """
    length = min(clip.length, (len(rows) + 1) // 2)
    starts = range(len(rows) - length + 1)
    windows = np.stack([padded(rows[start : start + length], clip) for start in starts])
    return windows, np.full(len(starts), length, np.int32)


def calibration_input(
    clips: Sequence[LabelledClip], preprocess: PreprocessSpec, clip: ClipSpec, *, whole: bool, seed: int = 0
) -> NDArray[np.uint8]:
    """What a graph takes, of training clips, all labels alike; an empty array where none can be read.

    About 256 frames (M, H, W, 3), one of each of so many clips at a place that is drawn, several where there are fewer
    clips; with `whole` the beginnings of 64 clips, (M, T, H, W, 3).
    """
    drawn = random.Random(seed)  # noqa: S311 - a choice that can be repeated, no secret
    if whole:
        chosen = _chosen(clips, CALIBRATION_CLIPS, drawn)
        return _stacked([padded(one.frames[: clip.length], clip) for one in sampled_clips(chosen, preprocess, clip)])
    chosen = _chosen(clips, CALIBRATION_FRAMES, drawn)
    each = -(-CALIBRATION_FRAMES // max(1, len(chosen)))
    frames = [
        sampled.frames[place]
        for sampled in sampled_clips(chosen, preprocess, clip)
        for place in drawn.sample(range(len(sampled.frames)), min(each, len(sampled.frames)))
    ]
    return _stacked(frames[:CALIBRATION_FRAMES])


def _stacked(arrays: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.stack(arrays) if arrays else np.zeros(0, np.uint8)


def _chosen(clips: Sequence[LabelledClip], count: int, drawn: random.Random) -> list[LabelledClip]:
    """Clips in turn of each label, in a drawn order."""
    by_label: dict[str, list[LabelledClip]] = defaultdict(list)
    for clip in drawn.sample(list(clips), len(clips)):
        by_label[clip.label].append(clip)
    turns = max(map(len, by_label.values()), default=0)
    order = [of_label[turn] for turn in range(turns) for of_label in by_label.values() if turn < len(of_label)]
    return order[:count]
