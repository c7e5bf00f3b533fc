"""What the theatre looks like: colours, walls, floors, furniture and small moving things.

There are two families, so that a model can be tested on looks that it has not been trained on. They share no
hue, no texture of wall or floor, no kind of furniture and no moving thing. Skin and hair are the same in both.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeclf.video import RgbImage

LookFamily = Literal["seen", "unseen"]
Hsv = tuple[float, float, float]  # hue in degrees, saturation and value 0..1
Rgb = tuple[float, float, float]  # 0..255
Distractor = Callable[[RgbImage, float], None]  # draws itself into a picture as it is at a time in seconds

SUB = 4  # bits after the point in coordinates given to OpenCV

HUES: dict[LookFamily, tuple[tuple[float, float], ...]] = {
    "seen": ((0, 30), (100, 140), (210, 245)),
    "unseen": ((50, 80), (160, 190), (270, 320)),
}  # of clothes, walls, floors, chairs and clutter


@dataclass(frozen=True, slots=True)
class Look:
    """The colours of one scene."""

    wall: Hsv
    floor: Hsv
    chair: Hsv
    shirt: Hsv
    trousers: Hsv
    shoes: Hsv
    skin: Hsv
    hair: Hsv
    long_sleeves: bool


def draw_look(family: LookFamily, rng: np.random.Generator) -> Look:
    """Colours as chance gives them, clothes and chair lighter or darker than the wall."""
    wall = (_hue(family, rng), rng.uniform(0.12, 0.42), rng.uniform(0.42, 0.96))
    hair = (rng.uniform(15, 40), rng.uniform(0.2, 0.7), rng.uniform(0.08, 0.45))
    return Look(
        wall=wall,
        floor=(_hue(family, rng), rng.uniform(0.1, 0.45), float(np.clip(wall[2] * rng.uniform(0.6, 0.95), 0.25, 0.8))),
        chair=(_hue(family, rng), rng.uniform(0.3, 0.8), _apart(rng.uniform(0.15, 0.85), wall[2])),
        shirt=(_hue(family, rng), rng.uniform(0.35, 0.9), _apart(rng.uniform(0.2, 1.0), wall[2])),
        trousers=(_hue(family, rng), rng.uniform(0.2, 0.8), _apart(rng.uniform(0.12, 0.8), wall[2])),
        shoes=(_hue(family, rng), rng.uniform(0.1, 0.6), rng.uniform(0.08, 0.5)),
        skin=(rng.uniform(14, 30), rng.uniform(0.28, 0.55), rng.uniform(0.38, 0.98)),
        hair=hair,
        long_sleeves=bool(rng.random() < 0.5),
    )


def _hue(family: LookFamily, rng: np.random.Generator) -> float:
    low, high = HUES[family][int(rng.integers(len(HUES[family])))]
    return float(rng.uniform(low, high))


def _apart(value: float, other: float, by: float = 0.25) -> float:
    """`value`, moved so far that it differs from `other`, which is what makes a figure readable."""
    if abs(value - other) >= by:
        return value
    return other - by if other > 0.55 else other + by


def rgb(colour: Hsv, shade: float = 1.0) -> Rgb:
    """The colour for OpenCV, its value multiplied by `shade`."""
    hue, saturation, value = colour
    red, green, blue = colorsys.hsv_to_rgb(hue / 360, saturation, min(1.0, value * shade))
    return 255 * red, 255 * green, 255 * blue


@dataclass(frozen=True, slots=True)
class Canvas:
    """A background while it is painted."""

    image: RgbImage
    rng: np.random.Generator
    look: Look
    family: LookFamily
    floor: int  # first row of the floor
    tall: int  # rows of the picture, which sizes follow

    @property
    def wall(self) -> RgbImage:
        """The rows above the floor."""
        return self.image[: self.floor]

    @property
    def ground(self) -> RgbImage:
        """The rows of the floor."""
        return self.image[self.floor :]

    def colour(self) -> Rgb:
        """For clutter: a colour of the family, not far from the wall's."""
        value = float(np.clip(self.look.wall[2] * self.rng.uniform(0.65, 1.25), 0, 1))
        return rgb((_hue(self.family, self.rng), self.rng.uniform(0.1, 0.5), value))

    def length(self, low: float, high: float) -> int:
        """Pixels for a length drawn in picture heights."""
        return max(1, round(self.rng.uniform(low, high) * self.tall))


