"""The motion gate: frames that show what the last extracted one shows need no extractor."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.errors import import_extra
from edgeclf.video import RgbImage

_BLOCKS = 16  # each way: a person in a camera's picture fills several, the noise of a sensor averages out


class MotionGate:
    """Tells of the preprocessed frames of one source which show nothing new.

    A frame is still where no block of it, of 16 x 16, differs in mean brightness by more than `level` (0 to 255) from
    the last frame that was not still. Comparing with that one, rather than with the frame before, keeps slow changes
    from passing unseen.
    """

    def __init__(self, level: float) -> None:
        self._level = level
        self._last: NDArray[np.float32] | None = None

    def is_still(self, pixels: RgbImage) -> bool:
        """Whether a frame, uint8 (H, W, 3) or (K, H, W, 3), may take the feature of the last one that was not still."""
        blocks = np.stack([_blocks(picture) for picture in pixels.reshape(-1, *pixels.shape[-3:])])
        if self._last is not None and float(np.abs(blocks - self._last).max()) <= self._level:
            return True
        self._last = blocks
        return False


def _blocks(picture: RgbImage) -> NDArray[np.float32]:
    """Mean brightness of each block, float32 (16, 16)."""
    cv2: Any = import_extra("cv2", "OpenCV", "cpu")
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, (_BLOCKS, _BLOCKS), interpolation=cv2.INTER_AREA), np.float32)
