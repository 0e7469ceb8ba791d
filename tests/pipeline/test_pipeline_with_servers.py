"""What `bundle --with deepstream` and `--with triton` write, compared with the keys of their releases."""

from __future__ import annotations

import ast
import configparser
import importlib.util
import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_nets import ALIKE, DIGITS, classifier, detector, network, segmenter
from bundle_devices import ORIN_NANO

from msn_deploy.core.artifacts import unpack
from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import info_from_json
from msn_deploy.engine import BuildOptions
from msn_deploy.engine.tensors import parse_shapes
from msn_deploy.model.opened import open_model
from msn_deploy.pipeline.bundle import EXTRAS, bundle, find_extras
from msn_deploy.pipeline.calibrate import calibrate
from msn_deploy.pipeline.with_cpp import SOURCES
from msn_deploy.pipeline.with_deepstream import deepstream_files, nvinfer_config
from msn_deploy.pipeline.with_triton import model_config, triton_files

# Keys of the group [property] that are written, by the release of DeepStream that they are in. Of 5.0 to 6.3:
# gstnvinfer_property_parser.h of the SDK (a copy: github.com/hiennguyen9874/deepstream-sources, a branch for each). The
# pages on later releases could not be read in full; DeepStream-Yolo gives the keys of its files to 6.0 up to 7.1 alike.
ALWAYS = {
    "gpu-id", "gie-unique-id", "process-mode", "model-engine-file", "batch-size", "network-mode", "net-scale-factor",
    "offsets", "model-color-format", "maintain-aspect-ratio", "scaling-filter", "labelfile-path", "network-type",
    "classifier-threshold", "segmentation-threshold", "output-tensor-meta",
}  # fmt: skip
SINCE_6_0 = {"network-input-order", "symmetric-padding", "segmentation-output-order"}
NVINFER = {"5.0": ALWAYS, **{release: ALWAYS | SINCE_6_0 for release in ("6.0", "6.1", "6.2", "6.3")}}

# Fields of protobuf/model_config.proto (github.com/triton-inference-server/common), the same in the branches r21.08,
# r22.12, r24.12 and r26.07.
TRITON = {
    "": {"name", "platform", "max_batch_size", "input", "output", "instance_group", "dynamic_batching", "model_warmup",
         "parameters"},
    "input": {"name", "data_type", "dims", "reshape"},
    "output": {"name", "data_type", "dims", "reshape", "label_filename"},
    "instance_group": {"count", "kind"},
    "dynamic_batching": {"max_queue_delay_microseconds"},
    "model_warmup": {"name", "batch_size", "inputs"},
    "inputs": {"key", "value"},
    "value": {"data_type", "dims", "zero_data", "string_value"},
    "parameters": {"key", "value"},
    "reshape": set(),
}  # fmt: skip


def opened(path: Path):
    return open_model(path, step="test")


def properties(path: Path) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None, delimiters="=")
    parser.read_string(nvinfer_config(opened(path)))
    assert parser.sections() == ["property"]
    return dict(parser["property"])


@pytest.mark.parametrize("kind", [classifier, detector, segmenter])
@pytest.mark.parametrize("softmax", [False, True])
def test_all_keys_of_nvinfer_are_in_every_release_since_6_0(tmp_path, kind, softmax):
    path = kind(tmp_path / "net.onnx", softmax=softmax, **(ALIKE if kind is not classifier else {}), **fit(kind))
    keys = set(properties(path))
    for release in ("6.0", "6.1", "6.2", "6.3"):
        assert keys <= NVINFER[release]
    assert not keys <= NVINFER["5.0"]


def fit(kind):
    return {"fit": "resize", "short_px": 0} if kind is segmenter else {}


def test_nvinfer_makes_the_numbers_that_the_network_wants(tmp_path):
    path = network(tmp_path / "net.onnx", "classification", fit="letterbox", align="corner", colour="bgr", **ALIKE)
    said = properties(path)
    factor, offsets = float(said["net-scale-factor"]), [float(each) for each in said["offsets"].split(";")]
    for mean, std, offset in zip(ALIKE["mean"], ALIKE["std"], offsets, strict=True):
        for value in (0, 17, 255):
            assert factor * (value - offset) == pytest.approx((value / 255 - mean) / std, abs=1e-6)
    assert said["model-color-format"] == "1"
    assert (said["maintain-aspect-ratio"], said["symmetric-padding"]) == ("1", "0")
    assert (said["network-mode"], said["network-input-order"], said["batch-size"]) == ("0", "0", "1")
    assert said["model-engine-file"] == "../engines/net.engine"


