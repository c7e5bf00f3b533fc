"""The loops that others write and install: what tutorials do, what a clever user does, and Keras."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.av_reader import USUAL_RATE, GrowingTime
from edgeclf.bench.devices import Choice, open_one
from edgeclf.bench.loops import ONE_THREAD, Loop, Work, pass_over, run_of
from edgeclf.bench.rows import RowName
from edgeclf.bundle import ModelBundle, open_bundle
from edgeclf.clips import Clip, ClipAssembler, Sample, padded, sampler_of
from edgeclf.errors import EdgeclfError, ParityError, SessionError, VideoError, import_extra
from edgeclf.model_directory import load_keras, open_keras_model, read_description
from edgeclf.runtime.cores import available_cores
from edgeclf.runtime.model import BF16, Model
from edgeclf.runtime.pipeline import LoopOptions
from edgeclf.runtime.records import Prediction
from edgeclf.runtime.session import Placement
from edgeclf.runtime.stages import PictureStack, SampledFrame, SourceId, decode
from edgeclf.specs import ClipSpec, PreprocessSpec
from edgeclf.train.examples import feeds_of
from edgeclf.video import Frame, open_video

KERAS = "Keras predict, frame by frame"
TF_FUNCTION = "tf.function, batches of 8"
OPENCV = "OpenCV + ONNX Runtime defaults"
RECOMPUTED = "every window recomputed"
OVERLAP = f"{RECOMPUTED}, by {ONE_THREAD}"  # the ratio of these two, which both run on one thread
SAME_AS_KERAS = 1e-4
_KERAS_BATCH = 8
_NO_PIXELS: NDArray[np.uint8] = np.zeros((0, 0, 3), np.uint8)

Extract = Callable[[NDArray[np.uint8]], NDArray[Any]]


@dataclass(frozen=True, slots=True)
class _Picked:
    """A frame that clips are made of, as a loop of one's own has it."""

    source: str
    pixels: NDArray[np.uint8]
    pts_seconds: float
    sample: Sample


@dataclass(slots=True)
class _Tally:
    """What a loop of one's own has counted so far."""

    frames: int = 0
    pictures: int = 0


def processes_name(count: int) -> str:
    """The name of the row of so many processes."""
    return f"{count} processes, 1 thread each"


def queue_name(precision: str) -> str:
    """The name of the row of OpenVINO's queue."""
    return f"OpenVINO's queue, {precision}"


def require_same_model(model_path: Path, bundle: ModelBundle) -> None:
    """Raise ParityError where a model directory is plainly not what the bundle was made of; weights are not looked at.

    Also raises what `read_description` does.
    """
    found, entry = read_description(model_path), bundle.classifier
    same = {
        "labels": found.labels == entry.labels,
        "clips": found.clip == entry.clip,
        "pictures": found.preprocess == bundle.extractor.preprocess,
    }
    if other := [name for name, holds in same.items() if not holds]:
        raise ParityError(
            f"{model_path} is another model than {entry.name}: it has other {' and '.join(other)}",
            hint="name the model directory that the bundle was made of",
        )


def keras_loops(model_path: Path, sources: Sequence[str], tolerance: float = SAME_AS_KERAS) -> list[Loop]:
    """What tutorials do with the same weights, `predict` for each frame and clip; and a tf.function on batches."""
    return [keras_loop(model_path, sources, tolerance), _tf_function_loop(model_path, sources, tolerance)]


def keras_loop(model_path: Path, sources: Sequence[str], tolerance: float = SAME_AS_KERAS) -> Loop:
    """What tutorials do, with the same weights: decode, `predict` each sampled frame alone, `predict` each clip."""
    extractor, classifier = load_keras(model_path)
    description, feeds = read_description(model_path), feeds_of(classifier)
    clip_spec = description.clip.of_stream()

    def feature_of(pixels: NDArray[np.uint8]) -> NDArray[Any]:
        feature: NDArray[Any] = extractor.predict(pixels[None], verbose=0)[0] if extractor else pixels
        return feature

    def classified(source: str, clip: Clip) -> Prediction:
        scores = classifier.predict(feeds(clip.features[None], np.array([clip.length])), verbose=0)[0]
        return _prediction(source, description.labels, scores, clip)

    frames_of = partial(_as_we_decode, preprocess=description.preprocess, clip=clip_spec)
    work = partial(_one_thread, sources, clip_spec, frames_of, feature_of, classified)
    name = RowName(KERAS, "baseline", Placement("keras", "keras", "cpu", "fp32", available_cores()))
    return Loop(name, partial(run_of, work), tolerance)


