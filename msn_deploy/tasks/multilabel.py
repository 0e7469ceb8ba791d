"""Which of several labels hold for an image, each by itself? From a number per label to those above a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import TaskName
from msn_deploy.data.frame import Placement
from msn_deploy.tasks.classification import Guess
from msn_deploy.tasks.drawing import captioned
from msn_deploy.tasks.task import (
    Given,
    Outputs,
    Score,
    check_reading,
    rows_of_numbers,
    the_output,
    threshold_read,
)

_TOP = 5


@dataclass(frozen=True, slots=True)
class LabelsAnswer:
    """The labels that reach the threshold, the surest first; the surest of all; and the score of each, (C,)."""

    labels: tuple[Guess, ...]
    top: tuple[Guess, ...]
    scores: NDArray[np.float64]
    threshold: float

    def text(self) -> str:
        """Return such as "dog 98.1%, ball 77.0%"."""
        if not self.labels:
            return f"no label (the surest: {self.top[0].label} {self.top[0].score:.1%})"
        return ", ".join(f"{each.label} {each.score:.1%}" for each in self.labels)

    def to_json(self) -> dict[str, Any]:
        """Return the labels and the five surest, each with its score."""
        kinds = {"labels": self.labels, "top": self.top}
        return {kind: [{"label": each.label, "score": each.score} for each in of] for kind, of in kinds.items()}

    def drawn(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the image with the labels written on it."""
        return captioned(image, self.text())


class MultiLabel:
    """Any number of labels for each image, each with a probability of its own.

    reading: `output`; `ending`, sigmoid or logits; `threshold` (0.5), 0 to 1, from which on a label holds.
    """

    name: TaskName = "multi-label"

    def __init__(self, given: Given) -> None:
        check_reading(given, {"output": (), "ending": ("logits", "sigmoid"), "threshold": ()})
        self.classes = given.classes
        self._given = given
        self._output, self._ending = the_output(given)
        self._threshold = threshold_read(given)
        if self._ending not in ("logits", "sigmoid"):
            raise InputError(
                f"{given.model}: its numbers are {self._ending}; labels have probabilities (sigmoid) or logits.\n"
                "Say it: msn-deploy export ... --read ending=sigmoid|logits"
            )

    def answers(self, outputs: Outputs, placements: Sequence[Placement] | None = None) -> list[LabelsAnswer]:
        """Return the labels of each image.

        Raises InputError where there is not one number per label, GateError for numbers that are not finite.
        """
        numbers = rows_of_numbers(outputs[self._output], model=self._given.model, wanted="labels are one for each name")
        if self.classes and numbers.shape[1] != len(self.classes):
            raise InputError(
                f"{self._given.model} gives {numbers.shape[1]} numbers per image, for {len(self.classes)} labels."
            )
        scores = numbers if self._ending == "sigmoid" else 0.5 * (1 + np.tanh(0.5 * numbers))
        return [self._answer(row) for row in scores]

    def meter(self) -> AveragePrecisionMeter:
        """Return an empty meter."""
        return AveragePrecisionMeter(self.classes)

    def _answer(self, scores: NDArray[np.float64]) -> LabelsAnswer:
        order = np.argsort(-scores, kind="stable")
        guesses = [Guess(self.classes[at] if self.classes else str(at), float(scores[at])) for at in order]
        held = tuple(each for each in guesses if each.score >= self._threshold)
        return LabelsAnswer(held, tuple(guesses[:_TOP]), scores, self._threshold)


class AveragePrecisionMeter:
    """Mean average precision over the labels, the number that does not depend on a threshold.

    The average precision is the sum of (R_n - R_n-1) P_n over the scores from the highest down, where equal scores are
    one step, without interpolation: scikit-learn's `average_precision_score`. Labels that no image has are left out.
    f1_micro: over all decisions; f1_macro: the mean over the labels that an image or an answer has. exact_match: the
    share of images of which every label is right. These three are at the threshold.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = classes
        self._scores: list[NDArray[np.float64]] = []
        self._held: list[NDArray[np.bool_]] = []
        self._labels: list[NDArray[np.bool_]] = []

    def add(self, answers: Sequence[LabelsAnswer], labels: NDArray[np.bool_]) -> None:
        """Count answers; labels: bool (N, C)."""
        for answer, label in zip(answers, labels, strict=True):
            self._scores.append(answer.scores)
            self._held.append(answer.scores >= answer.threshold)
            self._labels.append(label)

    def score(self) -> Score:
        """Return the mean average precision. Raises InputError where no image has a label."""
        scores, held, labels = np.stack(self._scores), np.stack(self._held), np.stack(self._labels)
        there = np.flatnonzero(labels.any(0)).tolist()
        if not there:
            raise InputError("no image has a label: there is no average precision.")
        each = {self._classes[at]: average_precision(scores[:, at], labels[:, at]) for at in there}
        both, all_of = (held & labels).sum(0), held.sum(0) + labels.sum(0)
        used = all_of > 0
        return Score(
            metric="mAP",
            value=float(np.mean(list(each.values()))),
            samples=len(labels),
            others={
                "f1_micro": float(2 * both.sum() / all_of.sum()),
                "f1_macro": float((2 * both[used] / all_of[used]).mean()),
                "exact_match": float((held == labels).all(1).mean()),
            },
            per_class={name: round(value, 6) for name, value in each.items()},
        )


def average_precision(scores: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Return the area below precision over recall, in steps, of scores (N,), of which some are right (N,)."""
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(right[order])
    steps = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # the last of equal scores
    precision, recall = found[steps] / (steps + 1), found[steps] / found[-1]
    return float((np.diff(recall, prepend=0) * precision).sum())