def test_nvinfer_reads_probabilities_by_itself_and_nothing_else(tmp_path):
    sharp = classifier(tmp_path / "a.onnx", softmax=True)
    assert (properties(sharp)["network-type"], properties(sharp)["classifier-threshold"]) == ("1", "0")
    assert properties(classifier(tmp_path / "b.onnx"))["network-type"] == "100"
    masks = segmenter(tmp_path / "c.onnx", softmax=True, **ALIKE, **fit(segmenter))
    assert (properties(masks)["network-type"], properties(masks)["segmentation-output-order"]) == ("2", "0")
    boxes = detector(tmp_path / "d.onnx", **ALIKE)
    assert (properties(boxes)["network-type"], properties(boxes)["output-tensor-meta"]) == ("100", "1")
    assert "# The network was made for images on grey 114" in nvinfer_config(opened(boxes))


def test_labels_are_in_the_form_of_their_parser(tmp_path):
    files = deepstream_files(
        [opened(classifier(tmp_path / "a.onnx")), opened(detector(tmp_path / "b.onnx", **ALIKE))], BuildOptions()
    )
    assert files["deepstream/a.labels.txt"] == (";".join(DIGITS) + "\n").encode()
    assert files["deepstream/b.labels.txt"] == "".join(f"{each}\n" for each in DIGITS).encode()
    assert b"deepstream/a.txt" in files["deepstream/README.txt"]


@pytest.mark.parametrize(
    ("prep", "words"),
    [
        ({"std": (0.2, 0.3, 0.4)}, "one scale factor"),
        ({"fit": "crop"}, "cropped"),
        ({"fit": "pad"}, "not scaled"),
        ({"colour": "grey"}, "grey in three"),
        ({"classes": ("a;b", "c")}, "a;b"),
        ({"mean": ()}, "--preprocess"),
    ],
)
def test_what_nvinfer_cannot_do_is_refused(tmp_path, prep, words):
    given = {} if prep.get("mean") == () else {**ALIKE, **prep}
    path = network(tmp_path / "net.onnx", "classification", **given)
    with pytest.raises(InputError, match=words):
        deepstream_files([opened(path)], BuildOptions())


def test_nvinfer_has_no_mode_for_fp8(tmp_path):
    path = network(tmp_path / "net.onnx", "segmentation", **ALIKE)
    shape = opened(path).inputs[0].shape
    np.save(tmp_path / "feeds.npy", np.random.default_rng(0).random((16, *shape[1:]), dtype=np.float32))
    made = calibrate(path, data=str(tmp_path / "feeds.npy"), precision="fp8")
    with pytest.raises(InputError, match="FP8"):
        deepstream_files([opened(made.path)], BuildOptions())


def blocks(text: str) -> list[tuple[str, list[str]]]:
    """Return (name of a block, the fields in it) of protobuf's text form, outermost first, then in order."""
    found: list[tuple[str, list[str]]] = [("", [])]
    inside = [found[0]]
    for word in re.findall(r'"(?:[^"\\]|\\.)*"|(\w+)\s*(?=[:{])|([{}])', re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)):
        name, brace = word
        if name:
            inside[-1][1].append(name)
            last = name
        elif brace == "{":
            found.append((last, []))
            inside.append(found[-1])
        elif brace == "}":
            inside.pop()
    assert inside == [found[0]]
    return found


@pytest.mark.parametrize("kind", [classifier, detector, segmenter])
@pytest.mark.parametrize("batch", [1, 4, "N"])
def test_all_fields_of_triton_are_in_every_release(tmp_path, kind, batch):
    text = model_config(opened(kind(tmp_path / "net.int8.onnx", batch=batch)), BuildOptions())
    for name, used in blocks(text):
        assert set(used) <= TRITON[name], name


