"""What a recipe can ask of a training: each option does what it says, and survives an interruption bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from msn_deploy.core.errors import InputError
from msn_deploy.core.recipes import Recipe, TrainOptions, validated
from msn_deploy.data import load_split, to_input
from msn_deploy.msn import MSNConv2d
from msn_deploy.training import TrainResult, load_checkpoint, train
from msn_deploy.training.checkpoint import read_tensors
from msn_deploy.training.optimizer import averaged, settled
from msn_deploy.training.runner import logits_of

pytestmark = pytest.mark.slow

EPOCHS, BATCH, IMAGES = 3, 16, 64
STEPS = EPOCHS * (IMAGES // BATCH)
OPTIONS: dict[str, dict[str, Any]] = {
    "ema": {"ema": 0.8},
    "clip_norm": {"clip_norm": 0.5},
    "label_smoothing": {"label_smoothing": 0.2},
    "augment": {"augment": "crop-flip"},
    "amp": {"amp": True},
    "channels_last": {"channels_last": True},
    "validation": {"validation": 0.25},
    "step": {"schedule": "step", "warm_up": 0.0},
}


@pytest.fixture
def recipe(small_recipe: Callable[..., Recipe]) -> Recipe:
    return small_recipe("cnn3", "msn", epochs=EPOCHS, batch_size=BATCH, warm_up=0.1)


def _train(recipe: Recipe, out: Path, **options: Any) -> TrainResult:
    return train(recipe, out=out, device="cpu", limit_train=IMAGES, **options)


def _weights(result: TrainResult) -> dict[str, torch.Tensor]:
    return read_tensors(result.checkpoint)[0]


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_changes_the_weights_and_resumes_bit_for_bit(recipe: Recipe, tmp_path: Path, name: str) -> None:
    chosen = recipe.override(**OPTIONS[name])
    whole = _train(chosen, tmp_path / "whole")
    plain = _weights(_train(recipe, tmp_path / "plain"))
    assert not torch.equal(_weights(whole)["0.weight"], plain["0.weight"])

    def stop(done: float, total: float, note: str = "") -> None:
        if done > 2 * total / EPOCHS:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(chosen, tmp_path / "halves", progress=stop)
    resumed = _train(chosen, tmp_path / "halves", resume=True)
    assert resumed.checkpoint.read_bytes() == whole.checkpoint.read_bytes()


def test_channels_last_and_bfloat16_stay_near_the_plain_training(recipe: Recipe, tmp_path: Path) -> None:
    plain = _weights(_train(recipe, tmp_path / "plain"))
    for name, far in (("channels_last", 1e-4), ("amp", 0.2)):
        other = _weights(_train(recipe.override(**{name: True}), tmp_path / name))
        assert {tensor.dtype for tensor in other.values()} <= {torch.float32, torch.int64}
        assert float((other["0.weight"] - plain["0.weight"]).abs().max()) < far


class _Rates:
    """A probe that notes the learning rate and the length of the gradient of every step."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.entries: list[dict[str, float]] = []

    def begin(self, model: nn.Module) -> None:
        self.model = model

    def before_step(self, step: int) -> None:
        assert step == len(self.norms)
        grads = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        self.norms.append(float(torch.cat([grad.flatten() for grad in grads]).norm()))

    def after_epoch(self, entry: Any) -> None:
        self.entries.append(dict(entry))


def test_a_probe_sees_every_step_and_epoch_and_changes_nothing(recipe: Recipe, tmp_path: Path) -> None:
    probe = _Rates()
    watched = _train(recipe, tmp_path / "watched", observer=probe)
    assert len(probe.norms) == STEPS
    assert probe.entries == watched.history
    assert _train(recipe, tmp_path / "alone").checkpoint.read_bytes() == watched.checkpoint.read_bytes()


def test_no_gradient_is_longer_than_clip_norm(recipe: Recipe, tmp_path: Path) -> None:
    free, clipped = _Rates(), _Rates()
    _train(recipe, tmp_path / "free", observer=free)
    _train(recipe.override(clip_norm=0.7), tmp_path / "clipped", observer=clipped)
    assert max(free.norms) > 1
    assert max(clipped.norms) == pytest.approx(0.7, rel=1e-4)


def test_label_smoothing_raises_the_loss_of_the_first_batches(recipe: Recipe, tmp_path: Path) -> None:
    sharp = _train(recipe.override(epochs=8), tmp_path / "sharp").history[-1]["train_loss"]
    smooth = _train(recipe.override(epochs=8, label_smoothing=0.5), tmp_path / "smooth").history[-1]["train_loss"]
    assert smooth > sharp + 0.3


def test_the_average_is_served_with_a_sigma_of_its_own(recipe: Recipe, tmp_path: Path) -> None:
    result = _train(recipe.override(ema=0.8), tmp_path)
    model, info = load_checkpoint(result.checkpoint)
    for layer in model.modules():
        if isinstance(layer, MSNConv2d):
            true = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
            assert float(layer.sigma().detach()) == pytest.approx(float(true), rel=1e-5)
    test = load_split("digits", "test", height_px=28, width_px=28, channels=1)
    logits = logits_of(model, to_input(test.images, info.preprocess))
    assert float((logits.argmax(1) == test.labels).mean()) == info.metrics["test_accuracy"]


