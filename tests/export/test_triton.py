"""Triton model repositories: Triton's own definition reads the configurations, and the graphs give the same scores."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclf.bundle import ModelBundle, open_bundle
from edgeclf.errors import BundleError, ExportError
from edgeclf.export.bundling import export_bundle
from edgeclf.export.triton import CONFIG_NAME, GRAPH_NAME, LABELS_NAME, Serving, clip_graph, write_model_repository
from edgeclf.runtime.model import open_model
from edgeclf.runtime.session import open_session
from edgeclf.theatre import TheatreSource, single_action
from tests.golden.bundles.make_examples import example_of, seal
from tests.support import keras_models
from tests.support.videos import write_video

DOCS = Path(__file__).parents[2] / "docs" / "triton.md"
NUMPY = {"TYPE_UINT8": "uint8", "TYPE_INT32": "int32", "TYPE_FP32": "float32"}
ONNX = {"tensor(uint8)": "uint8", "tensor(int32)": "int32", "tensor(float)": "float32"}


@pytest.fixture(autouse=True)
def onnx() -> Any:
    return pytest.importorskip("onnx", reason="onnx is missing: pip install 'edgeclf[export]'")


@pytest.fixture
def bundle(tmp_path: Path) -> ModelBundle:
    """The example: plain colours, masked padding."""
    return open_bundle(shutil.copytree(example_of(1), tmp_path / "colors.edgeclf"))


def config_of(folder: Path) -> Any:
    """The configuration as Triton's own definition reads it; a misspelt field is an error."""
    reason = "tritonclient is missing: pip install 'edgeclf[dev]'"
    definition = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason=reason)
    text_format = pytest.importorskip("google.protobuf.text_format", reason="protobuf is missing")
    return text_format.Parse((folder / CONFIG_NAME).read_text(encoding="utf-8"), definition.ModelConfig())


def type_of(tensor: Any) -> str:
    return str(tensor.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[tensor.data_type].name)


def session_of(folder: Path) -> Any:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is missing: pip install 'edgeclf[cpu]'")
    return ort.InferenceSession(str(folder / "1" / GRAPH_NAME), providers=["CPUExecutionProvider"])


def shape_in_graph(tensor: Any) -> list[int]:
    """What the server hands to the backend, without the batch."""
    return list(tensor.reshape.shape) if tensor.HasField("reshape") else list(tensor.dims)


def feeds_of(bundle: ModelBundle, lengths: list[int]) -> dict[str, Any]:
    entry = bundle.classifier
    shape = (len(lengths), entry.clip.length, *bundle.extractor.preprocess.input_shape)
    frames = np.random.default_rng(len(lengths)).integers(0, 256, shape, np.uint8)
    masked = {"length": np.array(lengths, np.int32)} if entry.clip.padding == "mask" else {}
    return {"frames": frames, **masked}


def scores_of_two_sessions(bundle: ModelBundle, feeds: dict[str, Any]) -> Any:
    model = open_model(bundle, "cpu")
    features = np.stack([model.extract(clip) for clip in feeds["frames"]])
    full = np.full(len(features), bundle.classifier.clip.length, np.int32)
    return model.classify(features, feeds.get("length", full))


# -- configurations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("serving", [Serving(), Serving(max_batch=3, instances=2, kind="gpu", tensorrt="FP16")])
@pytest.mark.parametrize("name", ["theatre", "ucf101_8", "colors"])
def test_configurations_are_those_of_their_graphs(
    bundle: ModelBundle, tmp_path: Path, name: str, serving: Serving
) -> None:
    opened = bundle if name == "colors" else open_bundle(name)
    folders = write_model_repository(opened, tmp_path / "repository", serving=serving)
    assert len(folders) == 1 + 2 * len(opened.manifest.classifiers)
    for folder in folders:
        config, session = config_of(folder), session_of(folder)
        assert (config.name, config.backend) == (folder.name, "onnxruntime")
        assert config.max_batch_size == (64 if folder.name.endswith("_extractor") else serving.max_batch)
        for tensors, nodes in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
            assert [tensor.name for tensor in tensors] == [node.name for node in nodes]
            assert [NUMPY[type_of(tensor)] for tensor in tensors] == [ONNX[node.type] for node in nodes]
            for tensor, node in zip(tensors, nodes, strict=True):
                assert isinstance(node.shape[0], str)  # the batch
                assert shape_in_graph(tensor) == node.shape[1:]
                assert min(tensor.dims) >= 1  # Triton knows no empty shape


