"""A copy of a video with the label of each moment drawn on its frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeclf.av_reader import import_av
from edgeclf.errors import VideoError
from edgeclf.runtime.timeline import Segment
from edgeclf.video import RgbImage, VideoSource

if TYPE_CHECKING:
    import av

SUFFIXES = (".mp4", ".mkv", ".gif")

_TICKS = 1000  # of the output's clock in a second
_GIF_RATE, _GIF_WIDTH = 10.0, 480

Picture = tuple[float, RgbImage]  # seconds, uint8 (H, W, 3) RGB


def save_labelled(source: VideoSource, segments: Sequence[Segment], path: Path) -> int:
    """Write the frames of `source`, labelled by `segments`, to an .mp4, .mkv or .gif; the number of frames written.

    Frames keep their times, as far as the format can hold them; sound is left out. A GIF has at most 10 frames a
    second and is at most 480 pixels wide. `path` is whole or is not there. Of a damaged source the good frames
    are written. Raises VideoError where it has none, or where the encoder cannot write them.
    """
    animation = path.suffix.lower() == ".gif"
    unfinished = path.with_name(f".{path.stem}.part{path.suffix}")
    with closing(source):
        pictures = _labelled(_good(source, animation), segments, _GIF_WIDTH if animation else None)
        try:
            written = (_write_gif if animation else _write_video)(pictures, unfinished)
            if not written:
                raise VideoError(f"{source.name} has no frame to save", hint="check that it is a video")
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    return written


def _good(source: VideoSource, animation: bool) -> Iterator[Picture]:
    """The frames that can be decoded, thinned out for an animation. Damage was reported when they were classified."""
    due = 0.0
    try:
        for frame in source.frames():
            if not animation or frame.pts_seconds >= due:
                due = frame.pts_seconds + 1 / _GIF_RATE - 1e-3
                yield frame.pts_seconds, frame.image
    except VideoError:
        return


def _labelled(pictures: Iterable[Picture], segments: Sequence[Segment], max_width: int | None) -> Iterator[Picture]:
    """The pictures with their label, all of the first one's size, with even sides."""
    import cv2

    size: tuple[int, int] | None = None
    for seconds, image in pictures:
        if size is None:
            height, width = image.shape[:2]
            scale = min(1.0, max_width / width) if max_width else 1.0
            size = max(2, int(width * scale) // 2 * 2), max(2, int(height * scale) // 2 * 2)
        resized = image if image.shape[1::-1] == size else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        yield seconds, _drawn(np.ascontiguousarray(resized, np.uint8), _segment_at(seconds, segments))


def _segment_at(seconds: float, segments: Sequence[Segment]) -> Segment | None:
    return next((s for s in segments if s.start_seconds <= seconds < s.end_seconds), segments[-1] if segments else None)


def _drawn(image: RgbImage, segment: Segment | None) -> RgbImage:
    """The picture with a dark bar at its lower edge, and on it label and score."""
    import cv2

    if segment is None:
        return image
    canvas: RgbImage = image.copy()
    height, width = canvas.shape[:2]
    bar = max(16, height // 11)
    canvas[height - bar :] //= 4
    text, font = f"{segment.label}  {segment.score:.2f}", cv2.FONT_HERSHEY_SIMPLEX
    scale = bar / 34
    (text_width, _), _ = cv2.getTextSize(text, font, scale, 1)
    scale *= min(1.0, 0.94 * width / max(1, text_width))
    place = (int(0.03 * width), height - int(0.3 * bar))
    cv2.putText(canvas, text, place, font, scale, (255, 255, 255), max(1, round(scale * 1.6)), cv2.LINE_AA)
    filled = round(width * min(1.0, segment.score))
    canvas[height - max(2, bar // 10) :, :filled] = (80, 200, 120)
    return canvas


def _write_video(pictures: Iterator[Picture], path: Path) -> int:
    """Encode as H.264; MPEG-4 part 2 where this FFmpeg has no encoder for it."""
    av = import_av()
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    written = 0
    stream: Any = None
    with av.open(str(path), "w") as container:
        for seconds, image in pictures:
            stream = stream or _video_stream(container, codec, image, "yuv420p")
            container.mux(stream.encode(_picture(av, image, seconds)))
            written += 1
        if stream:
            container.mux(stream.encode())
    return written


def _write_gif(pictures: Iterator[Picture], path: Path) -> int:
    """Encode as a GIF that repeats for ever, each picture with a palette of its own."""
    av = import_av()
    written = 0
    stream: Any = None
    graph: Any = None
    with av.open(str(path), "w", options={"loop": "0"}) as container:
        for seconds, image in pictures:
            if graph is None:
                stream = _video_stream(container, "gif", image, "pal8")
                graph = _palette_graph(av, image)
            graph.push(_picture(av, image, seconds))
            container.mux(stream.encode(graph.pull()))
            written += 1
        if stream:
            container.mux(stream.encode())
    return written


def _palette_graph(av: Any, image: RgbImage) -> Any:
    graph = av.filter.Graph()
    height, width = image.shape[:2]
    pixels = graph.add_buffer(width=width, height=height, format="rgb24", time_base=Fraction(1, _TICKS))
    split, palette = graph.add("split"), graph.add("palettegen", "stats_mode=single")
    use, sink = graph.add("paletteuse", "new=1:dither=none"), graph.add("buffersink")
    pixels.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph


def _video_stream(container: av.container.OutputContainer, codec: str, image: RgbImage, pixel_format: str) -> Any:
    stream: Any = container.add_stream(codec, rate=25)
    stream.height, stream.width = image.shape[:2]
    stream.pix_fmt = pixel_format
    stream.codec_context.time_base = Fraction(1, _TICKS)
    return stream


def _picture(av: Any, image: RgbImage, seconds: float) -> av.VideoFrame:
    picture = av.VideoFrame.from_ndarray(image, format="rgb24")
    picture.pts, picture.time_base = round(seconds * _TICKS), Fraction(1, _TICKS)
    return picture
