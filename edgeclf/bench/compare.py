"""Records of several runs or machines beside each other, and whether the first was faster than the others.

A verdict is given where like is compared with like: the same machine, scenario, bundle and workload. A metric of a row
changed if its median moved by more than a threshold and more than noise explains. Noise is an interval for the ratio
of the two, from the rank test of Mann and Whitney (Hodges and Lehmann's interval): it takes the rounds as they are,
needs no bell curve, and one round that went wrong moves it little.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from edgeclf.bench.load import MUCH_FOREIGN_LOAD
from edgeclf.bench.record_file import Record, machine_of

Verdict = Literal["regression", "improvement", "same", "too few rounds", "not judged"]

THRESHOLD = 0.05
LEVEL = 0.99  # of the interval: with many metrics a verdict that is wrong 1 time in 20 would be a daily one
FEWEST_ROUNDS = 5  # of each run; with fewer, no order of the rounds is as rare as the level asks

_SETTINGS = ("backend", "provider", "batch", "workers", "threads")
_NOT_THE_ROWS = ("peak_rss_mb",)  # of the whole process with the models of all rows: no verdict on one of them
_EXACT = 1600  # pairs of rounds up to which the rank test is worked out exactly


@dataclass(frozen=True, slots=True)
class Named:
    """A record and what it is called: the file it came from."""

    name: str
    record: Record


@dataclass(frozen=True, slots=True)
class Change:
    """One metric of one row before and after; a difference above 0 is a larger figure, be that good or bad."""

    metric: str
    unit: str
    before: float  # median
    after: float
    difference: float | None  # relative; None where the figure before is 0
    noise: tuple[float, float] | None  # the interval of the relative difference
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary, figures with six digits."""
        return {
            "unit": self.unit,
            "before": self.before,
            "after": self.after,
            "difference": _rounded(self.difference),
            "noise": [_rounded(value) for value in self.noise] if self.noise else None,
            "verdict": self.verdict,
        }


@dataclass(frozen=True, slots=True)
class RowChange:
    """A row of the two records; `remark` says where it is missing or cannot run, or runs with other settings."""

    row: str
    remark: str
    changes: tuple[Change, ...]
    broken: bool = False  # it ran before, and now it cannot
    is_baseline: bool = False  # it is what ours is compared with: no regression of ours

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary."""
        metrics = {change.metric: change.to_dict() for change in self.changes}
        return {
            "row": self.row,
            "remark": self.remark,
            "broken": self.broken,
            "baseline": self.is_baseline,
            "metrics": metrics,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """A record against the first. `differs`: why there is no verdict. `notes`: what else is not alike."""

    before: str
    after: str
    differs: tuple[str, ...]
    notes: tuple[str, ...]
    rows: tuple[RowChange, ...]

    @property
    def is_judged(self) -> bool:
        """Whether like was compared with like."""
        return not self.differs

    @property
    def is_told(self) -> bool:
        """Whether a verdict was reached on any metric."""
        return self.regressed or bool(self.count("improvement") or self.count("same"))

    @property
    def regressed(self) -> bool:
        """Whether a metric is worse beyond noise, or a row that ran cannot run any more; baselines do not count."""
        return bool(self.count("regression") or self.broken)

    @property
    def broken(self) -> int:
        """How many rows ran before and do not now."""
        return sum(row.broken for row in self.rows if not row.is_baseline) if self.is_judged else 0

    def count(self, verdict: Verdict, *, of_baselines: bool = False) -> int:
        """How many metrics have that verdict; those of baselines are counted apart."""
        rows = (row for row in self.rows if row.is_baseline == of_baselines)
        return sum(change.verdict == verdict for row in rows for change in row.changes)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary."""
        return {
            "before": self.before,
            "after": self.after,
            "judged": self.is_judged,
            "regressed": self.regressed,
            "differs": list(self.differs),
            "notes": list(self.notes),
            "rows": [row.to_dict() for row in self.rows],
        }


def compare(records: Sequence[Named], *, threshold: float = THRESHOLD) -> list[Comparison]:
    """Every record against the first. threshold: relative change of a median that is worth a verdict."""
    first, *others = records
    return [_compared(first, other, threshold) for other in others]


