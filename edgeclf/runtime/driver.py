"""What the NVIDIA driver says, asked through its own library: no CUDA toolkit and no TensorRT is needed for that.

TensorRT objects that are made where no driver works can end the process (a segmentation fault, as seen with the lean
runtime 11.4), so that this is asked first.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from edgeclf.errors import SessionError

_LIBRARY = "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_NAME_BYTES = 256
_FUNCTIONS = (
    "cuInit",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDriverGetVersion",
    "cuGetErrorName",
    "cuGetErrorString",
)


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """The GPU that an engine is built for; a plan fits no other kind."""

    name: str
    compute_capability: str  # "8.7"
    driver_version: str  # as the newest CUDA that it serves: "12.6"

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability}, driver for CUDA {self.driver_version})"


def cuda_driver_problem() -> str:
    """Why no CUDA device can be used, in words for a person; empty if one can. Never raises."""
    try:
        _started()
    except SessionError as error:
        return error.message
    return ""


def device_identity(index: int = 0) -> DeviceIdentity:
    """The CUDA device of that number, as CUDA_VISIBLE_DEVICES counts; SessionError where it cannot be used."""
    cuda = _started()
    device = ctypes.c_int()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    version = ctypes.c_int()
    _check(cuda, "find the GPU", cuda.cuDeviceGet(ctypes.byref(device), ctypes.c_int(index)))
    _check(cuda, "name the GPU", cuda.cuDeviceGetName(name, ctypes.c_int(_NAME_BYTES), device))
    _check(cuda, "tell its version", cuda.cuDriverGetVersion(ctypes.byref(version)))
    major, minor = (_attribute(cuda, device, number) for number in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR))
    return DeviceIdentity(
        name.value.decode(errors="replace"), f"{major}.{minor}", f"{version.value // 1000}.{version.value % 1000 // 10}"
    )


def _started() -> Any:
    """The driver's library after cuInit, with at least one device."""
    cuda = _load()
    _check(cuda, "start", cuda.cuInit(ctypes.c_uint(0)))
    count = ctypes.c_int()
    _check(cuda, "count the GPUs", cuda.cuDeviceGetCount(ctypes.byref(count)))
    if count.value < 1:
        raise SessionError("the NVIDIA driver sees no GPU", hint="check nvidia-smi and CUDA_VISIBLE_DEVICES")
    return cuda


def _load() -> Any:
    try:
        cuda = ctypes.CDLL(_LIBRARY)
        for name in _FUNCTIONS:
            getattr(cuda, name)
    except (OSError, AttributeError) as error:
        if "No such file" in str(error):
            problem = f"no NVIDIA driver is installed ({_LIBRARY} is missing)"
        else:
            problem = f"the NVIDIA driver is broken ({_LIBRARY}: {error})"
        raise SessionError(
            problem,
            hint="install the driver; a container gets the one of its host (docker run --gpus all)",
        ) from error
    return cuda


def _check(cuda: Any, task: str, code: int) -> None:
    if code:
        raise SessionError(
            f"the NVIDIA driver cannot {task}: {_described(cuda, code)}",
            hint="check nvidia-smi, and that the kernel module and the driver's libraries are of one version",
        )


def _described(cuda: Any, code: int) -> str:
    words = []
    for function in (cuda.cuGetErrorName, cuda.cuGetErrorString):
        text = ctypes.c_char_p()
        if function(ctypes.c_int(code), ctypes.byref(text)) == 0 and text.value:
            words.append(text.value.decode(errors="replace"))
    return f"error {code}" + (f" ({', '.join(words)})" if words else "")


def _attribute(cuda: Any, device: ctypes.c_int, number: int) -> int:
    value = ctypes.c_int()
    _check(cuda, "describe the GPU", cuda.cuDeviceGetAttribute(ctypes.byref(value), ctypes.c_int(number), device))
    return value.value
