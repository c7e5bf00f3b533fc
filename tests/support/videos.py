"""Small videos, encoded in code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np

from edgeclf.video import Frame, RgbImage

RED, GREEN, BLUE = (220, 20, 20), (20, 220, 20), (20, 20, 220)


def plain(
    color: tuple[int, int, int], seconds: float, *, fps: float = 25.0, size: tuple[int, int] = (48, 64)
) -> list[RgbImage]:
    """Pictures of one colour with a little noise, uint8 (H, W, 3) RGB."""
    noise = np.random.default_rng(sum(color))
    count = round(seconds * fps)
    return [
        np.clip(np.array(color) + noise.integers(-15, 16, (*size, 3)), 0, 255).astype(np.uint8) for _ in range(count)
    ]


def moving(count: int, *, size: tuple[int, int] = (48, 64)) -> list[RgbImage]:
    """Pictures that all differ: a soft pattern that wanders, uint8 (H, W, 3) RGB."""
    height, width = size
    rows, columns = np.mgrid[0:height, 0:width]
    pictures = []
    for n in range(count):
        waves = [np.sin((columns + 3 * n) / 7) * np.cos((rows - n) / 5), np.sin((columns + rows + 4 * n) / 11)]
        channels = [waves[0], waves[1], waves[0] * waves[1]]
        pictures.append((127 + 110 * np.stack(channels, axis=-1)).astype(np.uint8))
    return pictures


def write_video(
    path: Path,
    images: Iterable[RgbImage],
    *,
    fps: float = 25.0,
    codec: str = "mpeg4",
    times: Iterable[float] | None = None,
    options: dict[str, str] | None = None,
    pixel_format: str = "yuv420p",
    ticks: int = 1000,
) -> Path:
    """Encode pictures into `path`, evenly spaced or at the given times in seconds; `ticks` of its clock make one."""
    images = list(images)
    height, width = images[0].shape[:2]
    stamps = list(times) if times is not None else [n / fps for n in range(len(images))]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.time_base = Fraction(1, ticks)
        for image, seconds in zip(images, stamps, strict=True):
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts = round(seconds * ticks)
            picture.time_base = Fraction(1, ticks)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def _same(image: RgbImage) -> RgbImage:
    return image


class ListSource:
    """A source of given pictures at given times, which may fail at its end."""

    def __init__(
        self, name: str, images: Iterable[RgbImage], times: Iterable[float], *, error: BaseException | None = None
    ) -> None:
        self.name = name
        self.decoder = "memory"
        self.dropped: dict[str, int] = {}
        self.closed = False
        self._frames = list(zip(times, images, strict=True))
        self._error = error

    def frames(self) -> Iterator[Frame]:
        for seconds, image in self._frames:
            yield Frame(seconds, partial(_same, image))
        if self._error:
            raise self._error

    def close(self) -> None:
        self.closed = True
