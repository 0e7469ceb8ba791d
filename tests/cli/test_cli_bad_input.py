"""What a user gets wrong: an exit code, at most three lines that say what and what next, no change on disk."""

import hashlib
import pickle
import shutil

import numpy as np
import onnx
import pytest
from cli_explained import assert_explained
from onnx import TensorProto, helper

from msn_deploy.core.model_info import METADATA_KEY, info_from_json
from msn_deploy.core.recipes import builtin_folder


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
    _graph(place / "four.onnx", [1, 1, 28, 28], classes=4)
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


LONG = "a" * 300  # no file system takes such a name
TRAIN = "train cnn3_msn --epochs 1 --limit-train 32"

# command line, exit code, words that the message must hold
TABLE = [
    # files that are not there
    ("export gone.safetensors --out x.onnx", 2, "gone.safetensors does not exist"),
    ("export gone.onnx --out x.onnx", 2, "gone.onnx does not exist"),
    ("export gone.py:net --input-shape 1,3,8,8 --out x.onnx", 2, "gone.py does not exist"),
    ("calibrate gone.onnx", 2, "gone.onnx does not exist"),
    ("build-engine gone.onnx", 2, "gone.onnx does not exist"),
    ("eval gone.safetensors", 2, "gone.safetensors does not exist"),
    ("eval gone.onnx", 2, "gone.onnx does not exist"),
    ("eval gone.engine", 2, "gone.engine does not exist"),
    ("bench gone.onnx", 2, "gone.onnx does not exist"),
    ("bench m.onnx --baseline gone.onnx", 2, "gone.onnx does not exist"),
    ("infer gone.onnx text.png", 2, "gone.onnx does not exist"),
    ("infer m.onnx gone.png", 2, "gone.png does not exist"),
    ("verify gone", 2, "gone is not a folder"),
    ("train gone.toml", 2, "unknown recipe 'gone.toml'"),
    (f"eval {LONG}.onnx", 2, "name too long"),
    (f"export {LONG}.safetensors", 2, "name too long"),
    (f"export {LONG}.py:net --input-shape 1,3,8,8", 2, "does not exist"),
    (f"train {LONG}", 2, "unknown recipe"),
    (f"verify {LONG}", 2, "is not a folder"),
    (f"eval m.onnx --data {LONG}", 2, "no data called"),
    (f"eval m.onnx --json {LONG}", 2, "cannot be written"),
    # empty, truncated and other files under a model's name
    ("export empty.safetensors --out x.onnx", 2, "empty.safetensors 0 bytes"),
    ("eval empty.safetensors", 2, "empty.safetensors 0 bytes"),
    ("export short.safetensors --out x.onnx", 2, "short.safetensors truncated"),
    ("eval short.safetensors", 2, "short.safetensors truncated"),
    ("eval stub.safetensors", 2, "stub.safetensors 5 bytes"),
    ("eval text.safetensors", 2, "text.safetensors"),
    *((f"eval pickle{protocol}.safetensors", 2, "pickle not opened") for protocol in (2, 3, 4, 5)),
    ("export pickle4.safetensors --out x.onnx", 2, "pickle not opened"),
    *((f"{command} empty.onnx", 2, "empty.onnx 0 bytes") for command in ("calibrate", "build-engine", "eval", "bench")),
    *((f"{command} short.onnx", 2, "short.onnx cut off") for command in ("calibrate", "build-engine", "eval", "bench")),
    ("export empty.onnx --out x.onnx", 2, "empty.onnx 0 bytes"),
    ("export short.onnx --out x.onnx", 2, "short.onnx cut off"),
    ("infer short.onnx text.png", 2, "short.onnx cut off"),
    ("eval stub.onnx", 2, "stub.onnx"),
    ("eval text.onnx", 2, "text.onnx"),
    ("build-engine m.safetensors", 2, "m.safetensors is not an ONNX model"),
    ("eval plain", 2, "plain .onnx"),
    ("eval nothing", 2, "nothing"),
    ("eval m.int8.engine", 3, "m.int8.engine GPU cnn3_msn.int8.onnx"),
    ("bench m.int8.engine", 3, "m.int8.engine GPU"),
    ("infer m.int8.engine text.png", 3, "m.int8.engine GPU"),
    ("bench m.onnx --energy", 3, "INA3221 --energy"),
    ("bench m.safetensors --layers", 2, "--layers m.safetensors torch Export"),
    # models and data that do not fit
    ("eval large.onnx", 2, "3x32x32 1x28x28"),
    ("eval five.onnx --data digits", 2, "five.onnx 1x5x28x28"),
    ("calibrate five.onnx --data digits", 2, "five.onnx 1x5x28x28"),
    ("infer five.onnx text.png", 2, "five.onnx 1x5x28x28"),
    ("eval four.onnx --data digits", 2, "four.onnx 10 classes"),
    ("eval four.onnx", 2, "what it was trained on --data"),
    ("calibrate four.onnx", 2, "what it was trained on --data"),
    ("bench m.onnx wide.onnx", 2, "some models say what data"),
    ("bench m.onnx --batch 4", 2, "fixed batch of 1 --batch dynamic"),
    ("calibrate m.int8.onnx", 2, "m.int8.onnx is INT8 already"),
    ("build-engine m.int8.onnx --precision fp16", 2, "m.int8.onnx INT8 FP32 file"),
    ("build-engine m.int8.onnx --precision fp32", 2, "m.int8.onnx is not FP32"),
    # data
    ("eval m.onnx --data nothing", 2, "nothing holds no test data"),
    ("calibrate m.onnx --data nothing", 2, "nothing holds no train data"),
    ("build-engine m.onnx --precision int8 --data nothing", 2, "nothing holds no train data"),
    (f"{TRAIN} --data nothing --out x", 2, "nothing holds no train data"),
    ("eval m.onnx --data texts", 2, "1.png is not a readable image"),
    ("calibrate m.onnx --data texts", 2, "texts has 1 classes trained on 10"),
    ("infer m.onnx text.png", 2, "text.png is not a readable image"),
    ("infer m.safetensors text.png", 2, "text.png is not a readable image"),
    ("infer m.onnx nothing", 2, "nothing holds no images"),
    ("infer m.onnx film.mp4", 3, "cv2 python3-opencv"),
    ("bundle nothing --target orin-nano --no-wheels", 2, "no ONNX file"),
    ("bundle gone --target orin-nano --no-wheels", 2, "gone is not a folder"),
    ("bundle nothing --target orin-nnao", 2, "no target 'orin-nnao' orin-nano"),
    ("bundle nothing --target rtx-sm86", 2, "rtx-sm86 is no Jetson"),
    ("bundle nothing --target orin-nano --out x.zip", 2, "x.zip has to end in .tar"),
    ("bundle nothing", 2, "Missing option"),
    ("doctor gone.onnx", 2, "gone.onnx does not exist"),
    ("eval m.onnx --data digit", 2, "no data called 'digit' did you mean 'digits'"),
    ("eval m.onnx --data plain", 2, "plain is a file"),
    ("calibrate m.onnx --samples 4", 2, "4 images are too few at least 16"),
    # names that do not exist
    ("trian cnn3_msn", 2, "no command 'trian' did you mean 'train'"),
    ("xyzzy", 2, "no command 'xyzzy' known are: demo, train"),
    ("train cnn3_mns", 2, "unknown recipe 'cnn3_mns' did you mean 'cnn3_msn'"),
    ("train recipe.toml", 2, "recipe.toml unknown key 'widht' 'width'"),
    ("train torn.toml", 2, "torn.toml is not valid TOML"),
    ("train cnn3_msn --norm msm", 2, "unknown norm 'msm' did you mean 'msn'"),
    ("train cnn3_msn --device tpu", 2, "unknown device 'tpu' auto, cpu, cuda"),
    ("build-engine m.onnx --target orin-nnao", 2, "no target 'orin-nnao' orin-nano"),
    ("build-engine m.onnx --precision int4", 2, "unknown precision 'int4' int8"),
    ("build-engine m.onnx --backend tensorflow", 2, "no backend 'tensorflow' tensorrt-rtx"),
    ("build-engine m.onnx --precision fp32 --backend tensorflow", 2, "no backend 'tensorflow'"),
    ("build-engine m.onnx --precision int8 --method median", 2, "unknown calibration method 'median' entropy"),
    ("build-engine m.onnx --precision int8 --target nano", 2, "Nano INT8"),
    ("build-engine m.onnx --precision fp16 --target orin-nano --dla 0", 2, "Orin Nano 8GB has no DLA orin-nx-16gb"),
    ("build-engine m.onnx --precision fp16 --target orin-nx --dla 2", 2, "has 2 DLA cores core 2"),
    ("build-engine m.onnx --precision int8 --target orin-nx --dla 0", 2, "Q/DQ DLA 10.7 --precision fp16 --calib"),
    (
        "build-engine m.onnx --precision fp32 --target orin-nx --dla 0 --max-dla-fallback 5",
        1,
        "100.0 % FP16 and INT8 only",
    ),
    ("build-engine m.onnx --precision fp32 --target orin-nano --hardware-compatible", 2, "JetPack Leave it away"),
    ("build-engine m.onnx --precision fp32 --version-compatible --target rtx-sm86", 2, "TensorRT-RTX Leave it away"),
    ("build-engine m.onnx --precision fp32 --replicates 2 --timing-cache t.cache", 2, "--replicates --timing-cache"),
    ("build-engine m.onnx --precision fp32 --min-batch 9", 2, "9 (least) --batch"),
    ("build-engine m.onnx --workspace 1TiB", 2, "1TiB 512MiB"),
    ("calibrate m.onnx --method median", 2, "unknown calibration method 'median' entropy"),
    ("calibrate m.onnx --method percentile --percentile 0.9999", 2, "percentile 0.9999 is out of reach 50 to 100"),
    ("calibrate m.onnx --seed -1", 2, "--seed -1"),
    ("calibrate m.onnx --table trt-11.0", 2, "TensorRT 11 reads no calibration table; 8 to 10"),
    ("calibrate m.onnx --table 8.6", 2, "8.6 is no TensorRT release. trt-8.6"),
    ("calibrate m.onnx --recipe digit", 2, "unknown recipe 'digit' 'digits'"),
    ("calibrate m.onnx --recipe plain", 2, "plain is not valid TOML"),
    ("bench m.onnx --provider gpu", 2, "no provider 'gpu' cuda"),
    ("export net.py:missing --input-shape 1,3,8,8", 2, "net.py no function called 'missing'"),
    ("export net.py:number --input-shape 1,3,8,8", 2, "net.py:number returned int"),
    ("export net.py:fails --input-shape 1,3,8,8", 2, "net.py:fails raised KeyError"),
    ("eval m.onnx --accuracy", 2, "No such option --accuracy msn-deploy eval --help"),
    # arguments that are missing or too many
    ("train", 2, "Missing argument 'recipe' msn-deploy train --help"),
    ("export", 2, "Missing argument 'source'"),
    ("calibrate", 2, "Missing argument 'onnx'"),
    ("build-engine", 2, "Missing argument 'onnx'"),
    ("eval", 2, "Missing argument 'model'"),
    ("bench", 2, "Missing argument 'models'"),
    ("infer m.onnx", 2, "Missing argument 'images'"),
    ("verify", 2, "Missing argument 'folder'"),
    ("eval m.onnx m.onnx", 2, "unexpected extra argument"),
    ("eval m.onnx --data", 2, "--data requires an argument"),
    # places that cannot be written: below a file
    (f"{TRAIN} --out plain/x", 2, "plain/x cannot be written: plain is not a folder"),
    ("export m.safetensors --out plain/x.onnx", 2, "plain/x.onnx cannot be written"),
    ("calibrate m.onnx --out plain/x.onnx", 2, "plain/x.onnx cannot be written"),
    ("build-engine m.onnx --out plain/x.engine", 2, "plain/x cannot be written"),
    ("build-engine m.onnx --precision fp32 --out plain/x.engine", 2, "plain/x.engine cannot be written"),
    ("eval m.onnx --json plain/x.json", 2, "plain/x.json cannot be written"),
    ("bench m.onnx --json plain/x.json", 2, "plain/x.json cannot be written"),
    ("bench m.onnx --html plain/x.html", 2, "plain/x.html cannot be written"),
    ("demo --out plain/x", 2, "plain/x cannot be written"),
    ("train cnn3_msn --out plain", 2, "plain"),
    ("eval m.onnx --json nothing", 2, "nothing is a folder"),
    ("train cnn3_msn --out m.onnx", 2, "m.onnx is not a folder"),
    ("export m.safetensors --out nothing", 2, "nothing is a folder"),
    # the file that would be overwritten
    ("export m.onnx --out m.onnx", 2, "m.onnx is the input itself --out"),
    ("export m.onnx --out nothing/../m.onnx", 2, "m.onnx is the input itself"),
    ("calibrate m.onnx --out m.onnx", 2, "m.onnx is the input itself --out"),
    ("build-engine m.onnx --out m.onnx", 2, "m.onnx .engine"),
    ("eval m.onnx --json m.onnx", 2, "m.onnx overwritten"),
    ("eval m.onnx --json m.onnx.json", 2, "m.onnx.json is the sidecar of m.onnx"),
    ("build-engine m.int8.onnx --precision int8 --json m.int8.plan.json", 2, "is the sidecar of m.int8.engine"),
    ("bench m.onnx --json m.onnx", 2, "m.onnx overwritten"),
    ("bench m.onnx --html m.onnx", 2, "m.onnx overwritten"),
    # suffixes
    ("export m.safetensors --out x.engine", 2, "x.engine .onnx"),
    ("export m.safetensors --out x", 2, "x .onnx"),
    ("calibrate m.onnx --out x.int8", 2, "x.int8 .onnx"),
    ("build-engine m.onnx --out x.plan", 2, "x.plan .engine"),
    # numbers and shapes
    ("export m.safetensors --batch x", 2, "--batch 'x' dynamic"),
    ("export m.safetensors --batch 0", 2, "--batch '0' dynamic"),
    ("export m.safetensors --batch -1", 2, "--batch '-1' dynamic"),
    ("export m.safetensors --batch ²", 2, "--batch '²' dynamic"),
    ("export net.py:number --input-shape nonsense", 2, "--input-shape 'nonsense' 1,3,32,32"),
    ("export net.py:number --input-shape 1,3,-8,8", 2, "--input-shape 1,3,32,32"),
    ("export net.py:number --input-shape 1,,8", 2, "--input-shape 1,3,32,32"),
    ("export m.safetensors --opset 3", 2, "--opset 3"),
    ("export m.safetensors --opset many", 2, "--opset many"),
    ("train cnn3_msn --epochs -1", 2, "epochs must be at least 1, got -1"),
    ("train cnn3_msn --epochs 0", 2, "epochs must be at least 1, got 0"),
    ("train cnn3_msn --batch-size -4", 2, "batch_size -4"),
    ("train cnn3_msn --lr -0.1", 2, "--lr -0.1"),
    ("train cnn3_msn --lr nan", 2, "--lr nan"),
    ("train cnn3_msn --seed -1", 2, "seed -1"),
    ("train cnn3_msn --limit-train -5", 2, "--limit-train -5"),
    (f"{TRAIN} --batch-size 64 --out x", 2, "32 training images 64 --batch-size"),
    ("train cnn3_msn --resume --out x", 2, "nothing to resume --resume"),
    ("calibrate m.onnx --samples -3", 2, "--samples -3"),
    ("build-engine m.onnx --batch 0", 2, "--batch 0"),
    ("build-engine m.onnx --workspace-mib -1", 2, "--workspace-mib -1"),
    ("eval m.onnx --samples -1", 2, "--samples -1"),
    ("eval m.onnx --threads 0", 2, "--threads 0"),
    ("bench m.onnx --seconds -1", 2, "--seconds -1"),
    ("bench m.onnx --seconds 0.1", 2, "--seconds 0.1"),
    ("bench m.onnx --seconds nan", 2, "seconds nan"),
    ("bench m.onnx --batch -1", 2, "--batch -1"),
    ("bench m.onnx --layers --provider cuda", 2, "--layers cuda launches --provider cpu"),
    ("bench m.onnx --builds 0", 2, "--builds 0"),
    ("bench m.onnx --profile fast", 2, "no timing profile 'fast' trtexec-11"),
    ("bench m.onnx --profile throughput", 2, "throughput TensorRT engines --batch single-stream"),
    ("bench m.onnx --profile mlperf --seconds 9", 2, "600 s --seconds"),
    ("bench m.onnx --fail-if slower:3%", 2, "--fail-if only model --against"),
    ("bench m.onnx wide.onnx --fail-if 3%", 2, "'3%' slower:3%"),
    ("bench m.onnx --against gone.json", 2, "gone.json does not exist"),
    ("bench m.onnx --against torn.toml", 2, "torn.toml is not a benchmark result"),
    ("bench m.onnx --markdown g.md", 2, "--markdown --against --fail-if"),
    ("bench m.onnx --against gone.json --junit m.onnx", 2, "m.onnx .xml --junit"),
    ("demo --epochs -1", 2, "--epochs -1"),
    ("demo --seconds 0.1", 2, "--seconds 0.1"),
    ("verify nothing", 2, "nothing holds no artifact"),
]


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
