"""`info` and `recipes`: what files say of themselves, without torch for the one and a run for the other."""

import json

import pytest
from safetensors.numpy import save

from msn_deploy.core.artifacts import sha256_of
from msn_deploy.core.recipes import load_recipe
from msn_deploy.data.names import NAMES

KINDS = {"cnn3_msn.safetensors": "checkpoint", "cnn3_msn.onnx": "ONNX file", "cnn3_msn.int8.onnx": "ONNX file"}


@pytest.mark.parametrize("name", KINDS)
def test_a_model_file_is_described(ok, whole_run, name):
    path = whole_run / name
    told = json.loads(ok("info", path, "--json", "-").out)
    assert (told["kind"], told["bytes"], told["sha256"]) == (KINDS[name], path.stat().st_size, sha256_of(path))
    assert told["precision"] == ("int8" if "int8" in name else "fp32")
    assert (told["info"]["net"], told["info"]["norm"], len(told["info"]["classes"])) == ("cnn3", "msn", 10)
    assert told["made_from"]
    text = ok("info", path).out
    assert "cnn3 with msn" in text
    assert "classification, 10 classes" in text
    if name.endswith(".onnx"):
        assert told["inputs"] == ["input: float32 1x1x28x28"]
        assert told["operators"]["Conv"] == 3


def test_weights_are_counted(ok, whole_run):
    """Folded, u and v of three layers are gone, and a bias stands for each mean."""
    from msn_deploy.training import load_checkpoint

    model, _ = load_checkpoint(whole_run / "cnn3_msn.safetensors")
    told = json.loads(ok("info", whole_run / "cnn3_msn.safetensors", "--json", "-").out)
    assert told["weights"] == sum(value.numel() for value in model.state_dict().values())


def test_an_engine_is_described_on_any_machine(ok, run_folder):
    told = json.loads(ok("info", run_folder / "cnn3_msn.int8.engine", "--json", "-").out)
    assert (told["kind"], told["precision"]) == ("engine", "int8")
    assert told["target"].startswith("TensorRT-RTX ")
    assert any(each.startswith("cnn3_msn.int8.onnx ") for each in told["made_from"])


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (None, "not a checkpoint"),
        ({"x": {"dtype": "F32", "shape": "no", "data_offsets": [0, 4]}}, "tensor has no shape"),
        ({"x": {"dtype": "F32", "shape": [2, -1], "data_offsets": [0, 4]}}, "tensor has no shape"),
        (["x"], "not a checkpoint"),
    ],
)
def test_a_file_of_tensors_that_is_no_checkpoint_is_refused(cli, whole_run, tmp_path, header, said):
    import numpy as np

    path = tmp_path / "weights.safetensors"
    if header is None:
        path.write_bytes(save({"x": np.ones(3, np.float32)}))
    else:
        raw = (whole_run / "cnn3_msn.safetensors").read_bytes()
        known = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
        made = json.dumps({**header, "__metadata__": known} if isinstance(header, dict) else header).encode()
        path.write_bytes(len(made).to_bytes(8, "little") + made + bytes(4))
    outcome = cli("info", path)
    assert outcome.code == 2
    assert said in outcome.err


def test_data_sets_are_listed_with_those_that_are_here(ok, tmp_path, monkeypatch):
    monkeypatch.setenv("MSN_DEPLOY_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    listed = {each["name"]: each for each in json.loads(ok("datasets", "--json", "-").out)}
    assert list(listed) == list(NAMES)
    assert listed["digits"]["folder"]
    assert listed["cifar10"]["folder"] is None
    (tmp_path / "cifar10").mkdir()
    assert json.loads(ok("datasets", "--json", "-").out)[list(NAMES).index("cifar10")]["folder"] == str(
        tmp_path / "cifar10"
    )
    lines = ok("datasets").out.splitlines()
    rows = {line.split()[0]: line.split()[1] for line in lines if len(line.split()) > 1}
    assert (rows["digits"], rows["cifar10"], rows["svhn"]) == ("yes", "yes", "no")


def test_recipes_are_listed_and_one_is_a_file_to_start_from(ok, tmp_path):
    listed = json.loads(ok("recipes", "--json", "-").out)
    assert [each["name"] for each in listed] == sorted(each["name"] for each in listed)
    assert {"vgg7_msn", "unet_bn", "detector_msn"} <= {each["name"] for each in listed}
    lines = {line.split()[0]: line.split() for line in ok("recipes").out.splitlines() if line.strip()}
    for each in listed:
        value = next((f"{value:.1%}" for name, value in each.items() if name.startswith("test_")), None)
        assert lines[each["name"]][3:] == [f"{each['parameters']:,}", *filter(None, [value])]
    assert lines["vgg7_msn"][-2:] == ["584,170", "99.1%"]
    assert lines["unet_bn"][-1].endswith("%")
    path = tmp_path / "vgg7_msn.toml"
    path.write_text(ok("recipes", "vgg7_msn").out, encoding="utf-8")
    assert load_recipe(str(path)) == load_recipe("vgg7_msn")