def test_labels_are_in_order_beside_every_configuration_that_names_them(tmp_path: Path) -> None:
    for folder in write_model_repository(open_bundle("ucf101_8"), tmp_path):
        (output,) = config_of(folder).output
        if not output.label_filename:
            assert output.name == "features"
            continue
        name = folder.name.rpartition("_")[0]
        labels = (folder / output.label_filename).read_text(encoding="utf-8").splitlines()
        assert tuple(labels) == open_bundle(name).classifier.labels


def test_warm_up_is_a_full_batch_of_inputs_that_are_there(bundle: ModelBundle, tmp_path: Path) -> None:
    for folder in write_model_repository(bundle, tmp_path / "repository", serving=Serving(max_batch=5)):
        config = config_of(folder)
        (sample,) = config.model_warmup
        assert sample.batch_size == config.max_batch_size
        assert set(sample.inputs) == {tensor.name for tensor in config.input}
        for tensor in config.input:
            given = sample.inputs[tensor.name]
            assert (given.data_type, list(given.dims)) == (tensor.data_type, list(tensor.dims))
            if tensor.name == "length":
                values = np.frombuffer((folder / "warmup" / given.input_data_file).read_bytes(), "<i4")
                assert values.tolist() == [bundle.classifier.clip.length] * 5
            else:
                assert given.zero_data


def test_tensorrt_takes_extractor_and_clips_but_not_the_classifier(bundle: ModelBundle, tmp_path: Path) -> None:
    serving = Serving(instances=2, kind="gpu", tensorrt="FP16", max_delay_microseconds=500)
    for folder in write_model_repository(bundle, tmp_path / "repository", serving=serving):
        config = config_of(folder)
        found = [one.name for one in config.optimization.execution_accelerators.gpu_execution_accelerator]
        assert found == ([] if folder.name.endswith("_classifier") else ["tensorrt"])
        if found:
            parameters = config.optimization.execution_accelerators.gpu_execution_accelerator[0].parameters
            assert parameters["precision_mode"] == "FP16"
        assert config.dynamic_batching.max_queue_delay_microseconds == 500
        (group,) = config.instance_group
        assert (group.count, group.Kind.Name(group.kind)) == (2, "KIND_GPU")


@pytest.mark.parametrize("kind", ["auto", "cpu", "gpu"])
def test_kind_of_instances_is_one_that_triton_knows(bundle: ModelBundle, tmp_path: Path, kind: Any) -> None:
    folders = write_model_repository(bundle, tmp_path / "repository", serving=Serving(kind=kind))
    for folder in folders:
        (group,) = config_of(folder).instance_group
        assert group.Kind.Name(group.kind) == f"KIND_{kind.upper()}"


def test_tensorrt_on_the_cpu_and_empty_batches_are_refused() -> None:
    with pytest.raises(ExportError, match="TensorRT runs on a GPU"):
        Serving(kind="cpu", tensorrt="FP32")
    with pytest.raises(ExportError, match="below 1"):
        Serving(max_batch=0)


# -- the graph of whole clips -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [[20], [1], [7, 20, 1], [20, 19, 2, 11, 5]], ids=str)
def test_whole_clip_gives_the_scores_of_two_sessions(tmp_path: Path, lengths: list[int]) -> None:
    bundle = open_bundle("theatre")
    write_model_repository(bundle, tmp_path)
    feeds = feeds_of(bundle, lengths)
    (scores,) = session_of(tmp_path / "theatre_clip").run(None, feeds)
    np.testing.assert_allclose(scores, scores_of_two_sessions(bundle, feeds), rtol=0, atol=1e-6)


def test_frames_behind_the_length_do_not_matter(tmp_path: Path) -> None:
    bundle = open_bundle("theatre")
    write_model_repository(bundle, tmp_path)
    session = session_of(tmp_path / "theatre_clip")
    feeds = feeds_of(bundle, [7, 12])
    (before,) = session.run(None, feeds)
    feeds["frames"][0, 7:], feeds["frames"][1, 12:] = 0, 255
    (after,) = session.run(None, feeds)
    np.testing.assert_array_equal(before, after)


def test_halves_give_what_the_whole_gives(tmp_path: Path) -> None:
    bundle = open_bundle("theatre")
    write_model_repository(bundle, tmp_path)
    feeds = feeds_of(bundle, [20, 9])
    (features,) = session_of(tmp_path / "theatre_extractor").run(
        None, {"frames": feeds["frames"].reshape(40, 64, 80, 3)}
    )
    halves = {"features": features.reshape(2, 20, -1), "length": feeds["length"]}
    (scores,) = session_of(tmp_path / "theatre_classifier").run(None, halves)
    (whole,) = session_of(tmp_path / "theatre_clip").run(None, feeds)
    np.testing.assert_allclose(scores, whole, rtol=0, atol=1e-6)


