"""Sources that count what is read of them, and pictures that tell their number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np

from edgeclf.video import Frame, RgbImage


def numbered(number: int, size: tuple[int, int] = (4, 4)) -> RgbImage:
    """A picture of one value, its number; no preprocessing changes that."""
    return np.full((*size, 3), number, np.uint8)


class NumberedSource:
    """Frames at given times, each a picture of its number; it counts openings and frames that were read.

    Like a file, it is opened anew by `frames` and gives nothing more once it is closed.
    """

    def __init__(self, times: Iterable[float], *, name: str = "numbered", error: BaseException | None = None) -> None:
        self.name = name
        self.decoder = "memory"
        self.dropped: dict[str, int] = {}
        self.times = list(times)
        self.read = 0
        self.converted = 0
        self.closed = False
        self._error = error

    def frames(self) -> Iterator[Frame]:
        for number, seconds in enumerate(self.times):
            if self.closed:
                return
            self.read += 1
            yield Frame(seconds, partial(self._picture, number))
        if self._error:
            raise self._error

    def close(self) -> None:
        self.closed = True

    def _picture(self, number: int) -> RgbImage:
        self.converted += 1
        return numbered(number)
