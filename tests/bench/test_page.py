"""The page holds every figure of the record, loads nothing, and believes no text in it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from edgeclf.bench import plots
from edgeclf.bench.compare import Named, compare
from edgeclf.bench.page import bench_page, write_page
from tests.bench.hand_made import Record, around, full_record, pass_of, record, row, span, unavailable

VOID = {"meta", "br", "img", "link", "input", "hr"}
SECTIONS = [
    "Rows",
    "Throughput",
    "Throughput by batch and precision",
    "Latency",
    "Cameras",
    "Stages",
    "Bound",
    "A few batches on their way",
    "How it was measured",
]


class Page(HTMLParser):
    """What a page consists of; elements that are not closed in order are an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "srcset"}]
        assert not [name for name, _ in attrs if name.startswith("on")], "no page of ours has a script"
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def drawings(page: str) -> list[ElementTree.Element]:
    """The plots of a page; each has to be well-formed by itself."""
    found = re.findall(r'<div class="drawing[^"]*">(<svg.*?</svg>)</div>', page, re.DOTALL)
    return [ElementTree.fromstring(svg) for svg in found]


def titles(svg: str) -> list[str]:
    """What the marks of a drawing say when pointed at; its own title left out."""
    return [title.text or "" for title in ElementTree.fromstring(svg).iter("title")][1:]


def texts(svg: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(svg).iter("text")]


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


def hostile(value: Any) -> Any:
    """The record with every text and key of it turned into markup."""
    if isinstance(value, dict):
        fixed = {"metrics", "stages", "environment", "bundle", "workload", "latency_ms"}
        return {key: hostile(one) if key in fixed or not isinstance(one, str) else f"<script>{one}\"'&" for key, one in
                value.items()}  # fmt: skip
    return value


# -- the page ---------------------------------------------------------------------------------------------------------


def test_page_of_a_full_record_has_every_section_and_a_plot_in_each() -> None:
    page = bench_page([full_record()])
    assert headings(page) == SECTIONS
    names = [drawing.attrib["aria-label"] for drawing in drawings(page)]
    assert names == [
        "Throughput by row, clips/s",
        "Throughput by row, frames/s",
        "Throughput by batch, frames/s",
        "Histogram of latencies with their percentiles",
        "Latency and dropped frames by the number of cameras",
        "Busy and waiting time of the stages",
        "Timeline of a few batches, a lane for each thread",
    ]


def test_page_loads_nothing_and_is_closed_in_order() -> None:
    page = bench_page([full_record()])
    found = Page(page)
    assert found.links == []
    assert not {"script", "iframe", "object", "embed", "img", "link", "base"} & set(found.tags)
    assert not re.search(r"https?://|url\(|@import", page)
    assert "default-src 'none'" in page


def test_headline_says_the_first_row_of_ours_ratios_cameras_and_bound() -> None:
    words = Page(bench_page([full_record()])).words
    for name, value in (
        ("pipelined, cpu, fp32", "24.16 clips/s"),
        ("p99 of pipelined, cpu, fp32", "58.73 ms"),
        ("beside sequential, 1 thread", "1.91 ×"),
        ("cameras sustained", "14"),
        ("of the bound", "94 %"),
    ):
        assert words[words.index(name) + 1] == value


def test_every_row_is_in_the_table_with_its_figures_or_its_reason() -> None:
    made = full_record()
    words = Page(bench_page([made])).words
    for one in made["rows"]:
        assert any(word.startswith(one["name"]) for word in words)
    assert "unavailable: SessionError: there is no NVIDIA driver; see edgeclf doctor" in words
    assert "2 × 1" in words
    assert "0.004128" in words


@pytest.mark.parametrize(
    ("agreement", "said"),
    [
        ({"largest_score_difference": 0.0, "changed_labels": 0}, "0"),
        ({"largest_score_difference": 0.00213, "changed_labels": 2}, "2.1e-03, 2 labels"),
    ],
)
def test_table_says_how_far_scores_are_from_those_of_the_sequential_loop(agreement: Record, said: str) -> None:
    words = Page(bench_page([record([row(agreement=agreement)])])).words
    table = words[words.index("scores off by") :]
    assert said in table


def test_environment_command_and_workload_are_told() -> None:
    words = Page(bench_page([full_record()])).words
    for name, value in (("command", "edgeclf bench theatre clip.mp4"), ("environment › onnxruntime", "1.23.0"),
                        ("workload › clips", "96"), ("bundle › extractor sha256 › fp32", "a" * 64)):  # fmt: skip
        assert words[words.index(name) + 1] == value


@pytest.mark.parametrize(("load", "is_told"), [(0.1, False), (0.31, True), (None, False)])
def test_other_load_on_the_machine_is_warned_of(load: float | None, is_told: bool) -> None:
    made = record([row(clips_per_second=[1.0])])
    made["environment"]["foreign_cores"] = load
    assert ("kept 0.31 cores busy" in bench_page([made])) == is_told


