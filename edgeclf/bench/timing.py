"""Numbers out of repeated runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Distribution:
    """Count, median, percentiles and extremes of a measured quantity."""

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
        return cls(len(values), median, p90, p95, p99, float(min(values)), float(max(values)))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary, figures with six digits."""
        names = ("median", "p90", "p95", "p99", "smallest", "largest")
        return {"count": self.count} | {name: float(f"{getattr(self, name):.6g}") for name in names}


def interleaved(
    alternatives: dict[str, Callable[[], T]], rounds: int, *, progress: Callable[[], None]
) -> dict[str, list[T]]:
    """What each alternative gave in each round.

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
    return results
