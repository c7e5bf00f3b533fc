"""Features of whole videos, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.bundle import sha256_of
from edgeclf.clips import Clip, ClipAssembler, Sample, sampler_of
from edgeclf.dataset import LabelledClip
from edgeclf.errors import EdgeclfError
from edgeclf.image_source import IMAGE_RATE
from edgeclf.preprocess import limit_opencv_threads
from edgeclf.runtime.cores import available_cores
from edgeclf.runtime.golden import ARCHIVE_ERRORS
from edgeclf.runtime.merge import merge
from edgeclf.runtime.session import Session
from edgeclf.runtime.stages import Ended, SampledFrame, SourceId, decode
from edgeclf.specs import ClipSpec, PreprocessSpec
from edgeclf.train.augment import Augmentation, Pictures, drawn_change

log = logging.getLogger(__name__)

_BATCH = 32


@dataclass(frozen=True, slots=True)
class VideoFeatures:
    """The features of a video's sampled frames, with what is needed to cut clips out of them."""

    rows: NDArray[Any]  # (S, F) float32 or float16, or frames uint8 (S, H, W, 3); one for each sampled frame
    pts_seconds: NDArray[np.float64]  # (S,)
    slots: NDArray[np.int32]  # (S,) slots that each fills
    restarts: NDArray[np.bool_]  # (S,) true where a gap lies before it
    error: str = ""  # why the video ended early, or why there is nothing

    def clips(self, spec: ClipSpec) -> list[Clip]:
        """All clips of the video, cut as the runtime cuts them."""
        return self._cut(self.rows, spec)

    def windows(self, spec: ClipSpec) -> list[Clip]:
        """All clips of the video with the numbers of their rows, (T, 1), in the place of features."""
        return self._cut(np.arange(len(self.rows))[:, None], spec)

    def _cut(self, rows: NDArray[Any], spec: ClipSpec) -> list[Clip]:
        assembler = ClipAssembler(spec)
        clips: list[Clip] = []
        for row, seconds, slots, restart in zip(rows, self.pts_seconds, self.slots, self.restarts, strict=True):
            clips += assembler.add(row, float(seconds), Sample(int(slots), bool(restart)))
        return clips + assembler.finish()


@dataclass(frozen=True, slots=True)
class View:
    """A way of looking at every clip: as it is (number 0), or changed as drawn from its content and the number."""

    number: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)

    def change(self, digest: str) -> Callable[[Pictures], Pictures]:
        """The change for the clip whose content has this hash."""
        if self.number == 0:
            return _unchanged
        seed = hashlib.sha256(f"{digest} {self.number}".encode()).digest()
        return drawn_change(self.augmentation, np.random.default_rng(list(seed)))

    def key(self) -> Any:
        """What tells this view from others, for JSON."""
        return [self.number, asdict(self.augmentation)] if self.number else 0


AS_IT_IS = View()


@dataclass(frozen=True, slots=True)
class Extraction:
    """How features are made: by which extractor, of which frames, in which precision.

    identity: what tells this extractor from any other (`extractor_identity`). dtype: of the features that are kept;
    frames are uint8 whatever it says.
    """

    extractor: Session
    identity: str
    preprocess: PreprocessSpec
    clip: ClipSpec
    dtype: str = "float32"

    def key(self, clip: LabelledClip, view: View) -> str:
        """A hash of all that the features of a clip depend on."""
        sampling = {"sampling": self.clip.sampling, "rate": self.clip.rate, "stale_seconds": self.clip.stale_seconds}
        if self.clip.sampling != "rate":
            sampling = {"sampling": self.clip.sampling, "length": self.clip.length}
        parts = ["v2", content_hash(clip), self.identity, self.preprocess.to_dict(), sampling, self.dtype, view.key()]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def video_features(
    clips: Sequence[LabelledClip],
    extraction: Extraction,
    *,
    view: View = AS_IT_IS,
    cache: Path | None = None,
    progress: Callable[[], None] = lambda: None,
) -> list[VideoFeatures]:
    """The features of all clips, in their order; one that cannot be read has its error instead.

    cache: the folder in which features are kept under the hash of the clip and of everything that they depend on.
    progress: called once for each finished clip.
    """
    keys = [_cache_file(cache, clip, extraction, view) for clip in clips]
    found: dict[int, VideoFeatures] = {}
    for index, key in enumerate(keys):
        if (kept := _read(key)) is not None:
            found[index] = kept
            progress()
    missing = [index for index in range(len(clips)) if index not in found]
    for position, features in _extracted([clips[index] for index in missing], extraction, view):
        index = missing[position]
        found[index] = features
        if not features.error:
            _write(keys[index], features)
        progress()
    return [found[index] for index in range(len(clips))]


def single_pictures(clips: Iterable[LabelledClip]) -> list[LabelledClip]:
    """Every picture of clips that share some, as a clip by itself that has the name of its file."""
    paths = sorted({path for clip in clips for path in clip.images})
    return [LabelledClip(path, "", "", "train", (path,)) for path in paths]


def joined_pictures(
    clips: Sequence[LabelledClip], features: Sequence[VideoFeatures], spec: ClipSpec
) -> list[VideoFeatures]:
    """The features of clips, made of those of their `single_pictures`, which alone say what could not be read."""
    of_picture = {picture.path: found for picture, found in zip(single_pictures(clips), features, strict=True)}
    return [_joined([of_picture[path] for path in clip.images], spec) for clip in clips]


