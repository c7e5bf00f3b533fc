"""What is measured was checked before, and the record says what it was measured on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeclf.bench.loops import (
    DEFAULT_THREADS,
    KERAS,
    ONE_THREAD,
    PIPELINED,
    Loop,
    Run,
    disagreement,
    keras_loop,
    runtime_loops,
)
from edgeclf.bench.report import measure, table, write_record
from edgeclf.bundle import ModelBundle, open_bundle, sha256_of
from edgeclf.errors import ParityError, VideoError
from edgeclf.runtime.records import Prediction
from tests.support.labelled import edgeclf, require_keras
from tests.support.videos import BLUE, GREEN, RED, plain, write_video

DISTRIBUTION = {"count", "median", "p90", "p95", "p99", "smallest", "largest"}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("videos")
    return [
        str(write_video(folder / "change.avi", plain(RED, 2, fps=10) + plain(BLUE, 1, fps=10), fps=10)),
        str(write_video(folder / "short.mp4", plain(GREEN, 0.6, fps=10), fps=10)),
    ]


@pytest.fixture(scope="module")
def bundle(colors: Path) -> ModelBundle:
    return open_bundle(colors)


@pytest.fixture(scope="module")
def record(bundle: ModelBundle, videos: list[str]) -> dict[str, Any]:
    """What two rounds of the runtime's loops over two short videos give."""
    return measure(bundle, runtime_loops(bundle, videos, "cpu"), videos, rounds=2, progress=lambda: None)


def prediction(source: str = "a", start: float = 0.0, scores: tuple[float, float] = (0.25, 0.75)) -> Prediction:
    return Prediction(source, ("no", "yes"), scores, start_seconds=start, end_seconds=start + 1)


class FakeLoop:
    """A loop whose passes take as many seconds as they are told; it keeps when it ran."""

    def __init__(
        self, name: str, log: list[str], *, seconds: Sequence[float] = (1.0,), clips: Sequence[Prediction] = ()
    ) -> None:
        self.loop = Loop(name, "nowhere", {"depth": 0}, self.run)
        self._log = log
        self._seconds = seconds
        self._clips = tuple(clips) or (prediction(), prediction(start=1.0))
        self.runs = 0

    def run(self) -> Run:
        seconds = self._seconds[self.runs % len(self._seconds)]
        self.runs += 1
        self._log.append(self.loop.name)
        return Run(seconds, 2 * seconds, self._clips, 20, 60)


# -- agreement --------------------------------------------------------------------------------------------------------


def test_disagreement_is_the_largest_difference_of_a_score_in_whatever_order_clips_come() -> None:
    clips = [prediction("a"), prediction("a", 1.0), prediction("b")]
    other = [prediction("b", scores=(0.375, 0.625)), prediction("a", 1.0, (0.26, 0.74)), prediction("a")]
    assert disagreement(clips, reversed(clips)) == 0.0
    assert disagreement(other, clips) == 0.125
    assert disagreement([], []) == 0.0


@pytest.mark.parametrize(
    "other",
    [
        [],
        [prediction(), prediction()],
        [prediction("b")],
        [prediction(start=0.5)],
        [replace(prediction(), end_seconds=2.0)],
        [replace(prediction(), labels=("yes", "no"))],
    ],
    ids=["none", "two", "source", "start", "end", "labels"],
)
def test_other_clips_disagree_infinitely(other: list[Prediction]) -> None:
    assert disagreement(other, [prediction()]) == float("inf")


@pytest.mark.parametrize("scores", [(float("nan"), 0.75), (0.25, float("nan"))], ids=str)
def test_score_that_is_no_number_never_agrees(bundle: ModelBundle, scores: tuple[float, float]) -> None:
    log: list[str] = []
    broken = [prediction(scores=scores), prediction(start=1.0)]
    loops = [FakeLoop(PIPELINED, log, clips=broken).loop, FakeLoop(ONE_THREAD, log).loop]
    with pytest.raises(ParityError, match="'pipelined' gives other scores"):
        measure(bundle, loops, ["a"], rounds=1, progress=lambda: None)


