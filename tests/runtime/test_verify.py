"""`edgeclf verify`: the example bundle gives its own answers, and every way of not giving them is seen."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from edgeclf.bundle import open_bundle, open_classifiers
from edgeclf.errors import BundleError, SessionError
from edgeclf.runtime.golden import GOLDEN_NAME, Golden, GoldenClips, read_golden, write_golden
from edgeclf.runtime.verify import verify_bundle
from edgeclf.runtime.verify_command import verify
from tests.architecture.test_imports import FRAMEWORKS, modules_after
from tests.golden.bundles.make_examples import golden, seal
from tests.support.colors import CLIP, SIZE, classifier_onnx
from tests.support.onnx_writer import Node, Tensor, onnx_bytes

Arrays = dict[str, NDArray[Any]]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(verify, [*map(str, arguments), "--device", "cpu"], catch_exceptions=True)


def error_of(result: Result) -> BundleError | SessionError:
    """The error that the command line would print, with exit code 2."""
    assert isinstance(result.exception, (BundleError, SessionError))
    assert result.exception.exit_code == 2
    return result.exception


def extractor_onnx(*, bias: float = 0.0, reverse: bool = False) -> bytes:
    """The mean colour of a frame, with a bias, or with red and blue in each other's place."""
    order = np.array([2, 1, 0] if reverse else [0, 1, 2], np.int64)
    return onnx_bytes(
        [
            Node("Cast", ["frames"], ["pixels"], {"to": 1}),
            Node("ReduceMean", ["pixels"], ["means"], {"axes": [1, 2], "keepdims": 0}),
            Node("Gather", ["means", "order"], ["ordered"], {"axis": 1}),
            Node("Div", ["ordered", "full"], ["shares"]),
            Node("Add", ["shares", "bias"], ["features"]),
        ],
        [Tensor("frames", "uint8", ("batch", *SIZE, 3))],
        [Tensor("features", "float32", ("batch", 3))],
        {"full": np.array(255, np.float32), "bias": np.array(bias, np.float32), "order": order},
    )


def with_precision(folder: Path, name: str, graph: bytes) -> Path:
    (folder / f"{name}.onnx").write_bytes(graph)
    return seal(folder, lambda manifest: manifest["extractor"]["precisions"].update({name: f"{name}.onnx"}))


def with_two_classifiers(folder: Path) -> Path:
    def twice(manifest: dict[str, Any]) -> None:
        manifest["classifiers"].append({**manifest["classifiers"][0], "name": "again"})

    held = golden()
    write_golden(folder, replace(held, clips={**held.clips, "again": held.clips["colors"]}))
    return seal(folder, twice)


# -- the same ---------------------------------------------------------------------------------------------------------


def test_bundle_that_gives_its_own_answers_passes(folder: Path) -> None:
    (verdict,) = verify_bundle(open_bundle(folder), device="cpu")
    assert verdict.passed
    assert (verdict.precision, verdict.frames, verdict.clips, verdict.changed_labels) == ("fp32", 4, 4, 0)
    assert verdict.max_difference < 1e-6
    assert verdict.cosine_min > 0.999999
    assert verdict.extractor.startswith("onnxruntime CPU fp32")


def test_table_says_where_it_ran_and_exits_0(folder: Path) -> None:
    result = run(folder)
    assert result.exit_code == 0
    assert "colors.edgeclf: 4 golden frames, 4 clips" in result.stdout
    row = next(line for line in result.stdout.splitlines() if line.startswith("colors "))
    assert "onnxruntime CPU fp32" in row
    assert row.endswith("same")


def test_json_holds_the_figures_and_what_is_allowed(folder: Path) -> None:
    record = json.loads(run(folder, "--format", "json").stdout)
    assert record["passed"] is True
    (verdict,) = record["verdicts"]
    assert verdict["max_difference"]["found"] <= verdict["max_difference"]["allowed"] == 1e-4
    assert verdict["changed_labels"] == {"found": 0, "clear_margin": 0.001}


def test_every_classifier_of_a_path_is_replayed_and_a_name_picks_one(folder: Path) -> None:
    with_two_classifiers(folder)
    assert [one.classifier.name for one in open_classifiers(folder)] == ["colors", "again"]
    verdicts = json.loads(run(folder, "--format", "json").stdout)["verdicts"]
    assert [(verdict["classifier"], verdict["passed"]) for verdict in verdicts] == [("colors", True), ("again", True)]
    (verdict,) = json.loads(run(f"{folder}#again", "--format", "json").stdout)["verdicts"]
    assert verdict["classifier"] == "again"


def test_verify_loads_no_training_framework(folder: Path) -> None:
    code = f"""
from click.testing import CliRunner
from edgeclf.cli import cli
assert CliRunner().invoke(cli, ["verify", {str(folder)!r}, "--device", "cpu"]).exit_code == 0
"""
    assert modules_after(code) & FRAMEWORKS == set()


# -- not the same -----------------------------------------------------------------------------------------------------


