from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from typing import Any

import pytest

from edgeclf.errors import EdgeclfError, VideoError
from edgeclf.runtime.records import Prediction, Record, SourceEnd, aggregate_scores, result_of
from edgeclf.runtime.writers import WRITERS
from edgeclf.video import SourceCounts

LABELS = ("run & jump", "walk", "sit")


def clip(start: float, *scores: float, source: str = "a.mp4") -> Prediction:
    return Prediction(
        source,
        LABELS,
        scores,
        classifier="acts",
        start_seconds=start,
        end_seconds=start + 4,
        latency_seconds={"extract": 0.1},
    )


CLIPS = [clip(0, 0.7, 0.2, 0.1), clip(1, 0.6, 0.3, 0.1), clip(2, 0.1, 0.8, 0.1)]
COUNTS = SourceCounts(10, 6, 3, {"corrupt": 1})
RECORDS: list[Record] = [
    *CLIPS,
    result_of(CLIPS, "mean"),
    SourceEnd("a.mp4", COUNTS, VideoError("a.mp4 is damaged", hint="copy it again"), "PyAV 18.1.0 h264"),
]


def written(form: str, records: list[Record] = RECORDS, **options: Any) -> str:
    out = io.StringIO()
    writer = WRITERS.load(form)(out, **options)
    for record in records:
        writer.write(record)
    return out.getvalue()


def test_jsonl_has_a_line_for_each_record_with_type_and_source() -> None:
    lines = [json.loads(line) for line in written("jsonl").splitlines()]
    assert [line["type"] for line in lines] == ["prediction"] * 3 + ["result", "error", "end"]
    assert {line["source"] for line in lines} == {"a.mp4"}
    assert [line["classifier"] for line in lines[:4]] == ["acts"] * 4
    assert lines[0]["scores"] == {"run & jump": 0.7, "walk": 0.2, "sit": 0.1}
    assert (lines[0]["start_seconds"], lines[0]["end_seconds"], lines[0]["flags"]) == (0, 4, [])
    assert lines[4] | {"type": ""} == {
        "type": "",
        "source": "a.mp4",
        "source_index": 0,
        "kind": "VideoError",
        "message": "a.mp4 is damaged",
        "hint": "copy it again",
    }
    assert lines[5] == {
        "type": "end",
        "source": "a.mp4",
        "source_index": 0,
        "decoder": "PyAV 18.1.0 h264",
        "received": 10,
        "processed": 6,
        "skipped": 3,
        "dropped": {"corrupt": 1},
        "still": 0,
    }


def test_jsonl_top_k_keeps_the_best_scores() -> None:
    first = json.loads(written("jsonl", top_k=2).splitlines()[0])
    assert list(first["scores"]) == ["run & jump", "walk"]


def test_csv_has_one_row_for_each_prediction() -> None:
    rows = list(csv.DictReader(io.StringIO(written("csv", top_k=2))))
    assert len(rows) == 3
    assert rows[0] == {
        "source": "a.mp4",
        "classifier": "acts",
        "start_seconds": "0.000",
        "end_seconds": "4.000",
        "label": "run & jump",
        "score": "0.700000",
        "flags": "",
        "label_2": "walk",
        "score_2": "0.200000",
    }


def test_vtt_has_one_cue_for_each_change_of_label() -> None:
    assert written("vtt") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:03.500\nrun &amp; jump 0.65\n\n00:00:03.500 --> 00:00:06.000\nwalk 0.80\n"
    )


def test_vtt_time_carries_into_minutes_and_hours() -> None:
    text = written("vtt", [clip(3599.9999, 1, 0, 0), SourceEnd("a.mp4", COUNTS)])
    assert "01:00:00.000 --> 01:00:04.000" in text


