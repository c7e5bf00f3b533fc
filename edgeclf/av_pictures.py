"""The pixels of decoded pictures: as upright RGB, or as the planes in which video stores them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from edgeclf.av_reader import import_av
from edgeclf.errors import VideoError
from edgeclf.video import Frame, Planes, RgbImage, converting

if TYPE_CHECKING:
    import av

_PLANAR = ("yuv420p", "yuvj420p")  # 8 bits, colour at half the resolution
_ABORTING = ("yaf32be", "yaf32le")  # libswscale ends the process on them; other float formats are converted or an error
_BT709 = 1  # FFmpeg's numbers of colour spaces
_BT601 = (0, 2, 5, 6)  # also where it is not said: swscale converts that as BT.601
_FULL_RANGE = 2
_BLOCK = 16  # pixels: swscale converts rows in blocks, and their last pixels in another way on some processors


class Pictures:
    """Makes frames of the pictures of one source. Nothing is converted before it is asked for.

    One reformatter per source halves the cost (0.11 instead of 0.22 ms at 320x240): `to_ndarray` alone sets up a new
    one each time.
    """

    def __init__(self, name: str) -> None:
        av = import_av()
        self._name = name
        self._error = av.error.FFmpegError
        self._reformatter = av.video.reformatter.VideoReformatter()
        self._crop: tuple[tuple[object, ...], Any] | None = None

    def frame(self, picture: av.VideoFrame, pts_seconds: float, arrival: float | None = None) -> Frame:
        """The picture as a frame."""
        plain = _is_plain(picture)
        square: Callable[[], RgbImage] | None = partial(self._square, picture) if _has_square(picture, plain) else None
        planes = partial(self._planes, picture) if plain else None
        rgb = partial(self._rgb, picture)
        return Frame(pts_seconds, rgb, arrival, planes=planes, square=square, source=self._name)

    def _planes(self, picture: av.VideoFrame) -> Planes | None:
        with converting(self._name, self._error):
            return _planes(picture)

    def _rgb(self, picture: av.VideoFrame) -> RgbImage:
        with converting(self._name, self._error):
            image = self._converted(picture)
        turns = picture.rotation // 90 if abs(picture.rotation) <= 360 else 0
        return np.ascontiguousarray(np.rot90(image, turns)) if turns % 4 else image

    def _converted(self, picture: av.VideoFrame) -> RgbImage:
        """BICUBIC makes odd-sized and 10-bit video equal to OpenCV's conversion bit for bit."""
        if picture.format.name in _ABORTING:
            what = f"{self._name} has pictures of the format {picture.format.name}, which FFmpeg cannot convert"
            raise VideoError(what, hint="convert it to yuv420p")
        converted = self._reformatter.reformat(picture, format="rgb24", interpolation="BICUBIC", threads=1)
        return np.asarray(converted.to_ndarray(), np.uint8)

    def _square(self, picture: av.VideoFrame) -> RgbImage:
        """The same pixels as in the whole picture, with a third less work at 1080p: what is cut off is not converted.

        FFmpeg's crop only moves pointers. It cuts where colour begins, in whole blocks; the rest is cut off behind.
        """
        side = min(picture.width, picture.height)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        width = min(picture.width, -(-(side + left % 2) // _BLOCK) * _BLOCK)
        x, y = min(left, picture.width - width) // 2 * 2, top // 2 * 2
        with converting(self._name, self._error):
            image = self._converted(self._cropped(picture, (width, side + 2 * (top % 2), x, y)))
        return image[top - y : top - y + side, left - x : left - x + side]

    def _cropped(self, picture: av.VideoFrame, box: tuple[int, int, int, int]) -> av.VideoFrame:
        key = (picture.width, picture.height, picture.format.name, picture.colorspace, picture.color_range)
        if self._crop is None or self._crop[0] != key:
            self._crop = key, _crop_graph(picture, box)
        graph = self._crop[1]
        graph.push(picture)
        return cast("av.VideoFrame", graph.pull())


def _crop_graph(picture: av.VideoFrame, box: tuple[int, int, int, int]) -> Any:
    graph = import_av().filter.Graph()
    graph.threads = 1
    buffer = graph.add_buffer(
        width=picture.width, height=picture.height, format=picture.format.name, time_base=picture.time_base
    )
    crop, sink = graph.add("crop", ":".join(map(str, box)) + ":exact=1"), graph.add("buffersink")
    buffer.link_to(crop)
    crop.link_to(sink)
    graph.configure()
    return graph


def _is_plain(picture: av.VideoFrame) -> bool:
    """Whether the planes of a picture are all there is to it."""
    even = not (picture.width % 2 or picture.height % 2)
    plain = picture.format.name in _PLANAR and not picture.rotation and not picture.interlaced_frame
    return even and plain


def _has_square(picture: av.VideoFrame, plain: bool) -> bool:
    return plain and picture.width != picture.height and picture.width % _BLOCK == 0


def _planes(picture: av.VideoFrame) -> Planes | None:
    """Views of the picture's memory; None where its colours are of a kind that `Planes` does not know."""
    if picture.colorspace != _BT709 and picture.colorspace not in _BT601:
        return None
    planes = picture.planes
    if min(plane.line_size for plane in planes) < 0:  # stored upside down
        return None
    full_range = picture.format.name == "yuvj420p" or picture.color_range == _FULL_RANGE
    luma, blue, red = (_view(plane) for plane in planes)
    return Planes(luma, blue, red, full_range, picture.colorspace == _BT709)


def _view(plane: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
    return rows[:, : plane.width]
