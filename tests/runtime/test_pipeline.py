from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import edgeclf
from edgeclf.errors import BundleError, SessionError, VideoError
from edgeclf.image_source import ImageSource
from edgeclf.runtime.model import Model, thresholds_of
from edgeclf.runtime.pipeline import Classifier, LoopMeters, LoopOptions, Source, open_classifier, run_loop
from edgeclf.runtime.records import Prediction, Record, Result, SourceEnd
from edgeclf.runtime.session import Session, open_session
from edgeclf.specs import ClipSpec, PreprocessSpec
from tests.support.colors import CLIP, LABELS, write_bundle
from tests.support.counting import NumberedSource
from tests.support.sessions import keeping_model
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
    assert {result.source_index for result in results} == {0, 1}
    assert results[0].scores == results[1].scores


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


@pytest.mark.parametrize(("batch", "room"), [(None, 32), (8, 32), (100, 100)])
def test_session_has_room_for_the_batch_that_is_asked_for(
    colors: Path, monkeypatch: pytest.MonkeyPatch, batch: int | None, room: int
) -> None:
    rooms: list[int] = []

    def opened(*arguments: Any, **options: Any) -> Session:
        rooms.append(options.get("max_batch", 0))
        return open_session(*arguments, **options)

    monkeypatch.setattr("edgeclf.runtime.model.open_session", opened)
    with open_classifier(colors, batch_size=batch) as classifier:
        assert classifier.options.batch_size == (batch or LoopOptions.for_device("cpu").batch_size)
    assert rooms[0] == room


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


# -- thresholds of labels ---------------------------------------------------------------------------------------------


GREY = (120, 120, 120)


def still(color: tuple[int, int, int], name: str = "still") -> ListSource:
    return ListSource(name, plain(color, 2, fps=10), [n / 10 for n in range(20)])


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of colours, which finds no clip red enough."""
    return write_bundle(tmp_path_factory.mktemp("strict") / "strict.edgeclf", thresholds={"red": 1.0, "blue": 0.5})


def test_label_below_its_own_threshold_is_unknown_and_no_other(strict: Path) -> None:
    with open_classifier(strict, device="cpu") as classifier:
        red, blue, green = (classifier.classify(still(color)) for color in (RED, BLUE, GREEN))
    assert (red.label, red.top_label) == ("unknown", "red")
    assert {clip.label for clip in red.clips} == {"unknown"}
    assert {clip.top_label for clip in red.clips} == {"red"}
    assert (blue.label, green.label) == ("blue", "green")
    assert red.to_dict()["label"] == "unknown"


def test_stream_knows_the_thresholds_of_the_bundle(strict: Path) -> None:
    with open_classifier(strict, device="cpu") as classifier:
        labels = [record.label for record in classifier.stream(still(RED))]
    assert labels == ["unknown"] * (len(labels) - 1) + [None]


@pytest.mark.parametrize(("threshold", "label"), [(0.0, "red"), (0.3, "red"), (1.0, "unknown")])
def test_threshold_that_is_given_counts_instead_of_those_of_the_bundle(
    strict: Path, threshold: float, label: str
) -> None:
    with open_classifier(strict, device="cpu", threshold=threshold) as classifier:
        assert classifier.classify(still(RED)).label == label
        assert next(iter(classifier.stream(still(RED)))).label == label


def test_bundle_without_thresholds_finds_nothing_unknown(colors: Path) -> None:
    with open_classifier(colors, device="cpu") as classifier:
        assert classifier.model.thresholds == ()
        assert classifier.classify(still(GREY)).label in LABELS


def test_thresholds_stand_in_the_order_of_the_labels() -> None:
    assert thresholds_of({"blue": 0.5, "red": 0.25}, LABELS) == (0.25, 0.0, 0.5)
    assert thresholds_of({}, LABELS) == ()


def test_score_that_reaches_the_threshold_is_known() -> None:
    prediction = Prediction("a", ("x", "y"), (0.4, 0.6), (0.9, 0.6))
    assert prediction.label == "y"
    assert replace(prediction, thresholds=(0.0, 0.61)).label == "unknown"
    assert replace(prediction, thresholds=()).label == "y"


# -- clips of a file and clips of a stream ----------------------------------------------------------------------------

PICTURE = PreprocessSpec((4, 4))


def first(clip: ClipSpec = CLIP) -> ClipSpec:
    return replace(clip, sampling="first")


def test_file_is_classified_by_its_first_frames_and_a_stream_by_time(tmp_path: Path) -> None:
    """Eight frames are red, then it is blue: a file that is told by its first eight frames is red."""
    bundle = write_bundle(tmp_path / "first.edgeclf", first())
    images = plain(RED, 0.8, fps=10) + plain(BLUE, 4.0, fps=10)
    source = ListSource("both", images, [n / 10 for n in range(len(images))])
    with open_classifier(bundle, device="cpu") as classifier:
        result = classifier.classify(source)
        clips = [record for record in classifier.stream(source) if isinstance(record, Prediction)]
    (only,) = result.clips
    assert (result.label, only.start_seconds) == ("red", 0.0)
    assert only.end_seconds == pytest.approx(0.7)
    assert len(clips) > 5
    assert clips[-1].label == "blue"
    assert clips[-1].end_seconds - clips[-1].start_seconds == pytest.approx(CLIP.seconds)


@pytest.mark.parametrize("sampling", ["first", "uniform"])
def test_stream_of_a_recipe_that_counts_frames_equals_that_of_one_that_does_not(sampling: str) -> None:
    clip = ClipSpec.from_dict(CLIP.to_dict() | {"sampling": sampling})
    runs = []
    for spec in (clip, CLIP):
        model, kept = keeping_model(PICTURE, spec)
        runs.append((list(run_loop([NumberedSource([n / 25 for n in range(99)])], model, LoopOptions(depth=0))), kept))
    (records, kept), (expected, expected_kept) = runs
    assert records == expected
    assert [clip.tolist() for clip, _ in kept.clips] == [clip.tolist() for clip, _ in expected_kept.clips]


def test_classifying_a_file_reads_no_frame_behind_the_first_ones() -> None:
    model, kept = keeping_model(PICTURE, first())
    source = NumberedSource([n / 25 for n in range(99)])
    with Classifier(model, LoopOptions(depth=0)) as classifier:
        classifier.classify(source)
    assert source.read == CLIP.length
    ((clip, length),) = kept.clips
    assert length == CLIP.length
    assert (clip[:, 0] * 255).round().tolist() == list(range(CLIP.length))


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Twelve picture files, each of one shade."""
    paths = [tmp_path / f"{number:02}.png" for number in range(12)]
    for number, path in enumerate(paths):
        assert cv2.imwrite(str(path), np.full((8, 8, 3), 20 * number, np.uint8))
    return paths


