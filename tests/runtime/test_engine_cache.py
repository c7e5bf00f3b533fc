from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeclf.errors import SessionError
from edgeclf.runtime import engine_cache
from edgeclf.runtime.driver import DeviceIdentity, cuda_driver_problem
from edgeclf.runtime.engine_cache import (
    cached_engine,
    engine_folder,
    engine_key,
    engine_path,
    forget,
    forget_engine,
    timing_cache_path,
)
from edgeclf.runtime.tensorrt_engine import BuildSettings, BuiltEngine
from tests.support import tensorrt_rtx
from tests.support.colors import extractor_onnx

ORIN = DeviceIdentity("Orin", "8.7", "12.6")
SETTINGS = BuildSettings(max_batch=4)
TRT: Any = SimpleNamespace(__name__="tensorrt", __version__="10.3.0")


@pytest.fixture(autouse=True)
def folder(own_cache: Path) -> Path:
    return own_cache / "engines"


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "extractor.onnx"
    path.write_bytes(extractor_onnx())
    return path


class Builds:
    """Stands in for engine_from_onnx: counts, and gives another plan each time."""

    def __init__(self) -> None:
        self.timing_caches: list[Path] = []

    def __call__(self, trt: Any, graph: Path, settings: BuildSettings, *, timing_cache: Path, say: Any) -> BuiltEngine:
        self.timing_caches.append(timing_cache)
        return BuiltEngine(f"plan {self.count}\n{graph.name}".encode() * 99, 3, 0.5, 1.5)

    @property
    def count(self) -> int:
        return len(self.timing_caches)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    builds = Builds()
    monkeypatch.setattr(engine_cache, "engine_from_onnx", builds)
    return builds


def opened(graph: Path, settings: BuildSettings = SETTINGS, *, trt: Any = TRT, device: DeviceIdentity = ORIN) -> bytes:
    return cached_engine(trt, graph, settings, device=device)


def file_of(graph: Path) -> Path:
    return engine_path(graph, engine_key(TRT, graph, SETTINGS, ORIN))


def test_engine_is_built_once(graph: Path, builds: Builds, folder: Path) -> None:
    assert opened(graph) == opened(graph)
    assert builds.count == 1
    assert sorted(file.name for file in folder.iterdir()) == sorted(["building.lock", file_of(graph).name])


@pytest.mark.parametrize(
    "other",
    [
        {"trt": SimpleNamespace(__name__="tensorrt", __version__="10.3.1")},
        {"device": replace(ORIN, name="Thor")},
        {"device": replace(ORIN, compute_capability="11.0")},
        {"settings": replace(SETTINGS, precision="fp16")},
        {"settings": replace(SETTINGS, max_batch=5)},
        {"settings": replace(SETTINGS, best_batch=1)},
        {"settings": replace(SETTINGS, workspace_bytes=1)},
        {"settings": replace(SETTINGS, optimization_level=5)},
        {"settings": replace(SETTINGS, version_compatible=True)},
        {"settings": replace(SETTINGS, strongly_typed=True)},
        {"settings": replace(SETTINGS, tf32=True)},
    ],
)
def test_engine_of_another_key_is_built_beside(graph: Path, builds: Builds, other: dict[str, Any]) -> None:
    first = opened(graph)
    assert opened(graph, **other) != first
    assert builds.count == 2
    assert opened(graph) == first
    assert builds.count == 2


def test_driver_may_change_under_an_engine(graph: Path, builds: Builds) -> None:
    opened(graph)
    opened(graph, device=replace(ORIN, driver_version="13.0"))
    assert builds.count == 1


def test_changed_graph_is_built_again(graph: Path, builds: Builds) -> None:
    first = opened(graph)
    graph.write_bytes(extractor_onnx() + b"\0")
    assert opened(graph) != first


def test_change_of_the_builder_itself_is_another_key(graph: Path) -> None:
    key = engine_key(TRT, graph, SETTINGS, ORIN)
    assert replace(key, builder_revision=key.builder_revision + 1).digest != key.digest


def cut(data: bytes) -> bytes:
    return data[:-1]


def longer(data: bytes) -> bytes:
    return data + b"\0"


