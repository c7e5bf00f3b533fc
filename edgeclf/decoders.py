"""Decoders by name, each with a probe that says why it does not work here, and how any source is opened with one.

A decoder that was named and does not work is an error with the reason, never a quiet move to another.
"""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edgeclf.av_reader import import_av
from edgeclf.av_source import AvSource
from edgeclf.errors import EdgeclfError, VideoError, import_extra
from edgeclf.live_source import LateSource, LiveSource, Patience, StreamFacts, live_or_recording, open_live, peek
from edgeclf.opencv_source import OpenCvSource
from edgeclf.video import CAMERA, LIVE_SCHEMES, VideoSource, open_video, plays_file, redacted, scheme_of


@dataclass(frozen=True, slots=True)
class Decoder:
    """What turns coded video into pictures.

    probe: None where it works, else the reason and what to do, in one line. open: the source behind a path or a URL, of
    pictures at least `short_side` high and wide where the decoder can scale, without opening it yet.
    """

    summary: str
    probe: Callable[[], str | None]
    open: Callable[[str, int | None], VideoSource]


def open_source(name: str, *, decoder: str = "pyav", short_side: int | None = None) -> VideoSource:
    """The source behind a camera, a GStreamer pipeline, a URL or a path. Nothing is opened before frames are asked for.

    `N`, `camera:N` and `/dev/videoN` are cameras, `gst: ...` is a pipeline; both are read by OpenCV, whatever the
    decoder. Rendered sources need none. short_side: what a decoder that scales may scale down to.
    Raises VideoError where the decoder is unknown or does not work here.
    """
    if CAMERA.match(name):
        return open_camera(name)
    if name.startswith("gst:"):
        return open_pipeline(name)
    if scheme_of(name) not in {*LIVE_SCHEMES, "file"}:
        return open_video(name)
    require_decoder(decoder)
    return DECODERS[decoder].open(name, short_side)


def probe(decoder: str) -> str | None:
    """None where the decoder works here, else the reason and what to do about it, in one line."""
    return DECODERS[decoder].probe()


def open_camera(name: str) -> VideoSource:
    """The camera called `N`, `camera:N` or `/dev/videoN`, opened again when it was unplugged and is back."""
    found = CAMERA.match(name)
    if not found:
        raise VideoError(f"{name} names no camera", hint="write `0`, `camera:0` or `/dev/video0`")
    require_decoder("opencv")
    return LiveSource(name, connect=partial(OpenCvSource, name, int(found.group(1)), live=True), burst=False)


def open_pipeline(name: str) -> VideoSource:
    """The pictures of a GStreamer pipeline, `gst: ELEMENT ! ... ! appsink`. It is live unless it reads a file."""
    pipeline = name.removeprefix("gst:").strip()
    require_decoder("gstreamer")
    if not re.search(r"\bappsink\b", pipeline):
        raise VideoError(f"{redacted(name)} has no appsink", hint="end it with `! videoconvert ! appsink`")
    if plays_file(pipeline):
        return OpenCvSource(name, pipeline, api="gstreamer")
    return LiveSource(name, connect=partial(OpenCvSource, name, pipeline, api="gstreamer", live=True), burst=False)


def require_decoder(decoder: str) -> None:
    """Raise VideoError, with the reason, unless the decoder is known and works here."""
    if decoder not in DECODERS:
        raise VideoError(f"unknown decoder {decoder!r}", hint=f"known: {', '.join(DECODERS)}")
    if reason := probe(decoder):
        raise VideoError(f"the decoder {decoder} does not work here: {reason}", hint="see docs/sources.md")


def _is_live(name: str) -> bool:
    return scheme_of(name) in LIVE_SCHEMES


# --- PyAV, with and without hardware


def _open_pyav(name: str, _short_side: int | None) -> VideoSource:
    return open_live(name) if _is_live(name) else AvSource(name)


def _open_on(hardware: Callable[[str], Any], name: str, _short_side: int | None) -> VideoSource:
    if _is_live(name):
        return open_live(name, hardware=hardware)
    return LateSource(name, lambda: AvSource(name, hardware=hardware(name)))


def _hwaccel(device: str, name: str) -> Any:
    """Decoding on a device, with the pictures brought back to memory; no software in its place."""
    hwaccel = import_extra("av.codec.hwaccel", "PyAV", "cpu")
    if not _is_live(name):  # a live stream would have to be connected to once more
        codec = peek(name).codec
        configs = import_av().Codec(codec, "r").hardware_configs
        if not any(config.device_type.name == device for config in configs):
            raise VideoError(
                f"{name} is {codec}, which FFmpeg does not decode on {device}", hint="use the decoder pyav"
            )
    return hwaccel.HWAccel(device, allow_software_fallback=False)


