"""`import-checkpoint` on the command line: its checkpoint goes through the other commands, bad files leave no trace."""

import json

import pytest
import torch

from msn_deploy.core.artifacts import read_sidecar

LAYERS = {"main.0": (16, 1, 5, 5), "main.2": (32, 16, 3, 3), "main.4": (32, 32, 4, 4), "fc": (10, 8192)}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working folder, with a file in the layout of the authors' SN network for MNIST, and broken ones."""
    rng = torch.Generator().manual_seed(0)
    net = {}
    for name, shape in LAYERS.items():
        net[f"{name}.weight"] = torch.empty(shape).normal_(0, 1, generator=rng)
        net[f"{name}.bias"] = torch.empty(shape[0]).uniform_(-0.5, 0.5, generator=rng)
        net[f"{name}.renorm"] = torch.ones(1, 1)
    for file, tensors in {
        "SNconv_MNIST.t7": net,
        "BNconv_MNIST.t7": net,
        "odd.t7": {**net, "main.9.foo": torch.ones(1)},
        "wide.t7": {**net, "fc.weight": torch.ones(10, 4096)},
        "short.t7": {name: tensor for name, tensor in net.items() if name != "fc.bias"},
        "nan.t7": {**net, "fc.bias": torch.full((10,), torch.nan)},
        "scaled.t7": {**net, "main.2.renorm": torch.full((1, 1), 0.5)},
        "dense.t7": {"dense.weight": torch.ones(1)},
    }.items():
        content = {"net": tensors, "acc": 89.07, "epoch": 233}
        torch.save(content, tmp_path / file, _use_new_zipfile_serialization=False)
    whole = (tmp_path / "SNconv_MNIST.t7").read_bytes()
    (tmp_path / "half.t7").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.t7").touch()
    (tmp_path / "text.t7").write_text("no checkpoint\n")
    (tmp_path / "plain").write_text("a file where a folder is needed\n")
    torch.save(net, tmp_path / "bare.t7", _use_new_zipfile_serialization=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_checkpoint_goes_through_the_other_commands(ok, place):
    outcome = ok("import-checkpoint", "SNconv_MNIST.t7", "--out", "runs/sn.safetensors")
    assert outcome.out == (
        "runs/sn.safetensors: cnn3 with sn, 103,402 parameters, recorded test accuracy 89.07% (epoch 233)\n"
    )
    assert outcome.err == ("wrote runs/sn.safetensors (441 KiB)\nnext: msn-deploy export runs/sn.safetensors\n")
    assert read_sidecar(place / "runs" / "sn.safetensors").parents[0].file == "SNconv_MNIST.t7"
    data = ("--data", "digits", "--samples", 40, "--json", "-")
    ok("export", "runs/sn.safetensors", "--out", "runs/sn.onnx")
    answers = [json.loads(ok("eval", f"runs/sn.{suffix}", *data).out) for suffix in ("safetensors", "onnx")]
    assert answers[0]["predictions"] == answers[1]["predictions"]
    assert ok("verify", "runs").out.startswith("3 of 3 files are as recorded")


def test_json_and_the_default_name(ok, place):
    result = json.loads(ok("import-checkpoint", "SNconv_MNIST.t7", "--json", "-").out)
    assert result == {
        "checkpoint": "SNconv_MNIST.safetensors",
        "source": "SNconv_MNIST.t7",
        "net": "cnn3",
        "norm": "sn",
        "parameters": 103_402,
        "recorded_test_accuracy": 0.8907,
        "epoch": 233,
    }
    assert (place / "SNconv_MNIST.safetensors").is_file()


def test_a_misleading_name_is_told_unless_quiet(ok, place):
    line = ("import-checkpoint", "BNconv_MNIST.t7", "--out", "x.safetensors")
    says = "msn-deploy: WARNING: BNconv_MNIST.t7 is called BN but holds an SN network; imported as sn\n"
    assert ok(*line).err.startswith(says)
    assert ok(*line, "--quiet").err == ""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "Missing argument 'file'"),
        ("gone.t7", "gone.t7 does not exist"),
        (f"{'a' * 300}.t7", "name too long"),
        (".", ". is a folder"),
        ("empty.t7", "empty.t7 is not a file of plain weights truncated"),
        ("half.t7", "half.t7 is not a file of plain weights truncated"),
        ("text.t7", "text.t7 is not a file of plain weights truncated"),
        ("bare.t7", "bare.t7 no entry 'net' MNIST SVHN"),
        ("dense.t7", "dense.t7 another layout dense.weight MNIST SVHN"),
        ("odd.t7", "odd.t7 odd key main.9.foo"),
        ("short.t7", "short.t7 no key fc.bias"),
        ("wide.t7", "wide.t7 fc.weight (10, 4096), expected (10, 8192)"),
        ("nan.t7", "nan.t7 fc.bias 10 of 10 not finite"),
        ("scaled.t7", "scaled.t7 main.2.renorm 0.5"),
        ("SNconv_MNIST.t7 --out x.onnx", "x.onnx has to end in .safetensors"),
        ("SNconv_MNIST.t7 --out plain/x.safetensors", "plain/x.safetensors cannot be written"),
        ("SNconv_MNIST.t7 --json plain", "plain overwritten"),
    ],
)
def test_bad_input_is_explained_and_changes_nothing(cli, place, snapshot, line, words):
    before = snapshot(place)
    outcome = cli("import-checkpoint", *line.split())
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("msn-deploy: ")
    assert 1 <= len(outcome.err.splitlines()) <= 3
    assert not [word for word in words.split() if word not in outcome.err], outcome.err
    assert snapshot(place) == before