@pytest.mark.parametrize("name", [PIPELINED, DEFAULT_THREADS, KERAS])
def test_loop_with_other_scores_is_refused_before_anything_is_timed(bundle: ModelBundle, name: str) -> None:
    log: list[str] = []
    other = [prediction(scores=(0.2502, 0.7498)), prediction(start=1.0)]
    names = [PIPELINED, ONE_THREAD, DEFAULT_THREADS, KERAS]
    loops = [FakeLoop(each, log, clips=other if each == name else ()).loop for each in names]
    with pytest.raises(ParityError, match=f"{name!r} gives other scores .by 0.0002.; timing it means nothing"):
        measure(bundle, loops, ["a"], rounds=3, progress=lambda: None)
    assert log == names, "every loop ran once, to be compared"


def test_keras_may_differ_in_the_last_digits_and_our_own_loops_may_not(bundle: ModelBundle) -> None:
    log: list[str] = []
    nearly = [prediction(scores=(0.25 + 5e-5, 0.75)), prediction(start=1.0)]
    ours = [FakeLoop(name, log).loop for name in (PIPELINED, ONE_THREAD)]
    found = measure(bundle, [*ours, FakeLoop(KERAS, log, clips=nearly).loop], ["a"], rounds=1, progress=lambda: None)
    assert found["loops"][-1]["largest_score_difference"] == pytest.approx(5e-5, rel=0.01)
    with pytest.raises(ParityError, match="sequential, default threads"):
        measure(
            bundle, [*ours, FakeLoop(DEFAULT_THREADS, log, clips=nearly).loop], ["a"], rounds=1, progress=lambda: None
        )


# -- figures ----------------------------------------------------------------------------------------------------------


def test_figures_are_those_worked_out_by_hand(bundle: ModelBundle) -> None:
    log: list[str] = []
    warm_up = 100.0
    loops = [
        FakeLoop(PIPELINED, log, seconds=(warm_up, 1.0, 2.0, 4.0)).loop,
        FakeLoop(ONE_THREAD, log, seconds=(warm_up, 3.0, 4.0, 8.0)).loop,
    ]
    steps: list[int] = []
    found = measure(bundle, loops, ["a"], rounds=3, progress=lambda: steps.append(1))
    assert log == [PIPELINED, ONE_THREAD] * 2 + [ONE_THREAD, PIPELINED] + [PIPELINED, ONE_THREAD]
    assert len(steps) == 8
    ours, alone = found["loops"]
    assert (ours["clips_per_second"]["median"], alone["clips_per_second"]["median"]) == (1.0, 0.5)
    assert (ours["clips_per_second"]["smallest"], ours["clips_per_second"]["largest"]) == (0.5, 2.0)
    assert (ours["frames_per_second"]["median"], ours["cpu_seconds_per_clip"]["median"]) == (10.0, 2.0)
    assert (ours["seconds_of_median_run"], ours["latency_seconds"]) == (2.0, None)
    assert found["ratios"] == {ONE_THREAD: 2.0}, "the median of 3, 2 and 2"
    assert found["bound"] is None, "these loops have no extractor that could run alone"


def test_limit_is_the_extractor_alone_on_as_many_frames(record: dict[str, Any]) -> None:
    assert record["bound"]["extractor_alone_frames_per_second"] > 0
    assert record["bound"]["reached"] > 0


