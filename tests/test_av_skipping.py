from __future__ import annotations

import hashlib
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edgeclf.av_reader import Reader
from edgeclf.av_source import AvSource
from edgeclf.chooser import ClipChooser
from edgeclf.clips import IndexSampler, RateSampler, Sampler
from edgeclf.errors import VideoError
from edgeclf.specs import ClipSpec, PreprocessSpec
from edgeclf.video import SkippingSource
from tests.support.videos import BLUE, RED, moving, plain, write_video

CLIP = ClipSpec.by_rate(20, 5.0)
PLAIN = PreprocessSpec((8, 8))
STACKED = PreprocessSpec((8, 8), stack=3, stack_seconds=0.08)


@dataclass
class Reading:
    """What came of reading a source."""

    sampled: list[tuple[float, int, bool, str]] = field(default_factory=list)  # time, slots, restart, pixels
    times: list[float] = field(default_factory=list)
    undecoded: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    error: str = ""

    @property
    def received(self) -> int:
        return len(self.times) + sum(self.dropped.values())


def read(source: AvSource, sampler: Sampler) -> Reading:
    found = Reading()
    try:
        for frame in source.frames():
            found.times.append(frame.pts_seconds)
            if not frame.decoded:
                found.undecoded += 1
                sampler.pass_over(frame.pts_seconds)
            elif (sample := sampler.sample(frame.pts_seconds)).slots:
                pixels = hashlib.sha256(frame.image.tobytes()).hexdigest()
                found.sampled.append((frame.pts_seconds, sample.slots, sample.restart, pixels))
    except VideoError as error:
        found.error = str(error)
    found.dropped = dict(source.dropped)
    return found


def both(path: Path, preprocess: PreprocessSpec = PLAIN, *, span: int | None = None) -> tuple[Reading, Reading]:
    """What a full decode and one that skips give: sampled five times a second, or at 6 of `span` frames."""

    def sampler() -> Sampler:
        return IndexSampler(6, span) if span else RateSampler(CLIP)

    skipping = AvSource(str(path))
    skipping.skip_with(ClipChooser([sampler()], preprocess))
    return read(AvSource(str(path)), sampler()), read(skipping, sampler())


def assert_equal(full: Reading, skipping: Reading) -> None:
    assert skipping.sampled == full.sampled
    assert skipping.times == full.times
    assert skipping.received == full.received
    assert (skipping.dropped, skipping.error) == (full.dropped, full.error)


def x264(params: str) -> dict[str, str]:
    return {"x264-params": params}


def x265(params: str) -> dict[str, str]:
    return {"x265-params": f"log-level=none:pools=none:frame-threads=1:{params}"}


ENCODINGS: dict[str, tuple[str, str, dict[str, str]]] = {
    "H.264": ("a.mp4", "libx264", {}),
    "H.264 in Matroska, open GOPs": ("a.mkv", "libx264", x264("keyint=15:open-gop=1:bframes=3:b-adapt=0")),
    "H.264 in a transport stream": ("a.ts", "libx264", x264("keyint=20:bframes=2")),
    "H.264 in Flash": ("a.flv", "libx264", x264("bframes=3:b-adapt=0")),
    "H.264 with a pyramid": ("a.mp4", "libx264", x264("bframes=7:b-pyramid=normal:b-adapt=0:ref=8")),
    "H.264 with a strict pyramid": ("a.mp4", "libx264", x264("bframes=16:b-pyramid=strict:b-adapt=0")),
    "H.264 interlaced": ("a.mp4", "libx264", x264("interlaced=1:tff=1:bframes=3:b-adapt=0")),
    "H.264 intra refresh": ("a.ts", "libx264", x264("intra-refresh=1:keyint=15:bframes=2:b-adapt=0:slices=3")),
    "HEVC": ("a.mp4", "libx265", x265("bframes=4:b-adapt=0:keyint=20")),
    "HEVC in a transport stream": ("a.ts", "libx265", x265("bframes=8:b-pyramid=1:b-adapt=0:open-gop=1:keyint=25")),
    "MPEG-4": ("a.mp4", "mpeg4", {"bf": "2", "b_strategy": "0"}),
    "MPEG-2": ("a.ts", "mpeg2video", {"bf": "2", "b_strategy": "0", "g": "12"}),
    "Motion JPEG": ("a.mkv", "mjpeg", {}),
    "Motion JPEG in AVI": ("a.avi", "mjpeg", {}),
}