def test_table_shows_stretches_and_the_whole_file() -> None:
    rows = [line.split() for line in written("table", top_k=2).splitlines()]
    assert rows[0] == ["source", "start", "end", "label", "score"]
    assert rows[1] == ["a.mp4", "0.0", "s", "3.5", "s", "run", "&", "jump", "0.65"]
    assert rows[2] == ["a.mp4", "3.5", "s", "6.0", "s", "walk", "0.80"]
    assert rows[3][-8:] == ["run", "&", "jump", "0.47", "whole", "file,", "walk", "0.43"]


def test_table_of_one_label_is_one_row() -> None:
    clips = CLIPS[:2]
    rows = written("table", [*clips, result_of(clips, "mean"), SourceEnd("a.mp4", COUNTS)]).splitlines()
    assert len(rows) == 2


def test_table_shortens_long_names_from_the_left() -> None:
    clips = [clip(0, 1, 0, 0, source="/very/long/folder/name/that/goes/on/video.mp4")]
    row = written("table", [*clips, result_of(clips, "mean")]).splitlines()[1]
    assert row.startswith("…")
    assert "video.mp4 " in row


def test_csv_has_no_more_columns_than_labels() -> None:
    header, first, *_ = written("csv", top_k=1_000_000_000).splitlines()
    assert header.count(",") == first.count(",") == 10


def test_control_characters_of_a_name_do_not_reach_the_terminal() -> None:
    clips = [clip(0, 1, 0, 0, source="a\x1b[31m\nb.mp4")]
    assert "a?[31m?b.mp4" in written("table", [*clips, result_of(clips, "mean")])


def test_unknown_format_lists_the_known() -> None:
    with pytest.raises(EdgeclfError, match="unknown format 'xml'; known: table, jsonl, csv, vtt"):
        WRITERS.load("xml")


@pytest.mark.parametrize(
    ("how", "expected"),
    [("mean", (1.4 / 3, 1.3 / 3, 0.1)), ("first", (0.7, 0.2, 0.1)), ("vote", (2 / 3, 1 / 3, 0))],
)
def test_aggregate_makes_one_row_of_many(how: Any, expected: tuple[float, ...]) -> None:
    assert aggregate_scores([clip.scores for clip in CLIPS], how) == pytest.approx(expected)


def test_tied_vote_goes_to_the_lower_index() -> None:
    clips = [clip(0, 0.1, 0.2, 0.7), clip(1, 0.1, 0.8, 0.1)]
    assert result_of(clips, "vote").label == "walk"


def test_table_tells_several_classifiers_of_one_source_apart() -> None:
    others = [replace(each, classifier="mood", scores=(0.0, 0.1, 0.9)) for each in CLIPS]
    together = [record for pair in zip(CLIPS, others, strict=True) for record in pair]
    rows = written("table", [*together, result_of(CLIPS, "mean"), result_of(others, "mean")], several=True)
    assert [line.split()[3:] for line in rows.splitlines()[1:]] == [
        ["3.5", "s", "run", "&", "jump", "0.65", "acts"],
        ["6.0", "s", "walk", "0.80", "acts"],
        ["6.0", "s", "run", "&", "jump", "0.47", "acts,", "whole", "file"],
        ["6.0", "s", "sit", "0.90", "mood,", "whole", "file"],
    ]


def test_table_keeps_sources_of_one_name_apart() -> None:
    others = [replace(each, source_index=1, scores=(0.0, 0.1, 0.9)) for each in CLIPS]
    together = [record for pair in zip(CLIPS, others, strict=True) for record in pair]
    rows = written("table", [*together, result_of(CLIPS, "mean"), result_of(others, "mean")]).splitlines()
    assert [line.split()[5] for line in rows[1:]] == ["run", "walk", "run", "sit"]


def test_table_of_a_live_source_ends_with_its_last_stretch() -> None:
    rows = written("table", [*CLIPS, SourceEnd("a.mp4", COUNTS)]).splitlines()
    assert [line.split()[3:] for line in rows[1:]] == [
        ["3.5", "s", "run", "&", "jump", "0.65"],
        ["6.0", "s", "walk", "0.80"],
    ]
