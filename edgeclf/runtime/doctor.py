"""What works on this machine, and what does not and why.

Each question is answered by a process of its own, with a time limit: a missing driver or a library of the wrong version
can end the process that touches it, or never come back.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any, Literal

from edgeclf.decoders import DECODERS, probe
from edgeclf.errors import EdgeclfError, MissingExtraError
from edgeclf.runtime.cores import available_cores
from edgeclf.runtime.machine import package_version

State = Literal["works", "absent", "broken"]

LIMIT_SECONDS = 60.0
BUILD_LIMIT_SECONDS = 300.0  # TensorRT builds an engine first
_WORDS: Mapping[State, str] = {"works": "works", "absent": "not there", "broken": "does not work"}
_MARK = "edgeclf doctor answers: "
# The child finds modules where its parent does: not in the working folder, which `-c` would add.
_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from edgeclf.runtime import doctor; doctor.answer(sys.argv[1])"  # noqa: E501
_AGAIN = "install its package again, in an environment of its own"
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-rocm")
_OPENCVS = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
_HARDWARE_CODECS = re.compile(r"(h264|hevc|av1)_(cuvid|qsv|v4l2m2m|nvv4l2\w*|nvmpi\w*|rkmpp)")
_TINY = "theatre"  # the packaged bundle whose extractor is small enough to try a provider with
_TEGRA = Path("/etc/nv_tegra_release")
_CPUINFO = Path("/proc/cpuinfo")
_ARITHMETIC = {  # what inference gains from, and the names of it in /proc/cpuinfo
    "avx2": {"avx2"},
    "avx512": {"avx512f"},
    "vnni": {"avx512_vnni", "avx_vnni"},
    "bf16": {"avx512_bf16", "bf16"},
    "amx": {"amx_tile"},
    "neon": {"asimd"},
    "dotprod": {"asimddp"},
    "fp16": {"avx512_fp16", "asimdhp"},
    "i8mm": {"i8mm"},
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: State
    detail: str  # what is there, or the reason why it does not work
    advice: str = ""  # what to do about it

    def __str__(self) -> str:
        line = f"{self.name:<22} {_WORDS[self.state]:<13} {self.detail}"
        return f"{line} -> {self.advice}" if self.advice else line


@dataclass(frozen=True, slots=True)
class Question:
    """Something to find out, by a process of its own."""

    name: str
    answer: Callable[[], Finding]
    limit: float = LIMIT_SECONDS


def examine(names: Iterable[str] = ()) -> Iterator[Finding]:
    """A finding for each question, or for those that are named, as they are answered. Never raises."""
    for name in names or QUESTIONS:
        yield ask([sys.executable, "-c", _CHILD, name, json.dumps(sys.path)], QUESTIONS[name])


def can_run(findings: Iterable[Finding]) -> bool:
    """Whether anything can be classified here: sequence models run on ONNX Runtime's CPU, OpenCV resizes."""
    working = {finding.name for finding in findings if finding.state == "works"}
    return {"onnxruntime cpu", "OpenCV"} <= working


def ask(command: list[str], question: Question) -> Finding:
    """What the process says; a finding about the process itself where it says nothing."""
    try:
        process = subprocess.Popen(  # noqa: S603  it is this Python
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except OSError as error:
        return Finding(question.name, "broken", f"Python cannot be started: {error}", _AGAIN)
    try:
        out, log = (text.decode(errors="replace") for text in process.communicate(timeout=question.limit))
    except subprocess.TimeoutExpired:
        _abandon(process)
        return Finding(
            question.name, "broken", f"gave no answer within {question.limit:.0f} s", "see whether the driver hangs"
        )
    for line in reversed(out.splitlines()):
        if line.startswith(_MARK):
            return _with_log(Finding(**json.loads(line[len(_MARK) :])), log)
    return Finding(question.name, "broken", f"ended {_ending(process.returncode)}{_last_words(log)}", _AGAIN)


def answer(name: str) -> None:
    """Write the finding to stdout, whatever happens; this is all that the child process does."""
    try:
        finding = QUESTIONS[name].answer()
    except MissingExtraError as error:
        state: State = "absent" if "not installed" in error.message else "broken"
        finding = Finding(name, state, _short(error.message), error.hint)
    except EdgeclfError as error:
        finding = Finding(name, "broken", _short(error.message), error.hint)
    except Exception as error:  # noqa: BLE001  a library may raise what it likes; it is what was asked for
        finding = Finding(name, "broken", _short(f"{type(error).__name__}: {error}"), _AGAIN)
    sys.stdout.write(f"\n{_MARK}{json.dumps(asdict(finding))}\n")
    sys.stdout.flush()


def _abandon(process: subprocess.Popen[bytes]) -> None:
    """Kill it, and do not wait for one that hangs inside a driver."""
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=5)


def _ending(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}, without an answer"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
    return f"by {name}"


def _with_log(finding: Finding, log: str) -> Finding:
    """The loader's own reason added, which ONNX Runtime gives in its log alone."""
    reasons = dict.fromkeys(re.findall(r"with error: (.+)", log))
    if finding.state != "broken" or not reasons:
        return finding
    return Finding(finding.name, finding.state, f"{finding.detail} ({'; '.join(reasons)})", finding.advice)


