"""What `edgeclf tune` found out, in a file where `infer` finds it again.

The folder is `$EDGECLF_CACHE_DIR/tuned`, or `edgeclf/tuned` in `$XDG_CACHE_HOME` or `~/.cache`. It may be deleted at
any time. There is a file for each bundle, machine and objective, and it holds the key that it is good for.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from edgeclf import __version__
from edgeclf.bundle import ModelBundle
from edgeclf.runtime.cache import cache_folder, short_hash
from edgeclf.runtime.cores import available_cores
from edgeclf.runtime.driver import cuda_driver_problem, device_identity
from edgeclf.runtime.machine import package_version, processor
from edgeclf.runtime.sessions.providers import installed_tensorrt
from edgeclf.runtime.tensorrt_engine import write_whole
from edgeclf.specs import Device, require

if TYPE_CHECKING:
    from edgeclf.runtime.pipeline import LoopOptions

_log = logging.getLogger(__name__)

Objective = Literal["throughput", "latency"]

_FORMAT = 1
_MAX_BYTES = 1 << 20
_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "openvino")
# What a file with flipped, missing, foreign or crafted bytes makes the reader raise.
_READ_ERRORS = (OSError, ValueError, TypeError, KeyError, RecursionError)


@dataclass(frozen=True, slots=True)
class Tuned:
    """The way to run a bundle that was the best one on this machine."""

    objective: Objective
    backend: str
    device: Device  # where it really runs, which "auto" does not say
    precision: str
    batch_size: int
    workers: int
    threads: int  # inside one run
    frames_per_second: float  # of the extractor alone, all workers together
    latency_seconds: float  # of one run of one frame alone
    date: str

    def __post_init__(self) -> None:
        require(self.objective in get_args(Objective), f"objective is {self.objective!r}")
        require(self.device in get_args(Device), f"device is {self.device!r}")
        for name in ("backend", "precision", "date"):
            require(isinstance(getattr(self, name), str), f"{name} is no text")
        for name in ("batch_size", "workers", "threads"):
            value = getattr(self, name)
            require(type(value) is int and 1 <= value <= 1024, f"{name} is {value!r}")
        for name in ("frames_per_second", "latency_seconds"):
            value = getattr(self, name)
            require(type(value) in (int, float) and 0 < value < float("inf"), f"{name} is {value!r}")

    def options(self, base: LoopOptions) -> LoopOptions:
        """The options of the loop with this choice in them; queues and waiting stay as they suit the device.

        For latency no frame waits for its batch to fill.
        """
        chosen = replace(base.with_batch(self.batch_size), workers=self.workers)
        return replace(chosen, max_wait=0.0) if self.objective == "latency" else chosen

    def __str__(self) -> str:
        workers = f"{self.workers} worker{'' if self.workers == 1 else 's'}"
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        return (
            f"tuned for {self.objective} on {self.date}: {self.backend} {self.precision} on {self.device}, "
            f"batch {self.batch_size}, {workers} x {threads}"
        )


def find(bundle: ModelBundle, device: Device, objective: Objective) -> Tuned | None:
    """What `tune` chose for this bundle on this machine, None where it never did or something changed since.

    A file that is damaged or of another key is left alone, with a line in the log.
    """
    record = stored_record(bundle, device, objective)
    return None if record is None else Tuned(**record["tuned"])


def find_for_all(bundles: Sequence[ModelBundle], device: Device, objective: Objective) -> Tuned | None:
    """The choice for bundles that run on one extractor; one of them must have been tuned.

    Another precision than fp32 was proven for one classifier alone: it counts only where all chose it.
    """
    found = [find(bundle, device, objective) for bundle in bundles]
    first = next((each for each in found if each), None)
    if first is None or first.precision == "fp32":
        return first
    return first if all(each and each.precision == first.precision for each in found) else None


def stored_record(bundle: ModelBundle, device: Device, objective: Objective) -> dict[str, Any] | None:
    """All that `tune` kept: the choice, what was tried, what did not work; None as `find`."""
    key = key_of(bundle, device, objective)
    path = _path(key)
    if path is None or not path.is_file():
        return None
    try:
        return _read(path, key)
    except _READ_ERRORS as error:
        _log.warning("%s is not used: %s; run edgeclf tune again", path, error)
        return None


def keep(key: Mapping[str, Any], record: Mapping[str, Any]) -> Path:
    """Write what was found under a key of `key_of`; the file.

    A reader sees the old file or the new one; of two that write at once, the last one stays. Raises OSError where it
    cannot be written.
    """
    path = _path(key)
    if path is None:
        raise OSError("there is no home folder; set EDGECLF_CACHE_DIR")
    text = json.dumps({**record, "key": key}, indent=2, allow_nan=False)
    write_whole(path, text.encode() + b"\n")
    return path


def key_of(bundle: ModelBundle, device: Device, objective: Objective) -> dict[str, Any]:
    """All that must be the same for a choice to be used again, JSON-ready.

    "auto" is the same as "cpu" where no GPU can be used.
    """
    gpu = device != "cpu" and not cuda_driver_problem()
    graphs = {*bundle.extractor.precisions.values(), *bundle.classifier.precisions.values()}
    return {
        "format": _FORMAT,
        "objective": objective,
        "device": "cpu" if device == "auto" and not gpu else device,
        "graphs": {name: bundle.manifest.files[name] for name in sorted(graphs)},
        "processor": processor(),
        "cores": available_cores(),
        "gpu": asdict(device_identity()) if gpu else None,
        "versions": {
            "edgeclf": __version__,
            **{name: found for name in _PACKAGES if (found := package_version(name))},
            **({"tensorrt": installed_tensorrt()} if gpu else {}),
        },
    }


def _path(key: Mapping[str, Any]) -> Path | None:
    try:
        folder = cache_folder("tuned")
    except RuntimeError:  # there is no home folder
        return None
    return folder / f"{key['objective']}-{short_hash(json.dumps(key, sort_keys=True))}.json"


def _read(path: Path, key: Mapping[str, Any]) -> dict[str, Any]:
    """The record in the file; raises one of `_READ_ERRORS` unless it is whole and of this key."""
    with path.open("rb") as file:
        record = json.loads(file.read(_MAX_BYTES))
    require(isinstance(record, dict) and record.get("key") == key, "it is of another machine or bundle")
    require(Tuned(**record["tuned"]).objective == key["objective"], "it is of another objective")
    return dict(record)


# -- text -------------------------------------------------------------------------------------------------------------


def table(record: Mapping[str, Any]) -> str:
    """The record as text: all that was tried, the fastest first and the winner marked, then what does not work."""
    key, tuned = record["key"], record["tuned"]
    lines = [
        f"{record['bundle']} for {tuned['objective']}: {key['processor']}, {key['cores']} cores"
        f"{_gpu(key)}, load {record['load_average']} at the start; {tuned['date']}",
        "",
        f"  {'backend':<12} {'device':<8} {'precision':<9} {'batch':>5}  {'workers x threads':>17}  "
        f"{'frames/s':>8}  {'min-max':>15}  turns",
    ]
    lines += [_table_row(row, tuned) for row in record["tried"]]
    lines += ["", f"* {_winner_line(tuned)}"]
    if record["unavailable"]:
        lines += ["", "does not work, or is not taken:"]
        lines += [f"  {name}: {reason}" for name, reason in record["unavailable"].items()]
    if record["sequence_model"]:
        lines += ["", f"the sequence model {record['classifier']}, one clip at a time (it runs on onnxruntime):"]
        lines += [f"  {name}: {_clip_line(found)}" for name, found in record["sequence_model"].items()]
    return "\n".join(lines)


def _table_row(row: Mapping[str, Any], tuned: Mapping[str, Any]) -> str:
    rate = row["frames_per_second"]
    won = all(row[name] == tuned[name] for name in row if name != "frames_per_second")
    shape = f"{row['workers']} x {row['threads']}"
    spread = f"{rate['smallest']:.1f}-{rate['largest']:.1f}"
    return (
        f"{'*' if won else ' '} {row['backend']:<12} {row['device']:<8} {row['precision']:<9} {row['batch_size']:>5}  "
        f"{shape:>17}  {rate['median']:>8.1f}  {spread:>15}  {rate['count']:>5}"
    )


def _winner_line(tuned: Mapping[str, Any]) -> str:
    latency = 1000 * tuned["latency_seconds"]
    return f"{Tuned(**tuned)}: {tuned['frames_per_second']:.1f} frames/s, {latency:.1f} ms for one frame alone"


def _gpu(key: Mapping[str, Any]) -> str:
    return f", {key['gpu']['name']}" if key["gpu"] else ""


def _clip_line(found: Mapping[str, Any]) -> str:
    return found.get("problem") or f"{1e6 * found['seconds_per_clip']:.0f} microseconds"
