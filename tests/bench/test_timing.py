"""Percentiles, and the order in which alternatives are run."""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from time import process_time

import pytest

from edgeclf.bench.environment import environment
from edgeclf.bench.load import cpu_seconds, gpu_utilisation, measured
from edgeclf.bench.timing import Distribution, interleaved, is_stable, spread


def test_percentiles_lie_between_the_values() -> None:
    assert Distribution.of([3.0, 1.0]).median == 2.0
    found = Distribution.of([float(n) for n in range(100, -1, -1)])
    assert (found.count, found.median, found.p90, found.p95, found.p99) == (101, 50.0, 90.0, 95.0, 99.0)
    assert (found.smallest, found.largest, found.samples[:2]) == (0.0, 100.0, (100.0, 99.0))


def test_distribution_of_one_value_is_that_value() -> None:
    assert Distribution.of([0.25]) == Distribution((0.25,), 1, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25)


def test_dictionary_has_six_digits_whatever_the_size() -> None:
    found = Distribution.of([123456.789, 0.000123456789]).to_dict()
    assert (found["count"], found["largest"], found["smallest"]) == (2, 123457.0, 0.000123457)
    assert list(found) == ["count", "median", "p90", "p95", "p99", "smallest", "largest", "samples"]
    assert found["samples"] == [123457.0, 0.000123457]
    assert json.loads(json.dumps(found)) == found


def test_each_round_runs_everything_once_and_starts_with_another() -> None:
    order: list[str] = []
    steps: list[int] = []

    def run(name: str) -> int:
        order.append(name)
        return len(order)

    results = interleaved({name: partial(run, name) for name in "abc"}, 4, progress=lambda: steps.append(1))
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert results == {"a": [1, 6, 8, 10], "b": [2, 4, 9, 11], "c": [3, 5, 7, 12]}
    assert len(steps) == 12


def test_rounds_end_when_it_is_enough() -> None:
    results = interleaved(
        {"a": lambda: 1, "b": lambda: 2}, 9, progress=lambda: None, enough=lambda done: len(done["b"]) == 3
    )
    assert results == {"a": [1] * 3, "b": [2] * 3}


def test_spread_is_the_distance_of_the_quartiles_in_medians() -> None:
    assert spread([8.0, 10.0, 12.0]) == pytest.approx(0.2)
    assert spread([7.0]) == spread([0.0, 0.0]) == 0.0


def test_five_close_values_are_stable() -> None:
    assert is_stable([100.0, 101.0, 100.0, 99.0, 100.0])
    assert not is_stable([100.0] * 4)
    assert not is_stable([100.0, 110.0, 100.0, 90.0, 105.0])


def test_error_in_an_alternative_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        interleaved({"a": lambda: 1 // 0}, 3, progress=lambda: None)


def test_environment_names_processor_and_versions() -> None:
    found = environment()
    assert found["processor"]
    assert found["cores"] >= 1
    assert found["memory_gib"] > 0
    assert all(found[name][0].isdigit() for name in ("numpy", "python", "edgeclf", "av", "date"))
    assert json.loads(json.dumps(found)) == found


# -- load -------------------------------------------------------------------------------------------------------------


def burn(seconds: float) -> None:
    end = process_time() + seconds
    while process_time() < end:
        pass


def test_work_is_measured_with_what_it_gives() -> None:
    found, usage = measured(lambda: burn(0.2) or "done")  # type: ignore[func-returns-value]
    assert found == "done"
    assert 0.2 <= usage.cpu_seconds <= usage.seconds + 0.05
    assert usage.foreign_cores is not None
    assert usage.foreign_cores >= 0.0


def test_cpu_time_of_a_child_counts_while_it_runs_and_after_it_ended() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(burn, 0.01).result()
        _, usage = measured(lambda: pool.submit(burn, 0.4).result(), children=True)
        _, without = measured(lambda: None)
        before = cpu_seconds()
    assert usage.cpu_seconds > 0.35, "clock ticks are 10 ms"
    assert usage.peak_rss_mb > without.peak_rss_mb + 1  # type: ignore[operator]
    assert cpu_seconds() > before - 0.05, "what an ended child took is not forgotten"


def test_peak_of_memory_starts_anew_with_each_measurement() -> None:
    size = 64 << 20
    _, large = measured(lambda: len(bytearray(b"x") * size))
    _, small = measured(lambda: None)
    if Path("/proc/self/clear_refs").exists() and large.peak_rss_mb:
        assert large.peak_rss_mb - small.peak_rss_mb > 32  # type: ignore[operator]


def test_busy_gpu_of_a_jetson_is_read_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeclf.bench.load._percent_from_nvml", lambda: None)
    monkeypatch.setattr("edgeclf.bench.load._percent_from_nvidia_smi", lambda: None)
    (tmp_path / "load").write_text("437\n")
    assert gpu_utilisation((tmp_path / "none", tmp_path / "load")) == {"percent": 43.7}
    assert "no NVIDIA driver" in gpu_utilisation((tmp_path / "none",))["not_readable"]


def test_busy_gpu_is_asked_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("edgeclf.bench.load._percent_from_nvml", lambda: None)
    for said, found in (("71", {"percent": 71.0}), ("[N/A]", None), ("", None)):
        program.write_text(f"#!/bin/sh\necho '{said}'\n")
        program.chmod(0o755)
        read = gpu_utilisation(())
        assert read == found if found else "not_readable" in read