def test_other_scores_are_exit_1(folder: Path) -> None:
    constants = classifier_onnx().replace(np.float32(10).tobytes(), np.float32(9).tobytes())
    (folder / "classifier.onnx").write_bytes(constants)
    result = run(seal(folder))
    assert result.exit_code == 1
    assert "DIFFERS: scores off by more than 0.0001" in result.stdout


def test_other_labels_are_counted(folder: Path) -> None:
    (folder / "extractor.onnx").write_bytes(extractor_onnx(reverse=True))
    (verdict,) = verify_bundle(open_bundle(seal(folder)), device="cpu")
    assert not verdict.passed
    assert verdict.changed_labels == 2  # the red clip and the blue one
    assert verdict.faults == ("cosine below 0.9999", "scores off by more than 0.0001", "labels changed")
    assert verdict.cosine_min < 0.1


def test_scores_that_are_no_numbers_do_not_pass(folder: Path) -> None:
    constants = classifier_onnx().replace(np.float32(10).tobytes(), np.float32(np.nan).tobytes())
    (folder / "classifier.onnx").write_bytes(constants)
    result = run(seal(folder), "--format", "json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["verdicts"][0]["max_difference"]["found"] is None


@pytest.mark.parametrize(
    ("precision", "bias", "passes"),
    [("fp16", 0.0, True), ("fp16", 0.01, True), ("fp16", 0.06, False), ("int8", 0.06, True), ("int8", 0.9, False)],
)
def test_other_precisions_are_judged_by_their_features(folder: Path, precision: str, bias: float, passes: bool) -> None:
    with_precision(folder, precision, extractor_onnx(bias=bias))
    single, other = verify_bundle(open_bundle(folder), device="cpu")
    assert single.passed
    assert other.precision == precision
    assert other.passed is passes
    assert other.allowed.cosine == {"fp16": 0.999, "int8": 0.9}[precision]


def test_only_the_precisions_that_are_named_run(folder: Path) -> None:
    with_precision(folder, "fp16", extractor_onnx(bias=0.5))
    assert run(folder).exit_code == 1
    assert run(folder, "--precision", "fp32").exit_code == 0
    result = run(folder, "--precision", "fp16", "--precision", "fp32")
    assert result.exit_code == 1
    assert "checked for this device alone" in result.stdout


def test_precision_that_does_not_run_here_is_a_row_with_its_reason(folder: Path) -> None:
    result = run(with_precision(folder, "fp16", b"no graph"))
    assert result.exit_code == 1
    assert "DOES NOT RUN: fp16.onnx does not load" in result.stdout
    assert "same" in result.stdout


def test_precision_that_was_named_and_does_not_run_is_exit_2(folder: Path) -> None:
    with_precision(folder, "fp16", b"no graph")
    assert "fp16.onnx does not load" in error_of(run(folder, "--precision", "fp16")).message


# -- cannot be begun --------------------------------------------------------------------------------------------------


def test_precision_that_is_not_there_is_exit_2(folder: Path) -> None:
    assert "holds no int8 graph" in error_of(run(folder, "--precision", "int8")).message


def test_backend_that_is_not_there_is_exit_2(folder: Path) -> None:
    assert "unknown backend 'abacus'" in error_of(run(folder, "--backend", "abacus")).message


def test_device_that_is_not_there_is_refused(folder: Path) -> None:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is missing: pip install 'edgeclf[cpu]'")
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(SessionError, match="device cuda cannot be used"):
        verify_bundle(open_bundle(folder), device="cuda")


def test_older_bundle_without_golden_inputs_says_what_to_do(folder: Path) -> None:
    (folder / GOLDEN_NAME).unlink()
    error = error_of(run(seal(folder)))
    assert "holds no golden.npz" in error.message
    assert "edgeclf export MODEL_DIR" in error.hint


def test_altered_golden_inputs_are_refused(folder: Path) -> None:
    with (folder / GOLDEN_NAME).open("ab") as file:
        file.write(b"x")
    assert "was altered" in error_of(run(folder)).message


def test_path_that_is_no_bundle_is_exit_2(tmp_path: Path) -> None:
    assert "has no manifest.json" in error_of(run(tmp_path)).message
    (tmp_path / "manifest.json").write_text('{"classifiers": [{"name": "a"}, {"name": "b"}]}')
    assert "schema_version is None" in error_of(run(tmp_path)).message


# -- the file of golden inputs ----------------------------------------------------------------------------------------


def test_golden_inputs_survive_their_file_and_the_same_arrays_give_the_same_bytes(folder: Path) -> None:
    written = golden()
    first = write_golden(folder, written).read_bytes()
    found = read_golden(open_bundle(seal(folder)))
    assert np.array_equal(found.frames, written.frames)
    assert found.features is not None
    assert np.array_equal(found.features, written.features)  # type: ignore[arg-type]
    for name in ("rows", "lengths", "scores"):
        assert np.array_equal(getattr(found.clips["colors"], name), getattr(written.clips["colors"], name))
    assert write_golden(folder, written).read_bytes() == first


def test_clips_are_padded_as_their_classifier_asks() -> None:
    clips = GoldenClips(np.array([[2, 0, -1]], np.int32), np.array([2], np.int32), np.zeros((1, 2), np.float32))
    values = np.array([[1.0], [2.0], [3.0]])
    spec = replace(CLIP, length=3)
    assert clips.of(values, spec).tolist() == [[[3.0], [1.0], [0.0]]]
    assert clips.of(values, replace(spec, padding="repeat_last")).tolist() == [[[3.0], [1.0], [1.0]]]


def arrays_of(folder: Path) -> Arrays:
    with (folder / GOLDEN_NAME).open("rb") as file, np.load(file) as arrays:
        return dict(arrays)


def set_last(array: NDArray[Any], value: Any) -> NDArray[Any]:
    changed: NDArray[Any] = array.copy()
    changed.flat[-1] = value
    return changed


BROKEN: dict[str, Callable[[Arrays], object]] = {
    "no frames": lambda a: a.pop("frames"),
    "its features do not fit": lambda a: a.update(features=a["features"][:, :2]),
    "no features": lambda a: a.pop("features"),
    "too few features": lambda a: a.update(features=a["features"][:2]),
    "frames of another size": lambda a: a.update(frames=a["frames"][:, :8]),
    "frames that are no pictures": lambda a: a.update(frames=a["frames"].astype(np.float32)),
    "another classifier": lambda a: a.update(classifiers=np.array(["shapes"])),
    "no classifier": lambda a: a.update(classifiers=np.array([], "U1")),
    "a name without clips": lambda a: a.update(classifiers=np.array(["colors", "shapes"])),
    "other clips": lambda a: a.update(clips_0=a["clips_0"][:, :4], lengths_0=np.minimum(a["lengths_0"], 4)),
    "a frame that is not there": lambda a: a.update(clips_0=np.where(a["clips_0"] == 3, 4, a["clips_0"])),
    "a frame behind the length": lambda a: a.update(clips_0=set_last(a["clips_0"], 0)),
    "a length of 0": lambda a: a.update(lengths_0=set_last(a["lengths_0"], 0)),
    "a length beyond the clip": lambda a: a.update(lengths_0=set_last(a["lengths_0"], 9)),
    "too few scores": lambda a: a.update(scores_0=a["scores_0"][:2]),
    "other labels": lambda a: a.update(scores_0=a["scores_0"][:, :2]),
    "a score that is no number": lambda a: a.update(scores_0=set_last(a["scores_0"], np.nan)),
    "a feature that is no number": lambda a: a.update(features=set_last(a["features"], np.inf)),
    "a pickle": lambda a: a.update(scores_0=np.array([{}], object)),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_golden_inputs_that_contradict_the_bundle_are_refused(folder: Path, fault: str) -> None:
    arrays = arrays_of(folder)
    BROKEN[fault](arrays)
    np.savez(folder / GOLDEN_NAME, **arrays)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match=r"golden\.npz cannot be read: .*; export it again"):
        read_golden(open_bundle(seal(folder)))


def claiming(shape: tuple[int, ...]) -> bytes:
    """An archive whose array claims a shape that its few bytes do not fill."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("classifiers.npy", header.getvalue() + b"\0" * 64)
    return archive.getvalue()


def bomb() -> bytes:
    """A small archive of one array that unpacks to more than is allowed."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file, file.open("frames.npy", "w") as member:
        for _ in range(300):
            member.write(bytes(1 << 20))
    return archive.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"PK\x03\x04" + b"\0" * 100, b"\x93NUMPY\x01\x00", claiming((1 << 50,)), claiming((1 << 20, 1 << 20))],
    ids=["empty", "stub", "zeros", "header alone", "a petabyte", "a terabyte"],
)
def test_file_that_is_no_archive_is_refused(folder: Path, content: bytes) -> None:
    (folder / GOLDEN_NAME).write_bytes(content)
    with pytest.raises(BundleError, match=r"golden\.npz cannot be read"):
        read_golden(open_bundle(seal(folder)))


def test_array_alone_is_refused(folder: Path) -> None:
    with (folder / GOLDEN_NAME).open("wb") as file:
        np.save(file, golden().frames)
    with pytest.raises(BundleError, match=r"golden\.npz cannot be read"):
        read_golden(open_bundle(seal(folder)))


def test_archive_that_unpacks_to_too_much_is_refused(folder: Path) -> None:
    (folder / GOLDEN_NAME).write_bytes(bomb())
    with pytest.raises(BundleError, match="it holds 300 MB, 256 are allowed"):
        read_golden(open_bundle(seal(folder)))


def test_archive_with_any_byte_changed_is_read_or_refused(folder: Path) -> None:
    good = (folder / GOLDEN_NAME).read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.choice(len(good), 150, replace=False):
        changed = bytearray(good)
        changed[place] ^= int(rng.integers(1, 256))
        (folder / GOLDEN_NAME).write_bytes(changed)
        opened = open_bundle(seal(folder))
        try:
            assert isinstance(read_golden(opened), Golden)
        except BundleError:
            refused += 1
    assert refused > 75
