"""The model on disk: a folder of ONNX graphs and the manifest that says everything about them.

A bundle from elsewhere is untrusted input: nothing of it is executed, every file is named and hashed in the
manifest, and no name leads out of the folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeclf.errors import BundleError
from edgeclf.specs import (
    Aggregate,
    ClipSpec,
    PreprocessSpec,
    TensorSpec,
    check_aggregate,
    check_labels,
    check_thresholds,
    labels_from_json,
    require,
)

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
PACKAGED = Path(__file__).parent / "bundles"

_MAX_MANIFEST_BYTES = 16 << 20
_EXPORT_AGAIN = "export it again from its model directory"


@dataclass(frozen=True, slots=True)
class ExtractorEntry:
    """The graph that turns frames into features.

    `precisions` maps "fp32" (always there) and others to file names. Without any there is no graph, and the classifiers
    take the frames themselves: `inputs` and `outputs` are then the same.
    """

    preprocess: PreprocessSpec
    precisions: Mapping[str, str]
    inputs: tuple[TensorSpec, ...]  # frames uint8 (N, H, W, 3) RGB, 0..255; (N, K, H, W, 3) where pictures are stacked
    outputs: tuple[TensorSpec, ...]  # features float32 (N, F), or the frames as they are

    def __post_init__(self) -> None:
        frames, features = _only(self.inputs, "extractor input"), _only(self.outputs, "extractor output")
        expected = TensorSpec(frames.name, "uint8", (None, *self.preprocess.input_shape))
        require(frames == expected, f"extractor input is {frames}, its preprocessing gives {expected}")
        if not self.precisions and features == frames:
            return
        _check_precisions("the extractor", self.precisions)
        fits = features.dtype == "float32" and len(features.shape) == 2 and features.shape[0] is None
        require(fits, f"extractor output is {features}, must be float32[N,F]")

    @property
    def has_graph(self) -> bool:
        """Whether frames become features; otherwise the classifiers take the frames."""
        return bool(self.precisions)


@dataclass(frozen=True, slots=True)
class ClassifierEntry:
    """A graph that turns a clip of features, or of frames where there is no extractor, into scores over its labels."""

    name: str
    labels: tuple[str, ...]
    clip: ClipSpec
    aggregate: Aggregate
    precisions: Mapping[str, str]
    # features float32 (N, T, F) or frames uint8 (N, T, H, W, 3), and length int32 (N) where padding is masked
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]  # scores float32 (N, C), each row sums to 1
    evaluation: Mapping[str, Any]
    thresholds: Mapping[str, float] = field(default_factory=dict)  # below its own, a winning label is "unknown"

    def __post_init__(self) -> None:
        who = f"classifier {self.name!r}"
        require(isinstance(self.name, str) and bool(self.name), "a classifier has no name")
        check_labels(self.labels)
        check_aggregate(self.aggregate)
        check_thresholds(self.thresholds, self.labels)
        _check_precisions(who, self.precisions)
        scores = _only(self.outputs, f"{who} output")
        expected = TensorSpec(scores.name, "float32", (None, len(self.labels)))
        require(scores == expected, f"{who} output is {scores}, its labels ask for {expected}")
        masked = self.clip.padding == "mask"
        require(len(self.inputs) == 1 + masked, f"{who} has {len(self.inputs)} inputs, must have {1 + masked}")
        features = self.inputs[0]
        fits = (features.dtype, len(features.shape)) in (("float32", 3), ("uint8", 5), ("uint8", 6))
        require(
            fits and features.shape[:2] == (None, self.clip.length),
            f"{who} input is {features}, must be float32[N,{self.clip.length},F] or uint8[N,{self.clip.length},H,W,3]",
        )
        if masked:
            length = self.inputs[1]
            require(length == TensorSpec(length.name, "int32", (None,)), f"{who} input is {length}, must be int32[N]")


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that is known of a bundle: tensors, preprocessing, clips, labels, hashes, parity and provenance."""

    name: str
    extractor: ExtractorEntry
    classifiers: tuple[ClassifierEntry, ...]
    files: Mapping[str, str]  # file name to SHA-256, hexadecimal
    parity: Mapping[str, Any]
    provenance: Mapping[str, Any]
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        require(bool(self.classifiers), "it has no classifier")
        names = [entry.name for entry in self.classifiers]
        require(len(set(names)) == len(names), f"two classifiers have one name: {names}")
        for name in self.files:
            require(Path(name).name == name and name not in (".", ".."), f"file name {name!r} leads out of the bundle")
        for precisions in (self.extractor.precisions, *(entry.precisions for entry in self.classifiers)):
            for file in precisions.values():
                require(file in self.files, f"graph {file!r} is not among its files")
        for entry in self.classifiers:
            _check_features(self.extractor, entry)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary, as it stands in `manifest.json`."""
        return {
            "schema_version": self.schema_version,
            "name": self.name,
            "extractor": {
                "preprocess": self.extractor.preprocess.to_dict(),
                **_graph_to_dict(self.extractor),
            },
            "classifiers": [
                {
                    "name": entry.name,
                    "labels": list(entry.labels),
                    "clip": entry.clip.to_dict(),
                    "aggregate": entry.aggregate,
                    **_graph_to_dict(entry),
                    "evaluation": dict(entry.evaluation),
                    "thresholds": dict(entry.thresholds),
                }
                for entry in self.classifiers
            ],
            "files": dict(self.files),
            "parity": dict(self.parity),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_dict(cls, data: Any) -> Manifest:
        """The checked manifest; raises ValueError, KeyError or TypeError where it makes no sense."""
        require(isinstance(data, dict), "it is not an object")
        version = data.get("schema_version")
        require(version == SCHEMA_VERSION, f"schema_version is {version!r}, this edgeclf reads {SCHEMA_VERSION}")
        return cls(
            name=str(data["name"]),
            extractor=ExtractorEntry(
                preprocess=PreprocessSpec.from_dict(data["extractor"]["preprocess"]),
                **_graph_from_dict(data["extractor"]),
            ),
            classifiers=tuple(_classifier_from_dict(entry) for entry in data["classifiers"]),
            files={str(name): str(digest) for name, digest in data["files"].items()},
            parity=dict(data["parity"]),
            provenance=dict(data["provenance"]),
        )


@dataclass(frozen=True, slots=True)
class ModelBundle:
    """An opened, verified bundle with one of its classifiers chosen."""

    path: Path
    manifest: Manifest
    classifier: ClassifierEntry

    @property
    def extractor(self) -> ExtractorEntry:
        """The extractor that all classifiers of the bundle share."""
        return self.manifest.extractor

    def graph(self, entry: ExtractorEntry | ClassifierEntry, precision: str | None = None) -> Path:
        """The file of a graph; FP32 unless another precision is asked for, which must be in the bundle."""
        name = entry.precisions.get(precision or "fp32")
        if name is None:
            known = ", ".join(entry.precisions)
            raise BundleError(f"{self.path.name} holds no {precision} graph", hint=f"it holds {known}")
        return self.path / name


def open_bundle(name: str | Path) -> ModelBundle:
    """The verified bundle behind the name of a packaged classifier, a path, or PATH#CLASSIFIER.

    Raises BundleError where there is none, where a file is missing, altered or outside the folder, or where
    the manifest contradicts itself.
    """
    path, manifest, wanted = _verified(name)
    return ModelBundle(path, manifest, _pick_classifier(path, manifest, wanted))


def open_classifiers(name: str | Path) -> list[ModelBundle]:
    """The verified bundle behind a name, a path or PATH#CLASSIFIER, once with each classifier that this names.

    A path alone names all of them; the files are read and hashed once. Raises BundleError as `open_bundle` does.
    """
    path, manifest, wanted = _verified(name)
    named = manifest.classifiers if wanted is None else (_pick_classifier(path, manifest, wanted),)
    return [ModelBundle(path, manifest, entry) for entry in named]


def packaged_classifiers() -> dict[str, Path]:
    """Names of the classifiers that ship inside the package, with the folder of their bundle."""
    found: dict[str, Path] = {}
    for path in sorted(PACKAGED.glob("*.edgeclf")):
        found |= {entry.name: path for entry in _read_manifest(path).classifiers}
    return found


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into the bundle folder `path`, keys in a fixed order."""
    text = json.dumps(manifest.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    (path / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _verified(name: str | Path) -> tuple[Path, Manifest, str | None]:
    """A bundle's folder, its manifest, whose files are as it says, and the classifier that the name asks for."""
    path, wanted = _resolve(str(name))
    manifest = _read_manifest(path)
    _verify_files(path, manifest)
    return path, manifest, wanted


def _resolve(name: str) -> tuple[Path, str | None]:
    packaged = packaged_classifiers()
    if name in packaged:
        return packaged[name], name
    head, mark, classifier = name.rpartition("#")
    path, wanted = (Path(head), classifier) if mark and not Path(name).exists() else (Path(name), None)
    if not path.is_dir():
        known = ", ".join(packaged) or "none"
        raise BundleError(
            f"there is no bundle {name!r}", hint=f"packaged: {known}; or give the path of a bundle folder"
        )
    return path, wanted


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST_NAME
    try:
        if not _is_inside(file, path):
            raise BundleError(f"{path} has no {MANIFEST_NAME}", hint="name the folder that export wrote")
        if file.stat().st_size > _MAX_MANIFEST_BYTES:
            raise BundleError(f"{file} is larger than {_MAX_MANIFEST_BYTES >> 20} MB", hint=_EXPORT_AGAIN)
        return Manifest.from_dict(json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant))
    except OSError as error:
        raise BundleError(
            f"{path} has no readable {MANIFEST_NAME}", hint="name the folder that export wrote"
        ) from error
    except KeyError as error:
        raise BundleError(f"{file} lacks {error}", hint=_EXPORT_AGAIN) from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{file} is not valid: {error}", hint=_EXPORT_AGAIN) from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _is_inside(file: Path, folder: Path) -> bool:
    """Whether it is a file of the folder itself, not a pipe or a link to elsewhere."""
    return file.is_file() and file.resolve().parent == folder.resolve()


def _verify_files(path: Path, manifest: Manifest) -> None:
    """Every file is as the manifest says, and there is no other: a graph may name further files for its weights."""
    try:
        if unknown := sorted({file.name for file in path.iterdir()} - {MANIFEST_NAME, *manifest.files}):
            raise BundleError(
                f"{path} holds {', '.join(unknown)}, which its manifest does not name", hint=_EXPORT_AGAIN
            )
        for name, digest in manifest.files.items():
            if not _is_inside(path / name, path):
                raise BundleError(f"{path / name} is missing or leads out of the bundle", hint=_EXPORT_AGAIN)
            if sha256_of(path / name) != digest:
                raise BundleError(f"{path / name} was altered: its SHA-256 is not the manifest's", hint=_EXPORT_AGAIN)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}", hint="check its files and their permissions") from error