def _tf_function_loop(model_path: Path, sources: Sequence[str], tolerance: float) -> Loop:
    model = open_keras_model(model_path)
    options = LoopOptions(depth=0, workers=0, batch_size=_KERAS_BATCH)
    name = RowName(TF_FUNCTION, "baseline", model.classifier.placement, 1, _KERAS_BATCH)
    return Loop(name, partial(run_of, partial(pass_over, model, options, sources)), tolerance)


def recompute_loop(model: Model, sources: Sequence[str], batch: int) -> Loop:
    """Our own loop on one thread, but every clip runs all its frames through the extractor again."""
    clip_spec = model.clip.of_stream()

    def classified(source: str, clip: Clip) -> Prediction:
        frames = clip.features[: clip.length]
        parts = [model.extract(frames[start : start + batch]) for start in range(0, len(frames), batch)]
        return _classified(model, source, replace(clip, features=padded(np.concatenate(parts), clip_spec)))

    frames_of = partial(_as_we_decode, preprocess=model.preprocess, clip=clip_spec)
    work = partial(_one_thread, sources, clip_spec, frames_of, _as_it_is, classified)
    name = RowName(RECOMPUTED, "baseline", model.extractor.placement, 1, batch)
    return _optional(name, work)


def opencv_loop(bundle: ModelBundle, model: Model, sources: Sequence[str], precision: str) -> Loop:
    """A well-written loop on one thread: OpenCV decodes, ONNX Runtime as it comes runs each sampled frame once."""
    ort = import_extra("onnxruntime", "ONNX Runtime", "cpu")
    graph = bundle.graph(bundle.extractor, precision)
    with _as_session_error(OPENCV):
        session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    taken, clip_spec = session.get_inputs()[0].name, model.clip.of_stream()

    def feature_of(pixels: NDArray[np.uint8]) -> NDArray[Any]:
        feature: NDArray[Any] = session.run(None, {taken: pixels[None]})[0][0]
        return feature

    frames_of = partial(_as_opencv_decodes, preprocess=model.preprocess, clip=clip_spec)
    work = partial(_one_thread, sources, clip_spec, frames_of, feature_of, partial(_classified, model))
    placement = Placement("onnxruntime", "CPU", "cpu", precision, 0)
    return _optional(RowName(OPENCV, "baseline", placement), _with_opencv_threads(work))


def _one_thread(
    sources: Sequence[str],
    clip_spec: ClipSpec,
    frames_of: Callable[[str, _Tally], Iterator[_Picked]],
    feature_of: Extract,
    classified: Callable[[str, Clip], Prediction],
) -> Work:
    """One pass of a loop as one writes it: frame by frame, clip by clip."""
    tally, clips = _Tally(), []
    for source in sources:
        assembler = ClipAssembler(clip_spec)
        for frame in frames_of(source, tally):
            due = assembler.add(feature_of(frame.pixels), frame.pts_seconds, frame.sample)
            clips += [classified(source, clip) for clip in due]
        clips += [classified(source, clip) for clip in assembler.finish()]
    return Work(tuple(clips), tally.frames, tally.pictures)


def queue_loop(bundle: ModelBundle, model: Model, sources: Sequence[str], precision: str) -> Loop:
    """OpenCV decodes, and OpenVINO's own asynchronous queue runs the sampled frames, tuned for throughput."""
    with _as_session_error(queue_name(precision)):
        queue, placement = _infer_queue(bundle, precision)

    def work() -> Work:
        tally, picked = _Tally(), list[_Picked]()
        features: dict[int, NDArray[Any]] = {}
        queue.set_callback(lambda request, place: features.update({place: request.get_output_tensor(0).data[0].copy()}))
        for source in sources:
            for frame in _as_opencv_decodes(source, tally, model.preprocess, model.clip.of_stream()):
                queue.start_async({0: frame.pixels[None]}, len(picked))
                picked.append(replace(frame, pixels=_NO_PIXELS))
        queue.wait_all()
        return Work(tuple(_clips_of(model, sources, picked, features)), tally.frames, tally.pictures)

    return _optional(RowName(queue_name(precision), "baseline", placement, len(queue)), _with_opencv_threads(work))


