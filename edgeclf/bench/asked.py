"""What a benchmark was asked to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edgeclf.bench.devices import Choice
from edgeclf.bundle import ModelBundle
from edgeclf.runtime.model import Model
from edgeclf.runtime.pipeline import LoopOptions
from edgeclf.runtime.tuned import Tuned

Said = Callable[[str], None]  # takes a line of progress


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """How simulated cameras behave, and what counts as keeping up with them."""

    fps: tuple[float, ...] = (25.0,)  # the cameras take them in turn
    sample_fps: float | None = None  # frames a second that are classified; None: the model's own rate
    jitter_ms: float = 0.0
    key_pause_ms: float = 0.0
    outages: tuple[float, float] = (0.0, 0.0)  # seconds from one disconnect to the next, and how long it lasts
    seconds: float = 10.0  # that are measured of each number of cameras
    p99_ms: float = 150.0
    cameras: int | None = None  # just so many; None: the most that can be sustained
    most_cameras: int = 256
    from_memory: bool = False  # pictures are decoded beforehand


@dataclass(frozen=True, slots=True)
class Asked:
    """One benchmark."""

    bundle: ModelBundle
    sources: tuple[str, ...]
    choices: tuple[Choice, ...]  # the first is what the others are compared with
    command: str = ""
    keras: Path | None = None
    batch: int | None = None
    tuned: Tuned | None = None  # the loop runs as this says; it is then the one choice
    rows: tuple[str, ...] = ()  # parts of the names of loops over files that are timed beside ours; none: all
    rounds: int = 5
    stable: bool = False
    traced: bool = False
    live: LiveSettings = field(default_factory=LiveSettings)
    said: Said = lambda _: None

    @property
    def one_choice(self) -> bool:
        """Whether a single device and precision was named, which then has to work."""
        return len(self.choices) == 1

    def options_for(self, model: Model) -> LoopOptions:
        """The loop's options for where the extractor runs."""
        return LoopOptions.for_device(model.extractor.placement.device, tuned=self.tuned, batch_size=self.batch)
