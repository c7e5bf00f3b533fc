from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from edgeclf.bundle import open_bundle
from edgeclf.runtime.tuned import Tuned, keep, key_of
from tests.support.videos import BLUE, RED, plain, write_video

Completed = subprocess.CompletedProcess[str]


def edgeclf(*arguments: str | Path, timeout: float = 60) -> Completed:
    command = [sys.executable, "-m", "edgeclf", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "a.mp4", plain(RED, 2) + plain(BLUE, 3))


def test_table_on_stdout_and_what_runs_on_stderr(colors: Path, video: Path) -> None:
    done = edgeclf("infer", video, "-b", colors)
    assert done.returncode == 0
    assert "whole file" in done.stdout
    assert "colors: extractor on onnxruntime CPU fp32" in done.stderr


def test_several_classifiers_of_one_extractor_label_the_same_video(video: Path) -> None:
    done = edgeclf("infer", video, "-b", "ucf101_8", "-b", "fight", "--format", "jsonl")
    assert done.returncode == 0, done.stderr
    assert "ucf101_8, fight: extractor on" in done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["classifier"] for line in lines if line["type"] == "result"] == ["ucf101_8", "fight"]


def test_motion_gate_says_how_many_frames_were_still(colors: Path, video: Path) -> None:
    done = edgeclf("infer", video, "-b", colors, "--motion-gate", f"{video}=30", "--format", "jsonl")
    assert done.returncode == 0, done.stderr
    end = json.loads(done.stdout.splitlines()[-1])
    assert (end["processed"], end["still"]) == (25, 23)  # one of each colour was extracted


def test_what_tune_found_is_used_and_said(colors: Path, video: Path) -> None:
    choice = Tuned("throughput", "onnxruntime", "cpu", "fp32", 3, 1, 2, 100.0, 0.01, "2026-11-22")
    keep(key_of(open_bundle(colors), "cpu", "throughput"), {"tuned": asdict(choice)})
    done = edgeclf("infer", video, "-b", colors, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "onnxruntime CPU fp32, 2 threads" in done.stderr
    assert "tuned for throughput on 2026-11-22: onnxruntime fp32 on cpu, batch 3, 1 worker x 2 threads" in done.stderr
    for option in (["--no-tuned"], ["--backend", "onnxruntime"], ["--precision", "fp32"]):
        assert "tuned" not in edgeclf("infer", video, "-b", colors, "--device", "cpu", *option).stderr


def test_another_rate_is_said_and_stands_in_every_record(colors: Path, video: Path) -> None:
    given, asked = (
        edgeclf("infer", video, "-b", colors, "--format", "jsonl", *options) for options in ((), ("--sample-fps", "1"))
    )
    assert "; 1 frames/s" in asked.stderr
    usual, slow = ([json.loads(line) for line in done.stdout.splitlines()] for done in (given, asked))
    assert [record.get("sample_fps") for record in slow] == [1.0] * (len(slow) - 1) + [None]
    assert not any("sample_fps" in record for record in usual)
    assert 0 < slow[-1]["processed"] < usual[-1]["processed"]


def test_another_way_to_resize_is_said(colors: Path, video: Path) -> None:
    done = edgeclf("infer", video, "-b", colors, "--resize", "planes")
    assert done.returncode == 0, done.stderr
    assert "; planes resized" in done.stderr
    assert "planes" not in edgeclf("infer", video, "-b", colors).stderr


def test_list_of_sources_is_read_with_the_decoder_that_is_named(colors: Path, video: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"# both\n{video}\n\nnone.mp4\n")
    done = edgeclf("infer", f"@{tmp_path / 'list.txt'}", "-b", colors, "--decoder", "opencv", "--format", "jsonl")
    assert done.returncode == 1
    ends = [json.loads(line) for line in done.stdout.splitlines() if '"end"' in line]
    assert {end["source"]: end["decoder"].split()[0] if end["decoder"] else "" for end in ends} == {
        str(video): "OpenCV",
        "none.mp4": "",
    }


def test_one_bad_source_of_many_is_an_error_line_and_exit_1(colors: Path, video: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    done = edgeclf("infer", "none.mp4", tmp_path / "text.mp4", "-s", video, "-b", colors, "--format", "jsonl")
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    errors = [line for line in lines if line["type"] == "error"]
    assert {line["source"] for line in errors} == {"none.mp4", str(tmp_path / "text.mp4")}
    assert [line["label"] for line in lines if line["type"] == "result"] == ["blue"]
    assert len([line for line in lines if line["type"] == "end"]) == 3
    assert "VideoError: none.mp4 does not exist" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{video}"], "say which model to use with --bundle"),
        (["-b", "{colors}"], "name at least one SOURCE"),
        (["{video}", "-b", "nothing"], "BundleError: there is no bundle 'nothing'"),
        (["{video}", "-b", "{colors}", "--device", "abacus"], "'abacus' is not one of"),
        (["{video}", "-b", "{colors}", "--precision", "int8"], "holds no int8 graph"),
        (["*.nothing", "-b", "{colors}"], "no video in *.nothing"),
        (["{video}", "none.mp4", "-b", "{colors}", "--format", "vtt"], "vtt describes one source"),
        (["{video}", "-b", "{colors}", "--save", "out.txt"], "--save writes .mp4, .mkv, .gif, not .txt"),
        (["{video}", "none.mp4", "-b", "{colors}", "--save", "out.mp4"], "--save writes one source"),
        (["{video}", "-b", "{colors}", "--save", "{video}"], "--save would overwrite the source itself"),
        (["{video}", "-b", "{colors}", "--save", "none/out.mp4"], "--save cannot write into the folder none"),
        (["{video}", "-b", "{colors}", "--conf", "nan"], "--conf must be a number"),
        (["", "-b", "{colors}"], "a source has an empty name"),
        (["rtsp://u:secret@h/x", "-b", "{colors}", "--save", "out.mp4"], "which a live one cannot be"),
        (["@none.txt", "-b", "{colors}"], "the list none.txt cannot be read"),
        (["{video}", "-b", "{colors}", "--decoder", "magic"], "unknown decoder 'magic'"),
        (["{video}", "-b", "{colors}", "--decoder", "v4l2"], "the decoder v4l2 does not work here"),
        (["{video}", "-b", "{colors}", "--motion-gate", "much"], "--motion-gate wants a LEVEL of 0 to 255, not 'much'"),
        (["{video}", "-b", "{colors}", "--motion-gate", "256"], "--motion-gate wants a LEVEL of 0 to 255"),
        (["{video}", "-b", "{colors}", "--motion-gate", "b.mp4=4"], "--motion-gate names 'b.mp4', which is no SOURCE"),
        (["{video}", "-b", "{colors}", "-b", "{colors}"], "two classifiers have one name: colors, colors"),
        (["{video}", "-b", "{colors}", "-b", "theatre"], "'colors' and 'theatre' have different extractors"),
        (["{video}", "-b", "ucf101_8", "-b", "fight", "--format", "vtt"], "show one classifier: name one --bundle"),
    ],
)
def test_wrong_usage_is_exit_2_with_one_clear_line(
    colors: Path, video: Path, arguments: list[str], message: str
) -> None:
    done = edgeclf("infer", *(text.format(video=video, colors=colors) for text in arguments))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.fixture
