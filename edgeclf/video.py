"""Frames out of files and rendered scenes: the contract of a source, and how a name becomes one."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgeclf.errors import NoSourceError, VideoError
from edgeclf.registry import Registry

log = logging.getLogger(__name__)

RgbImage = NDArray[np.uint8]  # (H, W, 3) RGB, 0..255


@dataclass(frozen=True, slots=True)
class Planes:
    """An upright picture as video stores it: 8 bits, with colour at half the resolution both ways."""

    luma: NDArray[np.uint8]  # (H, W), H and W even
    blue: NDArray[np.uint8]  # (H / 2, W / 2), Cb
    red: NDArray[np.uint8]  # (H / 2, W / 2), Cr
    full_range: bool = False  # 0..255 rather than 16..235
    bt709: bool = False  # colours as in BT.709 rather than BT.601


_SUFFIXES = "3g2 3gp asf avi flv gif h264 h265 m2ts m4v mkv mov mp4 mpeg mpg mts mxf ogv ts vob webm wmv"
VIDEO_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
LIVE_SCHEMES = ("rtsp", "rtsps", "http", "https", "udp", "tcp", "rtp", "rtmp", "rtmps", "srt")
CAMERA = re.compile(r"^(?:camera:|/dev/video)?(\d+)$")  # a file of such a name is written ./0
_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_PLAYS_FILE = re.compile(r"\b(?:filesrc|multifilesrc)\b|file://")
_CREDENTIALS = re.compile(r"(?<=://)\S+@")  # to the last @: passwords hold @ and / too
_PRIVATE = r"[\w-]*(?:token|key|secret|signature|credential|password|passwd|passphrase)"
_SECRETS = re.compile(rf"([?&;#](?:user|usr|username|login|pass|pwd|auth|sig|{_PRIVATE})=)[^&#\s]+", re.IGNORECASE)
_SECRET_PROPERTIES = re.compile(  # of GStreamer's elements; their values may be quoted and have a type before them
    rf"(?<![\w?&;#-])((?:user-id|user-pw|proxy-id|proxy-pw|username|{_PRIVATE})\s*=\s*(?:\(\w+\)\s*)?)"
    r"""("(?:\\.|[^"\\])*"?|'(?:\\.|[^'\\])*'?|(?:\\.|\S)+)""",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a source; its pixels are converted only when `image` is asked for.

    `pts_seconds` counts from the first frame of the source and never goes back. `image` may be asked for
    at any time, also after later frames were read, and from one thread at a time. A frame with an `arrival` is live:
    it may be dropped where nobody keeps up. A frame that is not `decoded` has no image: it only says that a picture
    was there at that time. `square` is there where the middle of the picture alone is cheaper to have.
    """

    pts_seconds: float
    convert: Callable[[], RgbImage]
    arrival: float | None = None  # when a live picture came, on the clock of time.perf_counter
    decoded: bool = True
    planes: Callable[[], Planes | None] | None = None
    square: Callable[[], RgbImage] | None = None  # the centre square of `image`, equal to the bit
    source: str = ""  # the name of where it comes from, for errors

    @property
    def image(self) -> RgbImage:
        """uint8 (H, W, 3) RGB, upright."""
        return self.convert()


@dataclass(frozen=True, slots=True)
class SourceCounts:
    """What became of every picture of a source: received = processed + skipped + sum(dropped)."""

    received: int = 0
    processed: int = 0
    skipped: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    still: int = 0  # of those processed: frames that took the feature of the frame before, behind a motion gate

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary; `dropped` maps each cause to its count."""
        return {
            "received": self.received,
            "processed": self.processed,
            "skipped": self.skipped,
            "dropped": dict(self.dropped),
            "still": self.still,
        }


class VideoSource(Protocol):
    """Where frames come from. It is opened, read and closed by one thread; a live one may be closed by any."""

    @property
    def name(self) -> str:
        """The source as the user gave it, without credentials."""

    @property
    def decoder(self) -> str:
        """What made the pictures, with its version; known once frames have come."""

    @property
    def dropped(self) -> Mapping[str, int]:
        """Pictures that were received but are no frame, counted by cause (`corrupt`, `too_large`)."""

    def frames(self) -> Iterator[Frame]:
        """All frames in order of time, once.

        Raises VideoError where the source cannot be opened, and at the end, after every good frame, where
        parts of it could not be decoded.
        """

    def close(self) -> None:
        """Make `frames` end, which gives up files and memory. Safe to call twice."""


@runtime_checkable
class SkippingSource(VideoSource, Protocol):
    """A source that can leave pictures undecoded."""

    def skip_with(self, chooser: FrameChooser) -> None:
        """Decode only what the chooser wants and what that depends on. Called before `frames`, if at all."""


class FrameChooser(Protocol):
    """Says of pictures, by their times alone, whether their pixels will be asked for."""

    def add(self, pts_seconds: float) -> list[bool]:
        """Tell the time of the next picture in order; the verdicts that are now certain, the oldest first."""

    def finish(self) -> list[bool]:
        """No picture follows; the verdicts that were still open."""


