"""Scenario `offline`: what is timed was checked before, and the record says what it was measured on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from edgeclf.bench.asked import Asked
from edgeclf.bench.baselines import (
    KERAS,
    OPENCV,
    OVERLAP,
    RECOMPUTED,
    TF_FUNCTION,
    keras_loops,
    processes_name,
)
from edgeclf.bench.devices import Choice, open_one
from edgeclf.bench.load import Usage
from edgeclf.bench.loops import DEFAULT_THREADS, ONE_THREAD, PIPELINED, Loop, Run, Work, changed_labels, disagreement
from edgeclf.bench.offline import measure, offline, open_loops
from edgeclf.bench.report import table
from edgeclf.bench.rows import Group, RowName, write_record
from edgeclf.bench.together import ONE_AT_A_TIME, together_name
from edgeclf.bundle import ModelBundle, open_bundle
from edgeclf.errors import ParityError, SessionError, VideoError
from edgeclf.runtime.cores import available_cores
from edgeclf.runtime.records import Prediction
from edgeclf.runtime.session import Placement
from edgeclf.runtime.tuned import Tuned, keep, key_of
from tests.support.labelled import edgeclf, require_keras
from tests.support.videos import BLUE, GREEN, RED, plain, write_video

METRIC = {"unit", "better", "count", "median", "p90", "p95", "p99", "smallest", "largest", "samples"}
TUNED = Tuned("throughput", "onnxruntime", "cpu", "fp32", 3, 2, 1, 812.5, 0.0031, "2026-11-22")
CPU = Choice("cpu")


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
    """What two rounds over two short videos give."""
    return offline(Asked(bundle, tuple(videos), (CPU,), "edgeclf bench", rounds=2, traced=True))


def rows_of(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in record["rows"]}


def prediction(source: str = "a", start: float = 0.0, scores: tuple[float, float] = (0.25, 0.75)) -> Prediction:
    return Prediction(source, ("no", "yes"), scores, start_seconds=start, end_seconds=start + 1)


class FakeLoop:
    """A loop whose passes take as many seconds as they are told; it keeps when it ran."""

    def __init__(
        self,
        name: str,
        log: list[str],
        *,
        seconds: Sequence[float] = (1.0,),
        clips: Sequence[Prediction] = (),
        group: Group = "ours",
        tolerance: float | None = 0.0,
    ) -> None:
        row = RowName(name, group, Placement("fake", "nowhere", "cpu", "fp32", 1))
        self.loop = Loop(row, self.run, tolerance, required=group == "ours")
        self._log = log
        self._seconds = seconds
        self._clips = tuple(clips) or (prediction(), prediction(start=1.0))
        self.runs = 0

    def run(self) -> Run:
        seconds = self._seconds[self.runs % len(self._seconds)]
        self.runs += 1
        self._log.append(self.loop.name.name)
        return Run(Work(self._clips, 20, 60), Usage(seconds, 2 * seconds, 100.0, 0.5))


def measured(bundle: ModelBundle, loops: Sequence[Loop], rounds: int = 1, **asked: Any) -> dict[str, Any]:
    return measure(Asked(bundle, ("a",), (CPU,), rounds=rounds, **asked), loops, progress=lambda: None)


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


def test_changed_labels_are_counted_clip_by_clip() -> None:
    clips = [prediction(), prediction(start=1.0)]
    assert changed_labels(reversed(clips), clips) == 0
    assert changed_labels([replace(clips[0], scores=(0.75, 0.25)), clips[1]], clips) == 1


@pytest.mark.parametrize("scores", [(float("nan"), 0.75), (0.25, float("nan"))], ids=str)
def test_score_that_is_no_number_never_agrees(bundle: ModelBundle, scores: tuple[float, float]) -> None:
    log: list[str] = []
    broken = [prediction(scores=scores), prediction(start=1.0)]
    loops = [FakeLoop(PIPELINED, log, clips=broken).loop, FakeLoop(ONE_THREAD, log).loop]
    with pytest.raises(ParityError, match="'pipelined' gives other scores"):
        measured(bundle, loops)


@pytest.mark.parametrize("name", [PIPELINED, DEFAULT_THREADS, KERAS])
def test_loop_with_other_scores_is_refused_before_anything_is_timed(bundle: ModelBundle, name: str) -> None:
    log: list[str] = []
    other = [prediction(scores=(0.2502, 0.7498)), prediction(start=1.0)]
    names = [PIPELINED, ONE_THREAD, DEFAULT_THREADS, KERAS]
    loops = [FakeLoop(each, log, clips=other if each == name else (), tolerance=1e-4).loop for each in names]
    with pytest.raises(ParityError, match=f"{name!r} gives other scores .by 0.0002.; timing it means nothing"):
        measured(bundle, loops, rounds=3)
    assert log == names, "every loop ran once, to be compared"


def test_device_with_other_scores_is_a_row_that_says_so_and_is_not_timed(bundle: ModelBundle) -> None:
    log: list[str] = []
    ours = [FakeLoop(name, log).loop for name in (PIPELINED, ONE_THREAD)]
    far = FakeLoop("far", log, clips=[prediction(scores=(0.5, 0.5)), prediction(start=1.0)], group="device")
    other = FakeLoop("other", log, clips=[prediction()], group="baseline", tolerance=None)
    found = rows_of(measured(bundle, [*ours, far.loop, other.loop]))
    assert found["far"]["reason"] == "it gives other scores (by 0.25); timing it means nothing"
    assert found["other"]["reason"] == "it makes other clips; timing it means nothing"
    assert (far.runs, other.runs) == (1, 1)


def test_baseline_that_cannot_run_is_a_row_with_the_reason(bundle: ModelBundle) -> None:
    def broken() -> Run:
        raise VideoError("OpenCV does not open it")

    log: list[str] = []
    ours = [FakeLoop(name, log).loop for name in (PIPELINED, ONE_THREAD)]
    baseline = FakeLoop(OPENCV, log, group="baseline").loop
    found = measured(bundle, [*ours, replace(baseline, run=broken)])
    assert rows_of(found)[OPENCV]["status"] == "unavailable"
    assert rows_of(found)[OPENCV]["reason"] == "OpenCV does not open it"
    assert list(found["ratios"]) == [ONE_THREAD]


def test_difference_of_another_preprocessing_is_only_said(bundle: ModelBundle) -> None:
    log: list[str] = []
    ours = [FakeLoop(name, log).loop for name in (PIPELINED, ONE_THREAD)]
    clips = [prediction(scores=(0.5, 0.5)), prediction(start=1.0)]
    found = measured(bundle, [*ours, FakeLoop(OPENCV, log, clips=clips, group="baseline", tolerance=None).loop])
    assert rows_of(found)[OPENCV]["agreement"] == {"largest_score_difference": 0.25, "changed_labels": 1}


# -- figures ----------------------------------------------------------------------------------------------------------


def test_figures_are_those_worked_out_by_hand(bundle: ModelBundle) -> None:
    log: list[str] = []
    warm_up = 100.0
    loops = [
        FakeLoop(PIPELINED, log, seconds=(warm_up, 1.0, 2.0, 4.0)).loop,
        FakeLoop(ONE_THREAD, log, seconds=(warm_up, 3.0, 4.0, 8.0)).loop,
    ]
    steps: list[int] = []
    found = measure(Asked(bundle, ("a",), (CPU,), rounds=3), loops, progress=lambda: steps.append(1))
    assert log == [PIPELINED, ONE_THREAD] * 2 + [ONE_THREAD, PIPELINED] + [PIPELINED, ONE_THREAD]
    assert len(steps) == 8
    ours, alone = (row["metrics"] for row in found["rows"])
    assert (ours["clips_per_second"]["median"], alone["clips_per_second"]["median"]) == (1.0, 0.5)
    assert ours["clips_per_second"]["samples"] == [2.0, 1.0, 0.5]
    assert (ours["frames_per_second"]["median"], ours["cpu_seconds_per_frame"]["median"]) == (10.0, 0.2)
    assert (ours["peak_rss_mb"]["median"], found["environment"]["foreign_cores"]) == (100.0, 0.5)
    assert found["ratios"] == {ONE_THREAD: 2.0}, "the median of 3, 2 and 2"
    assert found["bound"] is None, "these loops have no extractor that could run alone"


def test_loop_that_recomputes_is_compared_with_ours_on_as_many_threads(bundle: ModelBundle) -> None:
    seconds = {PIPELINED: 1.0, ONE_THREAD: 2.0, RECOMPUTED: 8.0}
    found = measured(bundle, [FakeLoop(name, [], seconds=(each,)).loop for name, each in seconds.items()])
    assert found["ratios"] == {ONE_THREAD: 2.0, OVERLAP: 4.0}
    assert "sequential, 1 thread is 4.00 times every window recomputed" in table(found)


def test_row_of_files_at_once_has_its_rate_beside_one_at_a_time_and_its_fairness(record: dict[str, Any]) -> None:
    rows = rows_of(record)
    metrics = rows[together_name(2)]["metrics"]
    assert 0 <= metrics["fairness"]["smallest"] <= metrics["fairness"]["largest"] <= 1
    rates = [rows[name]["metrics"]["frames_per_second"]["samples"] for name in (together_name(2), ONE_AT_A_TIME)]
    expected = [here / one for here, one in zip(*rates, strict=True)]
    assert metrics["times_one_at_a_time"]["samples"] == pytest.approx(expected, rel=1e-4)
    assert "fairness" not in rows[ONE_AT_A_TIME]["metrics"]
    assert f"{together_name(2)}: " in table(record)


def test_stable_measures_until_the_pipelined_rate_is(bundle: ModelBundle) -> None:
    restless = (1.0, 1.0, 2.0, 1.0, 2.0, 1.0, *(1.0,) * 20)
    loops = [FakeLoop(PIPELINED, [], seconds=restless).loop, FakeLoop(ONE_THREAD, []).loop]
    found = measured(bundle, loops, stable=True, rounds=2)
    assert found["rounds"] == 9, "with 2 of 8 rounds apart the quartile still is"
    never = FakeLoop(PIPELINED, [], seconds=(1.0, 2.0)).loop
    assert measured(bundle, [never, loops[1]], stable=True)["rounds"] == 15


def test_limit_is_the_extractor_alone_on_as_many_frames(record: dict[str, Any]) -> None:
    assert record["bound"]["frames_per_second"] > 0
    assert record["bound"]["reached"] > 0


def test_record_says_what_was_measured_where(record: dict[str, Any], bundle: ModelBundle) -> None:
    assert list(record) == [
        "schema_version",
        "scenario",
        "command",
        "environment",
        "bundle",
        "workload",
        "warm_up",
        "rounds",
        "rows",
        "ratios",
        "bound",
        "knee",
        "sustained_cameras",
        "trace",
    ]
    files = bundle.manifest.files
    assert record["bundle"] == {
        "name": "colors",
        "extractor_sha256": {"fp32": files["extractor.onnx"]},
        "classifier_sha256": {"fp32": files["classifier.onnx"]},
    }
    workload = {key: value for key, value in record["workload"].items() if key != "sha256"}
    assert workload == {"files": 2, "pictures": 36, "frames": 18, "clips": 6}
    assert (record["schema_version"], record["scenario"], record["rounds"]) == (2, "offline", 2)
    assert record["environment"]["processor"]
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_record_has_our_loops_and_those_of_others_with_all_figures(record: dict[str, Any]) -> None:
    rows = rows_of(record)
    assert list(rows)[:3] == [PIPELINED, ONE_THREAD, DEFAULT_THREADS]
    processes = {processes_name(2)} if available_cores() > 1 else set()
    assert {ONE_AT_A_TIME, together_name(2), OPENCV, RECOMPUTED, "OpenVINO's queue, fp32", *processes} <= set(rows)
    for name, row in rows.items():
        if row["status"] == "ok":
            for metric in ("clips_per_second", "frames_per_second", "cpu_seconds_per_frame"):
                assert set(row["metrics"][metric]) == METRIC
                assert len(row["metrics"][metric]["samples"]) == 2
            assert row["agreement"]["largest_score_difference"] <= (0 if row["group"] == "ours" else 0.02), name
    ours = rows[PIPELINED]
    assert set(ours["stages"]) == {"decode", "extract", "classify"}
    assert len(ours["latency_ms"]["samples"]) == 12
    assert (ours["backend"], ours["provider"], ours["threads"]) == ("onnxruntime", "CPU", 1)
    assert (ours["workers"], rows[ONE_THREAD]["workers"]) == (available_cores(), 0)


def test_trace_holds_every_stretch_of_work_from_0(record: dict[str, Any]) -> None:
    spans = record["trace"]
    assert spans[0]["start"] == 0.0
    assert {span["stage"] for span in spans} == {"decode", "extract", "classify"}
    assert sum(span["items"] for span in spans if span["stage"] == "extract") >= 9
    assert all(set(span) == {"stage", "thread", "start", "seconds", "items"} for span in spans)


def test_other_devices_have_rows_and_the_cpu_is_among_them(bundle: ModelBundle, videos: list[str]) -> None:
    choices = (CPU, Choice("cuda", "fp32", "onnxruntime"), Choice("cpu", "fp32", "onnxruntime"))
    found = rows_of(offline(Asked(bundle, tuple(videos), choices, rounds=1)))
    assert found["pipelined, onnxruntime fp32"]["group"] == "device"
    assert found["pipelined, onnxruntime fp32"]["status"] == "ok"
    assert found["pipelined, onnxruntime fp32 on cuda"]["status"] in ("ok", "unavailable")


# -- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 140])
def test_table_is_made_of_the_record(record: dict[str, Any], width: int) -> None:
    text = table(json.loads(json.dumps(record)), width)
    assert "2 files: 6 clips of 18 extracted frames, of 36 pictures" in text
    for name in (PIPELINED, ONE_THREAD, DEFAULT_THREADS, RECOMPUTED):
        assert any(line.startswith(name) for line in text.splitlines())
    for stage in ("decode", "extract", "classify"):
        assert f"  {stage}" in text
    assert record["environment"]["processor"] in text
    assert ("x 1 thread, batch 2" in text) is (width == 140)
    assert max(map(len, text.splitlines())) <= width


def test_table_warns_of_other_work_and_of_rates_that_jump(record: dict[str, Any]) -> None:
    busy = {**record, "environment": {**record["environment"], "foreign_cores": 0.4}}
    assert "other work kept 0.40 cores busy" in table(busy)
    quiet = {**record, "environment": {**record["environment"], "foreign_cores": 0.1}}
    assert "other work" not in table(quiet)
    jumping = [{**row, "metrics": {"frames_per_second": {"median": 1.0, "samples": [1.0, 2.0]}}} for row in
               record["rows"] if row["name"] == PIPELINED]  # fmt: skip
    assert "rates differ by more than 10%" in table({**record, "rows": jumping})
    steady = [{**row, "metrics": {"frames_per_second": {"median": 1.0, "samples": [1.0, 1.0]}}} for row in jumping]
    assert "warning: rates" not in table({**record, "rows": steady})


def test_table_gives_each_reason_once(record: dict[str, Any]) -> None:
    gone: dict[str, Any] = {"status": "unavailable", "reason": "no driver", "metrics": {}, "stages": None}
    rows = [*record["rows"], *({**gone, "name": name} for name in ("a", "b"))]
    assert "not here: a; b\n  no driver" in table({**record, "rows": rows})


def test_table_says_how_to_get_the_missing_keras_row(record: dict[str, Any]) -> None:
    assert "no Keras row: name the bundle's model directory with --keras" in table(record)
    with_keras = {**record, "ratios": {**record["ratios"], KERAS: 40.0}}
    assert "no Keras row" not in table(with_keras)
    assert f"pipelined is 40.00 times {KERAS}" in table(with_keras)


def test_loop_without_latencies_has_dashes_in_the_table(record: dict[str, Any]) -> None:
    (row,) = (line for line in table(record).splitlines() if line.startswith(RECOMPUTED))
    assert row.split()[-4:-2] == ["-", "-"]


def test_batch_is_taken_from_the_caller(bundle: ModelBundle) -> None:
    with ExitStack() as stack:
        model = open_one(stack, bundle, CPU)
        asked = Asked(bundle, ("a",), (CPU,), batch=7)
        assert asked.options_for(model).batch_size == 7
        loops = open_loops(asked, stack).loops
    assert [loop.name.batch for loop in loops[:3]] == [7, 7, 7]


def test_loop_runs_as_tuned_and_the_others_as_ever(bundle: ModelBundle) -> None:
    tuned = replace(TUNED, batch_size=4, workers=1, threads=2)
    with ExitStack() as stack:
        asked = Asked(bundle, ("a",), (Choice("cpu", "fp32", "onnxruntime", threads=2),), tuned=tuned)
        pipelined, one, default, *_ = open_loops(asked, stack).loops
    assert (pipelined.name.workers, pipelined.name.batch, pipelined.name.placement.threads) == (1, 4, 2)
    assert (one.name.workers, one.name.placement.threads) == (0, 1)
    assert default.name.placement.threads == 0


def test_only_the_rows_that_are_asked_for_are_there(bundle: ModelBundle, videos: list[str]) -> None:
    asked = Asked(bundle, tuple(videos), (CPU,), rows=("recomputed", "files at a time"))
    with ExitStack() as stack:
        names = [loop.name.name for loop in open_loops(asked, stack).loops]
    assert names == [PIPELINED, ONE_THREAD, together_name(len(videos)), RECOMPUTED]
    with ExitStack() as stack, pytest.raises(SessionError, match="no row is named 'none'"):
        open_loops(replace(asked, rows=("none",)), stack)


def test_source_that_cannot_be_read_is_an_error(bundle: ModelBundle, videos: list[str], tmp_path: Path) -> None:
    sources = (*videos, str(tmp_path / "none.avi"))
    with ExitStack() as stack:
        for loop in open_loops(Asked(bundle, sources, (CPU,)), stack).loops[:3]:
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
    assert found["workload"]["files"] == found["workload"]["clips"] == found["rounds"] == 1
    assert found["rows"][0]["batch"] == 3


def test_command_ends_with_1_where_a_source_cannot_be_read(colors: Path, videos: list[str], tmp_path: Path) -> None:
    (tmp_path / "text.avi").write_text("not a video")
    done = edgeclf("bench", colors, *videos, tmp_path / "text.avi", "--json", tmp_path / "record.json")
    assert done.returncode == 1
    assert "VideoError: " in done.stderr
    assert "text.avi" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "record.json").exists()


def test_command_runs_as_tune_chose(
    colors: Path, videos: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECLF_CACHE_DIR", str(tmp_path))
    words = ("bench", colors, videos[1], "--tuned", "--rounds", "1", "--format", "json")
    missing = edgeclf(*words)
    assert missing.returncode == 2
    assert f"never tuned for throughput on this machine as it is now: edgeclf tune {colors}" in missing.stderr
    keep(key_of(open_bundle(colors), "auto", "throughput"), {"tuned": asdict(TUNED)})
    done = edgeclf(*words)
    assert done.returncode == 0, done.stderr
    assert str(TUNED) in done.stderr
    row = json.loads(done.stdout)["rows"][0]
    assert (row["backend"], row["workers"], row["batch"]) == ("onnxruntime", TUNED.workers, TUNED.batch_size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a BUNDLE, or a --network"),
        (["{colors}", "--tuned"], "--tuned is a way to run the loop: name a SOURCE"),
        (["{colors}", "{video}", "--tuned", "--batch", "2"], "--tuned chooses --batch: leave out one of the two"),
        (["{colors}", "{video}", "--tuned", "--device", "all"], "--tuned runs one choice"),
        (["{colors}", "--network", "vgg16"], "name a BUNDLE, or a --network"),
        (["{colors}", "--precision", "int8"], "without a SOURCE every precision is measured"),
        (["nothing", "{video}"], "BundleError: there is no bundle 'nothing'"),
        (["{colors}", "{video}", "--rounds", "0"], "0 is not in the range"),
        (["{colors}", "{video}", "--keras", "none"], "'none' does not exist"),
        (["{colors}", "{video}", "--precision", "int8"], "holds no int8 graph"),
        (["{colors}", "{video}", "--device", "cpu,none"], "'none' is not one of auto, cpu, cuda, tensorrt, all"),
        (["{colors}", "--device", "all"], "without a SOURCE one --device is measured"),
        (["{colors}", "--trace", "trace.json"], "--trace shows the loop: name a SOURCE"),
        (["{colors}", "{video}", "--fps", "25,x"], "'25,x' must be numbers above 0"),
        (["{colors}", "{video}", "--outages", "2", "3"], "an outage must be shorter"),
        (["{colors}", "{video}", "--scenario", "none"], "'none' is not one of"),
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
def test_keras_loops_agree_with_the_runtime(model: Path, exported: Path) -> None:
    asked = Asked(open_bundle(exported), tuple(SCENES), (CPU,))
    with ExitStack() as stack:
        ours = open_loops(asked, stack).loops[1].run().work
    for loop in keras_loops(model, SCENES):
        theirs = loop.run().work
        assert disagreement(theirs.clips, ours.clips) < 1e-4
        assert [clip.flags for clip in theirs.clips] == [clip.flags for clip in ours.clips]
        assert (theirs.frames, theirs.pictures) == (ours.frames, ours.pictures)
        assert {clip.source for clip in theirs.clips} == set(SCENES)


@pytest.mark.keras
def test_keras_is_a_row_of_the_table(model: Path, exported: Path) -> None:
    done = edgeclf("bench", exported, *SCENES, "--device", "cpu", "--rounds", "1", "--keras", model)
    assert done.returncode == 0, done.stderr
    assert any(line.startswith(KERAS) for line in done.stdout.splitlines())
    assert f"times {KERAS}" in done.stdout
    assert f"times {TF_FUNCTION}" in done.stdout
    assert "no Keras row" not in done.stdout


@pytest.mark.keras
def test_model_directory_of_another_model_is_exit_1(model: Path, colors: Path) -> None:
    done = edgeclf("bench", colors, *SCENES, "--device", "cpu", "--rounds", "1", "--keras", model)
    assert done.returncode == 1
    assert "is another model than colors: it has other labels" in done.stderr
    assert done.stdout == ""


@pytest.mark.keras
def test_keras_loops_do_not_pass_over_a_source_that_cannot_be_read(model: Path, tmp_path: Path) -> None:
    for loop in keras_loops(model, [str(tmp_path / "none.avi")]):
        with pytest.raises(VideoError, match=r"none\.avi does not exist"):
            loop.run()
