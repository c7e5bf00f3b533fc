"""Every name of TensorRT and CUDA that our code uses exists in all versions that we support.

The listings were made from NVIDIA's own bindings (tests/golden/tensorrt/list_names.py); none of them is installed here.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import edgeclf
from edgeclf.runtime import driver
from tests.support import tensorrt_rtx
from tests.support.listed_tensorrt import (
    CUDA_VERSIONS,
    LISTINGS,
    TENSORRT_VERSIONS,
    cuda_listing,
    fits,
    split_overload,
    tensorrt_listing,
)

PACKAGE = Path(edgeclf.__file__).parent
MODULES = sorted(
    path for path in PACKAGE.rglob("*.py") if re.search(r"\btrt\.|cuda\.bindings|\.cuda[A-Z]", path.read_text())
)

# Names that some versions lack, and the test that must stand in the module that uses them.
GUARDED = {
    "BuilderFlag.FP16": 'hasattr(trt.BuilderFlag, "FP16")',
    "BuilderFlag.INT8": 'hasattr(trt.BuilderFlag, "FP16")',
}
# What a parameter or variable of that name is, where it cannot be told from what was assigned to it.
KNOWN_AS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "layer": "ILayer",
    "context": "IExecutionContext",
    "parser_error": "ParserError",
}
MODULE = "module tensorrt"
LIST = "list of "
FOLLOWED = ("tensorrt_engine.py", "tensorrt.py", "cuda.py")  # where every attribute must be known to somebody


@dataclass
class Checker:
    """Follows what is known to be TensorRT's through the code, and collects what a version does not have."""

    listing: dict[str, Any]
    guarded: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    variables: dict[str, str] = field(default_factory=dict)

    def check(self, tree: ast.AST) -> None:
        for scope in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)):
            self.learn(scope)
            for node in ast.walk(scope):
                if isinstance(node, ast.Attribute):
                    self.kind_of(node)
                elif isinstance(node, ast.Call):
                    self.check_call(node)

    def learn(self, scope: ast.AST) -> None:
        """What the names of a function, or the attributes of a class, are."""
        self.variables = {}
        for _ in range(3):  # one thing is made of another
            for target, value in assignments(scope):
                name = ast.unparse(target)
                self.variables[name] = self.kind_of(value) or self.variables.get(name, "")
            for target, many in loops(scope):
                if (kind := self.kind_of(many)).startswith(LIST):
                    self.variables[ast.unparse(target)] = kind.removeprefix(LIST)

    def kind_of(self, node: ast.expr) -> str:
        """The class of what the expression gives, "" where that is unknown."""
        if isinstance(node, ast.Call):
            return self.returned_by(node)
        if isinstance(node, ast.ListComp | ast.GeneratorExp):
            return LIST + self.kind_of(node.elt)
        text = ast.unparse(node)
        if isinstance(node, ast.Name):
            return MODULE if text == "trt" else self.variables.get(text) or KNOWN_AS.get(text, "")
        if not isinstance(node, ast.Attribute):
            return ""
        if text in ("self.trt", "self._trt", "job.trt", "engine.trt", "self._engine.trt"):
            return MODULE
        found = self.attribute(self.kind_of(node.value), node.attr) or self.variables.get(text, "")
        return found or KNOWN_AS.get(node.attr.lstrip("_"), "")

    def attribute(self, owner: str, name: str) -> str:
        if not owner or name.startswith("__"):
            return ""
        if owner == MODULE:
            if name in self.listing["classes"] or name in self.listing["enums"]:
                self.seen.add(name)
                return f"class {name}"
            self.miss(name)
            return ""
        owner = owner.removeprefix("class ")
        dotted = f"{owner}.{name}"
        if owner in self.listing["enums"]:
            known: Any = name in self.listing["enums"][owner]
        elif owner in self.listing["classes"]:
            known = name in self.listing["classes"][owner]
        else:
            return ""
        if not known:
            self.miss(dotted)
            return ""
        self.seen.add(dotted)
        if dotted in self.listing["enums"]:
            return f"class {dotted}"
        entry = self.listing["classes"].get(owner, {}).get(name, "")
        return entry if isinstance(entry, str) else f"method {dotted}"

    def miss(self, dotted: str) -> None:
        if dotted not in self.guarded and dotted not in self.problems:
            self.problems.append(dotted)

    def overloads(self, function: ast.expr) -> tuple[str, list[str]]:
        kind = self.kind_of(function)
        if kind.startswith("method "):
            owner, _, name = kind.removeprefix("method ").rpartition(".")
            return kind, self.listing["classes"][owner][name]
        if kind.startswith("class ") and (cls := kind.removeprefix("class ")) in self.listing["classes"]:
            return kind, [way.replace("-> None", f"-> {cls}") for way in self.listing["classes"][cls]["__init__"]]
        return kind, []

    def returned_by(self, node: ast.Call) -> str:
        for way in self.overloads(node.func)[1]:
            return split_overload(way)[1]
        return ""

    def check_call(self, node: ast.Call) -> None:
        kind, ways = self.overloads(node.func)
        unbound = ast.unparse(node.func).endswith(".__init__")
        starred = any(isinstance(argument, ast.Starred) for argument in node.args)
        if not ways or unbound or starred:
            return
        keywords = {keyword.arg for keyword in node.keywords if keyword.arg}
        if not any(fits(way, len(node.args), keywords) for way in ways):
            self.problems.append(f"{ast.unparse(node)}: {kind} takes {ways}")


