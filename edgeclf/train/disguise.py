"""Rendered frames in looks that no scene has, so that a model learns the figure and not its surroundings."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeclf.video import RgbImage

Frames = NDArray[np.uint8]  # (N, H, W, 3) RGB


def disguised(frames: Frames, rng: np.random.Generator) -> Frames:
    """Frames (N, H, W, 3) that all got the same new colours, textures and clutter, and are mirrored or not.

    Hues are turned, saturation, brightness and contrast changed; smooth blotches, gratings and a few half
    transparent shapes are laid over everything; noise is added.
    """
    height, width = frames.shape[1:3]
    pixels = frames.astype(np.float32) @ _color_matrix(rng).T
    pixels = (pixels - 128) * np.float32(rng.uniform(0.6, 1.3)) + np.float32(128 + rng.uniform(-30, 30))
    pixels += _texture(height, width, rng)
    for _ in range(int(rng.integers(0, 5))):
        alpha, color = _shape(height, width, rng)
        pixels += alpha * (color - pixels)
    pixels += rng.normal(0, rng.uniform(0, 7), pixels.shape).astype(np.float32)
    mixed: Frames = np.clip(pixels, 0, 255).astype(np.uint8)
    return mixed[:, :, ::-1] if rng.random() < 0.5 else mixed


def _color_matrix(rng: np.random.Generator) -> NDArray[np.float32]:
    """Turns hues about the grey axis by any angle and changes the saturation; sometimes takes away all colour."""
    angle = rng.uniform(0, math.tau)
    saturation = rng.uniform(0.3, 1.4) if rng.random() < 0.85 else 0.0
    axis = np.full(3, 1 / math.sqrt(3))
    grey = np.outer(axis, axis)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turned = math.cos(angle) * (np.eye(3) - grey) + math.sin(angle) * cross
    matrix: NDArray[np.float32] = (grey + saturation * turned).astype(np.float32)
    return matrix


def _texture(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """(H, W, 3) to be added: blotches of any size, and up to two gratings of any direction."""
    cells = int(rng.integers(3, 17))
    coarse = rng.normal(0, rng.uniform(0, 22), (cells, cells, 3)).astype(np.float32)
    if rng.random() < 0.5:
        coarse[:] = coarse[:, :, :1]
    smooth = cv2.INTER_LINEAR if rng.random() < 0.7 else cv2.INTER_NEAREST
    texture: NDArray[np.float32] = np.asarray(cv2.resize(coarse, (width, height), interpolation=smooth), np.float32)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    for _ in range(int(rng.integers(0, 3))):
        angle, period = rng.uniform(0, math.pi), rng.uniform(4, 30)
        along = (rows * math.sin(angle) + columns * math.cos(angle)) * (math.tau / period) + rng.uniform(0, math.tau)
        wave = np.sin(along) if rng.random() < 0.5 else np.sign(np.sin(along) - rng.uniform(-0.7, 0.7))
        texture += wave[..., None] * rng.normal(0, 14, 3) * (0.4 + 0.6 * rng.random())
    return texture


def _shape(height: int, width: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Opacity (H, W, 1) and colour (3,) of a rectangle, an ellipse or a line somewhere."""
    canvas: RgbImage = np.zeros((height, width), np.uint8)
    x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
    reach_x, reach_y = int(rng.integers(2, width // 5)), int(rng.integers(2, height // 4))
    kind = int(rng.integers(3))
    if kind == 0:
        cv2.rectangle(canvas, (x - reach_x, y - reach_y), (x + reach_x, y + reach_y), 255, cv2.FILLED)
    elif kind == 1:
        cv2.ellipse(canvas, (x, y), (reach_x, reach_y), float(rng.uniform(0, 180)), 0, 360, 255, cv2.FILLED)
    else:
        end = int(rng.integers(0, width)), int(rng.integers(0, height))
        cv2.line(canvas, (x, y), end, 255, int(rng.integers(1, 4)), cv2.LINE_AA)
    alpha = canvas[..., None].astype(np.float32) * np.float32(rng.uniform(0.25, 0.9) / 255)
    return alpha, rng.uniform(0, 255, 3).astype(np.float32)