def row_key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """What makes rows of two records the same row."""
    return str(row["name"]), str(row.get("device") or ""), str(row.get("precision") or "")


def row_names(*groups: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """What the rows of each record are called: name, device, precision, and the settings that tell such rows apart."""
    telling: dict[tuple[str, str, str], dict[str, None]] = {}  # by row: the settings that differ within a record
    for rows in groups:
        for key, alike in _alike(rows).items():
            names = telling.setdefault(key, {})
            names.update(dict.fromkeys(name for name in _SETTINGS if len({str(row.get(name)) for row in alike}) > 1))
    return [_counted([_row_name(row, telling[row_key(row)]) for row in rows]) for rows in groups]


def differences(before: Record, after: Record) -> list[str]:
    """Why figures of the two records cannot be judged against each other; empty where they can."""
    found = []
    if machine_of(before) != machine_of(after):
        found.append(f"machine: {machine_of(before)} | {machine_of(after)}")
    if before["scenario"] != after["scenario"]:
        found.append(f"scenario: {before['scenario']} | {after['scenario']}")
    if _graphs(before) != _graphs(after):
        found.append("bundle: the graphs are not the same")
    found += _unequal("workload", before["workload"], after["workload"])
    return found


def ratio_interval(before: Sequence[float], after: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """The interval in which after / before lies with that probability at least; None where rounds are too few for it.

    Samples must be positive. The interval runs between two of the sorted ratios of every round after to every round
    before: as many of them are left off at each end as the rank test needs to call two equal sets different.
    """
    left_off = _left_off(len(before), len(after), (1 - level) / 2)
    if left_off is None:
        return None
    ratios = np.sort(np.divide.outer(np.asarray(after, np.float64), np.asarray(before, np.float64)), axis=None)
    return float(ratios[left_off]), float(ratios[-1 - left_off])


def letters_of(count: int) -> list[str]:
    """What records are called beside each other: A, B, ..., Z, R27, R28, ..."""
    return [chr(ord("A") + number) if number < 26 else f"R{number + 1}" for number in range(count)]


def described(record: Record) -> str:
    """A record in one line: what was measured, where and when."""
    where = record["environment"]
    made = [str(where[key]) for key in ("date",) if where.get(key)] + [f"edgeclf {where.get('edgeclf', 'unknown')}"]
    return f"{record['scenario']} of {record['bundle'].get('name', '?')}; {machine_of(record)}; {', '.join(made)}"


def judgement(comparison: Comparison) -> str:
    """The outcome in one line."""
    if not comparison.is_judged:
        return "no verdict, since these differ"
    moved = comparison.count("regression", of_baselines=True) + comparison.count("improvement", of_baselines=True)
    parts = [
        (comparison.count("regression"), "regression", "regressions"),
        (comparison.broken, "row that does not run any more", "rows that do not run any more"),
        (comparison.count("improvement"), "improvement", "improvements"),
        (comparison.count("same"), "the same", "the same"),
        (comparison.count("too few rounds"), "with too few rounds to tell", "with too few rounds to tell"),
        (moved, "figure of a baseline changed as well", "figures of baselines changed as well"),
    ]
    return ", ".join(f"{count} {one if count == 1 else many}" for count, one, many in parts if count) or "nothing alike"


def comparison_table(records: Sequence[Named], comparisons: Sequence[Comparison], *, threshold: float) -> str:
    """The comparisons as text, those with the first record one after another."""
    before, *letters = letters_of(len(records))
    lines = [
        f"{letter}  {named.name}: {described(named.record)}"
        for letter, named in zip((before, *letters), records, strict=True)
    ]
    for after, comparison in zip(letters, comparisons, strict=True):
        lines += ["", f"{before} -> {after}: {judgement(comparison)}"]
        lines += [f"  {text}" for text in (*comparison.differs, *comparison.notes)]
        lines += ["", f"{'':<26}{before:>10}{after:>10}{'change':>10}  {'noise':<20}verdict"]
        for row in comparison.rows:
            lines += [f"{row.row} ({row.remark})" if row.remark else row.row, *map(_line, row.changes)]
    return "\n".join([*lines, "", rule(threshold)])


def rule(threshold: float) -> str:
    """When a metric has changed, in one sentence."""
    return (
        f"A metric has changed if its median moved by more than {100 * threshold:g} % and its {100 * LEVEL:.0f} % "
        f"interval of noise (rank test over the rounds, {FEWEST_ROUNDS} each at least) leaves 0 out."
    )


def percent(share: float) -> str:
    """A relative change, with its sign."""
    return f"{100 * share:+.{1 if abs(share) < 1 else 0}f} %"


def figure(value: float, digits: int = 4) -> str:
    """A figure with that many digits that count; none before the point are left out."""
    if not value:
        return "0"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def _line(change: Change) -> str:
    moved = "" if change.difference is None else percent(change.difference)
    noise = f"{percent(change.noise[0])} to {percent(change.noise[1])}" if change.noise else ""
    verdict = change.verdict.upper() if change.verdict == "regression" else change.verdict
    return (
        f"  {change.metric:<24}{figure(change.before):>10}{figure(change.after):>10}{moved:>10}  {noise:<20}"
        f"{'' if verdict == 'not judged' else verdict}"
    ).rstrip()


# -- two records ------------------------------------------------------------------------------------------------------


def _compared(first: Named, other: Named, threshold: float) -> Comparison:
    before, after = first.record, other.record
    differs = tuple(differences(before, after))
    return Comparison(
        first.name,
        other.name,
        differs,
        tuple(_notes(first, other)),
        tuple(_row_changes(before, after, None if differs else threshold)),
    )


def _notes(first: Named, other: Named) -> Iterator[str]:
    of_the_day = {"date", "foreign_cores", "load_average", "gpu_utilisation"}
    environments = [
        {key: value for key, value in named.record["environment"].items() if key not in of_the_day}
        for named in (first, other)
    ]
    if machine_of(first.record) == machine_of(other.record):
        yield from _unequal("", *environments)
    for named in (first, other):
        foreign = named.record["environment"].get("foreign_cores")
        if isinstance(foreign, (int, float)) and foreign > MUCH_FOREIGN_LOAD:
            yield f"other programs kept {foreign:.2f} cores busy during {named.name}"
    cameras = [named.record.get("sustained_cameras") for named in (first, other)]
    if None not in cameras:
        yield f"cameras sustained: {cameras[0]} | {cameras[1]} (one search each, so no verdict)"


def _row_changes(before: Record, after: Record, threshold: float | None) -> Iterator[RowChange]:
    """The rows of both, in the order of the first. threshold: None where nothing is judged."""
    groups = (before["rows"], after["rows"])
    rows = [dict(zip(names, group, strict=True)) for names, group in zip(row_names(*groups), groups, strict=True)]
    for name in rows[0] | rows[1]:
        old, new = rows[0].get(name), rows[1].get(name)
        if old is None or new is None:
            yield RowChange(name, f"only in the {'second' if old is None else 'first'} record", ())
        elif _runs(old) and _runs(new):
            changes = tuple(_changes(old, new, threshold))
            yield RowChange(name, _other_settings(old, new), changes, is_baseline=_is_baseline(old))
        else:
            broken = _runs(old) and not _runs(new)
            yield RowChange(name, _not_running(old, new), (), broken=broken, is_baseline=_is_baseline(old))


def _runs(row: Mapping[str, Any]) -> bool:
    return bool(row["status"] == "ok")


def _is_baseline(row: Mapping[str, Any]) -> bool:
    return row.get("group") == "baseline"


def _not_running(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    if _runs(new):
        return f"it did not run before: {old.get('reason') or 'no reason given'}"
    reason = new.get("reason") or "no reason given"
    return f"{'it ran before, and now it does not' if _runs(old) else 'it runs in neither'}: {reason}"


def _other_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    settings = [{key: row[key] for key in _SETTINGS if row.get(key) is not None} for row in (old, new)]
    return "; ".join(_unequal("", *settings))


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], threshold: float | None) -> Iterator[Change]:
    for name, metric in (old.get("metrics") or {}).items():
        other = (new.get("metrics") or {}).get(name)
        if other and (metric["better"], metric.get("unit")) == (other["better"], other.get("unit")):
            yield _change(name, metric, other, None if name in _NOT_THE_ROWS else threshold)


def _change(name: str, old: Mapping[str, Any], new: Mapping[str, Any], threshold: float | None) -> Change:
    before, after = float(old["median"]), float(new["median"])
    difference = after / before - 1 if before > 0 else None
    noise = None
    if threshold is not None and min(*old["samples"], *new["samples"]) > 0:
        low_high = ratio_interval(old["samples"], new["samples"])
        noise = (low_high[0] - 1, low_high[1] - 1) if low_high else None
    verdict: Verdict = "not judged"
    if threshold is not None:
        rounds = min(len(old["samples"]), len(new["samples"]))
        verdict = _verdict(difference, noise, old["better"], threshold) if rounds >= FEWEST_ROUNDS else "too few rounds"
    return Change(name, str(old.get("unit", "")), before, after, difference, noise, verdict)


def _verdict(difference: float | None, noise: tuple[float, float] | None, better: str, threshold: float) -> Verdict:
    if difference is None or noise is None:  # a figure of 0 has no relative change
        return "not judged"
    if abs(difference) <= threshold or noise[0] <= 0 <= noise[1]:
        return "same"
    return "improvement" if (difference > 0) == (better == "higher") else "regression"


# -- parts ------------------------------------------------------------------------------------------------------------


def _left_off(n: int, m: int, tail: float) -> int | None:
    """How many of the n * m ratios lie beyond each end of the interval, if `tail` may be missed there."""
    if n * m > _EXACT:
        deviation = math.sqrt(n * m * (n + m + 1) / 12)
        return max(0, math.floor(n * m / 2 + NormalDist().inv_cdf(tail) * deviation) - 1)
    below, total = 0, math.comb(n + m, n)
    for count, ways in enumerate(_orders(n, m)):
        below += ways
        if below > tail * total:
            return count - 1 if count else None
    return None


def _orders(n: int, m: int) -> list[int]:
    """In how many orders of n + m values the first kind beats the second 0, 1, ... up to n * m / 2 times."""
    ways = [1] + [0] * (n * m // 2)
    for step in range(1, n + 1):
        for wins in range(len(ways) - 1, m + step - 1, -1):
            ways[wins] -= ways[wins - m - step]
        for wins in range(step, len(ways)):
            ways[wins] += ways[wins - step]
    return ways


def _graphs(record: Record) -> Any:
    """The hashes of the bundle, or all that is known of it where there are none."""
    bundle = record["bundle"]
    return {key: value for key, value in bundle.items() if "sha256" in key} or bundle


def _unequal(what: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    keys = [*before, *(key for key in after if key not in before)]
    lead = f"{what} " if what else ""
    pairs = [(key, before.get(key, "nothing"), after.get(key, "nothing")) for key in keys]
    return [f"{lead}{key}: {_short(old)} | {_short(new)}" for key, old, new in pairs if old != new]


def _short(value: Any) -> str:
    """A value as text; of a hash or a long text its beginning."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:12]}..."


def _alike(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], list[Mapping[str, Any]]]:
    found: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row_key(row), []).append(row)
    return found


def _row_name(row: Mapping[str, Any], telling: Iterable[str]) -> str:
    """The name, and whatever of the rest it does not say itself."""
    name, *rest = row_key(row)
    said = name.replace(",", " ").split()
    settings = (f"{key} {row[key]}" for key in telling if row.get(key) is not None and str(row[key]) not in said)
    return ", ".join([name, *(word for word in rest if word and word not in said), *settings])


def _counted(names: Sequence[str]) -> list[str]:
    """The names, with a number behind each that was there before."""
    seen = [names[:place].count(name) for place, name in enumerate(names)]
    return [f"{name} ({count + 1})" if count else name for name, count in zip(names, seen, strict=True)]


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
