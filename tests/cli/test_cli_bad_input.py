"""What a user gets wrong: an exit code, at most three lines that say what and what next, no change on disk."""

import hashlib
import pickle
import shutil

import numpy as np
import onnx
import pytest
from bad_input_lines import LONG, TABLE
from cli_explained import assert_explained
from onnx import TensorProto, helper

from msn_deploy.core.home import builtin_folder
from msn_deploy.core.model_info import METADATA_KEY, ModelInfo, Preprocess, info_from_json


def _prepared(channels, size):
    numbers = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    prep = Preprocess(height_px=size, width_px=size, channels=channels, **numbers)
    return ModelInfo(net="custom", norm="custom", task="classification", preprocess=prep).to_json()


def _graph(path, shape, *, classes=10, info=None):
    """Write a small network for inputs of that shape."""
    gen = np.random.default_rng(0)
    weight = gen.standard_normal((classes, shape[1])).astype(np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape[0], classes])],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if info is not None:
        helper.set_model_props(model, {METADATA_KEY: info})
    onnx.save(model, path)


@pytest.fixture(scope="module")
def place(run_folder, tmp_path_factory):
    """A working folder with good files (m.*), and every kind of broken one."""
    place = tmp_path_factory.mktemp("place")
    for source, name in (
        ("cnn3_msn.safetensors", "m.safetensors"),
        ("cnn3_msn.onnx", "m.onnx"),
        ("cnn3_msn.int8.onnx", "m.int8.onnx"),
        ("cnn3_msn.int8.engine", "m.int8.engine"),
        ("cnn3_msn.int8.plan.json", "m.int8.plan.json"),
    ):
        shutil.copyfile(run_folder / source, place / name)
    shutil.copyfile(run_folder / "cnn3_msn.onnx.json", place / "m.onnx.json")
    for suffix in ("safetensors", "onnx"):
        whole = (place / f"m.{suffix}").read_bytes()
        (place / f"empty.{suffix}").touch()
        (place / f"short.{suffix}").write_bytes(whole[: len(whole) * 2 // 3])
        (place / f"stub.{suffix}").write_bytes(whole[:5])
        (place / f"text.{suffix}").write_text("this is no model\n")
    for protocol in (2, 3, 4, 5):
        weights = {"conv.weight": np.zeros((4, 4), np.float32)}
        (place / f"pickle{protocol}.safetensors").write_bytes(pickle.dumps(weights, protocol=protocol))
    info = next(each.value for each in onnx.load(place / "m.onnx").metadata_props if each.key == METADATA_KEY)
    _graph(place / "large.onnx", [1, 3, 32, 32], info=info)
    _graph(place / "five.onnx", [1, 5, 28, 28])
    _graph(place / "four.onnx", [1, 1, 28, 28], classes=4, info=_prepared(1, 28))
    _graph(place / "wide.onnx", [1, 3, 32, 32])
    (place / "nothing").mkdir()
    (place / "texts" / "train" / "a").mkdir(parents=True)
    (place / "texts" / "train" / "a" / "1.png").write_text("not an image\n")
    (place / "texts" / "test" / "a").mkdir(parents=True)
    (place / "texts" / "test" / "a" / "1.png").write_text("not an image\n")
    (place / "text.png").write_text("not an image\n")
    (place / "plain").write_text("a file where a folder is needed\n")
    typo = (builtin_folder("models") / "cnn3_msn.toml").read_text().replace("width =", "widht =")
    (place / "recipe.toml").write_text(typo)
    (place / "torn.toml").write_text('net = "cnn3\n')
    (place / "net.py").write_text("def number():\n    return 3\n\n\ndef fails():\n    raise KeyError('weights')\n")
    assert info_from_json(info, source="m.onnx").preprocess is not None
    return place


@pytest.mark.parametrize(("line", "code", "words"), TABLE, ids=[row[0].replace(LONG, "aaa...") for row in TABLE])
def test_bad_input_is_explained_and_changes_nothing(cli, place, snapshot, capfd, monkeypatch, line, code, words):
    monkeypatch.chdir(place)
    before = snapshot(place)
    outcome = cli(*line.split())
    assert outcome.code == code, outcome
    assert_explained(outcome.err, words)
    assert outcome.out == ""
    assert capfd.readouterr() == ("", "")  # nor does a library write past Python
    assert snapshot(place) == before


@pytest.mark.parametrize("line", ["eval short.onnx", "train cnn3_mns", "xyzzy", "bench m.onnx --seconds -1"])
def test_a_process_ends_the_same_way(start, place, line):
    code, words = next((code, words) for each, code, words in TABLE if each == line)
    process = start("-m", "msn_deploy", *line.split(), cwd=place)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    assert_explained(err, words)


def test_a_failed_export_keeps_the_old_file(cli, ok, place, run_folder, tmp_path):
    """Here the failure comes after the checks of the command line: the network does not agree with its source."""
    old = tmp_path / "old.onnx"
    shutil.copyfile(run_folder / "cnn3_bn.onnx", old)
    before = hashlib.sha256(old.read_bytes()).hexdigest()
    for source in ("short.safetensors", "text.onnx", "pickle4.safetensors"):
        assert cli("export", place / source, "--out", old).code == 2
    assert hashlib.sha256(old.read_bytes()).hexdigest() == before
    assert list(tmp_path.iterdir()) == [old]
