"""Fitting a Keras model epoch by epoch, so that it can be killed and taken up again with the same result."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from edgeclf.errors import DataError
from edgeclf.model_directory import import_keras
from edgeclf.runtime.golden import ARCHIVE_ERRORS
from edgeclf.runtime.model import Floats
from edgeclf.runtime.prefetch import prefetch
from edgeclf.specs import require

log = logging.getLogger(__name__)

Schedule = Literal["constant", "cosine", "plateau"]
Keep = Literal["best", "last"]  # the epoch of the lowest validation loss, or the last
Row = dict[str, float]  # one epoch: epoch, loss, accuracy, val_loss, val_accuracy, learning_rate, seconds

_SECONDS_BETWEEN_CHECKPOINTS = 10.0  # an epoch may take less than writing its checkpoint
_PLATEAU_EPOCHS, _PLATEAU_FACTOR = 5, 0.3


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How a model is fitted.

    schedule: the learning rate stays, falls to 0 on half a cosine, or is multiplied by 0.3 after 5 epochs without a
    lower validation loss. class_weights: every class weighs the same, however many clips it has.
    """

    epochs: int = 60
    batch: int = 64
    learning_rate: float = 1e-3
    patience: int = 15  # epochs without a lower validation loss, then it ends; 0: it goes on to the last
    keep: Keep = "best"
    schedule: Schedule = "constant"
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0  # both parameters of the beta distribution that clips are blended by; 0: they are not
    class_weights: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch", 1), ("patience", 0), ("seed", 0)):
            value = getattr(self, name)
            require(type(value) is int and value >= least, f"{name} is {value!r}, must be {least} or more")
        for name in ("learning_rate", "weight_decay", "mixup", "label_smoothing"):
            value = getattr(self, name)
            require(type(value) in (int, float) and value >= 0, f"{name} is {value!r}, must be 0 or more")
        require(self.learning_rate > 0, "learning_rate must be above 0")
        require(isinstance(self.class_weights, bool), f"class_weights is {self.class_weights!r}, must be true or false")
        require(self.label_smoothing < 1, f"label_smoothing is {self.label_smoothing}, must be below 1")
        require(self.schedule in get_args(Schedule), f"schedule is {self.schedule!r}: {', '.join(get_args(Schedule))}")
        require(self.keep in get_args(Keep), f"keep is {self.keep!r}, must be one of {', '.join(get_args(Keep))}")
        ends = self.keep == "best" or (self.patience == 0 and self.schedule != "plateau")
        require(ends, "to keep the last epoch goes with patience 0 and without the schedule 'plateau'")


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples for one step."""

    inputs: Any  # what the Keras model takes
    truth: Floats  # (N, C), each row sums to 1: what is there, and how much of it
    weights: Floats  # (N,)


class Batches(Protocol):
    """Labelled examples, in batches, as often as they are asked for."""

    @property
    def identity(self) -> str:
        """A hash of what is cheap to know of all examples, labels above all."""

    @property
    def steps(self) -> int:
        """Batches in one epoch."""

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of an epoch, which depend on its number and on nothing drawn before."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """How it went; the model has the weights of the epoch that was kept, "best" by the lowest validation loss."""

    history: tuple[Row, ...]
    best_epoch: int  # from 1; 0 where the weights at the start were better than those of any epoch


@dataclass(slots=True)
class _Progress:
    """What has to be known to go on after an epoch, beside the weights."""

    history: list[Row] = field(default_factory=list)
    best_epoch: int = 0
    best_loss: float = math.inf  # of the validation examples
    learning_rate: float = 0.0


def fit(
    model: Any,
    train: Batches,
    validation: Batches,
    settings: FitSettings,
    *,
    folder: Path | None = None,
    progress: Callable[[Row], None] = lambda _: None,
    last_epoch: int | None = None,
    start_counts: bool = False,
) -> Fitted:
    """Fit a Keras classifier; it ends with the weights of its lowest validation loss, or as `settings.keep` says.

    folder: where checkpoints and `log.csv` are kept. If it holds a checkpoint of the same model, settings and examples,
    fitting goes on behind it, and ends with the weights that it would have had uninterrupted. progress: called after
    each epoch with its row of the log. last_epoch: end behind this one, with its weights. Raises DataError where a
    loss is no number. start_counts: the weights at the start are kept where no epoch has a lower validation loss.
    """
    checkpoints = _Checkpoints(folder, _fingerprint(model, (train, validation), settings)) if folder else None
    _compile(model, settings)
    state, best = _Progress(learning_rate=settings.learning_rate), model.get_weights()
    if checkpoints and (kept := checkpoints.load(model)):
        state, best = kept
        for row in state.history:
            progress(row)
    elif start_counts:
        state.best_loss = measure(model, validation)["loss"]
    while not _ended(state, settings, last_epoch):
        row = _run_epoch(model, train, validation, settings, state)
        state.history.append(row)
        if last_epoch or settings.keep == "last" or row["val_loss"] <= state.best_loss:
            state.best_epoch, state.best_loss, best = len(state.history), row["val_loss"], model.get_weights()
        _follow_plateau(state, settings)
        if checkpoints:
            checkpoints.save(model, state, best, always=_ended(state, settings, last_epoch))
        progress(row)
    model.set_weights(best)
    return Fitted(tuple(state.history), state.best_epoch)


def write_log(file: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write the epochs as CSV, one row each."""
    with file.open("w", newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, list(history[0]))
        writer.writeheader()
        writer.writerows(history)


