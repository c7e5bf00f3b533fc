"""Built TensorRT engines on disk, so that a graph is built once for a GPU and a TensorRT version.

The folder is `$EDGECLF_CACHE_DIR/engines`, or `edgeclf/engines` in `$XDG_CACHE_HOME` or `~/.cache`. It may be deleted
at any time. A file is two lines (what it is; its key and the hash of the plan, as JSON) and then the plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeclf.bundle import sha256_of
from edgeclf.errors import SessionError
from edgeclf.runtime.cache import cache_folder, short_hash
from edgeclf.runtime.driver import DeviceIdentity, device_identity
from edgeclf.runtime.tensorrt_engine import BuildSettings, BuiltEngine, Say, engine_from_onnx, write_whole

_MAGIC = b"edgeclf engine 1\n"
_MAX_HEADER_BYTES = 1 << 16
_BUILDER_REVISION = 1  # to be raised when engine_from_onnx builds something else from the same settings


@dataclass(frozen=True, slots=True)
class EngineKey:
    """All that must be the same for an engine to be used again."""

    graph_sha256: str
    tensorrt: str
    device: str
    compute_capability: str
    settings: BuildSettings
    builder_revision: int = _BUILDER_REVISION

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary."""
        return asdict(self)

    @property
    def digest(self) -> str:
        """A hash of the key, short enough for a file's name; the file itself holds the whole key."""
        return short_hash(json.dumps(self.to_dict(), sort_keys=True))


def engine_key(trt: Any, graph: Path, settings: BuildSettings, device: DeviceIdentity | None = None) -> EngineKey:
    """The key of the engine of `graph` for `device`, the first GPU unless said."""
    gpu = device or device_identity()
    try:
        digest = sha256_of(graph)
    except OSError as error:
        raise SessionError(f"{graph} cannot be read: {error}", hint="check the path and its permissions") from error
    return EngineKey(digest, f"{trt.__name__} {trt.__version__}", gpu.name, gpu.compute_capability, settings)


def engine_folder() -> Path:
    """Where engines are kept."""
    return cache_folder("engines")


def engine_path(graph: Path, key: EngineKey) -> Path:
    """The file of an engine; it need not exist."""
    return engine_folder() / f"{graph.stem}-{key.digest}.engine"


def timing_cache_path(key: EngineKey) -> Path:
    """The file of what builds for this GPU measured; all graphs share it."""
    what = f"{key.tensorrt}, {key.device}, {key.compute_capability}"
    return engine_folder() / f"timing-{short_hash(what)}.cache"


def cached_engine(
    trt: Any,
    graph: Path,
    settings: BuildSettings,
    *,
    device: DeviceIdentity | None = None,
    say: Say = lambda _: None,
) -> bytes:
    """The plan of `graph` for `device`: read from the cache, or built (minutes) and kept.

    A file that is damaged, cut short or of another key is built again. Processes build one at a time: one waits and
    then reads what the other built, and no build spoils the measurements of another. Where nothing can be written,
    the engine is built and not kept. Raises SessionError where it cannot be built, or no device can be used.
    """
    key = engine_key(trt, graph, settings, device)
    path = engine_path(graph, key)
    if (plan := _read(path, key)) is not None:
        return plan
    with _building_alone(path.parent, say):
        if (plan := _read(path, key)) is not None:
            return plan
        built = engine_from_onnx(trt, graph, settings, timing_cache=timing_cache_path(key), say=say)
        _keep(path, key, built, say)
    return built.plan


def forget_engine(trt: Any, graph: Path, settings: BuildSettings, device: DeviceIdentity | None = None) -> None:
    """Remove the engine from the cache: to be called where TensorRT does not load it."""
    forget(engine_path(graph, engine_key(trt, graph, settings, device)))


def forget(path: Path) -> None:
    """Remove the file of an engine, if there is one. Raises SessionError where it is there and cannot be removed."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise SessionError(f"{path} does not load and cannot be removed: {error}", hint="remove it by hand") from error


def _read(path: Path, key: EngineKey) -> bytes | None:
    """The plan in the file, or None unless it is whole and of this key."""
    try:
        with path.open("rb") as file:
            if file.readline(len(_MAGIC)) != _MAGIC:
                return None
            header = json.loads(file.readline(_MAX_HEADER_BYTES))
            plan = file.read()
        fits = header["key"] == key.to_dict() and header["plan_sha256"] == _sha256(plan)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return plan if fits else None


def _keep(path: Path, key: EngineKey, built: BuiltEngine, say: Say) -> None:
    header = {
        "key": key.to_dict(),
        "plan_sha256": _sha256(built.plan),
        "layers": built.layers,
        "half_share": built.half_share,
        "seconds": built.seconds,
    }
    try:
        write_whole(path, _MAGIC, json.dumps(header, sort_keys=True).encode() + b"\n", built.plan)
    except OSError as error:
        say(f"the engine cannot be kept, and will be built again next time: {error}")


def _sha256(plan: bytes) -> str:
    return hashlib.sha256(plan).hexdigest()


@contextmanager
def _building_alone(folder: Path, say: Say) -> Iterator[None]:
    """Hold the folder's lock; without one where the folder cannot be written or does not know locks.

    The system gives the lock back when a process ends, however it does.
    """
    import fcntl  # not on Windows, where the rest of the runtime can be imported

    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (folder / "building.lock").open("wb")
    except OSError:
        yield
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is building an engine; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            say(f"{folder} cannot be locked: {error}")
        yield