def _joined(pictures: Sequence[VideoFeatures], spec: ClipSpec) -> VideoFeatures:
    read = [index for index, picture in enumerate(pictures) if len(picture.rows)]
    sampler = sampler_of(spec, lambda: len(read))
    times = {index: (index - read[0]) / IMAGE_RATE for index in read}
    taken = [(index, sample) for index in read if (sample := sampler.sample(times[index])).slots]
    return VideoFeatures(
        np.concatenate([pictures[index].rows for index, _ in taken] or [pictures[0].rows]),
        np.array([times[index] for index, _ in taken], np.float64),
        np.array([sample.slots for _, sample in taken], np.int32),
        np.array([sample.restart for _, sample in taken], np.bool_),
    )


class KeptFeatures(Sequence[VideoFeatures]):
    """The features of many clips, read from the cache each time they are asked for: frames need not fit in memory.

    What is not in the cache, or is damaged there, is made first; only clips that cannot be kept there stay in memory.
    """

    def __init__(
        self, clips: Sequence[LabelledClip], extraction: Extraction, cache: Path, progress: Callable[[], None]
    ) -> None:
        self._clips = clips
        self._extraction = extraction
        self._cache = cache
        self._files = [_cache_file(cache, clip, extraction, AS_IT_IS) for clip in clips]
        self._held: dict[int, VideoFeatures] = {}
        for index, file in enumerate(self._files):
            if file is None or not file.is_file():
                features = self._made(index)
                if features.error:
                    self._held[index] = features
            progress()

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: Any) -> Any:
        if index in self._held:
            return self._held[index]
        features = _read(self._files[index])
        if features is None:
            features = self._made(index)
            if features.error:
                message = f"{self._files[index]} is gone or damaged, and cannot be made again: {features.error}"
                raise EdgeclfError(message, hint="leave the cache and the clips alone while training runs")
        return features

    def _made(self, index: int) -> VideoFeatures:
        (features,) = video_features([self._clips[index]], self._extraction, cache=self._cache)
        return features


def extractor_identity(extractor: Any) -> str:
    """A hash of a Keras extractor's architecture and weights; of None, the frames as they are, a word."""
    if extractor is None:
        return "frames"
    digest = hashlib.sha256(extractor.to_json().encode())
    for weight in extractor.get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()


def content_hash(clip: LabelledClip) -> str:
    """One hash of the bytes of all files of a clip, in order; empty where one is missing."""
    try:
        digests = [sha256_of(file) for file in clip.files]
    except OSError:
        return ""
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _unchanged(pictures: Pictures) -> Pictures:
    return pictures


def _extracted(
    clips: Sequence[LabelledClip], extraction: Extraction, view: View
) -> Iterator[tuple[int, VideoFeatures]]:
    """Features of each clip with its index, as they are finished; decoding runs beside the extractor."""
    limit_opencv_threads()
    sources = (
        decode(SourceId(index, clip.name), clip.open, extraction.preprocess, extraction.clip)
        for index, clip in enumerate(clips)
    )
    changes = [view.change(content_hash(clip) if view.number else "") for clip in clips]
    samples: dict[int, list[SampledFrame]] = {}
    rows: dict[int, list[NDArray[Any]]] = {}
    with merge(sources, batch_size=_BATCH, max_wait=60.0, depth=2 * _BATCH, at_once=available_cores()) as batches:
        for batch in batches:
            sampled = [item for item in batch if isinstance(item, SampledFrame)]
            for frame, row in zip(sampled, _run(extraction, sampled, changes), strict=True):
                samples.setdefault(frame.id.index, []).append(frame.without_pixels())
                rows.setdefault(frame.id.index, []).append(row)
            for ended in (item for item in batch if isinstance(item, Ended)):
                index = ended.id.index
                error = str(ended.end.error or "")
                yield index, _assembled(samples.pop(index, []), rows.pop(index, []), extraction, error)


def _run(
    extraction: Extraction, frames: Sequence[SampledFrame], changes: Sequence[Callable[[Pictures], Pictures]]
) -> NDArray[Any]:
    session = extraction.extractor
    if not frames:
        return np.zeros((0, 0), np.float32)
    pixels = np.stack([changes[frame.id.index](frame.pixels) for frame in frames])
    features = session.run({session.inputs[0].name: pixels})[session.outputs[0].name]
    return features if features.dtype == np.uint8 else features.astype(extraction.dtype)


def _assembled(
    samples: list[SampledFrame], rows: list[NDArray[Any]], extraction: Extraction, error: str
) -> VideoFeatures:
    shape = extraction.extractor.outputs[0].shape[1:]
    return VideoFeatures(
        np.stack(rows) if rows else np.zeros((0, *(size or 0 for size in shape)), np.float32),
        np.array([frame.pts_seconds for frame in samples], np.float64),
        np.array([frame.sample.slots for frame in samples], np.int32),
        np.array([frame.sample.restart for frame in samples], np.bool_),
        error,
    )


def _cache_file(cache: Path | None, clip: LabelledClip, extraction: Extraction, view: View) -> Path | None:
    if cache is None or not all(file.is_file() for file in clip.files):
        return None
    key = extraction.key(clip, view)
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
