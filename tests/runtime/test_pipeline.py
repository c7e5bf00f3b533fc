from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeclf
from edgeclf.errors import BundleError, SessionError, VideoError
from edgeclf.runtime.model import Model
from edgeclf.runtime.pipeline import Classifier, LoopMeters, LoopOptions, Source, open_classifier, run_loop
from edgeclf.runtime.records import Prediction, Record, Result, SourceEnd
from tests.support.videos import BLUE, GREEN, RED, ListSource, plain, write_video

OPTIONS = [
    LoopOptions(depth=depth, workers=workers, batch_size=batch_size, sources_at_once=at_once)
    for depth, workers, batch_size, at_once in [(1, 1, 1, 1), (8, 2, 2, 2), (2, 3, 16, 5), (4, 0, 4, 2), (0, 2, 3, 1)]
]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [
        write_video(folder / "red.mp4", plain(RED, 2)),
        write_video(folder / "change.mp4", plain(RED, 3) + plain(BLUE, 4)),
        write_video(folder / "short.avi", plain(GREEN, 0.5, fps=12.5), fps=12.5),
        write_video(folder / "one.mkv", plain(GREEN, 0.1, fps=10), fps=10),
    ]


def by_source(records: list[Record]) -> dict[str, list[Record]]:
    sources: dict[str, list[Record]] = {}
    for record in records:
        sources.setdefault(record.source, []).append(record)
    return sources


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_results_equal_those_of_one_thread(colors: Path, videos: list[Path], options: LoopOptions) -> None:
    sources: list[Source] = [*videos, "none.mp4"]
    with open_classifier(colors, device="cpu") as classifier:
        reference = list(run_loop(sources, classifier.model, options.sequential()))
        pipelined = list(run_loop(sources, classifier.model, options))
    ends = {record.source: str(record.error) for record in reference if isinstance(record, SourceEnd)}
    assert ends == {record.source: str(record.error) for record in pipelined if isinstance(record, SourceEnd)}
    without_errors = [
        {
            name: [replace(record, error=None) if isinstance(record, SourceEnd) else record for record in records]
            for name, records in by_source(run).items()
        }
        for run in (reference, pipelined)
    ]
    assert without_errors[0] == without_errors[1]


def test_long_video_gives_a_timeline(colors: Path, videos: list[Path]) -> None:
    with edgeclf.open(colors, device="cpu") as classifier:
        result = classifier.classify(videos[1])
    starts = [clip.start_seconds for clip in result.clips]
    assert starts[:3] == [0.0, 0.4, 0.8]
    assert result.clips[-1].end_seconds == pytest.approx(7.0)
    assert [clip.label for clip in result.clips[:4]] == ["red"] * 4
    assert [clip.label for clip in result.clips[-4:]] == ["blue"] * 4
    assert result.label == "blue"
    assert sum(result.scores) == pytest.approx(1, abs=1e-5)


def test_video_shorter_than_a_clip_is_partial(colors: Path, videos: list[Path]) -> None:
    with open_classifier(colors, device="cpu") as classifier:
        (clip,) = classifier.classify(videos[2]).clips
    assert (clip.label, clip.flags) == ("green", ("partial",))


def test_counts_balance(colors: Path, videos: list[Path]) -> None:
    with open_classifier(colors, device="cpu") as classifier:
        *_, end = classifier.stream(videos[1])
    assert isinstance(end, SourceEnd)
    assert (end.counts.received, end.counts.processed, end.counts.skipped) == (175, 35, 140)


def test_frames_from_memory_are_a_source(colors: Path) -> None:
    source = ListSource("memory", plain(BLUE, 2, fps=10), [n / 10 for n in range(20)])
    with open_classifier(colors, device="cpu") as classifier:
        assert classifier.classify(source).label == "blue"
    assert source.closed


def test_bad_source_harms_no_other(colors: Path, videos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    sources: list[Source] = ["none.mp4", videos[0], tmp_path / "text.mp4", videos[1], "gopher://x"]
    with open_classifier(colors, device="cpu") as classifier:
        records = by_source(list(run_loop(sources, classifier.model, classifier.options)))
    assert isinstance(records["none.mp4"][-1], SourceEnd)
    assert {name for name, (*_, end) in records.items() if isinstance(end, SourceEnd) and end.error} == {
        "none.mp4",
        str(tmp_path / "text.mp4"),
        "gopher://x",
    }
    assert isinstance(records[str(videos[1])][-2], Result)


def test_damaged_source_gives_what_was_decoded_then_its_error(colors: Path) -> None:
    images, times = plain(RED, 1, fps=10), [n / 10 for n in range(10)]
    source = ListSource("damaged", images, times, error=VideoError("damaged", hint="copy it again"))
    with open_classifier(colors, device="cpu") as classifier:
        prediction, result, end = run_loop([source], classifier.model, classifier.options)
        assert isinstance(prediction, Prediction)
        assert isinstance(result, Result)
        assert isinstance(end, SourceEnd)
        assert str(end.error) == "damaged; copy it again"
        with pytest.raises(VideoError, match="damaged"):
            classifier.classify(ListSource("again", images, times, error=VideoError("damaged")))


def test_one_name_given_twice_is_two_sources(colors: Path, videos: list[Path]) -> None:
    with open_classifier(colors, device="cpu") as classifier:
        records = list(run_loop([videos[0], videos[0]], classifier.model, classifier.options))
    results = [record for record in records if isinstance(record, Result)]
    assert results[0] == results[1]


class BrokenExtractor:
    """A session that fails like one whose device was lost, after a number of runs."""

    def __init__(self, good: Model, runs: int) -> None:
        self._session = good.extractor
        self._left = runs
        self.inputs, self.outputs, self.placement = (
            good.extractor.inputs,
            good.extractor.outputs,
            good.extractor.placement,
        )

    def run(self, feeds: object) -> object:
        self._left -= 1
        if self._left < 0:
            raise RuntimeError("device lost")
        return self._session.run(feeds)  # type: ignore[arg-type]

    def close(self) -> None:
        self._session.close()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_error_in_extract_reaches_caller(colors: Path, videos: list[Path], options: LoopOptions) -> None:
    with open_classifier(colors, device="cpu") as classifier:
        broken = replace(classifier.model, extractor=BrokenExtractor(classifier.model, 1))  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="device lost"):
            list(run_loop(videos, broken, options))


