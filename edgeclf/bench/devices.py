"""Which device, backend and precision rows there are, and which of them work here."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, get_args

from edgeclf.bench.rows import Group, RowName, unavailable
from edgeclf.bundle import ModelBundle
from edgeclf.errors import EdgeclfError, SessionError
from edgeclf.runtime.model import BF16, Model, open_model
from edgeclf.runtime.session import BACKENDS, CPU_PRECISIONS, MAX_BATCH, Placement
from edgeclf.specs import Device

ALL = "all"
_BACKENDS: dict[Device, tuple[str, ...]] = {
    "cpu": ("onnxruntime", "openvino"),
    "cuda": ("onnxruntime",),
    "tensorrt": ("tensorrt", "onnxruntime"),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """A device, what runs there, and in which precision. No backend is the one that the device comes with."""

    device: Device
    precision: str = "fp32"
    backend: str | None = None
    threads: int = 1  # inside one run
    max_batch: int = MAX_BATCH

    def __str__(self) -> str:
        device = "" if self.device in ("cpu", self.backend) else f" on {self.device}"
        return f"{self.backend or 'default backend'} {self.precision}{device}"

    @property
    def wanted(self) -> Placement:
        """What stands in the row of a choice that does not work."""
        return Placement(self.backend or "", "", self.device, self.precision, 0)


def choices_of(
    devices: Sequence[str], precisions: Sequence[str], backend: str | None, bundle: ModelBundle
) -> list[Choice]:
    """Every choice that was asked for; "all" stands for every device, or every precision of the bundle and bf16.

    One device in one precision is one choice, and so is not tried on several backends.
    """
    entry = bundle.extractor if bundle.extractor.has_graph else bundle.classifier
    if (*devices, *precisions) == (devices[0], precisions[0]) and ALL not in (devices[0], precisions[0]):
        return [Choice(_device(devices[0]), precisions[0], backend or _only_backend(precisions[0]))]
    named = [name for name in get_args(Device) if name != "auto"] if ALL in devices else [*devices]
    held = [*entry.precisions, BF16] if ALL in precisions else [*precisions]
    return [
        Choice(device, precision, name)
        for device in map(_device, named)
        for name in ([backend] if backend else _BACKENDS.get(device, (None,)))
        for precision in held
        if _makes_sense(name, precision)
    ]


def open_asked(
    stack: ExitStack,
    bundle: ModelBundle,
    choices: Sequence[Choice],
    *,
    name: str,
    group: Group,
) -> tuple[dict[Choice, Model], list[dict[str, Any]]]:
    """The models of the choices that work, closed with the stack, and a row with the reason for each that does not.

    Raises EdgeclfError where there is one choice and it does not work, or where none does.
    """
    if len(choices) == 1:
        return {choices[0]: open_one(stack, bundle, choices[0])}, []
    models: dict[Choice, Model] = {}
    rows = []
    for choice in choices:
        try:
            models[choice] = open_one(stack, bundle, choice)
        except EdgeclfError as error:
            rows.append(unavailable(RowName(f"{name}, {choice}", group, choice.wanted), str(error)))
    if not models:
        reasons = "\n  ".join(f"{row['name']}: {row['reason']}" for row in rows)
        raise SessionError(f"nothing that was asked for works here:\n  {reasons}", hint="see edgeclf doctor")
    return models, rows


def open_one(stack: ExitStack, bundle: ModelBundle, choice: Choice) -> Model:
    """The model of a choice, closed with the stack. Raises EdgeclfError where it does not work."""
    model = open_model(
        bundle,
        choice.device,
        precision=choice.precision,
        backend=choice.backend,
        threads=choice.threads,
        max_batch=choice.max_batch,
    )
    stack.callback(model.close)
    return model


def _device(name: str) -> Device:
    return next(known for known in get_args(Device) if known == name)


def _only_backend(precision: str) -> str | None:
    return "openvino" if precision == BF16 else None


def _makes_sense(backend: str | None, precision: str) -> bool:
    """Whether a backend may have the precision at all: a row that never can be says nothing of this machine."""
    if backend not in tuple(BACKENDS):
        return True
    return (precision != BF16 or backend == "openvino") and (precision not in CPU_PRECISIONS or backend != "tensorrt")
