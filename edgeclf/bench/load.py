"""What a stretch of work cost, and what else the machine did meanwhile."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from edgeclf.runtime.machine import first_line, lines_of

T = TypeVar("T")

MUCH_FOREIGN_LOAD = 0.15  # cores; figures that were measured beside more are not to be trusted

_PROC = Path("/proc")
_BUSY_COLUMNS = (1, 2, 3, 6, 7, 8)  # user, nice, system, irq, softirq and steal in /proc/stat
_JETSON_LOADS = (Path("/sys/devices/platform/gpu.0/load"), Path("/sys/devices/gpu.0/load"))


@dataclass(frozen=True, slots=True)
class Usage:
    """What some work took. What cannot be read here is None."""

    seconds: float
    cpu_seconds: float  # of this process and those that it started
    peak_rss_mb: float | None = None  # of this process, where asked together with its children
    foreign_cores: float | None = None  # that other processes kept busy meanwhile
    gpu_percent: float | None = None  # that the GPU was busy, at the end of the work


def measured(work: Callable[[], T], *, gpu: bool = False, children: bool = False) -> tuple[T, Usage]:
    """What the work gives, and what it took.

    gpu: also how busy the GPU is as the work ends. children: their memory counts too.
    """
    _forget_peaks()
    busy, cpu, start = _busy_seconds(), cpu_seconds(), time.perf_counter()
    result = work()
    seconds, cpu, now_busy = time.perf_counter() - start, cpu_seconds() - cpu, _busy_seconds()
    foreign = None if busy is None or now_busy is None else max(0.0, (now_busy - busy - cpu) / max(seconds, 1e-9))
    percent = gpu_utilisation().get("percent") if gpu else None
    return result, Usage(seconds, cpu, _peak_rss_mb(children=children), foreign, percent)


def cpu_seconds() -> float:
    """CPU time of this process and all that it started, ended or not."""
    own = os.times()
    return time.process_time() + own.children_user + own.children_system + sum(map(_cpu_seconds_of, _descendants()))


def rss_mb() -> float:
    """The memory that this process holds now; 0 where that cannot be read."""
    return _status_kib(os.getpid(), "VmRSS") / 1024


def gpu_utilisation(jetson: tuple[Path, ...] = _JETSON_LOADS) -> dict[str, Any]:
    """`percent` of the time that a GPU was busy just now, or why that is `not_readable`."""
    for read in (_percent_from_nvml, _percent_from_nvidia_smi):
        percent = read()
        if percent is not None:
            return {"percent": percent}
    for load in jetson:
        if text := first_line(load):
            return {"percent": float(text) / 10}
    return {
        "not_readable": "there is no NVIDIA driver: neither nvidia-ml-py, nvidia-smi nor a Jetson's load file answers"
    }


def _percent_from_nvml() -> float | None:
    try:
        nvml: Any = import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # noqa: BLE001 - the package has errors of its own kind, and may be a broken one
        return None
    try:
        return float(nvml.nvmlDeviceGetUtilizationRates(nvml.nvmlDeviceGetHandleByIndex(0)).gpu)
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()


def _percent_from_nvidia_smi() -> float | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603 - fixed words
        return float(done.stdout.splitlines()[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _peak_rss_mb(*, children: bool) -> float | None:
    kib = [_status_kib(pid, "VmHWM") for pid in (os.getpid(), *(_descendants() if children else ()))]
    return sum(kib) / 1024 if kib[0] else None


def _busy_seconds() -> float | None:
    """CPU time of everything on the machine, all cores together."""
    columns = first_line(_PROC / "stat").split()
    if len(columns) <= max(_BUSY_COLUMNS):
        return None
    return sum(int(columns[n]) for n in _BUSY_COLUMNS) / os.sysconf("SC_CLK_TCK")


def _descendants() -> Iterator[int]:
    found = [os.getpid()]
    for pid in found:
        for task in _PROC.glob(f"{pid}/task/*/children"):
            children = [int(text) for text in first_line(task).split()]
            found += children
            yield from children


def _cpu_seconds_of(pid: int) -> float:
    """CPU time of a child and of those of its own children that have ended; 0 where it has ended itself."""
    columns = first_line(_PROC / str(pid) / "stat").rpartition(")")[2].split()  # its name may hold spaces
    return sum(int(text) for text in columns[11:15]) / os.sysconf("SC_CLK_TCK")


def _status_kib(pid: int, key: str) -> int:
    for line in lines_of(_PROC / str(pid) / "status"):
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    return 0


def _forget_peaks() -> None:
    """Let the peak of memory start anew, where the system can."""
    for pid in (os.getpid(), *_descendants()):
        try:
            (_PROC / str(pid) / "clear_refs").write_text("5")
        except OSError:
            continue
