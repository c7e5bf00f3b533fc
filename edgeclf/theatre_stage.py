"""Where the figure of the theatre appears: the background, the camera, and the drawing itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeclf.theatre_figure import PARTS, REACH, SEAT, Figure, Pose, capsules
from edgeclf.theatre_looks import (
    HUES,
    SUB,
    Canvas,
    Hsv,
    Look,
    LookFamily,
    Rgb,
    draw_distractor,
    draw_look,
    fixed,
    paint_room,
    rgb,
)
from edgeclf.video import RgbImage

_SHARP = 2  # the background is painted this much larger
_SHADOW = 0.72


@dataclass(frozen=True, slots=True)
class _Camera:
    """Where the figure stands in the picture (in heights of the picture) and how the picture is taken."""

    tall: float
    spot: float
    floor: float
    side: int  # 1: ahead is right, -1: ahead is left
    shake: float
    sway: tuple[tuple[float, float, float], ...]  # cycles per second and phases of x and y
    light: float
    noise: float
    blur: float


def _draw_camera(rng: np.random.Generator, aspect: float) -> _Camera:
    tall = min(rng.uniform(0.45, 0.8), 0.96 * aspect / (REACH[1] - REACH[0]))
    room = aspect - tall * (REACH[1] - REACH[0])
    return _Camera(
        tall=tall,
        spot=-REACH[0] * tall + rng.uniform(0, room),
        floor=rng.uniform(max(1.17 * tall, 0.8), 0.965),
        side=1 if rng.random() < 0.5 else -1,
        shake=rng.uniform(0.001, 0.008) if rng.random() < 0.6 else 0.0,
        sway=tuple((rng.uniform(0.3, 3.5), rng.uniform(0, 1), rng.uniform(0, 1)) for _ in range(3)),
        light=rng.uniform(0.8, 1.12),
        noise=rng.uniform(0.5, 7.0),
        blur=rng.uniform(0.4, 0.9) if rng.random() < 0.4 else 0.0,
    )


class Stage:
    """Draws poses of one figure before one background. Pictures are a function of pose, time and index alone."""

    def __init__(self, seed: int, family: LookFamily, size: tuple[int, int], figure: Figure) -> None:
        self._height, self._width = size
        self._figure = figure
        self._seed = seed
        rng = np.random.default_rng([seed, 1])  # the same in both families: who stands where
        self._camera = _draw_camera(rng, self._width / self._height)
        self._margin = math.ceil(0.02 * self._height) + 2
        look_rng = np.random.default_rng([seed, 2, list(HUES).index(family)])
        self.look = draw_look(family, look_rng)
        self._colours = _figure_colours(self.look, self._camera.light)
        self._background = self._painted(family, look_rng)
        self._distract = draw_distractor(family, look_rng)
        self._noise = _noise_tiles(np.random.default_rng([seed, 3]), self._camera.noise, size)

    def picture(self, pose: Pose, seconds: float, index: int) -> RgbImage:
        """uint8 (H, W, 3) RGB: the pose at that time, with the sensor noise of picture `index`."""
        dx, dy = self._shaken(seconds)
        image = self._seen_background(dx, dy)
        self._distract(image, seconds)
        limbs = self._to_pixels(capsules(self._figure, pose), dx, dy)
        _cast_shadow(image, limbs, self._camera.floor * self._height + dy)
        _draw_limbs(image, limbs, self._colours)
        if self._camera.blur:
            cv2.GaussianBlur(image, (3, 3), self._camera.blur, dst=image)
        return self._with_noise(image, index)

    def _shaken(self, seconds: float) -> tuple[float, float]:
        scale = self._camera.shake * self._height
        x = sum(math.sin(math.tau * (rate * seconds + phase)) for rate, phase, _ in self._camera.sway)
        y = sum(math.sin(math.tau * (rate * seconds + phase)) for rate, _, phase in self._camera.sway)
        return scale * x / 2, scale * y / 3

    def _seen_background(self, dx: float, dy: float) -> RgbImage:
        margin = self._margin
        if not self._camera.shake:
            still = self._background[margin : margin + self._height, margin : margin + self._width]
            return _uint8(still.copy())
        shift = np.array([[1.0, 0.0, dx - margin], [0.0, 1.0, dy - margin]])
        return _uint8(cv2.warpAffine(self._background, shift, (self._width, self._height)))

    def _to_pixels(self, limbs: NDArray[np.float64], dx: float, dy: float) -> NDArray[np.float64]:
        camera, height = self._camera, self._height
        pixels = limbs * (camera.tall * height)
        x = camera.spot * height + pixels[:, 0:4:2]
        pixels[:, 0:4:2] = (x if camera.side > 0 else self._width - x) + dx
        pixels[:, 1:4:2] = camera.floor * height - pixels[:, 1:4:2] + dy
        return pixels

    def _with_noise(self, image: RgbImage, index: int) -> RgbImage:
        """The picture with noise: a part of two larger tiles, another for each index; fresh noise takes 0.7 ms."""
        lighter, darker = self._noise
        chance = (index * 2654435761 + self._seed * 40503 + 12345) & 0xFFFFFFFF  # Knuth's multiplicative hash
        y, x = (chance >> 8) % (lighter.shape[0] - self._height), (chance >> 20) % (lighter.shape[1] - self._width)
        part = np.s_[y : y + self._height, x : x + self._width]
        return _uint8(cv2.subtract(cv2.add(image, lighter[part]), darker[part]))

    def _painted(self, family: LookFamily, rng: np.random.Generator) -> RgbImage:
        """The background with a margin all around, which the camera needs to shake."""
        margin = self._margin
        height, width = self._height + 2 * margin, self._width + 2 * margin
        floor = _SHARP * (margin + self._height * (self._camera.floor - rng.uniform(0.04, 0.16)))
        image = np.empty((_SHARP * height, _SHARP * width, 3), np.uint8)
        canvas = Canvas(image, rng, self.look, family, round(floor), _SHARP * self._height)
        paint_room(canvas)
        self._paint_chair(canvas)
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        return _uint8(cv2.convertScaleAbs(small, alpha=self._camera.light))

    def _paint_chair(self, canvas: Canvas) -> None:
        """A chair where the figure's hips come down. It is a part of the background: sitters hide it."""
        x, y = SEAT
        back, front, top = x - 0.13, x + 0.10, y + canvas.rng.uniform(0.20, 0.34)
        bars = [
            (back + 0.03, y, back + 0.05, 0, 0.016, 0.70), (front - 0.04, y, front - 0.05, 0, 0.016, 0.70),
            (back, y, back - 0.02, 0, 0.018, 1.0), (front - 0.01, y, front, 0, 0.018, 1.0),
            (back, y, back - 0.035, top, 0.022, 1.0), (back, y - 0.012, front, y - 0.012, 0.026, 1.12),
        ]  # fmt: skip
        rows = np.array([(*bar[:4], bar[4], bar[4]) for bar in bars])
        pixels = _SHARP * (self._to_pixels(rows, 0, 0) + np.array([self._margin] * 4 + [0] * 2))
        _draw_limbs(canvas.image, pixels, [rgb(self.look.chair, bar[5]) for bar in bars])