def test_sections_that_have_nothing_to_show_are_left_out() -> None:
    assert headings(bench_page([record([])])) == ["Rows", "How it was measured"]
    assert headings(bench_page([record([unavailable("pipelined", "no")])])) == ["Rows", "How it was measured"]
    assert headings(bench_page([record([row(clips_per_second=[3.0])])])) == [
        "Rows",
        "Throughput",
        "How it was measured",
    ]


@pytest.mark.parametrize("samples", [[0.0], [0.0, 0.0], [1e-9], [1e9, 1.0]], ids=str)
def test_figures_at_the_edge_make_a_page_without_nan(samples: list[float]) -> None:
    stages = {"decode": {"busy_seconds": 0.0, "wait_seconds": 0.0, "items": 0}}
    rows = [row(frames_per_second=samples, latency_ms={"samples": samples}, stages=stages, batch=0)]
    knee = [{"cameras": 1, "sustained": False, "p50_ms": None, "p99_ms": None, "dropped_share": samples[0]}]
    trace = [span("decode", "t", 0.0, 0.0)]
    page = bench_page([record(rows, knee=knee, trace=trace, workload={"p99_ms": None})])
    assert len(drawings(page)) == 5
    assert not re.search(r"\b(nan|inf)\b", page)


def test_text_of_a_record_is_never_markup() -> None:
    made = hostile({**full_record(), "rows": [hostile(one) for one in full_record()["rows"]]})
    made["scenario"], made["schema_version"] = "<b>offline", 2
    made["trace"] = [hostile(one) for one in pass_of(0.3)]
    made["ratios"] = {"<i>": 2.0}
    made["bound"] = {"<u>": "<s>"}
    named = [Named("<a>", made), Named("<em>", made)]
    for page in (bench_page([made]), bench_page([made, made], comparisons=compare(named))):
        assert not {"script", "b", "i2", "u", "s", "a", "em"} & set(Page(page).tags)
        assert drawings(page)


def test_page_is_written_also_into_a_new_folder(tmp_path: Path) -> None:
    made = full_record()
    write_page(tmp_path / "new" / "page.html", made)
    assert (tmp_path / "new" / "page.html").read_text(encoding="utf-8") == bench_page([made])


# -- several records --------------------------------------------------------------------------------------------------


def two() -> list[Record]:
    other = record([row(clips_per_second=around(40.0)), row("sequential", clips_per_second=around(20.0))])
    other["environment"]["processor"] = "Other"
    return [full_record(), other]


def test_machines_stand_beside_each_other_in_one_plot() -> None:
    page = bench_page(two())
    Page(page)
    assert headings(page)[:2] == ["Beside each other", "A"]
    beside = drawings(page)[0]
    names = [text.text for text in beside.iter("text") if text.attrib["class"] == "name"]
    assert "A: pipelined, cpu, fp32" in names
    assert "B: pipelined, cpu, fp32" in names
    assert "B: Other, 2 cores, 16 GiB" in Page(page).words


def test_comparison_stands_in_front_with_its_verdicts() -> None:
    before = record([row(clips_per_second=around(40.0))])
    after = record([row(clips_per_second=around(20.0, seed=2))])
    page = bench_page([before, after], comparisons=compare([Named("x.json", before), Named("y.json", after)]))
    words = Page(page).words
    assert headings(page)[0] == "A → B"
    assert {"x.json", "y.json", "1 regression", "regression"} <= set(words)


def test_scenarios_of_one_bench_are_chapters() -> None:
    scenarios = [record([row(clips_per_second=[2.0])], scenario=name) for name in ("offline", "stages")]
    page = bench_page(scenarios)
    assert "<h1>theatre: offline, stages</h1>" in page
    assert headings(page) == [
        "offline",
        "offline: Rows",
        "offline: Throughput",
        "offline: How it was measured",
        "stages",
        "stages: Rows",
        "stages: Throughput",
        "stages: How it was measured",
    ]


# -- plots ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (plots.Axis(0, 100, 0, 1), [0, 20, 40, 60, 80, 100]),
        (plots.Axis(0, 0.3, 0, 1), [0, 0.1, 0.2, 0.3]),
        (plots.Axis(3, 21, 0, 1), [5, 10, 15, 20]),
        (plots.Axis(8, 130, 0, 1, is_log=True), [10, 20, 50, 100]),
        (plots.Axis(1, 1e5, 0, 1, is_log=True), [1, 10, 100, 1000, 10_000, 100_000]),
    ],
    ids=str,
)
def test_ticks_are_round_and_within_the_axis(axis: plots.Axis, ticks: list[float]) -> None:
    assert axis.ticks() == pytest.approx(ticks)


def test_axis_places_values_evenly_or_by_their_logarithm() -> None:
    assert plots.Axis(0, 10, 100, 200).place(5) == 150
    assert plots.Axis(1, 100, 200, 100, is_log=True).place(10) == 150


