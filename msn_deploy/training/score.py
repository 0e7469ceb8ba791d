"""How good is a network in memory? The metric of its recipe's task on a split, as `eval` measures it of a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from msn_deploy.core.model_info import ModelInfo
from msn_deploy.core.recipes import Recipe, TrainedTask
from msn_deploy.data import Split, to_input
from msn_deploy.tasks import make_task
from msn_deploy.tasks.scoring import score_of
from msn_deploy.tasks.task import Given, Outputs, metric_text
from msn_deploy.training.runner import logits_of, output_of

READINGS: dict[TrainedTask, dict[str, Any]] = {"detection": {"head": "fcos"}}
"""How the outputs of the networks here are read, where that is not usual; see ModelInfo.reading."""

_BESIDE = ("mAP50", "pixel_accuracy")
"""Metrics beside that of the task that the history keeps: `eval` has the others."""
_CHUNK = 64
_MEASURED_BY_ERROR = ("regression",)  # all others by a metric of which more is better


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """How good a network is. lost: images without a finite output; if there are any, there is no metric.

    metric: its name, such as "accuracy". value, unit: see tasks.task.Score. others: further metrics, by name.
    """

    lost: int
    metric: str = ""
    value: float = 0.0
    unit: str = "share"
    others: dict[str, float] = field(default_factory=dict)

    def text(self) -> str:
        """Return the metric as people read it, without its name."""
        return metric_text(self.value, self.unit)


def is_error(task: TrainedTask) -> bool:
    """Whether less is better in the metric of a task."""
    return task in _MEASURED_BY_ERROR


class Judge:
    """The images of a split, ready for a network, and what is right for them."""

    def __init__(self, split: Split, recipe: Recipe, info: ModelInfo) -> None:
        assert info.preprocess is not None
        self._split, self._prep = split, info.preprocess
        self._input = to_input(split.images, info.preprocess)
        self._output = output_of(recipe, len(info.classes))
        given = Given(
            model=recipe.name,
            classes=info.classes,
            named=True,
            reading=info.reading,
            outputs=(self._output,),
            endings=("logits",),
            frame=(info.preprocess.height_px, info.preprocess.width_px),
        )
        # Whether the largest number is the right one needs no answer for each image.
        self._task = None if recipe.task == "classification" else make_task(recipe.task, given)

    def __len__(self) -> int:
        return len(self._split.labels)

    def scored(self, model: nn.Module) -> Scored:
        """Return how good a network is."""
        if self._task is None:
            logits = logits_of(model, self._input)
            right = logits.argmax(1) == self._split.labels
            return Scored(lost=_lost(logits), metric="accuracy", value=float(right.mean()))

        def made() -> Iterator[tuple[int, Outputs]]:
            for outputs in self._outputs(model):
                if _lost(outputs):
                    raise _NotFiniteError
                yield len(outputs), {self._output.name: outputs}

        try:
            score = score_of(self._task, self._split.labels, self._prep, made())
        except _NotFiniteError:
            return Scored(lost=sum(map(_lost, self._outputs(model))))
        others = {name: value for name, value in score.others.items() if name in _BESIDE}
        return Scored(lost=0, metric=score.metric, value=score.value, unit=score.unit, others=others)

    def _outputs(self, model: nn.Module) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(self._input), _CHUNK):
            yield logits_of(model, self._input[start : start + _CHUNK])


def _lost(outputs: NDArray[np.float32]) -> int:
    """Return of how many images an output is not finite."""
    return int((~np.isfinite(outputs).reshape(len(outputs), -1).all(axis=1)).sum())


class _NotFiniteError(Exception):
    """Ends a scoring that is of no use."""