def _memory_to_memory(url: str) -> str:
    """The name of the V4L2 decoder for what the URL holds."""
    codec = peek(url).codec
    name = f"{codec}_v4l2m2m"
    av = import_av()
    if name not in av.codecs_available:
        raise VideoError(f"{redacted(url)} is {codec}, for which V4L2 has no decoder", hint="use the decoder pyav")
    return name


def probe_pyav() -> str | None:
    """Why PyAV cannot be used, or None."""
    return _import_problem("av", "PyAV")


def probe_nvdec(*, libraries: Iterable[str] = ("libcuda.so.1", "libnvcuvid.so.1")) -> str | None:
    """Why FFmpeg cannot decode on an NVIDIA GPU, or None."""
    if missing := [name for name in libraries if not _can_load(name)]:
        return f"no NVIDIA driver: {' and '.join(missing)} cannot be loaded; install it, or run the container with GPUs"
    return probe_pyav() or _device_problem("cuda")


def probe_vaapi(*, nodes: Path = Path("/dev/dri")) -> str | None:
    """Why FFmpeg cannot decode through VA-API, or None."""
    if not sorted(nodes.glob("renderD*")):
        return f"no {nodes}/renderD*; this machine has no GPU with VA-API, or the container does not see it"
    return probe_pyav() or _device_problem("vaapi")


def probe_v4l2(*, nodes: Path = Path("/dev"), capabilities: Callable[[Path], int] | None = None) -> str | None:
    """Why FFmpeg cannot decode through a V4L2 memory-to-memory device, as of a Raspberry Pi, or None."""
    ask = capabilities or _capabilities
    videos = sorted(nodes.glob("video*"))
    if not any(ask(node) & _MEMORY_TO_MEMORY for node in videos):
        seen = f"none of {len(videos)} {nodes}/video* is a decoder" if videos else f"no {nodes}/video*"
        return f"{seen}; this machine has no V4L2 decoder, or you may not read it (group video)"
    return probe_pyav() or _codec_problem("h264_v4l2m2m")


def _import_problem(module: str, package: str) -> str | None:
    try:
        import_extra(module, package, "cpu")
    except EdgeclfError as error:
        return str(error)
    return None


def _device_problem(device: str) -> str | None:
    """Why FFmpeg cannot open a device of this type, found by opening one."""
    av = import_av()
    hwaccel = import_extra("av.codec.hwaccel", "PyAV", "cpu")
    if device not in hwaccel.hwdevices_available():
        return f"this PyAV was built without {device}; install one that has it (`pip install --no-binary av av`)"
    try:
        hwaccel.HWAccel(device, allow_software_fallback=False).create(av.Codec("h264", "r"))
    except (av.error.FFmpegError, OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        return f"FFmpeg cannot open a {device} device: {reason}; check the driver with nvidia-smi or vainfo"
    return None


def _codec_problem(codec: str) -> str | None:
    av = import_av()
    return None if codec in av.codecs_available else f"this PyAV was built without {codec}; install one that has it"


def _can_load(library: str) -> bool:
    with suppress(OSError):
        ctypes.CDLL(library)
        return True
    return False


_QUERY_CAPABILITIES = 0x80685600  # VIDIOC_QUERYCAP
_MEMORY_TO_MEMORY = 0x00004000 | 0x00008000  # multi-planar, single-planar


def _capabilities(node: Path) -> int:
    """The capabilities of a V4L2 device; 0 where it is none or may not be opened."""
    import fcntl

    answer = bytearray(104)
    try:
        with node.open("rb", buffering=0) as device:
            fcntl.ioctl(device, _QUERY_CAPABILITIES, answer)
    except OSError:
        return 0
    return int(struct.unpack_from("=I", answer, 88)[0])  # of this node, not of the whole device


# --- OpenCV and GStreamer


def _open_opencv(name: str, _short_side: int | None) -> VideoSource:
    if not _is_live(name):
        return OpenCvSource(name, name.removeprefix("file://"))
    live = LiveSource(name, connect=partial(OpenCvSource, name, name, live=True))
    return live_or_recording(name, live, partial(OpenCvSource, name, name))


def probe_opencv() -> str | None:
    """Why OpenCV cannot be used, or None."""
    return _import_problem("cv2", "OpenCV")


def probe_gstreamer() -> str | None:
    """Why OpenCV has no GStreamer, or None."""
    if problem := probe_opencv():
        return problem
    cv2 = import_extra("cv2", "OpenCV", "cpu")
    if not re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()):
        return "this OpenCV was built without GStreamer; use the system's (JetPack's, or Debian's python3-opencv)"
    return None


