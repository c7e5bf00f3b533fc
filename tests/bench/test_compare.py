"""Like is judged against like, by a rule that can be worked out by hand; everything else is shown without a verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import reduce
from itertools import combinations
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

from edgeclf.bench.compare import (
    Comparison,
    Named,
    compare,
    comparison_table,
    figure,
    judgement,
    letters_of,
    ratio_interval,
    row_names,
)
from edgeclf.bench.record_file import RecordError, read_record
from tests.bench.hand_made import Record, around, full_record, record, row, unavailable, written
from tests.support.labelled import edgeclf

STEADY = [100.0, 101.0, 102.0, 103.0, 104.0]


def compared(before: Record, after: Record, threshold: float = 0.05) -> Comparison:
    (found,) = compare([Named("before", before), Named("after", after)], threshold=threshold)
    return found


def judged(before: Sequence[float], after: Sequence[float], metric: str = "clips_per_second", **options: Any) -> str:
    """The verdict on one metric of one row."""
    old, new = (record([row(**dict[str, Any]({metric: list(samples)}))]) for samples in (before, after))
    ((change,),) = (one.changes for one in compared(old, new, **options).rows)
    return change.verdict


def times(samples: Sequence[float], factor: float) -> list[float]:
    return [factor * value for value in samples]


# -- the interval of noise --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(5, 5), (5, 7), (6, 6), (8, 7)])
def test_interval_leaves_off_as_many_ratios_as_an_exact_rank_test_allows(n: int, m: int) -> None:
    """Every order of n + m rounds is written out, and how often the first kind wins is counted."""
    wins = [sum(place > other for place in first for other in set(range(n + m)) - set(first)) for first in
            combinations(range(n + m), n)]  # fmt: skip
    allowed = max(count for count in range(n * m) if np.mean(np.array(wins) <= count) <= 0.005)
    rng = np.random.default_rng(0)
    before, after = rng.uniform(1, 2, n), rng.uniform(1, 2, m)
    ratios = sorted(b / a for a in before for b in after)
    found = ratio_interval(before.tolist(), after.tolist())
    assert found == pytest.approx((ratios[allowed], ratios[-1 - allowed]))


def test_interval_of_too_few_rounds_is_none() -> None:
    assert ratio_interval([1.0] * 4, [1.0] * 4) is None
    assert ratio_interval([1.0], [1.0] * 50) is None
    assert ratio_interval([1.0] * 5, [1.0] * 5) == (1.0, 1.0)


@pytest.mark.parametrize("rounds", [5, 9, 45], ids=str)
def test_interval_misses_the_truth_as_rarely_as_it_says(rounds: int) -> None:
    rng = np.random.default_rng(rounds)
    missed = 0
    for _ in range(1000):
        before, after = rng.lognormal(0.0, 0.05, (2, rounds)).tolist()
        found = ratio_interval(before, times(after, 1.3))
        assert found
        missed += not found[0] <= 1.3 <= found[1]
    assert missed <= 20, "10 of 1000 are expected at most; 20 or more come once in 300 such tests"


def test_large_samples_give_nearly_the_interval_of_small_steps() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.lognormal(0.0, 0.05, (2, 41)).tolist()
    approximate, exact = ratio_interval(before, after), ratio_interval(before[:40], after[:40])
    assert approximate
    assert exact
    assert approximate == pytest.approx(exact, abs=0.01)


# -- verdicts ---------------------------------------------------------------------------------------------------------


def test_slower_beyond_threshold_and_noise_is_a_regression() -> None:
    assert judged(STEADY, times(STEADY, 0.9)) == "regression"
    assert judged(STEADY, times(STEADY, 1.1)) == "improvement"


@pytest.mark.parametrize("metric", ["cpu_seconds_per_frame", "latency_p99_ms"])
def test_more_of_what_should_be_low_is_a_regression(metric: str) -> None:
    assert judged(STEADY, times(STEADY, 1.1), metric) == "regression"
    assert judged(STEADY, times(STEADY, 0.9), metric) == "improvement"


def test_memory_of_the_whole_process_is_told_and_not_judged_of_a_row() -> None:
    assert judged(STEADY, times(STEADY, 2.0), "peak_rss_mb") == "not judged"


def test_change_within_the_threshold_is_the_same_however_sure() -> None:
    assert judged([100.0] * 9, [96.0] * 9) == "same"
    assert judged([100.0] * 9, [96.0] * 9, threshold=0.03) == "regression"


def test_change_that_noise_explains_is_the_same_however_large() -> None:
    assert judged([60.0, 80.0, 100.0, 120.0, 140.0], [50.0, 70.0, 85.0, 95.0, 110.0]) == "same"


def test_one_round_that_went_wrong_does_not_hide_a_regression_of_many() -> None:
    before, after = around(100.0, rounds=10), [*around(80.0, rounds=9), 200.0]
    assert judged(before, after) == "regression"


@pytest.mark.parametrize(("before", "after"), [(4, 9), (9, 4), (1, 1)])
def test_fewer_than_five_rounds_are_too_few_to_tell(before: int, after: int) -> None:
    assert judged([100.0] * before, [10.0] * after) == "too few rounds"


def test_figure_of_zero_has_no_relative_change_and_no_verdict() -> None:
    assert judged([0.0] * 5, [1.0] * 5) == "not judged"
    assert judged([1.0] * 5, [0.0] * 5) == "not judged"


def test_change_is_that_of_the_medians() -> None:
    change = compared(record([row(clips_per_second=STEADY)]), slower()).rows[0].changes[0]
    assert (change.before, change.after, change.unit) == (102.0, 51.0, "clips/s")
    assert change.difference == pytest.approx(-0.5)
    assert change.noise == pytest.approx((0.5 * 100 / 104 - 1, 0.5 * 104 / 100 - 1))


def test_a_record_compared_with_itself_is_the_same_throughout() -> None:
    found = compared(full_record(), full_record())
    verdicts = {change.verdict for one in found.rows for change in one.changes if change.metric != "peak_rss_mb"}
    assert verdicts == {"same"}
    assert not found.regressed
    assert found.is_told


# -- like with like ---------------------------------------------------------------------------------------------------


def slower(**more: Any) -> Record:
    return record([row(clips_per_second=times(STEADY, 0.5))], **more)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scenario": "stages"}, "scenario: offline | stages"),
        (
            {"bundle": {"name": "theatre", "extractor_sha256": {"fp32": "c" * 64}}},
            "bundle: the graphs are not the same",
        ),
        ({"workload": {"files": 9, "sha256": "b" * 64, "clips": 96}}, "workload files: 8 | 9"),
        ({"workload": {"files": 8, "sha256": "b" * 64}}, "workload clips: 96 | nothing"),
    ],
    ids=["scenario", "bundle", "workload", "key"],
)
def test_unlike_records_are_shown_with_what_differs_and_never_judged(change: dict[str, Any], said: str) -> None:
    found = compared(record([row(clips_per_second=STEADY)]), slower(**change))
    assert found.differs == (said,)
    assert not found.regressed
    assert [one.verdict for one in found.rows[0].changes] == ["not judged"]
    assert found.rows[0].changes[0].difference == pytest.approx(-0.5)


@pytest.mark.parametrize(("key", "value"), [("processor", "Other"), ("cores", 6), ("memory_gib", 7.7), ("gpu", "B")])
def test_other_machine_is_never_judged(key: str, value: Any) -> None:
    other = slower()
    other["environment"][key] = value
    found = compared(record([row(clips_per_second=STEADY)]), other)
    assert [text.partition(":")[0] for text in found.differs] == ["machine"]
    assert not found.regressed


def test_renamed_bundle_and_another_date_are_alike_and_versions_are_told() -> None:
    other = slower()
    other["bundle"]["name"] = "renamed"
    other["environment"].update(date="2027-01-01", onnxruntime="1.24.0", memory_gib=15.7)
    found = compared(record([row(clips_per_second=STEADY)]), other)
    assert found.regressed
    assert "onnxruntime: 1.23.0 | 1.24.0" in found.notes
    assert not [note for note in found.notes if "date" in note]


def test_other_load_on_a_machine_is_told() -> None:
    other = slower()
    other["environment"]["foreign_cores"] = 0.8
    found = compared(record([row(clips_per_second=STEADY)]), other)
    assert found.notes == ("other programs kept 0.80 cores busy during after",)


def test_baseline_that_became_slower_is_told_and_is_no_regression() -> None:
    before = [row(clips_per_second=STEADY), row("naive", group="baseline", clips_per_second=STEADY)]
    after = [row(clips_per_second=STEADY), row("naive", group="baseline", clips_per_second=times(STEADY, 0.5))]
    found = compared(record(before), record(after))
    assert not found.regressed
    assert judgement(found) == "1 the same, 1 figure of a baseline changed as well"


# -- rows -------------------------------------------------------------------------------------------------------------


def test_row_that_ran_and_does_not_now_is_a_regression_with_its_reason() -> None:
    before = record([row(clips_per_second=STEADY)])
    after = record([{**unavailable("pipelined", "no driver"), "group": "ours"}])
    found = compared(before, after)
    assert found.regressed
    assert found.rows[0].remark == "it ran before, and now it does not: no driver"
    assert judgement(found) == "1 row that does not run any more"
    back = compared(after, before)
    assert not back.regressed
    assert back.rows[0].remark == "it did not run before: no driver"


def test_rows_of_one_record_alone_are_told() -> None:
    found = compared(record([row("a"), row("b")]), record([row("b"), row("c")]))
    assert [(one.row, one.remark) for one in found.rows] == [
        ("a, cpu, fp32", "only in the first record"),
        ("b, cpu, fp32", ""),
        ("c, cpu, fp32", "only in the second record"),
    ]


def test_row_on_another_provider_says_so() -> None:
    after = record([row(clips_per_second=STEADY, provider="CUDA", batch=32)])
    found = compared(record([row(clips_per_second=STEADY)]), after)
    assert found.rows[0].remark == "provider: CPU | CUDA; batch: 2 | 32"


def test_rows_of_one_name_are_told_apart_by_the_settings_in_which_they_differ() -> None:
    before = [row("extract", batch=2, frames_per_second=STEADY), row("extract", batch=8, frames_per_second=STEADY)]
    found = compared(record(before), record([row("extract", batch=8, frames_per_second=times(STEADY, 0.5))]))
    assert [(one.row, len(one.changes)) for one in found.rows] == [
        ("extract, cpu, fp32, batch 2", 0),
        ("extract, cpu, fp32, batch 8", 1),
    ]
    assert found.regressed


def test_row_names_repeat_no_word_and_no_name() -> None:
    rows = [row("extract, openvino int8, batch 4", precision="int8", backend="openvino"), row("same"), row("same")]
    assert row_names(rows) == [["extract, openvino int8, batch 4, cpu", "same, cpu, fp32", "same, cpu, fp32 (2)"]]


def test_metric_that_one_record_lacks_is_left_out() -> None:
    before = record([row(clips_per_second=STEADY, peak_rss_mb=STEADY)])
    (found,) = compared(before, record([row(clips_per_second=STEADY)])).rows
    assert [change.metric for change in found.changes] == ["clips_per_second"]


def test_every_record_is_compared_with_the_first() -> None:
    records = [Named(name, record([row(clips_per_second=times(STEADY, factor))]))
               for name, factor in (("a", 1.0), ("b", 0.5), ("c", 2.0))]  # fmt: skip
    found = compare(records)
    assert [(one.before, one.after, one.regressed) for one in found] == [("a", "b", True), ("a", "c", False)]


def test_table_holds_every_row_figure_and_verdict() -> None:
    records = [Named("a.json", record([row(clips_per_second=STEADY)])), Named("b.json", slower(sustained_cameras=3))]
    text = comparison_table(records, compare(records), threshold=0.05)
    assert "A  a.json: offline of theatre; Example 9000, 2 cores, 16 GiB; 2026-01-02, edgeclf 0.1.0" in text
    assert "A -> B: 1 regression" in text
    (line,) = (line.split() for line in text.splitlines() if "clips_per_second" in line)
    assert line[:3] + line[-1:] == ["clips_per_second", "102.0", "51.00", "REGRESSION"]
    assert "more than 5 % and its 99 % interval" in text


def test_figures_keep_the_digits_that_count() -> None:
    assert [figure(value) for value in (0.0, 1234567.0, 102.04, 9.9999, 0.00412349)] == [
        "0",
        "1234567",
        "102.0",
        "10.000",
        "0.004123",
    ]


def test_letters_do_not_run_out() -> None:
    assert letters_of(28)[-3:] == ["Z", "R27", "R28"]


# -- files ------------------------------------------------------------------------------------------------------------


def test_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = full_record()
    assert read_record(written(tmp_path / "a.json", made)) == made


GONE = object()
METRIC = "rows.0.metrics.clips_per_second"


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("schema_version", 1, "its schema_version is 1, this edgeclf reads 2"),
        ("scenario", GONE, "scenario is no text"),
        ("environment", [], "environment is no object"),
        ("ratios", [1], "ratios is no object"),
        ("rows", {}, "rows is no list"),
        ("rows.1", 3, r"rows\[1\] is no object"),
        ("rows.0.name", GONE, r"rows\[0\]\.name is no text"),
        ("rows.0.status", "fine", r"rows\[0\]\.status is neither"),
        ("rows.0.metrics", [1], r"rows\[0\]\.metrics is no object"),
        (METRIC, 7, r"clips_per_second is no object"),
        (f"{METRIC}.samples", [], r"clips_per_second\.samples are no finite"),
        (f"{METRIC}.samples.2", float("inf"), "Infinity is no number"),
        (f"{METRIC}.samples.2", float("nan"), "NaN is no number"),
        (f"{METRIC}.samples.2", True, r"clips_per_second\.samples are no finite"),
        (f"{METRIC}.samples", [1.0] * 2000, "samples are more than 1000"),
        (f"{METRIC}.median", "7", r"clips_per_second\.median is no finite"),
        (f"{METRIC}.better", "more", "neither 'higher' nor 'lower'"),
        ("rows.0.latency_ms.samples.0", "a", r"latency_ms\.samples are no finite"),
        ("rows.0.stages.decode.busy_seconds", GONE, r"stages\.decode lacks"),
        ("knee.1.p99_ms", "long", r"knee\[1\]\.p99_ms is no finite"),
        ("trace.0.seconds", GONE, r"trace\[0\]\.seconds is no finite"),
    ],
)
def test_file_that_is_no_record_says_what_is_wrong_in_it(place: str, value: Any, said: str, tmp_path: Path) -> None:
    found: Any = full_record()
    *way, last = (int(key) if key.isdigit() else key for key in place.split("."))
    inner = reduce(lambda outer, key: outer[key], way, found)
    if value is GONE:
        del inner[last]
    else:
        inner[last] = value
    with pytest.raises(RecordError, match=rf"bad\.json is no .*{said}"):
        read_record(written(tmp_path / "bad.json", found))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "\ufffd", "[" * 100_000])
def test_file_that_is_no_json_object_is_a_record_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(text, encoding="utf-8")
    with pytest.raises(RecordError, match=r"bad\.json is no (JSON|record)"):
        read_record(tmp_path / "bad.json")


def test_number_too_large_for_a_float_is_a_record_error(tmp_path: Path) -> None:
    text = json.dumps(record([row(clips_per_second=STEADY)])).replace("103.0", "1e999")
    (tmp_path / "bad.json").write_text(text, encoding="utf-8")
    with pytest.raises(RecordError, match="samples are no finite numbers"):
        read_record(tmp_path / "bad.json")


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """A record, one that is slower, and one of another machine."""
    other = slower()
    other["environment"]["processor"] = "Other"
    made = {"before": record([row(clips_per_second=STEADY)]), "after": slower(), "machine": other}
    return [str(written(tmp_path / f"{name}.json", one)) for name, one in made.items()]


def run(*arguments: str) -> CompletedProcess[str]:
    """`edgeclf bench compare ARGUMENTS`."""
    return edgeclf("bench", "compare", *arguments)


def test_regression_is_exit_1_and_improvement_exit_0(files: list[str]) -> None:
    before, after, _ = files
    worse, better = run(before, after), run(after, before)
    assert (worse.returncode, better.returncode) == (1, 0)
    assert "REGRESSION" in worse.stdout
    assert "1 improvement" in better.stdout


def test_threshold_decides_what_counts(files: list[str]) -> None:
    assert run(*files[:2], "--threshold", "60%").returncode == 0
    assert run(*files[:2], "--threshold", "49.5 %").returncode == 1


def test_other_machine_is_exit_0_and_with_gate_exit_1(files: list[str]) -> None:
    before, _, machine = files
    shown = run(before, machine)
    assert shown.returncode == 0
    assert "no verdict, since these differ" in shown.stdout
    assert run(before, machine, "--gate").returncode == 1
    assert run(before, before, "--gate").returncode == 0


def test_json_holds_the_comparisons(files: list[str]) -> None:
    found = json.loads(run(*files, "--format", "json").stdout)
    assert found["threshold"] == 0.05
    assert [(one["judged"], one["regressed"]) for one in found["comparisons"]] == [(True, True), (False, False)]
    metric = found["comparisons"][0]["rows"][0]["metrics"]["clips_per_second"]
    assert (metric["before"], metric["difference"], metric["verdict"]) == (102.0, -0.5, "regression")


def test_page_of_all_records_is_written(files: list[str], tmp_path: Path) -> None:
    done = run(*files, "--html", str(tmp_path / "new" / "page.html"))
    page = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert done.returncode == 1
    assert all(Path(file).name in page for file in files)
    assert "regression" in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["before.json"], "Missing argument"),
        (["before.json", "none.json"], "none.json cannot be read"),
        (["before.json", "text.json"], "text.json is no JSON"),
        (["before.json", "after.json", "--threshold", "0.05"], "is no percentage; write it as 5%"),
        (["before.json", "after.json", "--threshold", "-5%"], "is no percentage"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_exit_2(arguments: list[str], said: str, files: list[str], tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("text", encoding="utf-8")
    done = run(*(str(tmp_path / text) if text.endswith(".json") else text for text in arguments))
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""


def test_help_has_an_example() -> None:
    assert "edgeclf bench compare before.json after.json" in run("--help").stdout
