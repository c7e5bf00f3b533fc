"""What a measurement was made on: a number travels with its machine."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgeclf import __version__
from edgeclf.bench.load import gpu_utilisation
from edgeclf.errors import SessionError
from edgeclf.runtime.cores import available_cores
from edgeclf.runtime.driver import device_identity
from edgeclf.runtime.machine import first_line, lines_of, package_version, processor

_PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "opencv-python-headless",
    "av",
    "keras",
    "tensorflow",
)


def environment() -> dict[str, Any]:
    """Processor, cores, memory, GPU, system and versions, JSON-ready."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "processor": processor(),
        "cores": available_cores(),
        "memory_gib": round(_memory_kib() / 2**20, 1),
        "gpu": _gpu(),
        "gpu_utilisation": gpu_utilisation(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "governor": first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")) or "unknown",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "edgeclf": __version__,
        **{name: found for name in _PACKAGES if (found := package_version(name))},
    }


def _gpu() -> str | None:
    try:
        return str(device_identity())
    except SessionError:
        return None


def _memory_kib() -> float:
    for line in lines_of(Path("/proc/meminfo")):
        if line.startswith("MemTotal"):
            return float(line.split()[1])
    return 0.0
