"""Which of several classes is an image? From one number per class to labels, and how often they are right."""

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
from msn_deploy.tasks.task import (
    ENDINGS,
    Ending,
    Given,
    Outputs,
    Score,
    check_reading,
    per_class_mean,
    rows_of_numbers,
    the_output,
)

_SUM = 1e-3  # by which probabilities in half precision may miss 1
_TOP = 5


@dataclass(frozen=True, slots=True)
class Guess:
    """A class and its score, 0 to 1."""

    label: str
    score: float


def scores_of(outputs: NDArray[Any], *, ending: Ending = "logits", name: str) -> NDArray[np.float64]:
    """Return the probability of each class for each image, (N, classes), from what a network gives.

    outputs: (N, classes), with any axes of size 1 behind; (N, 1) is the probability or the logit of the second of two
    classes. name: of the model. Raises InputError (exit 2) for anything else, GateError (exit 1) for numbers that are
    not finite.
    """
    numbers = rows_of_numbers(outputs, model=name, wanted="a classifier gives one for each class")
    if ending == "unknown":
        ending = _told_by(numbers, name)
    if ending == "log-softmax":
        return np.exp(numbers)
    if numbers.shape[1] == 1:
        second = numbers if ending in ("sigmoid", "softmax") else 0.5 * (1 + np.tanh(0.5 * numbers))
        return np.concatenate([1 - second, second], axis=1)
    if ending in ("softmax", "sigmoid"):
        return numbers
    powers = np.exp(numbers - numbers.max(axis=1, keepdims=True))
    scores: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return scores


def _told_by(numbers: NDArray[np.float64], name: str) -> Ending:
    """Return what numbers are by themselves: those of a softmax are not negative and add up to 1."""
    if numbers.shape[1] == 1:
        raise InputError(
            f"{name} gives one number per image, and its graph is not here to tell a probability from a logit.\n"
            "Give the ONNX file that the engine was built from."
        )
    sums = np.abs(numbers.sum(axis=1) - 1).max(initial=0)
    return "softmax" if numbers.min(initial=0) >= 0 and sums <= _SUM else "logits"


@dataclass(frozen=True, slots=True)
class ClassAnswer:
    """The likeliest classes of one image, the best first, and the index of the best."""

    guesses: tuple[Guess, ...]
    index: int

    def text(self) -> str:
        """Return such as "7  98.1%"."""
        return f"{self.guesses[0].label}  {self.guesses[0].score:.1%}"

    def to_json(self) -> dict[str, Any]:
        """Return label and score of the best, and all guesses as `top`."""
        top = [{"label": each.label, "score": each.score} for each in self.guesses]
        return {**top[0], "top": top}

    def drawn(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the image with the best class written on it."""
        return captioned(image, self.text())


class Classification:
    """One class for each image. Of two classes, one number may stand for the second.

    reading: `output`, which one holds the numbers; `ending`, what they are already.
    """

    name: TaskName = "classification"

    def __init__(self, given: Given) -> None:
        check_reading(given, {"output": (), "ending": ENDINGS})
        self.classes = given.classes
        self._model = given.model
        self.output, self.ending = the_output(given)
        self._named = given.named

    def answers(self, outputs: Outputs, placements: Sequence[Placement] | None = None) -> list[ClassAnswer]:
        """Return the likeliest classes of each image, at most five; a class without a name is its index.

        Raises InputError where there is not one number per class, GateError for numbers that are not finite.
        """
        scores = scores_of(outputs[self.output], ending=self.ending, name=self._model)
        count = scores.shape[1]
        if self.classes and (count < len(self.classes) or (count > len(self.classes) and not self._named)):
            told = "its names are" if self._named else "the data has"
            hint = "Check the names: `--classes`." if self._named else "Give data with the classes it was trained on."
            raise InputError(
                f"{self._model} gives {outputs[self.output].shape[1]} numbers per image, for {count} classes; "
                f"{told} {len(self.classes)}.\n{hint}"
            )
        best = np.argsort(-scores, axis=1, kind="stable")[:, :_TOP]
        return [
            ClassAnswer(tuple(Guess(self._label(int(at)), float(row[at])) for at in order), int(order[0]))
            for row, order in zip(scores, best, strict=True)
        ]

    def meter(self) -> AccuracyMeter:
        """Return an empty meter."""
        return AccuracyMeter(self.classes)

    def _label(self, index: int) -> str:
        return self.classes[index] if index < len(self.classes) else str(index)


class AccuracyMeter:
    """Accuracy, the share of images whose likeliest class is right, and top-5 of networks with more classes."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = classes
        self._found: list[int] = []
        self._labels: list[int] = []
        self._among: list[bool] = []

    def add(self, answers: Sequence[ClassAnswer], labels: NDArray[np.int64]) -> None:
        """Count answers; labels (N,): the index of each image's class."""
        for answer, label in zip(answers, labels.tolist(), strict=True):
            self._found.append(answer.index)
            self._labels.append(label)
            self._among.append(self._classes[label] in (guess.label for guess in answer.guesses))

    def score(self) -> Score:
        """Return the accuracy."""
        labels = np.asarray(self._labels)
        right = (np.asarray(self._found) == labels).astype(np.float64)
        return Score(
            metric="accuracy",
            value=float(right.mean()),
            samples=len(labels),
            each=right,
            others={"top5": float(np.mean(self._among))} if len(self._classes) > _TOP else {},
            per_class=per_class_mean(right, labels, self._classes),
        )
