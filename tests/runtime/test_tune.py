"""`edgeclf tune`: the search finds what is fastest by any figures, proves answers first, and keeps what it found."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgeclf.bundle import ModelBundle, open_bundle
from edgeclf.errors import BundleError, MissingExtraError, SessionError
from edgeclf.runtime import tune as tuning
from edgeclf.runtime.cores import MAX_WORKERS
from edgeclf.runtime.golden import GOLDEN_NAME
from edgeclf.runtime.model import open_model
from edgeclf.runtime.pipeline import Classifier, LoopOptions
from edgeclf.runtime.session import BACKENDS, Session, open_session
from edgeclf.runtime.tune import Bench, Candidate, Search, Way, choose, timed, tune, usable_precisions, ways_on
from edgeclf.runtime.tune_command import tune as tune_command
from edgeclf.runtime.tuned import Objective, Tuned, find, key_of, table
from edgeclf.specs import PreprocessSpec
from tests.golden.bundles.make_examples import seal
from tests.support.sessions import MeanExtractor
from tests.support.videos import RED, plain, write_video

pytestmark = pytest.mark.usefixtures("no_gpu")

ORT = Way("onnxruntime", "cpu", "fp32")
INT8 = Way("onnxruntime", "cpu", "int8")
OPENVINO = Way("openvino", "cpu", "fp32")
GPU = Way("tensorrt", "tensorrt", "fp16")

TUNED = Tuned("throughput", "onnxruntime", "cpu", "fp32", 2, 4, 1, 812.5, 0.0031, "2026-11-22")


def with_precision(folder: Path, name: str, parity: dict[str, Any]) -> ModelBundle:
    """The bundle with one more graph of its extractor, and what its export said of it."""
    shutil.copy(folder / "extractor.onnx", folder / f"extractor.{name}.onnx")

    def change(manifest: dict[str, Any]) -> None:
        manifest["extractor"]["precisions"][name] = f"extractor.{name}.onnx"
        manifest["parity"].update(parity)

    return open_bundle(seal(folder, change))


# -- searching --------------------------------------------------------------------------------------------------------


class Machine:
    """Gives every candidate the rate that a rule says, and remembers what it was asked."""

    def __init__(self, rate: Callable[[Candidate], float], cores: int = 4) -> None:
        self.rate = rate
        self.asked: list[Candidate] = []
        self.kept: list[Collection[Way]] = []
        self.search = Search(self.measure, self.kept.append, cores, 10.0, batches=True)

    def measure(self, candidate: Candidate, seconds: float) -> float:
        self.asked.append(candidate)
        return self.rate(candidate)

    def best(self, *ways: Way, objective: Objective = "throughput") -> Candidate:
        return self.search.best(ways, objective)


def test_runs_side_by_side_win_where_threads_inside_one_gain_less() -> None:
    machine = Machine(lambda each: 100 * each.workers * each.threads**0.7, cores=4)
    assert machine.best(ORT) == Candidate(ORT, batch_size=1, workers=4, threads=1)


def test_one_run_on_all_cores_wins_where_runs_hinder_each_other() -> None:
    machine = Machine(lambda each: 100 * each.workers**0.2 * each.threads, cores=4)
    assert machine.best(ORT) == Candidate(ORT, workers=1, threads=4)


def test_one_run_at_a_time_wins_where_more_are_slower() -> None:
    machine = Machine(lambda each: 100 / (each.workers * each.threads), cores=2)
    assert machine.best(ORT) == Candidate(ORT, workers=1, threads=1)


def test_larger_batch_wins_only_where_it_gains_more_than_a_tie() -> None:
    gain = {1: 1.0, 2: 1.1, 4: 1.12, 8: 1.05}
    machine = Machine(lambda each: 100 * gain[each.batch_size] * each.workers, cores=2)
    assert machine.best(ORT).batch_size == 2


def test_faster_precision_wins() -> None:
    machine = Machine(lambda each: (300 if each.way == INT8 else 100) * each.workers, cores=2)
    assert machine.best(ORT, INT8, OPENVINO).way == INT8


def test_single_core_is_not_asked_for_more_than_it_has() -> None:
    machine = Machine(lambda each: 100.0, cores=1)
    assert machine.best(ORT) == Candidate(ORT)
    assert {(each.workers, each.threads) for each in machine.asked} == {(1, 1)}


def test_workers_of_many_cores_are_bounded_and_threads_fill_the_rest() -> None:
    machine = Machine(lambda each: 100 * each.workers * each.threads**0.9, cores=64)
    winner = machine.best(ORT)
    assert (winner.workers, winner.threads) == (MAX_WORKERS, 64 // MAX_WORKERS)


def test_what_is_far_behind_is_tried_no_more() -> None:
    machine = Machine(lambda each: (100 if each.way == OPENVINO else 1000) * each.workers * each.threads, cores=4)
    machine.best(ORT, OPENVINO)
    assert [each for each in machine.asked if each.way == OPENVINO] == [Candidate(OPENVINO)]


def test_what_is_clearly_behind_is_given_a_few_turns_and_no_more_workers() -> None:
    machine = Machine(lambda each: (60 if each.way == OPENVINO else 100) * each.workers * each.threads, cores=4)
    machine.search.seconds = 100.0
    machine.best(ORT, OPENVINO)
    asked = Counter(each for each in machine.asked if each.way == OPENVINO)
    assert set(asked.values()) == {3}
    assert {each.workers * each.threads for each in asked} == {1}


def test_sessions_of_those_that_are_out_are_closed() -> None:
    machine = Machine(lambda each: (10 if each.way == OPENVINO else 100) * each.workers, cores=2)
    machine.best(ORT, OPENVINO)
    assert machine.kept == [{ORT}]


def test_one_lucky_turn_does_not_win() -> None:
    lucky = iter([150.0])
    machine = Machine(lambda each: (next(lucky, 60) if each.way == OPENVINO else 100) * each.workers, cores=2)
    assert machine.best(OPENVINO, ORT, objective="latency").way == ORT


def test_one_lucky_turn_does_not_put_the_others_out() -> None:
    turns = {ORT: iter([]), OPENVINO: iter([1000.0]), INT8: iter([])}
    machine = Machine(lambda each: next(turns[each.way], 60 if each.way == OPENVINO else 100), cores=1)
    assert machine.best(OPENVINO, ORT, INT8, objective="latency").way == ORT


def test_candidates_take_turns_and_each_round_begins_with_another() -> None:
    machine = Machine(lambda each: 100.0, cores=1)
    machine.best(ORT, OPENVINO, objective="latency")
    ways = [each.way for each in machine.asked]
    assert ways[:8] == [ORT, OPENVINO, ORT, OPENVINO, OPENVINO, ORT, ORT, OPENVINO]
    assert ways.count(ORT) == ways.count(OPENVINO)


def test_batch_whose_run_takes_too_long_is_not_tried() -> None:
    machine = Machine(lambda each: 12.0, cores=1)  # a run of 4 would take 0.3 of 10 seconds
    machine.best(ORT)
    assert {each.batch_size for each in machine.asked} == {1, 2}


def test_latency_is_one_frame_with_as_many_threads_as_help() -> None:
    machine = Machine(lambda each: 100 * min(each.threads, 4) * each.workers * each.batch_size, cores=6)
    assert machine.best(ORT, objective="latency") == Candidate(ORT, threads=4)
    assert {(each.batch_size, each.workers) for each in machine.asked} == {(1, 1)}
    assert {each.threads for each in machine.asked} == {1, 2, 4, 6}


def test_gpu_is_given_large_batches_and_two_runs_but_no_threads() -> None:
    machine = Machine(lambda each: 1000 * each.batch_size * each.workers**0.3, cores=8)
    assert machine.best(GPU) == Candidate(GPU, batch_size=32, workers=2)
    assert {each.threads for each in machine.asked} == {1}
    assert {each.workers for each in machine.asked} == {1, 2}


def test_processor_with_many_cores_is_not_taken_for_behind_a_gpu_by_one_of_them() -> None:
    machine = Machine(lambda each: 150.0 if each.way == GPU else 100.0 * each.workers * each.threads, cores=4)
    assert machine.best(GPU, ORT).way == ORT


def test_rows_that_run_one_by_one_are_given_threads_alone() -> None:
    machine = Machine(lambda each: 100.0 * each.threads, cores=2)
    machine.search.batches = False
    assert machine.best(ORT) == Candidate(ORT, threads=2)
    assert {(each.batch_size, each.workers) for each in machine.asked} == {(1, 1)}


def test_rounds_end_when_their_time_is_over_but_not_before_each_had_a_few_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]

    def rate(each: Candidate) -> float:
        now[0] += 5.0
        return 100.0

    monkeypatch.setattr(tuning, "clock", lambda: now[0])
    machine = Machine(rate, cores=1)
    machine.best(ORT, OPENVINO, objective="latency")
    assert Counter(machine.asked) == {Candidate(ORT): 1 + 3 + 3, Candidate(OPENVINO): 1 + 3 + 3}


def test_batch_that_fails_is_out_and_its_reason_is_kept() -> None:
    def rate(each: Candidate) -> float:
        if each.batch_size > 2:
            raise SessionError("out of memory")
        return 100.0 * each.batch_size * each.workers

    machine = Machine(rate, cores=2)
    assert machine.best(ORT).batch_size == 2
    assert machine.search.problems == {Candidate(ORT, 4): "out of memory"}


def test_candidate_that_fails_once_never_wins() -> None:
    good = iter([900.0] * 4)

    def rate(each: Candidate) -> float:
        if each.way == OPENVINO and not (figure := next(good, 0)):
            raise SessionError("the driver is gone")
        return figure if each.way == OPENVINO else 800.0

    machine = Machine(rate, cores=1)
    assert machine.best(ORT, OPENVINO, objective="latency").way == ORT
    assert machine.search.problems == {Candidate(OPENVINO): "the driver is gone"}


def test_error_is_raised_where_every_run_fails() -> None:
    def rate(each: Candidate) -> float:
        raise SessionError("the driver is gone")

    with pytest.raises(SessionError, match="every run failed: the driver is gone"):
        Machine(rate).best(ORT, OPENVINO)


@pytest.mark.parametrize(
    ("turns", "winner"),
    [
        ({Candidate(ORT, 2): 100, Candidate(ORT, 1): 97.5}, Candidate(ORT, 1)),
        ({Candidate(ORT, 2): 100, Candidate(ORT, 1): 96}, Candidate(ORT, 2)),
        ({Candidate(INT8): 100, Candidate(ORT): 98}, Candidate(ORT)),
        ({Candidate(OPENVINO): 100, Candidate(ORT): 98}, Candidate(ORT)),
        ({Candidate(INT8): 98, Candidate(OPENVINO): 100}, Candidate(OPENVINO)),
        ({Candidate(OPENVINO, 1): 98, Candidate(ORT, 2): 100}, Candidate(OPENVINO, 1)),
        ({Candidate(ORT, threads=2): 100, Candidate(ORT, workers=2): 98}, Candidate(ORT, workers=2)),
        ({Candidate(ORT, workers=1): 100, Candidate(ORT, workers=2): 98}, Candidate(ORT, workers=2)),
    ],
)
def test_ties_go_to_the_smaller_batch_then_fp32_then_onnxruntime_then_fewer_threads(
    turns: dict[Candidate, float], winner: Candidate
) -> None:
    assert choose({candidate: [rate] * 9 for candidate, rate in turns.items()}) == winner


def test_what_lies_between_the_turns_of_the_best_is_a_tie_as_well() -> None:
    busy = [60.0, 70.0, 80.0, 100.0, 110.0]
    assert choose({Candidate(ORT, 8): busy, Candidate(ORT, 1): [85.0] * 5}) == Candidate(ORT, 1)
    assert choose({Candidate(ORT, 8): busy, Candidate(ORT, 1): [65.0] * 5}) == Candidate(ORT, 8)


# -- timing -----------------------------------------------------------------------------------------------------------


class CountedSession(MeanExtractor):
    """A session whose time is counted: so many seconds a frame, and it remembers what it was fed."""

    now = 0.0

    def __init__(self, seconds_per_frame: float = 0.0) -> None:
        super().__init__(PreprocessSpec((16, 16)))
        self._seconds = seconds_per_frame
        self.fed: list[int] = []
        self.closed = 0

    def run(self, feeds: Any) -> dict[str, Any]:
        self.fed.append(feeds["frames"].ctypes.data)
        CountedSession.now += self._seconds * len(feeds["frames"])
        return super().run(feeds)

    def close(self) -> None:
        self.closed += 1


def register(monkeypatch: pytest.MonkeyPatch, **openers: Callable[..., Session]) -> None:
    """Make these the only backends for extractors; sequence models run on ONNX Runtime."""
    real = BACKENDS.load("onnxruntime")

    def load(name: str) -> Callable[..., Session]:
        def opener(graph: Path, **options: Any) -> Session:
            return (real if graph.name == "classifier.onnx" else openers[name])(graph, **options)

        return opener

    monkeypatch.setattr(BACKENDS, "_builtin", dict.fromkeys(openers, "here"))
    monkeypatch.setattr(BACKENDS, "load", load)


def test_turn_counts_what_it_runs_and_not_what_it_runs_before(
    bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = CountedSession(seconds_per_frame=0.01)
    register(monkeypatch, onnxruntime=lambda *_, **__: session)
    monkeypatch.setattr(tuning, "clock", lambda: CountedSession.now)
    bench = Bench(bundle, cores=2)
    assert bench.measure(Candidate(ORT, batch_size=4), 0.4) == pytest.approx(100.0)
    assert session.batches == [4] * (2 + 10)
    assert bench.measure(Candidate(ORT, batch_size=4), 0.2) == pytest.approx(100.0)
    assert session.batches == [4] * (2 + 10 + 5)
    bench.close()
    assert session.closed == 1


def test_turn_that_is_shorter_than_a_run_is_one_run_of_each_worker(
    bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = CountedSession(seconds_per_frame=1.0)
    register(monkeypatch, onnxruntime=lambda *_, **__: session)
    monkeypatch.setattr(tuning, "clock", lambda: CountedSession.now)
    Bench(bundle, cores=2).measure(Candidate(ORT, batch_size=1, workers=2), 0.1)
    assert session.batches == [1] * (2 + 2)


def test_sessions_are_opened_once_for_each_number_of_threads_and_anew_after_they_were_closed(
    bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[str, int]] = []

    def opener(graph: Path, *, threads: int, precision: str, **_: Any) -> Session:
        opened.append((precision, threads))
        return CountedSession(0.001)

    register(monkeypatch, onnxruntime=opener)
    monkeypatch.setattr(tuning, "clock", lambda: CountedSession.now)
    bench = Bench(bundle, cores=2)
    for threads in (1, 2, 1):
        bench.measure(Candidate(ORT, threads=threads), 0.01)
    assert opened == [("fp32", 1), ("fp32", 2)]
    bench.keep_only([OPENVINO])
    bench.measure(Candidate(ORT), 0.01)
    assert opened == [("fp32", 1), ("fp32", 2), ("fp32", 1)]
    bench.close()


def test_workers_run_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=30)
    timed(lambda _: together.wait(), [0, 1], runs=6, workers=3)
    assert not together.broken


def test_workers_are_given_different_frames(bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    session = CountedSession(0.001)
    register(monkeypatch, onnxruntime=lambda *_, **__: session)
    monkeypatch.setattr(tuning, "clock", lambda: CountedSession.now)
    Bench(bundle, cores=4).measure(Candidate(ORT, batch_size=2, workers=4), 0.1)
    measured = session.fed[2:]
    assert all(len(set(measured[start : start + 4])) == 4 for start in range(0, len(measured) - 3, 4))


# -- what is tried ----------------------------------------------------------------------------------------------------


def test_precision_without_a_word_of_the_gate_is_not_taken(folder: Path) -> None:
    usable, reasons = usable_precisions(with_precision(folder, "int8", {}), "all")
    assert usable == ["fp32", "bf16"]
    assert "does not say what it costs colors" in reasons["int8"]


def test_precision_that_the_gate_refused_is_not_taken(folder: Path) -> None:
    said = {"int8": [{"classifier": "colors", "accuracy": 0.5}], "left_out": {"int8": ["accuracy is 9 points below"]}}
    usable, reasons = usable_precisions(with_precision(folder, "int8", said), "all")
    assert "int8" not in usable
    assert "accuracy is 9 points below" in reasons["int8"]


def test_precision_that_the_gate_passed_for_this_classifier_is_taken(folder: Path) -> None:
    bundle = with_precision(folder, "int8", {"int8": [{"classifier": "colors"}]})
    assert usable_precisions(bundle, "all") == (["fp32", "int8", "bf16"], {})
    assert usable_precisions(bundle, "int8") == (["int8"], {})


@pytest.mark.parametrize("parity", [{"int8": 3}, {"int8": ["x"]}, {"left_out": []}, {"int8": None}])
def test_parity_that_makes_no_sense_speaks_for_no_precision(folder: Path, parity: dict[str, Any]) -> None:
    assert "int8" in usable_precisions(with_precision(folder, "int8", parity), "all")[1]


def test_precision_that_the_bundle_does_not_hold_is_an_error(bundle: ModelBundle) -> None:
    with pytest.raises(BundleError, match="holds no int4 graph; it holds fp32"):
        tune(bundle, "cpu", precision="int4")


def test_without_a_gpu_auto_is_the_processor() -> None:
    ways, reasons = ways_on("auto", ["fp32", "bf16"])
    assert [str(way) for way in ways] == ["onnxruntime cpu fp32", "openvino cpu fp32", "openvino cpu bf16"]
    assert reasons == {"cuda, tensorrt": "no NVIDIA driver is installed"}


def test_with_a_gpu_auto_is_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "cuda_driver_problem", lambda: "")
    ways, reasons = ways_on("auto", ["fp32", "u8s8"])
    assert reasons == {}
    assert {(way.backend, way.device) for way in ways} == {
        ("onnxruntime", "cuda"),
        ("onnxruntime", "tensorrt"),
        ("onnxruntime", "cpu"),
        ("openvino", "cpu"),
        ("tensorrt", "tensorrt"),
    }
    assert not any(way.device == "tensorrt" and way.precision == "u8s8" for way in ways)


def test_named_device_is_the_only_one() -> None:
    assert {way.device for way in ways_on("cuda", ["fp32", "bf16"])[0]} == {"cuda"}


def test_backend_of_a_plugin_is_asked_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, abacus=lambda *_, **__: CountedSession())
    assert ways_on("cuda", ["fp32", "bf16"]) == ([Way("abacus", "cuda", "fp32")], {})


# -- all of it --------------------------------------------------------------------------------------------------------


class Wrong(CountedSession):
    """Turns red into blue, by as much as is said."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self._share = share

    def run(self, feeds: Any) -> dict[str, Any]:
        features = super().run(feeds)["features"]
        return {"features": ((1 - self._share) * features + self._share * features[:, ::-1]).astype(np.float32)}


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Frames a second of each backend and precision on one core, instead of a measurement."""
    found: dict[str, float] = {}

    def measure(bench: Bench, candidate: Candidate, seconds: float) -> float:
        bench.model(candidate.way, candidate.threads)
        return found[f"{candidate.way.backend} {candidate.way.precision}"] * candidate.workers

    monkeypatch.setattr(Bench, "measure", measure)
    monkeypatch.setattr(tuning, "available_cores", lambda: 2)
    return found


needs_onnxruntime = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="ONNX Runtime is not installed")


@needs_onnxruntime
def test_fastest_that_gives_the_right_answers_wins(
    bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch, rates: dict[str, float]
) -> None:
    sessions = {"right": CountedSession(), "slow": CountedSession(), "wrong": Wrong(0.5)}
    openers: dict[str, Callable[..., Session]] = {
        name: (lambda *_, session=session, **__: session) for name, session in sessions.items()
    }
    register(monkeypatch, onnxruntime=partial(missing, "ONNX Runtime"), **openers)
    rates |= {"right fp32": 100, "slow fp32": 50, "wrong fp32": 900}
    record = tune(bundle, "cpu")
    assert (record["tuned"]["backend"], record["tuned"]["workers"]) == ("right", 2)
    assert record["tuned"]["frames_per_second"] == 200
    assert record["tuned"]["latency_seconds"] == 0.01
    assert {row["backend"] for row in record["tried"]} == {"right", "slow"}
    assert "other answers than the bundle's own: cosine below" in record["unavailable"]["wrong cpu fp32"]
    assert record["unavailable"]["onnxruntime"] == "ONNX Runtime is not installed; get it"
    assert all(session.closed for session in sessions.values())


def missing(package: str, *_: Any, **__: Any) -> Session:
    raise MissingExtraError(f"{package} is not installed", hint="get it")


@needs_onnxruntime
@pytest.mark.parametrize(("share", "winner"), [(0.01, "bf16"), (0.2, "fp32")])
def test_bf16_must_be_close_to_the_golden_features(
    bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch, rates: dict[str, float], share: float, winner: str
) -> None:
    def opener(graph: Path, *, precision: str, **_: Any) -> Session:
        return Wrong(share if precision == "bf16" else 0)

    register(monkeypatch, openvino=opener)
    rates |= {"openvino fp32": 100, "openvino bf16": 200}
    record = tune(bundle, "cpu")
    assert record["tuned"]["precision"] == winner
    assert ("openvino cpu bf16" in record["unavailable"]) == (winner == "fp32")


@needs_onnxruntime
def test_bf16_without_golden_inputs_is_not_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch, rates: dict[str, float]
) -> None:
    (folder / GOLDEN_NAME).unlink()
    register(monkeypatch, openvino=lambda *_, **__: CountedSession())
    rates |= {"openvino fp32": 100}
    record = tune(open_bundle(seal(folder)), "cpu")
    assert record["tuned"]["precision"] == "fp32"
    assert "no golden inputs" in record["unavailable"]["openvino cpu bf16"]


@needs_onnxruntime
def test_nothing_that_works_is_an_error_with_every_reason(bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, onnxruntime=partial(missing, "ONNX Runtime"), openvino=partial(missing, "OpenVINO"))
    with pytest.raises(SessionError, match=r"nothing runs colors.edgeclf on cpu.*ONNX Runtime is not.*OpenVINO is not"):
        tune(bundle, "cpu")


@needs_onnxruntime
def test_classifier_that_takes_frames_is_tuned_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(write_frames_bundle(tmp_path / "frames.edgeclf"))
    record = tune(bundle, "cpu", seconds=0.1, precision="fp32")
    assert (record["tuned"]["batch_size"], record["tuned"]["workers"]) == (1, 1)
    rate, latency = record["tuned"]["frames_per_second"], record["tuned"]["latency_seconds"]
    assert rate > 0
    assert latency > 0
    assert record["sequence_model"] == {}


@needs_onnxruntime
@pytest.mark.parametrize("objective", ["throughput", "latency"])
def test_real_sessions_are_tuned(bundle: ModelBundle, objective: Objective) -> None:
    record = tune(bundle, "cpu", objective=objective, seconds=0.2)
    tuned = Tuned(**record["tuned"])
    assert tuned.backend in BACKENDS
    assert tuned.device == "cpu"
    assert "onnxruntime" in {row["backend"] for row in record["tried"]}
    assert all(row["frames_per_second"]["smallest"] > 0 for row in record["tried"])
    assert "seconds_per_clip" in record["sequence_model"]["onnxruntime"]
    json.dumps(record, allow_nan=False)


@needs_onnxruntime
def test_recurrent_classifier_is_not_run_in_openvino() -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    found = tuning.sequence_sessions(open_bundle("theatre"))
    assert found["onnxruntime"]["seconds_per_clip"] > 0
    assert "recurrent" in found["openvino"]["problem"]


@needs_onnxruntime
def test_sequence_model_with_other_scores_is_no_choice(bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    real = open_session

    class Shifted:
        def __init__(self, session: Session) -> None:
            self.session, self.inputs, self.outputs = session, session.inputs, session.outputs

        def run(self, feeds: Any) -> dict[str, Any]:
            return {name: scores + 0.01 for name, scores in self.session.run(feeds).items()}

        def close(self) -> None:
            self.session.close()

    def opened(graph: Path, device: Any, backend: str = "onnxruntime") -> Any:
        session = real(graph, device, backend="onnxruntime")
        return Shifted(session) if backend == "openvino" else session

    monkeypatch.setattr(tuning, "open_session", opened)
    found = tuning.sequence_sessions(bundle)
    assert found["openvino"] == {"problem": "scores are off by 1.0e-02"}


@needs_onnxruntime
def test_loop_runs_as_chosen(bundle: ModelBundle, tmp_path: Path) -> None:
    tuned = Tuned(**tune(bundle, "cpu", seconds=0.1)["tuned"])
    model = open_model(bundle, tuned.device, precision=tuned.precision, backend=tuned.backend, threads=tuned.threads)
    video = write_video(tmp_path / "red.mp4", plain(RED, 3))
    with Classifier(model, tuned.options(LoopOptions.for_device(tuned.device))) as classifier:
        assert classifier.options.workers == tuned.workers
        assert classifier.classify(video).label == "red"


# -- the command ------------------------------------------------------------------------------------------------------


def run(*arguments: object) -> Result:
    return CliRunner().invoke(tune_command, [*map(str, arguments), "--device", "cpu"])


@needs_onnxruntime
def test_command_keeps_what_it_found_and_shows_it_again(folder: Path) -> None:
    done = run(folder, "--seconds", "0.2", "--format", "json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert find(open_bundle(folder), "cpu", "throughput") == Tuned(**record["tuned"])
    assert "kept in " in done.stderr
    assert json.loads(run(folder, "--show", "--format", "json").stdout) == record
    assert run(folder, "--show").stdout == table(record) + "\n"


@needs_onnxruntime
@pytest.mark.parametrize(("load", "busy"), [(0.4, False), (300.0, True)])
def test_busy_machine_is_told_of(folder: Path, monkeypatch: pytest.MonkeyPatch, load: float, busy: bool) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    done = run(folder, "--seconds", "0.1", "--precision", "fp32", "--format", "json")
    assert json.loads(done.stdout)["load_average"] == load
    assert ("this machine is busy" in done.stderr) == busy


def test_show_before_any_tuning_is_exit_1(folder: Path) -> None:
    done = run(folder, "--show")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "was never tuned for throughput on this machine" in done.stderr


@needs_onnxruntime
def test_result_that_cannot_be_kept_is_shown(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("EDGECLF_CACHE_DIR", str(tmp_path / "file"))
    done = run(folder, "--seconds", "0.1", "--precision", "fp32")
    assert done.exit_code == 0, done.output
    assert "it cannot be kept" in done.stderr
    assert "* tuned for throughput" in done.stdout


@needs_onnxruntime
def test_table_is_sorted_marks_the_winner_and_gives_reasons(
    bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch, rates: dict[str, float]
) -> None:
    register(
        monkeypatch,
        onnxruntime=lambda *_, **__: CountedSession(),
        openvino=partial(missing, "OpenVINO"),
        abacus=lambda *_, **__: CountedSession(),
    )
    rates |= {"onnxruntime fp32": 100, "abacus fp32": 90}
    text = table({**tune(bundle, "auto"), "key": key_of(bundle, "auto", "throughput")})
    rows = [line for line in text.splitlines() if line[2:].startswith(("onnxruntime  ", "abacus "))]
    assert [float(row.split()[-3]) for row in rows] == sorted((float(row.split()[-3]) for row in rows), reverse=True)
    (winner,) = (row for row in rows if row.startswith("*"))
    assert winner.split()[1:8] == ["onnxruntime", "cpu", "fp32", "1", "2", "x", "1"]
    assert "openvino: OpenVINO is not installed; get it" in text
    assert "cuda, tensorrt: no NVIDIA driver is installed" in text


def write_frames_bundle(path: Path) -> Path:
    """A bundle without an extractor, whose classifier takes frames: the mean colour of a clip."""
    from edgeclf.bundle import ClassifierEntry, ExtractorEntry, Manifest, sha256_of, write_manifest
    from edgeclf.specs import ClipSpec, TensorSpec
    from tests.support.onnx_writer import Node, Tensor, onnx_bytes

    clip = replace(ClipSpec.by_rate(length=4, rate=5.0), padding="repeat_last")
    path.mkdir()
    (path / "classifier.onnx").write_bytes(
        onnx_bytes(
            [
                Node("Cast", ["frames"], ["pixels"], {"to": 1}),
                Node("ReduceMean", ["pixels"], ["means"], {"axes": [1, 2, 3], "keepdims": 0}),
                Node("Softmax", ["means"], ["scores"], {"axis": 1}),
            ],
            [Tensor("frames", "uint8", ("batch", 4, 16, 16, 3))],
            [Tensor("scores", "float32", ("batch", 3))],
            {},
        )
    )
    frames = TensorSpec("frames", "uint8", (None, 16, 16, 3))
    clips = TensorSpec("frames", "uint8", (None, 4, 16, 16, 3))
    scores = TensorSpec("scores", "float32", (None, 3))
    labels = ("red", "green", "blue")
    classifier = ClassifierEntry(
        "frames", labels, clip, "mean", {"fp32": "classifier.onnx"}, (clips,), (scores,), evaluation={}
    )
    extractor = ExtractorEntry(PreprocessSpec((16, 16)), {}, (frames,), (frames,))
    files = {"classifier.onnx": sha256_of(path / "classifier.onnx")}
    write_manifest(path, Manifest("frames", extractor, (classifier,), files, {}, {}))
    return path
