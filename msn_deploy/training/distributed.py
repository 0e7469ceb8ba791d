"""One training by several processes, as `torchrun` starts them: DistributedDataParallel over gloo or NCCL.

The MSN layers take their mean over all processes, so that N processes train what one would, up to round-off. Torch's
BatchNorm does that on CUDA only; on the CPU each process normalises its own part of a batch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from msn_deploy.core.errors import InputError, MissingDevice
from msn_deploy.msn.centring import Centring

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """This process among those that train together."""

    rank: int
    """Its number, from 0."""
    size: int
    """How many there are."""
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files and shows progress."""
        return self.rank == 0

    def shared(self, model: nn.Module) -> nn.Module:
        """Return the network that a step runs: the model itself, or wrapped so that gradients and means are shared."""
        if self.size == 1:
            return model
        for module in model.modules():
            if isinstance(module, Centring):
                module.sync_mean = True
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
            if self.device.type == "cuda":
                model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
            elif self.leads:
                _LOG.warning("BatchNorm on the CPU is not shared: each process normalises its own part of a batch.")
        return nn.parallel.DistributedDataParallel(model)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes."""
        if self.size > 1:
            distributed.all_reduce(value)
            value /= self.size
        return value


@contextmanager
def join(device: str) -> Iterator[World]:
    """Yield this process's World: alone, or one of those that torchrun started.

    device: "auto", "cpu" or "cuda". Raises InputError (exit 2) for another, MissingDevice (exit 3) without CUDA.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"unknown device {device!r}; known are auto, cpu, cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise MissingDevice("`--device cuda`: torch finds no CUDA device here.\nUse `--device cpu`, or leave it out.")
    kind = "cpu" if device == "cpu" or not torch.cuda.is_available() else "cuda"
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(rank=0, size=1, device=torch.device(kind))
        return
    where = torch.device(kind)
    if kind == "cuda":
        where = torch.device(kind, int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(where)
    distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield World(rank=distributed.get_rank(), size=size, device=where)
    finally:
        distributed.destroy_process_group()
