"""How many cores this process may use, and what the loop does with them where nothing was measured."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from edgeclf.runtime.machine import first_line, lines_of

# Extractor runs at a time. EfficientNet-Lite0 takes 32 MB for each run of two frames in ONNX Runtime: 16 are 0.5 GB.
MAX_WORKERS = 16
MAX_OPEN_SOURCES = 32  # a decoder of 1080p takes 30 to 60 MB

_FOLDERS_V1 = ("cpu", "cpu,cpuacct", "cpuacct,cpu")
_FOLDERS_V2 = (".", "unified")  # the second beside version 1


class LoopDefaults(TypedDict):
    """Options of the loop, by the names of `LoopOptions`."""

    depth: int
    workers: int
    batch_size: int
    max_wait: float
    sources_at_once: int


def available_cores() -> int:
    """Whole cores left by CPU affinity and the container's CPU quota, at least one."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return max(1, affinity if quota is None else min(affinity, int(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The share of time that this process's control groups leave it, in cores; None where they set no limit.

    A group cannot have more than the groups around it, so that the least counts. Versions 1 and 2 are read.
    """
    quotas = [quota for folder in _group_folders(root) if (quota := _quota_of(folder)) is not None]
    return min(quotas, default=None)


def default_options(device: str, cores: int) -> LoopDefaults:
    """What suits a device when nothing was measured on it.

    On the CPU one extractor run per core, one thread each, two frames a run: larger batches only cost cache. Twice as
    many files are open, so that the last ones do not each wait for one decoding thread. On a GPU large batches, which
    wait a moment to fill, and two runs at a time, so that one is fed while the other runs; cores decode.
    """
    if device == "cpu":
        workers = min(cores, MAX_WORKERS)
        sources = min(2 * workers, MAX_OPEN_SOURCES)
        return LoopDefaults(depth=8, workers=workers, batch_size=2, max_wait=0.0, sources_at_once=sources)
    sources = min(cores, MAX_OPEN_SOURCES)
    return LoopDefaults(depth=32, workers=2, batch_size=32, max_wait=0.02, sources_at_once=sources)


def _group_folders(root: Path) -> Iterator[Path]:
    """The folders of the process's own CPU group and of all that it lies in."""
    groups = root / "sys/fs/cgroup"
    for line in lines_of(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in _FOLDERS_V1 if controllers else _FOLDERS_V2:
            yield from _upwards(groups / mount, path)


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The folder at `path` below `mount`, and its parents up to `mount`.

    In a container the path may be the host's, and lead nowhere; the container's own group is then what is mounted.
    """
    names = [name for name in path.split("/") if name]
    if ".." in names:  # the group lies outside what this process sees
        names = []
    for count in range(len(names), -1, -1):
        yield mount.joinpath(*names[:count])


def _quota_of(folder: Path) -> float | None:
    """Cores that one group may use at a time, None where it has no limit."""
    quota, _, period = first_line(folder / "cpu.max").partition(" ")
    if not quota:
        quota, period = first_line(folder / "cpu.cfs_quota_us"), first_line(folder / "cpu.cfs_period_us")
    try:
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max", or no limit is told
        return None
    return cores if cores > 0 else None  # version 1 says -1