def paint_room(canvas: Canvas) -> None:
    """Paint wall, floor, skirting board and clutter."""
    rng, family = canvas.rng, canvas.family
    _gradient(canvas.wall, rgb(canvas.look.wall), rng.uniform(0.8, 1.2), rng.uniform(0.8, 1.2))
    _gradient(canvas.ground, rgb(canvas.look.floor), rng.uniform(0.85, 1.0), rng.uniform(0.9, 1.15))
    _one(_WALLS[family], rng)(canvas)
    _one(_FLOORS[family], rng)(canvas)
    for _ in range(int(rng.integers(1, 4))):
        _one(_CLUTTER[family], rng)(canvas)
    if rng.random() < 0.6:
        height = canvas.length(0.008, 0.03)
        canvas.image[canvas.floor - height : canvas.floor] = rgb(canvas.look.floor, rng.uniform(0.6, 1.3))


def _one(painters: tuple[_Painter, ...], rng: np.random.Generator) -> _Painter:
    return painters[int(rng.integers(len(painters)))]


def _gradient(part: RgbImage, colour: Rgb, start: float, end: float) -> None:
    shades = np.linspace(start, end, part.shape[0])[:, None] * np.array(colour)
    part[:] = np.clip(shades, 0, 255).astype(np.uint8)[:, None]


def _shade(part: RgbImage, mask: NDArray[np.bool_], factor: float) -> None:
    changed = cv2.convertScaleAbs(part, alpha=factor)
    cv2.copyTo(changed, mask.astype(np.uint8), part)


def _grid(part: RgbImage) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.arange(part.shape[0])[:, None], np.arange(part.shape[1])[None, :]


def _contrast(rng: np.random.Generator) -> float:
    return 1 + (1 if rng.random() < 0.5 else -1) * rng.uniform(0.05, 0.16)


def _plain(canvas: Canvas) -> None:
    """The gradient as it is."""


def _stripes(canvas: Canvas) -> None:
    rows, columns = _grid(canvas.wall)
    period = canvas.length(0.06, 0.25)
    _shade(canvas.wall, (columns + 0 * rows) % period < period * canvas.rng.uniform(0.3, 0.6), _contrast(canvas.rng))


def _wainscot(canvas: Canvas) -> None:
    rows, columns = _grid(canvas.wall)
    period = canvas.length(0.15, 0.4)
    low = rows > canvas.floor * canvas.rng.uniform(0.5, 0.75)
    _shade(canvas.wall, low & (columns % period > 0.05 * period), _contrast(canvas.rng))


