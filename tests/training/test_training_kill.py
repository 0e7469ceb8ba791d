"""kill -9 in the middle of a training, and `resume`: the bits of a training that was never killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from msn_deploy.core.recipes import Recipe
from msn_deploy.training import train

pytestmark = pytest.mark.slow

BATCH, IMAGES = 16, 64
STEPS = IMAGES // BATCH


def _killed(recipe: Recipe, out: Path, step: int, resume: bool) -> None:
    def progress(done: float, total: float, note: str = "") -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)

    train(recipe, out=out, device="cpu", limit_train=IMAGES, resume=resume, progress=progress)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_training_that_is_killed_twice(small_recipe: Callable[..., Recipe], tmp_path: Path, ema: float) -> None:
    recipe = small_recipe("cnn3", "msn", epochs=4, batch_size=BATCH, ema=ema, augment="crop", label_smoothing=0.1)
    for step, resume in ((STEPS + 2, False), (3 * STEPS + 1, True)):
        process = multiprocessing.get_context("spawn").Process(
            target=_killed, args=(recipe, tmp_path / "a", step, resume)
        )
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    resumed = train(recipe, out=tmp_path / "a", device="cpu", limit_train=IMAGES, resume=True)
    whole = train(recipe, out=tmp_path / "b", device="cpu", limit_train=IMAGES)
    assert resumed.checkpoint.read_bytes() == whole.checkpoint.read_bytes()
    assert len(resumed.history) == 4
    assert {path.name for path in (tmp_path / "a").iterdir()} == {path.name for path in (tmp_path / "b").iterdir()}


def _killed_at_publish(recipe: Recipe, out: Path) -> None:
    from msn_deploy.training import loop

    loop.Training.publish_epoch = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign,assignment]
    train(recipe, out=out, device="cpu", limit_train=IMAGES)


def test_killed_between_the_state_and_the_checkpoint_that_is_the_best(
    small_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """The first epoch is the one to keep, and its checkpoint is what the kill has cost."""
    options = {"epochs": 9, "batch_size": BATCH, "validation": 0.25, "patience": 1, "learning_rate": 1e-6}
    recipe = small_recipe("cnn3", "msn", **options)
    process = multiprocessing.get_context("spawn").Process(target=_killed_at_publish, args=(recipe, tmp_path / "a"))
    process.start()
    process.join()
    assert {path.name for path in (tmp_path / "a").glob("*.safetensors")} == {"cnn3_msn.state.safetensors"}
    resumed = train(recipe, out=tmp_path / "a", device="cpu", limit_train=IMAGES, resume=True)
    whole = train(recipe, out=tmp_path / "b", device="cpu", limit_train=IMAGES)
    assert whole.info.metrics["epoch"] == 1 < len(whole.history) < 9
    assert resumed.checkpoint.read_bytes() == whole.checkpoint.read_bytes()