def test_record_says_what_was_measured_where(record: dict[str, Any], bundle: ModelBundle) -> None:
    assert list(record) == [
        "schema_version",
        "environment",
        "bundle",
        "sources",
        "warm_up",
        "rounds",
        "loops",
        "ratios",
        "bound",
    ]
    assert record["bundle"] == {"name": "colors", "extractor_sha256": sha256_of(bundle.path / "extractor.onnx")}
    assert record["sources"] == {"files": 2, "pictures": 36, "frames_extracted": 18, "clips": 6}
    assert (record["schema_version"], record["rounds"]) == (1, 2)
    assert record["environment"]["processor"]
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_record_has_every_loop_with_its_distributions(record: dict[str, Any]) -> None:
    assert [loop["name"] for loop in record["loops"]] == [PIPELINED, ONE_THREAD, DEFAULT_THREADS]
    assert set(record["ratios"]) == {ONE_THREAD, DEFAULT_THREADS}
    for loop in record["loops"]:
        assert loop["largest_score_difference"] == 0.0
        for name in ("clips_per_second", "frames_per_second", "cpu_seconds_per_clip", "latency_seconds"):
            assert set(loop[name]) == DISTRIBUTION
            assert 0 <= loop[name]["smallest"] <= loop[name]["median"] <= loop[name]["p99"] <= loop[name]["largest"]
        assert loop["clips_per_second"]["count"] == 2
        assert loop["latency_seconds"]["count"] == 12
        assert set(loop["stages_of_median_run"]) == {"decode", "extract", "classify"}
    threads = [loop["extractor"] for loop in record["loops"]]
    assert ["1 thread" in text for text in threads] == [True, True, False]
    assert record["loops"][1]["options"] == {"depth": 0, "workers": 0, "batch_size": 2}


def test_table_is_made_of_the_record(record: dict[str, Any]) -> None:
    text = table(json.loads(json.dumps(record)))
    assert "colors on 2 files: 6 clips of 18 extracted frames, of 36 pictures" in text
    for name in (PIPELINED, ONE_THREAD, DEFAULT_THREADS):
        assert any(line.startswith(name) for line in text.splitlines())
    for stage in ("decode", "extract", "classify"):
        assert f"  {stage}" in text
    assert record["environment"]["processor"] in text


def test_table_says_how_to_get_the_missing_keras_row(record: dict[str, Any]) -> None:
    assert "no Keras row: name the bundle's model directory with --keras" in table(record)
    with_keras = {**record, "ratios": {**record["ratios"], KERAS: 40.0}}
    assert "no Keras row" not in table(with_keras)
    assert f"pipelined is 40.00 times {KERAS}" in table(with_keras)


def test_loop_without_latencies_has_dashes_in_the_table(record: dict[str, Any]) -> None:
    without = [{**loop, "latency_seconds": None} for loop in record["loops"]]
    (row,) = (line for line in table({**record, "loops": without}).splitlines() if line.startswith(ONE_THREAD))
    assert row.split()[-3:-1] == ["-", "-"]


def test_batch_is_taken_from_the_caller(bundle: ModelBundle, videos: list[str]) -> None:
    assert [loop.options["batch_size"] for loop in runtime_loops(bundle, videos, "cpu", batch=7)] == [7, 7, 7]


def test_source_that_cannot_be_read_is_an_error(bundle: ModelBundle, videos: list[str], tmp_path: Path) -> None:
    sources = [*videos, str(tmp_path / "none.avi")]
    for loop in runtime_loops(bundle, sources, "cpu"):
        with pytest.raises(VideoError, match=r"none\.avi does not exist"):
            loop.run()


def test_record_is_written_also_into_a_new_folder(record: dict[str, Any], tmp_path: Path) -> None:
    write_record(tmp_path / "new" / "record.json", record)
    assert json.loads((tmp_path / "new" / "record.json").read_text(encoding="utf-8")) == record


# -- the command ------------------------------------------------------------------------------------------------------