@pytest.fixture(scope="module")
def schema() -> Any:
    """Return protobuf's class of ModelConfig, from the descriptor that tritonclient holds: any protobuf takes that."""
    found = importlib.util.find_spec("tritonclient")
    if found is None or not found.submodule_search_locations:
        pytest.skip("tritonclient is not here; `make setup` installs it")
    text = (Path(found.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py").read_text(encoding="utf-8")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    call = next(node for node in ast.walk(ast.parse(text)) if getattr(node, "attr", "") == "AddSerializedFile")
    literal = next(
        node.args[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == call.attr
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(descriptor_pb2.FileDescriptorProto.FromString(ast.literal_eval(literal)))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def parsed(schema: Any, path: Path, options: BuildOptions | None = None) -> Any:
    from google.protobuf import text_format

    return text_format.Parse(model_config(opened(path), options or BuildOptions()), schema())


@pytest.mark.parametrize("kind", [classifier, detector, segmenter])
def test_the_text_parses_and_says_what_the_network_is(schema, tmp_path, kind):
    path = kind(tmp_path / "net.int8.onnx", batch="N")
    model, config = opened(path), parsed(schema, path)
    types = schema.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_name
    assert (config.name, config.platform, config.max_batch_size) == ("net.int8", "tensorrt_plan", 8)
    for ours, theirs in ((model.inputs, config.input), (model.outputs, config.output)):
        assert [(each.name, tuple(each.dims)) for each in theirs] == [(each.name, each.shape[1:]) for each in ours]
        assert {each.data_type for each in theirs} == {types["TYPE_FP32"].number}
    assert config.dynamic_batching.max_queue_delay_microseconds > 0
    (warmup,) = config.model_warmup
    assert (warmup.batch_size, dict(warmup.inputs)["x"].zero_data) == (8, True)
    assert tuple(warmup.inputs["x"].dims) == model.inputs[0].shape[1:]
    assert len(config.instance_group) == 1
    assert info_from_json(config.parameters["msn_deploy"].string_value, source="it") == model.info
    assert config.output[0].label_filename == ("labels.txt" if kind is classifier else "")


def test_a_fixed_batch_is_part_of_the_shape(schema, tmp_path):
    config = parsed(schema, classifier(tmp_path / "net.onnx", batch=4))
    assert (config.max_batch_size, tuple(config.input[0].dims)) == (0, (4, 1, 32, 32))
    assert not config.HasField("dynamic_batching")
    assert config.model_warmup[0].batch_size == 1


def test_the_largest_batch_is_that_of_the_engine(schema, tmp_path):
    path = classifier(tmp_path / "net.onnx", batch="N")
    shapes = (parse_shapes("x=1x1x32x32:2x1x32x32:3x1x32x32"),)
    assert parsed(schema, path, BuildOptions(shapes=shapes)).max_batch_size == 3
    alone = parsed(schema, path, BuildOptions(batch=1))
    assert (alone.max_batch_size, alone.HasField("dynamic_batching")) == (1, False)


def test_odd_names_are_escaped(schema, tmp_path):
    names = ('"quoted" \\ back', "Größe 日本", "tab\tand\nline")
    path = classifier(tmp_path / "net.onnx", classes=names)
    config = parsed(schema, path)
    assert info_from_json(config.parameters["msn_deploy"].string_value, source="it").classes == names


def test_an_unknown_key_would_be_found(schema, tmp_path):
    from google.protobuf import text_format

    text = model_config(opened(classifier(tmp_path / "net.onnx")), BuildOptions())
    with pytest.raises(text_format.ParseError, match="max_batch"):
        text_format.Parse(text.replace("max_batch_size", "max_batch"), schema())


def test_the_repository_holds_the_engines_that_are_built(tmp_path):
    if shutil.which("sh") is None:
        pytest.skip("sh is not here")
    run = tmp_path / "run"
    run.mkdir()
    for name in ("a.onnx", "b.fp16.onnx"):
        classifier(run / name)
    bundle(
        run,
        tmp_path / "b.tar",
        target=ORIN_NANO,
        with_wheels=False,
        extras=find_extras(["triton", "deepstream", "triton"]),
    )
    with tarfile.open(tmp_path / "b.tar") as archive:
        unpack(archive, tmp_path)
    (tmp_path / "b" / "engines").mkdir()
    script = ["sh", str(tmp_path / "b" / "triton" / "repository.sh"), str(tmp_path / "models")]
    assert subprocess.run(script, capture_output=True, check=False).returncode == 3
    (tmp_path / "b" / "engines" / "b.fp16.engine").write_bytes(b"plan")
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = [str(each.relative_to(tmp_path / "models")) for each in (tmp_path / "models").rglob("*") if each.is_file()]
    assert sorted(made) == ["b.fp16/1/model.plan", "b.fp16/config.pbtxt", "b.fp16/labels.txt"]
    assert "a has no engine" in done.stderr


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_is_packed_summed_and_named_in_the_readme(tmp_path, extra):
    run = tmp_path / "run"
    run.mkdir()
    classifier(run / "net.onnx")
    plain = bundle(run, tmp_path / "plain.tar", target=ORIN_NANO, with_wheels=False)
    made = bundle(run, tmp_path / "b.tar", target=ORIN_NANO, with_wheels=False, extras=(extra,))
    assert made.files > plain.files
    with tarfile.open(made.path) as archive:
        names = {each.name.partition("/")[2] for each in archive}
        sums = archive.extractfile("b/SHA256SUMS").read().decode()
        readme = archive.extractfile("b/README.txt").read().decode()
        manifest = json.loads(archive.extractfile("b/MANIFEST.json").read())
    own = {name for name in names if name.startswith(f"{extra}/")}
    assert len(own) >= 3
    assert own <= {line.split("  ", 1)[1] for line in sums.splitlines()}
    assert own <= {each["path"] for each in manifest["files"]}
    assert f"{extra}/" in readme or f"-S {extra}" in readme
    assert SOURCES.name == "cpp"


def test_an_unknown_extra_is_refused():
    with pytest.raises(InputError, match="triton"):
        find_extras(["tritan"])


def test_the_labels_lie_beside_the_configuration(tmp_path):
    files = triton_files([opened(classifier(tmp_path / "net.onnx"))], BuildOptions())
    assert files["triton/net/labels.txt"].decode().split() == list(DIGITS)
    assert set(files) == {"triton/repository.sh", "triton/net/config.pbtxt", "triton/net/labels.txt"}