@pytest.mark.parametrize("norm", ["msn", "sn", "bn"])
def test_a_checkpoint_says_by_how_much_its_sigma_is_off(recipe: Recipe, tmp_path: Path, norm: str) -> None:
    chosen = recipe.override(norm=norm, learning_rate=0.05, schedule="constant")
    result = _train(chosen, tmp_path)
    model, info = load_checkpoint(result.checkpoint)
    off = {
        name: abs(float(layer.sigma().detach()) / np.linalg.norm(layer.weight.detach().flatten(1).numpy(), 2) - 1)
        for name, layer in model.named_modules()
        if hasattr(layer, "sigma")
    }
    entry = result.history[-1]
    if norm == "bn":
        assert not {"sigma_error", "sigma_layer"} & {*entry, *info.metrics}
        return
    assert entry["sigma_layer"] == max(off, key=lambda name: off[name])
    assert info.metrics["sigma_error"] == entry["sigma_error"] == pytest.approx(max(off.values()), abs=1e-5)
    assert info.metrics["sigma_error"] > 1e-4  # there is something to tell


def test_the_average_is_exponential() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(MSNConv2d(2, 3, 3), nn.Flatten())
    average = averaged(model, 0.75)
    seen = []
    for _ in range(4):
        with torch.no_grad():
            model[0].weight.normal_()
        seen.append(model[0].weight.detach().clone())
        average.update_parameters(model)
    wanted = seen[0]
    for weight in seen[1:]:
        wanted = 0.75 * wanted + 0.25 * weight
    torch.testing.assert_close(settled(average)[0].weight, wanted)  # type: ignore[index]


def test_patience_stops_early_and_keeps_the_epoch_that_was_best_on_held_out_images(
    recipe: Recipe, tmp_path: Path
) -> None:
    chosen = recipe.override(epochs=30, validation=0.5, patience=2, learning_rate=0.05, schedule="constant")
    result = _train(chosen, tmp_path)
    held = [entry["validation_accuracy"] for entry in result.history]
    best = held.index(max(held))  # the first of equals
    assert len(held) == best + 3 < 30
    assert result.info.metrics["epoch"] == best + 1
    model, info = load_checkpoint(result.checkpoint)
    numbers = ("epoch", "train_loss", "test_accuracy", "validation_accuracy", "sigma_error")
    assert info.metrics == {key: result.history[best][key] for key in numbers}
    test = load_split("digits", "test", height_px=28, width_px=28, channels=1)
    accuracy = (logits_of(model, to_input(test.images, info.preprocess)).argmax(1) == test.labels).mean()
    assert float(accuracy) == info.metrics["test_accuracy"]
    assert not (tmp_path / "cnn3_msn.state.safetensors").exists()
    lines = (tmp_path / "cnn3_msn.history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.history


def test_a_resumed_run_remembers_its_best_epoch(recipe: Recipe, tmp_path: Path) -> None:
    chosen = recipe.override(epochs=30, validation=0.5, patience=2, learning_rate=0.05, schedule="constant")
    whole = _train(chosen, tmp_path / "whole")
    last = len(whole.history)

    def stop(done: float, total: float, note: str = "") -> None:
        if done > (last - 1) * total / 30 + 1:  # in the last epoch, after the best one
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(chosen, tmp_path / "halves", progress=stop)
    resumed = _train(chosen, tmp_path / "halves", resume=True)
    assert resumed.info == whole.info
    assert resumed.info.metrics["epoch"] < last
    assert resumed.checkpoint.read_bytes() == whole.checkpoint.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patience": 3}, "Early stopping needs held-out images"),
        ({"patience": -1}, "patience must be at least 0, got -1"),
        ({"validation": 0.6}, "validation must be at most 0.5, got 0.6"),
        ({"validation": float("nan")}, "validation must be a finite number, got nan"),
        ({"warm_up": 1.0}, "warm_up must be at most 0.9, got 1.0"),
        ({"clip_norm": -1.0}, "clip_norm must be at least 0, got -1.0"),
        ({"ema": 1.0}, "ema must be below 1, got 1"),
        ({"label_smoothing": -0.1}, "label_smoothing must be at least 0, got -0.1"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'; did you mean 'cosine'"),
        ({"augment": "rotate"}, "unknown augment 'rotate'; known are: none, flip, crop, crop-flip"),
    ],
)
def test_options_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        validated(TrainOptions, {"epochs": 1, "batch_size": 1, "learning_rate": 0.1} | change, source="mine")


def test_decay_of_nesterov_and_weights_is_that_of_torch(recipe: Recipe, tmp_path: Path) -> None:
    """The trainer is a plain loop: torch's optimizer, fed the same batches, ends at the same bits."""
    chosen = recipe.override(optimizer="sgd", epochs=1, schedule="constant", warm_up=0.0, norm="none")
    got = _weights(_train(chosen, tmp_path))
    from msn_deploy.nets import build_net
    from msn_deploy.training.batches import Batches

    torch.manual_seed(chosen.train.seed)
    model = build_net(chosen, classes=10)
    training = load_split("digits", "train", height_px=28, width_px=28, channels=1).first(IMAGES)
    prep = load_checkpoint(tmp_path / "cnn3_none.safetensors")[1].preprocess
    assert prep is not None
    optimizer = torch.optim.SGD(model.parameters(), lr=chosen.train.learning_rate, momentum=0.9, nesterov=True)
    for images, labels in Batches(training, prep, chosen.train, device=torch.device("cpu")).epoch(0):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(got[name].numpy(), tensor.numpy())
