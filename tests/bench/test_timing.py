"""Percentiles, and the order in which alternatives are run."""

from __future__ import annotations

import json
from functools import partial

import pytest

from edgeclf.bench.environment import environment
from edgeclf.bench.timing import Distribution, interleaved


def test_percentiles_lie_between_the_values() -> None:
    assert Distribution.of([3.0, 1.0]).median == 2.0
    found = Distribution.of([float(n) for n in range(100, -1, -1)])
    assert found == Distribution(101, 50.0, 90.0, 95.0, 99.0, 0.0, 100.0)


def test_distribution_of_one_value_is_that_value() -> None:
    assert Distribution.of([0.25]) == Distribution(1, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25)


def test_dictionary_has_six_digits_whatever_the_size() -> None:
    found = Distribution.of([123456.789, 0.000123456789]).to_dict()
    assert (found["count"], found["largest"], found["smallest"]) == (2, 123457.0, 0.000123457)
    assert list(found) == ["count", "median", "p90", "p95", "p99", "smallest", "largest"]
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
