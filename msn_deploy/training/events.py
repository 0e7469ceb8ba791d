"""The numbers of each epoch in the files that TensorBoard reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from msn_deploy.core.optional import require


class Events:
    """Scalars of one run, by epoch: loss, metrics, seconds and whatever else the history holds as a number."""

    def __init__(self, folder: Path, *, done: int) -> None:
        """Open the folder of a run. done: epochs that stay of what it holds. Raises MissingDependency."""
        require("tensorboard", step="train --tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder, purge_step=done + 1 if done else None)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Write an entry of the history, for a page that is open to show."""
        for name, value in entry.items():
            if name != "epoch" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, entry["epoch"])
        self._writer.flush()

    def __enter__(self) -> Events:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, cause: BaseException | None, where: TracebackType | None
    ) -> None:
        self._writer.close()
