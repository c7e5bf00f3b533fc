"""How many cores this process may use."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """Cores left by CPU affinity and the container's CPU quota, at least one."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, _quota() or affinity))


def _quota() -> int | None:
    """Whole cores of the cgroup v2 quota, None where there is no limit."""
    try:
        quota, period = _CGROUP_QUOTA.read_text().split()
        return int(quota) // int(period) or 1
    except (OSError, ValueError):
        return None
