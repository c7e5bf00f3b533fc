"""A bundle as a model repository of NVIDIA Triton Inference Server.

For each classifier there is NAME_clip, which takes whole clips of frames and gives scores; and, for clients that keep
features themselves, BUNDLE_extractor and NAME_classifier. An ensemble of the latter two could not replace the first:
the batch of an extractor is frames, that of a classifier is clips, and an ensemble cannot fold one into the other.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeclf.bundle import ClassifierEntry, ModelBundle
from edgeclf.errors import BundleError, ExportError, import_extra
from edgeclf.specs import TensorSpec

InstanceKind = Literal["auto", "gpu", "cpu"]
Accelerator = Literal["FP32", "FP16"]

CONFIG_NAME, LABELS_NAME, GRAPH_NAME = "config.pbtxt", "labels.txt", "model.onnx"

_MADE_BY = "# Written by edgeclf; it is replaced when the bundle is written again."
_TYPES = {"uint8": "TYPE_UINT8", "int32": "TYPE_INT32", "float32": "TYPE_FP32"}
_CACHE = "/tmp/edgeclf_tensorrt"  # noqa: S108 - a path inside Triton's container


@dataclass(frozen=True, slots=True)
class Serving:
    """How Triton shall run the models."""

    max_batch: int = 8  # clips in one run
    max_frames: int = 64  # frames in one run of the extractor alone
    max_delay_microseconds: int = 2000  # how long a request may wait for others to share a run with
    instances: int = 1  # copies of a model on each device
    kind: InstanceKind = "auto"
    tensorrt: Accelerator | None = None  # ONNX Runtime hands the extractor and whole clips to TensorRT

    def __post_init__(self) -> None:
        counts = (self.max_batch, self.max_frames, self.instances)
        if min(counts) < 1 or self.max_delay_microseconds < 0:
            raise ExportError("a size of a batch or a count is below 1, or a delay below 0", hint="give larger numbers")
        if self.tensorrt and self.kind == "cpu":
            raise ExportError("TensorRT runs on a GPU, not on the CPU", hint="use --kind gpu or auto")


@dataclass(frozen=True, slots=True)
class _ServedModel:
    """One folder of the repository."""

    name: str
    graph: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int
    labels: tuple[str, ...] = ()
    accelerated: bool = False
    warm_up: Mapping[str, bytes] = field(default_factory=dict)  # inputs that must not be zeros


def write_model_repository(
    bundle: ModelBundle, folder: Path, *, precision: str = "fp32", serving: Serving | None = None
) -> list[Path]:
    """Write all classifiers of a bundle into the model repository `folder`; the folders of the models.

    precision: which of the extractor's graphs is taken, or of the classifier's where it takes frames. Other models in
    the repository are left alone, those that were written before are replaced. Raises ExportError where a name cannot
    be one in Triton, and BundleError where a folder is in the way or the bundle lacks the precision.
    """
    import_extra("onnx", "onnx", "export")
    serving = serving or Serving()
    models = list(_served(bundle, precision, serving))
    for model in models:
        _check_place(folder, model.name)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".triton-") as work:
        for model in models:
            _write(Path(work, model.name), model, serving)
        return [_put_in_place(Path(work, model.name), folder / model.name) for model in models]


def _served(bundle: ModelBundle, precision: str, serving: Serving) -> Iterator[_ServedModel]:
    accelerated = serving.tensorrt is not None
    if not bundle.extractor.has_graph:
        for entry in bundle.manifest.classifiers:
            graph = bundle.graph(entry, precision).read_bytes()
            yield _of_classifier(entry, f"{entry.name}_clip", graph, entry.inputs, serving, accelerated=accelerated)
        return
    extractor = bundle.graph(bundle.extractor, precision).read_bytes()
    yield _ServedModel(
        f"{bundle.manifest.name}_extractor",
        extractor,
        bundle.extractor.inputs,
        bundle.extractor.outputs,
        serving.max_frames,
        accelerated=accelerated,
    )
    for entry in bundle.manifest.classifiers:
        classifier = bundle.graph(entry).read_bytes()
        whole = clip_graph(extractor, classifier, entry)
        frames = bundle.extractor.inputs[0]
        clips = TensorSpec(frames.name, frames.dtype, (None, entry.clip.length, *frames.shape[1:]))
        inputs = (clips, *entry.inputs[1:])
        yield _of_classifier(entry, f"{entry.name}_clip", whole, inputs, serving, accelerated=accelerated)
        yield _of_classifier(entry, f"{entry.name}_classifier", classifier, entry.inputs, serving, accelerated=False)


def _of_classifier(
    entry: ClassifierEntry,
    name: str,
    graph: bytes,
    inputs: tuple[TensorSpec, ...],
    serving: Serving,
    *,
    accelerated: bool,
) -> _ServedModel:
    # Zeros are no length: the mean of no frames is no number.
    full = np.full(serving.max_batch, entry.clip.length, "<i4").tobytes()
    warm_up = {length.name: full for length in inputs[1:]}
    return _ServedModel(
        name, graph, inputs, entry.outputs, serving.max_batch, entry.labels, accelerated=accelerated, warm_up=warm_up
    )


# -- whole clips in one graph -----------------------------------------------------------------------------------------


def clip_graph(extractor: bytes, classifier: bytes, entry: ClassifierEntry) -> bytes:
    """The file of one ONNX graph: frames uint8 (N, T, H, W, 3), and the length where it is masked, to scores (N, C).

    It holds the nodes and weights of both graphs as they are, under the prefixes `extractor/` and `classifier/`, with
    the time of a clip folded into the extractor's batch between them.
    """
    import onnx
    from onnx import checker, compose, helper

    parts = [onnx.load_from_string(graph) for graph in (extractor, classifier)]
    first, second = (
        compose.add_prefix(part, f"{role}/") for part, role in zip(parts, ("extractor", "classifier"), strict=True)
    )
    _check_cast(first)
    graph = helper.make_graph(
        [*_entry_nodes(first), *first.graph.node, *_middle_nodes(first, second), *second.graph.node],
        "clip",
        [_clip_input(first, entry.clip.length), *second.graph.input[1:]],
        list(second.graph.output),
        [
            *first.graph.initializer,
            *second.graph.initializer,
            _shape("frame_shape", -1, *_sizes(first.graph.input[0])),
            _shape("clip_shape", -1, *_sizes(second.graph.input[0])),
        ],
    )
    _rename(graph, {tensor.name: tensor.name.removeprefix("classifier/") for tensor in _outer(second)})
    made = helper.make_model(
        graph,
        opset_imports=_opsets(parts),
        ir_version=max(part.ir_version for part in parts),
        producer_name="edgeclf",
    )
    helper.set_model_props(made, _properties(parts))
    checker.check_model(made, full_check=True)
    written: bytes = made.SerializeToString(deterministic=True)
    return written


def _entry_nodes(extractor: Any) -> list[Any]:
    """Cast, then fold: TensorRT takes uint8 at its inputs only and refuses to reshape it."""
    from onnx import TensorProto, helper

    frames = extractor.graph.input[0].name
    return [
        helper.make_node("Cast", ["frames"], ["pixels"], "pixels", to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["pixels", "frame_shape"], [frames], "fold_time"),
    ]


def _middle_nodes(extractor: Any, classifier: Any) -> list[Any]:
    from onnx import helper

    features, clips = extractor.graph.output[0].name, classifier.graph.input[0].name
    return [helper.make_node("Reshape", [features, "clip_shape"], [clips], "unfold_time")]


def _check_cast(extractor: Any) -> None:
    frames = extractor.graph.input[0].name
    takers = {node.op_type for node in extractor.graph.node if frames in node.input}
    if takers != {"Cast"}:
        raise ExportError(
            f"the extractor hands its uint8 frames to {', '.join(sorted(takers))}, it must cast them first",
            hint="export the bundle again",
        )


def _clip_input(extractor: Any, length: int) -> Any:
    from onnx import helper

    frames = extractor.graph.input[0]
    kind = frames.type.tensor_type.elem_type
    return helper.make_tensor_value_info("frames", kind, ["N", length, *_sizes(frames)])


def _sizes(tensor: Any) -> list[int]:
    """Of all but the batch."""
    return [dim.dim_value for dim in tensor.type.tensor_type.shape.dim][1:]


def _shape(name: str, *sizes: int) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.array(sizes, np.int64), name)


def _outer(classifier: Any) -> list[Any]:
    """The tensors that stay inputs and outputs."""
    return [*classifier.graph.input[1:], *classifier.graph.output]


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    for tensor in (*graph.input, *graph.output):
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(name, name) for name in tensors]


def _opsets(parts: Sequence[Any]) -> list[Any]:
    versions: dict[str, int] = {}
    for part in parts:
        for opset in part.opset_import:
            if versions.setdefault(opset.domain, opset.version) != opset.version:
                raise ExportError("extractor and classifier are of different opsets", hint="export the bundle again")
    from onnx import helper

    return [helper.make_opsetid(domain, version) for domain, version in versions.items()]


def _properties(parts: Sequence[Any]) -> dict[str, str]:
    """What both graphs say of themselves."""
    said = {entry.key: entry.value for part in parts for entry in part.metadata_props}
    return {**said, "edgeclf.role": "clip"}


# -- config.pbtxt -----------------------------------------------------------------------------------------------------


def config_text(model: _ServedModel, serving: Serving) -> str:
    """The text of a model's `config.pbtxt`."""
    outputs = [_tensor(spec, f'label_filename: "{LABELS_NAME}"' if model.labels else "") for spec in model.outputs]
    lines = [
        _MADE_BY,
        f'name: "{model.name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {model.max_batch}",
        f"input [\n{_joined(_tensor(spec) for spec in model.inputs)}\n]",
        f"output [\n{_joined(outputs)}\n]",
        f"dynamic_batching {{ max_queue_delay_microseconds: {serving.max_delay_microseconds} }}",
        f"instance_group [ {{ count: {serving.instances} kind: KIND_{serving.kind.upper()} }} ]",
        _warm_up(model),
        *([_accelerator(serving.tensorrt)] if model.accelerated and serving.tensorrt else []),
    ]
    return "\n".join(lines) + "\n"


