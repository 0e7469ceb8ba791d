"""MSN under DistributedDataParallel, two ranks: the mean of each process by default, of all of them on request."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from msn_deploy.msn import MSNConv2d

pytestmark = pytest.mark.slow

RANKS = 2
STEPS = 3


def _model(*, sync_mean: bool) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        MSNConv2d(3, 6, 3, affine=True, sync_mean=sync_mean),
        nn.ReLU(),
        MSNConv2d(6, 4, 3, sync_mean=sync_mean),
        nn.Flatten(),
        nn.Linear(4 * 16, 2),
    ).double()


def _batch() -> Tensor:
    """Two halves with different means, so that a local mean and a common one are not the same."""
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x + torch.tensor([0.0, 0.0, 2.0, 2.0], dtype=torch.float64).view(-1, 1, 1, 1)


def _trained(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return {name.removeprefix("module."): tensor.clone() for name, tensor in model.state_dict().items()}


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    torch.set_num_threads(1)
    half = _batch().chunk(RANKS)[rank]
    for sync_mean in (False, True):
        state = _trained(DistributedDataParallel(_model(sync_mean=sync_mean)), half)
        torch.save(state, Path(folder) / f"{sync_mean}-{rank}.pt")
    dist.barrier()
    os._exit(0)  # at once: gloo's threads can abort an interpreter that tears itself down


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[bool, int], dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(_rank, args=(str(folder),), nprocs=RANKS)
    return {
        (sync, rank): torch.load(folder / f"{sync}-{rank}.pt", weights_only=True)
        for sync in (False, True)
        for rank in range(RANKS)
    }


def _far(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def test_with_a_common_mean_two_ranks_are_one_process(trained: dict[tuple[bool, int], dict[str, Tensor]]) -> None:
    alone = _trained(copy.deepcopy(_model(sync_mean=True)), _batch())
    for rank in range(RANKS):
        assert _far(trained[True, rank], alone) < 1e-10


def test_by_default_the_mean_is_that_of_the_rank(trained: dict[tuple[bool, int], dict[str, Tensor]]) -> None:
    alone = _trained(_model(sync_mean=False), _batch())
    names = [name for name, _ in _model(sync_mean=False).named_parameters()]
    first, second = (trained[False, rank] for rank in range(RANKS))
    assert _far({name: first[name] for name in names}, {name: second[name] for name in names}) < 1e-12
    assert _far({name: first[name] for name in names}, alone) > 1e-4
