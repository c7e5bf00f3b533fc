"""Features of whole videos, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.bundle import sha256_of
from edgeclf.clips import Clip, ClipAssembler, Sample
from edgeclf.errors import EdgeclfError
from edgeclf.model_directory import ARCHIVE_ERRORS
from edgeclf.preprocess import limit_opencv_threads
from edgeclf.runtime.cores import available_cores
from edgeclf.runtime.merge import merge
from edgeclf.runtime.model import Floats
from edgeclf.runtime.session import Session
from edgeclf.runtime.stages import Ended, SampledFrame, SourceId, decode
from edgeclf.specs import ClipSpec, PreprocessSpec
from edgeclf.video import open_video

log = logging.getLogger(__name__)

_BATCH = 32


@dataclass(frozen=True, slots=True)
class VideoFeatures:
    """The features of a video's sampled frames, with what is needed to cut clips out of them."""

    rows: Floats  # (S, F), one for each sampled frame
    pts_seconds: NDArray[np.float64]  # (S,)
    slots: NDArray[np.int32]  # (S,) slots that each fills
    restarts: NDArray[np.bool_]  # (S,) true where a gap lies before it
    error: str = ""  # why the video ended early, or why there is nothing

    def clips(self, spec: ClipSpec) -> list[Clip]:
        """All clips of the video, cut as the runtime cuts them."""
        assembler = ClipAssembler(spec)
        clips: list[Clip] = []
        for row, seconds, slots, restart in zip(self.rows, self.pts_seconds, self.slots, self.restarts, strict=True):
            clips += assembler.add(row, float(seconds), Sample(int(slots), bool(restart)))
        return clips + assembler.finish()


def video_features(
    paths: Sequence[Path],
    extractor: Session,
    identity: str,
    preprocess: PreprocessSpec,
    clip: ClipSpec,
    *,
    cache: Path | None = None,
    progress: Callable[[], None] = lambda: None,
) -> list[VideoFeatures]:
    """The features of all videos, in their order; a video that cannot be read has its error instead.

    identity: what tells this extractor from any other (`extractor_identity`). cache: the folder in which
    features are kept under the hash of the video and of everything that they depend on. progress: called
    once for each finished video.
    """
    keys = [_cache_file(cache, path, identity, preprocess, clip) for path in paths]
    found: dict[int, VideoFeatures] = {}
    for index, key in enumerate(keys):
        if (kept := _read(key)) is not None:
            found[index] = kept
            progress()
    missing = [index for index in range(len(paths)) if index not in found]
    for position, features in _extracted([paths[index] for index in missing], extractor, preprocess, clip):
        index = missing[position]
        found[index] = features
        if not features.error:
            _write(keys[index], features)
        progress()
    return [found[index] for index in range(len(paths))]


def extractor_identity(extractor: Any) -> str:
    """A hash of a Keras extractor's architecture and weights."""
    digest = hashlib.sha256(extractor.to_json().encode())
    for weight in extractor.get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()


def feature_cache_folder() -> Path:
    """Where features are kept unless a folder is named."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "edgeclf", "features")


def _extracted(
    paths: Sequence[Path], extractor: Session, preprocess: PreprocessSpec, clip: ClipSpec
) -> Iterator[tuple[int, VideoFeatures]]:
    """Features of each video with its index, as they are finished; decoding runs beside the extractor."""
    limit_opencv_threads()
    sources = (
        decode(SourceId(index, str(path)), partial(open_video, path), preprocess, clip)
        for index, path in enumerate(paths)
    )
    places: dict[int, list[tuple[float, Sample]]] = {}
    rows: dict[int, list[Floats]] = {}
    with merge(sources, batch_size=_BATCH, max_wait=60.0, depth=2 * _BATCH, at_once=available_cores()) as batches:
        for batch in batches:
            sampled = [item for item in batch if isinstance(item, SampledFrame)]
            features = _run(extractor, sampled)
            for frame, row in zip(sampled, features, strict=True):
                places.setdefault(frame.id.index, []).append((frame.pts_seconds, frame.sample))
                rows.setdefault(frame.id.index, []).append(row)
            for ended in (item for item in batch if isinstance(item, Ended)):
                index = ended.id.index
                error = str(ended.end.error or "")
                yield index, _assembled(places.pop(index, []), rows.pop(index, []), extractor, error)


def _run(extractor: Session, frames: Sequence[SampledFrame]) -> Floats:
    if not frames:
        return np.zeros((0, 0), np.float32)
    pixels = np.stack([frame.pixels for frame in frames])
    features: Floats = extractor.run({extractor.inputs[0].name: pixels})[extractor.outputs[0].name]
    return features


def _assembled(places: list[tuple[float, Sample]], rows: list[Floats], extractor: Session, error: str) -> VideoFeatures:
    size = extractor.outputs[0].shape[1] or 0
    return VideoFeatures(
        np.stack(rows) if rows else np.zeros((0, size), np.float32),
        np.array([seconds for seconds, _ in places], np.float64),
        np.array([sample.slots for _, sample in places], np.int32),
        np.array([sample.restart for _, sample in places], np.bool_),
        error,
    )


def _cache_file(
    cache: Path | None, path: Path, identity: str, preprocess: PreprocessSpec, clip: ClipSpec
) -> Path | None:
    if cache is None or not path.is_file():
        return None
    sampling = {"sampling": clip.sampling, "rate": clip.rate, "stale_seconds": clip.stale_seconds}
    parts = json.dumps(["v1", sha256_of(path), identity, preprocess.to_dict(), sampling], sort_keys=True)
    key = hashlib.sha256(parts.encode()).hexdigest()
    return cache / key[:2] / f"{key}.npz"


def _read(file: Path | None) -> VideoFeatures | None:
    if file is None or not file.is_file():
        return None
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            return VideoFeatures(arrays["rows"], arrays["pts_seconds"], arrays["slots"], arrays["restarts"])
    except ARCHIVE_ERRORS as error:
        log.warning("%s is damaged and will be made again: %s", file, error)
        return None


def _write(file: Path | None, features: VideoFeatures) -> None:
    """Keep features; the file is whole or not there at all."""
    if file is None:
        return
    unfinished = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as out:
            np.savez(
                out,
                rows=features.rows,
                pts_seconds=features.pts_seconds,
                slots=features.slots,
                restarts=features.restarts,
            )
        unfinished.replace(file)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise EdgeclfError(
            f"features cannot be kept in {file.parent}: {error}", hint="name a folder with --cache"
        ) from error
