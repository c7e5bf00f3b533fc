"""Frozen descriptions that training, export, runtime and bench agree on.

They are written into the manifest by `to_dict` and read back, checked, by `from_dict`.
A value that makes no sense raises `ValueError`; whoever reads a file turns that into an error naming the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal, TypeVar, cast, get_args

Crop = Literal["center_square", "none", "letterbox"]
Interpolation = Literal["linear", "area"]
Color = Literal["rgb", "gray3"]
Resize = Literal["rgb", "planes"]
Sampling = Literal["rate", "first", "uniform"]
Padding = Literal["mask", "repeat_last"]
Aggregate = Literal["mean", "first", "vote"]
Device = Literal["auto", "cpu", "cuda", "tensorrt"]

_HOUR = 3600.0
_MAX_GAP_SLOTS = 10_000  # a frame behind a gap is repeated for each of them

_Spec = TypeVar("_Spec", bound="_Record")


class _Record:
    """Gives a frozen dataclass its dictionary form; unknown and missing keys are errors."""

    __slots__ = ()
    _LATER: ClassVar[frozenset[str]] = frozenset()  # keys that came after schema version 1 was first written

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary of all fields."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_dict(cls: type[_Spec], data: Any) -> _Spec:
        """The checked record; raises ValueError that names the key at fault.

        A key in `_LATER` may be missing: a file that was written before the key existed means its default.
        """
        if not isinstance(data, dict):
            raise ValueError(f"{cls.__name__} must be an object, not {type(data).__name__}")
        names = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        if unknown := sorted(set(data) - names):
            raise ValueError(f"{cls.__name__} has unknown keys {unknown}")
        if missing := sorted(names - cls._LATER - set(data)):
            raise ValueError(f"{cls.__name__} lacks {missing}")
        values = {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()}
        return cls(**values)


def require(holds: bool, message: str) -> None:
    """Raise ValueError with the message unless it holds."""
    if not holds:
        raise ValueError(message)


def _one_of(name: str, value: object, choices: Any) -> None:
    allowed = get_args(choices)
    require(value in allowed, f"{name} is {value!r}, must be one of {', '.join(allowed)}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _require_rate(rate: object) -> None:
    require(_is_number(rate) and 0.01 <= cast(float, rate) <= 1000, f"rate {rate!r} must be 0.01 to 1000")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_labels(labels: tuple[str, ...]) -> None:
    """Raise ValueError unless these are two labels or more, each with a name of its own."""
    require(len(labels) >= 2, "there are fewer than two labels")
    require(len(set(labels)) == len(labels), "there is one label twice")


def labels_from_json(labels: object) -> tuple[str, ...]:
    """The labels out of a JSON list of names; raises ValueError where it is anything else."""
    fits = isinstance(labels, list) and all(isinstance(label, str) and label.isprintable() for label in labels)
    require(fits and "" not in cast("list[str]", labels), f"labels are {labels!r}, must be a list of names")
    return tuple(cast("list[str]", labels))


def check_aggregate(aggregate: object) -> None:
    """Raise ValueError unless this says how clips make a file's label."""
    _one_of("aggregate", aggregate, Aggregate)


def check_thresholds(thresholds: object, labels: tuple[str, ...]) -> None:
    """Raise ValueError unless this maps labels to scores of 0 to 1."""
    require(isinstance(thresholds, Mapping), f"thresholds are {thresholds!r}, must map labels to scores")
    for label, score in cast("Mapping[str, object]", thresholds).items():
        require(label in labels, f"there is a threshold for {label!r}, which is no label")
        fits = _is_number(score) and 0 <= cast("float", score) <= 1
        require(fits, f"the threshold of {label!r} is {score!r}, must be 0 to 1")