def _compile(model: Any, settings: FitSettings) -> None:
    keras = import_keras()
    optimizer = keras.optimizers.AdamW(settings.learning_rate, weight_decay=settings.weight_decay)
    if any(layer.dtype_policy.name == "mixed_float16" for layer in model.layers):
        # Keras looks at the model's own policy, which is another one where it was put together elsewhere.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(
        optimizer,
        auto_scale_loss=False,
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=settings.label_smoothing),
        weighted_metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
        jit_compile=False,
    )
    model.optimizer.build(model.trainable_variables)


def _run_epoch(model: Any, train: Batches, validation: Batches, settings: FitSettings, state: _Progress) -> Row:
    number, start = len(state.history), time.monotonic()
    _seed_dropout(model, settings.seed, number)
    figures = _Figures()
    rate = state.learning_rate
    with prefetch(train.epoch(number), depth=2) as batches:
        for step, batch in enumerate(batches):
            if settings.schedule == "cosine":
                done = (number + step / train.steps) / settings.epochs
                rate = settings.learning_rate * 0.5 * (1 + np.cos(np.pi * done))
            model.optimizer.learning_rate.assign(rate)
            figures.add(batch, model.train_on_batch(batch.inputs, batch.truth, batch.weights, return_dict=True))
    row = {"epoch": float(number + 1), **figures.means()}
    row |= {f"val_{name}": value for name, value in measure(model, validation).items()}
    for name in ("loss", "val_loss"):
        if not np.isfinite(row[name]):
            raise DataError(f"{name} is {row[name]} in epoch {number + 1}", hint="take a smaller --lr")
    return row | {"learning_rate": float(rate), "seconds": round(time.monotonic() - start, 3)}


def measure(model: Any, batches: Batches) -> dict[str, float]:
    """Loss and accuracy of a compiled model."""
    figures = _Figures()
    with prefetch(batches.epoch(0), depth=2) as items:
        for batch in items:
            figures.add(batch, model.test_on_batch(batch.inputs, batch.truth, batch.weights, return_dict=True))
    return figures.means()


@dataclass(slots=True)
class _Figures:
    """Loss and accuracy over batches; what Keras gives for a batch is of that batch alone."""

    examples: int = 0
    weight: float = 0.0
    loss: float = 0.0
    right: float = 0.0

    def add(self, batch: Batch, figures: Mapping[str, Any]) -> None:
        """Take in what Keras said of a batch: its loss by examples, its accuracy by their weights."""
        weight = float(batch.weights.sum())
        self.examples += len(batch.weights)
        self.weight += weight
        self.loss += float(figures["loss"]) * len(batch.weights)
        self.right += float(figures["accuracy"]) * weight

    def means(self) -> dict[str, float]:
        """Over all examples so far."""
        return {"loss": self.loss / max(1, self.examples), "accuracy": self.right / (self.weight or 1.0)}


def _seed_dropout(model: Any, seed: int, epoch: int) -> None:
    """Give every layer that draws a state of its own for this epoch, whatever was drawn before."""
    for index, generator in enumerate(_seed_generators(model)):
        digest = hashlib.sha256(f"{seed} {epoch} {index}".encode()).digest()
        generator.state.assign(np.frombuffer(digest[:8], np.uint32).astype(generator.state.dtype))


def _seed_generators(model: Any) -> list[Any]:
    layers = model._flatten_layers() if hasattr(model, "_flatten_layers") else model.layers
    return [generator for layer in layers for generator in getattr(layer, "_seed_generators", [])]