def test_stacked_pictures_of_two_classifiers(tmp_path: Path) -> None:
    write_model_repository(open_bundle("ucf101_8"), tmp_path)
    for name in ("ucf101_8", "fight"):
        bundle = open_bundle(name)
        feeds = feeds_of(bundle, [23])
        (scores,) = session_of(tmp_path / f"{name}_clip").run(None, feeds)
        np.testing.assert_allclose(scores, scores_of_two_sessions(bundle, feeds), rtol=0, atol=1e-5)


def test_graph_says_what_it_is_and_is_always_the_same(tmp_path: Path, onnx: Any) -> None:
    bundle = open_bundle("theatre")
    extractor, classifier = (bundle.graph(entry).read_bytes() for entry in (bundle.extractor, bundle.classifier))
    made = clip_graph(extractor, classifier, bundle.classifier)
    assert made == clip_graph(extractor, classifier, bundle.classifier)
    model = onnx.load_from_string(made)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert said["edgeclf.role"] == "clip"
    assert json.loads(said["edgeclf.labels"]) == list(bundle.classifier.labels)
    assert json.loads(said["edgeclf.clip"])["length"] == 20
    assert json.loads(said["edgeclf.preprocess"])["size"] == [64, 80]
    assert [node.op_type for node in model.graph.node if "frames" in node.input] == ["Cast"]
    assert {op.domain: op.version for op in model.opset_import} == {"": 17}


