"""Training for what is more than a class: it learns, says so in its own metric, and `eval` finds the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from task_data import write_rectangles

from msn_deploy.core.errors import GateError, InputError
from msn_deploy.core.model_info import TensorSpec
from msn_deploy.core.recipes import Recipe, TrainedTask, load_recipe
from msn_deploy.data import Split, load_split
from msn_deploy.data.labels import IGNORED
from msn_deploy.pipeline.budget import parse_drop
from msn_deploy.pipeline.calibrate import calibrate
from msn_deploy.pipeline.evaluate import evaluate
from msn_deploy.pipeline.export import export_onnx
from msn_deploy.pipeline.fp16 import cast_to_fp16
from msn_deploy.pipeline.study import study
from msn_deploy.tasks import make_task
from msn_deploy.tasks.task import Given
from msn_deploy.training import TrainResult, load_checkpoint, loop, train
from msn_deploy.training.score import is_error

pytestmark = pytest.mark.slow

NETS = {"unet": "test_mIoU", "detector": "test_mAP"}
ENOUGH = {"unet": 0.5, "detector": 0.25}
CLASSES = {"unet": ("background", "red", "green"), "detector": ("red", "green")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_rectangles(tmp_path_factory.mktemp("data")))


def _recipe(net: str, data: str, **train: Any) -> Recipe:
    recipe = replace(load_recipe(f"{net}_msn"), data=data, width=4, input_shape=(1, 3, 32, 32))
    return recipe.override(**{"epochs": 10, "batch_size": 4, "learning_rate": 0.02} | train)


@pytest.fixture(scope="module")
def trained(data: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainResult]:
    return {net: train(_recipe(net, data), out=tmp_path_factory.mktemp(net), device="cpu") for net in NETS}


@pytest.mark.parametrize("net", NETS)
def test_it_learns_in_its_own_metric(trained: dict[str, TrainResult], net: str) -> None:
    result, metric = trained[net], NETS[net]
    first, last = result.history[0], result.history[-1]
    assert last["train_loss"] < first["train_loss"] / 2
    assert last[metric] > ENOUGH[net]
    assert (result.metric, result.unit) == (metric, "share")
    assert {"unet": "test_pixel_accuracy", "detector": "test_mAP50"}[net] in last
    assert "test_accuracy" not in last
    model, info = load_checkpoint(result.checkpoint)
    assert info == result.info
    assert (info.task, info.classes) == (result.info.recipe["task"], CLASSES[net])
    assert info.reading == ({"head": "fcos"} if net == "detector" else {})
    assert info.metrics[metric] == last[metric]
    assert not model.training


@pytest.mark.parametrize("net", NETS)
def test_eval_finds_what_the_training_says(trained: dict[str, TrainResult], net: str, data: str) -> None:
    result, metric = trained[net], NETS[net]
    found = evaluate(result.checkpoint, data=data)
    assert (f"test_{found.metric}", found.samples) == (metric, 16)
    assert found.value == pytest.approx(result.info.metrics[metric], abs=1e-6)


@pytest.mark.parametrize("net", NETS)
def test_every_precision_beats_the_constant_answer(
    trained: dict[str, TrainResult], net: str, data: str, tmp_path: Path
) -> None:
    full, half, int8 = (tmp_path / f"{name}.onnx" for name in ("full", "half", "int8"))
    export_onnx(str(trained[net].checkpoint), full, dynamic_batch=True)
    cast_to_fp16(full, half, data=data)
    made = calibrate(full, int8, data=data, max_drop=parse_drop("5%"), use_cache=False)
    assert made.verdict is not None
    assert made.verdict.kind in ("INT8", "MIXED")
    constant = 0.0  # of boxes; of masks: all of it background
    if net == "unet":
        wanted = load_split(data, "test", task="segmentation", height_px=32, width_px=32, channels=3).labels
        constant = float((wanted == 0).sum() / (wanted != IGNORED).sum() / len(CLASSES[net]))
    checkpoint = trained[net].info.metrics[NETS[net]]
    for file, precision, apart in ((full, "fp32", 1e-6), (half, "fp16", 0.01), (int8, "int8", 0.05 * checkpoint)):
        found = evaluate(file, data=data)
        assert (f"test_{found.metric}", found.samples) == (NETS[net], 16)
        assert precision in found.precision
        assert found.value == pytest.approx(checkpoint, abs=apart)
        assert found.value > constant + 0.2


def test_an_interrupted_training_is_resumed(data: str, tmp_path: Path) -> None:
    recipe = _recipe("detector", data, epochs=2)
    whole = train(recipe, out=tmp_path / "whole", device="cpu")

    def stop(done: float, total: float, note: str = "") -> None:
        if done == total * 3 // 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, out=tmp_path / "halves", device="cpu", progress=stop)
    resumed = train(recipe, out=tmp_path / "halves", device="cpu", resume=True)
    assert resumed.checkpoint.read_bytes() == whole.checkpoint.read_bytes()
    assert (resumed.metric, resumed.history[-1]["test_mAP"]) == ("test_mAP", whole.history[-1]["test_mAP"])


def test_a_training_that_diverges_is_stopped(data: str, tmp_path: Path) -> None:
    recipe = _recipe("unet", data, epochs=2).override(norm="none", optimizer="sgd", learning_rate=90.0)
    with pytest.raises(GateError, match=r"diverged in epoch \d: loss nan, 16 of 16 test images without a finite"):
        train(recipe, out=tmp_path, device="cpu")


def _arrays(task: TrainedTask, split: str, count: int = 48) -> Split:
    """Return small noisy pictures, in which the left and the right half have a brightness each."""
    rng = np.random.default_rng({"train": 0, "test": 1}[split])
    bright = rng.random((count, 2))
    pixels = rng.normal(0, 0.03, (count, 28, 28, 1)) + np.repeat(bright, 14, axis=1)[:, None, :, None]
    labels = bright > 0.5 if task == "multi-label" else 2 * bright
    images = (255 * pixels).clip(0, 255).astype(np.uint8)
    return Split(source="made", images=images, labels=labels, classes=("left", "right"), task=task)


@pytest.mark.parametrize("task", ["multi-label", "regression"])
def test_several_labels_and_values_are_learned(
    task: TrainedTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "load_split", lambda data, split, **size: _arrays(task, split))
    recipe = replace(load_recipe("cnn3_msn"), task=task, width=2).override(epochs=12, batch_size=8)
    result = train(recipe, out=tmp_path, device="cpu")
    last = result.history[-1][str(result.metric)]
    assert (last < 0.2) if task == "regression" else (last > 0.9)  # who says the mean is off by 0.5
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"] / 3
    kept = recipe.override(validation=0.25, patience=2, epochs=4)
    stopped = train(kept, out=tmp_path / "kept", device="cpu")
    metric = str(result.metric).removeprefix("test_")
    held = [entry[f"validation_{metric}"] for entry in stopped.history]
    best = held.index(min(held) if task == "regression" else max(held))
    assert stopped.info.metrics["epoch"] == best + 1


def test_which_metrics_are_errors_is_what_the_tasks_say() -> None:
    labels: dict[TrainedTask, Any] = {
        "regression": np.zeros((1, 2)), "multi-label": np.ones((1, 2), dtype=bool), "classification": np.zeros(1, int),
    }  # fmt: skip
    for task, right in labels.items():
        spec = TensorSpec("logits", "float32", (None, 2))
        given = Given(
            model="net", classes=("a", "b"), named=True, reading={}, outputs=(spec,), endings=("logits",), frame=(8, 8)
        )
        reader = make_task(task, given)
        meter = reader.meter()
        meter.add(reader.answers({"logits": np.zeros((1, 2), dtype=np.float32)}), right)
        assert meter.score().higher_is_better is not is_error(task)


def test_a_study_is_of_classifiers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unet_msn is for segmentation; `study` looks at classifiers"):
        study(load_recipe("unet_msn"), ["msn", "bn"], out=tmp_path)
    assert not list(tmp_path.iterdir())