def _joined(blocks: Iterator[str] | Sequence[str]) -> str:
    return ",\n".join(blocks)


def _tensor(spec: TensorSpec, more: str = "") -> str:
    """An input or output, its dims without the batch. One value for each item of a batch is [1] to clients."""
    dims = spec.shape[1:]
    parts = [
        f'name: "{spec.name}"',
        f"data_type: {_TYPES[spec.dtype]}",
        f"dims: {_dims(spec)}",
        *(["reshape { shape: [ ] }"] if not dims else []),
        *([more] if more else []),
    ]
    return "  { " + " ".join(parts) + " }"


def _dims(spec: TensorSpec) -> str:
    return f"[ {', '.join(map(str, spec.shape[1:] or (1,)))} ]"


def _warm_up(model: _ServedModel) -> str:
    """A full batch before the model is said to be ready: its first run takes memory and may build engines."""
    inputs = [
        f'    inputs {{ key: "{spec.name}" value {{ data_type: {_TYPES[spec.dtype]} dims: {_dims(spec)} '
        + (f'input_data_file: "{spec.name}"' if spec.name in model.warm_up else "zero_data: true")
        + " } }"
        for spec in model.inputs
    ]
    body = "\n".join([f'    name: "full batch" batch_size: {model.max_batch}', *inputs])
    return f"model_warmup [\n  {{\n{body}\n  }}\n]"