def _bricks(canvas: Canvas) -> None:
    rows, columns = _grid(canvas.wall)
    tall = canvas.length(0.04, 0.09)
    wide, joint = int(2.2 * tall), max(2, tall // 7)
    shifted = columns + (rows // tall % 2) * (wide // 2)
    _shade(canvas.wall, (rows % tall < joint) | (shifted % wide < joint), _contrast(canvas.rng))


def _dots(canvas: Canvas) -> None:
    rows, columns = _grid(canvas.wall)
    period = canvas.length(0.06, 0.16)
    shifted = columns + (rows // period % 2) * (period // 2)
    away = (rows % period - period / 2) ** 2 + (shifted % period - period / 2) ** 2
    _shade(canvas.wall, away < (period * canvas.rng.uniform(0.15, 0.3)) ** 2, _contrast(canvas.rng))


def _diagonals(canvas: Canvas) -> None:
    rows, columns = _grid(canvas.wall)
    period = canvas.length(0.08, 0.25)
    _shade(canvas.wall, (columns + rows) % period < period // 2, _contrast(canvas.rng))


def _planks(canvas: Canvas) -> None:
    rows, columns = _grid(canvas.ground)
    period = canvas.length(0.02, 0.05)
    _shade(canvas.ground, (rows % period < max(1, period // 8)) | (columns < 0), 0.85)


def _checker(canvas: Canvas) -> None:
    rows, columns = _grid(canvas.ground)
    tall = canvas.length(0.02, 0.05)
    _shade(canvas.ground, (rows // tall + columns // (3 * tall)) % 2 == 0, _contrast(canvas.rng))


def _carpet(canvas: Canvas) -> None:
    rows, columns = canvas.ground.shape[:2]
    coarse = canvas.rng.random((rows // 3 + 1, columns // 3 + 1)) < 0.4
    _shade(canvas.ground, coarse.repeat(3, 0).repeat(3, 1)[:rows, :columns], _contrast(canvas.rng))


def _framed(canvas: Canvas, x: int, y: int, width: int, height: int) -> None:
    border = max(2, canvas.tall // 80)
    frame, inside = canvas.colour(), canvas.colour()
    cv2.rectangle(canvas.image, (x, y), (x + width, y + height), frame, cv2.FILLED)
    cv2.rectangle(canvas.image, (x + border, y + border), (x + width - border, y + height - border), inside, cv2.FILLED)


def _window(canvas: Canvas) -> None:
    width, height = canvas.length(0.15, 0.35), canvas.length(0.15, 0.35)
    x = int(canvas.rng.integers(0, canvas.image.shape[1] - width))
    y = canvas.length(0.04, 0.3)
    _framed(canvas, x, y, width, height)
    bar = canvas.colour()
    cv2.line(canvas.image, (x + width // 2, y), (x + width // 2, y + height), bar, max(2, canvas.tall // 100))
    cv2.line(canvas.image, (x, y + height // 2), (x + width, y + height // 2), bar, max(2, canvas.tall // 100))


def _cupboard(canvas: Canvas) -> None:
    width, height = canvas.length(0.15, 0.3), canvas.length(0.25, 0.6)
    x = int(canvas.rng.integers(0, canvas.image.shape[1] - width))
    for part in range(2):
        _framed(canvas, x + part * width // 2, canvas.floor - height, width // 2, height)


def _shelf(canvas: Canvas) -> None:
    width, y = canvas.length(0.2, 0.45), canvas.length(0.15, 0.45)
    x = int(canvas.rng.integers(0, canvas.image.shape[1] - width))
    thick = max(2, canvas.tall // 60)
    at = x + thick
    while at < x + width - 3 * thick:
        book, tall = canvas.length(0.012, 0.03), canvas.length(0.05, 0.1)
        cv2.rectangle(canvas.image, (at, y - tall), (at + book, y), canvas.colour(), cv2.FILLED)
        at += book + 2
    cv2.rectangle(canvas.image, (x, y), (x + width, y + thick), canvas.colour(), cv2.FILLED)


def _mirror(canvas: Canvas) -> None:
    size = canvas.length(0.06, 0.14)
    at = (int(canvas.rng.integers(0, canvas.image.shape[1])), canvas.length(0.15, 0.4))
    axes = (size, round(size * canvas.rng.uniform(0.8, 1.4)))
    cv2.ellipse(canvas.image, at, axes, 0, 0, 360, canvas.colour(), cv2.FILLED, cv2.LINE_AA)
    inner = (round(axes[0] * 0.8), round(axes[1] * 0.8))
    cv2.ellipse(canvas.image, at, inner, 0, 0, 360, canvas.colour(), cv2.FILLED, cv2.LINE_AA)


def _plant(canvas: Canvas) -> None:
    x, size = int(canvas.rng.integers(0, canvas.image.shape[1])), canvas.length(0.05, 0.1)
    leaf, rim = canvas.colour(), canvas.floor - size
    for angle in canvas.rng.uniform(-150, -30, 7):
        radians = math.radians(angle)
        middle = (round(x + 0.65 * size * math.cos(radians)), round(rim + 0.9 * size * math.sin(radians)))
        cv2.ellipse(canvas.image, middle, (size, size // 4), angle, 0, 360, leaf, cv2.FILLED, cv2.LINE_AA)
    _trapezoid(canvas, x, (rim, 0.5 * size), (canvas.floor, 0.35 * size))


def _lamp(canvas: Canvas) -> None:
    x, size = int(canvas.rng.integers(0, canvas.image.shape[1])), canvas.length(0.05, 0.1)
    top = canvas.floor - canvas.length(0.3, 0.6)
    cv2.line(canvas.image, (x, canvas.floor), (x, top), canvas.colour(), max(2, canvas.tall // 70), cv2.LINE_AA)
    _trapezoid(canvas, x, (top - size, 0.5 * size), (top, size))


def _trapezoid(canvas: Canvas, x: int, top: tuple[int, float], bottom: tuple[int, float]) -> None:
    """Upright about `x`; `top` and `bottom` are a row and half a width."""
    (y0, half0), (y1, half1) = top, bottom
    corners = np.array([(x - half0, y0), (x + half0, y0), (x + half1, y1), (x - half1, y1)])
    cv2.fillConvexPoly(canvas.image, np.rint(corners).astype(np.int32), canvas.colour(), cv2.LINE_AA)


_Painter = Callable[[Canvas], None]

_WALLS: dict[LookFamily, tuple[_Painter, ...]] = {
    "seen": (_plain, _stripes, _wainscot),
    "unseen": (_bricks, _dots, _diagonals),
}
_FLOORS: dict[LookFamily, tuple[_Painter, ...]] = {"seen": (_plain, _planks), "unseen": (_checker, _carpet)}
_CLUTTER: dict[LookFamily, tuple[_Painter, ...]] = {
    "seen": (_window, _cupboard, _shelf),
    "unseen": (_mirror, _plant, _lamp),
}

_Moving = Callable[[RgbImage, tuple[float, float], float, Rgb], None]


def draw_distractor(family: LookFamily, rng: np.random.Generator) -> Distractor:
    """Something small that moves and means nothing, in two scenes of three."""
    x, y, rate, phase = rng.uniform(0.05, 0.95), rng.uniform(0.05, 0.35), rng.uniform(0.3, 2.0), rng.uniform(0, 1)
    kinds: dict[LookFamily, tuple[_Moving, ...]] = {"seen": (_blinking, _swinging), "unseen": (_drifting, _spinning)}
    kind = kinds[family][int(rng.integers(2))] if rng.random() < 0.67 else None
    colour = rgb((_hue(family, rng), 0.4, rng.uniform(0.3, 0.9)))

    def distract(image: RgbImage, seconds: float) -> None:
        if kind is not None:
            kind(image, (x * image.shape[1], y * image.shape[0]), rate * seconds + phase, colour)

    return distract


def _disc(image: RgbImage, x: float, y: float, radius: float, colour: Rgb) -> None:
    cv2.circle(image, fixed(x, y), round(radius * (1 << SUB)), colour, cv2.FILLED, cv2.LINE_AA, SUB)


def _blinking(image: RgbImage, at: tuple[float, float], cycles: float, colour: Rgb) -> None:
    if cycles % 1 < 0.5:
        _disc(image, *at, 0.018 * image.shape[0], colour)


def _swinging(image: RgbImage, at: tuple[float, float], cycles: float, colour: Rgb) -> None:
    angle, length = 0.4 * math.sin(math.tau * cycles), 0.14 * image.shape[0]
    x, y = at[0] + length * math.sin(angle), at[1] + length * math.cos(angle)
    cv2.line(image, fixed(*at), fixed(x, y), colour, 1, cv2.LINE_AA, SUB)
    _disc(image, x, y, 0.018 * image.shape[0], colour)


def _drifting(image: RgbImage, at: tuple[float, float], cycles: float, colour: Rgb) -> None:
    reach = 0.06 * image.shape[0]
    _disc(image, at[0] + reach * math.sin(math.tau * cycles), at[1], 0.022 * image.shape[0], colour)


def _spinning(image: RgbImage, at: tuple[float, float], cycles: float, colour: Rgb) -> None:
    radius = 0.05 * image.shape[0]
    for blade in range(3):
        angle = math.tau * (cycles + blade / 3)
        tip = fixed(at[0] + radius * math.cos(angle), at[1] + radius * math.sin(angle))
        cv2.line(image, fixed(*at), tip, colour, max(1, image.shape[0] // 80), cv2.LINE_AA, SUB)


def fixed(x: float, y: float) -> tuple[int, int]:
    """A point in the coordinates that OpenCV takes with `shift=SUB`."""
    return round(x * (1 << SUB)), round(y * (1 << SUB))