def bit_flipped(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


def of_another_format(data: bytes) -> bytes:
    return data.replace(b"engine 1\n", b"engine 2\n", 1)


def header_cut(data: bytes) -> bytes:
    return data.replace(b'{"', b"{", 1)


def header_is_a_list(data: bytes) -> bytes:
    magic, _, rest = data.split(b"\n", 2)
    return b"\n".join([magic, b"[]", rest])


def header_is_deep(data: bytes) -> bytes:
    magic, _, rest = data.split(b"\n", 2)
    return b"\n".join([magic, b"[" * 60_000, rest])


def of_another_graph(data: bytes) -> bytes:
    return data.replace(b'"graph_sha256": "', b'"graph_sha256": "0', 1)


def emptied(data: bytes) -> bytes:
    return b""


DAMAGES = [
    cut,
    longer,
    bit_flipped,
    of_another_format,
    header_cut,
    header_is_a_list,
    header_is_deep,
    of_another_graph,
    emptied,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_engine_is_built_again(graph: Path, builds: Builds, damage: Callable[[bytes], bytes]) -> None:
    first = opened(graph)
    whole = file_of(graph).read_bytes()
    file_of(graph).write_bytes(damage(whole))
    assert file_of(graph).read_bytes() != whole
    second = opened(graph)
    assert builds.count == 2
    assert second != first
    assert opened(graph) == second


def test_forgotten_engine_is_built_again(graph: Path, builds: Builds) -> None:
    opened(graph)
    forget_engine(TRT, graph, SETTINGS, ORIN)
    assert not file_of(graph).exists()
    opened(graph)
    assert builds.count == 2


def test_forgetting_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    forget(tmp_path / "nothing.engine")


def test_file_that_cannot_be_forgotten_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match=r"does not load and cannot be removed: .*; remove it by hand"):
        forget(tmp_path)


def test_folder_that_cannot_be_written_costs_no_engine(graph: Path, builds: Builds, folder: Path) -> None:
    folder.parent.write_bytes(b"a file where the folder would be")
    said: list[str] = []
    plan = cached_engine(TRT, graph, SETTINGS, device=ORIN, say=said.append)
    assert plan.startswith(b"plan 1")
    assert "the engine cannot be kept" in said[0]


def test_engine_of_a_folder_that_is_only_read_is_used(graph: Path, builds: Builds, folder: Path) -> None:
    first = opened(graph)
    (folder / "building.lock").unlink()
    (folder / "building.lock").mkdir()  # a lock cannot be taken here, not even by root
    assert opened(graph) == first
    assert builds.count == 1


def test_graphs_of_one_gpu_share_a_timing_cache(graph: Path, builds: Builds, folder: Path) -> None:
    opened(graph)
    opened(graph, replace(SETTINGS, precision="fp16"))
    opened(graph, device=replace(ORIN, name="Thor"))
    first, second, third = builds.timing_caches
    assert first == second == timing_cache_path(engine_key(TRT, graph, SETTINGS, ORIN))
    assert first.parent == third.parent == folder
    assert first != third


def test_missing_graph_is_an_error(tmp_path: Path, builds: Builds) -> None:
    with pytest.raises(SessionError, match=r"x.onnx cannot be read"):
        opened(tmp_path / "x.onnx")


def test_machine_without_gpu_is_an_error_before_anything_is_built(graph: Path, builds: Builds) -> None:
    if not cuda_driver_problem():
        pytest.skip("this machine has an NVIDIA GPU")
    with pytest.raises(SessionError, match="NVIDIA driver"):
        cached_engine(TRT, graph, SETTINGS)
    assert builds.count == 0


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"EDGECLF_CACHE_DIR": "/own", "XDG_CACHE_HOME": "/xdg"}, Path("/own/engines")),
        ({"XDG_CACHE_HOME": "/xdg"}, Path("/xdg/edgeclf/engines")),
        ({"HOME": "/home/someone"}, Path("/home/someone/.cache/edgeclf/engines")),
        ({"EDGECLF_CACHE_DIR": "~/own", "HOME": "/home/someone"}, Path("/home/someone/own/engines")),
    ],
)
def test_folder_is_the_users_unless_named(
    environment: dict[str, str], expected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("EDGECLF_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert engine_folder() == expected


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_real_engine_comes_back_as_it_was_built(graph: Path, folder: Path) -> None:
    trt, said = tensorrt_rtx.builder(), list[str]()
    plans = [cached_engine(trt, graph, SETTINGS, device=ORIN, say=said.append) for _ in range(2)]
    assert plans[0] == plans[1] == tensorrt_rtx.build(graph, max_batch=4).plan
    assert len([line for line in said if line.startswith("built the engine")]) == 1
    assert engine_path(graph, engine_key(trt, graph, SETTINGS, ORIN)).stat().st_size > len(plans[0])
    assert {file.suffix for file in folder.iterdir()} == {".engine", ".cache", ".lock"}


def test_failed_build_leaves_nothing_behind(graph: Path, folder: Path) -> None:
    trt = tensorrt_rtx.builder()
    with pytest.raises(SessionError, match="fp16 was asked for"):
        cached_engine(trt, graph, BuildSettings("fp16"), device=ORIN)
    assert [file.name for file in folder.iterdir()] == ["building.lock"]


# --- several processes: each says on stdout what it does, and builds until it is sent a line

PROCESS = """
import sys
from pathlib import Path
from types import SimpleNamespace
from edgeclf.runtime import engine_cache
from edgeclf.runtime.driver import DeviceIdentity
from edgeclf.runtime.tensorrt_engine import BuildSettings, BuiltEngine

def build(trt, graph, settings, *, timing_cache, say):
    print("building", flush=True)
    return BuiltEngine(sys.stdin.readline().strip().encode(), 1, 0.0, 0.0)

engine_cache.engine_from_onnx = build
plan = engine_cache.cached_engine(
    SimpleNamespace(__name__="tensorrt", __version__="10.3.0"), Path(sys.argv[1]), BuildSettings(max_batch=4),
    device=DeviceIdentity("Orin", "8.7", "12.6"), say=lambda line: print(line, flush=True),
)
print("has", plan.decode(), flush=True)
"""
WAITING = "another process is building an engine; waiting for it\n"


@pytest.fixture
def start(graph: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a process that wants the engine of the graph."""
    running: list[subprocess.Popen[str]] = []

    def go() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROCESS, str(graph)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
        )
        running.append(process)
        return process

    yield go
    for process in running:
        process.kill()
        process.communicate()


def said_by(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline()


def finish(process: subprocess.Popen[str], plan: str) -> None:
    assert process.stdin
    process.stdin.write(f"{plan}\n")
    process.stdin.flush()


def test_two_processes_build_once(start: Callable[[], subprocess.Popen[str]]) -> None:
    first = start()
    assert said_by(first) == "building\n"
    second = start()
    assert said_by(second) == WAITING
    finish(first, "one")
    assert said_by(first) == said_by(second) == "has one\n"


def test_process_that_dies_while_it_builds_lets_the_next_build(start: Callable[[], subprocess.Popen[str]]) -> None:
    first = start()
    assert said_by(first) == "building\n"
    second = start()
    assert said_by(second) == WAITING
    first.send_signal(signal.SIGKILL)
    assert said_by(second) == "building\n"
    finish(second, "two")
    assert said_by(second) == "has two\n"
