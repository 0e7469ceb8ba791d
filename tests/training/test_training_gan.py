"""Training a GAN: it repeats itself bit for bit, survives being killed, and leaves what can be looked at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from msn_deploy.core.errors import GateError, InputError
from msn_deploy.core.recipes import Recipe, load_recipe
from msn_deploy.nets.dcgan import latents
from msn_deploy.pipeline.verify import verify_folder
from msn_deploy.training import TrainResult, gan, load_checkpoint, train_gan
from msn_deploy.training.checkpoint import read_tensors
from msn_deploy.training.distributed import World
from msn_deploy.training.gan import generated

pytestmark = pytest.mark.slow

BATCH, IMAGES = 16, 64


@pytest.fixture
def recipe() -> Recipe:
    small = replace(load_recipe("gan_msn"), width=2, data="digits", fit="resize")
    return small.override(epochs=3, batch_size=BATCH, learning_rate=0.002)


def _train(recipe: Recipe, out: Path, **options: Any) -> TrainResult:
    return train_gan(recipe, out=out, device="cpu", limit_train=IMAGES, **options)


def test_both_networks_learn_and_what_they_leave_can_be_verified(recipe: Recipe, tmp_path: Path) -> None:
    result = _train(recipe, tmp_path)
    names = {path.name for path in tmp_path.iterdir() if path.is_file() and path.suffix != ".json"}
    grids = {f"gan_msn.epoch-00{epoch}.png" for epoch in (1, 2, 3)}
    assert names == grids | {"gan_msn.safetensors", "gan_msn.discriminator.safetensors", "gan_msn.history.jsonl"}
    assert {finding.verdict for finding in verify_folder(tmp_path)} == {"ok"}
    lines = (tmp_path / "gan_msn.history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.history
    first, last = result.history[0], result.history[-1]
    assert last["real_logit"] - last["fake_logit"] > first["real_logit"] - first["fake_logit"] + 0.1
    assert len(last["sigma"]) == len(last["drift"]) == len(last["singular"]) == 8
    assert all(0.5 < value < 1.001 for value in last["sigma"])
    tensors, _ = read_tensors(tmp_path / "gan_msn.discriminator.safetensors")
    layers = [f"features.{at}" for at in range(0, 14, 2)] + ["last"]
    true = [float(torch.linalg.svdvals(tensors[f"{layer}.weight"].double().flatten(1))[0]) for layer in layers]
    assert last["singular"] == pytest.approx(true, rel=1e-4)
    torch.manual_seed(recipe.train.seed)
    from msn_deploy.nets import build_discriminator, build_net

    generator, discriminator = build_net(recipe, classes=0), build_discriminator(recipe)
    for model, file in ((generator, "gan_msn"), (discriminator, "gan_msn.discriminator")):
        tensors, _ = read_tensors(tmp_path / f"{file}.safetensors")
        moved = [name for name, value in model.named_parameters() if not torch.equal(value, tensors[name])]
        assert moved == [name for name, _ in model.named_parameters()]


def test_the_grid_shows_what_the_checkpoint_makes(recipe: Recipe, tmp_path: Path) -> None:
    result = _train(recipe.override(epochs=1), tmp_path)
    model, info = load_checkpoint(result.checkpoint)
    assert (info.net, info.data, info.preprocess) == ("dcgan", "", None)
    inputs = latents(64, 128, torch.Generator().manual_seed(0))
    images = generated(model, inputs)
    grid = np.asarray(Image.open(tmp_path / "gan_msn.epoch-001.png"))
    assert grid.shape == (256, 256)
    for at in (0, 9, 63):
        row, column = divmod(at, 8)
        tile = grid[32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
        np.testing.assert_array_equal(tile, images[at, :, :, 0])
    with torch.no_grad():
        np.testing.assert_allclose(images[3, :, :, 0] / 127.5 - 1, model(inputs)[3, 0].numpy(), atol=0.5 / 127)


@pytest.mark.parametrize(("norm", "channels_last"), [("msn", True), ("sn", False)])
def test_a_resumed_run_equals_one_that_was_never_interrupted(
    recipe: Recipe, tmp_path: Path, norm: str, channels_last: bool
) -> None:
    recipe = recipe.override(norm=norm, channels_last=channels_last)
    whole = _train(recipe, tmp_path / "whole")
    assert _train(recipe, tmp_path / "again").checkpoint.read_bytes() == whole.checkpoint.read_bytes()

    def stop(done: float, total: float, note: str = "") -> None:
        if done == total // 3 + 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(recipe, tmp_path / "halves", progress=stop)
    resumed = _train(recipe, tmp_path / "halves", resume=True)
    for name in (f"gan_{norm}.safetensors", f"gan_{norm}.discriminator.safetensors", f"gan_{norm}.epoch-003.png"):
        assert (tmp_path / "halves" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    drop = [[{key: each[key] for key in each if key != "seconds"} for each in run.history] for run in (whole, resumed)]
    assert drop[0] == drop[1]
    assert not (tmp_path / "halves" / f"gan_{norm}.state.safetensors").exists()
    other = _train(recipe.override(seed=1), tmp_path / "other")
    assert other.checkpoint.read_bytes() != whole.checkpoint.read_bytes()


def test_nothing_to_resume_and_divergence(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="nothing to resume"):
        _train(recipe, tmp_path, resume=True)
    nan = float("nan")
    monkeypatch.setattr(torch.nn.functional, "softplus", lambda logits: logits * nan)
    with pytest.raises(
        GateError, match=r"diverged in epoch 1: losses nan and nan, weights [\s\S]*\.\nLower the learning rate"
    ):
        _train(recipe, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("which", [0, 1], ids=["generator", "discriminator"])
def test_weights_that_the_last_step_ruined_are_not_saved(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """The losses of a step are those of before its update, and NaN pixels would be written as black ones."""
    real, name = gan._Training._step, ("generator", "discriminator")[which]
    steps: list[int] = []

    def step(self: Any, of: int, loss: torch.Tensor) -> None:
        real(self, of, loss)
        steps.append(of)
        if len(steps) == 2 * (IMAGES // BATCH):
            self.optimizers[which].param_groups[0]["params"][0].data.fill_(float("nan"))

    monkeypatch.setattr(gan._Training, "_step", step)
    with pytest.raises(GateError, match=rf"in epoch 1: losses \d\S* and \d\S*, weights of the {name} that are not num"):
        _train(recipe, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_killed_after_its_last_checkpoint_ends_the_same(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = recipe.override(epochs=2)
    whole = _train(twice, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(gan, "remove_state", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            _train(twice, tmp_path / "killed")
    resumed = _train(twice, tmp_path / "killed", resume=True)
    assert resumed.info.metrics == whole.info.metrics != {}
    assert resumed.checkpoint.read_bytes() == whole.checkpoint.read_bytes()
    assert not (tmp_path / "killed" / "gan_msn.state.safetensors").exists()


def test_a_run_killed_between_the_state_and_the_rest_of_an_epoch_loses_no_grid(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = recipe.override(epochs=2)
    with monkeypatch.context() as patched:
        patched.setattr(gan._Training, "_publish", lambda run: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            _train(twice, tmp_path / "killed")
    assert [path.name for path in (tmp_path / "killed").glob("*.safetensors")] == ["gan_msn.state.safetensors"]
    _train(twice, tmp_path / "killed", resume=True)
    _train(twice, tmp_path / "whole")
    for name in ("gan_msn.epoch-001.png", "gan_msn.epoch-002.png", "gan_msn.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_several_processes_are_refused(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def join(device: str) -> Iterator[World]:
        yield World(rank=1, size=2, device=torch.device(device))

    monkeypatch.setattr(gan, "join", join)
    with pytest.raises(InputError, match=r"trained by one process, torchrun started 2\.\nStart it without torchrun"):
        _train(recipe, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_channels_last_is_another_layout_of_the_same_training(recipe: Recipe, tmp_path: Path) -> None:
    once = recipe.override(epochs=1)
    plain = _train(once, tmp_path / "plain").history[0]
    seen: list[bool] = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: (
            seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
            if isinstance(module, torch.nn.Conv2d)
            else None
        )
    )
    try:
        last = _train(once.override(channels_last=True), tmp_path / "last").history[0]
    finally:
        hook.remove()
    assert all(seen)
    for key in ("d_loss", "g_loss", "real_logit", "fake_logit"):
        assert last[key] == pytest.approx(plain[key], rel=1e-3, abs=1e-4)
