"""Golden inputs: frames and clips in a bundle, with the answers of the model that the bundle was made from.

Any device can replay them without that model. `golden.npz` holds, by name:

    frames         uint8 (P, H, W, 3) preprocessed RGB, or (P, K, H, W, 3) where pictures are stacked
    features       float32 (P, F): the original extractor's answers; not there where classifiers take frames
    classifiers    the names of those that have clips, in the order of the numbers N below
    clips_N        int32 (M, T): which of the frames each clip is made of; -1 behind its length
    lengths_N      int32 (M,): how many frames of each clip count, 1 to T
    scores_N       float32 (M, C): the original classifier's answers

Clips name their frames instead of holding them, so that a few pictures make many clips of any length.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.bundle import ClassifierEntry, ExtractorEntry, ModelBundle
from edgeclf.clips import padded
from edgeclf.errors import BundleError
from edgeclf.specs import ClipSpec, TensorSpec, require

GOLDEN_NAME = "golden.npz"

# What NumPy's reader raises on archives with flipped, missing, foreign or crafted bytes.
ARCHIVE_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RuntimeError,
    MemoryError,
    SyntaxError,
    TokenError,
    zipfile.BadZipFile,
    zlib.error,
)

_MAX_BYTES = 256 << 20  # of all arrays, unpacked
_SQUARE = 16  # side of the squares that noise is made of, in pixels
_EXPORT_AGAIN = "export it again from its model directory"


@dataclass(frozen=True, slots=True)
class GoldenClips:
    """Clips of one classifier, and the scores that its original gave them."""

    rows: NDArray[np.int32]  # (M, T) which of the golden frames; -1 behind the length
    lengths: NDArray[np.int32]  # (M,) 1 to T
    scores: NDArray[np.float32]  # (M, C)

    def __post_init__(self) -> None:
        require(self.rows.dtype == np.int32 and self.rows.ndim == 2 and self.rows.size > 0, "clips are not int32[M,T]")
        count, length = self.rows.shape
        require(self.lengths.dtype == np.int32 and self.lengths.shape == (count,), "lengths are not int32[M]")
        require(bool(((self.lengths >= 1) & (self.lengths <= length)).all()), f"a length is not 1 to {length}")
        require(self.scores.dtype == np.float32 and self.scores.ndim == 2, "scores are not float32[M,C]")
        require(len(self.scores) == count, "there are not as many scores as clips")
        require(bool(np.isfinite(self.scores).all()), "a score is no number")
        counts = np.arange(length) < self.lengths[:, np.newaxis]
        require(bool(((self.rows >= 0) == counts).all()), "clips and lengths do not fit")

    def of(self, features: NDArray[Any], clip: ClipSpec) -> NDArray[Any]:
        """The clips (M, T, ...) of the features, or frames, (P, ...) that they name, padded as the classifier asks."""
        clips = zip(self.rows, self.lengths, strict=True)
        return np.stack([padded(features[rows[:length]], clip) for rows, length in clips])


@dataclass(frozen=True, slots=True)
class Golden:
    """Frames with the features that the original extractor gave, and the clips of every classifier."""

    frames: NDArray[np.uint8]  # (P, H, W, 3) preprocessed RGB, or (P, K, H, W, 3)
    features: NDArray[np.float32] | None  # (P, F); None where the classifiers take the frames
    clips: Mapping[str, GoldenClips]  # by the classifier's name

    def __post_init__(self) -> None:
        require(self.frames.dtype == np.uint8 and self.frames.ndim in (4, 5), "frames are not uint8[P,H,W,3]")
        require(bool(self.clips), "there is no clip")
        if self.features is not None:
            fits = self.features.dtype == np.float32 and self.features.ndim == 2
            require(fits and len(self.features) == len(self.frames), "features are not float32[P,F]")
            require(bool(np.isfinite(self.features).all()), "a feature is no number")
        for name, clips in self.clips.items():
            require(int(clips.rows.max()) < len(self.frames), f"a clip of {name!r} names a frame that is not there")


def write_golden(folder: Path, golden: Golden) -> Path:
    """Write `golden.npz` into a bundle's folder; its path. The same arrays give the same bytes."""
    arrays: dict[str, NDArray[Any]] = {"frames": golden.frames, "classifiers": np.array(list(golden.clips))}
    if golden.features is not None:
        arrays["features"] = golden.features
    for number, clips in enumerate(golden.clips.values()):
        parts = {"clips": clips.rows, "lengths": clips.lengths, "scores": clips.scores}
        arrays |= {f"{name}_{number}": array for name, array in parts.items()}
    path = folder / GOLDEN_NAME
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return path


def read_golden(bundle: ModelBundle) -> Golden:
    """The golden inputs of a bundle, which fit its manifest and answer for the classifier that is chosen.

    Raises BundleError where there are none, or where they cannot be read or do not fit.
    """
    path = bundle.path / GOLDEN_NAME
    if GOLDEN_NAME not in bundle.manifest.files:
        raise BundleError(
            f"{bundle.path} holds no {GOLDEN_NAME} to replay: it was written before bundles had one",
            hint="export it again from its model directory: edgeclf export MODEL_DIR -o NAME.edgeclf",
        )
    try:
        golden = _read(path)
        _check_fit(golden, bundle.extractor, bundle.classifier)
    except ARCHIVE_ERRORS as error:
        raise BundleError(f"{path} cannot be read: {error}", hint=_EXPORT_AGAIN) from error
    return golden


def noise(frames: TensorSpec, count: int) -> NDArray[np.uint8]:
    """Frames (count, ...) of squares of chance colours, always the same; white noise would be unlike any picture."""
    *stack, height, width, channels = [size or 1 for size in frames.shape[1:]]
    shape = (count, *stack, -(-height // _SQUARE), -(-width // _SQUARE), channels)
    coarse = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    fine = coarse.repeat(_SQUARE, axis=-3).repeat(_SQUARE, axis=-2)
    return np.ascontiguousarray(fine[..., :height, :width, :])


def _read(path: Path) -> Golden:
    # np.load leaves a file open that it opened itself and cannot read.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        size = sum(member.file_size for member in arrays.zip.infolist())
        require(size <= _MAX_BYTES, f"it holds {size >> 20} MB, {_MAX_BYTES >> 20} are allowed")
        clips = {
            str(name): GoldenClips(arrays[f"clips_{n}"], arrays[f"lengths_{n}"], arrays[f"scores_{n}"])
            for n, name in enumerate(arrays["classifiers"])
        }
        return Golden(arrays["frames"], arrays.get("features"), clips)


def _check_fit(golden: Golden, extractor: ExtractorEntry, classifier: ClassifierEntry) -> None:
    """Raise ValueError where the arrays are not those of the manifest's tensors."""
    _check_shape("frames", golden.frames, extractor.inputs[0])
    require((golden.features is not None) == extractor.has_graph, "features do not fit the extractor")
    if golden.features is not None:
        _check_shape("features", golden.features, extractor.outputs[0])
    require(classifier.name in golden.clips, f"it has no clips of the classifier {classifier.name!r}")
    clips = golden.clips[classifier.name]
    length = classifier.clip.length
    require(clips.rows.shape[1] == length, f"its clips are not of {length} frames")
    _check_shape("scores", clips.scores, classifier.outputs[0])


def _check_shape(what: str, array: NDArray[Any], spec: TensorSpec) -> None:
    fits = (str(array.dtype), array.shape[1:]) == (spec.dtype, spec.shape[1:])
    require(fits, f"its {what} are {array.dtype}{list(array.shape)}, the manifest says {spec}")
