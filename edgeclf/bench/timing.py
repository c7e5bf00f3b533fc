"""Numbers out of repeated runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

STABLE_SPREAD = 0.03  # of a rate: below it, more rounds tell nothing new
MOST_STABLE_ROUNDS = 15
_FEWEST_STABLE_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Distribution:
    """The values of a measured quantity with their count, median, percentiles and extremes."""

    samples: tuple[float, ...]
    count: int
    median: float
    p90: float
    p95: float
    p99: float
    smallest: float
    largest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution:
        """The distribution of one value at least."""
        median, p90, p95, p99 = (float(value) for value in np.percentile(values, [50, 90, 95, 99]))
        samples = tuple(map(float, values))
        return cls(samples, len(values), median, p90, p95, p99, min(samples), max(samples))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary, figures with six digits."""
        names = ("median", "p90", "p95", "p99", "smallest", "largest")
        figures = {name: _rounded(getattr(self, name)) for name in names}
        return {"count": self.count} | figures | {"samples": [_rounded(value) for value in self.samples]}


def spread(values: Sequence[float]) -> float:
    """The distance of the quartiles as a share of the median; 0 where there is one value."""
    low, median, high = (float(value) for value in np.percentile(values, [25, 50, 75]))
    return (high - low) / median if median else 0.0


def is_stable(values: Sequence[float]) -> bool:
    """Whether there are enough values, and close enough to each other, to stop."""
    return len(values) >= _FEWEST_STABLE_ROUNDS and spread(values) < STABLE_SPREAD


def interleaved(
    alternatives: dict[str, Callable[[], T]],
    rounds: int,
    *,
    progress: Callable[[], None],
    enough: Callable[[dict[str, list[T]]], bool] = lambda _: False,
) -> dict[str, list[T]]:
    """What each alternative gave in each round, up to `rounds` of them or until after one it is `enough`.

    A round runs every alternative once, and each round starts with another one, so that whatever else the
    machine does falls on all of them alike.
    """
    names = list(alternatives)
    results: dict[str, list[T]] = {name: [] for name in names}
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            results[name].append(alternatives[name]())
            progress()
        if enough(results):
            break
    return results


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
