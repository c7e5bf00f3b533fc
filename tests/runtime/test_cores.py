"""How many cores may be used: affinity, and the quotas of both versions of control groups in fake files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeclf.runtime import cores
from edgeclf.runtime.cores import MAX_OPEN_SOURCES, MAX_WORKERS, available_cores, cpu_quota, default_options
from edgeclf.runtime.pipeline import LoopOptions

V1 = "12:pids:/box\n4:cpu,cpuacct:{path}\n1:name=systemd:/box\n"


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A root folder whose process is in these groups."""
    for name, text in {
        "proc/self/cgroup": groups,
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_no_control_group_is_no_limit(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        ("max 100000\n", None),
        ("200000 100000\n", 2.0),
        ("150000 100000\n", 1.5),
        ("50000 100000\n", 0.5),
        ("100000 0\n", None),
        ("nonsense\n", None),
        ("", None),
    ],
)
def test_version_2_quota_is_cores(tmp_path: Path, text: str, quota: float | None) -> None:
    assert cpu_quota(machine(tmp_path, "0::/\n", {"cpu.max": text})) == quota


def test_quota_of_the_own_nested_group_counts(tmp_path: Path) -> None:
    files = {"a/b/cpu.max": "300000 100000", "a/other/cpu.max": "100000 100000"}
    assert cpu_quota(machine(tmp_path, "0::/a/b\n", files)) == 3.0


def test_least_quota_of_the_groups_around_counts(tmp_path: Path) -> None:
    files = {"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000", "cpu.max": "400000 100000"}
    assert cpu_quota(machine(tmp_path, "0::/a/b\n", files)) == 2.5


def test_path_of_the_host_that_leads_nowhere_falls_back_to_what_is_mounted(tmp_path: Path) -> None:
    assert cpu_quota(machine(tmp_path, "0::/system.slice/box\n", {"cpu.max": "200000 100000"})) == 2.0


def test_group_outside_of_what_is_seen_does_not_lead_out_of_the_mount(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/../other\n", {"cpu.max": "200000 100000"})
    (root / "sys/fs/other").mkdir()
    (root / "sys/fs/other/cpu.max").write_text("100000 100000")
    assert cpu_quota(root) == 2.0


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_version_1_quota_is_cores(tmp_path: Path, mount: str) -> None:
    files = {f"{mount}/box/cpu.cfs_quota_us": "350000\n", f"{mount}/box/cpu.cfs_period_us": "100000\n"}
    assert cpu_quota(machine(tmp_path, V1.format(path="/box"), files)) == 3.5


def test_version_1_without_limit_leaves_that_of_the_group_around(tmp_path: Path) -> None:
    files = {
        "cpu/a/b/cpu.cfs_quota_us": "-1",
        "cpu/a/b/cpu.cfs_period_us": "100000",
        "cpu/a/cpu.cfs_quota_us": "150000",
        "cpu/a/cpu.cfs_period_us": "50000",
    }
    assert cpu_quota(machine(tmp_path, V1.format(path="/a/b"), files)) == 3.0


def test_groups_of_other_controllers_do_not_count(tmp_path: Path) -> None:
    files = {"pids/box/cpu.max": "100000 100000", "cpu/box/cpu.cfs_quota_us": "-1", "cpu/box/cpu.cfs_period_us": "1"}
    assert cpu_quota(machine(tmp_path, V1.format(path="/box"), files)) is None


def test_version_2_beside_version_1_counts_as_well(tmp_path: Path) -> None:
    files = {"unified/box/cpu.max": "200000 100000", "cpu/box/cpu.cfs_quota_us": "-1", "cpu/box/cpu.cfs_period_us": "1"}
    assert cpu_quota(machine(tmp_path, "4:cpu:/box\n0::/box\n", files)) == 2.0


@pytest.mark.parametrize(
    ("allowed", "quota", "expected"),
    [(8, None, 8), (8, 3.0, 3), (8, 1.5, 1), (8, 0.2, 1), (2, 16.0, 2), (1, None, 1)],
)
def test_cores_are_the_lesser_of_affinity_and_whole_quota(
    monkeypatch: pytest.MonkeyPatch, allowed: int, quota: float | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)), raising=False)
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    assert available_cores() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_process_that_was_bound_to_one_core_has_one() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


# -- what the loop does with them -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "count", "workers", "batch_size", "sources"),
    [
        ("cpu", 1, 1, 2, 2),
        ("cpu", 2, 2, 2, 4),
        ("cpu", 8, 8, 2, 16),
        ("cpu", 128, MAX_WORKERS, 2, MAX_OPEN_SOURCES),
        ("cuda", 1, 2, 32, 1),
        ("cuda", 6, 2, 32, 6),
        ("tensorrt", 128, 2, 32, MAX_OPEN_SOURCES),
    ],
)
def test_defaults_suit_the_device_and_its_cores(
    device: str, count: int, workers: int, batch_size: int, sources: int
) -> None:
    options = LoopOptions(**default_options(device, count))
    assert (options.workers, options.batch_size, options.sources_at_once) == (workers, batch_size, sources)
    assert options.depth >= options.batch_size
    assert (options.max_wait > 0) == (device != "cpu")
