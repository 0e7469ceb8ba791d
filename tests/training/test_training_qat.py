"""Training under INT8: from what calibration gives, to a file that computes what was trained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from task_data import write_rectangles
from torch.nn import functional as F

import msn_deploy
from msn_deploy.core.artifacts import read_sidecar
from msn_deploy.core.errors import InputError
from msn_deploy.core.progress import silent
from msn_deploy.core.recipes import Recipe, load_recipe, recipe_from_dict
from msn_deploy.data import load_split, to_input
from msn_deploy.engine.ort import OrtRunner
from msn_deploy.model.opened import made_model, open_model
from msn_deploy.pipeline.calibrate import calibrate
from msn_deploy.pipeline.evaluate import evaluate
from msn_deploy.pipeline.export import export_onnx
from msn_deploy.pipeline.train_int8 import recipe_for, train_int8
from msn_deploy.pipeline.verify import verify_folder
from msn_deploy.training import TrainResult, load_checkpoint, qat, train
from msn_deploy.training.checkpoint import read_tensors, write_tensors
from msn_deploy.training.graph_net import GraphNet
from msn_deploy.training.qat import distance, folded_graph, quantize_aware
from msn_deploy.training.runner import logits_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def float_net(tmp_path_factory: pytest.TempPathFactory, small_recipe: Callable[..., Recipe]) -> Path:
    """A narrow cnn3 with MSN that knows most of its digits."""
    recipe = small_recipe("cnn3", "msn", width=4, epochs=2)
    return train(recipe, out=tmp_path_factory.mktemp("float"), device="cpu", limit_train=768).checkpoint


@pytest.fixture(scope="module")
def calibrated(float_net: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What post-training quantisation makes of it."""
    folder = tmp_path_factory.mktemp("calibrated")
    export_onnx(str(float_net), folder / "full.onnx", simplify=False)
    calibrate(folder / "full.onnx", folder / "ptq.onnx", use_cache=False)
    return folder / "ptq.onnx"


OPTIONS: dict[str, Any] = {"device": "cpu", "limit_train": 256}


