"""The training loop: it learns, it repeats itself bit for bit, and it survives being interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from msn_deploy.core.artifacts import read_sidecar
from msn_deploy.core.errors import GateError, InputError, MissingDevice
from msn_deploy.core.recipes import Recipe
from msn_deploy.data import load_split, to_input
from msn_deploy.pipeline.verify import verify_folder
from msn_deploy.report.curves import write_curves
from msn_deploy.training import TrainResult, load_checkpoint, train
from msn_deploy.training.checkpoint import read_tensors
from msn_deploy.training.runner import logits_of

pytestmark = pytest.mark.slow

EPOCHS, BATCH, IMAGES = 3, 16, 64
STEPS = EPOCHS * (IMAGES // BATCH)


@pytest.fixture
def recipe(small_recipe: Callable[..., Recipe]) -> Recipe:
    """The smallest training that says anything: cnn3, MSN, 12 steps."""
    return small_recipe("cnn3", "msn", epochs=EPOCHS, batch_size=BATCH)


def _train(recipe: Recipe, out: Path, **options: object) -> TrainResult:
    return train(recipe, out=out, device="cpu", limit_train=IMAGES, **options)  # type: ignore[arg-type]


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, small_recipe: Callable[..., Recipe]) -> tuple[TrainResult, Path]:
    """A cnn3 with MSN that has seen 600 digits three times."""
    out = tmp_path_factory.mktemp("trained")
    chosen = small_recipe("cnn3", "msn", width=3, epochs=EPOCHS, batch_size=BATCH)
    return train(chosen, out=out, device="cpu", limit_train=600), out


def test_it_learns(trained: tuple[TrainResult, Path]) -> None:
    result, _ = trained
    losses = [entry["train_loss"] for entry in result.history]
    assert len(losses) == EPOCHS
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 3
    assert result.history[-1]["test_accuracy"] > 0.9


def test_the_checkpoint_says_the_truth_about_itself(trained: tuple[TrainResult, Path]) -> None:
    result, _ = trained
    model, info = load_checkpoint(result.checkpoint)
    assert info == result.info
    assert info.classes == tuple("0123456789")
    assert (info.net, info.norm, info.data, info.folded) == ("cnn3", "msn", "digits", False)
    test = load_split("digits", "test", height_px=28, width_px=28, channels=1)
    logits = logits_of(model, to_input(test.images, info.preprocess))
    assert float((logits.argmax(1) == test.labels).mean()) == info.metrics["test_accuracy"]
    again, _ = load_checkpoint(result.checkpoint)
    np.testing.assert_array_equal(logits_of(again, to_input(test.images, info.preprocess)), logits)


def test_what_lies_in_the_folder_afterwards(trained: tuple[TrainResult, Path]) -> None:
    result, out = trained
    name = result.info.recipe["name"]
    kept = {f"{name}.safetensors", f"{name}.history.jsonl"}
    assert _names(out) == kept | {".msn-deploy", f"{name}.safetensors.json"}
    assert {finding.verdict for finding in verify_folder(out)} == {"ok"}
    lines = (out / f"{name}.history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.history
    training = load_split("digits", "train", height_px=28, width_px=28, channels=1).first(600)
    parents = {parent.role: parent.sha256 for parent in read_sidecar(result.checkpoint).parents}
    assert parents["data:train"] == training.sha256()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(recipe: Recipe, tmp_path: Path) -> None:
    first, second = (_train(recipe, tmp_path / name).checkpoint for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    other = _train(recipe.override(seed=1), tmp_path / "c").checkpoint
    assert not torch.equal(read_tensors(first)[0]["0.weight"], read_tensors(other)[0]["0.weight"])


def _stop_at(step: int) -> Callable[..., None]:
    def progress(done: float, total: float, note: str = "") -> None:
        assert total == STEPS
        if done == step:
            raise KeyboardInterrupt

    return progress


def _untimed(result: TrainResult) -> list[dict[str, float]]:
    return [{key: value for key, value in entry.items() if "seconds" not in key} for entry in result.history]


@pytest.mark.parametrize("step", [5, STEPS], ids=["in-epoch-2", "at-the-last-step"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("norm", ["msn-affine", "bn"])
def test_a_resumed_run_equals_one_that_was_never_interrupted(
    recipe: Recipe, tmp_path: Path, norm: str, optimizer: str, step: int
) -> None:
    recipe = recipe.override(norm=norm, optimizer=optimizer, learning_rate=0.05, weight_decay=0.01)
    whole = _train(recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _train(recipe, tmp_path / "halves", progress=_stop_at(step))
    checkpoint = tmp_path / "halves" / f"{recipe.name}.safetensors"
    _, info = load_checkpoint(checkpoint)  # that of the last whole epoch
    assert info.metrics["epoch"] == (step - 1) // (IMAGES // BATCH)
    resumed = _train(recipe, tmp_path / "halves", resume=True)
    assert resumed.checkpoint.read_bytes() == whole.checkpoint.read_bytes()
    assert _untimed(resumed) == _untimed(whole)
    assert _names(tmp_path / "halves") == _names(tmp_path / "whole")


def test_an_interrupt_in_the_first_epoch_leaves_nothing_to_resume(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _train(recipe, tmp_path / "run", progress=_stop_at(2))
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match=r"nothing to resume: .*cnn3_msn\.state\.safetensors does not exist"):
        _train(recipe, tmp_path / "run", resume=True)


@pytest.fixture
def interrupted(recipe: Recipe, tmp_path: Path) -> Path:
    """The folder of a run that was interrupted in its second epoch."""
    with pytest.raises(KeyboardInterrupt):
        _train(recipe, tmp_path, progress=_stop_at(5))
    return tmp_path


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"learning_rate": 0.02}, {"epochs": 9}, {"batch_size": 8}, {"optimizer": "sgd"}]
)
def test_resuming_with_other_options_is_refused(recipe: Recipe, interrupted: Path, change: dict[str, object]) -> None:
    before = (interrupted / "cnn3_msn.safetensors").read_bytes()
    with pytest.raises(InputError, match="was made with other options"):
        _train(recipe.override(**change), interrupted, resume=True)
    with pytest.raises(InputError, match="was made with other options"):
        _train(replace(recipe, width=5), interrupted, resume=True)
    assert (interrupted / "cnn3_msn.safetensors").read_bytes() == before


def test_resuming_with_other_images_is_refused(recipe: Recipe, interrupted: Path) -> None:
    with pytest.raises(InputError, match=r"other training images than digits holds now[\s\S]*--samples"):
        train(recipe, out=interrupted, device="cpu", limit_train=IMAGES + BATCH, resume=True)


def test_resuming_from_what_is_no_state_is_refused(recipe: Recipe, interrupted: Path) -> None:
    state = interrupted / "cnn3_msn.state.safetensors"
    whole = state.read_bytes()
    state.write_bytes((interrupted / "cnn3_msn.safetensors").read_bytes())
    with pytest.raises(InputError, match="is not the state of a training"):
        _train(recipe, interrupted, resume=True)
    state.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is not a whole safetensors file"):
        _train(recipe, interrupted, resume=True)


def _changed_run(state: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], object]) -> None:
    """Write a state anew, with another record or other tensors."""
    tensors, metadata = read_tensors(state)
    run = json.loads(metadata["msn_deploy_run"])
    changed = change(run, tensors)
    metadata["msn_deploy_run"] = changed if isinstance(changed, str) else json.dumps(run)
    save_file(tensors, state, metadata)


@pytest.mark.parametrize(
    "change",
    [
        lambda run, _: "{",
        lambda run, _: "[" * 10_000,
        lambda run, _: "[]",
        lambda run, _: run.pop("data"),
        lambda run, _: run.pop("recipe"),
        lambda run, _: run.pop("history"),
        lambda run, _: run.update(history={}),
        lambda run, _: run.update(history=[3]),
        lambda run, _: run.update(recipe=[]),
        lambda run, _: run.update(weights=3),
        lambda run, _: run.update(surprise=3),
        lambda run, _: run["history"][0].pop("epoch"),
        lambda run, _: run["history"][0].pop("train_loss"),
        lambda run, _: run["history"][0].update(test_accuracy="high"),
        lambda run, _: run["history"][0].update(train_loss={}),
        lambda run, _: run["history"].extend({**run["history"][0], "epoch": at} for at in (2, 3)),
        lambda run, _: run["history"].append({"epoch": 2, "train_loss": 1.0, "test_accuracy": 0.5}),
        lambda _, tensors: tensors.pop("model.0.weight") is None,
        lambda _, tensors: tensors.update({"model.0.weight": torch.zeros(1)}),
        lambda _, tensors: tensors.update({"model.surplus": torch.zeros(1)}),
        lambda _, tensors: tensors.pop("optimizer.0.exp_avg") is None,
        lambda _, tensors: tensors.update({"optimizer.99.step": torch.zeros(())}),
        lambda _, tensors: tensors.update({"optimizer.x.step": torch.zeros(())}),
        lambda _, tensors: tensors.update({"optimizer.0": torch.zeros(())}),
        lambda _, tensors: tensors.update({"optimizer.0.exp_avg": torch.zeros(3)}),
        lambda _, tensors: tensors.update({"optimizer.0.step": torch.zeros(3)}),
    ],
    ids=range(26),
)
def test_resuming_from_a_damaged_state_is_refused(recipe: Recipe, interrupted: Path, change: Any) -> None:
    before = (interrupted / "cnn3_msn.safetensors").read_bytes()
    _changed_run(interrupted / "cnn3_msn.state.safetensors", change)
    with pytest.raises(InputError, match=r"cnn3_msn\.state\.safetensors"):
        _train(recipe, interrupted, resume=True)
    assert (interrupted / "cnn3_msn.safetensors").read_bytes() == before


def test_a_new_run_does_not_need_the_old_state(recipe: Recipe, interrupted: Path, tmp_path: Path) -> None:
    anew = _train(recipe, interrupted)
    fresh = _train(recipe, tmp_path / "fresh")
    assert anew.checkpoint.read_bytes() == fresh.checkpoint.read_bytes()
    assert not (interrupted / "cnn3_msn.state.safetensors").exists()


def test_a_diverging_training_is_a_gate_error_and_keeps_the_old_checkpoint(recipe: Recipe, tmp_path: Path) -> None:
    good = _train(recipe, tmp_path).checkpoint
    before = good.read_bytes()
    with pytest.raises(
        GateError, match=r"diverged in epoch 1: loss (nan|\S+e\+\d+), 364 of 364 test images[\s\S]*--lr 30"
    ) as caught:
        _train(recipe.override(norm="none", optimizer="sgd", learning_rate=90.0), tmp_path)
    assert caught.value.exit_code == 1
    assert good.read_bytes() == before
    assert not (tmp_path / "cnn3_none.safetensors").exists()


def test_a_loss_that_is_no_number_is_a_gate_error(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch.nn.functional, "cross_entropy", lambda logits, labels, **_: logits.sum() * 0 + float("nan")
    )
    with pytest.raises(GateError, match="diverged in epoch 1: loss nan"):
        _train(recipe, tmp_path)
    assert _names(tmp_path) == set()


def test_weights_that_the_last_step_ruined_are_not_saved(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of a step is that of before its update, so it can be finite while the weights no longer are."""
    once = recipe.override(epochs=1, optimizer="sgd")
    real, steps = torch.optim.SGD.step, []

    def step(self: torch.optim.SGD) -> None:
        real(self)
        steps.append(1)
        if len(steps) == IMAGES // BATCH:
            self.param_groups[0]["params"][0].data.fill_(float("nan"))

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    with pytest.raises(
        GateError, match=r"diverged in epoch 1: loss \d\S*, 364 of 364 test images without a finite output"
    ):
        _train(once, tmp_path)
    assert _names(tmp_path) == set()