def test_throughput_marks_stand_in_the_order_of_their_medians() -> None:
    svg = plots.throughput_plot([plots.Bar("slow", 0, (1.0, 2.0, 3.0)), plots.Bar("quick", 0, (8.0, 9.0))], "clips/s")
    marks = [one for one in ElementTree.fromstring(svg).iter("circle") if one.attrib["r"] == "4.5"]
    places = [float(one.attrib["cx"]) for one in marks]
    axis_start = 6.0
    assert (places[1] - axis_start) / (places[0] - axis_start) == pytest.approx(8.5 / 2, rel=0.01)
    assert titles(svg) == [
        "slow: median 2.00, 1.00 to 3.00 in 3 rounds",
        "quick: median 8.50, 8.00 to 9.00 in 2 rounds",
    ]


def test_histogram_counts_every_latency_and_marks_percentiles() -> None:
    samples = [float(value) for value in range(1, 101)]
    svg = plots.latency_plot({"row": samples})
    assert sum(int(title.split()[0]) for title in titles(svg)) == 100
    assert {"p50 50.5 ms", "p90 90.1 ms", "p99 99.0 ms", "latency, ms"} <= set(texts(svg))


def test_histogram_of_a_long_tail_has_a_logarithmic_axis_and_loses_nothing() -> None:
    svg = plots.latency_plot({"row": [1.0] * 99 + [500.0]})
    assert "latency, ms (logarithmic)" in texts(svg)
    assert sum(int(title.split()[0]) for title in titles(svg)) == 100


def test_stage_bars_are_as_long_as_their_seconds() -> None:
    stages = {
        "decode": {"busy_seconds": 1.0, "wait_seconds": 3.0},
        "extract": {"busy_seconds": 4.0, "wait_seconds": 0.0},
    }
    svg = plots.stages_plot({"row": stages})
    widths = [float(one.attrib["width"]) for one in ElementTree.fromstring(svg).iter("rect")]
    waited, busy, _, all_busy = widths
    assert waited == pytest.approx(3 * busy, rel=0.01)
    assert all_busy == pytest.approx(waited + busy, rel=0.01)
    assert {"25 % busy", "100 % busy", "seconds"} <= set(texts(svg))


def test_knee_is_hollow_where_cameras_were_not_sustained() -> None:
    made = full_record()
    steps = sorted(made["knee"], key=lambda step: int(step["cameras"]))
    svg = plots.knee_plot(steps, limit_ms=150.0, limit_share=0.01)
    marks = [one for one in ElementTree.fromstring(svg).iter() if "fill:var(--p" in one.attrib.get("style", "")]
    hollow = [one for one in marks if "fill:var(--paper)" in one.attrib["style"]]
    assert (len(marks), len(hollow)) == (3 * 8, 3 * 2)
    assert {"p99 at most 150 ms", "below 1 %", "cameras", "latency, ms", "dropped, %"} <= set(texts(svg))
    assert "14 cameras: p99 111 ms" in titles(svg)


def boxes(svg: str) -> list[tuple[float, float]]:
    """Where the boxes of a drawing begin, and how wide they are."""
    found = ElementTree.fromstring(svg).iter("rect")
    return [(float(one.attrib["x"]), float(one.attrib["width"])) for one in found]


def test_timeline_has_a_lane_for_each_thread_and_stays_within_it() -> None:
    svg = plots.timeline_plot(pass_of(3.0))
    assert {"decode 0", "decode 1", "extract 0", "extract 1", "MainThread"} <= set(texts(svg))
    drawn = boxes(svg)
    assert all(x >= 110 and x + width <= plots.WIDE for x, width in drawn)
    assert 60 < len(drawn) < 200, "half a second of three"


def test_timeline_begins_where_every_stage_has_worked_and_holds_a_few_runs_of_the_slowest() -> None:
    spans = [span("decode", "d", 0.1 * n, 0.05) for n in range(100)]
    spans += [span("extract", "e", 1.0 + 0.5 * n, 0.4) for n in range(18)]
    found = titles(plots.timeline_plot(spans))
    assert sum(title.startswith("extract: 400 ms") for title in found) in {5, 6}
    assert not [title for title in found if not re.match(r"(extract: 400|decode: 50\.0) ms, items 1", title)]


def test_timeline_of_very_many_threads_says_how_many_are_left_out() -> None:
    spans = [span("decode", f"camera {n}", 0.001 * n, 0.2) for n in range(40)]
    assert "ms since the pass began; 16 more threads are not shown" in texts(plots.timeline_plot(spans))


def test_stages_have_the_same_colour_everywhere_and_others_a_colour_of_their_own() -> None:
    known = [plots.stage_color(stage) for stage in ("decode", "preprocess", "extract", "classify")]
    assert len(set(known)) == 4
    assert plots.stage_color("upload") not in known


def test_marks_of_a_batch_plot_differ_by_line() -> None:
    points = [plots.Point(1, 10.0, 9.0, 11.0), plots.Point(8, 30.0, 29.0, 31.0)]
    svg = plots.batch_plot({"fp32": points, "int8": points, "bf16": points}, "frames/s")
    tree = ElementTree.fromstring(svg)
    assert (len(list(tree.iter("circle"))), len(list(tree.iter("polygon"))), len(list(tree.iter("polyline")))) == (
        2,
        4,
        3,
    )
    assert {"1", "8", "batch, frames", "frames/s"} <= set(texts(svg))