_SCHEMES: Registry[Callable[[str], VideoSource]] = Registry(
    "kind of source",
    {
        "file": "edgeclf.av_source:AvSource",
        "synthetic": "edgeclf.theatre:open_synthetic",
        "camera": "edgeclf.decoders:open_camera",
        "gst": "edgeclf.decoders:open_pipeline",
        **dict.fromkeys(LIVE_SCHEMES, "edgeclf.live_source:open_live"),
    },
    error=VideoError,
    group="edgeclf.sources",
)


def open_video(source: str | Path) -> VideoSource:
    """The source behind a path or a URL. Nothing is opened before its frames are asked for.

    Raises VideoError where nothing can open URLs of this scheme.
    """
    return _SCHEMES.load(_kind_of(str(source)))(str(source))


def _kind_of(name: str) -> str:
    """What the registry calls the source: `camera`, `gst`, the scheme of a URL, or `file`."""
    if CAMERA.match(name):
        return "camera"
    return "gst" if name.startswith("gst:") else scheme_of(name)


def scheme_of(name: str) -> str:
    """The scheme of a URL in small letters; `file` of what is none."""
    found = _SCHEME.match(name)
    return found.group(1).lower() if found else "file"


def plays_file(pipeline: str) -> bool:
    """Whether a GStreamer pipeline reads a file, which waits for who reads it."""
    return bool(_PLAYS_FILE.search(pipeline))


def is_live(source: str | Path | VideoSource) -> bool:
    """Whether pictures come at their own pace, so that what nobody takes in time has to be dropped.

    An object says so by an attribute `live`.
    """
    if isinstance(source, (str, Path)):
        kind = _kind_of(str(source))
        return not plays_file(str(source)) if kind == "gst" else kind in {"camera", *LIVE_SCHEMES}
    return bool(getattr(source, "live", False))


def redacted(source: str) -> str:
    """The source without user name, password and keys; fit for logs and records.

    They stand before a host, in a query, or are properties of a GStreamer pipeline.
    """
    if source.startswith("gst:"):
        source = _SECRET_PROPERTIES.sub(r"\1***", source)
    return _SECRETS.sub(r"\1***", _CREDENTIALS.sub("***@", source))


@contextmanager
def converting(name: str, *errors: type[Exception]) -> Iterator[None]:
    """Turns what one picture raises inside into a VideoError of its source, so that no other source ends with it.

    errors: those of the library that converts, besides MemoryError and ValueError.
    """
    caught: tuple[type[Exception], ...] = (MemoryError, ValueError, *errors)
    try:
        yield
    except caught as error:
        reason = getattr(error, "strerror", None) or getattr(error, "err", None) or str(error) or type(error).__name__
        hint = "convert the video to H.264 in MP4, or try another decoder"
        raise VideoError(f"{name or 'a source'} holds a picture that cannot be used: {reason}", hint=hint) from error


def expand_sources(names: Iterable[str]) -> list[str]:
    """Names of sources, every folder replaced by its videos, every glob by its matches, and @FILE by the file's lines.

    They stay in order, each once. In a list of sources, empty lines and what follows a `#` at their start do not count.

    A name that is neither is kept as it is, also if nothing is there or it cannot be looked at: opening it
    will say so. Raises NoSourceError where a folder holds no video or a glob matches nothing.
    """
    return list(dict.fromkeys(source for name in names for source in _expand(name)))


def _expand(name: str) -> list[str]:
    if name.startswith("@"):
        return [source for line in _listed(name) for source in _expand(line)]
    if _kind_of(name) != "file" or _SCHEME.match(name):
        return [name]
    if not name:
        raise NoSourceError("a source has an empty name", hint="is a variable of the script not set?")
    try:
        if Path(name).is_dir():
            return _found(name, _files_below(Path(name)))
        if glob.has_magic(name) and not Path(name).exists():
            return _found(name, (p for p in map(Path, glob.glob(name, recursive=True)) if p.is_file()))
    except OSError as error:
        log.debug("%s cannot be looked at: %s", name, error)
    return [name]


def _listed(name: str) -> list[str]:
    """The sources that `@FILE` lists, one a line."""
    try:
        lines = [line.strip() for line in Path(name[1:]).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise NoSourceError(f"the list {name[1:]} cannot be read: {error}", hint="name a text file") from error
    found = [line for line in lines if line and not line.startswith("#")]
    if nested := next((line for line in found if line.startswith("@")), None):
        hint = f"copy the lines of {nested[1:]} into it; a file of that name is written ./{nested}"
        raise NoSourceError(f"the list {name[1:]} names the list {nested}; lists do not nest", hint=hint)
    if not found:
        raise NoSourceError(f"the list {name[1:]} names no source", hint="write one a line")
    return found


def _files_below(folder: Path) -> Iterator[Path]:
    """The videos of a folder at any depth; a folder that cannot be read is kept, so that opening it says so."""
    unreadable: list[str] = []
    for path, _, files in os.walk(folder, onerror=lambda error: unreadable.append(str(error.filename))):
        yield from (Path(path, file) for file in files if Path(file).suffix.lower() in VIDEO_SUFFIXES)
    yield from map(Path, unreadable)


def _found(name: str, paths: Iterable[Path]) -> list[str]:
    found = sorted(map(str, paths))
    if not found:
        raise NoSourceError(f"no video in {name}", hint="check the path, and quote a glob if the shell expands it")
    return found