def write_encoded(folder: Path, name: str, codec: str, options: dict[str, str], *, count: int = 75) -> Path:
    av = pytest.importorskip("av", reason="PyAV is missing")
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no encoder {codec}")
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    if codec in ("libx264", "libx265"):
        options = {"preset": "superfast"} | options
    ticks = 25 if codec == "mpeg2video" else 1000
    return write_video(
        folder / name, moving(count), codec=codec, options=options, pixel_format=pixel_format, ticks=ticks
    )


# -- the same as a full decode ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_is_sampled_is_that_of_a_full_decode_to_the_bit(encoding: str, tmp_path: Path) -> None:
    path = write_encoded(tmp_path, *ENCODINGS[encoding])
    full, skipping = both(path)
    assert_equal(full, skipping)
    assert len(full.sampled) == 15
    assert skipping.undecoded >= 8
    assert_equal(*both(path, STACKED))
    assert_equal(*both(path, span=75))


def test_variable_frame_rate_is_sampled_the_same(tmp_path: Path) -> None:
    chance = random.Random(4)
    steps = [chance.choice([0.02, 0.04, 0.2, 3.0]) for _ in range(75)]
    times = [round(sum(steps[:n]), 3) for n in range(75)]
    options = {"preset": "superfast"} | x264("bframes=5:b-adapt=0")
    full, skipping = both(write_video(tmp_path / "a.mkv", moving(75), times=times, codec="libx264", options=options))
    assert_equal(full, skipping)
    assert any(restart for _, _, restart, _ in full.sampled)


def test_pictures_that_stand_alone_are_not_decoded_unless_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_encoded(tmp_path, *ENCODINGS["Motion JPEG"])
    decoded: list[int] = []
    decode = Reader.decode

    def counted(self: Reader, packet: Any) -> Any:
        decoded.append(packet.size)
        return decode(self, packet)

    monkeypatch.setattr(Reader, "decode", counted)
    source = AvSource(str(path))
    source.skip_with(ClipChooser([RateSampler(CLIP)], PLAIN))
    assert read(source, RateSampler(CLIP)).undecoded == 60
    assert sum(size > 0 for size in decoded) == 15


def test_undecoded_frame_has_no_image(tmp_path: Path) -> None:
    source = AvSource(str(write_encoded(tmp_path, *ENCODINGS["Motion JPEG"])))
    source.skip_with(ClipChooser([RateSampler(CLIP)], PLAIN))
    undecoded = next(frame for frame in source.frames() if not frame.decoded)
    with pytest.raises(RuntimeError, match="was not decoded"):
        _ = undecoded.image


def test_source_that_is_closed_while_it_skips_ends_quietly(tmp_path: Path) -> None:
    source = AvSource(str(write_encoded(tmp_path, *ENCODINGS["H.264"])))
    source.skip_with(ClipChooser([RateSampler(CLIP)], PLAIN))
    frames = source.frames()
    next(frames)
    source.close()
    assert len(list(frames)) < 30
    assert source.dropped == {}


def test_source_says_that_it_can_skip() -> None:
    assert isinstance(AvSource("a.mp4"), SkippingSource)


# -- where only a full decode tells -----------------------------------------------------------------------------------

