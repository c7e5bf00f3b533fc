"""Live sources, several classifiers and the motion gate in the whole loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclf.clips import Sample
from edgeclf.runtime.model import Model
from edgeclf.runtime.motion import MotionGate
from edgeclf.runtime.pipeline import LoopMeters, LoopOptions, run_loop
from edgeclf.runtime.records import Prediction, Record, Result, SourceEnd
from edgeclf.runtime.session import Arrays
from edgeclf.runtime.stages import Ledger, SampledFrame, SourceId, overtake
from edgeclf.specs import ClipSpec, PreprocessSpec
from edgeclf.video import Frame, RgbImage, SourceCounts
from tests.support.counting import NumberedSource, numbered
from tests.support.sessions import KeptFeeds, MeanExtractor, keeping_model

PLAIN = PreprocessSpec((4, 4))
CLIP = ClipSpec(4, 10.0, 0.2, 1.0)
ONE_BY_ONE = LoopOptions(depth=8, live_depth=2, workers=1, batch_size=1)


def ends(records: Sequence[Record]) -> list[SourceEnd]:
    return [record for record in records if isinstance(record, SourceEnd)]


class Camera:
    """Pictures of their numbers; all but the first are there as soon as `begun` is set.

    `shown` is set when the last one was handed out.
    """

    live = True
    decoder = "memory"

    def __init__(self, times: Sequence[float], name: str = "camera") -> None:
        self.name = name
        self.dropped: dict[str, int] = {}
        self.begun = threading.Event()
        self.shown = threading.Event()
        self._times = times

    def frames(self) -> Iterator[Frame]:
        for number, seconds in enumerate(self._times):
            assert number == 0 or self.begun.wait(10)
            yield Frame(seconds, partial(numbered, number), arrival=time.perf_counter())
        self.shown.set()

    def close(self) -> None:
        pass


class HeldExtractor(MeanExtractor):
    """Extracts the first frame of a camera once it has shown the last one; keeps the first value of each frame."""

    def __init__(self, camera: Camera) -> None:
        super().__init__(PLAIN)
        self.seen: list[int] = []
        self._camera = camera

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        self._camera.begun.set()
        assert self._camera.shown.wait(10)
        self.seen += feeds["frames"][:, 0, 0, 0].tolist()
        return super().run(feeds)


def held_model(camera: Camera) -> tuple[Model, HeldExtractor, KeptFeeds]:
    model, kept = keeping_model(PLAIN, CLIP)
    extractor = HeldExtractor(camera)
    return replace(model, extractor=extractor), extractor, kept


def test_live_source_that_nobody_keeps_up_with_loses_its_oldest_frames_and_counts_them() -> None:
    camera = Camera([n / 10 for n in range(40)])
    model, extractor, _ = held_model(camera)
    records = list(run_loop([camera], model, ONE_BY_ONE))
    (end,) = ends(records)
    lost = end.counts.dropped["queue"]
    assert end.counts == SourceCounts(40, 40 - lost, 0, {"queue": lost})
    assert extractor.seen in ([0, 38, 39], [0, 1, 38, 39], [0, 1, 2, 38, 39])  # a worker may have one more at hand
    predictions = [record for record in records if isinstance(record, Prediction)]
    assert predictions[-1].end_seconds == pytest.approx(4.0)
    assert set(predictions[-1].latency_seconds) == {"decode", "extract", "classify"}


def test_frame_that_stays_fills_the_slots_of_those_it_overtook() -> None:
    camera = Camera([n / 10 for n in range(9)])  # 0.8 seconds, less than makes a clip stale
    model, extractor, kept = held_model(camera)
    list(run_loop([camera], model, ONE_BY_ONE))
    last, length = kept.clips[-1]
    assert length == 4
    assert (last[:, 0] * 255).round().tolist() == [7, 7, 7, 8]  # 7 stands for 5 and 6 too
    assert extractor.seen[0] == 0
    assert extractor.seen[-2:] == [7, 8]


def test_clip_starts_again_behind_a_gap_that_dropping_made() -> None:
    camera = Camera([n / 10 for n in range(40)])
    model, _, _ = held_model(camera)
    records = list(run_loop([camera], model, ONE_BY_ONE))
    predictions = [record for record in records if isinstance(record, Prediction)]
    assert [prediction.flags for prediction in predictions] == [("partial", "stale"), ("partial",)]


def test_files_lose_nothing_beside_a_live_source() -> None:
    camera, file = Camera([n / 10 for n in range(40)]), NumberedSource([n / 10 for n in range(40)])
    model, _, _ = held_model(camera)
    records = list(run_loop([file, camera], model, ONE_BY_ONE))
    counts = {end.source: end.counts for end in ends(records)}
    assert counts["numbered"] == SourceCounts(40, 40, 0, {})
    assert counts["camera"].dropped["queue"] > 0


def test_live_source_is_read_although_files_come_first() -> None:
    camera = Camera([0.0])
    waiting = threading.Event()

    class Waiting(NumberedSource):
        def frames(self) -> Iterator[Frame]:
            assert camera.shown.wait(10)  # never, if the camera had to wait for this file
            waiting.set()
            yield from super().frames()

    model, _ = keeping_model(PLAIN, CLIP)
    list(run_loop([Waiting([0.0], name="first"), camera], model, ONE_BY_ONE))
    assert waiting.is_set()


def frame(
    number: int,
    *,
    arrival: float | None = 0.0,
    slots: int = 1,
    still: bool = False,
    restart: bool = False,
    ledger: Ledger | None = None,
) -> SampledFrame:
    pixels: RgbImage = numbered(number)[:0] if still else numbered(number)
    sample = Sample(slots, restart)
    return SampledFrame(SourceId(0, "x"), pixels, number / 10, (sample,), 0.0, ledger or Ledger(), arrival, still)


def test_frame_of_a_file_never_gives_way() -> None:
    assert overtake(frame(1, arrival=None), frame(2, arrival=None), frame(3, arrival=None)) is None


def test_still_frame_takes_the_pixels_of_the_one_that_gives_way() -> None:
    ledger = Ledger()
    ledger.processed, ledger.still = 2, 1
    kept = overtake(frame(1, ledger=ledger), frame(2, still=True, ledger=ledger), frame(3))
    assert isinstance(kept, SampledFrame)
    assert (int(kept.pixels.flat[0]), kept.still, kept.pts_seconds, kept.sample.slots) == (1, False, 0.2, 2)
    assert ledger.counts({}) == SourceCounts(2, 1, 0, {"queue": 1}, 0)


def test_restart_is_not_lost_with_the_frame_that_carried_it() -> None:
    kept = overtake(frame(1, restart=True), frame(2), frame(3))
    assert isinstance(kept, SampledFrame)
    assert kept.sample == Sample(1, restart=True)


class Stalled(Camera):
    """Shows one picture, then nothing before it is closed."""

    def __init__(self) -> None:
        super().__init__([0.0, 0.1, 0.2, 0.3])
        self.closed = threading.Event()

    def frames(self) -> Iterator[Frame]:
        yield from super().frames()
        self.closed.wait()

    def close(self) -> None:
        self.closed.set()


def test_leaving_ends_a_live_source_that_waits_for_its_next_picture() -> None:
    camera = Stalled()
    camera.begun.set()
    model, _ = keeping_model(PLAIN, CLIP)
    records = run_loop([camera], model, LoopOptions(depth=8, live_depth=8, workers=1, batch_size=1))
    assert isinstance(next(records), Prediction)
    records.close()  # joins the thread that waits
    assert camera.closed.is_set()


def test_live_source_has_no_result_and_nothing_of_it_is_kept() -> None:
    camera = Camera([n / 10 for n in range(40)])
    camera.begun.set()
    model, _ = keeping_model(PLAIN, CLIP)
    before = time.time()
    records = list(run_loop([camera], model, LoopOptions(depth=64, live_depth=64, workers=1)))
    assert [type(record) for record in records] == [Prediction] * 19 + [SourceEnd]
    times = [record.arrived_at or 0.0 for record in records if isinstance(record, Prediction)]
    assert times == sorted(times)
    assert before <= times[0] <= times[-1] <= time.time()


def test_time_that_a_live_source_waits_is_no_work_of_the_decoder() -> None:
    meters = LoopMeters()

    class Slow(Camera):
        def frames(self) -> Iterator[Frame]:
            for number in range(4):
                time.sleep(0.02)
                yield Frame(number / 10, partial(numbered, number), arrival=time.perf_counter())

    model, _ = keeping_model(PLAIN, CLIP)
    list(run_loop([Slow([])], model, ONE_BY_ONE, meters=meters))
    decoding = meters.decode.read()
    assert decoding.wait_seconds > 0.02 > decoding.busy_seconds


@pytest.mark.parametrize("values", [{"live_depth": 0}, {"batch_size": 0}, {"workers": -1}, {"max_wait": -1.0}])
def test_options_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        LoopOptions(**values)


# -- several classifiers ----------------------------------------------------------------------------------------------


def two_models() -> tuple[Model, Model, KeptFeeds, KeptFeeds]:
    first, kept_first = keeping_model(PLAIN, CLIP)
    other_clip = ClipSpec(3, 2.5, 0.8, 2.0, padding="repeat_last")
    other, kept_other = keeping_model(PLAIN, other_clip, ("calm", "loud"))
    return first, replace(other, name="other", extractor=first.extractor), kept_first, kept_other


@pytest.mark.parametrize(
    "options", [ONE_BY_ONE, ONE_BY_ONE.sequential(), LoopOptions(workers=3, batch_size=5)], ids=str
)
def test_classifiers_beside_each_other_give_what_each_gives_alone(options: LoopOptions) -> None:
    sources = [NumberedSource([n / 25 for n in range(120)], name="a"), NumberedSource([0.0, 0.3], name="b")]
    first, other, *_ = two_models()
    together = list(run_loop(fresh(sources), first, options, also=[other]))
    for model in (first, other):
        alone = list(run_loop(fresh(sources), model, options))
        for kind in (Prediction, Result):
            for name in ("a", "b"):
                assert [
                    r for r in together if isinstance(r, kind) and (r.source, r.classifier) == (name, model.name)
                ] == [r for r in alone if isinstance(r, kind) and r.source == name]


def fresh(sources: Sequence[NumberedSource]) -> list[NumberedSource]:
    return [NumberedSource(source.times, name=source.name) for source in sources]


def test_frame_that_two_classifiers_want_is_extracted_once() -> None:
    first, other, *_ = two_models()
    list(run_loop([NumberedSource([n / 25 for n in range(100)])], first, ONE_BY_ONE, also=[other]))
    assert isinstance(first.extractor, MeanExtractor)
    assert sum(first.extractor.batches) == 40  # ten a second; the other one's fall on every fourth of them


# -- motion gate ------------------------------------------------------------------------------------------------------


class Scenes(NumberedSource):
    """Pictures that change every ten frames."""

    def _picture(self, number: int) -> RgbImage:
        return numbered(20 * (number // 10))


def test_still_frames_take_the_feature_of_the_one_before() -> None:
    times = [n / 10 for n in range(40)]
    plain_model, plain_clips = keeping_model(PLAIN, CLIP)
    gated_model, gated_clips = keeping_model(PLAIN, CLIP)
    plain_records = list(run_loop([Scenes(times)], plain_model, ONE_BY_ONE))
    gated_records = list(run_loop([Scenes(times)], gated_model, ONE_BY_ONE, motion_gate=5.0))
    assert isinstance(gated_model.extractor, MeanExtractor)
    assert sum(gated_model.extractor.batches) == 4
    assert ends(gated_records)[0].counts == SourceCounts(40, 40, 0, {}, still=36)
    for (clip, length), (expected, expected_length) in zip(gated_clips.clips, plain_clips.clips, strict=True):
        assert length == expected_length
        np.testing.assert_array_equal(clip, expected)
    assert [r for r in gated_records if isinstance(r, Prediction)] == [
        r for r in plain_records if isinstance(r, Prediction)
    ]


def test_motion_gate_can_be_given_to_some_sources_only() -> None:
    times = [n / 10 for n in range(20)]
    model, _ = keeping_model(PLAIN, CLIP)
    records = list(
        run_loop([Scenes(times, name="a"), Scenes(times, name="b")], model, ONE_BY_ONE, motion_gate={"b": 5.0})
    )
    assert {end.source: end.counts.still for end in ends(records)} == {"a": 0, "b": 18}


def test_slow_change_passes_the_gate_in_the_end() -> None:
    gate = MotionGate(5.0)
    assert [gate.is_still(np.full((32, 32, 3), value, np.uint8)) for value in (0, 2, 4, 6, 8, 10, 12)] == [
        False, True, True, False, True, True, False,
    ]  # fmt: skip


def test_gate_sees_something_small_move() -> None:
    gate = MotionGate(5.0)
    empty = np.full((224, 224, 3), 90, np.uint8)
    moved = empty.copy()
    moved[100:120, 60:70] = 200
    assert [gate.is_still(empty), gate.is_still(moved)] == [False, False]


def test_gate_does_not_mind_the_noise_of_a_sensor() -> None:
    rng = np.random.default_rng(0)
    gate = MotionGate(5.0)
    pictures = [np.clip(rng.normal(90, 8, (224, 224, 3)), 0, 255).astype(np.uint8) for _ in range(10)]
    assert [gate.is_still(picture) for picture in pictures] == [False, *[True] * 9]