def test_command_prints_the_table_and_keeps_the_record(colors: Path, videos: list[str], tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    done = edgeclf("bench", colors, *videos, "--device", "cpu", "--rounds", "1", "--json", file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == table(json.loads(file.read_text(encoding="utf-8")))
    assert "colors: extractor on onnxruntime CPU fp32" in done.stderr


def test_command_prints_the_record_as_json(colors: Path, videos: list[str]) -> None:
    done = edgeclf("bench", colors, videos[1], "--device", "cpu", "--rounds", "1", "--batch", "3", "--format", "json")
    found = json.loads(done.stdout)
    assert found["sources"]["files"] == found["sources"]["clips"] == found["rounds"] == 1
    assert found["loops"][0]["options"]["batch_size"] == 3


def test_command_ends_with_1_where_a_source_cannot_be_read(colors: Path, videos: list[str], tmp_path: Path) -> None:
    (tmp_path / "text.avi").write_text("not a video")
    done = edgeclf("bench", colors, *videos, tmp_path / "text.avi", "--json", tmp_path / "record.json")
    assert done.returncode == 1
    assert "VideoError: " in done.stderr
    assert "text.avi" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "record.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a BUNDLE, or a --network"),
        (["{colors}", "--network", "vgg16"], "name a BUNDLE, or a --network"),
        (["{colors}", "--precision", "int8"], "without a SOURCE every precision is measured"),
        (["nothing", "{video}"], "BundleError: there is no bundle 'nothing'"),
        (["{colors}", "{video}", "--rounds", "0"], "0 is not in the range"),
        (["{colors}", "{video}", "--keras", "none"], "'none' does not exist"),
        (["{colors}", "{video}", "--precision", "int8"], "holds no int8 graph"),
        (["{colors}", "*.nothing"], "no video in *.nothing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_exit_2(colors: Path, videos: list[str], arguments: list[str], message: str) -> None:
    done = edgeclf("bench", *(text.format(colors=colors, video=videos[1]) for text in arguments))
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


# -- Keras ------------------------------------------------------------------------------------------------------------

SCENES = ["synthetic://walk?seed=1&seconds=1.2", "synthetic://fall?seed=2&seconds=0.3"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_keras()
    from tests.support.keras_models import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def exported(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tf2onnx", reason="tf2onnx is not installed: pip install 'edgeclf[dev]'")
    from edgeclf.export.bundling import export_bundle

    return export_bundle(model, tmp_path_factory.mktemp("bundles") / "tiny.edgeclf").path


@pytest.mark.keras
def test_keras_loop_agrees_with_the_runtime(model: Path, exported: Path) -> None:
    ours = runtime_loops(open_bundle(exported), SCENES, "cpu")[1].run()
    theirs = keras_loop(model, SCENES).run()
    assert disagreement(theirs.clips, ours.clips) < 1e-4
    assert [clip.flags for clip in theirs.clips] == [clip.flags for clip in ours.clips]
    assert theirs.frames == ours.frames
    assert {clip.source for clip in theirs.clips} == set(SCENES)


@pytest.mark.keras
def test_keras_is_a_row_of_the_table(model: Path, exported: Path) -> None:
    done = edgeclf("bench", exported, *SCENES, "--device", "cpu", "--rounds", "1", "--keras", model)
    assert done.returncode == 0, done.stderr
    (row,) = (line for line in done.stdout.splitlines() if line.startswith(KERAS))
    assert row.split()[-3:-1] == ["-", "-"]
    assert f"times {KERAS}" in done.stdout
    assert "no Keras row" not in done.stdout


@pytest.mark.keras
def test_model_directory_of_another_model_is_exit_1(model: Path, colors: Path) -> None:
    done = edgeclf("bench", colors, *SCENES, "--device", "cpu", "--rounds", "1", "--keras", model)
    assert done.returncode == 1
    assert f"ParityError: '{KERAS}' gives other scores (by inf)" in done.stderr
    assert done.stdout == ""


@pytest.mark.keras
def test_keras_loop_does_not_pass_over_a_source_that_cannot_be_read(model: Path, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"none\.avi does not exist"):
        keras_loop(model, [str(tmp_path / "none.avi")]).run()
