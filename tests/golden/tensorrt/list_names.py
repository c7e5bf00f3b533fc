"""Writes the listings beside this file: the names in NVIDIA's Python bindings that our code may be checked against.

    python tests/golden/tensorrt/list_names.py              # all listings
    python tests/golden/tensorrt/list_names.py tensorrt_11  # those whose name begins so

It needs pip with a package index, and for TensorRT a C compiler named `cc`; neither a GPU nor a driver nor TensorRT
itself. The bindings of TensorRT are wheels on PyPI, the libraries under them are not: they are stood in for by empty
ones with the functions that importing asks for. Nothing is built or run through them. What is kept are names alone:
classes with their methods, argument names ("=" where there is a default), the class that comes back, and the members
of enums in their own order.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TENSORRT = ("10.3.0", "10.16.1.11", "11.4.0.106")  # JetPack 6; the last 10; 11
CUDA = ("12.8.0", "13.4.4")
CUDA_MODULES = ("cuda.bindings.runtime", "cuda.bindings.driver")

_STUB = "".join(
    f"void* {name}(void) {{ return 0; }}\n"
    for name in (
        "createInferBuilder_INTERNAL",
        "createInferRuntime_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createNvOnnxParser_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
        "getNvOnnxParserVersion",
        "initLibNvInferPlugins",
    )
)
_LOADER = """
import ctypes, pathlib
for library in pathlib.Path(__file__).parent.glob("*.so.*"):
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
"""

# Plugins and building networks layer by layer are not what we do; they are half of all names.
_UNUSED = re.compile(r"Plugin|^I\w+Layer$|^(ILoop|IIfConditional|PermutationIter|Permutation|IAlgorithm\w*|IInt8\w*)$")
_UNUSED_METHODS = re.compile(r"^(__|_pybind11|add_(?!optimization_profile))")
_CALL = re.compile(r"^(?:\d+\. )?\w+\((?P<takes>.*)\) -> (?P<returns>.+)$")
_CLASS = re.compile(r"\b(?:tensorrt_bindings|tensorrt_rtx_bindings)\.\w+\.(\w+)")


def main(prefixes: list[str]) -> None:
    """Write the listings whose name begins with one of `prefixes`; all without any."""
    for package, versions, prepare in (("tensorrt", TENSORRT, _stub_libraries), ("cuda", CUDA, None)):
        for version in versions:
            name = f"{package}_{version}"
            if prefixes and not name.startswith(tuple(prefixes)):
                continue
            wheel = f"tensorrt-cu12-bindings=={version}" if package == "tensorrt" else f"cuda-bindings=={version}"
            with tempfile.TemporaryDirectory() as folder:
                _install(wheel, Path(folder))
                if prepare:
                    prepare(Path(folder), version.partition(".")[0])
                listing = _in_a_process_of_its_own(package, folder)
            (HERE / f"{name}.json").write_text(compact(listing))
            print(f"{name}.json: {len(compact(listing))} bytes")  # noqa: T201


def compact(listing: dict[str, Any]) -> str:
    """JSON with one line for each class or enum, so that a difference of versions can be read."""
    parts = []
    for key, value in listing.items():
        if isinstance(value, dict):
            rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(value.items()))
            parts.append(f" {json.dumps(key)}: {{\n{rows}\n }}")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def tensorrt_names(trt: Any) -> dict[str, Any]:
    """What the module `trt` (TensorRT's or TensorRT-RTX's bindings) offers."""
    classes, enums, functions = {}, {}, {}
    for name, value in sorted(vars(trt).items()):
        if name.startswith("_") or name in ("np", "os", "sys", "ctypes", "warnings"):
            continue
        if hasattr(value, "__members__"):
            enums[name] = list(value.__members__)
        elif isinstance(value, type) and not _UNUSED.search(name):
            classes[name] = _class_names(value)
            inner = {key: entry for key, entry in vars(value).items() if hasattr(entry, "__members__")}
            enums |= {f"{name}.{key}": list(entry.__members__) for key, entry in inner.items()}
        elif callable(value) and not isinstance(value, type):
            functions[name] = _overloads(value)
    return {"version": trt.__version__, "classes": classes, "enums": enums, "functions": functions}


def cuda_names() -> dict[str, Any]:
    """What the runtime and driver modules of cuda-python offer."""
    listing: dict[str, Any] = {}
    for path in CUDA_MODULES:
        module = import_module(path)
        short = path.rpartition(".")[2]
        functions, enums, constants = {}, {}, []
        for name, value in sorted(vars(module).items()):
            if not name.lower().startswith("cu"):
                continue
            if hasattr(value, "__members__"):
                enums[name] = list(value.__members__)
            elif callable(value) and not isinstance(value, type):
                functions[name] = ", ".join(map(_python_argument, signature(value).parameters.values()))
            elif isinstance(value, int):
                constants.append(name)
        listing |= {f"{short}_functions": functions, f"{short}_enums": enums, f"{short}_constants": constants}
    return listing


def _class_names(cls: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in sorted(dir(cls)):
        if name != "__init__" and _UNUSED_METHODS.match(name):
            continue
        value = getattr(cls, name)
        if isinstance(value, property):
            found[name] = _returned((value.fget and value.fget.__doc__) or "")
        elif callable(value) and not isinstance(value, type):
            found[name] = _overloads(value)
        else:
            found[name] = ""
    return found


def _overloads(function: Any) -> list[str]:
    """Each way to call it: "name, other= -> Class"."""
    lines = (function.__doc__ or "").splitlines()
    calls = [match for line in lines if (match := _CALL.match(line.strip()))]
    numbered = [match for match in calls if match.group(0)[0].isdigit()]
    return [
        f"{', '.join(_arguments(match['takes']))} -> {_short(match['returns'])}".strip() for match in numbered or calls
    ]


def _arguments(text: str) -> Iterator[str]:
    depth, start = 0, 0
    for place, letter in enumerate(text + ","):
        depth += (letter in "[(<") - (letter in "])>" and text[place - 1 : place + 1] != "->")
        if letter == "," and depth == 0:
            name, _, rest = text[start:place].strip().partition(":")
            start = place + 1
            if name and name != "self":
                yield name + ("=" if re.search(r"[^=]=[^=]", rest) else "")


def _returned(doc: str) -> str:
    match = re.search(r"-> (.+)", doc)
    return _short(match[1]) if match else ""


def _short(kind: str) -> str:
    return _CLASS.sub(r"\1", kind).strip()


def _python_argument(parameter: Any) -> str:
    stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind.name, "")
    return f"{stars}{parameter.name}{'=' if parameter.default is not parameter.empty else ''}"


def _install(wheel: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "-q", "--only-binary=:all:", "--target", str(folder)]
    no_dependencies = ["--no-deps"] if wheel.startswith("tensorrt") else []
    subprocess.run([*command, *no_dependencies, wheel], check=True)


def _stub_libraries(folder: Path, major: str) -> None:
    libraries = folder / "tensorrt_libs"  # a package of this name is what the bindings import first
    libraries.mkdir()
    source = folder / "stub.c"
    source.write_text(_STUB)
    for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        soname = f"lib{library}.so.{major}"
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", str(libraries / soname), str(source)]
        subprocess.run(command, check=True)
    (libraries / "__init__.py").write_text(_LOADER)


def _in_a_process_of_its_own(package: str, folder: str) -> dict[str, Any]:
    code = f"""
import json, sys
sys.path[:0] = [{folder!r}, {str(HERE)!r}]
import list_names
print(json.dumps(list_names.names_of({package!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    listing: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return listing


def names_of(package: str) -> dict[str, Any]:
    """The listing of the package that is installed here."""
    return tensorrt_names(import_module("tensorrt_bindings")) if package == "tensorrt" else cuda_names()


if __name__ == "__main__":
    main(sys.argv[1:])
