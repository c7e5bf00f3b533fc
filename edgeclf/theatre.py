"""Rendered scenes with known actions: a video source, training data, tests and the demo.

A figure acts beside a chair. What it does cannot be told from what is in the picture:

- `stand_up` is `sit_down` played backwards and `get_up` is `fall` played backwards, picture for picture of the
  same distribution, so that only the order of the pictures tells them apart;
- `wave_slow` and `wave_fast` go through the same poses at another tempo;
- `still` stands, sits or lies, as the other actions do before and after they move.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeVar, get_args
from urllib.parse import SplitResult, parse_qsl, urlsplit

import numpy as np

from edgeclf.errors import MissingExtraError, VideoError
from edgeclf.theatre_figure import BACKWARDS, Figure, Manner, Performance, Pose, Posture, draw_figure, draw_manner
from edgeclf.video import Frame, RgbImage

try:
    from edgeclf.theatre_looks import LookFamily
    from edgeclf.theatre_stage import Stage
except ModuleNotFoundError as error:
    if error.name != "cv2":
        raise
    raise MissingExtraError("OpenCV is not installed", hint='pip install "edgeclf[cpu]"') from error

ACTIONS = ("fall", "get_up", "sit_down", "stand_up", "still", "walk", "wave_fast", "wave_slow")
LOOKS: tuple[LookFamily, ...] = get_args(LookFamily)
FRAME_RATES = (10.0, 12.0, 12.5, 15.0, 20.0, 24.0, 25.0, 30000 / 1001, 30.0)
SIZE = (120, 160)
CLIP_SECONDS = 1.9  # from the first to the last of 20 pictures at 10 a second
PLAY_SECONDS = 20.0

_SIDES = (48, 1080)  # what a picture may measure, in pixels
_ASPECTS = (0.5, 4.0)  # width to height
_RATES = (1.0, 240.0)
_LONGEST = 3600.0
_CHANGES = frozenset(BACKWARDS) | frozenset(BACKWARDS.values())


@dataclass(frozen=True, slots=True)
class Act:
    """What is true of a stretch of time."""

    action: str
    start_seconds: float
    end_seconds: float


@dataclass(frozen=True, slots=True)
class Scene:
    """A rendered video with its truth. Any picture can be asked for at any time, and is always the same."""

    performances: tuple[Performance, ...]  # by time, each from where the one before it ends
    frame_count: int
    fps: float
    size: tuple[int, int]  # (height, width)
    seed: int
    look: LookFamily

    @property
    def duration_seconds(self) -> float:
        """From the first picture to where one more would follow."""
        return self.frame_count / self.fps

    @property
    def acts(self) -> tuple[Act, ...]:
        """The truth, without holes from 0 to `duration_seconds`."""
        end = self.duration_seconds
        ends = [performance.end for performance in self.performances[:-1]] + [end]
        starts = [0.0, *ends[:-1]]
        return tuple(Act(p.action, start, stop) for p, start, stop in zip(self.performances, starts, ends, strict=True))

    @property
    def figure(self) -> Figure:
        """Who acts."""
        return _figure(self.seed)

    def pose(self, seconds: float) -> Pose:
        """The pose at that time."""
        now = next((p for p in self.performances if seconds < p.end), self.performances[-1])
        return now.pose(self.figure, seconds)

    def render(self, index: int) -> RgbImage:
        """uint8 (H, W, 3) RGB: picture `index`, a function of the scene and the index alone."""
        if not 0 <= index < self.frame_count:
            raise IndexError(f"picture {index} of a scene of {self.frame_count}")
        seconds = index / self.fps
        return _stage(self.seed, self.look, self.size).picture(self.pose(seconds), seconds, index)


@lru_cache(maxsize=64)
def _figure(seed: int) -> Figure:
    return draw_figure(np.random.default_rng([seed, 4]))


@lru_cache(maxsize=16)
def _stage(seed: int, look: LookFamily, size: tuple[int, int]) -> Stage:
    return Stage(seed, look, size, _figure(seed))


def single_action(
    action: str,
    seed: int,
    *,
    look: LookFamily = "seen",
    seconds: float = CLIP_SECONDS,
    fps: float | None = None,
    size: tuple[int, int] = SIZE,
) -> Scene:
    """A scene of one action, with at least `seconds` between its first and its last picture.

    A change of posture lies around the middle, so that a scene played backwards is as likely as the scene;
    other actions may have begun before and end after it. `fps` None draws one of FRAME_RATES. Scenes of
    different actions that share a seed share figure, place and look. Raises VideoError for an unknown action.
    """
    if action not in ACTIONS:
        raise VideoError(f"unknown action {action!r}", hint=f"known: {', '.join(ACTIONS)}")
    seed = _checked_seed(seed)
    rng = np.random.default_rng([seed, 5])
    fps = _checked_rate(_draw_rate(rng) if fps is None else fps)
    count = math.ceil(_checked_length(seconds) * fps - 1e-6) + 1
    performance = _cut_out(action, draw_manner(rng), (count - 1) / fps, longer=rng.uniform(0.6, 2.1), cut=rng.random())
    return Scene((performance,), count, fps, _checked_size(size), seed, _checked_look(look))


def _cut_out(action: str, manner: Manner, span: float, *, longer: float, cut: float) -> Performance:
    if action not in _CHANGES:
        return Performance(action, -cut * longer, span + (1 - cut) * longer, 0.0, manner)
    offset = -manner.offset if action in BACKWARDS else manner.offset
    return Performance(action, 0.0, span, span * (0.5 + 0.22 * offset), manner)


def play(
    seed: int,
    *,
    look: LookFamily = "seen",
    seconds: float = PLAY_SECONDS,
    fps: float | None = None,
    size: tuple[int, int] = SIZE,
) -> Scene:
    """A scene in which one figure does everything, in rounds of all actions, for at least `seconds`."""
    seed = _checked_seed(seed)
    rng = np.random.default_rng([seed, 6])
    fps = _checked_rate(_draw_rate(rng) if fps is None else fps)
    least = _checked_length(seconds)
    performances: list[Performance] = []
    while not performances or performances[-1].end < least:
        for action, posture in _script(rng):
            performances.append(_performance(action, posture, performances[-1].end if performances else 0.0, rng))
    count = math.ceil(performances[-1].end * fps)
    return Scene(tuple(performances), count, fps, _checked_size(size), seed, _checked_look(look))


def _script(rng: np.random.Generator) -> list[tuple[str, Posture]]:
    """One round of all actions, from standing to standing. The posture is that of `still`."""
    blocks: list[list[tuple[str, Posture]]] = [
        [("walk", "standing")],
        [("wave_slow", "standing")],
        [("wave_fast", "standing")],
        [("sit_down", "standing"), ("still", "sitting"), ("stand_up", "standing")],
        [("fall", "standing"), ("still", "lying"), ("get_up", "standing")],
    ]
    order = rng.permutation(len(blocks))
    return [("still", "standing"), *(act for block in order for act in blocks[block])]


def _performance(action: str, posture: Posture, start: float, rng: np.random.Generator) -> Performance:
    drawn = draw_manner(rng)
    manner = Manner(posture, drawn.tempo, drawn.phase, drawn.size, drawn.seconds, drawn.offset, drawn.breath)
    low, high = (2.0, 2.4) if action in _CHANGES else (2.5, 3.0) if action == "still" else (2.5, 4.0)
    length = rng.uniform(low, high)
    slack = (length - manner.seconds) / 2  # a change begins and ends within its act
    return Performance(action, start, start + length, start + length / 2 + slack * manner.offset, manner)


def _draw_rate(rng: np.random.Generator) -> float:
    return FRAME_RATES[int(rng.integers(len(FRAME_RATES)))]


def _checked_seed(seed: int) -> int:
    if seed < 0:
        raise VideoError(f"seed {seed} is negative", hint="seeds are 0, 1, 2, ...")
    return int(seed)  # NumPy's integers overflow where Python's do not


def _checked_look(look: LookFamily) -> LookFamily:
    if look not in LOOKS:
        raise VideoError(f"unknown look {look!r}", hint=f"known: {', '.join(LOOKS)}")
    return look


def _checked_rate(fps: float) -> float:
    if not _RATES[0] <= fps <= _RATES[1]:
        raise VideoError(f"fps {fps:g} is out of range", hint=f"it may be {_RATES[0]:g} to {_RATES[1]:g}")
    return fps


def _checked_length(seconds: float) -> float:
    if not 0 < seconds <= _LONGEST:
        raise VideoError(f"seconds {seconds:g} is out of range", hint=f"it may be above 0, up to {_LONGEST:g}")
    return seconds


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    low, high = _SIDES
    height, width = size
    if not all(low <= side <= high for side in size) or not _ASPECTS[0] <= width / height <= _ASPECTS[1]:
        hint = f"width and height may be {low} to {high}, the width {_ASPECTS[0]:g} to {_ASPECTS[1]:g} times the height"
        raise VideoError(f"size {width}x{height} is out of range", hint=hint)
    return size


class TheatreSource:
    """A scene as a video source. A frame is rendered only when its image is asked for."""

    def __init__(self, scene: Scene, name: str) -> None:
        self.scene = scene
        self.name = name
        self.decoder = "rendered"
        self.dropped: Mapping[str, int] = {}
        self._closed = False

    def frames(self) -> Iterator[Frame]:
        """All frames in order of time, none of them rendered yet."""
        for index in range(self.scene.frame_count):
            if self._closed:
                return
            yield Frame(index / self.scene.fps, partial(self.scene.render, index))

    def close(self) -> None:
        """End `frames`."""
        self._closed = True


def open_synthetic(url: str) -> TheatreSource:
    """The source behind `synthetic://ACTION?seed=N` or `synthetic://play?seed=N`.

    The query may also hold `look`, `seconds`, `fps` and `size` (as 160x120); a seed that is not given is 0.
    Raises VideoError for anything else.
    """
    parts = _split(url)
    if parts.scheme != "synthetic" or parts.path or parts.fragment or parts.netloc not in (*ACTIONS, "play"):
        raise VideoError(f"no scene is called {url}", hint=f"known: synthetic://NAME with {', '.join(ACTIONS)} or play")
    query = _query(url, parts.query)
    seed = _value(query, "seed", _whole, "0")
    look = _value(query, "look", _look, "seen")
    seconds = _value(query, "seconds", float, str(PLAY_SECONDS if parts.netloc == "play" else CLIP_SECONDS))
    fps = _value(query, "fps", float, "") if "fps" in query else None
    size = _value(query, "size", _size, f"{SIZE[1]}x{SIZE[0]}")
    if parts.netloc == "play":
        return TheatreSource(play(seed, look=look, seconds=seconds, fps=fps, size=size), url)
    return TheatreSource(single_action(parts.netloc, seed, look=look, seconds=seconds, fps=fps, size=size), url)


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise VideoError(f"{url} is not a URL: {error}", hint="an example: synthetic://walk?seed=7") from error


_T = TypeVar("_T")
_KEYS = ("seed", "look", "seconds", "fps", "size")


def _query(url: str, query: str) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    for key, _ in pairs:
        if key not in _KEYS:
            raise VideoError(f"{url}: unknown parameter {key!r}", hint=f"known: {', '.join(_KEYS)}")
    if len(dict(pairs)) < len(pairs):
        raise VideoError(f"{url}: a parameter is given twice", hint="give each once")
    return dict(pairs)


def _value(query: Mapping[str, str], key: str, parse: Callable[[str], _T], default: str) -> _T:
    text = query.get(key, default)
    try:
        return parse(text)
    except ValueError as error:
        raise VideoError(f"synthetic scene: {key}={text} cannot be used", hint=_EXAMPLES[key]) from error


_EXAMPLES = {
    "seed": "a seed is a whole number from 0, such as seed=7",
    "look": f"known: {', '.join(LOOKS)}",
    "seconds": "it is a number, such as seconds=2.5",
    "fps": "it is a number, such as fps=25",
    "size": "it is WIDTHxHEIGHT, such as size=320x240",
}


def _whole(text: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", text):
        raise ValueError(text)
    return int(text)


def _look(text: str) -> LookFamily:
    for look in LOOKS:
        if look == text:
            return look
    raise ValueError(text)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return _whole(height), _whole(width)
