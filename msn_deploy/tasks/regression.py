"""How much of something is in an image? From one or more numbers to values, and how far they are off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import TaskName
from msn_deploy.data.frame import Placement
from msn_deploy.tasks.drawing import captioned
from msn_deploy.tasks.task import Given, Outputs, Score, check_reading, numbers_read, require_finite, the_output

_FEW = 8  # values that a line holds


@dataclass(frozen=True, slots=True)
class ValuesAnswer:
    """The values of one image, float64 (K,), and their names."""

    values: NDArray[np.float64]
    names: tuple[str, ...]

    def text(self) -> str:
        """Return such as "age 31.2, height 1.78"."""
        pairs = list(zip(self.names, self.values.tolist(), strict=True))
        more = [f"{len(pairs) - _FEW} more"] if len(pairs) > _FEW else []
        return ", ".join([*(f"{name} {value:.4g}" for name, value in pairs[:_FEW]), *more])

    def to_json(self) -> dict[str, Any]:
        """Return each value by its name."""
        return {"values": dict(zip(self.names, self.values.tolist(), strict=True))}

    def drawn(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the image with the values written on it."""
        return captioned(image, self.text())


class Regression:
    """One or more values for each image: all numbers of the output, in its order.

    reading: `output`; `mean` and `std`, one number or one for each value, of a network that was trained on
    (value - mean) / std: its numbers are taken times std, plus mean.
    """

    name: TaskName = "regression"

    def __init__(self, given: Given) -> None:
        check_reading(given, {"output": (), "mean": (), "std": ()})
        self.classes = given.classes
        self._given = given
        self._output, _ = the_output(given)
        self._mean, self._std = numbers_read(given, "mean", (0.0,)), numbers_read(given, "std", (1.0,))
        if min(self._std) <= 0:
            raise InputError(f"{given.model}: a std is above 0, not {min(self._std):g}.")

    def answers(self, outputs: Outputs, placements: Sequence[Placement] | None = None) -> list[ValuesAnswer]:
        """Return the values of each image; a value without a name is called by its index.

        Raises InputError where there are not as many as names, means or deviations, GateError for numbers that are not
        finite.
        """
        numbers = outputs[self._output]
        require_finite(numbers, self._given.model)
        values = numbers.reshape(len(numbers), -1).astype(np.float64)
        count = values.shape[1]
        for what, have in (("names", self.classes), ("means", self._mean), ("deviations", self._std)):
            if have and len(have) != count and (what == "names" or len(have) > 1):
                size = "x".join(map(str, numbers.shape[1:])) or "1"
                raise InputError(f"{self._given.model} gives {size} values per image; there are {len(have)} {what}.")
        values = values * self._std + self._mean
        names = self.classes or tuple(map(str, range(count)))
        return [ValuesAnswer(row, names) for row in values]

    def meter(self) -> ErrorMeter:
        """Return an empty meter."""
        return ErrorMeter()


class ErrorMeter:
    """The mean absolute error over all values and images, in the labels' own unit.

    rmse: the root of the mean squared error. r2: 1 - squared error / squared distance to the labels' mean, the mean
    over the values whose labels differ; left out where none do.
    """

    def __init__(self) -> None:
        self._answers: list[ValuesAnswer] = []
        self._labels: list[NDArray[np.float64]] = []

    def add(self, answers: Sequence[ValuesAnswer], labels: NDArray[np.float64]) -> None:
        """Count answers; labels: float64 (N, K). Raises InputError for another K."""
        for answer, label in zip(answers, labels, strict=True):
            if len(label) != len(answer.values):
                raise InputError(f"the data has {len(label)} values per image, the model gives {len(answer.values)}.")
            self._answers.append(answer)
            self._labels.append(label)

    def score(self) -> Score:
        """Return the mean absolute error."""
        labels = np.stack(self._labels)
        errors = np.stack([answer.values for answer in self._answers]) - labels
        names = self._answers[0].names
        spread = ((labels - labels.mean(0)) ** 2).sum(0)
        varied = spread > 0
        r2 = 1 - (errors**2).sum(0)[varied] / spread[varied]
        return Score(
            metric="MAE",
            value=float(np.abs(errors).mean()),
            samples=len(labels),
            unit="",
            higher_is_better=False,
            each=np.abs(errors).mean(1),
            others={
                "rmse": float(np.sqrt((errors**2).mean())),
                **({"r2": float(r2.mean())} if varied.any() else {}),
            },
            per_class=dict(zip(names, np.abs(errors).mean(0).round(6).tolist(), strict=True)),
            unit_of_others="",
        )
