"""The loops of others: they give the same clips, and what goes wrong in them is told, not raised as it is."""

from __future__ import annotations

import re
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import pytest

from edgeclf.bench import baselines
from edgeclf.bench.asked import Asked
from edgeclf.bench.baselines import OPENCV, other_loops
from edgeclf.bench.devices import Choice, open_one
from edgeclf.bench.loops import disagreement
from edgeclf.bench.offline import open_loops
from edgeclf.bundle import ModelBundle, open_bundle
from edgeclf.errors import SessionError
from tests.support.videos import BLUE, GREEN, RED, plain, write_video

CPU = Choice("cpu")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("videos")
    return [
        str(write_video(folder / "change.avi", plain(RED, 2, fps=10) + plain(BLUE, 1, fps=10), fps=10)),
        str(write_video(folder / "short.mp4", plain(GREEN, 0.6, fps=10), fps=10)),
    ]


@pytest.fixture(scope="module")
def bundle(colors: Path) -> ModelBundle:
    return open_bundle(colors)


def test_others_give_the_scores_of_the_sequential_loop(bundle: ModelBundle, videos: list[str]) -> None:
    with ExitStack() as stack:
        model = open_one(stack, bundle, CPU)
        expected = open_loops(Asked(bundle, tuple(videos), (CPU,)), stack).loops[1].run().work
        for name, opened in other_loops(stack, bundle, CPU, model, videos, 2).items():
            if name.startswith("OpenVINO"):
                continue  # an extra
            work = opened().run().work
            assert disagreement(work.clips, expected.clips) < (0.02 if name == OPENCV else 1e-6), name
            assert (work.frames, work.pictures) == (expected.frames, expected.pictures), name


@pytest.mark.parametrize("error", [RuntimeError("bad graph"), BrokenProcessPool("gone"), ValueError("odd")], ids=str)
def test_whatever_a_baseline_raises_is_a_session_error(
    bundle: ModelBundle, videos: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_: object, **__: object) -> object:
        raise error

    monkeypatch.setattr(baselines, "_as_opencv_decodes", broken)
    with ExitStack() as stack:
        loop = other_loops(stack, bundle, CPU, open_one(stack, bundle, CPU), videos, 2)[OPENCV]()
        with pytest.raises(SessionError) as caught:
            loop.run()
    assert str(caught.value) == f"{OPENCV} failed: {type(error).__name__}: {error}"


def test_library_that_cannot_open_a_graph_is_a_session_error(
    bundle: ModelBundle, videos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        model = open_one(stack, bundle, CPU)
        monkeypatch.setattr(ModelBundle, "graph", lambda *_: Path(videos[0]))
        with pytest.raises(SessionError, match=rf"{re.escape(OPENCV)} failed: .*change\.avi"):
            other_loops(stack, bundle, CPU, model, videos, 2)[OPENCV]()


def test_others_decode_with_opencv_as_it_comes_and_leave_it_as_it_was(
    bundle: ModelBundle, videos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def seen(*arguments: Any) -> Any:
        threads.append(cv2.getNumThreads())
        return decodes(*arguments)

    decodes = baselines._as_opencv_decodes
    monkeypatch.setattr(baselines, "_as_opencv_decodes", lambda *_, **named: seen(*_, *named.values()))
    with ExitStack() as stack:
        loop = other_loops(stack, bundle, CPU, open_one(stack, bundle, CPU), videos, 2)[OPENCV]()
        cv2.setNumThreads(-1)
        own = cv2.getNumThreads()
        cv2.setNumThreads(1)
        loop.run()
    assert threads == [own] * len(videos)
    assert cv2.getNumThreads() == 1


def test_opencv_converts_a_picture_only_where_it_is_asked_for(
    videos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    converted: list[int] = []
    convert = baselines._retrieved
    monkeypatch.setattr(baselines, "_retrieved", lambda *_: converted.append(1) or convert(*_))  # type: ignore[func-returns-value]
    frames = [
        frame.image.mean() for n, frame in enumerate(baselines._opencv_frames(videos[0], keeping=False)) if n % 10 == 0
    ]
    assert (len(frames), len(converted)) == (3, 3)
    converted.clear()
    kept = [*baselines._opencv_frames(videos[0], keeping=True)]
    assert len(converted) == len(kept) == 30
    assert [frame.image.mean() for frame in kept[::10]] == frames


def test_openvino_queue_gives_nearly_the_same_scores(bundle: ModelBundle, videos: list[str]) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'edgeclf[openvino]'")
    with ExitStack() as stack:
        model = open_one(stack, bundle, CPU)
        loops = other_loops(stack, bundle, CPU, model, videos, 2)
        work, plain_work = (loops[name]().run().work for name in ("OpenVINO's queue, fp32", OPENCV))
    assert disagreement(work.clips, plain_work.clips) < 1e-5
    assert work.frames == plain_work.frames