def test_extractor_that_does_not_cast_first_is_refused(bundle: ModelBundle, onnx: Any, tmp_path: Path) -> None:
    model = onnx.load(bundle.graph(bundle.extractor))
    model.graph.node[0].op_type = "Identity"
    (bundle.path / "extractor.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="hands its uint8 frames to Identity"):
        write_model_repository(open_bundle(seal(bundle.path)), tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_graphs_of_different_opsets_are_refused(bundle: ModelBundle, onnx: Any, tmp_path: Path) -> None:
    model = onnx.load(bundle.graph(bundle.extractor))
    model.opset_import[0].version = 16
    (bundle.path / "extractor.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="different opsets"):
        write_model_repository(open_bundle(seal(bundle.path)), tmp_path / "repository")


def test_other_precision_is_served_where_it_is_named(bundle: ModelBundle, tmp_path: Path) -> None:
    graph = (bundle.path / "extractor.onnx").read_bytes().replace(np.float32(255).tobytes(), np.float32(250).tobytes())
    (bundle.path / "rough.onnx").write_bytes(graph)
    path = seal(bundle.path, lambda m: m["extractor"]["precisions"].update(int8="rough.onnx"))
    write_model_repository(open_bundle(path), tmp_path / "repository", precision="int8")
    assert (tmp_path / "repository" / "colors_extractor" / "1" / GRAPH_NAME).read_bytes() == graph
    with pytest.raises(BundleError, match="holds no fp16 graph"):
        write_model_repository(open_bundle(path), tmp_path / "repository", precision="fp16")


def test_nvidia_s_parser_and_builder_take_whole_clips(tmp_path: Path) -> None:
    reason = "the TensorRT-RTX bindings are missing: pip install 'edgeclf[dev]'"
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason=reason, exc_type=ImportError)
    write_model_repository(open_bundle("theatre"), tmp_path)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(str(tmp_path / "theatre_clip" / "1" / GRAPH_NAME))
    assert parsed, [parser.get_error(n).desc() for n in range(parser.num_errors)]
    profile = builder.create_optimization_profile()
    for tensor in (network.get_input(n) for n in range(network.num_inputs)):
        sizes = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, (1, *sizes), (2, *sizes), (4, *sizes))
    config = builder.create_builder_config()
    assert config.add_optimization_profile(profile) == 0
    assert builder.build_serialized_network(network, config).nbytes > 0


# -- folders ----------------------------------------------------------------------------------------------------------


def test_written_again_it_is_replaced_and_other_models_stay(bundle: ModelBundle, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    (folder / "mine" / "1").mkdir(parents=True)
    first = write_model_repository(bundle, folder)
    (first[0] / "stale").write_bytes(b"")
    assert write_model_repository(bundle, folder) == first
    assert not (first[0] / "stale").exists()
    names = {"mine", "colors_extractor", "colors_clip", "colors_classifier"}
    assert {path.name for path in folder.iterdir()} == names


def test_folder_of_somebody_else_is_never_replaced(bundle: ModelBundle, tmp_path: Path) -> None:
    taken = tmp_path / "repository" / "colors_clip"
    taken.mkdir(parents=True)
    (taken / CONFIG_NAME).write_text('name: "colors_clip"\n', encoding="utf-8")
    with pytest.raises(BundleError, match="was not written by edgeclf"):
        write_model_repository(bundle, tmp_path / "repository")
    assert [path.name for path in (tmp_path / "repository").iterdir()] == ["colors_clip"]


@pytest.mark.parametrize("name", ["two words", "a/b", 'a"b', "-a"])
def test_name_that_triton_cannot_have_is_refused(bundle: ModelBundle, tmp_path: Path, name: str) -> None:
    renamed = replace(bundle, manifest=replace(bundle.manifest, name=name))
    with pytest.raises(ExportError, match="cannot be the name of a model"):
        write_model_repository(renamed, tmp_path / "repository")


# -- models of Keras --------------------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[Path], Path]] = {
    "motion": keras_models.write_motion_model,
    "network": keras_models.write_network_model,
    "uniform": keras_models.write_uniform_model,
    "vote": keras_models.write_vote_model,
}


@pytest.mark.keras
@pytest.mark.usefixtures("converters")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_is_served(kind: str, tmp_path: Path) -> None:
    bundle = export_bundle(KINDS[kind](tmp_path / kind), tmp_path / f"{kind}.edgeclf")
    folders = write_model_repository(bundle, tmp_path / "repository")
    assert len(folders) == (3 if bundle.extractor.has_graph else 1)
    for folder in folders:
        assert [tensor.name for tensor in config_of(folder).input] == [n.name for n in session_of(folder).get_inputs()]
    feeds = feeds_of(bundle, [bundle.classifier.clip.length, 1, 1])
    (scores,) = session_of(tmp_path / "repository" / f"{kind}_clip").run(None, feeds)
    np.testing.assert_allclose(scores, scores_of_two_sessions(bundle, feeds), rtol=0, atol=1e-5)


# -- the client of the docs -------------------------------------------------------------------------------------------


class StandIn:
    """In the server's place: takes real requests, and runs the repository's graphs as their configurations say."""

    repository: Path

    def __init__(self, url: str) -> None:
        assert url == "localhost:8001"

    def infer(self, name: str, inputs: list[Any]) -> StandIn:
        folder = self.repository / name
        config = config_of(folder)
        feeds = {}
        for given, tensor in zip(inputs, config.input, strict=True):
            assert (given.name(), given.datatype()) == (tensor.name, type_of(tensor).removeprefix("TYPE_"))
            batch, *sizes = given.shape()
            assert batch <= config.max_batch_size
            assert sizes == list(tensor.dims)
            raw = np.frombuffer(given._get_content(), NUMPY[type_of(tensor)])
            feeds[given.name()] = raw.reshape(batch, *shape_in_graph(tensor))
        names = [tensor.name for tensor in config.output]
        self.found = dict(zip(names, session_of(folder).run(names, feeds), strict=True))
        return self

    def as_numpy(self, name: str) -> Any:
        return self.found[name]


def test_client_of_the_docs_gets_the_label_of_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient is missing: pip install 'edgeclf[dev]'")
    scene = TheatreSource(single_action("walk", 3), name="walk")
    video = write_video(tmp_path / "walk.mp4", [frame.image for frame in scene.frames()], fps=scene.scene.fps)
    bundle = open_bundle("theatre")
    write_model_repository(bundle, tmp_path / "repository")
    monkeypatch.setattr(StandIn, "repository", tmp_path / "repository", raising=False)
    monkeypatch.setattr(grpc, "InferenceServerClient", StandIn)
    monkeypatch.setattr("sys.argv", ["client.py", str(video)])
    (client,) = re.findall(r"^```python\n(.*?)^```$", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    exec(compile(client, "docs/triton.md", "exec"), {})
    first = capsys.readouterr().out.splitlines()[0]
    assert re.fullmatch(r"[01]\.\d{3}  walk", first)


def test_served_extractor_is_the_file_of_the_bundle(bundle: ModelBundle, tmp_path: Path) -> None:
    write_model_repository(bundle, tmp_path / "repository")
    served = tmp_path / "repository" / "colors_extractor"
    assert (served / "1" / GRAPH_NAME).read_bytes() == bundle.graph(bundle.extractor).read_bytes()
    assert not (served / LABELS_NAME).exists()
    session = open_session(served / "1" / GRAPH_NAME, "cpu")
    assert session.inputs == bundle.extractor.inputs
    session.close()
