"""Two processes as torchrun starts them train what one process trains, and only the first of them writes."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from msn_deploy.core.errors import InputError
from msn_deploy.core.recipes import Recipe
from msn_deploy.training import load_checkpoint, train
from msn_deploy.training.checkpoint import read_tensors

pytestmark = pytest.mark.slow

RANKS, BATCH, IMAGES = 2, 16, 64


def _recipe(small_recipe: Callable[..., Recipe], norm: str) -> Recipe:
    chosen = small_recipe("cnn3", norm, epochs=2, batch_size=BATCH, optimizer="sgd", learning_rate=0.05, augment="flip")
    return replace(chosen, init="kaiming")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _rank(rank: int, recipe: Recipe, folder: str, port: int) -> None:
    """Do what torchrun does to a process: tell it by its environment who it is."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    train(recipe, out=Path(folder) / f"rank{rank}", device="cpu", limit_train=IMAGES)
    os._exit(0)  # at once: gloo's threads can abort an interpreter that tears itself down


@pytest.mark.parametrize("norm", ["msn", "msn-affine"])
def test_two_processes_train_what_one_does(small_recipe: Callable[..., Recipe], tmp_path: Path, norm: str) -> None:
    recipe = _recipe(small_recipe, norm)
    torch.multiprocessing.spawn(_rank, args=(recipe, str(tmp_path), _free_port()), nprocs=RANKS)
    assert not (tmp_path / "rank1").exists()
    alone = train(recipe, out=tmp_path / "alone", device="cpu", limit_train=IMAGES)
    both = tmp_path / "rank0" / alone.checkpoint.name
    wanted, got = read_tensors(alone.checkpoint)[0], read_tensors(both)[0]
    assert wanted.keys() == got.keys()
    for name, tensor in wanted.items():
        assert float((got[name].double() - tensor.double()).abs().max()) < 1e-5, name
    loss = load_checkpoint(both)[1].metrics["train_loss"]
    assert loss == pytest.approx(alone.history[-1]["train_loss"], abs=1e-5)


def test_without_the_common_mean_they_would_not(
    small_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: one process that sees half of each batch is further away than the tolerance above."""
    from msn_deploy.training import loop

    recipe = _recipe(small_recipe, "msn")
    whole = read_tensors(train(recipe, out=tmp_path / "whole", device="cpu", limit_train=IMAGES).checkpoint)[0]
    real = loop.Batches
    monkeypatch.setattr(loop, "Batches", lambda *args, **options: real(*args, **{**options, "rank": 1, "ranks": 2}))
    half = read_tensors(train(recipe, out=tmp_path / "half", device="cpu", limit_train=IMAGES).checkpoint)[0]
    assert float((whole["0.weight"] - half["0.weight"]).abs().max()) > 1e-3


def test_a_batch_that_the_processes_cannot_share(
    small_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from msn_deploy.training import distributed

    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(distributed.distributed, "init_process_group", lambda backend: None)
    monkeypatch.setattr(distributed.distributed, "destroy_process_group", lambda: None)
    monkeypatch.setattr(distributed.distributed, "get_rank", lambda: 0)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(InputError, match="batch of 16 can't be divided among 3 processes"):
        train(_recipe(small_recipe, "msn"), out=tmp_path, device="cpu", limit_train=IMAGES)