@dataclass(frozen=True, slots=True)
class TensorSpec(_Record):
    """One input or output of a graph: name, NumPy dtype name, shape with None for the batch."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __post_init__(self) -> None:
        require(isinstance(self.name, str) and self.name != "", "a tensor needs a name")
        require(self.dtype in ("uint8", "int32", "float32"), f"dtype {self.dtype!r} of {self.name!r} is not supported")
        require(isinstance(self.shape, tuple), f"shape of {self.name!r} must be a list")
        sizes_fit = all(size is None or _is_count(size) for size in self.shape)
        require(sizes_fit, f"shape {self.shape} of {self.name!r} must hold positive sizes or null")

    def __str__(self) -> str:
        sizes = ",".join("N" if size is None else str(size) for size in self.shape)
        return f"{self.name} {self.dtype}[{sizes}]"


@dataclass(frozen=True, slots=True)
class PreprocessSpec(_Record):
    """How decoded RGB pictures become the extractor's uint8 input.

    Normalisation is not here: it is inside the extractor graph. `stack` pictures, `stack_seconds` apart, make one
    input (stack, height, width, 3), the sampled picture last; with a stack of 1 it is (height, width, 3).

    `resize` says what is resized: `rgb`, the picture in colour, which is exact; or `planes`, brightness and colour as
    video stores them, which become RGB at the target size. That is faster for large pictures, and off by about one
    of 255. Pictures that are not stored as 8-bit 4:2:0 of even size, upright and progressive, in BT.601 or BT.709,
    are resized in RGB under either.
    """

    _LATER: ClassVar[frozenset[str]] = frozenset({"stack", "stack_seconds", "resize"})

    size: tuple[int, int]  # (height, width) in pixels
    crop: Crop = "center_square"
    interpolation: Interpolation = "linear"
    color: Color = "rgb"
    stack: int = 1
    stack_seconds: float = 0.0
    resize: Resize = "rgb"

    def __post_init__(self) -> None:
        fits = isinstance(self.size, tuple) and len(self.size) == 2 and all(_is_count(n) for n in self.size)
        require(fits, f"size {self.size!r} must be (height, width)")
        require(max(self.size) <= 4096, f"size {self.size} exceeds 4096 pixels")
        _one_of("crop", self.crop, Crop)
        _one_of("interpolation", self.interpolation, Interpolation)
        _one_of("color", self.color, Color)
        _one_of("resize", self.resize, Resize)
        require(_is_count(self.stack) and self.stack <= 16, f"stack {self.stack!r} must be 1 to 16")
        apart = _is_number(self.stack_seconds) and (0 < self.stack_seconds <= 1) == (self.stack > 1)
        require(
            apart and self.stack_seconds >= 0,
            f"stack_seconds {self.stack_seconds!r} must be above 0, 1 at the most, for a stack; and 0 without one",
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input: (height, width, 3), or (stack, height, width, 3)."""
        return (*((self.stack,) if self.stack > 1 else ()), *self.size, 3)


@dataclass(frozen=True, slots=True)
class ClipSpec(_Record):
    """Which frames form a clip.

    Of a stream: `length` frames sampled at `rate` frames per second of video time. Of a file that is labelled as a
    whole, `sampling` says: `rate`, as of a stream; `first`, the first `length` frames whatever their time;
    `uniform`, `length` frames spread evenly over the file. The last two are how published recipes count.
    `hop_seconds` is the distance between the starts of two clips, `stale_seconds` the gap in the time stamps
    after which a running clip is given up and a new one starts. `padding` says what stands behind the last
    frame of a clip that is not full: zeros that the classifier masks, or the last frame again.
    """

    length: int
    rate: float
    hop_seconds: float
    stale_seconds: float
    sampling: Sampling = "rate"
    padding: Padding = "mask"

    def __post_init__(self) -> None:
        require(_is_count(self.length) and self.length <= 4096, f"length {self.length!r} must be 1 to 4096")
        _require_rate(self.rate)
        require(_is_number(self.hop_seconds) and 0 < self.hop_seconds <= _HOUR, "hop_seconds must be 0 to 3600")
        require(_is_number(self.stale_seconds) and 0 < self.stale_seconds <= _HOUR, "stale_seconds must be 0 to 3600")
        slots = self.stale_seconds * self.rate
        require(
            slots <= _MAX_GAP_SLOTS, f"stale_seconds lets a gap fill {slots:.0f} frames, {_MAX_GAP_SLOTS} are allowed"
        )
        _one_of("sampling", self.sampling, Sampling)
        _one_of("padding", self.padding, Padding)

    @classmethod
    def by_rate(cls, length: int, rate: float, *, hop_seconds: float | None = None) -> ClipSpec:
        """Clips of `length` frames at `rate` frames per second; the hop is a quarter of a clip unless given.

        A gap of half a clip, one second at the least, makes a clip stale.
        """
        seconds = length / rate
        return cls(length, rate, seconds / 4 if hop_seconds is None else hop_seconds, max(1.0, seconds / 2))

    def of_stream(self) -> ClipSpec:
        """The same clips as they are cut from a stream: by time, whatever `sampling` says of files."""
        return replace(self, sampling="rate")

    def at_rate(self, rate: float) -> ClipSpec:
        """Clips of as many frames and as much overlap, sampled by time at another rate: they cover other times.

        Raises ValueError where the rate is not 0.01 to 1000.
        """
        _require_rate(rate)
        clips = ClipSpec.by_rate(self.length, rate, hop_seconds=self.hop_seconds * self.rate / rate)
        return replace(clips, padding=self.padding)

    @property
    def seconds(self) -> float:
        """Video time that a full clip covers."""
        return self.length / self.rate

    @property
    def hop_slots(self) -> int:
        """The hop in sampled frames, at least one."""
        return max(1, round(self.hop_seconds * self.rate))