def test_our_own_bug_in_a_source_is_not_taken_for_a_bad_video(colors: Path) -> None:
    source = ListSource("bug", [], [], error=ZeroDivisionError("bug"))
    with open_classifier(colors, device="cpu") as classifier, pytest.raises(ZeroDivisionError):
        list(run_loop([source], classifier.model, classifier.options))


def test_caller_that_stops_listening_leaves_no_thread(colors: Path, videos: list[Path]) -> None:
    with open_classifier(colors, device="cpu") as classifier:
        stream = classifier.stream(videos * 5)
        next(stream)
        stream.close()  # type: ignore[attr-defined]


def test_score_below_the_threshold_is_unknown(colors: Path) -> None:
    grey = ListSource("grey", plain((120, 120, 120), 2, fps=10), [n / 10 for n in range(20)])
    with open_classifier(colors, device="cpu", threshold=0.8) as classifier:
        result = classifier.classify(grey)
    assert result.label == "unknown"
    assert result.top_label in classifier.labels


def test_stage_times_are_measured(colors: Path, videos: list[Path]) -> None:
    meters = LoopMeters()
    with open_classifier(colors, device="cpu") as classifier:
        list(run_loop(videos, classifier.model, classifier.options, meters=meters))
    times = meters.read()
    assert times["decode"].items == times["extract"].items or times["extract"].items > 0
    assert all(stage.busy_seconds > 0 for stage in times.values())


def test_graph_that_differs_from_the_manifest_is_refused(colors: Path, tmp_path: Path) -> None:
    import json
    import shutil

    shutil.copytree(colors, tmp_path / "b.edgeclf")
    manifest = json.loads((tmp_path / "b.edgeclf/manifest.json").read_text())
    manifest["extractor"]["inputs"][0]["name"] = "pictures"
    (tmp_path / "b.edgeclf/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"manifest says the extractor has pictures .* the graph has frames"):
        open_classifier(tmp_path / "b.edgeclf", device="cpu")


def test_classifier_keeps_its_options(colors: Path) -> None:
    options = LoopOptions(workers=1)
    with open_classifier(colors, device="cpu", options=options) as classifier:
        assert isinstance(classifier, Classifier)
        assert classifier.options is options


def test_scores_of_a_clip_do_not_depend_on_its_neighbours(colors: Path) -> None:
    rng = np.random.default_rng(0)
    features = rng.random((5, 8, 3), np.float32)
    lengths = np.array([8, 8, 3, 1, 8], np.int32)
    with open_classifier(colors, device="cpu") as classifier:
        together = classifier.model.classify(features, lengths)
        alone = [classifier.model.classify(features[n : n + 1], lengths[n : n + 1])[0] for n in range(5)]
    assert np.array_equal(together, np.stack(alone))


def test_closing_the_classifier_ends_a_running_stream(colors: Path, videos: list[Path]) -> None:
    with open_classifier(colors, device="cpu") as classifier:
        stream = classifier.stream(videos * 5)
        next(stream)
    assert list(stream) == []
    with pytest.raises(SessionError, match="the session is closed"):
        classifier.classify(videos[0])


def test_stream_can_be_printed_as_it_comes(colors: Path, videos: list[Path]) -> None:
    with open_classifier(colors, device="cpu") as classifier:
        labels = [record.label for record in classifier.stream(videos[:1])]
    assert labels[0] == "red"
    assert labels[-1] is None


@pytest.mark.parametrize("wrong", [0, {"a.mp4"}, [None]])
def test_what_is_no_source_is_refused_by_name(colors: Path, wrong: object) -> None:
    with open_classifier(colors, device="cpu") as classifier, pytest.raises(VideoError, match="is no source"):
        next(classifier.stream(wrong))  # type: ignore[arg-type]


def test_batch_that_is_asked_for_is_filled(colors: Path, videos: list[Path]) -> None:
    sizes: list[int] = []

    class Counting(BrokenExtractor):
        def run(self, feeds: Any) -> Any:
            sizes.append(len(feeds["frames"]))
            return self._session.run(feeds)

    with open_classifier(colors, device="cpu") as classifier:
        counting = replace(classifier.model, extractor=Counting(classifier.model, 0))
        list(run_loop([videos[1]], counting, LoopOptions().with_batch(16)))
    assert max(sizes) == 16


def test_score_that_is_no_number_is_an_error(colors: Path, videos: list[Path]) -> None:
    class Broken(BrokenExtractor):
        def run(self, feeds: Any) -> Any:
            return {name: np.full_like(array, np.nan) for name, array in self._session.run(feeds).items()}

    with open_classifier(colors, device="cpu") as classifier:
        broken = replace(classifier.model, extractor=Broken(classifier.model, 0))
        with pytest.raises(SessionError, match="a score that is no number"):
            list(run_loop(videos, broken, classifier.options))
