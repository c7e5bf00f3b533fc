"""The demo: one rendered play of several actions, classified, with the truth beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TextIO

from edgeclf.runtime.pipeline import Classifier, run_loop
from edgeclf.runtime.records import Prediction
from edgeclf.runtime.timeline import Segment, segments_of
from edgeclf.theatre import Act, TheatreSource, play

BUNDLE = "theatre"
SEED = 2026
_STEP = 0.1  # seconds between the moments at which both are compared


def run_demo(classifier: Classifier, out: TextIO) -> None:
    """Play a scene of unseen looks through the classifier; write its timeline beside the truth."""
    scene = play(SEED, look="unseen")
    source = TheatreSource(scene, name="play")
    clips = [
        record for record in run_loop([source], classifier.model, classifier.options) if isinstance(record, Prediction)
    ]
    segments = list(segments_of(clips))
    out.write(f"{'start':>8}  {'end':>8}  {'found':<12} {'score':>5}  truth\n")
    for segment in segments:
        times = f"{segment.start_seconds:6.1f} s  {segment.end_seconds:6.1f} s"
        truth = ", then ".join(_truth(segment, scene.acts))
        out.write(f"{times}  {segment.label:<12} {segment.score:5.2f}  {truth}\n")
    moments = list(_moments(segments, scene.acts))
    right = sum(found == true for found, true in moments) / len(moments)
    out.write(f"{right:.0%} of the time is labelled as it was played\n")


def _truth(segment: Segment, acts: Iterable[Act]) -> Iterator[str]:
    """The actions that were played during a segment, but for glimpses at its borders."""
    for act in acts:
        shared = min(segment.end_seconds, act.end_seconds) - max(segment.start_seconds, act.start_seconds)
        if shared > 0.5 * min(segment.end_seconds - segment.start_seconds, act.end_seconds - act.start_seconds):
            yield act.action


def _moments(segments: list[Segment], acts: Iterable[Act]) -> Iterator[tuple[str, str]]:
    """What was found and what was played, moment by moment."""
    for act in acts:
        for number in range(round((act.end_seconds - act.start_seconds) / _STEP)):
            seconds = act.start_seconds + (number + 0.5) * _STEP
            found = next((s.label for s in segments if s.start_seconds <= seconds < s.end_seconds), "")
            yield found, act.action
