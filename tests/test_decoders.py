from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgeclf.av_source import AvSource
from edgeclf.decoders import (
    DECODERS,
    JETSON,
    SOFTWARE,
    open_source,
    pipeline_for,
    probe,
    probe_gstreamer,
    probe_nvdec,
    probe_v4l2,
    probe_vaapi,
    scaled_size,
)
from edgeclf.errors import VideoError
from edgeclf.live_source import LateSource, LiveSource, StreamFacts
from edgeclf.opencv_source import OpenCvSource
from tests.support.videos import RED, plain, write_video

FILM = StreamFacts("mov,mp4,m4a,3gp,3g2,mj2", "h264", 1080, 1920, 60.0)


def test_every_decoder_works_or_says_why_in_one_line() -> None:
    for name in DECODERS:
        reason = probe(name)
        assert reason is None or (len(reason) > 20 and "\n" not in reason), name
    assert probe("pyav") is None
    assert probe("opencv") is None


def test_decoder_that_does_not_work_is_an_error_with_its_reason(tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.mp4", plain(RED, 0.2)))
    for name in DECODERS:
        reason = probe(name)
        if reason:
            with pytest.raises(VideoError, match=re.escape(f"the decoder {name} does not work here: {reason}")):
                open_source(path, decoder=name)
        else:
            assert open_source(path, decoder=name).name == path


def test_unknown_decoder_is_refused_with_the_known_ones() -> None:
    with pytest.raises(VideoError, match="unknown decoder 'magic'; known: pyav, opencv, nvdec"):
        open_source("a.mp4", decoder="magic")


@pytest.mark.parametrize("decoder", ["pyav", "opencv"])
def test_file_is_read_by_the_decoder_that_was_named(tmp_path: Path, decoder: str) -> None:
    path = write_video(tmp_path / "a.mp4", plain(RED, 0.4))
    for name in (str(path), f"file://{path}"):
        source = open_source(name, decoder=decoder)
        assert len(list(source.frames())) == 10
        assert source.decoder.startswith({"pyav": "PyAV", "opencv": "OpenCV"}[decoder])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.mp4", AvSource),
        ("0.mp4", AvSource),
        ("./0", AvSource),
        ("0", LiveSource),
        ("camera:1", LiveSource),
        ("/dev/video2", LiveSource),
        ("rtsp://me:secret@cam/1", LiveSource),
        ("RTSP://cam/1", LiveSource),
        ("udp://@:5000", LiveSource),
        ("https://cam/a.mp4", LateSource),
    ],
)
def test_name_tells_the_kind_of_source(name: str, kind: type) -> None:
    source = open_source(name)
    assert type(source) is kind
    assert "secret" not in source.name


def test_other_schemes_are_opened_by_those_who_know_them() -> None:
    frames = open_source("synthetic://walk?seed=1&seconds=1", decoder="pyav").frames()
    assert next(frames).image.ndim == 3
    with pytest.raises(VideoError, match="unknown kind of source 'gopher'"):
        open_source("gopher://old")


def test_pipeline_needs_an_opencv_with_gstreamer_and_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := probe_gstreamer():
        with pytest.raises(VideoError, match=re.escape(reason)):
            open_source("gst: videotestsrc ! appsink")
    monkeypatch.setattr("edgeclf.decoders.probe", lambda _: None)
    with pytest.raises(VideoError, match="has no appsink"):
        open_source("gst: videotestsrc")
    assert isinstance(open_source("gst: filesrc location=a.mp4 ! decodebin ! appsink"), OpenCvSource)
    assert isinstance(open_source("gst: v4l2src ! videoconvert ! appsink"), LiveSource)


def test_missing_driver_libraries_are_named() -> None:
    reason = probe_nvdec(libraries=["libnone-a.so.1", "libc.so.6", "libnone-b.so.1"])
    assert reason is not None
    assert "libnone-a.so.1 and libnone-b.so.1 cannot be loaded" in reason


def test_driver_that_opens_no_device_is_told() -> None:
    import ctypes

    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        reason = probe_nvdec(libraries=["libc.so.6"])
        assert reason is not None
        assert "cuda" in reason
    else:
        pytest.skip("this machine has an NVIDIA driver")


def test_missing_render_node_is_told(tmp_path: Path) -> None:
    assert f"no {tmp_path}/renderD*" in str(probe_vaapi(nodes=tmp_path))


def test_v4l2_asks_nodes_whether_they_decode(tmp_path: Path) -> None:
    assert f"no {tmp_path}/video*" in str(probe_v4l2(nodes=tmp_path))
    for name in ("video0", "video10"):
        (tmp_path / name).touch()
    assert "none of 2" in str(probe_v4l2(nodes=tmp_path))  # no devices: they answer no question
    assert "none of 2" in str(probe_v4l2(nodes=tmp_path, capabilities=lambda _: 0x04200001))  # a camera
    decoder = {"video0": 0x04200001, "video10": 0x04204000}
    assert "video" not in str(probe_v4l2(nodes=tmp_path, capabilities=lambda node: decoder[node.name]))


def test_pipeline_for_a_jetson_scales_before_the_cpu() -> None:
    assert pipeline_for("/films/a.mp4", FILM, short_side=224) == (
        'filesrc location="/films/a.mp4" ! qtdemux ! h264parse ! nvv4l2decoder ! nvvidconv'
        " ! video/x-raw,format=BGRx,width=398,height=224 ! videoconvert ! video/x-raw,format=BGR"
        " ! appsink sync=false max-buffers=4"
    )


def test_pipeline_for_a_camera_takes_its_pictures_over_tcp() -> None:
    facts = StreamFacts("rtsp", "hevc", 480, 640, None)
    pipeline = pipeline_for("rtsp://cam/1", facts, elements=JETSON)
    assert pipeline.startswith('rtspsrc location="rtsp://cam/1" protocols=tcp tcp-timeout=2000000 latency=100')
    assert "rtph265depay ! h265parse ! nvv4l2decoder ! nvvidconv ! video/x-raw,format=BGRx ! " in pipeline


def test_names_in_pipelines_are_quoted() -> None:
    assert r'location="a\" ! fakesink \\.mp4"' in pipeline_for('a" ! fakesink \\.mp4', FILM)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("a.wmv", StreamFacts("asf", "h264", 480, 640, 1.0)),
        ("a.mp4", StreamFacts("mov,mp4", "prores", 480, 640, 1.0)),
        ("udp://cam", StreamFacts("mpegts", "h264", 480, 640, None)),
    ],
)
def test_what_no_pipeline_is_known_for_is_refused(name: str, facts: StreamFacts) -> None:
    with pytest.raises(VideoError, match="pyav"):
        pipeline_for(name, facts, elements=SOFTWARE)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((1080, 1920), (224, 398)), ((1920, 1080), (398, 224)), ((180, 320), (180, 320)), ((1000, 1001), (224, 224))],
)
def test_scaled_size_keeps_the_shape(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert scaled_size(size, 224) == wanted


def test_hardware_that_does_not_know_the_codec_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeclf.decoders.probe", lambda _: None)
    path = str(write_video(tmp_path / "a.mkv", plain(RED, 0.2), codec="ffv1"))
    with pytest.raises(VideoError, match="is ffv1, which FFmpeg does not decode on cuda"):
        list(open_source(path, decoder="nvdec").frames())
    with pytest.raises(VideoError, match="is ffv1, for which V4L2 has no decoder"):
        list(open_source(path, decoder="v4l2").frames())
