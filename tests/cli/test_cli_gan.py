"""A generator on the command line: trained, exported, built, timed and judged like any network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from msn_deploy.core.model_info import METADATA_KEY
from msn_deploy.core.recipes import load_recipe
from msn_deploy.engine import load_runner, run_images
from msn_deploy.training import load_checkpoint, train, train_gan
from msn_deploy.training.checkpoint import read_tensors, write_tensors

pytestmark = pytest.mark.slow

GAN = """
net = "dcgan"
norm = "msn"
data = "digits"
input_shape = [1, 1, 32, 32]
width = 2
[gan]
latent = 16
[train]
epochs = 4
batch_size = 16
learning_rate = 0.01
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator of 200 digits' time, a judge for its images, and a quick one, with 32 features for 1296."""
    out = tmp_path_factory.mktemp("gan")
    (out / "small.toml").write_text(GAN)
    train_gan(load_recipe(str(out / "small.toml")), out=out, device="cpu", limit_train=200)
    eyes = replace(load_recipe("cnn3_bn"), name="judge", width=2, input_shape=(1, 1, 32, 32))
    train(eyes.override(epochs=3), out=out, device="cpu", limit_train=400)
    eyes = replace(load_recipe("vgg7_bn"), name="quick", width=4, input_shape=(1, 1, 32, 32))
    train(eyes.override(epochs=1), out=out, device="cpu", limit_train=64)
    return out


def test_training_says_its_losses(cli, folder, tmp_path):
    outcome = cli("train", folder / "small.toml", "--out", tmp_path / "run", "--limit-train", "64")
    assert outcome.code == 0, outcome
    assert "dcgan with msn, 4 epochs on digits, d_loss " in outcome.out
    assert (tmp_path / "run/small.epoch-004.png").is_file()


def test_the_folded_onnx_is_torch_and_an_engine_is_built_from_it(cli, folder, tmp_path):
    onnx = tmp_path / "small.onnx"
    assert cli("export", folder / "small.safetensors", "--out", onnx).code == 0
    runner = load_runner(onnx)
    assert runner.inputs[0].shape == (1, 16, 1, 1)
    model, _ = load_checkpoint(folder / "small.safetensors")
    inputs = np.random.default_rng(3).standard_normal((4, 16, 1, 1)).astype(np.float32)
    with torch.no_grad():
        wanted = model(torch.from_numpy(inputs)).numpy()
    got = np.concatenate([run_images(runner, each[None]) for each in inputs])
    assert float(np.abs(got - wanted).max()) < 1e-5
    assert float(wanted.std()) > 0.01
    operators = json.loads((tmp_path / "small.onnx.json").read_text())["facts"]["operators"]
    assert operators == {"ConvTranspose": 5, "Relu": 4, "Tanh": 1}
    for precision in ("fp16", "int8"):
        outcome = cli("build-engine", onnx, "--precision", precision, "--out", tmp_path / "small.engine")
        assert outcome.code == 0, outcome
        assert (tmp_path / "small.engine").stat().st_size > 10_000
    calibrated = json.loads((tmp_path / "small.int8.onnx.json").read_text())
    assert calibrated["config"]["data"] == "latents of the standard normal distribution"
    assert 3 < calibrated["facts"]["ranges"][runner.inputs[0].name] < 6  # of 256 x 100 draws
    int8 = np.concatenate([run_images(load_runner(tmp_path / "small.int8.onnx"), each[None]) for each in inputs])
    assert float(np.abs(int8 - wanted).std()) < 0.2 * float(wanted.std())
    outcome = cli("bench", onnx, "--seconds", "0.5")
    assert (outcome.code, "small" in outcome.out) == (0, True), outcome