def _ended(state: _Progress, settings: FitSettings, last_epoch: int | None) -> bool:
    epochs = len(state.history)
    if last_epoch:
        return epochs >= last_epoch
    return epochs >= settings.epochs or epochs - state.best_epoch >= settings.patience > 0


def _follow_plateau(state: _Progress, settings: FitSettings) -> None:
    behind = len(state.history) - state.best_epoch
    if settings.schedule == "plateau" and behind and behind % _PLATEAU_EPOCHS == 0:
        state.learning_rate *= _PLATEAU_FACTOR


# -- checkpoints -------------------------------------------------------------------------------------------------------


def _fingerprint(model: Any, examples: Sequence[Batches], settings: FitSettings) -> str:
    """What a checkpoint must have in common with a run that takes it up: layers, first weights, settings, examples.

    Of the examples their number, their identity and the first batches tell enough. The model must not be compiled: what
    Keras writes of a compiled one has names that it counts up.
    """
    known = [[batches.steps, batches.identity] for batches in examples]
    digest = hashlib.sha256(json.dumps([model.to_json(), asdict(settings), known]).encode())
    for weight in model.get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    for batches in examples:
        first = next(iter(batches.epoch(0)))
        inputs = first.inputs.values() if isinstance(first.inputs, Mapping) else [first.inputs]
        for array in (*inputs, first.truth, first.weights):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class _Checkpoints:
    """Folders `epoch-0007`, of which only the last whole one is kept."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._fingerprint = fingerprint
        self._saved_at = time.monotonic()

    def save(self, model: Any, state: _Progress, best: Sequence[NDArray[Any]], *, always: bool) -> None:
        """Keep everything, unless it was just done; a folder is whole or not there."""
        write_log(self._folder / "log.csv", state.history)
        if time.monotonic() - self._saved_at < _SECONDS_BETWEEN_CHECKPOINTS and not always:
            return
        unfinished = self._folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        _write_arrays(unfinished / "weights.npz", dict(_numbered(model.get_weights())))
        _write_arrays(unfinished / "best.npz", dict(_numbered(best)))
        optimizer = [variable.numpy() for variable in _optimizer_variables(model.optimizer)]
        _write_arrays(unfinished / "optimizer.npz", dict(_numbered(optimizer)))
        (unfinished / "state.json").write_text(json.dumps({"fingerprint": self._fingerprint, **asdict(state)}))
        target = self._folder / f"epoch-{len(state.history):04}"
        older = [path for path in self._folders() if path != target]
        shutil.rmtree(target, ignore_errors=True)  # of other settings
        unfinished.rename(target)
        for path in older:
            shutil.rmtree(path)
        self._saved_at = time.monotonic()

    def load(self, model: Any) -> tuple[_Progress, list[NDArray[Any]]] | None:
        """What the last checkpoint holds, with the model and its optimizer set to it; None where none fits."""
        for path in reversed(self._folders()):
            try:
                state = json.loads((path / "state.json").read_text())
                if state.pop("fingerprint") != self._fingerprint:
                    log.warning("%s is of other data, another recipe or setting, and is not taken up", path)
                    continue
                progress = _Progress(**state)
                weights, best, kept = (_read_arrays(path / f"{name}.npz") for name in ("weights", "best", "optimizer"))
            except ARCHIVE_ERRORS as error:
                log.warning("%s is damaged, and is not taken up: %r", path, error)
                continue
            model.set_weights(weights)
            for variable, value in zip(_optimizer_variables(model.optimizer), kept, strict=True):
                variable.assign(value)
            return progress, best
        return None

    def _folders(self) -> list[Path]:
        return sorted(self._folder.glob("epoch-*"))


def _optimizer_variables(optimizer: Any) -> list[Any]:
    """Those of the optimizer, and of the one inside that which scales the loss for half precision."""
    inner = getattr(optimizer, "inner_optimizer", None)
    variables = [*optimizer.variables, *(inner.variables if inner else ())]
    return list({id(variable): variable for variable in variables}.values())


def _numbered(arrays: Sequence[NDArray[Any]]) -> Iterator[tuple[str, NDArray[Any]]]:
    return ((f"{index:05}", array) for index, array in enumerate(arrays))


def _write_arrays(file: Path, arrays: Mapping[str, Any]) -> None:
    with closing(file.open("wb")) as out:
        np.savez(out, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})


def _read_arrays(file: Path) -> list[NDArray[Any]]:
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
        return [arrays[name] for name in sorted(arrays.files)]