@pytest.fixture(scope="module")
def trained(float_net: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    out = tmp_path_factory.mktemp("int8")
    return train_int8(float_net, out, recipe_for(float_net).override(epochs=2), **OPTIONS)


@pytest.fixture(scope="module")
def again(float_net: Path, trained: TrainResult) -> Callable[..., TrainResult]:
    """Train anew from the start of `trained`, with other options: what the verb does behind export and calibration."""
    start = GraphNet(onnx.load_model_from_string(read_tensors(trained.checkpoint)[0]["graph"].numpy().tobytes()))
    model, info = load_checkpoint(float_net)
    teacher = GraphNet(folded_graph(model, (1, 1, 28, 28)))
    teacher.eval()

    def run(out: Path, *, resume: bool = False, progress: Any = silent, **train: Any) -> TrainResult:
        recipe = recipe_for(float_net).override(**{"epochs": 2} | train)
        return qat.train_int8(
            recipe, copy.deepcopy(start), teacher, info=info, weights=float_net, out=out, resume=resume,
            progress=progress, **OPTIONS,
        )  # fmt: skip

    return run


def _nodes(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    return [(node.op_type, tuple(node.output)) for node in open_model(path, step="test").proto.graph.node]


def test_the_file_is_that_of_the_training_on_the_whole_test_split(
    calibrated: Path, trained: TrainResult, tmp_path: Path
) -> None:
    qat = tmp_path / "qat.onnx"
    export_onnx(str(trained.checkpoint), qat)
    assert _nodes(qat) == _nodes(calibrated)  # one placement
    opened = open_model(qat, step="test")
    assert opened.precision == "int8"
    assert opened.info is not None
    assert (opened.info.folded, opened.info.task) == (True, "classification")
    assert opened.inputs[0].shape == (1, 1, 28, 28)
    assert read_sidecar(qat).parents[0].role == "checkpoint"
    model, info = load_checkpoint(trained.checkpoint)
    assert info.preprocess is not None
    images = to_input(load_split("digits", "test", height_px=28, width_px=28, channels=1).images, info.preprocess)
    wanted = logits_of(model, images)
    runner = OrtRunner(opened)
    made = np.concatenate([runner.run({"input": images[at : at + 1]})["logits"] for at in range(len(images))])
    assert np.abs(made - wanted).max() <= 1e-4 * np.ptp(wanted)
    found = [evaluate(each).value for each in (trained.checkpoint, qat)]
    assert found == pytest.approx([info.metrics["test_accuracy"]] * 2, abs=1e-9)
    assert {each.verdict for each in verify_folder(tmp_path)} == {"ok"}


def test_it_starts_from_calibrated_ranges_and_keeps_the_best_by_held_out_images(
    calibrated: Path, trained: TrainResult, again: Callable[..., TrainResult], tmp_path: Path
) -> None:
    start = trained.history[0]
    assert [entry["epoch"] for entry in trained.history] == [0, 1, 2]
    assert start["test_accuracy"] == pytest.approx(evaluate(calibrated).value, abs=0.011)
    goodness = [(entry["validation_accuracy"], -entry["held_out_loss"]) for entry in trained.history]
    assert trained.info.metrics["epoch"] == goodness.index(max(goodness)) > 0
    spoiled = again(tmp_path / "spoiled", learning_rate=10.0, epochs=1)
    assert spoiled.info.metrics["epoch"] == 0
    assert load_checkpoint(spoiled.checkpoint)[1].metrics == spoiled.history[0]


def test_an_interrupted_training_is_resumed(again: Callable[..., TrainResult], tmp_path: Path) -> None:
    def stop(done: float, total: float, note: str = "") -> None:
        if done >= total * 3 // 4:
            raise KeyboardInterrupt

    whole = again(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        again(tmp_path, progress=stop)
    with pytest.raises(InputError, match="other options"):
        again(tmp_path, resume=True, distill=0.5)
    resumed = again(tmp_path, resume=True)
    assert resumed.checkpoint.read_bytes() == whole.checkpoint.read_bytes()
    losses = [[entry["train_loss"] for entry in each.history[1:]] for each in (resumed, whole)]
    assert losses[0] == losses[1]
    assert not (tmp_path / "cnn3_msn_int8.state.safetensors").exists()


def test_weights_steps_and_biases_all_learn(
    trained: TrainResult, again: Callable[..., TrainResult], tmp_path: Path
) -> None:
    start = again(tmp_path, learning_rate=10.0, epochs=1)  # spoiled: the start is kept
    before, after = (read_tensors(each.checkpoint)[0] for each in (start, trained))
    assert before.keys() == after.keys()
    still = {name for name in before if torch.allclose(before[name].double(), after[name].double(), atol=1e-6)}
    assert {name for name in still if not name.endswith(".size")} == {"graph"}
    assert not any("running" in name for name in after)


def test_distillation_learns_from_the_float_network(
    trained: TrainResult, again: Callable[..., TrainResult], tmp_path: Path
) -> None:
    distilled = again(tmp_path, distill=1.0)
    assert distilled.history[1]["train_loss"] < 0.5 * trained.history[1]["train_loss"]
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    assert float(distance(logits, logits + 3, classes=True)) == pytest.approx(0, abs=1e-6)  # the same distribution
    apart = float(distance(logits, logits.flip(1), classes=True))
    p, q = (each.softmax(1) for each in (logits.flip(1), logits))
    assert apart == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-5)
    assert float(distance(logits, 2 * logits, classes=False)) == pytest.approx(
        float(logits.square().mean() / (2 * logits).var()), rel=1e-5
    )


@pytest.mark.parametrize("net", ["unet", "detector"])
def test_networks_that_say_where_are_trained_and_exported(net: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    data = str(write_rectangles(tmp_path / "data"))
    recipe = replace(load_recipe(f"{net}_bn"), data=data, width=4, input_shape=(1, 3, 32, 32))
    recipe = recipe.override(epochs=1, batch_size=4, learning_rate=0.02)
    checkpoint = train(recipe, out=tmp_path / "float", device="cpu").checkpoint
    with pytest.raises(InputError, match="--data"):
        recipe_for(checkpoint)  # what only the file says is not read
    chosen = recipe_for(checkpoint, data=data).override(epochs=1, distill=0.5)
    result = train_int8(checkpoint, tmp_path / "int8", chosen, device="cpu")
    metric = {"unet": "test_mIoU", "detector": "test_mAP"}[net]
    assert result.metric == metric
    out = tmp_path / "int8.onnx"
    report = export_onnx(str(result.checkpoint), out, data=data, dynamic_batch=True)
    assert report.ladder[-1].passed
    assert evaluate(out, data=data).value == pytest.approx(result.info.metrics[metric], abs=1e-6)


def test_a_module_of_ones_own_in_a_loop_of_ones_own() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        *(torch.nn.Conv2d(1, 8, 3, 2), torch.nn.BatchNorm2d(8), torch.nn.ReLU6()),
        *(torch.nn.Conv2d(8, 8, 3, 1, groups=8), torch.nn.BatchNorm2d(8), torch.nn.Hardswish()),
        *(torch.nn.AvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(32, 10)),
    )
    split = load_split("digits", "train", height_px=16, width_px=16, channels=1).first(256)
    images = torch.from_numpy(split.images).permute(0, 3, 1, 2).float() / 128 - 1
    labels = torch.from_numpy(np.array(split.labels))
    before = {name: each.clone() for name, each in net.state_dict().items()}
    with pytest.raises(InputError, match="training mode"):
        quantize_aware(net, images)
    aware = msn_deploy.quantize_aware(net.eval(), images)
    optimizer = torch.optim.Adam(aware.parameters(), 0.05)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = F.cross_entropy(aware(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(each, before[name]) for name, each in net.state_dict().items())
    graph = aware.to_onnx()
    kinds = [node.op_type for node in graph.graph.node]
    assert (kinds.count("QuantizeLinear"), kinds.count("BatchNormalization")) == (3, 0)
    made = OrtRunner(made_model(Path("own"), graph, graph.SerializeToString())).run({"input": images.numpy()})
    with torch.no_grad():
        wanted = aware(images).numpy()
    assert np.abs(made["logits"] - wanted).max() <= 1e-4 * np.ptp(wanted)
    with pytest.raises(InputError, match="too few"):
        quantize_aware(net, images[:3])


def test_a_channel_far_larger_than_the_others_gets_their_size_before_the_training(
    float_net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    benchmark = pytest.importorskip("qat", reason="needs the source tree")
    info = load_checkpoint(float_net)[1]
    spoiled = benchmark.spoiled(float_net, recipe_from_dict(info.recipe, source="test"), tmp_path)
    with caplog.at_level("INFO"):
        result = train_int8(spoiled, tmp_path / "int8", recipe_for(spoiled).override(epochs=1), **OPTIONS)
    assert result.history[0]["test_accuracy"] == pytest.approx(evaluate(float_net).value, abs=0.03)
    assert "channels that it reads brought to the size" in caplog.text
    model = load_checkpoint(spoiled)[0]
    images = load_split("digits", "train", height_px=28, width_px=28, channels=1).first(64).images
    x = to_input(images, info.preprocess)
    wanted, made = (logits_of(each, x) for each in (model, quantize_aware(model.eval(), x)))
    assert np.square(made - wanted).sum() < 0.01 * np.square(wanted).sum()


def test_what_does_not_fit_is_a_message(float_net: Path, trained: TrainResult, tmp_path: Path) -> None:
    recipe = recipe_for(float_net)
    with pytest.raises(InputError, match="INT8 already"):
        recipe_for(trained.checkpoint)
    for changed, said in (
        (replace(recipe, width=8), "width"),
        (recipe.override(ema=0.9), "train.ema"),
        (recipe.override(validation=0.0, patience=0), "train.validation"),
        (recipe.override(freeze="backbone"), "train.freeze"),
    ):
        with pytest.raises(InputError, match=said):
            train_int8(float_net, tmp_path, changed, device="cpu")
    with pytest.raises(InputError, match="distill"):
        train(load_recipe("cnn3_msn").override(distill=0.5), out=tmp_path)
    tensors, metadata = read_tensors(trained.checkpoint)
    for name, value, said in (
        ("graph", torch.zeros(9, dtype=torch.uint8), "graph"),
        ("graph", None, "no graph"),
        (next(name for name in tensors if name.endswith(".log")), torch.zeros(3), "size mismatch"),
    ):
        damaged = {**tensors, name: value} if value is not None else {k: v for k, v in tensors.items() if k != name}
        write_tensors(tmp_path / "damaged.safetensors", damaged, metadata)
        with pytest.raises(InputError, match=said):
            load_checkpoint(tmp_path / "damaged.safetensors")
    for options in ({"fold": False}, {"simplify": False}, {"ladder": True}):
        with pytest.raises(InputError, match="before it was trained"):
            export_onnx(str(trained.checkpoint), tmp_path / "x.onnx", **options)