def test_a_judge_looks_at_real_and_generated_images(cli, folder, tmp_path):
    result = tmp_path / "judged.json"
    model, judge = folder / "small.safetensors", folder / "judge.safetensors"
    outcome = cli("eval", model, "--judge", judge, "--json", result)
    assert outcome.code == 0, outcome
    assert "not comparable with an Inception FID" in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80 or str(folder) in outcome.out
    found = json.loads(result.read_text())
    assert (found["samples"], found["data"]) == (364, "digits")
    assert found["features"].endswith("inputs of the last layer of judge; no Inception FID or score")
    assert found["fid"] > 3 * found["fid_real"] > 0  # it fools nobody yet
    assert found["real"]["class_entropy"] == pytest.approx(np.log(10), abs=0.1)
    assert found["real"]["confidence"] > 0.5
    again = [json.loads(cli("eval", model, "--judge", folder / "quick.safetensors", "--json", "-").out) for _ in "12"]
    assert again[0]["fid"] == again[1]["fid"] != found["fid"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["eval", "small.safetensors"], "small.safetensors is a generator: it takes no images"),
        (["infer", "small.safetensors", "x.png"], "is a generator: it takes no images"),
        (["eval", "small.safetensors", "--judge", "small.safetensors"], "small.safetensors is a generator itself"),
        (["eval", "judge.safetensors", "--judge", "judge.safetensors"], "judge.safetensors is a classifier, not a"),
        (["eval", "small.toml", "--judge", "judge.safetensors"], "small.toml is not a checkpoint"),
    ],
)
def test_what_a_generator_is_not(cli, folder, monkeypatch, args, message):
    monkeypatch.chdir(folder)
    outcome = cli(*args)
    assert (outcome.code, len(outcome.err.strip().splitlines()) <= 3) == (2, True), outcome
    assert message in outcome.err


def test_the_options_of_eval_reach_the_judge(cli, folder, monkeypatch):
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    command = ["eval", folder / "small.safetensors", "--judge", folder / "quick.safetensors", "--json", "-"]
    outcome = cli(*command, "--samples", 40, "--threads", 3)
    assert json.loads(outcome.out)["samples"] == 40
    assert 3 in threads


def test_a_judge_that_does_not_say_its_accuracy(cli, folder, tmp_path):
    tensors, metadata = read_tensors(folder / "quick.safetensors")
    info = json.loads(metadata[METADATA_KEY])
    write_tensors(tmp_path / "mute.safetensors", tensors, {METADATA_KEY: json.dumps({**info, "metrics": {}})})
    command = ["eval", folder / "small.safetensors", "--judge", tmp_path / "mute.safetensors", "--samples", 40]
    outcome = cli(*command, "--json", tmp_path / "judged.json")
    assert (outcome.code, "accuracy" in outcome.out, "nan" in outcome.out) == (0, False, False), outcome
    assert json.loads((tmp_path / "judged.json").read_text())["judge_accuracy"] is None


def test_a_judge_of_other_data_is_refused_unless_the_images_are_named(cli, folder, tmp_path):
    tensors, metadata = read_tensors(folder / "small.safetensors")
    info = json.loads(metadata[METADATA_KEY])
    info["recipe"]["data"] = "fashion-mnist"
    write_tensors(tmp_path / "other.safetensors", tensors, {METADATA_KEY: json.dumps(info)})
    command = ["eval", tmp_path / "other.safetensors", "--judge", folder / "quick.safetensors", "--samples", 40]
    outcome = cli(*command)
    assert outcome.code == 2
    assert "other.safetensors was trained on fashion-mnist" in outcome.err
    assert "quick.safetensors on digits.\n" in outcome.err
    assert "--data NAME|DIR" in outcome.err
    assert cli(*command, "--data", "digits").code == 0


def test_latents_that_look_like_an_image_are_none(cli, folder, tmp_path):
    """Three latents have the shape of an RGB image of one pixel."""
    small = load_recipe(str(folder / "small.toml"))
    onnx = tmp_path / "small.onnx"
    train_gan(
        replace(small, gan=replace(small.gan, latent=3)).override(epochs=1), out=tmp_path, device="cpu", limit_train=16
    )
    assert cli("export", tmp_path / "small.safetensors", "--out", onnx).code == 0
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    for command in (["infer", onnx, tmp_path / "x.png"], ["eval", onnx, "--data", "digits"]):
        outcome = cli(*command)
        assert (outcome.code, "small.onnx is a generator: it takes no images" in outcome.err) == (2, True), outcome
    outcome = cli("build-engine", onnx, "--precision", "int8", "--data", "digits", "--out", tmp_path / "x.engine")
    assert outcome.code == 2
    assert "small.onnx is a generator: it is calibrated on latents" in outcome.err


def test_a_judge_of_other_images_is_refused(cli, folder, tmp_path):
    train(replace(load_recipe("cnn3_bn"), width=2).override(epochs=1), out=tmp_path, device="cpu", limit_train=64)
    outcome = cli("eval", folder / "small.safetensors", "--judge", tmp_path / "cnn3_bn.safetensors")
    assert outcome.code == 2
    assert "makes 1x32x32 images (resize)" in outcome.err
    assert "looks at 1x28x28" in outcome.err
