"""The record of a benchmark out of a file, checked for all that pages and comparisons are made of."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from edgeclf.bench.rows import SCHEMA_VERSION
from edgeclf.errors import EdgeclfError

Record = Mapping[str, Any]

_MOST_BYTES = 256 * 2**20
_MOST_SAMPLES = 1000  # of a metric, one a round
_HINT = "name what edgeclf bench --json wrote"


class RecordError(EdgeclfError):
    """A file is no record of a benchmark, or a record lacks what is asked of it."""


def read_record(path: Path) -> dict[str, Any]:
    """The record that `edgeclf bench --json` wrote.

    Raises RecordError, which names the file and what is wrong in it. A record may come from another machine: nothing
    in it is believed before it was looked at.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise RecordError(f"{path} is larger than any record of a benchmark", hint=_HINT)
        record = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}", hint=_HINT) from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is no JSON: {error}", hint=_HINT) from error
    try:
        _check(record)
    except _FaultError as fault:
        raise RecordError(f"{path} is no record of a benchmark: {fault}", hint=_HINT) from None
    found: dict[str, Any] = record
    return found


def machine_of(record: Record) -> str:
    """What tells the machine of a record from others: processor, cores, memory and accelerator."""
    where = record["environment"]
    parts = [where.get("processor"), f"{where.get('cores', '?')} cores"]
    if isinstance(memory := where.get("memory_gib"), (int, float)):
        parts.append(f"{memory:.0f} GiB")
    parts += [where.get("gpu")]
    return ", ".join(str(part) for part in parts if part)


class _FaultError(Exception):
    """What a record lacks, and where."""


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _check(record: Any) -> None:
    _want(isinstance(record, dict), "it is no object")
    version = record.get("schema_version")
    _want(version == SCHEMA_VERSION, f"its schema_version is {version!r}, this edgeclf reads {SCHEMA_VERSION}")
    _want(isinstance(record.get("scenario"), str), "scenario is no text")
    for key in ("environment", "bundle", "workload"):
        _want(isinstance(record.get(key), dict), f"{key} is no object")
    for key in ("ratios", "bound"):
        _want(isinstance(record.get(key) or {}, dict), f"{key} is no object")
    _want(isinstance(record.get("rows"), list), "rows is no list")
    for place, row in enumerate(record["rows"]):
        _check_row(row, f"rows[{place}]")
    _check_list(record.get("knee") or [], "knee", ("cameras",), ("p50_ms", "p99_ms", "dropped_share"))
    _check_list(record.get("trace") or [], "trace", ("start", "seconds"))


def _check_row(row: Any, where: str) -> None:
    _want(isinstance(row, dict), f"{where} is no object")
    _want(isinstance(row.get("name"), str), f"{where}.name is no text")
    _want(row.get("status") in {"ok", "unavailable"}, f"{where}.status is neither 'ok' nor 'unavailable'")
    for key in ("metrics", "stages", "latency_ms"):
        _want(isinstance(row.get(key) or {}, dict), f"{where}.{key} is no object")
    for name, metric in (row.get("metrics") or {}).items():
        _check_metric(metric, f"{where}.metrics.{name}")
    if row.get("latency_ms"):
        _want(_are_numbers(row["latency_ms"].get("samples")), f"{where}.latency_ms.samples are no finite numbers")
    for stage, time in (row.get("stages") or {}).items():
        known = isinstance(time, dict) and _is_number(time.get("busy_seconds")) and _is_number(time.get("wait_seconds"))
        _want(known, f"{where}.stages.{stage} lacks busy_seconds or wait_seconds")


def _check_metric(metric: Any, where: str) -> None:
    _want(isinstance(metric, dict), f"{where} is no object")
    _want(metric.get("better") in {"higher", "lower"}, f"{where}.better is neither 'higher' nor 'lower'")
    samples = metric.get("samples")
    _want(_are_numbers(samples), f"{where}.samples are no finite numbers")
    _want(len(samples) <= _MOST_SAMPLES, f"{where}.samples are more than {_MOST_SAMPLES}")
    _want(_is_number(metric.get("median")), f"{where}.median is no finite number")


def _check_list(entries: Any, where: str, needed: Sequence[str], optional: Sequence[str] = ()) -> None:
    _want(isinstance(entries, list), f"{where} is no list")
    for place, entry in enumerate(entries):
        _want(isinstance(entry, dict), f"{where}[{place}] is no object")
        for key in (*needed, *optional):
            known = _is_number(entry.get(key)) or (key in optional and entry.get(key) is None)
            _want(known, f"{where}[{place}].{key} is no finite number")


def _want(condition: bool, fault: str) -> None:
    if not condition:
        raise _FaultError(fault)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(map(_is_number, values))