@dataclass(frozen=True, slots=True)
class Elements:
    """The elements of a pipeline that differ from machine to machine. Codecs are FFmpeg's names."""

    decoders: Mapping[str, str]
    scaler: str
    scaled_format: str  # what the scaler gives to the CPU


_NVIDIA_CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg2video", "mpeg4")
JETSON = Elements(dict.fromkeys(_NVIDIA_CODECS, "nvv4l2decoder"), "nvvidconv", "BGRx")
SOFTWARE = Elements({"h264": "avdec_h264", "hevc": "avdec_h265"}, "videoconvert ! videoscale", "BGRx")

_DEMUXERS = {"mp4": "qtdemux", "matroska": "matroskademux", "mpegts": "tsdemux", "avi": "avidemux", "flv": "flvdemux"}
_PARSERS = {"h264": "h264parse", "hevc": "h265parse", "mpeg2video": "mpegvideoparse", "mpeg4": "mpeg4videoparse"}
_SINK = "appsink sync=false max-buffers=4"  # drops nothing: what is late is dropped, and counted, behind it
_UNPACKERS = {"h264": "rtph264depay", "hevc": "rtph265depay", "mpeg4": "rtpmp4vdepay", "vp8": "rtpvp8depay"}


def pipeline_for(name: str, facts: StreamFacts, *, short_side: int | None = None, elements: Elements = JETSON) -> str:
    """A GStreamer pipeline that scales the pictures of a file or an RTSP URL before the CPU sees them.

    Their shape is kept, and their shorter side is `short_side`, unless it is less already. Raises VideoError for
    containers and codecs that the elements cannot read.
    """
    codec = facts.codec
    if codec not in elements.decoders:
        raise VideoError(f"{redacted(name)} is {codec}, which GStreamer cannot decode here", hint="use pyav")
    caps = f"video/x-raw,format={elements.scaled_format}"
    if short_side:
        height, width = scaled_size((facts.height, facts.width), short_side)
        caps += f",width={width},height={height}"
    parts = [*_beginning(name, facts), _PARSERS.get(codec, ""), elements.decoders[codec], elements.scaler, caps]
    return " ! ".join([*filter(None, parts), "videoconvert", "video/x-raw,format=BGR", _SINK])


def scaled_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """(height, width) of the same shape with the shorter side `short_side`, even; never larger than `size`."""
    shorter = min(size)
    if shorter <= short_side:
        return size
    height, width = (max(short_side, 2 * round(side * short_side / shorter / 2)) for side in size)
    return height, width


def _beginning(name: str, facts: StreamFacts) -> list[str]:
    if _is_live(name):
        if not name.lower().startswith("rtsp") or facts.codec not in _UNPACKERS:
            raise VideoError(
                f"{redacted(name)} is no stream that GStreamer is used for", hint="use pyav, or `gst: ...`"
            )
        # rtspsrc takes microseconds of silence and milliseconds of buffer
        source = f"rtspsrc location={_quoted(name)} protocols=tcp tcp-timeout=2000000 latency=100"
        return [source, "application/x-rtp,media=video", _UNPACKERS[facts.codec]]
    demuxer = next((_DEMUXERS[part] for part in facts.container.split(",") if part in _DEMUXERS), None)
    if demuxer is None:
        raise VideoError(f"{name} is {facts.container}, which no pipeline is known for", hint="use the decoder pyav")
    return [f"filesrc location={_quoted(name.removeprefix('file://'))}", demuxer]


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _open_gstreamer(name: str, short_side: int | None, elements: Elements | None = None) -> VideoSource:
    def source() -> OpenCvSource:
        pipeline = pipeline_for(name, peek(name), short_side=short_side, elements=elements or JETSON)
        return OpenCvSource(
            name, pipeline, api="gstreamer", live=live, timeout=(waits.open_seconds, waits.read_seconds)
        )

    live, waits = _is_live(name), Patience()
    return LiveSource(name, connect=source, patience=waits, burst=False) if live else LateSource(name, source)


DECODERS: dict[str, Decoder] = {
    "pyav": Decoder("FFmpeg on the CPU, through PyAV", probe_pyav, _open_pyav),
    "opencv": Decoder("FFmpeg on the CPU, through OpenCV", probe_opencv, _open_opencv),
    "nvdec": Decoder("NVIDIA GPUs, through PyAV", probe_nvdec, partial(_open_on, partial(_hwaccel, "cuda"))),
    "vaapi": Decoder("Intel and AMD GPUs, through PyAV", probe_vaapi, partial(_open_on, partial(_hwaccel, "vaapi"))),
    "v4l2": Decoder("decoders of small boards, through PyAV", probe_v4l2, partial(_open_on, _memory_to_memory)),
    "gstreamer": Decoder("NVIDIA Jetson, through GStreamer and OpenCV", probe_gstreamer, _open_gstreamer),
}
