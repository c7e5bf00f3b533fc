"""Cameras and stages: the knee, what counts as keeping up, the bound, and records that all have one shape."""

from __future__ import annotations

import json
import shlex
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeclf.bench.asked import Asked, LiveSettings
from edgeclf.bench.devices import Choice, open_one
from edgeclf.bench.live import (
    Label,
    LiveRun,
    confirmed,
    find_knee,
    is_decided,
    multi_stream,
    play,
    single_stream,
    sustained,
    sustained_mostly,
)
from edgeclf.bench.load import Usage
from edgeclf.bench.loops import PIPELINED
from edgeclf.bench.report import table
from edgeclf.bench.rows import Samples, thinned
from edgeclf.bench.stages import CLASSIFY, CONVERT, DECODE, EXTRACT, PREPARE, PREPROCESS, Turn, bound_of, stages
from edgeclf.bundle import ModelBundle, open_bundle
from edgeclf.errors import VideoError
from edgeclf.runtime.cores import available_cores
from edgeclf.runtime.pipeline import LoopOptions
from edgeclf.video import SourceCounts
from tests.support.labelled import edgeclf
from tests.support.videos import BLUE, RED, plain, write_video

CPU = Choice("cpu")
KEYS = [
    "schema_version", "scenario", "command", "environment", "bundle", "workload", "warm_up", "rounds", "rows", "ratios",
    "bound", "knee", "sustained_cameras", "trace",
]  # fmt: skip
ROW = {
    "name", "group", "device", "backend", "provider", "precision", "threads", "workers", "batch", "status", "reason",
    "metrics", "latency_ms", "stages",
}  # fmt: skip
QUICK = LiveSettings(fps=(50.0, 25.0), sample_fps=20.0, seconds=0.6, p99_ms=10000.0, most_cameras=2)


@pytest.fixture(scope="module")
def bundle(colors: Path) -> ModelBundle:
    return open_bundle(colors)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> str:
    images = plain(RED, 2, fps=10) + plain(BLUE, 1, fps=10)
    return str(write_video(tmp_path_factory.mktemp("videos") / "change.avi", images, fps=10))


def has_the_shape(record: dict[str, Any], scenario: str) -> None:
    assert (list(record), record["scenario"]) == (KEYS, scenario)
    assert all(set(row) >= ROW for row in record["rows"])
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    for width in (80, 140):
        assert max(map(len, table(record, width).splitlines())) <= width


# -- the knee ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 5, 8, 13, 16, 21, 100])
def test_knee_is_the_most_that_is_sustained_and_found_in_few_steps(limit: int) -> None:
    tried: list[int] = []

    def is_sustained(count: int) -> bool:
        tried.append(count)
        return count <= limit

    assert find_knee(is_sustained, 21) == min(limit, 21)
    assert len(tried) == len(set(tried)) <= 10
    assert max(tried) <= 21


@pytest.mark.parametrize(
    ("found", "limit", "asked"),
    [(4, 4, [4, 5]), (4, 6, [4, 5, 6, 7]), (4, 2, [4, 3, 2]), (4, 0, [4, 3, 2, 1]), (0, 0, [1]), (8, 9, [8])],
    ids=["right", "too low", "too high", "none", "none found", "most"],
)
def test_number_found_and_the_one_above_it_are_measured_again(found: int, limit: int, asked: list[int]) -> None:
    tried: list[int] = []

    def is_mostly(count: int) -> bool:
        tried.append(count)
        return count <= limit

    assert confirmed(found, 8, is_mostly) == min(limit, 8)
    assert tried == asked


@pytest.mark.parametrize(
    ("verdicts", "decided"),
    [([], False), ([True], False), ([True, True], False), ([True, False] * 2, False), ([True] * 3, True),
     ([False, True, False, False], True), ([True, False] * 2 + [False], True)],
)  # fmt: skip
def test_rounds_go_on_until_most_of_five_agree(verdicts: list[bool], decided: bool) -> None:
    assert is_decided(verdicts, 5) is decided


def test_even_split_of_rounds_is_not_sustained() -> None:
    good, bad = live_run(ON_TIME), live_run([])
    live = LiveSettings()
    assert is_decided([True, False], 2)
    assert not sustained_mostly([good, bad], live)
    assert sustained_mostly([good, bad, good], live)