def _infer_queue(bundle: ModelBundle, precision: str) -> tuple[Any, Placement]:
    openvino = import_extra("openvino", "OpenVINO", "openvino")
    core = openvino.Core()
    hint = "bf16" if precision == BF16 else "f32"
    if precision == BF16 and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise SessionError("this processor has no bf16 arithmetic", hint="measure fp32 or int8")
    graph = bundle.graph(bundle.extractor, "fp32" if precision == BF16 else precision)
    network = core.read_model(graph)
    network.reshape({0: [1, *(size or 1 for size in bundle.extractor.inputs[0].shape[1:])]})
    compiled = core.compile_model(network, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": hint})
    zeros = np.zeros((1, *bundle.extractor.preprocess.input_shape), np.uint8)
    compiled.create_infer_request().infer({0: zeros})  # before any other thread: see runtime/sessions/openvino.py
    version = openvino.__version__.partition("-")[0]
    threads = compiled.get_property("INFERENCE_NUM_THREADS")
    return openvino.AsyncInferQueue(compiled), Placement("openvino", f"queue {version}", "cpu", precision, threads)


def _clips_of(
    model: Model, sources: Sequence[str], picked: Sequence[_Picked], features: dict[int, NDArray[Any]]
) -> Iterator[Prediction]:
    places = iter(range(len(picked)))
    for source in dict.fromkeys(sources):
        assembler = ClipAssembler(model.clip.of_stream())
        for frame in (frame for frame in picked if frame.source == source):
            for clip in assembler.add(features[next(places)], frame.pts_seconds, frame.sample):
                yield _classified(model, source, clip)
        for clip in assembler.finish():
            yield _classified(model, source, clip)


def processes_loop(
    stack: ExitStack, bundle: ModelBundle, choice: Choice, model: Model, sources: Sequence[str], batch: int
) -> Loop:
    """As many processes as cores, each with our loop on one thread over its share of the sources."""
    count = min(available_cores(), len(sources))
    pool = ProcessPoolExecutor(
        count,
        multiprocessing.get_context("spawn"),
        initializer=_open_in_process,
        initargs=(f"{bundle.path}#{bundle.classifier.name}", choice, batch),
    )
    stack.callback(pool.shutdown, cancel_futures=True)
    parts = [list(sources[n::count]) for n in range(count)]

    def work() -> Work:
        done = list(pool.map(_work_in_process, parts))
        return Work(
            tuple(clip for part in done for clip in part.clips),
            sum(part.frames for part in done),
            sum(part.pictures for part in done),
        )

    name = RowName(processes_name(count), "baseline", model.extractor.placement, count, batch)
    return _optional(name, work, children=True)


def _optional(name: RowName, work: Callable[[], Work], *, children: bool = False) -> Loop:
    """A loop that has a row with the reason where it fails, and whose scores may differ."""

    def checked() -> Work:
        with _as_session_error(name.name):
            return work()

    return Loop(name, partial(run_of, checked, children=children), tolerance=None, required=False)


@contextmanager
def _as_session_error(name: str) -> Iterator[None]:
    """Whatever the libraries of a baseline raise becomes a SessionError: each has errors of its own kind."""
    try:
        yield
    except EdgeclfError:
        raise
    except Exception as error:
        raise SessionError(f"{name} failed: {type(error).__name__}: {error}") from error


def _with_opencv_threads(work: Callable[[], Work]) -> Callable[[], Work]:
    """The work with OpenCV's own number of threads, as without our loop, which keeps it on one."""

    def as_it_comes() -> Work:
        cv2: Any = import_extra("cv2", "OpenCV", "cpu")
        before = cv2.getNumThreads()
        cv2.setNumThreads(-1)
        try:
            return work()
        finally:
            cv2.setNumThreads(before)

    return as_it_comes


_in_process: list[tuple[Model, LoopOptions]] = []


def _open_in_process(name: str, choice: Choice, batch: int) -> None:
    options = LoopOptions(depth=0, workers=0, batch_size=batch)
    _in_process.append((open_one(ExitStack(), open_bundle(name), choice), options))


def _work_in_process(sources: list[str]) -> Work:
    model, options = _in_process[0]
    return pass_over(model, options, sources)


def _as_we_decode(source: str, tally: _Tally, preprocess: PreprocessSpec, clip: ClipSpec) -> Iterator[_Picked]:
    """The sampled frames of a source, decoded and preprocessed by our own stage on the caller's thread."""
    for item in decode(SourceId(0, source), partial(open_video, source), preprocess, clip):
        if isinstance(item, SampledFrame):
            tally.frames += 1
            yield _Picked(source, item.pixels, item.pts_seconds, item.sample)
        elif item.end.error:
            raise item.end.error
        else:
            tally.pictures += item.end.counts.received


def _as_opencv_decodes(source: str, tally: _Tally, preprocess: PreprocessSpec, clip: ClipSpec) -> Iterator[_Picked]:
    """The same frames out of OpenCV: every picture is decoded (`grab`), those that are asked for are converted."""
    sampler, stack = sampler_of(clip, lambda: 1), PictureStack(preprocess)
    for frame in _opencv_frames(source, keeping=preprocess.stack > 1):
        tally.pictures += 1
        sample = sampler.sample(frame.pts_seconds)
        stack.add(frame, restart=sample.restart)
        if sample.slots:
            tally.frames += 1
            yield _Picked(source, stack.pixels(), frame.pts_seconds, sample)


def _opencv_frames(source: str, *, keeping: bool) -> Iterator[Frame]:
    """The frames of a file. keeping: their pixels stay; without, they are there until the next frame is taken."""
    cv2: Any = import_extra("cv2", "OpenCV", "cpu")
    capture = cv2.VideoCapture(source) if Path(source).is_file() else None
    if capture is None or not capture.isOpened():
        raise VideoError(f"OpenCV does not open {source}", hint="name video files")
    time, last_stamp = GrowingTime(), -1.0
    step = 1 / (capture.get(cv2.CAP_PROP_FPS) or USUAL_RATE)
    try:
        while capture.grab():
            stamp = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            # Pictures that the decoder still held at the end of an AVI file are all said to stand at 0.
            seconds = time.at(None if stamp == last_stamp else stamp, step)
            last_stamp = stamp
            convert = partial(_retrieved, cv2, capture)
            yield Frame(seconds, partial(_as_it_is, convert()) if keeping else convert)
    finally:
        capture.release()


def _retrieved(cv2: Any, capture: Any) -> NDArray[np.uint8]:
    ok, picture = capture.retrieve()
    if not ok:
        raise VideoError("OpenCV gave no picture where it had found one", hint="name other video files")
    image: NDArray[np.uint8] = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    return image


def _as_it_is(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels


def _classified(model: Model, source: str, clip: Clip) -> Prediction:
    scores = model.classify(clip.features[None], np.array([clip.length], np.int32))[0]
    return _prediction(source, model.labels, scores, clip)


def _prediction(source: str, labels: tuple[str, ...], scores: NDArray[Any], clip: Clip) -> Prediction:
    return Prediction(
        source,
        labels,
        tuple(scores.tolist()),
        start_seconds=round(clip.start_seconds, 6),
        end_seconds=round(clip.end_seconds, 6),
        flags=clip.flags,
    )


def other_loops(
    stack: ExitStack, bundle: ModelBundle, choice: Choice, model: Model, sources: Sequence[str], batch: int
) -> dict[str, Callable[[], Loop]]:
    """The baselines that need no Keras, by name; each is opened when it is called, and may raise what is missing.

    choice and model: what our own loops run on, and with which classifier all others classify.
    """
    held = bundle.extractor.precisions
    if not held:
        return {}
    loops: dict[str, Callable[[], Loop]] = {
        OPENCV: partial(opencv_loop, bundle, model, sources, choice.precision if choice.precision in held else "fp32"),
        RECOMPUTED: partial(recompute_loop, model, sources, batch),
    }
    count = min(available_cores(), len(sources))
    if count > 1 and model.extractor.placement.device == "cpu":
        loops[processes_name(count)] = partial(processes_loop, stack, bundle, choice, model, sources, batch)
    queues = [name for name in ("fp32", BF16, "int8") if name == BF16 or name in held]
    return loops | {queue_name(name): partial(queue_loop, bundle, model, sources, name) for name in queues}