def assignments(scope: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    yield from zip(target.elts, node.value.elts, strict=False)
                else:
                    yield target, node.value
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value:
            yield node.target, node.value


def loops(scope: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    for node in ast.walk(scope):
        if isinstance(node, ast.For | ast.comprehension):
            yield node.target, node.iter


def names_known_elsewhere(code: str) -> set[str]:
    """Attributes of what the code imports from elsewhere, and all that this package defines."""
    known = {name for module in (builtins, io, *imported_by(code)) for name in names_within(module)}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                known.add(node.name)
            elif isinstance(node, ast.AnnAssign | ast.Attribute) and stores(node):
                known.add(ast.unparse(node).partition(":")[0].rpartition(".")[2])
    return known


def imported_by(code: str) -> Iterator[Any]:
    for node in ast.walk(ast.parse(code)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (importlib.import_module(name) for name in names if not name.startswith("edgeclf"))


def names_within(module: Any) -> Iterator[str]:
    yield from dir(module)
    for value in vars(module).values():
        if isinstance(value, type):
            yield from (*dir(value), *dir(type(value)))


def stores(node: ast.AnnAssign | ast.Attribute) -> bool:
    return isinstance(node, ast.AnnAssign) or isinstance(node.ctx, ast.Store)


def problems_of(code: str, version: str) -> tuple[list[str], set[str]]:
    guarded = {name for name, guard in GUARDED.items() if guard in code}
    checker = Checker(tensorrt_listing(version), guarded)
    checker.check(ast.parse(code))
    return checker.problems, checker.seen


def cuda_names_in(code: str) -> set[str]:
    names = [node.attr for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute)]
    return {name for name in names if re.match(r"cuda[A-Z]", name)}


def tensorrt_names_of(version: str) -> set[str]:
    classes, enums = tensorrt_listing(version)["classes"], tensorrt_listing(version)["enums"]
    return {*classes, *enums}.union(*classes.values(), *enums.values())


def cuda_names_of(version: str) -> set[str]:
    listing = cuda_listing(version)
    enums = listing["runtime_enums"]
    members = {member for names in enums.values() for member in names}
    return {*listing["runtime_functions"], *enums, *members, *listing["runtime_constants"]}


@pytest.mark.parametrize("version", TENSORRT_VERSIONS)
@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_tensorrt_has_every_name_that_we_use(module: Path, version: str) -> None:
    problems, _ = problems_of(module.read_text(), version)
    assert not problems


@pytest.mark.parametrize("version", CUDA_VERSIONS)
@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_cuda_has_every_name_that_we_use(module: Path, version: str) -> None:
    assert cuda_names_in(module.read_text()) <= cuda_names_of(version)


@pytest.mark.parametrize("module", [path for path in MODULES if path.name in FOLLOWED], ids=lambda path: path.name)
def test_no_attribute_is_a_stranger(module: Path) -> None:
    """An attribute of an object of unknown kind is TensorRT's, CUDA's, Python's or ours."""
    code = module.read_text()
    known = set.intersection(*map(tensorrt_names_of, TENSORRT_VERSIONS)) | names_known_elsewhere(code)
    known |= set.intersection(*map(cuda_names_of, CUDA_VERSIONS)) | {name.rpartition(".")[2] for name in GUARDED}
    used = {node.attr for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute)}
    assert {name for name in used - known if not name.startswith("__")} == set()


def test_building_is_followed_from_the_builder_to_the_errors_of_the_parser() -> None:
    _, seen = problems_of((PACKAGE / "runtime" / "tensorrt_engine.py").read_text(), "11.4.0.106")
    assert {
        "Builder.create_network",
        "OnnxParser.parse_from_file",
        "OnnxParser.get_error",
        "INetworkDefinition.get_layer",
        "IBuilderConfig.add_optimization_profile",
        "IOptimizationProfile.set_shape",
        "ITimingCache.serialize",
        "LayerType.CONSTANT",
        "ILogger.Severity",
        "ILogger.Severity.WARNING",
        "ILayer.get_output",
        "ITensor.shape",
        "ParserError.node_operator",
    } <= seen


SNIPPET = """
def build(trt, builder, config):
    network = builder.create_network(0)
    {line}
"""


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("trt.Nonsense", "Nonsense"),
        ("trt.BuilderFlag.FP17", "BuilderFlag.FP17"),
        ("config.set_flag(trt.BuilderFlag.FP16)", "BuilderFlag.FP16"),
        ("builder.max_batch_size = 4", "Builder.max_batch_size"),
        ("network.get_input(0).get_shape()", "ITensor.get_shape"),
        ("network.get_layer(0).precision", "ILayer.precision"),
        ("trt.OnnxParser(network, None).supports_model(b'')", "OnnxParser.supports_model"),
        ("trt.Runtime(None).deserialize_cuda_engine(b'').device_memory_size", "ICudaEngine.device_memory_size"),
        ("a = b = trt.Builder(None); b.build_engine()", "Builder.build_engine"),
        ("if c := config.get_timing_cache(): c.save()", "ITimingCache.save"),
        ("config.set_timing_cache(cache=None, ignore_mismatches=False)", "ignore_mismatches"),
        ("builder.create_network(1, 2)", "create_network(1, 2)"),
        ("trt.Builder()", "trt.Builder()"),
    ],
)
def test_name_that_tensorrt_11_does_not_have_is_found(line: str, problem: str) -> None:
    problems, _ = problems_of(SNIPPET.format(line=line), "11.4.0.106")
    assert len(problems) == 1
    assert problem in problems[0]