def many(video: Path, tmp_path: Path) -> Path:
    """A folder with 2000 names of one video: more than a test waits for."""
    for number in range(2000):
        (tmp_path / f"{number}.mp4").symlink_to(video)
    return tmp_path


def test_reader_that_goes_away_is_no_traceback(colors: Path, many: Path) -> None:
    command = [sys.executable, "-m", "edgeclf", "infer", str(many), "-b", str(colors), "--format", "jsonl"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
        assert process.wait(30) == 1


@pytest.mark.skipif(os.name != "posix", reason="signals are sent as on POSIX")
def test_interrupt_keeps_what_was_written_and_exits_130(colors: Path, many: Path) -> None:
    import signal

    command = [sys.executable, "-m", "edgeclf", "infer", str(many), "-b", str(colors), "--format", "jsonl"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        try:
            rest, errors = process.communicate(timeout=30)
        finally:
            process.kill()  # or leaving the block waits for one that does not end
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert all(json.loads(line) for line in (first + rest).splitlines())


@pytest.mark.shared
def test_every_odd_file_is_answered(shared_data: Path, colors: Path) -> None:
    done = edgeclf("infer", shared_data / "odd", "-b", colors, "--format", "jsonl")
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    ended = {line["source"] for line in lines if line["type"] == "end"}
    results = {line["source"] for line in lines if line["type"] == "result"}
    errors = {line["source"] for line in lines if line["type"] == "error"}
    assert len(ended) == 36
    assert results | errors == ended
    for line in lines:
        if line["type"] == "end":
            assert line["received"] == line["processed"] + line["skipped"] + sum(line["dropped"].values())


def test_labelled_copy_is_saved_beside_the_table(colors: Path, video: Path, tmp_path: Path) -> None:
    done = edgeclf("infer", video, "-b", colors, "--save", tmp_path / "out.mp4")
    assert done.returncode == 0
    assert (tmp_path / "out.mp4").stat().st_size > 1000
    assert "out.mp4: 125 frames" in done.stderr


@pytest.mark.parametrize("name", ["x" * 300 + ".mp4", "new\nline.mp4", "\udcff.mp4", "-s.mp4", "playlist.mp4"])
def test_awkward_name_does_not_end_the_others(colors: Path, video: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "playlist.mp4").write_text(f"ffconcat version 1.0\nfile '{video}'\n")
    done = edgeclf("infer", "-b", colors, "--format", "jsonl", "--", tmp_path / name, video)
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["type"] for line in lines].count("end") == 2
    assert [line["label"] for line in lines if line["type"] == "result"] == ["blue"]
    assert "Traceback" not in done.stderr


def test_one_source_named_twice_is_done_once(colors: Path, video: Path) -> None:
    done = edgeclf("infer", video, video, f"{video.parent}/*.mp4", "-b", colors, "--format", "jsonl")
    assert [json.loads(line)["type"] for line in done.stdout.splitlines()].count("result") == 1