def _last_words(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return f": {lines[-1][:200]}" if lines else ""


def _short(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()[:400]


def _platform() -> Finding:
    system = f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}"
    cores = f"{available_cores()} of {os.cpu_count()} cores usable"
    parts = [system, cores, " ".join(_arithmetic()) or "no known vector instructions", _jetson()]
    return Finding("platform", "works", ", ".join(part for part in parts if part))


def _arithmetic() -> list[str]:
    with contextlib.suppress(OSError):
        flags = set(re.findall(r"^(?:flags|Features)\s*:(.*)$", _CPUINFO.read_text(), re.MULTILINE)[:1])
        known = set(" ".join(flags).split())
        return [name for name, aliases in _ARITHMETIC.items() if aliases & known]
    return []


def _jetson() -> str:
    with contextlib.suppress(OSError):
        return f"Jetson ({_TEGRA.read_text().splitlines()[0].strip('# ')[:60]})"
    return ""


def _extras() -> Finding:
    extras = _packages_of_extras()
    if not extras:
        return Finding("extras", "absent", "edgeclf runs from its source folder", 'install it: pip install ".[cpu]"')
    complete, lacking = [], []
    for extra, packages in extras.items():
        missing = [package for package in packages if not package_version(package)]
        if missing:
            lacking.append(f"{extra} (lacks {', '.join(missing)})")
        else:
            complete.append(extra)
    if {"cpu", "gpu"} & set(complete):
        complete = [extra for extra in complete if extra != "jetson"]  # a part of the others
    if not complete:
        return Finding(
            "extras", "absent", "none is complete", 'pip install "edgeclf[cpu]", or "edgeclf[gpu]" for an NVIDIA GPU'
        )
    return Finding("extras", "works", "; ".join([f"complete: {', '.join(complete)}", *lacking]))


def _packages_of_extras() -> dict[str, list[str]]:
    """Extras and the packages that they name; empty where edgeclf runs from its source folder."""
    found: dict[str, list[str]] = {}
    with contextlib.suppress(PackageNotFoundError):
        for line in requires("edgeclf") or []:
            package = re.match(r"[\w.-]+", line)
            for extra in re.findall(r"extra == ['\"]([\w-]+)['\"]", line):
                found.setdefault(extra, []).append(package[0] if package else line)
    return found


def _onnxruntime() -> Finding:
    from edgeclf.runtime.sessions.onnxruntime import import_onnxruntime

    installed = _installed(_RUNTIMES)
    if len(installed) > 1:
        return _overwriting("onnxruntime", installed, "install one extra again")
    ort = import_onnxruntime()
    providers = [name.removesuffix("ExecutionProvider") for name in ort.get_available_providers()]
    wheel = f" ({installed[0].split()[0]})" if installed else " (no package of pip's)"
    return Finding("onnxruntime", "works", f"{ort.__version__}{wheel}; built with {', '.join(providers)}")


def _provider(device: str) -> Callable[[], Finding]:
    """Whether ONNX Runtime runs a small graph there, and not elsewhere without saying so."""

    def find_out() -> Finding:
        from edgeclf.errors import SessionError
        from edgeclf.runtime.sessions.onnxruntime import import_onnxruntime
        from edgeclf.runtime.sessions.providers import PROVIDERS

        name = f"onnxruntime {device}"
        if PROVIDERS[device] not in import_onnxruntime().get_available_providers():
            advice = 'pip uninstall -y onnxruntime, then pip install "edgeclf[gpu]", if this machine has an NVIDIA GPU'
            return Finding(name, "absent", "this ONNX Runtime is built without it", advice)
        try:
            return Finding(name, "works", _tried("onnxruntime", device))
        except SessionError as error:
            return Finding(name, "broken", f"listed, but {_short(error.message)}", error.hint)

    return find_out


def _tried(backend: str, device: Any) -> str:
    """What a small graph really ran on."""
    import numpy as np

    from edgeclf.bundle import open_bundle
    from edgeclf.runtime.session import open_session

    bundle = open_bundle(_TINY)
    session = open_session(bundle.graph(bundle.extractor), device, backend=backend, max_batch=1)
    session.run({spec.name: np.zeros((1, *(n or 1 for n in spec.shape[1:])), spec.dtype) for spec in session.inputs})
    return f"ran a small graph: {session.placement}"


def _driver() -> Finding:
    from edgeclf.runtime.driver import cuda_driver_problem, device_identity

    if problem := cuda_driver_problem():
        absent = "no NVIDIA driver is installed" in problem
        advice = "nothing, unless this machine has an NVIDIA GPU" if absent else "see what nvidia-smi says"
        return Finding("NVIDIA driver", "absent" if absent else "broken", problem, advice)
    return Finding("NVIDIA driver", "works", str(device_identity()))


def _tensorrt() -> Finding:
    from edgeclf.runtime.tensorrt_engine import import_tensorrt

    return Finding("TensorRT", "works", f"{import_tensorrt().__version__}, for --backend tensorrt")


def _tensorrt_of_onnxruntime() -> Finding:
    from edgeclf.runtime.sessions.onnxruntime import import_onnxruntime
    from edgeclf.runtime.sessions.providers import tensorrt_fit

    name, fit = "TensorRT fit", tensorrt_fit(import_onnxruntime())
    if fit.wanted is None:
        return Finding(name, "absent", "this ONNX Runtime is built without TensorRT", "nothing: only it would care")
    if fit.problem:
        return Finding(name, "broken" if fit.installed else "absent", fit.problem, fit.cure)
    return Finding(name, "works", f"ONNX Runtime wants TensorRT {fit.wanted}, {fit.installed} is installed")


def _cuda_python() -> Finding:
    name = "cuda-python"
    try:
        import_module("cuda.bindings.runtime")
    except ModuleNotFoundError:
        return Finding(name, "absent", "it is not installed", 'pip install "edgeclf[tensorrt]", for --backend tensorrt')
    return Finding(name, "works", package_version("cuda-bindings") or package_version("cuda-python"))


def _openvino() -> Finding:
    from edgeclf.errors import import_extra

    openvino = import_extra("openvino", "OpenVINO", "openvino")
    core = openvino.Core()
    devices = [f"{device} ({core.get_property(device, 'FULL_DEVICE_NAME')})" for device in core.available_devices]
    kinds = {"FP32", "FP16", "BF16", "INT8"} & set(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    ran = _tried("openvino", "cpu")
    release = openvino.__version__.partition("-")[0]
    return Finding(
        "OpenVINO", "works", f"{release}; sees {', '.join(devices)}; CPU: {' '.join(sorted(kinds)).lower()}; {ran}"
    )


def _av() -> Finding:
    from edgeclf.errors import import_extra

    av = import_extra("av", "PyAV", "cpu")
    codecs = sorted(name for name in av.codecs_available if _HARDWARE_CODECS.fullmatch(name))
    return Finding("PyAV", "works", f"{av.__version__}; {_decoders(codecs)}")


def _decoders(codecs: list[str]) -> str:
    return f"hardware decoders built in, not tried: {' '.join(codecs)}" if codecs else "no hardware decoder built in"


def _opencv() -> Finding:
    from edgeclf.errors import import_extra

    installed = _installed(_OPENCVS)
    if len(installed) > 1:
        return _overwriting("OpenCV", installed, "install one again")
    cv2 = import_extra("cv2", "OpenCV", "cpu")
    build = cv2.getBuildInformation()
    readers = [f"{'with' if _is_built_in(name, build) else 'without'} {name}" for name in ("FFMPEG", "GStreamer")]
    return Finding("OpenCV", "works", f"{cv2.__version__} {', '.join(readers)}")


def _is_built_in(name: str, build: str) -> bool:
    return bool(re.search(rf"^\s*{name}:\s*YES", build, re.MULTILINE))


def _decoder(name: str) -> Callable[[], Finding]:
    """Whether `--decoder` takes a name here."""

    def answer() -> Finding:
        problem, _, advice = (probe(name) or "").rpartition("; ")
        if not (problem or advice):
            return Finding(f"decoder {name}", "works", DECODERS[name].summary)
        return Finding(f"decoder {name}", "absent", problem or advice, advice if problem else "see docs/sources.md")

    return answer


def _bundles() -> Finding:
    from edgeclf.bundle import open_classifiers, packaged_classifiers

    packaged = packaged_classifiers()
    for path in set(packaged.values()):
        open_classifiers(path)
    found = ", ".join(packaged) or "none"
    return Finding("bundles", "works" if packaged else "absent", f"{found} open and are unaltered")


def _installed(packages: Iterable[str]) -> list[str]:
    return [f"{package} {found}" for package in packages if (found := package_version(package))]


def _overwriting(name: str, installed: Sequence[str], cure: str) -> Finding:
    """What to say where several packages bring files of the same names."""
    packages = " ".join(package.split()[0] for package in installed)
    return Finding(
        name,
        "broken",
        f"{', '.join(installed)} are all installed and overwrite each other",
        f"pip uninstall -y {packages}, then {cure}",
    )


QUESTIONS: Mapping[str, Question] = {
    question.name: question
    for question in (
        Question("platform", _platform),
        Question("extras", _extras),
        Question("bundles", _bundles),
        Question("PyAV", _av),
        Question("OpenCV", _opencv),
        *(Question(f"decoder {name}", _decoder(name)) for name in DECODERS),
        Question("onnxruntime", _onnxruntime),
        Question("onnxruntime cpu", _provider("cpu")),
        Question("NVIDIA driver", _driver),
        Question("onnxruntime cuda", _provider("cuda")),
        Question("onnxruntime tensorrt", _provider("tensorrt"), BUILD_LIMIT_SECONDS),
        Question("TensorRT fit", _tensorrt_of_onnxruntime),
        Question("TensorRT", _tensorrt),
        Question("cuda-python", _cuda_python),
        Question("OpenVINO", _openvino),
    )
}
