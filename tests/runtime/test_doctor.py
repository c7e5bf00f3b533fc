from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from edgeclf.errors import MissingExtraError, SessionError
from edgeclf.runtime import doctor
from edgeclf.runtime.doctor import QUESTIONS, Finding, Question, ask, can_run, examine
from edgeclf.runtime.doctor_command import doctor as command
from edgeclf.runtime.sessions import onnxruntime as onnxruntime_session
from edgeclf.runtime.sessions import providers

NOTHING = Question("thing", lambda: Finding("thing", "works", ""), limit=60)


def child(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def answered(name: str, monkeypatch: pytest.MonkeyPatch, capsys: Any, answer: Callable[[], Finding]) -> Finding:
    """What the child process would tell of this answer."""
    monkeypatch.setattr(doctor, "QUESTIONS", {name: Question(name, answer)})
    doctor.answer(name)
    line = capsys.readouterr().out.splitlines()[-1]
    return Finding(**json.loads(line.removeprefix(doctor._MARK)))


@pytest.fixture(scope="module")
def examined(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """`edgeclf doctor --format json` as a user runs it, beside a file that must not be taken for a library."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "av.py").write_text("raise RuntimeError('the wrong av')")
    code = "import sys; sys.path.remove(''); from edgeclf.cli import main; main()"
    repository = str(Path(__file__).parents[2])
    return subprocess.run(
        [*child(code), "doctor", "--format", "json"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": repository, "EDGECLF_CACHE_DIR": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def test_doctor_answers_every_question_on_this_machine(examined: subprocess.CompletedProcess[str]) -> None:
    report = json.loads(examined.stdout)
    assert [finding["name"] for finding in report["findings"]] == list(QUESTIONS)
    assert all(finding["detail"] for finding in report["findings"])
    assert examined.returncode == (0 if report["works"] else 1)


def test_doctor_finds_what_these_tests_run_with(examined: subprocess.CompletedProcess[str]) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    findings = {finding["name"]: finding for finding in json.loads(examined.stdout)["findings"]}
    for name in ("platform", "bundles", "PyAV", "OpenCV", "onnxruntime", "onnxruntime cpu"):
        assert findings[name]["state"] == "works", findings[name]
    assert "onnxruntime CPU fp32, 1 thread" in findings["onnxruntime cpu"]["detail"]


def test_what_is_broken_or_absent_says_what_to_do(examined: subprocess.CompletedProcess[str]) -> None:
    silent = [
        finding["name"]
        for finding in json.loads(examined.stdout)["findings"]
        if finding["state"] != "works" and not finding["advice"]
    ]
    assert silent == []


def test_crash_of_a_library_is_a_finding() -> None:
    finding = ask(child("import os; os.abort()"), NOTHING)
    assert (finding.state, finding.detail) == ("broken", "ended by SIGABRT")


def test_process_that_ends_without_an_answer_gives_its_last_words() -> None:
    finding = ask(child("raise SystemExit('the plugin was not found')"), NOTHING)
    assert finding.detail == "ended with exit code 1, without an answer: the plugin was not found"


def test_library_that_hangs_is_a_finding() -> None:
    start = time.monotonic()
    finding = ask(child("import time; time.sleep(600)"), Question("thing", NOTHING.answer, limit=1))
    assert time.monotonic() - start < 60
    assert (finding.state, finding.detail) == ("broken", "gave no answer within 1 s")


def test_python_that_cannot_be_started_is_a_finding() -> None:
    assert ask(["/nowhere/python"], NOTHING).detail.startswith("Python cannot be started")


def test_answer_is_found_behind_what_a_library_prints() -> None:
    said = json.dumps({"name": "thing", "state": "works", "detail": "fine", "advice": ""})
    code = f"import sys; print('noise'); print({doctor._MARK!r} + {said!r}); print('more noise')"
    assert ask(child(code), NOTHING) == Finding("thing", "works", "fine")


def test_reason_that_stands_in_the_log_alone_is_added() -> None:
    said = json.dumps({"name": "thing", "state": "broken", "detail": "failed to start", "advice": "do"})
    log = "2026 [E:onnxruntime] Failed to load library x.so with error: libcublasLt.so.13: cannot open"
    code = f"import sys; sys.stderr.write({log!r} + chr(10)); print({doctor._MARK!r} + {said!r})"
    assert ask(child(code), NOTHING).detail == "failed to start (libcublasLt.so.13: cannot open)"


def failing(error: Exception) -> Callable[[], Finding]:
    def find_out() -> Finding:
        raise error

    return find_out


@pytest.mark.parametrize(
    ("error", "state", "detail", "advice"),
    [
        (MissingExtraError("it is not installed", hint="install it"), "absent", "it is not installed", "install it"),
        (MissingExtraError("it cannot be loaded", hint="again"), "broken", "it cannot be loaded", "again"),
        (SessionError("no device", hint="buy one"), "broken", "no device", "buy one"),
        (OSError("libGL.so.1: cannot open"), "broken", "OSError: libGL.so.1: cannot open", doctor._AGAIN),
    ],
)
def test_error_of_a_library_is_a_finding(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    state: Any,
    detail: str,
    advice: str,
) -> None:
    assert answered("PyAV", monkeypatch, capsys, failing(error)) == Finding("PyAV", state, detail, advice)


def installed_are(monkeypatch: pytest.MonkeyPatch, **packages: str) -> None:
    monkeypatch.setattr(doctor, "package_version", lambda name: packages.get(name.replace("-", "_"), ""))


def test_two_onnx_runtimes_are_told_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_session, "import_onnxruntime", lambda: pytest.fail("it was imported"))
    installed_are(monkeypatch, onnxruntime="1.31.1", onnxruntime_gpu="1.31.1")
    finding = doctor._onnxruntime()
    assert finding.state == "broken"
    assert finding.detail.startswith("onnxruntime 1.31.1, onnxruntime-gpu 1.31.1 are all installed")
    assert "pip uninstall -y onnxruntime onnxruntime-gpu," in finding.advice


def test_two_opencvs_are_told_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    installed_are(monkeypatch, opencv_python="5", opencv_python_headless="5")
    assert doctor._opencv().state == "broken"
    assert "pip uninstall -y opencv-python opencv-python-headless," in doctor._opencv().advice


def onnxruntime_with(*names: str) -> Any:
    listed = [f"{name}ExecutionProvider" for name in names]
    return SimpleNamespace(__version__="1.31.1", __file__="/nowhere", get_available_providers=lambda: listed)


def test_provider_that_is_not_built_in_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_session, "import_onnxruntime", lambda: onnxruntime_with("CPU"))
    finding = QUESTIONS["onnxruntime cuda"].answer()
    assert (finding.state, finding.detail) == ("absent", "this ONNX Runtime is built without it")


def test_provider_that_is_listed_and_does_not_start_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_session, "import_onnxruntime", lambda: onnxruntime_with("CUDA", "CPU"))
    monkeypatch.setattr(onnxruntime_session, "cuda_driver_problem", lambda: "no NVIDIA driver is installed")
    finding = QUESTIONS["onnxruntime cuda"].answer()
    assert finding.state == "broken"
    assert finding.detail == "listed, but device cuda cannot be used: no NVIDIA driver is installed"


@pytest.mark.parametrize(("installed", "state"), [("10.16.1", "works"), ("11.4.0.106", "broken"), ("", "absent")])
def test_tensorrt_is_compared_with_what_onnxruntime_wants(
    monkeypatch: pytest.MonkeyPatch, installed: str, state: str
) -> None:
    monkeypatch.setattr(onnxruntime_session, "import_onnxruntime", lambda: onnxruntime_with("Tensorrt", "CPU"))
    monkeypatch.setattr(providers, "tensorrt_fit", lambda ort: providers.TensorrtFit(10, 13, installed))
    finding = doctor._tensorrt_of_onnxruntime()
    assert finding.state == state
    assert ("tensorrt-cu13>=10,<11" in finding.advice) == (state != "works")


@pytest.mark.parametrize(
    ("problem", "state"),
    [
        ("no NVIDIA driver is installed (libcuda.so.1 is missing)", "absent"),
        ("the NVIDIA driver cannot start: error 803", "broken"),
    ],
)
def test_missing_driver_is_told_from_a_broken_one(monkeypatch: pytest.MonkeyPatch, problem: str, state: str) -> None:
    monkeypatch.setattr("edgeclf.runtime.driver.cuda_driver_problem", lambda: problem)
    finding = doctor._driver()
    assert (finding.state, finding.detail) == (state, problem)
    assert finding.advice


def test_processor_is_described_by_what_inference_gains_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(doctor, "_CPUINFO", cpuinfo)
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx_vnni amx_tile\nprocessor\t: 1\nflags\t\t: x\n")
    assert doctor._arithmetic() == ["avx2", "avx512", "vnni", "amx"]
    cpuinfo.write_text("Features\t: fp asimd asimddp bf16 i8mm\n")
    assert doctor._arithmetic() == ["bf16", "neon", "dotprod", "i8mm"]
    cpuinfo.unlink()
    assert doctor._arithmetic() == []


def test_jetson_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_TEGRA", tmp_path / "nv_tegra_release")
    assert "Jetson" not in doctor._platform().detail
    (tmp_path / "nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic\n")
    assert "Jetson (R36 (release), REVISION: 4.3" in doctor._platform().detail


def test_cores_are_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "available_cores", lambda: 3)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert "3 of 64 cores usable" in doctor._platform().detail


def test_extras_are_told_with_what_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "click>=8.1",
        "av>=16; extra == 'cpu'",
        "onnxruntime>=1.23; extra == 'cpu'",
        "onnxruntime-gpu[cuda,cudnn]>=1.23; extra == 'gpu'",
        "av>=16; extra == 'jetson'",
        "keras>=3.12; (python_version >= '3.11') and extra == 'train'",
    ]
    monkeypatch.setattr(doctor, "requires", lambda name: lines)
    installed_are(monkeypatch, av="18", onnxruntime="1.31.1")
    assert doctor._extras().detail == "complete: cpu; gpu (lacks onnxruntime-gpu); train (lacks keras)"
    installed_are(monkeypatch, av="18")
    assert doctor._extras().detail.startswith("complete: jetson; cpu (lacks onnxruntime)")
    installed_are(monkeypatch)
    assert (doctor._extras().state, doctor._extras().advice[:11]) == ("absent", "pip install")


def test_source_folder_is_told_from_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "requires", not_installed)
    assert doctor._extras().detail == "edgeclf runs from its source folder"


def test_only_decoders_of_hardware_are_listed() -> None:
    assert doctor._decoders([]) == "no hardware decoder built in"
    found = [name for name in ("h264", "h264_cuvid", "hevc_v4l2m2m", "libx264", "mjpeg_qsv")
             if doctor._HARDWARE_CODECS.fullmatch(name)]  # fmt: skip
    assert found == ["h264_cuvid", "hevc_v4l2m2m"]


def findings(**states: Any) -> list[Finding]:
    return [Finding(name.replace("_", " "), state, "") for name, state in states.items()]


def test_something_can_run_with_onnxruntime_and_opencv() -> None:
    assert can_run(findings(onnxruntime_cpu="works", OpenCV="works", TensorRT="broken"))
    assert not can_run(findings(onnxruntime_cpu="broken", OpenCV="works", OpenVINO="works"))
    assert not can_run(findings(onnxruntime_cpu="works", OpenCV="absent"))


def test_questions_can_be_chosen() -> None:
    assert [finding.name for finding in examine(["platform"])] == ["platform"]


@pytest.mark.parametrize(("state", "code"), [("works", 0), ("broken", 1)])
def test_exit_code_says_whether_anything_can_run(monkeypatch: pytest.MonkeyPatch, state: Any, code: int) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: iter(findings(onnxruntime_cpu=state, OpenCV="works")))
    shown = CliRunner().invoke(command)
    assert shown.exit_code == code
    assert ("nothing can be classified here" in shown.stderr) == bool(code)


def test_table_has_a_line_for_each_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Finding("OpenCV", "works", "5.0"), Finding("TensorRT", "absent", "not installed", "install it")]
    monkeypatch.setattr(doctor, "examine", lambda: iter(found))
    lines = CliRunner().invoke(command).stdout.splitlines()
    assert lines[0].split() == ["OpenCV", "works", "5.0"]
    assert lines[1].endswith("not installed -> install it")