@pytest.mark.parametrize("options", [LoopOptions(depth=0), LoopOptions()], ids=["one thread", "threads"])
@pytest.mark.parametrize(
    ("sampling", "expected"), [("first", [0, 1, 2, 3]), ("uniform", [0, 3, 6, 9]), ("rate", [0, 2, 4, 6])]
)
def test_pictures_make_a_clip_however_it_is_sampled(
    pictures: list[Path], options: LoopOptions, sampling: str, expected: list[int]
) -> None:
    clip = ClipSpec.from_dict(ClipSpec.by_rate(4, 5.0).to_dict() | {"sampling": sampling})
    model, kept = keeping_model(PICTURE, clip)
    records = list(run_loop([ImageSource("pictures", pictures)], model, options, form="file"))
    assert isinstance(records[-1], SourceEnd)
    assert records[-1].error is None
    assert kept.clips, "the clip has frames"
    assert (kept.clips[0][0][:, 0] * 255 / 20).round().tolist() == expected


# -- stacked pictures, and classifiers of frames ----------------------------------------------------------------------


@pytest.mark.parametrize("options", [LoopOptions(), *OPTIONS], ids=str)
@pytest.mark.parametrize("takes_frames", [False, True], ids=["features", "frames"])
@pytest.mark.parametrize("form", ["file", "stream"])
@pytest.mark.parametrize("sampling", ["rate", "first", "uniform"])
def test_stacked_results_equal_those_of_one_thread(
    videos: list[Path], options: LoopOptions, takes_frames: bool, form: Any, sampling: str
) -> None:
    preprocess = PreprocessSpec((8, 8), stack=2, stack_seconds=0.12)
    clip = ClipSpec.from_dict(CLIP.to_dict() | {"sampling": sampling})
    runs = []
    for chosen in (options.sequential(), options):
        model, kept = keeping_model(preprocess, clip, takes_frames=takes_frames)
        records = by_source(list(run_loop(videos, model, chosen, form=form)))
        runs.append((records, sorted(part.tobytes() for part, _ in kept.clips)))
    assert runs[0] == runs[1]
    assert len(runs[0][0]) == len(videos)


def test_stacked_frames_reach_the_classifier_that_takes_frames() -> None:
    model, kept = keeping_model(
        PreprocessSpec((4, 4), stack=2, stack_seconds=0.12), ClipSpec.by_rate(4, 5.0), takes_frames=True
    )
    list(run_loop([NumberedSource([n / 25 for n in range(20)])], model, LoopOptions(depth=0)))
    ((clip, _),) = kept.clips
    assert (clip.shape, str(clip.dtype)) == ((4, 2, 4, 4, 3), "uint8")
    assert clip[:, :, 0, 0, 0].tolist() == [[0, 0], [2, 5], [7, 10], [12, 15]]
