"""Picture files as a source: the frames of an extracted video, or photos that make a clip together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgeclf.errors import VideoError, import_extra
from edgeclf.video import Frame, RgbImage

IMAGE_RATE = 10.0  # pictures a second: files tell no times, and samplers want some
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


class ImageSource:
    """Pictures in the order given, `rate` of them a second. One that cannot be read is dropped and counted.

    It leaves its place empty, so that the times of the others are kept.
    """

    def __init__(self, name: str, paths: Sequence[Path], *, rate: float = IMAGE_RATE) -> None:
        if not rate > 0:
            raise VideoError(f"{name}: a rate of {rate:g} pictures a second cannot be", hint="it is above 0")
        self.name = name
        self.paths = tuple(paths)
        self.rate = rate
        self.decoder = ""
        self.dropped: Mapping[str, int] = {}
        self.received = 0  # files that were looked at: frames and `dropped`
        self._closed = False

    def frames(self) -> Iterator[Frame]:
        """All pictures in their order; each is decoded when it is its turn, so that a bad one is no frame.

        Unlike a video they may be asked for again, also after `close`.
        """
        self._closed, self.dropped, self.received = False, {}, 0
        self.decoder = f"OpenCV {_import_cv2().__version__}"
        bad: list[Path] = []
        first: int | None = None
        for index, path in enumerate(self.paths):
            if self._closed:
                return
            self.received += 1
            image = _decoded(path)
            if image is None:
                bad.append(path)
                self.dropped = {"corrupt": len(bad)}
                continue
            first = index if first is None else first
            yield Frame((index - first) / self.rate, partial(_same, image), source=self.name)
        if not self._closed:
            self._raise_if_damaged(bad)

    def close(self) -> None:
        """End `frames`."""
        self._closed = True

    def _raise_if_damaged(self, bad: Sequence[Path]) -> None:
        if not self.paths:
            raise VideoError(f"{self.name} holds no picture", hint="add JPEG, PNG, BMP or WebP files")
        if len(bad) == len(self.paths):
            raise VideoError(f"{self.name}: none of its {len(bad)} pictures can be read", hint=f"look at {bad[0]}")
        if bad:
            lost = f"{len(bad)} of {len(self.paths)} pictures cannot be read: {_listed(bad)}"
            raise VideoError(f"{self.name} is damaged: {lost}", hint="the others were used; copy or make these again")


def _listed(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(map(str, paths[:3])) + more


def _decoded(path: Path) -> RgbImage | None:
    """uint8 (H, W, 3) RGB, upright as EXIF says; None where the file is missing, damaged or no picture."""
    cv2 = _import_cv2()
    try:
        data = path.read_bytes() if path.is_file() else b""  # a pipe would block for ever
        if not data or _is_cut_jpeg(data):
            return None
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error):
        return None
    return None if image is None else np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _is_cut_jpeg(data: bytes) -> bool:
    """True for a JPEG whose end is missing.

    OpenCV 4.10 hands out such a file as a whole picture, with chance pixels where the data is missing. The end
    marker has to follow the last start of a scan; a thumbnail, which has both, lies before that.
    """
    return data.startswith(b"\xff\xd8") and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")


def _same(image: RgbImage) -> RgbImage:
    return image


def _import_cv2() -> Any:
    return import_extra("cv2", "OpenCV", "cpu")