def _uint8(image: Any) -> RgbImage:
    """The image under the type that it has: stubs of OpenCV and of slices allow for every number."""
    result: RgbImage = image
    return result


def _noise_tiles(rng: np.random.Generator, sigma: float, size: tuple[int, int]) -> tuple[RgbImage, RgbImage]:
    """What to add and what to subtract, as OpenCV saturates only where both are unsigned."""
    shape = (size[0] + 64, size[1] + 64)
    grey = rng.standard_normal((*shape, 1), np.float32)
    noise = sigma * (0.8 * grey + 0.5 * rng.standard_normal((*shape, 3), np.float32))
    return np.clip(np.rint(noise), 0, 255).astype(np.uint8), np.clip(np.rint(-noise), 0, 255).astype(np.uint8)


def _figure_colours(look: Look, light: float) -> list[Rgb]:
    """The colour of every part, those away from the viewer darker."""
    sleeve = look.shirt if look.long_sleeves else look.skin
    cloth: dict[str, Hsv] = {
        "upper": look.shirt, "fore": sleeve, "hand": look.skin, "thigh": look.trousers, "shin": look.trousers,
        "foot": look.shoes, "torso": look.shirt, "neck": look.skin, "hair": look.hair, "face": look.skin,
        "eye": (0, 0, 0.1),
    }  # fmt: skip
    shades = {"far": 0.72, "near": 1.0, "upper": 1.12}
    colours = []
    for part in PARTS:
        side, _, name = part.rpartition("_")
        shade = shades[side] if side else 0.94 if part == "neck" else 1.0
        if part == "near_upper" or (part == "near_fore" and look.long_sleeves):
            shade = shades["upper"]  # sets the arm off the torso behind it
        colours.append(rgb(cloth[name], shade * light))
    return colours


_ROUND = np.linspace(-np.pi / 2, np.pi / 2, 7)


def _draw_limbs(image: RgbImage, limbs: NDArray[np.float64], colours: list[Rgb]) -> None:
    """Draw capsules (ax, ay, bx, by, ra, rb), in pixels and in order, with edges smooth to a sixteenth of a pixel."""
    ax, ay, bx, by, ra, rb = limbs.T[:, :, None]
    along = np.arctan2(by - ay, bx - ax) + _ROUND
    x = np.concatenate([bx + rb * np.cos(along), ax - ra * np.cos(along)], axis=1)
    y = np.concatenate([by + rb * np.sin(along), ay - ra * np.sin(along)], axis=1)
    outlines = np.rint(np.stack([x, y], axis=2) * (1 << SUB)).astype(np.int32)
    for outline, colour in zip(outlines, colours, strict=True):
        cv2.fillConvexPoly(image, outline, colour, cv2.LINE_AA, SUB)


def _cast_shadow(image: RgbImage, limbs: NDArray[np.float64], floor: float) -> None:
    """Darken the floor under the figure, more narrowly than the figure is wide."""
    left, right = float(limbs[:, 0:4:2].min()), float(limbs[:, 0:4:2].max())
    depth = 0.018 * image.shape[0]
    top, bottom = max(0, int(floor - 2 * depth)), min(image.shape[0], int(floor + 2 * depth) + 2)
    x0, x1 = max(0, int(left) - 2), min(image.shape[1], int(right) + 3)
    part = image[top:bottom, x0:x1]
    if not part.size:
        return
    middle = fixed((left + right) / 2 - x0, floor - top)
    shadow = cv2.convertScaleAbs(part, alpha=_SHADOW)
    mask = np.zeros(part.shape[:2], np.uint8)
    cv2.ellipse(mask, middle, fixed((right - left) / 2, depth), 0, 0, 360, 255, cv2.FILLED, cv2.LINE_8, SUB)
    cv2.copyTo(shadow, mask, part)
