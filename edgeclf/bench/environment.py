"""What a measurement was made on: a number travels with its machine."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgeclf import __version__
from edgeclf.runtime.cores import available_cores

_PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "opencv-python-headless", "av", "keras", "tensorflow")


def environment() -> dict[str, Any]:
    """Processor, cores, memory, system and versions, JSON-ready."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": available_cores(),
        "memory_gib": round(_memory_kib() / 2**20, 1),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "governor": _first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "edgeclf": __version__,
        **{name: found for name in _PACKAGES if (found := _version(name))},
    }


def _processor() -> str:
    for line in _lines(Path("/proc/cpuinfo")):
        if line.lower().startswith(("model name", "hardware")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_kib() -> float:
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemTotal"):
            return float(line.split()[1])
    return 0.0


def _first_line(path: Path) -> str:
    return next(iter(_lines(path)), "unknown")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