def _pick_classifier(path: Path, manifest: Manifest, wanted: str | None) -> ClassifierEntry:
    for entry in manifest.classifiers:
        if entry.name == wanted or (wanted is None and len(manifest.classifiers) == 1):
            return entry
    known = ", ".join(entry.name for entry in manifest.classifiers)
    problem = f"has no classifier {wanted!r}" if wanted else "holds several classifiers"
    raise BundleError(f"{path} {problem}", hint=f"choose one with {path.name}#NAME: {known}")


def _graph_to_dict(entry: ExtractorEntry | ClassifierEntry) -> dict[str, Any]:
    return {
        "precisions": dict(entry.precisions),
        "inputs": [spec.to_dict() for spec in entry.inputs],
        "outputs": [spec.to_dict() for spec in entry.outputs],
    }


def _graph_from_dict(data: Any) -> dict[str, Any]:
    return {
        "precisions": {str(name): str(file) for name, file in data["precisions"].items()},
        "inputs": tuple(TensorSpec.from_dict(spec) for spec in data["inputs"]),
        "outputs": tuple(TensorSpec.from_dict(spec) for spec in data["outputs"]),
    }


def _classifier_from_dict(data: Any) -> ClassifierEntry:
    return ClassifierEntry(
        name=data["name"],
        labels=labels_from_json(data["labels"]),
        clip=ClipSpec.from_dict(data["clip"]),
        aggregate=data["aggregate"],
        evaluation=dict(data["evaluation"]),
        thresholds=dict(data.get("thresholds", {})),
        **_graph_from_dict(data),
    )


def _check_precisions(who: str, precisions: Mapping[str, str]) -> None:
    require("fp32" in precisions, f"{who} has no fp32 graph")


def _check_features(extractor: ExtractorEntry, entry: ClassifierEntry) -> None:
    asked, given = entry.inputs[0].shape[2:], extractor.outputs[0].shape[1:]
    require(
        asked == given,
        f"classifier {entry.name!r} takes {_listed(asked)} values a frame, the extractor gives {_listed(given)}",
    )


def _listed(sizes: tuple[int | None, ...]) -> str:
    return "x".join(map(str, sizes))


def _only(specs: tuple[TensorSpec, ...], what: str) -> TensorSpec:
    require(len(specs) == 1, f"there must be one {what}, not {len(specs)}")
    return specs[0]
