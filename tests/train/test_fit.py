"""What fitting promises whatever is fitted, and that it can be killed and taken up again."""

from __future__ import annotations

import csv
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclf.errors import DataError, EdgeclfError
from edgeclf.train import fit as fitting
from edgeclf.train.fit import Batch, FitSettings, Fitted, Row, fit, measure, write_log
from tests.support.labelled import require_keras
from tests.support.training import fit_without_graphs

LENGTH, SIZE = 4, 3
SETTINGS = FitSettings(epochs=6, batch=8, learning_rate=0.02, patience=0)


@dataclass
class Examples:
    """Two classes that the mean of a clip mostly tells apart, in an order drawn for each epoch."""

    count: int = 24
    seed: int = 1
    by_chance: bool = False  # labels that have nothing to do with the features
    weights: NDArray[np.float32] | None = None
    batch: int = 8
    known: str = "these"
    asked: list[int] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return -(-self.count // self.batch)

    @property
    def identity(self) -> str:
        return self.known

    @property
    def trained(self) -> list[int]:
        """The epochs that were trained on where there is a folder: first of all the examples are looked at."""
        return self.asked[1:]

    def epoch(self, number: int) -> Iterator[Batch]:
        self.asked.append(number)
        rng = np.random.default_rng(self.seed)
        labels = np.arange(self.count) % 2
        features = rng.normal((labels - 0.5)[:, None, None], 1.0, (self.count, LENGTH, SIZE)).astype(np.float32)
        truth = np.eye(2, dtype=np.float32)[np.arange(self.count) // 2 % 2 if self.by_chance else labels]
        weights = np.ones(self.count, np.float32) if self.weights is None else self.weights
        order = np.random.default_rng([self.seed, number]).permutation(self.count)
        for start in range(0, self.count, self.batch):
            chosen = order[start : start + self.batch]
            mask = np.ones((len(chosen), LENGTH), bool)
            yield Batch({"features": features[chosen], "mask": mask}, truth[chosen], weights[chosen])


TRAIN, VALIDATION, CHANCE = Examples(seed=1), Examples(16, seed=2), Examples(16, seed=2, by_chance=True)


@pytest.fixture(scope="module", autouse=True)
def keras() -> Any:
    require_keras()
    import keras

    return keras


@pytest.fixture(autouse=True)
def without_graphs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where bits count."""
    if "graphs" not in request.fixturenames:
        fit_without_graphs(monkeypatch)


@pytest.fixture
def graphs() -> None:
    """Steps run as graphs, as they do outside of tests."""


@pytest.fixture
def at_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)


def network(keras: Any, seed: int = 0, *, recurrent: bool = False, new_process: bool = True) -> Any:
    """A network as a new process would build it, with all that has to be taken up again.

    That is dropout and moving averages; `recurrent` adds a GRU, and takes a second more to fit.
    """
    if new_process:
        keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    features = keras.Input((LENGTH, SIZE), name="features")
    mask = keras.Input((LENGTH,), dtype="bool", name="mask")
    x = layers.BatchNormalization(name="normal")(features)
    if recurrent:
        x = layers.SpatialDropout1D(0.2, name="feature_dropout")(x)
        x = layers.GRU(4, dropout=0.2, name="gru")(x, mask=mask)
    else:
        x = layers.GlobalAveragePooling1D(name="mean")(x, mask=mask)
        x = layers.Dense(6, activation="tanh", name="hidden")(x)
    x = layers.Dropout(0.3, name="dropout")(x)
    scores = layers.Dense(2, activation="softmax", name="scores")(x)
    return keras.Model({"features": features, "mask": mask}, scores, name="network")


def weights_of(model: Any) -> NDArray[np.float32]:
    return np.concatenate([weight.ravel() for weight in model.get_weights()])


def without_time(history: tuple[Row, ...]) -> list[Row]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def fitted(
    keras: Any, settings: FitSettings = SETTINGS, *, seed: int = 0, recurrent: bool = False, **options: Any
) -> tuple[Any, Fitted]:
    model = network(keras, seed, recurrent=recurrent)
    data = {"train": TRAIN, "validation": VALIDATION, **options}
    return model, fit(model, data.pop("train"), data.pop("validation"), settings, **data)


pytestmark = pytest.mark.keras


# -- the best epoch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patience", [0, 3])
def test_fitting_ends_with_the_weights_of_the_lowest_validation_loss(keras: Any, patience: int) -> None:
    rows: list[Row] = []
    settings = replace(SETTINGS, epochs=14, learning_rate=0.05, patience=patience)
    model, told = fitted(keras, settings, validation=CHANCE, progress=rows.append)
    losses = [row["val_loss"] for row in told.history]
    assert told.history == tuple(rows)
    assert [row["epoch"] for row in rows] == [float(n) for n in range(1, len(rows) + 1)]
    assert told.best_epoch == int(np.argmin(losses)) + 1 < len(losses)
    assert len(losses) == (14 if patience == 0 else told.best_epoch + 3), "it ends when patience is over"
    found = measure(model, CHANCE)
    assert found["loss"] == pytest.approx(told.history[told.best_epoch - 1]["val_loss"], abs=1e-6)
    assert found["accuracy"] == pytest.approx(told.history[told.best_epoch - 1]["val_accuracy"])


@pytest.mark.parametrize(("rate", "improves"), [(3.0, False), (0.01, True)])
def test_weights_at_the_start_stay_where_no_epoch_is_better(keras: Any, rate: float, improves: bool) -> None:
    model, _ = fitted(keras, replace(SETTINGS, learning_rate=0.05))
    before, loss = weights_of(model), measure(model, VALIDATION)["loss"]
    told = fit(model, TRAIN, VALIDATION, replace(SETTINGS, learning_rate=rate), start_counts=True)
    assert (told.best_epoch > 0) == improves
    assert (min(row["val_loss"] for row in told.history) < loss) == improves
    assert (weights_of(model) == before).all() == (not improves)


def test_last_weights_are_kept_where_that_is_asked_for(keras: Any) -> None:
    settings = replace(SETTINGS, learning_rate=0.05, keep="last")
    model, told = fitted(keras, settings, validation=CHANCE)
    assert (len(told.history), told.best_epoch) == (6, 6)
    assert told.history[-1]["val_loss"] > min(row["val_loss"] for row in told.history)
    assert measure(model, CHANCE)["loss"] == pytest.approx(told.history[-1]["val_loss"], abs=1e-6)


def test_fitting_learns(keras: Any) -> None:
    _, told = fitted(keras, replace(SETTINGS, epochs=12, learning_rate=0.05))
    assert told.history[told.best_epoch - 1]["val_accuracy"] >= 0.75
    assert told.history[-1]["loss"] < told.history[0]["loss"]


def test_fitting_behind_a_known_epoch_ends_with_its_weights(keras: Any) -> None:
    model, told = fitted(keras, validation=CHANCE, last_epoch=4)
    _, short = fitted(keras, validation=CHANCE)
    assert (len(told.history), told.best_epoch) == (4, 4)
    assert without_time(told.history) == without_time(short.history[:4])
    assert measure(model, CHANCE)["loss"] == pytest.approx(told.history[3]["val_loss"], abs=1e-6)


def test_weights_depend_on_the_seed_alone(keras: Any) -> None:
    settings = replace(SETTINGS, epochs=3)
    first, told = fitted(keras, settings)
    keras.utils.set_random_seed(77)
    second, again = fitted(keras, settings)
    other, _ = fitted(keras, replace(settings, seed=1))
    np.testing.assert_array_equal(weights_of(first), weights_of(second))
    assert without_time(told.history) == without_time(again.history)
    assert np.abs(weights_of(first) - weights_of(other)).max() > 1e-4, "what is left out is drawn from the seed"


# -- schedules and losses ---------------------------------------------------------------------------------------------


def test_cosine_falls_to_nothing(keras: Any) -> None:
    _, told = fitted(keras, replace(SETTINGS, schedule="cosine"))
    rates = [row["learning_rate"] for row in told.history]
    last_step = [(n + 1) - 1 / TRAIN.steps for n in range(6)]
    assert rates == pytest.approx([0.01 * (1 + math.cos(math.pi * done / 6)) for done in last_step])
    assert rates[-1] < 0.001 < rates[0]


def test_plateau_lowers_the_rate_after_five_epochs_without_a_better_one(keras: Any) -> None:
    settings = replace(SETTINGS, epochs=22, learning_rate=0.05, schedule="plateau")
    _, told = fitted(keras, settings, validation=CHANCE)
    expected, rate, best, behind = [], 0.05, math.inf, 0
    for row in told.history:
        expected.append(rate)
        behind = 0 if row["val_loss"] <= best else behind + 1
        best = min(best, row["val_loss"])
        if behind and behind % 5 == 0:
            rate *= 0.3
    assert [row["learning_rate"] for row in told.history] == pytest.approx(expected)
    assert expected[-1] < 0.05, "there was a plateau"


def test_constant_rate_stays(keras: Any) -> None:
    _, told = fitted(keras)
    assert {row["learning_rate"] for row in told.history} == {0.02}


def test_smoothed_labels_have_a_higher_lowest_loss(keras: Any) -> None:
    _, smoothed = fitted(keras, replace(SETTINGS, label_smoothing=0.5))
    _, plain = fitted(keras)
    assert min(row["loss"] for row in smoothed.history) > min(row["loss"] for row in plain.history)
    assert all(math.isfinite(value) for row in smoothed.history for value in row.values())


@dataclass
class Halves(Examples):
    """Every clip is half of either class, as mixing makes them."""

    def epoch(self, number: int) -> Iterator[Batch]:
        for batch in super().epoch(number):
            yield replace(batch, truth=np.full_like(batch.truth, 0.5))


def test_mixed_truth_is_learned(keras: Any) -> None:
    model, told = fitted(keras, replace(SETTINGS, epochs=15, learning_rate=0.05), train=Halves(), validation=Halves())
    (batch,) = Examples(8, seed=3).epoch(0)
    assert told.history[told.best_epoch - 1]["val_loss"] == pytest.approx(math.log(2), abs=0.1)
    np.testing.assert_allclose(model.predict_on_batch(batch.inputs), 0.5, atol=0.2)


def test_clip_without_weight_plays_no_part(keras: Any) -> None:
    weights = np.ones(24, np.float32)
    weights[::2] = 0  # all of one class
    model, _ = fitted(keras, replace(SETTINGS, epochs=25, learning_rate=0.1), train=Examples(weights=weights))
    (batch,) = Examples(8, seed=3).epoch(0)
    assert model.predict_on_batch(batch.inputs)[:, 1].mean() > 0.6


def test_weight_decay_makes_weights_smaller(keras: Any) -> None:
    kernels = [
        np.abs(
            fitted(keras, replace(SETTINGS, weight_decay=decay), last_epoch=6)[0].get_layer("hidden").get_weights()[0]
        )
        for decay in (0.0, 5.0)
    ]
    assert kernels[1].sum() < 0.8 * kernels[0].sum()


@dataclass
class Broken(Examples):
    """Features that are no numbers, from some epoch on."""

    since: int = 0

    def epoch(self, number: int) -> Iterator[Batch]:
        for batch in super().epoch(number):
            spoilt = np.full_like(batch.inputs["features"], np.nan)
            yield replace(batch, inputs={**batch.inputs, "features": spoilt}) if number >= self.since else batch


def test_loss_that_is_no_number_is_an_error(keras: Any) -> None:
    with pytest.raises(DataError, match="loss is nan in epoch 2; take a smaller --lr"):
        fitted(keras, train=Broken(since=1))


def test_validation_loss_that_is_no_number_is_an_error(keras: Any) -> None:
    with pytest.raises(DataError, match="loss is nan"):
        fitted(keras, validation=Broken())


def test_error_in_the_examples_reaches_the_caller(keras: Any) -> None:
    class Failing(Examples):
        def epoch(self, number: int) -> Iterator[Batch]:
            yield from list(super().epoch(number))[:1]
            raise RuntimeError("disk is gone")

    with pytest.raises(RuntimeError, match="disk is gone"):
        fitted(keras, train=Failing())


# -- killed and taken up again ----------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands in for the end of the process."""


def kill_after(epoch: int) -> Callable[[Row], None]:
    def progress(row: Row) -> None:
        if row["epoch"] == epoch:
            raise Killed

    return progress


def interrupted(keras: Any, folder: Path, epoch: int, settings: FitSettings = SETTINGS, **options: Any) -> None:
    with pytest.raises(Killed):
        fitted(keras, settings, folder=folder, progress=kill_after(epoch), **options)


def folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def log_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(encoding="utf-8", newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


@pytest.mark.usefixtures("at_every_epoch", "graphs")
@pytest.mark.parametrize(("schedule", "kills"), [("constant", (2, 5)), ("cosine", (1,)), ("plateau", (6,))], ids=str)
def test_fitting_taken_up_again_ends_with_the_same_bits(
    keras: Any, tmp_path: Path, schedule: Any, kills: tuple[int, ...]
) -> None:
    settings = replace(SETTINGS, schedule=schedule, weight_decay=0.01, label_smoothing=0.1)
    options: dict[str, Any] = {"validation": CHANCE, "recurrent": True}
    whole, told = fitted(keras, settings, folder=tmp_path / "whole", **options)
    for epoch in kills:
        interrupted(keras, tmp_path / "killed", epoch, settings, **options)
    again, told_again = fitted(keras, settings, folder=tmp_path / "killed", **options)
    np.testing.assert_array_equal(weights_of(again), weights_of(whole))
    assert without_time(told_again.history) == without_time(told.history)
    assert told_again.best_epoch == told.best_epoch
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")


@pytest.mark.usefixtures("at_every_epoch")
def test_fitting_interrupted_at_a_prompt_goes_on_in_the_same_process(keras: Any, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        fit(network(keras), TRAIN, VALIDATION, SETTINGS, folder=tmp_path, progress=kill_after(3))
    train = Examples()
    fit(network(keras, new_process=False), train, VALIDATION, SETTINGS, folder=tmp_path)
    assert train.trained == [3, 4, 5]


@pytest.mark.usefixtures("at_every_epoch")
def test_epochs_that_were_run_are_not_run_again(keras: Any, tmp_path: Path) -> None:
    interrupted(keras, tmp_path, 4)
    train, rows = Examples(), list[Row]()
    fitted(keras, train=train, folder=tmp_path, progress=rows.append)
    assert train.trained == [4, 5]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6], "progress hears of all epochs"


@pytest.mark.usefixtures("at_every_epoch")
def test_fitting_that_was_finished_is_not_run_again(keras: Any, tmp_path: Path) -> None:
    first, _ = fitted(keras, folder=tmp_path)
    train = Examples()
    second, _ = fitted(keras, train=train, folder=tmp_path)
    assert train.trained == []
    np.testing.assert_array_equal(weights_of(second), weights_of(first))


@pytest.mark.usefixtures("at_every_epoch")
def test_patience_goes_on_where_it_was(keras: Any, tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=30, learning_rate=0.05, patience=3)
    whole, told = fitted(keras, settings, validation=CHANCE)
    assert told.best_epoch + 3 == len(told.history) < 30
    interrupted(keras, tmp_path, told.best_epoch + 1, settings, validation=CHANCE)
    again, told_again = fitted(keras, settings, validation=CHANCE, folder=tmp_path)
    assert len(told_again.history) == len(told.history)
    np.testing.assert_array_equal(weights_of(again), weights_of(whole))


@pytest.mark.usefixtures("at_every_epoch")
def test_one_checkpoint_is_kept(keras: Any, tmp_path: Path) -> None:
    interrupted(keras, tmp_path, 3)
    assert folders(tmp_path) == ["epoch-0003"]


def test_checkpoints_are_not_written_faster_than_epochs_that_are_short(keras: Any, tmp_path: Path) -> None:
    interrupted(keras, tmp_path, 3)
    assert folders(tmp_path) == []
    assert len(log_of(tmp_path)) == 3
    fitted(keras, folder=tmp_path)
    assert folders(tmp_path) == ["epoch-0006"], "the end is always kept"


@pytest.mark.usefixtures("at_every_epoch")
@pytest.mark.parametrize("change", [{"learning_rate": 0.5}, {"seed": 4}, {"epochs": 9}])
def test_checkpoint_of_other_settings_is_not_taken_up(
    keras: Any, tmp_path: Path, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(keras, tmp_path, 3)
    settings, train = replace(SETTINGS, **change), Examples()
    with caplog.at_level(logging.WARNING):
        again, told = fitted(keras, settings, train=train, folder=tmp_path)
    assert "epoch-0003 is of other data, another recipe or setting, and is not taken up" in caplog.text
    assert train.asked[0] == 0
    expected, _ = fitted(keras, settings)
    np.testing.assert_array_equal(weights_of(again), weights_of(expected))
    assert folders(tmp_path) == [f"epoch-{len(told.history):04}"]


@pytest.mark.usefixtures("at_every_epoch")
def test_checkpoint_of_another_network_or_other_examples_is_not_taken_up(keras: Any, tmp_path: Path) -> None:
    interrupted(keras, tmp_path / "labels", 2)
    corrected = Examples(known="with a label corrected in a later batch")
    fitted(keras, train=corrected, folder=tmp_path / "labels")
    assert corrected.asked[0] == 0
    interrupted(keras, tmp_path / "steps", 2)
    longer = Examples(40)
    fitted(keras, train=longer, folder=tmp_path / "steps")
    assert longer.asked[0] == 0
    interrupted(keras, tmp_path / "seed", 2)
    other = Examples()
    fitted(keras, seed=9, train=other, folder=tmp_path / "seed")
    assert other.asked[0] == 0


def test_end_of_other_settings_with_as_many_epochs_is_replaced(keras: Any, tmp_path: Path) -> None:
    """Both write `epoch-0006`, the second one where the first one's folder still is."""
    fitted(keras, folder=tmp_path)
    settings = replace(SETTINGS, learning_rate=0.01)
    again, _ = fitted(keras, settings, folder=tmp_path)
    assert folders(tmp_path) == ["epoch-0006"]
    taken, train = network(keras), Examples()
    fit(taken, train, VALIDATION, settings, folder=tmp_path)
    assert train.trained == []
    np.testing.assert_array_equal(weights_of(taken), weights_of(again))


def unfinished(checkpoint: Path) -> None:
    checkpoint.rename(checkpoint.parent / "unfinished")


def unfinished_beside(checkpoint: Path) -> None:
    shutil.copytree(checkpoint, checkpoint.parent / "unfinished")
    (checkpoint.parent / "unfinished" / "weights.npz").write_bytes(b"half")


@pytest.mark.usefixtures("at_every_epoch")
@pytest.mark.parametrize(("leave", "begins"), [(unfinished, 0), (unfinished_beside, 3)])
def test_unfinished_checkpoint_is_ignored(
    keras: Any, tmp_path: Path, leave: Callable[[Path], None], begins: int
) -> None:
    interrupted(keras, tmp_path, 3)
    leave(tmp_path / "epoch-0003")
    train = Examples()
    again, _ = fitted(keras, train=train, folder=tmp_path)
    assert train.trained[0] == begins
    np.testing.assert_array_equal(weights_of(again), weights_of(fitted(keras)[0]))
    assert folders(tmp_path) == ["epoch-0006"]


@pytest.mark.usefixtures("at_every_epoch")
def test_last_of_two_checkpoints_is_taken(keras: Any, tmp_path: Path) -> None:
    """Killed between writing a checkpoint and removing the one before."""
    interrupted(keras, tmp_path / "one", 2)
    interrupted(keras, tmp_path / "two", 4)
    shutil.copytree(tmp_path / "one" / "epoch-0002", tmp_path / "two" / "epoch-0002")
    train = Examples()
    fitted(keras, train=train, folder=tmp_path / "two")
    assert train.trained == [4, 5]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def removed(file: Path) -> None:
    file.unlink()


@pytest.mark.usefixtures("at_every_epoch")
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("state.json", cut),
        ("state.json", removed),
        ("weights.npz", cut),
        ("best.npz", emptied),
        ("optimizer.npz", removed),
    ],
)
def test_damaged_checkpoint_is_left_out_or_named(
    keras: Any, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    interrupted(keras, tmp_path, 2)
    damage(tmp_path / "epoch-0002" / name)
    train, named = Examples(), ""
    try:
        again, _ = fitted(keras, train=train, folder=tmp_path)
    except EdgeclfError as error:
        named = str(error)
    if named:
        assert "epoch-0002" in named
    else:
        assert train.asked[0] == 0
        np.testing.assert_array_equal(weights_of(again), weights_of(fitted(keras)[0]))


@pytest.mark.usefixtures("at_every_epoch")
def test_nothing_in_a_checkpoint_is_executed(keras: Any, tmp_path: Path) -> None:
    interrupted(keras, tmp_path, 2)
    for file in (tmp_path / "epoch-0002").glob("*.npz"):
        with np.load(file, allow_pickle=False) as arrays:
            assert len(arrays.files) > 2
    assert set(json.loads((tmp_path / "epoch-0002" / "state.json").read_text())) >= {"history", "best_epoch"}


# -- the log ----------------------------------------------------------------------------------------------------------


def test_log_has_a_row_for_each_epoch(keras: Any, tmp_path: Path) -> None:
    _, told = fitted(keras, folder=tmp_path)
    rows = log_of(tmp_path)
    assert [row["epoch"] for row in rows] == [str(float(n)) for n in range(1, 7)]
    assert set(rows[0]) == {"epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"}
    assert [float(row["val_loss"]) for row in rows] == [row["val_loss"] for row in told.history]


def test_log_can_be_written_anywhere(tmp_path: Path) -> None:
    write_log(tmp_path / "log.csv", [{"epoch": 1.0, "loss": 0.5}, {"epoch": 2.0, "loss": 0.25}])
    assert (tmp_path / "log.csv").read_text().split() == ["epoch,loss", "1.0,0.5", "2.0,0.25"]


def test_figures_are_of_all_batches_not_of_the_last(keras: Any) -> None:
    model, examples = network(keras), Examples(count=20, batch=8)
    told = fit(model, examples, examples, replace(SETTINGS, epochs=1))
    batches = list(examples.epoch(0))
    scores = np.concatenate([model.predict_on_batch(batch.inputs) for batch in batches])
    truth = np.concatenate([batch.truth for batch in batches])
    losses = -np.log((scores * truth).sum(axis=1))
    assert len(batches) == 3
    assert told.history[0]["val_loss"] == pytest.approx(losses.mean(), rel=1e-4)
    assert told.history[0]["val_accuracy"] == pytest.approx((scores.argmax(1) == truth.argmax(1)).mean(), abs=1e-6)