def test_name_that_is_guarded_may_be_missing() -> None:
    line = 'config.set_flag(trt.BuilderFlag.FP16) if hasattr(trt.BuilderFlag, "FP16") else None'
    assert problems_of(SNIPPET.format(line=line), "11.4.0.106")[0] == []


def test_name_that_only_newer_versions_have_is_found() -> None:
    newer = SNIPPET.format(line="trt.BuilderFlag.EDITABLE_TIMING_CACHE")
    assert problems_of(newer, "11.4.0.106")[0] == []
    assert problems_of(newer, "10.3.0")[0] == ["BuilderFlag.EDITABLE_TIMING_CACHE"]


def test_every_guarded_name_is_missing_somewhere_and_used() -> None:
    code = "\n".join(path.read_text() for path in MODULES)
    for name in GUARDED:
        enum, _, member = name.partition(".")
        assert any(member not in tensorrt_listing(version)["enums"][enum] for version in TENSORRT_VERSIONS)
        assert f"trt.{name}" in code


def test_made_up_cuda_name_is_found() -> None:
    code = "r.cudaMalloc(4); r.cudaMallocTwice(4); r.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal"
    for version in CUDA_VERSIONS:
        assert cuda_names_in(code) - cuda_names_of(version) == {"cudaMallocTwice"}


def test_driver_library_has_every_function_that_is_called() -> None:
    for version in CUDA_VERSIONS:
        assert set(driver._FUNCTIONS) <= set(cuda_listing(version)["driver_functions"])
    called = set(re.findall(r"\bcuda\.(cu\w+)", Path(driver.__file__).read_text()))
    assert called == set(driver._FUNCTIONS)


def test_attributes_asked_of_the_driver_have_the_numbers_of_cuda() -> None:
    attributes = pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed").CUdevice_attribute
    assert int(attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) == driver._CAPABILITY_MAJOR
    assert int(attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR) == driver._CAPABILITY_MINOR


def test_listing_script_reads_bindings_that_are_installed() -> None:
    """Also: our code knows no name that TensorRT-RTX, which builds in the tests, lacks."""
    spec = importlib.util.spec_from_file_location("list_names", LISTINGS / "list_names.py")
    assert spec
    assert spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    listing = script.tensorrt_names(tensorrt_rtx.builder())
    code = (PACKAGE / "runtime" / "tensorrt_engine.py").read_text()
    checker = Checker(listing, set(GUARDED))
    checker.check(ast.parse(code))
    assert checker.problems == []
    assert {"Builder.create_network", "IOptimizationProfile.set_shape"} <= checker.seen


@pytest.mark.parametrize("listing", sorted(LISTINGS.glob("*.json")), ids=lambda path: path.stem)
def test_listing_is_of_the_version_in_its_name_and_small(listing: Path) -> None:
    assert listing.stem in {f"tensorrt_{v}" for v in TENSORRT_VERSIONS} | {f"cuda_{v}" for v in CUDA_VERSIONS}
    assert listing.stat().st_size < 200_000
    if listing.stem.startswith("tensorrt"):
        assert f"tensorrt_{tensorrt_listing(listing.stem.partition('_')[2])['version']}" == listing.stem