def live_run(
    latencies: list[float], *, dropped: int = 0, processed: int = 100, seconds: float = 10.0, due: int = 50
) -> LiveRun:
    labels = tuple(Label(n / len(latencies), latency) for n, latency in enumerate(latencies))
    counts = SourceCounts(processed + dropped, processed, 0, {"queue": dropped} if dropped else {})
    return LiveRun(1, seconds, labels, due, (counts,), Usage(seconds, 1.0), ())


ON_TIME = [0.01] * 50  # at 5 frames a second for 10 seconds


@pytest.mark.parametrize(
    ("run", "is_sustained"),
    [
        (live_run(ON_TIME), True),
        (live_run([*ON_TIME[:-2], 0.2, 0.2]), False),
        (live_run(ON_TIME, dropped=5), True),
        (live_run(ON_TIME[:49], dropped=1), False),
        (live_run(ON_TIME[:49]), True),
        (live_run(ON_TIME[:48]), False),
        (live_run([]), False),
    ],
    ids=["on time", "late", "dropped while it settled", "dropped", "one just came at the end", "too few", "none"],
)
def test_camera_is_sustained_if_labels_are_in_time_and_nearly_none_is_missing(run: LiveRun, is_sustained: bool) -> None:
    assert sustained(run, LiveSettings(p99_ms=150.0)) is is_sustained


def test_camera_that_is_gone_now_and_then_owes_no_label_for_it() -> None:
    live = LiveSettings()
    assert sustained(live_run(ON_TIME[:21], due=21), live)
    assert not sustained(live_run(ON_TIME[:20], due=21), live)


@pytest.mark.slow
def test_cameras_with_outages_that_empty_their_clips_give_every_label_that_is_due(
    bundle: ModelBundle, video: str
) -> None:
    live = LiveSettings(fps=(20.0,), seconds=4.0, outages=(4.0, 2.0), p99_ms=10000.0)
    every = replace(bundle.classifier.clip.of_stream(), rate=5.0, hop_seconds=0.2, stale_seconds=0.5)
    with ExitStack() as stack:
        model = replace(open_one(stack, bundle, CPU), clip=every)
        run = play(model, LoopOptions(workers=1, batch_size=1), [video], 1, live)
    assert 0 < run.due < live.seconds * 5 / 2
    assert len(run.labels) == run.due
    assert sustained(run, live)


def test_growing_latency_shows_in_its_last_third_over_its_first() -> None:
    assert live_run([0.1] * 10 + [0.2] * 10 + [0.4] * 10).late_over_early() == pytest.approx(4.0)
    assert live_run([]).late_over_early() is None


def test_dropped_pictures_are_counted_by_cause() -> None:
    run = live_run(ON_TIME, dropped=40, due=60)
    assert (run.dropped, run.sampled_fps) == ({"queue": 40}, 5.0)
    assert run.dropped_share == pytest.approx(10 / 60), "the other 30 were before it was measured"


# -- cameras ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_multi_stream_tells_every_number_of_cameras_that_was_tried(bundle: ModelBundle, video: str) -> None:
    said: list[str] = []
    record = multi_stream(Asked(bundle, (video,), (CPU,), rounds=2, live=QUICK, traced=True, said=said.append))
    has_the_shape(record, "multi-stream")
    assert {1} <= {step["cameras"] for step in record["knee"]} <= {1, 2}
    (row,) = record["rows"]
    assert {"sustained_cameras", "latency_p99_ms", "frames_per_second"} <= set(row["metrics"])
    first = record["knee"][0]
    assert 0 < first["p50_ms"] <= first["p99_ms"]
    assert first["labels"] >= 1
    assert first["rss_first_third_mb"] > 0
    assert record["workload"]["label_every_seconds"] == pytest.approx(0.05), "a label for each frame"
    assert first["labels"] <= first["labels_due"]
    assert max(step["rounds"] for step in record["knee"]) >= 2, "the number found and the one above are measured again"
    assert any(line.startswith("1 camera: p50") for line in said)
    assert record["trace"]