def _accelerator(mode: Accelerator) -> str:
    values = {"precision_mode": mode, "trt_engine_cache_enable": "true", "trt_engine_cache_path": _CACHE}
    parameters = "\n".join(f'      parameters {{ key: "{key}" value: "{value}" }}' for key, value in values.items())
    return (
        "optimization { execution_accelerators {\n"
        f'  gpu_execution_accelerator : [ {{\n      name: "tensorrt"\n{parameters}\n  }} ]\n'
        "} }"
    )


# -- folders ----------------------------------------------------------------------------------------------------------


def _check_place(folder: Path, name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII):
        raise ExportError(f"{name!r} cannot be the name of a model in Triton", hint="use letters, digits, - and _")
    path = folder / name
    if path.exists() and not _is_ours(path / CONFIG_NAME):
        raise BundleError(f"{path} is there and was not written by edgeclf", hint="choose another folder")


def _is_ours(config: Path) -> bool:
    try:
        return config.read_text(encoding="utf-8").startswith(_MADE_BY)
    except (OSError, ValueError):
        return False


def _write(path: Path, model: _ServedModel, serving: Serving) -> None:
    (path / "1").mkdir(parents=True)
    (path / "1" / GRAPH_NAME).write_bytes(model.graph)
    (path / CONFIG_NAME).write_text(config_text(model, serving), encoding="utf-8")
    if model.labels:
        (path / LABELS_NAME).write_text("\n".join(model.labels) + "\n", encoding="utf-8")
    for name, values in model.warm_up.items():
        (path / "warmup").mkdir(exist_ok=True)
        (path / "warmup" / name).write_bytes(values)


def _put_in_place(path: Path, target: Path) -> Path:
    if target.exists():
        shutil.rmtree(target)
    return path.rename(target)
