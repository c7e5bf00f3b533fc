from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeclf.errors import SessionError
from edgeclf.runtime.driver import DeviceIdentity, cuda_driver_problem, device_identity

IntPointer = ctypes.POINTER(ctypes.c_int)
TextPointer = ctypes.POINTER(ctypes.c_char_p)
NO_DEVICE = 100
STARTING = ["cuInit", "cuDeviceGetCount"]
DESCRIBING = ["cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute", "cuDriverGetVersion"]


def driver_library(*, failing: str = "", code: int = NO_DEVICE, devices: int = 1, words: bool = True) -> Any:
    """libcuda with the C signatures of NVIDIA's: called through ctypes just as the real one is."""

    def function(name: str, answer: Callable[..., object], *types: Any) -> Any:
        def call(*arguments: Any) -> int:
            if name == failing:
                return code
            answer(*arguments)
            return 0

        return ctypes.CFUNCTYPE(ctypes.c_int, *types)(call)

    def store(pointer: Any, value: Any) -> None:
        pointer[0] = value

    def name_device(buffer: Any, size: int, device: int) -> None:
        ctypes.memmove(buffer, b"Orin\0", 5)

    def describe(kind: str) -> Any:
        def call(number: int, pointer: Any) -> int:
            pointer[0] = f"{kind} {number}".encode()
            return 0 if words else 1

        return ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, TextPointer)(call)

    return SimpleNamespace(
        cuInit=function("cuInit", lambda flags: None, ctypes.c_uint),
        cuDeviceGetCount=function("cuDeviceGetCount", lambda p: store(p, devices), IntPointer),
        cuDeviceGet=function("cuDeviceGet", lambda p, index: store(p, 40 + index), IntPointer, ctypes.c_int),
        cuDeviceGetName=function("cuDeviceGetName", name_device, ctypes.c_void_p, ctypes.c_int, ctypes.c_int),
        cuDeviceGetAttribute=function(
            "cuDeviceGetAttribute",
            lambda p, number, device: store(p, {75: 8, 76: 7}[number] + device - 40),
            IntPointer,
            ctypes.c_int,
            ctypes.c_int,
        ),
        cuDriverGetVersion=function("cuDriverGetVersion", lambda p: store(p, 12060), IntPointer),
        cuGetErrorName=describe("NAME_OF"),
        cuGetErrorString=describe("description of"),
    )


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a driver's library in place of this machine's."""

    def put(**options: Any) -> None:
        library = driver_library(**options)
        monkeypatch.setattr(ctypes, "CDLL", lambda name: {"libcuda.so.1": library}[name])

    return put


def test_device_is_named_with_what_an_engine_depends_on(install: Callable[..., None]) -> None:
    install()
    assert cuda_driver_problem() == ""
    assert device_identity() == DeviceIdentity("Orin", "8.7", "12.6")
    assert str(device_identity()) == "Orin (compute capability 8.7, driver for CUDA 12.6)"


def test_second_device_has_its_own_identity(install: Callable[..., None]) -> None:
    install()
    assert device_identity(1).compute_capability == "9.8"


@pytest.mark.parametrize("failing", STARTING)
def test_driver_that_does_not_start_says_why(install: Callable[..., None], failing: str) -> None:
    install(failing=failing)
    assert cuda_driver_problem().endswith("error 100 (NAME_OF 100, description of 100)")
    with pytest.raises(SessionError, match=r"the NVIDIA driver cannot .* nvidia-smi"):
        device_identity()


@pytest.mark.parametrize("failing", DESCRIBING)
def test_device_that_cannot_be_described_is_an_error(install: Callable[..., None], failing: str) -> None:
    install(failing=failing)
    with pytest.raises(SessionError, match=r"error 100 \(NAME_OF 100"):
        device_identity()


def test_error_without_words_has_its_number(install: Callable[..., None]) -> None:
    install(failing="cuInit", code=34, words=False)
    assert cuda_driver_problem() == "the NVIDIA driver cannot start: error 34"


def test_driver_without_device_is_a_problem(install: Callable[..., None]) -> None:
    install(devices=0)
    assert cuda_driver_problem() == "the NVIDIA driver sees no GPU"


def test_library_of_another_kind_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert "the NVIDIA driver is broken (libcuda.so.1:" in cuda_driver_problem()


def test_missing_library_is_a_missing_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert cuda_driver_problem() == "no NVIDIA driver is installed (libcuda.so.1 is missing)"
    with pytest.raises(SessionError, match="docker run --gpus all"):
        device_identity()


@pytest.mark.skipif(sys.platform != "linux", reason="finds libraries as Linux does")
def test_file_that_is_no_library_does_not_end_the_process(tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_bytes(b"not a library")
    code = "from edgeclf.runtime.driver import cuda_driver_problem as p; print(p())"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith("the NVIDIA driver is broken (libcuda.so.1: ")
    assert done.stderr == ""


def test_problem_and_identity_agree_on_this_machine() -> None:
    if problem := cuda_driver_problem():
        with pytest.raises(SessionError) as caught:
            device_identity()
        assert caught.value.message == problem
    else:
        assert device_identity().name