def test_so_many_cameras_are_shown_as_asked_for(bundle: ModelBundle, video: str) -> None:
    live = LiveSettings(fps=(20.0,), seconds=0.3, cameras=3, jitter_ms=5, key_pause_ms=20, from_memory=True)
    record = multi_stream(Asked(bundle, (video,), (CPU,), rounds=1, live=live))
    assert [step["cameras"] for step in record["knee"]] == [3]
    assert "3  " in table(record)
    assert record["workload"]["decoded"] == "beforehand"


@pytest.mark.slow
def test_single_stream_has_both_settings_and_the_extractor_alone(bundle: ModelBundle, video: str) -> None:
    record = single_stream(Asked(bundle, (video,), (CPU,), rounds=2, live=QUICK))
    has_the_shape(record, "single-stream")
    assert [row["name"] for row in record["rows"]] == ["1 camera, default settings", "1 camera, latency settings"]
    for row in record["rows"]:
        assert row["metrics"]["latency_p99_ms"]["count"] == 2
        decode = row["stages"]["decode"]
        assert decode["busy_seconds"] < 1.0 < decode["wait_seconds"], "of 1.6 s on show it waits for pictures mostly"
    assert record["bound"]["extractor_run_ms"] > 0
    assert record["bound"]["rested_run_ms"] > 0


def test_sampling_is_as_asked_for(bundle: ModelBundle, video: str) -> None:
    live = LiveSettings(fps=(20.0,), seconds=0.5, sample_fps=20.0, cameras=1)
    record = multi_stream(Asked(bundle, (video,), (CPU,), rounds=1, live=live))
    assert record["workload"]["sample_fps"] == 20.0
    assert record["knee"][0]["labels"] > 2, "at the bundle's own 5 it would be 2"


def test_camera_whose_video_cannot_be_read_ends_the_benchmark(bundle: ModelBundle, video: str, tmp_path: Path) -> None:
    (tmp_path / "text.avi").write_text("not a video")
    sources = (video, str(tmp_path / "text.avi"))
    with pytest.raises(VideoError, match=r"text\.avi"):
        multi_stream(Asked(bundle, sources, (CPU,), live=LiveSettings(seconds=0.2, cameras=2)))


# -- stages -----------------------------------------------------------------------------------------------------------


def turn(frames: float, seconds: float, cpu: float, pictures: int = 0) -> Turn:
    return Turn(frames, Usage(seconds, cpu), pictures)


@pytest.mark.parametrize(
    ("decode_seconds", "extract_seconds", "limited_by", "limit"),
    [(1.0, 0.1, "decode", 100.0), (0.1, 0.5, "extract", 200.0), (0.1, 0.1, "cores", None)],
)
def test_bound_is_the_least_that_a_stage_or_the_cores_allow(
    decode_seconds: float, extract_seconds: float, limited_by: str, limit: float | None
) -> None:
    half = 0.25 * available_cores()  # CPU seconds of each for 100 frames
    found = bound_of(
        {
            PREPARE: [turn(100, decode_seconds, half, pictures=500)],
            CONVERT: [turn(100, 1.0, half, pictures=250)],
            EXTRACT: [turn(100, extract_seconds, half)],
            CLASSIFY: [turn(100, 0.01, 0.0)],
            PIPELINED: [turn(100, 2.0, 1.0)],
        }
    )
    assert found["limited_by"] == limited_by
    assert found["frames_per_second"] == pytest.approx(limit or 200.0)
    assert found["reached"] == pytest.approx(50 / found["frames_per_second"])
    assert found["decode_side"] == {"of": CONVERT, "share": 0.5}, "as much CPU time, for twice the pictures"