def test_a_batch_larger_than_the_data(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"64 training images do not fill one batch of 65[\s\S]*--batch-size"):
        _train(recipe.override(batch_size=IMAGES + 1), tmp_path)
    assert _names(tmp_path) == set()


def test_an_unwritable_folder(recipe: Recipe, below_a_file: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        _train(recipe.override(epochs=1), below_a_file)


def test_devices(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="unknown device 'tpu'"):
        train(recipe, out=tmp_path, device="tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingDevice, match="--device cpu") as caught:
        train(recipe, out=tmp_path, device="cuda")
    assert caught.value.exit_code == 3


def test_classes_of_training_and_test_must_agree(recipe: Recipe, tmp_path: Path) -> None:
    from PIL import Image

    for split, names in (("train", "ab"), ("test", "ac")):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("L", (8, 8)).save(tmp_path / split / name / "0.png")
    with pytest.raises(InputError, match=r"training has classes \('a', 'b'\), the test \('a', 'c'\)"):
        train(recipe.override(data=str(tmp_path)), out=tmp_path / "run", device="cpu")


def test_weight_decay_is_on_weights_alone(recipe: Recipe, tmp_path: Path) -> None:
    """Decay moves what it is on; a huge one leaves shift and bias alive while the weights vanish."""
    decayed = recipe.override(optimizer="sgd", learning_rate=0.05, weight_decay=1.0, norm="none")
    tensors, _ = read_tensors(_train(decayed, tmp_path / "decayed").checkpoint)
    free, _ = read_tensors(_train(decayed.override(weight_decay=0.0), tmp_path / "free").checkpoint)
    assert tensors["0.weight"].norm() < 0.2 * free["0.weight"].norm()
    assert tensors["0.bias"].norm() > 0.3 * free["0.bias"].norm()


def test_every_epoch_sees_the_images_in_another_order(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, orders = torch.randperm, []

    def randperm(count: int, *, generator: torch.Generator) -> torch.Tensor:
        orders.append(real(count, generator=generator))
        return orders[-1]

    monkeypatch.setattr(torch, "randperm", randperm)
    _train(recipe, tmp_path / "a")
    _train(recipe.override(seed=1), tmp_path / "b")
    assert {len(order) for order in orders} == {IMAGES}
    assert len({tuple(order.tolist()) for order in orders}) == 2 * EPOCHS


def test_a_second_training_of_the_name_is_refused_while_the_first_one_runs(recipe: Recipe, tmp_path: Path) -> None:
    def again(done: float, total: float, note: str = "") -> None:
        with pytest.raises(InputError, match="another process is making") as caught:
            _train(recipe, tmp_path / "a")
        assert str(tmp_path / "a" / "cnn3_msn.safetensors") in str(caught.value)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(recipe, tmp_path / "a", progress=again)
    assert not (tmp_path / "a").exists()  # nothing of either


def test_verify_says_what_a_second_training_that_was_stopped_has_outdated(recipe: Recipe, tmp_path: Path) -> None:
    first = _train(recipe, tmp_path)
    log = tmp_path / "cnn3_msn.history.jsonl"
    write_curves(first.history, tmp_path / "cnn3_msn.curves.png", log=log)
    assert {finding.verdict for finding in verify_folder(tmp_path)} == {"ok"}

    def stop(done: float, total: float, note: str = "") -> None:
        if done > STEPS / EPOCHS:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(replace(recipe, train=replace(recipe.train, seed=1)), tmp_path, progress=stop)
    found = {finding.file: finding for finding in verify_folder(tmp_path)}
    assert {name for name, finding in found.items() if finding.verdict != "ok"} == {"cnn3_msn.curves.png"}
    assert found["cnn3_msn.curves.png"].verdict == "outdated"
    assert "a training that is not finished (cnn3_msn.state.safetensors" in found["cnn3_msn.curves.png"].why


def test_each_epoch_is_there_for_tensorboard_also_after_a_stop(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def stop(done: float, total: float, note: str = "") -> None:
        if done == total * 2 / 3 + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(recipe, tmp_path, tensorboard=True, progress=stop)
    history = _train(recipe, tmp_path, tensorboard=True, resume=True).history
    kept = accumulators.EventAccumulator(str(tmp_path / "tensorboard" / recipe.name)).Reload()
    for name in ("train_loss", "test_accuracy", "learning_rate", "sigma_error"):
        told = [(event.step, event.value) for event in kept.Scalars(name)]
        assert told == [(entry["epoch"], pytest.approx(entry[name])) for entry in history], name
    assert "sigma_layer" not in kept.Tags()["scalars"]
    assert {finding.verdict for finding in verify_folder(tmp_path)} == {"ok"}