NEVER_SKIPPED: dict[str, tuple[str, str, dict[str, str]]] = {
    "AVI guesses times": ("a.avi", "mpeg4", {"bf": "2", "b_strategy": "0"}),
    "a raw stream has no times": ("a.h264", "libx264", x264("bframes=3:b-adapt=0")),
    "VP8 hides pictures": ("a.webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "nothing is dispensable": ("a.mp4", "libx264", x264("bframes=0")),
}


@pytest.mark.parametrize("case", NEVER_SKIPPED)
def test_everything_is_decoded_where_it_must_be(case: str, tmp_path: Path) -> None:
    full, skipping = both(write_encoded(tmp_path, *NEVER_SKIPPED[case]))
    assert_equal(full, skipping)
    assert skipping.undecoded == 0
    assert full.sampled


def test_hevc_with_layers_of_time_is_decoded_in_full(tmp_path: Path) -> None:
    layered = x265("temporal-layers=3:bframes=7:b-adapt=0:b-pyramid=1:keyint=32:scenecut=0")
    try:
        path = write_encoded(tmp_path, "a.mp4", "libx265", layered)
    except OSError:
        pytest.skip("this x265 writes no layers of time")
    full, skipping = both(path)
    assert_equal(full, skipping)
    assert skipping.undecoded == 0


def test_recording_appended_to_another_is_sampled_the_same(tmp_path: Path) -> None:
    parts = [write_encoded(tmp_path, f"{n}.ts", "libx264", x264("bframes=3:b-adapt=0")) for n in range(2)]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    full, skipping = both(joined)
    assert skipping.sampled == full.sampled
    assert skipping.received == full.received
    assert len(full.times) > 140


@pytest.mark.parametrize("seed", range(3))
def test_damaged_file_gives_what_a_full_decode_gives(seed: int, tmp_path: Path) -> None:
    path = write_encoded(tmp_path, "a.mp4", "libx264", x264("bframes=3:b-adapt=0") | {"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    chance, pictures = random.Random(seed), data.index(b"mdat")
    length = (len(data) - pictures) // 8
    start = chance.randrange(len(data) - 3 * length, len(data) - 2 * length)
    data[start : start + length] = bytes(length)
    path.write_bytes(data)
    full, skipping = both(path)
    assert full.error
    assert skipping.sampled == full.sampled
    assert skipping.received == full.received
    assert skipping.undecoded > 0


def test_truncated_file_gives_what_a_full_decode_gives(tmp_path: Path) -> None:
    path = write_encoded(tmp_path, "a.mp4", "libx264", x264("bframes=3:b-adapt=0") | {"movflags": "faststart"})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    full, skipping = both(path)
    assert full.error
    assert skipping.sampled == full.sampled
    assert skipping.received == full.received


SHARED = [
    "streams/Codec/asl_again.mkv",
    "streams/Codec/h264_10bits.mp4",
    "streams/Codec/h265_10bits.mp4",
    "streams/Codec/h265_video.mp4",
    "streams/General/arm_wrestling.mp4",
    "streams/General/nasa_13013.mp4",
    "streams/General/tree.avi",
    "odd/Container/big_buck_bunny_432_433.webm",
    "odd/Corrupt/corrupted.mp4",
    "odd/Derived/bytes_flipped.avi",
    "odd/Derived/interlaced.mp4",
    "odd/Metadata/unordered.mov",
    "odd/Rotated/video_90.mov",
    "ucf101_avi/BabyCrawling/v_BabyCrawling_g04_c01.avi",
    "surv_fight/Fight/fi148.mp4",
]


@pytest.mark.parametrize("name", SHARED)
def test_real_file_is_sampled_the_same(shared_data: Path, name: str) -> None:
    full, skipping = both(shared_data / name)
    assert_equal(full, skipping)
    assert full.sampled


# -- live -------------------------------------------------------------------------------------------------------------


def live(path: Path) -> AvSource:
    return AvSource("camera", url=str(path), live=True)


def test_live_frames_say_when_they_came(tmp_path: Path) -> None:
    path = write_encoded(tmp_path, *ENCODINGS["H.264"])
    before = time.perf_counter()
    frames = list(live(path).frames())
    arrivals = [frame.arrival for frame in frames if frame.arrival is not None]
    assert len(arrivals) == 75
    assert before <= min(arrivals) <= max(arrivals) <= time.perf_counter()
    assert [frame.pts_seconds for frame in frames] == [frame.pts_seconds for frame in AvSource(str(path)).frames()]


@pytest.mark.parametrize(
    ("encoding", "undecoded"),
    [
        (ENCODINGS["Motion JPEG"], 60),
        (ENCODINGS["H.264"], 0),
        (NEVER_SKIPPED["nothing is dispensable"], 0),
    ],
    ids=["stands alone", "would be delayed", "nothing is dispensable"],
)
def test_live_stream_skips_only_what_delays_nothing(
    encoding: tuple[str, str, dict[str, str]], undecoded: int, tmp_path: Path
) -> None:
    path = write_encoded(tmp_path, *encoding)
    source = live(path)
    source.skip_with(ClipChooser([RateSampler(CLIP)], PLAIN))
    found = read(source, RateSampler(CLIP))
    assert found.undecoded == undecoded
    assert found.sampled == read(AvSource(str(path)), RateSampler(CLIP)).sampled


def test_live_stream_with_a_stack_decodes_what_may_still_be_wanted(tmp_path: Path) -> None:
    source = live(write_encoded(tmp_path, *ENCODINGS["Motion JPEG"]))
    source.skip_with(ClipChooser([RateSampler(CLIP)], STACKED))
    found = read(source, RateSampler(CLIP))
    assert (found.undecoded, len(found.times)) == (0, 75)


def test_picture_behind_a_damaged_one_that_was_wanted_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_encoded(tmp_path, *ENCODINGS["Motion JPEG"])
    source = live(path)
    source.skip_with(ClipChooser([RateSampler(CLIP)], PLAIN))
    good = Reader.good

    def lossy(self: Reader, packet: Any) -> Any:
        pictures = good(self, packet)
        if any(round(picture.time, 3) == 0.4 for picture in pictures):
            self.drop("corrupt")
            return []
        return pictures

    monkeypatch.setattr(Reader, "good", lossy)
    found = read(source, RateSampler(CLIP))
    assert [round(seconds, 3) for seconds, _, _, _ in found.sampled][:4] == [0.0, 0.2, 0.44, 0.6]
    assert (found.received, found.dropped) == (75, {"corrupt": 1})


def test_end_and_damage_of_a_live_stream_are_no_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", plain(RED, 4))
    data = bytearray(path.read_bytes())
    chance = random.Random(3)
    for _ in range(60):
        data[chance.randrange(6000, len(data) - 2000)] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    found = read(live(path), RateSampler(CLIP))
    assert found.error == ""
    assert found.dropped["corrupt"] > 0


# -- decoders ---------------------------------------------------------------------------------------------------------


def test_decoder_can_be_named_and_is_told(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", plain(BLUE, 1))
    source = AvSource(str(path), hardware="mpeg4")
    assert len(list(source.frames())) == 25
    assert source.decoder.endswith(" mpeg4")


@pytest.mark.parametrize(
    ("name", "message"),
    [("hevc", "hevc decodes hevc, and .* is mpeg4"), ("no_such_decoder", "no_such_decoder cannot be opened")],
)
def test_decoder_that_cannot_be_used_is_an_error(name: str, message: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", plain(BLUE, 1))
    with pytest.raises(VideoError, match=message):
        list(AvSource(str(path), hardware=name).frames())


def test_threads_of_the_decoder_change_nothing(tmp_path: Path) -> None:
    path = write_encoded(tmp_path, *ENCODINGS["H.264"])
    threaded = read(AvSource(str(path), threads=2), RateSampler(CLIP))
    assert threaded.sampled == read(AvSource(str(path)), RateSampler(CLIP)).sampled