@pytest.mark.slow
def test_every_stage_has_a_row_and_the_loop_beside_them(bundle: ModelBundle, video: str) -> None:
    record = stages(Asked(bundle, (video,), (CPU,), rounds=1))
    has_the_shape(record, "stages")
    rows = {row["name"]: row for row in record["rows"]}
    batches = [f"{EXTRACT}, onnxruntime fp32, batch {n}" for n in (1, 2, 4, 8)]
    assert set(rows) == {DECODE, CONVERT, PREPARE, PREPROCESS, CLASSIFY, PIPELINED, *batches}
    assert all(row["metrics"]["frames_per_second"]["median"] > 0 for row in rows.values())
    assert record["workload"]["pictures"] == 30
    assert rows[DECODE]["metrics"]["pictures_per_second"]["median"] == pytest.approx(
        2 * rows[DECODE]["metrics"]["frames_per_second"]["median"], rel=0.01
    ), "every second picture is sampled"
    assert record["bound"]["limited_by"] in ("decode", "extract", "cores")
    assert record["bound"]["decode_side"]["share"] > 0
    assert f'of the CPU time per picture that "{CONVERT}" takes' in " ".join(table(record, 200).split())


# -- rows -------------------------------------------------------------------------------------------------------------


def test_too_many_latencies_are_thinned_evenly_and_keep_their_extremes() -> None:
    found = thinned([n / 1000 for n in range(10000, 0, -1)])
    assert len(found) == 2000
    assert (found[0], found[-1]) == (1.0, 10000.0)
    assert found[1000] == pytest.approx(5000, abs=5)
    assert thinned([0.25]) == [250.0]


def test_metric_that_was_not_measured_is_not_there() -> None:
    samples = Samples()
    samples.add_usage(Usage(2.0, 1.0), 10)
    assert set(samples.to_dict()) == {"frames_per_second", "cpu_seconds_per_frame"}
    assert samples.to_dict()["frames_per_second"]["better"] == "higher"


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_scenarios_write_a_record_each(colors: Path, video: str, tmp_path: Path) -> None:
    options = ("--scenario", "all", "--rounds", "1", "--device", "cpu", "--seconds", "0.3", "--cameras", "1")
    done = edgeclf("bench", colors, video, *options, "--json", tmp_path / "r.json", "--trace", tmp_path / "trace.json")
    assert done.returncode == 0, done.stderr
    words = [str(colors), video, *options, "--json", str(tmp_path / "r.json"), "--trace", str(tmp_path / "trace.json")]
    for scenario in ("offline", "single-stream", "multi-stream", "stages"):
        record = json.loads((tmp_path / f"r.{scenario}.json").read_text(encoding="utf-8"))
        assert record["scenario"] == scenario
        assert record["command"] == shlex.join(["edgeclf", "bench", *words])
    assert json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    assert "1 camera: p50" in done.stderr


def test_page_is_written_with_the_plots_of_a_trace(colors: Path, video: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = edgeclf("bench", colors, video, "--rounds", "1", "--device", "cpu", "--html", page)
    assert done.returncode == 0, done.stderr
    assert "<svg" in page.read_text(encoding="utf-8")


def test_command_in_the_record_is_what_stood_behind_bench(colors: Path) -> None:
    words = ("--rounds", "1", "--batch", "2", "--device", "cpu", "--format", "json")
    done = edgeclf("-v", "bench", colors, *words)
    assert json.loads(done.stdout)["command"] == shlex.join(["edgeclf", "bench", str(colors), *words])


def test_extractor_without_a_source_has_the_shape_too(colors: Path) -> None:
    done = edgeclf("bench", colors, "--rounds", "1", "--batch", "2", "--device", "cpu", "--format", "json")
    record = json.loads(done.stdout)
    assert (list(record), record["scenario"]) == (KEYS, "extractor")
    rows = {row["name"]: row for row in record["rows"]}
    assert rows["onnxruntime fp32"]["metrics"]["frames_per_second"]["count"] == 1
    assert rows["onnxruntime fp32"]["agreement"]["mean_cosine"] == pytest.approx(1.0)
    assert rows["tensorrt fp32"]["status"] in ("ok", "unavailable")


def test_compare_is_a_command_of_its_own(colors: Path, video: str, tmp_path: Path) -> None:
    options = ("--rounds", "1", "--device", "cpu", "--json", tmp_path / "a.json")
    assert edgeclf("bench", colors, video, *options).returncode == 0
    done = edgeclf("bench", "compare", tmp_path / "a.json", tmp_path / "a.json")
    assert done.returncode == 0, done.stderr
    assert PIPELINED in done.stdout
    assert "compare" in edgeclf("bench", "compare", "--help").stdout
    assert edgeclf("bench", "compare").returncode == 2
