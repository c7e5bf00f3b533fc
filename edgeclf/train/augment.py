"""Pictures as they might also have been taken: mirrored, cut closer, brighter or darker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.specs import require

Pictures = NDArray[np.uint8]  # (..., H, W, 3) RGB


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What is drawn anew for every clip; all pictures of a clip are changed alike.

    Only those that are loose, and drawn for several clips, are changed one by one in a further view.
    temporal_shift: a clip starts anywhere in its video instead of at a multiple of its hop.
    """

    flip: bool = False  # half of the clips are mirrored left to right
    crop: float = 0.0  # up to this share of each side is cut away, 0 to 0.5; the rest is scaled to the old size
    brightness: float = 0.0  # values are multiplied by 1 - brightness to 1 + brightness, 0 to 1
    rotation: float = 0.0  # pictures are turned by up to as many degrees either way
    temporal_shift: bool = False

    def __post_init__(self) -> None:
        for key in ("flip", "temporal_shift"):
            value = getattr(self, key)
            require(isinstance(value, bool), f"{key} is {value!r}, must be true or false")
        for key in ("crop", "brightness", "rotation"):
            value = getattr(self, key)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            require(is_number, f"{key} is {value!r}, must be a number")
        if not (0 <= self.crop <= 0.5 and 0 <= self.brightness <= 1 and 0 <= self.rotation <= 45):
            raise ValueError(f"{self} is out of range")

    @property
    def changes_pixels(self) -> bool:
        """Whether pictures are changed, not only their order."""
        return self.flip or bool(self.crop or self.brightness or self.rotation)


def drawn_change(augmentation: Augmentation, rng: np.random.Generator) -> Callable[[Pictures], Pictures]:
    """One change, drawn now; it does the same to all pictures that it is given."""
    mirrored = augmentation.flip and rng.random() < 0.5
    kept = 1 - rng.uniform(0, augmentation.crop)
    place = rng.uniform(0, 1 - kept, 2)
    factor = 1 + rng.uniform(-augmentation.brightness, augmentation.brightness)
    angle = rng.uniform(-augmentation.rotation, augmentation.rotation)

    def change(pictures: Pictures) -> Pictures:
        changed = pictures[..., ::-1, :] if mirrored else pictures
        if kept < 1 or angle:
            changed = _cut(changed, kept, (place[0], place[1]), angle)
        if factor != 1:
            changed = np.clip(changed * np.float32(factor), 0, 255).astype(np.uint8)
        return np.ascontiguousarray(changed)

    return change


def _cut(pictures: Pictures, kept: float, place: tuple[float, float], angle: float) -> Pictures:
    """The part of pictures that starts at `place` and has the share `kept` of each side, turned and scaled up."""
    import cv2

    height, width = pictures.shape[-3:-1]
    matrix: Any = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1 / kept)
    # The picture's middle goes where the middle of the part is.
    middle = (place[1] + kept / 2 - 0.5) * width, (place[0] + kept / 2 - 0.5) * height
    matrix[:, 2] -= matrix[:, :2] @ np.array(middle)
    flat = pictures.reshape(-1, height, width, 3)
    cut = [cv2.warpAffine(one, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101) for one in flat]
    return np.stack(cut).reshape(pictures.shape).astype(np.uint8)
